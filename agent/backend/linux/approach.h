// Approach: how many copy rounds beside the running program come before a freeze. Pure: what it
// is told are page counts and times, what it answers is whether one more round pays.
//
// A page copied while frozen costs the program its copy (about 1 µs); a round costs it the loss
// of its translations and a fault for each page that it writes again, but no standstill. Rounds
// pay while each finds clearly fewer pages than the one before. A program that writes the same
// pages over and over leaves as many each time: then the freeze takes them at once, and rounds
// are only tried again now and then.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>

namespace baton::linux_backend {

class Approach {
 public:
  static constexpr std::uint64_t kFewPages = 24;      // copied frozen: less than a round's own cost
  static constexpr std::uint32_t kMaxRounds = 8;
  // Rounds that found nearly as many as the one before: with this many left it is as good as it gets …
  static constexpr std::uint64_t kGoodEnough = 128;
  static constexpr std::uint32_t kMaxVain = 3;        // … and with more, after so many of them
  static constexpr std::uint32_t kGiveUpAfter = 3;    // checkpoints whose rounds were in vain
  static constexpr std::uint32_t kTryAgainEvery = 16; // checkpoints, from then on

  void begin(std::chrono::nanoseconds budget) {
    budget_ = budget;
    rounds_ = vain_ = 0;
    first_ = last_ = 0;
    ++checkpoints_;
  }
  // Before each round; `spent`: since begin.
  bool another(std::chrono::nanoseconds spent) const {
    if (budget_ == std::chrono::nanoseconds::zero() || spent >= budget_ || rounds_ == kMaxRounds) return false;
    if (rounds_ == 0) return expected_ > kFewPages && (pays_ || checkpoints_ % kTryAgainEvery == 0);
    return last_ > kFewPages && vain_ < (last_ <= kGoodEnough ? 1 : kMaxVain);
  }
  void round_found(std::uint64_t pages) {
    if (rounds_ == 0) first_ = pages;
    else if (pages * 4 > last_ * 3) ++vain_;
    last_ = pages;
    ++rounds_;
  }
  // What the freeze found in the end.
  void freeze_found(std::uint64_t pages) {
    frozen_ = pages;
    std::uint64_t all = pages + (rounds_ > 0 ? first_ : 0);
    expected_ = (expected_ * 3 + all) / 4 + (all > expected_ ? 1 : 0);
    if (all > expected_ * 4) expected_ = all;
    if (rounds_ == 0) return;
    // A burst may begin at any moment: one checkpoint in vain says nothing yet.
    bool in_vain = pages > kGoodEnough && pages * 4 >= std::max({first_, last_, expected_}) * 3;
    in_vain_ = in_vain ? in_vain_ + 1 : 0;
    pays_ = in_vain_ < kGiveUpAfter;
  }

  std::uint32_t rounds() const { return rounds_; }
  const char* strategy() const { return rounds_ > 0 ? "concurrent" : "stop-copy"; }
  std::string why() const {
    if (rounds_ > 0) {
      return std::to_string(rounds_) + " rounds beside the program left " + std::to_string(frozen_) + " of " +
             std::to_string(first_) + " pages to the freeze";
    }
    if (budget_ == std::chrono::nanoseconds::zero()) return "no time for rounds was given";
    if (!pays_) {
      return "it writes the same pages again at once: rounds beside it left about as many (" +
             std::to_string(frozen_) + ") to the freeze";
    }
    return std::to_string(frozen_) + " pages: fewer than a round is worth";
  }

 private:
  std::chrono::nanoseconds budget_{};
  std::uint32_t rounds_ = 0, vain_ = 0;
  std::uint64_t first_ = 0, last_ = 0, frozen_ = 0;
  std::uint64_t expected_ = 0;       // pages per checkpoint, smoothed
  std::uint64_t checkpoints_ = 0;
  std::uint32_t in_vain_ = 0;        // checkpoints in a row
  bool pays_ = true;
};

}  // namespace baton::linux_backend
