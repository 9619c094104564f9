#include "storage/log/workload_catalog.h"

#include <algorithm>

#include <spdlog/spdlog.h>

#include "base/fault_point.h"
#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"
#include "storage/log/marks.h"

namespace baton::storage {
namespace {

// Commits between two looks at what a policy of steps lets go.
constexpr std::size_t kThinEvery = 16;

bool is_full(const CheckpointRecord& record) {
  return std::all_of(record.objects.begin(), record.objects.end(),
                     [](const ObjectDelta& o) { return o.from_empty; });
}

}  // namespace

Error WorkloadCatalog::error(Code code, std::string_view operation, std::string subject,
                             std::string hint) const {
  return make_error(code, operation, identity_.workload + ": " + std::move(subject),
                    std::move(hint));
}

std::string WorkloadCatalog::name_of(std::uint64_t seq) const {
  return identity_.workload + "@" + std::to_string(seq);
}

std::vector<HeldCheckpoint>::iterator WorkloadCatalog::find(std::uint64_t seq) {
  return std::find_if(held_.begin(), held_.end(),
                      [&](const HeldCheckpoint& h) { return h.info.seq == seq; });
}

Result<void> WorkloadCatalog::check_record(const CheckpointRecord& record) const {
  if (closed_) return error(Code::kNotFound, "commit", "the workload was dropped");
  if (record.domain != identity_.domain || record.kind != identity_.kind) {
    return error(Code::kInvalid, "commit", "the record is of another dedup domain or digest kind");
  }
  if (record.incarnation < incarnation_) {
    return error(Code::kConflict, "commit",
                 "incarnation " + std::to_string(record.incarnation) + " is older than " +
                     std::to_string(incarnation_),
                 "The workload has a newer owner.");
  }
  if (held_.empty()) {
    if (record.parent_seq == 0) return {};
    return error(Code::kNotFound, "commit", "parent " + name_of(record.parent_seq) + " is not here",
                 "Send a full checkpoint.");
  }
  const CheckpointInfo& tip = held_.back().info;
  const bool newer_owner = record.incarnation > tip.incarnation;
  if (record.seq <= tip.seq && !newer_owner) {
    return error(Code::kConflict, "commit",
                 name_of(record.seq) + " is not above the tip, " + name_of(tip.seq));
  }
  if (record.parent_seq == 0) return {};
  const bool held = std::any_of(held_.begin(), held_.end(), [&](const HeldCheckpoint& h) {
    return h.info.seq == record.parent_seq;
  });
  if (!held) {
    return error(Code::kNotFound, "commit", "parent " + name_of(record.parent_seq) + " is not here",
                 "Send a full checkpoint.");
  }
  if (record.parent_seq != tip.seq && !newer_owner) {
    return error(Code::kConflict, "commit",
                 "parent " + name_of(record.parent_seq) + " is not the tip, " + name_of(tip.seq));
  }
  return {};
}

Result<std::shared_ptr<const ObjectMap>> WorkloadCatalog::build(const CheckpointRecord& record,
                                                                const ObjectMap* base) const {
  auto next = std::make_shared<ObjectMap>();
  for (const ObjectDelta& object : record.objects) {
    dedup::PageTable table(identity_.kind);
    if (!object.from_empty) {
      auto it = base ? base->find(object.object_id) : ObjectMap::const_iterator{};
      if (!base || it == base->end()) {
        return error(Code::kCorrupt, "build checkpoint",
                     name_of(record.seq) + ": object " + std::to_string(object.object_id) +
                         " is not in the parent");
      }
      table = it->second;
    }
    for (const PageRange& range : object.erased) table.erase_range(range.first, range.count);
    table.apply(object.changes);
    if (table.root(*hasher_) != object.root) {
      return error(Code::kCorrupt, "build checkpoint",
                   name_of(record.seq) + ": the root of object " +
                       std::to_string(object.object_id) + " does not come out",
                   "Send a full checkpoint.");
    }
    next->emplace_hint(next->end(), object.object_id, std::move(table));
  }
  return std::shared_ptr<const ObjectMap>(std::move(next));
}

std::vector<Digest> WorkloadCatalog::missing_pages(const CheckpointRecord& record) const {
  DigestSet seen;
  std::vector<Digest> all;
  for (const ObjectDelta& object : record.objects) {
    for (const PageChange& change : object.changes) {
      if (!change.digest.is_zero_page()) all.push_back(change.digest);
    }
  }
  const std::vector<bool> known = context_.pages.contains(identity_.domain, all);
  std::vector<Digest> missing;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!known[i] && seen.insert(all[i]).second) missing.push_back(all[i]);
  }
  return missing;
}

