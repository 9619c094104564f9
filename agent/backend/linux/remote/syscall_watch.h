// SyscallWatch: counts, by kind, the system calls that the processes of one cgroup enter, and
// notes which descriptor numbers they name, so that a freeze can prove what has not changed since
// the last one and need not read it again: most of a process's state changes by a system call of
// its own, or not at all.
//
// Three small BPF programs on the kernel's raw tracepoints sys_enter, sys_exit and
// sched_process_exit do the counting. They are written here instruction by instruction, need no
// compiler and no type information, and are attached only while some workload is watched. That
// costs every system call of the machine about 0.3 µs meanwhile (the kernel's slow entry path), so
// the owner gives the watch up where that is more than it saves.
//
// What it cannot see, and who uses it must look at otherwise: what the kernel does by itself
// (timers that run out, signals, a handler reset by SA_RESETHAND), and what others do to the
// workload (queues filled from outside, prlimit(2), a move to another cgroup).
//
// Threads: any. Source: bpf(2), bpf-helpers(7); raw tracepoints: Linux 4.17.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"

namespace baton::linux_backend {

class SyscallWatch {
 public:
  static constexpr std::uint64_t kCallCostNs = 300;     // docs/performance.md
  static constexpr std::uint64_t kFewCallsPerSecond = 20'000;   // cost less than can be felt
  static constexpr std::uint32_t kNumbers = 1024;       // descriptor numbers are told apart modulo this
  static constexpr std::uint32_t kMaxWatches = 256;

  // Calls entered since the watch began. All threads of the cgroup stopped: exact, and no call
  // is half done.
  struct Counts {
    std::uint64_t harmless = 0;    // leave nothing behind that a freeze does not read anyway
    std::uint64_t mapping = 0;     // change the memory map, or give pages back
    std::uint64_t transfer = 0;    // change what is in files, pipes and sockets, and positions in them
    std::uint64_t descriptor = 0;  // make or close descriptors, or change what they are
    std::uint64_t other = 0;       // everything else, known or unknown, and ends of threads
    std::uint64_t all() const { return harmless + mapping + transfer + descriptor + other; }
  };

  // `cgroup`: absolute path of a cgroup v2 folder; its own processes count, not its children's.
  // Fails: kUnsupported (no BPF here, or not allowed, or it is watched already), kNoSpace (256 are
  // watched already).
  static Result<std::unique_ptr<SyscallWatch>> begin(const std::string& cgroup);
  ~SyscallWatch();
  SyscallWatch(const SyscallWatch&) = delete;
  SyscallWatch& operator=(const SyscallWatch&) = delete;

  Counts read() const;          // memory only: no system call

  // Whether a transfer, or a call of the kind `descriptor`, has named this number since the last
  // forget(), in any process of the cgroup. A number that a call has made is not noted, nor are
  // calls of the kind `other`, whatever they may have done. Exact with all threads stopped.
  bool moved(int number) const;
  bool altered(int number) const;
  void forget();

  struct Program;               // loaded and attached, shared by all watches

 private:
  SyscallWatch(std::shared_ptr<Program> program, std::uint64_t cgroup_id, std::uint32_t slot)
      : program_(std::move(program)), cgroup_id_(cgroup_id), slot_(slot) {}
  std::shared_ptr<Program> program_;
  std::uint64_t cgroup_id_;
  std::uint32_t slot_;
};

// Loads the program and lets it go. Fails: kUnsupported.
Result<void> probe_syscall_watch();

}  // namespace baton::linux_backend
