// analyze: what is in a row of a workload's checkpoints: of the pages that each wrote, how many
// are zero, repeat one of the same checkpoint, repeat an earlier one, or are new; by kind of
// memory, by mapping and by process; how often contents recur and how old they are then; and
// what each mechanism saves: zero pages, both kinds of duplicates, compression, deltas.
//
// "Written" means: differs from the checkpoint before it that is still held. Pages that a
// program wrote without changing them are known to the primary only (its status counts them).
// Sizes are measured on a sample of the new pages, in frames of 16 as the store keeps them, and
// scaled; the answer says how many were measured.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "proto/store.pb.h"
#include "storage/catalog.h"

namespace baton::storage {

inline constexpr std::uint64_t kDefaultSamplePages = 65'536;
inline constexpr std::size_t kMaxAnalysedMappings = 200;  // names told apart; the rest is one

struct AnalyzeOptions {
  std::uint64_t first_seq = 0;  // 0: the oldest held
  std::uint64_t last_seq = 0;   // 0: the newest held
  std::uint64_t sample_pages = kDefaultSamplePages;
  int zstd_level = 1;           // what the store's own writing uses
};

// Blocks; reads at most `sample_pages` pages and their predecessors. Safe beside everything.
// Fails: kNotFound (no checkpoint in that range), kInvalid, kCorrupt (a manifest).
Result<pb::AnalyzeResponse> analyze(Store& store, const std::string& workload,
                                    const AnalyzeOptions& options);

}  // namespace baton::storage
