// PageIndex: where each page of one dedup domain lies. 64 shards by digest, one lock each.
// Threads: any number.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include "storage/page_store.h"

namespace baton::storage {

// A page's place: slot of a frame of a segment.
struct PagePlace {
  std::uint32_t segment = 0;
  std::uint32_t frame = 0;
  std::uint8_t slot = 0;
  friend bool operator==(const PagePlace&, const PagePlace&) = default;
};

class PageIndex {
 public:
  // Known? Then the page counts as touched in `epoch`.
  bool touch(const Digest& digest, std::uint32_t epoch);
  std::optional<PagePlace> find(const Digest& digest) const;
  // False when the digest was already there (its place stays).
  bool insert(const Digest& digest, const PagePlace& place, std::uint32_t epoch);
  // Moves or removes (nullopt) a page, if it still lies at `from`. True when it did.
  bool replace(const Digest& digest, const PagePlace& from, std::optional<PagePlace> to);
  // Removes what `marked` (may be null: nothing is marked) lacks and was last touched
  // before `threshold`; one shard locked at a time. Returns the places given up.
  std::vector<PagePlace> sweep(const DigestSet* marked, std::uint32_t threshold);
  // Removes all pages of one frame (slow: looks at every page). Returns how many.
  std::size_t drop_frame(std::uint32_t segment, std::uint32_t frame);
  std::uint64_t size() const;

 private:
  struct NarrowKey {
    std::uint64_t low = 0, high = 0;
    friend bool operator==(const NarrowKey&, const NarrowKey&) = default;
  };
  struct NarrowHash {
    using is_avalanching = void;
    std::size_t operator()(const NarrowKey& k) const noexcept {
      return (k.low ^ (k.high >> 17)) * 0x9E3779B97F4A7C15ull;
    }
  };
  struct Value {
    PagePlace place;
    std::uint32_t touched = 0;
  };
  struct Shard {
    mutable std::mutex mutex;
    boost::unordered_flat_map<NarrowKey, Value, NarrowHash> narrow;  // XXH3: 16 bytes
    boost::unordered_flat_map<Digest, Value, dedup::DigestHash> wide;
  };

  static NarrowKey narrow_key(const Digest& d);
  static Digest widen(const NarrowKey& k);
  Shard& shard_of(const Digest& d) { return shards_[std::to_integer<unsigned>(d.bytes[15]) & 63]; }
  const Shard& shard_of(const Digest& d) const {
    return shards_[std::to_integer<unsigned>(d.bytes[15]) & 63];
  }

  std::array<Shard, 64> shards_;
};

}  // namespace baton::storage
