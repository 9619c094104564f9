// A disk that fails: every single write, sync, truncate, rename, unlink and folder sync of a
// history is made to fail once, with ENOSPC or EIO. The store stays at the last committed
// state, says so, goes on when the disk works again, and a power cut right after loses
// nothing that was acknowledged as synced.
#include <gtest/gtest.h>

#include <set>

#include "storage/segment_store.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

namespace fs = std::filesystem;
using testing_ground::StoreTest;
using testing_ground::Workload;

class FaultyDisk final : public Disk {
 public:
  Result<void> write_at(int fd, std::span<const iovec> parts, std::uint64_t at) override {
    if (fails()) {
      // As a full disk does: some of it lands.
      std::uint64_t total = 0;
      for (const iovec& p : parts) total += p.iov_len;
      if (total > 1) {
        iovec half{parts[0].iov_base, (parts[0].iov_len + 1) / 2};
        (void)Disk::write_at(fd, std::span(&half, 1), at);
      }
      return failure("pwritev");
    }
    return Disk::write_at(fd, parts, at);
  }
  Result<void> sync(int fd) override { return fails() ? failure("fdatasync") : Disk::sync(fd); }
  Result<void> truncate(int fd, std::uint64_t bytes) override {
    return fails() ? failure("ftruncate") : Disk::truncate(fd, bytes);
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return fails() ? failure("rename") : Disk::rename(from, to);
  }
  Result<void> unlink(const std::string& path) override {
    return fails() ? failure("unlink") : Disk::unlink(path);
  }
  Result<void> sync_folder(const std::string& path) override {
    return fails() ? failure("fsync") : Disk::sync_folder(path);
  }

  // Operations [from, from + count) fail.
  void arm(std::uint64_t from, std::uint64_t count, int error) {
    operations = 0;
    from_ = from;
    count_ = count;
    error_ = error;
  }
  void disarm() { count_ = 0; }
  std::uint64_t operations = 0;

 private:
  bool fails() {
    const std::uint64_t n = operations++;
    return n >= from_ && n - from_ < count_;
  }
  Result<void> failure(std::string_view operation) {
    return errno_error(error_, operation, "injected");
  }
  std::uint64_t from_ = 0, count_ = 0;
  int error_ = 0;
};

class DiskFaultTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    options_.disk = &disk_;
    options_.segment_bytes = 64u << 10;
    options_.retention.keep_last = 2;
  }
  void TearDown() override {
    disk_.disarm();
    StoreTest::TearDown();
  }
  static void write_some(Workload& w, std::uint64_t round) {
    for (std::uint64_t k = 0; k < 30; ++k) w.write(1, (round * 11 + k) % 60, round * 100 + k);
  }
  // A history with everything in it: commits, sealing, compaction, collection.
  void play(Workload& w, std::set<std::uint64_t>& acknowledged) {
    for (std::uint64_t round = 1; round <= 6; ++round) {
      write_some(w, round);
      // After a refused commit the next one is against what was committed, or full.
      CheckpointRecord r;
      auto lease = store_->lease();
      const bool full = w.seq != tip(w);
      auto put = w.put_pages(store_->pages());
      r = w.take(full);
      auto done = put ? store_->commit(r, Durability::kSynced) : Result<void>(put.error());
      if (done) {
        acknowledged.insert(r.seq);
        EXPECT_EQ(tip(w), r.seq);
      } else {
        EXPECT_TRUE(done.error().code == Code::kNoSpace || done.error().code == Code::kFailed ||
                    done.error().code == Code::kUnknownOutcome)
            << done.error().message();
        EXPECT_TRUE(done.error().code == Code::kUnknownOutcome || tip(w) < r.seq);
      }
      EXPECT_EQ(tip(w) == 0 ? "" : w.compare(*store_, tip(w)), "");
      lease.reset();
      if (round % 2 == 0) (void)store_->gc();
      if (round % 3 == 0) (void)store_->maintain();
    }
  }
  FaultyDisk disk_;
};

