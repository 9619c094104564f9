#include "agent/node/workload.h"

#include <algorithm>

#include "agent/node/local_replica.h"
#include "agent/node/migration_run.h"
#include "agent/node/node_tenure.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kSentRoundPages = 16384;  // more than this last time: first a round whose pages are sent meanwhile
constexpr std::uint64_t kWantedChunkPages = 8192;      // captured again per round: 32 MiB
constexpr int kMaxFullCopyRounds = 4096;
constexpr auto kMaxCaptureBackoff = 5s;
constexpr auto kBufferWait = 10ms;
constexpr auto kSoonAgain = 10ms;
constexpr std::uint32_t kPassingFailuresTold = 20;   // in a row
constexpr auto kOutputGap = 1ms;
constexpr double kOutputPauseShare = 0.2;
// Between checkpoints while somebody waits for one; doubled each time.
constexpr std::chrono::nanoseconds kForcedGap = 100ms, kForcedGapMost = 1s;

std::atomic<std::uint64_t> started_so_far{0};

}  // namespace

Workload::Workload(const NodeEnv& env, Options options, storage::WorkloadIdentity identity,
                   std::shared_ptr<const dedup::PageHasher> hasher)
    : env_(env),
      spec_(std::move(options.spec)),
      identity_(std::move(identity)),
      hasher_(std::move(hasher)),
      image_(hasher_),
      wanted_standbys_(std::move(options.standbys)),
      standbys_changed_(true),
      process_(std::move(options.process)),
      incarnation_(options.incarnation),
      since_(options.incarnation),
      next_seq_(std::max<std::uint64_t>(options.next_seq, 1)),
      protected_since_(env.clock->boot_now()),
      pacing_(checkpoint_interval(spec_), spec_.max_slowdown(), std::chrono::microseconds(spec_.max_lag_us()),
              started_so_far++) {
  last_captured_ = last_committed_ = next_seq_ - 1;
}

Result<std::unique_ptr<Workload>> Workload::start(const NodeEnv& env, Options options) {
  BATON_ASSIGN(auto identity, identity_of(options.spec));
  auto hasher = std::make_shared<const dedup::PageHasher>(
      identity.kind, std::span<const std::byte, dedup::kHashKeyBytes>(identity.key));
  std::unique_ptr<Workload> workload(
      new Workload(env, std::move(options), std::move(identity), std::move(hasher)));
  workload->thread_ = std::thread([w = workload.get()] { w->loop(); });
  return workload;
}

Workload::~Workload() {
  halt({});
  if (thread_.joinable()) thread_.join();
  std::vector<Link> gone;
  {
    std::lock_guard lock(mutex_);
    gone.swap(links_);
  }
  gone.clear();
  ending_links_.clear();   // waits for them
}

void Workload::halt(const std::string& state) {
  std::lock_guard lock(mutex_);
  if (!state.empty()) state_ = state;
  stopping_ = true;
  stop_now_ = true;
  changed_.notify_all();
}

std::uint64_t Workload::incarnation() const {
  std::lock_guard lock(mutex_);
  return incarnation_;
}
bool Workload::concerned_by(std::uint64_t incarnation) const {
  std::lock_guard lock(mutex_);
  return incarnation >= since_ && incarnation <= incarnation_;
}
std::string Workload::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}
std::vector<pb::PeerAddress> Workload::standbys() const {
  std::lock_guard lock(mutex_);
  return wanted_standbys_;
}
std::vector<Workload::Link> Workload::links() const {
  std::lock_guard lock(mutex_);
  return links_;
}

void Workload::set_standbys(const std::vector<pb::PeerAddress>& standbys) {
  std::lock_guard lock(mutex_);
  wanted_standbys_ = standbys;
  standbys_changed_ = true;
  changed_.notify_all();
}

void Workload::set_incarnation(std::uint64_t incarnation) {
  std::lock_guard lock(mutex_);
  if (incarnation <= incarnation_) return;
  incarnation_ = incarnation;
  standbys_changed_ = true;
  changed_.notify_all();
}

void Workload::set_process(const pb::WorkloadProcess& process) {
  std::lock_guard lock(mutex_);
  process_ = process;
  state_ = "running";
  need_full_ = true;
  new_program_ = true;
  capture_problem_.clear();
  changed_.notify_all();
}

