// Retention: which of a workload's checkpoints stay, as a pure function.
//
// A checkpoint stays when it is one of the newest `keep_last`, or carries a tag or a pin, or is
// the first of its slot in a step that reaches back to it. Steps read like "one per second for
// a minute, one per minute for an hour". Ages count from the newest checkpoint's commit, so an
// idle or stopped workload loses nothing by the mere passing of time, and slots are cut at
// whole multiples of `every`, so the one that represents a slot does not change.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace baton::storage {

inline constexpr std::size_t kMaxRetentionSteps = 16;

struct RetentionStep {
  std::uint64_t every_ns = 0;
  std::uint64_t for_ns = 0;
  friend bool operator==(const RetentionStep&, const RetentionStep&) = default;
};

struct RetentionPolicy {
  std::uint64_t keep_last = 0;    // newest checkpoints kept; 0: the store's own number (to a store)
  std::uint64_t byte_budget = 0;  // of this workload's pages on disk; 0: none
  std::vector<RetentionStep> steps;
  friend bool operator==(const RetentionPolicy&, const RetentionPolicy&) = default;
};

struct RetentionEntry {
  std::uint64_t seq = 0;
  std::uint64_t commit_wall_ns = 0;
  bool marked = false;  // tagged or pinned
};

// The seqs that go, rising. `held` is in rising seq; the newest never goes, whatever keep_last.
std::vector<std::uint64_t> expired(std::span<const RetentionEntry> held,
                                   const RetentionPolicy& policy);

}  // namespace baton::storage
