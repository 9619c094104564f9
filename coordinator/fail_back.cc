// Coordinator: a workload that a failover has taken off its node goes back there by itself, when
// its spec asks for that: as a live migration, once the node has stood by for it for a while.
//
// Its node is the one that the spec names, else the one that it was taken from. What people have
// moved stays where they moved it: only an ownership that began with a takeover ends like this.
// One at a time in the whole cluster.
#include <algorithm>

#include "base/log.h"
#include "coordinator/coordinator.h"

namespace baton::coordinator {
namespace {

constexpr std::chrono::seconds kFailBackAfter{10};    // in step with the owner for so long
constexpr std::chrono::seconds kFailBackAgain{60};    // after one that failed

}  // namespace

std::string Coordinator::home_of(const Known& one) {
  const auto& spec = one.record.value.spec();
  const std::string& owner = one.owner.owner();
  if (spec.fail_back() != pb::FAIL_BACK_AUTO || one.owner.reason() != "takeover" || owner.empty() || one.operation.version != 0) return {};
  const std::string home = spec.node().empty() ? one.owner.previous_owner() : spec.node();
  if (home.empty() || home == owner) return {};
  auto there = membership_.view(home), here = membership_.view(owner);
  if (!there || !there->reachable || there->drained || !here || !here->reachable) return {};
  auto status = here->statuses.find(spec.name());
  if (status == here->statuses.end() || status->second.state() != "running") return {};
  for (const auto& copy : status->second.standbys()) {
    if (copy.node() == home && copy.connected() && copy.problem().empty() && copy.last_committed() != 0) return home;
  }
  return {};
}

void Coordinator::fail_back(const Known& one) {
  const std::string name = one.record.value.spec().name(), owner = one.owner.owner();
  const std::string home = home_of(one);
  const auto now = clock_.monotonic_now();
  {
    std::lock_guard lock(mutex_);
    if (home.empty()) {
      homesick_.erase(name);
      return;
    }
    const auto due = homesick_.try_emplace(name, now + kFailBackAfter).first;
    if (failing_back_ || now < due->second) return;
    due->second = now + kFailBackAgain;
    failing_back_ = true;
  }
  log_event(make_event("fail back", name, owner, home + " has stood by for it for " + std::to_string(kFailBackAfter.count()) + " s: it goes back there"));
  background([this, name, owner, home](std::stop_token) {
    pb::MigrateWorkloadRequest request;
    request.set_name(name);
    request.set_to(home);
    auto moved = migrate(request, [](const pb::MigrateProgress&) { return true; }, "fail-back");
    std::lock_guard lock(mutex_);
    failing_back_ = false;
    if (!moved) spdlog::warn("{} does not go back to {} yet: {}", name, home, moved.error().message());
  });
}

void Coordinator::forget_homes(const std::set<std::string>& workloads) {
  std::lock_guard lock(mutex_);
  std::erase_if(homesick_, [&](const auto& entry) { return !workloads.contains(entry.first); });
}

}  // namespace baton::coordinator
