// The last steps, once the memory has its content: what reads or points into it, what would
// have hindered the building (limits, credentials), and the registers. Afterwards the
// driver's area is gone and every thread stands where the kernel decides about restarting
// an interrupted call; it only has to be let go.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "agent/backend/linux/remote/arch/arch.h"
#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/restore/construction.h"
#include "agent/backend/linux/state/machine.h"
#include "base/clock.h"

namespace baton::restore {
namespace {

constexpr std::int64_t kRestartBlock = -516;
constexpr std::chrono::milliseconds kStopTime{20};
constexpr std::chrono::microseconds kStopLook{50};

std::string subject(const BuiltProcess& process) { return "process " + std::to_string(process.state->pid()); }

user_regs_struct registers_of(const pb::Thread& thread) {
  user_regs_struct regs{};
  std::memcpy(&regs, thread.registers().data(), std::min(thread.registers().size(), sizeof regs));
  return regs;
}

// A restartable sequence that the freeze interrupted is aborted, as any preemption would have.
Result<void> abort_sequence(Puppet& puppet, const pb::Thread& thread, user_regs_struct& regs) {
  if (thread.rseq() == 0) return {};
  std::uint64_t descriptor = 0;
  BATON_TRY(puppet.read(thread.rseq() + 8, std::as_writable_bytes(std::span(&descriptor, 1))));
  if (descriptor == 0) return {};
  struct { std::uint32_t version, flags; std::uint64_t start, bytes, abort; } section{};
  auto read = puppet.read(descriptor, std::as_writable_bytes(std::span(&section, 1)));
  if (read && regs.rip - section.start < section.bytes) regs.rip = section.abort;
  std::uint64_t none = 0;
  return puppet.write(thread.rseq() + 8, std::as_bytes(std::span(&none, 1)));
}

Result<void> register_sequences(Puppet& puppet, const pb::Thread& thread) {
  if (thread.rseq() == 0) return {};
  BATON_TRY(puppet.checked("rseq", "thread " + std::to_string(thread.tid()), SYS_rseq, {thread.rseq(), thread.rseq_bytes(), 0, thread.rseq_signature()}));
  return {};
}

Result<void> queue_signals(Puppet& puppet, const google::protobuf::RepeatedPtrField<std::string>& infos, pid_t pid, pid_t tid) {
  for (const auto& raw : infos) {
    siginfo_t info{};
    std::memcpy(&info, raw.data(), std::min(raw.size(), sizeof info));
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&info, 1))));
    auto u = [](int v) { return static_cast<std::uint64_t>(v); };
    std::string about = "signal " + std::to_string(info.si_signo) + " for " + std::to_string(tid != 0 ? tid : pid);
    if (tid != 0) BATON_TRY(puppet.checked("rt_tgsigqueueinfo", about, SYS_rt_tgsigqueueinfo, {u(pid), u(tid), u(info.si_signo), at}));
    else BATON_TRY(puppet.checked("rt_sigqueueinfo", about, SYS_rt_sigqueueinfo, {u(pid), u(info.si_signo), at}));
  }
  return {};
}

Result<void> set_limits(BuiltProcess& process) {
  for (const auto& limit : process.state->limits()) {
    rlimit64 wanted{limit.soft(), limit.hard()}, now{};
    pid_t pid = process.leader().pid();
    auto resource = static_cast<__rlimit_resource>(limit.resource());
    if (::prlimit64(pid, resource, nullptr, &now) == 0 && now.rlim_cur == wanted.rlim_cur && now.rlim_max == wanted.rlim_max) continue;
    if (::prlimit64(pid, resource, &wanted, nullptr) == 0) continue;
    if (errno != EPERM) return errno_error("prlimit", subject(process) + ", limit " + std::to_string(limit.resource()));
    // Above this warden's own, and no CAP_SYS_RESOURCE: as high as may be.
    wanted.rlim_max = std::min(wanted.rlim_max, now.rlim_max);
    wanted.rlim_cur = std::min(wanted.rlim_cur, wanted.rlim_max);
    if (::prlimit64(pid, resource, &wanted, nullptr) != 0) return errno_error("prlimit", subject(process) + ", limit " + std::to_string(limit.resource()));
  }
  return {};
}

