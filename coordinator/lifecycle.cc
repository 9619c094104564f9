// Coordinator: run, protect, apply, delete, checkpoint.
#include <algorithm>

#include "base/fault_point.h"
#include "base/log.h"
#include "coordinator/coordinator.h"
#include "coordinator/random.h"
#include "coordinator/spec_rules.h"

namespace baton::coordinator {
namespace {

constexpr std::size_t kDomainBytes = 16;
constexpr std::size_t kHashKeyBytes = 32;
constexpr std::uint64_t kStopGraceUs = 5'000'000;
constexpr std::size_t kMaxSpecsPerApply = 256;

bool outcome_unknown(const Error& error) {
  return error.code == Code::kUnreachable || error.code == Code::kTimedOut ||
         error.code == Code::kUnknownOutcome || error.code == Code::kCancelled;
}

std::string refusals(const google::protobuf::RepeatedPtrField<pb::Verdict>& verdicts) {
  std::string out;
  for (const auto& verdict : verdicts) {
    if (verdict.verdict() != "refused") continue;
    if (!out.empty()) out += "; ";
    out += (verdict.pid() ? "pid " + std::to_string(verdict.pid()) + " " : "") +
           verdict.resource() + ": " + verdict.kind() +
           (verdict.detail().empty() ? "" : " (" + verdict.detail() + ")");
  }
  return out;
}

Error name_taken(const std::string& name) {
  return make_error(Code::kConflict, "run", "the name " + name + " is taken",
                    "Choose another name, or baton delete " + name + " first.");
}

}  // namespace

Result<Placement> Coordinator::place_spec(const pb::WorkloadSpec& spec) {
  PlacementRequest request;
  request.node = spec.node();
  request.standbys.assign(spec.standbys().begin(), spec.standbys().end());
  request.standby_count = spec.standby_count();
  request.standbys_optional = spec.standby_count() <= 1;
  request.require_features.assign(spec.require_features().begin(), spec.require_features().end());
  request.needs_volumes = spec.volumes_size() > 0;
  request.standbys_hold_memory = spec.mode() == pb::MODE_WARM || spec.mode() == pb::MODE_HOT;
  return place(request, candidates());
}

Result<pb::WorkloadInfo> Coordinator::run(const pb::RunWorkloadRequest& request,
                                          const std::string& who) {
  pb::WorkloadSpec spec = request.spec();
  BATON_TRY(check_spec(spec));
  fill_defaults(spec);
  if (!request.dry_run()) return start_workload(std::move(spec), who);

  BATON_ASSIGN(auto stored, store_.get<pb::WorkloadRecord>(spec.name()));
  if (stored.version != 0) return name_taken(spec.name());
  BATON_ASSIGN(auto placement, place_spec(spec));
  pb::WorkloadInfo info;
  spec.set_node(placement.node);
  spec.clear_standbys();
  for (const auto& standby : placement.standbys) spec.add_standbys(standby);
  *info.mutable_spec() = spec;
  for (const auto& line : placement.why) info.add_why(line);
  info.mutable_status()->set_name(spec.name());
  info.mutable_status()->set_node(placement.node);
  if (spec.origin() == pb::ORIGIN_PROTECT) {
    BATON_ASSIGN(auto view, ready_node(placement.node, "dry run"));
    pb::AgentInspectRequest inspect;
    inspect.set_name(spec.name());
    inspect.set_pid(spec.pid());
    *inspect.mutable_spec() = spec;
    if (!placement.standbys.empty()) {
      *inspect.mutable_target() = peer(placement.standbys.front());
    }
    BATON_ASSIGN(auto response, agent_of(view)->inspect(inspect));
    *info.mutable_verdicts() = response.verdicts();
    info.mutable_status()->set_state(response.acceptable() ? "acceptable" : "refused");
  }
  return info;
}

Result<pb::WorkloadInfo> Coordinator::start_workload(pb::WorkloadSpec spec,
                                                     const std::string& who) {
  const std::string name = spec.name();
  const bool keep = spec.origin() == pb::ORIGIN_PROTECT;
  BATON_ASSIGN(auto stored, store_.get<pb::WorkloadRecord>(name));
  if (stored.version != 0) return name_taken(name);
  BATON_ASSIGN(auto placement, place_spec(spec));
  BATON_ASSIGN(auto view, ready_node(placement.node, "run"));

  spec.set_domain(random_hex(kDomainBytes));
  spec.set_hash_key(random_bytes(kHashKeyBytes));
  pb::WorkloadRecord record;
  *record.mutable_spec() = spec;
  for (const auto& standby : placement.standbys) record.add_standbys(standby);
  record.set_wanted_standbys(
      std::max(spec.standby_count(), static_cast<std::uint32_t>(placement.standbys.size())));
  for (const auto& line : placement.why) record.add_why(line);
  record.set_created_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));

  // The spec is durable before anything happens on a node.
  pb::OperationRecord operation;
  operation.set_workload(name);
  operation.set_kind("run");
  operation.set_to(placement.node);
  auto begun = begin(operation, Transaction()
                                    .put(name, 0, record)
                                    .event(make_event("run", name, placement.node,
                                                      "starting on " + placement.node, who)));
  if (!begun) {
    auto again = store_.get<pb::WorkloadRecord>(name);
    if (begun.error().code == Code::kConflict && again && again->version != 0) {
      return name_taken(name);
    }
    return begun.error();
  }
  auto start = [&]() -> Result<pb::StartResponse> {
    BATON_TRY(fault_point("coordinator.run.recorded"));
    BATON_ASSIGN(auto ownership, registry_.create(name, placement.node, "run"));
    BATON_TRY(fault_point("coordinator.run.owned"));
    pb::StartRequest request;
    BATON_ASSIGN(auto one, known(name));
    *request.mutable_spec() = wire_spec(one);
    *request.mutable_ownership() = ownership;
    for (const auto& other : membership_.views()) {
      if (other.name != placement.node) *request.add_peers() = peer(other.name);
    }
    return agent_of(view)->start(request);
  };
  auto started = start();
  Result<void> outcome;
  if (!started) {
    outcome = started.error();
    if (outcome_unknown(started.error())) {
      // It may run. It is ended before the name is given back; a node that cannot be
      // told now finds the owner record retired when it comes back.
      pb::StopWorkloadRequest stop;
      stop.set_name(name);
      stop.set_keep_program(keep);
      if (auto owner = registry_.get(name); owner && *owner) {
        stop.set_incarnation((*owner)->incarnation());
      }
      (void)agent_of(view)->stop(stop);
    }
  } else if (started->status().state() == "failed" ||
             (started->status().pid() == 0 && !refusals(started->verdicts()).empty())) {
    std::string reason = refusals(started->verdicts());
    if (reason.empty()) reason = started->status().problem();
    outcome = make_error(Code::kUnsupported, keep ? "protect" : "run",
                         name + " on " + placement.node + ": " + reason);
  }
  if (!outcome) {
    undo_run(name, keep, outcome.error().message());
    return outcome.error();
  }
  (void)fault_point("coordinator.run.started");
  membership_.note(placement.node, started->status());
  log_event(make_event("run", name, placement.node,
                       "running on " + placement.node + ", pid " +
                           std::to_string(started->status().pid()),
                       who));
  BATON_TRY(finish(name));
  BATON_ASSIGN(auto info, show_workload(name));
  *info.mutable_verdicts() = started->verdicts();
  return info;
}

