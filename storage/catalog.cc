#include "storage/catalog.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <shared_mutex>
#include <thread>

#include <boost/unordered/unordered_flat_map.hpp>
#include <spdlog/spdlog.h>

#include "base/fault_point.h"
#include "storage/log/workload_catalog.h"
#include "storage/segment_store.h"

namespace baton::storage {
namespace {

// A collection runs when about this many pages, and half of what is stored, may be garbage.
constexpr std::uint64_t kMinGarbagePages = 16384;

class DiskStore final : public Store {
 public:
  DiskStore(std::string folder, StoreOptions options, const Clock& clock)
      : folder_(std::move(folder)),
        options_(options),
        clock_(clock),
        disk_(options.disk ? *options.disk : real_disk()),
        retention_(options.retention) {}

  ~DiskStore() override {
    {
      std::lock_guard lock(wake_mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  Result<void> open() {
    for (const std::string& path : {folder_, folder_ + "/workloads"}) {
      if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return errno_error("mkdir", path);
    }
    SegmentStoreOptions pages;
    pages.segment_bytes = options_.segment_bytes;
    const std::uint64_t budget = retention_.byte_budget;
    if (budget != 0) pages.segment_bytes = std::min(pages.segment_bytes, budget / 16);
    pages.byte_limit = budget;
    pages.zstd_level = options_.zstd_level;
    pages.disk = options_.disk;
    BATON_ASSIGN(pages_, open_segment_store(folder_ + "/pages", pages));

    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ + "/workloads", ec)) {
      const std::string name = entry.path().filename();
      if (name.starts_with(".drop-")) {
        std::error_code ignored;
        std::filesystem::remove_all(entry.path(), ignored);
        continue;
      }
      if (!entry.is_directory() || !is_valid_workload_name(name)) continue;
      BATON_ASSIGN(auto catalog, WorkloadCatalog::open(entry.path(), context(), counters_));
      if (catalog) workloads_[name] = std::move(catalog);
    }
    if (ec) return errno_error(ec.value(), "read folder", folder_ + "/workloads");
    collect_soon_ = pages_->stats().pages != 0;  // what a crash left behind
    if (options_.maintenance_thread) {
      thread_ = std::thread([this] { run(); });
      if (collect_soon_) wake();
    }
    return {};
  }

  PageStore& pages() override { return *pages_; }
  WriteLease lease() override { return pages_->lease(); }

  Result<void> add_workload(const WorkloadIdentity& identity) override {
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
    const std::string folder = workload_folder(identity.workload);
    std::error_code ec;
    std::filesystem::remove_all(folder, ec);  // of a creation that failed half way
    auto catalog = WorkloadCatalog::create(folder, identity, context());
    if (!catalog) {
      std::filesystem::remove_all(folder, ec);
      return catalog.error();
    }
    BATON_TRY(disk_.sync_folder(folder_ + "/workloads"));
    BATON_TRY(disk_.sync_folder(folder_));
    workloads_[identity.workload] = *catalog;
    return {};
  }

  Result<WorkloadIdentity> identity(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->identity();
  }

  Result<std::shared_ptr<const PageHasher>> hasher(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->hasher();
  }

  std::vector<std::string> workloads() override {
    std::shared_lock lock(workloads_mutex_);
    std::vector<std::string> out;
    for (const auto& [name, catalog] : workloads_) out.push_back(name);
    return out;
  }

  Result<void> raise_incarnation(const std::string& workload, std::uint64_t incarnation) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->raise_incarnation(incarnation);
  }

  Result<std::uint64_t> incarnation(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->incarnation();
  }

  Result<std::vector<Digest>> missing_pages(const CheckpointRecord& record) override {
    BATON_ASSIGN(auto catalog, find(record.workload));
    return catalog->missing_pages(record);
  }

  Result<void> commit(const CheckpointRecord& record, Durability durability,
                      std::vector<Digest>* missing) override {
    BATON_ASSIGN(auto catalog, find(record.workload));
    BATON_TRY(catalog->commit(record, durability, retention().keep_last, missing));
    ++commits_;
    garbage_ += catalog->take_garbage_estimate();
    if (options_.maintenance_thread && work_waits(*catalog)) wake();
    return {};
  }

  Result<std::vector<CheckpointInfo>> list(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    std::vector<CheckpointInfo> out;
    for (const HeldCheckpoint& h : catalog->held()) out.push_back(h.info);
    return out;
  }

  Result<std::optional<CheckpointInfo>> tip(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->tip();
  }

  Result<Checkpoint> load(const std::string& workload, std::uint64_t seq) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->load(seq, true);
  }

  Result<Checkpoint> load_tables(const std::string& workload, std::uint64_t seq) override {
    BATON_ASSIGN(auto catalog, find(workload));
    return catalog->load(seq, false);
  }

  Result<void> drop(const std::string& workload, std::uint64_t seq) override {
    BATON_ASSIGN(auto catalog, find(workload));
    BATON_TRY(catalog->drop(seq));
    garbage_ += catalog->take_garbage_estimate();
    if (options_.maintenance_thread) wake();
    return {};
  }

