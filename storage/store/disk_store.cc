#include "storage/store/disk_store.h"

#include <algorithm>

#include <spdlog/spdlog.h>

#include "storage/memory_disk.h"

namespace baton::storage {

DiskStore::DiskStore(std::string folder, StoreOptions options, const Clock& clock,
                     std::unique_ptr<Disk> own_disk)
    : own_disk_(std::move(own_disk)),
      folder_(std::move(folder)),
      options_(std::move(options)),
      clock_(clock),
      disk_(own_disk_ ? *own_disk_ : options_.disk ? *options_.disk : real_disk()),
      retention_(options_.retention) {}

DiskStore::~DiskStore() {
  {
    std::lock_guard lock(wake_mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<void> DiskStore::open() {
  BATON_TRY(disk_.make_folder(folder_));
  BATON_TRY(disk_.make_folder(folder_ + "/workloads"));
  SegmentStoreOptions pages;
  pages.segment_bytes = options_.segment_bytes;
  const std::uint64_t budget = retention_.byte_budget;
  if (budget != 0) pages.segment_bytes = std::min(pages.segment_bytes, budget / 16);
  pages.byte_limit = budget;
  pages.zstd_level = options_.zstd_level;
  pages.disk = &disk_;
  pages.upkeep_bytes_per_s = options_.upkeep_bytes_per_s;
  pages.trouble = [this](const Error& error) { trouble(error); };
  BATON_ASSIGN(pages_, open_segment_store(folder_ + "/pages", pages));

  BATON_ASSIGN(auto names, disk_.list(folder_ + "/workloads"));
  for (const std::string& name : names) {
    const std::string path = folder_ + "/workloads/" + name;
    if (name.starts_with(".drop-")) {
      disk_.remove_tree(path);
      continue;
    }
    if (!disk_.is_folder(path) || !is_valid_workload_name(name)) continue;
    BATON_ASSIGN(auto catalog, WorkloadCatalog::open(path, context(), counters_));
    if (!catalog) continue;
    if (catalog->key()) pages_->set_key(catalog->identity().domain, catalog->key());
    workloads_[name] = std::move(catalog);
  }
  collect_soon_ = pages_->stats().pages != 0;  // what a crash left behind
  if (auto taken = take_reserve(); !taken) trouble(taken.error());
  if (options_.maintenance_thread) {
    thread_ = std::thread([this] { run(); });
    if (collect_soon_ || full_) wake();
  }
  return {};
}

Result<void> DiskStore::add_workload(const WorkloadIdentity& identity) {
  if (!is_valid_workload_name(identity.workload)) {
    return make_error(Code::kInvalid, "add workload", "'" + identity.workload + "' is no name",
                      "Use 1 to 128 of A-Z a-z 0-9 . _ -");
  }
  if (!dedup::is_known_kind(static_cast<std::uint8_t>(identity.kind))) {
    return make_error(Code::kInvalid, "add workload", identity.workload + ": digest kind");
  }
  std::unique_lock lock(workloads_mutex_);
  if (auto it = workloads_.find(identity.workload); it != workloads_.end()) {
    const WorkloadIdentity& known = it->second->identity();
    if (known.domain == identity.domain && known.kind == identity.kind &&
        known.key == identity.key) {
      return {};
    }
    return make_error(Code::kConflict, "add workload",
                      identity.workload + ": the store holds one with another key or domain",
                      "Drop the old one first.");
  }
  for (const auto& [name, other] : workloads_) {
    const WorkloadIdentity& known = other->identity();
    if (known.domain == identity.domain &&
        (known.key != identity.key || known.kind != identity.kind)) {
      return make_error(Code::kConflict, "add workload",
                        identity.workload + ": " + name + " has this domain with another key");
    }
  }
  SealerPtr key;
  if (options_.node_key) {
    // Those who share pages share their key.
    for (const auto& [name, other] : workloads_) {
      if (other->identity().domain == identity.domain) key = other->key();
    }
    if (!key) {
      BATON_ASSIGN(const auto fresh, Sealer::make_key());
      key = std::make_shared<const Sealer>(fresh);
    }
  }
  const std::string folder = workload_folder(identity.workload);
  disk_.remove_tree(folder);  // of a creation that failed half way
  auto catalog = WorkloadCatalog::create(folder, identity, context(), key);
  if (!catalog) {
    disk_.remove_tree(folder);
    return catalog.error();
  }
  BATON_TRY(disk_.sync_folder(folder_ + "/workloads"));
  BATON_TRY(disk_.sync_folder(folder_));
  if (key) pages_->set_key(identity.domain, key);
  workloads_[identity.workload] = *catalog;
  return {};
}

Result<WorkloadIdentity> DiskStore::identity(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->identity();
}

Result<std::shared_ptr<const PageHasher>> DiskStore::hasher(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->hasher();
}

std::vector<std::string> DiskStore::workloads() {
  std::shared_lock lock(workloads_mutex_);
  std::vector<std::string> out;
  for (const auto& [name, catalog] : workloads_) out.push_back(name);
  return out;
}

Result<void> DiskStore::raise_incarnation(const std::string& workload, std::uint64_t incarnation) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->raise_incarnation(incarnation);
}

Result<std::uint64_t> DiskStore::incarnation(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->incarnation();
}

Result<std::vector<Digest>> DiskStore::missing_pages(const CheckpointRecord& record) {
  BATON_ASSIGN(auto catalog, find(record.workload));
  return catalog->missing_pages(record);
}

Result<void> DiskStore::commit(const CheckpointRecord& record, Durability durability,
                    std::vector<Digest>* missing) {
  BATON_ASSIGN(auto catalog, find(record.workload));
  if (auto done = catalog->commit(record, durability, retention(), missing); !done) {
    trouble(done.error());
    return done.error();
  }
  if (failing_.exchange(false)) {
    // It works again. After a full disk the problem is over once the reserve is back.
    if (options_.reserve_bytes == 0) set_problem({});
    if (options_.maintenance_thread) wake();
  }
  ++commits_;
  garbage_ += catalog->take_garbage_estimate();
  if (options_.maintenance_thread && work_waits(*catalog)) wake();
  return {};
}

Result<std::vector<CheckpointInfo>> DiskStore::list(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  std::vector<CheckpointInfo> out;
  for (const HeldCheckpoint& h : catalog->held()) out.push_back(h.info);
  return out;
}

Result<std::optional<CheckpointInfo>> DiskStore::tip(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->tip();
}

Result<Checkpoint> DiskStore::load(const std::string& workload, std::uint64_t seq) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->load(seq, true);
}

Result<Checkpoint> DiskStore::load_tables(const std::string& workload, std::uint64_t seq) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->load(seq, false);
}

Result<void> DiskStore::drop(const std::string& workload, std::uint64_t seq) {
  BATON_ASSIGN(auto catalog, find(workload));
  BATON_TRY(catalog->drop(seq));
  garbage_ += catalog->take_garbage_estimate();
  if (options_.maintenance_thread) wake();
  return {};
}

Result<void> DiskStore::drop_workload(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  const std::string folder = workload_folder(workload);
  const std::string aside = folder_ + "/workloads/.drop-" + workload;
  {
    std::unique_lock lock(workloads_mutex_);
    catalog->close_for_good();
    disk_.remove_tree(aside);
    if (catalog->key()) catalog->erase_key();
    BATON_TRY(disk_.rename(folder, aside));
    workloads_.erase(workload);
    const DomainId& domain = catalog->identity().domain;
    const bool shared = std::any_of(workloads_.begin(), workloads_.end(), [&](const auto& entry) {
      return entry.second->identity().domain == domain;
    });
    if (!shared) pages_->set_key(domain, nullptr);
  }
  BATON_TRY(disk_.sync_folder(folder_ + "/workloads"));
  disk_.remove_tree(aside);
  collect_soon_ = true;
  if (options_.maintenance_thread) wake();
  return {};
}

void DiskStore::set_retention(const Retention& retention) {
  {
    std::lock_guard lock(retention_mutex_);
    retention_ = retention;
  }
  pages_->set_byte_limit(retention.byte_budget);
  if (options_.maintenance_thread) wake();
}

Result<void> DiskStore::set_policy(const std::string& workload, const RetentionPolicy& policy) {
  BATON_ASSIGN(auto catalog, find(workload));
  BATON_TRY(catalog->set_policy(policy));
  if (options_.maintenance_thread) wake();
  return {};
}

Result<RetentionPolicy> DiskStore::policy(const std::string& workload) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->policy();
}

