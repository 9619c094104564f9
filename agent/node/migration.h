// The source side of a migration as a pure state machine: step(state, event) -> effects.
// migration_run.cc carries the effects out; tests simulate both ends, the coordinator and
// every failure between them.
//
// Safety rests on three rules. The target is activated only after the owner record names
// it. The source is thawed only while the record names the source and no request of ours
// that could change it can still take effect: after an unknown outcome the source first
// raises its own incarnation (reclaim), which makes the late request conflict. And the
// source's frozen processes are destroyed only once the target runs, or the record has
// moved on beyond it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace baton::node {

enum class MigrationPhase {
  kIdle,
  kPreparing,
  kCopying,
  kFreezing,
  kShipping,
  kHolding,
  kBuilding,
  kHandingOver,
  kAskingOwner,     // outcome of the handover unknown: frozen, asking
  kReclaiming,      // the record still names us: raising the incarnation before the thaw
  kThawing,
  kActivating,
  kConfirmingOwner, // activation not confirmed: is the target still the owner?
  kDestroying,
  kDone,
  kFailed,
};
std::string_view phase_name(MigrationPhase phase);

enum class MigrationEventKind {
  kStart,
  kOk,              // the effect under way succeeded
  kMore,            // copying: another round is worth it
  kFailed,          // it failed and had no effect
  kPassing,         // the same, for a reason that may have gone after a moment of running on
  kUnknown,         // it may have taken effect
  kOwnerIsSource,   // answers of kAskOwner
  kOwnerIsTarget,
  kOwnerIsOther,    // a third node, nobody, or an incarnation beyond the one we asked for
  kTakenBack,       // us again, elected for the very checkpoint at which our program stands
  kAbort,           // a person asked to abort
};
struct MigrationEvent {
  MigrationEventKind kind;
  std::string error;
};

enum class MigrationEffect {
  kPrepareTarget,
  kCopyRound,
  kFreeze,          // final capture, stays frozen
  kShip,            // last pages and the record; the target commits
  kHold,            // frozen by cgroup
  kBuildTarget,
  kChangeOwner,
  kAskOwner,        // after a pause when asked again
  kReclaim,         // ChangeOwner to ourselves, expecting the incarnation that we hold
  kActivateTarget,
  kThaw,
  kDiscardTarget,
  kDestroySource,
  kFinishDone,
  kFinishFailed,
};

struct MigrationState {
  MigrationPhase phase = MigrationPhase::kIdle;
  bool stop_and_copy = false;
  bool frozen = false;          // the source may be frozen
  bool target_touched = false;  // the target may hold something of this migration
  bool abort_asked = false;
  std::uint32_t retries = 0;    // of the effect under way
  std::uint32_t attempts = 0;   // freezes that were given up for a passing reason
  bool once_more = false;       // thawing for another attempt
  std::string error;            // why it failed
};

inline constexpr std::uint32_t kMaxAttempts = 4;

// Advances the state and answers what to do next, in order. Only the last effect of a
// list answers with an event; kThaw and kDiscardTarget before it are tried and repeated by
// the next step when they fail (kThaw) or left to the target (kDiscardTarget).
std::vector<MigrationEffect> step(MigrationState& state, const MigrationEvent& event);

// A migration that a crash interrupted: what to do with a frozen workload found at start.
enum class FrozenVerdict { kThaw, kDestroy, kAskAgain };
FrozenVerdict judge_frozen(std::string_view owner, std::string_view self, bool answered);

// When to stop the pre-copy rounds.
struct RoundMeasure {
  std::uint64_t pages = 0;       // sent in this round
  double seconds = 0;            // capture and sending
  std::uint64_t dirty_now = 0;   // written meanwhile, as far as known
};
struct ConvergenceRules {
  std::uint32_t max_rounds = 8;
  std::uint64_t target_pause_us = 10'000;
  bool must_meet = false;        // --max-pause: not converged means abort
  std::uint64_t base_pause_us = 1'500;  // freeze, state, handover without pages
};
enum class RoundVerdict { kMore, kFreeze, kGiveUp };
struct RoundDecision {
  RoundVerdict verdict = RoundVerdict::kMore;
  std::uint64_t estimated_pause_us = 0;
  std::string reason;
};
RoundDecision decide_round(const ConvergenceRules& rules, const std::vector<RoundMeasure>& rounds);

}  // namespace baton::node
