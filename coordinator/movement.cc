// Coordinator: migrate, restore, failover.
#include <algorithm>
#include <future>
#include <optional>

#include "base/fault_point.h"
#include "base/log.h"
#include "coordinator/coordinator.h"
#include "coordinator/spec_rules.h"

namespace baton::coordinator {

// A migration's life apart from whoever watches it.
struct Coordinator::MigrationRun {
  std::mutex mutex;
  std::condition_variable changed;
  pb::MigrateProgress newest;
  std::uint64_t count = 0;
  std::optional<Result<void>> outcome;
};

namespace {

constexpr std::chrono::milliseconds kStopPoll{200};

bool outcome_unknown(const Error& error) {
  return error.code == Code::kUnreachable || error.code == Code::kTimedOut ||
         error.code == Code::kUnknownOutcome || error.code == Code::kCancelled;
}

}  // namespace

// --- migrate -----------------------------------------------------------------------------

Result<void> Coordinator::migrate(const pb::MigrateWorkloadRequest& request,
                                  const Sink<pb::MigrateProgress>& sink, const std::string& who) {
  BATON_ASSIGN(auto one, known(request.name()));
  const std::string& name = request.name();
  if (request.to().empty()) {
    return make_error(Code::kInvalid, "migrate", "no target", "Give --to NODE.");
  }
  if (!request.strategy().empty() && request.strategy() != "precopy" &&
      request.strategy() != "stopcopy") {
    return make_error(request.strategy() == "postcopy" ? Code::kUnsupported : Code::kInvalid,
                      "migrate", "strategy '" + request.strategy() + "' is not known here",
                      "precopy or stopcopy.");
  }
  if (!membership_.view(request.to())) {
    return make_error(Code::kNotFound, "migrate", "no node named " + request.to(),
                      "See baton node ls.");
  }
  if (request.to() == one.owner.owner()) {
    return make_error(Code::kInvalid, "migrate", name + " is already on " + request.to(),
                      "Choose another node.");
  }
  BATON_ASSIGN(auto target, ready_node(request.to(), "migrate"));
  if (target.drained) {
    return make_error(Code::kUnsupported, "migrate", "node " + request.to() + " is drained",
                      "baton node resume " + request.to() + " first.");
  }
  if (one.owner.owner().empty()) {
    return make_error(Code::kConflict, "migrate", "nobody runs " + name,
                      "Restore it with baton restore.");
  }
  BATON_ASSIGN(auto source, ready_node(one.owner.owner(), "migrate"));
  if (!is_running(one)) {
    return make_error(Code::kConflict, "migrate",
                      name + " does not run (" + describe(one).status().state() + ")",
                      "Restore it with baton restore.");
  }
  pb::OperationRecord operation;
  operation.set_workload(name);
  operation.set_kind("migrate");
  operation.set_from(source.name);
  operation.set_to(target.name);
  operation.set_incarnation(one.owner.incarnation());
  BATON_TRY(begin(operation, Transaction().event(make_event(
                                 "migrate", name, source.name,
                                 "from " + source.name + " to " + target.name, who))));

  auto run = std::make_shared<MigrationRun>();
  background([this, one, source, target, request, run](std::stop_token stop) {
    auto outcome = run_migration(one, source, target, request, *run, stop);
    std::lock_guard lock(run->mutex);
    run->outcome = std::move(outcome);
    run->changed.notify_all();
  });
  std::uint64_t seen = 0;
  std::unique_lock lock(run->mutex);
  while (true) {
    run->changed.wait_for(lock, kStopPoll, [&] { return run->count != seen || run->outcome; });
    if (run->count == seen && !run->outcome) {
      if (!stop_.stop_requested()) continue;
      return make_error(Code::kUnknownOutcome, "migrate", name + ": the coordinator shuts down",
                        "See baton show " + name + ".");
    }
    if (run->count != seen) {
      seen = run->count;
      pb::MigrateProgress progress = run->newest;
      lock.unlock();
      if (!sink(progress) || request.detach()) return {};
      lock.lock();
      continue;
    }
    return *run->outcome;
  }
}

Result<void> Coordinator::run_migration(const Known& one, const NodeView& source,
                                        const NodeView& target,
                                        const pb::MigrateWorkloadRequest& request,
                                        MigrationRun& run, std::stop_token stop) {
  const std::string& name = request.name();
  pb::MigrateRequest order;
  order.set_name(name);
  *order.mutable_target() = peer(target.name);
  order.set_strategy(request.strategy().empty() ? "precopy" : request.strategy());
  order.set_max_pause_us(request.max_pause_us());
  order.set_bandwidth_bytes_per_s(request.bandwidth_bytes_per_s());
  order.set_incarnation(one.owner.incarnation());
  order.set_with_files(request.with_files() || one.record.value.spec().with_files());

  std::optional<pb::MigrateReport> report;
  pb::MigrateProgress last;
  auto outcome = fault_point("coordinator.migrate.recorded");
  if (outcome) {
    outcome = agent_of(source)->migrate(
        order,
        [&](const pb::MigrateProgress& progress) {
          if (progress.has_report()) {
            report = progress.report();
            last = progress;  // shown once all is settled
            return true;
          }
          std::lock_guard lock(run.mutex);
          run.newest = progress;
          ++run.count;
          run.changed.notify_all();
          return true;
        },
        stop);
  }
  if (stop.stop_requested()) return outcome;  // the operation record stays, for our successor
  (void)fault_point("coordinator.migrate.answered");
  // Voters tell of their decision themselves, perhaps a moment later.
  if (outcome && report && report->incarnation() > 0) (void)wait_record(name, report->incarnation());
  auto owner = registry_.get(name);
  const bool moved = owner && *owner && (*owner)->owner() == target.name &&
                     (*owner)->incarnation() > one.owner.incarnation();
  if (moved) {
    if (report) {
      pb::WorkloadStatus status;
      status.set_name(name);
      status.set_state("running");
      status.set_node(target.name);
      status.set_pid(report->pid());
      status.set_incarnation((*owner)->incarnation());
      status.set_last_committed(report->seq());
      status.set_last_captured(report->seq());
      status.set_interval_us(one.record.value.spec().interval_us());
      membership_.note(target.name, status);
      membership_.forget(source.name, name);
    }
    settle_standbys(name, true);
  } else if (outcome && !report) {
    outcome = make_error(Code::kUnknownOutcome, "migrate", name + ": " + source.name +
                                                               " ended without a report",
                         "See baton show " + name + ".");
  } else if (outcome) {
    outcome = make_error(Code::kFailed, "migrate",
                         name + ": the owner is still " + (owner && *owner ? (*owner)->owner() : "unknown"));
  }
  if (outcome) {
    log_event(make_event("migrate", name, target.name,
                         "runs on " + target.name + ", pause " +
                             std::to_string(report->pause_us()) + " us, " +
                             std::to_string(report->bytes_sent()) + " bytes sent"));
  } else {
    log_event(make_event("migrate", name, moved ? target.name : source.name,
                         "failed: " + outcome.error().message()));
  }
  (void)finish(name);
  if (outcome && report) {
    if (last.report().from().empty()) last.mutable_report()->set_from(source.name);
    if (last.report().to().empty()) last.mutable_report()->set_to(target.name);
    if (last.report().incarnation() == 0) {
      last.mutable_report()->set_incarnation((*owner)->incarnation());
    }
    if (last.phase().empty()) last.set_phase("done");
    std::lock_guard lock(run.mutex);
    run.newest = last;
    ++run.count;
    run.changed.notify_all();
  }
  return outcome;
}

Result<void> Coordinator::abort_migration(const std::string& name) {
  BATON_ASSIGN(auto one, known(name));
  if (one.operation.version == 0 || one.operation.value.kind() != "migrate") {
    return make_error(Code::kConflict, "abort migration", name + " is not being migrated");
  }
  BATON_ASSIGN(auto source, ready_node(one.operation.value.from(), "abort migration"));
  return agent_of(source)->abort_migration(name);
}

// The owner moved, or nodes came and went: keeps reachable standbys, fills up to the
// wanted number, and never leaves a workload without the standbys it had.
void Coordinator::settle_standbys(const std::string& name, bool owner_moved, const std::string& suspect) {
  auto one = known(name);
  if (!one) return;
  auto& record = one->record.value;
  const auto now = standbys_of(*one);
  PlacementRequest request;
  request.standby_count = record.wanted_standbys();
  // It may have come back before anybody told of the takeover.
  auto suspected = suspect.empty() ? std::nullopt : membership_.view(suspect);
  const bool silent = suspected && suspected->registered_for > kUnreachableAfter;
  std::vector<std::string> reachable;
  for (const auto& standby : now) {
    auto view = membership_.view(standby);
    if (view && view->reachable && !view->drained && !(silent && standby == suspect)) reachable.push_back(standby);
  }
  auto fit = candidates();
  std::erase_if(fit, [&](const auto& candidate) { return silent && candidate.name == suspect; });
  Placement chosen =
      choose_standbys(request, one->owner.owner(), owner_moved ? reachable : now, fit);
  for (const auto& standby : now) {
    if (chosen.standbys.size() < request.standby_count &&
        std::count(chosen.standbys.begin(), chosen.standbys.end(), standby) == 0) {
      chosen.standbys.push_back(standby);
    }
  }
  const std::vector<std::string> stored(record.standbys().begin(), record.standbys().end());
  if (chosen.standbys == stored) return;
  record.clear_standbys();
  std::string list;
  for (const auto& standby : chosen.standbys) {
    record.add_standbys(standby);
    list += (list.empty() ? "" : ", ") + standby;
  }
  record.clear_why();
  record.add_why("node " + one->owner.owner() + ": " + one->owner.reason());
  for (const auto& line : chosen.why) record.add_why(line);
  auto done = commit(Transaction()
                         .put(name, one->record.version, record)
                         .event(make_event("standbys", name, one->owner.owner(),
                                           list.empty() ? "no standby" : "standbys: " + list)));
  if (!done) spdlog::warn("standbys of {}: {}", name, done.error().message());
  wake_sessions();
}

// --- checkpoints -----------------------------------------------------------------------------

Result<std::vector<Coordinator::Held>> Coordinator::collect_checkpoints(const std::string& name) {
  std::vector<std::pair<std::string, std::future<Result<pb::ListCheckpointsResponse>>>> asked;
  for (const auto& view : membership_.views()) {
    if (!view.reachable) continue;
    asked.emplace_back(view.name, std::async(std::launch::async, [agent = agent_of(view), name] {
                         return agent->list_checkpoints(name);
                       }));
  }
  std::map<std::pair<std::uint64_t, std::uint64_t>, Held> merged;
  std::optional<Error> failed;
  for (auto& [node, answer] : asked) {
    auto response = answer.get();
    if (!response) {
      if (response.error().code != Code::kNotFound) failed = response.error();
      continue;
    }
    for (const auto& info : response->checkpoints()) {
      Held& held = merged[{info.incarnation(), info.seq()}];
      const auto bytes = std::max(held.info.bytes_stored(), info.bytes_stored());
      if (held.nodes.empty()) held.info = info;
      held.info.set_bytes_stored(bytes);
      held.nodes.push_back(node);
    }
  }
  if (merged.empty() && failed) return *failed;
  std::vector<Held> out;
  for (auto& [key, held] : merged) {
    held.info.clear_nodes();
    for (const auto& node : held.nodes) held.info.add_nodes(node);
    out.push_back(std::move(held));
  }
  return out;
}

Result<pb::ListCheckpointsResponse> Coordinator::list_checkpoints(const std::string& name) {
  BATON_TRY(known(name));
  BATON_ASSIGN(auto all, collect_checkpoints(name));
  std::sort(all.begin(), all.end(), [](const Held& a, const Held& b) {
    return std::make_pair(a.info.seq(), a.info.incarnation()) <
           std::make_pair(b.info.seq(), b.info.incarnation());
  });
  pb::ListCheckpointsResponse out;
  for (auto& held : all) *out.add_checkpoints() = std::move(held.info);
  return out;
}

// --- restore ---------------------------------------------------------------------------------

pb::PeerAddress Coordinator::source_for(const Held& held, const std::string& target) const {
  if (std::count(held.nodes.begin(), held.nodes.end(), target) > 0) return {};
  return peer(held.nodes.front());
}

Result<NodeView> Coordinator::choose_restore_target(const Known& one, const Held& held,
                                                    const std::string& to) {
  if (!to.empty()) return ready_node(to, "restore");
  // Holders first, as placement prefers them; then anybody else.
  std::vector<Candidate> holders;
  for (auto& candidate : candidates()) {
    if (std::count(held.nodes.begin(), held.nodes.end(), candidate.name) > 0) {
      holders.push_back(candidate);
    }
  }
  PlacementRequest request;
  const auto& spec = one.record.value.spec();
  request.require_features.assign(spec.require_features().begin(), spec.require_features().end());
  auto placement = place(request, holders);
  if (!placement) placement = place(request, candidates());
  if (!placement) return placement.error();
  return ready_node(placement->node, "restore");
}

Result<void> Coordinator::restore(const pb::RestoreWorkloadRequest& request,
                                  const Sink<pb::RestoreProgress>& sink, const std::string& who) {
  const std::string& name = request.name();
  BATON_ASSIGN(auto one, known(name));
  if (!request.as().empty()) BATON_TRY(check_name("workload", request.as()));
  if (request.as().empty()) {
    if (one.operation.version != 0) {
      return make_error(Code::kConflict, "restore",
                        name + ": another operation is under way (" + one.operation.value.kind() +
                            ")",
                        "Wait for it to end.");
    }
    auto view = membership_.view(one.owner.owner());
    if (is_running(one)) {
      const bool silent = view && !view->reachable;
      return make_error(
          Code::kConflict, "restore",
          silent ? name + " may still run on " + view->name + ", which does not answer yet"
                 : name + " runs on " + one.owner.owner(),
          silent ? "Wait until the node is declared unreachable, or restore it --as another name."
                 : "Restore it --as another name, or delete it first.");
    }
  }
  BATON_ASSIGN(auto all, collect_checkpoints(name));
  const Held* chosen = nullptr;
  for (const auto& held : all) {  // by incarnation, then seq
    if (request.seq() == 0 || held.info.seq() == request.seq()) chosen = &held;
  }
  if (!chosen) {
    return make_error(Code::kNotFound, "restore",
                      request.seq() == 0 ? "no reachable node holds a checkpoint of " + name
                                         : "no reachable node holds " + name + "@" +
                                               std::to_string(request.seq()),
                      "See baton checkpoints " + name + ".");
  }
  BATON_ASSIGN(auto target, choose_restore_target(one, *chosen, request.to()));
  if (!request.as().empty()) return restore_as(one, *chosen, target, request, sink, who);
  if (voted(one.owner)) {
    BATON_TRY(end_voting(name, "restore"));
    BATON_ASSIGN(one, known(name));
  }
  return restore_same(one, *chosen, target, request, "restore", sink, who);
}

Result<void> Coordinator::restore_same(const Known& one, const Held& held, const NodeView& target,
                                       const pb::RestoreWorkloadRequest& request,
                                       const std::string& reason,
                                       const Sink<pb::RestoreProgress>& sink,
                                       const std::string& who) {
  const std::string& name = request.name();
  const std::string previous = one.owner.owner();
  const std::string what = name + "@" + std::to_string(held.info.seq());
  pb::OperationRecord operation;
  operation.set_workload(name);
  operation.set_kind("restore");
  operation.set_from(previous);
  operation.set_to(target.name);
  operation.set_incarnation(one.owner.incarnation());
  operation.set_seq(held.info.seq());
  BATON_TRY(begin(operation,
                  Transaction().event(make_event(reason, name, target.name,
                                                 what + " on " + target.name, who))));
  std::optional<pb::Ownership> ownership;
  std::optional<pb::RestoreProgress> last;
  auto do_restore = [&]() -> Result<void> {
    BATON_TRY(fault_point("coordinator.restore.recorded"));
    OwnerChange change;
    change.workload = name;
    change.expected_incarnation = one.owner.incarnation();
    change.new_owner = target.name;
    change.reason = reason;
    change.committed_seq = held.info.seq();
    BATON_ASSIGN(ownership, registry_.change_owner(change));
    BATON_TRY(fault_point("coordinator.restore.owned"));
    settle_standbys(name, true);
    BATON_ASSIGN(auto now, known(name));
    pb::RestoreRequest order;
    order.set_name(name);
    order.set_seq(held.info.seq());
    order.set_paused(request.paused());
    *order.mutable_ownership() = *ownership;
    *order.mutable_spec() = wire_spec(now);
    if (auto source = source_for(held, target.name); !source.node().empty()) {
      *order.mutable_source() = source;
    }
    for (const auto& standby : standbys_of(now)) *order.add_standbys() = peer(standby);
    return agent_of(target)->restore(
        order,
        [&](const pb::RestoreProgress& progress) {
          if (progress.has_report()) {
            last = progress;
          } else {
            sink(progress);  // whether anybody listens or not, it goes on
          }
          return true;
        },
        stop_.get_token());
  };
  auto outcome = do_restore();
  if (outcome && !last) {
    outcome = make_error(Code::kUnknownOutcome, reason, what + ": no report from " + target.name,
                         "See baton show " + name + ".");
  }
  if (!outcome && stop_.stop_requested()) return outcome;  // the record stays, for our successor
  (void)fault_point("coordinator.restore.answered");
  if (outcome) {
    pb::WorkloadStatus status;
    status.set_name(name);
    status.set_state(request.paused() ? "frozen" : "running");
    status.set_node(target.name);
    status.set_pid(last->report().pid());
    status.set_incarnation(ownership->incarnation());
    status.set_last_committed(held.info.seq());
    status.set_last_captured(held.info.seq());
    status.set_interval_us(one.record.value.spec().interval_us());
    membership_.note(target.name, status);
    if (!previous.empty() && previous != target.name) membership_.forget(previous, name);
    log_event(make_event(reason, name, target.name,
                         what + " runs on " + target.name + ", pid " +
                             std::to_string(last->report().pid()),
                         who));
  } else {
    // What surely did not start leaves the workload to whom it belonged; a start whose
    // outcome is unknown leaves it to the target. Either way restore can be tried again.
    if (ownership && !outcome_unknown(outcome.error())) {
      OwnerChange back;
      back.workload = name;
      back.expected_incarnation = ownership->incarnation();
      back.new_owner = previous;
      back.reason = "failed";
      back.committed_seq = one.owner.committed_seq();
      auto reverted = registry_.change_owner(back);
      if (!reverted) spdlog::error("{}", reverted.error().message());
      settle_standbys(name, true);
    }
    log_event(make_event(reason, name, target.name, "failed: " + outcome.error().message(), who));
  }
  (void)finish(name);
  if (outcome) {
    if (last->phase().empty()) last->set_phase("done");
    sink(*last);
  }
  return outcome;
}

Result<void> Coordinator::restore_as(const Known& one, const Held& held, const NodeView& target,
                                     const pb::RestoreWorkloadRequest& request,
                                     const Sink<pb::RestoreProgress>& sink,
                                     const std::string& who) {
  const std::string& as = request.as();
  BATON_ASSIGN(auto taken, store_.get<pb::WorkloadRecord>(as));
  if (taken.version != 0) {
    return make_error(Code::kConflict, "restore", "the name " + as + " is taken",
                      "Choose another name for --as.");
  }
  pb::WorkloadRecord record;
  *record.mutable_spec() = one.record.value.spec();  // with the domain and its key
  record.mutable_spec()->set_name(as);
  record.mutable_spec()->set_origin(pb::ORIGIN_RUN);  // its program is ours to stop
  record.mutable_spec()->clear_pid();
  record.mutable_spec()->set_node(target.name);
  record.mutable_spec()->clear_standbys();
  if (record.spec().argv_size() == 0) record.mutable_spec()->add_argv(request.name());
  record.set_wanted_standbys(one.record.value.wanted_standbys());
  PlacementRequest place_request;
  place_request.standby_count = record.wanted_standbys();
  const auto placement = choose_standbys(place_request, target.name, {}, candidates());
  for (const auto& standby : placement.standbys) record.add_standbys(standby);
  record.add_why("node " + target.name + ": restored from " + request.name() + "@" +
                 std::to_string(held.info.seq()));
  for (const auto& line : placement.why) record.add_why(line);
  record.set_created_wall_ns(static_cast<std::uint64_t>(clock_.wall_now().count()));
  pb::OperationRecord operation;
  operation.set_workload(as);
  operation.set_kind("run");
  operation.set_to(target.name);
  operation.set_seq(held.info.seq());
  BATON_TRY(begin(operation, Transaction().put(as, 0, record).event(make_event(
                                 "restore", as, target.name,
                                 "from " + request.name() + "@" +
                                     std::to_string(held.info.seq()) + " on " + target.name,
                                 who))));
  std::optional<pb::RestoreProgress> last;
  std::uint64_t incarnation = 0;
  auto do_restore = [&]() -> Result<void> {
    BATON_ASSIGN(auto ownership, registry_.create(as, target.name, "restore"));
    incarnation = ownership.incarnation();
    BATON_ASSIGN(auto now, known(as));
    pb::RestoreRequest order;
    order.set_name(request.name());
    order.set_seq(held.info.seq());
    order.set_as(as);
    order.set_paused(request.paused());
    *order.mutable_ownership() = ownership;
    *order.mutable_spec() = wire_spec(now);
    if (auto source = source_for(held, target.name); !source.node().empty()) {
      *order.mutable_source() = source;
    }
    for (const auto& standby : standbys_of(now)) *order.add_standbys() = peer(standby);
    return agent_of(target)->restore(
        order,
        [&](const pb::RestoreProgress& progress) {
          if (progress.has_report()) {
            last = progress;
          } else {
            sink(progress);
          }
          return true;
        },
        stop_.get_token());
  };
  auto outcome = do_restore();
  if (outcome && !last) {
    outcome = make_error(Code::kUnknownOutcome, "restore", as + ": no report from " + target.name);
  }
  if (!outcome && stop_.stop_requested()) return outcome;
  if (!outcome) {
    if (outcome_unknown(outcome.error()) && incarnation != 0) {
      pb::StopWorkloadRequest stop;
      stop.set_name(as);
      stop.set_incarnation(incarnation);
      (void)agent_of(target)->stop(stop);
    }
    undo_run(as, false, outcome.error().message());
    return outcome;
  }
  pb::WorkloadStatus status;
  status.set_name(as);
  status.set_state(request.paused() ? "frozen" : "running");
  status.set_node(target.name);
  status.set_pid(last->report().pid());
  status.set_incarnation(incarnation);
  status.set_interval_us(record.spec().interval_us());
  membership_.note(target.name, status);
  log_event(make_event("restore", as, target.name,
                       "runs on " + target.name + ", pid " + std::to_string(last->report().pid()),
                       who));
  (void)finish(as);
  if (last->phase().empty()) last->set_phase("done");
  sink(*last);
  return {};
}

// --- failover by hand --------------------------------------------------------------------------

Result<void> Coordinator::failover(const pb::FailoverRequest& request,
                                   const Sink<pb::RestoreProgress>& sink, const std::string& who) {
  const std::string& name = request.name();
  BATON_ASSIGN(auto one, known(name));
  const std::string from = one.owner.owner();
  auto home = membership_.view(from);
  if (is_running(one) && home && home->reachable) {
    // Its node lives: hand it over without losing anything.
    std::string to = request.to();
    for (const auto& standby : standbys_of(one)) {
      auto view = membership_.view(standby);
      if (to.empty() && view && view->reachable) to = standby;
    }
    if (to.empty()) {
      return make_error(Code::kUnsupported, "failover", "no standby of " + name + " is reachable",
                        "Give --to NODE.");
    }
    pb::MigrateWorkloadRequest move;
    move.set_name(name);
    move.set_to(to);
    return migrate(
        move,
        [&](const pb::MigrateProgress& progress) {
          pb::RestoreProgress out;
          out.set_phase(progress.phase());
          out.set_bytes_done(progress.bytes_sent());
          out.set_bytes_total(progress.bytes_sent() + progress.bytes_left());
          if (progress.has_report()) {
            *out.mutable_handover() = progress.report();
            out.mutable_report()->set_pid(progress.report().pid());
            out.mutable_report()->set_seq(progress.report().seq());
            out.mutable_report()->set_total_ms(progress.report().total_ms());
          }
          return sink(out);
        },
        who);
  }
  if (voted(one.owner)) return take_over(one, request, sink, who);
  if (is_running(one)) {
    return make_error(Code::kConflict, "failover",
                      name + " may still run on " + from + ", which does not answer yet",
                      "Try again when the node is declared unreachable.");
  }
  if (one.operation.version != 0) {
    return make_error(Code::kConflict, "failover",
                      name + ": another operation is under way (" + one.operation.value.kind() + ")");
  }
  BATON_ASSIGN(auto all, collect_checkpoints(name));
  const Held* chosen = nullptr;
  for (const auto& held : all) {
    const bool there = request.to().empty() ||
                       std::count(held.nodes.begin(), held.nodes.end(), request.to()) > 0;
    if (there) chosen = &held;
  }
  if (!chosen) {
    return make_error(Code::kNotFound, "failover",
                      "no reachable standby holds a checkpoint of " + name,
                      "Start one of its standbys, see baton show " + name + ".");
  }
  std::uint64_t newest = 0;
  if (home && home->statuses.contains(name)) newest = home->statuses[name].last_committed();
  if (chosen->info.seq() < newest && !request.allow_loss()) {
    return make_error(Code::kConflict, "failover",
                      name + "@" + std::to_string(newest) + " was committed, the newest here is @" +
                          std::to_string(chosen->info.seq()),
                      "Accept the loss with --allow-loss.");
  }
  BATON_ASSIGN(auto target, choose_restore_target(one, *chosen, request.to()));
  const auto silent_us =
      home ? static_cast<std::uint64_t>(home->silent_for.count() / 1000) : std::uint64_t{0};
  pb::RestoreWorkloadRequest restore_request;
  restore_request.set_name(name);
  restore_request.set_seq(chosen->info.seq());
  restore_request.set_to(target.name);
  return restore_same(
      one, *chosen, target, restore_request, "failover",
      [&](const pb::RestoreProgress& progress) {
        if (!progress.has_report()) return sink(progress);
        pb::RestoreProgress out = progress;
        auto& handover = *out.mutable_handover();
        // Nobody saw the program stop: it was silent since its node's last report.
        handover.set_pause_us(silent_us +
                              static_cast<std::uint64_t>(progress.report().total_ms() * 1000));
        handover.set_total_ms(progress.report().total_ms());
        handover.set_pages_known(progress.report().pages());
        handover.set_strategy("restore");
        handover.set_seq(progress.report().seq());
        handover.set_pid(progress.report().pid());
        handover.set_from(from);
        handover.set_to(target.name);
        if (auto owner = registry_.get(name); owner && *owner) {
          handover.set_incarnation((*owner)->incarnation());
        }
        return sink(out);
      },
      who);
}

}  // namespace baton::coordinator
