#include "agent/node/replicator.h"

#include <algorithm>
#include <utility>

#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

constexpr std::size_t kPutPages = 1024;           // pages per put

}  // namespace

Replicator::Replicator(std::unique_ptr<Replica> replica, Options options, const Clock& clock)
    : replica_(std::move(replica)), options_(std::move(options)), clock_(clock), name_(replica_->name()) {
  thread_ = std::thread([this] { loop(); });
}

Replicator::~Replicator() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  replica_->close();
  thread_.join();
}

bool Replicator::connected() const {
  std::lock_guard lock(mutex_);
  return connected_;
}
bool Replicator::has_room() const {
  std::lock_guard lock(mutex_);
  return connected_ && snapshots_ < kMaxSnapshots && jobs_.size() < kMaxBatches;
}
bool Replicator::idle() const {
  std::lock_guard lock(mutex_);
  return jobs_.empty() && !busy_;
}
std::uint64_t Replicator::last_committed() const {
  std::lock_guard lock(mutex_);
  return last_committed_;
}
std::string Replicator::problem() const {
  std::lock_guard lock(mutex_);
  return problem_;
}
ReplicatorStats Replicator::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}
std::uint64_t Replicator::wanted_pages() const {
  std::lock_guard lock(mutex_);
  return wanted_pages_;
}
void Replicator::limit_rate(std::uint64_t bytes_per_s) { rate_ = bytes_per_s; }

bool Replicator::push(Job job, bool wait) {
  std::unique_lock lock(mutex_);
  const bool counts = job.snapshot && !job.probe;
  auto room = [&] {
    return jobs_.size() < kMaxBatches && (!counts || snapshots_ < kMaxSnapshots);
  };
  if (wait) changed_.wait(lock, [&] { return stopping_ || !connected_ || room(); });
  if (stopping_ || !connected_ || !room()) return false;
  if (counts) ++snapshots_;
  jobs_.push_back(std::move(job));
  changed_.notify_all();
  return true;
}

bool Replicator::offer(BatchPtr batch, bool wait) { return push({std::move(batch), nullptr}, wait); }
bool Replicator::offer(SnapshotPtr snapshot, bool wait) {
  return push({nullptr, std::move(snapshot)}, wait);
}
bool Replicator::offer_probe(SnapshotPtr snapshot) {
  return push({nullptr, std::move(snapshot), true}, true);
}

std::vector<PageRef> Replicator::take_wanted(std::uint64_t max_pages) {
  std::lock_guard lock(mutex_);
  std::vector<PageRef> out;
  while (max_pages > 0 && !wanted_.empty()) {
    PageRef& front = wanted_.front();
    std::uint64_t take = std::min(max_pages, front.count);
    out.push_back({front.object, front.first, take});
    front.first += take;
    front.count -= take;
    max_pages -= take;
    wanted_pages_ -= take;
    if (front.count == 0) wanted_.pop_front();
  }
  return out;
}

bool Replicator::drain(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout,
                    [&] { return stopping_ || !connected_ || (jobs_.empty() && !busy_); });
  return connected_ && jobs_.empty() && !busy_;
}