void Workload::resume_captures() {
  std::lock_guard lock(mutex_);
  next_due_ = {};
  changed_.notify_all();
}

void Workload::output_waits() {
  std::lock_guard lock(mutex_);
  output_waits_ = true;
  hurry(env_.clock->monotonic_now());
  changed_.notify_all();
}

// Not more often than the program can bear: the pauses take at most a fifth of its time, or
// what the spec allows.
void Workload::hurry(std::chrono::nanoseconds now) {
  if (!output_waits_) return;
  const double share = spec_.max_slowdown() > 1 ? spec_.max_slowdown() - 1 : kOutputPauseShare;
  const auto gap = std::max<std::chrono::nanoseconds>(
      kOutputGap, std::chrono::nanoseconds(static_cast<std::int64_t>(static_cast<double>(last_pause_.count()) / share)));
  next_due_ = std::min(next_due_, std::max(now, last_begun_ + gap));
}

void Workload::exited(int wait_status) {
  std::lock_guard lock(mutex_);
  if (state_ != "exited") {
    state_ = "exited";
    exit_status_ = wait_status;
  }
  changed_.notify_all();
}

bool Workload::room() const {
  return std::any_of(links_.begin(), links_.end(), [](const Link& link) {
    return link.replicator->has_room() && link.replicator->wanted_pages() == 0;
  });
}

bool Workload::wanting() const {
  return std::any_of(links_.begin(), links_.end(),
                     [](const Link& link) { return link.replicator->wanted_pages() > 0; });
}

bool Workload::due(std::chrono::nanoseconds now) const {
  return now >= next_due_ || (waiters_ > 0 && now >= last_capture_ + forced_gap_);
}

void Workload::loop() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (standbys_changed_) {
      lock.unlock();
      reconcile_links();
      lock.lock();
      continue;
    }
    if (migration_ && !migration_->done) {
      auto job = migration_;
      lock.unlock();
      run_migration(job);
      lock.lock();
      continue;
    }
    if (state_ != "running") {
      changed_.wait(lock);
      continue;
    }
    const auto now = env_.clock->monotonic_now();
    if (wanting() && capture_problem_.empty()) {
      lock.unlock();
      serve_wanted();
      lock.lock();
      if (env_.clock->monotonic_now() < next_due_ || !room()) continue;
    } else if (!due(now)) {
      changed_.wait_for(lock, waiters_ > 0 ? std::min(forced_gap_, next_due_ - now)
                                           : next_due_ - now);
      continue;
    } else if (!room()) {
      changed_.wait_for(lock, 1s);
      continue;
    }
    capturing_ = true;
    output_waits_ = false;
    last_begun_ = now;
    lock.unlock();
    auto done = checkpoint();
    lock.lock();
    capturing_ = false;
    const auto after = env_.clock->monotonic_now();
    if (done) {
      capture_failures_ = passing_failures_ = 0;
      // What nobody was there to take is never committed: whoever waits gets another one.
      if (waiters_ > 0 && last_capture_ > last_waiter_) forced_gap_ = std::min(2 * forced_gap_, kForcedGapMost);
      last_capture_ = now;
      next_due_ = std::max(pacing_.next(now), after);
      hurry(after);
    } else if (!stopping_) {
      lock.unlock();
      capture_failed(done.error());
      lock.lock();
    }
    changed_.notify_all();
  }
  if (migration_ && !migration_->done) {
    if (!migration_->outcome) {
      migration_->outcome = make_error(Code::kCancelled, "migrate", name() + ": this agent is being stopped");
    }
    migration_->done = true;
    changed_.notify_all();
  }
}

void Workload::capture_failed(const Error& error) {
  std::lock_guard lock(mutex_);
  const auto now = env_.clock->monotonic_now();
  // The capture buffer is full: rounds take out what it holds. Or a vfork(2) was under way.
  if (error.code == Code::kNoSpace || error.code == Code::kConflict) {
    need_full_ = need_full_ || error.code == Code::kNoSpace;
    next_due_ = now + kSoonAgain;
    if (++passing_failures_ < kPassingFailuresTold) return;
  }
  capture_failures_ = std::min<std::uint32_t>(capture_failures_ + 1, 10);
  std::chrono::nanoseconds backoff = 100ms * (1u << (capture_failures_ - 1));
  next_due_ = now + std::min<std::chrono::nanoseconds>(backoff, kMaxCaptureBackoff);
  if (capture_problem_ != error.message()) {
    spdlog::warn("{}: no checkpoint: {}", name(), error.message());
    capture_problem_ = error.message();
  }
}

