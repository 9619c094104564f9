// Node and the tenure of its workloads: taking over what the voters gave to this node, giving
// up what they gave to another, and wishing for voters and standbys.
#include <signal.h>

#include <algorithm>
#include <utility>

#include "agent/node/node.h"
#include "agent/node/node_tenure.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr auto kTendInterval = 200ms;
constexpr auto kMigrationGrace = 1s;        // a migration's source activates what it built here
constexpr auto kBusyWait = 10s;             // what is done under the name at the time of a takeover

std::uint64_t us_since(tenure::Time from, tenure::Time to) {
  return from == tenure::Time{} || to <= from ? 0 : static_cast<std::uint64_t>((to - from).count() / 1000);
}

}  // namespace

void Node::join_tenure() {
  if (!env_.tenure) return;
  NodeTenure::Events events;
  events.owned = [this](const pb::TenureRecord& record, const tenure::Timeline& timeline) {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    // Not among the chores: those may wait for others, and this is what everybody waits for.
    takeovers_.emplace_back([this, record, timeline] { run_owned(record, timeline); });
  };
  events.lost = [this](const pb::TenureRecord& record) { lose(record); };
  events.decided = [this](const pb::TenureRecord& record) {
    post([this, record] { follow_record(record); });
  };
  events.event = [this](const std::string& kind, const std::string& workload, const std::string& text) {
    add_event(kind, workload, text);
  };
  for (const auto& name : env_.store->workloads()) {
    if (auto tip = env_.store->tip(name); tip && *tip) env_.tenure->note_tip(name, (*tip)->incarnation, (*tip)->seq, false);
  }
  env_.tenure->attach(std::move(events));
  post_after(kTendInterval, [this] { tend_voters(); });
}

// ------------------------------------------------------------------ taking over

pb::WorkloadSpec Node::spec_for_takeover(const std::string& name) {
  pb::WorkloadSpec spec;
  if (auto standby = standbys_.find(name)) {
    spec = standby->spec();
  } else if (auto record = load_state(name)) {
    spec = record->spec();
  } else if (auto tip = env_.store->tip(name); tip && *tip) {
    // Whoever made the checkpoint wrote it down there.
    pb::Manifest manifest;
    auto held = env_.store->load(name, (*tip)->seq);
    if (held && manifest.ParseFromString(held->manifest)) (void)spec.ParseFromString(manifest.spec());
  }
  add_hash_key(name, spec);
  return spec;
}

// A checkpoint's spec goes without the key; the store of its dedup domain has it.
void Node::add_hash_key(const std::string& name, pb::WorkloadSpec& spec) {
  if (!spec.hash_key().empty()) return;
  if (auto identity = env_.store->identity(name)) {
    spec.set_hash_key(std::string(reinterpret_cast<const char*>(identity->key.data()), identity->key.size()));
  }
}

