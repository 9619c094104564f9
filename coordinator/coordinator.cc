// Coordinator: what is known, sessions, orders, events.
#include "coordinator/coordinator.h"

#include <unistd.h>

#include <algorithm>

#include "base/fault_point.h"
#include "base/log.h"
#include "coordinator/random.h"
#include "coordinator/spec_rules.h"

#ifndef BATON_VERSION
#define BATON_VERSION "0.1.0"
#endif
#ifndef BATON_COMMIT
#define BATON_COMMIT ""
#endif

namespace baton::coordinator {
namespace {

constexpr std::chrono::seconds kEventPoll{1};
constexpr std::size_t kMaxReportedWorkloads = 4'096;

bool alive_state(const std::string& state) {
  return state == "starting" || state == "running" || state == "migrating" || state == "frozen";
}

}  // namespace

Coordinator::Coordinator(StateStore& store, OwnerRegistry& registry, AgentDirectory& agents,
                         const Clock& clock, std::string cluster)
    : store_(store),
      registry_(registry),
      agents_(agents),
      clock_(clock),
      cluster_(std::move(cluster)),
      process_(random_hex(8)),
      membership_(clock) {}

Coordinator::~Coordinator() {
  stop();
  std::list<Work> work;
  {
    std::lock_guard lock(mutex_);
    work.swap(work_);
  }
  work.clear();  // joins
}

void Coordinator::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (Session* session : sessions_) session->closed = true;
    for (auto& item : work_) item.thread.request_stop();
  }
  changed_.notify_all();
  stop_.request_stop();
}

Result<void> Coordinator::start() {
  BATON_ASSIGN(auto nodes, store_.list<pb::NodeRecord>());
  for (const auto& node : nodes) membership_.remember(node.value);
  BATON_ASSIGN(auto operations, store_.list<pb::OperationRecord>());
  for (const auto& operation : operations) {
    spdlog::info("{} of {} was under way when the coordinator stopped", operation.value.kind(),
                 operation.value.workload());
  }
  background([this](std::stop_token stop) { watch(stop); });
  return {};
}

void Coordinator::background(std::function<void(std::stop_token)> work) {
  auto done = std::make_shared<bool>(false);
  std::list<Work> finished;  // joined outside the lock
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  for (auto it = work_.begin(); it != work_.end();) {
    auto next = std::next(it);
    if (*it->done) finished.splice(finished.end(), work_, it);
    it = next;
  }
  work_.push_back({std::jthread([this, done, work = std::move(work)](std::stop_token stop) {
                     work(stop);
                     std::lock_guard guard(mutex_);
                     *done = true;
                   }),
                   done});
}

// --- what is known ---------------------------------------------------------------------

Result<Coordinator::Known> Coordinator::known(const std::string& name) {
  Known out;
  BATON_ASSIGN(out.record, store_.get<pb::WorkloadRecord>(name));
  if (out.record.version == 0) {
    return make_error(Code::kNotFound, "find workload", "no workload named " + name,
                      "See baton ls.");
  }
  BATON_ASSIGN(auto owner, registry_.get(name));
  if (owner) out.owner = *owner;
  BATON_ASSIGN(out.operation, store_.get<pb::OperationRecord>(name));
  return out;
}

std::vector<std::string> Coordinator::standbys_of(const Known& known) const {
  std::vector<std::string> out;
  const std::string& owner = known.owner.owner();
  for (const auto& name : known.record.value.standbys()) {
    std::string standby = name;
    // The owner moved to one of its standbys: the node it left takes that one's place.
    if (standby == owner) standby = known.owner.previous_owner();
    if (standby.empty() || standby == owner ||
        std::count(out.begin(), out.end(), standby) > 0) {
      continue;
    }
    out.push_back(standby);
  }
  return out;
}

