// Capturing a workload's state and building it from one.
#include <algorithm>

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
  BATON_TRY(fault_point("warden.attach.before"));
  BATON_ASSIGN(attachment_, backend->attach(target));
  sink_.discard();   // of an earlier attachment, whose object ids mean nothing now
  return fault_point("warden.attach.after");
}

Result<void> Workload::round(const pb::RoundRequest& request, pb::RoundResponse& response) {
  BATON_TRY(need_running("round"));
  if (kept_frozen_ || held_) return make_error(Code::kConflict, "round", name_ + " is frozen");
  BATON_TRY(need_attachment());
  BATON_TRY(fault_point("warden.round.before"));
  sink_.begin(kRoundBytesMax);
  auto again = ranges_of(request.again());
  BATON_ASSIGN(backend::RoundStats stats, attachment_->round(sink_, again));
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
  BATON_TRY(need_attachment());
  BATON_TRY(fault_point("warden.capture.before"));
  sink_.begin(0, "warden.capture.frozen");
  auto again = ranges_of(request.again());
  backend::CaptureOptions options;
  options.keep_frozen = request.keep_frozen();
  options.verify = request.verify();
  options.again = again;
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
  std::string kind = request.manifest().backend().empty() ? around_.default_backend : request.manifest().backend();
  BATON_ASSIGN(backend::Backend * backend, find_backend(kind, ""));
  BATON_TRY(begin(request.spec(), "building", kind));
  record_.set_incarnation(request.incarnation());
  auto done = [&]() -> Result<void> {
    BATON_TRY(around_.records->save(record_));
    BATON_TRY(fault_point("warden.build.begin"));
    backend::BuildTarget target;
    target.spec = record_.spec();
    target.cgroup = record_.cgroup();
    target.log_path = record_.log_path();
    target.exit_path = record_.exit_path();
    target.away = std::chrono::nanoseconds(request.away_ns());
    BATON_ASSIGN(build_, backend->build(request.manifest(), target));
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
  for (const auto& run : request.runs()) {
    std::uint64_t bytes = run.count() * kPage;
    std::uint64_t size = around_.fill_buffer.size();
    if (run.count() == 0 || run.offset() > size || bytes > size - run.offset() ||
        run.first_page() > (UINT64_MAX / kPage) - run.count()) {
      return make_error(Code::kInvalid, "fill", name_ + ": pages outside the fill buffer");
    }
    BATON_TRY(build_->fill(run.object(), run.first_page(), around_.fill_buffer.subspan(run.offset(), bytes)));
  }
  return fault_point("warden.fill.after");
}

Result<pb::WorkloadProcess> Workload::activate(const pb::ActivateRequest& request) {
  if (!build_) return make_error(Code::kNotFound, "activate", "nothing is being built under the name " + name_);
  BATON_TRY(fault_point("warden.activate.before"));
  BATON_TRY(set_phase("activating"));
  auto activated = build_->activate(request.paused(), std::chrono::nanoseconds(request.away_ns()));
  if (!activated) {
    clean_up(true);
    return activated.error();
  }
  // From here on it runs: whatever fails now is logged and not reported as a failed activation.
  build_.reset();
  held_ = request.paused();
  if (auto point = fault_point("warden.activate.after"); !point) spdlog::warn("{}", point.error().message());
  if (auto saved = set_phase("running"); !saved) spdlog::error("{}: {}", name_, saved.error().message());
  watch();
  publish();
  return snapshot();
}

}  // namespace baton::warden
