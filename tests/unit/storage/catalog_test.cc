#include "storage/catalog.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::StoreTest;
using testing_ground::Workload;

class CatalogTest : public StoreTest {};

void write_some(Workload& w, std::uint64_t round) {
  for (std::uint64_t i = 0; i < 20; ++i) w.write(1, (round * 7 + i * 13) % 300, round * 100 + i + 1);
  w.write(2, round, 0);
  if (round % 3 == 0) w.unmap(1, round % 300);
  if (round % 4 == 0) w.write(100 + round, 1, round + 1);
  if (round % 4 == 2) w.remove(100 + round - 2);
}

TEST_F(CatalogTest, Commits_AfterReopen_AreAllThereWithTheirBytes) {
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 0; round < 6; ++round) {
    write_some(w, round);
    auto done = w.checkpoint(*store_);
    ASSERT_TRUE(done) << done.error().message();
  }
  for (int pass = 0; pass < 2; ++pass) {
    ASSERT_EQ(seqs(w).size(), 6u);
    for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "") << seq;
    open();
  }
  EXPECT_EQ(store_->identity("w")->key, w.identity().key);
  auto info = store_->tip("w");
  EXPECT_EQ((*info)->parent_seq, 5u);
  EXPECT_EQ((*info)->pause_ns, 250u);
  EXPECT_EQ((*info)->missing_pages, 0u);
}

TEST_F(CatalogTest, Commit_WithMissingPages_NamesThemAndChangesNothing) {
  Workload w("w");
  open_with(w);
  write_some(w, 0);
  ASSERT_TRUE(w.checkpoint(*store_));
  w.write(1, 5, 4242);
  w.write(1, 6, 4242);
  CheckpointRecord r = w.take();
  std::vector<Digest> missing;
  auto done = store_->commit(r, Durability::kMemory, &missing);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::kNotFound);
  EXPECT_EQ(missing, std::vector<Digest>{w.digest(4242)});
  EXPECT_EQ(*store_->missing_pages(r), missing);
  EXPECT_EQ(tip(w), 1u);
  ASSERT_TRUE(w.put_pages(store_->pages()));
  EXPECT_TRUE(store_->commit(r, Durability::kMemory));
  EXPECT_EQ(w.compare(*store_, 2), "");
}

TEST_F(CatalogTest, Commit_WithAWrongRoot_SaysCorruptAndChangesNothing) {
  Workload w("w");
  open_with(w);
  write_some(w, 0);
  ASSERT_TRUE(w.checkpoint(*store_));
  write_some(w, 1);
  ASSERT_TRUE(w.put_pages(store_->pages()));
  CheckpointRecord good = w.take(), bad = good;
  bad.objects[0].root.bytes[0] ^= std::byte{1};
  EXPECT_EQ(store_->commit(bad, Durability::kSynced).error().code, Code::kCorrupt);
  bad = good;
  bad.objects[0].changes.pop_back();
  EXPECT_EQ(store_->commit(bad, Durability::kSynced).error().code, Code::kCorrupt);
  bad = good;
  bad.objects[0].object_id = 0;
  EXPECT_EQ(store_->commit(bad, Durability::kSynced).error().code, Code::kCorrupt);
  EXPECT_EQ(tip(w), 1u);
  open();
  EXPECT_EQ(tip(w), 1u);
  ASSERT_TRUE(store_->commit(good, Durability::kSynced));
  EXPECT_EQ(w.compare(*store_, 2), "");
}

TEST_F(CatalogTest, Commit_OutOfOrder_IsRefused) {
  Workload w("w");
  open_with(w);
  write_some(w, 0);
  CheckpointRecord unknown_parent = w.take();
  unknown_parent.parent_seq = 0;
  ASSERT_TRUE(w.put_pages(store_->pages()));
  ASSERT_TRUE(store_->commit(unknown_parent, Durability::kMemory));
  CheckpointRecord second = w.take(), third = w.take();
  EXPECT_EQ(store_->commit(third, Durability::kMemory).error().code, Code::kNotFound);
  ASSERT_TRUE(store_->commit(second, Durability::kMemory));
  ASSERT_TRUE(store_->commit(third, Durability::kMemory));
  EXPECT_EQ(store_->commit(second, Durability::kMemory).error().code, Code::kConflict);
  CheckpointRecord fork = third;
  fork.seq = 4;
  fork.parent_seq = 2;
  EXPECT_EQ(store_->commit(fork, Durability::kMemory).error().code, Code::kConflict);
  // Committed again, as after a broken connection.
  EXPECT_TRUE(store_->commit(third, Durability::kSynced));
  EXPECT_EQ(tip(w), 3u);
}

TEST_F(CatalogTest, Commit_OfAnOlderIncarnation_IsRefusedAlsoAfterReopen) {
  Workload w("w");
  open_with(w);
  write_some(w, 0);
  w.incarnation = 5;
  ASSERT_TRUE(w.checkpoint(*store_));
  ASSERT_TRUE(store_->raise_incarnation("w", 7));
  EXPECT_EQ(store_->raise_incarnation("w", 6).error().code, Code::kConflict);
  open();
  EXPECT_EQ(*store_->incarnation("w"), 7u);
  w.incarnation = 6;
  EXPECT_EQ(w.checkpoint(*store_).error().code, Code::kConflict);
  w.incarnation = 7;
  w.restart_from(1, 2);
  EXPECT_TRUE(w.checkpoint(*store_));
}

