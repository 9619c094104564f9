// Capturing a workload's state and building it from one.
#include <algorithm>
#include <optional>
#include <utility>

#include "agent/warden/workload.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::warden {
namespace {

constexpr std::uint64_t kPage = backend::kPageBytes;
constexpr int kVerifyFactor = 12;     // comparing every byte takes longer than copying what changed

std::uint64_t us(std::chrono::nanoseconds time) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(time).count());
}

// How long copy rounds before a freeze may take: they are to leave the program most of the
// interval between two checkpoints.
constexpr auto kApproachMax = std::chrono::milliseconds(20);
std::chrono::microseconds approach_time(const pb::WorkloadSpec& spec) {
  if (spec.interval_us() == 0) return kApproachMax;
  return std::min<std::chrono::microseconds>(std::chrono::microseconds(spec.interval_us() * 3 / 5), kApproachMax);
}

std::vector<backend::PageRange> ranges_of(const google::protobuf::RepeatedPtrField<pb::PageRange>& in) {
  std::vector<backend::PageRange> out;
  out.reserve(static_cast<std::size_t>(in.size()));
  for (const auto& range : in) out.push_back({range.object(), range.first_page(), range.count()});
  return out;
}

}  // namespace

Result<void> Workload::need_attachment() {
  if (attachment_) return {};
  BATON_ASSIGN(backend::Backend * backend, find_backend(record_.backend(), record_.spec().tracker()));
  backend::AttachTarget target;
  target.root = static_cast<pid_t>(record_.root_pid());
  target.keeper = static_cast<pid_t>(record_.keeper_pid());
  target.cgroup = record_.cgroup();
  target.tracker = record_.spec().tracker();
  target.spec = record_.spec();
  target.network = hold_.get();
  target.volumes = volumes();
  BATON_TRY(fault_point("warden.attach.before"));
  auto attached = backend->attach(target);
  if (!attached) {
    judge_volumes(attached.error());
    return attached.error();
  }
  attachment_ = std::move(*attached);
  sink_.discard();   // of an earlier attachment, whose object ids mean nothing now
  return fault_point("warden.attach.after");
}

Result<void> Workload::round(const pb::RoundRequest& request, pb::RoundResponse& response) {
  BATON_TRY(need_running("round"));
  if (kept_frozen_ || held_) return make_error(Code::kConflict, "round", name_ + " is frozen");
  LeaseTable::Capturing lease(*around_.leases, name_, false);
  if (!lease.allowed()) return make_error(Code::kConflict, "round", name_ + " is frozen: its lease has run out");
  BATON_TRY(need_attachment());
  BATON_TRY(fault_point("warden.round.before"));
  sink_.begin(kRoundBytesMax);
  auto again = ranges_of(request.again());
  auto copied = attachment_->round(sink_, again);
  if (!copied) {
    judge_volumes(copied.error());
    return copied.error();
  }
  const backend::RoundStats stats = *copied;
  BATON_TRY(fault_point("warden.round.done"));
  sink_.take(response.mutable_runs(), response.mutable_dropped());
  response.set_pages_written(stats.pages_written);
  response.set_pages_pending(stats.pages_pending);
  response.set_scan_us(us(stats.scan));
  response.set_copy_us(us(stats.copy));
  return {};
}

