// Node::take_over: this node begins to run a workload from a checkpoint: from its shadow, from
// the image in memory, or from the store, in this order.
#include <algorithm>

#include "agent/node/busy.h"
#include "agent/node/local_replica.h"
#include "agent/node/node.h"
#include "agent/node/node_tenure.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

std::string_view word(pb::Mode mode) {
  return mode == pb::MODE_HOT ? "the shadow" : mode == pb::MODE_WARM ? "memory" : "the store";
}

}  // namespace

Result<Node::TakenOver> Node::take_over(const TakeOver& order) {
  const auto begin = env_.clock->monotonic_now();
  const std::string name = order.as.empty() ? order.name : order.as;
  pb::WorkloadSpec spec = order.spec;
  spec.set_name(name);
  if (order.ownership.owner() != options_.name) {
    return make_error(Code::kNotAllowed, "restore", name + ": the record names '" + order.ownership.owner() +
                                                        "' as its owner, not " + options_.name);
  }
  BATON_ASSIGN(auto identity, identity_of(spec));
  BATON_ASSIGN(auto busy, Busy::take(*this, name));
  if (auto running = find(name)) {
    const std::string state = running->state();
    if (state == "running" || state == "migrating") {
      return make_error(Code::kConflict, "restore", name + " is " + state + " on " + options_.name);
    }
    (void)env_.warden->stop(name, 0, true);  // what is left of one that has exited
    remove(name);
  }
  BATON_TRY(fault_point("agent.restore.begin"));
  // Nothing of an earlier owner is accepted from here on: the store says so, or, before it has
  // written that down, the voters' record.
  auto fence = [&] {
    auto held = enter_workload(*env_.store, identity, order.ownership.incarnation());
    if (!held) spdlog::warn("{}: {}", name, held.error().message());
  };
  const bool fenced = env_.tenure && env_.tenure->voted(name);
  if (!fenced) fence();
  TakenOver taken;
  auto standby = standbys_.find(name);
  bool runs = false;
  if (standby && order.as.empty()) {
    ActivationOrder activation;
    activation.seq = order.seq;
    activation.incarnation = order.ownership.incarnation();
    activation.spec = spec;
    activation.paused = order.paused;
    activation.lease = [&] { return lease_for(name, order.ownership.incarnation()); };
    auto activated = standby->activate(activation);
    if (activated && *activated) {
      taken.process = std::move((*activated)->process);
      taken.seq = (*activated)->seq;
      taken.from = (*activated)->mode;
      runs = true;
    } else if (!activated) {
      spdlog::warn("{}: {}; from the store instead", name, activated.error().message());
    }
  }
  standbys_.remove(name, true);
  Barred barred(standbys_, name);
  if (!runs) {
    BATON_ASSIGN(taken, run_cold(order, name));
  }
  const auto ran = env_.clock->monotonic_now();
  taken.activated = env_.clock->boot_now();
  BATON_TRY(fault_point("agent.restore.activated"));
  if (fenced) fence();
  if (runs) {
    if (auto tip = env_.store->tip(name); tip && *tip) {
      taken.pages = (*tip)->pages;
      const auto wall = static_cast<std::uint64_t>(env_.clock->wall_now().count());
      taken.lost = std::chrono::nanoseconds(wall > (*tip)->freeze_wall_ns ? wall - (*tip)->freeze_wall_ns : 0);
    }
  }
  std::vector<pb::PeerAddress> standbys;
  for (const auto& peer : order.standbys) {
    if (peer.node() != options_.name) standbys.push_back(peer);
  }
  std::uint64_t first_seq = next_seq(name);
  if (order.as.empty()) first_seq = std::max(first_seq, taken.seq + 1);
  BATON_TRY(enter(spec, order.ownership.incarnation(), taken.process, first_seq, standbys));
  add_event("restored", name, "from " + order.name + "@" + std::to_string(taken.seq) + ", pid " +
                                  std::to_string(taken.process.pid()) + ", out of " + std::string(word(taken.from)) +
                                  ", running after " + std::to_string((ran - begin).count() / 1000) + " us (activation " +
                                  std::to_string(taken.process.activation().finish_us() + taken.process.activation().release_us()) + ")");
  return taken;
}

