#include "storage/retention.h"

#include <algorithm>

namespace baton::storage {

std::vector<std::uint64_t> expired(std::span<const RetentionEntry> held,
                                   const RetentionPolicy& policy) {
  if (held.empty()) return {};
  const std::uint64_t last = std::max<std::uint64_t>(policy.keep_last, 1);
  std::vector<bool> stays(held.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    stays[i] = held[i].marked || held.size() - i <= last;
  }
  const std::uint64_t now = held.back().commit_wall_ns;
  for (const RetentionStep& step : policy.steps) {
    if (step.every_ns == 0) continue;
    std::uint64_t slot = 0;
    bool any = false;
    for (std::size_t i = 0; i < held.size(); ++i) {
      const std::uint64_t at = held[i].commit_wall_ns;
      // A clock that was set back makes an older checkpoint look newer: it counts as new.
      if (at < now && now - at > step.for_ns) continue;
      if (any && at / step.every_ns == slot) continue;
      any = true;
      slot = at / step.every_ns;
      stays[i] = true;
    }
  }
  std::vector<std::uint64_t> gone;
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (!stays[i]) gone.push_back(held[i].seq);
  }
  return gone;
}

}  // namespace baton::storage
