// DuplicationCounter: of the pages that a row of checkpoints wrote, which are zero, which
// repeat one of the same checkpoint, which repeat an earlier one, and which are new; how often
// contents recur, and how old they are when they do.
//
// Fed with digests only, checkpoint by checkpoint in rising order. Contents are told apart by
// their digest, so one counter is for one dedup domain.
// Memory: about 50 bytes per distinct content. Threads: one caller at a time.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include "dedup/digest.h"

namespace baton::dedup {

enum class PageOrigin : std::uint8_t {
  kZero,   // nothing but zeros
  kIntra,  // its content was written before in the same checkpoint
  kInter,  // its content is that of a page of an earlier checkpoint
  kFresh,  // never seen before
};

struct OriginCounts {
  std::uint64_t zero = 0, intra = 0, inter = 0, fresh = 0;
  std::uint64_t written() const { return zero + intra + inter + fresh; }
  void count(PageOrigin origin);
  OriginCounts& operator+=(const OriginCounts& other);
  friend bool operator==(const OriginCounts&, const OriginCounts&) = default;
};

// Numbers from `from` to `to`, both included.
struct Bucket {
  std::uint64_t from = 0, to = 0;
  std::uint64_t contents = 0;  // distinct ones (of recurrence only)
  std::uint64_t pages = 0;
};

class DuplicationCounter {
 public:
  // A content that was there before the first checkpoint to be analysed.
  void add_before(const Digest& digest, std::uint64_t wall_ns);
  void next_checkpoint(std::uint64_t wall_ns);
  // One written page of the present checkpoint. next_checkpoint comes first: CHECKed.
  PageOrigin add(const Digest& digest);

  const OriginCounts& sum() const { return sum_; }
  // Contents (zero pages apart) by the number of times they were written: 1, 2, 3-4, 5-8, …
  std::vector<Bucket> recurrence() const;
  // Pages of origin kInter, by how long ago their content was last written (or was there before
  // the first checkpoint): in checkpoints, and in milliseconds.
  std::vector<Bucket> age_in_checkpoints() const { return buckets(ages_); }
  std::vector<Bucket> age_in_ms() const { return buckets(ages_ms_); }

 private:
  struct Seen {
    std::uint32_t times = 0;       // written since the first checkpoint
    std::uint32_t checkpoint = 0;  // last written in; 0: before the first
    std::uint64_t wall_ns = 0;
  };
  using Histogram = std::map<unsigned, std::uint64_t>;  // by bucket number
  static unsigned bucket_of(std::uint64_t value);
  static std::vector<Bucket> buckets(const Histogram& histogram);

  boost::unordered_flat_map<Digest, Seen, DigestHash> seen_;
  OriginCounts sum_;
  Histogram ages_, ages_ms_;
  std::uint32_t checkpoint_ = 0;
  std::uint64_t wall_ns_ = 0;
};

}  // namespace baton::dedup
