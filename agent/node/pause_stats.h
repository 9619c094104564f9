// PauseStats: percentiles over the last kWindow pauses. One writer, guarded by its owner.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

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

}  // namespace baton::node
