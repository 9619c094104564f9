// Tracee: one thread of another process, seized by ptrace(2), and borrowed: its
// registers, its memory and its system calls. Whatever happens, the thread gets
// back its own registers, bytes and running state (destructor included); should
// this process die, injected code ends by itself in rt_sigreturn over the saved
// frame and the kernel detaches the thread, which runs on.
//
// Threads: all calls from the thread that seized it (ptrace binds to a thread).
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"

namespace baton::linux_backend {

// An address in another process.
template <typename T = void>
struct RemotePtr {
  std::uint64_t address = 0;
  template <typename U>
  RemotePtr<U> as() const { return {address}; }
  RemotePtr operator+(std::uint64_t bytes) const { return {address + bytes}; }
  explicit operator bool() const { return address != 0; }
};

// One system call to inject. Arguments beyond those given are zero.
struct RemoteCall {
  long number = 0;
  std::array<std::uint64_t, 6> args{};
};

class Tracee {
 public:
  // PTRACE_SEIZE. Fails: kTraceeGone, kConflict (already traced: names the tracer), kNotAllowed.
  static Result<Tracee> seize(pid_t tid);
  // Takes over a thread that is already our stopped ptrace tracee (a child built by restore).
  static Result<Tracee> adopt(pid_t tid);

  Tracee(Tracee&&) noexcept;
  Tracee& operator=(Tracee&&) noexcept;
  ~Tracee();                       // restores registers, detaches, lets it run

  pid_t tid() const;
  bool stopped() const;

  // PTRACE_INTERRUPT and the wait for the stop; stops that carry a signal are kept and
  // delivered at resume. Fails: kTraceeGone, kTimedOut.
  Result<void> stop(std::chrono::nanoseconds timeout = std::chrono::seconds(5));
  // The two halves, so that many threads stop in parallel.
  Result<void> request_stop();
  Result<void> await_stop(std::chrono::nanoseconds timeout = std::chrono::seconds(5));
  Result<void> resume();           // stays seized
  Result<void> detach();           // gives everything back
  // As detach, but a thread that does not stop within `timeout` is left to the end of the
  // calling thread, which is tainted then.
  void let_go(std::chrono::nanoseconds timeout);

  // Injected system calls, in the stopped thread. The value as the kernel returned it
  // (-errno for errors) in syscall(); checked() turns -errno into an Error naming `what`.
  Result<std::int64_t> syscall(long number, std::initializer_list<std::uint64_t> args = {});
  Result<std::uint64_t> checked(const char* what, long number,
                                std::initializer_list<std::uint64_t> args = {});
  // Many calls in one stop, by a small injected loop; answers one value per call and stops
  // at the first failing one when `stop_at_error` (then fewer answers than calls).
  Result<std::vector<std::int64_t>> batch(std::span<const RemoteCall> calls, bool stop_at_error);

  // Children that injected clone calls made, in order of birth; emptied by the call. They are
  // told of only with PTRACE_O_TRACECLONE and the like in options, are then traced by us
  // and await adopt().
  std::vector<pid_t> take_new_children();
  // PTRACE_O_* flags for this thread, kept until detach. PTRACE_O_SUSPEND_SECCOMP is added by
  // itself while calls are injected into a thread with a seccomp filter.
  Result<void> set_options(std::uint32_t options);

  // A page-aligned area inside the target that injected calls may use for arguments
  // (mapped on first use, unmapped at detach or by release_scratch). Its mapping is never captured.
  Result<RemotePtr<std::byte>> scratch(std::size_t bytes);
  Result<void> release_scratch();

  // All or nothing. Fails: kTraceeGone, kFailed (EFAULT).
  Result<void> read(RemotePtr<const void> from, std::span<std::byte> out);
  Result<void> write(RemotePtr<void> to, std::span<const std::byte> bytes);
  template <typename T>
  Result<T> read_value(RemotePtr<T> from) {
    T value{};
    BATON_TRY(read({from.address}, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  // Register images: NT_PRSTATUS (user_regs_struct) and NT_X86_XSTATE (raw xsave area).
  // get_* answer the thread's own values as of its stop, never those of injected code.
  Result<std::vector<std::byte>> general_registers();
  Result<std::vector<std::byte>> extended_state();
  Result<void> set_general_registers(std::span<const std::byte> image);  // take effect at resume
  Result<void> set_extended_state(std::span<const std::byte> image);
  // The thread's own blocked signals (bit 0: signal 1), never those of injected code.
  Result<std::uint64_t> signal_mask();
  Result<void> set_signal_mask(std::uint64_t mask);  // takes effect at resume

  // The stop was a group-stop (SIGSTOP and the like): the process stays stopped after detach.
  bool group_stopped() const;

  // True once a tracee of the calling thread could not be given back (it would not stop, or is
  // an exited leader that still has threads): only the end of this thread frees it then.
  static bool thread_is_tainted();

  struct Impl;

 private:
  explicit Tracee(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::linux_backend
