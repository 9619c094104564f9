// capture_state: the order in which a stopped tree is read, and what of it is read again.
// Registers first; descriptors and /proc, which need nothing of the threads; injected calls last.
#include <fcntl.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "agent/backend/linux/state/internal.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

// look_from_outside: what others may have changed is at most this old in a checkpoint, or, where there
// is so much of it that looking takes more than a fiftieth of the time, as old as that allows.
constexpr auto kLookAgainAfter = std::chrono::milliseconds(250);
constexpr int kLookShare = 50;
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

// By a write to a file of /proc a process changes more than files.
bool writes_to_proc(const pb::LinuxState& descriptors) {
  return std::any_of(descriptors.open_files().begin(), descriptors.open_files().end(), [](const pb::OpenFile& f) {
    return f.kind() == pb::OPEN_FILE_PATH && (f.flags() & O_ACCMODE) != O_RDONLY && f.path().starts_with("/proc/");
  });
}

bool has_terminals(const pb::LinuxState& descriptors) { return descriptors.terminals_size() > 0; }

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

namespace {

// What others may change, compared with what the last freeze has read.
bool is_as_it_was(const StateContext::Impl& impl) {
  for (const auto& holder : impl.holders) {
    auto was = std::find_if(impl.lasting.processes().begin(), impl.lasting.processes().end(),
                            [&](const pb::ProcessState& p) { return p.pid() == holder.ns_pid; });
    if (was == impl.lasting.processes().end()) return false;
    pb::ProcessState is;
    if (!read_changeable(holder.pid, is) || is.cwd() != was->cwd() || is.root() != was->root() || is.oom_score_adj() != was->oom_score_adj() ||
        is.coredump_filter() != was->coredump_filter() || is.limits_size() != was->limits_size()) {
      return false;
    }
    for (int i = 0; i < is.limits_size(); ++i) {
      if (is.limits(i).soft() != was->limits(i).soft() || is.limits(i).hard() != was->limits(i).hard()) return false;
    }
    if (static_cast<int>(holder.tids.size()) != was->threads_size()) return false;
    for (int i = 0; i < was->threads_size(); ++i) {
      pb::Thread thread;
      read_changeable(holder.tids[static_cast<std::size_t>(i)], thread);
      const auto& then = was->threads(i);
      if (thread.timer_slack_ns() != then.timer_slack_ns() || thread.affinity() != then.affinity() || thread.io_priority() != then.io_priority() ||
          thread.scheduling().SerializeAsString() != then.scheduling().SerializeAsString()) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

void look_from_outside(StateContext& context) {
  auto& impl = context.impl();
  const auto now = std::chrono::steady_clock::now();
  if (now < impl.look_again) return;
  if (impl.memory && !are_in_place(*impl.memory)) {
    impl.memory.reset();
    impl.descriptors_valid = false;
  }
  if (impl.lasting_valid) impl.lasting_valid = is_as_it_was(impl);
  const auto done = std::chrono::steady_clock::now();
  impl.look_again = done + std::max<std::chrono::steady_clock::duration>(kLookAgainAfter, kLookShare * (done - now));
}

namespace {

// All of them, or what `unchanged` leaves open of them.
Result<void> read_all_descriptors(StoppedTree& tree, StateContext::Impl& impl, const Unchanged& unchanged, bool lasting,
                                  const DescriptorOptions& options) {
  std::vector<ProcessRef> processes;
  for (const auto& process : tree.processes) {
    if (!is_zombie(impl, process.ns_pid)) processes.push_back({process.pid, process.ns_pid});
  }
  const auto memory = std::move(impl.memory);
  impl.memory.reset();
  impl.descriptors_valid = false;
  pb::LinuxState before;
  before.Swap(&impl.descriptors);
  impl.objects.clear();
  KnownDescriptors known;
  known.memory = memory.get();
  known.state = &before;
  known.notes = unchanged.notes;
  known.same_numbers = unchanged.descriptors;
  // Terminals are asked for what others do at their other end.
  const bool usable = lasting && memory && unchanged.notes != nullptr && !has_terminals(before);
  auto read = read_descriptors(processes, options, usable ? &known : nullptr, impl.descriptors, impl.objects);
  impl.guard.uncover();
  BATON_TRY(read);
  impl.memory = std::move(*read);
  return {};
}

}  // namespace

Result<void> capture_state(StoppedTree& tree, StateContext& context, const Unchanged& unchanged) {
  auto& impl = context.impl();
  if (impl.vdso_digest.empty()) {
    impl.vdso_digest = vdso_digest();
    impl.xsave_layout = xsave_layout();
  }
  bool lasting = unchanged.calls && impl.lasting_valid;
  const bool descriptors = lasting && unchanged.transfers && unchanged.descriptors && impl.descriptors_valid;
  if (!lasting) {
    impl.lasting_valid = impl.descriptors_valid = false;
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
  auto read_whole_tree = [&]() -> Result<void> {
    impl.lasting.Clear();
    impl.tids.clear();
    return read_processes(tree, impl, report);
  };
  if (!lasting) BATON_TRY(read_whole_tree());
  for (auto& process : tree.processes) {
    if (is_zombie(impl, process.ns_pid)) continue;
    BATON_TRY(read_threads_now(process, impl, *find_or_add(impl.momentary, process.ns_pid)));
  }
  if (!descriptors) {
    DescriptorOptions options;
    options.spec = tree.spec;
    options.keeper = tree.keeper;
    options.report = report;
    options.clocks_read_ns = clocks_read_ns;
    options.guard = tree.connections ? &impl.guard : nullptr;
    const bool had_terminals = has_terminals(impl.descriptors);
    BATON_TRY(read_all_descriptors(tree, impl, unchanged, lasting, options));
    // To open a terminal may be to take it as the controlling one.
    if (lasting && !unchanged.descriptors && (had_terminals || has_terminals(impl.descriptors))) {
      lasting = impl.lasting_valid = false;
      auto tids = impl.tids;
      BATON_TRY(read_whole_tree());
      impl.tids = std::move(tids);
    }
  }
  if (refused) return refusal(*refused);
  if (!lasting) {
    for (auto& process : tree.processes) {
      if (is_zombie(impl, process.ns_pid)) continue;
      BATON_TRY(read_threads(process, impl, impl.lasting, *find_or_add(impl.lasting, process.ns_pid)));
    }
    impl.holders.clear();
    for (const auto& process : tree.processes) {
      if (is_zombie(impl, process.ns_pid)) continue;
      impl.holders.push_back({process.pid, process.ns_pid, {}});
      for (const auto& thread : process.threads) impl.holders.back().tids.push_back(thread.tid);
    }
    impl.lasting_valid = stands_still(impl.lasting);
  }
  impl.lasting_valid = impl.lasting_valid && !writes_to_proc(impl.descriptors);
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