Result<void> Workload::capture(const pb::CaptureRequest& request, pb::CaptureResponse& response) {
  BATON_TRY(need_running("capture"));
  if (kept_frozen_ || held_) return make_error(Code::kConflict, "capture", name_ + " is frozen already");
  {
    LeaseTable::Capturing beside(*around_.leases, name_, false);
    if (!beside.allowed()) return make_error(Code::kConflict, "capture", name_ + " is frozen: its lease has run out");
    BATON_TRY(need_attachment());
  }
  LeaseTable::Capturing lease(*around_.leases, name_, true);
  if (!lease.allowed()) return make_error(Code::kConflict, "capture", name_ + " is frozen: its lease has run out");
  BATON_TRY(fault_point("warden.capture.before"));
  sink_.begin(0, "warden.capture.frozen");
  auto again = ranges_of(request.again());
  backend::CaptureOptions options;
  options.keep_frozen = request.keep_frozen();
  options.verify = request.verify();
  options.again = again;
  options.approach = approach_time(record_.spec());
  options.max_pending_pages = request.max_pending_pages();
  auto limit = around_.freeze_limit * (options.verify ? kVerifyFactor : 1);
  auto captured = [&]() -> Result<backend::CaptureStats> {
    auto guard = around_.watchdog->arm("capture of " + name_, limit, [this] { sink_.abort(); });
    return attachment_->capture(options, sink_, *response.mutable_manifest());
  }();
  if (!captured) {
    if (sink_.aborted()) {
      return make_error(Code::kTimedOut, "capture", name_ + ": not done within " + std::to_string(limit.count()) +
                                                        " ms, thawed and running",
                        "Copy in rounds first, or track fewer pages.");
    }
    judge_volumes(captured.error());
    return captured.error();
  }
  freeze_expired_ = false;
  if (options.keep_frozen) {
    kept_frozen_ = true;
    std::uint64_t freeze = ++freezes_;
    around_.watchdog->after(kKeptFrozenMax, [post = around_.post, id = id_, freeze, this] {
      post(id, [this, freeze] { expire_kept_freeze(freeze); });
    });
  }
  auto& manifest = *response.mutable_manifest();
  manifest.set_workload(name_);
  manifest.set_pause_us(us(captured->pause));
  if (auto point = fault_point("warden.capture.done"); !point) {
    if (kept_frozen_) BATON_TRY(thaw());
    return point.error();   // the pages stay in the sink, for the next answer
  }
  sink_.take(response.mutable_runs(), response.mutable_dropped());
  response.set_output_epoch(captured->output_epoch);
  response.set_pages_written(captured->pages.pages_written);
  response.set_pause_us(options.keep_frozen ? 0 : us(captured->pause));
  auto& phases = *response.mutable_phases();
  phases.set_stop_us(us(captured->stop));
  phases.set_scan_us(us(captured->scan));
  phases.set_copy_us(us(captured->copy));
  phases.set_state_us(us(captured->state));
  phases.set_resume_us(us(captured->resume));
  response.set_verify_differences(captured->verify_differences);
  response.set_verify_pages(captured->verify_pages);
  response.set_verify_first(captured->verify_first);
  response.set_rounds(captured->rounds);
  response.set_pages_frozen(captured->pages_frozen);
  response.set_strategy(captured->strategy);
  response.set_why(captured->why);
  return {};
}

void Workload::expire_kept_freeze(std::uint64_t freeze) {
  if (!kept_frozen_ || held_ || freeze != freezes_) return;
  spdlog::warn("{}: frozen for {} ms and not held; thawed", name_, kKeptFrozenMax.count());
  freeze_expired_ = true;
  kept_frozen_ = false;
  if (auto thawed = attachment_->thaw(); !thawed) {
    spdlog::error("{}: {}", name_, thawed.error().message());
    attachment_.reset();
  }
}

Result<void> Workload::build(const pb::BuildRequest& request) {
  build_asked_ = std::chrono::steady_clock::now();
  if (request.beside()) return build_beside(request);
  std::string kind = request.manifest().backend().empty() ? around_.default_backend : request.manifest().backend();
  BATON_ASSIGN(backend::Backend * backend, find_backend(kind, ""));
  BATON_TRY(begin(request.spec(), "building", kind));
  record_.set_incarnation(request.incarnation());
  auto done = [&]() -> Result<void> {
    BATON_TRY(around_.records->save(record_));
    BATON_TRY(fault_point("warden.build.begin"));
    BATON_TRY(plan_network(false));
    BATON_ASSIGN(const auto places, plan_volumes());
    record_volumes(places);
    BATON_ASSIGN(build_, backend->build(request.manifest(), build_target(request, record_.cgroup(), port_.get(), places)));
    shadow_seq_ = request.seq();
    BATON_TRY(adopt(build_->root(), build_->keeper()));
    BATON_TRY(around_.records->save(record_));
    return fault_point("warden.build.done");
  }();
  if (!done) {
    clean_up(true);
    return done.error();
  }
  return {};
}

Result<void> Workload::fill(const pb::FillRequest& request) {
  if (!build_) return make_error(Code::kNotFound, "fill", "nothing is being built under the name " + name_);
  BATON_TRY(fault_point("warden.fill.before"));
  if (request.beside() && !beside_) return make_error(Code::kNotFound, "fill", "nothing is being built beside " + name_);
  BATON_TRY(fill_runs(request.beside() ? *beside_ : *build_, request.runs()));
  return fault_point("warden.fill.after");
}

