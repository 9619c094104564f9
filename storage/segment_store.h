// SegmentPageStore: the page store on disk: append-only segment files of checksummed
// frames (up to 16 pages each, zstd or raw) and an index in memory, rebuilt at open from
// the footers of sealed segments and by scanning the unsealed one, whose torn end is cut off.
//
// It refuses a folder that another process has open (kConflict).
// Threads: see page_store.h. Files 0600, folders 0700. Format: docs/formats/store.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "storage/disk.h"
#include "storage/page_store.h"

namespace baton::storage {

struct SegmentStoreOptions {
  std::uint64_t segment_bytes = 64u << 20;  // a segment is sealed when it would exceed this
  std::uint64_t byte_limit = 0;             // put refuses beyond it with kNoSpace; 0: no limit
  int zstd_level = 1;
  double rewrite_below = 0.5;  // gc rewrites sealed segments with a smaller live share
  Disk* disk = nullptr;        // null: the real one; must outlive the store
  std::uint64_t upkeep_bytes_per_s = 0;  // what gc may read and write to move pages; 0: no limit
  // Told of each put that the disk or the limit refused; called under no lock.
  std::function<void(const Error&)> trouble;
};

// Fails: kConflict, kNotAllowed, kUnsupported (a newer format), kFailed. Damage never stops it: unreadable frames are
// counted in stats().damaged_frames and their pages are missing.
Result<std::unique_ptr<PageStore>> open_segment_store(const std::string& folder,
                                                      SegmentStoreOptions options = {});

}  // namespace baton::storage
