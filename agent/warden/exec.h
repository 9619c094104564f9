// A command run inside a workload, beside its programs: in their namespaces, as their user,
// with their environment, but not in their cgroup, so that it is never part of a checkpoint.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.h"
#include "proto/warden.pb.h"

namespace baton::warden {

inline constexpr std::size_t kExecOutputBytes = 4096;
inline constexpr std::chrono::seconds kExecTimeoutMax{60};

// Blocks until it has ended; killed after `timeout`, with all that it left in its way. Where it
// cannot be executed its wait status is that of exit(127). Fails: kInvalid (no command),
// kTraceeGone (`root` has ended), kFailed.
Result<pb::ExecResponse> exec_inside(pid_t root, const std::vector<std::string>& argv, std::chrono::microseconds timeout);

}  // namespace baton::warden
