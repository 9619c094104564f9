// What a power cut, a torn write or a flipped bit leaves behind, made on copies of a store's
// files: after each, the store opens to a committed state, and nothing it serves is wrong.
#include <gtest/gtest.h>

#include <fstream>

#include "base/fd.h"
#include "storage/bytes/checksum.h"
#include "storage/log/catalog_log.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

namespace fs = std::filesystem;
using testing_ground::StoreTest;
using testing_ground::Workload;

class DamageTest : public StoreTest {
 protected:
  // Commits `count` checkpoints and closes the store. Remembers the log's size after each.
  void fill(Workload& w, int count, Durability durability) {
    open_with(w);
    log_sizes_.push_back(store_->stats().log_bytes);
    for (int i = 1; i <= count; ++i) {
      for (std::uint64_t k = 0; k < 6; ++k) {
        w.write(1, (static_cast<std::uint64_t>(i) * 5 + k) % 20, static_cast<std::uint64_t>(i) * 50 + k);
      }
      ASSERT_TRUE(w.checkpoint(*store_, durability));
      log_sizes_.push_back(store_->stats().log_bytes);
      page_sizes_.push_back(store_->stats().pages.bytes);
    }
    store_.reset();
    fs::rename(folder_ + "/store", folder_ + "/good");
  }
  std::string find(const std::string& part) {
    for (const auto& e : fs::recursive_directory_iterator(folder_ + "/store")) {
      if (e.path().filename().string().find(part) != std::string::npos) return e.path();
    }
    return {};
  }
  void copy() {
    store_.reset();
    fs::remove_all(folder_ + "/store");
    fs::copy(folder_ + "/good", folder_ + "/store", fs::copy_options::recursive);
  }
  // Opens the damaged copy; all it lists must be right. Returns the tip.
  std::uint64_t open_and_check(const Workload& w, bool may_miss_pages = false) {
    open();
    if (!store_) return 0;
    for (const auto& info : infos(w)) {
      if (may_miss_pages && info.missing_pages != 0) continue;
      EXPECT_EQ(w.compare(*store_, info.seq), "") << "w@" << info.seq;
    }
    return tip(w);
  }
  // After any damage the workload can go on with a full checkpoint.
  void expect_goes_on(Workload w) {
    w.seq = std::max<std::uint64_t>(w.seq, 100);
    w.write(1, 1, 123456);
    auto done = w.checkpoint(*store_, Durability::kSynced, true);
    ASSERT_TRUE(done) << done.error().message();
    EXPECT_EQ(w.compare(*store_, w.seq), "");
    open();
    EXPECT_EQ(w.compare(*store_, w.seq), "");
  }
  void flip(const std::string& path, std::uint64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    char c;
    file.get(c);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(c ^ 0x10));
  }

  std::vector<std::uint64_t> log_sizes_, page_sizes_;
};

TEST_F(DamageTest, Log_CutAtAnyByte_OpensToTheLastWholeCommit) {
  Workload w("w");
  fill(w, 5, Durability::kSynced);
  for (std::uint64_t cut = log_sizes_[0]; cut <= log_sizes_.back(); cut += 1 + cut % 37) {
    copy();
    fs::resize_file(find("catalog-"), cut);
    std::uint64_t whole = 0;
    while (whole + 1 < log_sizes_.size() && log_sizes_[whole + 1] <= cut) ++whole;
    ASSERT_EQ(open_and_check(w), whole) << "cut at " << cut;
  }
  for (std::uint64_t boundary : log_sizes_) {
    copy();
    fs::resize_file(find("catalog-"), boundary);
    std::uint64_t whole = 0;
    while (whole + 1 < log_sizes_.size() && log_sizes_[whole + 1] <= boundary) ++whole;
    ASSERT_EQ(open_and_check(w), whole);
    expect_goes_on(w);
  }
}

TEST_F(DamageTest, Log_FlippedInAnyRecord_ServesNothingWrong) {
  Workload w("w");
  fill(w, 5, Durability::kSynced);
  for (std::uint64_t at = 0; at < log_sizes_.back(); at += 1 + at % 41) {
    copy();
    flip(find("catalog-"), at);
    const std::uint64_t now = open_and_check(w);
    std::uint64_t hit = 0;  // the checkpoint whose record was hit
    while (hit < log_sizes_.size() && log_sizes_[hit] <= at) ++hit;
    if (at >= log_sizes_[0]) {
      ASSERT_GE(now, hit - 1) << "flipped at " << at;
      ASSERT_LE(now, 5u);
    }
    if (hit < 5) {
      EXPECT_GT(store_->stats().damaged_records, 0u) << at;
    }
    if (at % 16 == 0) expect_goes_on(w);
  }
}

