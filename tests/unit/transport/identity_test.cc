#include "transport/identity.h"

#include <gtest/gtest.h>

namespace baton::transport {
namespace {

TEST(Identity, Parse_OfItsOwnUri_GivesItBack) {
  for (Role role : {Role::kNode, Role::kOperator, Role::kViewer, Role::kCoordinator}) {
    const Identity identity{"vecu-1", role, "ecu1.front"};
    auto parsed = parse_identity(identity.uri());
    ASSERT_TRUE(parsed) << identity.uri();
    EXPECT_EQ(*parsed, identity);
  }
  EXPECT_EQ((Identity{"c", Role::kNode, "ecu1"}).uri(), "spiffe://c/node/ecu1");
  EXPECT_EQ((Identity{"c", Role::kViewer, "jo"}).to_string(), "viewer jo");
}

class BadIdentity : public testing::TestWithParam<const char*> {};

TEST_P(BadIdentity, Parse_Always_Refuses) {
  auto parsed = parse_identity(GetParam());
  ASSERT_FALSE(parsed) << GetParam();
  EXPECT_EQ(parsed.error().code, Code::kInvalid);
}

INSTANTIATE_TEST_SUITE_P(All, BadIdentity,
                         testing::Values("", "spiffe://", "http://c/node/a", "spiffe://c/node",
                                         "spiffe://c/node/", "spiffe:///node/a",
                                         "spiffe://c/root/a", "spiffe://c/Node/a",
                                         "spiffe://c/node/a/", "spiffe://c/node/a/b",
                                         "spiffe://c/node/A", "spiffe://c/node/a?x=1",
                                         "spiffe://c/node/a#f", "spiffe://c/node/-a",
                                         "spiffe://c/node/a-", "spiffe://c:1/node/a",
                                         "spiffe://c/node/a b", "spiffe://c/node/\xc3\xa4",
                                         "SPIFFE://c/node/a", " spiffe://c/node/a",
                                         "spiffe://c/node/"
                                         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));

TEST(Identity, Name_WithNulByte_IsInvalid) {
  EXPECT_FALSE(is_valid_name(std::string_view("a\0b", 3)));
  EXPECT_TRUE(is_valid_name(std::string(63, 'a')));
  EXPECT_FALSE(is_valid_name(std::string(64, 'a')));
}

}  // namespace
}  // namespace baton::transport
