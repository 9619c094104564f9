// What people ask for: runs, migrations, restores, checkpoints, deletes; sessions of nodes and their orders.
#include "tests/unit/coordinator/coordinator_fixture.h"

namespace baton::coordinator::test {
namespace {

TEST_F(CoordinatorTest, Run_OnAReadyNode_StartsUnderIncarnationOneWithASecretKey) {
  running_x();
  ASSERT_EQ(agents_.at("ecu1")->started.size(), 1u);
  const auto& request = agents_.at("ecu1")->started[0];
  EXPECT_EQ(request.ownership().incarnation(), 1u);
  EXPECT_EQ(request.ownership().owner(), "ecu1");
  EXPECT_EQ(request.spec().hash_key().size(), 32u);
  EXPECT_EQ(request.spec().domain().size(), 32u);
  EXPECT_EQ(request.spec().standbys(0), "ecu2");
  auto info = core_->show_workload("x");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->status().state(), "running");
  EXPECT_EQ(info->status().pid(), 4711);
  EXPECT_TRUE(info->spec().hash_key().empty()) << "the key must not leave the coordinator";
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Run_WithoutStandbyFlag_ChoosesOneWhereThereIsAnotherNode) {
  join("ecu1");
  auto alone = core_->run(run_request("a"), "test");
  ASSERT_TRUE(alone) << alone.error().message();
  EXPECT_EQ(alone->spec().standbys_size(), 0);
  join("ecu2");
  // The workload takes a standby as soon as there is a node for it.
  EXPECT_TRUE(soon([&] { return core_->show_workload("a")->spec().standbys_size() == 1; }));
}

TEST_F(CoordinatorTest, Run_OfATakenName_IsAConflictAndStartsNothing) {
  running_x();
  auto second = core_->run(run_request("x", "ecu2"), "test");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
  EXPECT_TRUE(agents_.at("ecu2")->started.empty());
}

TEST_F(CoordinatorTest, Run_OnAnUnknownNode_IsNotFound) {
  join("ecu1");
  EXPECT_EQ(core_->run(run_request("x", "ecu9"), "test").error().code, Code::kNotFound);
}

TEST_F(CoordinatorTest, Run_RefusedByTheAgent_GivesTheNameBackAndPassesTheErrorOn) {
  join("ecu1");
  agents_.at("ecu1")->start_error =
      make_error(Code::kUnsupported, "protect", "fd 7: io_uring is not supported");
  auto refused = core_->run(run_request("x", "ecu1"), "test");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().subject, "fd 7: io_uring is not supported");
  EXPECT_EQ(state("x"), "none");
  agents_.at("ecu1")->start_error.reset();
  EXPECT_TRUE(core_->run(run_request("x", "ecu1"), "test"));
}

TEST_F(CoordinatorTest, Run_RefusedByVerdicts_NamesTheResource) {
  join("ecu1");
  auto& verdict = *agents_.at("ecu1")->start_response.add_verdicts();
  verdict.set_resource("fd 7");
  verdict.set_kind("io_uring");
  verdict.set_verdict("refused");
  auto refused = core_->run(run_request("x", "ecu1"), "test");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().subject.find("fd 7: io_uring"), std::string::npos);
  EXPECT_EQ(state("x"), "none");
}