bool Coordinator::is_running(const Known& known) {
  auto view = membership_.view(known.owner.owner());
  if (!view || view->declared_unreachable) return false;
  if (!view->ever_seen) return true;  // not known yet, so not restorable yet
  auto found = view->statuses.find(known.record.value.spec().name());
  return found != view->statuses.end() && alive_state(found->second.state());
}

pb::WorkloadInfo Coordinator::describe(const Known& known) {
  pb::WorkloadInfo info;
  const auto& record = known.record.value;
  *info.mutable_spec() = record.spec();
  info.mutable_spec()->clear_hash_key();
  info.mutable_spec()->clear_standbys();
  for (const auto& standby : standbys_of(known)) info.mutable_spec()->add_standbys(standby);
  info.mutable_ownership()->set_workload(record.spec().name());
  info.mutable_ownership()->set_owner(known.owner.owner());
  info.mutable_ownership()->set_incarnation(known.owner.incarnation());
  *info.mutable_why() = record.why();

  auto& status = *info.mutable_status();
  // One that has ended by itself is nobody's any more; where it was tells how it ended.
  const bool ended = known.owner.owner().empty() && known.owner.reason() == "exited";
  const std::string at = ended ? known.owner.tenure().previous_owner() : known.owner.owner();
  auto view = membership_.view(at);
  bool reported = false;
  if (view) {
    auto found = view->statuses.find(record.spec().name());
    if (found != view->statuses.end()) {
      status = found->second;
      reported = true;
    }
  }
  status.set_name(record.spec().name());
  status.set_node(at);
  // What each standby is at present, it knows itself.
  for (auto& standby : *status.mutable_standbys()) {
    auto there = membership_.view(standby.node());
    if (!there || !there->reachable) continue;
    auto held = there->held.find(record.spec().name());
    if (held == there->held.end()) continue;
    standby.set_mode(held->second.mode());
    standby.set_mode_problem(held->second.mode_problem());
    standby.set_ready_seq(held->second.ready_seq());
  }
  if (status.incarnation() == 0) status.set_incarnation(known.owner.incarnation());
  if (status.interval_us() == 0) status.set_interval_us(record.spec().interval_us());
  const bool under_way = known.operation.version != 0;
  const std::string& kind = known.operation.value.kind();
  if (ended && (!view || !reported)) {
    status.set_state("exited");
    info.set_status_is_stale(true);
  } else if (!view || !view->reachable) {
    info.set_status_is_stale(true);
    if (view && !view->declared_unreachable) {
      if (status.state().empty()) status.set_state(under_way && kind == "run" ? "starting" : "lost");
    } else if (!alive_state(status.state()) && reported) {
      // exited, failed, stopped: it stays what it was
    } else {
      status.set_state("lost");
    }
    if (status.problem().empty()) {
      status.set_problem(known.owner.owner().empty()
                             ? "nobody runs it: restore it with baton restore"
                             : "node " + known.owner.owner() + " is unreachable");
    }
  } else if (!reported) {
    status.set_state(under_way && (kind == "run" || kind == "restore") ? "starting" : "lost");
    if (!under_way) {
      status.set_problem("node " + known.owner.owner() +
                         " does not run it any more: restore it with baton restore");
    }
  }
  if (under_way && kind == "migrate" && status.state() == "running") status.set_state("migrating");
  return info;
}

std::vector<Candidate> Coordinator::candidates() {
  std::map<std::string, Candidate> out;
  for (const auto& view : membership_.views()) {
    Candidate candidate;
    candidate.name = view.name;
    candidate.reachable = view.reachable;
    candidate.drained = view.drained;
    candidate.memory_free_bytes = view.facts.memory_free_bytes();
    candidate.cpu_features.assign(view.facts.cpu_features().begin(),
                                  view.facts.cpu_features().end());
    candidate.arch = view.facts.arch();
    for (const auto& feature : view.facts.features()) {
      if (feature.name() == "volumes") candidate.has_volumes = feature.available();
    }
    out[view.name] = std::move(candidate);
  }
  if (auto records = store_.list<pb::WorkloadRecord>()) {
    for (const auto& record : *records) {
      auto workload = known(record.value.spec().name());
      if (!workload) continue;
      if (auto it = out.find(workload->owner.owner()); it != out.end()) ++it->second.workloads;
      for (const auto& standby : standbys_of(*workload)) {
        if (auto it = out.find(standby); it != out.end()) ++it->second.standby_copies;
      }
    }
  }
  std::vector<Candidate> list;
  for (auto& [name, candidate] : out) list.push_back(std::move(candidate));
  return list;
}

