// Pacing: when the next checkpoint is due. Pure: it is told what checkpoints cost and how long
// they take to be committed, and answers with an interval and with the reason for it.
//
// The spec's interval holds unless its max-slowdown or max-lag asks for another. What a checkpoint
// costs the program is its pause, a fault for each page that it writes first, and a little for
// each round that took its translations away (docs/performance.md has the measurements). Where
// the two bounds contradict each other the lag is kept, and the reason says so.
//
// Instants lie on a grid with a phase of its own for each workload of a node, so that workloads
// of the same interval do not freeze together.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

namespace baton::node {

class Pacing {
 public:
  using ns = std::chrono::nanoseconds;
  static constexpr ns kShortest = std::chrono::milliseconds(1);
  static constexpr ns kLongest = std::chrono::seconds(10);
  static constexpr double kFaultNs = 1200;      // the first write to a page after a checkpoint
  static constexpr double kRoundNs = 30'000;    // a round beside the program: lost translations, waits
  static constexpr double kSmooth = 1.0 / 8;

  // `max_slowdown` 0 or at most 1: not asked for. `number`: of this workload among its node's.
  Pacing(ns interval, double max_slowdown, ns max_lag, std::uint64_t number)
      : nominal_(std::max(interval, ns(1))),
        max_slowdown_(max_slowdown),
        max_lag_(max_lag),
        phase_(std::fmod(static_cast<double>(number) * 0.6180339887498949, 1.0)) {
    interval_ = nominal_;
  }

  void captured(ns pause, std::uint64_t pages, std::uint32_t rounds) {
    smooth(cost_ns_, static_cast<double>(pause.count()) + static_cast<double>(pages) * kFaultNs + rounds * kRoundNs);
    decide();
  }
  // `age`: of the freeze, when its checkpoint was committed.
  void committed(ns age) {
    smooth(commit_ns_, static_cast<double>(age.count()));
    decide();
  }

  ns interval() const { return interval_; }
  const std::string& why() const { return why_; }

  // The first instant of the grid that is at least half an interval after `now`.
  ns next(ns now) const {
    const double step = static_cast<double>(interval_.count());
    const double earliest = static_cast<double>(now.count()) + step / 2;
    const double turns = std::ceil(earliest / step - phase_);
    return ns(static_cast<std::int64_t>((turns + phase_) * step));
  }

 private:
  static void smooth(double& value, double sample) {
    value = value == 0 ? sample : value + (sample - value) * kSmooth;
  }
  static std::string ms(double ns_value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f ms", ns_value / 1e6);
    return text;
  }

  void decide() {
    double wanted = static_cast<double>(nominal_.count());
    why_.clear();
    double for_slowdown = max_slowdown_ > 1 ? cost_ns_ / (max_slowdown_ - 1) : 0;
    if (for_slowdown > wanted) {
      wanted = for_slowdown;
      why_ = "a checkpoint costs the program " + ms(cost_ns_) + ": every " + ms(wanted) + " keeps max-slowdown";
    }
    if (max_lag_ > ns::zero()) {
      double allowed = std::max(static_cast<double>(max_lag_.count()) - commit_ns_,
                                static_cast<double>(kShortest.count()));
      if (wanted > allowed) {
        wanted = allowed;
        why_ = "a commit takes " + ms(commit_ns_) + ": every " + ms(wanted) + " keeps max-lag";
        if (commit_ns_ + wanted > static_cast<double>(max_lag_.count())) why_ = "max-lag cannot be kept: a commit takes " + ms(commit_ns_);
        if (for_slowdown > allowed) why_ += "; max-slowdown is not kept";
      }
    }
    // A bound of the spec never makes it slower than its own interval would be without need.
    interval_ = std::clamp(ns(static_cast<std::int64_t>(wanted)), std::min(nominal_, kShortest), std::max(nominal_, kLongest));
  }

  ns nominal_;
  double max_slowdown_;
  ns max_lag_;
  double phase_;
  double cost_ns_ = 0, commit_ns_ = 0;
  ns interval_{};
  std::string why_;
};

}  // namespace baton::node
