#include "agent/node/snapshot.h"

#include <set>

namespace baton::node {

BatchPtr MemoryImage::absorb(std::unique_ptr<CapturedBatch> pages,
                             const google::protobuf::RepeatedPtrField<pb::PageRange>& dropped) {
  for (const auto& range : dropped) {
    auto it = tables_.find(range.object());
    if (it != tables_.end()) it->second.erase_range(range.first_page(), range.count());
  }
  auto batch = std::make_shared<HashedBatch>();
  batch->pages = std::move(pages);
  if (!batch->pages) return batch;
  std::size_t total = 0;
  for (const auto& run : batch->pages->runs()) total += run.count();
  batch->list.reserve(total);
  std::vector<dedup::PageChange> changes;
  for (const auto& run : batch->pages->runs()) {
    const std::byte* at = batch->pages->data(run);
    changes.clear();
    changes.reserve(run.count());
    for (std::uint32_t i = 0; i < run.count(); ++i, at += dedup::kPageBytes) {
      Digest digest = hasher_->page(dedup::PageView(at, dedup::kPageBytes));
      if (digest.is_zero_page()) ++batch->zero_pages;
      changes.push_back({run.first_page() + i, digest});
      batch->list.push_back({run.object(), run.first_page() + i, digest, at});
    }
    tables_.try_emplace(run.object(), hasher_->kind()).first->second.apply(changes);
  }
  return batch;
}

void MemoryImage::settle(pb::Manifest& manifest, std::map<std::uint64_t, Digest>& roots) {
  std::set<std::uint64_t> present;
  for (auto& object : *manifest.mutable_objects()) {
    present.insert(object.id());
    auto& table = tables_.try_emplace(object.id(), hasher_->kind()).first->second;
    Digest root = table.root(*hasher_);
    roots[object.id()] = root;
    object.set_root(root.bytes.data(), dedup::digest_width(hasher_->kind()));
  }
  std::erase_if(tables_, [&](const auto& entry) { return !present.contains(entry.first); });
}

std::uint64_t MemoryImage::present_pages() const {
  std::uint64_t pages = 0;
  for (const auto& [id, table] : tables_) pages += table.count();
  return pages;
}

storage::CheckpointRecord make_record(const storage::WorkloadIdentity& identity,
                                      const Snapshot* parent, const Snapshot& now,
                                      const dedup::PageHasher& hasher, BootTime now_boot) {
  storage::CheckpointRecord record;
  record.workload = identity.workload;
  record.domain = identity.domain;
  record.kind = identity.kind;
  record.incarnation = now.incarnation;
  record.seq = now.seq;
  record.parent_seq = parent ? parent->seq : 0;
  record.freeze_wall_ns = now.freeze_wall_ns;
  record.freeze_age_ns = static_cast<std::uint64_t>((now_boot - now.freeze_boot).count());
  record.pause_ns = now.pause_us * 1000;
  record.manifest = now.manifest;
  for (const auto& [id, table] : now.tables) {  // std::map: sorted by object
    storage::ObjectDelta delta;
    delta.object_id = id;
    auto root = now.roots.find(id);
    delta.root = root == now.roots.end() ? table.root(hasher) : root->second;
    const dedup::PageTable* before = nullptr;
    if (parent) {
      if (auto it = parent->tables.find(id); it != parent->tables.end()) before = &it->second;
    }
    delta.from_empty = before == nullptr;
    const dedup::PageTable nothing(identity.kind);
    dedup::PageTable::diff(before ? *before : nothing, table,
                           [&](std::uint64_t page, const Digest&, const Digest& digest) {
                             if (!digest.is_absent()) {
                               delta.changes.push_back({page, digest});
                             } else if (!delta.erased.empty() &&
                                        delta.erased.back().first + delta.erased.back().count == page) {
                               ++delta.erased.back().count;
                             } else {
                               delta.erased.push_back({page, 1});
                             }
                           },
                           &hasher);
    record.objects.push_back(std::move(delta));
  }
  return record;
}

}  // namespace baton::node
