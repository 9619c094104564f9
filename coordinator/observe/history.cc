#include "coordinator/observe/history.h"

#include <algorithm>

namespace baton::coordinator {
namespace {

// `into` covers the spans of both afterwards.
void merge(Sample& into, const Sample& next) {
  const float total = static_cast<float>(into.span_ms + next.span_ms);
  if (total > 0) {
    into.lag_us = (into.lag_us * static_cast<float>(into.span_ms) +
                   next.lag_us * static_cast<float>(next.span_ms)) / total;
  }
  into.lag_max_us = std::max(into.lag_max_us, next.lag_max_us);
  into.pause_p50_us = next.pause_p50_us;
  into.pause_p99_us = next.pause_p99_us;
  into.pause_max_us = std::max(into.pause_max_us, next.pause_max_us);
  into.committed += next.committed;
  into.pages_written += next.pages_written;
  into.pages_known += next.pages_known;
  into.pages_zero += next.pages_zero;
  into.pages_sent += next.pages_sent;
  into.bytes_sent += next.bytes_sent;
  into.span_ms += next.span_ms;
  into.wall_ms = next.wall_ms;
}

}  // namespace

void History::add(const Sample& sample) {
  if (sample.span_ms == 0) return;
  for (std::size_t i = 0; i < levels_.size(); ++i) {
    Level& level = levels_[i];
    merge(level.gathered, sample);
    if (level.gathered.span_ms < kHistoryLevels[i].span_ms) continue;
    level.samples.push_back(level.gathered);
    level.gathered = {};
    if (level.samples.size() > kHistoryLevels[i].length) level.samples.pop_front();
  }
}

std::vector<Sample> History::since(std::uint64_t from_ms) const {
  const Level* best = &levels_[0];
  for (const Level& level : levels_) {
    if (level.samples.empty()) continue;
    const auto begins = [](const Level& one) {
      return one.samples.empty() ? UINT64_MAX
                                 : one.samples.front().wall_ms - one.samples.front().span_ms;
    };
    if (begins(*best) <= from_ms) break;
    if (begins(level) < begins(*best)) best = &level;
  }
  std::vector<Sample> out;
  for (const Sample& sample : best->samples) {
    if (sample.wall_ms > from_ms) out.push_back(sample);
  }
  return out;
}

std::vector<Sample> History::newest(std::size_t count) const {
  const auto& samples = levels_[0].samples;
  const std::size_t skip = samples.size() > count ? samples.size() - count : 0;
  return {samples.begin() + static_cast<std::ptrdiff_t>(skip), samples.end()};
}

}  // namespace baton::coordinator