void Coordinator::undo_run(const std::string& name, bool keep_program, const std::string& why) {
  if (auto owner = registry_.get(name); owner && *owner && !(*owner)->deleted()) {
    auto retired = registry_.retire(name, (*owner)->incarnation(), keep_program);
    if (!retired) spdlog::error("{}", retired.error().message());
  }
  auto record = store_.get<pb::WorkloadRecord>(name);
  auto operation = store_.get<pb::OperationRecord>(name);
  if (!record || !operation) return;  // the disk: found again at the next start
  Transaction transaction;
  if (record->version != 0) transaction.erase<pb::WorkloadRecord>(name, record->version);
  if (operation->version != 0) transaction.erase<pb::OperationRecord>(name, operation->version);
  transaction.event(make_event("run", name, operation->value.to(), "not started: " + why));
  auto done = commit(transaction);
  if (!done) spdlog::error("{}", done.error().message());
}

Result<pb::ApplyResponse> Coordinator::apply(const pb::ApplyRequest& request,
                                             const std::string& who) {
  if (static_cast<std::size_t>(request.specs_size()) > kMaxSpecsPerApply) {
    return make_error(Code::kInvalid, "apply",
                      "more than " + std::to_string(kMaxSpecsPerApply) + " workloads");
  }
  std::set<std::string> names;
  for (const auto& spec : request.specs()) {
    BATON_TRY(check_spec(spec));
    if (!names.insert(spec.name()).second) {
      return make_error(Code::kInvalid, "apply", spec.name() + " is there twice");
    }
  }
  pb::ApplyResponse out;
  for (pb::WorkloadSpec spec : request.specs()) {
    fill_defaults(spec);
    auto& change = *out.add_changes();
    change.set_name(spec.name());
    auto refuse = [&](const Error& error) {
      change.set_action("refuse");
      change.set_detail(error.message());
    };
    auto stored = store_.get<pb::WorkloadRecord>(spec.name());
    if (!stored) return stored.error();
    if (stored->version == 0) {
      change.set_action("create");
      if (request.dry_run()) {
        auto placement = place_spec(spec);
        if (!placement) {
          refuse(placement.error());
        } else {
          change.set_detail("on " + placement->node);
        }
        continue;
      }
      auto started = start_workload(spec, who);
      if (!started) {
        refuse(started.error());
      } else {
        change.set_detail("on " + started->status().node());
      }
      continue;
    }
    const auto difference = compare_specs(stored->value.spec(), spec);
    auto list = [](const std::vector<std::string>& fields) {
      std::string text;
      for (const auto& field : fields) text += (text.empty() ? "" : ", ") + field;
      return text;
    };
    if (!difference.fixed.empty()) {
      change.set_action("refuse");
      change.set_detail(list(difference.fixed) +
                        " cannot change while it runs: delete it and apply again");
    } else if (difference.changeable.empty()) {
      change.set_action("none");
    } else {
      change.set_action("update");
      change.set_detail(list(difference.changeable));
      if (!request.dry_run()) {
        auto updated = update_workload(spec, who);
        if (!updated) refuse(updated.error());
      }
    }
  }
  return out;
}