TEST_F(CoordinatorTest, Run_WithUnknownOutcome_IsStoppedAndItsLateProgramToo) {
  join("ecu1");
  agents_.at("ecu1")->start_error = make_error(Code::kTimedOut, "start", "no answer");
  EXPECT_FALSE(core_->run(run_request("x", "ecu1"), "test"));
  ASSERT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
  // It ran after all: the node's report says so, and it is ended.
  beat("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return agents_.at("ecu1")->dropped.size() == 1; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 2u);
}

TEST_F(CoordinatorTest, Session_OfAnotherName_IsNotAllowed) {
  auto session = core_->open_session("ecu1", report("ecu2"));
  ASSERT_FALSE(session);
  EXPECT_EQ(session.error().code, Code::kNotAllowed);
}

TEST_F(CoordinatorTest, Session_OfTheSameNodeAgain_EndsTheOlder) {
  join("ecu1");
  auto old = sessions_["ecu1"];
  join("ecu1");
  EXPECT_FALSE(core_->next_order(*old));
  EXPECT_EQ(core_->report(*old, report("ecu1")).error().code, Code::kConflict);
}

TEST_F(CoordinatorTest, Orders_TellANodeWhatItDoesNotOwn) {
  running_x();
  beat("ecu1", {status("x", "running")});
  beat("ecu3", {status("x", "running", 7)});
  auto order = core_->next_order(*sessions_["ecu3"]);
  ASSERT_TRUE(order);
  ASSERT_EQ(order->ownerships_size(), 1);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu1");
  EXPECT_EQ(order->standbys_size(), 0);
  EXPECT_EQ(order->peers_size(), 3);
  auto mine = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(mine);
  ASSERT_EQ(mine->standbys_size(), 1);
  EXPECT_EQ(mine->standbys(0).standbys(0).node(), "ecu2");
  EXPECT_EQ(mine->standbys(0).spec().hash_key().size(), 32u);
  // Unchanged: neither peers nor standbys are sent again.
  beat("ecu1", {status("x", "running")});
  auto next = core_->next_order(*sessions_["ecu1"]);
  EXPECT_EQ(next->peers_size(), 0);
  EXPECT_EQ(next->standbys_size(), 0);
}

TEST_F(CoordinatorTest, Orders_OfAWorkloadNeverHeardOf_AreNotGiven) {
  join("ecu1", {status("stranger", "running")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships_size(), 0);
}

TEST_F(CoordinatorTest, Node_SilentForTooLong_IsUnreachableAndItsWorkloadLost) {
  running_x();
  EXPECT_EQ(state("x"), "running");
  ecu1_dies();
  EXPECT_EQ(core_->show_node("ecu1")->state(), "unreachable");
  EXPECT_EQ(core_->show_node("ecu2")->state(), "ready");
  EXPECT_EQ(state("x"), "lost");
  EXPECT_TRUE(core_->show_workload("x")->status_is_stale());
  beat("ecu1", {status("x", "running")});
  EXPECT_EQ(state("x"), "running");
}

TEST_F(CoordinatorTest, Migrate_BadTargets_EachHaveTheirOwnError) {
  running_x();
  EXPECT_EQ(migrate_x("ecu9").error().code, Code::kNotFound);
  auto same = migrate_x("ecu1");
  EXPECT_EQ(same.error().code, Code::kInvalid);
  EXPECT_NE(same.error().message().find("is already on ecu1"), std::string::npos);
  EXPECT_EQ(migrate_x("").error().code, Code::kInvalid);
  clock_.advance(kUnreachableAfter + 1s);
  beat("ecu1", {status("x", "running")});
  EXPECT_EQ(migrate_x("ecu2").error().code, Code::kUnreachable);
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Migrate_Done_MovesOwnerAndStandbys) {
  running_x();
  ecu1_hands_over();
  auto moved = migrate_x("ecu2");
  ASSERT_TRUE(moved) << moved.error().message();
  ASSERT_TRUE(progress_.back().has_report());
  EXPECT_EQ(progress_.back().report().incarnation(), 2u);
  EXPECT_EQ(progress_.back().report().from(), "ecu1");
  auto info = core_->show_workload("x");
  EXPECT_EQ(info->status().node(), "ecu2");
  EXPECT_EQ(info->status().pid(), 55);
  EXPECT_EQ(info->status().state(), "running");
  ASSERT_EQ(info->spec().standbys_size(), 1);
  EXPECT_EQ(info->spec().standbys(0), "ecu1");
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Migrate_WhileAnotherIsUnderWay_IsAConflict) {
  running_x();
  std::promise<void> entered, leave;
  agents_.at("ecu1")->on_migrate = [&](const auto&, const auto&, std::stop_token) -> Result<void> {
    entered.set_value();
    leave.get_future().wait();
    return make_error(Code::kCancelled, "migrate", "aborted");
  };
  auto first = std::async(std::launch::async, [&] { return migrate_x("ecu2"); });
  entered.get_future().wait();
  EXPECT_EQ(state("x"), "migrating");
  EXPECT_EQ(migrate_x("ecu3").error().code, Code::kConflict);
  EXPECT_EQ(core_->remove([] {
                   pb::DeleteRequest request;
                   request.set_name("x");
                   request.set_stop_program(true);
                   return request;
                 }(), "test").error().code, Code::kConflict);
  leave.set_value();
  EXPECT_FALSE(first.get());
  EXPECT_EQ(state("x"), "running");
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, ChangeOwner_ByAnyoneButTheOwner_IsNotAllowed) {
  running_x();
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(1);
  change.set_new_owner("ecu3");
  EXPECT_EQ(core_->change_owner("ecu3", change).error().code, Code::kNotAllowed);
  change.set_new_owner("ecu9");
  EXPECT_EQ(core_->change_owner("ecu1", change).error().code, Code::kNotFound);
  change.set_new_owner("ecu3");
  ASSERT_TRUE(core_->change_owner("ecu1", change));
  EXPECT_TRUE(core_->change_owner("ecu1", change)) << "the answer was lost, asked again";
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 2u);
}

TEST_F(CoordinatorTest, Restore_WhileItRuns_IsRefused_AsAnotherNameItIsNot) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  EXPECT_EQ(restore_x().error().code, Code::kConflict);
  ASSERT_TRUE(restore_x(5, "ecu2", "copy"));
  const auto& request = agents_.at("ecu2")->restored.at(0);
  EXPECT_EQ(request.name(), "x");
  EXPECT_EQ(request.as(), "copy");
  EXPECT_EQ(request.spec().domain(), store_->get<pb::WorkloadRecord>("x")->value.spec().domain());
  EXPECT_EQ(state("copy"), "running");
  EXPECT_EQ(restore_x(5, "ecu2", "copy").error().code, Code::kConflict);
}

