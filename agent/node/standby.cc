#include "agent/node/standby.h"

#include <algorithm>

#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kApplyPages = 1024;                    // of one request to the warden
constexpr std::chrono::nanoseconds kClockMargin = 20ms;      // a new shadow's clocks are ahead by this
constexpr std::chrono::nanoseconds kClockLeast = 2ms, kClockMost = 100ms;
constexpr std::uint32_t kClockSamples = 16;
constexpr int kRebuildShare = 10;                            // rebuilding takes at most one part in so many of the time
constexpr auto kFirstBackoff = 100ms;
constexpr auto kMaxBackoff = 5000ms;
constexpr auto kBusyRetry = 20ms;
constexpr std::uint64_t kMostBehind = 2;                     // checkpoints, beside the one that comes
constexpr std::uint32_t kHopeless = 3;                       // failures after which nobody waits for it

pb::Mode sane(pb::Mode mode) { return mode == pb::MODE_UNSPECIFIED ? pb::MODE_COLD : mode; }

std::string_view mode_name(pb::Mode mode) { return mode == pb::MODE_HOT ? "hot" : mode == pb::MODE_WARM ? "warm" : "cold"; }

std::uint64_t pages_in(const Tables& tables) {
  std::uint64_t pages = 0;
  for (const auto& [object, table] : tables) pages += table.count();
  return pages;
}

}  // namespace

Standby::Standby(const StandbyEnv& env, std::string name, pb::WorkloadSpec spec, std::function<void()> claim_changed)
    : env_(env), name_(std::move(name)), claim_changed_(std::move(claim_changed)), spec_(std::move(spec)) {
  if (auto tip = env_.store->tip(name_); tip && *tip) tip_pages_ = (*tip)->pages;
}

Standby::~Standby() { retire(); }

void Standby::retire() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    hurry_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  std::lock_guard work(work_mutex_);
  drop_shadow();
  image_.clear();
  stage_.clear();
}

pb::WorkloadSpec Standby::spec() const {
  std::lock_guard lock(mutex_);
  return spec_;
}

void Standby::set_spec(const pb::WorkloadSpec& spec) {
  {
    std::lock_guard lock(mutex_);
    spec_ = spec;
  }
  claim_changed_();
}

void Standby::want_hot(bool wanted) {
  {
    std::lock_guard lock(mutex_);
    if (want_hot_ == wanted) return;
    want_hot_ = wanted;
  }
  claim_changed_();
}

StandbyClaim Standby::claim() const {
  std::lock_guard lock(mutex_);
  return {name_, want_hot_ ? pb::MODE_HOT : sane(spec_.mode()), tip_pages_ * dedup::kPageBytes, spec_.priority()};
}

void Standby::grant(const StandbyGrant& grant) {
  std::unique_lock lock(mutex_);
  if (granted_.mode == grant.mode && granted_.problem == grant.problem && thread_.joinable()) return;
  granted_ = grant;
  staging_ = grant.mode != pb::MODE_COLD && grant.mode != pb::MODE_UNSPECIFIED;
  woken_ = true;
  changed_.notify_all();
  if (staging_ && !thread_.joinable() && !stopping_) thread_ = std::thread([this] { loop(); });
  if (thread_.joinable() || view_.problem == grant.problem) return;
  view_.problem = grant.problem;
  lock.unlock();
  if (!grant.problem.empty() && env_.event) env_.event("standby", name_, "cold: " + grant.problem);
}

void Standby::stage(std::span<const transport::PageRef> pages) {
  if (staging_) stage_.put(pages);
}

void Standby::committed(std::uint64_t pages_total) {
  bool much = false;
  {
    std::lock_guard lock(mutex_);
    const std::uint64_t difference = std::max(pages_total, tip_pages_) - std::min(pages_total, tip_pages_);
    much = tip_pages_ == 0 || difference > tip_pages_ / 64;
    if (much) tip_pages_ = pages_total;
    woken_ = true;
    changed_.notify_all();
  }
  if (much) claim_changed_();
}

