// Retention, compaction, garbage collection and verify over the whole store.
#include <gtest/gtest.h>

#include <fstream>

#include "store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::StoreTest;
using testing_ground::Workload;

class RetentionTest : public StoreTest {
 protected:
  std::uint64_t disk_bytes() {
    std::uint64_t sum = 0;
    for (const auto& e : std::filesystem::recursive_directory_iterator(folder_ + "/store")) {
      if (e.is_regular_file()) sum += e.file_size();
    }
    return sum;
  }
};

TEST_F(RetentionTest, KeepLast_OverManyCommits_KeepsExactlyThose) {
  options_.retention.keep_last = 4;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 0; round < 20; ++round) {
    w.write(1, round % 7, round + 1);
    ASSERT_TRUE(w.checkpoint(*store_));
  }
  const std::vector<std::uint64_t> expected{17, 18, 19, 20};
  EXPECT_EQ(seqs(w), expected);
  open();
  EXPECT_EQ(seqs(w), expected);
  for (std::uint64_t seq : expected) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_F(RetentionTest, ManyCommits_WithMaintenance_DoNotGrowTheDisk) {
  options_.retention.keep_last = 2;
  options_.segment_bytes = 256u << 10;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 1; round <= 1200; ++round) {
    for (std::uint64_t i = 0; i < 40; ++i) w.write(1, (round * 40 + i) % 200, round * 1000 + i);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kMemory));
    if (round % 20 == 0) {
      ASSERT_TRUE(store_->maintain());
    }
  }
  EXPECT_GT(store_->stats().compactions, 2u);
  EXPECT_GT(store_->stats().collections, 0u);
  EXPECT_LT(disk_bytes(), 14u << 20);  // some 27 MiB were written
  EXPECT_LT(store_->stats().log_bytes, 4u << 20);
  EXPECT_EQ(w.compare(*store_, 1200), "");
  open();
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1199, 1200}));
  EXPECT_EQ(w.compare(*store_, 1199), "");
  EXPECT_EQ(w.compare(*store_, 1200), "");
}

TEST_F(RetentionTest, LongHistory_KeptWhole_ReplaysAndCompacts) {
  options_.retention.keep_last = 100000;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 1; round <= 600; ++round) {
    w.write(1, round % 90, round);
    if (round % 10 == 0) w.unmap(1, round % 37);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kMemory));
  }
  for (int pass = 0; pass < 3; ++pass) {
    ASSERT_EQ(seqs(w).size(), 600u);
    for (std::uint64_t seq : {1, 2, 255, 256, 257, 258, 513, 514, 600}) {
      EXPECT_EQ(w.compare(*store_, seq), "") << seq;
    }
    if (pass == 0) open();
    // Some are dropped one by one; a later compaction rests on what is left.
    if (pass == 1) {
      for (std::uint64_t seq = 301; seq < 330; ++seq) {
        ASSERT_TRUE(store_->drop("w", seq));
      }
      for (std::uint64_t seq : {300, 330, 600}) EXPECT_EQ(w.compare(*store_, seq), "");
      for (std::uint64_t round = 601; round <= 900; ++round) {
        w.write(1, round % 90, round);
        ASSERT_TRUE(w.checkpoint(*store_, Durability::kMemory));
      }
      ASSERT_TRUE(store_->maintain());
      open();
      for (std::uint64_t seq : {300, 330, 600, 900}) EXPECT_EQ(w.compare(*store_, seq), "");
      EXPECT_EQ(store_->load("w", 310).error().code, Code::kNotFound);
      break;
    }
  }
}

