// One suite over every PageStore.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <thread>

#include "storage/memory_disk.h"
#include "storage/memory_store.h"
#include "storage/page_store.h"
#include "storage/segment_store.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;
using Page = std::array<std::byte, kPageBytes>;

// Even seeds compress, odd ones do not.
Page make_page(std::uint32_t seed) {
  Page page{};
  std::mt19937 random(seed);
  const std::size_t filled = seed % 2 ? kPageBytes : 200;
  for (std::size_t i = 0; i < filled; ++i) page[i] = std::byte(random());
  std::memcpy(page.data(), &seed, sizeof seed);
  page[5] = std::byte{1};
  return page;
}

DomainId domain_of(std::uint8_t n) {
  DomainId d;
  d.bytes.fill(std::byte{n});
  return d;
}

struct Implementation {
  const char* name;
  std::function<std::unique_ptr<PageStore>(const std::string& folder, std::uint64_t limit)> make;
};

std::unique_ptr<PageStore> make_segments(const std::string& folder, std::uint64_t limit) {
  SegmentStoreOptions options;
  options.segment_bytes = 1u << 20;
  options.byte_limit = limit;
  auto store = open_segment_store(folder + "/pages", options);
  EXPECT_TRUE(store) << (store ? "" : store.error().message());
  return store ? std::move(*store) : nullptr;
}

// On a disk in memory, as a node without one has it. The disk lives as long as the program:
// make() again finds what was there.
std::unique_ptr<PageStore> make_segments_in_memory(const std::string& folder, std::uint64_t limit) {
  static std::map<std::string, std::unique_ptr<MemoryDisk>> disks;
  auto& disk = disks[folder];
  if (!disk) disk = std::make_unique<MemoryDisk>();
  SegmentStoreOptions options;
  options.segment_bytes = 1u << 20;
  options.byte_limit = limit;
  options.disk = disk.get();
  auto store = open_segment_store("/pages", options);
  EXPECT_TRUE(store) << (store ? "" : store.error().message());
  return store ? std::move(*store) : nullptr;
}

class PageStoreContract
    : public testing::TestWithParam<std::tuple<Implementation, DigestKind>> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/baton-page-store-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    store_ = make();
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  std::unique_ptr<PageStore> make(std::uint64_t limit = 0) {
    return std::get<0>(GetParam()).make(folder_, limit);
  }

  struct Batch {
    std::vector<Page> pages;
    std::vector<Digest> digests;
    std::vector<PagePut> puts;
  };
  Batch batch(std::uint32_t first, std::uint32_t count) {
    Batch b;
    for (std::uint32_t i = 0; i < count; ++i) b.pages.push_back(make_page(first + i));
    for (const Page& p : b.pages) {
      b.digests.push_back(hasher_.page(p));
      b.puts.push_back({b.digests.back(), p.data()});
    }
    return b;
  }
  void expect_readable(const Batch& b, const DomainId& domain) {
    std::vector<Page> out(b.pages.size());
    std::vector<PageGet> gets;
    for (std::size_t i = 0; i < out.size(); ++i) gets.push_back({b.digests[i], out[i].data()});
    auto got = store_->get(domain, hasher_, gets);
    ASSERT_TRUE(got) << got.error().message();
    EXPECT_TRUE(out == b.pages);
  }
  std::size_t known(const Batch& b, const DomainId& domain) {
    auto bits = store_->contains(domain, b.digests);
    return static_cast<std::size_t>(std::count(bits.begin(), bits.end(), true));
  }
  Result<GcResult> collect(const MarkedPages& marked) {
    return store_->gc(store_->gc_begin(), marked);
  }

  std::string folder_;
  std::unique_ptr<PageStore> store_;
  PageHasher hasher_{std::get<1>(GetParam()), dedup::HashKey{}};
  const DomainId domain_ = domain_of(1);
};

TEST_P(PageStoreContract, Put_OfNewPages_MakesThemReadable) {
  Batch b = batch(0, 1000);
  auto put = store_->put(domain_, b.puts);
  ASSERT_TRUE(put);
  EXPECT_EQ(put->new_pages, 1000u);
  EXPECT_EQ(put->known_pages, 0u);
  EXPECT_GT(put->bytes_written, 0u);
  EXPECT_EQ(known(b, domain_), 1000u);
  expect_readable(b, domain_);
  EXPECT_EQ(store_->stats().pages, 1000u);
}

TEST_P(PageStoreContract, Put_Again_WritesNothing) {
  Batch b = batch(0, 100);
  ASSERT_TRUE(store_->put(domain_, b.puts));
  auto put = store_->put(domain_, b.puts);
  ASSERT_TRUE(put);
  EXPECT_EQ(put->new_pages, 0u);
  EXPECT_EQ(put->known_pages, 100u);
  EXPECT_EQ(put->bytes_written, 0u);
}