void Standby::let_catch_up(std::uint64_t seq, std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, most, [&] {
    return stopping_ || hurry_ || building_ || view_.mode != pb::MODE_HOT || !view_.problem.empty() || view_.ready_seq + kMostBehind + 1 >= seq;
  });
}

void Standby::wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  changed_.notify_all();
}

StandbyView Standby::view() const {
  std::lock_guard lock(mutex_);
  return view_;
}

bool Standby::wait_hot(std::uint64_t seq, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] {
    return stopping_ || (view_.mode == pb::MODE_HOT && view_.ready_seq >= seq) ||
           (granted_.mode != pb::MODE_HOT && !granted_.problem.empty()) || failed_in_a_row_ >= kHopeless;
  });
  return !stopping_ && view_.mode == pb::MODE_HOT && view_.ready_seq >= seq;
}

void Standby::note(pb::Mode mode, std::uint64_t seq, std::uint64_t bytes, std::string problem) {
  std::string told;
  {
    std::lock_guard lock(mutex_);
    if (problem.empty()) problem = granted_.problem;
    const bool demoted = view_.problem.empty() && !problem.empty();
    if (view_.mode != mode || demoted) {
      told = std::string(mode_name(mode)) + (seq != 0 ? " at @" + std::to_string(seq) : "") + (problem.empty() ? "" : ": " + problem);
    }
    view_ = {mode, std::move(problem), seq, bytes};
    changed_.notify_all();
  }
  if (!told.empty() && env_.event) env_.event("standby", name_, told);
}

// ------------------------------------------------------------------ the thread

void Standby::loop() {
  std::optional<std::chrono::milliseconds> again;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    auto due = [&] { return woken_ || stopping_; };
    if (again) changed_.wait_for(lock, *again, due);
    else changed_.wait(lock, due);
    if (stopping_) return;
    woken_ = false;
    lock.unlock();
    again = step();
    lock.lock();
  }
}

std::optional<std::chrono::milliseconds> Standby::step() {
  std::lock_guard work(work_mutex_);
  pb::Mode granted;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return std::nullopt;
    granted = granted_.mode;
  }
  if (shadow_seq_ != 0 && !has_shadow()) shadow_seq_ = 0;   // it ended with its warden
  auto done = do_step(granted);
  const bool hot = has_shadow(), warm = image_.seq() != 0;
  const std::uint64_t bytes = hot ? pages_in(shadow_tables_) * dedup::kPageBytes : image_.bytes();
  std::string problem;
  if (!done && done.error().code != Code::kCancelled) problem = done.error().message();
  note(hot ? pb::MODE_HOT : warm ? pb::MODE_WARM : pb::MODE_COLD, hot ? shadow_seq_ : image_.seq(), bytes, problem);
  if (done || done.error().code != Code::kCancelled) {
    std::lock_guard lock(mutex_);
    failed_in_a_row_ = done ? 0 : failed_in_a_row_ + 1;
    changed_.notify_all();
  }
  if (done) {
    failures_ = 0;
    return std::nullopt;
  }
  if (done.error().code == Code::kCancelled) return kBusyRetry;
  auto pause = std::min<std::chrono::milliseconds>(kFirstBackoff * (1u << std::min(failures_, 6u)), kMaxBackoff);
  if (failures_++ == 0) spdlog::warn("{}: standby: {}", name_, problem);
  return pause;
}

Result<void> Standby::do_step(pb::Mode granted) {
  if (granted == pb::MODE_HOT) {
    BATON_TRY(follow());
    if (has_shadow()) image_.clear();
    return {};
  }
  drop_shadow();
  if (granted == pb::MODE_WARM) return keep_warm();
  image_.clear();
  stage_.clear();
  return {};
}

