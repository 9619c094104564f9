// What only a stopped thread tells: registers, masks and queues by ptrace(2); the rest by
// system calls injected into it, all of a thread in one batch.
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::int64_t kRestartBlock = -516;     // -ERESTART_RESTARTBLOCK
constexpr int kSignals = 64;
constexpr std::size_t kScratchBytes = 16384;
// Where answers land in the scratch area.
constexpr std::size_t kStackAt = 0, kWordsAt = 64, kItimersAt = 256, kActionsAt = 512, kPosixAt = 4096;
constexpr std::size_t kActionBytes = 32;         // handler, flags, restorer, mask
constexpr std::size_t kMaxPosixTimers = (kScratchBytes - kPosixAt) / sizeof(itimerspec);

struct PosixLine { int id = 0, signal = 0, notify = 0, thread = 0, clock = 0; std::uint64_t value = 0; };

// /proc/PID/timers (proc_pid_timers: "ID:", "signal: N/VALUE", "notify: KIND/pid.PID", "ClockID:").
std::vector<PosixLine> read_posix_timers(pid_t pid, pid_t ns_pid) {
  std::vector<PosixLine> timers;
  auto text = read_proc("/proc/" + std::to_string(pid) + "/timers");
  if (!text) return timers;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("ID: ", 0) == 0) {
      timers.emplace_back();
      timers.back().id = std::atoi(line.c_str() + 4);
    } else if (!timers.empty() && line.rfind("signal: ", 0) == 0) {
      timers.back().signal = std::atoi(line.c_str() + 8);
      auto slash = line.find('/');
      if (slash != std::string::npos) timers.back().value = std::strtoull(line.c_str() + slash + 1, nullptr, 16);
    } else if (!timers.empty() && line.rfind("notify: ", 0) == 0) {
      auto& t = timers.back();
      t.notify = line.find("signal/") != std::string::npos ? SIGEV_SIGNAL
                 : line.find("thread/") != std::string::npos ? SIGEV_THREAD : SIGEV_NONE;
      auto dot = line.rfind('.');
      if (line.find("/tid.") != std::string::npos && dot != std::string::npos) {
        t.notify |= SIGEV_THREAD_ID;
        t.thread = std::atoi(line.c_str() + dot + 1);   // by the reader's PID namespace; put right below
      }
    } else if (!timers.empty() && line.rfind("ClockID: ", 0) == 0) {
      timers.back().clock = std::atoi(line.c_str() + 9);
    }
  }
  (void)ns_pid;
  return timers;
}

pid_t tid_inside(pid_t tid) {
  auto status = read_task_status(tid);
  return status && !status->ns_tids.empty() ? status->ns_tids.back() : tid;
}

Result<void> read_queue(pid_t tid, bool shared, google::protobuf::RepeatedPtrField<std::string>* out) {
  struct { std::uint64_t offset; std::uint32_t flags; std::int32_t count; } args{0, shared ? 1u : 0u, 16};
  for (;;) {
    siginfo_t infos[16];
    long got = ::ptrace(static_cast<__ptrace_request>(0x4209 /* PTRACE_PEEKSIGINFO */), tid, &args, infos);
    if (got < 0) {
      if (errno == ESRCH) return make_error(Code::kTraceeGone, "read signals", "thread " + std::to_string(tid));
      return errno_error("PTRACE_PEEKSIGINFO", "thread " + std::to_string(tid));
    }
    for (long i = 0; i < got; ++i) *out->Add() = std::string(reinterpret_cast<const char*>(&infos[i]), sizeof(siginfo_t));
    if (got < args.count) return {};
    args.offset += static_cast<std::uint64_t>(got);
  }
}

void read_scheduling(pid_t tid, pb::Thread& out) {
  struct {
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attr{};
  attr.size = sizeof attr;
  if (::syscall(SYS_sched_getattr, tid, &attr, sizeof attr, 0) == 0) {
    auto& s = *out.mutable_scheduling();
    s.set_policy(attr.policy);
    s.set_flags(attr.flags);
    s.set_nice(attr.nice);
    s.set_priority(attr.priority);
    s.set_runtime_ns(attr.runtime);
    s.set_deadline_ns(attr.deadline);
    s.set_period_ns(attr.period);
  }
  unsigned char mask[1024 / 8 * 8];
  long bytes = ::syscall(SYS_sched_getaffinity, tid, sizeof mask, mask);
  if (bytes > 0) out.set_affinity(mask, static_cast<std::size_t>(bytes));
  long io = ::syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, tid);
  if (io > 0) out.set_io_priority(static_cast<std::int32_t>(io));
}

