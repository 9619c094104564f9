// What stays: the pure rule against one written from its words, and the store that obeys it,
// across restarts, compactions, tags, pins and collections.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>

#include "storage/retention.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::StoreTest;
using testing_ground::Workload;
constexpr std::uint64_t kSecond = 1'000'000'000;

std::set<std::uint64_t> kept_by(const std::vector<RetentionEntry>& held, const RetentionPolicy& policy) {
  std::set<std::uint64_t> kept;
  for (const auto& e : held) kept.insert(e.seq);
  for (std::uint64_t seq : expired(held, policy)) EXPECT_EQ(kept.erase(seq), 1u);
  return kept;
}

TEST(Retention, LastOnePerSecondOnePerMinute_KeepsExactlyThose) {
  RetentionPolicy policy;
  policy.keep_last = 3;
  policy.steps = {{kSecond, 10 * kSecond}, {60 * kSecond, 600 * kSecond}};
  std::vector<RetentionEntry> held;
  const std::uint64_t start = 1'000'000 * 60 * kSecond;  // at a whole minute
  for (std::uint64_t i = 0; i < 4 * 200; ++i) held.push_back({i + 1, start + i * kSecond / 4, false});
  const auto kept = kept_by(held, policy);
  EXPECT_TRUE(kept.contains(800) && kept.contains(799) && kept.contains(798));
  EXPECT_FALSE(kept.contains(796)) << "the second one of its second, no longer among the last three";
  EXPECT_TRUE(kept.contains(797)) << "the first of second 199";
  EXPECT_TRUE(kept.contains(1) && kept.contains(241) && kept.contains(481) && kept.contains(721));
  // 3 last, 797 among the seconds 189 (from .75 on) to 199, and four minutes.
  std::size_t seconds = 0;
  for (std::uint64_t seq : kept) seconds += seq > 721 && seq < 798;
  EXPECT_EQ(seconds, 11u);
  EXPECT_EQ(kept.size(), 4u + 11u + 3u);
}

RC_GTEST_PROP(RetentionProperty, Rule_IsItsWords, ()) {
  RetentionPolicy policy;
  policy.keep_last = *rc::gen::inRange<std::uint64_t>(0, 6);
  const auto steps = *rc::gen::inRange(0, 4);
  for (int i = 0; i < steps; ++i) {
    const auto every = *rc::gen::inRange<std::uint64_t>(1, 50);
    policy.steps.push_back({every, every * *rc::gen::inRange<std::uint64_t>(1, 20)});
  }
  std::vector<RetentionEntry> held;
  std::uint64_t now = 1000;
  const auto count = *rc::gen::inRange(1, 60);
  for (int i = 0; i < count; ++i) {
    now += *rc::gen::inRange<std::uint64_t>(0, 30);
    held.push_back({static_cast<std::uint64_t>(i) * 2 + 1, now, *rc::gen::inRange(0, 10) == 0});
  }
  const std::uint64_t last = std::max<std::uint64_t>(policy.keep_last, 1);
  std::set<std::uint64_t> expected;
  for (std::size_t i = 0; i < held.size(); ++i) {
    bool stays = held[i].marked || i + last >= held.size();
    for (const auto& step : policy.steps) {
      if (now - held[i].commit_wall_ns > step.for_ns) continue;
      bool first = true;  // of those in its slot that the step reaches
      for (std::size_t j = 0; j < i; ++j) {
        first = first && (now - held[j].commit_wall_ns > step.for_ns ||
                          held[j].commit_wall_ns / step.every_ns != held[i].commit_wall_ns / step.every_ns);
      }
      stays = stays || first;
    }
    if (stays) expected.insert(held[i].seq);
  }
  RC_ASSERT(kept_by(held, policy) == expected);
}

// However often it is applied on the way, the result represents every slot.
RC_GTEST_PROP(RetentionProperty, AppliedAgainAndAgain_LeavesEverySlotRepresented, ()) {
  RetentionPolicy policy;
  policy.keep_last = 2;
  policy.steps = {{10, 100}, {60, 1000}};
  std::vector<RetentionEntry> held;
  std::set<std::uint64_t> tens, sixties;
  std::uint64_t now = 5000;
  for (int i = 1; i < 300; ++i) {
    now += *rc::gen::inRange<std::uint64_t>(1, 9);
    held.push_back({static_cast<std::uint64_t>(i), now, false});
    tens.insert(now / 10);
    sixties.insert(now / 60);
    const auto gone = expired(held, policy);
    std::erase_if(held, [&](const RetentionEntry& e) {
      return std::find(gone.begin(), gone.end(), e.seq) != gone.end();
    });
    RC_ASSERT(held.size() <= 2u + 11u + 18u);
  }
  std::set<std::uint64_t> there_tens, there_sixties;
  for (const auto& e : held) {
    there_tens.insert(e.commit_wall_ns / 10);
    there_sixties.insert(e.commit_wall_ns / 60);
  }
  // Slots that the step reaches as a whole.
  for (std::uint64_t slot : tens) RC_ASSERT(slot * 10 + 100 < now || there_tens.contains(slot));
  for (std::uint64_t slot : sixties) RC_ASSERT(slot * 60 + 1000 < now || there_sixties.contains(slot));
}

