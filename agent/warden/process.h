// Foreign processes as /proc tells of them, and pidfds that keep a hold on them
// across PID reuse. Nothing here stops or traces anybody.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.h"
#include "base/fd.h"

namespace baton::warden {

struct ProcessStat {
  char state = '?';
  pid_t parent = 0;
  std::uint64_t flags = 0;        // PF_ of the kernel
  std::uint64_t start = 0;        // clock ticks since boot: with the PID, names one process
  int exit_code = 0;              // as wait(2) gives it; of a zombie
};

// Fails: kNotFound (no such process).
Result<ProcessStat> read_process(pid_t pid);

// Why `pid` cannot be protected, if so: kNotFound, kInvalid (a thread's id, a kernel thread,
// this program or one above it), kConflict (traced), kUnsupported (32-bit).
Result<void> check_protectable(pid_t pid);

// `root` and all its descendants, parents first. What is forked meanwhile may be missing.
std::vector<pid_t> process_tree(pid_t root);

// A process held by pidfd; pid and start time say which one it is.
class HeldProcess {
 public:
  HeldProcess() noexcept = default;
  // Fails: kNotFound (gone, or its PID is another process by now: `start`, unless 0, differs).
  static Result<HeldProcess> open(pid_t pid, std::uint64_t start = 0);

  explicit operator bool() const noexcept { return static_cast<bool>(fd_); }
  int fd() const noexcept { return fd_.get(); }   // readable once the process has ended
  pid_t pid() const noexcept { return pid_; }
  std::uint64_t start() const noexcept { return start_; }
  bool ended() const;
  // Fails: kTraceeGone.
  Result<void> signal(int signal) const;
  // After the end: reaps it if it is our child; its wait status where the kernel still knows it.
  std::optional<int> wait_status() const;

 private:
  Fd fd_;
  pid_t pid_ = 0;
  std::uint64_t start_ = 0;
};

}  // namespace baton::warden
