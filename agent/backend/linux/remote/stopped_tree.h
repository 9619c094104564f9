// StoppedTree: every process of a workload with all of its threads stopped, for as
// long as the freeze lasts. Filled by linux_backend.cc, read by state/ and memory/.
#pragma once

#include <sys/types.h>

#include <vector>

#include "agent/backend/linux/remote/tracee.h"
#include "proto/workload.pb.h"

namespace baton::linux_backend {

struct StoppedThread {
  pid_t tid = 0;              // as this process sees it
  Tracee* tracee = nullptr;   // stopped; null: a leader that has exited while others run on
};

struct StoppedProcess {
  pid_t pid = 0;              // as this process sees it
  pid_t ns_pid = 0;           // in the innermost PID namespace
  std::vector<StoppedThread> threads;  // sorted by tid, the leader first
  pid_t shares_memory_with = 0;        // pid of an earlier process with the same address space, or 0
  std::uint64_t memory_object = 0;     // of its private memory
};

struct StoppedTree {
  std::vector<StoppedProcess> processes;   // parents before children
  pid_t keeper = 0;                        // 0: none; never among the processes
  pid_t root = 0;
  const pb::WorkloadSpec* spec = nullptr;
  bool connections = false;                // this state will be the newest: TCP connections are read too
};

}  // namespace baton::linux_backend