TEST_F(CatalogTest, NewOwner_ContinuingFromAnOlderCheckpoint_ReplacesTheLaterOnes) {
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 0; round < 5; ++round) {
    write_some(w, round);
    ASSERT_TRUE(w.checkpoint(*store_));
  }
  w.incarnation = 2;
  w.restart_from(3, 4);
  w.write(1, 77, 777);
  ASSERT_TRUE(w.checkpoint(*store_));
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1, 2, 3, 4}));
  EXPECT_EQ(w.compare(*store_, 4), "");
  open();
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1, 2, 3, 4}));
  EXPECT_EQ(w.compare(*store_, 4), "");
}

TEST_F(CatalogTest, AddWorkload_AgainWithAnotherKey_IsAConflict) {
  Workload w("w"), same_domain("v");
  open_with(w);
  EXPECT_TRUE(store_->add_workload(w.identity()));
  WorkloadIdentity other = w.identity();
  other.key[0] ^= std::byte{1};
  EXPECT_EQ(store_->add_workload(other).error().code, Code::kConflict);
  other.workload = "v";
  EXPECT_EQ(store_->add_workload(other).error().code, Code::kConflict);
  EXPECT_TRUE(store_->add_workload(same_domain.identity()));
  other.workload = "../v";
  EXPECT_EQ(store_->add_workload(other).error().code, Code::kInvalid);
  EXPECT_EQ(store_->workloads(), (std::vector<std::string>{"v", "w"}));
}

TEST_F(CatalogTest, UnknownNames_Everywhere_SayNotFound) {
  Workload w("w");
  open_with(w);
  EXPECT_EQ(store_->list("x").error().code, Code::kNotFound);
  EXPECT_EQ(store_->load("w", 1).error().code, Code::kNotFound);
  EXPECT_EQ(store_->drop("w", 1).error().code, Code::kNotFound);
  EXPECT_EQ(store_->drop_workload("x").error().code, Code::kNotFound);
  EXPECT_FALSE((*store_->tip("w")).has_value());
}

TEST_F(CatalogTest, SecondOpener_OfTheSameFolder_IsRefused) {
  open();
  auto second = Store::open(folder_ + "/store", options_, clock_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
}

TEST_F(CatalogTest, FilesAndFolders_Always_AreTheOwnersAlone) {
  ::umask(0);
  Workload w("w");
  open_with(w);
  write_some(w, 0);
  ASSERT_TRUE(w.checkpoint(*store_));
  ASSERT_TRUE(store_->maintain());
  int files = 0;
  for (const auto& e : std::filesystem::recursive_directory_iterator(folder_ + "/store")) {
    struct stat st{};
    ASSERT_EQ(::stat(e.path().c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777, e.is_directory() ? 0700u : 0600u) << e.path();
    ++files;
  }
  EXPECT_GE(files, 6);
  ::umask(022);
}

TEST_F(CatalogTest, DropWorkload_Always_RemovesItsFilesAndPages) {
  Workload w("w"), v("v", DigestKind::kSha256, 2);
  open_with(w);
  ASSERT_TRUE(store_->add_workload(v.identity()));
  write_some(w, 0);
  write_some(v, 1);
  ASSERT_TRUE(w.checkpoint(*store_));
  ASSERT_TRUE(v.checkpoint(*store_));
  ASSERT_TRUE(store_->drop_workload("w"));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/store/workloads/w"));
  ASSERT_TRUE(store_->maintain());
  EXPECT_EQ(w.checkpoint(*store_).error().code, Code::kNotFound);
  ASSERT_TRUE(store_->gc());
  open();
  EXPECT_EQ(store_->workloads(), std::vector<std::string>{"v"});
  EXPECT_EQ(v.compare(*store_, 1), "");
}

TEST_F(CatalogTest, ManyWorkloads_CommittingAtOnceWithMaintenance_AllStayWhole) {
  options_.maintenance_thread = true;
  options_.retention.keep_last = 3;
  std::vector<Workload> workloads;
  for (std::uint8_t i = 0; i < 4; ++i) {
    workloads.emplace_back("w" + std::to_string(i), DigestKind::kXxh3_128,
                           static_cast<std::uint8_t>(i / 2 + 1));  // two share a domain
  }
  open();
  for (auto& w : workloads) ASSERT_TRUE(store_->add_workload(w.identity()));
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  std::atomic<bool> stop{false};
  std::thread collector([&] {
    while (!stop) failed += !store_->gc();
  });
  for (auto& w : workloads) {
    threads.emplace_back([&] {
      for (std::uint64_t round = 0; round < 40; ++round) {
        write_some(w, round);
        auto done = w.checkpoint(*store_, round % 4 ? Durability::kFlushed : Durability::kSynced);
        if (!done) {
          ADD_FAILURE() << done.error().message();
          ++failed;
        }
        store_->list(w.identity().workload).value();
      }
    });
  }
  for (auto& t : threads) t.join();
  stop = true;
  collector.join();
  EXPECT_EQ(failed, 0);
  for (auto& w : workloads) {
    EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{38, 39, 40}));
    for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
  }
  open();
  for (auto& w : workloads) EXPECT_EQ(w.compare(*store_, 40), "");
}

TEST_F(CatalogTest, Clock_AtCommit_GivesTheFreezeTimeInThisNodesTime) {
  Workload w("w");
  clock_.advance(std::chrono::nanoseconds(1'000'000));
  open_with(w);
  write_some(w, 0);
  ASSERT_TRUE(w.checkpoint(*store_));
  auto t = *store_->tip("w");
  EXPECT_EQ(t->commit_wall_ns, 1'000'000u);
  EXPECT_EQ(t->local_freeze_boot_ns, 999'995u);
}

}  // namespace
}  // namespace baton::storage
