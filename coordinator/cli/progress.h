// Progress of long work, on stderr: a bar that redraws itself on a terminal, plain lines
// (a new phase or round, else at most one a second) elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace baton::cli {

struct ProgressState {
  std::string phase;
  std::uint32_t round = 0;
  std::uint64_t bytes_done = 0;
  std::uint64_t bytes_total = 0;  // 0: not known
  std::uint64_t rate_bytes_per_s = 0;
  std::uint64_t eta_us = 0;
};

// One line, without a newline: "copy  round 2  [=====>    ]  50 %  1.0 GiB  110 MiB/s  ETA 5.0 s".
std::string progress_line(const ProgressState& state, bool bar);

class Progress {
 public:
  Progress();                                         // decides by isatty(2)
  explicit Progress(bool terminal) : terminal_(terminal) {}
  ~Progress() { end(); }
  void show(const ProgressState& state);
  void end();  // leaves the bar's line

 private:
  bool terminal_;
  bool drawn_ = false;
  std::string last_phase_;
  std::uint32_t last_round_ = 0;
  std::chrono::steady_clock::time_point last_time_{};
};

}  // namespace baton::cli
