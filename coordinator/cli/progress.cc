#include "coordinator/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "coordinator/cli/output.h"
#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {
constexpr int kBarColumns = 24;
constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kPlainLine{1};
}  // namespace

std::string progress_line(const ProgressState& state, bool bar) {
  std::string out = printable(state.phase);
  if (bar) out.resize(std::max<std::size_t>(out.size(), 9), ' ');
  if (state.round > 0) out += "  round " + std::to_string(state.round);
  if (state.bytes_total > 0) {
    const double share = std::min(
        1.0, static_cast<double>(state.bytes_done) / static_cast<double>(state.bytes_total));
    if (bar) {
      const int full = static_cast<int>(share * kBarColumns);
      out += "  [" + std::string(static_cast<std::size_t>(full), '=') +
             (full < kBarColumns ? ">" : "") +
             std::string(static_cast<std::size_t>(std::max(0, kBarColumns - full - 1)), ' ') + "]";
    }
    out += "  " + std::to_string(static_cast<int>(share * 100)) + " %";
  }
  if (state.bytes_done > 0) out += "  " + format_bytes(state.bytes_done);
  if (state.rate_bytes_per_s > 0) out += "  " + format_bytes(state.rate_bytes_per_s) + "/s";
  if (state.eta_us > 0) out += "  ETA " + format_duration_us(state.eta_us);
  return out;
}

Progress::Progress() : Progress(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(const ProgressState& state) {
  const auto now = std::chrono::steady_clock::now();
  const bool news = state.phase != last_phase_ || state.round != last_round_;
  if (!news && now - last_time_ < (terminal_ ? std::chrono::milliseconds(kRedraw)
                                             : std::chrono::milliseconds(kPlainLine))) {
    return;
  }
  last_time_ = now;
  last_phase_ = state.phase;
  last_round_ = state.round;
  if (terminal_) {
    std::fprintf(stderr, "\r%s\033[K", progress_line(state, true).c_str());
    drawn_ = true;
  } else {
    std::fprintf(stderr, "%s\n", progress_line(state, false).c_str());
  }
  std::fflush(stderr);
}

void Progress::end() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace baton::cli
