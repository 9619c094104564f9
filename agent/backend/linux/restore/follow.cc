// Following: what has been built of a checkpoint is brought to a later one, as far as the
// process tree stays what it is. Checked first, without touching anything; memory is in
// address_space.cc, open files are in follow_files.cc, the rest is here.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>

#include "agent/backend/linux/restore/batch.h"
#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

Error cannot(const std::string& why) { return make_error(Code::kConflict, "apply", why); }

std::string subject(const pb::ProcessState& process) { return "process " + std::to_string(process.pid()); }

// What set_attributes sets, without what changes at every freeze or comes at activation.
std::string attributes_of(const pb::ProcessState& process) {
  pb::ProcessState kept = process;
  kept.clear_mappings();
  kept.clear_layout();
  kept.clear_guards();
  kept.clear_descriptors();
  kept.clear_epoll_watches();
  kept.clear_pending_signals();
  kept.clear_itimers();
  kept.clear_posix_timers();
  kept.clear_limits();
  kept.clear_stopped();
  kept.clear_dumpable();
  kept.clear_timer_restore_next();
  for (auto& thread : *kept.mutable_threads()) {
    for (auto* bytes : {thread.mutable_registers(), thread.mutable_xsave()}) bytes->clear();
    thread.clear_blocked();
    thread.clear_pending_signals();
    thread.clear_credentials();
    thread.clear_has_sleep_left();
    thread.clear_sleep_left_ns();
    thread.clear_restart_call();
    thread.clear_rseq();
    thread.clear_rseq_bytes();
    thread.clear_rseq_signature();
  }
  return kept.SerializeAsString();
}

}  // namespace

Result<void> check_follows(const Construction& c, const pb::Manifest& next, const pb::LinuxState& state) {
  if (next.backend() != "linux" || state.version() != c.state.version()) return cannot("the checkpoint is of another backend or version");
  if (state.vdso_digest() != c.state.vdso_digest()) return cannot("its vdso is another");
  if (state.root_pid() != c.state.root_pid()) return cannot("its root process is another");
  BATON_TRY(check_ipc_follows(c.state, state));
  BATON_TRY(check_terminals_follow(c.state, state));
  if (state.processes_size() != c.state.processes_size()) {
    return cannot("it has " + std::to_string(state.processes_size()) + " processes, not " + std::to_string(c.state.processes_size()) + " any more");
  }
  for (int i = 0; i < state.processes_size(); ++i) {
    const auto& now = state.processes(i);
    const auto& old = c.state.processes(i);
    if (now.pid() != old.pid() || now.ppid() != old.ppid() || now.pgid() != old.pgid() || now.sid() != old.sid() ||
        now.zombie() != old.zombie() || now.exit_status() != old.exit_status() || now.shares_memory_with() != old.shares_memory_with()) {
      return cannot(subject(now) + ": the process tree has changed");
    }
    if (now.zombie()) continue;
    if (now.memory_object() != old.memory_object()) return cannot(subject(now) + ": its memory is tracked anew");
    if (now.root() != old.root() || now.personality() != old.personality()) return cannot(subject(now) + ": its root directory or personality has changed");
    if (now.threads_size() == 0 || old.threads_size() == 0 || now.threads(0).tid() != old.threads(0).tid()) return cannot(subject(now) + ": its first thread has ended");
    for (const auto& d : now.descriptors()) {
      if (d.number() >= c.first_number) return cannot(subject(now) + ": descriptor " + std::to_string(d.number()) + " is beyond those that were foreseen");
      if (d.open_file() >= static_cast<std::uint32_t>(state.open_files_size())) return make_error(Code::kCorrupt, "apply", "a descriptor of an unknown open file");
    }
    BATON_TRY(check_address_space_follows(c, old, now));
  }
  std::set<int> numbers;   // a thread that takes the number of the template's process
  for (const auto& process : state.processes()) {
    for (const auto& thread : process.threads()) numbers.insert(thread.tid());
  }
  if (!c.template_process.empty() && numbers.count(c.template_process.front().inside()) != 0) return cannot("a thread has the number of the template");
  return {};
}

Result<void> follow_threads(BuiltProcess& process, const pb::ProcessState& old) {
  constexpr std::uint64_t kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  const auto& state = *process.state;
  bool same = state.threads_size() == old.threads_size();
  for (int i = 0; same && i < state.threads_size(); ++i) same = state.threads(i).tid() == old.threads(i).tid();
  if (same) return {};
  std::map<int, Puppet> there;
  for (std::size_t i = 1; i < process.threads.size(); ++i) there.emplace(process.threads[i].inside(), std::move(process.threads[i]));
  process.threads.erase(process.threads.begin() + 1, process.threads.end());
  std::set<int> wanted;
  for (const auto& thread : state.threads()) wanted.insert(thread.tid());
  for (auto& [tid, puppet] : there) {   // first, so that numbers are free again
    if (wanted.count(tid) == 0) BATON_TRY(puppet.end_thread());
  }
  for (int i = 1; i < state.threads_size(); ++i) {
    auto found = there.find(state.threads(i).tid());
    if (found != there.end()) {
      process.threads.push_back(std::move(found->second));
      continue;
    }
    BATON_ASSIGN(Puppet made, process.leader().clone(kThread, 0, state.threads(i).tid()));
    process.threads.push_back(std::move(made));
  }
  return {};
}

Result<void> follow_attributes(Construction& c, BuiltProcess& process, const pb::ProcessState& old) {
  const auto& state = *process.state;
  if (attributes_of(old) == attributes_of(state)) return {};
  // Back to the defaults that set_attributes builds upon.
  Batch batch(process.leader(), subject(state));
  std::set<std::uint32_t> handled;
  for (const auto& action : state.actions()) handled.insert(action.signal());
  const std::uint64_t zero[4] = {};
  std::uint64_t none = batch.value(zero);
  for (const auto& action : old.actions()) {
    if (handled.count(action.signal()) == 0 && action.signal() != SIGTRAP) batch.add("rt_sigaction", SYS_rt_sigaction, {action.signal(), none, 0, 8});
  }
  if (old.child_subreaper() && !state.child_subreaper()) batch.add("PR_SET_CHILD_SUBREAPER", SYS_prctl, {PR_SET_CHILD_SUBREAPER, 0});
  if (old.thp_disable() && !state.thp_disable()) batch.add("PR_SET_THP_DISABLE", SYS_prctl, {PR_SET_THP_DISABLE, 0, 0, 0, 0});
  BATON_TRY(batch.run());
  for (std::size_t i = 0; i < process.threads.size(); ++i) {
    const auto& thread = state.threads(static_cast<int>(i));
    Batch own(process.threads[i], "thread " + std::to_string(thread.tid()));
    struct { std::uint64_t sp; std::int32_t flags; std::int32_t pad; std::uint64_t bytes; } off{0, SS_DISABLE, 0, 0};
    own.add("sigaltstack", SYS_sigaltstack, {own.value(off), 0});
    own.add("PR_SET_TSC", SYS_prctl, {PR_SET_TSC, PR_TSC_ENABLE}, kMayFail);
    own.add("PR_MCE_KILL", SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0}, kMayFail);
    BATON_TRY(own.run());
  }
  return set_attributes(c, process);
}

}  // namespace baton::restore
