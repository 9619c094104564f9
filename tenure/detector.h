// Detector: when a stream of renewals has been silent for longer than it ever is.
//
// It suspects after 1.5 times the longest gap among the last 1,000 to 2,000 arrivals, within
// [floor, 5 floors], where floor is a full term. No distribution is assumed for the bound
// P(gap > longest of the last N) ≤ 1/(N+1) of exchangeable gaps: at most 0.1 % per arrival; for
// gaps with an exponential or lighter tail the factor makes it N^-1.5, at most 3.2e-5. A
// failover needs the candidate's suspicion and, besides, a voter whose own support has lapsed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tenure/terms.h"

namespace baton::tenure {

class Detector {
 public:
  static constexpr std::uint32_t kBucket = 1000;
  static constexpr int kMaxFloors = 5;

  void arrived(Time now) {
    if (last_ != Time{}) {
      longest_ = std::max(longest_, now - last_);
      if (++count_ >= kBucket) {
        before_ = longest_;
        longest_ = Time{};
        count_ = 0;
      }
    }
    last_ = now;
  }
  // The gap across a restart of the peer or of its link is no gap.
  void reset() { last_ = Time{}; }
  Time limit(Time floor) const {
    return std::clamp<Time>(std::max(longest_, before_) * 3 / 2, floor, floor * kMaxFloors);
  }

 private:
  Time last_{}, longest_{}, before_{};
  std::uint32_t count_ = 0;
};

}  // namespace baton::tenure