CheckpointInfo WorkloadCatalog::make_info(const CheckpointRecord& record,
                                          const ObjectMap& objects) const {
  CheckpointInfo info;
  info.workload = record.workload;
  info.seq = record.seq;
  info.parent_seq = record.parent_seq;
  info.incarnation = record.incarnation;
  info.freeze_wall_ns = record.freeze_wall_ns;
  info.pause_ns = record.pause_ns;
  info.changed_pages = record.change_count();
  info.manifest_bytes = record.manifest.size();
  info.objects = objects.size();
  for (const auto& [id, table] : objects) info.pages += table.count();
  return info;
}

Result<void> WorkloadCatalog::commit(const CheckpointRecord& record, Durability durability,
                                     const Retention& defaults, std::vector<Digest>* missing) {
  BATON_TRY(validate(record));
  std::lock_guard lock(commit_mutex_);
  const std::uint64_t manifest_sum = checksum(record.manifest);
  if (!closed_ && !held_.empty()) {
    const HeldCheckpoint& tip = held_.back();
    bool same = tip.info.seq == record.seq && tip.info.incarnation == record.incarnation &&
                tip.info.parent_seq == record.parent_seq && tip.manifest_sum == manifest_sum &&
                tip.objects->size() == record.objects.size();
    for (std::size_t i = 0; same && i < record.objects.size(); ++i) {
      auto it = tip.objects->find(record.objects[i].object_id);
      same = it != tip.objects->end() && it->second.root(*hasher_) == record.objects[i].root;
    }
    if (same && record.incarnation >= incarnation_) {
      if (durability != Durability::kSynced) return {};
      if (log_->broken()) BATON_TRY(rotate_locked());
      BATON_TRY(context_.pages.sync(durability));
      return log_->sync();
    }
  }
  BATON_TRY(check_record(record));
  auto base = record.parent_seq == 0 ? held_.end() : find(record.parent_seq);
  HeldCheckpoint next;
  BATON_ASSIGN(next.objects, build(record, base == held_.end() ? nullptr : base->objects.get()));

  std::vector<Digest> lacking = missing_pages(record);
  if (!lacking.empty()) {
    Error e = error(Code::kNotFound, "commit",
                    name_of(record.seq) + ": " + std::to_string(lacking.size()) +
                        " pages are not in the store, the first is " +
                        lacking[0].to_hex(identity_.kind));
    if (missing) *missing = std::move(lacking);
    return e;
  }
  if (durability == Durability::kSynced) BATON_TRY(context_.pages.sync(durability));

  next.info = make_info(record, *next.objects);
  next.info.commit_wall_ns = static_cast<std::uint64_t>(context_.clock.wall_now().count());
  const auto boot_now = static_cast<std::uint64_t>(context_.clock.boot_now().count());
  next.info.local_freeze_boot_ns = boot_now - std::min(boot_now, record.freeze_age_ns);
  next.freeze_age_ns = record.freeze_age_ns;
  next.manifest_sum = manifest_sum;

  const RetentionPolicy keep = effective(defaults);
  if (keep.steps.empty()) {
    // The seqs that will be held, and from them the lowest that stays.
    std::vector<std::uint64_t> seqs;
    for (const HeldCheckpoint& h : held_) {
      if (h.info.seq < record.seq) seqs.push_back(h.info.seq);
    }
    seqs.push_back(record.seq);
    next.keep_from = seqs[seqs.size() - std::min<std::size_t>(seqs.size(), keep.keep_last)];
  }
  BATON_TRY(append_checkpoint(record, next, durability));
  publish(std::move(next));
  if (!keep.steps.empty() && held_.size() >= thin_at_) {
    if (auto thinned = trim_locked(keep); !thinned) {
      spdlog::warn("store: {}: thinning: {}", identity_.workload, thinned.error().message());
    }
    thin_at_ = held_.size() + kThinEvery;
  }
  return {};
}

