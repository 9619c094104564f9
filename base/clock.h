// Clocks, passed in wherever time decides something, so that tests and the
// simulation can turn them.
#pragma once

#include <chrono>
#include <ctime>

namespace baton {

// CLOCK_BOOTTIME as a duration since boot (of this time namespace). Only its rate is trusted.
using BootTime = std::chrono::nanoseconds;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual BootTime boot_now() const = 0;                    // CLOCK_BOOTTIME
  virtual std::chrono::nanoseconds monotonic_now() const = 0;  // CLOCK_MONOTONIC
  virtual std::chrono::nanoseconds wall_now() const = 0;    // CLOCK_REALTIME since the epoch
};

inline std::chrono::nanoseconds read_clock(clockid_t id) {
  timespec ts{};
  ::clock_gettime(id, &ts);
  return std::chrono::seconds(ts.tv_sec) + std::chrono::nanoseconds(ts.tv_nsec);
}

class SystemClock final : public Clock {
 public:
  BootTime boot_now() const override { return read_clock(CLOCK_BOOTTIME); }
  std::chrono::nanoseconds monotonic_now() const override { return read_clock(CLOCK_MONOTONIC); }
  std::chrono::nanoseconds wall_now() const override { return read_clock(CLOCK_REALTIME); }
};

class ManualClock final : public Clock {
 public:
  BootTime boot_now() const override { return now_; }
  std::chrono::nanoseconds monotonic_now() const override { return now_; }
  std::chrono::nanoseconds wall_now() const override { return now_; }
  void advance(std::chrono::nanoseconds by) { now_ += by; }

 private:
  std::chrono::nanoseconds now_{};
};

}  // namespace baton