Result<void> Standby::keep_warm() {
  BATON_ASSIGN(auto tip, env_.store->tip(name_));
  if (!tip || tip->seq == image_.seq()) return {};
  BATON_ASSIGN(auto image, load_image(*env_.store, name_, tip->seq));
  StagedSource source(*env_.store, image.identity, image.hasher, &stage_);
  return image_.advance(image, source);
}

Result<void> Standby::follow() {
  BATON_ASSIGN(auto tip, env_.store->tip(name_));
  if (!tip) return {};
  if (!has_shadow()) return build(false);
  if (!stands_at(*tip)) {
    BATON_ASSIGN(auto image, load_image(*env_.store, name_, tip->seq));
    auto brought = bring_to(image);
    if (!brought && brought.error().code != Code::kConflict) return brought;
    if (!brought) {
      if (std::chrono::steady_clock::now() < rebuild_not_before_) return brought;
      return build(true);
    }
  }
  if (clock_used_up_ && std::chrono::steady_clock::now() >= rebuild_not_before_) return build(true);
  return {};
}

Result<void> Standby::build(bool beside) {
  std::unique_lock turn(*env_.one_build, std::try_to_lock);
  if (!turn) return make_error(Code::kCancelled, "build", "another shadow is being built on this node");
  const auto begin = std::chrono::steady_clock::now();
  building_ = true;
  auto built = build_now(beside);
  building_ = false;
  const auto now = std::chrono::steady_clock::now();
  rebuild_not_before_ = now + kRebuildShare * (now - begin);
  return built;
}

Result<void> Standby::build_now(bool beside) {
  BATON_TRY(fault_point("agent.standby.build"));
  BATON_ASSIGN(auto image, load_image(*env_.store, name_, 0));
  pb::BuildRequest request;
  request.set_workload(name_);
  *request.mutable_manifest() = image.manifest;
  {
    std::lock_guard lock(mutex_);
    *request.mutable_spec() = spec_;
  }
  request.mutable_spec()->set_name(name_);
  request.set_incarnation(image.incarnation);
  request.set_seq(image.seq);
  request.set_beside(beside);
  request.set_away_ns(static_cast<std::uint64_t>((age_of(image) + kClockMargin).count()));
  if (image_.seq() == image.seq) {   // it was warm: from memory to memory
    BATON_TRY(build_and_fill(*env_.warden, image_, image, request, {}, &hurry_));
  } else {
    StagedSource staged(*env_.store, image.identity, image.hasher, &stage_);
    BATON_TRY(build_and_fill(*env_.warden, staged, image, request, {}, &hurry_));
  }
  if (beside) {
    pb::ShadowRequest replace;
    replace.set_workload(name_);
    replace.set_step(pb::SHADOW_STEP_REPLACE);
    replace.set_seq(image.seq);
    if (auto replaced = env_.warden->shadow(replace); !replaced) {
      drop_shadow();
      return replaced.error();
    }
  }
  shadow_epoch_ = env_.warden->epoch();
  shadow_seq_ = image.seq;
  shadow_incarnation_ = image.incarnation;
  shadow_tables_ = std::move(image.tables);
  clock_samples_ = 0;
  clock_used_up_ = false;
  return {};
}

// Since the freeze, by this node's clocks where it knows; at least zero.
std::chrono::nanoseconds Standby::age_of(const RestoreImage& image) const {
  std::chrono::nanoseconds age{0};
  if (image.local_freeze_boot_ns != 0) {
    age = env_.clock->boot_now() - std::chrono::nanoseconds(image.local_freeze_boot_ns);
  } else {
    age = std::chrono::nanoseconds(env_.clock->wall_now().count()) - std::chrono::nanoseconds(image.freeze_wall_ns);
  }
  return std::max(age, std::chrono::nanoseconds(0));
}

