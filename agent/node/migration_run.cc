#include "agent/node/migration_run.h"
#include "agent/node/node_tenure.h"

#include <algorithm>
#include <thread>

#include "agent/node/spec.h"
#include "base/check.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;

// What cannot be captured may be over when one looks again: a vfork(2), a child that is ending.
constexpr auto kPassingWait = 10ms;
int looks_for(const Error& error) {
  if (error.code == Code::kConflict) return 100;
  return error.code == Code::kUnsupported ? 5 : 0;
}

FileVersion version_of(const pb::FileProof& file) { return {file.path(), file.size_bytes(), file.mtime_ns()}; }

constexpr std::uint64_t kBulkChunkPages = 8192;
constexpr int kMaxBulkRounds = 65536;
constexpr std::uint32_t kFilePieceBytes = 64 * 1024;
constexpr std::uint64_t kDefaultTargetPauseUs = 10'000;
constexpr auto kDrainStep = 1s;
constexpr auto kMaxRetryPause = 2000ms;
constexpr auto kConnectWait = 10s;
constexpr auto kAnswerStuckAfter = 10s;   // repeated for that long in vain: the caller waits no longer

MigrationEvent ok() { return {MigrationEventKind::kOk, {}}; }
MigrationEvent failed(const Error& error) { return {MigrationEventKind::kFailed, error.message()}; }
MigrationEvent from(const Result<void>& result) { return result ? ok() : failed(result.error()); }

}  // namespace

MigrationRun::MigrationRun(Workload& workload, pb::MigrateRequest request, Workload::Progress progress)
    : w_(workload),
      request_(std::move(request)),
      progress_(std::move(progress)),
      started_(std::chrono::steady_clock::now()) {
  state_.stop_and_copy = request_.strategy() == "stopcopy";
  report_.set_strategy(state_.stop_and_copy ? "stopcopy" : "precopy");
  report_.set_from(w_.env_.node);
  report_.set_to(request_.target().node());
}

void MigrationRun::set_state(const std::string& state) {
  std::lock_guard lock(w_.mutex_);
  if (w_.state_ == "exited" && state != "exited") return;
  w_.state_ = state;
}

Result<pb::MigrateReport> MigrationRun::run() {
  if (!request_.strategy().empty() && request_.strategy() != "precopy" &&
      request_.strategy() != "stopcopy") {
    return make_error(Code::kUnsupported, "migrate", "strategy '" + request_.strategy() + "'",
                      "Use precopy or stopcopy.");
  }
  set_state("migrating");
  if (w_.env_.tenure) w_.env_.tenure->note_leaving(w_.name(), true);
  struct Leaving {
    Workload& workload;
    ~Leaving() {
      if (workload.env_.tenure) workload.env_.tenure->note_leaving(workload.name(), false);
    }
  } leaving{w_};
  w_.env_.event("migrating", w_.name(), "to " + request_.target().node());
  MigrationEvent event{MigrationEventKind::kStart, {}};
  for (;;) {
    if (w_.abort_asked_.exchange(false)) step(state_, {MigrationEventKind::kAbort, {}});
    auto effects = step(state_, event);
    if (effects.empty()) break;
    report(phase_name(state_.phase));
    for (auto effect : effects) {
      if (effect == MigrationEffect::kFinishDone || effect == MigrationEffect::kFinishFailed) break;
      event = perform(effect);
      if (!event.error.empty()) last_error_ = event.error;
    }
    if (state_.phase == MigrationPhase::kDone || state_.phase == MigrationPhase::kFailed) break;
    if (w_.stop_now_ && !state_.frozen) {
      event = {MigrationEventKind::kFailed, "this agent is being stopped"};
    }
    if (w_.stop_now_ && state_.frozen && state_.retries > 0) {
      // Stays frozen: the next start of this agent asks who owns it (node.cc, take_up).
      drop_link();
      return make_error(Code::kUnknownOutcome, "migrate",
                        w_.name() + " stays frozen until the owner is known: " + state_.error);
    }
  }
  drop_link();
  if (state_.phase == MigrationPhase::kFailed) {
    const bool ours = !destroyed_;
    {
      std::lock_guard lock(w_.mutex_);
      if (w_.state_ == "migrating") w_.state_ = ours ? "running" : "moved";
    }
    w_.env_.event("migration failed", w_.name(), state_.error);
    if (!ours) w_.env_.moved_away(w_.name());
    w_.env_.report_soon();
    return make_error(Code::kFailed, "migrate", w_.name() + " to " + request_.target().node() + ": " + state_.error,
                      ours ? "The program runs on here." : "");
  }
  set_state("moved");
  report_.set_total_ms(
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started_).count());
  report_.set_converged(converged_);
  pb::MigrateProgress last;
  last.set_phase("done");
  last.set_bytes_sent(report_.bytes_sent());
  *last.mutable_report() = report_;
  if (progress_ && !answered_) progress_(last);
  w_.env_.event("migrated", w_.name(),
                "from " + report_.from() + " to " + report_.to() + ", pause " +
                    std::to_string(report_.pause_us()) + " us" + phases());
  w_.env_.moved_away(w_.name());
  w_.env_.report_soon();
  return report_;
}