Result<std::uint64_t> Node::lease_for(const std::string& name, std::uint64_t incarnation) const {
  return env_.tenure ? env_.tenure->lease_for_activation(name, incarnation) : Result<std::uint64_t>(0);
}

Result<Node::TakenOver> Node::run_cold(const TakeOver& order, const std::string& name) {
  auto tell = [&](const char* phase, std::uint64_t done, std::uint64_t total) {
    if (order.tell) order.tell(phase, done, total);
  };
  tell("load", 0, 0);
  auto image = load_image(*env_.store, order.name, order.seq);
  if (!image && image.error().code == Code::kNotFound && !order.source.node().empty() &&
      order.source.node() != options_.name) {
    if (!options_.tls) return make_error(Code::kUnsupported, "restore", "this node has no certificate");
    BATON_ASSIGN(auto source_identity, identity_of(order.spec));
    source_identity.workload = order.name;
    image = pull_image(*env_.store, *options_.tls, order.source, source_identity, order.seq,
                       [&](std::uint64_t done, std::uint64_t total) { tell("fetch", done, total); });
  }
  if (!image) return image.error();
  BATON_ASSIGN(auto known, facts());
  if (auto problems = machine_problems(image->manifest.machine(), known); !problems.empty()) {
    return make_error(Code::kUnsupported, "restore", problems[0].resource() + ": " + problems[0].detail());
  }
  std::vector<std::string> missing;
  std::vector<pb::FileProof> files(image->manifest.files().begin(), image->manifest.files().end());
  BATON_TRY(check_target_files(files, missing));
  if (!missing.empty()) {
    return make_error(Code::kUnsupported, "restore", "this node lacks these files, or they differ: " + missing[0] +
                                                         (missing.size() > 1 ? " and others" : ""));
  }
  pb::BuildRequest build;
  if (order.spec.output_commit() && order.as.empty()) {
    // Nothing has left the workload that its newest committed checkpoint does not explain.
    auto tip = env_.store->tip(name);
    build.set_connections(tip && *tip && (*tip)->seq == image->seq);
  }
  build.set_workload(name);
  *build.mutable_manifest() = image->manifest;
  *build.mutable_spec() = order.spec;
  build.mutable_spec()->set_name(name);
  build.set_incarnation(order.ownership.incarnation());
  auto away = [&] {
    const auto wall = static_cast<std::uint64_t>(env_.clock->wall_now().count());
    return wall > image->freeze_wall_ns ? wall - image->freeze_wall_ns : 0;
  };
  TakenOver taken;
  taken.lost = std::chrono::nanoseconds(away());
  build.set_away_ns(away());
  StoreSource source(*env_.store, image->identity, image->hasher);
  BATON_TRY(build_and_fill(*env_.warden, source, *image, build,
                           [&](std::uint64_t done, std::uint64_t total) { tell("fill", done, total); }));
  tell("activate", 0, 0);
  pb::ActivateRequest activate;
  activate.set_workload(name);
  activate.set_paused(order.paused);
  activate.set_away_ns(away());
  activate.set_incarnation(order.ownership.incarnation());
  Result<std::uint64_t> until = order.as.empty() ? lease_for(name, order.ownership.incarnation()) : Result<std::uint64_t>(0);
  if (until) activate.set_lease_until_ns(*until);
  Result<pb::WorkloadProcess> process = until ? env_.warden->activate(activate) : Result<pb::WorkloadProcess>(until.error());
  if (!process) {
    (void)env_.warden->stop(name, 0, true);
    return process.error();
  }
  taken.process = std::move(*process);
  taken.seq = image->seq;
  taken.pages = image->pages;
  return taken;
}

}  // namespace baton::node