TEST_F(CoordinatorTest, Restore_BeforeItsNodeIsDeclaredUnreachable_IsRefused) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  clock_.advance(kUnreachableAfter - 100ms);
  beat("ecu2");
  EXPECT_EQ(restore_x().error().code, Code::kConflict);
  ecu1_dies();
  EXPECT_TRUE(restore_x());
}

TEST_F(CoordinatorTest, Restore_OfTheNewest_RaisesTheIncarnationAndNamesTheSource) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  agents_.at("ecu2")->hold("x", 6);
  agents_.at("ecu3")->hold("x", 5);
  ecu1_dies();
  auto restored = restore_x(0, "ecu3");
  ASSERT_TRUE(restored) << restored.error().message();
  const auto& request = agents_.at("ecu3")->restored.at(0);
  EXPECT_EQ(request.seq(), 6u);
  EXPECT_EQ(request.source().node(), "ecu2");
  EXPECT_EQ(request.ownership().incarnation(), 2u);
  EXPECT_EQ(request.standbys(0).node(), "ecu2") << "a reachable standby, not the dead ecu1";
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu3");
  // The dead node comes back with the program still there: it is told who owns it.
  join("ecu1", {status("x", "running")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu3");
  EXPECT_EQ(order->ownerships(0).incarnation(), 2u);
}

TEST_F(CoordinatorTest, Restore_ThatFails_CanBeTriedAgain) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  ecu1_dies();
  agents_.at("ecu2")->restore_error = make_error(Code::kCorrupt, "restore", "a page is corrupt");
  EXPECT_EQ(restore_x().error().code, Code::kCorrupt);
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu1");
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 3u);
  agents_.at("ecu2")->restore_error = make_error(Code::kTimedOut, "restore", "no answer");
  EXPECT_FALSE(restore_x());
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu2") << "it may run there";
  agents_.at("ecu2")->restore_error.reset();
  EXPECT_TRUE(restore_x());
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 5u);
}

TEST_F(CoordinatorTest, Restore_OfAMissingCheckpoint_IsNotFound) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  ecu1_dies();
  EXPECT_EQ(restore_x(6).error().code, Code::kNotFound);
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 1u);
}

TEST_F(CoordinatorTest, Checkpoints_AreMergedOverTheirHolders) {
  running_x();
  agents_.at("ecu1")->hold("x", 6);
  agents_.at("ecu2")->hold("x", 5);
  agents_.at("ecu2")->hold("x", 6);
  auto list = core_->list_checkpoints("x");
  ASSERT_TRUE(list);
  ASSERT_EQ(list->checkpoints_size(), 2);
  EXPECT_EQ(list->checkpoints(0).nodes_size(), 1);
  EXPECT_EQ(list->checkpoints(1).nodes_size(), 2);
  EXPECT_EQ(core_->list_checkpoints("y").error().code, Code::kNotFound);
}

TEST_F(CoordinatorTest, Delete_OfARunProgram_StopsItAndFreesItsName) {
  running_x();
  pb::DeleteRequest request;
  request.set_name("x");
  EXPECT_EQ(core_->remove(request, "test").error().code, Code::kInvalid);
  request.set_stop_program(true);
  ASSERT_TRUE(core_->remove(request, "test"));
  EXPECT_FALSE(agents_.at("ecu1")->stopped.at(0).keep_program());
  EXPECT_EQ(agents_.at("ecu2")->dropped.size(), 1u);
  EXPECT_EQ(state("x"), "none");
  EXPECT_EQ(core_->remove(request, "test").error().code, Code::kNotFound);
  EXPECT_TRUE(core_->run(run_request("x"), "test"));
}

TEST_F(CoordinatorTest, Delete_WhileItsNodeIsAway_ReachesItWhenItComesBack) {
  running_x();
  ecu1_dies();
  pb::DeleteRequest request;
  request.set_name("x");
  request.set_stop_program(true);
  ASSERT_TRUE(core_->remove(request, "test"));
  EXPECT_TRUE(agents_.at("ecu1")->stopped.empty());
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return agents_.at("ecu1")->dropped.size() == 1; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
}

TEST_F(CoordinatorTest, Apply_CreatesUpdatesLeavesAndRefuses) {
  for (const char* node : {"ecu1", "ecu2"}) join(node);
  pb::ApplyRequest request;
  *request.add_specs() = run_request("x", "ecu1").spec();
  auto applied = core_->apply(request, "test");
  ASSERT_TRUE(applied);
  EXPECT_EQ(applied->changes(0).action(), "create");
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "none");
  request.mutable_specs(0)->set_interval_us(30'000);
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "update");
  EXPECT_EQ(core_->show_workload("x")->spec().interval_us(), 30'000u);
  EXPECT_EQ(core_->show_workload("x")->spec().standbys_size(), 1);
  request.mutable_specs(0)->add_argv("more");
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "refuse");
}

}  // namespace
}  // namespace baton::coordinator::test
