// The lease table against a folder with a file in place of a cgroup: who is frozen, and when.
#include "agent/warden/lease_table.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include <gtest/gtest.h>

#include "base/clock.h"

namespace baton::warden {
namespace {

using namespace std::chrono_literals;

std::uint64_t boot_ns() { return static_cast<std::uint64_t>(read_clock(CLOCK_BOOTTIME).count()); }

class LeaseTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder);
    Fd file = Fd::adopt(::open((folder + "/cgroup.freeze").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(file);
    table = open();
  }
  void TearDown() override { std::filesystem::remove_all(folder); }
  std::unique_ptr<LeaseTable> open() { return std::move(LeaseTable::open(folder + "/leases", "boot").value()); }
  std::string freeze() { return read_file(folder + "/cgroup.freeze").value_or(""); }
  void lease(std::chrono::nanoseconds length) {
    ASSERT_TRUE(table->renew("w", folder, boot_ns() + static_cast<std::uint64_t>(length.count()), 1));
  }

  const std::string folder = ::testing::TempDir() + "lease_table_test." + std::to_string(::getpid());
  std::unique_ptr<LeaseTable> table;
};

TEST_F(LeaseTableTest, Enforce_RunOut_Frozen) {
  lease(20ms);
  EXPECT_NE(table->enforce(), UINT64_MAX);
  EXPECT_EQ(freeze(), "");
  ::usleep(25'000);
  EXPECT_EQ(table->enforce(), UINT64_MAX);
  EXPECT_EQ(freeze(), "1");
  EXPECT_TRUE(table->get("w").frozen);
}

TEST_F(LeaseTableTest, Enforce_InACapture_WaitsForItsEnd) {
  lease(10ms);
  {
    LeaseTable::Capturing capture(*table, "w", true);
    EXPECT_TRUE(capture.allowed());
    ::usleep(30'000);
    table->enforce();
    EXPECT_EQ(freeze(), "") << "the program stands still anyway";
  }
  EXPECT_EQ(freeze(), "1") << "its end is the freeze";
}

TEST_F(LeaseTableTest, Renew_FirstTimeByTwo_OneSlot) {
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t until = boot_ns() + 1'000'000'000;
    std::jthread other([&] { EXPECT_TRUE(table->renew("w", folder, until, 1)); });
    EXPECT_TRUE(table->renew("w", folder, until, 1));
    other.join();
    ASSERT_EQ(table->running(), 1u) << "in round " << i;
    table->forget("w");
  }
}

// A program that was being captured is let go by the kernel when its warden dies.
TEST_F(LeaseTableTest, Enforce_CapturerKilled_FrozenAtOnce) {
  lease(10ms);
  const pid_t child = ::fork();
  if (child == 0) {
    auto mine = open();
    LeaseTable::Capturing capture(*mine, "w", true);
    ::raise(SIGKILL);
  }
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);   // not reaped
  ::usleep(15'000);
  table->enforce();
  EXPECT_EQ(freeze(), "1");
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace baton::warden