Result<CheckpointInfo> DiskStore::mark(const std::string& workload, std::uint64_t seq,
                                       const MarkChange& change) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->mark(seq, change);
}

Result<void> DiskStore::heal_manifest(const std::string& workload, std::uint64_t seq,
                                      const std::string& manifest) {
  BATON_ASSIGN(auto catalog, find(workload));
  return catalog->heal_manifest(seq, manifest);
}

Result<void> DiskStore::sync(Durability level) {
  BATON_TRY(pages_->sync(level));
  for (const auto& catalog : all()) BATON_TRY(catalog->sync(level));
  return {};
}

StoreStats DiskStore::stats() {
  StoreStats s;
  s.pages = pages_->stats();
  for (const auto& catalog : all()) {
    ++s.workloads;
    s.checkpoints += catalog->held().size();
    s.log_bytes += catalog->log_bytes();
  }
  s.commits = commits_;
  s.compactions = compactions_;
  s.collections = collections_;
  s.damaged_records = counters_.damaged_records;
  s.rolled_back = counters_.rolled_back;
  s.shed = shed_;
  s.disk_free_bytes = disk_.free_bytes(folder_);
  s.in_memory = own_disk_ != nullptr;
  s.encrypted = options_.node_key != nullptr;
  return s;
}

Retention DiskStore::retention() const {
  std::lock_guard lock(retention_mutex_);
  return retention_;
}

Result<DiskStore::CatalogPtr> DiskStore::find(const std::string& workload) const {
  std::shared_lock lock(workloads_mutex_);
  auto it = workloads_.find(workload);
  if (it == workloads_.end()) {
    return make_error(Code::kNotFound, "store", "'" + workload + "' is not in this store");
  }
  return it->second;
}

std::vector<DiskStore::CatalogPtr> DiskStore::all() const {
  std::shared_lock lock(workloads_mutex_);
  std::vector<CatalogPtr> out;
  for (const auto& [name, catalog] : workloads_) out.push_back(catalog);
  return out;
}

Result<std::unique_ptr<Store>> Store::open(const std::string& folder, StoreOptions options,
                                           const Clock& clock) {
  auto store = std::make_unique<DiskStore>(folder, std::move(options), clock, nullptr);
  BATON_TRY(store->open());
  return std::unique_ptr<Store>(std::move(store));
}

Result<std::unique_ptr<Store>> Store::open_in_memory(StoreOptions options, const Clock& clock) {
  auto store = std::make_unique<DiskStore>("/memory", std::move(options), clock, std::make_unique<MemoryDisk>());
  BATON_TRY(store->open());
  return std::unique_ptr<Store>(std::move(store));
}

}  // namespace baton::storage
