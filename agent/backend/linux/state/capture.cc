// capture_state: the order in which a stopped tree is read, and what of it is read again.
// Registers first; descriptors and /proc, which need nothing of the threads; injected calls last.
#include <algorithm>
#include <cstdlib>
#include <optional>

#include "agent/backend/linux/state/internal.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

// What others may have changed (prlimit(2), renice(1), oom_score_adj) is at most this old in a checkpoint.
constexpr auto kReadAgainAfter = std::chrono::seconds(10);
constexpr std::uint64_t kResetHandler = 0x80000000;   // SA_RESETHAND
constexpr std::uint32_t kAutoDisarm = 1u << 31;       // SS_AUTODISARM

// Nothing in it goes on by itself: no timer runs, no handler or alternate stack is reset by the
// delivery of a signal.
bool stands_still(const pb::LinuxState& lasting) {
  return std::all_of(lasting.processes().begin(), lasting.processes().end(), [](const pb::ProcessState& p) {
    return p.itimers().empty() && p.posix_timers().empty() &&
           std::none_of(p.actions().begin(), p.actions().end(),
                        [](const pb::SignalAction& a) { return (a.flags() & kResetHandler) != 0; }) &&
           std::none_of(p.threads().begin(), p.threads().end(),
                        [](const pb::Thread& t) { return (t.altstack_flags() & kAutoDisarm) != 0; });
  });
}

// Nothing from outside can change these descriptors' state: that takes a call of a holder, and
// all holders are inside.
bool is_closed(const pb::LinuxState& descriptors) {
  return std::all_of(descriptors.open_files().begin(), descriptors.open_files().end(), [](const pb::OpenFile& f) {
    switch (f.kind()) {
      case pb::OPEN_FILE_PATH:
        // Files that are windows on something else.
        return f.path().rfind("/proc/", 0) != 0 && f.path().rfind("/sys/", 0) != 0 && f.pipe() == 0;
      case pb::OPEN_FILE_MEMFD:
      case pb::OPEN_FILE_EPOLL:
      case pb::OPEN_FILE_EVENTFD:
      case pb::OPEN_FILE_SIGNALFD:
      case pb::OPEN_FILE_PIPE:
      case pb::OPEN_FILE_KEEPER_OUT:
      case pb::OPEN_FILE_KEEPER_ERR:
      case pb::OPEN_FILE_NULL:
        return true;
      default:
        return false;
    }
  });
}

pb::Thread* find_or_add_thread(pb::ProcessState& process, std::int32_t tid) {
  for (auto& t : *process.mutable_threads()) {
    if (t.tid() == tid) return &t;
  }
  pb::Thread* added = process.add_threads();
  added->set_tid(tid);
  return added;
}

void merge(const pb::LinuxState& part, pb::LinuxState& out) {
  for (const auto& from : part.processes()) {
    pb::ProcessState own = from;
    own.clear_threads();
    pb::ProcessState& to = *find_or_add(out, from.pid());
    to.MergeFrom(own);
    for (const auto& t : from.threads()) find_or_add_thread(to, t.tid())->MergeFrom(t);
  }
  pb::LinuxState rest = part;
  rest.clear_processes();
  out.MergeFrom(rest);
}

// Tree, credentials, limits, folders, zombies.
Result<void> read_processes(StoppedTree& tree, StateContext::Impl& impl, const Report& report) {
  auto& out = impl.lasting;
  out.set_version(1);
  out.set_vdso_digest(impl.vdso_digest);
  for (const auto& component : impl.xsave_layout) *out.add_xsave_layout() = component;
  Places places;
  for (const auto& process : tree.processes) places.inside[process.pid] = process.ns_pid;
  if (auto root = places.inside.find(tree.root); root != places.inside.end()) out.set_root_pid(root->second);
  std::vector<pid_t> alive;
  for (auto& process : tree.processes) {
    auto& state = *find_or_add(out, process.ns_pid);
    auto status = read_task_status(process.pid);
    if (!status) return status.error();
    if (status->state == 'Z') state.set_zombie(true);
    BATON_TRY(read_process(process.pid, places, state));
    if (state.zombie()) {
      BATON_ASSIGN(auto fields, read_stat_fields(process.pid));
      if (fields.size() > 49) state.set_exit_status(std::atoi(fields[49].c_str()));
      continue;
    }
    check_process(process.pid, tree.keeper, *tree.spec, report);
    for (pid_t other : alive) {
      if (const std::string shared = shared_tables(process.pid, other); !shared.empty()) report({process.pid, "process", "sharing", "refused", shared});
    }
    alive.push_back(process.pid);
    if (process.shares_memory_with != 0) {
      // A vfork(2) under way, most likely: over in a moment.
      return make_error(Code::kConflict, "capture", "process " + std::to_string(process.pid) + ": it shares its memory with process " + std::to_string(process.shares_memory_with), "Capture again.");
    }
  }
  return add_zombies(tree, places, out);
}

