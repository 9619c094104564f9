#include <gtest/gtest.h>

#include "tenure/machine.h"

namespace baton::tenure {
namespace {
using namespace std::chrono_literals;

struct NoTip final : View {
  pb::TenureTip tip(const std::string&) const override { return newest; }
  bool knows_commits(const std::string&) const override { return false; }
  pb::TenureTip newest;
};

pb::TenureRecord record_of(std::uint64_t incarnation, const std::string& owner) {
  pb::TenureRecord out;
  out.set_workload("w");
  out.set_owner(owner);
  out.set_incarnation(incarnation);
  out.set_mode(pb::MODE_HOT);
  for (const char* name : {"a", "b", "c"}) out.add_voters()->set_node(name);
  out.add_standbys()->set_node("b");
  return out;
}

// Three machines without delay; time moves when the test says so.
struct Trio {
  std::map<std::string, State> nodes;
  std::map<std::string, NoTip> tips;
  std::vector<std::pair<std::string, Effect>> seen;
  std::set<std::string> dead;
  Time now = 10s;

  Trio() {
    for (const char* name : {"a", "b", "c"}) nodes[name] = begin(name, {}, false, now, 1);
    for (auto& [a, state] : nodes) {
      for (auto& [b, other] : nodes) {
        if (a != b) event(a, Event{.kind = EventKind::kLinkUp, .peer = b});
      }
    }
  }
  void event(const std::string& to, const Event& e) {
    if (dead.contains(to)) return;
    for (auto& effect : step(nodes.at(to), e, now, tips[to])) {
      seen.emplace_back(to, effect);
      if (effect.kind == EffectKind::kSend) event(effect.peer, Event{.kind = EventKind::kFrame, .peer = to, .frame = effect.frame});
      if (effect.kind == EffectKind::kStore) event(to, Event{.kind = EventKind::kStored, .token = effect.token});
    }
  }
  void run(Time length) {
    for (const Time end = now + length; now < end; now += 1ms) {
      for (auto& [name, state] : nodes) event(name, {});
    }
  }
  int count(const std::string& node, EffectKind kind) {
    return static_cast<int>(std::count_if(seen.begin(), seen.end(), [&](auto& one) { return one.first == node && one.second.kind == kind; }));
  }
  const pb::TenureRecord& base(const std::string& node) { return nodes.at(node).workloads.at("w").disk.base(); }
  void own() {     // a owns it, b has its checkpoints
    run(100ms);    // past the silence
    event("a", Event{.kind = EventKind::kAdopt, .record = record_of(1, "a")});
    event("a", Event{.kind = EventKind::kRunning, .workload = "w"});
    tips["b"].newest.set_incarnation(1);
    tips["b"].newest.set_seq(7);
    run(50ms);
    seen.clear();
  }
};

TEST(Machine, OwnerWithVoters_IsLeasedAndNobodyStands) {
  Trio trio;
  trio.own();
  trio.run(1s);
  EXPECT_GT(trio.count("a", EffectKind::kLease), 50);
  EXPECT_EQ(trio.base("b").incarnation(), 1u);
  EXPECT_EQ(trio.base("c").incarnation(), 1u);
  EXPECT_GT(may_run_until(trio.nodes.at("a"), "w", trio.now), trio.now);
}

TEST(Machine, OwnerDead_StandbyTakesOverWithinTwoTerms) {
  Trio trio;
  trio.own();
  trio.dead.insert("a");
  trio.run(60ms);
  ASSERT_EQ(trio.count("b", EffectKind::kOwned), 1);
  EXPECT_EQ(trio.base("b").owner(), "b");
  EXPECT_EQ(trio.base("b").incarnation(), 2u);
  EXPECT_EQ(trio.base("b").committed_seq(), 7u);
  EXPECT_EQ(trio.base("b").standbys(0).node(), "a");
  EXPECT_EQ(trio.base("c").owner(), "b");
}

TEST(Machine, OwnerDeadAndVoterKnowsANewerCheckpoint_NobodyTakesOver) {
  Trio trio;
  trio.own();
  trio.tips["c"].newest.set_incarnation(1);
  trio.tips["c"].newest.set_seq(8);
  trio.dead.insert("a");
  trio.run(300ms);
  EXPECT_EQ(trio.count("b", EffectKind::kOwned), 0);
}

TEST(Machine, OwnerAlone_LosesItsLease) {
  Trio trio;
  trio.own();
  trio.dead = {"b", "c"};
  const Time until = may_run_until(trio.nodes.at("a"), "w", trio.now);
  trio.run(200ms);
  EXPECT_LE(may_run_until(trio.nodes.at("a"), "w", trio.now), until + kHotTerm.interval);
  EXPECT_LT(until, trio.now);
}

TEST(Machine, StandbyAlone_DoesNotTakeOver) {
  Trio trio;
  trio.own();
  trio.dead = {"a", "c"};
  trio.run(500ms);
  EXPECT_EQ(trio.count("b", EffectKind::kOwned), 0);
}

TEST(Machine, RestartedVoter_VotesAfterATerm) {
  Trio trio;
  trio.own();
  pb::VoterFile file;
  *file.add_workloads() = trio.nodes.at("c").workloads.at("w").disk;
  trio.dead.insert("a");
  trio.nodes["c"] = begin("c", file, false, trio.now, 2);
  for (const char* other : {"a", "b"}) trio.event("c", Event{.kind = EventKind::kLinkUp, .peer = other});
  trio.event("b", Event{.kind = EventKind::kLinkUp, .peer = "c"});
  trio.run(29ms);
  EXPECT_EQ(trio.count("b", EffectKind::kOwned), 0);
  trio.run(100ms);
  EXPECT_EQ(trio.count("b", EffectKind::kOwned), 1);
}

TEST(Machine, VoterWhoseDiskIsSlow_AnswersOnlyWhenItIsWritten) {
  Trio trio;
  trio.own();
  trio.run(100ms);
  pb::TenureMessage prepare;
  prepare.set_kind(pb::TenureMessage::PREPARE);
  prepare.set_workload("w");
  prepare.set_base(1);
  prepare.mutable_ballot()->set_round(7);
  prepare.mutable_ballot()->set_node("b");
  *prepare.mutable_record() = trio.base("b");
  Event frame{.kind = EventKind::kFrame, .peer = "b"};
  frame.frame.set_start(trio.nodes.at("c").peers.at("b").start);
  *frame.frame.add_messages() = prepare;
  std::uint64_t token = 0;
  auto promised = [](const std::vector<Effect>& effects) {
    for (const auto& effect : effects) {
      for (const auto& m : effect.frame.messages()) {
        if (m.kind() == pb::TenureMessage::PROMISE) return true;
      }
    }
    return false;
  };
  auto effects = step(trio.nodes.at("c"), frame, trio.now, trio.tips["c"]);
  for (const auto& effect : effects) {
    if (effect.kind == EffectKind::kStore) token = effect.token;
  }
  EXPECT_NE(token, 0u);
  EXPECT_FALSE(promised(effects));
  EXPECT_TRUE(promised(step(trio.nodes.at("c"), Event{.kind = EventKind::kStored, .token = token}, trio.now, trio.tips["c"])));
}

TEST(Machine, DoubtfulVoter_VotesOnlyWhenAllOthersHaveAnswered) {
  Trio trio;
  trio.own();
  pb::VoterFile file;
  *file.add_workloads() = trio.nodes.at("c").workloads.at("w").disk;
  trio.dead.insert("a");
  trio.nodes["c"] = begin("c", file, true, trio.now, 2);
  for (const char* other : {"a", "b"}) trio.event("c", Event{.kind = EventKind::kLinkUp, .peer = other});
  trio.event("b", Event{.kind = EventKind::kLinkUp, .peer = "c"});
  trio.run(500ms);
  EXPECT_EQ(trio.count("b", EffectKind::kOwned), 0) << "a might know of a vote that c forgot";
}

TEST(Machine, HandOver_WithRelease_IsDecidedAtOnce) {
  Trio trio;
  trio.own();
  Event ask{.kind = EventKind::kPropose, .workload = "w", .request = 5, .expected = 1, .reason = "migrate", .release = true, .timeout = 1s};
  ask.record.set_owner("c");
  trio.event("a", ask);
  ASSERT_EQ(trio.count("a", EffectKind::kOutcome), 1);
  EXPECT_EQ(trio.base("a").owner(), "c");
  EXPECT_EQ(trio.count("c", EffectKind::kOwned), 1);
  EXPECT_EQ(trio.count("a", EffectKind::kStop), 1);
}

TEST(Machine, ProposalWithoutRelease_WaitsForTheGrantsAndFails) {
  Trio trio;
  trio.own();
  Event ask{.kind = EventKind::kPropose, .workload = "w", .request = 6, .expected = 1, .reason = "asked", .timeout = 200ms};
  ask.record.set_owner("b");
  trio.event("b", ask);
  trio.run(400ms);
  EXPECT_EQ(trio.base("a").owner(), "a") << "its owner lives and is supported";
  EXPECT_EQ(trio.count("b", EffectKind::kOutcome), 1);
}

TEST(Machine, Query_AnswersTheOwner) {
  Trio trio;
  trio.own();
  trio.event("a", Event{.kind = EventKind::kQuery, .workload = "w", .request = 9, .timeout = 1s});
  ASSERT_EQ(trio.count("a", EffectKind::kOutcome), 1);
  for (auto& [node, effect] : trio.seen) {
    if (effect.kind != EffectKind::kOutcome) continue;
    EXPECT_EQ(effect.outcome, Outcome::kDone);
    EXPECT_EQ(effect.record.owner(), "a");
  }
}

TEST(Machine, ChangeOfVoters_KeepsTheProgramRunning) {
  Trio trio;
  trio.own();
  pb::TenureRecord want;
  want.add_voters()->set_node("a");
  want.add_voters()->set_node("c");
  want.add_voters()->set_node("b");
  want.add_standbys()->set_node("c");
  trio.event("a", Event{.kind = EventKind::kWant, .workload = "w", .record = want});
  trio.run(100ms);
  EXPECT_EQ(trio.base("b").standbys(0).node(), "c");
  EXPECT_EQ(trio.base("a").owner(), "a");
  EXPECT_GT(may_run_until(trio.nodes.at("a"), "w", trio.now), trio.now);
  EXPECT_EQ(trio.count("a", EffectKind::kStop), 0);
}

TEST(Machine, WorkloadWithoutVoters_IsNeverLimited) {
  Trio trio;
  pb::TenureRecord record = record_of(3, "a");
  record.clear_voters();
  record.clear_standbys();
  trio.event("a", Event{.kind = EventKind::kAdopt, .record = record});
  trio.event("a", Event{.kind = EventKind::kRunning, .workload = "w"});
  trio.dead = {"b", "c"};
  trio.run(100ms);
  EXPECT_EQ(may_run_until(trio.nodes.at("a"), "w", trio.now), Time::max());
}

TEST(Machine, RenewalTraffic_DoesNotGrowWithTheWorkloads) {
  auto bytes = [](int workloads) {
    Trio trio;
    trio.run(100ms);
    for (int i = 0; i < workloads; ++i) {
      auto record = record_of(1, "a");
      record.set_workload("w" + std::to_string(i));
      trio.event("a", Event{.kind = EventKind::kAdopt, .record = record});
      trio.event("a", Event{.kind = EventKind::kRunning, .workload = record.workload()});
    }
    trio.run(100ms);
    trio.seen.clear();
    trio.run(1s);
    std::size_t sum = 0;
    for (auto& [node, effect] : trio.seen) {
      if (effect.kind == EffectKind::kSend) sum += effect.frame.ByteSizeLong();
    }
    return sum;
  };
  const auto one = bytes(1), many = bytes(50);
  EXPECT_LE(many, one + one / 10);
}

TEST(Detector, LimitFollowsTheLongestGap) {
  Detector detector;
  Time now = 1s;
  for (int i = 0; i < 100; ++i) detector.arrived(now += 8ms);
  EXPECT_EQ(detector.limit(30ms), 30ms);
  detector.arrived(now += 40ms);
  EXPECT_EQ(detector.limit(30ms), 60ms);
  detector.arrived(now += 10s);
  EXPECT_EQ(detector.limit(30ms), 150ms) << "bounded";
  for (int i = 0; i < 2100; ++i) detector.arrived(now += 8ms);
  EXPECT_EQ(detector.limit(30ms), 30ms) << "forgotten";
}

}  // namespace
}  // namespace baton::tenure
