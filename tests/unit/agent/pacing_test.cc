// When checkpoints are due.
#include "agent/node/pacing.h"

#include <gtest/gtest.h>

#include <vector>

namespace baton::node {
namespace {

using namespace std::chrono_literals;
using ns = Pacing::ns;

void run(Pacing& pacing, ns pause, std::uint64_t pages, ns age) {
  for (int i = 0; i < 100; ++i) {
    pacing.captured(pause, pages, 0);
    pacing.committed(age);
  }
}

TEST(Pacing, NoBounds_IntervalOfTheSpec) {
  Pacing pacing(20ms, 0, 0ms, 0);
  run(pacing, 5ms, 5000, 100ms);
  EXPECT_EQ(pacing.interval(), ns(20ms));
  EXPECT_EQ(pacing.why(), "");
}

TEST(Pacing, CostlyCheckpoints_RarerUntilMaxSlowdownHolds) {
  Pacing pacing(20ms, 1.05, 0ms, 0);
  run(pacing, 1ms, 1000, 5ms);      // 1 ms + 1,000 faults of 1.2 µs = 2.2 ms, of which 5 % are 44 ms
  EXPECT_NEAR(static_cast<double>(pacing.interval().count()), 44e6, 1e6);
  EXPECT_NE(pacing.why().find("max-slowdown"), std::string::npos);
  // Cheap again: back to the spec's.
  run(pacing, 200us, 10, 5ms);
  EXPECT_EQ(pacing.interval(), ns(20ms));
  EXPECT_EQ(pacing.why(), "");
}

TEST(Pacing, SlowCommits_MoreOftenUntilMaxLagHolds) {
  Pacing pacing(100ms, 0, 60ms, 0);
  run(pacing, 200us, 10, 20ms);
  EXPECT_NEAR(static_cast<double>(pacing.interval().count()), 40e6, 1e6);
  EXPECT_NE(pacing.why().find("max-lag"), std::string::npos);
}

TEST(Pacing, BoundsContradict_LagIsKept_AndSaysSo) {
  Pacing pacing(20ms, 1.01, 50ms, 0);
  run(pacing, 5ms, 0, 10ms);        // the slowdown asks for 500 ms
  EXPECT_NEAR(static_cast<double>(pacing.interval().count()), 40e6, 1e6);
  EXPECT_NE(pacing.why().find("max-slowdown is not kept"), std::string::npos);
}

TEST(Pacing, LagCannotBeKept_ShortestInterval_AndSaysSo) {
  Pacing pacing(20ms, 0, 5ms, 0);
  run(pacing, 200us, 0, 30ms);
  EXPECT_EQ(pacing.interval(), ns(1ms));
  EXPECT_NE(pacing.why().find("cannot be kept"), std::string::npos);
}

TEST(Pacing, VeryCostly_BoundedByTheLongest) {
  Pacing pacing(20ms, 1.001, 0ms, 0);
  run(pacing, 500ms, 100000, 5ms);
  EXPECT_EQ(pacing.interval(), Pacing::kLongest);
}

TEST(Pacing, Instants_OnAGrid_ApartForEachWorkload) {
  std::vector<std::int64_t> phases;
  for (std::uint64_t number = 0; number < 5; ++number) {
    Pacing pacing(20ms, 0, 0ms, number);
    ns now = 1'000'000'123ns, first = pacing.next(now);
    EXPECT_GE(first - now, ns(10ms));
    EXPECT_LE(first - now, ns(30ms));
    // One that came late does not shift those after it.
    EXPECT_EQ((pacing.next(first + 3ms) - first).count(), ns(20ms).count());
    phases.push_back(first.count() % ns(20ms).count());
  }
  std::sort(phases.begin(), phases.end());
  for (std::size_t i = 1; i < phases.size(); ++i) EXPECT_GE(phases[i] - phases[i - 1], ns(2ms).count());
}

}  // namespace
}  // namespace baton::node