std::shared_ptr<AgentClient> Coordinator::agent_of(const NodeView& view) {
  return agents_.agent(view.name, view.rpc_address);
}

Result<NodeView> Coordinator::ready_node(const std::string& name, const std::string& operation) {
  auto view = membership_.view(name);
  if (!view) {
    return make_error(Code::kNotFound, operation, "no node named " + name, "See baton node ls.");
  }
  if (!view->reachable) {
    return make_error(Code::kUnreachable, operation, "node " + name + " is unreachable",
                      "See baton node show " + name + ".");
  }
  return *view;
}

pb::PeerAddress Coordinator::peer(const std::string& node) const {
  pb::PeerAddress out;
  out.set_node(node);
  if (auto view = membership_.view(node)) {
    out.set_rpc(view->rpc_address);
    out.set_stream(view->stream_address);
  }
  return out;
}

std::vector<pb::PeerAddress> Coordinator::peers() const {
  std::vector<pb::PeerAddress> out;
  for (const auto& view : membership_.views()) {
    if (!view.rpc_address.empty()) out.push_back(peer(view.name));
  }
  return out;
}

pb::WorkloadSpec Coordinator::wire_spec(const Known& known) const {
  pb::WorkloadSpec spec = known.record.value.spec();
  spec.set_node(known.owner.owner());
  spec.clear_standbys();
  for (const auto& standby : standbys_of(known)) spec.add_standbys(standby);
  return spec;
}

// --- events, operations ------------------------------------------------------------------

pb::Event Coordinator::make_event(const std::string& kind, const std::string& workload,
                                  const std::string& node, const std::string& text,
                                  const std::string& who) const {
  pb::Event event;
  event.set_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
  event.set_kind(kind);
  event.set_workload(workload);
  event.set_node(node);
  event.set_text(text);
  event.set_who(who);
  return event;
}

void Coordinator::log_event(pb::Event event) {
  auto done = commit(Transaction().event(std::move(event)));
  if (!done) spdlog::error("an event was not stored: {}", done.error().message());
}

Result<void> Coordinator::commit(const Transaction& transaction) {
  BATON_TRY(store_.commit(transaction));
  changed_.notify_all();
  return {};
}

Result<pb::OperationRecord> Coordinator::begin(pb::OperationRecord operation,
                                               Transaction transaction) {
  operation.set_process(process_);
  operation.set_started_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
  transaction.put(operation.workload(), 0, operation);
  auto done = commit(transaction);
  if (done) return operation;
  if (done.error().code == Code::kConflict) {
    if (auto other = store_.get<pb::OperationRecord>(operation.workload());
        other && other->version != 0) {
      const auto& now = other->value;
      return make_error(Code::kConflict, operation.kind(),
                        operation.workload() + ": another operation is under way (" + now.kind() +
                            (now.to().empty() ? "" : " to " + now.to()) + ")",
                        "Wait for it to end.");
    }
  }
  return done.error();
}

Result<void> Coordinator::finish(const std::string& workload) {
  BATON_ASSIGN(auto operation, store_.get<pb::OperationRecord>(workload));
  if (operation.version == 0) return {};
  BATON_TRY(commit(Transaction().erase<pb::OperationRecord>(workload, operation.version)));
  wake_sessions();
  return {};
}