// Brings the links in line with the standbys asked for; without any, this node's store.
void Workload::reconcile_links() {
  std::vector<pb::PeerAddress> wanted;
  std::vector<Link> gone;
  {
    std::lock_guard lock(mutex_);
    standbys_changed_ = false;
    wanted = wanted_standbys_;
    const std::uint64_t incarnation = incarnation_;
    std::vector<Link> kept;
    for (auto& link : links_) {
      bool keep = std::any_of(wanted.begin(), wanted.end(), [&](const pb::PeerAddress& peer) {
        return link.standby && peer.node() == link.peer.node() && peer.stream() == link.peer.stream();
      });
      if (!link.standby) keep = wanted.empty() || spec_.keep_local();
      if (keep && link.replicator->incarnation() != incarnation) keep = false;
      (keep ? kept : gone).push_back(std::move(link));
    }
    links_ = std::move(kept);
    for (auto& link : gone) {
      auto stats = link.replicator->stats();
      gone_.pages_sent += stats.pages_sent;
      gone_.pages_known += stats.pages_known;
      gone_.pages_zero += stats.pages_zero;
      gone_.bytes_sent += stats.bytes_sent;
    }
  }
  // One that tries to reach a node that is off ends when its attempt does, which nobody waits for.
  std::erase_if(ending_links_, [](auto& one) { return one.wait_for(0s) == std::future_status::ready; });
  for (auto& link : gone) {
    if (link.replicator->connected()) continue;
    ending_links_.push_back(std::async(std::launch::async, [ending = std::move(link.replicator)]() mutable { ending.reset(); }));
  }
  gone.clear();
  auto have = [&](const std::string& node, bool standby) {
    auto all = links();
    return std::any_of(all.begin(), all.end(), [&](const Link& link) {
      return link.standby == standby && link.peer.node() == node;
    });
  };
  std::vector<Link> fresh;
  for (const auto& peer : wanted) {
    if (peer.node() == env_.node || have(peer.node(), true)) continue;
    fresh.push_back({peer, true, make_link(peer, true)});
  }
  if ((wanted.empty() || spec_.keep_local()) && !have("", false)) {
    fresh.push_back({{}, false, make_link({}, false)});
  }
  std::lock_guard lock(mutex_);
  for (auto& link : fresh) links_.push_back(std::move(link));
}

std::shared_ptr<Replicator> Workload::make_link(const pb::PeerAddress& peer, bool standby) {
  Replicator::Options options;
  options.identity = identity_;
  options.hasher = hasher_;
  options.durability = durability_of(spec_);
  options.incarnation = incarnation();
  options.find_snapshot = [this](const ReplicaTip& tip) { return find_snapshot(tip); };
  options.on_tip = [this, standby](const ReplicaTip& tip) {
    // A restarted agent learns here how far its workload had come.
    std::lock_guard lock(mutex_);
    next_seq_ = std::max(next_seq_, tip.seq + 1);
    if (standby || wanted_standbys_.empty()) last_committed_ = std::max(last_committed_, tip.seq);
  };
  options.on_commit = [this, peer, standby](const SnapshotPtr& snapshot) {
    committed(peer, standby, snapshot);
  };
  options.on_change = [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  };
  auto replica = peer.node().empty()
                     ? std::unique_ptr<Replica>(std::make_unique<LocalReplica>(*env_.store, identity_, retention_of(spec_)))
                     : env_.make_replica(peer, spec_, identity_);
  return std::make_shared<Replicator>(std::move(replica), std::move(options), *env_.clock);
}

SnapshotPtr Workload::find_snapshot(const ReplicaTip& tip) const {
  {
    std::lock_guard lock(mutex_);
    if (last_committed_snapshot_ && last_committed_snapshot_->seq == tip.seq &&
        last_committed_snapshot_->incarnation == tip.incarnation) {
      return last_committed_snapshot_;
    }
  }
  auto held = env_.store->load_tables(name(), tip.seq);
  if (!held || held->info.incarnation != tip.incarnation) return nullptr;
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->seq = tip.seq;
  snapshot->incarnation = tip.incarnation;
  snapshot->tables = std::move(held->objects);
  snapshot->roots = std::move(held->roots);
  return snapshot;
}

