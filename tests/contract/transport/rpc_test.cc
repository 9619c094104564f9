// gRPC with mutual TLS: identities, refusals, errors that survive the way, dead peers.
#include <gtest/gtest.h>
#include <grpcpp/grpcpp.h>

#include "proto/coordinator.grpc.pb.h"
#include "tests/contract/transport/harness.h"
#include "transport/rpc.h"

namespace baton::transport::testing {
namespace {

class Service final : public pb::Coordinator::Service {
 public:
  grpc::Status ShowNode(grpc::ServerContext* context, const pb::NodeName* request,
                        pb::NodeInfo* reply) override {
    auto peer = require_role(*context, "ShowNode", {Role::kOperator, Role::kViewer});
    if (!peer) return to_status(peer.error());
    if (request->name() == "none")
      return to_status(Error{Code::kNotFound, 2, "show node", "none: no such node", "See `baton node ls`."});
    reply->set_name(peer->to_string());
    reply->set_state(std::string(request->name() == "big" ? 32 << 20 : 1, 'x'));
    return grpc::Status::OK;
  }
};

class Rpc : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = RpcServer::start("127.0.0.1:0", certificates_.make("vecu", Role::kCoordinator, "c1"), {&service_});
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
  }
  Result<std::string> call(const std::shared_ptr<grpc::Channel>& channel, const std::string& name = "x",
                           std::chrono::milliseconds timeout = 20s) {
    auto stub = pb::Coordinator::NewStub(channel);
    grpc::ClientContext context;
    set_deadline(context, timeout);
    pb::NodeName request;
    request.set_name(name);
    pb::NodeInfo reply;
    const grpc::Status status = stub->ShowNode(&context, request, &reply);
    if (!status.ok()) return from_status(status, "show node", "coordinator c1");
    return reply.name();
  }
  std::shared_ptr<grpc::Channel> channel(const TlsFiles& tls, Role role = Role::kCoordinator,
                                         const std::string& name = "c1", int port = 0) {
    return make_channel(at(port ? port : server_->port()), tls, role, name);
  }
  TlsFiles jo() { return certificates_.make("vecu", Role::kOperator, "jo"); }

  Certificates certificates_;
  Service service_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(Rpc, Call_ByAnOperator_SeesItsIdentity) {
  auto name = call(channel(jo()));
  ASSERT_TRUE(name) << name.error().message();
  EXPECT_EQ(*name, "operator jo");
  EXPECT_TRUE(call(channel(jo()), "big"));
}

TEST_F(Rpc, Call_ByAWrongRole_IsNotAllowedAndSaysWhich) {
  auto refused = call(channel(certificates_.node("ecu1")));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kNotAllowed);
  EXPECT_EQ(refused.error().subject, "needs the role operator or viewer; node ecu1 does not have it");
}

TEST_F(Rpc, Error_FromTheServer_ArrivesWhole) {
  auto missing = call(channel(jo()), "none");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().message(),
            (Error{Code::kNotFound, 2, "show node", "none: no such node", "See `baton node ls`."}).message());
}

TEST_F(Rpc, Call_OfAnotherCluster_IsRefused) {
  auto refused = call(channel(certificates_.make("prod", Role::kOperator, "jo")));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kNotAllowed) << refused.error().message();
  TlsFiles foreign = certificates_.make("prod", Role::kOperator, "jo");
  foreign.ca_pem = jo().ca_pem;  // trusts the server, and is not trusted
  EXPECT_FALSE(call(channel(foreign), "x", 3s));
}

TEST_F(Rpc, Call_WithAnExpiredCertificate_IsRefused) {
  EXPECT_FALSE(call(channel(certificates_.make_expired("ecu1")), "x", 3s));
}

TEST_F(Rpc, Call_ToAnotherThanExpected_IsRefusedByTheClient) {
  auto wrong_name = call(channel(jo(), Role::kCoordinator, "c2"));
  ASSERT_FALSE(wrong_name);
  EXPECT_EQ(wrong_name.error().code, Code::kNotAllowed) << wrong_name.error().message();
  EXPECT_NE(wrong_name.error().subject.find("expected coordinator c2, but coordinator c1 answers there"),
            std::string::npos) << wrong_name.error().message();
  EXPECT_EQ(call(channel(jo(), Role::kNode, "c1")).error().code, Code::kNotAllowed);
  EXPECT_TRUE(call(channel(jo(), Role::kCoordinator, "")));
}

TEST_F(Rpc, Call_InPlaintextOrWithoutCertificate_IsRefused) {
  auto plain = grpc::CreateChannel(at(server_->port()), grpc::InsecureChannelCredentials());
  EXPECT_FALSE(call(plain, "x", 3s));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = jo().ca_pem;
  grpc::ChannelArguments arguments;
  arguments.SetSslTargetNameOverride("c1");
  auto anonymous = grpc::CreateCustomChannel(at(server_->port()), grpc::SslCredentials(options), arguments);
  EXPECT_FALSE(call(anonymous, "x", 3s));
}

TEST_F(Rpc, Call_ToNobody_IsUnreachable) {
  const int port = server_->port();
  server_.reset();
  auto nobody = call(channel(jo(), Role::kCoordinator, "c1", port), "x", 20s);
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().code, Code::kUnreachable) << nobody.error().message();
}

TEST_F(Rpc, Start_OnATakenPort_SaysConflict) {
  auto second = RpcServer::start(at(server_->port()), jo(), {&service_});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
}

TEST_F(Rpc, Peer_GoneSilent_IsNoticedWithinSeconds) {
  Proxy proxy(server_->port());
  auto through = channel(jo(), Role::kCoordinator, "c1", proxy.port());
  ASSERT_TRUE(call(through));
  proxy.freeze();
  const auto began = std::chrono::steady_clock::now();
  auto lost = call(through, "x", 60s);
  ASSERT_FALSE(lost);
  EXPECT_TRUE(lost.error().code == Code::kUnknownOutcome || lost.error().code == Code::kUnreachable)
      << lost.error().message();
  EXPECT_LT(std::chrono::steady_clock::now() - began, 15s);
}

}  // namespace
}  // namespace baton::transport::testing
