// What the page stream refuses: certificates, roles, versions, damaged bytes, dead links.
#include <gtest/gtest.h>

#include <openssl/ssl.h>

#include <future>

#include "tests/contract/transport/harness.h"
#include "transport/stream/frame.h"
#include "transport/stream/messages.h"

namespace baton::transport::testing {
namespace {

using stream::FrameType;

class PageStreamFaults : public ::testing::Test {
 protected:
  void SetUp() override { start(certificates_.node("ecu2")); }
  void start(const TlsFiles& tls, StreamServerOptions options = {}) {
    auto server = PageStreamServer::start("127.0.0.1:0", tls, node_, options);
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
  }
  Error refused(const TlsFiles& tls, std::string_view expected = "ecu2") {
    auto connection = PageStreamConnection::connect(at(server_->port()), tls, expected);
    EXPECT_FALSE(connection);
    return connection ? Error{} : connection.error();
  }
  // The server's own word for it, in its log and to its handler.
  void expect_reported(Code code, const std::string& text) {
    EXPECT_TRUE(eventually([&] {
      for (const Error& error : node_.errors())
        if (error.code == code && error.message().find(text) != std::string::npos) return true;
      return false;
    })) << "not reported: " << text << "; last: " << node_.last_error_text();
  }
  // A raw client past TLS and greetings.
  std::unique_ptr<RawClient> greeted() {
    auto raw = std::make_unique<RawClient>(server_->port(), certificates_.node("ecu1"), true, TLS1_3_VERSION);
    const auto greeting = stream::encode_greeting();
    EXPECT_EQ(raw->read(greeting.size()).size(), greeting.size());
    EXPECT_TRUE(raw->write(greeting.data(), greeting.size()));
    EXPECT_EQ(raw->read(stream::kHeaderBytes).size(), stream::kHeaderBytes);  // WELCOME
    return raw;
  }
  static std::string frame(FrameType type, std::uint32_t channel, const std::string& payload,
                           std::uint32_t request = 1) {
    const auto head = stream::encode_header(type, false, channel, request, std::as_bytes(std::span(payload)));
    return std::string(reinterpret_cast<const char*>(head.data()), head.size()) + payload;
  }
  // The error of the REFUSED frame that must come now, and then the end.
  static Error refusal(RawClient& raw) {
    for (;;) {
      const std::string head = raw.read(stream::kHeaderBytes);
      if (head.size() < stream::kHeaderBytes) return make_error(Code::kFailed, "test", "no refusal came");
      auto header = stream::decode_header(std::span<const std::byte, stream::kHeaderBytes>(
          reinterpret_cast<const std::byte*>(head.data()), stream::kHeaderBytes));
      const std::string payload = raw.read(header->payload_bytes);
      if (header->type != FrameType::kRefused) continue;
      EXPECT_EQ(raw.read(1), "");
      return stream::decode_error(payload);
    }
  }
  static std::string open_frame(std::uint32_t channel, const std::string& name) {
    OpenRequest open;
    open.workload = name;
    return frame(FrameType::kOpen, channel, stream::encode_open(open));
  }

