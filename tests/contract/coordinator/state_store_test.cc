// The contract of StateStore, over every implementation, and what only a store on disk
// promises: that a commit which returned survives SIGKILL at any moment.
#include "coordinator/state/store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>

namespace baton::coordinator {
namespace {

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/baton-state-XXXXXX";
    path_ = ::mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

pb::OwnerRecord owner(const std::string& workload, const std::string& node,
                      std::uint64_t incarnation) {
  pb::OwnerRecord record;
  record.set_workload(workload);
  record.set_owner(node);
  record.set_incarnation(incarnation);
  return record;
}

pb::Event event(const std::string& workload, const std::string& text) {
  pb::Event out;
  out.set_workload(workload);
  out.set_text(text);
  return out;
}

class StateStoreContract : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "memory") {
      store_ = make_memory_store();
    } else {
      reopen();
    }
  }
  void reopen() {
    if (std::string(GetParam()) == "memory") return;
    store_.reset();
    auto opened = open_sqlite_store(folder_.path());
    ASSERT_TRUE(opened) << opened.error().message();
    store_ = std::move(*opened);
  }
  Folder folder_;
  std::unique_ptr<StateStore> store_;
};

TEST_P(StateStoreContract, Get_OfNothing_IsVersionZero) {
  auto found = store_->get<pb::OwnerRecord>("x");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->version, 0u);
  EXPECT_TRUE(store_->list<pb::OwnerRecord>()->empty());
}

TEST_P(StateStoreContract, Commit_ThenReopen_KeepsValuesAndVersions) {
  ASSERT_TRUE(store_->commit(Transaction().put("x", 0, owner("x", "ecu1", 1))));
  ASSERT_TRUE(store_->commit(Transaction().put("x", 1, owner("x", "ecu2", 2))));
  reopen();
  auto found = store_->get<pb::OwnerRecord>("x");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->version, 2u);
  EXPECT_EQ(found->value.owner(), "ecu2");
}

TEST_P(StateStoreContract, Commit_WithAnotherVersion_ConflictsAndChangesNothing) {
  ASSERT_TRUE(store_->commit(Transaction().put("x", 0, owner("x", "ecu1", 1))));
  pb::NodeRecord node;
  node.set_name("ecu1");
  for (std::uint64_t wrong : {0, 2, 7}) {
    auto refused = store_->commit(Transaction()
                                      .put("ecu1", 0, node)
                                      .event(event("x", "never"))
                                      .put("x", wrong, owner("x", "ecu9", 9)));
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::kConflict);
  }
  EXPECT_EQ(store_->get<pb::OwnerRecord>("x")->value.owner(), "ecu1");
  EXPECT_EQ(store_->get<pb::NodeRecord>("ecu1")->version, 0u);
  EXPECT_TRUE(store_->events(0, "")->empty());
}

TEST_P(StateStoreContract, Erase_OfAnotherVersionOrNothing_Conflicts) {
  ASSERT_TRUE(store_->commit(Transaction().put("x", 0, owner("x", "ecu1", 1))));
  EXPECT_FALSE(store_->commit(Transaction().erase<pb::OwnerRecord>("x", 2)));
  EXPECT_FALSE(store_->commit(Transaction().erase<pb::OwnerRecord>("y", 0)));
  ASSERT_TRUE(store_->commit(Transaction().erase<pb::OwnerRecord>("x", 1)));
  EXPECT_EQ(store_->get<pb::OwnerRecord>("x")->version, 0u);
  ASSERT_TRUE(store_->commit(Transaction().put("x", 0, owner("x", "ecu3", 3))));
}

TEST_P(StateStoreContract, Tables_WithTheSameKey_AreApart) {
  pb::WorkloadRecord workload;
  workload.mutable_spec()->set_name("x");
  ASSERT_TRUE(store_->commit(
      Transaction().put("x", 0, owner("x", "ecu1", 1)).put("x", 0, workload)));
  EXPECT_EQ(store_->list<pb::WorkloadRecord>()->size(), 1u);
  EXPECT_EQ(store_->list<pb::OwnerRecord>()->size(), 1u);
  EXPECT_TRUE(store_->list<pb::OperationRecord>()->empty());
}

TEST_P(StateStoreContract, List_IsSortedByName) {
  for (const char* name : {"c", "a", "b"}) {
    ASSERT_TRUE(store_->commit(Transaction().put(name, 0, owner(name, "n", 1))));
  }
  std::string order;
  const auto records = store_->list<pb::OwnerRecord>();
  for (const auto& record : *records) order += record.value.workload();
  EXPECT_EQ(order, "abc");
}

TEST_P(StateStoreContract, Events_HaveRisingIdsAcrossReopen_AndFilter) {
  ASSERT_TRUE(store_->commit(Transaction().event(event("a", "1")).event(event("b", "2"))));
  const std::uint64_t last = *store_->last_event_id();
  reopen();
  ASSERT_TRUE(store_->commit(Transaction().event(event("a", "3"))));
  EXPECT_GT(*store_->last_event_id(), last);
  auto all = store_->events(0, "");
  ASSERT_EQ(all->size(), 3u);
  EXPECT_LT((*all)[0].id(), (*all)[1].id());
  EXPECT_LT((*all)[1].id(), (*all)[2].id());
  auto of_a = store_->events(0, "a");
  ASSERT_EQ(of_a->size(), 2u);
  EXPECT_EQ((*of_a)[1].text(), "3");
  EXPECT_EQ(store_->events(last, "")->size(), 1u);
}

