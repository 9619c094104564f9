// OwnerRegistry: who may run a workload, under which incarnation. The one place where
// that is decided; every change is a compare-and-set on the incarnation, durable before
// it is answered.
//
// A workload without voters is decided here, in the coordinator's own state store. As soon as
// it has voters (enter_voters), they decide (docs/tenure.md): the registry follows what it is
// told of their records, and refuses to decide anything, until a record names nobody.
//
// Threads: any. Every method may block for the decision to become durable.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "coordinator/state/store.h"

namespace baton::coordinator {

struct OwnerChange {
  std::string workload;
  std::uint64_t expected_incarnation = 0;
  std::string new_owner;   // empty: nobody may run it
  std::string reason;      // migrate, restore, failed
  std::uint64_t committed_seq = 0;
};

class OwnerRegistry {
 public:
  virtual ~OwnerRegistry() = default;

  // The first owner of a workload. Incarnation 1 for a name never used before; for a name
  // whose workload was deleted, the number goes on, so that a late holder stays outdated.
  // Fails: kConflict (it has an owner record that is not a deleted one).
  virtual Result<pb::Ownership> create(const std::string& workload, const std::string& owner,
                                       const std::string& reason) = 0;

  // Makes `new_owner` the owner under expected_incarnation + 1. The same change asked for
  // again, by someone who missed the answer, is answered again and changes nothing.
  // Fails: kNotFound (no such workload), kConflict (the incarnation is another one, or voters decide).
  // kUnknownOutcome never comes from SoleDecider; voters may give it: ask get().
  virtual Result<pb::Ownership> change_owner(const OwnerChange& change) = 0;

  // Ends the workload: owner nobody, incarnation + 1, the name free again. Repeatable.
  // keep_program: a late holder is to release its program instead of stopping it.
  // Fails: kNotFound, kConflict.
  virtual Result<void> retire(const std::string& workload, std::uint64_t expected_incarnation,
                              bool keep_program) = 0;

  // The last decision made here: record n+1 keeps the owner of n and appoints voters. Fails:
  // kNotFound, kConflict (another incarnation or owner, or voters have decided already).
  virtual Result<pb::Ownership> enter_voters(const pb::TenureRecord& record) = 0;

  // What voters have decided. True: it was news. Fails: kNotFound (deleted, or never heard of).
  virtual Result<bool> follow(const pb::TenureRecord& record) = 0;

  // Absent: never heard of.
  virtual Result<std::optional<pb::OwnerRecord>> get(const std::string& workload) = 0;
};

// Decides alone, in `store`, which outlives it.
std::unique_ptr<OwnerRegistry> make_sole_decider(StateStore& store, const Clock& clock);

}  // namespace baton::coordinator