void Workload::committed(const pb::PeerAddress& peer, bool standby, const SnapshotPtr& snapshot) {
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    const bool counts = standby || wanted_standbys_.empty() ||
                        (migration_ && migration_->request.target().node() == peer.node());
    if (!counts || snapshot->seq <= last_committed_) return;
    // Who may be fenced off by now cannot call anything committed.
    if (env_.tenure && !env_.tenure->counts(name(), peer.node())) return;
    first = !last_committed_snapshot_;
    pacing_.committed(env_.clock->boot_now() - snapshot->freeze_boot);
    last_committed_ = snapshot->seq;
    last_committed_snapshot_ = snapshot;
    if (env_.tenure) env_.tenure->note_tip(name(), snapshot->incarnation, snapshot->seq, true);
    last_pause_ = std::chrono::microseconds(snapshot->pause_us);
    changed_.notify_all();
  }
  if (snapshot->output_epoch != 0) {
    auto released = env_.warden->release_output(name(), snapshot->output_epoch);
    // With the warden what it held is gone too: lost on its way, as far as anybody can tell.
    if (!released && released.error().code != Code::kUnreachable) spdlog::warn("{}: {}", name(), released.error().message());
  }
  if (first) {
    env_.event("committed", name(),
               name() + "@" + std::to_string(snapshot->seq) + " is the first committed checkpoint" +
                   (peer.node().empty() ? "" : " on " + peer.node()));
    env_.report_soon();
  }
}

// Hands a batch to every replica that has room. When none has, waits for one that is
// connected: this is where a slow link slows the checkpoints down.
void Workload::deliver(const BatchPtr& batch, Replicator* must_take) {
  if (!batch || batch->list.empty()) return;
  bool taken = false;
  auto all = links();
  for (const auto& link : all) {
    if (link.replicator->offer(batch, link.replicator.get() == must_take)) taken = true;
  }
  if (taken) return;
  for (const auto& link : all) {
    if (link.replicator->connected() && link.replicator->offer(batch, true)) return;
  }
}

Result<std::uint64_t> Workload::copy_round(const std::vector<PageRef>& again, Replicator* must_take,
                                           std::uint64_t* pending) {
  pb::RoundRequest request;
  request.set_workload(name());
  for (const auto& range : again) {
    auto* out = request.add_again();
    out->set_object(range.object);
    out->set_first_page(range.first);
    out->set_count(range.count);
  }
  BATON_ASSIGN(auto round, env_.warden->round(request));
  BATON_TRY(same_epoch());
  if (pending) *pending = round.info.pages_pending();
  auto batch = image_.absorb(std::move(round.pages), round.info.dropped());
  const std::uint64_t pages = batch->list.size();
  {
    std::lock_guard lock(mutex_);
    pages_written_ += pages;
  }
  deliver(batch, must_take);
  return pages;
}

// Fails when the warden was restarted since the first full copy: its pages belong to no
// image of ours. The next checkpoint begins with a full copy.
Result<void> Workload::same_epoch() {
  if (env_.warden->epoch() == image_epoch_) return {};
  std::lock_guard lock(mutex_);
  need_full_ = true;
  return make_error(Code::kFailed, "capture", name() + ": the warden was restarted meanwhile");
}

// So that a restore can prove that it holds the same files. Read once per version of a file;
// those open for writing are left out, their content goes on changing.
void Workload::add_file_digests(pb::Manifest& manifest) {
  pb::ProveFilesRequest prove;
  std::vector<pb::FileProof*> asked;
  for (auto& file : *manifest.mutable_files()) {
    if (!file.sha256().empty() || file.writable()) continue;
    auto known = file_digests_.find({file.path(), file.size_bytes(), file.mtime_ns()});
    if (known != file_digests_.end()) {
      file.set_sha256(known->second);
      continue;
    }
    *prove.add_files() = file;
    asked.push_back(&file);
  }
  if (asked.empty()) return;
  auto proved = env_.warden->prove_files(prove);
  if (!proved) return;
  if (file_digests_.size() > 4096) file_digests_.clear();
  for (int i = 0; i < proved->files_size() && i < static_cast<int>(asked.size()); ++i) {
    pb::FileProof& file = *asked[static_cast<std::size_t>(i)];
    const auto& actual = proved->files(i).actual();
    // An empty digest is remembered too: a file that cannot be read is not tried each time.
    const bool same = actual.size_bytes() == file.size_bytes();
    file_digests_[{file.path(), file.size_bytes(), file.mtime_ns()}] = same ? actual.sha256() : "";
    if (same) file.set_sha256(actual.sha256());
  }
}