Result<void> Coordinator::update_workload(const pb::WorkloadSpec& wanted, const std::string& who) {
  BATON_ASSIGN(auto one, known(wanted.name()));
  pb::WorkloadRecord record = one.record.value;
  pb::WorkloadSpec spec = wanted;
  spec.set_domain(record.spec().domain());
  spec.set_hash_key(record.spec().hash_key());
  spec.set_node(record.spec().node());
  const bool same_named =
      wanted.standbys_size() == record.spec().standbys_size() &&
      std::equal(wanted.standbys().begin(), wanted.standbys().end(),
                 record.spec().standbys().begin());
  if (wanted.standbys_size() > 0 && !same_named) {
    record.clear_standbys();
    for (const auto& standby : wanted.standbys()) {
      BATON_TRY(ready_node(standby, "apply"));
      if (standby == one.owner.owner()) {
        return make_error(Code::kInvalid, "apply",
                          wanted.name() + " runs on " + standby + ", it cannot stand by there");
      }
      record.add_standbys(standby);
    }
    record.set_wanted_standbys(static_cast<std::uint32_t>(wanted.standbys_size()));
  } else if (wanted.standbys_size() == 0) {
    PlacementRequest request;
    request.standby_count = wanted.standby_count();
    auto chosen = choose_standbys(request, one.owner.owner(), standbys_of(one), candidates());
    record.clear_standbys();
    for (const auto& standby : chosen.standbys) record.add_standbys(standby);
    record.set_wanted_standbys(wanted.standby_count());
  }
  *record.mutable_spec() = spec;
  BATON_TRY(commit(Transaction()
                       .put(wanted.name(), one.record.version, record)
                       .event(make_event("apply", wanted.name(), one.owner.owner(),
                                         "the spec was changed", who))));
  wake_sessions();
  return {};
}

