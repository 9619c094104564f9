#include "transport/stream/budget.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

namespace baton::transport::stream {
namespace {

using namespace std::chrono;
constexpr auto kLong = seconds(30);

TEST(ByteBudget, Acquire_WhenFull_TimesOutAndTakesNothing) {
  ByteBudget budget(100);
  EXPECT_EQ(budget.acquire(60, steady_clock::now() + kLong), ByteBudget::Taken::kYes);
  EXPECT_EQ(budget.acquire(60, steady_clock::now()), ByteBudget::Taken::kTimedOut);
  EXPECT_EQ(budget.used(), 60u);
  budget.release(60);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(ByteBudget, Acquire_OfMoreThanTheWhole_IsServedWhenEmpty) {
  ByteBudget budget(100);
  EXPECT_EQ(budget.acquire(1, steady_clock::now() + kLong), ByteBudget::Taken::kYes);
  EXPECT_EQ(budget.acquire(1000, steady_clock::now()), ByteBudget::Taken::kTimedOut);
  budget.release(1);
  EXPECT_EQ(budget.acquire(1000, steady_clock::now()), ByteBudget::Taken::kYes);
  budget.release(1000);
  EXPECT_EQ(budget.used(), 0u);
}

TEST(ByteBudget, Close_WithWaiters_WakesThem) {
  ByteBudget budget(10);
  ASSERT_EQ(budget.acquire(10, steady_clock::now() + kLong), ByteBudget::Taken::kYes);
  auto waiter = std::async(std::launch::async,
                           [&] { return budget.acquire(5, steady_clock::now() + kLong); });
  budget.close();
  EXPECT_EQ(waiter.get(), ByteBudget::Taken::kClosed);
}

}  // namespace
}  // namespace baton::transport::stream
