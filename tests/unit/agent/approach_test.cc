// How many rounds come before a freeze.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "agent/backend/linux/approach.h"

namespace baton::linux_backend {
namespace {

using std::chrono::milliseconds;

// One checkpoint of a program whose rounds find what `left` says, the last entry again and again.
std::uint32_t checkpoint(Approach& approach, const std::vector<std::uint64_t>& left) {
  approach.begin(milliseconds(10));
  std::size_t at = 0;
  auto next = [&] { return left[std::min(at++, left.size() - 1)]; };
  while (approach.another(milliseconds(0))) approach.round_found(next());
  approach.freeze_found(next());
  return approach.rounds();
}

TEST(Approach, PagesFallFromRoundToRound_RoundsUntilFewAreLeft) {
  Approach approach;
  checkpoint(approach, {2000, 300, 60, 10});
  EXPECT_EQ(checkpoint(approach, {2000, 300, 60, 10}), 4u);
  EXPECT_STREQ(approach.strategy(), "concurrent");
  EXPECT_EQ(approach.why(), "4 rounds beside the program left 10 of 2000 pages to the freeze");
}

TEST(Approach, FewPages_NoRound) {
  Approach approach;
  for (int i = 0; i < 20; ++i) EXPECT_EQ(checkpoint(approach, {Approach::kFewPages / 2}), 0u);
  EXPECT_STREQ(approach.strategy(), "stop-copy");
}

TEST(Approach, SamePagesEachTime_RoundsGivenUp_AndTriedAgainNowAndThen) {
  Approach approach;
  checkpoint(approach, {500});
  std::uint32_t with_rounds = 0;
  for (int i = 0; i < 160; ++i) with_rounds += checkpoint(approach, {500}) > 0 ? 1 : 0;
  EXPECT_GE(with_rounds, 8u);
  EXPECT_LE(with_rounds, 14u);
  // It begins to write other pages: rounds pay again, for good.
  for (int i = 0; i < 20; ++i) checkpoint(approach, {500, 5});
  EXPECT_GT(checkpoint(approach, {500, 5}), 0u);
  EXPECT_GT(checkpoint(approach, {500, 5}), 0u);
}

TEST(Approach, BurstNowAndThen_RoundsGoOn) {
  Approach approach;
  checkpoint(approach, {2000, 5});
  for (int i = 0; i < 100; ++i) {
    if (i % 5 == 0) {
      checkpoint(approach, {10, 1500});        // it began just before the freeze
    } else {
      EXPECT_GT(checkpoint(approach, {2000, 300, 5}), 0u) << i;
    }
  }
}

TEST(Approach, TimeIsOver_FreezesWithWhatIsLeft) {
  Approach approach;
  checkpoint(approach, {5000});
  approach.begin(milliseconds(10));
  EXPECT_FALSE(approach.another(milliseconds(10)));
  approach.begin(milliseconds(0));
  EXPECT_FALSE(approach.another(milliseconds(0)));
}

}  // namespace
}  // namespace baton::linux_backend