Result<void> Coordinator::remove(const pb::DeleteRequest& request, const std::string& who) {
  const std::string& name = request.name();
  BATON_ASSIGN(auto one, known(name));
  const bool keep = one.record.value.spec().origin() == pb::ORIGIN_PROTECT &&
                    !request.stop_program();
  if (!keep && !request.stop_program()) {
    return make_error(Code::kInvalid, "delete",
                      name + " was started by baton run: deleting it stops the program",
                      "Say so with --yes.");
  }
  pb::OperationRecord operation;
  operation.set_workload(name);
  operation.set_kind("delete");
  operation.set_from(one.owner.owner());
  operation.set_incarnation(one.owner.incarnation());
  operation.set_seq(keep ? 1 : 0);  // whether the program runs on, for a restarted coordinator
  BATON_ASSIGN(auto begun, begin(operation));
  auto stop_it = [&]() -> Result<void> {
    BATON_TRY(fault_point("coordinator.delete.recorded"));
    auto view = membership_.view(one.owner.owner());
    if (!view || !view->reachable) return {};  // told when it comes back
    pb::StopWorkloadRequest stop;
    stop.set_name(name);
    stop.set_keep_program(keep);
    stop.set_grace_us(kStopGraceUs);
    stop.set_incarnation(one.owner.incarnation());
    auto stopped = agent_of(*view)->stop(stop);
    if (!stopped && stopped.error().code != Code::kNotFound &&
        stopped.error().code != Code::kTraceeGone && !outcome_unknown(stopped.error())) {
      return stopped;
    }
    return {};
  };
  auto stopped = stop_it();
  if (!stopped) {
    (void)finish(name);
    return stopped;
  }
  (void)fault_point("coordinator.delete.stopped");
  // Its node has asked its voters, if it was there to do so.
  auto incarnation = one.owner.incarnation();
  if (voted(one.owner)) {
    (void)wait_record(name, incarnation + 1);
    if (auto ended = end_voting(name, "deleted"); !ended) {
      (void)finish(name);
      return ended;
    }
    BATON_ASSIGN(auto now, registry_.get(name));
    incarnation = now ? now->incarnation() : incarnation;
  }
  BATON_TRY(registry_.retire(name, incarnation, keep));
  for (const auto& view : membership_.views()) {
    membership_.forget(view.name, name);
    if (!view.reachable) continue;
    auto dropped = agent_of(view)->drop_workload(name);
    if (!dropped && dropped.error().code != Code::kNotFound) {
      spdlog::warn("{} keeps checkpoints of {} until it is told again: {}", view.name, name,
                   dropped.error().message());
    }
  }
  BATON_ASSIGN(auto record, store_.get<pb::WorkloadRecord>(name));
  BATON_ASSIGN(auto under_way, store_.get<pb::OperationRecord>(name));
  Transaction transaction;
  if (record.version != 0) transaction.erase<pb::WorkloadRecord>(name, record.version);
  if (under_way.version != 0) transaction.erase<pb::OperationRecord>(name, under_way.version);
  transaction.event(make_event("delete", name, one.owner.owner(),
                               keep ? "protection ended, the program runs on"
                                    : "stopped and deleted",
                               who));
  BATON_TRY(commit(transaction));
  wake_sessions();
  return {};
}

void Coordinator::clean_late_holder(const std::string& node, const pb::OwnerRecord& owner,
                                    bool has_program) {
  auto view = membership_.view(node);
  if (!view || !view->reachable) return;
  auto agent = agent_of(*view);
  if (has_program) {
    pb::StopWorkloadRequest stop;
    stop.set_name(owner.workload());
    stop.set_keep_program(owner.keep_program());
    stop.set_grace_us(kStopGraceUs);
    stop.set_incarnation(owner.incarnation());
    auto stopped = agent->stop(stop);
    if (!stopped && stopped.error().code != Code::kNotFound) {
      spdlog::warn("{} still holds the deleted {}: {}", node, owner.workload(),
                   stopped.error().message());
      return;
    }
  }
  // The name may have been taken again since it was reported.
  auto now = registry_.get(owner.workload());
  if (!now || !*now || !(*now)->deleted()) return;
  auto dropped = agent->drop_workload(owner.workload());
  if (dropped) {
    membership_.forget(node, owner.workload());
    log_event(make_event("delete", owner.workload(), node,
                         "its copy on " + node + " was dropped"));
  }
}

Result<pb::CheckpointInfo> Coordinator::checkpoint(const pb::CheckpointNowRequest& request) {
  BATON_ASSIGN(auto one, known(request.name()));
  BATON_ASSIGN(auto view, ready_node(one.owner.owner(), "checkpoint " + request.name()));
  return agent_of(view)->checkpoint_now(request);
}

Result<void> Coordinator::logs(const pb::AgentLogsRequest& request,
                               const Sink<pb::LogChunk>& sink, std::stop_token stop) {
  BATON_ASSIGN(auto one, known(request.name()));
  BATON_ASSIGN(auto view, ready_node(one.owner.owner(), "logs " + request.name()));
  return agent_of(view)->logs(request, sink, stop);
}

Result<pb::AgentInspectResponse> Coordinator::inspect(const pb::InspectWorkloadRequest& request) {
  pb::AgentInspectRequest ask;
  ask.set_name(request.name());
  ask.set_pid(request.pid());
  *ask.mutable_spec() = request.spec();
  std::string node = request.node();
  if (request.pid() == 0) {
    BATON_ASSIGN(auto one, known(request.name()));
    node = one.owner.owner();
    *ask.mutable_spec() = wire_spec(one);
    if (request.to() == node) {
      return make_error(Code::kInvalid, "migrate", request.name() + " is already on " + node);
    }
  }
  BATON_ASSIGN(auto view, ready_node(node, "inspect"));
  if (!request.to().empty()) {
    BATON_ASSIGN(auto target, ready_node(request.to(), "inspect"));
    *ask.mutable_target() = peer(target.name);
  }
  return agent_of(view)->inspect(ask);
}

}  // namespace baton::coordinator