Result<void> lock_memory(BuiltProcess& process) {
  constexpr long kMseal = 462;   // Linux 6.10
  for (const auto& m : process.state->mappings()) {
    bool locked = false, on_fault = false, sealed = false;
    for (const auto& flag : m.vm_flags()) {
      locked = locked || flag == "lo";
      on_fault = on_fault || flag == "lf";
      sealed = sealed || flag == "sl";
    }
    std::uint64_t bytes = m.end() - m.start();
    if (locked) BATON_TRY(process.leader().call(SYS_mlock2, {m.start(), bytes, on_fault ? 1ull : 0ull}));
    if (sealed) BATON_TRY(process.leader().checked("mseal", subject(process), kMseal, {m.start(), bytes, 0}));
  }
  if (process.state->lock_future() != 0) BATON_TRY(process.leader().checked("mlockall", subject(process), SYS_mlockall, {process.state->lock_future()}));
  return {};
}

// What is left of a call with a time limit (state/timed_calls.cc).
Result<void> set_time_left(Construction& c, Puppet& puppet, const pb::Thread& thread, user_regs_struct& regs) {
  if (thread.wait_call() == 0) return {};
  std::int64_t now = read_clock(CLOCK_MONOTONIC).count() + c.monotonic_shift_ns;
  std::int64_t left = std::max<std::int64_t>(0, static_cast<std::int64_t>(thread.wait_until_ns()) - now);
  if (thread.wait_timeout_at() != 0) {
    std::int64_t time[2] = {left / 1'000'000'000, left % 1'000'000'000};
    return puppet.write(thread.wait_timeout_at(), std::as_bytes(std::span(time)));
  }
  linux_backend::arch::TimedCall call;
  if (!linux_backend::arch::timed_call(regs, call)) return {};
  auto left_ms = static_cast<std::uint32_t>((left + 999'999) / 1'000'000);
  linux_backend::arch::set_time_argument(regs, call, (call.value & ~0xffffffffull) | left_ms);
  return {};
}

// Gives the kernel back its own notion of a relative sleep under way (its "restart block"),
// by making the call again for the time that is left and interrupting it.
Result<std::int64_t> sleep_again(Construction& c, Puppet& puppet, const pb::Thread& thread, const user_regs_struct& regs) {
  long number = thread.restart_call() != 0 ? thread.restart_call() : static_cast<long>(regs.orig_rax);
  if (number == SYS_restart_syscall) {
    BATON_TRY(puppet.stop_for_signals());
    return -EINTR;  // which call it was, nobody knows any more
  }
  std::uint64_t args[6] = {regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9};
  if (thread.has_sleep_left()) {
    std::int64_t gone = read_clock(CLOCK_MONOTONIC).count() + c.monotonic_shift_ns - static_cast<std::int64_t>(c.state.monotonic_ns());
    std::int64_t left = std::max<std::int64_t>(0, static_cast<std::int64_t>(thread.sleep_left_ns()) - gone);
    std::int64_t time[2] = {left / 1'000'000'000, left % 1'000'000'000};
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(time))));
    args[number == SYS_nanosleep ? 0 : 2] = at;
  }
  return puppet.interrupted_call(number, {args[0], args[1], args[2], args[3], args[4], args[5]});
}

// Leaves the thread in a stop from which the kernel goes on as after any signal check.
Result<void> come_to_rest(Construction& c, Puppet& puppet, const pb::Thread& thread, user_regs_struct& regs) {
  bool in_call = static_cast<std::int64_t>(regs.orig_rax) >= 0;
  if (in_call && static_cast<std::int64_t>(regs.rax) == kRestartBlock) {
    BATON_ASSIGN(std::int64_t value, sleep_again(c, puppet, thread, regs));
    regs.rax = static_cast<std::uint64_t>(value);
    return {};
  }
  BATON_TRY(set_time_left(c, puppet, thread, regs));
  return puppet.stop_for_signals();
}

