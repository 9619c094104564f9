// Node as the target of a migration: prepare, build, activate, discard. Each may come
// again when its answer was lost, and answers as the first time.
#include "agent/node/busy.h"
#include "agent/node/node.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/fd.h"
#include "base/log.h"

namespace baton::node {
namespace {
using namespace std::chrono_literals;
constexpr auto kBuildAheadWait = 60'000ms;   // the program runs meanwhile
constexpr auto kFollowWait = 2'000ms;        // it does not: rather the long way then
}  // namespace

Result<void> Node::check_target_files(const std::vector<pb::FileProof>& files, std::vector<std::string>& missing) {
  if (files.empty()) return {};
  pb::ProveFilesRequest prove;
  for (const auto& file : files) *prove.add_files() = file;
  BATON_ASSIGN(auto proved, env_.warden->prove_files(prove));
  for (int i = 0; i < proved.files_size() && i < static_cast<int>(files.size()); ++i) {
    const auto& verdict = proved.files(i);
    if (verdict.same()) continue;
    // A checkpoint names files without a digest when they were open for writing: their
    // content went on changing, being there is what counts.
    const bool there = !verdict.actual().sha256().empty();
    if (there && files[static_cast<std::size_t>(i)].sha256().empty()) continue;
    missing.push_back(verdict.path());
  }
  return {};
}

Result<pb::PrepareTargetResponse> Node::prepare_target(const pb::PrepareTargetRequest& request) {
  BATON_TRY(fault_point("agent.target.prepare"));
  const std::string& name = request.name();
  pb::PrepareTargetResponse response;
  auto refuse = [&](const std::string& resource, const std::string& detail) {
    auto* verdict = response.add_problems();
    verdict->set_resource(resource);
    verdict->set_kind("target");
    verdict->set_verdict("refused");
    verdict->set_detail(detail);
  };
  if (auto running = find(name); running && running->state() != "moved") {
    refuse("name " + name, "it is taken on " + options_.name + " (" + running->state() + ")");
  }
  BATON_ASSIGN(auto known, facts());
  for (auto& problem : machine_problems(request.machine(), known)) *response.add_problems() = problem;
  if (request.memory_bytes() > known.memory_free_bytes()) {
    refuse("memory", options_.name + " has " + std::to_string(known.memory_free_bytes() >> 20) + " MiB free, " +
                         std::to_string(request.memory_bytes() >> 20) + " MiB are needed");
  }
  std::vector<std::string> missing;
  BATON_TRY(check_target_files({request.files().begin(), request.files().end()}, missing));
  for (auto& path : missing) response.add_missing_files(std::move(path));
  return response;
}

Result<void> Node::note_incoming(const pb::BuildTargetRequest& request, bool shadow) {
  BATON_TRY(replace_file(incoming_path(request.name()), request.SerializeAsString()));
  std::lock_guard lock(mutex_);
  incoming_[request.name()] = {request, env_.clock->boot_now(), shadow};
  return {};
}

void Node::forget_incoming(const std::string& name) {
  {
    std::lock_guard lock(mutex_);
    incoming_.erase(name);
  }
  erase_file(incoming_path(name));
}

bool Node::built_ahead(const std::string& name, std::uint64_t incarnation) const {
  std::lock_guard lock(mutex_);
  auto it = incoming_.find(name);
  return it != incoming_.end() && it->second.shadow && it->second.request.incarnation() == incarnation;
}

// While the program still runs: a shadow of the newest checkpoint, which follows the later
// ones by itself. What takes time is done here: proofs, the record on disk, the memory.
Result<pb::BuildTargetResponse> Node::build_ahead(const pb::BuildTargetRequest& request) {
  const std::string& name = request.name();
  BATON_TRY(fault_point("agent.target.ahead"));
  auto standby = standbys_.find(name);
  if (!standby) return make_error(Code::kNotFound, "build", name + "@" + std::to_string(request.seq()) + " is not held on " + options_.name);
  erase_file(state_path(name));  // of an earlier stay here
  pb::BuildTargetRequest record = request;
  record.set_seq(0);             // whatever is the newest when it comes to that
  BATON_TRY(note_incoming(record, true));
  standby->want_hot(true);
  if (!standby->wait_hot(request.seq(), kBuildAheadWait)) {
    auto view = standby->view();
    standby->want_hot(false);
    forget_incoming(name);
    return make_error(Code::kUnsupported, "build", name + ": no shadow on " + options_.name + (view.problem.empty() ? " in time" : ": " + view.problem));
  }
  return pb::BuildTargetResponse();
}

// `away_ns` 0: the program still runs (build_ahead).
Result<pb::BuildTargetResponse> Node::build_target(const pb::BuildTargetRequest& request) {
  const std::string& name = request.name();
  const auto begin = env_.clock->monotonic_now();
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  if (auto running = find(name)) {
    if (running->state() != "moved") {
      return make_error(Code::kConflict, "build", name + " is " + running->state() + " on " + options_.name);
    }
    remove(name);
  }
  pb::BuildTargetResponse response;
  auto took = [&] {
    response.set_build_us(static_cast<std::uint64_t>((env_.clock->monotonic_now() - begin).count() / 1000));
    return response;
  };
  if (request.away_ns() == 0) {
    BATON_TRY(build_ahead(request));
    return took();
  }
  if (built_ahead(name, request.incarnation())) {
    BATON_TRY(fault_point("agent.target.build"));
    auto standby = standbys_.find(name);
    if (standby && standby->wait_hot(request.seq(), kFollowWait)) {
      BATON_TRY(fault_point("agent.target.built"));
      return took();
    }
    spdlog::warn("{}: its shadow is not at @{}: building it from the store", name, request.seq());
  }
  standbys_.remove(name);
  BATON_ASSIGN(auto image, load_image(*env_.store, name, request.seq()));
  if (image.incarnation != request.incarnation()) {
    return make_error(Code::kConflict, "build", name + "@" + std::to_string(request.seq()) + " is of incarnation " +
                                                    std::to_string(image.incarnation) + ", not " +
                                                    std::to_string(request.incarnation()));
  }
  erase_file(state_path(name));  // of an earlier stay here
  BATON_TRY(note_incoming(request, false));
  auto point = fault_point("agent.target.build");
  pb::BuildRequest build;
  build.set_workload(name);
  *build.mutable_manifest() = image.manifest;
  *build.mutable_spec() = request.spec();
  build.set_away_ns(request.away_ns());
  build.set_incarnation(request.incarnation() + 1);
  build.set_connections(true);   // the source is frozen at this checkpoint, or will be at the last that is applied
  StoreSource source(*env_.store, image.identity, image.hasher);
  auto built = point ? build_and_fill(*env_.warden, source, image, build, {}) : point;
  if (!built) {
    forget_incoming(name);
    return built.error();
  }
  BATON_TRY(fault_point("agent.target.built"));
  return took();
}

Result<pb::ActivateTargetResponse> Node::activate_target(const pb::ActivateTargetRequest& request) {
  const std::string& name = request.name();
  const auto begin = env_.clock->monotonic_now();
  const pb::Ownership& ownership = request.ownership();
  if (ownership.owner() != options_.name) {
    return make_error(Code::kInvalid, "activate", name + ": the record names " + ownership.owner());
  }
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  pb::ActivateTargetResponse response;
  if (auto running = find(name); running && running->state() != "moved") {
    if (running->incarnation() < ownership.incarnation()) {
      return make_error(Code::kConflict, "activate", name + " runs here at an older incarnation");
    }
    response.set_pid(running->status().pid());
    return response;
  }
  BATON_TRY(fault_point("agent.target.activate"));
  std::optional<Incoming> incoming;
  {
    std::lock_guard lock(mutex_);
    if (auto it = incoming_.find(name); it != incoming_.end()) incoming = it->second;
  }
  pb::WorkloadSpec spec = request.spec();
  if (spec.name().empty() && incoming) spec = incoming->request.spec();
  pb::ActivateRequest activate;
  activate.set_workload(name);
  activate.set_away_ns(request.away_ns());
  if (activate.away_ns() == 0 && incoming) {
    activate.set_away_ns(incoming->request.away_ns() +
                         static_cast<std::uint64_t>((env_.clock->boot_now() - incoming->since).count()));
  }
  Result<pb::WorkloadProcess> process = make_error(Code::kNotFound, "activate", "no shadow");
  if (auto standby = standbys_.find(name)) {
    ActivationOrder order;
    order.incarnation = ownership.incarnation();
    order.spec = spec;
    order.lease = [&] { return lease_for(name, ownership.incarnation()); };
    auto activated = standby->activate(order);
    if (activated && *activated) process = std::move((*activated)->process);
    else if (!activated) process = activated.error();
  }
  const auto answered = env_.clock->monotonic_now();
  const bool from_standby = process.has_value();
  standbys_.remove(name, true);
  Barred barred(standbys_, name);
  {
    // From here on it may run, whatever the warden has answered: no shadow any more, that a new
    // standby of this name would look after (discard_target).
    std::lock_guard lock(mutex_);
    if (auto it = incoming_.find(name); it != incoming_.end()) it->second.shadow = false;
  }
  if (!process) {
    BATON_ASSIGN(const std::uint64_t until, lease_for(name, ownership.incarnation()));
    activate.set_incarnation(ownership.incarnation());
    activate.set_lease_until_ns(until);
    process = env_.warden->activate(activate);
  }
  if (!process) {
    if (process.error().code == Code::kUnreachable) return process.error();
    // Already running (our answer was lost, this agent restarted), or no longer built: then
    // its newest committed checkpoint is the final one, and nothing is lost.
    BATON_ASSIGN(auto listed, env_.warden->list());
    bool runs = false;
    for (const auto& one : listed) {
      if (one.workload() != name || one.state() != "running") continue;
      process = one;
      runs = true;
    }
    if (!runs) {
      spdlog::warn("{}: what was built is not there ({}); building it again", name, process.error().message());
      (void)env_.warden->stop(name, 0, true);
      BATON_ASSIGN(auto image, load_image(*env_.store, name, incoming ? incoming->request.seq() : 0));
      pb::BuildRequest build;
      build.set_workload(name);
      *build.mutable_manifest() = image.manifest;
      *build.mutable_spec() = spec;
      build.set_incarnation(ownership.incarnation());
      build.set_connections(true);   // it is the one at which the source was frozen
      const auto wall = static_cast<std::uint64_t>(env_.clock->wall_now().count());
      build.set_away_ns(wall > image.freeze_wall_ns ? wall - image.freeze_wall_ns : 0);
      StoreSource source(*env_.store, image.identity, image.hasher);
      BATON_TRY(build_and_fill(*env_.warden, source, image, build, {}));
      activate.set_away_ns(build.away_ns());
      BATON_ASSIGN(const std::uint64_t until, lease_for(name, ownership.incarnation()));
      activate.set_lease_until_ns(until);
      BATON_ASSIGN(auto started, env_.warden->activate(activate));
      process = started;
    }
  }
  // It runs. What follows is this node's book-keeping, and no part of the pause.
  const auto ran = from_standby ? answered : env_.clock->monotonic_now();
  response.set_activate_us(static_cast<std::uint64_t>((ran - begin).count() / 1000));
  if (auto raised = env_.store->raise_incarnation(name, ownership.incarnation()); !raised) {
    spdlog::warn("{}: {}", name, raised.error().message());
  }
  std::vector<pb::PeerAddress> standbys;
  for (const auto& peer : request.standbys()) {
    if (peer.node() != options_.name) standbys.push_back(peer);
  }
  BATON_TRY(enter(spec, ownership.incarnation(), *process, next_seq(name), standbys));
  forget_incoming(name);
  add_event("activated", name, "pid " + std::to_string(process->pid()) + ", incarnation " +
                                   std::to_string(ownership.incarnation()));
  BATON_TRY(fault_point("agent.target.activated"));
  response.set_pid(process->pid());
  return response;
}

// Only what was built and never activated; a running workload is not touched.
Result<void> Node::discard_target(const std::string& name) {
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  bool shadow = false;
  {
    std::lock_guard lock(mutex_);
    auto it = incoming_.find(name);
    if (it == incoming_.end()) return {};
    shadow = it->second.shadow;
  }
  if (find(name)) return make_error(Code::kConflict, "discard", name + " runs on " + options_.name);
  if (auto standby = standbys_.find(name); standby && shadow) {
    standby->want_hot(false);   // what its spec says from now on
  } else {
    auto gone = env_.warden->stop(name, 0, true);
    if (!gone && gone.error().code != Code::kNotFound) return gone;
  }
  forget_incoming(name);
  return {};
}

}  // namespace baton::node
