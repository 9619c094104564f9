// DiskStore: the Store over a page store and one catalog per workload. Private to storage.
//
// Upkeep (upkeep.cc) runs in a thread of its own, woken by commits and by a full disk:
// retention, making room, compaction of logs, collection of garbage.
//
// Locks: workloads_mutex_ for the map only; gc_mutex_ lets one collection run at a time;
// trouble_mutex_ and wake_mutex_ are leaves.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "storage/catalog.h"
#include "storage/log/workload_catalog.h"
#include "storage/segment_store.h"

namespace baton::storage {

class DiskStore final : public Store {
 public:
  // `own_disk` (may be null) is what options.disk points to when the store lives in memory.
  DiskStore(std::string folder, StoreOptions options, const Clock& clock, std::unique_ptr<Disk> own_disk);
  ~DiskStore() override;
  Result<void> open();

  PageStore& pages() override { return *pages_; }
  WriteLease lease() override { return pages_->lease(); }
  Result<void> add_workload(const WorkloadIdentity& identity) override;
  Result<WorkloadIdentity> identity(const std::string& workload) override;
  Result<std::shared_ptr<const PageHasher>> hasher(const std::string& workload) override;
  std::vector<std::string> workloads() override;
  Result<void> raise_incarnation(const std::string& workload, std::uint64_t incarnation) override;
  Result<std::uint64_t> incarnation(const std::string& workload) override;
  Result<std::vector<Digest>> missing_pages(const CheckpointRecord& record) override;
  Result<void> commit(const CheckpointRecord& record, Durability durability,
                      std::vector<Digest>* missing) override;
  Result<std::vector<CheckpointInfo>> list(const std::string& workload) override;
  Result<std::optional<CheckpointInfo>> tip(const std::string& workload) override;
  Result<Checkpoint> load(const std::string& workload, std::uint64_t seq) override;
  Result<Checkpoint> load_tables(const std::string& workload, std::uint64_t seq) override;
  Result<void> drop(const std::string& workload, std::uint64_t seq) override;
  Result<void> drop_workload(const std::string& workload) override;
  void set_retention(const Retention& retention) override;
  Result<void> set_policy(const std::string& workload, const RetentionPolicy& policy) override;
  Result<RetentionPolicy> policy(const std::string& workload) override;
  Result<CheckpointInfo> mark(const std::string& workload, std::uint64_t seq,
                              const MarkChange& change) override;
  Result<void> heal_manifest(const std::string& workload, std::uint64_t seq,
                             const std::string& manifest) override;
  Result<void> sync(Durability level) override;
  StoreStats stats() override;

  // upkeep.cc
  Result<GcResult> gc() override;
  Result<void> maintain() override;
  std::string problem() const override;

  // verify.cc
  Result<VerifyResult> verify(const VerifyOptions& options) override;

 private:
  using CatalogPtr = std::shared_ptr<WorkloadCatalog>;

  WorkloadCatalog::Context context() { return {*pages_, disk_, clock_, options_.node_key}; }
  std::string workload_folder(const std::string& workload) const { return folder_ + "/workloads/" + workload; }
  Retention retention() const;
  Result<CatalogPtr> find(const std::string& workload) const;
  std::vector<CatalogPtr> all() const;

  // upkeep.cc
  bool wants_collection() const;
  bool over_budget() const;
  bool work_waits(const WorkloadCatalog& catalog) const;
  Result<void> trim_to_budget(std::uint64_t budget);
  Result<void> trim_to_own_budgets();
  // Gives up the oldest quarter of whoever holds most that may go; 0: nobody does.
  Result<std::size_t> shed_some();
  Result<void> make_room();
  Result<void> take_reserve();
  void trouble(const Error& error);
  void set_problem(std::string problem);
  void wake();
  void run();

  const std::unique_ptr<Disk> own_disk_;
  const std::string folder_;
  const StoreOptions options_;
  const Clock& clock_;
  Disk& disk_;
  std::unique_ptr<PageStore> pages_;
  StoreStats counters_;  // of open; constant afterwards

  mutable std::mutex retention_mutex_;
  Retention retention_;
  mutable std::shared_mutex workloads_mutex_;
  std::map<std::string, CatalogPtr> workloads_;

  std::mutex gc_mutex_;
  std::atomic<bool> collect_soon_{false};
  std::atomic<std::uint64_t> garbage_{0}, commits_{0}, compactions_{0}, collections_{0}, shed_{0};

  mutable std::mutex trouble_mutex_;
  std::string problem_;
  std::atomic<bool> full_{false};     // something was refused for lack of room: upkeep's call
  std::atomic<bool> failing_{false};  // something was refused, and no commit has succeeded since
  Fd reserve_;                        // upkeep's thread only

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool woken_ = false, stop_ = false;
  std::thread thread_;
};

// Adds the digests that these checkpoints hold. Neighbours share most of their tables, so each
// further checkpoint costs only its changes.
void mark_pages(const std::vector<HeldCheckpoint>& held, DigestSet& marked);

}  // namespace baton::storage