void Node::run_owned(const pb::TenureRecord& record, const tenure::Timeline& timeline) {
  const std::string& name = record.workload();
  const auto began = env_.clock->boot_now();
  std::optional<Incoming> incoming;
  {
    std::lock_guard lock(mutex_);
    if (auto it = incoming_.find(name); it != incoming_.end()) incoming = it->second;
  }
  if (incoming && record.reason() == "migrate") {
    std::unique_lock lock(mutex_);
    // Its source does so in a moment; while it does, the name is busy.
    auto idle_since = std::chrono::steady_clock::now();
    while (!stopping_ && incoming_.contains(name) && std::chrono::steady_clock::now() - idle_since < kMigrationGrace) {
      if (busy_.contains(name)) idle_since = std::chrono::steady_clock::now();
      changed_.wait_for(lock, 20ms);
    }
    if (stopping_ || !incoming_.contains(name)) return;
    lock.unlock();
    pb::ActivateTargetRequest request;
    request.set_name(name);
    request.mutable_ownership()->set_workload(name);
    request.mutable_ownership()->set_owner(options_.name);
    request.mutable_ownership()->set_incarnation(record.incarnation());
    *request.mutable_spec() = spec_for_takeover(name);
    for (const auto& peer : record.standbys()) *request.add_standbys() = peer;
    auto activated = activate_target(request);
    if (activated) return add_event("activated", name, "by this node itself: its migration's source is gone");
    if (activated.error().code == Code::kConflict && find(name)) return;
    spdlog::warn("{}: {}; taking it over from the newest checkpoint", name, activated.error().message());
  }
  TakeOver order;
  order.name = name;
  order.ownership.set_workload(name);
  order.ownership.set_owner(options_.name);
  order.ownership.set_incarnation(record.incarnation());
  order.spec = spec_for_takeover(name);
  order.standbys.assign(record.standbys().begin(), record.standbys().end());
  Result<TakenOver> taken = make_error(Code::kConflict, "take over", name);
  do {
    taken = take_over(order);
    if (taken || taken.error().code != Code::kConflict || runs_here(name) >= record.incarnation()) break;
    std::this_thread::sleep_for(2ms);   // something else is under way under the name
  } while (env_.clock->boot_now() - began < kBusyWait && !stopping());
  if (!taken && runs_here(name) >= record.incarnation()) return;

  pb::FailoverReport report;
  report.set_workload(name);
  report.set_from(record.previous_owner());
  report.set_to(options_.name);
  report.set_incarnation(record.incarnation());
  report.set_cause(record.reason() == "takeover" ? record.previous_owner() + " was silent" : record.reason());
  report.set_committed_seq(record.committed_seq());
  report.set_wall_ns(static_cast<std::uint64_t>(env_.clock->wall_now().count()));
  const auto zero = timeline.last_sign == tenure::Time{} ? began : timeline.last_sign;
  report.set_suspected_us(us_since(zero, timeline.suspected));
  report.set_stood_us(us_since(zero, timeline.stood));
  report.set_elected_us(us_since(zero, timeline.elected));
  if (taken) {
    report.set_activated_us(us_since(zero, taken->activated));
    report.set_pid(taken->process.pid());
    report.set_committed_seq(taken->seq);
    // Its age at the activation, less what passed since the last sign of life: by wall clocks.
    const auto since = taken->activated - zero;
    const auto lost = taken->lost > since ? taken->lost - since : std::chrono::nanoseconds{};
    report.set_last_commit_age_us(static_cast<std::uint64_t>(lost.count() / 1000));
    report.set_lost_us(report.last_commit_age_us());
    add_event("failover", name, report.cause() + ": taken over from @" + std::to_string(taken->seq) + ", running " +
                                    std::to_string(report.activated_us() / 1000) + " ms after the last sign of life");
  } else {
    report.set_error(taken.error().message());
    add_event("failover failed", name, taken.error().message());
    env_.tenure->left(name, record.incarnation());   // another standby may do better
  }
  env_.tenure->report(report);
  report_soon();
}

bool Node::stopping() const {
  std::lock_guard lock(mutex_);
  return stopping_;
}

// ------------------------------------------------------------------ giving up

// What runs here is not this node's any more. Frozen by its lease already, or about to be.
void Node::lose(const pb::TenureRecord& record) {
  const std::string& name = record.workload();
  auto workload = find(name);
  if (!workload) {
    post([this, record] { follow_record(record); });
    return;
  }
  const std::string state = workload->state();
  // A migration asks for the owner itself, and acts on the answer.
  if (state == "migrating" || state == "moved") return;
  {
    std::lock_guard lock(mutex_);
    if (ending_.contains(name)) return;
  }
  if (record.owner().empty() && record.reason() == "exited") return;   // its end is what the record says
  const std::string why = "the record names " + (record.owner().empty() ? std::string("nobody") : record.owner()) +
                          " at incarnation " + std::to_string(record.incarnation()) + " (" + record.reason() + ")";
  const bool keep = record.owner().empty() && record.reason() == "deleted" && workload->spec().origin() == pb::ORIGIN_PROTECT;
  workload->halt("stopped");
  if (keep) post([this, name] { release_workload(name); });
  else give_up_soon(*workload, why);
}