TEST_F(DamageTest, Log_WithGarbageBehindIt_KeepsEveryCommit) {
  Workload w("w");
  fill(w, 3, Durability::kSynced);
  for (std::size_t bytes : {1u, 63u, 64u, 5000u}) {
    copy();
    std::ofstream(find("catalog-"), std::ios::app | std::ios::binary) << std::string(bytes, 'E');
    EXPECT_EQ(open_and_check(w), 3u);
    expect_goes_on(w);
  }
}

// Unsynced commits: the log may survive a power cut that their pages did not.
TEST_F(DamageTest, Pages_CutAtAnyByteUnderUnsyncedCommits_GivesUpThoseThatLostPages) {
  Workload w("w");
  fill(w, 6, Durability::kFlushed);
  for (std::uint64_t cut = 0; cut <= page_sizes_.back(); cut += 1 + cut % 211) {
    copy();
    fs::resize_file(find("seg-"), std::min<std::uint64_t>(cut, fs::file_size(find("seg-"))));
    std::uint64_t whole = 0;
    while (whole < page_sizes_.size() && page_sizes_[whole] <= cut) ++whole;
    ASSERT_EQ(open_and_check(w), whole) << "cut at " << cut;
    ASSERT_EQ(store_->stats().rolled_back, 6 - whole);
  }
  expect_goes_on(w);
}

TEST_F(DamageTest, Pages_FlippedUnderSyncedCommits_AreReportedAndTheRestServed) {
  Workload w("w");
  fill(w, 4, Durability::kSynced);
  for (std::uint64_t at = 0; at < page_sizes_.back(); at += 1 + at % 131) {
    copy();
    flip(find("seg-"), at);
    ASSERT_EQ(open_and_check(w, true), 4u) << at;  // the catalog is whole
    if (at < 64) continue;                         // the segment's head
    std::uint64_t missing = 0;
    for (const auto& info : infos(w)) missing += info.missing_pages;
    EXPECT_GT(missing, 0u) << at;
    EXPECT_FALSE(store_->verify()->bad.empty());
  }
  expect_goes_on(w);
}

TEST_F(DamageTest, Frames_FlippedUnderAnOpenStore_AreFoundAndWhatIsSoundIsWrittenAgain) {
  Workload w("w");
  fill(w, 4, Durability::kSynced);
  std::uint64_t described = 0, lost = 0;
  for (std::uint64_t at = 64; at < page_sizes_.back(); at += 1 + at % 61) {
    copy();
    open();
    ASSERT_TRUE(store_);
    flip(find("seg-"), at);
    auto first = store_->verify();
    ASSERT_TRUE(first);
    EXPECT_FALSE(first->bad.empty()) << "flipped at " << at;
    auto second = store_->verify();
    ASSERT_TRUE(second);
    for (const auto& page : second->bad) EXPECT_NE(page.page.reason.find("not in the store"), std::string::npos) << page.page.reason;
    (second->bad.empty() ? described : lost) += 1;
    const std::uint64_t left = second->bad.size();
    store_.reset();   // and as an agent's next start finds it
    open_and_check(w, true);
    EXPECT_LE(store_->verify()->bad.size(), left) << "flipped at " << at;
  }
  EXPECT_GT(described, 0u) << "no flip was in what describes pages";
  EXPECT_GT(lost, 0u) << "no flip was in a page";
}

TEST_F(DamageTest, SealedSegment_WithADamagedFooter_IsScanned) {
  options_.segment_bytes = 64u << 10;
  Workload w("w");
  fill(w, 60, Durability::kSynced);
  copy();
  std::vector<std::string> sealed;
  for (const auto& e : fs::directory_iterator(folder_ + "/store/pages")) {
    std::string bytes = read_file(e.path()).value_or("");
    if (bytes.size() > 8 && bytes.ends_with("BATONEND")) sealed.push_back(e.path());
  }
  ASSERT_FALSE(sealed.empty());
  for (const std::string& path : sealed) flip(path, fs::file_size(path) - 30);
  EXPECT_EQ(open_and_check(w), 60u);
  copy();
  for (const std::string& path : sealed) fs::resize_file(path, fs::file_size(path) - 5);
  EXPECT_EQ(open_and_check(w), 60u);
}

TEST_F(DamageTest, Identity_Damaged_IsReadFromItsCopyOrSaidClearly) {
  Workload w("w");
  fill(w, 2, Durability::kSynced);
  copy();
  flip(folder_ + "/store/workloads/w/identity", 20);
  EXPECT_EQ(open_and_check(w), 2u);
  copy();
  flip(folder_ + "/store/workloads/w/identity", 20);
  flip(folder_ + "/store/workloads/w/identity.copy", 20);
  auto opened = Store::open(folder_ + "/store", options_, clock_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::kCorrupt);
  EXPECT_FALSE(opened.error().hint.empty());
}

