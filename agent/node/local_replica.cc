#include "agent/node/local_replica.h"

#include "base/log.h"

namespace baton::node {

Result<void> enter_workload(storage::Store& store, const storage::WorkloadIdentity& identity,
                            std::uint64_t incarnation) {
  auto added = store.add_workload(identity);
  if (!added && added.error().code == Code::kConflict) {
    auto held = store.identity(identity.workload);
    auto seen = store.incarnation(identity.workload);
    if (held && seen && held->domain != identity.domain && *seen < incarnation) {
      spdlog::warn("{}: its name was given anew; the old one's checkpoints go", identity.workload);
      BATON_TRY(store.drop_workload(identity.workload));
      added = store.add_workload(identity);
    }
  }
  BATON_TRY(added);
  return store.raise_incarnation(identity.workload, incarnation);
}

Result<std::optional<ReplicaTip>> LocalReplica::open(std::uint64_t incarnation) {
  BATON_TRY(enter_workload(store_, identity_, incarnation));
  BATON_TRY(store_.set_policy(identity_.workload, retention_));
  lease_ = store_.lease();
  BATON_ASSIGN(auto tip, store_.tip(identity_.workload));
  if (!tip) return std::optional<ReplicaTip>();
  return std::optional<ReplicaTip>(ReplicaTip{tip->seq, tip->incarnation});
}

Result<std::vector<bool>> LocalReplica::have(std::span<const dedup::Digest> digests) {
  return store_.pages().contains(identity_.domain, digests);
}

Result<std::uint64_t> LocalReplica::put(std::span<const storage::PagePut> pages) {
  BATON_ASSIGN(auto done, store_.pages().put(identity_.domain, pages));
  return std::uint64_t(done.bytes_written);
}

Result<void> LocalReplica::commit(const storage::CheckpointRecord& record,
                                  storage::Durability durability,
                                  std::vector<dedup::Digest>* missing) {
  BATON_TRY(store_.commit(record, durability, missing));
  lease_ = store_.lease();  // what is committed is marked from its root now
  return {};
}

}  // namespace baton::node
