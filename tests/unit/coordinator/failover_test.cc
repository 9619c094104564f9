// Nodes that fall silent, workloads whose voters decide, and nodes that are drained.
#include "tests/unit/coordinator/coordinator_fixture.h"

namespace baton::coordinator::test {
namespace {

TEST_F(CoordinatorTest, Failover_OfADeadNode_RestoresTheNewest_WithoutHiddenLoss) {
  running_x();
  auto newest = status("x", "running");
  newest.set_last_committed(8);
  beat("ecu1", {newest});
  agents_.at("ecu2")->hold("x", 7);
  ecu1_dies();
  pb::FailoverRequest request;
  request.set_name("x");
  std::vector<pb::RestoreProgress> steps;
  auto sink = [&](const pb::RestoreProgress& step) {
    steps.push_back(step);
    return true;
  };
  EXPECT_EQ(core_->failover(request, sink, "test").error().code, Code::kConflict);
  request.set_allow_loss(true);
  ASSERT_TRUE(core_->failover(request, sink, "test"));
  EXPECT_EQ(steps.back().handover().to(), "ecu2");
  EXPECT_GT(steps.back().handover().pause_us(), 3'000'000u) << "from the last sign of life";
}

TEST_F(CoordinatorTest, Voters_AreEnteredByTheOwnerAlone_AndFollowedFromThenOn) {
  running_x();
  EXPECT_EQ(core_->enter_voters("ecu2", voted_x(2, "ecu1")).error().code, Code::kNotAllowed);
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(2);
  change.set_new_owner("ecu2");
  EXPECT_EQ(core_->change_owner("ecu1", change).error().code, Code::kConflict);
  ASSERT_TRUE(core_->note_tenure("ecu3", note_of(voted_x(3, "ecu2"))));
  auto info = core_->show_workload("x");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->ownership().owner(), "ecu2");
  ASSERT_EQ(info->spec().standbys_size(), 1);
  EXPECT_EQ(info->spec().standbys(0), "ecu1") << "the node it left takes its standby's place";
}

TEST_F(CoordinatorTest, Failover_OfAVotedWorkload_GetsAnotherStandbyWhenTheOldNodeStaysAway) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  ASSERT_TRUE(core_->note_tenure("ecu2", note_of(voted_x(3, "ecu2"))));
  pb::TenureNote note;
  auto& report = *note.add_failovers();
  report.set_workload("x");
  report.set_from("ecu1");
  report.set_to("ecu2");
  report.set_incarnation(3);
  ASSERT_TRUE(core_->note_tenure("ecu2", note));
  ASSERT_TRUE(core_->note_tenure("ecu2", note)) << "told again";
  auto told = core_->failovers("x");
  ASSERT_TRUE(told);
  EXPECT_EQ(told->failovers_size(), 1);
  EXPECT_EQ(core_->failovers("")->failovers_size(), 1);
  clock_.advance(kUnreachableAfter + 1s);
  EXPECT_TRUE(soon([&] {
    beat("ecu2", {status("x", "running", 3)});
    beat("ecu3");
    auto info = core_->show_workload("x");
    return info && info->spec().standbys_size() == 1 && info->spec().standbys(0) == "ecu3";
  }));
  // A node that people named stands by again when it is back, beside the one that took its place.
  join("ecu1");
  EXPECT_TRUE(soon([&] {
    auto info = core_->show_workload("x");
    return info && info->spec().standbys_size() == 2 && info->spec().standbys(1) == "ecu1";
  }));
}

// Nobody waits until the node that fell silent is declared unreachable: until then nothing would be committed.

TEST_F(CoordinatorTest, Takeover_OfASilentNode_GetsAnotherStandbyAtOnce_UnlessItIsBackAlready) {
  for (bool back : {false, true}) {
    const std::string name = back ? "y" : "x";
    for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
    auto request = run_request(name, "ecu1");
    request.mutable_spec()->add_standbys("ecu2");
    ASSERT_TRUE(core_->run(request, "test"));
    auto voted = voted_x(2, "ecu1");
    voted.set_workload(name);
    ASSERT_TRUE(core_->enter_voters("ecu1", voted));
    for (int i = 0; i < 12; ++i) {
      clock_.advance(300ms);
      for (const char* node : {"ecu1", "ecu2", "ecu3"}) beat(node);
    }
    if (back) join("ecu1");
    auto taken = voted_x(3, "ecu2");
    taken.set_workload(name);
    taken.set_reason("takeover");
    taken.set_previous_owner("ecu1");
    ASSERT_TRUE(core_->note_tenure("ecu2", note_of(taken)));
    auto info = core_->show_workload(name);
    ASSERT_TRUE(info);
    ASSERT_EQ(info->spec().standbys_size(), 1);
    EXPECT_EQ(info->spec().standbys(0), back ? "ecu1" : "ecu3");
  }
}