  Certificates certificates_;
  MemoryNode node_;
  std::unique_ptr<PageStreamServer> server_;
};

TEST_F(PageStreamFaults, Connect_OfAnotherCluster_SaysSoOnBothSides) {
  const Error error = refused(certificates_.make("prod", Role::kNode, "ecu1"));
  EXPECT_EQ(error.code, Code::kNotAllowed);
  // The client checks first: to it, the server is the stranger.
  EXPECT_NE(error.message().find("not signed by this cluster's CA"), std::string::npos) << error.message();
}

TEST_F(PageStreamFaults, Client_OfAnotherCluster_IsRefusedByTheServer) {
  TlsFiles foreign = certificates_.make("prod", Role::kNode, "ecu1");
  foreign.ca_pem = certificates_.node("ecu1").ca_pem;  // a client that trusts our server
  foreign.identity.cluster = "vecu";
  const Error error = refused(foreign);
  EXPECT_EQ(error.code, Code::kNotAllowed) << error.message();
  EXPECT_NE(error.message().find("not signed by its cluster's CA"), std::string::npos) << error.message();
  expect_reported(Code::kNotAllowed, "node ecu1 is not signed by this cluster's CA");
}

TEST_F(PageStreamFaults, Client_WithExpiredCertificate_IsRefusedAndNamed) {
  const Error error = refused(certificates_.make_expired("ecu1"));
  EXPECT_EQ(error.code, Code::kNotAllowed) << error.message();
  EXPECT_NE(error.message().find("expired"), std::string::npos) << error.message();
  expect_reported(Code::kNotAllowed, "certificate of node ecu1 expired on 20");
}

TEST_F(PageStreamFaults, Server_WithExpiredCertificate_IsRefusedAndNamed) {
  start(certificates_.make_expired("ecu2"));
  const Error error = refused(certificates_.node("ecu1"));
  EXPECT_EQ(error.code, Code::kNotAllowed);
  EXPECT_NE(error.message().find("certificate of node ecu2 expired on 20"), std::string::npos) << error.message();
}

TEST_F(PageStreamFaults, Client_WithoutCertificate_IsRefused) {
  RawClient raw(server_->port(), {}, false, TLS1_3_VERSION);
  EXPECT_EQ(raw.read(1), "");
  expect_reported(Code::kNotAllowed, "showed no certificate");
}

TEST_F(PageStreamFaults, Client_WithOldTls_IsRefused) {
  RawClient raw(server_->port(), certificates_.node("ecu1"), true, TLS1_2_VERSION);
  EXPECT_FALSE(raw.handshake_done());
  expect_reported(Code::kUnsupported, "TLS 1.3");
}

TEST_F(PageStreamFaults, Client_OfAnotherRole_IsToldWhy) {
  for (Role role : {Role::kOperator, Role::kViewer, Role::kCoordinator}) {
    const Error error = refused(certificates_.make("vecu", role, "jo"));
    EXPECT_EQ(error.code, Code::kNotAllowed);
    EXPECT_NE(error.message().find("only nodes may; " + std::string(role_name(role)) + " jo is none"),
              std::string::npos) << error.message();
  }
}

TEST_F(PageStreamFaults, Server_OfAnotherNameOrRole_IsRefusedByTheClient) {
  const Error error = refused(certificates_.node("ecu1"), "ecu3");
  EXPECT_EQ(error.code, Code::kNotAllowed);
  EXPECT_NE(error.message().find("expected node ecu3, but node ecu2 answers there"), std::string::npos)
      << error.message();
  start(certificates_.make("vecu", Role::kCoordinator, "ecu2"));
  EXPECT_NE(refused(certificates_.node("ecu1")).message().find("coordinator ecu2 is not a node"),
            std::string::npos);
}

TEST_F(PageStreamFaults, Connect_ToNobody_SaysUnreachable) {
  const int port = server_->port();
  server_.reset();
  auto connection = PageStreamConnection::connect(at(port), certificates_.node("ecu1"), "ecu2");
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, Code::kUnreachable);
  for (const char* bad : {"", "ecu1", "127.0.0.1:", "127.0.0.1:http", ":1", "127.0.0.1:70000"})
    EXPECT_EQ(PageStreamConnection::connect(bad, certificates_.node("ecu1"), "ecu2").error().code,
              Code::kInvalid) << bad;
}

TEST_F(PageStreamFaults, Connect_ToASilentListener_TimesOut) {
  Proxy proxy(server_->port());
  proxy.freeze();
  StreamOptions options;
  options.connect_timeout = 300ms;
  auto connection = PageStreamConnection::connect(at(proxy.port()), certificates_.node("ecu1"), "ecu2", options);
  ASSERT_FALSE(connection);
  EXPECT_EQ(connection.error().code, Code::kTimedOut) << connection.error().message();
}

TEST_F(PageStreamFaults, Start_OnATakenPort_SaysConflict) {
  auto second = PageStreamServer::start(at(server_->port()), certificates_.node("ecu2"), node_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
}

TEST_F(PageStreamFaults, Greeting_OfANewerVersion_IsRefusedWithBothVersions) {
  RawClient raw(server_->port(), certificates_.node("ecu1"), true, TLS1_3_VERSION);
  raw.read(stream::kGreetingBytes);
  const auto newer = stream::encode_greeting(kPageStreamVersion + 1);
  ASSERT_TRUE(raw.write(newer.data(), newer.size()));
  const Error error = refusal(raw);
  EXPECT_EQ(error.code, Code::kUnsupported);
  EXPECT_NE(error.subject.find("version 2"), std::string::npos);
  EXPECT_NE(error.subject.find("version 1"), std::string::npos);
}

TEST_F(PageStreamFaults, Frame_Damaged_EndsTheConnectionAsCorruptWithoutEffect) {
  auto raw = greeted();
  std::string pages = frame(FrameType::kPages, 1, std::string(500, 'p'), 0);
  pages[stream::kHeaderBytes + 250] ^= 1;
  const std::string all = open_frame(1, "w") + pages;
  ASSERT_TRUE(raw->write(all.data(), all.size()));
  const Error error = refusal(*raw);
  EXPECT_EQ(error.code, Code::kCorrupt);
  EXPECT_NE(error.subject.find("PAGES frame of channel 1"), std::string::npos) << error.message();
  EXPECT_EQ(node_.pages_received, 0u);
  EXPECT_TRUE(eventually([&] { return server_->connections() == 0 && node_.open_channels == 0; }));
}

TEST_F(PageStreamFaults, Frames_ThatBreakTheProtocol_EndTheConnectionAsCorrupt) {
  const std::vector<std::pair<const char*, std::string>> cases{
      {"unknown channel", frame(FrameType::kPages, 7, "x", 0)},
      {"data on channel 0", frame(FrameType::kPages, 0, "x", 0)},
      {"fetch on a channel", open_frame(1, "w") + frame(FrameType::kFetchCheckpoint, 1, "x")},
      {"an answer", frame(FrameType::kOpened, 0, "x")},
      {"bad open", frame(FrameType::kOpen, 1, "x")},
      {"channel used twice", open_frame(1, "w") + open_frame(1, "v")},
      {"bad pages", open_frame(1, "w") + frame(FrameType::kPages, 1, std::string("\x01\x00", 2), 0)},
      {"bad query", open_frame(1, "w") + frame(FrameType::kNodeQuery, 1, "xxxx")},
      {"bad fetch", frame(FrameType::kFetchPages, 0, "")},
      {"garbage", std::string(100, '\x5a')},
  };
  for (const auto& [what, bytes] : cases) {
    auto raw = greeted();
    ASSERT_TRUE(raw->write(bytes.data(), bytes.size()));
    const Error error = refusal(*raw);
    EXPECT_EQ(error.code, Code::kCorrupt) << what << ": " << error.message();
  }
  EXPECT_EQ(node_.pages_received, 0u);
}

TEST_F(PageStreamFaults, Frame_CutShort_HasNoEffectAndFreesTheConnection) {
  auto raw = greeted();
  std::string bytes = open_frame(1, "w") + frame(FrameType::kPages, 1, std::string(5000, 'p'), 0);
  bytes.resize(bytes.size() - 1000);
  ASSERT_TRUE(raw->write(bytes.data(), bytes.size()));
  raw.reset();
  expect_reported(Code::kUnreachable, "in the middle of a PAGES frame");
  EXPECT_TRUE(eventually([&] { return server_->connections() == 0 && node_.open_channels == 0; }));
  EXPECT_EQ(node_.pages_received, 0u);
}

TEST_F(PageStreamFaults, Link_FlippingABit_IsFoundByTlsAndReported) {
  Proxy proxy(server_->port());
  std::promise<Error> lost;
  StreamOptions options;
  options.on_disconnect = [&](const Error& error) { lost.set_value(error); };
  auto connection = PageStreamConnection::connect(at(proxy.port()), certificates_.node("ecu1"), "ecu2", options);
  ASSERT_TRUE(connection);
  OpenRequest open;
  open.workload = "w";
  auto channel = (*connection)->open(open, nullptr, kPatience);
  ASSERT_TRUE(channel);
  proxy.flip_bit_after(20'000);
  const dedup::PageHasher hasher(open.kind, open.hash_key);
  for (std::uint64_t i = 0; i < 64; ++i) {
    const Page page = make_page(i, false);
    const PageRef ref{hasher.page(dedup::PageView(page.data(), page.size())), page.data()};
    if (!(*channel)->send_pages(std::span(&ref, 1), kPatience)) break;
  }
  const Error error = lost.get_future().get();
  EXPECT_EQ(error.code, Code::kCorrupt) << error.message();
  expect_reported(Code::kCorrupt, "");
}

TEST_F(PageStreamFaults, Peer_GoneSilent_IsNoticedByBothSides) {
  StreamServerOptions server_options;
  server_options.ping_interval = 100ms;
  server_options.dead_after = 500ms;
  start(certificates_.node("ecu2"), server_options);
  Proxy proxy(server_->port());
  std::promise<Error> lost;
  StreamOptions options;
  options.ping_interval = 100ms;
  options.dead_after = 500ms;
  options.on_disconnect = [&](const Error& error) { lost.set_value(error); };
  auto connection = PageStreamConnection::connect(at(proxy.port()), certificates_.node("ecu1"), "ecu2", options);
  ASSERT_TRUE(connection);
  // Idle for longer than dead_after: pings keep it alive.
  std::this_thread::sleep_for(1200ms);
  EXPECT_TRUE((*connection)->connected());
  const auto began = std::chrono::steady_clock::now();
  proxy.freeze();
  const Error error = lost.get_future().get();
  EXPECT_EQ(error.code, Code::kUnreachable);
  EXPECT_NE(error.message().find("silent"), std::string::npos) << error.message();
  EXPECT_LT(std::chrono::steady_clock::now() - began, 5s);
  expect_reported(Code::kUnreachable, "node ecu1");
}

TEST_F(PageStreamFaults, Stop_WithWorkUnderWay_ReturnsAfterTheLastHandlerCall) {
  auto connection = PageStreamConnection::connect(at(server_->port()), certificates_.node("ecu1"), "ecu2");
  ASSERT_TRUE(connection);
  OpenRequest open;
  open.workload = "w";
  auto channel = (*connection)->open(open, nullptr, kPatience);
  ASSERT_TRUE(channel);
  node_.close_gate();
  const dedup::PageHasher hasher(open.kind, open.hash_key);
  const Page page = make_page(1);
  const PageRef ref{hasher.page(dedup::PageView(page.data(), page.size())), page.data()};
  for (int i = 0; i < 100; ++i) ASSERT_TRUE((*channel)->send_pages(std::span(&ref, 1), kPatience));
  auto stopping = std::async(std::launch::async, [&] { server_->stop(); });
  EXPECT_TRUE(eventually([&] { return !(*connection)->connected(); }));
  node_.open_gate();
  ASSERT_EQ(stopping.wait_for(kPatience), std::future_status::ready);
  EXPECT_EQ(node_.open_channels, 0);
}

}  // namespace
}  // namespace baton::transport::testing