void MigrationRun::report(std::string_view phase, std::uint64_t bytes_left) {
  if (!progress_ || answered_) return;
  pb::MigrateProgress progress;
  progress.set_phase(std::string(phase));
  progress.set_round(static_cast<std::uint32_t>(rounds_.size() + 1));
  if (link_) {
    const std::uint64_t sent = link_->stats().bytes_sent - stats_before_.bytes_sent;
    progress.set_bytes_sent(sent);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    if (seconds > 0) progress.set_rate_bytes_per_s(static_cast<std::uint64_t>(static_cast<double>(sent) / seconds));
    if (progress.rate_bytes_per_s() > 0) {
      progress.set_eta_us(bytes_left * 1'000'000 / progress.rate_bytes_per_s());
    }
  }
  progress.set_bytes_left(bytes_left);
  progress_(progress);
}

void MigrationRun::answer_when_stuck() {
  const auto now = std::chrono::steady_clock::now();
  if (state_.retries <= 1) stuck_since_ = now;
  if (answered_ || now - stuck_since_ < kAnswerStuckAfter) return;
  answered_ = true;
  const std::string why = last_error_.empty() ? state_.error : last_error_;
  w_.answer_early(make_error(Code::kUnknownOutcome, "migrate",
                             w_.name() + " to " + request_.target().node() + ": still " +
                                 std::string(phase_name(state_.phase)) + (why.empty() ? "" : ": " + why),
                             "The program is frozen; it goes on, here or there, as soon as that is answered."));
}

bool MigrationRun::pause_before_retry(std::uint32_t attempt) {
  if (attempt == 0) return true;
  answer_when_stuck();
  auto pause = std::min<std::chrono::milliseconds>(50ms * (1u << std::min(attempt, 6u)), kMaxRetryPause);
  std::unique_lock lock(w_.mutex_);
  w_.changed_.wait_for(lock, pause, [&] { return w_.stopping_; });
  return !w_.stopping_;
}

MigrationEvent MigrationRun::perform(MigrationEffect effect) {
  switch (effect) {
    case MigrationEffect::kPrepareTarget: return prepare();
    case MigrationEffect::kCopyRound: return copy_round();
    case MigrationEffect::kFreeze: return freeze();
    case MigrationEffect::kShip: return ship();
    case MigrationEffect::kHold: {
      auto held = end_hold();
      phase_took(phases_.hold_us);
      if (held) held = fault_point("agent.migrate.held");
      return from(held);
    }
    case MigrationEffect::kBuildTarget: return build_target();
    case MigrationEffect::kChangeOwner: return change_owner();
    case MigrationEffect::kAskOwner: return ask_owner();
    case MigrationEffect::kReclaim: return reclaim();
    case MigrationEffect::kActivateTarget: return activate();
    case MigrationEffect::kThaw: return thaw();
    case MigrationEffect::kDiscardTarget: {
      if (!target_) return ok();
      auto discarded = target_->discard(w_.name());
      if (!discarded) {
        spdlog::warn("{}: {} was not told to discard: {}", w_.name(), request_.target().node(),
                     discarded.error().message());
      }
      return ok();
    }
    case MigrationEffect::kDestroySource: return destroy();
    case MigrationEffect::kFinishDone:
    case MigrationEffect::kFinishFailed: return ok();
  }
  return ok();
}

// ------------------------------------------------------------------ before the freeze

