// capture_state: the order in which a stopped tree is read. Descriptors and /proc first,
// which need nothing of the threads; injected calls last.
#include <cstdlib>
#include <optional>

#include "agent/backend/linux/state/internal.h"
#include "base/clock.h"

namespace baton::linux_backend::state {

StateContext::StateContext() : impl_(std::make_unique<Impl>()) {}
StateContext::~StateContext() = default;
StateContext::StateContext(StateContext&&) noexcept = default;
StateContext& StateContext::operator=(StateContext&&) noexcept = default;

std::vector<DescriptorObject> descriptor_objects(StateContext& context) { return context.impl().objects; }

Result<void> capture_state(StoppedTree& tree, StateContext& context, pb::LinuxState& out) {
  auto& impl = context.impl();
  impl.objects.clear();
  if (impl.vdso_digest.empty()) {
    impl.vdso_digest = vdso_digest();
    impl.xsave_layout = xsave_layout();
  }
  out.set_version(1);
  out.set_vdso_digest(impl.vdso_digest);
  for (const auto& component : impl.xsave_layout) *out.add_xsave_layout() = component;
  BATON_ASSIGN(pb::ClockState clocks, read_clocks(tree.root));
  out.set_monotonic_ns(clocks.monotonic_ns());
  out.set_boottime_ns(clocks.boottime_ns());
  out.set_realtime_ns(clocks.realtime_ns());
  impl.workload_shift_ns = static_cast<std::int64_t>(clocks.monotonic_ns()) - read_clock(CLOCK_MONOTONIC).count();

  std::optional<Problem> refused;
  Report report = [&](const Problem& p) {
    if (p.verdict == "refused" && !refused) refused = p;
  };
  Places places;
  for (const auto& process : tree.processes) places.inside[process.pid] = process.ns_pid;
  if (auto root = places.inside.find(tree.root); root != places.inside.end()) out.set_root_pid(root->second);
  std::vector<ProcessRef> processes;
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
    if (process.shares_memory_with != 0) {
      return make_error(Code::kUnsupported, "capture", "process " + std::to_string(process.pid) + ": it shares its memory with process " + std::to_string(process.shares_memory_with));
    }
    processes.push_back({process.pid, process.ns_pid});
  }
  BATON_TRY(add_zombies(tree, places, out));
  DescriptorOptions options;
  options.spec = tree.spec;
  options.keeper = tree.keeper;
  options.report = report;
  options.guard = tree.connections ? &impl.guard : nullptr;
  auto read = read_descriptors(processes, options, out, impl.objects);
  impl.guard.uncover();
  BATON_TRY(read);
  if (refused) return refusal(*refused);
  for (auto& process : tree.processes) {
    auto& state = *find_or_add(out, process.ns_pid);
    if (!state.zombie()) BATON_TRY(read_threads(process, impl, out, state));
  }
  return {};
}

}  // namespace baton::linux_backend::state
