// MigrationRun: carries out the effects of the migration state machine (migration.h) on
// the loop's thread of the workload that moves. Blocks until the workload runs on the
// target or here again; while the outcome of the handover is unknown it stays frozen and
// asks, for ever.
#pragma once

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "agent/node/workload.h"

namespace baton::node {

using FileVersion = std::tuple<std::string, std::uint64_t, std::uint64_t>;   // path, size, mtime in ns

class MigrationRun {
 public:
  MigrationRun(Workload& workload, pb::MigrateRequest request, Workload::Progress progress);
  Result<pb::MigrateReport> run();

 private:
  MigrationEvent perform(MigrationEffect effect);
  MigrationEvent prepare();
  MigrationEvent copy_round();
  MigrationEvent freeze();
  MigrationEvent ship();
  MigrationEvent build_target();
  MigrationEvent change_owner();
  MigrationEvent ask_owner();
  MigrationEvent reclaim();
  bool taken_back() const;
  MigrationEvent activate();
  MigrationEvent thaw();
  MigrationEvent destroy();
  // migration_ahead.cc: the target builds a shadow while the program runs here.
  void build_ahead();
  Result<void> checkpoint_on_target();
  Result<void> shadow_follows();
  void begin_hold();
  Result<void> end_hold();
  void phase_took(std::uint64_t& phase_us);
  std::string phases() const;
  void note_round_trip(std::chrono::steady_clock::time_point asked, std::uint64_t worked_us);
  std::uint64_t pause_us(std::uint64_t away_before_us, std::uint64_t activate_us) const;
  Result<void> connect_link();
  Result<void> bulk_copy();
  Result<void> checkpoint_when_due();
  Result<void> prove_files(const std::vector<pb::FileProof>& files, pb::PrepareTargetRequest& request,
                           bool frozen);
  Result<void> send_file(const pb::FileProof& file);
  Result<void> wait_drained();
  bool pause_before_retry(std::uint32_t attempt);
  void answer_when_stuck();
  void report(std::string_view phase, std::uint64_t bytes_left = 0);
  std::uint64_t away_ns() const;
  void set_state(const std::string& state);
  void drop_link();

  Workload& w_;
  const pb::MigrateRequest request_;
  const Workload::Progress progress_;
  MigrationState state_;
  std::unique_ptr<TargetAgent> target_;
  std::shared_ptr<Replicator> link_;
  bool own_link_ = false;
  ReplicatorStats stats_before_;
  std::vector<RoundMeasure> rounds_;
  std::set<FileVersion> proven_;   // files that the target holds, and that stay as they are
  SnapshotPtr final_;
  BootTime frozen_at_{};
  std::chrono::steady_clock::time_point started_;
  pb::Ownership new_owner_;
  pb::MigrateReport report_;
  bool converged_ = true;
  bool ahead_tried_ = false;
  bool ahead_ = false;                 // the target has a shadow, which follows
  std::uint64_t ahead_seq_ = 0;        // the newest checkpoint that it was asked to stand at
  std::future<Result<void>> hold_;     // the freeze by cgroup, beside the shipping
  struct Phases {
    std::uint64_t freeze_us = 0, ship_us = 0, hold_us = 0, apply_us = 0, owner_us = 0, activate_us = 0;
  } phases_;
  std::chrono::steady_clock::time_point phase_began_;
  std::uint64_t round_trip_us_ = 0;    // of a request to the target and its answer, without the work
  bool destroyed_ = false;
  std::chrono::steady_clock::time_point stuck_since_{};   // of the effect being repeated
  std::string last_error_;      // of any effect
  bool answered_ = false;       // early: progress_ must not be called any more
};

}  // namespace baton::node
