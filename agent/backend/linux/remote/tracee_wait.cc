// Stops of a traced thread: asking for one, waiting with a deadline, going on.
//
// Every wait is made with WNOWAIT: a plain wait takes the signal out of the stop,
// and should this process die before it hands the signal back, the program would
// have lost it. Only an exit is really reaped.
#include <sys/wait.h>
#include <time.h>

#include <cerrno>
#include <csignal>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/tracee_impl.h"

namespace baton::linux_backend {
namespace {
using std::chrono::steady_clock;

// A stop usually takes 30 to 40 µs. Beyond that the CPU is better left to the thread that is
// to stop; yielding it instead would, on a busy machine, give it to anybody else first.
constexpr auto kSpin = std::chrono::microseconds(60);
constexpr auto kShortNaps = std::chrono::milliseconds(5);
constexpr auto kZombieCheck = std::chrono::milliseconds(20);
}  // namespace

Result<StopEvent> Tracee::Impl::wait_event(Deadline deadline) {
  auto start = steady_clock::now();
  auto next_zombie_check = start + kZombieCheck;
  long sleep_ns = 20'000;
  constexpr long kShortNapNs = 100'000, kLongNapNs = 1'000'000;
  for (;;) {
    siginfo_t info{};
    int rc = ::waitid(P_PID, static_cast<id_t>(tid), &info,
                      WSTOPPED | WEXITED | __WALL | WNOHANG | WNOWAIT);
    if (rc < 0) {
      if (errno == EINTR) continue;
      if (errno == ECHILD) {
        gone = true;
        seized = false;
        return StopEvent{.gone = true};
      }
      return errno_error("waitid", name());
    }
    if (info.si_pid != 0) {
      if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED) {
        int status = 0;
        ::waitpid(tid, &status, __WALL | WNOHANG);
        gone = true;
        seized = false;
        stopped = false;
        return StopEvent{.gone = true};
      }
      StopEvent e;
      e.event = (info.si_status >> 8) & 0xff;
      e.signal = info.si_status & 0x7f;
      e.system_call = (info.si_status & 0xff) == (SIGTRAP | 0x80);
      return e;
    }
    auto now = steady_clock::now();
    if (now >= deadline) {
      return make_error(Code::kTimedOut, "wait for stop",
                        name() + ": does not stop (in an uninterruptible wait, such as a parent in vfork)");
    }
    if (now >= next_zombie_check) {
      // A leader that has exited reports nothing while other threads of its process live.
      next_zombie_check = now + kZombieCheck;
      auto status = read_task_status(tid);
      if (status && (status->state == 'Z' || status->state == 'X')) {
        siginfo_t again{};
        if (::waitid(P_PID, static_cast<id_t>(tid), &again, WEXITED | __WALL | WNOHANG | WNOWAIT) == 0 &&
            again.si_pid != 0) {
          continue;
        }
        gone = true;
        taint_thread();
        return StopEvent{.gone = true};
      }
    }
    if (now - start >= kSpin) {
      timespec ts{0, sleep_ns};
      ::nanosleep(&ts, nullptr);
      if (sleep_ns < (now - start < kShortNaps ? kShortNapNs : kLongNapNs)) sleep_ns *= 2;
    }
  }
}

Result<void> Tracee::Impl::trace(int request, std::uintptr_t data) {
  if (::ptrace(static_cast<__ptrace_request>(request), tid, nullptr, data) < 0) {
    return errno_error("ptrace", name());
  }
  return {};
}

Result<void> Tracee::Impl::go_on(bool watch_calls, int signal) {
  in_trap = false;
  at_event_stop = false;
  BATON_TRY(trace(watch_calls ? PTRACE_SYSCALL : PTRACE_CONT, static_cast<std::uintptr_t>(signal)));
  stopped = false;
  return {};
}

Result<void> Tracee::Impl::trap_again(Deadline deadline) {
  BATON_TRY(trace(PTRACE_INTERRUPT, 0));
  int signal = std::exchange(deliver_signal, 0);
  BATON_TRY(go_on(false, 0));
  deliver_signal = signal;
  for (;;) {
    BATON_ASSIGN(StopEvent e, wait_event(deadline));
    if (e.gone) return gone_error("stop");
    stopped = true;
    if (e.event == PTRACE_EVENT_STOP) {
      group_stop = e.signal != SIGTRAP;
      in_trap = at_event_stop = true;
      return {};
    }
    if (e.event == 0 && !e.system_call) deliver_signal = e.signal;
    signal = std::exchange(deliver_signal, 0);
    BATON_TRY(go_on(false, 0));
    deliver_signal = signal;
  }
}

Result<void> Tracee::request_stop() {
  if (impl_->stopped) return {};
  if (impl_->gone) return impl_->gone_error("stop");
  return impl_->trace(PTRACE_INTERRUPT, 0);
}

Result<void> Tracee::await_stop(std::chrono::nanoseconds timeout) {
  Impl& t = *impl_;
  if (t.stopped) return {};
  Deadline deadline = steady_clock::now() + timeout;
  for (;;) {
    BATON_ASSIGN(StopEvent e, t.wait_event(deadline));
    if (e.gone) return t.gone_error("stop");
    t.stopped = true;
    if (!t.in_session) t.have_own = t.have_mask = t.own_dirty = t.mask_dirty = false;
    if (e.event == PTRACE_EVENT_STOP) {
      t.group_stop = e.signal != SIGTRAP;
      t.in_trap = t.at_event_stop = true;
      return {};
    }
    if (e.event == PTRACE_EVENT_CLONE || e.event == PTRACE_EVENT_FORK || e.event == PTRACE_EVENT_VFORK) {
      unsigned long child = 0;
      if (::ptrace(PTRACE_GETEVENTMSG, t.tid, nullptr, &child) == 0) {
        t.new_children.push_back(static_cast<pid_t>(child));
      }
    }
    // A signal on its way is delivered now; the interrupt comes next, before any code of the program.
    BATON_TRY(t.go_on(false, e.event == 0 && !e.system_call ? e.signal : 0));
  }
}

Result<void> Tracee::stop(std::chrono::nanoseconds timeout) {
  BATON_TRY(request_stop());
  return await_stop(timeout);
}

}  // namespace baton::linux_backend
