// WorkloadCatalog: the checkpoints of one workload: their page tables in memory, their log
// on disk. Private to storage; the Store holds one per workload.
//
// Locks: commit_mutex_ serialises all that writes (commit, drop, the end of a compaction);
// state_mutex_ guards held_ and log_ and is held briefly; compact_mutex_ lets one compaction
// run at a time. Order: compact_mutex_, commit_mutex_, state_mutex_.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "storage/catalog.h"
#include "storage/log/catalog_log.h"

namespace baton::storage {

using ObjectMap = std::map<std::uint64_t, dedup::PageTable>;

struct HeldCheckpoint {
  CheckpointInfo info;
  std::shared_ptr<const ObjectMap> objects;
  std::shared_ptr<CatalogLog> log;  // which file holds the manifest, and where
  std::uint64_t manifest_at = 0;
  std::uint64_t manifest_sum = 0;
  std::uint64_t sealed_bytes = 0;  // not 0: at manifest_at lies a sealed record of this length
  std::uint64_t freeze_age_ns = 0;
  std::uint64_t keep_from = 0;  // what its commit dropped: everything below
  std::shared_ptr<const std::string> healed_manifest;  // in place of a damaged one in `log`
};

class WorkloadCatalog {
 public:
  struct Context {
    PageStore& pages;
    Disk& disk;
    const Clock& clock;
    SealerPtr node_key;  // null: nothing is encrypted
  };

  // Makes folder, identity and an empty log. `key`: of its domain, null: none. Fails: kNoSpace, kFailed, kNotAllowed.
  static Result<std::shared_ptr<WorkloadCatalog>> create(const std::string& folder,
                                                         const WorkloadIdentity& identity,
                                                         Context context, SealerPtr key);
  // Reads all of it. nullptr: the folder was never finished (and is removed).
  static Result<std::shared_ptr<WorkloadCatalog>> open(const std::string& folder, Context context,
                                                       StoreStats& counters);

  const WorkloadIdentity& identity() const { return identity_; }
  SealerPtr key() const { return key_; }
  // Overwrites what the key can be had from. The folder is to be removed after it.
  void erase_key();
  std::shared_ptr<const PageHasher> hasher() const { return hasher_; }
  std::uint64_t incarnation() const;
  Result<void> raise_incarnation(std::uint64_t incarnation);

  // `defaults`: what the store keeps where the workload's policy says nothing.
  Result<void> commit(const CheckpointRecord& record, Durability durability,
                      const Retention& defaults, std::vector<Digest>* missing);
  Result<void> set_policy(const RetentionPolicy& policy);
  RetentionPolicy policy() const;
  Result<CheckpointInfo> mark(std::uint64_t seq, const MarkChange& change);
  Result<void> heal_manifest(std::uint64_t seq, const std::string& manifest);
  std::vector<Digest> missing_pages(const CheckpointRecord& record) const;

  std::vector<HeldCheckpoint> held() const;  // rising seq
  std::optional<CheckpointInfo> tip() const;
  Result<Checkpoint> load(std::uint64_t seq, bool with_manifest) const;
  Result<void> drop(std::uint64_t seq);
  // Drops what the policy, and where it says nothing the store's, does not keep.
  Result<void> trim(const Retention& defaults);
  // Drops the oldest `count` that are neither marked nor the tip, whatever the policy says.
  // Returns how many went.
  Result<std::size_t> shed(std::size_t count);
  std::size_t sheddable() const;
  // After this, every call that writes says kNotFound.
  void close_for_good();

  Result<void> sync(Durability level);
  // Notes on disk that checkpoints below `keep_from` are gone: before their pages are removed.
  Result<void> note_collection(std::uint64_t keep_from);
  bool wants_compaction() const;
  Result<void> compact();
  std::uint64_t log_bytes() const;
  // Pages that drops may have turned into garbage since the last call.
  std::uint64_t take_garbage_estimate();

 private:
  WorkloadCatalog(std::string folder, WorkloadIdentity identity, Context context)
      : folder_(std::move(folder)),
        identity_(std::move(identity)),
        context_(context),
        hasher_(std::make_shared<PageHasher>(identity_.kind, identity_.key)) {}

  struct NewGeneration {
    std::shared_ptr<CatalogLog> log;
    std::vector<HeldCheckpoint> held;  // with their places in the new log
    std::uint64_t chain = 0;
  };

  Error error(Code code, std::string_view operation, std::string subject,
              std::string hint = {}) const;
  std::string name_of(std::uint64_t seq) const;

  Result<void> check_record(const CheckpointRecord& record) const;
  // The record's tables on top of `base` (may be null). Fails: kCorrupt.
  Result<std::shared_ptr<const ObjectMap>> build(const CheckpointRecord& record,
                                                 const ObjectMap* base) const;
  Result<void> append_checkpoint(const CheckpointRecord& record, HeldCheckpoint& next,
                                 Durability durability);
  void publish(HeldCheckpoint next);
  Result<void> append_small(EntryType type, std::uint64_t value, Durability durability);
  CheckpointInfo make_info(const CheckpointRecord& record, const ObjectMap& objects) const;
  CheckpointRecord to_record(const HeldCheckpoint& checkpoint, const HeldCheckpoint* base,
                             std::string manifest) const;

  Result<void> replay(StoreStats& counters);
  void replay_entry(const LogEntry& entry, std::span<const std::byte> payload,
                    std::uint64_t payload_at, StoreStats& counters);
  void roll_back_torn(StoreStats& counters);
  Result<NewGeneration> write_generation(const std::vector<HeldCheckpoint>& held);
  Result<void> install(NewGeneration next, std::uint64_t old_end, std::uint64_t tail_entries);
  void discard(const NewGeneration& next);
  Result<void> rotate_locked();
  std::string log_path(std::uint64_t generation) const;
  std::vector<HeldCheckpoint>::iterator find(std::uint64_t seq);
  void erase_below(std::uint64_t keep_from);
  Result<void> trim_locked(const RetentionPolicy& policy);
  RetentionPolicy effective(const Retention& defaults) const;
  Result<void> drop_locked(const std::vector<std::uint64_t>& seqs);
  Result<std::string> read_manifest(const HeldCheckpoint& checkpoint) const;
  // The payload as it goes to the log, and where its manifest will be, given where it lies.
  std::string seal_record(const CheckpointRecord& record, std::string payload, LogEntry& entry,
                          HeldCheckpoint& held) const;
  Result<std::string> unseal(std::span<const std::byte> sealed) const;
  Result<void> write_identity();

  const std::string folder_;
  const WorkloadIdentity identity_;
  const Context context_;
  const std::shared_ptr<const PageHasher> hasher_;
  SealerPtr key_;  // set before anybody else sees this

  std::mutex compact_mutex_;
  mutable std::mutex commit_mutex_;
  bool closed_ = false;
  std::uint64_t generation_ = 0;
  std::uint64_t chain_ = 0;           // deltas since the last full entry in the log
  std::uint64_t compacted_bytes_ = 0;  // the log's size after its last compaction

  mutable std::mutex state_mutex_;
  std::shared_ptr<CatalogLog> log_;
  std::vector<HeldCheckpoint> held_;  // rising seq
  std::uint64_t incarnation_ = 0;
  std::uint64_t garbage_estimate_ = 0;
  RetentionPolicy policy_;
  std::size_t thin_at_ = 0;  // held_ of this size is thinned by the next commit

  std::uint64_t synced_seq_ = 0;  // during replay: up to here, pages were synced
  bool in_the_clear_ = false;     // found by replay: records that are not sealed
};

}  // namespace baton::storage
