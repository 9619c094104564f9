#include "storage/checkpoint_record.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <set>

#include "storage/bytes/checksum.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

CheckpointRecord any_record() {
  CheckpointRecord r;
  r.workload = *rc::gen::element<std::string>("a", "redis-1", "X_.9");
  r.kind = *rc::gen::element(DigestKind::kXxh3_128, DigestKind::kSha256);
  const std::size_t width = dedup::digest_width(r.kind);
  auto any_digest = [&] {
    Digest d;
    for (std::size_t i = 0; i < width; ++i) d.bytes[i] = std::byte(*rc::gen::arbitrary<std::uint8_t>());
    d.bytes[0] |= std::byte{1};
    return d;
  };
  r.domain.bytes.fill(std::byte(*rc::gen::arbitrary<std::uint8_t>()));
  r.incarnation = *rc::gen::arbitrary<std::uint64_t>();
  r.seq = *rc::gen::inRange<std::uint64_t>(1, 1000);
  r.parent_seq = *rc::gen::inRange<std::uint64_t>(0, r.seq);
  r.freeze_wall_ns = *rc::gen::arbitrary<std::uint64_t>();
  r.freeze_age_ns = *rc::gen::arbitrary<std::uint64_t>();
  r.pause_ns = *rc::gen::arbitrary<std::uint64_t>();
  r.manifest = *rc::gen::string<std::string>();
  const auto ids = *rc::gen::container<std::set<std::uint64_t>>(rc::gen::arbitrary<std::uint64_t>());
  for (std::uint64_t id : ids) {
    ObjectDelta o;
    o.object_id = id;
    o.root = any_digest();
    o.from_empty = r.parent_seq == 0 || *rc::gen::arbitrary<bool>();
    for (std::uint64_t page : *rc::gen::container<std::set<std::uint64_t>>(
             rc::gen::inRange<std::uint64_t>(0, dedup::kMaxPages))) {
      o.changes.push_back({page, any_digest()});
    }
    if (!o.from_empty) {
      std::uint64_t next = 0;
      for (auto gap : *rc::gen::container<std::vector<std::uint32_t>>(
               rc::gen::inRange<std::uint32_t>(0, 1 << 20))) {
        o.erased.push_back({next + gap, gap % 7 + 1});
        next += gap + gap % 7 + 1;
      }
    }
    r.objects.push_back(std::move(o));
  }
  return r;
}

TEST(CheckpointRecord, EncodeThenDecode_OfAnyRecord_GivesItBack) {
  EXPECT_TRUE(rc::check([] {
    const CheckpointRecord r = any_record();
    auto bytes = encode(r);
    RC_ASSERT(bytes.has_value());
    RC_ASSERT(bytes->substr(manifest_offset(r), r.manifest.size()) == r.manifest);
    auto back = decode(*bytes);
    RC_ASSERT(back.has_value());
    RC_ASSERT(*back == r);
  }));
}

CheckpointRecord sample() {
  testing_ground::Workload w("sample");
  for (std::uint64_t p = 0; p < 40; ++p) w.write(1, p * 3, p);
  w.write(9, 5, 7);
  return w.take();
}

TEST(CheckpointRecord, Decode_OfEveryPrefix_SaysCorrupt) {
  const std::string bytes = *encode(sample());
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    auto r = decode(std::string_view(bytes).substr(0, n));
    ASSERT_FALSE(r) << n;
    EXPECT_EQ(r.error().code, Code::kCorrupt);
  }
}

TEST(CheckpointRecord, Decode_OfEveryFlippedByte_SaysCorrupt) {
  std::string bytes = *encode(sample());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(bytes[i] ^ 0x20);
    EXPECT_FALSE(decode(bytes)) << i;
    bytes[i] = static_cast<char>(bytes[i] ^ 0x20);
  }
}

// Flips behind the checksum's back: the parser itself must hold.
TEST(CheckpointRecord, Decode_OfFlipsUnderAGoodChecksum_IsRefusedOrValid) {
  const std::string good = *encode(sample());
  for (std::size_t i = 0; i + 8 < good.size(); ++i) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      std::string bytes = good.substr(0, good.size() - 8);
      bytes[i] = static_cast<char>(bytes[i] ^ (1u << bit));
      std::uint64_t sum = checksum(bytes);
      bytes.append(reinterpret_cast<const char*>(&sum), 8);
      auto r = decode(bytes);
      if (r) {
        EXPECT_TRUE(validate(*r));
        EXPECT_EQ(*encode(*r), bytes) << "two encodings of one record, byte " << i;
      } else {
        EXPECT_EQ(r.error().code, Code::kCorrupt);
      }
    }
  }
}

TEST(CheckpointRecord, Validate_OfEachRuleBroken_SaysInvalid) {
  auto broken = [](auto change) {
    CheckpointRecord r = sample();
    change(r);
    auto v = validate(r);
    return !v && v.error().code == Code::kInvalid && !encode(r);
  };
  EXPECT_TRUE(broken([](auto& r) { r.workload = "../x"; }));
  EXPECT_TRUE(broken([](auto& r) { r.workload = ""; }));
  EXPECT_TRUE(broken([](auto& r) { r.workload = std::string(129, 'a'); }));
  EXPECT_TRUE(broken([](auto& r) { r.seq = 0; }));
  EXPECT_TRUE(broken([](auto& r) { r.parent_seq = r.seq; }));
  EXPECT_TRUE(broken([](auto& r) { r.kind = static_cast<DigestKind>(7); }));
  EXPECT_TRUE(broken([](auto& r) { r.manifest.resize(kMaxManifestBytes + 1); }));
  EXPECT_TRUE(broken([](auto& r) { std::swap(r.objects[0], r.objects[1]); }));
  EXPECT_TRUE(broken([](auto& r) { r.objects[0].from_empty = false; }));
  EXPECT_TRUE(broken([](auto& r) { std::swap(r.objects[0].changes[0], r.objects[0].changes[1]); }));
  EXPECT_TRUE(broken([](auto& r) { r.objects[0].changes.back().page = dedup::kMaxPages; }));
  EXPECT_TRUE(broken([](auto& r) { r.objects[0].changes[0].digest = Digest::absent(); }));
  EXPECT_TRUE(broken([](auto& r) { r.objects[0].changes[0].digest.bytes[20] = std::byte{1}; }));
  EXPECT_TRUE(broken([](auto& r) { r.objects[0].erased = {{0, 1}}; }));
}

}  // namespace
}  // namespace baton::storage
