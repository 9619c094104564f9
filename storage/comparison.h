// compare: two checkpoints of one dedup domain: which mappings and pages differ, with the bytes
// on request, and what differs of the state besides memory, in words.
//
// Processes are paired by pid, shared objects by id; trees are walked only where their nodes
// differ, and only pages that are told with their content are read.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/error.h"
#include "proto/store.pb.h"
#include "storage/catalog.h"

namespace baton::storage {

inline constexpr std::uint32_t kMaxToldPages = 65'536;

struct CheckpointName {
  std::string workload;
  std::uint64_t seq = 0;
};

struct CompareOptions {
  std::uint32_t max_pages = 0;  // pages told one by one; all are counted
  bool content = false;
};

// Parts in order: mappings that differ, pages, one summary. `sink` answers false to end it.
// Blocks. Fails: kNotFound, kInvalid (their pages are named by different keys), kCorrupt,
// kCancelled.
Result<void> compare(Store& store, const CheckpointName& a, const CheckpointName& b,
                     const CompareOptions& options,
                     const std::function<bool(const pb::DiffPart&)>& sink);

}  // namespace baton::storage