MigrationEvent MigrationRun::prepare() {
  if (auto point = fault_point("agent.migrate.begin"); !point) return failed(point.error());
  target_ = w_.env_.connect_target(request_.target());
  if (!target_) return {MigrationEventKind::kFailed, "no address of " + request_.target().node()};
  pb::InspectRequest inspect;
  inspect.set_workload(w_.name());
  *inspect.mutable_spec() = w_.spec_;
  {
    std::lock_guard lock(w_.mutex_);
    inspect.set_pid(w_.process_.pid());
  }
  auto seen = w_.env_.warden->inspect(inspect);
  if (!seen) return failed(seen.error());
  if (!seen->acceptable()) {
    for (const auto& verdict : seen->verdicts()) {
      if (verdict.verdict() == "refused") {
        return {MigrationEventKind::kFailed, verdict.resource() + ": " + verdict.kind() +
                                                 " is not supported: " + verdict.detail()};
      }
    }
  }
  if (w_.env_.tenure) {
    auto ready = w_.env_.tenure->ready_to_move(w_.name());
    if (!ready) return failed(ready.error());
    if (*ready > w_.incarnation()) {   // its voters were changed just before
      w_.set_incarnation(*ready);
      w_.env_.new_incarnation(w_.name(), *ready);
      w_.reconcile_links();   // they were opened under the one before
    }
  }
  pb::PrepareTargetRequest request;
  request.set_name(w_.name());
  *request.mutable_machine() = seen->machine();
  *request.mutable_spec() = w_.spec_;
  request.set_incarnation(w_.incarnation());
  request.set_memory_bytes(w_.image_.present_pages() * dedup::kPageBytes);
  std::vector<pb::FileProof> files(seen->files().begin(), seen->files().end());
  // What the program is writing may change between two looks; frozen, it is compared in full.
  for (auto& file : files) {
    if (file.writable()) file.clear_sha256();
  }
  if (auto proved = prove_files(files, request, false); !proved) return failed(proved.error());
  if (auto linked = connect_link(); !linked) return failed(linked.error());
  return from(fault_point("agent.migrate.prepared"));
}

// The target proves that it holds the files; what it lacks is sent when that is allowed. A file
// that a running program has removed meanwhile is passed over: the freeze tells what counts.
Result<void> MigrationRun::prove_files(const std::vector<pb::FileProof>& files,
                                       pb::PrepareTargetRequest& request, bool frozen) {
  request.clear_files();
  for (const auto& file : files) *request.add_files() = file;
  std::set<std::string> removed;
  for (int attempt = 0; attempt < 2; ++attempt) {
    BATON_ASSIGN(auto answer, target_->prepare(request));
    if (answer.problems_size() > 0) {
      const auto& first = answer.problems(0);
      return make_error(Code::kUnsupported, "prepare on " + request_.target().node(),
                        first.resource() + ": " + first.detail());
    }
    std::vector<std::string> missing;
    std::copy_if(answer.missing_files().begin(), answer.missing_files().end(), std::back_inserter(missing),
                 [&](const std::string& path) { return !removed.contains(path); });
    if (missing.empty()) {
      for (const auto& file : files) {
        if (!file.writable() && !removed.contains(file.path())) proven_.insert(version_of(file));
      }
      return {};
    }
    const bool allowed = request_.with_files() || w_.spec_.with_files();
    if (allowed && attempt > 0 && !frozen) return {};   // still changing
    if (!allowed || attempt > 0) {
      std::string paths;
      for (const auto& path : missing) paths += (paths.empty() ? "" : ", ") + path;
      return make_error(Code::kUnsupported, "prepare on " + request_.target().node(),
                        "it lacks these files, or they differ: " + paths,
                        allowed ? "" : "Send them with --with-files.");
    }
    for (const auto& path : missing) {
      for (const auto& file : request.files()) {
        if (file.path() != path) continue;
        auto sent = send_file(file);
        if (!sent && !frozen && sent.error().code == Code::kNotFound) {
          removed.insert(path);
          continue;
        }
        BATON_TRY(sent);
      }
    }
  }
  return {};
}

Result<void> MigrationRun::send_file(const pb::FileProof& file) {
  report("files");
  return target_->put_file(w_.name(), file.path(), [&](std::uint64_t offset) {
    pb::ReadFileRequest read;
    read.set_path(file.path());
    read.set_workload(w_.name());
    read.set_offset(offset);
    read.set_max_bytes(kFilePieceBytes);
    return w_.env_.warden->read_file(read);
  });
}

