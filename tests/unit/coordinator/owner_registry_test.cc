#include "coordinator/owner_registry.h"

#include <gtest/gtest.h>

namespace baton::coordinator {
namespace {

class OwnerRegistryTest : public testing::Test {
 protected:
  Result<pb::Ownership> change(std::uint64_t expected, const std::string& to,
                               const std::string& reason = "migrate", std::uint64_t seq = 7) {
    return registry_->change_owner({"x", expected, to, reason, seq});
  }
  std::unique_ptr<StateStore> store_ = make_memory_store();
  ManualClock clock_;
  std::unique_ptr<OwnerRegistry> registry_ = make_sole_decider(*store_, clock_);
};

TEST_F(OwnerRegistryTest, Create_OfANewName_IsIncarnationOne) {
  auto made = registry_->create("x", "ecu1", "run");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->incarnation(), 1u);
  EXPECT_EQ(made->owner(), "ecu1");
  EXPECT_EQ(registry_->create("x", "ecu2", "run").error().code, Code::kConflict);
}

TEST_F(OwnerRegistryTest, ChangeOwner_FromThePresentIncarnation_RaisesIt) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  auto changed = change(1, "ecu2");
  ASSERT_TRUE(changed);
  EXPECT_EQ(changed->incarnation(), 2u);
  EXPECT_EQ((*registry_->get("x"))->previous_owner(), "ecu1");
}

TEST_F(OwnerRegistryTest, ChangeOwner_AskedAgain_AnswersTheSameAndChangesNothing) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  auto first = change(1, "ecu2");
  auto again = change(1, "ecu2");
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->SerializeAsString(), again->SerializeAsString());
  EXPECT_EQ((*registry_->get("x"))->incarnation(), 2u);
}

TEST_F(OwnerRegistryTest, ChangeOwner_OfTwoDifferentOnes_OnlyTheFirstWins) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  ASSERT_TRUE(change(1, "ecu2"));
  EXPECT_EQ(change(1, "ecu3").error().code, Code::kConflict);
  EXPECT_EQ(change(1, "ecu2", "restore").error().code, Code::kConflict);
  EXPECT_EQ(change(1, "ecu2", "migrate", 8).error().code, Code::kConflict);
  EXPECT_EQ((*registry_->get("x"))->owner(), "ecu2");
}

TEST_F(OwnerRegistryTest, Retire_ThenCreate_GoesOnCounting) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  EXPECT_EQ(registry_->retire("x", 5, true).error().code, Code::kConflict);
  ASSERT_TRUE(registry_->retire("x", 1, true));
  ASSERT_TRUE(registry_->retire("x", 1, true));  // repeatable
  EXPECT_TRUE((*registry_->get("x"))->keep_program());
  EXPECT_EQ(change(2, "ecu2").error().code, Code::kNotFound);
  auto made = registry_->create("x", "ecu2", "run");
  ASSERT_TRUE(made);
  EXPECT_EQ(made->incarnation(), 3u);
  EXPECT_FALSE((*registry_->get("x"))->deleted());
}

TEST_F(OwnerRegistryTest, UnknownWorkload_IsNotFound) {
  EXPECT_EQ(change(1, "ecu2").error().code, Code::kNotFound);
  EXPECT_EQ(registry_->retire("x", 1, false).error().code, Code::kNotFound);
  EXPECT_FALSE(registry_->get("x")->has_value());
}

TEST_F(OwnerRegistryTest, EveryChange_IsAnEvent) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  ASSERT_TRUE(change(1, "ecu2"));
  ASSERT_TRUE(change(1, "ecu2"));
  EXPECT_EQ(store_->events(0, "x")->size(), 2u);
}

pb::TenureRecord voted(std::uint64_t incarnation, const std::string& owner, int voters = 3) {
  pb::TenureRecord record;
  record.set_workload("x");
  record.set_owner(owner);
  record.set_incarnation(incarnation);
  for (int i = 1; i <= voters; ++i) record.add_voters()->set_node("ecu" + std::to_string(i));
  return record;
}

TEST_F(OwnerRegistryTest, EnterVoters_ByTheOwnerAtItsIncarnation_EndsTheRegistrysSay) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  EXPECT_EQ(registry_->enter_voters(voted(3, "ecu1")).error().code, Code::kConflict);
  EXPECT_EQ(registry_->enter_voters(voted(2, "ecu2")).error().code, Code::kConflict);
  EXPECT_EQ(registry_->enter_voters(voted(2, "ecu1", 0)).error().code, Code::kConflict);
  ASSERT_TRUE(registry_->enter_voters(voted(2, "ecu1")));
  ASSERT_TRUE(registry_->enter_voters(voted(2, "ecu1"))) << "its answer was lost";
  EXPECT_EQ(registry_->enter_voters(voted(3, "ecu1")).error().code, Code::kConflict);
  EXPECT_EQ(change(2, "ecu2").error().code, Code::kConflict);
  EXPECT_EQ(registry_->retire("x", 2, false).error().code, Code::kConflict);
}

TEST_F(OwnerRegistryTest, Follow_TakesNewerRecordsOnly_UntilTheyNameNobody) {
  ASSERT_TRUE(registry_->create("x", "ecu1", "run"));
  ASSERT_TRUE(registry_->enter_voters(voted(2, "ecu1")));
  auto news = registry_->follow(voted(3, "ecu2"));
  ASSERT_TRUE(news);
  EXPECT_TRUE(*news);
  EXPECT_FALSE(*registry_->follow(voted(3, "ecu2")));
  EXPECT_FALSE(*registry_->follow(voted(2, "ecu1")));
  EXPECT_EQ((*registry_->get("x"))->owner(), "ecu2");
  EXPECT_EQ((*registry_->get("x"))->previous_owner(), "ecu1");
  // A change of voters is no change of owner.
  ASSERT_TRUE(*registry_->follow(voted(4, "ecu2")));
  EXPECT_EQ((*registry_->get("x"))->previous_owner(), "ecu1");
  ASSERT_TRUE(*registry_->follow(voted(5, "", 0)));
  EXPECT_TRUE(change(5, "ecu3", "restore")) << "nobody votes any more";
  EXPECT_EQ(registry_->follow(voted(9, "ecu1")).value_or(false), true);
  ASSERT_TRUE(*registry_->follow(voted(10, "", 0)));
  ASSERT_TRUE(registry_->retire("x", 10, false));
  EXPECT_EQ(registry_->follow(voted(12, "ecu1")).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace baton::coordinator
