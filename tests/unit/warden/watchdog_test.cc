#include "agent/warden/watchdog.h"

#include <atomic>
#include <future>

#include <gtest/gtest.h>

namespace baton::warden {
namespace {

using namespace std::chrono_literals;

TEST(Watchdog, Guard_EndedInTime_StaysQuiet) {
  std::atomic<int> late{0};
  {
    Watchdog dog;
    { auto guard = dog.arm("quick", 10s, [&] { ++late; }); }
    std::promise<void> later;
    dog.after(20ms, [&] { later.set_value(); });
    later.get_future().wait();
  }
  EXPECT_EQ(late, 0);
}

TEST(Watchdog, Guard_Late_IsTold) {
  Watchdog dog;
  std::promise<void> told;
  auto guard = dog.arm("slow", 5s, [] {});   // the sooner one is not hidden behind it
  auto sooner = dog.arm("slower", 300ms, [&] { told.set_value(); });
  EXPECT_EQ(told.get_future().wait_for(10s), std::future_status::ready);
}

TEST(WatchdogDeath, Guard_LateTwice_EndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        Watchdog dog;
        auto guard = dog.arm("stuck", 50ms, [] {});
        std::promise<void>().get_future().wait_for(60s);
      },
      ::testing::ExitedWithCode(70), "");
}

}  // namespace
}  // namespace baton::warden