Result<void> MigrationRun::connect_link() {
  for (const auto& link : w_.links()) {
    if (link.peer.node() == request_.target().node()) link_ = link.replicator;
  }
  if (!link_) {
    link_ = w_.make_link(request_.target(), false);
    own_link_ = true;
    std::lock_guard lock(w_.mutex_);
    w_.links_.push_back({request_.target(), false, link_});
  }
  stats_before_ = link_->stats();
  link_->limit_rate(request_.bandwidth_bytes_per_s());
  std::unique_lock lock(w_.mutex_);
  const bool connected =
      w_.changed_.wait_for(lock, kConnectWait, [&] { return w_.stopping_ || link_->connected(); });
  lock.unlock();
  if (connected && link_->connected()) return {};
  return make_error(Code::kUnreachable, "page stream", link_->name() + ": " + link_->problem());
}

void MigrationRun::drop_link() {
  if (!link_) return;
  link_->limit_rate(0);
  if (own_link_) {
    std::lock_guard lock(w_.mutex_);
    std::erase_if(w_.links_, [&](const Workload::Link& link) { return link.replicator == link_; });
  }
  link_.reset();
}

Result<void> MigrationRun::wait_drained() {
  for (;;) {
    if (link_->drain(kDrainStep)) return {};
    if (!link_->connected()) {
      return make_error(Code::kUnreachable, "page stream", link_->name() + ": " + link_->problem());
    }
    if (w_.abort_asked_ || w_.stop_now_) {
      return make_error(Code::kCancelled, "migrate", "aborted on request");
    }
    report(phase_name(state_.phase), link_->wanted_pages() * dedup::kPageBytes);
  }
}

// A long copy must not let the lag grow: checkpoints go on between its rounds.
Result<void> MigrationRun::checkpoint_when_due() {
  {
    std::lock_guard lock(w_.mutex_);
    const auto now = w_.env_.clock->monotonic_now();
    if (!w_.due(now) || !w_.room()) return {};
    w_.next_due_ = w_.pacing_.next(now);
    w_.capturing_ = true;
  }
  auto done = w_.checkpoint();
  std::lock_guard lock(w_.mutex_);
  w_.capturing_ = false;
  if (!done && done.error().code == Code::kNoSpace) return {};
  return done;
}

// The first round: everything that the target does not hold yet.
Result<void> MigrationRun::bulk_copy() {
  bool full = false;
  {
    std::lock_guard lock(w_.mutex_);
    full = std::exchange(w_.need_full_, false);
  }
  if (full) BATON_TRY(w_.full_copy());
  for (int round = 0; round < kMaxBulkRounds; ++round) {
    BATON_TRY(wait_drained());
    auto again = link_->take_wanted(kBulkChunkPages);
    if (again.empty()) {
      auto probe = std::make_shared<Snapshot>();
      probe->tables = w_.image_.tables();
      link_->offer_probe(std::move(probe));
      BATON_TRY(wait_drained());
      again = link_->take_wanted(kBulkChunkPages);
      if (again.empty()) return {};
    }
    report("copy", link_->wanted_pages() * dedup::kPageBytes);
    BATON_TRY(w_.copy_round(again, link_.get()));
    BATON_TRY(checkpoint_when_due());
  }
  return make_error(Code::kFailed, "copy", "the target asks for pages again and again");
}

MigrationEvent MigrationRun::copy_round() {
  const auto begin = std::chrono::steady_clock::now();
  const auto sent_before = link_->stats().pages_sent;
  RoundMeasure measure;
  if (rounds_.empty()) {
    if (auto done = bulk_copy(); !done) return failed(done.error());
    measure.pages = link_->stats().pages_sent - sent_before;
  } else {
    const auto lacking = link_->take_wanted(kBulkChunkPages);   // after an attempt that was given up
    auto pages = w_.copy_round(lacking, link_.get());
    if (!pages) return failed(pages.error());
    if (auto done = wait_drained(); !done) return failed(done.error());
    measure.pages = *pages;
    // What the last pause has to bring is then only what is written from here on.
    if (ahead_) {
      if (auto done = checkpoint_on_target(); !done) return failed(done.error());
    }
  }
  measure.dirty_now = measure.pages;
  measure.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  rounds_.push_back(measure);
  build_ahead();
  if (auto point = fault_point("agent.migrate.round"); !point) return failed(point.error());
  ConvergenceRules rules;
  rules.must_meet = request_.max_pause_us() != 0;
  rules.target_pause_us = rules.must_meet ? request_.max_pause_us() : kDefaultTargetPauseUs;
  auto decision = decide_round(rules, rounds_);
  if (decision.verdict == RoundVerdict::kGiveUp) {
    converged_ = false;
    return {MigrationEventKind::kFailed,
            "not converged after " + std::to_string(rounds_.size()) + " rounds (" + decision.reason +
                "): the pause would be about " + std::to_string(decision.estimated_pause_us) +
                " us, allowed are " + std::to_string(request_.max_pause_us())};
  }
  if (decision.verdict == RoundVerdict::kMore) return {MigrationEventKind::kMore, {}};
  converged_ = decision.reason == "converged";
  if (ahead_) {
    if (auto follows = shadow_follows(); !follows) {
      spdlog::warn("{}: {} builds it in the pause: {}", w_.name(), request_.target().node(), follows.error().message());
      ahead_ = false;
    }
  }
  return ok();
}