void Replicator::loop() {
  auto backoff = options_.first_backoff;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (!connected_) {
      lock.unlock();
      auto tip = replica_->open(options_.incarnation);
      if (tip) {
        known_.clear();
        known_before_.clear();
        ask_first_ = true;
        if (*tip) {
          if (options_.on_tip) options_.on_tip(**tip);
          if (!tip_ || tip_->seq != (*tip)->seq || tip_->incarnation != (*tip)->incarnation) {
            tip_ = options_.find_snapshot ? options_.find_snapshot(**tip) : nullptr;
          }
        } else {
          tip_ = nullptr;
        }
        spdlog::info("{}: {} connected, newest there: {}", options_.identity.workload, name_,
                     *tip ? std::to_string((*tip)->seq) : "none");
      }
      lock.lock();
      if (tip) {
        connected_ = true;
        if (open_failed_) problem_.clear();
        open_failed_ = false;
        if (*tip) last_committed_ = (*tip)->seq;
        wanted_.clear();
        wanted_pages_ = 0;
      } else {
        if (problem_ != tip.error().message()) {
          spdlog::warn("{}: {}: {}", options_.identity.workload, name_, tip.error().message());
        }
        problem_ = tip.error().message();
        open_failed_ = true;
        changed_.wait_for(lock, backoff, [&] { return stopping_; });
        backoff = std::min(backoff * 2, options_.max_backoff);
      }
      lock.unlock();
      changed_.notify_all();
      if (options_.on_change) options_.on_change();
      lock.lock();
      continue;
    }
    changed_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
    if (stopping_) break;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    changed_.notify_all();

    replica_->limit_rate(rate_);
    Result<void> done =
        job.batch ? handle_batch(*job.batch) : handle_snapshot(job.snapshot, job.probe);
    const bool counted = job.snapshot && !job.probe;
    job = {};  // the capture buffer goes back before the next wait

    if (!done) lost(done.error());
    lock.lock();
    busy_ = false;
    if (counted && snapshots_ > 0) --snapshots_;
    if (done) {
      if (counted) backoff = options_.first_backoff;
    } else {
      snapshots_ = 0;
      lock.unlock();
      changed_.notify_all();
      if (options_.on_change) options_.on_change();
      lock.lock();
      changed_.wait_for(lock, backoff, [&] { return stopping_; });
      backoff = std::min(backoff * 2, options_.max_backoff);
    }
    lock.unlock();
    changed_.notify_all();
    if (options_.on_change) options_.on_change();
    lock.lock();
  }
  jobs_.clear();
}

void Replicator::lost(const Error& error) {
  replica_->close();
  std::lock_guard lock(mutex_);
  if (!stopping_ && problem_ != error.message()) {
    spdlog::warn("{}: {}: {}", options_.identity.workload, name_, error.message());
  }
  problem_ = error.message();
  open_failed_ = false;
  connected_ = false;
  jobs_.clear();
  wanted_.clear();
  wanted_pages_ = 0;
}

Result<void> Replicator::put(std::vector<storage::PagePut>& puts) {
  if (puts.empty()) return {};
  if (ask_first_) {
    std::vector<Digest> digests;
    digests.reserve(puts.size());
    for (const auto& page : puts) digests.push_back(page.digest);
    BATON_ASSIGN(std::vector<bool> there, replica_->have(digests));
    std::size_t kept = 0;
    for (std::size_t i = 0; i < puts.size(); ++i) {
      if (i < there.size() && there[i]) {
        known_.insert(puts[i].digest);
      } else {
        puts[kept++] = puts[i];
      }
    }
    std::lock_guard lock(mutex_);
    stats_.pages_known += puts.size() - kept;
    puts.resize(kept);
  }
  if (puts.empty()) return {};
  BATON_ASSIGN(std::uint64_t bytes, replica_->put(puts));
  for (const auto& page : puts) known_.insert(page.digest);
  std::lock_guard lock(mutex_);
  stats_.pages_sent += puts.size();
  stats_.bytes_sent += bytes;
  puts.clear();
  return {};
}

Result<void> Replicator::handle_batch(const HashedBatch& batch) {
  BATON_TRY(fault_point("agent.replicate.batch"));
  std::vector<storage::PagePut> puts;
  puts.reserve(std::min(kPutPages, batch.list.size()));
  storage::DigestSet in_puts;
  std::uint64_t known = 0;
  for (const HashedPage& page : batch.list) {
    if (page.digest.is_zero_page()) continue;
    if (knows(page) || !in_puts.insert(page.digest).second) {
      ++known;
      continue;
    }
    puts.push_back({page.digest, page.data});
    if (puts.size() == kPutPages) {
      BATON_TRY(put(puts));
      puts.clear();
      in_puts.clear();
      std::lock_guard lock(mutex_);
      if (stopping_) return make_error(Code::kCancelled, "replicate", name_);
    }
  }
  BATON_TRY(put(puts));
  std::lock_guard lock(mutex_);
  stats_.pages_known += known;
  stats_.pages_zero += batch.zero_pages;
  return {};
}

