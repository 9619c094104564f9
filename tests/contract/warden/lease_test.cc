// Leases over the real warden and the linux backend: a program does not outlive its deadline,
// whatever dies, and nothing is lost when it is leased again.
#include <csignal>
#include <string>
#include <thread>

#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "harness.h"

namespace baton::warden::testing {
namespace {

using namespace std::chrono_literals;

std::uint64_t boot_ns() { return static_cast<std::uint64_t>(read_clock(CLOCK_BOOTTIME).count()); }

class Lease : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups, ptrace and namespaces";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
    auto ran = client->run(spec_of("counter", {COUNTER, "1000", file()}, {"PATH=/usr/bin:/bin"}));
    ASSERT_TRUE(ran) << ran.error().message();
    ASSERT_TRUE(moves());
  }
  std::string file() { return warden.folder() + "/counts"; }
  std::uint64_t count() {
    std::string text = read_file(file()).value_or("");
    auto at = text.rfind("count ");
    return at == text.npos ? 0 : std::strtoull(text.c_str() + at + 6, nullptr, 10);
  }
  bool moves() {
    const std::uint64_t now = count();
    return eventually([&] { return count() > now + 3; });
  }
  bool stands() {
    const std::uint64_t now = count();
    ::usleep(60'000);
    return count() == now;
  }
  Result<pb::LeaseResponse> lease(std::chrono::nanoseconds length, std::uint64_t incarnation = 1) {
    pb::LeaseRequest request;
    request.set_workload("counter");
    request.set_until_boot_ns(length == 0ns ? 0 : boot_ns() + static_cast<std::uint64_t>(length.count()));
    request.set_incarnation(incarnation);
    return client->lease(request);
  }
  pb::WorkloadProcess process() { return client->list()->front(); }
  // It checks its own memory; no line is missing.
  void unharmed() {
    ASSERT_TRUE(client->signal("counter", SIGUSR1));
    pb::LogsRequest request;
    request.set_workload("counter");
    EXPECT_TRUE(eventually([&] { return client->logs(request)->data().find("\nok") != std::string::npos; }));
    EXPECT_EQ(client->logs(request)->data().find("FAILED"), std::string::npos);
    std::string text = read_file(file()).value_or("");
    std::uint64_t expected = 1;
    for (std::size_t at = 0; at < text.size(); ++expected) {
      ASSERT_EQ(std::strtoull(text.c_str() + at + 6, nullptr, 10), expected);
      at = text.find('\n', at) + 1;
    }
  }

  WardenProcess warden{LINUX_WARDEN};
  std::unique_ptr<WardenClient> client;
};

TEST_F(Lease, RunsOut_FrozenUntilLeasedAgain) {
  const auto begin = boot_ns();
  ASSERT_TRUE(lease(150ms));
  EXPECT_FALSE(process().lease_frozen());
  ASSERT_TRUE(eventually([&] { return process().lease_frozen(); }));
  EXPECT_GE(boot_ns() - begin, 150'000'000u);
  EXPECT_TRUE(stands());
  auto again = lease(10s);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_TRUE(again->was_frozen());
  EXPECT_TRUE(moves());
  ASSERT_TRUE(lease(0ns));       // no lease any more: nothing stops it
  EXPECT_EQ(process().lease_until_ns(), 0u);
  EXPECT_TRUE(moves());
  unharmed();
}

TEST_F(Lease, RenewedInTime_NeverStops) {
  for (int i = 0; i < 40; ++i) {
    auto renewed = lease(60ms);
    ASSERT_TRUE(renewed);
    EXPECT_FALSE(renewed->was_frozen());
    ::usleep(10'000);
  }
  EXPECT_FALSE(process().lease_frozen());
  EXPECT_TRUE(lease(0ns));
  EXPECT_TRUE(moves());
}

TEST_F(Lease, OlderIncarnation_Refused) {
  ASSERT_TRUE(lease(100ms, 5));
  auto late = lease(10s, 4);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Code::kConflict);
  ASSERT_TRUE(eventually([&] { return process().lease_frozen(); }));
  EXPECT_FALSE(lease(10s, 4));
  EXPECT_TRUE(stands());
}

TEST_F(Lease, AgentGone_FrozenAtTheDeadline) {
  ASSERT_TRUE(lease(120ms));
  client.reset();
  ::usleep(200'000);
  EXPECT_TRUE(stands());
  client = warden.connect();
  EXPECT_TRUE(process().lease_frozen());
  EXPECT_FALSE(process().frozen()) << "nobody holds it but its lease";
}

TEST_F(Lease, HeldAndLeasedAgain_StaysHeld) {
  ASSERT_TRUE(lease(50ms));
  ASSERT_TRUE(eventually([&] { return process().lease_frozen(); }));
  ASSERT_TRUE(client->hold("counter"));
  ASSERT_TRUE(lease(10s));
  EXPECT_TRUE(stands());
  ASSERT_TRUE(client->thaw("counter"));
  EXPECT_TRUE(moves());
}

TEST_F(Lease, WardenKilled_TheGuardFreezes_ANewWardenThaws) {
  ASSERT_TRUE(lease(300ms));
  warden.kill(SIGKILL);
  EXPECT_TRUE(moves()) << "until the deadline it runs";
  ::usleep(400'000);
  EXPECT_TRUE(stands());
  warden.start();
  client = warden.connect();
  EXPECT_TRUE(process().lease_frozen());
  EXPECT_FALSE(process().frozen());
  ASSERT_TRUE(lease(10s));
  EXPECT_TRUE(moves());
  unharmed();
}

// Wherever in a capture it dies: the kernel lets the program go, the guard stops it.
TEST_F(Lease, WardenKilledInACapture_TheGuardFreezes) {
  pb::CaptureRequest capture;
  capture.set_workload("counter");
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(lease(40ms));
    std::thread capturing([&] {
      while (client->capture(capture)) {}
    });
    ::usleep(5'000 + 331 * static_cast<useconds_t>(i));
    warden.kill(SIGKILL);
    capturing.join();
    ::usleep(60'000);
    EXPECT_TRUE(stands()) << "killed for the " << i << "th time";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
    ASSERT_TRUE(lease(10s));
    ASSERT_TRUE(moves());
  }
  unharmed();
}

TEST_F(Lease, WardenStopped_TheGuardFreezes) {
  ASSERT_TRUE(lease(200ms));
  ::kill(warden.pid(), SIGSTOP);
  ::usleep(300'000);
  EXPECT_TRUE(stands());
  ::kill(warden.pid(), SIGCONT);
  ASSERT_TRUE(lease(10s));
  EXPECT_TRUE(moves());
}

// The deadline falls into captures at every point of them.
TEST_F(Lease, RunsOutDuringCaptures_ProgramUnharmed) {
  pb::CaptureRequest capture;
  capture.set_workload("counter");
  int taken = 0, refused = 0;
  for (int i = 0; i < 120; ++i) {
    ASSERT_TRUE(lease(std::chrono::microseconds(300 + 37 * i)));
    const auto until = boot_ns() + 6'000'000;
    while (boot_ns() < until) {
      auto captured = client->capture(capture);
      captured ? ++taken : ++refused;
      if (captured) continue;
      EXPECT_EQ(captured.error().code, Code::kConflict) << captured.error().message();
    }
  }
  EXPECT_GT(taken, 50);
  EXPECT_GT(refused, 50);
  ASSERT_TRUE(lease(0ns));
  auto captured = client->capture(capture);
  ASSERT_TRUE(captured) << captured.error().message();
  EXPECT_TRUE(moves());
  unharmed();
}

}  // namespace
}  // namespace baton::warden::testing
