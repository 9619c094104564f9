#include "agent/node/migration.h"

#include <utility>

#include "base/check.h"

namespace baton::node {

using Phase = MigrationPhase;
using Kind = MigrationEventKind;
using Effect = MigrationEffect;

std::string_view phase_name(MigrationPhase phase) {
  switch (phase) {
    case Phase::kIdle: return "idle";
    case Phase::kPreparing: return "prepare";
    case Phase::kCopying: return "copy";
    case Phase::kFreezing: return "freeze";
    case Phase::kShipping: return "commit";
    case Phase::kHolding: return "hold";
    case Phase::kBuilding: return "build";
    case Phase::kHandingOver: return "handover";
    case Phase::kAskingOwner: return "ask owner";
    case Phase::kReclaiming: return "reclaim";
    case Phase::kThawing: return "thaw";
    case Phase::kActivating: return "activate";
    case Phase::kConfirmingOwner: return "confirm owner";
    case Phase::kDestroying: return "destroy";
    case Phase::kDone: return "done";
    case Phase::kFailed: return "failed";
  }
  return "?";
}

namespace {

void move_to(MigrationState& s, Phase phase) {
  if (s.phase != phase) s.retries = 0;
  s.phase = phase;
}

void remember(MigrationState& s, const MigrationEvent& e) {
  if (s.error.empty()) s.error = e.error.empty() ? "aborted on request" : e.error;
}

// Before the point of no return: back to how it was.
std::vector<Effect> give_up(MigrationState& s, const MigrationEvent& e) {
  remember(s, e);
  std::vector<Effect> effects;
  if (s.target_touched) effects.push_back(Effect::kDiscardTarget);
  if (s.frozen) {
    move_to(s, Phase::kThawing);
    effects.push_back(Effect::kThaw);
  } else {
    move_to(s, Phase::kFailed);
    effects.push_back(Effect::kFinishFailed);
  }
  return effects;
}

std::vector<Effect> next(MigrationState& s, Phase phase, Effect effect) {
  move_to(s, phase);
  return {effect};
}

// Frozen, and nothing handed over yet: the program runs on for a moment, then it is tried again.
std::vector<Effect> try_later(MigrationState& s, const MigrationEvent& e) {
  if (s.abort_asked || ++s.attempts >= kMaxAttempts) return give_up(s, e);
  s.once_more = true;
  return next(s, Phase::kThawing, Effect::kThaw);
}

std::vector<Effect> again(MigrationState& s, Effect effect) {
  ++s.retries;
  return {effect};
}

std::vector<Effect> superseded(MigrationState& s) {
  if (s.error.empty()) s.error = "the workload has been given to another owner meanwhile";
  return next(s, Phase::kDestroying, Effect::kDestroySource);
}

void check_invariants(const MigrationState& s) {
  switch (s.phase) {
    case Phase::kIdle:
    case Phase::kPreparing:
    case Phase::kCopying:
    case Phase::kFailed: CHECK(!s.frozen); break;
    case Phase::kHandingOver:
    case Phase::kAskingOwner:
    case Phase::kReclaiming:
    case Phase::kActivating:
    case Phase::kConfirmingOwner:
    case Phase::kDestroying: CHECK(s.frozen); break;
    default: break;
  }
}

std::vector<Effect> advance(MigrationState& s, const MigrationEvent& e) {
  if (e.kind == Kind::kAbort) {
    // Taken up at the next answer; past the handover it is too late.
    s.abort_asked = true;
    return {};
  }
  const bool failed = e.kind == Kind::kFailed || e.kind == Kind::kUnknown || e.kind == Kind::kPassing;
  switch (s.phase) {
    case Phase::kIdle:
      CHECK(e.kind == Kind::kStart);
      s.target_touched = true;
      return next(s, Phase::kPreparing, Effect::kPrepareTarget);
    case Phase::kPreparing:
      if (failed || s.abort_asked) return give_up(s, e);
      if (s.stop_and_copy) {
        s.frozen = true;
        return next(s, Phase::kFreezing, Effect::kFreeze);
      }
      return next(s, Phase::kCopying, Effect::kCopyRound);
    case Phase::kCopying:
      if (failed || s.abort_asked) return give_up(s, e);
      if (e.kind == Kind::kMore) return {Effect::kCopyRound};
      s.frozen = true;
      return next(s, Phase::kFreezing, Effect::kFreeze);
    case Phase::kFreezing:
      if (failed || s.abort_asked) return give_up(s, e);
      return next(s, Phase::kShipping, Effect::kShip);
    case Phase::kShipping:
      if (e.kind == Kind::kPassing) return try_later(s, e);
      if (failed || s.abort_asked) return give_up(s, e);
      return next(s, Phase::kHolding, Effect::kHold);
    case Phase::kHolding:
      if (failed || s.abort_asked) return give_up(s, e);
      return next(s, Phase::kBuilding, Effect::kBuildTarget);
    case Phase::kBuilding:
      if (e.kind == Kind::kPassing) return try_later(s, e);
      if (failed || s.abort_asked) return give_up(s, e);
      return next(s, Phase::kHandingOver, Effect::kChangeOwner);
    case Phase::kHandingOver:
      if (e.kind == Kind::kOk) return next(s, Phase::kActivating, Effect::kActivateTarget);
      remember(s, e);
      if (e.kind == Kind::kFailed) return give_up(s, e);
      return next(s, Phase::kAskingOwner, Effect::kAskOwner);
    case Phase::kAskingOwner:
      switch (e.kind) {
        case Kind::kOwnerIsTarget:
          s.error.clear();
          return next(s, Phase::kActivating, Effect::kActivateTarget);
        case Kind::kOwnerIsSource: return next(s, Phase::kReclaiming, Effect::kReclaim);
        case Kind::kOwnerIsOther: return superseded(s);
        default: return again(s, Effect::kAskOwner);
      }
    case Phase::kReclaiming:
      if (e.kind == Kind::kOk) return give_up(s, e);
      // Lost against the late request, or unknown: ask again. Retries go on counting.
      s.phase = Phase::kAskingOwner;
      return again(s, Effect::kAskOwner);
    case Phase::kThawing:
      if (failed) return again(s, Effect::kThaw);
      s.frozen = false;
      if (std::exchange(s.once_more, false) && !s.abort_asked) {
        if (!s.stop_and_copy) return next(s, Phase::kCopying, Effect::kCopyRound);
        s.frozen = true;
        return next(s, Phase::kFreezing, Effect::kFreeze);
      }
      if (s.abort_asked && s.error.empty()) {   // between two attempts
        s.error = "aborted on request";
        move_to(s, Phase::kFailed);
        if (s.target_touched) return {Effect::kDiscardTarget, Effect::kFinishFailed};
      }
      return next(s, Phase::kFailed, Effect::kFinishFailed);
    case Phase::kActivating:
      if (e.kind == Kind::kOk) return next(s, Phase::kDestroying, Effect::kDestroySource);
      s.phase = Phase::kConfirmingOwner;
      return again(s, Effect::kAskOwner);
    case Phase::kConfirmingOwner:
      switch (e.kind) {
        case Kind::kOwnerIsTarget:
          s.phase = Phase::kActivating;
          return {Effect::kActivateTarget};
        case Kind::kTakenBack:
          if (s.error.empty()) s.error = "the target went away before it confirmed that it runs";
          return next(s, Phase::kThawing, Effect::kThaw);
        case Kind::kOwnerIsSource:
        case Kind::kOwnerIsOther: return superseded(s);
        default: return again(s, Effect::kAskOwner);
      }
    case Phase::kDestroying:
      if (failed) return again(s, Effect::kDestroySource);
      move_to(s, s.error.empty() ? Phase::kDone : Phase::kFailed);
      s.frozen = false;
      return {s.error.empty() ? Effect::kFinishDone : Effect::kFinishFailed};
    case Phase::kDone:
    case Phase::kFailed: return {};
  }
  return {};
}

}  // namespace

std::vector<MigrationEffect> step(MigrationState& state, const MigrationEvent& event) {
  auto effects = advance(state, event);
  check_invariants(state);
  return effects;
}

FrozenVerdict judge_frozen(std::string_view owner, std::string_view self, bool answered) {
  if (!answered) return FrozenVerdict::kAskAgain;
  return owner == self ? FrozenVerdict::kThaw : FrozenVerdict::kDestroy;
}

RoundDecision decide_round(const ConvergenceRules& rules, const std::vector<RoundMeasure>& rounds) {
  RoundDecision out;
  if (rounds.empty()) return out;
  const RoundMeasure& last = rounds.back();
  // A page costs at the freeze what it cost in the last round. The first round is large
  // and its rate is the link's; a round of few pages is dominated by fixed costs.
  double per_page_us = last.pages > 0 ? last.seconds * 1e6 / static_cast<double>(last.pages) : 0;
  if (rounds.front().pages > 1000) {
    const double link_us =
        rounds.front().seconds * 1e6 / static_cast<double>(rounds.front().pages);
    if (last.pages < 1000) per_page_us = link_us;
  }
  // What is written during the next round is, at a steady rate, what this one found.
  const std::uint64_t remaining = rounds.size() > 1 ? last.pages : last.dirty_now;
  out.estimated_pause_us =
      rules.base_pause_us + static_cast<std::uint64_t>(per_page_us * static_cast<double>(remaining));
  const bool enough = rounds.size() > 1 && out.estimated_pause_us <= rules.target_pause_us;
  if (enough) {
    out.verdict = RoundVerdict::kFreeze;
    out.reason = "converged";
    return out;
  }
  if (rounds.size() < 2) return out;
  const bool shrinking =
      rounds.size() < 3 || static_cast<double>(last.pages) <
                               0.9 * static_cast<double>(rounds[rounds.size() - 2].pages);
  if (shrinking && rounds.size() < rules.max_rounds) return out;
  out.reason = shrinking ? "the limit of rounds is reached" : "rounds no longer shrink";
  out.verdict = rules.must_meet ? RoundVerdict::kGiveUp : RoundVerdict::kFreeze;
  return out;
}

}  // namespace baton::node
