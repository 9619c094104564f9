// What a process and its threads are besides memory and descriptors, as far as it can be set
// before the memory has its content.
#include <fcntl.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

std::string subject(const BuiltProcess& process) { return "process " + std::to_string(process.state->pid()); }

Result<void> write_proc(pid_t pid, const char* file, const std::string& text, bool required) {
  std::string path = "/proc/" + std::to_string(pid) + "/" + file;
  auto fd = open_file(path, O_WRONLY);
  if (!fd) return required ? Result<void>(std::move(fd).error()) : Result<void>();
  if (::write(fd->get(), text.data(), text.size()) < 0 && required) return errno_error("write", path);
  return {};
}

Result<void> set_actions(BuiltProcess& process) {
  Puppet& puppet = process.leader();
  std::vector<PuppetRecord> calls;
  std::uint64_t at = 0;
  for (const auto& action : process.state->actions()) {
    if (action.signal() == SIGTRAP) continue;  // the driver needs it; see activation.cc
    std::uint64_t raw[4] = {action.handler(), action.flags(), action.restorer(), action.mask()};
    BATON_ASSIGN(std::uint64_t address, puppet.put(std::as_bytes(std::span(raw)), at));
    at += sizeof raw;
    PuppetRecord r;
    r.number = SYS_rt_sigaction;
    r.args[0] = action.signal();
    r.args[1] = address;
    r.args[3] = 8;
    calls.push_back(r);
  }
  BATON_ASSIGN(std::size_t done, puppet.batch(calls));
  if (done > 0 && calls[done - 1].answer < 0) return errno_error(static_cast<int>(-calls[done - 1].answer), "rt_sigaction", subject(process));
  return {};
}

Result<void> set_scheduling(const Puppet& puppet, const pb::Thread& thread) {
  struct {
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attr{};
  static_assert(sizeof attr == 48);
  const auto& s = thread.scheduling();
  // Affinity first: a deadline task may not be confined afterwards. CPUs that are not here fall away.
  if (!thread.affinity().empty()) ::syscall(SYS_sched_setaffinity, puppet.pid(), thread.affinity().size(), thread.affinity().data());
  attr.size = sizeof attr;
  attr.policy = s.policy();
  attr.flags = s.flags() & 1;  // SCHED_FLAG_RESET_ON_FORK
  attr.nice = s.nice();
  attr.priority = s.priority();
  attr.runtime = s.runtime_ns();
  attr.deadline = s.deadline_ns();
  attr.period = s.period_ns();
  if (::syscall(SYS_sched_setattr, puppet.pid(), &attr, 0) != 0) {
    return errno_error("sched_setattr", "thread " + std::to_string(thread.tid()) + ", policy " + std::to_string(s.policy()));
  }
  if (thread.io_priority() != 0) ::syscall(SYS_ioprio_set, 1, puppet.pid(), thread.io_priority());
  return {};
}

Result<void> set_thread(Puppet& puppet, const pb::Thread& thread) {
  std::string about = "thread " + std::to_string(thread.tid());
  if (thread.altstack_sp() != 0 && (thread.altstack_flags() & SS_DISABLE) == 0) {
    struct { std::uint64_t sp; std::int32_t flags; std::int32_t pad; std::uint64_t bytes; } stack{
        thread.altstack_sp(), static_cast<std::int32_t>(thread.altstack_flags() & (1u << 31)), 0, thread.altstack_bytes()};
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&stack, 1))));
    BATON_TRY(puppet.checked("sigaltstack", about, SYS_sigaltstack, {at, 0}));
  }
  BATON_TRY(puppet.checked("set_robust_list", about, SYS_set_robust_list, {thread.robust_list(), 24}));
  BATON_TRY(puppet.checked("set_tid_address", about, SYS_set_tid_address, {thread.clear_child_tid()}));
  BATON_ASSIGN(std::uint64_t name, puppet.put(thread.comm()));
  BATON_TRY(puppet.checked("PR_SET_NAME", about, SYS_prctl, {PR_SET_NAME, name}));
  if (thread.timer_slack_ns() != 0) BATON_TRY(puppet.call(SYS_prctl, {PR_SET_TIMERSLACK, thread.timer_slack_ns()}));
  if (thread.tsc_mode() == PR_TSC_SIGSEGV) BATON_TRY(puppet.checked("PR_SET_TSC", about, SYS_prctl, {PR_SET_TSC, PR_TSC_SIGSEGV}));
  if (thread.mce_kill() != PR_MCE_KILL_DEFAULT) BATON_TRY(puppet.call(SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_SET, thread.mce_kill()}));
  return set_scheduling(puppet, thread);
}

