// A real file system that is full, and one that turns read-only: old checkpoints go, new ones
// are stored, the alarm is raised and ends, and nothing that is listed is wrong.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <thread>

#include "store_bench.h"

namespace baton::storage {
namespace {

using namespace std::chrono_literals;
using testing_ground::StoreTest;
using testing_ground::Workload;

class FullDiskTest : public StoreTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "root, to mount a small tmpfs";
    StoreTest::SetUp();
    // In a mount namespace of this thread's own.
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=6m") != 0) {
      GTEST_SKIP() << "mounting a tmpfs: " << std::strerror(errno);
    }
    mounted_ = true;
    options_.segment_bytes = 256u << 10;
    options_.retention.keep_last = 10'000;
    options_.reserve_bytes = 512u << 10;
    options_.maintenance_thread = true;
    options_.alarm = [this](const std::string& problem) {
      std::lock_guard lock(mutex_);
      alarms_.push_back(problem);
    };
  }
  void TearDown() override {
    store_.reset();
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
    if (!folder_.empty()) StoreTest::TearDown();
  }
  std::vector<std::string> alarms() {
    std::lock_guard lock(mutex_);
    return alarms_;
  }
  // As a replica does: again until it is stored.
  void checkpoint(Workload& w, int& refused) {
    for (int tries = 0;; ++tries) {
      {
        const auto lease = store_->lease();
        auto put = w.put_pages(store_->pages());
        Result<void> done = put ? Result<void>() : Result<void>(put.error());
        if (put) {
          // Taken once: a refused commit leaves the parent as it was.
          if (!pending_) pending_ = w.take(w.seq == 0);
          done = store_->commit(*pending_, Durability::kSynced);
        }
        if (done) {
          pending_.reset();
          return;
        }
        ASSERT_TRUE(done.error().code == Code::kNoSpace || done.error().code == Code::kUnknownOutcome)
            << done.error().message();
      }
      ++refused;
      ASSERT_LT(tries, 200) << "no room was made: " << store_->problem();
      std::this_thread::sleep_for(20ms);
    }
  }

  bool mounted_ = false;
  std::mutex mutex_;
  std::vector<std::string> alarms_;
  std::optional<CheckpointRecord> pending_;
};

TEST_F(FullDiskTest, FullTmpfs_OldCheckpointsGo_NewOnesAreStored) {
  Workload w("w");
  open_with(w);
  int refused = 0;
  for (std::uint64_t round = 1; round <= 150 && !HasFatalFailure(); ++round) {
    for (std::uint64_t i = 0; i < 200; ++i) w.write(1, i, round * 1000 + i);
    checkpoint(w, refused);
    if (round == 5) {
      ASSERT_TRUE(store_->mark("w", 5, {{"kept"}, {}, {}}));
    }
    ASSERT_EQ(w.compare(*store_, w.seq), "") << round;
  }
  EXPECT_GT(refused, 0) << "15 MiB were written to 6";
  EXPECT_GT(store_->stats().shed, 0u);
  ASSERT_FALSE(alarms().empty());
  EXPECT_TRUE(alarms()[0].starts_with("disk full")) << alarms()[0];
  for (int i = 0; i < 250 && !store_->problem().empty(); ++i) std::this_thread::sleep_for(20ms);
  EXPECT_EQ(store_->problem(), "") << "the alarm goes on though there is room";
  const auto held = seqs(w);
  EXPECT_EQ(held.front(), 5u) << "tagged";
  EXPECT_EQ(held.back(), 150u);
  for (std::uint64_t seq : held) EXPECT_EQ(w.compare(*store_, seq), "");
  open();
  EXPECT_EQ(seqs(w), held);
  for (std::uint64_t seq : held) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_F(FullDiskTest, ReadOnlyFileSystem_IsRefused_AndServesAgainAfterwards) {
  Workload w("w");
  open_with(w);
  w.write(1, 1, 1);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  store_.reset();
  ASSERT_EQ(::mount(nullptr, folder_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0) << std::strerror(errno);
  auto refused = Store::open(folder_ + "/store", options_, clock_);
  EXPECT_FALSE(refused) << "a store that cannot be written to is no store";
  ASSERT_EQ(::mount(nullptr, folder_.c_str(), nullptr, MS_REMOUNT, "size=6m"), 0);
  open();
  EXPECT_EQ(w.compare(*store_, 1), "");
  w.write(1, 1, 2);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  EXPECT_EQ(w.compare(*store_, 2), "");
}

}  // namespace
}  // namespace baton::storage
