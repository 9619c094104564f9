// Coordinator: a node is emptied before maintenance, and filled again.
#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "coordinator/coordinator.h"

namespace baton::coordinator {
namespace {

// A migration may have met a passing moment: a lease that had just run out under load, a vfork, a
// link that broke. What cannot be moved at all is said at once.
constexpr int kDrainTries = 4;
constexpr auto kDrainWait = std::chrono::seconds(1);
bool passes(const Error& error) { return error.code != Code::kUnsupported && error.code != Code::kCancelled && error.code != Code::kNotFound; }

}  // namespace

Result<void> Coordinator::set_drained(const std::string& node, bool drained, const std::string& who) {
  for (int attempt = 0;; ++attempt) {
    BATON_ASSIGN(auto stored, store_.get<pb::NodeRecord>(node));
    if (stored.version == 0) {
      return make_error(Code::kNotFound, drained ? "drain" : "resume", "no node named " + node, "See baton node ls.");
    }
    if (stored.value.drained() == drained) return {};
    stored.value.set_drained(drained);
    auto done = commit(Transaction()
                           .put(node, stored.version, stored.value)
                           .event(make_event("node", "", node,
                                             drained ? "is being drained: nothing new is placed on it" : "takes workloads again", who)));
    if (done) {
      membership_.set_drained(node, drained);
      return {};
    }
    if (done.error().code != Code::kConflict || attempt >= 5) return done;
  }
}

// Its best standby: reachable, not drained itself, nearest to the newest checkpoint.
Result<std::string> Coordinator::drain_target(const Known& one, const std::string& from) {
  const std::string& name = one.record.value.spec().name();
  auto home = membership_.view(from);
  std::string best;
  std::uint64_t best_seq = 0;
  for (const auto& standby : standbys_of(one)) {
    auto view = membership_.view(standby);
    if (!view || !view->reachable || view->drained) continue;
    auto held = view->held.find(name);
    const std::uint64_t seq = held == view->held.end() ? 0 : held->second.seq();
    if (best.empty() || seq > best_seq) {
      best = standby;
      best_seq = seq;
    }
  }
  if (!best.empty()) return best;
  PlacementRequest request;
  request.standby_count = 1;
  auto placed = choose_standbys(request, from, {}, candidates());
  if (placed.standbys.empty()) {
    std::string why;
    for (const auto& line : placed.why) why += (why.empty() ? "" : "; ") + line;
    return make_error(Code::kUnsupported, "drain", name + ": no other node can take it: " + why);
  }
  return placed.standbys.front();
}

Result<void> Coordinator::drain(const std::string& node, const Sink<pb::DrainProgress>& sink, const std::string& who) {
  BATON_ASSIGN(auto view, ready_node(node, "drain"));
  BATON_TRY(set_drained(node, true, who));
  auto records = store_.list<pb::WorkloadRecord>();
  if (!records) return records.error();
  std::vector<std::string> here, copies;
  for (const auto& record : *records) {
    auto one = known(record.value.spec().name());
    if (!one) continue;
    const auto standbys = standbys_of(*one);
    if (one->owner.owner() == node && is_running(*one)) here.push_back(record.value.spec().name());
    if (std::count(standbys.begin(), standbys.end(), node) > 0) copies.push_back(record.value.spec().name());
  }
  pb::DrainProgress progress;
  progress.set_total(static_cast<std::uint32_t>(here.size()));
  bool listening = true;
  int stayed = 0;
  std::string first_problem;
  auto tell = [&] {
    if (listening) listening = sink(progress);
  };
  tell();
  for (const auto& name : here) {
    progress.set_workload(name);
    progress.clear_error();
    progress.clear_to();
    auto move = [&]() -> Result<void> {
      BATON_ASSIGN(auto one, known(name));
      if (one.owner.owner() != node) return {};     // it has gone by itself
      BATON_ASSIGN(const std::string to, drain_target(one, node));
      progress.set_to(to);
      tell();
      pb::MigrateWorkloadRequest request;
      request.set_name(name);
      request.set_to(to);
      return migrate(request, [](const pb::MigrateProgress&) { return true; }, who);
    };
    auto moved = move();
    auto stops_within = [&](std::chrono::milliseconds wait) {
      std::unique_lock lock(mutex_);
      return changed_.wait_for(lock, wait, [&] { return stopping_; });
    };
    for (int tries = 1; !moved && passes(moved.error()) && tries < kDrainTries && !stops_within(kDrainWait); ++tries) moved = move();
    if (stops_within(std::chrono::milliseconds(0))) return make_error(Code::kCancelled, "drain", "the coordinator is being stopped");
    if (moved) {
      progress.set_done(progress.done() + 1);
    } else {
      ++stayed;
      progress.set_error(moved.error().message());
      if (first_problem.empty()) first_problem = moved.error().message();
      log_event(make_event("drain", name, node, "stays: " + moved.error().message(), who));
    }
    tell();
  }
  // Copies go where they are still of use: standbys of others are replaced, and of what moved.
  for (const auto& name : copies) settle_standbys(name, true);
  for (const auto& name : here) settle_standbys(name, true);
  progress.clear_workload();
  progress.clear_to();
  progress.clear_error();
  progress.set_finished(true);
  tell();
  log_event(make_event("drain", "", node,
                       std::to_string(progress.done()) + " of " + std::to_string(progress.total()) + " workloads moved", who));
  if (stayed == 0) return {};
  return make_error(Code::kFailed, "drain", std::to_string(stayed) + " of " + std::to_string(here.size()) +
                                                " workloads stay on " + node + ": " + first_problem,
                    "The node takes no new ones; mend the reason and drain it again, or baton node resume " + node + ".");
}

Result<void> Coordinator::resume_node(const std::string& node, const std::string& who) {
  BATON_TRY(set_drained(node, false, who));
  return_standbys(node);
  return {};
}

// A node that people named for a workload and that is back stands by for it again, beside
// whoever took its place meanwhile.
void Coordinator::return_standbys(const std::string& node) {
  auto view = membership_.view(node);
  if (!view || !view->reachable || view->drained) return;
  auto records = store_.list<pb::WorkloadRecord>();
  if (!records) return;
  for (const auto& record : *records) {
    const auto& spec = record.value.spec();
    auto one = known(spec.name());
    const bool home = one && spec.fail_back() == pb::FAIL_BACK_AUTO && one->owner.reason() == "takeover" && one->owner.previous_owner() == node;
    const bool named = home || spec.node() == node || std::count(spec.standbys().begin(), spec.standbys().end(), node) > 0;
    if (!named || !one || record.value.wanted_standbys() == 0 || one->owner.owner() == node || one->owner.owner().empty()) continue;
    auto now = standbys_of(*one);
    if (std::count(now.begin(), now.end(), node) > 0 || now.size() > record.value.wanted_standbys()) continue;
    now.push_back(node);
    auto& value = one->record.value;
    value.clear_standbys();
    for (const auto& standby : now) value.add_standbys(standby);
    auto done = commit(Transaction()
                           .put(spec.name(), one->record.version, value)
                           .event(make_event("standbys", spec.name(), one->owner.owner(), node + " is back and stands by again")));
    if (!done) spdlog::warn("standbys of {}: {}", spec.name(), done.error().message());
  }
  wake_sessions();
}

}  // namespace baton::coordinator
