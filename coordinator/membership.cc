#include "coordinator/membership.h"

namespace baton::coordinator {

Membership::Membership(const Clock& clock) : clock_(clock), started_(clock.boot_now()) {}

void Membership::remember(const pb::NodeRecord& record) {
  std::lock_guard lock(mutex_);
  nodes_[record.name()].record = record;
}

void Membership::set_drained(const std::string& node, bool drained) {
  std::lock_guard lock(mutex_);
  if (auto it = nodes_.find(node); it != nodes_.end()) it->second.record.set_drained(drained);
}

std::uint64_t Membership::register_node(const pb::NodeRecord& record) {
  std::lock_guard lock(mutex_);
  Node& node = nodes_[record.name()];
  node.record = record;
  node.session = ++last_session_;
  node.last_seen = node.registered_at = clock_.boot_now();
  node.ever_seen = true;
  return node.session;
}

bool Membership::report(const std::string& name, std::uint64_t session,
                        const pb::NodeReport& report) {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  if (found == nodes_.end() || found->second.session != session) return false;
  Node& node = found->second;
  const auto now = clock_.boot_now();
  node.last_seen = now;
  if (report.memory_free_bytes() != 0) {
    node.record.mutable_facts()->set_memory_free_bytes(report.memory_free_bytes());
  }
  if (report.disk_free_bytes() != 0) {
    node.record.mutable_facts()->set_disk_free_bytes(report.disk_free_bytes());
  }
  node.statuses.clear();
  for (const auto& status : report.workloads()) node.statuses[status.name()] = status;
  for (auto it = node.notes.begin(); it != node.notes.end();) {
    const auto& [workload, noted] = *it;
    auto reported = node.statuses.find(workload);
    const bool old = now - noted.at > kNoteHolds;
    const bool caught_up = noted.forgotten
                               ? reported == node.statuses.end()
                               : reported != node.statuses.end() &&
                                     reported->second.incarnation() >= noted.status.incarnation();
    if (old || caught_up) {
      it = node.notes.erase(it);
      continue;
    }
    if (noted.forgotten) {
      node.statuses.erase(workload);
    } else {
      node.statuses[workload] = noted.status;
    }
    ++it;
  }
  node.held.clear();
  for (const auto& held : report.held()) node.held[held.workload()] = held;
  return true;
}

bool Membership::is_current(const std::string& name, std::uint64_t session) const {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  return found != nodes_.end() && found->second.session == session;
}

void Membership::end_session(const std::string& name, std::uint64_t session) {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  if (found != nodes_.end() && found->second.session == session) found->second.session = 0;
}

void Membership::note(const std::string& name, const pb::WorkloadStatus& status) {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  if (found == nodes_.end()) return;
  found->second.statuses[status.name()] = status;
  found->second.notes[status.name()] = {status, clock_.boot_now(), false};
}

void Membership::forget(const std::string& name, const std::string& workload) {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  if (found == nodes_.end()) return;
  found->second.statuses.erase(workload);
  found->second.notes[workload] = {{}, clock_.boot_now(), true};
}

NodeView Membership::view_of(const std::string& name, const Node& node) const {
  NodeView view;
  view.name = name;
  view.rpc_address = node.record.rpc_address();
  view.stream_address = node.record.stream_address();
  view.facts = node.record.facts();
  view.drained = node.record.drained();
  view.ever_seen = node.ever_seen;
  const auto now = clock_.boot_now();
  view.silent_for = now - (node.ever_seen ? node.last_seen : started_);
  view.registered_for = node.ever_seen ? now - node.registered_at : std::chrono::nanoseconds{};
  view.reachable = node.ever_seen && view.silent_for <= kUnreachableAfter;
  view.declared_unreachable = view.silent_for > kUnreachableAfter;
  view.statuses = node.statuses;
  view.held = node.held;
  return view;
}

std::optional<NodeView> Membership::view(const std::string& name) const {
  std::lock_guard lock(mutex_);
  auto found = nodes_.find(name);
  if (found == nodes_.end()) return std::nullopt;
  return view_of(name, found->second);
}

std::vector<NodeView> Membership::views() const {
  std::lock_guard lock(mutex_);
  std::vector<NodeView> out;
  for (const auto& [name, node] : nodes_) out.push_back(view_of(name, node));
  return out;
}

}  // namespace baton::coordinator
