// A coordinator that is restarted while operations are under way.
#include "tests/unit/coordinator/coordinator_fixture.h"

namespace baton::coordinator::test {
namespace {

class AfterRestart : public CoordinatorTest {
 protected:
  void left_behind(const std::string& kind, const std::string& from, const std::string& to) {
    pb::OperationRecord operation;
    operation.set_workload("x");
    operation.set_kind(kind);
    operation.set_from(from);
    operation.set_to(to);
    operation.set_incarnation(1);
    operation.set_process("an earlier one");
    ASSERT_TRUE(store_->commit(Transaction().put("x", 0, operation)));
  }
  bool resolved() {
    return soon([&] { return !operation_under_way("x"); });
  }
};

TEST_F(AfterRestart, State_IsKept_AndNobodyIsDeclaredDeadAtOnce) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  restart();
  join("ecu2");
  EXPECT_EQ(core_->list_nodes()->nodes_size(), 3);
  EXPECT_EQ(restore_x().error().code, Code::kConflict) << "ecu1 had no time to report yet";
  join("ecu1", {status("x", "running")});
  EXPECT_EQ(state("x"), "running");
}

TEST_F(AfterRestart, RunUnderWay_ReportedByItsNode_IsRunning) {
  running_x();
  left_behind("run", "", "ecu1");
  restart();
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "running");
}

TEST_F(AfterRestart, RunUnderWay_UnknownToItsNode_IsUndone) {
  running_x();
  left_behind("run", "", "ecu1");
  restart();
  join("ecu1");
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "none");
  EXPECT_EQ(core_->get_owner("x")->owner(), "");
}

TEST_F(AfterRestart, MigrationUnderWay_OwnerNotMoved_StaysWithTheSource) {
  running_x();
  left_behind("migrate", "ecu1", "ecu2");
  restart();
  join("ecu2");
  join("ecu1", {status("x", "migrating")});
  std::this_thread::sleep_for(600ms);
  EXPECT_TRUE(operation_under_way("x")) << "the source still tries";
  beat("ecu1", {status("x", "running")});
  EXPECT_TRUE(resolved());
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu1");
}

TEST_F(AfterRestart, MigrationUnderWay_OwnerMoved_BelongsToTheTarget) {
  running_x();
  left_behind("migrate", "ecu1", "ecu2");
  restart();
  join("ecu1", {status("x", "migrating")});
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(1);
  change.set_new_owner("ecu2");
  ASSERT_TRUE(core_->change_owner("ecu1", change));
  join("ecu2", {status("x", "running", 2)});
  EXPECT_TRUE(resolved());
  auto info = core_->show_workload("x");
  EXPECT_EQ(info->status().node(), "ecu2");
  EXPECT_EQ(info->spec().standbys(0), "ecu1");
  // The source is told that it no longer owns the program.
  beat("ecu1", {status("x", "frozen")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu2");
}

TEST_F(AfterRestart, RestoreUnderWay_NeverBegun_LeavesTheOwner) {
  running_x();
  left_behind("restore", "ecu1", "ecu2");
  restart();
  EXPECT_TRUE(resolved());
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu1");
}

TEST_F(AfterRestart, RestoreUnderWay_OwnerMoved_GoesByWhatTheTargetReports) {
  running_x();
  ASSERT_TRUE(registry_->change_owner({"x", 1, "ecu2", "restore", 5}));
  left_behind("restore", "ecu1", "ecu2");
  restart();
  join("ecu2");
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "lost");
  agents_.at("ecu2")->hold("x", 5);
  EXPECT_TRUE(restore_x()) << "it can be restored again";
}

TEST_F(AfterRestart, DeleteUnderWay_IsDoneToTheEnd) {
  running_x();
  left_behind("delete", "ecu1", "");
  restart();
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return state("x") == "none"; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
}

}  // namespace
}  // namespace baton::coordinator::test