TEST_P(PageStoreContract, Put_OfTheSamePageTwiceInABatch_StoresItOnce) {
  Batch b = batch(0, 10);
  b.puts.insert(b.puts.end(), b.puts.begin(), b.puts.end());
  auto put = store_->put(domain_, b.puts);
  ASSERT_TRUE(put);
  EXPECT_EQ(put->new_pages, 10u);
  EXPECT_EQ(put->known_pages, 10u);
}

TEST_P(PageStoreContract, ZeroPage_Always_IsKnownAndReadsAsZeros) {
  Page zeros{}, out = make_page(1);
  Digest zero = Digest::zero_page();
  EXPECT_TRUE(store_->contains(domain_, std::span(&zero, 1))[0]);
  PagePut put{zero, zeros.data()};
  EXPECT_EQ(store_->put(domain_, std::span(&put, 1))->known_pages, 1u);
  PageGet get{zero, out.data()};
  ASSERT_TRUE(store_->get(domain_, hasher_, std::span(&get, 1)));
  EXPECT_TRUE(out == zeros);
  EXPECT_EQ(store_->stats().pages, 0u);
}

TEST_P(PageStoreContract, AbsentDigest_Always_IsRefused) {
  Page page{};
  PagePut put{Digest::absent(), page.data()};
  PageGet get{Digest::absent(), page.data()};
  EXPECT_EQ(store_->put(domain_, std::span(&put, 1)).error().code, Code::kInvalid);
  EXPECT_EQ(store_->get(domain_, hasher_, std::span(&get, 1)).error().code, Code::kInvalid);
  Digest absent;
  EXPECT_FALSE(store_->contains(domain_, std::span(&absent, 1))[0]);
}

TEST_P(PageStoreContract, Pages_OfAnotherDomain_AreNotSeen) {
  Batch b = batch(0, 10);
  ASSERT_TRUE(store_->put(domain_, b.puts));
  EXPECT_EQ(known(b, domain_of(2)), 0u);
  Page out;
  PageGet get{b.digests[0], out.data()};
  auto got = store_->get(domain_of(2), hasher_, std::span(&get, 1));
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, Code::kNotFound);
}

TEST_P(PageStoreContract, Get_UnderAWrongDigest_SaysCorrupt) {
  Batch b = batch(0, 2);
  PagePut lie{b.digests[0], b.pages[1].data()};
  ASSERT_TRUE(store_->put(domain_, std::span(&lie, 1)));
  Page out;
  PageGet get{b.digests[0], out.data()};
  EXPECT_EQ(store_->get(domain_, hasher_, std::span(&get, 1)).error().code, Code::kCorrupt);
}

TEST_P(PageStoreContract, Verify_OfGoodAndMissingPages_NamesTheMissing) {
  Batch good = batch(0, 50), missing = batch(100, 2);
  ASSERT_TRUE(store_->put(domain_, good.puts));
  std::vector<Digest> all = good.digests;
  all.insert(all.end(), missing.digests.begin(), missing.digests.end());
  auto bad = store_->verify(domain_, hasher_, all);
  ASSERT_TRUE(bad);
  ASSERT_EQ(bad->size(), 2u);
  EXPECT_EQ((*bad)[0].digest, missing.digests[0]);
}

TEST_P(PageStoreContract, Gc_OfUnmarkedPages_RemovesThemAlone) {
  Batch keep = batch(0, 700), lose = batch(5000, 900), other = batch(9000, 30);
  ASSERT_TRUE(store_->put(domain_, keep.puts));
  ASSERT_TRUE(store_->put(domain_, lose.puts));
  ASSERT_TRUE(store_->put(domain_of(2), other.puts));
  const std::uint64_t bytes_before = store_->stats().bytes;
  MarkedPages marked;
  marked[domain_] = DigestSet(keep.digests.begin(), keep.digests.end());
  auto result = collect(marked);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(result->pages_removed, 930u);
  EXPECT_EQ(store_->stats().pages, 700u);
  EXPECT_LT(store_->stats().bytes, bytes_before);
  EXPECT_EQ(known(keep, domain_), 700u);
  EXPECT_EQ(known(lose, domain_), 0u);
  expect_readable(keep, domain_);
  ASSERT_TRUE(store_->put(domain_, lose.puts));
  expect_readable(lose, domain_);
}

