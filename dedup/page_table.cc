#include "dedup/page_table.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/check.h"

namespace baton::dedup {
namespace internal {

// A node is written only while one table alone can reach it (reference count 1 on the whole
// path). Its digest is a cache that any thread may fill: 0 none, 1 being filled, 2 there.
struct Node {
  std::atomic<std::uint32_t> refs{1};
  std::atomic<std::uint8_t> digest_state{0};
  std::uint8_t level = 0;
  std::uint8_t width = 16;
  std::uint64_t pages = 0;  // present pages below
  Digest digest;
};

struct Leaf : Node {
  std::byte* slot(std::size_t i) { return reinterpret_cast<std::byte*>(this + 1) + i * width; }
  const std::byte* slot(std::size_t i) const {
    return reinterpret_cast<const std::byte*>(this + 1) + i * width;
  }
  Digest get(std::size_t i) const {
    Digest d;
    std::memcpy(d.bytes.data(), slot(i), width);
    return d;
  }
};

struct Inner : Node {
  Node* child[kFanOut] = {};
};

}  // namespace internal

namespace {

using internal::Inner;
using internal::Leaf;
using internal::Node;

std::uint64_t span_of(unsigned level) {  // pages below one node of this level
  return std::uint64_t{1} << (kFanOutBits * (level + 1));
}
std::size_t slot_of(unsigned level, std::uint64_t page) {
  return (page >> (kFanOutBits * level)) & (kFanOut - 1);
}

Leaf* as_leaf(Node* n) { return static_cast<Leaf*>(n); }
const Leaf* as_leaf(const Node* n) { return static_cast<const Leaf*>(n); }
Inner* as_inner(Node* n) { return static_cast<Inner*>(n); }
const Inner* as_inner(const Node* n) { return static_cast<const Inner*>(n); }

Node* make_node(unsigned level, std::size_t width) {
  Node* node;
  if (level == 0) {
    void* memory = ::operator new(sizeof(Leaf) + kFanOut * width);
    std::memset(static_cast<std::byte*>(memory) + sizeof(Leaf), 0, kFanOut * width);
    node = new (memory) Leaf;
  } else {
    node = new Inner;
  }
  node->level = static_cast<std::uint8_t>(level);
  node->width = static_cast<std::uint8_t>(width);
  return node;
}

void acquire(Node* node) {
  if (node) node->refs.fetch_add(1, std::memory_order_relaxed);
}

void release(Node* node) {
  if (!node || node->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (node->level == 0) {
    as_leaf(node)->~Leaf();
    ::operator delete(node);
    return;
  }
  for (Node* child : as_inner(node)->child) release(child);
  delete as_inner(node);
}

Node* clone(const Node* node) {
  Node* copy = make_node(node->level, node->width);
  copy->pages = node->pages;
  if (node->digest_state.load(std::memory_order_acquire) == 2) {
    copy->digest = node->digest;
    copy->digest_state.store(2, std::memory_order_relaxed);
  }
  if (node->level == 0) {
    std::memcpy(as_leaf(copy)->slot(0), as_leaf(node)->slot(0), kFanOut * node->width);
  } else {
    for (std::size_t i = 0; i < kFanOut; ++i) {
      as_inner(copy)->child[i] = as_inner(node)->child[i];
      acquire(as_inner(copy)->child[i]);
    }
  }
  return copy;
}

void make_own(Node*& ref) {
  if (ref->refs.load(std::memory_order_acquire) == 1) return;
  Node* copy = clone(ref);
  release(ref);
  ref = copy;
}

bool all_absent(std::span<const PageChange> changes) {
  return std::all_of(changes.begin(), changes.end(),
                     [](const PageChange& c) { return c.digest.is_absent(); });
}

void drop_if_empty(Node*& ref) {
  if (ref->pages == 0) {
    release(ref);
    ref = nullptr;
  }
}

// Applies changes (sorted, all below this node). True when something changed.
bool update(Node*& ref, unsigned level, std::size_t width, std::span<const PageChange> changes) {
  if (!ref) {
    if (all_absent(changes)) return false;
    ref = make_node(level, width);
  }
  make_own(ref);
  bool changed = false;
  if (level == 0) {
    Leaf* leaf = as_leaf(ref);
    for (const PageChange& c : changes) {
      std::size_t slot = slot_of(0, c.page);
      Digest old = leaf->get(slot);
      if (old == c.digest) continue;
      leaf->pages += static_cast<std::uint64_t>(old.is_absent());
      leaf->pages -= static_cast<std::uint64_t>(c.digest.is_absent());
      std::memcpy(leaf->slot(slot), c.digest.bytes.data(), width);
      changed = true;
    }
  } else {
    Inner* inner = as_inner(ref);
    for (std::size_t i = 0; i < changes.size();) {
      std::size_t slot = slot_of(level, changes[i].page);
      std::size_t end = i + 1;
      while (end < changes.size() && slot_of(level, changes[end].page) == slot) ++end;
      Node*& child = inner->child[slot];
      inner->pages -= child ? child->pages : 0;
      changed |= update(child, level - 1, width, changes.subspan(i, end - i));
      inner->pages += child ? child->pages : 0;
      i = end;
    }
  }
  if (changed) ref->digest_state.store(0, std::memory_order_relaxed);
  drop_if_empty(ref);
  return changed;
}

// Erases [first, last] (relative to the node's first page).
void erase_in(Node*& ref, unsigned level, std::uint64_t first, std::uint64_t last) {
  if (!ref) return;
  if (first == 0 && last == span_of(level) - 1) {
    release(ref);
    ref = nullptr;
    return;
  }
  make_own(ref);
  if (level == 0) {
    Leaf* leaf = as_leaf(ref);
    for (std::uint64_t slot = first; slot <= last; ++slot) {
      if (!leaf->get(slot).is_absent()) --leaf->pages;
      std::memset(leaf->slot(slot), 0, leaf->width);
    }
  } else {
    Inner* inner = as_inner(ref);
    const std::uint64_t child_span = span_of(level - 1);
    for (std::uint64_t slot = first / child_span; slot <= last / child_span; ++slot) {
      Node*& child = inner->child[slot];
      const std::uint64_t base = slot * child_span;
      inner->pages -= child ? child->pages : 0;
      erase_in(child, level - 1, std::max(first, base) - base,
               std::min(last, base + child_span - 1) - base);
      inner->pages += child ? child->pages : 0;
    }
  }
  ref->digest_state.store(0, std::memory_order_relaxed);
  drop_if_empty(ref);
}

void visit_all(const Node* node, unsigned level, std::uint64_t base,
               const std::function<void(std::uint64_t, const Digest&)>& visit) {
  if (!node) return;
  for (std::size_t i = 0; i < kFanOut; ++i) {
    if (level == 0) {
      Digest d = as_leaf(node)->get(i);
      if (!d.is_absent()) visit(base + i, d);
    } else {
      visit_all(as_inner(node)->child[i], level - 1, base + i * span_of(level - 1), visit);
    }
  }
}

Digest digest_of(Node* node, const PageHasher& hasher) {
  if (!node) return Digest::absent();
  if (node->digest_state.load(std::memory_order_acquire) == 2) return node->digest;
  CHECK(digest_width(hasher.kind()) == node->width);
  Digest digest;
  if (node->level == 0) {
    digest = hasher.packed_node(std::span(as_leaf(node)->slot(0), kFanOut * node->width));
  } else {
    std::array<std::byte, kFanOut * 32> packed{};
    for (std::size_t i = 0; i < kFanOut; ++i) {
      Node* child = as_inner(node)->child[i];
      if (!child) continue;
      Digest d = digest_of(child, hasher);
      std::memcpy(packed.data() + i * node->width, d.bytes.data(), node->width);
    }
    digest = hasher.packed_node(std::span(packed.data(), kFanOut * node->width));
  }
  std::uint8_t none = 0;
  if (node->digest_state.compare_exchange_strong(none, 1, std::memory_order_acq_rel)) {
    node->digest = digest;
    node->digest_state.store(2, std::memory_order_release);
  }
  return digest;
}

void diff_nodes(Node* a, Node* b, unsigned level, std::uint64_t base,
                const PageTable::DiffCallback& callback, const PageHasher* hasher) {
  if (a == b) return;
  if (a && b && hasher && digest_of(a, *hasher) == digest_of(b, *hasher)) return;
  for (std::size_t i = 0; i < kFanOut; ++i) {
    if (level == 0) {
      Digest old_digest = a ? as_leaf(a)->get(i) : Digest::absent();
      Digest new_digest = b ? as_leaf(b)->get(i) : Digest::absent();
      if (!(old_digest == new_digest)) callback(base + i, old_digest, new_digest);
    } else {
      diff_nodes(a ? as_inner(a)->child[i] : nullptr, b ? as_inner(b)->child[i] : nullptr,
                 level - 1, base + i * span_of(level - 1), callback, hasher);
    }
  }
}

Node* find(Node* root, unsigned level, std::uint64_t index) {
  Node* node = root;
  for (unsigned at = kTableLevels - 1; node && at > level; --at) {
    std::size_t slot = (index >> (kFanOutBits * (at - 1 - level))) & (kFanOut - 1);
    node = as_inner(node)->child[slot];
  }
  return node;
}

std::size_t memory_of(const Node* node) {
  if (!node) return 0;
  if (node->level == 0) return sizeof(Leaf) + kFanOut * node->width;
  std::size_t sum = sizeof(Inner);
  for (const Node* child : as_inner(node)->child) sum += memory_of(child);
  return sum;
}

}  // namespace

PageTable::PageTable(const PageTable& other) noexcept : kind_(other.kind_), root_(other.root_) {
  acquire(root_);
}
PageTable::PageTable(PageTable&& other) noexcept
    : kind_(other.kind_), root_(std::exchange(other.root_, nullptr)) {}
PageTable& PageTable::operator=(const PageTable& other) noexcept {
  if (this != &other) {
    acquire(other.root_);
    release(root_);
    root_ = other.root_;
    kind_ = other.kind_;
  }
  return *this;
}
PageTable& PageTable::operator=(PageTable&& other) noexcept {
  if (this != &other) {
    release(root_);
    root_ = std::exchange(other.root_, nullptr);
    kind_ = other.kind_;
  }
  return *this;
}
PageTable::~PageTable() { release(root_); }

void PageTable::set(std::uint64_t page, const Digest& digest) {
  PageChange change{page, digest};
  apply(std::span(&change, 1));
}

void PageTable::apply(std::span<const PageChange> changes) {
  if (changes.empty()) return;
  bool sorted = true;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    CHECK(changes[i].page < kMaxPages && changes[i].digest.fits(kind_));
    if (i > 0 && changes[i].page < changes[i - 1].page) sorted = false;
  }
  if (sorted) {
    update(root_, kTableLevels - 1, digest_width(kind_), changes);
    return;
  }
  std::vector<PageChange> copy(changes.begin(), changes.end());
  std::stable_sort(copy.begin(), copy.end(),
                   [](const PageChange& a, const PageChange& b) { return a.page < b.page; });
  update(root_, kTableLevels - 1, digest_width(kind_), copy);
}

Digest PageTable::get(std::uint64_t page) const {
  CHECK(page < kMaxPages);
  Node* leaf = find(root_, 0, page >> kFanOutBits);
  return leaf ? as_leaf(leaf)->get(slot_of(0, page)) : Digest::absent();
}

void PageTable::erase(std::uint64_t page) { set(page, Digest::absent()); }

void PageTable::erase_range(std::uint64_t first, std::uint64_t count) {
  CHECK(first < kMaxPages && count <= kMaxPages - first);
  if (count != 0) erase_in(root_, kTableLevels - 1, first, first + count - 1);
}

void PageTable::clear() {
  release(root_);
  root_ = nullptr;
}

std::uint64_t PageTable::count() const { return root_ ? root_->pages : 0; }

void PageTable::for_each(
    const std::function<void(std::uint64_t page, const Digest&)>& visit) const {
  visit_all(root_, kTableLevels - 1, 0, visit);
}

Digest PageTable::root(const PageHasher& hasher) const { return digest_of(root_, hasher); }

std::vector<Digest> PageTable::node_children(unsigned level, std::uint64_t index,
                                             const PageHasher& hasher) const {
  CHECK(level < kTableLevels && index < nodes_at_level(level));
  std::vector<Digest> out(kFanOut);
  Node* node = find(root_, level, index);
  for (std::size_t i = 0; node && i < kFanOut; ++i) {
    out[i] = level == 0 ? as_leaf(node)->get(i) : digest_of(as_inner(node)->child[i], hasher);
  }
  return out;
}

Digest PageTable::node_digest(unsigned level, std::uint64_t index,
                              const PageHasher& hasher) const {
  CHECK(level < kTableLevels && index < nodes_at_level(level));
  return digest_of(find(root_, level, index), hasher);
}

void PageTable::diff(const PageTable& old_table, const PageTable& new_table,
                     const DiffCallback& callback, const PageHasher* hasher) {
  CHECK(old_table.kind_ == new_table.kind_ || !old_table.root_ || !new_table.root_);
  diff_nodes(old_table.root_, new_table.root_, kTableLevels - 1, 0, callback, hasher);
}

std::size_t PageTable::memory_bytes() const { return memory_of(root_); }

}  // namespace baton::dedup