Result<void> set_option(Puppet& puppet, const pb::ProcessOption& option, const std::string& about) {
  BATON_TRY(puppet.checked("prctl", about + ", option " + std::to_string(option.option()), SYS_prctl, {option.option(), option.second(), option.third(), 0, 0}));
  return {};
}

}  // namespace

Result<void> enter_folder(BuiltProcess& process) {
  Puppet& puppet = process.leader();
  BATON_ASSIGN(std::uint64_t cwd, puppet.put(process.state->cwd()));
  BATON_TRY(puppet.checked("enter working directory", process.state->cwd(), SYS_chdir, {cwd}));
  return {};
}

Result<void> set_attributes(Construction& c, BuiltProcess& process) {
  const auto& state = *process.state;
  Puppet& puppet = process.leader();
  if (!in_volume(c, state.cwd())) BATON_TRY(enter_folder(process));   // else: at activation
  if (!state.root().empty() && state.root() != "/") {
    BATON_ASSIGN(std::uint64_t root, puppet.put(state.root()));
    BATON_TRY(puppet.checked("chroot", state.root(), SYS_chroot, {root}));
  }
  BATON_TRY(puppet.call(SYS_umask, {state.umask()}));
  BATON_TRY(set_actions(process));
  if (state.child_subreaper()) BATON_TRY(puppet.checked("PR_SET_CHILD_SUBREAPER", subject(process), SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1}));
  if (state.thp_disable()) BATON_TRY(puppet.call(SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0}));
  BATON_TRY(puppet.call(SYS_personality, {state.personality()}));
  // Lower than this process's own needs CAP_SYS_RESOURCE; then it stays at ours.
  BATON_TRY(write_proc(puppet.pid(), "oom_score_adj", std::to_string(state.oom_score_adj()), false));
  char filter[32];
  std::snprintf(filter, sizeof filter, "0x%x", state.coredump_filter());
  BATON_TRY(write_proc(puppet.pid(), "coredump_filter", filter, false));
  for (int i = 0; i < state.threads_size(); ++i) BATON_TRY(set_thread(process.threads[static_cast<std::size_t>(i)], state.threads(i)));
  return {};
}

// What narrows what the process may do: after the rest, before its identity is taken.
Result<void> set_options(Construction& c, BuiltProcess& process) {
  const auto& state = *process.state;
  for (const auto& option : state.options()) BATON_TRY(set_option(process.leader(), option, subject(process)));
  for (std::uint32_t command = 1; command != 0; command <<= 1) {
    if ((state.membarrier() & command) != 0) BATON_TRY(process.leader().checked("membarrier", subject(process), SYS_membarrier, {command, 0, 0}));
  }
  for (int i = 0; i < state.threads_size(); ++i) {
    const auto& thread = state.threads(i);
    Puppet& puppet = process.threads[static_cast<std::size_t>(i)];
    std::string about = "thread " + std::to_string(thread.tid());
    if (thread.seccomp_size() != 0 || thread.options_size() != 0) BATON_TRY(puppet.suspend_seccomp());
    for (std::uint32_t index : thread.seccomp()) {
      if (index >= static_cast<std::uint32_t>(c.state.seccomp_filters_size())) return make_error(Code::kCorrupt, "build", about + ": an unknown seccomp filter");
      const std::string& program = c.state.seccomp_filters(static_cast<int>(index));
      struct { std::uint16_t count; std::uint16_t pad[3]; std::uint64_t at; } header{static_cast<std::uint16_t>(program.size() / 8), {}, puppet.data() + 64};
      BATON_TRY(puppet.put(std::as_bytes(std::span(program)), 64));
      BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&header, 1))));
      BATON_TRY(puppet.checked("seccomp", about, SYS_seccomp, {1 /* SECCOMP_SET_MODE_FILTER */, 0, at}));
    }
    for (const auto& option : thread.options()) BATON_TRY(set_option(puppet, option, about));
  }
  return {};
}

}  // namespace baton::restore