Result<pb::WorkloadProcess> Workload::activate(const pb::ActivateRequest& request) {
  if (!build_) return make_error(Code::kNotFound, "activate", "nothing is being built under the name " + name_);
  if (applying_seq_ != 0 || (request.seq() != 0 && request.seq() != shadow_seq_)) {
    return make_error(Code::kConflict, "activate", name_ + ": what is built stands at @" + std::to_string(shadow_seq_) + ", not @" +
                                                       std::to_string(request.seq()) + (applying_seq_ != 0 ? ", and only half" : ""));
  }
  BATON_TRY(fault_point("warden.activate.before"));
  if (request.incarnation() != 0) record_.set_incarnation(request.incarnation());
  auto begin = std::chrono::steady_clock::now();
  BATON_TRY(set_phase("activating"));
  publish();   // leases come meanwhile
  if (request.lease_until_ns() != 0) {
    auto leased = around_.leases->renew(name_, record_.cgroup(), request.lease_until_ns(), record_.incarnation());
    auto opened = leased ? open_gate(request.lease_until_ns()) : Result<void>(leased.error());
    if (!opened) {
      clean_up(true);
      return opened.error();
    }
  }
  auto recorded = std::chrono::steady_clock::now() - begin;
  // Its lease goes on being renewed; one that runs out all the same freezes it at the end of this:
  // what is frozen by its cgroup cannot be let go.
  std::optional<LeaseTable::Capturing> activating(std::in_place, *around_.leases, name_, true);
  if (!activating->allowed()) {
    clean_up(true);
    return make_error(Code::kTimedOut, "activate", name_ + ": its lease has run out before it could begin");
  }
  auto activated = build_->activate(request.paused(), std::chrono::nanoseconds(request.away_ns()));
  if (activated) activated = attach_network();   // of a backend that does not connect it itself
  if (!activated) {
    clean_up(true);
    return activated.error();
  }
  // From here on it runs: whatever fails now is logged and not reported as a failed activation.
  activating.reset();
  auto times = build_->activation_times();
  build_.reset();
  shadow_seq_ = 0;
  held_ = request.paused();
  if (auto point = fault_point("warden.activate.after"); !point) spdlog::warn("{}", point.error().message());
  if (auto saved = set_phase("running"); !saved) spdlog::error("{}: {}", name_, saved.error().message());
  watch();
  if (beside_) {
    around_.post(id_, [this] { drop_beside(); });   // its end takes time, and the program runs
  }
  publish();
  pb::WorkloadProcess answer = snapshot();
  auto& phases = *answer.mutable_activation();
  phases.set_finish_us(us(times.finish));
  phases.set_release_us(us(times.release));
  phases.set_record_us(us(recorded));
  return answer;
}

// ------------------------------------------------------------------ shadows

backend::BuildTarget Workload::build_target(const pb::BuildRequest& request, const std::string& cgroup, network::Port* port,
                                            const std::vector<backend::VolumePlace>& volumes) {
  backend::BuildTarget target;
  target.spec = record_.spec();
  target.cgroup = cgroup;
  target.log_path = record_.log_path();
  target.exit_path = record_.exit_path();
  target.away = std::chrono::nanoseconds(request.away_ns()) + (std::chrono::steady_clock::now() - build_asked_);
  target.shadow = request.seq() != 0;
  target.volumes = volumes;
  // A shadow stands at the newest state there is; what it holds of connections was the last word.
  target.connections = request.connections() || target.shadow;
  if (port != nullptr) target.equip = [port](pid_t member) { return port->equip(member); };
  target.connect = [this] { return attach_network(); };
  return target;
}

template <typename Runs>
Result<void> Workload::fill_runs(backend::Build& build, const Runs& runs) {
  for (const auto& run : runs) {
    std::uint64_t bytes = run.count() * kPage;
    std::uint64_t size = around_.fill_buffer.size();
    if (run.count() == 0 || run.offset() > size || bytes > size - run.offset() ||
        run.first_page() > (UINT64_MAX / kPage) - run.count()) {
      return make_error(Code::kInvalid, "fill", name_ + ": pages outside the fill buffer");
    }
    BATON_TRY(build.fill(run.object(), run.first_page(), around_.fill_buffer.subspan(run.offset(), bytes)));
  }
  return {};
}

