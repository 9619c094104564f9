// HTTPS as strangers, browsers and tools meet it: every route against every caller, both ways;
// what another site, another cluster, an old TLS or too much of anything gets.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <sstream>
#include <thread>

#include <boost/asio/connect.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <nlohmann/json.hpp>
#include <openssl/ssl.h>

#include "coordinator/agent_directory.h"
#include "coordinator/http/assets.h"
#include "coordinator/http/server.h"
#include "transport/pki.h"

namespace baton::coordinator::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace wire = boost::beast::http;
using asio::ip::tcp;
using namespace std::chrono_literals;
using transport::Role;
using Json = nlohmann::json;

class NoAgents final : public AgentDirectory {
 public:
  std::shared_ptr<AgentClient> agent(const std::string&, const std::string&) override { return nullptr; }
};

class Pki {
 public:
  Pki() {
    char name[] = "/tmp/baton-http-XXXXXX";
    path_ = ::mkdtemp(name);
    EXPECT_TRUE(transport::init_ca(dir("ca"), "test"));
    EXPECT_TRUE(transport::init_ca(dir("other-ca"), "test"));
    issue("ca", Role::kCoordinator, "coordinator");
    issue("ca", Role::kCoordinator, "coordinator2");
    issue("ca", Role::kViewer, "vera");
    issue("ca", Role::kOperator, "olga");
    issue("ca", Role::kNode, "ecu1");
    issue("other-ca", Role::kOperator, "mallory");
  }
  ~Pki() { std::filesystem::remove_all(path_); }
  std::string dir(const std::string& name) const { return path_ + "/" + name; }
  transport::TlsFiles tls(const std::string& name) const { return *transport::load_tls(dir(name)); }

 private:
  void issue(const std::string& ca, Role role, const std::string& name) {
    transport::IssueRequest request;
    request.role = role;
    request.name = name;
    request.addresses = {"127.0.0.1"};
    auto issued = transport::issue(dir(ca), request, dir(name));
    EXPECT_TRUE(issued) << issued.error().message();
  }
  std::string path_;
};

struct Answer {
  int status = 0;  // 0: no HTTP answer
  std::map<std::string, std::string> headers;
  std::string body;
  Json json() const { return Json::parse(body, nullptr, false); }
};
using Headers = std::map<std::string, std::string>;

// One connection, one request.
class Client {
 public:
  Client(const Pki& pki, int port) : pki_(pki), port_(port) {}

  std::unique_ptr<beast::ssl_stream<tcp::socket>> connect(const std::string& who, boost::system::error_code& error,
                                                          int max_version = TLS1_3_VERSION) {
    context_ = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_client);
    SSL_CTX_set_max_proto_version(context_->native_handle(), max_version);
    context_->set_verify_mode(asio::ssl::verify_peer);
    const auto server = pki_.tls("coordinator");
    context_->add_certificate_authority(asio::buffer(server.ca_pem));
    if (!who.empty()) {
      const auto own = pki_.tls(who);
      context_->use_certificate(asio::buffer(own.cert_pem), asio::ssl::context::pem);
      context_->use_private_key(asio::buffer(own.key_pem), asio::ssl::context::pem);
    }
    auto stream = std::make_unique<beast::ssl_stream<tcp::socket>>(io_, *context_);
    stream->next_layer().connect({asio::ip::make_address("127.0.0.1"), static_cast<unsigned short>(port_)}, error);
    if (!error) stream->handshake(asio::ssl::stream_base::client, error);
    return stream;
  }

  Answer ask(const std::string& who, const std::string& method, const std::string& path, const Headers& headers = {},
             const std::string& body = "") {
    boost::system::error_code error;
    auto stream = connect(who, error);
    if (error) return {};
    wire::request<wire::string_body> request;
    request.method_string(method);
    request.target(path);
    request.version(11);
    request.set("Host", "127.0.0.1:" + std::to_string(port_));
    for (const auto& [name, value] : headers) request.set(name, value);
    request.body() = body;
    request.prepare_payload();
    wire::write(*stream, request, error);
    wire::response_parser<wire::string_body> parser;
    parser.body_limit(8u << 20);
    parser.skip(method == "HEAD");
    beast::flat_buffer buffer;
    if (headers.contains("stream")) {
      wire::read_header(*stream, buffer, parser, error);
    } else {
      wire::read(*stream, buffer, parser, error);
    }
    Answer out;
    if (!parser.is_header_done()) return out;
    out.status = parser.get().result_int();
    for (const auto& field : parser.get()) {
      std::string name(field.name_string().data(), field.name_string().size());
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      out.headers[name] = std::string(field.value().data(), field.value().size());
    }
    out.body = parser.get().body();
    return out;
  }

 private:
  const Pki& pki_;
  const int port_;
  asio::io_context io_;
  std::unique_ptr<asio::ssl::context> context_;
};

