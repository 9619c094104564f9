// PauseStats: percentiles over the last kWindow pauses; PhaseStats: the same of each phase of a
// freeze. One writer, guarded by its owner.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "proto/warden.pb.h"
#include "proto/workload.pb.h"

namespace baton::node {

class PauseStats {
 public:
  static constexpr std::size_t kWindow = 1000;
  void add(std::uint64_t pause_us) {
    ring_[count_ % kWindow] = pause_us;
    ++count_;
  }
  pb::PauseStats summary() const {
    pb::PauseStats out;
    const std::size_t n = std::min(count_, kWindow);
    if (n == 0) return out;
    std::vector<std::uint64_t> sorted(ring_.begin(), ring_.begin() + static_cast<std::ptrdiff_t>(n));
    std::sort(sorted.begin(), sorted.end());
    // Nearest rank: the smallest value that at least q of them do not exceed.
    out.set_p50_us(sorted[(n + 1) / 2 - 1]);
    out.set_p99_us(sorted[(n * 99 + 99) / 100 - 1]);
    out.set_max_us(sorted.back());
    return out;
  }

 private:
  std::array<std::uint64_t, kWindow> ring_{};
  std::size_t count_ = 0;
};

struct PhaseStats {
  PauseStats stop, scan, copy, state, resume;
  std::uint64_t rounds = 0, pages_concurrent = 0, pages_frozen = 0;

  void add(const pb::CaptureResponse& capture, std::uint64_t pages) {
    stop.add(capture.phases().stop_us());
    scan.add(capture.phases().scan_us());
    copy.add(capture.phases().copy_us());
    state.add(capture.phases().state_us());
    resume.add(capture.phases().resume_us());
    rounds += capture.rounds();
    pages_frozen += capture.pages_frozen();
    pages_concurrent += pages - std::min(pages, capture.pages_frozen());
  }
  pb::CapturePhases summary() const {
    pb::CapturePhases out;
    *out.mutable_stop() = stop.summary();
    *out.mutable_scan() = scan.summary();
    *out.mutable_copy() = copy.summary();
    *out.mutable_state() = state.summary();
    *out.mutable_resume() = resume.summary();
    out.set_rounds(rounds);
    out.set_pages_concurrent(pages_concurrent);
    out.set_pages_frozen(pages_frozen);
    return out;
  }
};

}  // namespace baton::node
