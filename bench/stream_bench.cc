// The page stream over a veth pair between two network namespaces of its own making:
// rate of new pages that compress by half, of incompressible ones, and the round trip
// of a small checkpoint. Beside them a plain TCP copy over the same link, unencrypted
// and unchecked. Prints one JSON object a line. Needs root and iproute2.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/fd.h"
#include "dedup/digest.h"
#include "transport/page_stream.h"
#include "transport/pki.h"

using namespace baton;
using Clock = std::chrono::steady_clock;
using std::chrono::duration;

namespace {

constexpr std::size_t kPages = 65536;   // 256 MiB
const char* const kServerAddress = "10.99.0.2";

template <typename T>
T must(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "bench_stream: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

void shell(const char* command) {
  if (std::system(command) != 0) {
    std::fprintf(stderr, "bench_stream: failed: %s\n", command);
    std::exit(1);
  }
}

class Receiver final : public transport::ReceiverChannel {
  Result<std::vector<transport::NodeChildren>> on_nodes(std::span<const transport::NodeRef>) override {
    return make_error(Code::kNotFound, "nodes", "none");
  }
  Result<std::vector<bool>> on_have(std::span<const dedup::Digest> digests) override {
    return std::vector<bool>(digests.size(), false);
  }
  Result<void> on_pages(std::span<const transport::PageRef>) override { return {}; }
  tl::expected<transport::AckInfo, transport::Nack> on_checkpoint(std::uint64_t, std::string) override {
    return transport::AckInfo{};
  }
};

class Handler final : public transport::StreamHandler {
  Result<transport::Opened> on_open(const transport::StreamPeer&, const transport::OpenRequest&) override {
    return transport::Opened{{}, std::make_unique<Receiver>()};
  }
  Result<std::string> on_fetch_checkpoint(const transport::StreamPeer&, std::string_view, std::uint64_t) override {
    return make_error(Code::kNotFound, "fetch", "none");
  }
  Result<void> on_fetch_pages(const transport::StreamPeer&, std::string_view, const transport::DomainBytes&,
                              dedup::DigestKind, std::span<const dedup::Digest>, std::span<std::byte>,
                              std::vector<bool>&) override {
    return make_error(Code::kNotFound, "fetch", "none");
  }
};

[[noreturn]] void serve(const std::string& folder, int ready, int end) {
  auto tls = must(transport::load_tls(folder + "/b"));
  Handler handler;
  auto server = must(transport::PageStreamServer::start(std::string(kServerAddress) + ":7402", tls, handler));
  // The peer for comparison: a plain TCP sink.
  int sink = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(7403);
  CHECK(bind(sink, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 && listen(sink, 1) == 0);
  std::thread([sink] {
    int peer = accept(sink, nullptr, nullptr);
    std::vector<char> buffer(1 << 20);
    std::uint64_t total = 0;
    while (total < kPages * dedup::kPageBytes) {
      ssize_t n = read(peer, buffer.data(), buffer.size());
      if (n <= 0) break;
      total += static_cast<std::uint64_t>(n);
    }
    char done = 1;
    if (write(peer, &done, 1) != 1) std::exit(1);
  }).detach();
  char byte = 1;
  CHECK(write(ready, &byte, 1) == 1);
  CHECK(read(end, &byte, 1) >= 0);
  _exit(0);
}

void print(const char* name, double value, const char* unit, const char* conditions) {
  std::printf("{\"name\": \"stream.%s\", \"value\": %.1f, \"unit\": \"%s\", \"conditions\": \"%s\"}\n", name, value, unit, conditions);
}

}  // namespace

int main() {
  char name[] = "/tmp/baton-stream-bench-XXXXXX";
  CHECK(mkdtemp(name) != nullptr);
  const std::string folder = name;
  must(transport::init_ca(folder + "/ca", "bench"));
  for (const char* who : {"a", "b"}) {
    transport::IssueRequest request;
    request.name = who;
    if (*who == 'b') request.addresses = {kServerAddress};
    must(transport::issue(folder + "/ca", request, folder + "/" + who));
  }
  int ready[2], end[2], go[2];
  CHECK(pipe(ready) == 0 && pipe(end) == 0 && pipe(go) == 0);
  CHECK(unshare(CLONE_NEWNET) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  char byte = 0;
  if (child == 0) {
    close(end[1]);   // the parent closes its own at the end
    CHECK(unshare(CLONE_NEWNET) == 0 && write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1);
    shell("ip link set lo up && ip link set vb up && ip addr add 10.99.0.2/24 dev vb");
    serve(folder, ready[1], end[0]);
  }
  CHECK(read(ready[0], &byte, 1) == 1);
  shell(("ip link add va type veth peer name vb netns " + std::to_string(child)).c_str());
  shell("ip link set lo up && ip link set va up && ip addr add 10.99.0.1/24 dev va");
  CHECK(write(go[1], &byte, 1) == 1 && read(ready[0], &byte, 1) == 1);

  auto tls = must(transport::load_tls(folder + "/a"));
  auto connection = must(transport::PageStreamConnection::connect(std::string(kServerAddress) + ":7402", tls, "b"));
  std::mutex mutex;
  std::condition_variable acked;
  std::uint64_t last_ack = 0;
  transport::OpenRequest request;
  request.workload = "bench";
  request.incarnation = 1;
  auto channel = must(connection->open(
      request,
      [&](std::uint64_t seq, const tl::expected<transport::AckInfo, transport::Nack>& answer) {
        CHECK(answer.has_value());
        std::lock_guard lock(mutex);
        last_ack = seq;
        acked.notify_all();
      },
      std::chrono::seconds(5)));
  dedup::PageHasher hasher(dedup::DigestKind::kXxh3_128, request.hash_key);
  std::mt19937_64 random(1);
  std::uint64_t seq = 0;
  auto send_all = [&](double random_share) {
    std::vector<std::byte> memory(kPages * dedup::kPageBytes);
    auto random_bytes = static_cast<std::size_t>(random_share * dedup::kPageBytes);
    std::vector<transport::PageRef> refs(kPages);
    for (std::size_t p = 0; p < kPages; ++p) {
      std::byte* page = memory.data() + p * dedup::kPageBytes;
      for (std::size_t at = 0; at + 8 <= random_bytes; at += 8) {
        std::uint64_t value = random();
        std::memcpy(page + at, &value, 8);
      }
      refs[p] = {hasher.page(dedup::PageView(page, dedup::kPageBytes)), page};
    }
    auto begin = Clock::now();
    for (std::size_t at = 0; at < kPages; at += 256) {
      must(channel->send_pages(std::span(refs).subspan(at, 256), std::chrono::seconds(60)));
    }
    must(channel->send_checkpoint(++seq, "x", std::chrono::seconds(60)));
    std::unique_lock lock(mutex);
    acked.wait(lock, [&] { return last_ack == seq; });
    return static_cast<double>(memory.size()) / 1e6 / duration<double>(Clock::now() - begin).count();
  };
  print("rate_half", send_all(0.5), "MB/s", "65,536 distinct pages, half of each incompressible, TLS 1.3, zstd 1, veth, until acknowledged");
  print("rate_random", send_all(1.0), "MB/s", "65,536 distinct incompressible pages, TLS 1.3, veth, until acknowledged");
  std::vector<double> trips;
  for (int i = 0; i < 1000; ++i) {
    auto begin = Clock::now();
    must(channel->send_checkpoint(++seq, "x", std::chrono::seconds(5)));
    std::unique_lock lock(mutex);
    acked.wait(lock, [&] { return last_ack == seq; });
    trips.push_back(duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::sort(trips.begin(), trips.end());
  print("ack_p50", trips[500], "us", "empty checkpoint, 1,000 round trips");
  print("ack_p99", trips[990], "us", "empty checkpoint, 1,000 round trips");

  int plain = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(7403);
  inet_pton(AF_INET, kServerAddress, &address.sin_addr);
  CHECK(connect(plain, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  std::vector<std::byte> block(1 << 20);
  auto begin = Clock::now();
  for (std::size_t sent = 0; sent < kPages * dedup::kPageBytes; sent += block.size()) must(write_all(plain, block));
  CHECK(read(plain, &byte, 1) == 1);
  print("naive_rate", static_cast<double>(kPages * dedup::kPageBytes) / 1e6 / duration<double>(Clock::now() - begin).count(), "MB/s",
        "plain TCP over the same veth, no encryption, no check");

  channel->close();
  channel.reset();
  connection->close();
  connection.reset();
  close(end[1]);
  waitpid(child, nullptr, 0);
  std::filesystem::remove_all(folder);
  return 0;
}