// ------------------------------------------------------------------ frozen

MigrationEvent MigrationRun::freeze() {
  bool full = false;
  {
    std::lock_guard lock(w_.mutex_);
    full = std::exchange(w_.need_full_, false);
  }
  if (full) {
    // Stop and copy of a program that was never copied: the tracker begins with everything.
    if (auto done = w_.full_copy(); !done) return failed(done.error());
  }
  // Without rounds before it, the freeze copies all that the target does not hold.
  std::vector<PageRef> again;
  if (state_.stop_and_copy) {
    if (auto done = wait_drained(); !done) return failed(done.error());
    auto probe = std::make_shared<Snapshot>();
    probe->tables = w_.image_.tables();
    link_->offer_probe(std::move(probe));
    if (auto done = wait_drained(); !done) return failed(done.error());
    again = link_->take_wanted(UINT64_MAX);
  }
  frozen_at_ = w_.env_.clock->boot_now();
  phase_began_ = std::chrono::steady_clock::now();
  std::uint64_t max_pending = 0;
  if (request_.max_pause_us() != 0 && !state_.stop_and_copy && !rounds_.empty()) {
    // A burst of writes since the last round would break the promise: better not at all.
    max_pending = 4 * rounds_.back().pages + 1024;
  }
  auto snapshot = w_.take_snapshot(true, again, max_pending, link_.get());
  for (int look = 0; !snapshot && look < looks_for(snapshot.error()) && !w_.abort_asked_ && !w_.stop_now_; ++look) {
    std::this_thread::sleep_for(kPassingWait);
    frozen_at_ = w_.env_.clock->boot_now();
    phase_began_ = std::chrono::steady_clock::now();
    snapshot = w_.take_snapshot(true, again, max_pending, link_.get());
  }
  if (!snapshot) return failed(snapshot.error());
  final_ = *snapshot;
  phase_took(phases_.freeze_us);
  return from(fault_point("agent.migrate.frozen"));
}

MigrationEvent MigrationRun::ship() {
  // Files open for writing may have changed until the freeze, others have been opened since.
  pb::Manifest manifest;
  if (!manifest.ParseFromString(final_->manifest)) return {MigrationEventKind::kFailed, "the checkpoint cannot be read"};
  auto unproven = [this](const pb::FileProof& file) {
    return file.writable() || !proven_.contains(version_of(file));
  };
  if (std::any_of(manifest.files().begin(), manifest.files().end(), unproven)) {
    pb::InspectRequest inspect;
    inspect.set_workload(w_.name());
    *inspect.mutable_spec() = w_.spec_;
    auto seen = w_.env_.warden->inspect(inspect);
    if (!seen) return failed(seen.error());
    std::vector<pb::FileProof> doubtful;
    std::copy_if(seen->files().begin(), seen->files().end(), std::back_inserter(doubtful), unproven);
    pb::PrepareTargetRequest request;
    request.set_name(w_.name());
    *request.mutable_spec() = w_.spec_;
    request.set_incarnation(w_.incarnation());
    if (auto proved = prove_files(doubtful, request, true); !proved) return failed(proved.error());
    for (const auto& file : doubtful) {   // its copies here are of no use to anybody from now on
      if (!file.writable()) continue;
      pb::ReadFileRequest left;
      left.set_path(file.path());
      left.set_workload(w_.name());
      left.set_max_bytes(1);
      left.set_leaving(true);
      (void)w_.env_.warden->read_file(left).has_value();
    }
  }
  begin_hold();
  if (!link_->offer(final_, true)) {
    return {MigrationEventKind::kFailed, link_->name() + ": " + link_->problem()};
  }
  if (auto drained = wait_drained(); !drained) return failed(drained.error());
  if (link_->last_committed() < final_->seq) {
    const std::uint64_t lacking = link_->wanted_pages();
    return {lacking > 0 ? MigrationEventKind::kPassing : MigrationEventKind::kFailed,
            "the target did not commit the last checkpoint" +
                (lacking > 0 ? ": it lacks " + std::to_string(lacking) + " pages" : ": " + link_->problem())};
  }
  phase_took(phases_.ship_us);
  return from(fault_point("agent.migrate.shipped"));
}

