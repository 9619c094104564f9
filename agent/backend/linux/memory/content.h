// Digests of pages that were handed to a sink: for trackers that compare content, and for
// verify. Keyed with a secret of this process; never leaves it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "base/error.h"

namespace baton::linux_backend {

class ContentMap {
 public:
  struct Digest {
    std::uint64_t low = 0, high = 0;
    friend bool operator==(const Digest&, const Digest&) = default;
  };
  static Digest of(std::span<const std::byte> page);   // 4,096 bytes

  void set(std::uint64_t page, Digest d) { map_[page] = d; }
  void erase(std::uint64_t page) { map_.erase(page); }
  const Digest* find(std::uint64_t page) const {
    auto it = map_.find(page);
    return it == map_.end() ? nullptr : &it->second;
  }
  void reserve(std::size_t pages) { map_.reserve(pages); }

 private:
  std::unordered_map<std::uint64_t, Digest> map_;
};

// What verify found.
struct VerifyReport {
  std::uint64_t pages = 0;
  std::uint64_t differences = 0;
  std::string first;
};

}  // namespace baton::linux_backend
