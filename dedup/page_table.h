// PageTable: the sparse Merkle table of one memory object, from page number to digest.
//
// Fan-out 64, always six levels, page numbers below 2^36. Level 0 nodes hold 64 page
// digests (index = page >> 6), level 5 is the single root node (index 0). A node's digest
// is PageHasher::node over its 64 children in order; an empty subtree's digest is absent,
// and so is the root of an empty table.
//
// Persistent: a copy costs one reference count, nodes are shared and copied when written.
// Threads: one PageTable is written by one thread at a time; copies that share nodes may
// be read, hashed and written by different threads at once. Node digests are cached in
// shared nodes, so all tables that share nodes use one hasher (one dedup domain).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/error.h"
#include "dedup/digest.h"

namespace baton::dedup {

inline constexpr unsigned kFanOutBits = 6;
inline constexpr std::size_t kFanOut = 64;
inline constexpr unsigned kTableLevels = 6;
inline constexpr std::uint64_t kMaxPages = std::uint64_t{1} << (kFanOutBits * kTableLevels);

// One change: digest absent means the page is erased.
struct PageChange {
  std::uint64_t page = 0;
  Digest digest;
  friend bool operator==(const PageChange&, const PageChange&) = default;
};

struct PageRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  friend bool operator==(const PageRange&, const PageRange&) = default;
};

namespace internal {
struct Node;
}

class PageTable {
 public:
  explicit PageTable(DigestKind kind = DigestKind::kXxh3_128) : kind_(kind) {}
  PageTable(const PageTable& other) noexcept;
  PageTable(PageTable&& other) noexcept;
  PageTable& operator=(const PageTable& other) noexcept;
  PageTable& operator=(PageTable&& other) noexcept;
  ~PageTable();

  DigestKind kind() const { return kind_; }
  // Page numbers are below kMaxPages and digests fit the kind: CHECKed.
  void set(std::uint64_t page, const Digest& digest);  // absent erases
  Digest get(std::uint64_t page) const;                // absent when not present
  void erase(std::uint64_t page);
  void erase_range(std::uint64_t first, std::uint64_t count);
  // Applies all changes; fast when sorted by page (later ones win in any case).
  void apply(std::span<const PageChange> changes);
  void clear();

  std::uint64_t count() const;  // present pages
  bool empty() const { return root_ == nullptr; }
  // In rising order of pages.
  void for_each(const std::function<void(std::uint64_t page, const Digest&)>& visit) const;

  // The top digest; computes and caches what changed since the last call.
  Digest root(const PageHasher& hasher) const;

  // What a peer asks for by subtree. Level 0: 64 page digests; above: 64 node digests.
  // Empty subtree: 64 absent digests. level < kTableLevels, index < 64^(5 - level): CHECKed.
  std::vector<Digest> node_children(unsigned level, std::uint64_t index,
                                    const PageHasher& hasher) const;
  Digest node_digest(unsigned level, std::uint64_t index, const PageHasher& hasher) const;

  // True when both share the same root node (equal without looking).
  bool same_node(const PageTable& other) const { return root_ == other.root_; }

  // Calls back for each page whose digest differs, in rising order, walking only where
  // the tables do not share nodes (and, given a hasher, where node digests differ).
  using DiffCallback =
      std::function<void(std::uint64_t page, const Digest& old_digest, const Digest& new_digest)>;
  static void diff(const PageTable& old_table, const PageTable& new_table,
                   const DiffCallback& callback, const PageHasher* hasher = nullptr);

  // Bytes of memory held by the nodes reachable from here (shared ones counted in full).
  std::size_t memory_bytes() const;

 private:
  DigestKind kind_;
  internal::Node* root_ = nullptr;
};

// Number of nodes at a level: 64^(5 - level).
constexpr std::uint64_t nodes_at_level(unsigned level) {
  return std::uint64_t{1} << (kFanOutBits * (kTableLevels - 1 - level));
}

}  // namespace baton::dedup
