// CheckpointRecord: one checkpoint as a change against its parent. The same bytes stand in
// the catalog's log and travel on the page stream (docs/formats/store.md).
//
// decode takes bytes from anywhere: every size is bounded before anything is allocated,
// and what it returns satisfies all of validate().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "dedup/page_table.h"
#include "storage/page_store.h"

namespace baton::storage {

using dedup::PageChange;
using dedup::PageRange;

inline constexpr std::size_t kMaxManifestBytes = 64u << 20;
inline constexpr std::size_t kMaxWorkloadNameBytes = 128;
inline constexpr std::size_t kMaxObjects = 1u << 20;
inline constexpr std::uint64_t kMaxRecordBytes = std::uint64_t{1} << 30;

// One memory object of the checkpoint. Objects of the parent that are not listed are gone;
// an unchanged one is listed with its root and nothing else.
struct ObjectDelta {
  std::uint64_t object_id = 0;
  Digest root;              // after the change; absent: the object has no pages
  bool from_empty = false;  // starts empty instead of from the parent's object
  std::vector<PageRange> erased;    // sorted, disjoint; applied first
  std::vector<PageChange> changes;  // sorted by page, each page once, none absent
  friend bool operator==(const ObjectDelta&, const ObjectDelta&) = default;
};

struct CheckpointRecord {
  std::string workload;
  DomainId domain;
  DigestKind kind = DigestKind::kXxh3_128;
  std::uint64_t incarnation = 0;
  std::uint64_t seq = 0;         // NAME@SEQ, from 1
  std::uint64_t parent_seq = 0;  // 0: full, every object is from_empty
  std::uint64_t freeze_wall_ns = 0;  // sender's CLOCK_REALTIME at the freeze, for people
  std::uint64_t freeze_age_ns = 0;   // how long ago that was when the record was sent
  std::uint64_t pause_ns = 0;
  std::string manifest;              // opaque here
  std::vector<ObjectDelta> objects;  // sorted by object_id, each once
  friend bool operator==(const CheckpointRecord&, const CheckpointRecord&) = default;

  std::uint64_t change_count() const;
};

// Workload names: 1 to 128 of [A-Za-z0-9._-], not starting with '.' or '-'.
bool is_valid_workload_name(std::string_view name_untrusted);

// Everything decode promises. Fails: kInvalid, naming the field.
Result<void> validate(const CheckpointRecord& record);

// The bytes of a valid record. Fails: kInvalid (validate), kNoSpace (over kMaxRecordBytes).
Result<std::string> encode(const CheckpointRecord& record);

// Where the manifest starts in encode(record).
std::size_t manifest_offset(const CheckpointRecord& record);

// Fails: kCorrupt (magic, version, sizes, order, checksum, trailing bytes), naming the field.
Result<CheckpointRecord> decode(std::span<const std::byte> bytes_untrusted);
inline Result<CheckpointRecord> decode(std::string_view bytes_untrusted) {
  return decode(std::as_bytes(std::span(bytes_untrusted.data(), bytes_untrusted.size())));
}

}  // namespace baton::storage
