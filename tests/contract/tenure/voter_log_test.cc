// What a voter has promised is found again after any end of its program, and a disk that was
// put back from a copy is told.
#include "tenure/voter_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

namespace baton::tenure {
namespace {

class VoterLogTest : public ::testing::Test {
 protected:
  VoterLogTest() : folder_(std::filesystem::temp_directory_path() / ("voter-log-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
  }
  ~VoterLogTest() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<VoterLog> open() {
    VoterLog::Callbacks callbacks;
    callbacks.done = [this](std::uint64_t token) { done_ = token; };
    callbacks.problem = [this](const std::string& text) { problem_ = text; };
    auto log = VoterLog::open(folder_, std::move(callbacks));
    EXPECT_TRUE(log) << (log ? "" : log.error().message());
    return log ? std::move(*log) : nullptr;
  }
  std::string file() const { return folder_ / "voter.log"; }
  static pb::VoterState state(const std::string& workload, std::uint64_t incarnation) {
    pb::VoterState out;
    out.mutable_base()->set_workload(workload);
    out.mutable_base()->set_incarnation(incarnation);
    return out;
  }
  static std::uint64_t incarnation(const pb::VoterFile& file, const std::string& workload) {
    for (const auto& one : file.workloads()) {
      if (one.base().workload() == workload) return one.base().incarnation();
    }
    return 0;
  }
  const std::filesystem::path folder_;
  std::atomic<std::uint64_t> done_{0};
  std::string problem_;
};

TEST_F(VoterLogTest, OpenedAgain_HoldsTheNewestOfEach) {
  {
    auto log = open();
    EXPECT_EQ(log->found().start(), 0u);
    log->append(1, state("a", 1));
    log->append(2, state("b", 5));
    log->append(3, state("a", 2));
    log->append(4, state("gone", 9));
    log->erase(5, "gone");
  }
  EXPECT_EQ(done_, 5u);
  auto log = open();
  EXPECT_EQ(log->found().start(), 1u);
  EXPECT_EQ(incarnation(log->found(), "a"), 2u);
  EXPECT_EQ(incarnation(log->found(), "b"), 5u);
  EXPECT_EQ(incarnation(log->found(), "gone"), 0u);
  EXPECT_FALSE(log->doubtful());
}

TEST_F(VoterLogTest, TornAtEveryLength_HoldsWhatWasWholeAndIsNotDoubtful) {
  std::uintmax_t before = 0, after = 1;
  for (std::uintmax_t length = 0; before + length < after; ++length) {
    for (const bool zeros : {false, true}) {   // behind the cut: nothing, or what was never written
      std::filesystem::remove_all(folder_);
      {
        auto log = open();
        before = std::filesystem::file_size(file());
        log->append(1, state("a", 7));
      }
      after = std::filesystem::file_size(file());
      std::filesystem::resize_file(file(), before + length);
      if (zeros) std::filesystem::resize_file(file(), after);
      auto log = open();
      ASSERT_TRUE(log);
      // Its last bytes may be zeros anyway.
      if (!zeros || length + 8 < after - before) {
        EXPECT_EQ(incarnation(log->found(), "a"), 0u) << length;
      }
      EXPECT_FALSE(log->doubtful() && !zeros) << length;
    }
  }
  EXPECT_GT(after, before + 20);
}

TEST_F(VoterLogTest, PutBackFromACopy_IsDoubtful) {
  {
    auto log = open();
    log->append(1, state("a", 3));
  }
  std::filesystem::copy_file(file(), folder_ / "backup");
  std::filesystem::remove(file());
  std::filesystem::copy_file(folder_ / "backup", file());
  auto log = open();
  EXPECT_EQ(incarnation(log->found(), "a"), 3u);
  EXPECT_TRUE(log->doubtful());
}

TEST_F(VoterLogTest, FlippedBitInTheMiddle_IsDoubtful) {
  {
    auto log = open();
    log->append(1, state("a", 3));
    log->append(2, state("b", 4));
  }
  std::string bytes = *read_file(file());
  bytes[40] = static_cast<char>(bytes[40] ^ 1);
  std::ofstream(file(), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  auto log = open();
  EXPECT_TRUE(log->doubtful());
}

TEST_F(VoterLogTest, NoLog_IsRefused) {
  std::filesystem::create_directories(folder_);
  std::ofstream(file()) << "something else";
  auto log = VoterLog::open(folder_, {});
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, Code::kCorrupt);
}

TEST_F(VoterLogTest, ManyEntries_AreWrittenAnewAndStaySmall) {
  {
    auto log = open();
    for (std::uint64_t i = 1; i <= 50'000; ++i) log->append(i, state("workload", i));
  }
  EXPECT_LT(std::filesystem::file_size(file()), kCompactVoterLogBytes + 4096);
  EXPECT_EQ(incarnation(open()->found(), "workload"), 50'000u);
}

}  // namespace
}  // namespace baton::tenure
