// One suite over both Stores: on disk, and in memory alone.
#include <gtest/gtest.h>

#include <thread>

#include "../../unit/storage/store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::Workload;

class StoreContract : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/baton-store-contract-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  void open(StoreOptions options = {}) {
    options.maintenance_thread = false;
    if (options.segment_bytes > 1u << 20) options.segment_bytes = 1u << 20;
    auto opened = GetParam() ? Store::open_in_memory(options, clock_) : Store::open(folder_ + "/store", options, clock_);
    ASSERT_TRUE(opened) << opened.error().message();
    store_ = std::move(*opened);
  }
  std::vector<std::uint64_t> seqs(const Workload& w) {
    std::vector<std::uint64_t> out;
    auto list = store_->list(w.identity().workload);
    for (const auto& info : *list) out.push_back(info.seq);
    return out;
  }
  std::string folder_;
  ManualClock clock_;
  std::unique_ptr<Store> store_;
};

TEST_P(StoreContract, Checkpoints_AtEachDurability_AreThereWithTheirBytes) {
  open();
  Workload w("w"), v("v", DigestKind::kSha256, 2);
  ASSERT_TRUE(store_->add_workload(w.identity()));
  ASSERT_TRUE(store_->add_workload(v.identity()));
  for (auto durability : {Durability::kMemory, Durability::kFlushed, Durability::kSynced}) {
    for (std::uint64_t i = 0; i < 50; ++i) {
      w.write(1, i, w.seq * 100 + i);
      v.write(1, i * 3, v.seq * 100 + i);
    }
    ASSERT_TRUE(w.checkpoint(*store_, durability));
    ASSERT_TRUE(v.checkpoint(*store_, durability));
  }
  for (std::uint64_t seq : {1, 2, 3}) {
    EXPECT_EQ(w.compare(*store_, seq), "");
    EXPECT_EQ(v.compare(*store_, seq), "");
  }
  EXPECT_TRUE(store_->verify()->bad.empty());
  EXPECT_EQ(store_->stats().in_memory, GetParam());
  EXPECT_EQ(store_->load("w", 9).error().code, Code::kNotFound);
  ASSERT_TRUE(store_->drop_workload("v"));
  EXPECT_EQ(store_->list("v").error().code, Code::kNotFound);
  ASSERT_TRUE(store_->gc());
  EXPECT_EQ(w.compare(*store_, 3), "");
}

TEST_P(StoreContract, OlderOwnersAndMissingPages_AreRefused) {
  open();
  Workload w("w");
  ASSERT_TRUE(store_->add_workload(w.identity()));
  w.write(1, 1, 1);
  std::vector<Digest> missing;
  EXPECT_EQ(store_->commit(w.take(), Durability::kFlushed, &missing).error().code, Code::kNotFound);
  EXPECT_EQ(missing, std::vector<Digest>{w.digest(1)});
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kFlushed, true));
  ASSERT_TRUE(store_->raise_incarnation("w", 5));
  w.write(1, 1, 2);
  EXPECT_EQ(w.checkpoint(*store_).error().code, Code::kConflict);
  EXPECT_EQ(store_->raise_incarnation("w", 4).error().code, Code::kConflict);
}

TEST_P(StoreContract, RetentionTagsCompactionAndCollection_GoTogether) {
  StoreOptions options;
  options.retention.keep_last = 3;
  options.segment_bytes = 128u << 10;
  open(options);
  Workload w("w");
  ASSERT_TRUE(store_->add_workload(w.identity()));
  for (std::uint64_t round = 1; round <= 400; ++round) {
    for (std::uint64_t i = 0; i < 20; ++i) w.write(1, (round * 20 + i) % 100, round * 100 + i);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kMemory));
    if (round == 10) {
      ASSERT_TRUE(store_->mark("w", 10, {{"kept"}, {}, {}}));
    }
    if (round % 25 == 0) {
      ASSERT_TRUE(store_->maintain());
      ASSERT_TRUE(store_->gc());
    }
  }
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{10, 398, 399, 400}));
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
  EXPECT_LT(store_->stats().pages.bytes, 2u << 20) << "some 5 MiB were written";
  EXPECT_GT(store_->stats().compactions, 0u);
}

TEST_P(StoreContract, Budget_ShedsOldCheckpoints_AndWritingGoesOn) {
  StoreOptions options;
  options.retention.keep_last = 1000;
  options.retention.byte_budget = 2u << 20;
  open(options);
  Workload w("w");
  ASSERT_TRUE(store_->add_workload(w.identity()));
  std::uint64_t refused = 0;
  for (std::uint64_t round = 1; round <= 200; ++round) {
    for (std::uint64_t i = 0; i < 40; ++i) w.write(1, i, round * 100 + i);
    const auto lease = store_->lease();
    if (!w.put_pages(store_->pages())) {
      ++refused;
      ASSERT_NE(store_->problem(), "");
      ASSERT_TRUE(store_->maintain());
      ASSERT_TRUE(w.put_pages(store_->pages())) << "room was made";
    }
    ASSERT_TRUE(store_->commit(w.take(), Durability::kFlushed));
    ASSERT_EQ(w.compare(*store_, round), "");
  }
  EXPECT_LE(store_->stats().pages.bytes, 2u << 20);
  EXPECT_GT(store_->stats().shed, 0u);
  EXPECT_GT(refused, 0u);
  EXPECT_EQ(store_->problem(), "");
  EXPECT_LT(seqs(w).size(), 200u);
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_P(StoreContract, SeveralThreads_CommitReadAndCollectAtOnce) {
  StoreOptions options;
  options.retention.keep_last = 5;
  options.segment_bytes = 256u << 10;
  open(options);
  std::atomic<bool> stop{false};
  std::jthread collector([&] {
    while (!stop) EXPECT_TRUE(store_->gc());
  });
  std::vector<std::jthread> writers;
  for (int n = 0; n < 3; ++n) {
    writers.emplace_back([&, n] {
      Workload w("w" + std::to_string(n), DigestKind::kXxh3_128, static_cast<std::uint8_t>(n + 1));
      ASSERT_TRUE(store_->add_workload(w.identity()));
      for (std::uint64_t round = 1; round <= 60; ++round) {
        for (std::uint64_t i = 0; i < 20; ++i) w.write(1, (round + i * 7) % 60, round * 50 + i);
        auto done = w.checkpoint(*store_);
        ASSERT_TRUE(done) << done.error().message();
        ASSERT_EQ(w.compare(*store_, round), "");
      }
    });
  }
  writers.clear();
  stop = true;
}

INSTANTIATE_TEST_SUITE_P(All, StoreContract, testing::Values(false, true),
                         [](const auto& p) { return p.param ? "InMemory" : "OnDisk"; });

}  // namespace
}  // namespace baton::storage
