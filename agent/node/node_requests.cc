// Node's requests from the coordinator: start, stop, checkpoints, restore, inspection.
#include <algorithm>
#include <filesystem>

#include "agent/node/busy.h"
#include "agent/node/local_replica.h"
#include "agent/node/node.h"
#include "agent/node/node_tenure.h"
#include "agent/node/receiver.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/fd.h"
#include "base/log.h"

namespace baton::node {

namespace {

Error refused_by(const pb::InspectResponse& seen, const std::string& what) {
  for (const auto& verdict : seen.verdicts()) {
    if (verdict.verdict() != "refused") continue;
    return make_error(Code::kUnsupported, what,
                      verdict.resource() + ": " + verdict.kind() + " is not supported" +
                          (verdict.detail().empty() ? "" : ": " + verdict.detail()));
  }
  return make_error(Code::kUnsupported, what, "the program cannot be captured");
}

}  // namespace

Result<pb::StartResponse> Node::start(const pb::StartRequest& request) {
  const pb::WorkloadSpec& spec = request.spec();
  const std::string& name = spec.name();
  BATON_TRY(identity_of(spec));
  if (request.ownership().owner() != options_.name || request.ownership().incarnation() == 0) {
    return make_error(Code::kNotAllowed, "start", name + ": the record names '" + request.ownership().owner() +
                                                      "' as its owner, not " + options_.name);
  }
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  if (auto running = find(name)) {
    if (running->incarnation() != request.ownership().incarnation() || running->state() != "running") {
      return make_error(Code::kConflict, "start", name + " is " + running->state() + " on " + options_.name);
    }
    pb::StartResponse again;  // the answer to the first request was lost
    *again.mutable_status() = running->status();
    return again;
  }
  standbys_.remove(name);
  BATON_TRY(fault_point("agent.start.begin"));
  pb::StartResponse response;
  pb::WorkloadProcess process;
  if (spec.origin() == pb::ORIGIN_PROTECT) {
    pb::InspectRequest inspect;
    inspect.set_pid(spec.pid());
    *inspect.mutable_spec() = spec;
    BATON_ASSIGN(auto seen, env_.warden->inspect(inspect));
    if (!seen.acceptable()) return refused_by(seen, "protect " + name);
    *response.mutable_verdicts() = seen.verdicts();
    BATON_ASSIGN(process, env_.warden->protect(spec));
  } else {
    BATON_ASSIGN(process, env_.warden->run(spec));
  }
  BATON_TRY(fault_point("agent.start.running"));
  std::vector<pb::PeerAddress> standbys;
  for (const auto& wanted : spec.standbys()) {
    for (const auto& peer : request.peers()) {
      if (peer.node() == wanted && wanted != options_.name) standbys.push_back(peer);
    }
  }
  BATON_TRY(enter(spec, request.ownership().incarnation(), process, next_seq(name), standbys));
  add_event("started", name, "pid " + std::to_string(process.pid()));
  if (auto workload = find(name)) *response.mutable_status() = workload->status();
  return response;
}

Result<void> Node::stop(const pb::StopWorkloadRequest& request) {
  const std::string& name = request.name();
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  auto workload = find(name);
  if (workload) {
    if (request.incarnation() != 0 && request.incarnation() < workload->incarnation() &&
        !workload->concerned_by(request.incarnation())) {
      return make_error(Code::kConflict, "stop", name + " is at incarnation " +
                                                     std::to_string(workload->incarnation()) + " here");
    }
    const std::string state = workload->state();
    if (state == "migrating") return make_error(Code::kConflict, "stop", name + " is being migrated");
    {
      std::lock_guard lock(mutex_);
      ending_.insert(name);
    }
    if (auto retired = retire_tenure(*workload); !retired) {
      std::lock_guard lock(mutex_);
      ending_.erase(name);
      return retired;
    }
    workload->halt("stopped");
  }
  Result<void> done;
  if (request.keep_program()) {
    done = env_.warden->release(name);
  } else {
    done = env_.warden->stop(name, request.grace_us(), request.grace_us() == 0);
  }
  if (!done && done.error().code != Code::kNotFound) {
    std::lock_guard lock(mutex_);
    ending_.erase(name);
    return done;
  }
  const bool known = workload != nullptr || load_state(name).has_value();
  remove(name);
  {
    std::lock_guard lock(mutex_);
    ending_.erase(name);
  }
  if (!known && !done) return make_error(Code::kNotFound, "stop", name + " is not on " + options_.name);
  add_event(request.keep_program() ? "released" : "stopped", name, "on request");
  return {};
}

Result<void> Node::set_standbys(const pb::SetStandbysRequest& request) {
  BATON_ASSIGN(auto workload, need(request.name()));
  workload->set_standbys({request.standbys().begin(), request.standbys().end()});
  return save(*workload);
}

Result<pb::CheckpointInfo> Node::checkpoint_now(const pb::CheckpointNowRequest& request) {
  BATON_ASSIGN(auto workload, need(request.name()));
  const std::uint64_t timeout_us = request.timeout_us() == 0 ? 60'000'000 : request.timeout_us();
  return workload->checkpoint_now(std::chrono::microseconds(timeout_us));
}

Result<pb::ListCheckpointsResponse> Node::list_checkpoints(const std::string& name) {
  pb::ListCheckpointsResponse response;
  auto held = env_.store->list(name);
  if (!held) {
    if (held.error().code == Code::kNotFound) return response;
    return held.error();
  }
  for (const auto& one : *held) {
    auto* info = response.add_checkpoints();
    info->set_workload(one.workload);
    info->set_seq(one.seq);
    info->set_incarnation(one.incarnation);
    info->set_wall_ns(one.freeze_wall_ns);
    info->set_pause_us(one.pause_ns / 1000);
    info->set_pages_total(one.pages);
    info->set_pages_changed(one.changed_pages);
    info->set_bytes_stored(one.manifest_bytes);
    info->add_nodes(options_.name);
  }
  return response;
}

Result<pb::MigrateReport> Node::migrate(const pb::MigrateRequest& request, const Workload::Progress& progress) {
  BATON_ASSIGN(auto workload, need(request.name()));
  {
    std::lock_guard lock(mutex_);
    if (busy_.contains(request.name())) {
      return make_error(Code::kConflict, "migrate", request.name() + ": another request about it is under way");
    }
  }
  return workload->migrate(request, progress);
}

Result<void> Node::abort_migration(const std::string& name) {
  BATON_ASSIGN(auto workload, need(name));
  return workload->abort_migration();
}

Result<pb::AgentInspectResponse> Node::inspect(const pb::AgentInspectRequest& request) {
  pb::InspectRequest inspect;
  inspect.set_pid(request.pid());
  *inspect.mutable_spec() = request.spec();
  if (auto workload = find(request.name()); workload && request.pid() == 0) {
    inspect.set_workload(request.name());
    inspect.set_pid(workload->status().pid());
    *inspect.mutable_spec() = workload->spec();
  }
  pb::AgentInspectResponse out;
  BATON_ASSIGN(auto seen, env_.warden->inspect(inspect));
  *out.mutable_verdicts() = seen.verdicts();
  out.set_acceptable(seen.acceptable());
  *out.mutable_machine() = seen.machine();
  pb::ProveFilesRequest prove;
  *prove.mutable_files() = seen.files();
  if (auto proved = env_.warden->prove_files(prove)) {
    for (const auto& file : proved->files()) *out.add_files() = file.actual();
  }
  if (request.target().node().empty()) return out;
  auto target = env_.connect_target(request.target());
  if (!target) return make_error(Code::kUnreachable, "inspect", "no address of " + request.target().node());
  pb::PrepareTargetRequest ask;
  ask.set_name(request.name());
  *ask.mutable_machine() = seen.machine();
  *ask.mutable_files() = out.files();
  *ask.mutable_spec() = request.spec();
  BATON_ASSIGN(auto answer, target->prepare(ask));
  for (auto& problem : *answer.mutable_problems()) *out.add_verdicts() = std::move(problem);
  for (const auto& path : answer.missing_files()) {
    auto* verdict = out.add_verdicts();
    verdict->set_resource(path);
    verdict->set_kind("file");
    verdict->set_verdict("refused");
    verdict->set_detail(request.target().node() + " lacks it, or holds another content; --with-files sends it");
  }
  if (answer.problems_size() > 0 || answer.missing_files_size() > 0) out.set_acceptable(false);
  return out;
}

Result<pb::LogsResponse> Node::logs(const std::string& name, std::int64_t offset) {
  pb::LogsRequest request;
  request.set_workload(name);
  request.set_offset(offset);
  request.set_max_bytes(64 * 1024);
  return env_.warden->logs(request);
}

Result<pb::NodeFacts> Node::facts() {
  std::optional<pb::NodeFacts> known;
  {
    std::lock_guard lock(mutex_);
    known = facts_;
  }
  if (!known) {
    BATON_ASSIGN(known, env_.warden->probe());
    known->set_name(options_.name);
    std::lock_guard lock(mutex_);
    facts_ = known;
  }
  if (auto text = read_file("/proc/meminfo", 1 << 16)) {
    if (auto at = text->find("MemAvailable:"); at != std::string::npos) {
      known->set_memory_free_bytes(std::strtoull(text->c_str() + at + 13, nullptr, 10) * 1024);
    }
  }
  std::error_code error;
  if (auto space = std::filesystem::space(options_.data_dir, error); !error) {
    known->set_disk_free_bytes(space.available);
  }
  known->set_store_bytes(env_.store->stats().pages.bytes);
  return std::move(*known);
}

Result<void> Node::drop_workload(const std::string& name) {
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  if (find(name)) return make_error(Code::kConflict, "drop", name + " runs on " + options_.name);
  standbys_.remove(name);
  if (env_.tenure) {
    // What a voter has promised it keeps until nobody may run the workload any more.
    auto voted = env_.tenure->known(name);
    if (!voted || voted->record.owner().empty()) env_.tenure->forget(name);
  }
  auto dropped = env_.store->drop_workload(name);
  if (!dropped && dropped.error().code == Code::kNotFound) return {};
  return dropped;
}

Result<void> Node::pull_checkpoint(const pb::PullCheckpointRequest& request) {
  if (!options_.tls) return make_error(Code::kUnsupported, "pull", "this node has no certificate");
  BATON_ASSIGN(auto identity, env_.store->identity(request.name()));
  BATON_ASSIGN(auto image, pull_image(*env_.store, *options_.tls, request.source(), identity, request.seq(), {}));
  storage::Checkpoint held;
  held.info.workload = request.name();
  held.info.seq = image.seq;
  held.info.incarnation = image.incarnation;
  held.info.freeze_wall_ns = image.freeze_wall_ns;
  held.domain = identity.domain;
  held.manifest = image.manifest.SerializeAsString();
  held.objects = std::move(image.tables);
  held.hasher = image.hasher;
  return env_.store->commit(full_record(held), storage::Durability::kFlushed);
}

Result<pb::RestoreReport> Node::restore(const pb::RestoreRequest& request,
                                        const std::function<void(const pb::RestoreProgress&)>& progress) {
  const auto started = env_.clock->monotonic_now();
  TakeOver order;
  order.name = request.name();
  order.as = request.as();
  order.seq = request.seq();
  order.ownership = request.ownership();
  order.spec = request.spec();
  order.standbys.assign(request.standbys().begin(), request.standbys().end());
  order.source = request.source();
  order.paused = request.paused();
  order.tell = [&](const std::string& phase, std::uint64_t done, std::uint64_t total) {
    pb::RestoreProgress message;
    message.set_phase(phase);
    message.set_bytes_done(done);
    message.set_bytes_total(total);
    if (progress) progress(message);
  };
  BATON_ASSIGN(auto taken, take_over(order));
  pb::RestoreReport report;
  report.set_pid(taken.process.pid());
  report.set_seq(taken.seq);
  report.set_pages(taken.pages);
  report.set_lost_us(static_cast<std::uint64_t>(taken.lost.count() / 1000));
  report.set_total_ms(std::chrono::duration<double, std::milli>(env_.clock->monotonic_now() - started).count());
  pb::RestoreProgress last;
  last.set_phase("done");
  *last.mutable_report() = report;
  if (progress) progress(last);
  return report;
}

}  // namespace baton::node