TEST_F(DiskFaultTest, EachOperationFailingOnce_NeverLosesAnAcknowledgedCommit) {
  Workload dry("w");
  open_with(dry);
  disk_.arm(0, 0, 0);
  std::set<std::uint64_t> all;
  play(dry, all);
  ASSERT_EQ(all.size(), 6u);
  const std::uint64_t operations = disk_.operations;
  ASSERT_GT(operations, 30u);

  std::set<std::uint64_t> any_failed;
  for (int error : {ENOSPC, EIO}) {
    for (std::uint64_t n = error == EIO; n < operations + 5; ++n) {
      for (const std::uint64_t count : {n % 2 ? std::uint64_t{1} : std::uint64_t{4}}) {
        SCOPED_TRACE("operation " + std::to_string(n) + " and " + std::to_string(count - 1) +
                     " more fail with errno " + std::to_string(error));
        store_.reset();
        fs::remove_all(folder_ + "/store");
        Workload w("w");
        open_with(w);
        disk_.arm(n, count, error);
        std::set<std::uint64_t> acknowledged;
        play(w, acknowledged);
        if (acknowledged.size() < 6) any_failed.insert(n);
        EXPECT_GE(acknowledged.size(), count == 1 ? 4u : 2u);
        disk_.disarm();
        // The disk works again, so the store does.
        write_some(w, 50);
        auto done = w.checkpoint(*store_, Durability::kSynced, true);
        ASSERT_TRUE(done) << done.error().message();
        EXPECT_EQ(w.compare(*store_, w.seq), "");
        open();
        ASSERT_EQ(tip(w), w.seq);
        for (std::uint64_t seq : seqs(w)) ASSERT_EQ(w.compare(*store_, seq), "");
        ASSERT_TRUE(store_->verify()->bad.empty());
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_GT(any_failed.size(), 10u);
}

// Opens right after the failure instead of going on: the tip is the last acknowledged one, or
// the one whose outcome was said to be unknown.
TEST_F(DiskFaultTest, ReopenRightAfterAFailure_FindsTheLastAcknowledgedCommit) {
  for (std::uint64_t n = 0; n < 60; ++n) {
    store_.reset();
    fs::remove_all(folder_ + "/store");
    Workload w("w");
    open_with(w);
    disk_.arm(n, 1000000, EIO);
    std::uint64_t last = 0, unknown = 0;
    for (std::uint64_t round = 1; round <= 8; ++round) {
      write_some(w, round);
      auto done = w.checkpoint(*store_, Durability::kSynced);
      if (!done) {
        if (done.error().code == Code::kUnknownOutcome) unknown = w.seq;
        break;
      }
      last = w.seq;
      (void)store_->gc();
    }
    disk_.disarm();
    open();
    ASSERT_TRUE(tip(w) == last || (unknown != 0 && tip(w) == unknown)) << n << " " << tip(w);
    for (std::uint64_t seq : seqs(w)) ASSERT_EQ(w.compare(*store_, seq), "");
  }
}

// A disk whose cache loses what was not synced: after a failed fsync the kernel drops the
// pages, so what was written before it must be written again to be safe.
class ForgetfulDisk final : public Disk {
 public:
  Result<void> sync(int fd) override {
    if (fail_next) {
      fail_next = false;
      lost.insert(fd);
      return errno_error(EIO, "fdatasync", "injected");
    }
    if (lost.contains(fd)) ++trusted_lost;  // a success that means nothing
    return Disk::sync(fd);
  }
  bool fail_next = false;
  int trusted_lost = 0;
  std::set<int> lost;
};

TEST_F(DiskFaultTest, FailedSyncOfPages_WritesThemAgainElsewhere) {
  ForgetfulDisk disk;
  SegmentStoreOptions options;
  options.disk = &disk;
  auto pages = open_segment_store(folder_ + "/pages", options).value();
  Workload w("w");
  write_some(w, 1);
  ASSERT_TRUE(w.put_pages(*pages));
  ASSERT_TRUE(pages->sync(Durability::kSynced));
  write_some(w, 2);
  ASSERT_TRUE(w.put_pages(*pages));
  const std::uint64_t before = pages->stats().bytes;
  disk.fail_next = true;
  ASSERT_TRUE(pages->sync(Durability::kSynced));
  EXPECT_GT(pages->stats().bytes, before) << "nothing was written again";
  EXPECT_EQ(disk.trusted_lost, 0);
  EXPECT_EQ(pages->stats().segments, 2u);
  // The first segment loses what came after its last good sync, as a power cut would do it.
  pages.reset();
  std::vector<Digest> all;
  for (std::uint64_t k = 0; k < 30; ++k) all.push_back(w.digest(200 + k));
  std::string first = folder_ + "/pages/seg-00000001.pages";
  fs::resize_file(first, fs::file_size(first) / 2 + 100);
  pages = open_segment_store(folder_ + "/pages", options).value();
  EXPECT_TRUE(pages->verify(w.identity().domain, w.hasher(), all)->empty());
}

}  // namespace
}  // namespace baton::storage