Result<void> WorkloadCatalog::append_checkpoint(const CheckpointRecord& record,
                                                HeldCheckpoint& next, Durability durability) {
  if (log_->broken()) BATON_TRY(rotate_locked());
  const bool full = is_full(record);
  const bool snapshot = !full && chain_ >= kMaxDeltaChain;
  LogEntry entry;
  entry.type = EntryType::kCheckpoint;
  entry.pages_synced = durability == Durability::kSynced;
  entry.value = next.keep_from;
  entry.commit_wall_ns = next.info.commit_wall_ns;
  entry.changed_pages = next.info.changed_pages;
  entry.parent_seq = record.parent_seq;
  BATON_ASSIGN(std::string payload,
               encode(snapshot ? to_record(next, nullptr, record.manifest) : record));
  payload = seal_record(record, std::move(payload), entry, next);
  BATON_TRY(fault_point("store.commit.before_log"));
  BATON_ASSIGN(std::uint64_t at, log_->append(entry, payload));
  auto settled = fault_point("store.commit.after_log");
  if (settled && durability == Durability::kSynced) settled = log_->sync();
  if (!settled) {
    // The entry may or may not be on disk: a new log without it settles that.
    if (auto rotated = rotate_locked(); !rotated) {
      return error(Code::kUnknownOutcome, "commit",
                   name_of(record.seq) + ": " + settled.error().message() + "; then: " +
                       rotated.error().message(),
                   "Commit it again when the disk works.");
    }
    return settled.error();
  }
  BATON_TRY(fault_point("store.commit.synced"));
  next.log = log_;
  next.manifest_at += at;
  chain_ = full || snapshot ? 0 : chain_ + 1;
  return {};
}

void WorkloadCatalog::publish(HeldCheckpoint next) {
  std::vector<HeldCheckpoint> gone;  // freed after the lock
  std::lock_guard lock(state_mutex_);
  incarnation_ = std::max(incarnation_, next.info.incarnation);
  while (!held_.empty() && held_.back().info.seq >= next.info.seq) {
    garbage_estimate_ += held_.back().info.changed_pages;
    gone.push_back(std::move(held_.back()));
    held_.pop_back();
  }
  held_.push_back(std::move(next));
  erase_below(held_.back().keep_from);
}

// What only a dropped checkpoint held is at most what its successor changed.
void WorkloadCatalog::erase_below(std::uint64_t keep_from) {
  // In one sweep: taking them out one by one would move the rest each time.
  auto kept = held_.begin();
  auto it = held_.begin();
  for (; it != held_.end() && it->info.seq < keep_from; ++it) {
    if (it->info.marked()) {
      if (kept != it) *kept = std::move(*it);
      ++kept;
    } else if (it + 1 != held_.end()) {
      garbage_estimate_ += (it + 1)->info.changed_pages;
    }
  }
  held_.erase(kept, it);
}

std::uint64_t WorkloadCatalog::incarnation() const {
  std::lock_guard lock(state_mutex_);
  return incarnation_;
}

Result<void> WorkloadCatalog::append_small(EntryType type, std::uint64_t value,
                                           Durability durability) {
  if (closed_) return error(Code::kNotFound, "write catalog", "the workload was dropped");
  if (log_->broken()) BATON_TRY(rotate_locked());
  LogEntry entry;
  entry.type = type;
  entry.value = value;
  BATON_TRY(log_->append(entry, {}));
  if (durability == Durability::kSynced) BATON_TRY(log_->sync());
  return {};
}

