#include "transport/pki.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/fd.h"

namespace baton::transport {
namespace {

using namespace std::chrono;

class PkiTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/baton-pki-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    ASSERT_TRUE(init_ca(ca(), "vecu"));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string ca() const { return folder_ + "/ca"; }
  std::string at(const std::string& name) const { return folder_ + "/" + name; }
  IssueRequest node(const std::string& name) const {
    IssueRequest request;
    request.name = name;
    request.addresses = {"10.77.0.11", "ecu1.local"};
    return request;
  }
  std::string folder_;
};

TEST_F(PkiTest, Issue_Always_MakesWhatLoadTlsAccepts) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("deep/er/ecu1")));
  auto tls = load_tls(at("deep/er/ecu1"), "vecu");
  ASSERT_TRUE(tls) << tls.error().message();
  EXPECT_EQ(tls->identity, (Identity{"vecu", Role::kNode, "ecu1"}));
  EXPECT_GT(tls->not_after, system_clock::now() + days(360));
  struct stat st{};
  ASSERT_EQ(stat((at("deep/er/ecu1") + "/tls.key").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  ASSERT_EQ(stat((ca() + "/ca.key").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST_F(PkiTest, Inspect_OfIssued_NamesIdentityAddressesAndValidity) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  auto info = inspect(at("ecu1") + "/tls.crt");
  ASSERT_TRUE(info);
  EXPECT_FALSE(info->is_ca);
  EXPECT_EQ(info->identity.name, "ecu1");
  EXPECT_EQ(info->addresses, (std::vector<std::string>{"10.77.0.11", "ecu1.local", "ecu1"}));
  EXPECT_EQ(info->serial_hex.size(), 32u);
  auto root = inspect(ca() + "/ca.crt");
  ASSERT_TRUE(root);
  EXPECT_TRUE(root->is_ca);
  EXPECT_EQ(root->identity.cluster, "vecu");
}

TEST_F(PkiTest, InitAndIssue_OverExisting_AreRefused) {
  EXPECT_EQ(init_ca(ca(), "vecu").error().code, Code::kConflict);
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  EXPECT_EQ(issue(ca(), node("ecu1"), at("ecu1")).error().code, Code::kConflict);
}

TEST_F(PkiTest, Issue_WithBadRequest_SaysInvalid) {
  EXPECT_EQ(issue(ca(), node("ECU 1"), at("x")).error().code, Code::kInvalid);
  IssueRequest request = node("ecu1");
  request.addresses = {"10.0.0.1,URI:spiffe://vecu/coordinator/x"};
  EXPECT_EQ(issue(ca(), request, at("x")).error().code, Code::kInvalid);
  request = node("ecu1");
  request.days = 0;
  EXPECT_EQ(issue(ca(), request, at("x")).error().code, Code::kInvalid);
  EXPECT_EQ(init_ca(at("other"), "Bad/Cluster").error().code, Code::kInvalid);
}

TEST_F(PkiTest, Issue_WithoutCa_SaysNotFoundAndHow) {
  auto issued = issue(at("none"), node("ecu1"), at("x"));
  ASSERT_FALSE(issued);
  EXPECT_EQ(issued.error().code, Code::kNotFound);
  EXPECT_NE(issued.error().hint.find("pki init"), std::string::npos);
}

TEST_F(PkiTest, LoadTls_OfExpired_SaysWhoAndWhen) {
  IssueRequest request = node("ecu1");
  request.not_before_offset = -hours(48);
  request.days = 1;
  ASSERT_TRUE(issue(ca(), request, at("ecu1")));
  auto tls = load_tls(at("ecu1"));
  ASSERT_FALSE(tls);
  EXPECT_EQ(tls.error().code, Code::kNotAllowed);
  EXPECT_NE(tls.error().subject.find("certificate of node ecu1 expired on 20"), std::string::npos)
      << tls.error().message();
}

TEST_F(PkiTest, LoadTls_OfFuture_SaysNotValidBefore) {
  IssueRequest request = node("ecu1");
  request.not_before_offset = hours(48);
  ASSERT_TRUE(issue(ca(), request, at("ecu1")));
  auto tls = load_tls(at("ecu1"));
  ASSERT_FALSE(tls);
  EXPECT_NE(tls.error().subject.find("not valid before"), std::string::npos);
}

TEST_F(PkiTest, LoadTls_WithForeignKey_SaysItDoesNotMatch) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  ASSERT_TRUE(issue(ca(), node("ecu2"), at("ecu2")));
  std::filesystem::copy_file(at("ecu2") + "/tls.key", at("ecu1") + "/tls.key",
                             std::filesystem::copy_options::overwrite_existing);
  auto tls = load_tls(at("ecu1"));
  ASSERT_FALSE(tls);
  EXPECT_EQ(tls.error().code, Code::kInvalid);
  EXPECT_NE(tls.error().subject.find("does not match"), std::string::npos);
}

TEST_F(PkiTest, LoadTls_OfOtherClusterOrCa_IsRefused) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  auto other = load_tls(at("ecu1"), "prod");
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().subject.find("of the cluster vecu, not prod"), std::string::npos);

  ASSERT_TRUE(init_ca(at("ca2"), "vecu"));  // the same name, another CA
  std::filesystem::copy_file(at("ca2") + "/ca.crt", at("ecu1") + "/ca.crt",
                             std::filesystem::copy_options::overwrite_existing);
  auto foreign = load_tls(at("ecu1"));
  ASSERT_FALSE(foreign);
  EXPECT_NE(foreign.error().subject.find("not signed by this cluster's CA"), std::string::npos);
}