void Node::release_workload(const std::string& name) {
  auto thawed = env_.warden->thaw(name);
  auto done = env_.warden->release(name);
  if (!done && done.error().code != Code::kNotFound) {
    spdlog::error("{}: cannot be released: {}{}", name, done.error().message(), thawed ? "" : "; it is frozen");
  }
  add_event("released", name, "its protection has ended");
  remove(name);
}

void Node::follow_record(const pb::TenureRecord& record) {
  const std::string& name = record.workload();
  if (auto workload = find(name)) {
    const bool here = record.owner() == options_.name || (record.owner().empty() && record.reason() == "exited");
    if (here && record.incarnation() > workload->incarnation()) {
      workload->set_incarnation(record.incarnation());
      if (auto saved = save(*workload); !saved) spdlog::error("{}: {}", name, saved.error().message());
    }
    return;
  }
  if (record.owner() == options_.name) return;
  bool known = false;
  {
    std::lock_guard lock(mutex_);
    known = lost_.erase(name) > 0;
  }
  if (known) {
    erase_file(state_path(name));
    report_soon();
  }
}

// Everybody who has voted for it may then run it: this node must not.
Result<pb::Ownership> Node::propose_owner(const pb::ProposeOwnerRequest& request) {
  const std::string& name = request.name();
  if (!env_.tenure || !env_.tenure->voted(name)) {
    return make_error(Code::kNotFound, "propose owner", name + " has no voters that this node knows of");
  }
  auto workload = find(name);
  const bool away = workload && workload->state() != "moved" && request.new_owner() != options_.name;
  if (away) {
    if (workload->state() == "migrating") return make_error(Code::kConflict, "propose owner", name + " is being migrated");
    if (workload->state() == "running" && !request.new_owner().empty()) {
      // Nothing that it has done so far is to be lost.
      if (auto last = workload->checkpoint_now(2s); !last && !request.allow_loss()) return last.error();
    }
    BATON_TRY(env_.warden->hold(name));
  }
  pb::ChangeOwnerRequest change;
  change.set_workload(name);
  change.set_expected_incarnation(request.expected_incarnation());
  change.set_new_owner(request.new_owner());
  change.set_reason(request.reason());
  change.set_committed_seq(request.committed_seq());
  auto changed = env_.tenure->change_owner(change);
  if (changed || !away) return changed;
  if (changed.error().code == Code::kUnknownOutcome || changed.error().code == Code::kTimedOut) {
    post([this, name] { settle_held(name); });
    return changed;
  }
  (void)env_.warden->thaw(name);
  return changed;
}

// Before a program is stopped on request: without this, its standby would take it for dead.
Result<void> Node::retire_tenure(const Workload& workload) {
  const std::string name = workload.name();
  if (!env_.tenure || !env_.tenure->voted(name)) return {};
  pb::ChangeOwnerRequest change;
  change.set_workload(name);
  change.set_reason("deleted");
  auto changed = env_.tenure->change_owner(change);
  if (!changed) return changed.error();
  return {};
}

// Held for a change of owner of which nobody knows whether it came about.
void Node::settle_held(const std::string& name) {
  auto workload = find(name);
  if (!workload || workload->state() != "running") return;
  pb::ChangeOwnerRequest back;
  back.set_workload(name);
  back.set_new_owner(options_.name);
  back.set_reason("stays");
  auto owner = env_.tenure->change_owner(back);
  if (owner && owner->owner() == options_.name) {
    if (auto thawed = env_.warden->thaw(name); thawed) return;
  }
  post_after(500ms, [this, name] { settle_held(name); });
}