TEST_P(PageStoreContract, Gc_WhileALeaseIsHeld_SparesWhatItsHolderPutOrAskedFor) {
  Batch asked = batch(0, 20), put = batch(100, 20), neither = batch(200, 20);
  ASSERT_TRUE(store_->put(domain_, asked.puts));
  ASSERT_TRUE(store_->put(domain_, neither.puts));
  ASSERT_TRUE(collect({{domain_, [&] {
                          DigestSet s(asked.digests.begin(), asked.digests.end());
                          s.insert(neither.digests.begin(), neither.digests.end());
                          return s;
                        }()}}));
  WriteLease lease = store_->lease();
  EXPECT_EQ(known(asked, domain_), 20u);
  ASSERT_TRUE(store_->put(domain_, put.puts));
  ASSERT_TRUE(collect({}));
  ASSERT_TRUE(collect({}));
  EXPECT_EQ(store_->stats().pages, 40u);
  expect_readable(asked, domain_);
  expect_readable(put, domain_);
  lease.reset();
  ASSERT_TRUE(collect({}));
  EXPECT_EQ(store_->stats().pages, 0u);
}

TEST_P(PageStoreContract, Lease_ReleasedAfterTheCollectionBegan_StillCounts) {
  Batch b = batch(0, 20);
  WriteLease lease = store_->lease();
  ASSERT_TRUE(store_->put(domain_, b.puts));
  const std::uint64_t ticket = store_->gc_begin();  // before the commit that uses the pages
  lease.reset();
  ASSERT_TRUE(store_->gc(ticket, {}));
  EXPECT_EQ(store_->stats().pages, 20u);
}

TEST_P(PageStoreContract, Put_BeyondTheLimit_SaysNoSpaceAndKeepsWhatWasThere) {
  store_.reset();
  std::filesystem::remove_all(folder_ + "/pages");
  store_ = make(1u << 20);
  Batch first = batch(0, 50), big = batch(1, 2000);
  for (auto& p : big.pages) (void)p;
  ASSERT_TRUE(store_->put(domain_, first.puts));
  auto put = store_->put(domain_, big.puts);
  ASSERT_FALSE(put);
  EXPECT_EQ(put.error().code, Code::kNoSpace);
  EXPECT_FALSE(put.error().hint.empty());
  expect_readable(first, domain_);
  EXPECT_LE(store_->stats().bytes, 1u << 20);
}

TEST_P(PageStoreContract, ManyThreads_PuttingReadingAndCollecting_LoseNothing) {
  constexpr int kThreads = 4;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<Batch> kept;
  for (int t = 0; t < kThreads; ++t) {
    kept.push_back(batch(static_cast<std::uint32_t>(t * 300), 600));  // overlap
  }
  MarkedPages marked;
  for (const Batch& b : kept) marked[domain_].insert(b.digests.begin(), b.digests.end());
  std::thread collector([&] {
    while (!stop) {
      if (!store_->gc(store_->gc_begin(), marked)) ++wrong;
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Batch& b = kept[static_cast<std::size_t>(t)];
      for (int round = 0; round < 3; ++round) {
        for (std::size_t at = 0; at < b.puts.size(); at += 50) {
          if (!store_->put(domain_, std::span(b.puts).subspan(at, 50))) ++wrong;
          Batch scratch = batch(static_cast<std::uint32_t>(100000 + t * 10000 + round * 1000 +
                                                           static_cast<int>(at)), 40);
          if (!store_->put(domain_, scratch.puts)) ++wrong;
          if (!store_->sync(Durability::kSynced)) ++wrong;
          std::vector<Page> out(50);
          std::vector<PageGet> gets;
          for (std::size_t i = 0; i < 50; ++i) gets.push_back({b.digests[at + i], out[i].data()});
          if (!store_->get(domain_, hasher_, gets)) ++wrong;
          for (std::size_t i = 0; i < 50; ++i) wrong += !(out[i] == b.pages[at + i]);
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  stop = true;
  collector.join();
  EXPECT_EQ(wrong, 0);
  ASSERT_TRUE(collect(marked));
  ASSERT_TRUE(collect(marked));
  EXPECT_EQ(store_->stats().pages, marked[domain_].size());
  for (const Batch& b : kept) expect_readable(b, domain_);
}

INSTANTIATE_TEST_SUITE_P(
    All, PageStoreContract,
    testing::Combine(testing::Values(Implementation{"Segments", make_segments},
                                     Implementation{"SegmentsInMemory", make_segments_in_memory},
                                     Implementation{"Memory",
                                                    [](const std::string&, std::uint64_t limit) {
                                                      return make_memory_store(limit);
                                                    }}),
                     testing::Values(DigestKind::kXxh3_128, DigestKind::kSha256)),
    [](const auto& p) {
      return std::string(std::get<0>(p.param).name) +
             (std::get<1>(p.param) == DigestKind::kSha256 ? "Sha256" : "Xxh3");
    });

}  // namespace
}  // namespace baton::storage
