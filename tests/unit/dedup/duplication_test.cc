#include "dedup/duplication.h"

#include <gtest/gtest.h>

namespace baton::dedup {
namespace {

Digest digest(unsigned n) {
  Digest d;
  d.bytes[0] = std::byte(n & 0xFF);
  d.bytes[1] = std::byte(n >> 8);
  d.bytes[7] = std::byte{1};
  return d;
}

TEST(DuplicationCounter, Pages_AreToldApartByWhereTheirContentWasBefore) {
  DuplicationCounter counter;
  counter.add_before(digest(9), 0);
  counter.next_checkpoint(1'000'000'000);
  EXPECT_EQ(counter.add(digest(1)), PageOrigin::kFresh);
  EXPECT_EQ(counter.add(digest(1)), PageOrigin::kIntra);
  EXPECT_EQ(counter.add(Digest::zero_page()), PageOrigin::kZero);
  EXPECT_EQ(counter.add(digest(9)), PageOrigin::kInter);
  EXPECT_EQ(counter.add(digest(9)), PageOrigin::kIntra) << "it was written in this one by now";
  counter.next_checkpoint(2'000'000'000);
  EXPECT_EQ(counter.add(digest(1)), PageOrigin::kInter);
  EXPECT_EQ(counter.add(Digest::zero_page()), PageOrigin::kZero);
  EXPECT_EQ(counter.add(digest(2)), PageOrigin::kFresh);
  EXPECT_EQ(counter.sum(), (OriginCounts{2, 2, 2, 2}));
  EXPECT_EQ(counter.sum().written(), 8u);
}

TEST(DuplicationCounter, Recurrence_CountsWritesOfEachContentButNotZeroPages) {
  DuplicationCounter counter;
  counter.add_before(digest(50), 0);  // never written: no content of these checkpoints
  for (int checkpoint = 0; checkpoint < 5; ++checkpoint) {
    counter.next_checkpoint(0);
    counter.add(digest(1));                              // 5 times
    if (checkpoint < 2) counter.add(digest(2));          // twice
    counter.add(digest(100 + static_cast<unsigned>(checkpoint)));  // once each
    counter.add(Digest::zero_page());
  }
  const auto buckets = counter.recurrence();
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].from, 1u);
  EXPECT_EQ(buckets[0].to, 1u);
  EXPECT_EQ(buckets[0].contents, 5u);
  EXPECT_EQ(buckets[1].to, 2u);
  EXPECT_EQ(buckets[1].contents, 1u);
  EXPECT_EQ(buckets[1].pages, 2u);
  EXPECT_EQ(buckets[2].from, 5u);
  EXPECT_EQ(buckets[2].to, 8u);
  EXPECT_EQ(buckets[2].contents, 1u);
  EXPECT_EQ(buckets[2].pages, 5u);
}

TEST(DuplicationCounter, Age_IsThatOfTheLastTimeTheContentWasWritten) {
  DuplicationCounter counter;
  counter.next_checkpoint(1'000'000'000);
  counter.add(digest(1));
  counter.next_checkpoint(2'000'000'000);
  counter.add(digest(1));  // one checkpoint, 1,000 ms ago
  for (int i = 0; i < 5; ++i) counter.next_checkpoint(3'000'000'000);
  counter.add(digest(1));  // five checkpoints, 1,000 ms ago
  const auto ages = counter.age_in_checkpoints();
  ASSERT_EQ(ages.size(), 2u);
  EXPECT_EQ(ages[0].to, 1u);
  EXPECT_EQ(ages[0].pages, 1u);
  EXPECT_EQ(ages[1].from, 5u);
  EXPECT_EQ(ages[1].to, 8u);
  const auto ms = counter.age_in_ms();
  ASSERT_EQ(ms.size(), 1u);
  EXPECT_EQ(ms[0].from, 513u);
  EXPECT_EQ(ms[0].to, 1024u);
  EXPECT_EQ(ms[0].pages, 2u);
}

}  // namespace
}  // namespace baton::dedup
