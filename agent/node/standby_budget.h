// Sharing a node's memory among the standbys it keeps: a pure function.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/workload.pb.h"

namespace baton::node {

struct StandbyClaim {
  std::string name;
  pb::Mode wanted = pb::MODE_COLD;
  std::uint64_t bytes = 0;         // of its newest checkpoint's memory
  std::int32_t priority = 0;       // of its spec: higher is served first
};

struct StandbyGrant {
  pb::Mode mode = pb::MODE_COLD;
  std::string problem;             // why it is less than what was wanted
};

// Higher priorities first, then smaller ones, then by name. A hot one costs its memory, and
// once for all of them the largest again, because a shadow is rebuilt beside the old one (one
// at a time); a warm one costs its memory; a cold one nothing. What does not fit as hot is
// tried as warm. The grants together never exceed `budget_bytes`.
std::map<std::string, StandbyGrant> share_memory(std::vector<StandbyClaim> claims, std::uint64_t budget_bytes);

}  // namespace baton::node