class PolicyTest : public StoreTest {
 protected:
  void commit_at(Workload& w, std::uint64_t ms) {
    clock_.advance(std::chrono::milliseconds(ms) - clock_.wall_now());
    w.write(1, w.seq % 17, w.seq + 1);
    ASSERT_TRUE(w.checkpoint(*store_));
  }
};

TEST_F(PolicyTest, Steps_ThinOutTheStore_AndHoldAfterARestart) {
  options_.retention.keep_last = 2;  // of those without a policy: must not be applied to this one
  Workload w("w");
  open_with(w);
  RetentionPolicy policy;
  policy.keep_last = 5;
  policy.steps = {{kSecond, 30 * kSecond}};
  ASSERT_TRUE(store_->set_policy("w", policy));
  for (std::uint64_t i = 0; i < 200; ++i) commit_at(w, 1'000'000 + i * 100);  // 20 seconds
  EXPECT_LE(seqs(w).size(), 5u + 20u + 16u + 1u) << "thinned as it grows";
  ASSERT_TRUE(store_->maintain());
  const auto kept = seqs(w);
  EXPECT_EQ(kept.size(), 5u + 20u) << "the last five, and the first of each of twenty seconds";
  open();
  EXPECT_EQ(seqs(w), kept);
  EXPECT_EQ(*store_->policy("w"), policy);
  ASSERT_TRUE(store_->maintain());
  EXPECT_EQ(seqs(w), kept);
  ASSERT_TRUE(store_->gc());
  for (std::uint64_t seq : kept) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_F(PolicyTest, StepsOfTheStore_ServeWorkloadsWithoutTheirOwn) {
  options_.retention.keep_last = 3;
  options_.retention.steps = {{kSecond, 60 * kSecond}};
  Workload w("w"), v("v", DigestKind::kXxh3_128, 2);
  open_with(w);
  ASSERT_TRUE(store_->add_workload(v.identity()));
  RetentionPolicy own;
  own.keep_last = 2;
  own.steps = {{10 * kSecond, 60 * kSecond}};
  ASSERT_TRUE(store_->set_policy("v", own));
  for (std::uint64_t i = 0; i < 100; ++i) {
    commit_at(w, 1'000'000 + i * 200);  // 20 seconds
    commit_at(v, 1'000'000 + i * 200);
  }
  ASSERT_TRUE(store_->maintain());
  EXPECT_EQ(seqs(w).size(), 3u + 20u);
  EXPECT_EQ(seqs(v).size(), 2u + 2u);
}

TEST_F(PolicyTest, TagsAndPins_Outlive_Retention_Restart_Compaction_AndCollection) {
  options_.retention.keep_last = 3;
  Workload w("w");
  open_with(w);
  for (int i = 0; i < 3; ++i) commit_at(w, 1000);
  ASSERT_TRUE(store_->mark("w", 1, {{"before-update", "v1"}, {}, {}}));
  auto info = store_->mark("w", 2, {{}, {}, true});
  ASSERT_TRUE(info);
  EXPECT_TRUE(info->pinned);
  for (int i = 0; i < 600; ++i) commit_at(w, 2000);
  ASSERT_TRUE(store_->maintain());
  EXPECT_GT(store_->stats().compactions, 0u);
  ASSERT_TRUE(store_->gc());
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1, 2, 601, 602, 603}));
  open();
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1, 2, 601, 602, 603}));
  EXPECT_EQ(infos(w)[0].tags, (std::vector<std::string>{"before-update", "v1"}));
  EXPECT_EQ(w.compare(*store_, 1), "");
  EXPECT_EQ(w.compare(*store_, 2), "");
  // Without their marks they go the way of all others.
  ASSERT_TRUE(store_->mark("w", 1, {{}, {"v1", "before-update"}, {}}));
  ASSERT_TRUE(store_->mark("w", 2, {{}, {}, false}));
  ASSERT_TRUE(store_->maintain());
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{601, 602, 603}));
}

TEST_F(PolicyTest, Marks_ThatAreNone_AreRefused) {
  Workload w("w");
  open_with(w);
  commit_at(w, 1000);
  for (const std::string bad : {"", "a b", "-x", "a/b", "\n"}) {
    auto marked = store_->mark("w", 1, {{bad}, {}, {}});
    ASSERT_FALSE(marked) << bad;
    EXPECT_EQ(marked.error().code, Code::kInvalid);
  }
  EXPECT_FALSE(store_->mark("w", 1, {{std::string(65, 'x')}, {}, {}}));
  EXPECT_EQ(store_->mark("w", 9, {{"x"}, {}, {}}).error().code, Code::kNotFound);
  MarkChange many;
  for (int i = 0; i < 65; ++i) many.add.push_back("t" + std::to_string(i));
  EXPECT_FALSE(store_->mark("w", 1, many));
  EXPECT_TRUE(infos(w)[0].tags.empty());
}