// Two bounds over some applies. What an apply tells is how far the clocks are ahead at the first
// instant at which the checkpoint could be activated: that must not run out. How far they are
// ahead of the program's, that is beyond its age, must not grow; it is taken low, since the
// answer was under way.
void Standby::watch_clock(const RestoreImage& image, std::int64_t ahead_ns) {
  if (image.local_freeze_boot_ns == 0) return;
  const std::int64_t beyond = ahead_ns - age_of(image).count();
  clock_ahead_ns_ = clock_samples_ == 0 ? ahead_ns : std::min(clock_ahead_ns_, ahead_ns);
  clock_beyond_ns_ = clock_samples_ == 0 ? beyond : std::min(clock_beyond_ns_, beyond);
  if (++clock_samples_ < kClockSamples) return;
  clock_used_up_ = clock_ahead_ns_ < kClockLeast.count() || clock_beyond_ns_ > kClockMost.count();
  if (clock_used_up_) {
    spdlog::info("{}: its shadow's clocks are {} us ahead of a checkpoint that has come, {} us of the program: it will be rebuilt",
                 name_, clock_ahead_ns_ / 1000, clock_beyond_ns_ / 1000);
  }
  clock_samples_ = 0;
}

Result<pb::ShadowResponse> Standby::send(pb::ShadowRequest& request, std::span<PieceGet> pages, PageSource& source, bool last) {
  request.set_workload(name_);
  request.set_step(pb::SHADOW_STEP_APPLY);
  request.set_last(last);
  if (pages.empty()) return env_.warden->shadow(request);
  BATON_ASSIGN(auto space, env_.warden->fill_space(pages.size() * dedup::kPageBytes));
  std::byte* at = space->bytes().data();
  for (auto& page : pages) {
    page.out = at;
    at += dedup::kPageBytes;
  }
  BATON_TRY(source.get(pages));
  add_runs<pb::ShadowRun>(pages, space->offset(), [&] { return request.add_runs(); });
  return env_.warden->shadow(request);
}

Result<void> Standby::bring_to(const RestoreImage& image) {
  auto differs = difference(shadow_tables_, image.tables, *image.hasher);
  StagedSource source(*env_.store, image.identity, image.hasher, &stage_);
  pb::ShadowRequest request;
  request.set_seq(image.seq);
  *request.mutable_manifest() = image.manifest;
  for (const auto& range : differs.gone) {
    auto& dropped = *request.add_dropped();
    dropped.set_object(range.object);
    dropped.set_first_page(range.first);
    dropped.set_count(range.count);
  }
  // From the first request that was sent until the last was answered it stands nowhere.
  auto done = [&]() -> Result<void> {
    auto& pages = differs.changed;
    std::size_t at = std::min(kApplyPages, pages.size());
    BATON_ASSIGN(auto answer, send(request, std::span(pages).first(at), source, at == pages.size()));
    if (answer.rebuild()) return make_error(Code::kConflict, "standby", "its shadow stands at @" + std::to_string(shadow_seq_) + ": " + answer.reason());
    for (const auto& range : answer.again()) {
      auto table = image.tables.find(range.object());
      if (table == image.tables.end()) continue;
      for (std::uint64_t page = range.first_page(); page < range.first_page() + range.count(); ++page) {
        if (auto digest = table->second.get(page); !digest.is_absent()) pages.push_back({range.object(), page, digest, nullptr});
      }
    }
    bool whole = at == pages.size() && answer.again().empty();
    while (!whole) {
      pb::ShadowRequest more;
      more.set_seq(image.seq);
      const std::size_t count = std::min(kApplyPages, pages.size() - at);
      whole = at + count == pages.size();
      BATON_TRY(send(more, std::span(pages).subspan(at, count), source, whole));
      at += count;
    }
    watch_clock(image, answer.clock_ahead_ns());
    return {};
  }();
  if (!done) {
    if (done.error().code != Code::kConflict) drop_shadow();
    return done;
  }
  shadow_seq_ = image.seq;
  shadow_incarnation_ = image.incarnation;
  shadow_tables_ = image.tables;
  return fault_point("agent.standby.applied");
}

