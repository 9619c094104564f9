#include "agent/node/spec.h"

#include <charconv>
#include <string_view>

#include <algorithm>
#include <cstring>
#include <vector>

namespace baton::node {

std::chrono::microseconds checkpoint_interval(const pb::WorkloadSpec& spec) {
  if (spec.interval_us() > 0) return std::chrono::microseconds(spec.interval_us());
  switch (spec.mode()) {
    case pb::MODE_HOT: return std::chrono::milliseconds(20);
    case pb::MODE_WARM: return std::chrono::milliseconds(100);
    default: return std::chrono::seconds(1);
  }
}

storage::Durability durability_of(const pb::WorkloadSpec& spec) {
  switch (spec.durability()) {
    case pb::DURABILITY_MEMORY: return storage::Durability::kMemory;
    case pb::DURABILITY_SYNCED: return storage::Durability::kSynced;
    default: return storage::Durability::kFlushed;
  }
}

storage::RetentionPolicy retention_of(const pb::WorkloadSpec& spec) {
  storage::RetentionPolicy policy;
  policy.keep_last = spec.retention().keep_last();
  policy.byte_budget = spec.retention().budget_bytes();
  for (const auto& text : spec.retention().steps()) {
    if (auto step = parse_retention_step(text)) policy.steps.push_back(*step);   // the coordinator has checked them
  }
  return policy;
}

Result<storage::RetentionStep> parse_retention_step(const std::string& text) {
  auto number = [](std::string_view part, std::uint64_t& ns) {
    std::uint64_t value = 0;
    const auto [end, failed] = std::from_chars(part.data(), part.data() + part.size(), value);
    const std::string_view unit = part.substr(static_cast<std::size_t>(end - part.data()));
    const std::uint64_t scale = unit == "ms" ? 1'000'000ull : unit == "s" ? 1'000'000'000ull
                                : unit == "m" ? 60'000'000'000ull : unit == "h" ? 3'600'000'000'000ull
                                : unit == "d" ? 86'400'000'000'000ull : 0;
    if (failed != std::errc() || scale == 0 || value == 0 || value > 100'000) return false;
    ns = value * scale;
    return true;
  };
  storage::RetentionStep step;
  const auto slash = text.find('/');
  if (slash == std::string::npos || !number(std::string_view(text).substr(0, slash), step.every_ns) ||
      !number(std::string_view(text).substr(slash + 1), step.for_ns) || step.for_ns < step.every_ns) {
    return make_error(Code::kInvalid, "read '" + text + "'", "it is not EVERY/FOR", "Such as 1s/1m: one per second for a minute.");
  }
  return step;
}

Result<storage::WorkloadIdentity> identity_of(const pb::WorkloadSpec& spec) {
  storage::WorkloadIdentity identity;
  if (!storage::is_valid_workload_name(spec.name())) {
    return make_error(Code::kInvalid, "spec", "name '" + spec.name() + "' is not allowed");
  }
  identity.workload = spec.name();
  BATON_ASSIGN(identity.domain, storage::DomainId::from_hex(spec.domain()));
  if (spec.digest().empty() || spec.digest() == "xxh3") {
    identity.kind = dedup::DigestKind::kXxh3_128;
  } else if (spec.digest() == "sha256") {
    identity.kind = dedup::DigestKind::kSha256;
  } else {
    return make_error(Code::kInvalid, "spec", "digest '" + spec.digest() + "' is not known",
                      "Use xxh3 or sha256.");
  }
  if (spec.hash_key().size() != identity.key.size()) {
    return make_error(Code::kInvalid, "spec",
                      "hash_key has " + std::to_string(spec.hash_key().size()) + " bytes, not 32");
  }
  std::memcpy(identity.key.data(), spec.hash_key().data(), identity.key.size());
  return identity;
}

std::string public_spec(const pb::WorkloadSpec& spec) {
  pb::WorkloadSpec copy = spec;
  copy.clear_hash_key();
  return copy.SerializeAsString();
}

std::vector<pb::Verdict> machine_problems(const pb::MachineState& needs, const pb::NodeFacts& has) {
  std::vector<pb::Verdict> problems;
  auto refuse = [&](std::string resource, std::string detail) {
    pb::Verdict verdict;
    verdict.set_resource(std::move(resource));
    verdict.set_kind("machine");
    verdict.set_verdict("refused");
    verdict.set_detail(std::move(detail));
    problems.push_back(std::move(verdict));
  };
  if (!needs.arch().empty() && needs.arch() != has.arch()) {
    refuse("architecture", "the program is " + needs.arch() + ", " + has.name() + " is " + has.arch());
    return problems;
  }
  if (const std::uint64_t lacking = needs.xsave_features() & ~has.xsave_features(); lacking != 0) {
    char text[32];
    std::snprintf(text, sizeof text, "%#lx", static_cast<unsigned long>(lacking));
    refuse("register state", has.name() + " cannot hold the saved registers: XCR0 lacks " + text);
  }
  for (const auto& feature : needs.cpu_features()) {
    const auto& there = has.cpu_features();
    if (std::find(there.begin(), there.end(), feature) == there.end()) {
      refuse("processor feature " + feature, has.name() + " (" + has.cpu_model() + ") lacks it");
    }
  }
  return problems;
}

}  // namespace baton::node
