// Workload: one protected program on its primary: the checkpoint loop, its replicas, and
// the source side of a migration (migration_run.cc).
//
// The program is never stopped because of a failure here: every failure becomes the
// status's `problem`, and the loop tries again after a pause that grows.
//
// Threads: one of its own (the loop), which makes all capture calls; each replica has its
// own (replicator.h). Public functions may be called from any thread. `mutex_` guards the
// fields said so; it is never held during a call to the warden, the store or a peer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "agent/node/migration.h"
#include "agent/node/node_env.h"
#include "agent/node/pacing.h"
#include "agent/node/pause_stats.h"
#include "agent/node/replicator.h"
#include "agent/node/snapshot.h"

namespace baton::node {

class MigrationRun;

class Workload {
 public:
  using Progress = std::function<void(const pb::MigrateProgress&)>;

  struct Options {
    pb::WorkloadSpec spec;
    std::uint64_t incarnation = 0;
    pb::WorkloadProcess process;
    std::uint64_t next_seq = 1;
    std::vector<pb::PeerAddress> standbys;
  };

  // Fails: kInvalid (the spec), or what the store says. Starts the loop.
  static Result<std::unique_ptr<Workload>> start(const NodeEnv& env, Options options);
  ~Workload();  // stops the loop; the program runs on

  const std::string& name() const { return spec_.name(); }
  pb::WorkloadSpec spec() const { return spec_; }
  const storage::WorkloadIdentity& identity() const { return identity_; }
  std::uint64_t incarnation() const;
  // Whether what was decided at `incarnation` is meant for this ownership: since it began, only its
  // voters have changed.
  bool concerned_by(std::uint64_t incarnation) const;
  std::string state() const;
  std::vector<pb::PeerAddress> standbys() const;
  pb::WorkloadStatus status() const;

  void set_standbys(const std::vector<pb::PeerAddress>& standbys);
  void set_incarnation(std::uint64_t incarnation);
  // Takes one and waits for its commit. Fails: kTimedOut (with the problem), kConflict (not running).
  Result<pb::CheckpointInfo> checkpoint_now(std::chrono::microseconds timeout);
  // Blocks until the program runs there (answer: the report) or here (answer: why).
  Result<pb::MigrateReport> migrate(const pb::MigrateRequest& request, const Progress& progress);
  Result<void> abort_migration();
  void exited(int wait_status);
  // The warden is back after a restart: go on at once. (That its tracking began anew is known
  // by its epoch.)
  void resume_captures();
  // Output commit: packets wait for a checkpoint. It is made soon.
  void output_waits();
  void set_process(const pb::WorkloadProcess& process);
  // No more checkpoints; the loop ends. What it did with the program is the caller's to say.
  void halt(const std::string& state);

 private:
  friend class MigrationRun;
  struct Link {
    pb::PeerAddress peer;      // empty node: the local store
    bool standby = false;      // false for the local store and a migration's target
    std::shared_ptr<Replicator> replicator;
  };
  struct MigrationJob {
    pb::MigrateRequest request;
    Progress progress;
    bool done = false;
    std::optional<Result<pb::MigrateReport>> outcome;   // may come first: see answer_early
  };

  Workload(const NodeEnv& env, Options options, storage::WorkloadIdentity identity,
           std::shared_ptr<const dedup::PageHasher> hasher);

  void loop();
  bool due(std::chrono::nanoseconds now) const;      // under mutex_
  bool room() const;                                 // under mutex_
  bool wanting() const;                              // under mutex_
  Result<void> checkpoint();
  Result<void> full_copy();
  Result<std::uint64_t> copy_round(const std::vector<PageRef>& again, Replicator* must_take,
                                   std::uint64_t* pending = nullptr);
  void count_capture(const pb::CaptureResponse& info);
  Result<SnapshotPtr> take_snapshot(bool keep_frozen, const std::vector<PageRef>& again,
                                    std::uint64_t max_pending, Replicator* must_take,
                                    pb::CaptureResponse* info = nullptr);
  Result<void> same_epoch();
  void add_file_digests(pb::Manifest& manifest);
  void deliver(const BatchPtr& batch, Replicator* must_take);
  void serve_wanted();
  void capture_failed(const Error& error);
  void hurry(std::chrono::nanoseconds now);          // under mutex_
  void committed(const pb::PeerAddress& peer, bool standby, const SnapshotPtr& snapshot);
  std::shared_ptr<Replicator> make_link(const pb::PeerAddress& peer, bool standby);
  SnapshotPtr find_snapshot(const ReplicaTip& tip) const;
  std::vector<Link> links() const;
  void run_migration(const std::shared_ptr<MigrationJob>& job);
  // The migration cannot end soon: whoever waits for it is told why, it goes on.
  void answer_early(Error why);
  void reconcile_links();

  const NodeEnv env_;
  const pb::WorkloadSpec spec_;
  const storage::WorkloadIdentity identity_;
  const std::shared_ptr<const dedup::PageHasher> hasher_;

  // Only the loop's thread:
  MemoryImage image_;
  std::uint64_t last_written_ = 0;
  std::uint32_t capture_failures_ = 0, passing_failures_ = 0;
  std::uint64_t image_epoch_ = 0;
  std::map<std::tuple<std::string, std::uint64_t, std::uint64_t>, std::string> file_digests_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Link> links_;
  std::vector<pb::PeerAddress> wanted_standbys_;
  bool standbys_changed_ = false;
  std::string state_ = "running";
  pb::WorkloadProcess process_;
  std::uint64_t incarnation_;
  const std::uint64_t since_;              // the incarnation with which this node's ownership began
  std::uint64_t next_seq_;
  std::uint64_t last_captured_ = 0;
  std::uint64_t last_committed_ = 0;
  SnapshotPtr last_committed_snapshot_;
  BootTime protected_since_{};
  bool capturing_ = false;
  std::uint32_t waiters_ = 0;       // checkpoint_now calls
  std::chrono::nanoseconds last_waiter_{0}, forced_gap_{std::chrono::milliseconds(100)};
  bool need_full_ = true;
  bool new_program_ = true;         // what the image holds is of an earlier one
  std::string capture_problem_;
  Pacing pacing_;
  std::chrono::nanoseconds next_due_{}, last_capture_{};
  bool output_waits_ = false;
  std::chrono::nanoseconds last_begun_{}, last_pause_{};
  PauseStats pauses_;
  PhaseStats phases_;
  std::string strategy_, strategy_why_;
  std::uint64_t pages_written_ = 0;
  std::uint64_t pages_written_before_ = 0;   // at the newest capture
  ReplicatorStats gone_;            // of links that are no more
  std::vector<std::future<void>> ending_links_;   // only its own thread's
  int exit_status_ = 0;
  std::shared_ptr<MigrationJob> migration_;
  std::atomic<bool> abort_asked_{false};
  bool stopping_ = false;
  std::atomic<bool> stop_now_{false};
  std::thread thread_;
};

}  // namespace baton::node