  Result<void> drop_workload(const std::string& workload) override {
    BATON_ASSIGN(auto catalog, find(workload));
    const std::string folder = workload_folder(workload);
    const std::string aside = folder_ + "/workloads/.drop-" + workload;
    {
      std::unique_lock lock(workloads_mutex_);
      catalog->close_for_good();
      std::error_code ec;
      std::filesystem::remove_all(aside, ec);
      BATON_TRY(disk_.rename(folder, aside));
      workloads_.erase(workload);
    }
    BATON_TRY(disk_.sync_folder(folder_ + "/workloads"));
    std::error_code ec;
    std::filesystem::remove_all(aside, ec);
    collect_soon_ = true;
    if (options_.maintenance_thread) wake();
    return {};
  }

  void set_retention(const Retention& retention) override {
    {
      std::lock_guard lock(retention_mutex_);
      retention_ = retention;
    }
    pages_->set_byte_limit(retention.byte_budget);
    if (options_.maintenance_thread) wake();
  }

  Result<void> sync(Durability level) override {
    BATON_TRY(pages_->sync(level));
    for (const auto& catalog : all()) BATON_TRY(catalog->sync(level));
    return {};
  }

  Result<GcResult> gc() override {
    std::lock_guard gc_lock(gc_mutex_);
    garbage_ = 0;
    collect_soon_ = false;
    const std::uint64_t ticket = pages_->gc_begin();
    MarkedPages marked;
    std::vector<std::pair<std::shared_ptr<WorkloadCatalog>, std::uint64_t>> lowest;
    for (const auto& catalog : all()) {
      const auto held = catalog->held();
      mark(held, marked[catalog->identity().domain]);
      if (!held.empty()) lowest.emplace_back(catalog, held.front().info.seq);
    }
    // What is kept must be on disk before what it replaced goes, and so must the fact that
    // the dropped checkpoints are gone.
    BATON_TRY(pages_->sync(Durability::kSynced));
    for (const auto& [catalog, seq] : lowest) BATON_TRY(catalog->note_collection(seq));
    BATON_ASSIGN(GcResult result, pages_->gc(ticket, marked));
    ++collections_;
    return result;
  }

  Result<void> maintain() override {
    const Retention keep = retention();
    for (const auto& catalog : all()) {
      BATON_TRY(catalog->trim(keep.keep_last));
      garbage_ += catalog->take_garbage_estimate();
    }
    if (keep.byte_budget != 0) BATON_TRY(trim_to_budget(keep.byte_budget));
    for (const auto& catalog : all()) {
      if (!catalog->wants_compaction()) continue;
      BATON_TRY(catalog->compact());
      ++compactions_;
    }
    if (wants_collection()) BATON_TRY(gc());
    return {};
  }

  Result<VerifyResult> verify() override;

  StoreStats stats() override {
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
    return s;
  }

 private:
  WorkloadCatalog::Context context() { return {*pages_, disk_, clock_}; }
  std::string workload_folder(const std::string& workload) const {
    return folder_ + "/workloads/" + workload;
  }
  Retention retention() const {
    std::lock_guard lock(retention_mutex_);
    return retention_;
  }

  Result<std::shared_ptr<WorkloadCatalog>> find(const std::string& workload) const {
    std::shared_lock lock(workloads_mutex_);
    auto it = workloads_.find(workload);
    if (it == workloads_.end()) {
      return make_error(Code::kNotFound, "store", "'" + workload + "' is not in this store");
    }
    return it->second;
  }

  std::vector<std::shared_ptr<WorkloadCatalog>> all() const {
    std::shared_lock lock(workloads_mutex_);
    std::vector<std::shared_ptr<WorkloadCatalog>> out;
    for (const auto& [name, catalog] : workloads_) out.push_back(catalog);
    return out;
  }

  // Neighbours share most of their tables, so each further checkpoint costs only its changes.
  static void mark(const std::vector<HeldCheckpoint>& held, DigestSet& marked) {
    const ObjectMap nothing;
    const ObjectMap* previous = &nothing;
    for (const HeldCheckpoint& h : held) {
      for (const auto& [id, table] : *h.objects) {
        const dedup::PageTable empty(table.kind());
        auto it = previous->find(id);
        dedup::PageTable::diff(it == previous->end() ? empty : it->second, table,
                               [&](std::uint64_t, const Digest&, const Digest& now) {
                                 if (!now.is_absent()) marked.insert(now);
                               });
      }
      previous = h.objects.get();
    }
  }

  bool wants_collection() const {
    const std::uint64_t garbage = garbage_.load();
    return collect_soon_.load() ||
           (garbage > kMinGarbagePages && garbage > pages_->stats().pages / 2);
  }

  bool over_budget() const {
    const std::uint64_t budget = retention().byte_budget;
    return budget != 0 && pages_->stats().bytes > budget / 5 * 4;
  }

