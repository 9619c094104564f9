// What a workload's spec may say: names, ranges, defaults. Pure functions; used by the
// coordinator for every spec that comes in and by the CLI before it sends one.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::coordinator {

inline constexpr std::uint64_t kMinIntervalUs = 500;
inline constexpr std::uint64_t kMaxIntervalUs = 3'600'000'000;
inline constexpr std::uint64_t kHotIntervalUs = 20'000;
inline constexpr std::uint64_t kWarmIntervalUs = 100'000;
inline constexpr std::uint64_t kColdIntervalUs = 1'000'000;
inline constexpr int kMaxArguments = 4'096;
inline constexpr std::size_t kMaxSpecBytes = 1u << 20;
inline constexpr std::uint32_t kMaxKeepLast = 100'000;

// [a-z0-9][a-z0-9-]{0,62}. Fails: kInvalid.
Result<void> check_name(const std::string& what, const std::string& name_untrusted);

// Everything that can be said without knowing the nodes. Fails: kInvalid.
Result<void> check_spec(const pb::WorkloadSpec& spec_untrusted);

// Fills in the defaults (mode cold, interval by mode, durability flushed, retention 100 …).
void fill_defaults(pb::WorkloadSpec& spec);

// The differences that an update from `now` to `wanted` would make, both with defaults.
// The node is where it first ran and never differs; standbys count only when named.
struct SpecDifference {
  std::vector<std::string> changeable;  // "interval 20000 us -> 100000 us"
  std::vector<std::string> fixed;       // fields that need a delete and a new run
};
SpecDifference compare_specs(const pb::WorkloadSpec& now, const pb::WorkloadSpec& wanted);

}  // namespace baton::coordinator