Result<void> Replicator::handle_snapshot(const SnapshotPtr& snapshot, bool probe) {
  {
    // While what was wanted is still on its way, the difference would only say it again.
    std::lock_guard lock(mutex_);
    if (!probe && wanted_pages_ > 0) return {};
  }
  auto record = make_record(options_.identity, tip_.get(), *snapshot, *options_.hasher,
                            clock_.boot_now());
  std::vector<Digest> unsure;
  storage::DigestSet seen;
  for (const auto& object : record.objects) {
    for (const auto& change : object.changes) {
      if (change.digest.is_zero_page() || known_.contains(change.digest) ||
          known_before_.contains(change.digest)) {
        continue;
      }
      if (seen.insert(change.digest).second) unsure.push_back(change.digest);
    }
  }
  if (!unsure.empty()) {
    storage::DigestSet lacking;
    for (std::size_t at = 0; at < unsure.size();) {
      const std::size_t count = std::min<std::size_t>(unsure.size() - at, 16384);
      auto part = std::span<const Digest>(unsure).subspan(at, count);
      BATON_ASSIGN(std::vector<bool> there, replica_->have(part));
      for (std::size_t i = 0; i < count; ++i) {
        if (i < there.size() && there[i]) {
          known_.insert(part[i]);
        } else {
          lacking.insert(part[i]);
        }
      }
      at += count;
    }
    if (!lacking.empty()) {
      want(record, lacking);
      return {};
    }
  }
  if (probe) return {};
  BATON_TRY(fault_point("agent.replicate.commit"));
  std::vector<Digest> missing;
  auto committed = replica_->commit(record, options_.durability, &missing);
  if (!committed) {
    if (committed.error().code == Code::kNotFound && !missing.empty()) {
      storage::DigestSet lacking;
      for (const auto& digest : missing) {
        known_.erase(digest);
        known_before_.erase(digest);
        lacking.insert(digest);
      }
      want(record, lacking);
      return {};
    }
    if (committed.error().code == Code::kNotFound || committed.error().code == Code::kCorrupt) {
      tip_ = nullptr;  // it does not hold our parent: next time a full record
    }
    return committed;
  }
  tip_ = snapshot;
  ask_first_ = false;
  turn_known();
  {
    std::lock_guard lock(mutex_);
    last_committed_ = snapshot->seq;
    problem_.clear();
  }
  if (options_.on_commit) options_.on_commit(snapshot);
  return {};
}

void Replicator::want(const storage::CheckpointRecord& record, const storage::DigestSet& lacking) {
  std::lock_guard lock(mutex_);
  wanted_.clear();
  wanted_pages_ = 0;
  for (const auto& object : record.objects) {
    for (const auto& change : object.changes) {
      if (!lacking.contains(change.digest)) continue;
      if (!wanted_.empty() && wanted_.back().object == object.object_id &&
          wanted_.back().first + wanted_.back().count == change.page) {
        ++wanted_.back().count;
      } else {
        wanted_.push_back({object.object_id, change.page, 1});
      }
      ++wanted_pages_;
    }
  }
  spdlog::debug("{}: {} lacks {} pages, they will be captured again", options_.identity.workload,
                name_, wanted_pages_);
}

bool Replicator::knows(const HashedPage& page) {
  if (known_.contains(page.digest)) return true;
  bool known = known_before_.contains(page.digest);
  if (!known && tip_) {
    auto table = tip_->tables.find(page.object);
    known = table != tip_->tables.end() && table->second.get(page.page) == page.digest;
  }
  if (known) known_.insert(page.digest);
  return known;
}

void Replicator::turn_known() {
  if (++commits_ % kTurnCommits != 0 && known_.size() < kMaxKnown) return;
  known_before_ = std::exchange(known_, {});
}

}  // namespace baton::node