TEST_P(StateStoreContract, BinaryKeysAndValues_ComeBackWhole) {
  pb::WorkloadRecord record;
  record.mutable_spec()->set_hash_key(std::string("\0\1\xff key", 8));
  ASSERT_TRUE(store_->commit(Transaction().put("x", 0, record)));
  reopen();
  EXPECT_EQ(store_->get<pb::WorkloadRecord>("x")->value.spec().hash_key(),
            record.spec().hash_key());
}

INSTANTIATE_TEST_SUITE_P(All, StateStoreContract, testing::Values("memory", "sqlite"),
                         [](const auto& test) { return std::string(test.param); });

TEST(SqliteStateStore, WriterKilledAtAnyMoment_NoCommitIsLostOrHalf) {
  // The child commits incarnation 1, 2, 3, … of two records in one transaction, and says
  // each number once its commit has returned. It is killed at a random moment.
  unsigned seed = static_cast<unsigned>(::getpid());
  std::printf("seed %u\n", seed);
  Folder folder;
  std::uint64_t expected_at_least = 0;
  for (int round = 0; round < 12; ++round) {
    int pipe_fds[2];
    ASSERT_EQ(::pipe(pipe_fds), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = open_sqlite_store(folder.path());
      if (!store) ::_exit(1);
      while (true) {
        auto a = (*store)->get<pb::OwnerRecord>("a");
        auto b = (*store)->get<pb::OwnerRecord>("b");
        if (!a || !b) ::_exit(2);
        const std::uint64_t next = a->value.incarnation() + 1;
        if (!(*store)->commit(Transaction()
                                  .put("a", a->version, owner("a", "n", next))
                                  .put("b", b->version, owner("b", "n", next))
                                  .event(event("a", std::to_string(next))))) {
          ::_exit(3);
        }
        if (::write(pipe_fds[1], &next, sizeof next) != sizeof next) ::_exit(4);
      }
    }
    ::close(pipe_fds[1]);
    std::uint64_t said = 0, number = 0;
    const int wanted = 1 + static_cast<int>(rand_r(&seed) % 25);
    for (int i = 0; i < wanted && ::read(pipe_fds[0], &number, sizeof number) == sizeof number; ++i) {
      said = number;
    }
    ::usleep(rand_r(&seed) % 3000);  // somewhere inside a later commit
    ::kill(child, SIGKILL);
    while (::read(pipe_fds[0], &number, sizeof number) == sizeof number) said = number;
    ::close(pipe_fds[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer ended by itself: " << status;
    expected_at_least = std::max(expected_at_least, said);

    auto store = open_sqlite_store(folder.path());
    ASSERT_TRUE(store) << store.error().message();
    const auto a = (*store)->get<pb::OwnerRecord>("a");
    const auto b = (*store)->get<pb::OwnerRecord>("b");
    ASSERT_TRUE(a && b);
    EXPECT_GE(a->value.incarnation(), expected_at_least);
    EXPECT_LE(a->value.incarnation(), expected_at_least + 1);
    EXPECT_EQ(a->value.incarnation(), b->value.incarnation());
    EXPECT_EQ(*(*store)->last_event_id(), a->value.incarnation());
    expected_at_least = a->value.incarnation();
  }
}

TEST(SqliteStateStore, WrittenByANewerSchema_IsRefused) {
  Folder folder;
  ASSERT_TRUE(open_sqlite_store(folder.path()));
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open((folder.path() + "/state.db").c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "PRAGMA user_version=2", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(db);
  auto refused = open_sqlite_store(folder.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kUnsupported);
}

TEST(SqliteStateStore, NotADatabase_IsCorruptAndLeftAlone) {
  Folder folder;
  const std::string path = folder.path() + "/state.db";
  FILE* file = std::fopen(path.c_str(), "w");
  for (int i = 0; i < 1000; ++i) std::fputs("not a database ", file);
  std::fclose(file);
  auto refused = open_sqlite_store(folder.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kCorrupt);
  EXPECT_EQ(std::filesystem::file_size(path), 15'000u);
}

TEST(SqliteStateStore, File_IsForItsOwnerOnly) {
  Folder folder;
  auto store = open_sqlite_store(folder.path());
  ASSERT_TRUE(store);
  using std::filesystem::perms;
  EXPECT_EQ(std::filesystem::status(folder.path() + "/state.db").permissions() &
                (perms::group_all | perms::others_all),
            perms::none);
}

TEST(SqliteStateStore, TwoConnections_OnlyOneOfTwoEqualChangesWins) {
  Folder folder;
  auto first = open_sqlite_store(folder.path());
  auto second = open_sqlite_store(folder.path());
  ASSERT_TRUE(first && second);
  ASSERT_TRUE((*first)->commit(Transaction().put("x", 0, owner("x", "ecu1", 1))));
  ASSERT_TRUE((*second)->commit(Transaction().put("x", 1, owner("x", "ecu2", 2))));
  auto late = (*first)->commit(Transaction().put("x", 1, owner("x", "ecu3", 2)));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Code::kConflict);
  EXPECT_EQ((*first)->get<pb::OwnerRecord>("x")->value.owner(), "ecu2");
}

}  // namespace
}  // namespace baton::coordinator