Result<void> WorkloadCatalog::raise_incarnation(std::uint64_t incarnation) {
  std::lock_guard lock(commit_mutex_);
  if (incarnation < incarnation_) {
    return error(Code::kConflict, "raise incarnation",
                 std::to_string(incarnation) + " is older than " + std::to_string(incarnation_));
  }
  if (incarnation == incarnation_) return {};
  BATON_TRY(append_small(EntryType::kIncarnation, incarnation, Durability::kSynced));
  std::lock_guard state_lock(state_mutex_);
  incarnation_ = incarnation;
  return {};
}

Result<void> WorkloadCatalog::drop(std::uint64_t seq) {
  std::lock_guard lock(commit_mutex_);
  auto it = find(seq);
  if (it == held_.end()) return error(Code::kNotFound, "drop", name_of(seq) + " is not here");
  BATON_TRY(append_small(EntryType::kDrop, seq, Durability::kSynced));
  std::lock_guard state_lock(state_mutex_);
  it = find(seq);
  if (it + 1 != held_.end()) {
    garbage_estimate_ += (it + 1)->info.changed_pages;
  } else {
    garbage_estimate_ += it->info.pages;
  }
  held_.erase(it);
  return {};
}

RetentionPolicy WorkloadCatalog::effective(const Retention& defaults) const {
  RetentionPolicy policy = policy_;
  if (policy.keep_last == 0) policy.keep_last = std::max<std::uint64_t>(defaults.keep_last, 1);
  if (policy.steps.empty()) policy.steps = defaults.steps;
  return policy;
}

Result<void> WorkloadCatalog::trim(const Retention& defaults) {
  std::lock_guard lock(commit_mutex_);
  if (closed_) return {};
  return trim_locked(effective(defaults));
}

Result<void> WorkloadCatalog::trim_locked(const RetentionPolicy& policy) {
  std::vector<RetentionEntry> entries;
  entries.reserve(held_.size());
  for (const HeldCheckpoint& h : held_) {
    entries.push_back({h.info.seq, h.info.commit_wall_ns, h.info.marked()});
  }
  return drop_locked(expired(entries, policy));
}

// One entry for all that lies below what stays, one for each of the others. They need no sync
// of their own: note_collection syncs the log before a page of theirs goes.
Result<void> WorkloadCatalog::drop_locked(const std::vector<std::uint64_t>& seqs) {
  if (seqs.empty()) return {};
  std::size_t prefix = 0;
  std::uint64_t keep_from = 0;
  for (const HeldCheckpoint& h : held_) {
    if (prefix < seqs.size() && h.info.seq == seqs[prefix]) {
      ++prefix;
    } else if (!h.info.marked()) {
      keep_from = h.info.seq;
      break;
    }
  }
  if (prefix != 0 && keep_from != 0) {
    BATON_TRY(append_small(EntryType::kKeepFrom, keep_from, Durability::kMemory));
    std::lock_guard state_lock(state_mutex_);
    erase_below(keep_from);
  } else {
    prefix = 0;
  }
  for (std::size_t i = prefix; i < seqs.size(); ++i) {
    BATON_TRY(append_small(EntryType::kDrop, seqs[i], Durability::kMemory));
    std::lock_guard state_lock(state_mutex_);
    auto it = find(seqs[i]);
    if (it + 1 != held_.end()) garbage_estimate_ += (it + 1)->info.changed_pages;
    held_.erase(it);
  }
  return {};
}

std::size_t WorkloadCatalog::sheddable() const {
  std::lock_guard lock(state_mutex_);
  std::size_t count = 0;
  for (const HeldCheckpoint& h : held_) count += !h.info.marked();
  if (!held_.empty() && !held_.back().info.marked()) --count;
  return count;
}

Result<std::size_t> WorkloadCatalog::shed(std::size_t count) {
  std::lock_guard lock(commit_mutex_);
  std::vector<std::uint64_t> seqs;
  for (std::size_t i = 0; !closed_ && i + 1 < held_.size() && seqs.size() < count; ++i) {
    if (!held_[i].info.marked()) seqs.push_back(held_[i].info.seq);
  }
  BATON_TRY(drop_locked(seqs));
  return seqs.size();
}

