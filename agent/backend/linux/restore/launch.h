// Starting a fresh program in a home of its own: Baton's keeper as PID 1 of new PID, mount
// and IPC namespaces (and a network namespace with `lo` up when asked for), the program as
// its PID 2 in its own session, stdin from /dev/null, stdout and stderr into the keeper,
// which appends them to the log and leaves the program's wait status when it ends.
//
// The keeper is a child of the calling process: reap it with waitpid(keeper) once its pidfd
// becomes readable. It outlives the caller. Its end is the end of everything in its PID
// namespace, and it ends as soon as the program has ended.
//
// Refuses: a command that cannot be executed (kNotFound, kNotAllowed, ...: no keeper is left).
// Threads: any; blocks until the program has been executed, or the time-out.
#pragma once

#include <sys/types.h>

#include <string>

#include "agent/backend/backend.h"
#include "base/error.h"
#include "proto/workload.pb.h"

namespace baton::restore {

struct LaunchSpec {
  pb::WorkloadSpec spec;      // argv, env, cwd, user (name or uid[:gid]) and addresses are used
  std::string cgroup;         // existing cgroup v2 folder; keeper and program are put into it. Empty: stay
  std::string log_path;       // appended to; rotated to log_path + ".1" at 16 MiB
  std::string exit_path;      // the wait status in decimal, once the program has ended
  backend::EquipNetwork equip;   // may be empty
};

struct Launched {
  pid_t root = 0;             // both as the caller sees them
  pid_t keeper = 0;
};

Result<Launched> launch(const LaunchSpec& launch);

}  // namespace baton::restore
