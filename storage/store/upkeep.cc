// DiskStore: retention, making room on a full disk, compaction and collection.
#include <algorithm>

#include <spdlog/spdlog.h>

#include "base/fault_point.h"
#include "storage/store/disk_store.h"

namespace baton::storage {
namespace {

// A collection runs when about this many pages, and half of what is stored, may be garbage.
constexpr std::uint64_t kMinGarbagePages = 16384;

}  // namespace

void mark_pages(const std::vector<HeldCheckpoint>& held, DigestSet& marked) {
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

Result<GcResult> DiskStore::gc() {
  std::lock_guard gc_lock(gc_mutex_);
  garbage_ = 0;
  collect_soon_ = false;
  const std::uint64_t ticket = pages_->gc_begin();
  MarkedPages marked;
  std::vector<std::pair<std::shared_ptr<WorkloadCatalog>, std::uint64_t>> lowest;
  for (const auto& catalog : all()) {
    const auto held = catalog->held();
    mark_pages(held, marked[catalog->identity().domain]);
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

Result<void> DiskStore::maintain() {
  if (full_.exchange(false)) {
    BATON_TRY(make_room());
  } else if (options_.reserve_bytes != 0 && !problem().empty() && !failing_.load() && take_reserve()) {
    set_problem({});
  }
  const Retention keep = retention();
  for (const auto& catalog : all()) {
    BATON_TRY(catalog->trim(keep));
    garbage_ += catalog->take_garbage_estimate();
  }
  if (keep.byte_budget != 0) BATON_TRY(trim_to_budget(keep.byte_budget));
  BATON_TRY(trim_to_own_budgets());
  for (const auto& catalog : all()) {
    if (!catalog->wants_compaction()) continue;
    BATON_TRY(catalog->compact());
    ++compactions_;
  }
  if (wants_collection()) BATON_TRY(gc());
  return {};
}

bool DiskStore::wants_collection() const {
  const std::uint64_t garbage = garbage_.load();
  return collect_soon_.load() ||
         (garbage > kMinGarbagePages && garbage > pages_->stats().pages / 2);
}

bool DiskStore::over_budget() const {
  const std::uint64_t budget = retention().byte_budget;
  return budget != 0 && pages_->stats().bytes > budget / 5 * 4;
}

bool DiskStore::work_waits(const WorkloadCatalog& catalog) const {
  // The store-wide counts are looked at every few commits only.
  return catalog.wants_compaction() ||
         ((commits_.load() & 15) == 0 && (wants_collection() || over_budget()));
}

Result<std::size_t> DiskStore::shed_some() {
  CatalogPtr victim;
  std::size_t most = 0;
  for (const auto& catalog : all()) {
    const std::size_t count = catalog->sheddable();
    if (count > most) {
      most = count;
      victim = catalog;
    }
  }
  if (!victim) return std::size_t{0};
  BATON_ASSIGN(const std::size_t gone, victim->shed(std::max<std::size_t>(1, most / 4)));
  (void)victim->take_garbage_estimate();  // the caller collects
  shed_ += gone;
  return gone;
}

// Collects, and while that does not suffice gives up the oldest checkpoints: no tip, none that
// is tagged or pinned.
Result<void> DiskStore::trim_to_budget(std::uint64_t budget) {
  for (bool first = true; over_budget(); first = false) {
    if (!first || (garbage_.load() == 0 && !collect_soon_.load())) {
      BATON_ASSIGN(const std::size_t gone, shed_some());
      if (gone == 0) {
        if (!first) {
          spdlog::warn("store {}: what may not go takes more than 4/5 of {} bytes", folder_, budget);
        }
        BATON_TRY(gc());
        return {};
      }
    }
    BATON_TRY(gc());
  }
  return {};
}

Result<void> DiskStore::trim_to_own_budgets() {
  for (const auto& catalog : all()) {
    const std::uint64_t budget = catalog->policy().byte_budget;
    if (budget == 0) continue;
    while (pages_->domain_bytes(catalog->identity().domain) > budget) {
      BATON_ASSIGN(const std::size_t gone, catalog->shed(std::max<std::size_t>(1, catalog->sheddable() / 4)));
      if (gone == 0) break;
      shed_ += gone;
      BATON_TRY(gc());
    }
  }
  return {};
}

// --- a full disk ---------------------------------------------------------------------------

Result<void> DiskStore::take_reserve() {
  if (options_.reserve_bytes == 0 || reserve_) return {};
  const std::string path = folder_ + "/reserve";
  auto file = disk_.create(path);
  if (!file && file.error().sys_errno == EEXIST) file = disk_.open(path);
  if (!file) return file.error();
  if (auto room = disk_.allocate(file->get(), options_.reserve_bytes); !room) {
    (void)disk_.unlink(path);
    return room.error();
  }
  reserve_ = std::move(*file);
  return {};
}

// Collecting needs a little room itself (entries in logs, copies of pages): the reserve's.
// Checkpoints are given up until the reserve can be taken again.
Result<void> DiskStore::make_room() {
  if (reserve_) {
    reserve_.reset();
    (void)disk_.unlink(folder_ + "/reserve");
  }
  std::size_t shed = 0;
  for (bool first = true;; first = false) {
    if (!first || (garbage_.load() == 0 && !collect_soon_.load())) {
      BATON_ASSIGN(const std::size_t gone, shed_some());
      if (gone == 0 && !first) break;
      shed += gone;
    }
    const auto collected = gc();
    if (!collected) spdlog::warn("store {}: collect: {}", folder_, collected.error().message());
    if (options_.reserve_bytes == 0) break;  // nothing to measure success by
    if (take_reserve()) break;
  }
  if (shed != 0) spdlog::warn("store {}: the disk is full: {} old checkpoints were given up", folder_, shed);
  if (options_.reserve_bytes != 0 && !reserve_) {
    set_problem("disk full: nothing more can be given up; checkpoints are not stored here");
    return {};
  }
  if (options_.reserve_bytes != 0) set_problem({});  // else the next commit says so
  return {};
}

void DiskStore::trouble(const Error& error) {
  if (error.code == Code::kNoSpace) {
    full_ = true;
    failing_ = true;
    set_problem("disk full: " + error.message());
    if (options_.maintenance_thread) wake();
  } else if (error.sys_errno != 0 && error.code != Code::kNotFound) {
    failing_ = true;
    set_problem("disk failing: " + error.message());
  }
}

void DiskStore::set_problem(std::string problem) {
  {
    std::lock_guard lock(trouble_mutex_);
    if (problem_ == problem) return;
    problem_ = problem;
  }
  if (options_.alarm) options_.alarm(problem);
}

std::string DiskStore::problem() const {
  std::lock_guard lock(trouble_mutex_);
  return problem_;
}

void DiskStore::wake() {
  {
    std::lock_guard lock(wake_mutex_);
    woken_ = true;
  }
  wake_.notify_one();
}

void DiskStore::run() {
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

}  // namespace baton::storage
