// OrderedTable: a hash table that is an array sorted by key: linear probing from a home that
// rises with the key, so that entries never have to be compared for distance, a lookup ends at
// the first larger key, and growing is one sequential copy. That lets it run 75 to 90 % full,
// which is what keeps the index of pages at 40 bytes a page.
//
// Key: 16 or 32 uniformly distributed bytes (a keyed digest). Skewed keys cost time, never
// correctness. Entry: key() and used(); a default-made one is unused.
// Threads: one at a time; the owner has a lock.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace baton::storage {

template <typename Entry, typename Key>
class OrderedTable {
 public:
  std::size_t size() const { return size_; }
  std::size_t memory_bytes() const { return entries_.capacity() * sizeof(Entry); }

  // Room for `count` entries in all without growing on the way.
  void reserve(std::size_t count) {
    const std::size_t homes = count + count / 6 + kSlack;  // 86 % full
    if (homes > homes_) rebuild(homes);
  }

  // Instead of what is there; `sorted` by key, each key once.
  void fill(const std::vector<Entry>& sorted) {
    size_ = sorted.size();
    homes_ = size_ == 0 ? 0 : size_ + size_ / 6 + kSlack;
    if (size_ == 0) entries_ = {};
    else place(sorted);
  }

  Entry* find(const Key& key) {
    for (std::size_t i = home(key); i < entries_.size() && entries_[i].used(); ++i) {
      if (entries_[i].key() == key) return &entries_[i];
      if (key < entries_[i].key()) return nullptr;
    }
    return nullptr;
  }
  const Entry* find(const Key& key) const { return const_cast<OrderedTable*>(this)->find(key); }

  // The entry of this key, and whether it is new (then it is `fresh`).
  std::pair<Entry*, bool> insert(const Entry& fresh) {
    if ((size_ + 1) * 10 > homes_ * 9) rebuild(homes_ + homes_ / 5 + kSlack);
    const Key key = fresh.key();
    std::size_t at = home(key);
    for (; at < entries_.size() && entries_[at].used(); ++at) {
      if (entries_[at].key() == key) return {&entries_[at], false};
      if (key < entries_[at].key()) break;
    }
    std::size_t hole = at;
    while (hole < entries_.size() && entries_[hole].used()) ++hole;
    if (hole == entries_.size()) entries_.resize(entries_.size() + kSlack);  // a run at the very end
    std::move_backward(entries_.begin() + static_cast<std::ptrdiff_t>(at),
                       entries_.begin() + static_cast<std::ptrdiff_t>(hole),
                       entries_.begin() + static_cast<std::ptrdiff_t>(hole) + 1);
    entries_[at] = fresh;
    ++size_;
    return {&entries_[at], true};
  }

  // `entry` is one of ours.
  void erase(Entry* entry) {
    std::size_t at = static_cast<std::size_t>(entry - entries_.data());
    // What follows moves up as far as its home allows.
    for (std::size_t next = at + 1; next < entries_.size() && entries_[next].used(); ++next, ++at) {
      if (home(entries_[next].key()) > at) break;
      entries_[at] = entries_[next];
    }
    entries_[at] = Entry{};
    --size_;
  }

  // Erases what `gone(entry)`, called once for each, says; gives memory back when much went.
  template <typename Gone>
  std::size_t erase_if(Gone gone) {
    std::vector<Entry> kept;
    kept.reserve(size_);
    for (const Entry& e : entries_) {
      if (e.used() && !gone(e)) kept.push_back(e);
    }
    const std::size_t erased = size_ - kept.size();
    if (erased == 0) return 0;
    size_ = kept.size();
    homes_ = std::min(homes_, size_ + size_ / 4 + kSlack);
    place(kept);
    return erased;
  }

  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Entry& e : entries_) {
      if (e.used()) visit(e);
    }
  }

 private:
  static constexpr std::size_t kSlack = 4;

  // Rises with the key, from 0 to homes_ - 1.
  std::size_t home(const Key& key) const {
    return static_cast<std::size_t>((static_cast<unsigned __int128>(key.leading_word()) * homes_) >> 64);
  }

  void rebuild(std::size_t homes) {
    std::vector<Entry> old;
    old.swap(entries_);
    homes_ = homes;
    place(old);
  }

  // Enters what is in `from`, which is sorted, into the empty table.
  void place(const std::vector<Entry>& from) {
    entries_ = std::vector<Entry>(homes_ + kSlack);
    std::size_t next = 0;
    for (const Entry& e : from) {
      if (!e.used()) continue;
      next = std::max(next, home(e.key()));
      if (next == entries_.size()) entries_.resize(entries_.size() + kSlack);
      entries_[next++] = e;
    }
  }

  std::vector<Entry> entries_;
  std::size_t homes_ = 0;
  std::size_t size_ = 0;
};

}  // namespace baton::storage