std::uint64_t MigrationRun::away_ns() const {
  return static_cast<std::uint64_t>((w_.env_.clock->boot_now() - frozen_at_).count());
}

MigrationEvent MigrationRun::build_target() {
  pb::BuildTargetRequest request;
  request.set_name(w_.name());
  request.set_seq(final_->seq);
  *request.mutable_spec() = w_.spec_;
  request.set_incarnation(w_.incarnation());
  request.set_away_ns(away_ns());
  const auto asked = std::chrono::steady_clock::now();
  auto built = target_->build(request);
  if (!built) {
    // Such as a lock that the program itself holds here until it is gone, in a file that both nodes see.
    if (built.error().code == Code::kConflict) return {MigrationEventKind::kPassing, built.error().message()};
    return failed(built.error());
  }
  note_round_trip(asked, built->build_us());
  phase_took(phases_.apply_us);
  return from(fault_point("agent.migrate.built"));
}

MigrationEvent MigrationRun::change_owner() {
  if (auto point = fault_point("agent.migrate.handover.before"); !point) return failed(point.error());
  pb::ChangeOwnerRequest request;
  request.set_workload(w_.name());
  request.set_expected_incarnation(w_.incarnation());
  request.set_new_owner(request_.target().node());
  request.set_reason("migrate");
  request.set_committed_seq(final_->seq);
  auto answer = w_.env_.owners->change_owner(request);
  if (auto point = fault_point("agent.migrate.handover.after"); !point) {
    return {MigrationEventKind::kUnknown, point.error().message()};
  }
  if (!answer) {
    // Only what is certainly refused counts as refused: any other answer may be about our
    // own request, sent twice by the transport.
    const bool refused = answer.error().code == Code::kInvalid;
    return {refused ? MigrationEventKind::kFailed : MigrationEventKind::kUnknown, answer.error().message()};
  }
  new_owner_ = *answer;
  phase_took(phases_.owner_us);
  if (w_.env_.tenure && final_) w_.env_.tenure->note_original(w_.name(), final_->incarnation, final_->seq);
  return ok();
}

MigrationEvent MigrationRun::ask_owner() {
  if (!pause_before_retry(state_.retries)) return {MigrationEventKind::kUnknown, "stopping"};
  auto answer = w_.env_.owners->get_owner(w_.name());
  if (!answer) {
    if (answer.error().code == Code::kNotFound) {
      // Deleted meanwhile: nobody may run it.
      new_owner_.set_owner("");
      return {MigrationEventKind::kOwnerIsOther, answer.error().message()};
    }
    spdlog::warn("{}: frozen, asking who owns it: {}", w_.name(), answer.error().message());
    return {MigrationEventKind::kUnknown, answer.error().message()};
  }
  const std::uint64_t held = w_.incarnation();
  new_owner_ = *answer;
  if (answer->owner() == w_.env_.node) {
    // Higher than ours: a reclaim of which we heard no answer.
    if (state_.phase == MigrationPhase::kConfirmingOwner && taken_back()) {
      w_.set_incarnation(answer->incarnation());
      w_.env_.new_incarnation(w_.name(), answer->incarnation());
      return {MigrationEventKind::kTakenBack, {}};
    }
    if (answer->incarnation() > held && state_.phase == MigrationPhase::kAskingOwner) {
      w_.set_incarnation(answer->incarnation());
      w_.env_.new_incarnation(w_.name(), answer->incarnation());
    }
    return {MigrationEventKind::kOwnerIsSource, {}};
  }
  if (answer->owner() == request_.target().node()) return {MigrationEventKind::kOwnerIsTarget, {}};
  return {MigrationEventKind::kOwnerIsOther, {}};
}