// What is left of a relative sleep, where the program gave the kernel a place to say so.
Result<void> read_sleep(Tracee& tracee, const user_regs_struct& regs, int call, pb::Thread& out) {
  std::uint64_t at = call == SYS_nanosleep ? regs.rsi : call == SYS_clock_nanosleep && regs.rsi == 0 ? regs.r10 : 0;
  if (at == 0) return {};
  std::int64_t left[2] = {};
  auto got = tracee.read({at}, std::as_writable_bytes(std::span(left)));
  if (!got || left[0] < 0 || left[1] < 0 || left[1] >= 1'000'000'000) return {};
  out.set_has_sleep_left(true);
  out.set_sleep_left_ns(static_cast<std::uint64_t>(left[0]) * 1'000'000'000u + static_cast<std::uint64_t>(left[1]));
  return {};
}

Result<void> read_now(StoppedThread& thread, StateContext::Impl& context, pb::Thread& out) {
  Tracee& tracee = *thread.tracee;
  BATON_ASSIGN(auto registers, tracee.general_registers());
  out.set_registers(registers.data(), registers.size());
  BATON_ASSIGN(auto xsave, tracee.extended_state());
  out.set_xsave(xsave.data(), xsave.size());
  BATON_ASSIGN(std::uint64_t blocked, tracee.signal_mask());
  out.set_blocked(blocked);
  BATON_TRY(read_queue(thread.tid, false, out.mutable_pending_signals()));

  user_regs_struct regs{};
  std::memcpy(&regs, registers.data(), std::min(registers.size(), sizeof regs));
  if (static_cast<std::int64_t>(regs.orig_rax) >= 0 && static_cast<std::int64_t>(regs.rax) == kRestartBlock) {
    int call = static_cast<int>(regs.orig_rax);
    if (call == SYS_restart_syscall) {
      auto known = context.restart_calls.find(thread.tid);
      call = known == context.restart_calls.end() ? 0 : known->second;
    } else {
      context.restart_calls[thread.tid] = call;
    }
    if (call != 0) {
      out.set_restart_call(call);
      BATON_TRY(read_sleep(tracee, regs, call, out));
    }
  } else {
    context.restart_calls.erase(thread.tid);
  }
  return keep_time(tracee, context, context.workload_shift_ns, out);
}

Result<void> read_outside(StoppedThread& thread, pb::Thread& out, StatusFacts& facts) {
  std::uint64_t head = 0;
  std::size_t bytes = 0;
  if (::syscall(SYS_get_robust_list, thread.tid, &head, &bytes) == 0 && head != 0) {
    out.set_robust_list(head);
    out.set_robust_list_bytes(bytes);
  }
  struct { std::uint64_t pointer; std::uint32_t size, signature, flags, pad; } rseq{};
  if (::ptrace(static_cast<__ptrace_request>(0x420f /* PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13 */), thread.tid, sizeof rseq, &rseq) > 0 && rseq.pointer != 0) {
    out.set_rseq(rseq.pointer);
    out.set_rseq_bytes(rseq.size);
    out.set_rseq_signature(rseq.signature);
  }
  BATON_ASSIGN(std::string comm, read_proc("/proc/" + std::to_string(thread.tid) + "/comm"));
  if (!comm.empty() && comm.back() == '\n') comm.pop_back();
  out.set_comm(comm);
  read_changeable(thread.tid, out);
  return read_credentials(thread.tid, *out.mutable_credentials(), facts);
}

RemoteCall call(long number, std::initializer_list<std::uint64_t> args) {
  RemoteCall c;
  c.number = number;
  std::size_t i = 0;
  for (std::uint64_t a : args) c.args[i++] = a;
  return c;
}

std::uint64_t word(const std::vector<std::byte>& area, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, area.data() + at, sizeof value);
  return value;
}
std::uint32_t half(const std::vector<std::byte>& area, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, area.data() + at, sizeof value);
  return value;
}

