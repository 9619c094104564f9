// WorkloadCatalog: writing a new generation of the log, in the background (compact) or at
// once when the old one is not trusted any more (rotate_locked).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>

#include "base/fault_point.h"
#include "storage/bytes/checksum.h"
#include "storage/log/marks.h"
#include "storage/log/workload_catalog.h"

namespace baton::storage {

namespace {
// Below this, a log is not worth rewriting for its size.
constexpr std::uint64_t kCompactMinBytes = 1u << 20;
}  // namespace

std::string WorkloadCatalog::log_path(std::uint64_t generation) const {
  char name[48];
  std::snprintf(name, sizeof name, "/catalog-%016llx.log",
                static_cast<unsigned long long>(generation));
  return folder_ + name;
}

CheckpointRecord WorkloadCatalog::to_record(const HeldCheckpoint& checkpoint,
                                            const HeldCheckpoint* base,
                                            std::string manifest) const {
  CheckpointRecord record;
  record.workload = identity_.workload;
  record.domain = identity_.domain;
  record.kind = identity_.kind;
  record.incarnation = checkpoint.info.incarnation;
  record.seq = checkpoint.info.seq;
  record.parent_seq = base ? base->info.seq : 0;
  record.freeze_wall_ns = checkpoint.info.freeze_wall_ns;
  record.freeze_age_ns = checkpoint.freeze_age_ns;
  record.pause_ns = checkpoint.info.pause_ns;
  record.manifest = std::move(manifest);
  for (const auto& [id, table] : *checkpoint.objects) {
    ObjectDelta object;
    object.object_id = id;
    object.root = table.root(*hasher_);
    const dedup::PageTable* from = nullptr;
    if (base) {
      if (auto it = base->objects->find(id); it != base->objects->end()) from = &it->second;
    }
    object.from_empty = from == nullptr;
    const dedup::PageTable empty(identity_.kind);
    dedup::PageTable::diff(
        from ? *from : empty, table,
        [&](std::uint64_t page, const Digest&, const Digest& now) {
          if (!now.is_absent()) {
            object.changes.push_back({page, now});
          } else if (!object.erased.empty() &&
                     object.erased.back().first + object.erased.back().count == page) {
            ++object.erased.back().count;
          } else {
            object.erased.push_back({page, 1});
          }
        },
        hasher_.get());
    record.objects.push_back(std::move(object));
  }
  return record;
}

Result<WorkloadCatalog::NewGeneration> WorkloadCatalog::write_generation(
    const std::vector<HeldCheckpoint>& held) {
  // Entries written here say that their pages are on disk; if they are not, they say so too.
  const bool pages_synced = context_.pages.sync(Durability::kSynced).has_value();
  const std::string path = folder_ + "/catalog.new";
  (void)context_.disk.unlink(path);
  NewGeneration next;
  BATON_ASSIGN(next.log, CatalogLog::create(path, context_.disk));
  auto fill = [&]() -> Result<void> {
    LogEntry first;
    first.type = EntryType::kIncarnation;
    first.value = incarnation();
    BATON_TRY(next.log->append(first, {}));
    if (const RetentionPolicy kept = policy(); kept != RetentionPolicy{}) {
      first = {};
      first.type = EntryType::kPolicy;
      BATON_TRY(next.log->append(first, write_policy(kept)));
    }
    const HeldCheckpoint* base = nullptr;
    for (const HeldCheckpoint& h : held) {
      const bool full = base == nullptr || next.chain >= kMaxDeltaChain;
      BATON_ASSIGN(std::string manifest, read_manifest(h));
      if (checksum(manifest) != h.manifest_sum) {
        // Carried over, it would look whole. Without a manifest there is nothing to restore.
        spdlog::error("store: {} is given up: its manifest is damaged on disk",
                      name_of(h.info.seq));
        continue;
      }
      const CheckpointRecord record = to_record(h, full ? nullptr : base, std::move(manifest));
      LogEntry entry;
      entry.type = EntryType::kCheckpoint;
      entry.pages_synced = pages_synced;
      entry.value = held.front().info.seq;
      entry.commit_wall_ns = h.info.commit_wall_ns;
      entry.changed_pages = h.info.changed_pages;
      entry.parent_seq = h.info.parent_seq;
      BATON_ASSIGN(std::string payload, encode(record));
      HeldCheckpoint moved = h;
      payload = seal_record(record, std::move(payload), entry, moved);
      BATON_ASSIGN(std::uint64_t at, next.log->append(entry, payload));
      moved.log = next.log;
      moved.manifest_at += at;
      moved.healed_manifest.reset();
      if (h.info.marked()) {
        LogEntry marks;
        marks.type = EntryType::kMarks;
        marks.value = h.info.seq;
        BATON_TRY(next.log->append(marks, write_marks(h.info)));
      }
      next.held.push_back(std::move(moved));
      next.chain = full ? 0 : next.chain + 1;
      base = &h;
    }
    return next.log->sync();
  };
  if (auto filled = fill(); !filled) {
    discard(next);
    return filled.error();
  }
  return next;
}

void WorkloadCatalog::discard(const NewGeneration& next) {
  (void)context_.disk.unlink(next.log->path());
}

// Under commit_mutex_. Entries of the old log from `old_end` on are carried over as they are.
Result<void> WorkloadCatalog::install(NewGeneration next, std::uint64_t old_end,
                                      std::uint64_t tail_entries) {
  const std::shared_ptr<CatalogLog> old = log_;
  std::uint64_t tail_at = next.log->bytes();
  const std::uint64_t new_generation = ++generation_;
  const std::string path = log_path(new_generation);
  auto move_in = [&]() -> Result<void> {
    if (tail_entries != 0) {
      BATON_ASSIGN(std::string tail, old->read(old_end, old->bytes() - old_end));
      BATON_ASSIGN(tail_at, next.log->append_raw(tail, tail_entries));
      BATON_TRY(next.log->sync());
    }
    BATON_TRY(fault_point("store.compact.before_rename"));
    BATON_TRY(context_.disk.rename(next.log->path(), path));
    next.log->set_path(path);
    return context_.disk.sync_folder(folder_);
  };
  if (auto moved = move_in(); !moved) {
    // Nothing more may go to the old log: after a power cut the new one might be found.
    discard(next);
    old->mark_broken();
    return moved.error();
  }
  {
    std::lock_guard lock(state_mutex_);
    std::erase_if(held_, [&](HeldCheckpoint& h) {
      if (h.manifest_at >= old_end) {
        h.manifest_at = tail_at + (h.manifest_at - old_end);
      } else {
        auto it = std::find_if(next.held.begin(), next.held.end(), [&](const HeldCheckpoint& n) {
          return n.info.seq == h.info.seq;
        });
        if (it == next.held.end()) return true;
        h.manifest_at = it->manifest_at;
        h.sealed_bytes = it->sealed_bytes;
        h.healed_manifest.reset();
      }
      h.log = next.log;
      return false;
    });
    log_ = next.log;
  }
  chain_ = next.chain + tail_entries;
  compacted_bytes_ = log_->bytes();
  (void)fault_point("store.compact.installed");
  if (auto gone = context_.disk.unlink(old->path()); !gone) {
    spdlog::warn("store: {}", gone.error().message());  // removed at the next open
  }
  return {};
}

Result<void> WorkloadCatalog::rotate_locked() {
  BATON_ASSIGN(NewGeneration next, write_generation(held_));
  return install(std::move(next), log_->bytes(), 0);
}

bool WorkloadCatalog::wants_compaction() const {
  std::lock_guard lock(commit_mutex_);
  if (closed_) return false;
  return log_->broken() || log_->entries() > held_.size() + kMaxDeltaChain ||
         (log_->bytes() > 2 * compacted_bytes_ + kCompactMinBytes &&
          log_->entries() > held_.size() + 1);
}

Result<void> WorkloadCatalog::compact() {
  std::lock_guard compact_lock(compact_mutex_);
  std::shared_ptr<CatalogLog> old;
  std::vector<HeldCheckpoint> snapshot;
  std::uint64_t old_end, old_entries;
  {
    std::lock_guard lock(commit_mutex_);
    if (closed_) return {};
    if (log_->broken()) return rotate_locked();
    old = log_;
    snapshot = held_;
    old_end = log_->bytes();
    old_entries = log_->entries();
  }
  BATON_TRY(fault_point("store.compact.begin"));
  BATON_ASSIGN(NewGeneration next, write_generation(snapshot));
  std::lock_guard lock(commit_mutex_);
  const std::uint64_t tail_entries = old->entries() - old_entries;
  if (closed_ || log_ != old || old->broken()) {
    discard(next);
    return {};
  }
  if (next.chain + tail_entries > kMaxDeltaChain) {
    discard(next);
    return rotate_locked();
  }
  return install(std::move(next), old_end, tail_entries);
}

}  // namespace baton::storage