bool is_zombie(const StateContext::Impl& impl, pid_t ns_pid) {
  return std::any_of(impl.lasting.processes().begin(), impl.lasting.processes().end(),
                     [&](const pb::ProcessState& p) { return p.pid() == ns_pid && p.zombie(); });
}

}  // namespace

StateContext::StateContext() : impl_(std::make_unique<Impl>()) {}
StateContext::~StateContext() = default;
StateContext::StateContext(StateContext&&) noexcept = default;
StateContext& StateContext::operator=(StateContext&&) noexcept = default;

std::vector<DescriptorObject> descriptor_objects(StateContext& context) { return context.impl().objects; }
const pb::ClockState& captured_clocks(StateContext& context) { return context.impl().clocks; }

Result<void> capture_state(StoppedTree& tree, StateContext& context, const Unchanged& unchanged) {
  auto& impl = context.impl();
  const auto now = std::chrono::steady_clock::now();
  if (impl.vdso_digest.empty()) {
    impl.vdso_digest = vdso_digest();
    impl.xsave_layout = xsave_layout();
  }
  const bool lasting = unchanged.calls && impl.lasting_valid && now - impl.read_at < kReadAgainAfter;
  const bool descriptors = lasting && unchanged.transfers && impl.descriptors_valid;
  if (!lasting) {
    impl.lasting_valid = impl.descriptors_valid = false;
    impl.lasting.Clear();
    BATON_ASSIGN(impl.offsets, read_clock_offsets(tree.root));
  }
  impl.momentary.Clear();
  impl.clocks = read_clocks(impl.offsets);
  const std::int64_t clocks_read_ns = read_clock(CLOCK_MONOTONIC).count();
  impl.workload_shift_ns = impl.offsets.monotonic;
  impl.momentary.set_monotonic_ns(impl.clocks.monotonic_ns());
  impl.momentary.set_boottime_ns(impl.clocks.boottime_ns());
  impl.momentary.set_realtime_ns(impl.clocks.realtime_ns());

  std::optional<Problem> refused;
  Report report = [&](const Problem& p) {
    if (p.verdict == "refused" && !refused) refused = p;
  };
  if (!lasting) {
    impl.tids.clear();
    BATON_TRY(read_processes(tree, impl, report));
  }
  for (auto& process : tree.processes) {
    if (is_zombie(impl, process.ns_pid)) continue;
    BATON_TRY(read_threads_now(process, impl, *find_or_add(impl.momentary, process.ns_pid)));
  }
  if (!descriptors) {
    impl.descriptors_valid = false;
    impl.descriptors.Clear();
    impl.objects.clear();
    std::vector<ProcessRef> processes;
    for (const auto& process : tree.processes) {
      if (!is_zombie(impl, process.ns_pid)) processes.push_back({process.pid, process.ns_pid});
    }
    DescriptorOptions options;
    options.spec = tree.spec;
    options.keeper = tree.keeper;
    options.report = report;
    options.clocks_read_ns = clocks_read_ns;
    options.guard = tree.connections ? &impl.guard : nullptr;
    auto read = read_descriptors(processes, options, impl.descriptors, impl.objects);
    impl.guard.uncover();
    BATON_TRY(read);
  }
  if (refused) return refusal(*refused);
  if (!lasting) {
    for (auto& process : tree.processes) {
      if (is_zombie(impl, process.ns_pid)) continue;
      BATON_TRY(read_threads(process, impl, impl.lasting, *find_or_add(impl.lasting, process.ns_pid)));
    }
    impl.read_at = now;
    impl.lasting_valid = stands_still(impl.lasting);
  }
  impl.descriptors_valid = is_closed(impl.descriptors);
  return {};
}

void write_state(StateContext& context, pb::LinuxState& out) {
  auto& impl = context.impl();
  out = impl.lasting;      // its order of processes and threads is the tree's
  merge(impl.momentary, out);
  merge(impl.descriptors, out);
}

}  // namespace baton::linux_backend::state
