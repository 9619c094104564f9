#include "transport/stream/frame.h"

#include <gtest/gtest.h>

namespace baton::transport::stream {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(Frame, Header_OfItsOwnEncoding_ComesBack) {
  const std::string payload = "hello";
  const auto head = encode_header(FrameType::kCheckpoint, true, 7, 9, bytes_of(payload));
  auto header = decode_header(head);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->type, FrameType::kCheckpoint);
  EXPECT_TRUE(header->more);
  EXPECT_EQ(header->channel, 7u);
  EXPECT_EQ(header->request, 9u);
  EXPECT_TRUE(check_payload(*header, bytes_of(payload)));
}

TEST(Frame, Header_WithAnyBitFlipped_IsCorrupt) {
  const auto good = encode_header(FrameType::kPages, false, 1, 2, bytes_of("abcdef"));
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto bad = good;
    bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    auto header = decode_header(bad);
    ASSERT_FALSE(header) << "bit " << bit;
    EXPECT_EQ(header.error().code, Code::kCorrupt);
  }
}

TEST(Frame, Payload_FlippedOrTruncated_IsCorruptAndNamesTheFrame) {
  const std::string good(1000, 'x');
  auto header = decode_header(encode_header(FrameType::kPages, false, 3, 0, bytes_of(good)));
  for (std::size_t bit = 0; bit < good.size() * 8; bit += 7) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    auto checked = check_payload(*header, bytes_of(bad));
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, Code::kCorrupt);
    EXPECT_NE(checked.error().subject.find("PAGES frame of channel 3"), std::string::npos);
  }
  EXPECT_FALSE(check_payload(*header, bytes_of(good.substr(1))));
}

TEST(Frame, Header_OfUnknownType_IsCorrupt) {
  for (int type : {0, 5, 9, 13, 24, 44, 255}) {
    auto header = decode_header(encode_header(static_cast<FrameType>(type), false, 0, 0, {}));
    EXPECT_FALSE(header) << type;
  }
}

TEST(Frame, Header_LongerThanItsType_IsCorrupt) {
  const std::string payload(100, 'x');
  EXPECT_FALSE(decode_header(encode_header(FrameType::kPing, false, 0, 0, bytes_of(payload))));
  const std::string huge(kMaxPayloadBytes + 1, 'x');
  EXPECT_FALSE(decode_header(encode_header(FrameType::kCheckpoint, false, 0, 0, bytes_of(huge))));
  EXPECT_FALSE(decode_header(encode_header(FrameType::kCheckpoint, true, 0, 0, {})));
}

TEST(Greeting, Check_OfOtherVersion_SaysWhichAndWhatToDo) {
  EXPECT_TRUE(check_greeting(encode_greeting()));
  auto newer = check_greeting(encode_greeting(kPageStreamVersion + 1));
  ASSERT_FALSE(newer);
  EXPECT_EQ(newer.error().code, Code::kUnsupported);
  EXPECT_NE(newer.error().subject.find("version 2"), std::string::npos);
  auto bad = encode_greeting();
  bad[0] = std::byte{'X'};
  EXPECT_EQ(check_greeting(bad).error().code, Code::kCorrupt);
}

FrameHeader part(FrameType type, std::uint32_t channel, bool more, std::size_t bytes) {
  FrameHeader header;
  header.type = type;
  header.channel = channel;
  header.more = more;
  header.payload_bytes = static_cast<std::uint32_t>(bytes);
  return header;
}

TEST(Assembler, Add_PartsOfTwoChannels_PutsEachTogether) {
  Assembler assembler;
  Message out;
  EXPECT_FALSE(*assembler.add(part(FrameType::kCheckpoint, 1, true, 2), "ab", out));
  EXPECT_FALSE(*assembler.add(part(FrameType::kCheckpoint, 2, true, 2), "xy", out));
  EXPECT_TRUE(*assembler.add(part(FrameType::kCheckpoint, 1, false, 1), "c", out));
  EXPECT_EQ(out.payload, "abc");
  EXPECT_TRUE(*assembler.add(part(FrameType::kCheckpoint, 2, false, 0), "", out));
  EXPECT_EQ(out.payload, "xy");
}

TEST(Assembler, Add_OtherTypeInBetween_IsCorrupt) {
  Assembler assembler;
  Message out;
  EXPECT_FALSE(*assembler.add(part(FrameType::kCheckpoint, 1, true, 2), "ab", out));
  EXPECT_EQ(assembler.add(part(FrameType::kPages, 1, false, 1), "c", out).error().code, Code::kCorrupt);
}

TEST(Assembler, Add_BeyondTheTypesMaximum_IsCorrupt) {
  Assembler assembler;
  Message out;
  const std::string mega(kMaxPayloadBytes, 'x');
  ASSERT_TRUE(assembler.add(part(FrameType::kHaveQuery, 1, true, mega.size()), mega, out));
  EXPECT_FALSE(assembler.add(part(FrameType::kHaveQuery, 1, false, 1), "y", out));
}

TEST(Assembler, Add_TooManyUnfinished_IsCorrupt) {
  Assembler assembler;
  Message out;
  for (std::uint32_t i = 0; i < kMaxPartialMessages; ++i)
    ASSERT_TRUE(assembler.add(part(FrameType::kCheckpoint, i, true, 1), "x", out));
  EXPECT_FALSE(assembler.add(part(FrameType::kCheckpoint, 9999, true, 1), "x", out));
}

}  // namespace
}  // namespace baton::transport::stream