void Workload::serve_wanted() {
  for (const auto& link : links()) {
    auto again = link.replicator->take_wanted(kWantedChunkPages);
    if (again.empty()) continue;
    auto done = copy_round(again, link.replicator.get());
    if (!done) capture_failed(done.error());
  }
}

// Everything present, in rounds beside the running program. One that failed half way is
// gone on with, not begun again: what it has copied, the tracker does not offer twice.
Result<void> Workload::full_copy() {
  bool begin_anew = false;
  {
    std::lock_guard lock(mutex_);
    begin_anew = std::exchange(new_program_, false);
  }
  const std::uint64_t epoch = env_.warden->epoch();
  if (begin_anew || epoch != image_epoch_) {
    image_.reset();
    image_epoch_ = epoch;
  }
  auto unfinished = [this](Error error) -> Result<void> {
    std::lock_guard lock(mutex_);
    need_full_ = true;
    return error;
  };
  for (int round = 0; round < kMaxFullCopyRounds; ++round) {
    if (stop_now_) return unfinished(make_error(Code::kCancelled, "full copy", name() + ": stopping"));
    std::uint64_t pending = 0;
    auto pages = copy_round({}, nullptr, &pending);
    if (!pages) return unfinished(pages.error());
    if (pending == 0) return {};
    if (*pages == 0) {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, kBufferWait);
    }
  }
  return {};  // what is still pending is copied by the freeze
}

Result<void> Workload::checkpoint() {
  BATON_TRY(fault_point("agent.checkpoint.begin"));
  bool full = false;
  {
    std::lock_guard lock(mutex_);
    full = std::exchange(need_full_, false) || env_.warden->epoch() != image_epoch_;
  }
  if (full) BATON_TRY(full_copy());
  std::uint64_t in_round = 0;
  if (!full && last_written_ > kSentRoundPages) {
    BATON_ASSIGN(in_round, copy_round({}, nullptr));
  }
  pb::CaptureResponse info;
  BATON_ASSIGN(auto snapshot, take_snapshot(false, {}, 0, nullptr, &info));
  last_written_ += in_round;
  if (!full) count_capture(info);
  BATON_TRY(fault_point("agent.checkpoint.captured"));
  for (const auto& link : links()) link.replicator->offer(snapshot);
  std::lock_guard lock(mutex_);
  if (!full) pauses_.add(snapshot->pause_us);
  return {};
}

void Workload::count_capture(const pb::CaptureResponse& info) {
  std::lock_guard lock(mutex_);
  strategy_ = info.strategy();
  strategy_why_ = info.why();
  phases_.add(info, info.pages_written());
  pacing_.captured(std::chrono::microseconds(info.pause_us()), info.pages_written(), info.rounds());
}

