// What a spec's fields mean to an agent: defaults, limits and conversions.
#pragma once

#include <chrono>
#include <string>

#include "base/error.h"
#include "proto/agent.pb.h"
#include "proto/workload.pb.h"
#include "storage/catalog.h"

namespace baton::node {

inline constexpr std::uint32_t kDefaultKeepLast = 100;

// hot 20 ms, warm 100 ms, cold (and unsaid) 1 s, unless the spec says.
std::chrono::microseconds checkpoint_interval(const pb::WorkloadSpec& spec);
// memory, flushed (and unsaid), synced.
storage::Durability durability_of(const pb::WorkloadSpec& spec);
// Which of its checkpoints a store keeps.
storage::RetentionPolicy retention_of(const pb::WorkloadSpec& spec);
// "1s/1m": one per second for a minute; units ms, s, m, h, d. Fails: kInvalid.
Result<storage::RetentionStep> parse_retention_step(const std::string& text_untrusted);
// Name, domain, digest kind and key. Fails: kInvalid (a bad name, domain or key).
Result<storage::WorkloadIdentity> identity_of(const pb::WorkloadSpec& spec);
// The spec as it may be written beside a checkpoint: without its secret.
std::string public_spec(const pb::WorkloadSpec& spec);

// Why a program with this saved state cannot run on a machine with these facts; empty: it can.
std::vector<pb::Verdict> machine_problems(const pb::MachineState& needs, const pb::NodeFacts& has);

}  // namespace baton::node