  bool work_waits(const WorkloadCatalog& catalog) const {
    // The store-wide counts are looked at every few commits only.
    return catalog.wants_compaction() ||
           ((commits_.load() & 15) == 0 && (wants_collection() || over_budget()));
  }

  // Collects, and while that does not suffice drops the oldest checkpoint of whoever holds
  // most of them, but no tip.
  Result<void> trim_to_budget(std::uint64_t budget) {
    for (bool first = true; over_budget(); first = false) {
      if (!first || (garbage_.load() == 0 && !collect_soon_.load())) {
        std::shared_ptr<WorkloadCatalog> victim;
        std::size_t most = 1;
        for (const auto& catalog : all()) {
          const std::size_t count = catalog->held().size();
          if (count > most) {
            most = count;
            victim = catalog;
          }
        }
        if (!victim) {
          if (!first) {
            spdlog::warn("store {}: the newest checkpoints alone take more than 4/5 of {} bytes",
                         folder_, budget);
          }
          BATON_TRY(gc());
          return {};
        }
        BATON_TRY(victim->trim(most - std::max<std::size_t>(1, most / 4)));
        (void)victim->take_garbage_estimate();
      }
      BATON_TRY(gc());
    }
    return {};
  }

  void wake() {
    {
      std::lock_guard lock(wake_mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  }

  void run() {
    std::unique_lock lock(wake_mutex_);
    while (true) {
      wake_.wait(lock, [&] { return woken_ || stop_; });
      if (stop_) return;
      woken_ = false;
      lock.unlock();
      if (auto done = maintain(); !done) {
        spdlog::warn("store {}: maintenance: {}", folder_, done.error().message());
      }
      lock.lock();
    }
  }

  const std::string folder_;
  const StoreOptions options_;
  const Clock& clock_;
  Disk& disk_;
  std::unique_ptr<PageStore> pages_;
  StoreStats counters_;  // of open; constant afterwards

  mutable std::mutex retention_mutex_;
  Retention retention_;
  mutable std::shared_mutex workloads_mutex_;
  std::map<std::string, std::shared_ptr<WorkloadCatalog>> workloads_;

  std::mutex gc_mutex_;
  std::atomic<bool> collect_soon_{false};
  std::atomic<std::uint64_t> garbage_{0}, commits_{0}, compactions_{0}, collections_{0};

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool woken_ = false, stop_ = false;
  std::thread thread_;
};

Result<VerifyResult> DiskStore::verify() {
  VerifyResult result;
  struct Domain {
    std::shared_ptr<const PageHasher> hasher;
    DigestSet pages;
    std::vector<HeldCheckpoint> held;
  };
  std::map<DomainId, Domain> domains;
  auto hold = lease();
  for (const auto& catalog : all()) {
    Domain& domain = domains[catalog->identity().domain];
    domain.hasher = catalog->hasher();
    auto held = catalog->held();
    mark(held, domain.pages);
    for (HeldCheckpoint& h : held) {
      ++result.checkpoints_checked;
      if (auto loaded = catalog->load(h.info.seq, true);
          !loaded && loaded.error().code != Code::kNotFound) {
        result.bad_manifests.push_back(h.info.workload + "@" + std::to_string(h.info.seq) + ": " +
                                       loaded.error().message());
      }
      domain.held.push_back(std::move(h));
    }
  }
  for (auto& [id, domain] : domains) {
    const std::vector<Digest> pages(domain.pages.begin(), domain.pages.end());
    result.pages_checked += pages.size();
    (void)pages_->contains(id, pages);  // under the lease, so that none is collected meanwhile
    BATON_ASSIGN(auto bad, pages_->verify(id, *domain.hasher, pages));
    if (bad.empty()) continue;
    boost::unordered_flat_map<Digest, std::size_t, dedup::DigestHash> index;
    for (BadPage& page : bad) {
      index.emplace(page.digest, result.bad.size());
      result.bad.push_back({std::move(page), {}});
    }
    for (const HeldCheckpoint& h : domain.held) {
      const std::string name = h.info.workload + "@" + std::to_string(h.info.seq);
      if (!load_tables(h.info.workload, h.info.seq)) continue;  // dropped meanwhile
      for (const auto& [object, table] : *h.objects) {
        table.for_each([&](std::uint64_t, const Digest& d) {
          auto it = index.find(d);
          if (it == index.end()) return;
          auto& names = result.bad[it->second].checkpoints;
          if (names.empty() || names.back() != name) names.push_back(name);
        });
      }
    }
  }
  std::erase_if(result.bad, [](const BadPageReport& b) { return b.checkpoints.empty(); });
  return result;
}

}  // namespace

Result<std::unique_ptr<Store>> Store::open(const std::string& folder, StoreOptions options,
                                           const Clock& clock) {
  auto store = std::make_unique<DiskStore>(folder, options, clock);
  BATON_TRY(store->open());
  return std::unique_ptr<Store>(std::move(store));
}

}  // namespace baton::storage