// The saved image in this machine's layout: components may lie elsewhere here.
Result<std::vector<std::byte>> xsave_image(const pb::LinuxState& state, const pb::Thread& thread) {
  const std::string& from = thread.xsave();
  constexpr std::size_t kHeaderEnd = 576;
  if (from.size() < kHeaderEnd) return make_error(Code::kCorrupt, "build", "thread " + std::to_string(thread.tid()) + ": no extended registers");
  std::vector<std::byte> out(linux_backend::state::xsave_bytes());
  std::memcpy(out.data(), from.data(), kHeaderEnd);
  std::uint64_t used = 0;
  std::memcpy(&used, from.data() + 512, sizeof used);
  for (const auto& here : linux_backend::state::xsave_layout()) {
    if ((used >> here.number() & 1) == 0) continue;
    for (const auto& there : state.xsave_layout()) {
      if (there.number() != here.number()) continue;
      std::size_t bytes = std::min(there.bytes(), here.bytes());
      if (there.offset() + bytes > from.size() || here.offset() + bytes > out.size()) return make_error(Code::kCorrupt, "build", "extended registers out of range");
      std::memcpy(out.data() + here.offset(), from.data() + there.offset(), bytes);
    }
  }
  std::memset(out.data() + 520, 0, 56);  // XCOMP_BV and reserved: standard format
  return out;
}

}  // namespace

Result<void> finish_process(Construction& c, BuiltProcess& process) {
  const auto& state = *process.state;
  Puppet& leader = process.leader();
  std::vector<user_regs_struct> registers;
  for (int i = 0; i < state.threads_size(); ++i) {
    registers.push_back(registers_of(state.threads(i)));
    Puppet& puppet = process.threads[static_cast<std::size_t>(i)];
    BATON_TRY(abort_sequence(puppet, state.threads(i), registers.back()));
    BATON_TRY(register_sequences(puppet, state.threads(i)));
  }
  BATON_TRY(lock_memory(process));
  BATON_TRY(set_timers(c, process));
  for (int i = 0; i < state.threads_size(); ++i) {
    const auto& thread = state.threads(i);
    BATON_TRY(queue_signals(process.threads[static_cast<std::size_t>(i)], thread.pending_signals(), state.pid(), thread.tid()));
  }
  BATON_TRY(queue_signals(leader, state.pending_signals(), state.pid(), 0));
  BATON_TRY(set_limits(process));   // while it still is who we are
  BATON_TRY(set_options(c, process));
  BATON_TRY(take_identity(process));

  for (int i = static_cast<int>(process.threads.size()) - 1; i >= 0; --i) {  // the leader last: it takes the area away
    auto at = static_cast<std::size_t>(i);
    BATON_TRY(come_to_rest(c, process.threads[at], state.threads(i), registers[at]));
  }
  std::uint64_t vdso = 0;
  for (const auto& m : state.mappings()) {
    if (m.kind() == pb::MAPPING_VDSO) vdso = m.start();
  }
  std::uint64_t gadget = vdso + vdso_syscall_offset();
  for (const auto& action : state.actions()) {
    if (action.signal() != SIGTRAP) continue;
    std::uint64_t raw[4] = {action.handler(), action.flags(), action.restorer(), action.mask()};
    BATON_ASSIGN(std::uint64_t at, leader.put(std::as_bytes(std::span(raw))));
    BATON_TRY(leader.call_at(gadget, SYS_rt_sigaction, {SIGTRAP, at, 0, 8}));
  }
  BATON_ASSIGN(std::int64_t gone, leader.call_at(gadget, SYS_munmap, {c.area, kAreaBytes}));
  if (gone < 0) return errno_error(static_cast<int>(-gone), "munmap", "the driver's area");
  BATON_TRY(leader.stop_for_signals());

  for (int i = 0; i < state.threads_size(); ++i) {
    auto at = static_cast<std::size_t>(i);
    Puppet& puppet = process.threads[at];
    BATON_ASSIGN(auto image, xsave_image(c.state, state.threads(i)));
    BATON_TRY(puppet.set_xsave(image));
    BATON_TRY(puppet.set_registers(registers[at]));
    BATON_TRY(puppet.set_mask(state.threads(i).blocked()));
  }
  if (state.stopped() && ::kill(leader.pid(), SIGSTOP) != 0) return errno_error("stop", subject(process));
  return {};
}

// A pending SIGSTOP takes hold once the process runs.
void await_stop(pid_t pid) {
  const auto until = std::chrono::steady_clock::now() + kStopTime;
  do {
    auto status = linux_backend::read_task_status(pid);
    if (!status || status->state == 'T') return;
    std::this_thread::sleep_for(kStopLook);
  } while (std::chrono::steady_clock::now() < until);
}

Result<void> release_process(BuiltProcess& process) {
  for (auto& puppet : process.threads) BATON_TRY(puppet.release());
  return {};
}

}  // namespace baton::restore