TEST_F(DamageTest, LeftoversOfUnfinishedWork_AreRemoved) {
  Workload w("w");
  fill(w, 2, Durability::kSynced);
  copy();
  fs::create_directory(folder_ + "/store/workloads/half-made");
  fs::create_directory(folder_ + "/store/workloads/.drop-old");
  std::ofstream(folder_ + "/store/workloads/w/catalog.new") << "half";
  std::ofstream(folder_ + "/store/pages/seg-000000ff.pages") << "BATON";
  EXPECT_EQ(open_and_check(w), 2u);
  EXPECT_FALSE(fs::exists(folder_ + "/store/workloads/half-made"));
  EXPECT_FALSE(fs::exists(folder_ + "/store/workloads/.drop-old"));
  EXPECT_FALSE(fs::exists(folder_ + "/store/workloads/w/catalog.new"));
  EXPECT_FALSE(fs::exists(folder_ + "/store/pages/seg-000000ff.pages"));
  expect_goes_on(w);
}

TEST_F(DamageTest, Manifest_DamagedOnDiskWhileOpen_SaysCorruptAndIsNotCarriedOver) {
  Workload w("w");
  open_with(w);
  w.write(1, 1, 1);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  w.write(1, 1, 2);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  const std::string path = find("catalog-");
  const std::string bytes = read_file(path).value();
  flip(path, bytes.find("manifest of 1"));
  EXPECT_EQ(store_->load("w", 1).error().code, Code::kCorrupt);
  auto verified = store_->verify();
  ASSERT_EQ(verified->bad_manifests.size(), 1u);
  EXPECT_EQ(verified->bad_manifests[0].workload, "w");
  EXPECT_EQ(verified->bad_manifests[0].seq, 1u);
  EXPECT_EQ(w.compare(*store_, 2), "");
}

TEST_F(DamageTest, Manifest_HealedWithTheRightBytes_IsWholeAgainAlsoAfterAReopen) {
  Workload w("w");
  open_with(w);
  for (std::uint64_t i = 1; i <= 3; ++i) {
    w.write(1, i, i);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  }
  const std::string path = find("catalog-");
  const std::string bytes = read_file(path).value();
  flip(path, bytes.find("manifest of 2"));
  ASSERT_EQ(store_->load("w", 2).error().code, Code::kCorrupt);
  auto wrong = store_->heal_manifest("w", 2, Workload::manifest_of(3));
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Code::kCorrupt);
  ASSERT_TRUE(store_->heal_manifest("w", 2, Workload::manifest_of(2)));
  EXPECT_EQ(w.compare(*store_, 2), "");
  EXPECT_TRUE(store_->verify()->bad_manifests.empty());
  open();
  for (std::uint64_t seq : {1, 2, 3}) EXPECT_EQ(w.compare(*store_, seq), "");
  EXPECT_EQ(store_->stats().damaged_records, 0u);
}

TEST_F(DamageTest, Verify_InShares_ReadsEachPageAndManifestOnce) {
  Workload w("w");
  open_with(w);
  for (std::uint64_t i = 0; i < 7; ++i) {
    for (std::uint64_t k = 0; k < 20; ++k) w.write(1, i * 20 + k, 1 + i * 20 + k);
    ASSERT_TRUE(w.checkpoint(*store_));
  }
  std::uint64_t pages = 0, checkpoints = 0;
  for (std::uint32_t part = 1; part <= 5; ++part) {
    auto one = store_->verify({part, 5, {}});
    ASSERT_TRUE(one);
    EXPECT_LT(one->pages_checked, 140u / 2);
    pages += one->pages_checked;
    checkpoints += one->checkpoints_checked;
  }
  EXPECT_EQ(pages, 140u);
  EXPECT_EQ(checkpoints, 7u);
  for (VerifyOptions bad : {VerifyOptions{0, 5, {}}, VerifyOptions{6, 5, {}}, VerifyOptions{1, 0, {}}}) {
    EXPECT_EQ(store_->verify(bad).error().code, Code::kInvalid);
  }
}

// Formats from the future are refused as such: not taken for damage, not set aside, not cut.
TEST_F(DamageTest, NewerFormats_AreRefusedAndLeftAlone) {
  Workload w("w");
  fill(w, 3, Durability::kSynced);
  for (const std::string part : {"catalog-", "seg-"}) {
    copy();
    const std::string path = find(part);
    const std::string old = read_file(path).value();
    const std::size_t head = part == "seg-" ? 64 : 32;
    std::string bytes = old;
    bytes[8] = 99;
    const std::uint64_t sum = checksum(std::string_view(bytes).substr(0, head - 8));
    std::memcpy(bytes.data() + head - 8, &sum, 8);
    ASSERT_TRUE(replace_file(path, bytes));
    auto opened = Store::open(folder_ + "/store", options_, clock_);
    ASSERT_FALSE(opened) << part;
    EXPECT_EQ(opened.error().code, Code::kUnsupported);
    EXPECT_NE(opened.error().message().find("version 99"), std::string::npos) << opened.error().message();
    EXPECT_EQ(read_file(path).value(), bytes);
  }
}

}  // namespace
}  // namespace baton::storage