// Whether this node was elected for the checkpoint at which our frozen program stands: nothing that the
// target did afterwards has been committed.
bool MigrationRun::taken_back() const {
  if (!w_.env_.tenure || !final_) return false;
  auto known = w_.env_.tenure->known(w_.name());
  return known && known->record.owner() == w_.env_.node && known->record.committed_incarnation() == final_->incarnation &&
         known->record.committed_seq() == final_->seq;
}

MigrationEvent MigrationRun::reclaim() {
  pb::ChangeOwnerRequest request;
  request.set_workload(w_.name());
  request.set_expected_incarnation(w_.incarnation());
  request.set_new_owner(w_.env_.node);
  request.set_reason("migration given up");
  request.set_committed_seq(final_ ? final_->seq : 0);
  auto answer = w_.env_.owners->change_owner(request);
  if (!answer) return {MigrationEventKind::kUnknown, answer.error().message()};
  new_owner_ = *answer;
  w_.set_incarnation(answer->incarnation());
  w_.env_.new_incarnation(w_.name(), answer->incarnation());
  return ok();
}

MigrationEvent MigrationRun::thaw() {
  if (hold_.valid()) (void)hold_.get();   // a freeze that comes after the thaw would stay
  if (!pause_before_retry(state_.retries)) return {MigrationEventKind::kUnknown, "stopping"};
  auto thawed = w_.env_.warden->thaw(w_.name());
  if (!thawed && (thawed.error().code == Code::kNotFound || thawed.error().code == Code::kConflict ||
                  thawed.error().code == Code::kTraceeGone || thawed.error().code == Code::kInvalid)) {
    return ok();  // it ended, or it runs already
  }
  {
    // What the frozen capture took may have reached no standby: the tables hold it, the
    // next difference finds it.
    std::lock_guard lock(w_.mutex_);
    w_.next_due_ = {};
  }
  return from(thawed);
}

// ------------------------------------------------------------------ handed over

MigrationEvent MigrationRun::activate() {
  pb::ActivateTargetRequest request;
  request.set_name(w_.name());
  *request.mutable_ownership() = new_owner_;
  *request.mutable_spec() = w_.spec_;
  request.set_away_ns(away_ns());
  // A standby that becomes the primary changes places with the old one.
  for (const auto& peer : w_.standbys()) {
    *request.add_standbys() = peer.node() == request_.target().node() ? w_.env_.self() : peer;
  }
  const std::uint64_t away_before_us = away_ns() / 1000;
  auto answer = target_->activate(request);
  if (!answer) {
    spdlog::warn("{}: {} has not confirmed that it runs: {}", w_.name(), request_.target().node(),
                 answer.error().message());
    return {MigrationEventKind::kUnknown, answer.error().message()};
  }
  report_.set_pause_us(pause_us(away_before_us, answer->activate_us()));
  phases_.activate_us = report_.pause_us() - std::min(report_.pause_us(), away_before_us);
  report_.set_pid(answer->pid());
  report_.set_incarnation(new_owner_.incarnation());
  report_.set_seq(final_->seq);
  report_.set_rounds(static_cast<std::uint32_t>(rounds_.size() + 1));
  const auto stats = link_->stats();
  report_.set_bytes_sent(stats.bytes_sent - stats_before_.bytes_sent);
  report_.set_pages_sent(stats.pages_sent - stats_before_.pages_sent);
  report_.set_pages_known(stats.pages_known - stats_before_.pages_known);
  if (auto point = fault_point("agent.migrate.activated"); !point) {
    return {MigrationEventKind::kUnknown, point.error().message()};
  }
  return ok();
}

MigrationEvent MigrationRun::destroy() {
  if (!pause_before_retry(state_.retries)) return {MigrationEventKind::kUnknown, "stopping"};
  if (auto point = fault_point("agent.migrate.destroy.before"); !point) return failed(point.error());
  if (w_.env_.tenure) w_.env_.tenure->note_original(w_.name(), 0, 0);
  destroyed_ = true;
  auto stopped = w_.env_.warden->stop(w_.name(), 0, true);
  if (!stopped && stopped.error().code == Code::kNotFound) return ok();
  if (stopped) stopped = fault_point("agent.migrate.destroyed");
  return from(stopped);
}

}  // namespace baton::node
