// How a fresh program is started: given to the server by its program, so that the server
// knows backends only by their registry and tests can start programs their own way.
#pragma once

#include <functional>
#include <string>

#include <sys/types.h>

#include "agent/backend/backend.h"
#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::warden {

struct LaunchTarget {
  pb::WorkloadSpec spec;
  std::string cgroup;        // existing and empty: everything started goes there
  std::string log_path;      // stdout and stderr
  std::string exit_path;     // the wait status in decimal, once the program has ended
  backend::EquipNetwork equip;   // with addresses in the spec
};

struct LaunchedProgram {
  pid_t root = 0;
  pid_t keeper = 0;          // 0: none; its end is the end of the workload
};

// Blocks until the program has been executed. After a failure nothing of it is left.
using Launcher = std::function<Result<LaunchedProgram>(const LaunchTarget&)>;

}  // namespace baton::warden
