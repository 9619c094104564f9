// Placement: where a workload starts, and which nodes stand by, when nobody named them.
// A pure function of what is known, with an explanation for each candidate.
//
// Order of preference among fit nodes: fewest workloads, then fewest standby copies,
// then most free memory, then name. A node that was named by a person is never replaced
// by another: if it is unfit, the choice is refused with the reason.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::coordinator {

// Beyond the workload's own need, a node keeps this much free.
inline constexpr std::uint64_t kMemoryReserveBytes = 32ull << 20;
inline constexpr std::uint32_t kMaxStandbys = 8;

struct Candidate {
  std::string name;
  bool reachable = false;
  bool drained = false;
  std::uint64_t memory_free_bytes = 0;
  std::vector<std::string> cpu_features;
  std::string arch;
  bool has_volumes = true;                // it can serve them
  std::uint32_t workloads = 0;
  std::uint32_t standby_copies = 0;
};

struct PlacementRequest {
  std::string node;                       // named by a person; empty: choose
  std::vector<std::string> standbys;      // named; empty with standby_count > 0: choose
  std::uint32_t standby_count = 0;
  bool standbys_optional = false;         // fewer than standby_count will do
  std::vector<std::string> require_features;
  std::uint64_t memory_need_bytes = 0;    // 0: not known
  bool needs_volumes = false;
  bool standbys_hold_memory = false;      // warm and hot copies need the memory too
};

struct Placement {
  std::string node;
  std::vector<std::string> standbys;
  std::vector<std::string> why;  // lines for `show --why`
};

// Fails: kNotFound (a named node is unknown), kInvalid (a node named twice, too many
// standbys), kUnreachable (a named node is), kUnsupported (no fit node, or a named one
// is unfit). The error's subject explains each candidate.
Result<Placement> place(const PlacementRequest& request, const std::vector<Candidate>& nodes);

// Standbys for a workload that runs on `primary`, beside those in `keep`, up to
// request.standby_count in all. Never fails: what is not fit is explained in `why`.
Placement choose_standbys(const PlacementRequest& request, const std::string& primary,
                          const std::vector<std::string>& keep,
                          const std::vector<Candidate>& nodes);

}  // namespace baton::coordinator
