// The migration state machine against a world in which every step can fail, take effect
// unheard, or arrive late: ends with exactly one runner, or frozen and asking.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string>
#include <utility>

#include "agent/node/migration.h"

namespace baton::node {
namespace {

using Effect = MigrationEffect;
using Kind = MigrationEventKind;

enum class Program { kRunning, kFrozen, kGone };
enum class Target { kNothing, kBuilt, kRunning };
enum class Mishap { kNone, kFails, kUnheard, kLost };  // lost: neither done nor heard

struct World {
  Program source = Program::kRunning;
  Target target = Target::kNothing;
  std::string owner = "source";
  int incarnation = 1, source_incarnation = 1;
  bool committed = false;
  bool late_handover = false;  // a ChangeOwner on its way, expecting incarnation 1
  int activations = 0;
  int frozen = 0, built = 0;   // how often; which of these freezes the target was built from

  void check() const {
    ASSERT_FALSE(source == Program::kRunning && target == Target::kRunning) << "two runners";
    if (target == Target::kRunning || source == Program::kGone) {
      ASSERT_NE(owner, "source");
    }
  }
  bool change_owner(const std::string& to, int expected) {
    if (incarnation != expected) return false;
    owner = to;
    ++incarnation;
    return true;
  }
  void deliver_late() {
    if (std::exchange(late_handover, false)) change_owner("target", 1);
  }
};

// Performs one effect under a mishap and answers the event.
MigrationEvent perform(World& w, Effect effect, Mishap mishap, std::mt19937& random) {
  const bool applied = mishap == Mishap::kNone || mishap == Mishap::kUnheard;
  MigrationEvent answer{Kind::kOk, ""};
  if (mishap == Mishap::kFails) answer = {Kind::kFailed, "injected"};
  if (mishap == Mishap::kFails && (effect == Effect::kShip || effect == Effect::kBuildTarget) && random() % 2 == 0) answer.kind = Kind::kPassing;
  if (mishap == Mishap::kUnheard || mishap == Mishap::kLost) answer = {Kind::kUnknown, "unheard"};
  switch (effect) {
    case Effect::kPrepareTarget:
    case Effect::kHold: break;
    case Effect::kCopyRound:
      if (answer.kind == Kind::kOk && random() % 3 != 0) answer.kind = Kind::kMore;
      break;
    case Effect::kFreeze:
      if (applied) {
        w.committed = false;   // what the target holds is older
        ++w.frozen;
      }
      if (applied) w.source = Program::kFrozen;  // a failed capture thaws by itself
      break;
    case Effect::kShip:
      if (applied) w.committed = true;
      break;
    case Effect::kBuildTarget:
      if (applied) w.target = Target::kBuilt;
      if (applied) w.built = w.frozen;
      break;
    case Effect::kChangeOwner:
      EXPECT_TRUE(w.committed && w.source == Program::kFrozen);
      if (applied) {
        w.change_owner("target", w.source_incarnation);
      } else if (mishap == Mishap::kLost) {
        w.late_handover = true;
      }
      break;
    case Effect::kReclaim:
      if (random() % 2 == 0) w.deliver_late();
      if (applied && !w.change_owner("source", w.source_incarnation)) answer = {Kind::kUnknown, "conflict"};
      if (answer.kind == Kind::kOk) w.source_incarnation = w.incarnation;
      break;
    case Effect::kAskOwner:
      if (random() % 4 == 0) w.deliver_late();
      if (mishap != Mishap::kNone) return {Kind::kUnknown, "unreachable"};
      if (w.owner == "source") {
        w.source_incarnation = w.incarnation;
        return {Kind::kOwnerIsSource, ""};
      }
      return {w.owner == "target" ? Kind::kOwnerIsTarget : Kind::kOwnerIsOther, ""};
    case Effect::kActivateTarget:
      if (applied) {
        EXPECT_EQ(w.owner, "target");
        EXPECT_EQ(w.built, w.frozen) << "from an older freeze";
        w.target = Target::kRunning;
        ++w.activations;
      }
      break;
    case Effect::kThaw:
      if (applied) {
        EXPECT_EQ(w.owner, "source");
        if (w.source == Program::kFrozen) w.source = Program::kRunning;
      }
      break;
    case Effect::kDiscardTarget:
      if (applied && w.target == Target::kBuilt) w.target = Target::kNothing;
      break;
    case Effect::kDestroySource:
      if (applied) w.source = Program::kGone;
      break;
    case Effect::kFinishDone:
    case Effect::kFinishFailed: break;
  }
  // The network may deliver the late request at any time.
  if (random() % 8 == 0) w.deliver_late();
  w.check();
  return answer;
}

struct Outcome {
  World world;
  MigrationState state;
  bool finished = false;
};

Outcome simulate(unsigned seed, std::function<Mishap(Effect, int)> mishap_of) {
  std::mt19937 random(seed);
  Outcome out;
  MigrationEvent event{Kind::kStart, ""};
  for (int i = 0; i < 400 && !out.finished; ++i) {
    for (Effect effect : step(out.state, event)) {
      if (effect == Effect::kFinishDone || effect == Effect::kFinishFailed) {
        out.finished = true;
        break;
      }
      event = perform(out.world, effect, mishap_of(effect, i), random);
    }
  }
  out.world.deliver_late();  // even after the end it must do no harm
  out.world.check();
  return out;
}

void expect_one_runner(const Outcome& out) {
  const bool here = out.world.source == Program::kRunning;
  const bool there = out.world.target == Target::kRunning;
  if (out.finished) {
    EXPECT_NE(here, there);
    EXPECT_EQ(out.world.owner, here ? "source" : "target");
    EXPECT_EQ(out.state.phase == MigrationPhase::kDone, there);
  } else {
    EXPECT_EQ(out.world.source, Program::kFrozen) << phase_name(out.state.phase);
  }
}

TEST(Migration, WithoutMishap_RunsOnTarget) {
  auto out = simulate(1, [](Effect, int) { return Mishap::kNone; });
  EXPECT_TRUE(out.finished);
  EXPECT_EQ(out.state.phase, MigrationPhase::kDone);
  EXPECT_EQ(out.world.target, Target::kRunning);
  EXPECT_EQ(out.world.source, Program::kGone);
  EXPECT_EQ(out.world.activations, 1);
}

TEST(Migration, EveryStepFailingOnce_ExactlyOneRunner) {
  const Effect all[] = {Effect::kPrepareTarget, Effect::kCopyRound,   Effect::kFreeze,      Effect::kShip,
                        Effect::kHold,          Effect::kBuildTarget, Effect::kChangeOwner, Effect::kActivateTarget,
                        Effect::kDestroySource};
  for (Effect victim : all) {
    for (Mishap mishap : {Mishap::kFails, Mishap::kUnheard, Mishap::kLost}) {
      for (unsigned seed = 0; seed < 50; ++seed) {
        SCOPED_TRACE(testing::Message() << "effect " << static_cast<int>(victim) << " mishap "
                                        << static_cast<int>(mishap) << " seed " << seed);
        bool used = false;
        auto out = simulate(seed, [&](Effect effect, int) {
          if (used || effect != victim) return Mishap::kNone;
          used = true;
          return mishap;
        });
        EXPECT_TRUE(out.finished);
        expect_one_runner(out);
      }
    }
  }
}

TEST(Migration, RandomMishaps_ExactlyOneRunnerOrFrozen) {
  for (unsigned seed = 0; seed < 5000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed * 7919 + 1);
    auto out = simulate(seed, [&](Effect, int) {
      switch (random() % 8) {
        case 0: return Mishap::kFails;
        case 1: return Mishap::kUnheard;
        case 2: return Mishap::kLost;
        default: return Mishap::kNone;
      }
    });
    expect_one_runner(out);
    if (HasFailure()) return;
  }
}

TEST(Migration, CoordinatorSilentAfterHandover_StaysFrozenForEver) {
  auto out = simulate(3, [](Effect effect, int) {
    if (effect == Effect::kChangeOwner) return Mishap::kLost;
    if (effect == Effect::kAskOwner) return Mishap::kLost;
    return Mishap::kNone;
  });
  EXPECT_FALSE(out.finished);
  EXPECT_EQ(out.world.source, Program::kFrozen);
}

TEST(Migration, AbortBeforeHandover_RunsOnHere) {
  MigrationState state;
  step(state, {Kind::kStart, ""});
  step(state, {Kind::kOk, ""});
  EXPECT_EQ(state.phase, MigrationPhase::kCopying);
  EXPECT_TRUE(step(state, {Kind::kAbort, ""}).empty());
  auto effects = step(state, {Kind::kMore, ""});
  EXPECT_EQ(effects.back(), Effect::kFinishFailed);
  EXPECT_EQ(state.phase, MigrationPhase::kFailed);
}

// Thawed, one more round, frozen again.
TEST(Migration, PassingReason_IsTriedAgainAndNotForEver) {
  for (const auto passing : {Effect::kShip, Effect::kBuildTarget}) {
    for (int times : {1, static_cast<int>(kMaxAttempts) - 1, static_cast<int>(kMaxAttempts)}) {
      World world;
      MigrationState state;
      std::mt19937 random(5);
      MigrationEvent event{Kind::kStart, ""};
      int left = times;
      bool finished = false;
      while (!finished) {
        for (Effect effect : step(state, event)) {
          finished = effect == Effect::kFinishDone || effect == Effect::kFinishFailed;
          if (finished) break;
          event = perform(world, effect, Mishap::kNone, random);
          if (effect == passing && left-- > 0) event = {Kind::kPassing, "held"};
        }
      }
      const bool moves = times < static_cast<int>(kMaxAttempts);
      EXPECT_EQ(state.phase, moves ? MigrationPhase::kDone : MigrationPhase::kFailed);
      EXPECT_EQ(world.target, moves ? Target::kRunning : Target::kNothing);
      EXPECT_EQ(world.source, moves ? Program::kGone : Program::kRunning);
      EXPECT_EQ(world.frozen, std::min(times + 1, static_cast<int>(kMaxAttempts)));
      EXPECT_EQ(state.error, moves ? "" : "held");
    }
  }
}

TEST(Migration, FrozenFoundAtStart_JudgedByTheRecord) {
  EXPECT_EQ(judge_frozen("ecu1", "ecu1", true), FrozenVerdict::kThaw);
  EXPECT_EQ(judge_frozen("ecu2", "ecu1", true), FrozenVerdict::kDestroy);
  EXPECT_EQ(judge_frozen("", "ecu1", false), FrozenVerdict::kAskAgain);
}

TEST(Convergence, ShrinkingRounds_FreezeWhenTheEstimateFits) {
  ConvergenceRules rules;
  rules.target_pause_us = 10'000;
  std::vector<RoundMeasure> rounds{{100'000, 1.0, 100'000}};
  EXPECT_EQ(decide_round(rules, rounds).verdict, RoundVerdict::kMore);
  rounds.push_back({5'000, 0.05, 5'000});
  EXPECT_EQ(decide_round(rules, rounds).verdict, RoundVerdict::kMore);
  rounds.push_back({300, 0.003, 300});
  EXPECT_EQ(decide_round(rules, rounds).verdict, RoundVerdict::kFreeze);
}

TEST(Convergence, RoundsNoLongerShrink_FreezesOrGivesUpAsAsked) {
  ConvergenceRules rules;
  std::vector<RoundMeasure> rounds{{100'000, 1.0, 0}, {50'000, 0.5, 0}, {49'000, 0.5, 0}};
  EXPECT_EQ(decide_round(rules, rounds).verdict, RoundVerdict::kFreeze);
  rules.must_meet = true;
  EXPECT_EQ(decide_round(rules, rounds).verdict, RoundVerdict::kGiveUp);
}

TEST(Convergence, NeverMoreThanTheLimitOfRounds) {
  ConvergenceRules rules;
  rules.target_pause_us = 1;
  std::vector<RoundMeasure> rounds;
  std::uint64_t pages = 1'000'000;
  while (decide_round(rules, rounds).verdict == RoundVerdict::kMore) {
    rounds.push_back({pages, 1.0, pages});
    pages /= 2;
    ASSERT_LE(rounds.size(), 8u);
  }
  EXPECT_EQ(rounds.size(), 8u);
}

}  // namespace
}  // namespace baton::node
