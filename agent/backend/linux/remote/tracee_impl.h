// The inside of a Tracee, shared by tracee.cc (borrowing), tracee_wait.cc (stops)
// and tracee_inject.cc (injected calls). Private to this folder.
#pragma once

#include <sys/ptrace.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "agent/backend/linux/remote/arch/arch.h"
#include "agent/backend/linux/remote/tracee.h"
#include "base/fd.h"

namespace baton::linux_backend {

using Deadline = std::chrono::steady_clock::time_point;

struct StopEvent {
  bool gone = false;
  int signal = 0;
  int event = 0;                 // PTRACE_EVENT_*
  bool system_call = false;      // a PTRACE_SYSCALL stop
};

struct Tracee::Impl {
  ~Impl();

  pid_t tid = 0;
  bool seized = false;
  bool stopped = false;
  bool gone = false;
  bool group_stop = false;       // the process is stopped by a signal of its own
  bool in_trap = false;          // the stop is of a kind after which the kernel looks at signals again
  bool at_event_stop = false;    // a PTRACE_EVENT_STOP: PTRACE_LISTEN is possible
  int deliver_signal = 0;        // to be delivered when it runs again
  std::uint32_t options = 0;

  bool have_own = false, own_dirty = false;
  arch::Registers own{};
  bool have_mask = false, mask_dirty = false;
  std::uint64_t own_mask = 0;

  bool in_session = false;       // the slot is filled, the registers may be the slot's
  bool entered = false;          // the thread has the slot's registers
  pid_t session_process = 0;     // whose slot is in use
  std::uint64_t slot = 0;
  int marker_signal = 0;         // 0: the marker is watched with PTRACE_SYSCALL
  bool seccomp_suspended = false;
  bool slot_dirty = false;

  RemotePtr<std::byte> scratch{};
  std::size_t scratch_bytes = 0;   // behind them in the same mapping: the call records of batch
  std::vector<pid_t> new_children;
  Fd mem;                        // /proc/TID/mem

  std::string name() const { return "thread " + std::to_string(tid); }
  Error gone_error(const char* operation) const {
    return make_error(Code::kTraceeGone, operation, name() + ": it has ended");
  }

  // tracee_wait.cc
  Result<StopEvent> wait_event(Deadline deadline);  // kTimedOut
  Result<void> trace(int request, std::uintptr_t data);
  Result<void> go_on(bool watch_calls, int signal);
  Result<void> trap_again(Deadline deadline);       // from a system-call stop into a trap

  // tracee_inject.cc
  Result<void> load_own();
  Result<void> load_mask();
  Result<void> write_registers(const arch::Registers& regs);
  Result<arch::Registers> read_registers();
  Result<void> begin_session();
  Result<std::int64_t> run(const arch::Registers& entry);
  Result<void> end_session();                       // own registers and mask are back in the thread
  Result<void> open_mem();
  Result<void> poke(std::uint64_t at, std::span<const std::byte> bytes);
  Result<std::uint64_t> find_slot();
};

// Marks the calling thread (Tracee::thread_is_tainted).
void taint_thread();

}  // namespace baton::linux_backend