Result<pb::FailoverReport> Node::take_over_asked(const pb::TakeOverRequest& request) {
  if (!env_.tenure) return make_error(Code::kUnsupported, "take over", "this agent votes for nobody");
  BATON_ASSIGN(auto record, env_.tenure->take_over(request));
  pb::FailoverReport report;
  report.set_workload(record.workload());
  report.set_from(record.previous_owner());
  report.set_to(record.owner());
  report.set_incarnation(record.incarnation());
  report.set_cause(record.reason());
  const auto until = std::chrono::steady_clock::now() + 60s;
  while (std::chrono::steady_clock::now() < until && !stopping()) {
    auto workload = find(record.workload());
    if (workload && workload->incarnation() >= record.incarnation()) {
      const auto status = workload->status();
      report.set_committed_seq(status.last_committed());
      report.set_pid(status.pid());
      return report;
    }
    auto known = env_.tenure->known(record.workload());
    if (known && known->record.incarnation() > record.incarnation()) break;
    std::this_thread::sleep_for(1ms);
  }
  return make_error(Code::kFailed, "take over", record.workload() + " is owned by this node and does not run",
                    "`baton events --workload " + record.workload() + "` says why.");
}

// The program has ended by itself: nobody is to run it on, or its standby is to.
void Node::end_tenure(const std::shared_ptr<Workload>& workload) {
  const std::string name = workload->name();
  if (!env_.tenure || find(name) != workload || workload->state() != "exited") return;
  auto now = env_.tenure->known(name);
  if (!now || now->record.voters().empty() || now->record.owner() != options_.name) return;
  pb::ChangeOwnerRequest change;
  change.set_workload(name);
  change.set_expected_incarnation(workload->incarnation());
  change.set_committed_seq(workload->status().last_committed());
  change.set_reason("exited");
  if (workload->spec().on_exit() == pb::ON_EXIT_FAILOVER && may_fail_over(name)) {
    for (const auto& standby : now->record.standbys()) {
      if (change.new_owner().empty() && env_.tenure->linked(standby.node())) change.set_new_owner(standby.node());
    }
  }
  auto changed = env_.tenure->change_owner(change);
  if (changed) return;
  spdlog::warn("{}: {}; trying again", name, changed.error().message());
  post_after(500ms, [this, workload] { end_tenure(workload); });
}

// A program that ends wherever it runs is not handed round for ever.
bool Node::may_fail_over(const std::string& name) {
  constexpr std::size_t kMost = 3;
  const auto now = std::chrono::steady_clock::now();
  std::lock_guard lock(mutex_);
  auto& times = exits_[name];
  while (!times.empty() && now - times.front() > 60s) times.pop_front();
  times.push_back(now);
  return times.size() <= kMost;
}

// ------------------------------------------------------------------ voters

// The standby that is in step and comes first, and a third: another standby, another node, the
// coordinator. Who votes already goes on doing so where that is as good.
std::optional<pb::TenureRecord> Node::wish_for(const Workload& workload) {
  const auto status = workload.status();
  const auto standbys = workload.standbys();
  const std::string name = workload.name();
  auto ready = [&](const std::string& node) {
    return env_.tenure->linked(node) && std::any_of(status.standbys().begin(), status.standbys().end(), [&](const pb::StandbyStatus& one) {
             return one.node() == node && one.connected() && one.last_committed() > 0;
           });
  };
  auto known = env_.tenure->known(name);
  auto votes = [&](const std::string& node) {
    return known && std::any_of(known->record.voters().begin(), known->record.voters().end(),
                                [&](const pb::PeerAddress& peer) { return peer.node() == node; });
  };
  std::vector<pb::PeerAddress> voters{options_.self};
  for (const auto& standby : standbys) {
    if (voters.size() < 3 && ready(standby.node())) voters.push_back(standby);
  }
  if (voters.size() < 2) return std::nullopt;
  std::vector<pb::PeerAddress> others;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [node, peer] : peers_) others.push_back(peer);
  }
  if (const std::string address = env_.tenure->coordinator_voter(); !address.empty()) {
    pb::PeerAddress coordinator;
    coordinator.set_node(std::string(transport::kCoordinatorPeer));
    coordinator.set_rpc(address);
    others.push_back(coordinator);
  }
  std::stable_partition(others.begin(), others.end(), [&](const pb::PeerAddress& peer) { return votes(peer.node()); });
  for (const auto& peer : others) {
    const bool taken = std::any_of(voters.begin(), voters.end(), [&](const auto& one) { return one.node() == peer.node(); });
    if (voters.size() < 3 && !taken && (votes(peer.node()) || env_.tenure->linked(peer.node()))) voters.push_back(peer);
  }
  // Two voters are worse than none: the failure of either would stop the program.
  if (voters.size() < 3) return std::nullopt;
  pb::TenureRecord wish;
  wish.set_workload(name);
  wish.set_mode(workload.spec().mode());
  wish.set_on_exit(workload.spec().on_exit());
  for (const auto& peer : voters) *wish.add_voters() = peer;
  for (const auto& peer : standbys) {
    if (peer.node() != options_.name) *wish.add_standbys() = peer;
  }
  return wish;
}