// One batch in each thread; the leader also answers for its process.
Result<void> read_inside(StoppedProcess& process, StoppedThread& thread, bool leader,
                         const std::vector<PosixLine>& timers, pb::ProcessState& state, pb::Thread& out) {
  Tracee& tracee = *thread.tracee;
  BATON_ASSIGN(auto area_at, tracee.scratch(kScratchBytes));
  std::uint64_t area = area_at.address;
  std::vector<RemoteCall> calls = {
      call(SYS_sigaltstack, {0, area + kStackAt}),
      call(SYS_prctl, {PR_GET_PDEATHSIG, area + kWordsAt}),
      call(SYS_prctl, {PR_GET_TSC, area + kWordsAt + 8}),
      call(SYS_prctl, {PR_GET_TID_ADDRESS, area + kWordsAt + 16}),
      call(SYS_prctl, {PR_GET_SECUREBITS}),
      call(SYS_prctl, {PR_MCE_KILL_GET, 0, 0, 0, 0}),
  };
  constexpr std::size_t kSecurebits = 4, kMce = 5, kOwn = 6;
  if (leader) {
    calls.push_back(call(SYS_prctl, {PR_GET_CHILD_SUBREAPER, area + kWordsAt + 24}));   // kOwn
    calls.push_back(call(SYS_prctl, {PR_GET_THP_DISABLE, 0, 0, 0, 0}));
    calls.push_back(call(SYS_prctl, {PR_GET_DUMPABLE}));
    for (std::uint64_t which = 0; which < 3; ++which) calls.push_back(call(SYS_getitimer, {which, area + kItimersAt + which * sizeof(itimerval)}));
    for (std::uint64_t s = 1; s <= kSignals; ++s) {
      if (s == SIGKILL || s == SIGSTOP) continue;
      calls.push_back(call(SYS_rt_sigaction, {s, 0, area + kActionsAt + (s - 1) * kActionBytes, 8}));
    }
    for (std::size_t i = 0; i < timers.size(); ++i) {
      calls.push_back(call(SYS_timer_gettime, {static_cast<std::uint64_t>(timers[i].id), area + kPosixAt + i * sizeof(itimerspec)}));
    }
    for (const auto& timer : timers) calls.push_back(call(SYS_timer_getoverrun, {static_cast<std::uint64_t>(timer.id)}));
  }
  const std::size_t options_at = calls.size();
  ask_options(leader, calls);
  BATON_ASSIGN(auto answers, tracee.batch(calls, false));
  take_options(leader, std::span(answers).subspan(options_at), state, out);
  answers.resize(options_at);
  std::vector<std::byte> got(leader ? kScratchBytes : kItimersAt);
  BATON_TRY(tracee.read({area}, got));

  out.set_altstack_sp(word(got, kStackAt));
  out.set_altstack_flags(half(got, kStackAt + 8));
  out.set_altstack_bytes(word(got, kStackAt + 16));
  out.set_pdeathsig(half(got, kWordsAt));
  out.set_tsc_mode(half(got, kWordsAt + 8));
  if (answers[3] < 0) return make_error(Code::kUnsupported, "capture", "thread " + std::to_string(thread.tid) + ": PR_GET_TID_ADDRESS is not in this kernel", "CONFIG_CHECKPOINT_RESTORE is needed.");
  out.set_clear_child_tid(word(got, kWordsAt + 16));
  if (answers[kSecurebits] > 0) out.mutable_credentials()->set_securebits(static_cast<std::uint32_t>(answers[kSecurebits]));
  out.set_mce_kill(answers[kMce] >= 0 ? static_cast<std::uint32_t>(answers[kMce]) : PR_MCE_KILL_DEFAULT);
  if (!leader) return {};

  state.set_child_subreaper(half(got, kWordsAt + 24) != 0);
  state.set_thp_disable(answers[kOwn + 1] == 1);
  state.set_dumpable(answers[kOwn + 2] >= 0 ? static_cast<std::uint32_t>(answers[kOwn + 2]) : 1);
  for (unsigned which = 0; which < 3; ++which) {
    itimerval value{};
    std::memcpy(&value, got.data() + kItimersAt + which * sizeof value, sizeof value);
    const std::uint64_t left = static_cast<std::uint64_t>(value.it_value.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(value.it_value.tv_usec) * 1000u;
    const std::uint64_t interval = static_cast<std::uint64_t>(value.it_interval.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(value.it_interval.tv_usec) * 1000u;
    if (left == 0 && interval == 0) continue;
    auto& timer = *state.add_itimers();
    timer.set_which(which);
    // Between its expiry and the delivery of its signal, which arms it again, a repeating timer
    // shows nothing left: due at once, then; its signal merges with the one that is pending.
    timer.set_left_ns(left == 0 ? 1 : left);
    timer.set_interval_ns(interval);
  }
  for (unsigned s = 1; s <= kSignals; ++s) {
    if (s == SIGKILL || s == SIGSTOP) continue;
    std::size_t at = kActionsAt + (s - 1) * kActionBytes;
    if (word(got, at) == 0 && word(got, at + 8) == 0 && word(got, at + 24) == 0) continue;
    auto& action = *state.add_actions();
    action.set_signal(s);
    action.set_handler(word(got, at));
    action.set_flags(word(got, at + 8));
    action.set_restorer(word(got, at + 16));
    action.set_mask(word(got, at + 24));
  }
  for (std::size_t i = 0; i < timers.size(); ++i) {
    itimerspec value{};
    std::memcpy(&value, got.data() + kPosixAt + i * sizeof value, sizeof value);
    auto& timer = *state.add_posix_timers();
    timer.set_id(timers[i].id);
    timer.set_clock(timers[i].clock);
    timer.set_notify(static_cast<std::uint32_t>(timers[i].notify));
    timer.set_signal(timers[i].signal);
    timer.set_value(timers[i].value);
    timer.set_thread((timers[i].notify & SIGEV_THREAD_ID) != 0 ? timers[i].thread : 0);
    timer.set_left_ns(static_cast<std::uint64_t>(value.it_value.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(value.it_value.tv_nsec));
    timer.set_interval_ns(static_cast<std::uint64_t>(value.it_interval.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(value.it_interval.tv_nsec));
    std::int64_t overrun = answers[answers.size() - timers.size() + i];
    if (overrun > 0) timer.set_overrun(static_cast<std::int32_t>(overrun));
  }
  (void)process;
  return {};
}

}  // namespace

void read_changeable(pid_t tid, pb::Thread& out) {
  if (auto slack = read_proc("/proc/" + std::to_string(tid) + "/timerslack_ns")) {
    out.set_timer_slack_ns(std::strtoull(slack->c_str(), nullptr, 10));
  }
  read_scheduling(tid, out);
}

Result<void> read_threads_now(StoppedProcess& process, StateContext::Impl& context, pb::ProcessState& out) {
  bool first = true;
  for (auto& thread : process.threads) {
    if (thread.tracee == nullptr) {
      return make_error(Code::kUnsupported, "capture", "process " + std::to_string(process.pid) + ": its first thread has ended while others run on");
    }
    auto known = context.tids.find(thread.tid);
    if (known == context.tids.end()) {
      known = context.tids.emplace(thread.tid, first ? out.pid() : tid_inside(thread.tid)).first;
    }
    auto& state = *out.add_threads();
    state.set_tid(known->second);
    BATON_TRY(read_now(thread, context, state));
    if (first) {
      BATON_TRY(read_queue(thread.tid, true, out.mutable_pending_signals()));
      out.set_stopped(thread.tracee->group_stopped());
    }
    first = false;
  }
  return {};
}

Result<void> read_threads(StoppedProcess& process, StateContext::Impl& context, pb::LinuxState& machine, pb::ProcessState& out) {
  std::vector<PosixLine> timers = read_posix_timers(process.pid, process.ns_pid);
  if (timers.size() > kMaxPosixTimers) {
    return make_error(Code::kUnsupported, "capture", "process " + std::to_string(process.pid) + ": more than " + std::to_string(kMaxPosixTimers) + " POSIX timers");
  }
  for (auto& timer : timers) {
    if ((timer.notify & SIGEV_THREAD_ID) != 0) timer.thread = tid_inside(timer.thread);
  }
  std::sort(timers.begin(), timers.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  bool first = true;
  for (auto& thread : process.threads) {
    auto& state = *out.add_threads();
    state.set_tid(context.tids.at(thread.tid));
    StatusFacts facts;
    BATON_TRY(read_outside(thread, state, facts));
    BATON_TRY(read_inside(process, thread, first, timers, out, state));
    if (first && facts.locked_kib != 0) {
      BATON_ASSIGN(auto scratch, thread.tracee->scratch(kScratchBytes));
      BATON_TRY(read_lock_future(process.pid, facts.locked_kib, scratch.address, context, out));
    }
    BATON_TRY(read_seccomp(thread.tid, facts.seccomp, machine, state));
    BATON_TRY(check_dispatch(thread.tid));
    first = false;
  }
  return {};
}

}  // namespace baton::linux_backend::state
