// Store: a node's checkpoints: the catalog (which checkpoints exist, and their page
// tables) on top of a page store.
//
// Order of a checkpoint's arrival:
//   auto lease = store.lease();                    // before the first have/want
//   store.missing_pages(record) or pages().contains(…)   // what to ask for
//   store.pages().put(domain, …)
//   store.commit(record, durability);
//   lease.reset();
//
// Until commit returns ok the workload's previous checkpoint is its tip, on disk too. A
// process that dies, a disk that fills or a power cut at any instant leaves the last
// committed state at the next open; only commits at less than kSynced can be lost, newest
// first, by a power cut (never by a crash of the program).
//
// It refuses records of an older incarnation than it has seen (kConflict), records whose
// parent it does not hold (kNotFound), roots that do not come out (kCorrupt), and pages that
// are not there (kNotFound; missing_pages says which).
//
// Threads: any number, for the same workload too. A maintenance thread of its own runs
// log compaction and garbage collection. Format: docs/formats/store.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "dedup/page_table.h"
#include "storage/checkpoint_record.h"
#include "storage/disk.h"
#include "storage/page_store.h"
#include "storage/retention.h"

namespace baton::storage {

// No replay chain in a catalog log is longer than this.
inline constexpr std::uint64_t kMaxDeltaChain = 256;

struct Retention {
  std::uint64_t keep_last = 8;    // newest kept of a workload whose policy has no number; at least 1
  std::vector<RetentionStep> steps;  // of workloads whose policy has none; at most kMaxRetentionSteps
  std::uint64_t byte_budget = 0;  // of the whole store on disk; 0: none. Beyond 4/5 of it the
                                  // oldest checkpoints go first, never a workload's tip;
                                  // at all of it, puts are refused with kNoSpace.
};

struct StoreOptions {
  Retention retention;
  std::uint64_t segment_bytes = 64u << 20;
  int zstd_level = 1;
  bool maintenance_thread = true;  // false: tests call maintain() themselves
  Disk* disk = nullptr;            // null: the real one; must outlive the store
  // Kept free on the disk for the upkeep that makes room again when it is full; 0: nothing.
  std::uint64_t reserve_bytes = 0;
  // The bytes per second that collection may read and write for moving pages; 0: no limit.
  std::uint64_t upkeep_bytes_per_s = 0;
  // The node's key: each workload's own key is wrapped with it, and encrypts its pages and
  // manifests. What an older store holds in the clear is encrypted when it is written anew.
  SealerPtr node_key;
  // Told whenever problem() changes; called from any thread, must not call the store.
  std::function<void(const std::string& problem)> alarm;
};

inline constexpr std::size_t kMaxTags = 64;      // per checkpoint
inline constexpr std::size_t kMaxTagBytes = 64;  // 1 to this many of [A-Za-z0-9._-]

// What a workload's checkpoints have in common; kept in a file of mode 0600.
struct WorkloadIdentity {
  std::string workload;
  DomainId domain;
  DigestKind kind = DigestKind::kXxh3_128;
  dedup::HashKey key{};
};

struct CheckpointInfo {
  std::string workload;
  std::uint64_t seq = 0, parent_seq = 0, incarnation = 0;
  std::uint64_t freeze_wall_ns = 0;   // sender's clock
  std::uint64_t pause_ns = 0;
  std::uint64_t commit_wall_ns = 0;   // this node's CLOCK_REALTIME
  std::uint64_t local_freeze_boot_ns = 0;  // freeze in this node's boot time; 0 after a restart
  std::uint64_t pages = 0;            // present pages over all objects
  std::uint64_t changed_pages = 0;    // against the parent
  std::uint64_t manifest_bytes = 0;
  std::uint64_t objects = 0;
  std::uint64_t missing_pages = 0;    // found missing at open (damaged disk); 0 is healthy
  std::vector<std::string> tags;      // sorted; it stays as long as it has one
  bool pinned = false;                // it stays
  bool marked() const { return pinned || !tags.empty(); }
};

struct MarkChange {
  std::vector<std::string> add, remove;
  std::optional<bool> pin;
};

struct Checkpoint {
  CheckpointInfo info;
  DomainId domain;
  std::string manifest;
  std::map<std::uint64_t, dedup::PageTable> objects;
  std::map<std::uint64_t, Digest> roots;
  std::shared_ptr<const PageHasher> hasher;
};

struct BadPageReport {
  BadPage page;
  std::vector<std::string> checkpoints;  // "NAME@SEQ" that hold it
};

struct BadManifest {
  std::string workload;
  std::uint64_t seq = 0;
  std::string reason;
};

struct VerifyOptions {
  // Only the pages and manifests of part `part` of `parts`, chosen by digest and seq, so that
  // `parts` runs read everything once. part 1 to parts.
  std::uint32_t part = 1, parts = 1;
  std::function<void(std::uint64_t pages_done, std::uint64_t pages_total)> progress;
};

struct VerifyResult {
  std::uint64_t pages_checked = 0;
  std::uint64_t checkpoints_checked = 0;
  std::vector<BadPageReport> bad;
  std::vector<BadManifest> bad_manifests;
};

struct StoreStats {
  PageStoreStats pages;
  std::uint64_t workloads = 0;
  std::uint64_t checkpoints = 0;
  std::uint64_t log_bytes = 0;
  std::uint64_t commits = 0;          // since open
  std::uint64_t compactions = 0;
  std::uint64_t collections = 0;
  std::uint64_t damaged_records = 0;  // found at open
  std::uint64_t rolled_back = 0;      // checkpoints given up at open (torn by a power cut)
  std::uint64_t shed = 0;             // given up early, because the disk or the budget was full
  std::uint64_t disk_free_bytes = 0;
  bool in_memory = false;
  bool encrypted = false;
};

class Store {
 public:
  virtual ~Store() = default;