void Node::tend_voters() {
  std::vector<std::shared_ptr<Workload>> all;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, workload] : workloads_) all.push_back(workload);
  }
  for (const auto& workload : all) {
    if (workload->state() != "running") continue;
    auto known = env_.tenure->known(workload->name());
    if (!known || known->record.owner() != options_.name || known->record.incarnation() != workload->incarnation()) continue;
    if (auto wish = wish_for(*workload)) env_.tenure->want(*wish);
  }
  post_after(kTendInterval, [this] { tend_voters(); });
}

// `held`: what is told of a standby here.
void Node::describe_standby(const std::map<std::string, StandbyView>& views, pb::HeldCheckpoint& held) const {
  auto view = views.find(held.workload());
  if (view == views.end()) return;
  held.set_mode(view->second.mode);
  held.set_mode_problem(view->second.problem);
  held.set_ready_seq(view->second.ready_seq);
}

// What is not healthy any more is ended; what happens then is what happens at any end of it.
void Node::watch_health(const pb::WorkloadSpec& spec) {
  if (!spec.has_health()) return;
  const std::string name = spec.name();
  auto check = std::make_shared<HealthCheck>(*env_.warden, name, spec.health(), [this, name](const std::string& why) {
    post([this, name, why] {
      auto workload = find(name);
      if (!workload || workload->state() != "running") return;
      add_event("unhealthy", name, why);
      auto ended = env_.warden->stop(name, 0, true);
      if (!ended) spdlog::warn("{}: {}", name, ended.error().message());
      process_ended(name, SIGKILL, true);
    });
  });
  std::lock_guard lock(mutex_);
  if (auto old = std::exchange(health_[name], check)) post_old_check(std::move(old));
}

void Node::end_health(const std::string& name) {
  std::lock_guard lock(mutex_);
  auto it = health_.find(name);
  if (it == health_.end()) return;
  post_old_check(std::move(it->second));
  health_.erase(it);
}

// Its end waits for its thread, which may wait for this one: not here. `mutex_` is held.
void Node::post_old_check(std::shared_ptr<HealthCheck> check) {
  chores_.push_back({std::chrono::steady_clock::now(), [check = std::move(check)]() mutable { check.reset(); }});
  changed_.notify_all();
}

void Node::describe_tenure(pb::WorkloadStatus& status) const {
  {
    std::lock_guard lock(mutex_);
    if (auto it = health_.find(status.name()); it != health_.end()) status.set_health(it->second->state());
  }
  if (!env_.tenure) return;
  auto known = env_.tenure->known(status.name());
  if (!known) return;
  for (const auto& voter : known->record.voters()) status.add_voters(voter.node());
  if (known->record.voters().empty()) {
    status.set_tenure("alone");
  } else {
    status.set_tenure(known->may_run_until > env_.clock->boot_now() ? "held" : "ended");
  }
}

}  // namespace baton::node
