// How long things last in tenure, by standby mode. docs/tenure.md argues for the numbers.
#pragma once

#include <chrono>
#include <cstddef>

#include "proto/workload.pb.h"

namespace baton::tenure {

using Time = std::chrono::nanoseconds;   // on CLOCK_BOOTTIME of one node; never compared between nodes

struct Term {
  Time length;      // what a grant is worth
  Time guard;       // the owner's program is frozen this much before its grant ends
  Time interval;    // between renewals
};

inline constexpr int kModes = 3;
inline constexpr Term kHotTerm{std::chrono::milliseconds(30), std::chrono::milliseconds(8), std::chrono::milliseconds(8)};
inline constexpr Term kWarmTerm{std::chrono::milliseconds(200), std::chrono::milliseconds(40), std::chrono::milliseconds(40)};
inline constexpr Term kColdTerm{std::chrono::milliseconds(5000), std::chrono::milliseconds(500), std::chrono::milliseconds(1000)};

constexpr const Term& term_of(pb::Mode mode) {
  return mode == pb::MODE_HOT ? kHotTerm : mode == pb::MODE_WARM ? kWarmTerm : kColdTerm;
}
constexpr std::size_t mode_index(pb::Mode mode) { return mode == pb::MODE_HOT ? 2 : mode == pb::MODE_WARM ? 1 : 0; }
constexpr pb::Mode mode_at(std::size_t index) {
  return index == 2 ? pb::MODE_HOT : index == 1 ? pb::MODE_WARM : pb::MODE_COLD;
}

// Two clocks of BOOTTIME run apart by at most one part in kDriftParts (1,000 ppm).
inline constexpr int kDriftParts = 1000;
constexpr Time with_drift(Time length) { return length + length / kDriftParts + std::chrono::microseconds(1); }

inline constexpr Time kIdleInterval = std::chrono::milliseconds(1000);  // a frame at least this often
inline constexpr Time kLateLimit = std::chrono::milliseconds(4);        // a wake-up later than this is late
inline constexpr Time kLookAgain = std::chrono::milliseconds(5);
inline constexpr Time kAskAgain = std::chrono::milliseconds(200);       // a doubtful voter asks the others
inline constexpr Time kRetry = std::chrono::milliseconds(20);           // a proposal's messages again, at first
inline constexpr Time kRetryMax = std::chrono::milliseconds(1000);
inline constexpr Time kActivationMax = std::chrono::seconds(120);       // an owner that starts nothing in it stops claiming

inline constexpr std::size_t kMaxWorkloads = 1024;
inline constexpr std::size_t kMaxPeers = 64;
inline constexpr std::size_t kMaxVoters = 5;
inline constexpr std::size_t kMaxMessages = 4096;                       // in one frame
inline constexpr std::size_t kMaxOpenTokens = 16;

}  // namespace baton::tenure
