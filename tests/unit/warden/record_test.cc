#include "agent/warden/record.h"

#include <gtest/gtest.h>

namespace baton::warden {
namespace {

TEST(WardenRecord, EncodeDecode_RoundTrip_Same) {
  pb::WardenRecord record;
  record.set_version(1);
  record.set_workload("counter");
  record.set_phase("running");
  record.mutable_spec()->add_argv("sleep");
  auto back = decode_record(encode_record(record));
  ASSERT_TRUE(back);
  EXPECT_EQ(back->SerializeAsString(), record.SerializeAsString());
}

// Wrong in each way: every truncation, every flipped bit, and more behind it.
TEST(WardenRecord, Decode_Damaged_Refused) {
  pb::WardenRecord record;
  record.set_version(1);
  record.set_workload("counter");
  record.set_phase("running");
  std::string bytes = encode_record(record);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(decode_record(std::string_view(bytes).substr(0, length))) << length;
  }
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decode_record(damaged)) << bit;
  }
  EXPECT_FALSE(decode_record(bytes + "x"));
  record.set_version(2);
  EXPECT_FALSE(decode_record(encode_record(record)));
  record.set_version(1);
  record.set_workload("../x");
  EXPECT_FALSE(decode_record(encode_record(record)));
}

TEST(WardenRecord, CheckName_Borders) {
  EXPECT_TRUE(check_name("a"));
  EXPECT_TRUE(check_name("0-x"));
  EXPECT_TRUE(check_name(std::string(63, 'a')));
  for (const char* bad : {"", "-a", "A", "a_b", "a/b", "..", "a b"}) EXPECT_FALSE(check_name(bad)) << bad;
  EXPECT_FALSE(check_name(std::string(64, 'a')));
}

}  // namespace
}  // namespace baton::warden