void Standby::drop_shadow() {
  if (!has_shadow()) {
    shadow_seq_ = 0;
    return;
  }
  shadow_seq_ = 0;
  shadow_tables_.clear();
  auto gone = env_.warden->stop(name_, 0, true);
  if (!gone && gone.error().code != Code::kNotFound && gone.error().code != Code::kUnreachable) {
    spdlog::warn("{}: its shadow could not be removed: {}", name_, gone.error().message());
  }
}

// ------------------------------------------------------------------ activation

Result<std::optional<Activated>> Standby::activate(const ActivationOrder& order) {
  hurry_ = true;
  std::lock_guard work(work_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return std::optional<Activated>();
    stopping_ = true;
    changed_.notify_all();
  }
  BATON_ASSIGN(auto tip, env_.store->tip(name_));
  if (!tip || (order.seq != 0 && order.seq != tip->seq)) {
    drop_shadow();
    return std::optional<Activated>();
  }
  std::optional<RestoreImage> image;
  auto load = [&]() -> Result<void> {
    if (image) return {};
    BATON_ASSIGN(image, load_image(*env_.store, name_, tip->seq));
    return {};
  };
  if (has_shadow()) {
    Result<void> ready;
    if (!stands_at(*tip)) {
      ready = load();
      if (ready) ready = bring_to(*image);
    }
    if (ready) {
      auto activated = activate_shadow(order, tip->seq);
      if (activated) return std::optional<Activated>(std::move(*activated));
      ready = activated.error();
    }
    spdlog::warn("{}: its shadow cannot be used: {}", name_, ready.error().message());
    drop_shadow();
  }
  BATON_TRY(load());
  if (image_.seq() == tip->seq) {
    BATON_ASSIGN(auto activated, activate_warm(order, *image));
    return std::optional<Activated>(std::move(activated));
  }
  return std::optional<Activated>();
}

Result<Activated> Standby::activate_shadow(const ActivationOrder& order, std::uint64_t seq) {
  pb::ActivateRequest request;
  request.set_workload(name_);
  request.set_paused(order.paused);
  request.set_seq(seq);
  request.set_incarnation(order.incarnation);
  if (order.lease) {
    BATON_ASSIGN(const std::uint64_t until, order.lease());
    request.set_lease_until_ns(until);
  }
  BATON_ASSIGN(auto process, env_.warden->activate(request));
  shadow_seq_ = 0;   // it is the program now
  return Activated{std::move(process), seq, pb::MODE_HOT};
}

Result<Activated> Standby::activate_warm(const ActivationOrder& order, const RestoreImage& image) {
  pb::BuildRequest build;
  build.set_workload(name_);
  *build.mutable_manifest() = image.manifest;
  *build.mutable_spec() = order.spec;
  build.mutable_spec()->set_name(name_);
  build.set_incarnation(order.incarnation);
  build.set_connections(true);   // the newest state; what it holds of connections was the last word
  build.set_away_ns(static_cast<std::uint64_t>(age_of(image).count()));
  BATON_TRY(build_and_fill(*env_.warden, image_, image, build, {}));
  pb::ActivateRequest request;
  request.set_workload(name_);
  request.set_paused(order.paused);
  request.set_incarnation(order.incarnation);
  Result<std::uint64_t> until = order.lease ? order.lease() : Result<std::uint64_t>(0);
  if (until) request.set_lease_until_ns(*until);
  Result<pb::WorkloadProcess> process = until ? env_.warden->activate(request) : Result<pb::WorkloadProcess>(until.error());
  if (!process) {
    (void)env_.warden->stop(name_, 0, true);
    return process.error();
  }
  return Activated{std::move(*process), image.seq, pb::MODE_WARM};
}

}  // namespace baton::node