Result<void> Coordinator::events(const pb::EventsRequest& request, const Sink<pb::Event>& sink,
                                 const std::function<bool()>& alive) {
  std::uint64_t after = request.after_id();
  while (true) {
    BATON_ASSIGN(auto batch, store_.events(after, request.workload()));
    for (const auto& event : batch) {
      after = event.id();
      if (!sink(event)) return {};
    }
    if (!batch.empty()) continue;
    if (!request.follow()) return {};
    std::unique_lock lock(mutex_);
    if (stopping_) return {};
    changed_.wait_for(lock, kEventPoll);
    lock.unlock();
    if (!alive()) return {};
  }
}

pb::VersionInfo Coordinator::version() const {
  pb::VersionInfo out;
  out.set_version(BATON_VERSION);
  out.set_commit(BATON_COMMIT);
  out.set_cluster(cluster_);
  return out;
}

// --- listings ------------------------------------------------------------------------------

Result<pb::NodeInfo> Coordinator::show_node(const std::string& name) {
  BATON_ASSIGN(auto all, list_nodes());
  for (auto& node : *all.mutable_nodes()) {
    if (node.name() == name) return std::move(node);
  }
  return make_error(Code::kNotFound, "show node", "no node named " + name, "See baton node ls.");
}

Result<pb::ListNodesResponse> Coordinator::list_nodes() {
  std::map<std::string, std::vector<std::string>> runs, stands;
  BATON_ASSIGN(auto records, store_.list<pb::WorkloadRecord>());
  for (const auto& record : records) {
    const std::string& workload = record.value.spec().name();
    auto one = known(workload);
    if (!one) continue;  // deleted just now
    runs[one->owner.owner()].push_back(workload);
    for (const auto& standby : standbys_of(*one)) stands[standby].push_back(workload);
  }
  pb::ListNodesResponse out;
  for (const auto& view : membership_.views()) {
    auto& node = *out.add_nodes();
    node.set_name(view.name);
    node.set_state(!view.reachable ? "unreachable" : view.drained ? "drained" : "ready");
    node.set_rpc_address(view.rpc_address);
    node.set_stream_address(view.stream_address);
    *node.mutable_facts() = view.facts;
    node.set_last_seen_us_ago(static_cast<std::uint64_t>(view.silent_for.count() / 1000));
    for (const auto& workload : runs[view.name]) node.add_workloads(workload);
    for (const auto& workload : stands[view.name]) node.add_standby_for(workload);
  }
  return out;
}

Result<pb::ListWorkloadsResponse> Coordinator::list_workloads() {
  BATON_ASSIGN(auto records, store_.list<pb::WorkloadRecord>());
  pb::ListWorkloadsResponse out;
  for (const auto& record : records) {
    auto one = known(record.value.spec().name());
    if (one) *out.add_workloads() = describe(*one);
  }
  return out;
}

Result<pb::WorkloadInfo> Coordinator::show_workload(const std::string& name) {
  BATON_ASSIGN(auto one, known(name));
  return describe(one);
}

// --- sessions ------------------------------------------------------------------------------

Result<std::shared_ptr<Session>> Coordinator::open_session(const std::string& node,
                                                           const pb::NodeReport& first) {
  BATON_TRY(check_name("node", node));
  if (first.facts().name() != node) {
    return make_error(Code::kNotAllowed, "register node",
                      "the certificate names " + node + ", the report names '" +
                          first.facts().name() + "'",
                      "Start the agent with its own certificate.");
  }
  if (first.rpc_address().empty() || first.stream_address().empty()) {
    return make_error(Code::kInvalid, "register node", node + " gave no address to reach it at");
  }
  BATON_ASSIGN(auto stored, store_.get<pb::NodeRecord>(node));
  if (stored.version == 0 && membership_.views().size() >= kMaxNodes) {
    return make_error(Code::kNoSpace, "register node",
                      "there are " + std::to_string(kMaxNodes) + " nodes already");
  }
  pb::NodeRecord record;
  record.set_name(node);
  record.set_rpc_address(first.rpc_address());
  record.set_stream_address(first.stream_address());
  *record.mutable_facts() = first.facts();
  record.set_drained(stored.value.drained());
  record.set_registered_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
  BATON_TRY(commit(Transaction()
                       .put(node, stored.version, record)
                       .event(make_event("node", "", node, node + " registered", node))));
  BATON_TRY(fault_point("coordinator.session.registered"));
  auto session = std::make_shared<Session>();
  session->node = node;
  session->number = membership_.register_node(record);
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return make_error(Code::kCancelled, "register node", "shutting down");
    sessions_.insert(session.get());
    unreachable_.erase(node);
    for (Session* other : sessions_) {
      if (other != session.get() && other->node == node) other->closed = true;
      other->due = true;
    }
  }
  auto taken = report(*session, first);
  if (!taken) {
    close_session(*session);
    return taken.error();
  }
  changed_.notify_all();
  background([this, node](std::stop_token) { return_standbys(node); });
  return session;
}

