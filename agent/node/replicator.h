// Replicator: keeps one replica of one workload up to date. It takes digested batches and
// snapshots from the checkpoint loop, sends the pages that the replica does not know, and
// commits each snapshot as the difference from the replica's own newest one.
//
// A replica that has fallen behind, is new or came back needs no second mechanism: the
// difference is then larger, and pages of it that are in no batch under way are `wanted`:
// the loop asks the warden to capture them again.
//
// It refuses to queue up: at most kMaxSnapshots snapshots and kMaxBatches batches wait;
// what does not fit is not taken, and the next difference finds what is missing.
//
// Threads: one of its own; all public functions may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "agent/node/replica.h"
#include "agent/node/snapshot.h"
#include "base/clock.h"
#include "storage/page_store.h"

namespace baton::node {

struct PageRef {
  std::uint64_t object = 0;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

struct ReplicatorStats {
  std::uint64_t pages_sent = 0;
  std::uint64_t pages_known = 0;
  std::uint64_t pages_zero = 0;
  std::uint64_t bytes_sent = 0;
};

class Replicator {
 public:
  static constexpr std::size_t kMaxSnapshots = 2;
  static constexpr std::size_t kMaxBatches = 16;
  static constexpr std::uint64_t kTurnCommits = 32;  // two turns are well within any retention
  static constexpr std::size_t kMaxKnown = 1u << 20;

  struct Options {
    storage::WorkloadIdentity identity;
    std::shared_ptr<const dedup::PageHasher> hasher;
    storage::Durability durability = storage::Durability::kFlushed;
    std::uint64_t incarnation = 0;
    std::chrono::milliseconds first_backoff{100};
    std::chrono::milliseconds max_backoff{5000};
    // Tables of a checkpoint that this node knows by itself; may answer null.
    std::function<SnapshotPtr(const ReplicaTip&)> find_snapshot;
    std::function<void(const ReplicaTip&)> on_tip;              // what it held when it connected
    std::function<void(const SnapshotPtr&)> on_commit;  // from the replicator's thread
    std::function<void()> on_change;                    // room, wants or the connection changed
  };

  Replicator(std::unique_ptr<Replica> replica, Options options, const Clock& clock);
  ~Replicator();  // stops; what is under way is abandoned

  const std::string& name() const { return name_; }
  std::uint64_t incarnation() const { return options_.incarnation; }
  bool connected() const;
  bool has_room() const;      // connected and below its number of snapshots under way
  bool idle() const;          // nothing under way
  // False: not taken. With `wait`, blocks while it is connected and full.
  bool offer(BatchPtr batch, bool wait = false);
  bool offer(SnapshotPtr snapshot, bool wait = false);
  // As a snapshot that is not committed: only finds what the replica lacks.
  bool offer_probe(SnapshotPtr snapshot);
  // Pages to capture again, at most `max_pages` of them; removed from the list.
  std::vector<PageRef> take_wanted(std::uint64_t max_pages);
  std::uint64_t wanted_pages() const;
  // Waits until nothing is under way. False: timed out, or the connection went.
  bool drain(std::chrono::milliseconds timeout);

  std::uint64_t last_committed() const;
  std::string problem() const;
  ReplicatorStats stats() const;
  void limit_rate(std::uint64_t bytes_per_s);

 private:
  struct Job {
    BatchPtr batch;
    SnapshotPtr snapshot;
    bool probe = false;
  };
  bool push(Job job, bool wait);
  void loop();
  Result<void> handle_batch(const HashedBatch& batch);
  Result<void> handle_snapshot(const SnapshotPtr& snapshot, bool probe);
  Result<void> put(std::vector<storage::PagePut>& puts);
  void want(const storage::CheckpointRecord& record, const storage::DigestSet& lacking);
  bool knows(const HashedPage& page);
  void turn_known();
  void lost(const Error& error);

  std::unique_ptr<Replica> replica_;
  const Options options_;
  const Clock& clock_;
  const std::string name_;

  // Only the replicator's thread:
  SnapshotPtr tip_;
  // Digests that the standby holds: sent, found there, or seen again since the last two turns.
  // A turn comes every kTurnCommits commits: what nobody used since then may have been
  // collected there, and the page's place in tip_ says whether it is in use still.
  storage::DigestSet known_, known_before_;
  std::uint64_t commits_ = 0;
  bool ask_first_ = true;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::size_t snapshots_ = 0;   // queued or in work
  bool busy_ = false;
  bool connected_ = false;
  bool stopping_ = false;
  std::deque<PageRef> wanted_;
  std::uint64_t wanted_pages_ = 0;
  bool wants_served_ = true;    // all that was wanted has been put on the queue
  std::uint64_t last_committed_ = 0;
  std::string problem_;
  bool open_failed_ = false;    // problem_ is about the connection, and goes with it
  ReplicatorStats stats_;
  std::atomic<std::uint64_t> rate_{0};
  std::thread thread_;
};

}  // namespace baton::node
