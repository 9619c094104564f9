// Risk: what would hurt if a workload's node were lost now, and what to do about it.
// Pure. Each reason has a code; docs/health.md documents all of them, and a test compares.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "proto/coordinator.pb.h"

namespace baton::coordinator {

enum class RiskLevel { kNone = 0, kWatch = 1, kHigh = 2, kLost = 3 };

struct RiskReason {
  std::string code;    // one of kRiskCodes
  std::string text;    // what is so
  std::string remedy;  // what to do
};

struct Risk {
  RiskLevel level = RiskLevel::kNone;
  std::vector<RiskReason> reasons;  // the gravest first
};

struct RiskCode {
  const char* code;
  RiskLevel level;
};
inline constexpr RiskCode kRiskCodes[] = {
    {"lost", RiskLevel::kLost},           {"failed", RiskLevel::kLost},
    {"node-silent", RiskLevel::kHigh},    {"never-committed", RiskLevel::kHigh},
    {"no-standby", RiskLevel::kHigh},     {"standbys-away", RiskLevel::kHigh},
    {"not-committing", RiskLevel::kHigh}, {"lag-over-target", RiskLevel::kHigh},
    {"standby-away", RiskLevel::kWatch},  {"standby-behind", RiskLevel::kWatch},
    {"ended", RiskLevel::kWatch},
};
std::string_view risk_level_name(RiskLevel level);  // none, watch, high, lost

// The lag that a workload's spec accepts: its max_lag, else five intervals, at least 250 ms.
std::uint64_t lag_target_us(const pb::WorkloadInfo& info);

Risk assess(const pb::WorkloadInfo& info);

}  // namespace baton::coordinator