Result<void> Coordinator::report(Session& session, const pb::NodeReport& report) {
  if (static_cast<std::size_t>(report.workloads_size()) > kMaxReportedWorkloads ||
      static_cast<std::size_t>(report.held_size()) > kMaxReportedWorkloads) {
    return make_error(Code::kInvalid, "node report", session.node + " reports too many workloads");
  }
  if (!membership_.report(session.node, session.number, report)) {
    return make_error(Code::kConflict, "node report",
                      session.node + " has opened another session since");
  }
  if (report.events_size() > 0) {
    Transaction transaction;
    for (pb::Event event : report.events()) {
      event.set_node(session.node);
      event.set_who(session.node);
      if (event.wall_ns() == 0) {
        event.set_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
      }
      transaction.event(std::move(event));
    }
    BATON_TRY(commit(transaction));
  }
  std::set<std::string> names;
  for (const auto& status : report.workloads()) names.insert(status.name());
  // Copies and programs of deleted workloads, found when their node comes back.
  std::set<std::string> present = names;
  for (const auto& held : report.held()) present.insert(held.workload());
  for (const auto& name : present) {
    BATON_ASSIGN(auto owner, registry_.get(name));
    const std::string key = session.node + "/" + name;
    if (owner && owner->deleted()) {
      const bool has_program = names.contains(name);
      {
        std::lock_guard lock(mutex_);
        if (!cleaning_.insert(key).second) continue;
      }
      background([this, node = session.node, owner = *owner, has_program,
                  key](std::stop_token) {
        clean_late_holder(node, owner, has_program);
        std::lock_guard lock(mutex_);
        cleaning_.erase(key);
      });
    } else if (!owner && names.contains(name)) {
      // Perhaps our own state was lost: touch nothing, and say so.
      std::lock_guard lock(mutex_);
      if (strangers_.insert(key).second) {
        spdlog::warn("{} runs {}, which this coordinator has never heard of", session.node, name);
      }
    }
  }
  {
    std::lock_guard lock(mutex_);
    session.reported = std::move(names);
    session.due = true;
  }
  changed_.notify_all();
  return {};
}

void Coordinator::wake_sessions() {
  {
    std::lock_guard lock(mutex_);
    for (Session* session : sessions_) session->due = true;
  }
  changed_.notify_all();
}

