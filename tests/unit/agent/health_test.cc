// What a health check makes of a server's answers, and when it gives a program up.
#include "agent/node/health.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>

#include "base/fd.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;

// Accepts, and answers each connection with `answer` (empty: with nothing at all).
class Server {
 public:
  explicit Server(std::string answer) : answer_(std::move(answer)) {
    fd_ = Fd::adopt(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(fd_.get(), 8), 0);
    socklen_t bytes = sizeof address;
    ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &bytes);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      while (true) {
        Fd client = Fd::adopt(::accept(fd_.get(), nullptr, nullptr));
        if (!client) return;
        if (answer_.empty()) {
          std::this_thread::sleep_for(300ms);
          continue;
        }
        char request[512];
        (void)!::recv(client.get(), request, sizeof request, 0);
        (void)!::send(client.get(), answer_.data(), answer_.size(), MSG_NOSIGNAL);
      }
    });
  }
  ~Server() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  const std::string answer_;
  Fd fd_;
  int port_ = 0;
  std::thread thread_;
};

TEST(Health, Tcp_AcceptsOrNot) {
  std::string gone;
  {
    Server server("x");
    gone = server.address();
    EXPECT_TRUE(ask_tcp(gone, 1000ms));
  }
  EXPECT_FALSE(ask_tcp(gone, 1000ms));
  EXPECT_EQ(ask_tcp("nowhere", 100ms).error().code, Code::kInvalid);
  EXPECT_EQ(ask_tcp("name.example:80", 100ms).error().code, Code::kInvalid) << "names are not looked up: that may take for ever";
}

TEST(Health, Http_TwoHundredToThreeNinetyNineIsHealthy) {
  for (const auto& [line, healthy] : std::vector<std::pair<std::string, bool>>{
           {"HTTP/1.1 200 OK", true}, {"HTTP/1.0 301 Moved", true}, {"HTTP/1.1 404 Not Found", false},
           {"HTTP/1.1 503 Busy", false}, {"SSH-2.0-x", false}}) {
    Server server(line + "\r\n\r\n");
    EXPECT_EQ(ask_http("http://" + server.address() + "/health", 1000ms).has_value(), healthy) << line;
  }
  Server silent("");
  EXPECT_EQ(ask_http("http://" + silent.address(), 100ms).error().code, Code::kTimedOut);
  EXPECT_EQ(ask_http("https://127.0.0.1:1/", 100ms).error().code, Code::kInvalid);
}

class NoWarden final : public Warden {
 public:
  Result<pb::NodeFacts> probe() override { return none(); }
  Result<pb::InspectResponse> inspect(const pb::InspectRequest&) override { return none(); }
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec&) override { return none(); }
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec&) override { return none(); }
  Result<std::vector<pb::WorkloadProcess>> list() override { return none(); }
  Result<Round> round(const pb::RoundRequest&) override { return none(); }
  Result<Capture> capture(const pb::CaptureRequest&) override { return none(); }
  Result<void> release_output(const std::string&, std::uint64_t) override { return none(); }
  Result<void> thaw(const std::string&) override { return none(); }
  Result<void> hold(const std::string&) override { return none(); }
  Result<void> stop(const std::string&, std::uint64_t, bool) override { return none(); }
  Result<void> release(const std::string&) override { return none(); }
  Result<void> build(const pb::BuildRequest&) override { return none(); }
  Result<std::unique_ptr<FillBuffer>> fill_space(std::size_t) override { return none(); }
  Result<void> fill(const pb::FillRequest&) override { return none(); }
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest&) override { return none(); }
  Result<pb::LogsResponse> logs(const pb::LogsRequest&) override { return none(); }
  Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest&) override { return none(); }
  Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest&) override { return none(); }
  Result<void> write_file(const pb::WriteFileRequest&) override { return none(); }
  Result<pb::ExecResponse> exec(const pb::ExecRequest&) override {
    ++asked;
    pb::ExecResponse out;
    out.set_wait_status(asked <= 3 ? 0 : 1 << 8);
    out.set_output("it is ill\nand more");
    return out;
  }
  std::atomic<int> asked{0};

 private:
  static Error none() { return make_error(Code::kUnreachable, "warden", "none"); }
};

TEST(Health, Exec_SoManyFailuresInARow_AreTheEnd) {
  NoWarden warden;
  pb::HealthCheck check;
  check.add_exec("x");
  check.set_interval_us(10'000);
  check.set_grace_us(1000);
  check.set_failures(4);
  std::mutex mutex;
  std::string why;
  HealthCheck health(warden, "w", check, [&](const std::string& text) {
    std::lock_guard lock(mutex);
    why = text;
  });
  for (int i = 0; i < 1000; ++i) {
    std::this_thread::sleep_for(5ms);
    std::lock_guard lock(mutex);
    if (!why.empty()) break;
  }
  std::lock_guard lock(mutex);
  EXPECT_NE(why.find("it is ill"), std::string::npos) << why;
  EXPECT_EQ(warden.asked, 7) << "three well, four not, and no more";
  EXPECT_TRUE(health.state().starts_with("failing"));
}

}  // namespace
}  // namespace baton::node