// A second build, in a cgroup of its own, while the first stays whole where it stands.
Result<void> Workload::build_beside(const pb::BuildRequest& request) {
  if (!build_ || shadow_seq_ == 0 || request.seq() == 0) {
    return make_error(Code::kNotFound, "build", name_ + ": there is no shadow here beside which another could be built");
  }
  drop_beside();
  BATON_ASSIGN(backend::Backend * backend, find_backend(record_.backend(), ""));
  Cgroup other = around_.cgroups.child(name_ + std::string(kBesideSuffix));
  beside_cgroup_ = record_.cgroup() == other.path() ? around_.cgroups.child(name_) : other;
  auto done = [&]() -> Result<void> {
    BATON_TRY(beside_cgroup_.make());
    BATON_TRY(fault_point("warden.shadow.beside"));
    BATON_TRY(plan_network_beside());
    BATON_ASSIGN(beside_volumes_, plan_volumes());
    BATON_ASSIGN(beside_, backend->build(request.manifest(), build_target(request, beside_cgroup_.path(), beside_port_.get(), beside_volumes_)));
    return {};
  }();
  if (!done) drop_beside();
  return done;
}

void Workload::drop_beside() {
  beside_.reset();
  if (beside_port_) beside_port_->discard();
  beside_port_.reset();
  if (beside_cgroup_.path().empty() || beside_cgroup_.path() == record_.cgroup()) return;
  remove_cgroup(beside_cgroup_);
  beside_cgroup_ = Cgroup();
}

Result<void> Workload::shadow(const pb::ShadowRequest& request, pb::ShadowResponse& response) {
  if (!build_ || shadow_seq_ == 0) return make_error(Code::kNotFound, "shadow", "there is no shadow of " + name_ + " on this node");
  switch (request.step()) {
    case pb::SHADOW_STEP_APPLY: return apply_shadow(request, response);
    case pb::SHADOW_STEP_REPLACE: return replace_shadow(request);
    case pb::SHADOW_STEP_DROP: drop_beside(); return {};
    default: return make_error(Code::kInvalid, "shadow", "an unknown step");
  }
}

// Whatever fails once something has been changed leaves nothing of the shadow.
Result<void> Workload::apply_shadow(const pb::ShadowRequest& request, pb::ShadowResponse& response) {
  if (request.has_manifest() == (applying_seq_ != 0)) {
    return make_error(Code::kConflict, "apply", name_ + (applying_seq_ != 0 ? ": another checkpoint is on its way" : ": no checkpoint is on its way"));
  }
  if (request.seq() == 0 || (applying_seq_ != 0 && request.seq() != applying_seq_)) return make_error(Code::kInvalid, "apply", name_ + ": not of one checkpoint");
  auto begin = std::chrono::steady_clock::now();
  auto failed = [&](Error error) -> Result<void> {
    spdlog::warn("{}: its shadow is discarded: {}", name_, error.message());
    clean_up(true);
    return error;
  };
  if (request.has_manifest()) {
    if (auto point = fault_point("warden.shadow.apply"); !point) return failed(point.error());
    std::vector<backend::PageRange> dropped;
    for (const auto& range : request.dropped()) dropped.push_back({range.object(), range.first_page(), range.count()});
    auto followed = build_->apply(request.manifest(), dropped);
    if (!followed && followed.error().code == Code::kConflict) {
      response.set_rebuild(true);
      response.set_reason(followed.error().message());
      return {};
    }
    if (!followed) return failed(followed.error());
    applying_seq_ = request.seq();
    for (const auto& range : followed->again) {
      auto& again = *response.add_again();
      again.set_object(range.object);
      again.set_first_page(range.first_page);
      again.set_count(range.count);
    }
    response.set_clock_ahead_ns(followed->clock_ahead.count());
  }
  auto structured = std::chrono::steady_clock::now();
  if (auto filled = fill_runs(*build_, request.runs()); !filled) return failed(filled.error());
  if (auto point = fault_point("warden.shadow.filled"); !point) return failed(point.error());
  response.set_structure_us(us(structured - begin));
  response.set_pages_us(us(std::chrono::steady_clock::now() - structured));
  if (request.last() && response.again().empty()) {
    shadow_seq_ = applying_seq_;
    applying_seq_ = 0;
  }
  return {};
}

Result<void> Workload::replace_shadow(const pb::ShadowRequest& request) {
  if (!beside_ || request.seq() == 0) return make_error(Code::kNotFound, "replace", "nothing was built beside the shadow of " + name_);
  BATON_TRY(fault_point("warden.shadow.replace"));
  Cgroup old = cgroup_;
  build_ = std::move(beside_);
  take_network_beside();
  cgroup_ = std::exchange(beside_cgroup_, Cgroup());
  shadow_seq_ = request.seq();
  applying_seq_ = 0;
  record_.set_cgroup(cgroup_.path());
  record_volumes(beside_volumes_);
  auto done = adopt(build_->root(), build_->keeper());
  if (done) done = around_.records->save(record_);
  remove_cgroup(old);
  if (!done) clean_up(true);
  return done;
}

}  // namespace baton::warden
