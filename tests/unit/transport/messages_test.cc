#include "transport/stream/messages.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

namespace baton::transport::stream {
namespace {

using dedup::Digest;
using dedup::DigestKind;
using dedup::kPageBytes;

Digest digest_of(int n, DigestKind kind) {
  Digest digest;
  for (std::size_t i = 0; i < dedup::digest_width(kind); ++i)
    digest.bytes[i] = static_cast<std::byte>(n + static_cast<int>(i) + 1);
  return digest;
}

class Kinds : public testing::TestWithParam<DigestKind> {};

TEST_P(Kinds, Messages_OfTheirOwnEncoding_ComeBack) {
  const DigestKind kind = GetParam();
  OpenRequest open;
  open.workload = "redis";
  open.kind = kind;
  open.incarnation = 42;
  open.context = "spec";
  open.hash_key.fill(std::byte{9});
  auto open2 = decode_open(encode_open(open));
  ASSERT_TRUE(open2);
  EXPECT_EQ(open2->workload, "redis");
  EXPECT_EQ(open2->incarnation, 42u);
  EXPECT_EQ(open2->hash_key, open.hash_key);
  EXPECT_EQ(open2->context, "spec");

  OpenReply opened{7, 3, {{1, digest_of(1, kind)}, {9, Digest::absent()}}};
  auto opened2 = decode_opened(encode_opened(opened, kind), kind);
  ASSERT_TRUE(opened2);
  EXPECT_EQ(opened2->objects, opened.objects);

  Nack nack{make_error(Code::kNoSpace, "put", "disk full", "Free some."), {digest_of(4, kind)}};
  auto nack2 = decode_nack(encode_nack(11, nack, kind), kind);
  ASSERT_TRUE(nack2);
  EXPECT_EQ(nack2->seq, 11u);
  EXPECT_EQ(nack2->nack.error.code, Code::kNoSpace);
  EXPECT_EQ(nack2->nack.missing, nack.missing);

  std::vector<NodeChildren> nodes(3);
  nodes[2][63] = digest_of(5, kind);
  EXPECT_EQ(*decode_node_reply(encode_node_reply(nodes, kind), 3, kind), nodes);

  const std::vector<bool> bits{true, false, false, true, true, false, true, false, true};
  EXPECT_EQ(*decode_bitmap(encode_bitmap(bits), bits.size()), bits);
}

TEST_P(Kinds, Pages_CompressibleOrNot_ComeBack) {
  const DigestKind kind = GetParam();
  std::mt19937_64 random(1);
  PageCodec packer, unpacker;
  for (int round = 0; round < 40; ++round) {
    std::vector<Digest> digests;
    std::vector<std::byte> pages(5 * kPageBytes);
    for (int i = 0; i < 5; ++i) digests.push_back(digest_of(i, kind));
    for (std::byte& b : pages) b = static_cast<std::byte>(round % 3 ? random() : random() % 2);
    const std::string payload = packer.encode_pages(digests, kind, pages);
    auto back = unpacker.decode_pages(payload, kind);
    ASSERT_TRUE(back);
    EXPECT_EQ(back->digests, digests);
    EXPECT_EQ(back->bytes, pages);
  }
}

TEST_P(Kinds, EveryDecoder_OfTruncatedOrExtended_FailsCleanly) {
  const DigestKind kind = GetParam();
  PageCodec codec;
  std::vector<std::byte> page(kPageBytes, std::byte{7});
  const std::vector<Digest> one{digest_of(1, kind)};
  OpenRequest open;
  open.workload = "w";
  open.kind = kind;
  std::vector<std::byte> out(kPageBytes);
  const std::vector<std::pair<std::string, std::function<bool(std::string_view)>>> all{
      {encode_open(open), [&](auto b) { return !!decode_open(b); }},
      {encode_opened({1, 1, {{1, one[0]}}}, kind), [&](auto b) { return !!decode_opened(b, kind); }},
      {encode_node_query(std::vector<NodeRef>{{1, 5, 0}}), [&](auto b) { return !!decode_node_query(b); }},
      {encode_ack(1, {}), [&](auto b) { return !!decode_ack(b); }},
      {encode_fetch_checkpoint({"w", 1}), [&](auto b) { return !!decode_fetch_checkpoint(b); }},
      {encode_fetch_pages("w", {}, kind, one), [&](auto b) { return !!decode_fetch_pages(b); }},
      {codec.encode_pages(one, kind, page), [&](auto b) { return !!codec.decode_pages(b, kind); }},
      {codec.encode_fetched({true}, page), [&](auto b) { return !!codec.decode_fetched(b, 1, out); }},
      {encode_nack(1, {make_error(Code::kFailed, "a", "b"), one}, kind),
       [&](auto b) { return !!decode_nack(b, kind); }},
  };
  for (std::size_t which = 0; which < all.size(); ++which) {
    const auto& [good, decode] = all[which];
    EXPECT_TRUE(decode(good)) << which;
    for (std::size_t bytes = 0; bytes < good.size(); ++bytes) {
      const bool whole_digests = which == 5 || which == 8;  // may end after any digest
      if (!whole_digests || bytes + dedup::digest_width(kind) > good.size()) {
        EXPECT_FALSE(decode(good.substr(0, bytes))) << which << " at " << bytes;
      }
    }
    EXPECT_FALSE(decode(good + "x")) << which;
  }
}

INSTANTIATE_TEST_SUITE_P(Both, Kinds, testing::Values(DigestKind::kXxh3_128, DigestKind::kSha256));

TEST(Messages, Pages_WithBombOrZeroPage_AreRefused) {
  PageCodec codec;
  std::vector<std::byte> two(2 * kPageBytes, std::byte{1});
  const std::vector<Digest> digests{digest_of(1, DigestKind::kXxh3_128),
                                    digest_of(2, DigestKind::kXxh3_128)};
  std::string payload = codec.encode_pages(digests, DigestKind::kXxh3_128, two);
  payload[0] = 1;  // says one page: the unpacked bytes would be too many
  EXPECT_FALSE(codec.decode_pages(payload, DigestKind::kXxh3_128));
  const std::vector<Digest> zero{Digest::zero_page(), digests[0]};
  EXPECT_FALSE(codec.decode_pages(codec.encode_pages(zero, DigestKind::kXxh3_128, two),
                                  DigestKind::kXxh3_128));
}

TEST(Messages, NodeQuery_OutsideTheTree_IsCorrupt) {
  EXPECT_FALSE(decode_node_query(encode_node_query(std::vector<NodeRef>{{1, 6, 0}})));
  EXPECT_FALSE(decode_node_query(encode_node_query(std::vector<NodeRef>{{1, 5, 1}})));
  EXPECT_TRUE(decode_node_query(encode_node_query(std::vector<NodeRef>{{1, 4, 63}})));
}

TEST(Messages, Error_ThatCannotBeRead_BecomesFailed) {
  EXPECT_EQ(decode_error("").code, Code::kFailed);
  EXPECT_EQ(decode_error(std::string(10, '\xff')).code, Code::kFailed);
}

}  // namespace
}  // namespace baton::transport::stream