std::optional<pb::NodeOrder> Coordinator::next_order(Session& session) {
  std::set<std::string> reported;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return session.due || session.closed || stopping_; });
    if (session.closed || stopping_) return std::nullopt;
    session.due = false;
    reported = session.reported;
  }
  pb::NodeOrder order;
  order.set_heartbeat_us(
      static_cast<std::uint64_t>(std::chrono::microseconds(kHeartbeat).count()));
  pb::NodeOrder peers;
  for (const auto& view : membership_.views()) {
    if (view.rpc_address.empty()) continue;
    auto& one = *peers.add_peers();
    one.set_node(view.name);
    one.set_rpc(view.rpc_address);
    one.set_stream(view.stream_address);
  }
  const std::string peers_bytes = peers.SerializeAsString();
  const bool peers_new = peers_bytes != session.sent_peers;
  if (peers_new) *order.mutable_peers() = peers.peers();
  session.sent_peers = peers_bytes;

  std::map<std::string, std::string> sets;
  for (const auto& name : reported) {
    auto owner = registry_.get(name);
    if (!owner || !*owner) continue;
    // A late holder of a protected program is asked to release it, not to stop it.
    if ((*owner)->deleted() && (*owner)->keep_program()) continue;
    auto operation = store_.get<pb::OperationRecord>(name);
    const bool moving = operation && operation->version != 0 &&
                        operation->value.kind() == "migrate" && ours(operation->value);
    if (!moving) {  // during a migration source and target go by the owner record themselves
      auto& ownership = *order.add_ownerships();
      ownership.set_workload(name);
      ownership.set_owner((*owner)->owner());
      ownership.set_incarnation((*owner)->incarnation());
    }
    if ((*owner)->owner() != session.node || moving) {
      if (moving && session.sent_standbys.contains(name)) sets[name] = session.sent_standbys[name];
      continue;
    }
    auto workload = known(name);
    if (!workload) continue;
    pb::StandbySet set;
    set.set_workload(name);
    for (const auto& standby : standbys_of(*workload)) *set.add_standbys() = peer(standby);
    *set.mutable_spec() = wire_spec(*workload);
    sets[name] = set.SerializeAsString();
    auto sent = session.sent_standbys.find(name);
    if (sent == session.sent_standbys.end() || sent->second != sets[name]) {
      *order.add_standbys() = std::move(set);
    }
  }
  session.sent_standbys = std::move(sets);
  return order;
}

void Coordinator::close_session(Session& session) {
  {
    std::lock_guard lock(mutex_);
    session.closed = true;
    sessions_.erase(&session);
  }
  membership_.end_session(session.node, session.number);
  changed_.notify_all();
}

// --- owner records, asked for by agents -----------------------------------------------------

Result<pb::Ownership> Coordinator::change_owner(const std::string& node,
                                                const pb::ChangeOwnerRequest& request) {
  BATON_ASSIGN(auto now, registry_.get(request.workload()));
  if (!now || now->deleted()) {
    return make_error(Code::kNotFound, "change owner", "no workload named " + request.workload());
  }
  const bool repeat = now->incarnation() == request.expected_incarnation() + 1 &&
                      now->previous_owner() == node;
  if (now->owner() != node && !repeat) {
    return make_error(Code::kNotAllowed, "change owner",
                      node + " does not own " + request.workload() + ": " +
                          (now->owner().empty() ? "nobody" : now->owner()) + " does, incarnation " +
                          std::to_string(now->incarnation()));
  }
  if (!membership_.view(request.new_owner())) {
    return make_error(Code::kNotFound, "change owner", "no node named " + request.new_owner());
  }
  if (!repeat) {
    BATON_ASSIGN(auto operation, store_.get<pb::OperationRecord>(request.workload()));
    if (operation.version != 0 && operation.value.kind() != "migrate") {
      return make_error(Code::kConflict, "change owner",
                        request.workload() + ": a " + operation.value.kind() + " is under way");
    }
  }
  OwnerChange change;
  change.workload = request.workload();
  change.expected_incarnation = request.expected_incarnation();
  change.new_owner = request.new_owner();
  change.reason = request.reason().empty() ? "migrate" : request.reason();
  change.committed_seq = request.committed_seq();
  return registry_.change_owner(change);
}

Result<pb::Ownership> Coordinator::get_owner(const std::string& workload) {
  BATON_ASSIGN(auto now, registry_.get(workload));
  if (!now) {
    return make_error(Code::kNotFound, "owner record", "no workload named " + workload);
  }
  pb::Ownership out;
  out.set_workload(workload);
  out.set_owner(now->owner());
  out.set_incarnation(now->incarnation());
  return out;
}

}  // namespace baton::coordinator