Result<void> WorkloadCatalog::set_policy(const RetentionPolicy& policy) {
  std::lock_guard lock(commit_mutex_);
  if (policy.steps.size() > kMaxRetentionSteps) {
    return error(Code::kInvalid, "set retention", std::to_string(policy.steps.size()) + " steps",
                 "At most " + std::to_string(kMaxRetentionSteps) + ".");
  }
  for (const RetentionStep& step : policy.steps) {
    if (step.every_ns == 0) return error(Code::kInvalid, "set retention", "a step of no length");
  }
  if (policy == policy_) return {};
  if (closed_) return error(Code::kNotFound, "set retention", "the workload was dropped");
  if (log_->broken()) BATON_TRY(rotate_locked());
  LogEntry entry;
  entry.type = EntryType::kPolicy;
  BATON_TRY(log_->append(entry, write_policy(policy)));
  std::lock_guard state_lock(state_mutex_);
  policy_ = policy;
  thin_at_ = 0;
  return {};
}

RetentionPolicy WorkloadCatalog::policy() const {
  std::lock_guard lock(state_mutex_);
  return policy_;
}

Result<CheckpointInfo> WorkloadCatalog::mark(std::uint64_t seq, const MarkChange& change) {
  std::lock_guard lock(commit_mutex_);
  if (closed_) return error(Code::kNotFound, "tag", "the workload was dropped");
  auto it = find(seq);
  if (it == held_.end()) return error(Code::kNotFound, "tag", name_of(seq) + " is not here");
  CheckpointInfo info = it->info;
  for (const std::string& tag : change.add) {
    if (!is_valid_tag(tag)) {
      return error(Code::kInvalid, "tag", "'" + tag + "' is no tag",
                   "1 to " + std::to_string(kMaxTagBytes) + " of A-Z a-z 0-9 . _ -");
    }
    if (std::find(info.tags.begin(), info.tags.end(), tag) == info.tags.end()) info.tags.push_back(tag);
  }
  for (const std::string& tag : change.remove) std::erase(info.tags, tag);
  std::sort(info.tags.begin(), info.tags.end());
  if (info.tags.size() > kMaxTags) {
    return error(Code::kInvalid, "tag", name_of(seq) + " would have " + std::to_string(info.tags.size()) + " tags",
                 "At most " + std::to_string(kMaxTags) + ".");
  }
  if (change.pin) info.pinned = *change.pin;
  if (info.tags == it->info.tags && info.pinned == it->info.pinned) return info;
  if (log_->broken()) BATON_TRY(rotate_locked());
  LogEntry entry;
  entry.type = EntryType::kMarks;
  entry.value = seq;
  BATON_TRY(log_->append(entry, write_marks(info)));
  BATON_TRY(log_->sync());
  std::lock_guard state_lock(state_mutex_);
  find(seq)->info = info;
  return info;
}

Result<std::string> WorkloadCatalog::read_manifest(const HeldCheckpoint& checkpoint) const {
  if (checkpoint.healed_manifest) return std::string(*checkpoint.healed_manifest);
  if (checkpoint.sealed_bytes != 0) {
    BATON_ASSIGN(const std::string sealed, checkpoint.log->read(checkpoint.manifest_at, checkpoint.sealed_bytes));
    BATON_ASSIGN(const std::string plain, unseal(as_bytes_of(sealed)));
    BATON_ASSIGN(auto record, decode(plain));
    return std::move(record.manifest);
  }
  return checkpoint.log->read(checkpoint.manifest_at, checkpoint.info.manifest_bytes);
}

std::string WorkloadCatalog::seal_record(const CheckpointRecord& record, std::string payload, LogEntry& entry,
                                         HeldCheckpoint& held) const {
  if (!key_) {
    held.manifest_at = manifest_offset(record);
    held.sealed_bytes = 0;
    return payload;
  }
  std::string sealed;
  key_->seal(as_bytes_of(payload), as_bytes_of(identity_.workload), sealed);
  entry.sealed = true;
  held.manifest_at = 0;
  held.sealed_bytes = sealed.size();
  return sealed;
}