TEST_F(PkiTest, LoadTls_OfCaItself_IsRefused) {
  std::filesystem::copy(ca(), at("x"));
  std::filesystem::copy_file(ca() + "/ca.crt", at("x") + "/tls.crt");
  std::filesystem::copy_file(ca() + "/ca.key", at("x") + "/tls.key");
  auto tls = load_tls(at("x"));
  ASSERT_FALSE(tls);
  EXPECT_EQ(tls.error().code, Code::kNotAllowed);
}

TEST_F(PkiTest, LoadTls_WithMissingFileOrOpenKey_SaysSo) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  ASSERT_EQ(chmod((at("ecu1") + "/tls.key").c_str(), 0644), 0);
  EXPECT_EQ(load_tls(at("ecu1")).error().code, Code::kNotAllowed);
  std::filesystem::remove(at("ecu1") + "/tls.key");
  auto tls = load_tls(at("ecu1"));
  EXPECT_EQ(tls.error().code, Code::kNotFound);
  EXPECT_NE(tls.error().hint.find("pki issue"), std::string::npos);
}

TEST_F(PkiTest, LoadTls_OfGarbage_SaysInvalid) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  ASSERT_TRUE(replace_file(at("ecu1") + "/tls.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n"));
  EXPECT_EQ(load_tls(at("ecu1")).error().code, Code::kInvalid);
}

TEST_F(PkiTest, Renew_OfExpired_KeepsIdentityAndAddresses) {
  IssueRequest request = node("ecu1");
  request.role = Role::kOperator;
  request.not_before_offset = -hours(48);
  request.days = 1;
  ASSERT_TRUE(issue(ca(), request, at("ecu1")));
  auto before = inspect(at("ecu1") + "/tls.crt");
  ASSERT_TRUE(renew(ca(), at("ecu1"), 30));
  auto tls = load_tls(at("ecu1"));
  ASSERT_TRUE(tls) << tls.error().message();
  EXPECT_EQ(tls->identity.role, Role::kOperator);
  auto after = inspect(at("ecu1") + "/tls.crt");
  EXPECT_EQ(after->addresses, before->addresses);
  EXPECT_NE(after->serial_hex, before->serial_hex);
}

TEST_F(PkiTest, Renew_ByOtherCluster_IsRefused) {
  ASSERT_TRUE(issue(ca(), node("ecu1"), at("ecu1")));
  ASSERT_TRUE(init_ca(at("ca2"), "other"));
  EXPECT_EQ(renew(at("ca2"), at("ecu1")).error().code, Code::kNotAllowed);
}

}  // namespace
}  // namespace baton::transport
