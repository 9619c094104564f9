#include "agent/warden/wire.h"

#include <unistd.h>

#include <gtest/gtest.h>

#include "proto/warden.pb.h"

namespace baton::warden {
namespace {

class Wire : public ::testing::TestWithParam<std::size_t> {};

TEST_P(Wire, SendReceive_AnySize_Arrives) {
  auto pair = UnixSocket::make_pair();
  ASSERT_TRUE(pair);
  pb::WardenRequest sent, got;
  sent.set_id(42);
  sent.mutable_write_file()->set_data(std::string(GetParam(), 'x'));
  int fd = STDERR_FILENO;
  ASSERT_TRUE(send_message(pair->first, sent, std::span(&fd, 1)));
  std::vector<Fd> fds;
  auto open = receive_message(pair->second, got, fds);
  ASSERT_TRUE(open && *open);
  EXPECT_EQ(got.write_file().data().size(), GetParam());
  EXPECT_EQ(fds.size(), 1u);
}
INSTANTIATE_TEST_SUITE_P(Sizes, Wire, ::testing::Values(0, 1, kInlineMax - 100, kInlineMax, kInlineMax + 1, 5u << 20));

TEST(WireLimits, Send_LargerThanTheLimit_Refused) {
  auto pair = UnixSocket::make_pair();
  ASSERT_TRUE(pair);
  pb::WardenRequest request;
  request.mutable_write_file()->set_data(std::string(kMessageMax + 1, 'x'));
  EXPECT_EQ(send_message(pair->first, request).error().code, Code::kNoSpace);
}

TEST(WireLimits, Receive_PeerClosed_False) {
  auto pair = UnixSocket::make_pair();
  ASSERT_TRUE(pair);
  pair->first.close();
  pb::WardenRequest request;
  std::vector<Fd> fds;
  auto open = receive_message(pair->second, request, fds);
  ASSERT_TRUE(open);
  EXPECT_FALSE(*open);
}

}  // namespace
}  // namespace baton::warden