Result<SnapshotPtr> Workload::take_snapshot(bool keep_frozen, const std::vector<PageRef>& again,
                                            std::uint64_t max_pending, Replicator* must_take,
                                            pb::CaptureResponse* info) {
  pb::CaptureRequest request;
  request.set_workload(name());
  request.set_keep_frozen(keep_frozen);
  request.set_verify(spec_.verify());
  request.set_max_pending_pages(max_pending);
  for (const auto& range : again) {
    auto* out = request.add_again();
    out->set_object(range.object);
    out->set_first_page(range.first);
    out->set_count(range.count);
  }
  const BootTime called = env_.clock->boot_now();
  const auto called_wall = env_.clock->wall_now();
  BATON_ASSIGN(auto capture, env_.warden->capture(request));
  BATON_TRY(same_epoch());
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->freeze_boot = called;
  snapshot->freeze_wall_ns = static_cast<std::uint64_t>(called_wall.count());
  snapshot->pause_us = capture.info.pause_us();
  snapshot->output_epoch = capture.info.output_epoch();
  auto batch = image_.absorb(std::move(capture.pages), capture.info.dropped());
  const std::uint64_t written = batch->list.size();
  last_written_ = written;
  deliver(batch, must_take);
  batch.reset();

  pb::Manifest& manifest = *capture.info.mutable_manifest();
  image_.settle(manifest, snapshot->roots);
  manifest.set_workload(name());
  manifest.set_pause_us(capture.info.pause_us());
  manifest.set_spec(public_spec(spec_));
  add_file_digests(manifest);
  snapshot->tables = image_.tables();
  if (capture.info.verify_differences() > 0) {
    env_.event("verify", name(),
               std::to_string(capture.info.verify_differences()) + " of " +
                   std::to_string(capture.info.verify_pages()) +
                   " pages differ from the frozen program; first: " + capture.info.verify_first());
  }
  std::lock_guard lock(mutex_);
  snapshot->seq = next_seq_++;
  snapshot->incarnation = incarnation_;
  manifest.set_seq(snapshot->seq);
  manifest.set_incarnation(incarnation_);
  snapshot->manifest = manifest.SerializeAsString();
  last_captured_ = snapshot->seq;
  pages_written_ += written;
  snapshot->pages_written = pages_written_ - std::exchange(pages_written_before_, pages_written_);
  capture_problem_.clear();
  if (capture.info.verify_differences() > 0) {
    capture_problem_ = "verify: " + std::to_string(capture.info.verify_differences()) +
                       " pages differ; first: " + capture.info.verify_first();
  }
  if (info) *info = std::move(capture.info);
  return SnapshotPtr(std::move(snapshot));
}

Result<pb::CheckpointInfo> Workload::checkpoint_now(std::chrono::microseconds timeout) {
  std::unique_lock lock(mutex_);
  if (state_ != "running" && state_ != "migrating") {
    return make_error(Code::kConflict, "checkpoint", name() + " is " + state_);
  }
  const std::uint64_t target = next_seq_ + (capturing_ ? 1 : 0);
  auto committed_since = [this](std::uint64_t seq) { return last_committed_snapshot_ && last_committed_snapshot_->seq >= seq; };
  ++waiters_;
  last_waiter_ = env_.clock->monotonic_now();
  next_due_ = {};
  changed_.notify_all();
  const bool there = changed_.wait_for(lock, timeout, [&] {
    return committed_since(target) || stopping_ || state_ == "exited";
  });
  if (--waiters_ == 0) forced_gap_ = kForcedGap;
  if (!there || !committed_since(target)) {
    std::string why = capture_problem_;
    for (const auto& link : links_) {
      if (why.empty() && !link.replicator->problem().empty()) {
        why = link.replicator->name() + ": " + link.replicator->problem();
      }
    }
    return make_error(there ? Code::kConflict : Code::kTimedOut, "checkpoint",
                      name() + "@" + std::to_string(target) + " was not committed" +
                          (why.empty() ? "" : ": " + why));
  }
  const SnapshotPtr snapshot = last_committed_snapshot_;
  pb::CheckpointInfo info;
  info.set_workload(name());
  info.set_seq(snapshot->seq);
  info.set_incarnation(snapshot->incarnation);
  info.set_wall_ns(snapshot->freeze_wall_ns);
  info.set_pause_us(snapshot->pause_us);
  info.set_pages_changed(snapshot->pages_written);
  for (const auto& [id, table] : snapshot->tables) {
    info.set_pages_total(info.pages_total() + table.count());
  }
  for (const auto& link : links_) {
    if (link.replicator->last_committed() >= snapshot->seq) {
      info.add_nodes(link.peer.node().empty() ? env_.node : link.peer.node());
    }
  }
  return info;
}

