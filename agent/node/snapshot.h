// The memory of a workload as page tables, and one checkpoint of it on its way.
//
// MemoryImage digests captured pages and keeps the current tables; one thread writes it.
// Snapshot is immutable and shared by the threads that ship it; its tables share nodes
// with the image's (a copy costs one reference count per object).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "agent/node/warden.h"
#include "base/clock.h"
#include "dedup/digest.h"
#include "dedup/page_table.h"
#include "storage/catalog.h"
#include "storage/checkpoint_record.h"

namespace baton::node {

using dedup::Digest;
using Tables = std::map<std::uint64_t, dedup::PageTable>;

struct HashedPage {
  std::uint64_t object = 0;
  std::uint64_t page = 0;
  Digest digest;
  const std::byte* data = nullptr;  // valid as long as its batch
};

// Captured and digested pages. Gives the capture buffer back when the last holder lets go.
struct HashedBatch {
  std::unique_ptr<CapturedBatch> pages;
  std::vector<HashedPage> list;
  std::uint64_t zero_pages = 0;
};
using BatchPtr = std::shared_ptr<const HashedBatch>;

struct Snapshot {
  std::uint64_t seq = 0;
  std::uint64_t incarnation = 0;
  BootTime freeze_boot{};
  std::uint64_t freeze_wall_ns = 0;
  std::uint64_t pause_us = 0;
  std::uint64_t pages_written = 0;   // since the capture before it, rounds included
  std::uint64_t output_epoch = 0;   // output commit: released once this is committed
  std::string manifest;      // serialised, object roots filled in
  Tables tables;
  std::map<std::uint64_t, Digest> roots;
};
using SnapshotPtr = std::shared_ptr<const Snapshot>;

class MemoryImage {
 public:
  explicit MemoryImage(std::shared_ptr<const dedup::PageHasher> hasher) : hasher_(std::move(hasher)) {}

  // Digests the batch and enters it; `dropped` first (a page both dropped and captured is present).
  BatchPtr absorb(std::unique_ptr<CapturedBatch> pages,
                  const google::protobuf::RepeatedPtrField<pb::PageRange>& dropped);
  // Objects of the manifest stay, others go; roots are computed and written into it.
  void settle(pb::Manifest& manifest, std::map<std::uint64_t, Digest>& roots);
  void reset() { tables_.clear(); }
  void adopt(Tables tables) { tables_ = std::move(tables); }
  const Tables& tables() const { return tables_; }
  std::uint64_t present_pages() const;
  const dedup::PageHasher& hasher() const { return *hasher_; }

 private:
  std::shared_ptr<const dedup::PageHasher> hasher_;
  Tables tables_;
};

// The record that turns `parent` (null: nothing) into `now`.
storage::CheckpointRecord make_record(const storage::WorkloadIdentity& identity,
                                      const Snapshot* parent, const Snapshot& now,
                                      const dedup::PageHasher& hasher, BootTime now_boot);

}  // namespace baton::node