class Web : public testing::Test {
 protected:
  static void SetUpTestSuite() { pki_ = new Pki(); }
  static void TearDownTestSuite() { delete pki_; }
  void SetUp() override {
    ASSERT_TRUE(core_.start());
    const std::string dir =
        pki_->dir(std::string("audit-") + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directory(dir);
    auto audit = AuditLog::open(dir, clock_);
    ASSERT_TRUE(audit);
    audit_ = std::move(*audit);
    metrics_ = std::make_unique<Metrics>(core_.version());
    routes_ = std::make_unique<Routes>(
        Parts{core_, observatory_, movements_, logins_, *audit_, *metrics_, {"127.0.0.1"}});
    auto server = WebServer::start("127.0.0.1:0", pki_->tls("coordinator"), *routes_, *metrics_, movements_);
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
    observatory_.start([this](std::shared_ptr<const Picture> picture) { server_->publish(picture); });
    for (int i = 0; i < 500 && observatory_.picture()->number == 0; ++i) std::this_thread::sleep_for(10ms);
  }
  void TearDown() override {
    core_.stop();
    observatory_.stop();
    movements_.finish();
    server_->stop();
  }
  Answer ask(const std::string& who, const std::string& method, const std::string& path, const Headers& headers = {},
             const std::string& body = "") {
    return Client(*pki_, server_->port()).ask(who, method, path, headers, body);
  }
  Headers from_page(const std::string& csrf, const std::string& cookie = "") const {
    Headers out = {{"Origin", "https://127.0.0.1:" + std::to_string(server_->port())},
                   {"Sec-Fetch-Site", "same-origin"},
                   {"Content-Type", "application/json"},
                   {"X-Baton-CSRF", csrf}};
    if (!cookie.empty()) out["Cookie"] = cookie;
    return out;
  }
  // Logs in by a link; answers the cookie as a browser sends it back.
  std::string login(Role role, const std::string& name) {
    const std::string token = logins_.make_link({"test", role, name});
    const auto answer = ask("", "POST", "/api/v1/login", from_page(""), Json{{"token", token}}.dump());
    EXPECT_EQ(answer.status, 200) << answer.body;
    const std::string set = answer.headers.contains("set-cookie") ? answer.headers.at("set-cookie") : "";
    return set.substr(0, set.find(';'));
  }
  std::size_t audited_entries(const std::string& action, const std::string& outcome) {
    std::size_t count = 0;
    EXPECT_TRUE(audit_->read({}, [&](const pb::AuditEntry& entry) {
      count += entry.action() == action && entry.outcome() == outcome;
      return true;
    }));
    return count;
  }

  static Pki* pki_;
  SystemClock clock_;
  std::unique_ptr<StateStore> store_ = make_memory_store();
  std::unique_ptr<OwnerRegistry> registry_ = make_sole_decider(*store_, clock_);
  NoAgents agents_;
  Coordinator core_{*store_, *registry_, agents_, clock_, "test"};
  Logins logins_{clock_};
  Movements movements_{clock_};
  Observatory observatory_{core_, movements_, clock_};
  std::unique_ptr<AuditLog> audit_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<Routes> routes_;
  std::unique_ptr<WebServer> server_;
};
Pki* Web::pki_ = nullptr;

TEST_F(Web, RolesTable_HoldsForEveryRouteAndEveryCaller) {
  for (const auto& row : kRpcRoles) {
    if (row.http.empty()) continue;
    const std::string http(row.http);
    const std::string method = http.substr(0, http.find(' '));
    std::string path = http.substr(http.find(' ') + 1);
    if (path.find('{') != std::string::npos) path.replace(path.find('{'), 6, "1");
    Headers headers;
    if (method == "POST") headers["Content-Type"] = "application/json";
    if (path == "/api/v1/events") headers["stream"] = "1";
    EXPECT_EQ(ask("", method, path, headers).status, 401) << "nobody: " << http;
    EXPECT_EQ(ask("mallory", method, path, headers).status, 0) << "another authority's: " << http;
    const std::pair<const char*, bool> callers[] = {{"vera", row.viewer},
                                                    {"olga", row.operator_},
                                                    {"ecu1", row.node}};
    for (const auto& [who, allowed] : callers) {
      const auto answer = ask(who, method, path, headers, method == "POST" ? "{}" : "");
      ASSERT_NE(answer.status, 0) << who << " " << http;
      EXPECT_EQ(answer.status != 403 && answer.status != 401, allowed) << who << " " << http << ": " << answer.status;
      // Another method than the table's is no way around it.
      const std::string other = method == "GET" ? "POST" : "GET";
      const bool both = std::any_of(std::begin(kRpcRoles), std::end(kRpcRoles), [&](const RpcRoles& one) {
        return one.http == other + http.substr(http.find(' '));
      });
      if (both) continue;
      EXPECT_EQ(ask(who, other, path, {{"Content-Type", "application/json"}}, "").status, 405) << http;
    }
  }
  EXPECT_GE(audited_entries("Migrate", "refused"), 2u) << "refusals are audited";
}

TEST_F(Web, Strangers_SeeNothingButHealthAndTheEmptyPage) {
  EXPECT_EQ(ask("", "GET", "/livez").status, 200);
  EXPECT_EQ(ask("", "GET", "/readyz").status, 200);
  for (const char* path : {"/api/v1/overview", "/api/v1/nodes", "/metrics", "/api/v1/audit", "/api/v1/session"}) {
    const auto answer = ask("", "GET", path);
    EXPECT_EQ(answer.status, 401) << path;
    EXPECT_NE(answer.json()["error"]["hint"].get<std::string>().find("baton dashboard"), std::string::npos);
  }
  EXPECT_EQ(ask("", "GET", "/").status, 200);
  EXPECT_EQ(ask("olga", "GET", "/api/v1/nothing").status, 404);
  EXPECT_EQ(ask("olga", "DELETE", "/api/v1/nodes").status, 405);
}

TEST_F(Web, Link_LogsInOnceAndTheCookieIsLocked) {
  const std::string token = logins_.make_link({"test", Role::kViewer, "vera"});
  const std::string body = Json{{"token", token}}.dump();
  auto foreign = from_page("");
  foreign["Origin"] = "https://evil.example";
  EXPECT_EQ(ask("", "POST", "/api/v1/login", foreign, body).status, 403);
  const auto first = ask("", "POST", "/api/v1/login", from_page(""), body);
  ASSERT_EQ(first.status, 200) << first.body;
  const std::string set = first.headers.at("set-cookie");
  for (const char* part : {"__Host-baton=", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"}) {
    EXPECT_NE(set.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(ask("", "POST", "/api/v1/login", from_page(""), body).status, 401) << "a second time";
  const Headers cookie = {{"Cookie", set.substr(0, set.find(';'))}};
  const auto session = ask("", "GET", "/api/v1/session", cookie);
  ASSERT_EQ(session.status, 200);
  EXPECT_EQ(session.json()["who"], "viewer vera");
  EXPECT_FALSE(session.json()["by_certificate"].get<bool>());
  const auto allowed = session.json()["may"];
  for (const auto& http : allowed) EXPECT_EQ(http.get<std::string>().find("migrate"), std::string::npos);
  EXPECT_EQ(audited_entries("Login", "done"), 1u);
  EXPECT_EQ(audited_entries("Login", "refused"), 1u);
  EXPECT_EQ(ask("", "POST", "/api/v1/logout", from_page(session.json()["csrf"], cookie.at("Cookie")), "{}").status, 200);
  EXPECT_EQ(ask("", "GET", "/api/v1/session", cookie).status, 401);
}

TEST_F(Web, OtherSites_CannotMakeABrowserAct) {
  const std::string cookie = login(Role::kOperator, "olga");
  const std::string csrf = ask("", "GET", "/api/v1/session", {{"Cookie", cookie}}).json()["csrf"];
  const std::string path = "/api/v1/workloads/none/checkpoint";
  EXPECT_EQ(ask("", "POST", path, from_page(csrf, cookie), "{}").status, 404) << "all is well, but no such workload";
  const std::pair<const char*, const char*> wrong[] = {
      {"X-Baton-CSRF", "guess"},      {"X-Baton-CSRF", ""},          {"Origin", "https://evil.example"},
      {"Origin", "null"},             {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"},
      {"Content-Type", "text/plain"}, {"Host", "evil.example"}};
  for (const auto& [name, value] : wrong) {
    auto headers = from_page(csrf, cookie);
    headers[name] = value;
    const int status = ask("", "POST", path, headers, "{}").status;
    EXPECT_TRUE(status == 403 || status == 400) << name << ": " << value << " gave " << status;
  }
  auto by_certificate = from_page("");
  EXPECT_EQ(ask("olga", "POST", path, by_certificate, "{}").status, 403) << "a browser that sends a certificate";
  EXPECT_EQ(ask("olga", "POST", path, {{"Content-Type", "application/json"}}, "{}").status, 404) << "a tool";
  EXPECT_EQ(ask("olga", "GET", "/api/v1/nodes", {{"Host", "evil.example"}}).status, 400) << "DNS rebinding";
}

TEST_F(Web, Transport_IsTls13WithOurAuthorityOnly) {
  Client client(*pki_, server_->port());
  boost::system::error_code error;
  auto stream = client.connect("", error, TLS1_2_VERSION);
  EXPECT_TRUE(error) << "TLS 1.2";
  stream = client.connect("", error, TLS1_3_VERSION);
  EXPECT_FALSE(error) << error.message();
  asio::io_context io;
  tcp::socket plain(io);
  plain.connect({asio::ip::make_address("127.0.0.1"), static_cast<unsigned short>(server_->port())});
  asio::write(plain, asio::buffer(std::string("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")));
  char bytes[256];
  std::string got;
  boost::system::error_code end;
  while (!end) {
    const std::size_t n = plain.read_some(asio::buffer(bytes), end);
    got.append(bytes, n);
  }
  EXPECT_EQ(got.find("HTTP/1.1 200"), std::string::npos) << "plaintext was answered";
  EXPECT_EQ(ask("mallory", "GET", "/livez").status, 0) << "a certificate of another authority";
}

TEST_F(Web, Sizes_AreLimited) {
  EXPECT_EQ(ask("olga", "GET", "/livez", {{"X-Long", std::string(kMaxHeaderBytes, 'x')}}).status, 431);
  const Headers json = {{"Content-Type", "application/json"}};
  EXPECT_EQ(ask("olga", "POST", "/api/v1/workloads/x/checkpoint", json, std::string(kMaxBodyBytes + 1, ' ')).status, 413);
  EXPECT_EQ(ask("olga", "POST", "/api/v1/workloads/x/migrate", json, "[]").status, 400);
  EXPECT_EQ(ask("olga", "POST", "/api/v1/workloads/x/migrate", json, "{\"unknown\":1}").status, 400);
  EXPECT_EQ(ask("olga", "POST", "/api/v1/workloads/x/migrate", json, "{\"to\":7}").status, 400);
  EXPECT_EQ(ask("olga", "POST", "/api/v1/workloads/x/migrate", json, std::string(30'000, '[')).status, 400);
}

TEST_F(Web, Connections_AreLimited) {
  asio::io_context io;
  std::vector<tcp::socket> idle;
  for (int i = 0; i < kMaxConnections + 8; ++i) {
    idle.emplace_back(io);
    idle.back().connect({asio::ip::make_address("127.0.0.1"), static_cast<unsigned short>(server_->port())});
  }
  // Those beyond the limit are closed at once, the others when they do not shake hands.
  char byte;
  boost::system::error_code error;
  idle.back().read_some(asio::buffer(&byte, 1), error);
  EXPECT_TRUE(error);
  idle.clear();
  for (int i = 0; i < 200 && ask("", "GET", "/livez").status != 200; ++i) std::this_thread::sleep_for(50ms);
  EXPECT_EQ(ask("", "GET", "/livez").status, 200) << "it serves again";
}

TEST_F(Web, Answers_CarryTheSecurityHeaders) {
  for (const char* path : {"/", "/livez", "/api/v1/session", "/nothing/here"}) {
    const auto answer = ask("olga", "GET", path);
    EXPECT_NE(answer.headers.at("content-security-policy").find("default-src 'none'"), std::string::npos) << path;
    EXPECT_EQ(answer.headers.at("content-security-policy").find("unsafe"), std::string::npos);
    EXPECT_EQ(answer.headers.at("x-content-type-options"), "nosniff");
    EXPECT_EQ(answer.headers.at("referrer-policy"), "no-referrer");
  }
  EXPECT_EQ(ask("olga", "GET", "/api/v1/session").headers.at("cache-control"), "no-store");
  const auto head = ask("olga", "HEAD", "/api/v1/session");
  EXPECT_EQ(head.status, 200);
  EXPECT_TRUE(head.body.empty());
}

TEST_F(Web, Page_IsServedWithEtagsAndGzip) {
  const auto page = ask("", "GET", "/");
  ASSERT_EQ(page.status, 200);
  EXPECT_EQ(ask("", "GET", "/", {{"If-None-Match", page.headers.at("etag")}}).status, 304);
  EXPECT_EQ(ask("", "GET", "/workloads/redis").body, page.body) << "an address that was shared";
  if (!has_dashboard()) GTEST_SKIP() << "node, npm or a registry when this was built";
  EXPECT_EQ(ask("", "GET", "/", {{"Accept-Encoding", "gzip, br"}}).headers.at("content-encoding"), "gzip");
  const std::size_t at = page.body.find("/assets/app-");
  ASSERT_NE(at, std::string::npos);
  const std::string asset = page.body.substr(at, page.body.find('"', at) - at);
  const auto file = ask("", "GET", asset);
  EXPECT_EQ(file.status, 200);
  EXPECT_NE(file.headers.at("cache-control").find("immutable"), std::string::npos);
  EXPECT_EQ(page.body.find("http://"), std::string::npos) << "nothing is loaded from outside";
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
  EXPECT_EQ(ask("", "GET", "/assets/app-0000.js").status, 404);
}

TEST_F(Web, Metrics_AreNamedAndCounted) {
  (void)ask("vera", "GET", "/api/v1/nodes");
  const auto answer = ask("vera", "GET", "/metrics");
  ASSERT_EQ(answer.status, 200);
  EXPECT_NE(answer.body.find("baton_build_info{"), std::string::npos);
  EXPECT_NE(answer.body.find("baton_http_requests_total{route=\"GET /api/v1/nodes\",status=\"2xx\"} 1"), std::string::npos)
      << answer.body;
  std::istringstream lines(answer.body);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.starts_with("#")) continue;
    EXPECT_TRUE(line.starts_with("baton_")) << line;
  }
}

TEST_F(Web, Certificate_IsReplacedWithoutAnOutage) {
  boost::system::error_code error;
  Client first(*pki_, server_->port()), second(*pki_, server_->port());
  auto before = first.connect("olga", error);
  ASSERT_FALSE(error);
  ASSERT_TRUE(server_->reload(pki_->tls("coordinator2")));
  std::unique_ptr<beast::ssl_stream<tcp::socket>> after;
  std::string name;
  for (int i = 0; i < 100 && name.find("coordinator2") == std::string::npos; ++i) {
    after = second.connect("olga", error);
    ASSERT_FALSE(error);
    X509* peer = SSL_get1_peer_certificate(after->native_handle());
    char text[256] = "";
    X509_NAME_oneline(X509_get_subject_name(peer), text, sizeof text);
    name = text;
    X509_free(peer);
  }
  EXPECT_NE(name.find("coordinator2"), std::string::npos) << name;
  wire::request<wire::empty_body> request(wire::verb::get, "/livez", 11);
  request.set("Host", "127.0.0.1");
  wire::write(*before, request, error);
  EXPECT_FALSE(error) << "a connection that was open goes on";
  beast::flat_buffer buffer;
  wire::response<wire::string_body> response;
  wire::read(*before, buffer, response, error);
  EXPECT_EQ(response.result_int(), 200u);
}

}  // namespace
}  // namespace baton::coordinator::http