TEST_F(CoordinatorTest, FailBack_AfterATakeover_GoesHomeOnceThatHasStoodByForAWhile) {
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
  auto request = run_request("x", "ecu1");
  request.mutable_spec()->add_standbys("ecu2");
  request.mutable_spec()->set_fail_back(pb::FAIL_BACK_AUTO);
  ASSERT_TRUE(core_->run(request, "test"));
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  auto taken = voted_x(3, "ecu2");
  taken.set_reason("takeover");
  taken.set_previous_owner("ecu1");
  ASSERT_TRUE(core_->note_tenure("ecu2", note_of(taken)));
  std::atomic<int> asked = 0;
  agents_.at("ecu2")->on_migrate = [&](const pb::MigrateRequest& order, const auto& sink, std::stop_token) -> Result<void> {
    EXPECT_EQ(order.target().node(), "ecu1");
    if (++asked == 1) return make_error(Code::kUnreachable, "migrate", "ecu1 does not answer");
    auto back = voted_x(4, "ecu1");
    back.set_reason("migrate");
    back.set_previous_owner("ecu2");
    EXPECT_TRUE(core_->note_tenure("ecu1", note_of(back)));
    pb::MigrateProgress progress;
    progress.set_phase("done");
    progress.mutable_report()->set_pid(56);
    sink(progress);
    return {};
  };
  // A third of a second of theirs; nobody falls silent meanwhile.
  auto pass = [&](bool in_step, std::chrono::milliseconds ours) {
    auto running = status("x", "running", 3);
    auto& copy = *running.add_standbys();
    copy.set_node("ecu1");
    copy.set_connected(in_step);
    copy.set_last_committed(5);
    clock_.advance(300ms);
    beat("ecu1");
    beat("ecu2", {running});
    beat("ecu3");
    std::this_thread::sleep_for(ours);
  };
  for (int i = 0; i < 50; ++i) pass(false, 50ms);
  EXPECT_EQ(asked, 0) << "it does not stand by yet";
  auto begun = clock_.monotonic_now();
  for (int i = 0; i < 200 && asked == 0; ++i) pass(true, 50ms);
  EXPECT_EQ(asked, 1);
  EXPECT_GE(clock_.monotonic_now() - begun, 10s);
  begun = clock_.monotonic_now();
  for (int i = 0; i < 1000 && asked == 1; ++i) pass(true, 10ms);
  EXPECT_EQ(asked, 2) << "it tries again";
  EXPECT_GE(clock_.monotonic_now() - begun, 50s);
  EXPECT_TRUE(soon([&] { return core_->show_workload("x")->ownership().owner() == "ecu1" && !operation_under_way("x"); }));
}

// Its home is the node that it was taken from, also where nobody has named one.
TEST_F(CoordinatorTest, FailBack_HomeThatIsBack_StandsByAgain) {
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
  auto request = run_request("x", "");
  request.mutable_spec()->set_standby_count(1);
  request.mutable_spec()->set_fail_back(pb::FAIL_BACK_AUTO);
  ASSERT_TRUE(core_->run(request, "test"));
  auto placed = core_->show_workload("x");
  ASSERT_TRUE(placed);
  const std::string home = placed->ownership().owner(), next = placed->spec().standbys(0);
  ASSERT_TRUE(core_->enter_voters(home, voted_x(2, home)));
  for (int i = 0; i < 12; ++i) {
    clock_.advance(300ms);
    for (const char* node : {"ecu1", "ecu2", "ecu3"}) beat(node);
  }
  auto taken = voted_x(3, next);
  taken.set_reason("takeover");
  taken.set_previous_owner(home);
  ASSERT_TRUE(core_->note_tenure(next, note_of(taken)));
  auto stands_by = [&] {
    auto info = core_->show_workload("x");
    return info && std::count(info->spec().standbys().begin(), info->spec().standbys().end(), home) > 0;
  };
  EXPECT_FALSE(stands_by());
  join(home);
  EXPECT_TRUE(soon(stands_by));
}

TEST_F(CoordinatorTest, Failover_ByHandOfAVotedWorkload_AsksTheTarget) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  ecu1_dies();
  pb::FailoverRequest request;
  request.set_name("x");
  std::optional<pb::RestoreProgress> last;
  ASSERT_TRUE(core_->failover(request, [&](const pb::RestoreProgress& step) {
    last = step;
    return true;
  }, "test"));
  ASSERT_EQ(agents_.at("ecu2")->taken_over.size(), 1u);
  EXPECT_FALSE(agents_.at("ecu2")->taken_over[0].allow_loss());
  ASSERT_TRUE(last);
  EXPECT_EQ(last->handover().to(), "ecu2");
  EXPECT_TRUE(agents_.at("ecu2")->restored.empty());
}

