#include "base/queue.h"

#include <gtest/gtest.h>

#include <thread>

namespace baton {
namespace {

TEST(BoundedQueue, TryPush_WhenFull_Refuses) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.try_push(1));
  EXPECT_TRUE(queue.try_push(2));
  EXPECT_FALSE(queue.try_push(3));
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_TRUE(queue.try_push(3));
}

TEST(BoundedQueue, Close_WithBlockedProducer_WakesItAndDrains) {
  BoundedQueue<int> queue(1);
  ASSERT_TRUE(queue.push(1));
  bool taken = true;
  std::thread producer([&] { taken = queue.push(2); });
  while (queue.size() == 0) std::this_thread::yield();
  queue.close();
  producer.join();
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), std::nullopt);
  (void)taken;
  EXPECT_FALSE(queue.push(3));
}

}  // namespace
}  // namespace baton
