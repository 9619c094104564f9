// OwnerRegistry: who may run a workload, under which incarnation. The one place where
// that is decided; every change is a compare-and-set on the incarnation, durable before
// it is answered.
//
// Today one decider, the coordinator's own state store, gives the answer (SoleDecider).
// The three voters of each workload will stand behind the same interface.
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
  // Fails: kNotFound (no such workload), kConflict (the incarnation is another one).
  // kUnknownOutcome never comes from SoleDecider; voters may give it: ask get().
  virtual Result<pb::Ownership> change_owner(const OwnerChange& change) = 0;

  // Ends the workload: owner nobody, incarnation + 1, the name free again. Repeatable.
  // keep_program: a late holder is to release its program instead of stopping it.
  // Fails: kNotFound, kConflict.
  virtual Result<void> retire(const std::string& workload, std::uint64_t expected_incarnation,
                              bool keep_program) = 0;

  // Absent: never heard of.
  virtual Result<std::optional<pb::OwnerRecord>> get(const std::string& workload) = 0;
};

// Decides alone, in `store`, which outlives it.
std::unique_ptr<OwnerRegistry> make_sole_decider(StateStore& store, const Clock& clock);

}  // namespace baton::coordinator