TEST_F(CoordinatorTest, Delete_OfAVotedWorkload_NeedsItsVoters) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  pb::DeleteRequest request;
  request.set_name("x");
  request.set_stop_program(true);
  EXPECT_FALSE(core_->remove(request, "test")) << "no majority has agreed: a standby might run it on";
  EXPECT_EQ(state("x"), "running");
  EXPECT_FALSE(operation_under_way("x"));
  agents_.at("ecu1")->on_propose = [&](const pb::ProposeOwnerRequest&) -> Result<pb::Ownership> {
    pb::Ownership out;
    out.set_workload("x");
    out.set_incarnation(3);
    EXPECT_TRUE(core_->note_tenure("ecu1", note_of(voted_x(3, ""))));
    return out;
  };
  auto removed = core_->remove(request, "test");
  ASSERT_TRUE(removed) << removed.error().message();
  EXPECT_EQ(state("x"), "none");
}

TEST_F(CoordinatorTest, Program_ThatHasEnded_IsShownAsEndedAndOwnedByNobody) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  auto ended = voted_x(3, "");
  ended.set_reason("exited");
  ended.set_previous_owner("ecu1");
  beat("ecu1", {status("x", "exited", 3)});
  ASSERT_TRUE(core_->note_tenure("ecu1", note_of(ended)));
  EXPECT_EQ(state("x"), "exited");
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu1");
}

// --- drain

TEST_F(CoordinatorTest, Drain_MovesWhatRunsThereToItsStandbyAndPlacesNothingNew) {
  running_x();
  ecu1_hands_over();
  beat("ecu1", {status("x", "running")});
  std::vector<pb::DrainProgress> steps;
  auto drained = core_->drain("ecu1", [&](const pb::DrainProgress& step) {
    steps.push_back(step);
    return true;
  }, "test");
  ASSERT_TRUE(drained) << drained.error().message();
  ASSERT_FALSE(steps.empty());
  EXPECT_TRUE(steps.back().finished());
  EXPECT_EQ(steps.back().done(), 1u);
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu2");
  EXPECT_EQ(core_->show_node("ecu1")->state(), "drained");
  EXPECT_EQ(core_->show_workload("x")->spec().standbys(0), "ecu3") << "its copy goes where nobody works on the machine";
  auto ran = core_->run(run_request("y"), "test");
  ASSERT_TRUE(ran);
  EXPECT_NE(ran->ownership().owner(), "ecu1");
  restart();
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
  EXPECT_EQ(core_->show_node("ecu1")->state(), "drained") << "kept over a restart";
  ASSERT_TRUE(core_->resume_node("ecu1", "test"));
  EXPECT_EQ(core_->show_node("ecu1")->state(), "ready");
}

TEST_F(CoordinatorTest, Drain_MeetsAPassingFailure_TriesAgain) {
  running_x();
  ecu1_hands_over();
  beat("ecu1", {status("x", "running")});
  int calls = 0;
  auto hand_over = agents_.at("ecu1")->on_migrate;
  agents_.at("ecu1")->on_migrate = [&](const auto& request, const auto& sink, std::stop_token stop) -> Result<void> {
    if (++calls == 1) return make_error(Code::kConflict, "capture", "x is frozen: its lease has run out");
    return hand_over(request, sink, stop);
  };
  auto drained = core_->drain("ecu1", [](const auto&) { return true; }, "test");
  ASSERT_TRUE(drained) << drained.error().message();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu2");
}

TEST_F(CoordinatorTest, Drain_WhatCannotMove_StaysAndIsNamed) {
  running_x();
  agents_.at("ecu1")->on_migrate = [&](const auto&, const auto&, std::stop_token) -> Result<void> {
    return make_error(Code::kUnsupported, "migrate", "x uses what cannot be captured");
  };
  beat("ecu1", {status("x", "running")});
  std::string problem;
  auto drained = core_->drain("ecu1", [&](const pb::DrainProgress& step) {
    if (!step.error().empty()) problem = step.workload() + ": " + step.error();
    return true;
  }, "test");
  EXPECT_FALSE(drained);
  EXPECT_TRUE(problem.starts_with("x: ")) << problem;
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu1");
  EXPECT_EQ(core_->drain("ecu9", [](const auto&) { return true; }, "test").error().code, Code::kNotFound);
}

}  // namespace
}  // namespace baton::coordinator::test
