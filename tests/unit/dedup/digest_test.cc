#include "dedup/digest.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>
#include <vector>

#include "dedup/xxh3.h"

namespace baton::dedup {
namespace {

HashKey key_of(std::uint8_t seed) {
  HashKey key;
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = std::byte(seed + i * 7);
  return key;
}

using Page = std::array<std::byte, kPageBytes>;

Page page_of(std::uint32_t seed) {
  Page page;
  for (std::size_t i = 0; i < page.size(); ++i) {
    seed = seed * 1664525 + 1013904223;
    page[i] = std::byte(seed >> 24);
  }
  return page;
}

class DigestKinds : public testing::TestWithParam<DigestKind> {};

TEST_P(DigestKinds, Page_OfEachSingleBitChange_HasItsOwnDigest) {
  PageHasher hasher(GetParam(), key_of(1));
  Page page = page_of(1);
  std::set<Digest> seen{hasher.page(page)};
  for (std::size_t bit = 0; bit < kPageBytes * 8; bit += 61) {
    Page changed = page;
    changed[bit / 8] ^= std::byte(1u << (bit % 8));
    EXPECT_TRUE(seen.insert(hasher.page(changed)).second) << "bit " << bit;
  }
}

TEST_P(DigestKinds, Page_UnderAnotherKey_HasAnotherDigest) {
  PageHasher a(GetParam(), key_of(1)), b(GetParam(), key_of(2));
  Page page = page_of(1);
  EXPECT_NE(a.page(page), b.page(page));
  EXPECT_EQ(a.page(page), PageHasher(GetParam(), key_of(1)).page(page));
}

TEST_P(DigestKinds, Page_OfZeros_IsTheReservedValueWhateverTheKey) {
  Page page{};
  EXPECT_EQ(PageHasher(GetParam(), key_of(1)).page(page), Digest::zero_page());
  page[kPageBytes - 1] = std::byte{1};
  EXPECT_NE(PageHasher(GetParam(), key_of(1)).page(page), Digest::zero_page());
}

TEST_P(DigestKinds, Node_OfAbsentChildren_IsAbsent) {
  PageHasher hasher(GetParam(), key_of(1));
  std::vector<Digest> children(64);
  EXPECT_TRUE(hasher.node(children).is_absent());
  children[63] = Digest::zero_page();
  EXPECT_FALSE(hasher.node(children).is_absent());
}

TEST_P(DigestKinds, SameBytes_AsPageNodeAndBytes_DoNotShareADigest) {
  PageHasher hasher(GetParam(), key_of(1));
  Page page = page_of(9);
  std::set<Digest> seen{hasher.page(page), hasher.bytes(page), hasher.packed_node(page)};
  EXPECT_EQ(seen.size(), 3u);
}

TEST_P(DigestKinds, Hex_ThereAndBack_IsTheSame) {
  PageHasher hasher(GetParam(), key_of(3));
  Digest d = hasher.page(page_of(3));
  EXPECT_TRUE(d.fits(GetParam()));
  std::string text = d.to_hex(GetParam());
  EXPECT_EQ(text.size(), digest_width(GetParam()) * 2);
  EXPECT_EQ(*Digest::from_hex(text), d);
}

TEST_P(DigestKinds, OneHasher_FromManyThreads_GivesTheSameDigests) {
  PageHasher hasher(GetParam(), key_of(4));
  std::vector<Digest> expected;
  for (std::uint32_t i = 0; i < 50; ++i) expected.push_back(hasher.page(page_of(i)));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (std::uint32_t i = 0; i < 50; ++i) wrong += hasher.page(page_of(i)) != expected[i];
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
}

INSTANTIATE_TEST_SUITE_P(All, DigestKinds,
                         testing::Values(DigestKind::kXxh3_128, DigestKind::kSha256));

TEST(Digest, FromHex_OfBadText_SaysInvalid) {
  for (std::string_view text : {"", "00", "zz000000000000000000000000000000"}) {
    auto d = Digest::from_hex(text);
    ASSERT_FALSE(d);
    EXPECT_EQ(d.error().code, Code::kInvalid);
  }
}

// Digests are stored and compared between machines: every vector unit gives the same.
TEST(Digest, VectorUnits_OnTheSameBytes_Agree) {
  std::array<unsigned char, 192> secret;
  for (std::size_t i = 0; i < secret.size(); ++i) secret[i] = static_cast<unsigned char>(i * 31);
  for (std::size_t bytes : {std::size_t{0}, std::size_t{100}, std::size_t{1024}, kPageBytes}) {
    Page page = page_of(5);
    auto expected = baton_xxh3_default(page.data(), bytes, secret.data(), secret.size());
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
      auto got = baton_xxh3_avx2(page.data(), bytes, secret.data(), secret.size());
      EXPECT_EQ(memcmp(&got, &expected, sizeof got), 0);
    }
    if (__builtin_cpu_supports("avx512f")) {
      auto got = baton_xxh3_avx512(page.data(), bytes, secret.data(), secret.size());
      EXPECT_EQ(memcmp(&got, &expected, sizeof got), 0);
    }
#endif
    (void)expected;
  }
}

// Frozen: a stored digest stays findable by later versions.
TEST(Digest, KnownPage_UnderKnownKey_HasTheFrozenDigest) {
  Page page;
  for (std::size_t i = 0; i < page.size(); ++i) page[i] = std::byte(i & 0xFF);
  EXPECT_EQ(PageHasher(DigestKind::kXxh3_128, key_of(0)).page(page).to_hex(DigestKind::kXxh3_128),
            "6c6ef15c62644cef1f541cdbe0b4cb94");
  EXPECT_EQ(PageHasher(DigestKind::kSha256, key_of(0)).page(page).to_hex(), "0c167bba2b3a562209863ea0ad90cd2b2ca028d363bb3e5a1d50d4ba2ea99a68");
}

}  // namespace
}  // namespace baton::dedup
