#include "dedup/page_table.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <map>
#include <random>
#include <thread>

namespace baton::dedup {
namespace {

using Model = std::map<std::uint64_t, Digest>;

PageHasher hasher_of(DigestKind kind) { return PageHasher(kind, HashKey{}); }

Digest digest_of(std::uint32_t n, DigestKind kind) {
  Digest d;
  for (std::size_t i = 0; i < digest_width(kind); ++i) d.bytes[i] = std::byte(n >> (i % 4 * 8));
  d.bytes[5] = std::byte{0x5A};
  return d;
}

// Page numbers that share leaves, share upper nodes, or lie at the far end.
rc::Gen<std::uint64_t> any_page() {
  return rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(0, 200),
                        rc::gen::inRange<std::uint64_t>(0, 1 << 14),
                        rc::gen::inRange<std::uint64_t>(kMaxPages - 5000, kMaxPages),
                        rc::gen::inRange<std::uint64_t>(0, kMaxPages));
}

DigestKind any_kind() {
  return *rc::gen::element(DigestKind::kXxh3_128, DigestKind::kSha256);
}

struct Step {
  int what = 0;
  std::uint64_t page = 0, count = 0;
  std::uint32_t value = 0;
};
std::ostream& operator<<(std::ostream& out, const Step& s) {
  return out << "{" << s.what << "," << s.page << "," << s.count << "," << s.value << "}";
}

rc::Gen<Step> any_step() {
  return rc::gen::apply(
      [](int what, std::uint64_t page, std::uint64_t count, std::uint32_t value) {
        return Step{what, page, std::min(count, kMaxPages - page), value};
      },
      rc::gen::inRange(0, 6), any_page(),
      rc::gen::oneOf(rc::gen::inRange<std::uint64_t>(0, 300),
                     rc::gen::inRange<std::uint64_t>(0, kMaxPages)),
      rc::gen::inRange<std::uint32_t>(0, 50));
}

void play(const Step& s, DigestKind kind, PageTable& table, Model& model) {
  if (s.what <= 3) {
    table.set(s.page, digest_of(s.value, kind));
    model[s.page] = digest_of(s.value, kind);
  } else if (s.what == 4) {
    table.erase(s.page);
    model.erase(s.page);
  } else {
    table.erase_range(s.page, s.count);
    model.erase(model.lower_bound(s.page), model.lower_bound(s.page + s.count));
  }
}

Model content(const PageTable& table) {
  Model out;
  std::uint64_t last = 0;
  bool first = true;
  table.for_each([&](std::uint64_t page, const Digest& d) {
    EXPECT_TRUE(first || page > last);
    first = false;
    last = page;
    out[page] = d;
  });
  return out;
}

PageTable build(const Model& model, DigestKind kind) {
  PageTable table(kind);
  for (const auto& [page, d] : model) table.set(page, d);
  return table;
}

TEST(PageTable, AnySteps_Always_AgreeWithAnOrderedMap) {
  EXPECT_TRUE(rc::check([] {
    const DigestKind kind = any_kind();
    const auto steps = *rc::gen::container<std::vector<Step>>(any_step());
    PageTable table(kind);
    Model model;
    for (const Step& s : steps) {
      play(s, kind, table, model);
      RC_ASSERT(table.get(s.page) == (model.contains(s.page) ? model[s.page] : Digest{}));
      RC_ASSERT(table.count() == model.size());
    }
    RC_ASSERT(content(table) == model);
    RC_ASSERT(table.empty() == model.empty());
  }));
}

TEST(PageTable, Root_ForEqualContent_DoesNotDependOnHistory) {
  EXPECT_TRUE(rc::check([] {
    const DigestKind kind = any_kind();
    PageHasher hasher = hasher_of(kind);
    const auto steps = *rc::gen::container<std::vector<Step>>(any_step());
    PageTable table(kind);
    Model model;
    for (const Step& s : steps) {
      play(s, kind, table, model);
      if (s.value % 7 == 0) table.root(hasher);  // caches must not go stale
    }
    std::vector<PageChange> changes;
    for (const auto& [page, d] : model) changes.push_back({page, d});
    std::mt19937 random(static_cast<unsigned>(*rc::gen::inRange(0, 1 << 20)));
    std::shuffle(changes.begin(), changes.end(), random);
    PageTable other(kind);
    other.apply(changes);
    RC_ASSERT(other.root(hasher) == table.root(hasher));
    RC_ASSERT(table.root(hasher).is_absent() == model.empty());
  }));
}

TEST(PageTable, Copy_WhenTheOriginalChanges_KeepsItsContentAndRoot) {
  EXPECT_TRUE(rc::check([] {
    const DigestKind kind = any_kind();
    PageHasher hasher = hasher_of(kind);
    PageTable table(kind);
    Model model;
    for (const Step& s : *rc::gen::container<std::vector<Step>>(any_step())) {
      play(s, kind, table, model);
    }
    const PageTable copy = table;
    const Model copy_model = model;
    const Digest root = copy.root(hasher);
    for (const Step& s : *rc::gen::container<std::vector<Step>>(any_step())) {
      play(s, kind, table, model);
    }
    RC_ASSERT(content(copy) == copy_model);
    RC_ASSERT(copy.root(hasher) == root);
    RC_ASSERT(build(copy_model, kind).root(hasher) == root);
    RC_ASSERT(build(model, kind).root(hasher) == table.root(hasher));
    RC_ASSERT((table.root(hasher) == root) == (model == copy_model));
  }));
}

TEST(PageTable, Diff_OfAnyTwo_TurnsTheFirstIntoTheSecond) {
  EXPECT_TRUE(rc::check([] {
    const DigestKind kind = any_kind();
    PageHasher hasher = hasher_of(kind);
    PageTable a(kind);
    Model model_a;
    for (const Step& s : *rc::gen::container<std::vector<Step>>(any_step())) play(s, kind, a, model_a);
    PageTable b = *rc::gen::arbitrary<bool>() ? a : PageTable(kind);
    Model model_b = content(b);
    for (const Step& s : *rc::gen::container<std::vector<Step>>(any_step())) play(s, kind, b, model_b);

    const bool use_hasher = *rc::gen::arbitrary<bool>();
    PageTable turned = a;
    std::size_t calls = 0;
    PageTable::diff(a, b, [&](std::uint64_t page, const Digest& was, const Digest& is) {
      RC_ASSERT(was == a.get(page));
      RC_ASSERT(is == b.get(page));
      RC_ASSERT(!(was == is));
      turned.set(page, is);
      ++calls;
    }, use_hasher ? &hasher : nullptr);
    RC_ASSERT(content(turned) == model_b);
    std::size_t expected = 0;
    for (const auto& [page, d] : model_a) {
      auto it = model_b.find(page);
      expected += it == model_b.end() || !(it->second == d);
    }
    for (const auto& [page, d] : model_b) expected += !model_a.contains(page);
    RC_ASSERT(calls == expected);
  }));
}

TEST(PageTable, NodeChildren_FromTheRootDown_LeadToEveryPage) {
  PageHasher hasher = hasher_of(DigestKind::kXxh3_128);
  PageTable table;
  for (std::uint64_t page : {std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{64},
                             std::uint64_t{1} << 30, kMaxPages - 1}) {
    table.set(page, digest_of(static_cast<std::uint32_t>(page) + 1, DigestKind::kXxh3_128));
  }
  Model found;
  std::function<void(unsigned, std::uint64_t)> walk = [&](unsigned level, std::uint64_t index) {
    auto children = table.node_children(level, index, hasher);
    ASSERT_EQ(children.size(), kFanOut);
    EXPECT_EQ(hasher.node(children), table.node_digest(level, index, hasher));
    for (std::size_t i = 0; i < kFanOut; ++i) {
      if (children[i].is_absent()) continue;
      if (level == 0) {
        found[index * kFanOut + i] = children[i];
      } else {
        EXPECT_EQ(table.node_digest(level - 1, index * kFanOut + i, hasher), children[i]);
        walk(level - 1, index * kFanOut + i);
      }
    }
  };
  walk(kTableLevels - 1, 0);
  EXPECT_EQ(found, content(table));
  EXPECT_EQ(table.node_digest(kTableLevels - 1, 0, hasher), table.root(hasher));
  EXPECT_EQ(table.node_children(0, 12345, hasher), std::vector<Digest>(kFanOut));
}

TEST(PageTable, Copies_HashedAndWrittenByManyThreads_StayRight) {
  PageHasher hasher = hasher_of(DigestKind::kXxh3_128);
  PageTable base;
  for (std::uint64_t p = 0; p < 20000; ++p) {
    base.set(p * 3, digest_of(static_cast<std::uint32_t>(p), DigestKind::kXxh3_128));
  }
  std::vector<std::thread> threads;
  std::vector<Digest> roots(4);
  for (std::size_t t = 0; t < roots.size(); ++t) {
    threads.emplace_back([&, t, table = base]() mutable {
      for (std::uint64_t p = 0; p < 2000; ++p) {
        table.set(p * 17, digest_of(7, DigestKind::kXxh3_128));
        if (p % 100 == 0) table.root(hasher);
      }
      roots[t] = table.root(hasher);
    });
  }
  for (auto& t : threads) t.join();
  for (const Digest& r : roots) EXPECT_EQ(r, roots[0]);
  EXPECT_EQ(build(content(base), DigestKind::kXxh3_128).root(hasher), base.root(hasher));
}

TEST(PageTable, SmallChange_OfABigTable_SharesTheRest) {
  PageTable a;
  for (std::uint64_t p = 0; p < 65536; ++p) {
    a.set(p, digest_of(static_cast<std::uint32_t>(p), DigestKind::kXxh3_128));
  }
  EXPECT_LT(a.memory_bytes(), 65536 * 18u);
  PageTable b = a;
  EXPECT_TRUE(b.same_node(a));
  b.set(5, digest_of(1, DigestKind::kXxh3_128));
  std::size_t calls = 0;
  PageTable::diff(a, b, [&](auto...) { ++calls; });
  EXPECT_EQ(calls, 1u);
}

}  // namespace
}  // namespace baton::dedup