Result<std::string> WorkloadCatalog::unseal(std::span<const std::byte> sealed) const {
  if (!key_) return error(Code::kNotAllowed, "read catalog", "it is encrypted, and its key is not here");
  if (sealed.size() < kSealBytes) return error(Code::kCorrupt, "read catalog", "a sealed record is too short");
  std::string plain(sealed.size() - kSealBytes, '\0');
  BATON_TRY(key_->open(sealed, as_bytes_of(identity_.workload),
                       std::as_writable_bytes(std::span(plain.data(), plain.size()))));
  return plain;
}

Result<void> WorkloadCatalog::heal_manifest(std::uint64_t seq, const std::string& manifest) {
  std::lock_guard lock(commit_mutex_);
  if (closed_) return error(Code::kNotFound, "heal", "the workload was dropped");
  auto it = find(seq);
  if (it == held_.end()) return error(Code::kNotFound, "heal", name_of(seq) + " is not here");
  if (manifest.size() != it->info.manifest_bytes || checksum(manifest) != it->manifest_sum) {
    return error(Code::kCorrupt, "heal", name_of(seq) + ": this is not the manifest that was committed");
  }
  {
    std::lock_guard state_lock(state_mutex_);
    find(seq)->healed_manifest = std::make_shared<const std::string>(manifest);
  }
  // The damaged entry must not be what the next open finds.
  return rotate_locked();
}

Result<void> WorkloadCatalog::note_collection(std::uint64_t keep_from) {
  std::lock_guard lock(commit_mutex_);
  if (closed_) return {};
  return append_small(EntryType::kKeepFrom, keep_from, Durability::kSynced);
}

void WorkloadCatalog::close_for_good() {
  std::lock_guard lock(commit_mutex_);
  closed_ = true;
}

Result<void> WorkloadCatalog::sync(Durability level) {
  std::lock_guard lock(commit_mutex_);
  if (level != Durability::kSynced || closed_) return {};
  if (log_->broken()) return rotate_locked();
  return log_->sync();
}

std::vector<HeldCheckpoint> WorkloadCatalog::held() const {
  std::lock_guard lock(state_mutex_);
  return held_;
}

std::optional<CheckpointInfo> WorkloadCatalog::tip() const {
  std::lock_guard lock(state_mutex_);
  if (held_.empty()) return std::nullopt;
  return held_.back().info;
}

Result<Checkpoint> WorkloadCatalog::load(std::uint64_t seq, bool with_manifest) const {
  HeldCheckpoint found;
  {
    std::lock_guard lock(state_mutex_);
    auto it = std::find_if(held_.begin(), held_.end(),
                           [&](const HeldCheckpoint& h) { return h.info.seq == seq; });
    if (it == held_.end()) return error(Code::kNotFound, "load", name_of(seq) + " is not here");
    found = *it;
  }
  Checkpoint out;
  out.info = found.info;
  out.domain = identity_.domain;
  out.hasher = hasher_;
  out.objects = *found.objects;
  for (const auto& [id, table] : out.objects) out.roots[id] = table.root(*hasher_);
  if (with_manifest) {
    BATON_ASSIGN(out.manifest, read_manifest(found));
    if (checksum(out.manifest) != found.manifest_sum) {
      return error(Code::kCorrupt, "load", name_of(seq) + ": the manifest is damaged on disk",
                   "Restore another checkpoint, or from another node.");
    }
  }
  return out;
}

std::uint64_t WorkloadCatalog::log_bytes() const {
  std::lock_guard lock(state_mutex_);
  return log_->bytes();
}

std::uint64_t WorkloadCatalog::take_garbage_estimate() {
  std::lock_guard lock(state_mutex_);
  return std::exchange(garbage_estimate_, 0);
}

}  // namespace baton::storage