pb::WorkloadStatus Workload::status() const {
  std::lock_guard lock(mutex_);
  pb::WorkloadStatus s;
  s.set_name(name());
  s.set_state(state_);
  s.set_node(env_.node);
  s.set_pid(process_.pid());
  s.set_incarnation(incarnation_);
  s.set_last_captured(last_captured_);
  s.set_last_committed(last_committed_);
  const BootTime since =
      last_committed_snapshot_ ? last_committed_snapshot_->freeze_boot : protected_since_;
  if (state_ == "running" || state_ == "migrating") {
    s.set_lag_us(static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::microseconds>(env_.clock->boot_now() - since).count()));
  }
  *s.mutable_pause() = pauses_.summary();
  *s.mutable_phases() = phases_.summary();
  s.set_strategy(strategy_);
  s.set_strategy_why(strategy_why_);
  s.set_pages_written(pages_written_);
  ReplicatorStats sum = gone_;
  std::string problem = capture_problem_;
  bool healthy = false;
  std::string link_problem;
  for (const auto& link : links_) {
    auto stats = link.replicator->stats();
    sum.pages_sent += stats.pages_sent;
    sum.pages_known += stats.pages_known;
    sum.pages_zero += stats.pages_zero;
    sum.bytes_sent += stats.bytes_sent;
    std::string text = link.replicator->problem();
    if (text.empty()) {
      healthy = true;
    } else if (link_problem.empty()) {
      link_problem = link.replicator->name() + ": " + text;
    }
    if (!link.standby) continue;
    auto* standby = s.add_standbys();
    standby->set_node(link.peer.node());
    standby->set_connected(link.replicator->connected());
    standby->set_last_committed(link.replicator->last_committed());
    standby->set_problem(text);
  }
  if (problem.empty() && !healthy) problem = link_problem;
  if (state_ == "running" || state_ == "migrating") s.set_problem(problem);
  s.set_pages_known(sum.pages_known);
  s.set_pages_zero(sum.pages_zero);
  s.set_pages_sent(sum.pages_sent);
  s.set_bytes_sent(sum.bytes_sent);
  s.set_tracker(process_.tracker());
  s.set_copier(process_.copier());
  s.set_exit_status(exit_status_);
  if (last_committed_snapshot_) {
    std::uint64_t pages = 0;
    for (const auto& [id, table] : last_committed_snapshot_->tables) pages += table.count();
    s.set_memory_bytes(pages * dedup::kPageBytes);
  }
  s.set_interval_us(static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(pacing_.interval()).count()));
  s.set_pacing_why(pacing_.why());
  return s;
}

Result<pb::MigrateReport> Workload::migrate(const pb::MigrateRequest& request,
                                            const Progress& progress) {
  auto job = std::make_shared<MigrationJob>();
  job->request = request;
  job->progress = progress;
  std::unique_lock lock(mutex_);
  if (state_ != "running" || stopping_) {
    return make_error(Code::kConflict, "migrate", name() + " is " + (stopping_ ? "stopping" : state_));
  }
  if (migration_ && !migration_->done) {
    return make_error(Code::kConflict, "migrate", name() + " is being migrated already");
  }
  if (request.incarnation() != 0 && (request.incarnation() < since_ || request.incarnation() > incarnation_)) {
    return make_error(Code::kConflict, "migrate",
                      name() + " is at incarnation " + std::to_string(incarnation_) + " here, not " +
                          std::to_string(request.incarnation()));
  }
  if (request.target().node() == env_.node) {
    return make_error(Code::kInvalid, "migrate", name() + " runs on " + env_.node + " already");
  }
  abort_asked_ = false;
  migration_ = job;
  changed_.notify_all();
  changed_.wait(lock, [&] { return job->outcome.has_value(); });
  return *job->outcome;
}

Result<void> Workload::abort_migration() {
  std::lock_guard lock(mutex_);
  if (!migration_ || migration_->done) {
    return make_error(Code::kNotFound, "abort", name() + " is not being migrated");
  }
  abort_asked_ = true;
  return {};
}

void Workload::run_migration(const std::shared_ptr<MigrationJob>& job) {
  MigrationRun run(*this, job->request, job->progress);
  auto outcome = run.run();
  std::lock_guard lock(mutex_);
  if (!job->outcome) job->outcome = std::move(outcome);
  job->done = true;
  changed_.notify_all();
}

void Workload::answer_early(Error why) {
  std::lock_guard lock(mutex_);
  if (!migration_ || migration_->outcome) return;
  spdlog::warn("{}", why.message());
  migration_->outcome = Result<pb::MigrateReport>(std::move(why));
  changed_.notify_all();
}

}  // namespace baton::node