TEST_F(PolicyTest, OwnBudget_ShedsTheOldestButNoTagAndNoTip) {
  options_.retention.keep_last = 1000;
  options_.segment_bytes = 64u << 10;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 0; round < 40; ++round) {
    for (std::uint64_t i = 0; i < 30; ++i) w.write(1, i, round * 100 + i + 1);
    ASSERT_TRUE(w.checkpoint(*store_));
  }
  ASSERT_TRUE(store_->mark("w", 3, {{"keep"}, {}, {}}));
  const std::uint64_t before = store_->stats().pages.bytes;
  RetentionPolicy policy;
  policy.keep_last = 1000;
  policy.byte_budget = before / 3;
  ASSERT_TRUE(store_->set_policy("w", policy));
  ASSERT_TRUE(store_->maintain());
  EXPECT_LT(store_->stats().pages.bytes, before / 2);
  EXPECT_GT(store_->stats().shed, 10u);
  EXPECT_EQ(seqs(w).front(), 3u);
  EXPECT_EQ(tip(w), 40u);
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
}

// Random commits, drops, tags, policies, collections, compactions and reopens, against a model
// of what must be there. Collections run between put and commit too.
RC_GTEST_FIXTURE_PROP(PolicyTest, Collection_NeverTakesWhatTheModelHolds, ()) {
  options_.segment_bytes = 64u << 10;
  options_.retention.keep_last = 1000;
  std::filesystem::remove_all(folder_ + "/store");
  Workload w("w");
  open_with(w);
  std::set<std::uint64_t> model, marked;
  for (int step = 0; step < 30; ++step) {
    switch (*rc::gen::weightedElement<int>({{6, 0}, {2, 1}, {2, 2}, {2, 3}, {1, 4}, {1, 5}})) {
      case 0: {
        const auto lease = store_->lease();
        const auto first = *rc::gen::inRange<std::uint64_t>(0, 40);
        for (std::uint64_t i = first; i < first + 12; ++i) {
          w.write(1 + i % 2, i, *rc::gen::inRange<std::uint64_t>(0, 300));
        }
        RC_ASSERT(w.put_pages(store_->pages()).has_value());
        if (*rc::gen::inRange(0, 3) == 0) RC_ASSERT(store_->gc().has_value());  // nothing refers to them yet
        RC_ASSERT(store_->commit(w.take(model.empty()), Durability::kFlushed).has_value());
        model.insert(w.seq);
        break;
      }
      case 1:
        RC_ASSERT(store_->gc().has_value());
        break;
      case 2:
        if (model.size() > 1) {
          const std::uint64_t seq = *rc::gen::elementOf(model);
          if (seq == *model.rbegin()) break;  // the tip: the next one is against it
          RC_ASSERT(store_->drop("w", seq).has_value());
          model.erase(seq);
          marked.erase(seq);
        }
        break;
      case 3:
        if (!model.empty()) {
          const std::uint64_t seq = *rc::gen::elementOf(model);
          const bool pin = *rc::gen::arbitrary<bool>();
          RC_ASSERT(store_->mark("w", seq, {{}, {}, pin}).has_value());
          pin ? (void)marked.insert(seq) : (void)marked.erase(seq);
        }
        break;
      case 4: {
        RetentionPolicy policy;
        policy.keep_last = *rc::gen::inRange<std::uint64_t>(1, 10);
        RC_ASSERT(store_->set_policy("w", policy).has_value());
        RC_ASSERT(store_->maintain().has_value());
        std::vector<std::uint64_t> gone;
        for (std::uint64_t seq : model) {  // the newest N count, marked or not
          const auto newer = static_cast<std::uint64_t>(std::distance(model.upper_bound(seq), model.end()));
          if (newer >= policy.keep_last && !marked.contains(seq)) gone.push_back(seq);
        }
        for (std::uint64_t seq : gone) model.erase(seq);
        policy.keep_last = 1000;
        RC_ASSERT(store_->set_policy("w", policy).has_value());
        break;
      }
      case 5:
        open();
        break;
    }
    const auto held = seqs(w);
    RC_ASSERT(std::set<std::uint64_t>(held.begin(), held.end()) == model);
  }
  open();
  RC_ASSERT(store_->gc().has_value());
  const auto held = seqs(w);
  RC_ASSERT(std::set<std::uint64_t>(held.begin(), held.end()) == model);
  for (std::uint64_t seq : held) RC_ASSERT(w.compare(*store_, seq) == "");
  RC_ASSERT(store_->verify()->bad.empty());
  // And nothing else: what is in the index is what the checkpoints name.
  std::set<std::uint64_t> contents;
  for (std::uint64_t seq : held) {
    for (const auto& [id, pages] : w.taken().at(seq)) {
      for (const auto& [page, content] : pages) {
        if (content != 0) contents.insert(content);
      }
    }
  }
  RC_ASSERT(store_->stats().pages.pages == contents.size());
  store_.reset();
}

}  // namespace
}  // namespace baton::storage
