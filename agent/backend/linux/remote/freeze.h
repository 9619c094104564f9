// Freeze: all threads of all processes of a workload, stopped, for as long as it lives.
//
// A thread that cannot stop because its vfork child was stopped first (posix_spawn) makes
// the freeze let go of everything and try again; one that still cannot stop makes it fail
// with kTimedOut, and everything runs.
//
// Threads: made, used and destroyed on one thread (PtraceThread).
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/backend/linux/remote/stopped_tree.h"

namespace baton::linux_backend {

// Which processes belong to a workload.
struct Members {
  std::string cgroup;       // its folder; empty: root and its descendants
  pid_t root = 0;
  pid_t keeper = 0;         // never a member

  // Their pids, as this process sees them. Fails: kTraceeGone (none is left), kFailed.
  Result<std::vector<pid_t>> list() const;
};

// Every process with all its threads, as a freeze has found them.
struct Roster {
  struct Process {
    pid_t pid = 0;
    std::vector<pid_t> tids;
  };
  std::vector<Process> processes;
};

class Freeze {
 public:
  // `known`: who was there at the last freeze; `unchanged`, asked once they have all stopped,
  // tells that nobody can have come or gone since: then nothing is listed anew, and
  // roster_held() is true.
  // Fails: kTraceeGone (nothing is left), kTimedOut, kConflict (traced by somebody else),
  // kUnsupported (32-bit).
  static Result<std::unique_ptr<Freeze>> take(const Members& members, const Roster* known = nullptr,
                                              const std::function<bool()>& unchanged = {});
  ~Freeze() { (void)release(); }
  Freeze(const Freeze&) = delete;
  Freeze& operator=(const Freeze&) = delete;

  std::vector<StoppedProcess>& processes() { return processes_; }
  bool roster_held() const { return roster_held_; }
  Roster roster() const;
  // Gives everything back. The first failure, if any; the rest is given back all the same.
  Result<void> release();
  // SIGKILL to every process, still frozen, and waits for their end.
  Result<void> kill_all();

  using Time = std::chrono::steady_clock::time_point;
  Time first_stop() const { return first_stop_; }     // when the first thread was asked
  Time all_stopped() const { return all_stopped_; }

 private:
  Freeze() = default;
  Result<bool> attempt(const Members& members, Time give_up);   // false: try again
  Result<void> settle();
  Result<void> stop_new_threads(pid_t pid, std::vector<Tracee*>& asked);
  Result<void> stop_threads(pid_t pid, const std::vector<pid_t>& tids, std::vector<Tracee*>& asked);
  std::vector<const Tracee*> let_children_go(const Tracee& parent);   // those that are no longer held
  Result<bool> await_all(const std::vector<Tracee*>& asked, Time give_up);   // false: one is stuck
  Result<bool> attempt_known(const Roster& known, const std::function<bool()>& unchanged, Time give_up);
  StoppedProcess& process(pid_t pid);

  std::deque<Tracee> tracees_;
  std::vector<StoppedProcess> processes_;
  bool roster_held_ = false;
  Time first_stop_{}, all_stopped_{};
};

}  // namespace baton::linux_backend
