// LocalReplica: this node's own store as a holder of its workload's checkpoints.
#pragma once

#include <utility>

#include "agent/node/replica.h"

namespace baton::node {

// Enters the workload into the store at this incarnation. Checkpoints under the name that
// belong to another dedup domain are of a workload deleted since (its name was given again,
// at a higher incarnation): they go. Fails: kConflict (an older incarnation).
Result<void> enter_workload(storage::Store& store, const storage::WorkloadIdentity& identity,
                            std::uint64_t incarnation);

class LocalReplica final : public Replica {
 public:
  LocalReplica(storage::Store& store, storage::WorkloadIdentity identity, storage::RetentionPolicy retention)
      : store_(store), identity_(std::move(identity)), retention_(std::move(retention)) {}
  std::string name() const override { return "local store"; }
  Result<std::optional<ReplicaTip>> open(std::uint64_t incarnation) override;
  void close() override { lease_.reset(); }
  Result<std::vector<bool>> have(std::span<const dedup::Digest> digests) override;
  Result<std::uint64_t> put(std::span<const storage::PagePut> pages) override;
  Result<void> commit(const storage::CheckpointRecord& record, storage::Durability durability,
                      std::vector<dedup::Digest>* missing) override;

 private:
  storage::Store& store_;
  const storage::WorkloadIdentity identity_;
  const storage::RetentionPolicy retention_;
  storage::WriteLease lease_;
};

}  // namespace baton::node