  // Makes the folder when it is not there. `clock` must outlive the store.
  // Fails: kConflict (another process has it open), kNotAllowed (also: the key is missing or
  // another), kUnsupported (a newer format), kNoSpace, kFailed.
  static Result<std::unique_ptr<Store>> open(const std::string& folder, StoreOptions options,
                                             const Clock& clock);
  // The same in memory alone (memory_disk.h), for a node without a disk: everything is gone
  // with the object. Give it a byte budget, which is what bounds its memory.
  static Result<std::unique_ptr<Store>> open_in_memory(StoreOptions options, const Clock& clock);

  virtual PageStore& pages() = 0;
  virtual WriteLease lease() = 0;  // = pages().lease()

  // Enters a workload, durably. Again with the same identity: ok. Fails: kConflict (another
  // identity under this name), kInvalid (name).
  virtual Result<void> add_workload(const WorkloadIdentity& identity) = 0;
  virtual Result<WorkloadIdentity> identity(const std::string& workload) = 0;
  virtual Result<std::shared_ptr<const PageHasher>> hasher(const std::string& workload) = 0;
  virtual std::vector<std::string> workloads() = 0;

  // From now on refuses records below `incarnation`, also after a restart (synced).
  // Fails: kConflict when a higher one is known.
  virtual Result<void> raise_incarnation(const std::string& workload,
                                         std::uint64_t incarnation) = 0;
  virtual Result<std::uint64_t> incarnation(const std::string& workload) = 0;

  // The record's new pages that are not in the page store, each once.
  virtual Result<std::vector<Digest>> missing_pages(const CheckpointRecord& record) = 0;

  // All or nothing. The parent must be the tip (or 0). A higher incarnation may continue
  // from any held checkpoint, and replaces held ones with seq >= its own. Committing the
  // tip again unchanged is ok. Blocks for the sync that `durability` asks for.
  // Fails: kInvalid, kNotFound (workload, parent, pages: then *missing is filled), kConflict
  // (older incarnation, seq not above the tip), kCorrupt (a root differs), kNoSpace, kFailed,
  // kUnknownOutcome (the log may or may not hold it: ask tip() after a reopen, or commit again).
  virtual Result<void> commit(const CheckpointRecord& record, Durability durability,
                              std::vector<Digest>* missing = nullptr) = 0;

  virtual Result<std::vector<CheckpointInfo>> list(const std::string& workload) = 0;  // rising seq
  virtual Result<std::optional<CheckpointInfo>> tip(const std::string& workload) = 0;
  // Fails: kNotFound, kCorrupt (the manifest's bytes).
  virtual Result<Checkpoint> load(const std::string& workload, std::uint64_t seq) = 0;
  // As load, without the manifest and without reading the disk.
  virtual Result<Checkpoint> load_tables(const std::string& workload, std::uint64_t seq) = 0;

  virtual Result<void> drop(const std::string& workload, std::uint64_t seq) = 0;
  virtual Result<void> drop_workload(const std::string& workload) = 0;
  virtual void set_retention(const Retention& retention) = 0;

  // What of this workload stays; kept in its log, so that it holds after a restart too.
  // Fails: kNotFound, kInvalid (more than kMaxRetentionSteps), kNoSpace, kFailed.
  virtual Result<void> set_policy(const std::string& workload, const RetentionPolicy& policy) = 0;
  virtual Result<RetentionPolicy> policy(const std::string& workload) = 0;
  // Tags and pins of NAME@seq, durably. Fails: kNotFound, kInvalid (a bad tag, too many).
  virtual Result<CheckpointInfo> mark(const std::string& workload, std::uint64_t seq,
                                      const MarkChange& change) = 0;

  // Brings every commit so far to the level.
  virtual Result<void> sync(Durability level) = 0;
  // Collects garbage now.
  virtual Result<GcResult> gc() = 0;
  // What the maintenance thread does when woken: retention by bytes, compaction, collection.
  virtual Result<void> maintain() = 0;
  // Reads every page of every held checkpoint, and every manifest. Bad pages leave the index:
  // put them again to heal them.
  virtual Result<VerifyResult> verify(const VerifyOptions& options = {}) = 0;
  // Puts the right manifest in the place of a damaged one. Fails: kNotFound, kCorrupt (these
  // are not the bytes that were committed), kNoSpace, kFailed.
  virtual Result<void> heal_manifest(const std::string& workload, std::uint64_t seq,
                                     const std::string& manifest) = 0;
  // What is wrong with the store as a whole, for a person; empty: nothing.
  virtual std::string problem() const = 0;
  virtual StoreStats stats() = 0;
};

}  // namespace baton::storage
