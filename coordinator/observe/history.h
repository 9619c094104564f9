// History: what a workload's figures were, from the last seconds one by one to a day in
// minutes. Bounded: kLevels rings of fixed length; about 120 KiB a workload when full.
//
// Pure; no clock of its own. Samples come in order of time; the sums in them are of the
// span that the sample covers. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

namespace baton::coordinator {

struct Sample {
  std::uint64_t wall_ms = 0;  // end of the span
  std::uint32_t span_ms = 0;
  float lag_us = 0;           // mean over the span
  float lag_max_us = 0;
  float pause_p50_us = 0, pause_p99_us = 0, pause_max_us = 0;  // as last reported
  float committed = 0;        // checkpoints
  float pages_written = 0, pages_known = 0, pages_zero = 0, pages_sent = 0;
  float bytes_sent = 0;
};

struct HistoryLevel {
  std::uint32_t span_ms;
  std::size_t length;
};
inline constexpr std::array<HistoryLevel, 3> kHistoryLevels = {
    {{500, 600}, {10'000, 720}, {120'000, 720}}};  // 5 min, 2 h, 24 h

class History {
 public:
  void add(const Sample& sample);
  // The samples that end after `from_ms`, from the finest level that reaches back so far (or,
  // when none does, the one that reaches back furthest).
  std::vector<Sample> since(std::uint64_t from_ms) const;
  // The newest `count` of the finest level.
  std::vector<Sample> newest(std::size_t count) const;

 private:
  struct Level {
    std::deque<Sample> samples;
    Sample gathered;  // not yet a whole span
  };
  std::array<Level, kHistoryLevels.size()> levels_;
};

}  // namespace baton::coordinator
