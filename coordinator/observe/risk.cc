#include "coordinator/observe/risk.h"

#include <algorithm>

#include "base/check.h"
#include "coordinator/cli/units.h"

namespace baton::coordinator {
namespace {

constexpr std::uint64_t kDefaultIntervals = 5;
constexpr std::uint64_t kLeastTargetUs = 250'000;

RiskLevel level_of(const std::string& code) {
  for (const auto& known : kRiskCodes) {
    if (code == known.code) return known.level;
  }
  CHECK(false);
  return RiskLevel::kHigh;
}

}  // namespace

std::string_view risk_level_name(RiskLevel level) {
  switch (level) {
    case RiskLevel::kNone: return "none";
    case RiskLevel::kWatch: return "watch";
    case RiskLevel::kHigh: return "high";
    case RiskLevel::kLost: return "lost";
  }
  return "none";
}

std::uint64_t lag_target_us(const pb::WorkloadInfo& info) {
  if (info.spec().max_lag_us() > 0) return info.spec().max_lag_us();
  return std::max(kLeastTargetUs, kDefaultIntervals * info.status().interval_us());
}

Risk assess(const pb::WorkloadInfo& info) {
  const auto& status = info.status();
  const std::string& name = info.spec().name();
  const std::string& state = status.state();
  Risk risk;
  auto because = [&](const std::string& code, const std::string& text, const std::string& remedy) {
    risk.reasons.push_back({code, text, remedy});
    risk.level = std::max(risk.level, level_of(code));
  };
  if (state == "lost") {
    because("lost", status.problem().empty() ? "nobody runs it" : status.problem(),
            "baton failover " + name + ", or baton restore " + name);
    return risk;
  }
  if (state == "failed") {
    because("failed", status.problem().empty() ? "it failed" : status.problem(),
            "baton logs " + name + ", then baton restore " + name);
    return risk;
  }
  if (state == "exited" || state == "stopped") {
    because("ended", "the program has " + std::string(state == "exited" ? "exited" : "stopped"),
            "baton logs " + name + "; baton delete " + name + " when that was meant");
    return risk;
  }
  if (info.status_is_stale()) {
    because("node-silent", "node " + status.node() + " does not answer",
            "baton node show " + status.node() + "; wait, or baton failover " + name);
  }
  if (status.last_committed() == 0) {
    because("never-committed", "no checkpoint has been committed yet", "baton show " + name);
  }
  std::size_t connected = 0;
  std::string away, behind;
  for (const auto& standby : status.standbys()) {
    if (!standby.connected()) {
      away += (away.empty() ? "" : ", ") + standby.node();
      continue;
    }
    ++connected;
    if (!standby.problem().empty()) behind += (behind.empty() ? "" : ", ") + standby.node();
  }
  const bool wants = info.spec().standbys_size() > 0 || status.standbys_size() > 0;
  if (!wants) {
    because("no-standby", "no other node holds a copy", "baton node ls; a standby is taken when a fit node is there");
  } else if (connected == 0 && state != "starting") {
    because("standbys-away", "no standby is connected" + (away.empty() ? "" : " (" + away + ")"),
            "baton node ls");
  } else if (!away.empty()) {
    because("standby-away", "standby " + away + " is not connected", "baton node ls");
  }
  if (!behind.empty()) {
    because("standby-behind", "standby " + behind + " has a problem", "baton show " + name);
  }
  if (!status.problem().empty() && !info.status_is_stale()) {
    because("not-committing", status.problem(), "baton show " + name);
  }
  const std::uint64_t target = lag_target_us(info);
  if (status.last_committed() > 0 && status.lag_us() > target) {
    because("lag-over-target",
            "lag " + cli::format_duration_us(status.lag_us()) + " is over its target of " +
                cli::format_duration_us(target),
            "a failover now would lose that much: look at the link and the standby's disk");
  }
  std::stable_sort(risk.reasons.begin(), risk.reasons.end(), [](const auto& a, const auto& b) {
    return level_of(a.code) > level_of(b.code);
  });
  return risk;
}

}  // namespace baton::coordinator
