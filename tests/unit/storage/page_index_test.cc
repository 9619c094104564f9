// The index of pages against a map, and its promise of at most 40 bytes a page.
#include "storage/pages/page_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <tuple>

namespace baton::storage {
namespace {

Digest random_digest(std::mt19937_64& random, bool wide) {
  Digest d;
  for (std::size_t i = 0; i < (wide ? 32u : 16u); i += 8) {
    const std::uint64_t word = random();
    std::memcpy(d.bytes.data() + i, &word, 8);
  }
  return d;
}

TEST(PageIndex, RandomOperations_AgreeWithAMap) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    PageIndex index;
    struct Known {
      PagePlace place;
      std::uint32_t touched;
    };
    std::map<Digest, Known> model;
    std::vector<Digest> digests;
    for (int i = 0; i < 3000; ++i) digests.push_back(random_digest(random, seed % 2 == 0 && i % 3 == 0));
    // Digests that start alike: long runs, and the very ends of the table.
    for (int i = 0; i < 200; ++i) {
      Digest d = random_digest(random, false);
      std::memset(d.bytes.data(), i % 2 ? 0xFF : 0, 8);
      d.bytes[15] = std::byte{7};
      digests.push_back(d);
    }
    for (int step = 0; step < 60'000; ++step) {
      const Digest& d = digests[random() % digests.size()];
      const PagePlace place{1 + static_cast<std::uint32_t>(random() % 9), static_cast<std::uint32_t>(random() % 5000),
                            static_cast<std::uint8_t>(random() % 16)};
      const auto epoch = static_cast<std::uint32_t>(step / 1000);
      auto it = model.find(d);
      switch (random() % 6) {
        case 0:
        case 1:
          ASSERT_EQ(index.insert(d, place, epoch), it == model.end());
          if (it == model.end()) {
            model[d] = {place, epoch};
          } else {
            it->second.touched = std::max(it->second.touched, epoch);
          }
          break;
        case 2:
          ASSERT_EQ(index.touch(d, epoch), it != model.end());
          if (it != model.end()) it->second.touched = std::max(it->second.touched, epoch);
          break;
        case 3: {
          const auto found = index.find(d);
          ASSERT_EQ(found.has_value(), it != model.end());
          if (found) {
            ASSERT_EQ(*found, it->second.place);
          }
          break;
        }
        case 4:
          if (it != model.end()) {
            ASSERT_TRUE(index.replace(d, it->second.place, std::nullopt));
            model.erase(it);
          } else {
            ASSERT_FALSE(index.replace(d, place, std::nullopt));
          }
          break;
        case 5:
          if (it != model.end()) {
            ASSERT_TRUE(index.replace(d, it->second.place, place));
            it->second.place = place;
          }
          break;
      }
      if (step % 9000 == 8999) {
        DigestSet marked;
        for (const auto& [digest, known] : model) {
          if (random() % 2) marked.insert(digest);
        }
        const auto removed = index.sweep(&marked, epoch);
        const std::size_t before = model.size();
        std::erase_if(model, [&](const auto& e) { return e.second.touched < epoch && !marked.contains(e.first); });
        ASSERT_EQ(removed.size(), before - model.size());
      }
      if (step % 13'000 == 12'999) {
        const auto dropped = index.drop_frame(3, 7);
        ASSERT_EQ(dropped, std::erase_if(model, [](const auto& e) {
                    return e.second.place.segment == 3 && e.second.place.frame == 7;
                  }));
      }
    }
    ASSERT_EQ(index.size(), model.size());
    for (const auto& [digest, known] : model) ASSERT_EQ(index.find(digest), known.place);
  }
}

// What is loaded at once is what insertions in the order of the places would have given, and goes on
// taking them.
TEST(PageIndex, Load_IsAsInsertedOneByOne) {
  std::mt19937_64 random(11);
  struct Found { Digest digest; PagePlace place; };
  std::vector<Found> all;
  for (std::uint32_t i = 0; i < 50'000; ++i) {
    const bool again = i > 100 && random() % 10 == 0;
    const Digest d = again ? all[random() % all.size()].digest : random_digest(random, i % 5 == 0);
    all.push_back({d, {1 + i / 20'000, i % 20'000, static_cast<std::uint8_t>(i % 16)}});
  }
  PageIndex one_by_one, loaded;
  std::vector<PagePlace> superfluous;
  for (const auto& f : all) {
    if (!one_by_one.insert(f.digest, f.place, 0)) superfluous.push_back(f.place);
  }
  std::shuffle(all.begin(), all.end(), random);
  PageIndex::Loader loader;
  for (const auto& f : all) loader.add(f.digest, f.place);
  auto given = loaded.load(std::move(loader));
  auto order = [](const PagePlace& a, const PagePlace& b) { return std::tie(a.segment, a.frame, a.slot) < std::tie(b.segment, b.frame, b.slot); };
  std::sort(given.begin(), given.end(), order);
  std::sort(superfluous.begin(), superfluous.end(), order);
  EXPECT_EQ(given, superfluous);
  EXPECT_EQ(loaded.size(), one_by_one.size());
  EXPECT_LE(static_cast<double>(loaded.memory_bytes()) / static_cast<double>(loaded.size()), 50.0);   // a fifth of them wide
  for (const auto& f : all) ASSERT_EQ(loaded.find(f.digest), one_by_one.find(f.digest));
  for (int i = 0; i < 20'000; ++i) {
    const Digest d = random_digest(random, false);
    ASSERT_TRUE(loaded.insert(d, {9, 9, 9}, 1));
    ASSERT_EQ(loaded.find(d), (PagePlace{9, 9, 9}));
  }
  EXPECT_EQ(loaded.load({}).size(), 0u);
  EXPECT_EQ(loaded.size(), 0u);
  EXPECT_TRUE(loaded.insert(all[0].digest, all[0].place, 1));
}

TEST(PageIndex, Memory_IsAtMost40BytesAPage_AtEverySize) {
  std::mt19937_64 random(7);
  PageIndex index;
  double worst = 0;
  for (std::uint32_t n = 1; n <= 400'000; ++n) {
    index.insert(random_digest(random, false), {1, n, 0}, 0);
    if (n >= 50'000 && n % 5'000 == 0) {
      worst = std::max(worst, static_cast<double>(index.memory_bytes()) / static_cast<double>(index.size()));
    }
  }
  EXPECT_LE(worst, 40.0);
  // Given room for all at once, it is no larger.
  PageIndex reserved;
  reserved.reserve(400'000);
  EXPECT_LE(static_cast<double>(reserved.memory_bytes()) / 400'000, 40.0);
}

}  // namespace
}  // namespace baton::storage
