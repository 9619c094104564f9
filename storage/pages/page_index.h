// PageIndex: where each page of one dedup domain lies. 256 shards by digest, one lock each.
// 28 bytes a page at 75 to 90 % fill with 16-byte digests: 31 to 38 bytes of memory; 49 to
// 59 with 32-byte ones. Threads: any number.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "storage/page_store.h"
#include "storage/pages/ordered_table.h"

namespace baton::storage {

// Frames of one segment and pages of one frame that a place can name.
inline constexpr std::uint32_t kMaxSegmentFrames = 1u << 24;
inline constexpr std::uint32_t kMaxFrameSlots = 1u << 8;

// A page's place: slot of a frame of a segment. Segment numbers start at 1.
struct PagePlace {
  std::uint32_t segment = 0;
  std::uint32_t frame = 0;  // below kMaxSegmentFrames
  std::uint8_t slot = 0;
  friend bool operator==(const PagePlace&, const PagePlace&) = default;
};

class PageIndex {
  // Words first to last as they stand in the digest; ordered by them.
  template <std::size_t Words>
  struct WordKey {
    std::array<std::uint32_t, 2 * Words> words{};
    std::uint64_t leading_word() const {
      return (std::uint64_t{words[0]} << 32) | words[1];
    }
    friend auto operator<=>(const WordKey&, const WordKey&) = default;
    static WordKey of(const Digest& d) {
      WordKey key;
      std::memcpy(key.words.data(), d.bytes.data(), sizeof key.words);
      return key;
    }
    Digest digest() const {
      Digest d;
      std::memcpy(d.bytes.data(), words.data(), sizeof words);
      return d;
    }
  };
  template <std::size_t Words>
  struct Entry {
    WordKey<Words> key_;
    std::uint32_t segment = 0;  // 0: unused
    std::uint32_t frame_slot = 0;
    std::uint32_t touched = 0;

    const WordKey<Words>& key() const { return key_; }
    bool used() const { return segment != 0; }
    PagePlace place() const {
      return {segment, frame_slot >> 8, static_cast<std::uint8_t>(frame_slot)};
    }
    void set_place(const PagePlace& p) {
      segment = p.segment;
      frame_slot = (p.frame << 8) | p.slot;
    }
  };
  static_assert(sizeof(Entry<2>) == 28);
  static constexpr std::size_t kShards = 256;

 public:
  // Places of pages as a start finds them, millions at once: sorted by shards and laid out in
  // order, which takes a fraction of as many insertions. Threads: one.
  class Loader {
   public:
    void add(const Digest& digest, const PagePlace& place);

   private:
    friend class PageIndex;
    struct Part {
      std::vector<Entry<2>> narrow;
      std::vector<Entry<4>> wide;
    };
    std::vector<Part> parts_ = std::vector<Part>(kShards);
  };
  // Instead of what is there. Of a digest's places the first (by segment, frame, slot) stays; the
  // others are returned. Uses the processors that the machine has, up to four.
  std::vector<PagePlace> load(Loader loader);

  // Known? Then the page counts as touched in `epoch`.
  bool touch(const Digest& digest, std::uint32_t epoch);
  std::optional<PagePlace> find(const Digest& digest) const;
  // False when the digest was already there (its place stays).
  bool insert(const Digest& digest, const PagePlace& place, std::uint32_t epoch);
  // Room for this many 16-byte digests without growing on the way.
  void reserve(std::uint64_t pages);
  // Moves or removes (nullopt) a page, if it still lies at `from`. True when it did.
  bool replace(const Digest& digest, const PagePlace& from, std::optional<PagePlace> to);
  // Removes what `marked` (may be null: nothing is marked) lacks and was last touched
  // before `threshold`; one shard locked at a time. Returns the places given up.
  std::vector<PagePlace> sweep(const DigestSet* marked, std::uint32_t threshold);
  // All pages of one frame, with their slots (slow: looks at every page).
  std::vector<std::pair<Digest, std::uint8_t>> in_frame(std::uint32_t segment, std::uint32_t frame) const;
  // Removes all pages of one frame (slow: looks at every page). Returns how many.
  std::size_t drop_frame(std::uint32_t segment, std::uint32_t frame);
  std::uint64_t size() const;
  std::uint64_t memory_bytes() const;

 private:
  struct Shard {
    mutable std::mutex mutex;
    OrderedTable<Entry<2>, WordKey<2>> narrow;  // XXH3: 16 bytes
    OrderedTable<Entry<4>, WordKey<4>> wide;
  };
  // Calls `use` with the table that holds digests like this one, and the key in it.
  template <typename ShardType, typename Use>
  static auto with_table(ShardType& shard, const Digest& digest, Use use) {
    if (digest.is_narrow()) return use(shard.narrow, WordKey<2>::of(digest));
    return use(shard.wide, WordKey<4>::of(digest));
  }
  static std::size_t shard_number(const Digest& d) { return std::to_integer<unsigned>(d.bytes[15]); }
  template <std::size_t Words>
  static void lay_out(std::vector<Entry<Words>>& found, OrderedTable<Entry<Words>, WordKey<Words>>& table, std::vector<PagePlace>& superfluous);
  Shard& shard_of(const Digest& d) { return shards_[shard_number(d)]; }
  const Shard& shard_of(const Digest& d) const { return shards_[shard_number(d)]; }

  std::array<Shard, kShards> shards_;
};

}  // namespace baton::storage
