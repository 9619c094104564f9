// PageSet: a set of page numbers of one memory object, as bitmaps of 512 pages (2 MiB)
// in a sorted vector: dense enough for every page of an address space, and cheap to walk.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

namespace baton::linux_backend {

struct PageRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  std::uint64_t end() const { return first + count; }
  friend bool operator==(const PageRun&, const PageRun&) = default;
};

class PageSet {
 public:
  static constexpr std::uint64_t kBlockPages = 512;
  struct Block {
    std::uint64_t index = 0;                 // page number / 512
    std::array<std::uint64_t, 8> bits{};
    bool empty() const {
      for (std::uint64_t w : bits) if (w != 0) return false;
      return true;
    }
  };

  bool empty() const { return count_ == 0; }
  std::uint64_t size() const { return count_; }
  void clear() { blocks_.clear(); count_ = 0; }
  const std::vector<Block>& blocks() const { return blocks_; }

  bool contains(std::uint64_t page) const {
    auto it = find(page / kBlockPages);
    return it != blocks_.end() && it->index == page / kBlockPages &&
           (it->bits[page % kBlockPages / 64] >> (page % 64) & 1) != 0;
  }
  void add(PageRun run) { change<true>(run); }
  void remove(PageRun run) { change<false>(run); }

  // The runs within [from, to), in order. `visit` answers false to stop.
  template <typename Visit>
  void for_each_run(std::uint64_t from, std::uint64_t to, Visit visit) const {
    PageRun run{0, 0};
    for (auto it = find(from / kBlockPages); it != blocks_.end(); ++it) {
      std::uint64_t base = it->index * kBlockPages;
      if (base >= to) break;
      for (std::uint64_t w = 0; w < 8; ++w) {
        std::uint64_t word = it->bits[w];
        std::uint64_t at = base + w * 64;
        while (word != 0) {
          auto skip = static_cast<std::uint64_t>(std::countr_zero(word));
          auto length = static_cast<std::uint64_t>(std::countr_one(word >> skip));
          std::uint64_t first = std::max(at + skip, from), end = std::min(at + skip + length, to);
          if (first < end) {
            if (run.count != 0 && run.end() == first) {
              run.count += end - first;
            } else {
              if (run.count != 0 && !visit(run)) return;
              run = {first, end - first};
            }
          }
          if (skip + length >= 64) break;
          word &= ~((((std::uint64_t{1} << length) - 1)) << skip);
        }
      }
    }
    if (run.count != 0) visit(run);
  }
  template <typename Visit>
  void for_each_run(Visit visit) const { for_each_run(0, ~std::uint64_t{0}, visit); }

 private:
  std::vector<Block>::iterator find(std::uint64_t index) {
    return std::lower_bound(blocks_.begin(), blocks_.end(), index,
                            [](const Block& b, std::uint64_t i) { return b.index < i; });
  }
  std::vector<Block>::const_iterator find(std::uint64_t index) const {
    return std::lower_bound(blocks_.begin(), blocks_.end(), index,
                            [](const Block& b, std::uint64_t i) { return b.index < i; });
  }

  template <bool kAdd>
  void change(PageRun run) {
    std::uint64_t page = run.first;
    const std::uint64_t end = run.end();
    auto it = find(page / kBlockPages);
    while (page < end) {
      std::uint64_t index = page / kBlockPages;
      while (it != blocks_.end() && it->index < index) ++it;
      if (it == blocks_.end() || it->index != index) {
        if constexpr (kAdd) {
          it = blocks_.insert(it, Block{index, {}});
        } else {
          if (it == blocks_.end()) return;
          page = it->index * kBlockPages;
          continue;
        }
      }
      std::uint64_t stop = std::min(end, (index + 1) * kBlockPages);
      while (page < stop) {
        std::uint64_t word = page % kBlockPages / 64, bit = page % 64;
        std::uint64_t length = std::min(stop - page, 64 - bit);
        std::uint64_t mask = (length == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << length) - 1) << bit;
        auto before = static_cast<std::uint64_t>(std::popcount(it->bits[word] & mask));
        if constexpr (kAdd) {
          it->bits[word] |= mask;
          count_ += length - before;
        } else {
          it->bits[word] &= ~mask;
          count_ -= before;
        }
        page += length;
      }
      if constexpr (!kAdd) {
        if (it->empty()) it = blocks_.erase(it);
      }
    }
  }

  std::vector<Block> blocks_;
  std::uint64_t count_ = 0;
};

}  // namespace baton::linux_backend