TEST_F(RetentionTest, ByteBudget_WhenReached_DropsTheOldestAndKeepsTheTip) {
  options_.retention.keep_last = 1000;
  options_.retention.byte_budget = 4u << 20;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 1; round <= 200; ++round) {
    for (std::uint64_t i = 0; i < 100; ++i) w.write(1, i, round * 1000 + i);
    auto done = w.checkpoint(*store_, Durability::kMemory);
    ASSERT_TRUE(done) << round << done.error().message();
    ASSERT_TRUE(store_->maintain());
    ASSERT_LE(store_->stats().pages.bytes, 4u << 20);
  }
  EXPECT_LT(seqs(w).size(), 100u);
  EXPECT_GT(seqs(w).size(), 3u);
  EXPECT_EQ(tip(w), 200u);
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_F(RetentionTest, ByteBudget_TooSmallForTheTip_RefusesPutsAndKeepsTheLastCommit) {
  options_.retention.byte_budget = 1u << 20;
  Workload w("w");
  open_with(w);
  for (std::uint64_t i = 0; i < 100; ++i) w.write(1, i, i + 1);
  ASSERT_TRUE(w.checkpoint(*store_));
  for (std::uint64_t i = 0; i < 3000; ++i) w.write(1, i, i + 5000);
  auto done = w.checkpoint(*store_);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::kNoSpace);
  EXPECT_EQ(tip(w), 1u);
  EXPECT_EQ(w.compare(*store_, 1), "");
  // What was put in vain goes at the next collection; smaller checkpoints fit again.
  ASSERT_TRUE(store_->gc());
  w.restart_from(1, 2);
  w.write(1, 3, 999999);
  EXPECT_TRUE(w.checkpoint(*store_));
}

TEST_F(RetentionTest, Gc_BetweenPutAndCommit_LosesNothing) {
  options_.retention.keep_last = 1;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 1; round <= 10; ++round) {
    for (std::uint64_t i = 0; i < 50; ++i) w.write(1, i, round * 100 + i);
    auto lease = store_->lease();
    ASSERT_TRUE(w.put_pages(store_->pages()));
    ASSERT_TRUE(store_->gc());
    ASSERT_TRUE(store_->commit(w.take(), Durability::kSynced));
    lease.reset();
    ASSERT_TRUE(store_->gc());
    EXPECT_EQ(w.compare(*store_, round), "");
    EXPECT_EQ(store_->stats().pages.pages, 50u);
  }
}

TEST_F(RetentionTest, Verify_OfAWholeStore_FindsNothing) {
  Workload w("w"), v("v", DigestKind::kSha256, 2);
  open_with(w);
  ASSERT_TRUE(store_->add_workload(v.identity()));
  for (std::uint64_t i = 0; i < 100; ++i) w.write(1, i, i), v.write(1, i, i);
  ASSERT_TRUE(w.checkpoint(*store_));
  ASSERT_TRUE(v.checkpoint(*store_));
  auto result = store_->verify();
  ASSERT_TRUE(result);
  EXPECT_EQ(result->checkpoints_checked, 2u);
  EXPECT_EQ(result->pages_checked, 200u);
  EXPECT_TRUE(result->bad.empty());
  EXPECT_TRUE(result->bad_manifests.empty());
}

TEST_F(RetentionTest, Verify_WithABadPage_NamesItAndTheCheckpointsThatHoldIt) {
  Workload w("w");
  open_with(w);
  for (std::uint64_t i = 1; i < 100; ++i) w.write(1, i, i);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  for (std::uint64_t i = 1; i < 100; ++i) w.write(1, i, 1000 + i);
  w.write(2, 0, 50);  // only this old page is in both
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  store_.reset();
  // Spoils the payload of the first frames on disk.
  for (const auto& e : std::filesystem::directory_iterator(folder_ + "/store/pages")) {
    if (e.path().extension() != ".pages") continue;
    std::fstream file(e.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(2000);
    file.write("spoiled", 7);
  }
  open();
  auto info = store_->list("w");
  EXPECT_GT((*info)[0].missing_pages, 0u);
  auto result = store_->verify();
  ASSERT_TRUE(result);
  ASSERT_FALSE(result->bad.empty());
  std::map<std::string, int> named;
  for (const auto& b : result->bad) {
    ASSERT_FALSE(b.checkpoints.empty());
    for (const auto& name : b.checkpoints) ++named[name];
  }
  EXPECT_EQ(named["w@1"], static_cast<int>(result->bad.size()));
  EXPECT_LE(named["w@2"], 1);
  // Put again from elsewhere, the store is whole again.
  std::vector<testing_ground::Page> pages;
  std::vector<PagePut> puts;
  for (std::uint64_t i = 1; i < 100; ++i) pages.push_back(testing_ground::make_page(i));
  for (std::uint64_t i = 1; i < 100; ++i) puts.push_back({w.digest(i), pages[i - 1].data()});
  ASSERT_TRUE(store_->pages().put(w.identity().domain, puts));
  EXPECT_TRUE(store_->verify()->bad.empty());
  EXPECT_EQ(w.compare(*store_, 1), "");
}

}  // namespace
}  // namespace baton::storage
