#include "tests/contract/transport/harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "base/check.h"
#include "base/fd.h"
#include "transport/x509/openssl.h"

namespace baton::transport::testing {

using dedup::Digest;
using dedup::kPageBytes;

std::string at(int port) { return "127.0.0.1:" + std::to_string(port); }

Certificates::Certificates() {
  char name[] = "/tmp/baton-transport-XXXXXX";
  CHECK(mkdtemp(name) != nullptr);
  folder_ = name;
}
Certificates::~Certificates() { std::filesystem::remove_all(folder_); }

std::string Certificates::ca_of(const std::string& cluster) {
  const std::string ca = folder_ + "/ca-" + cluster;
  if (!std::filesystem::exists(ca)) CHECK(init_ca(ca, cluster));
  return ca;
}

TlsFiles Certificates::make(const std::string& cluster, Role role, const std::string& name) {
  const std::string out = folder_ + "/" + cluster + "-" + std::string(role_name(role)) + "-" + name;
  if (!std::filesystem::exists(out)) {
    IssueRequest request;
    request.role = role;
    request.name = name;
    CHECK(issue(ca_of(cluster), request, out));
  }
  auto tls = load_tls(out);
  CHECK(tls);
  return *tls;
}

TlsFiles Certificates::make_expired(const std::string& name) {
  const std::string out = folder_ + "/expired-" + name;
  IssueRequest request;
  request.name = name;
  request.days = 1;
  request.not_before_offset = -48h;
  CHECK(issue(ca_of("vecu"), request, out));
  TlsFiles tls;
  tls.identity = Identity{"vecu", Role::kNode, name};
  tls.ca_pem = *read_file(out + "/ca.crt");
  tls.cert_pem = *read_file(out + "/tls.crt");
  tls.key_pem = *read_file(out + "/tls.key");
  return tls;
}

Page make_page(std::uint64_t seed, bool compressible) {
  std::mt19937_64 random(seed * 2654435761u + 1);
  Page page(kPageBytes);
  for (std::size_t i = 0; i < page.size(); i += 8) {
    const std::uint64_t word = compressible && i % 64 != 0 ? seed : random();
    std::memcpy(page.data() + i, &word, 8);
  }
  return page;
}

std::string encode_changes(const std::vector<dedup::PageChange>& changes) {
  std::string out;
  for (const auto& change : changes) {
    out.append(reinterpret_cast<const char*>(&change.page), 8);
    out.append(reinterpret_cast<const char*>(change.digest.bytes.data()), 32);
  }
  return out;
}

namespace {

std::vector<dedup::PageChange> decode_changes(const std::string& record) {
  CHECK(record.size() % 40 == 0);
  std::vector<dedup::PageChange> changes(record.size() / 40);
  for (std::size_t i = 0; i < changes.size(); ++i) {
    std::memcpy(&changes[i].page, record.data() + i * 40, 8);
    std::memcpy(changes[i].digest.bytes.data(), record.data() + i * 40 + 8, 32);
  }
  return changes;
}

class MemoryChannel final : public ReceiverChannel {
 public:
  MemoryChannel(MemoryNode& node, std::string name) : node_(node), name_(std::move(name)) {
    ++node_.open_channels;
  }
  ~MemoryChannel() override { --node_.open_channels; }

  Result<std::vector<NodeChildren>> on_nodes(std::span<const NodeRef> nodes) override {
    std::lock_guard lock(node_.mutex);
    auto& workload = node_.workloads.at(name_);
    std::vector<NodeChildren> out;
    for (const NodeRef& node : nodes) {
      if (node.object != 1) return make_error(Code::kNotFound, "nodes", "no such object");
      const auto children = workload.table.node_children(node.level, node.index, *workload.hasher);
      std::copy(children.begin(), children.end(), out.emplace_back().begin());
    }
    return out;
  }
  Result<std::vector<bool>> on_have(std::span<const Digest> digests) override {
    std::lock_guard lock(node_.mutex);
    std::vector<bool> out;
    for (const Digest& digest : digests) out.push_back(node_.workloads.at(name_).pages.contains(digest));
    return out;
  }
  Result<void> on_pages(std::span<const PageRef> pages) override {
    node_.pass_gate();
    if (node_.disk_full) return make_error(Code::kNoSpace, "put pages", "the disk is full");
    std::lock_guard lock(node_.mutex);
    for (const PageRef& page : pages)
      node_.workloads.at(name_).pages[page.digest] = Page(page.page, page.page + kPageBytes);
    node_.pages_received += pages.size();
    return {};
  }
  tl::expected<AckInfo, Nack> on_checkpoint(std::uint64_t seq, std::string record) override {
    std::lock_guard lock(node_.mutex);
    auto& workload = node_.workloads.at(name_);
    Nack nack{make_error(Code::kNotFound, "commit", "pages are missing"), {}};
    const auto changes = decode_changes(record);
    for (const auto& change : changes)
      if (!change.digest.is_absent() && !workload.pages.contains(change.digest))
        nack.missing.push_back(change.digest);
    if (!nack.missing.empty()) return tl::unexpected(nack);
    workload.table.apply(changes);
    workload.records[seq] = std::move(record);
    workload.tip_seq = seq;
    AckInfo ack;
    ack.durability = 2;
    return ack;
  }

 private:
  MemoryNode& node_;
  const std::string name_;
};

}  // namespace

Result<Opened> MemoryNode::on_open(const StreamPeer&, const OpenRequest& request) {
  std::lock_guard lock(mutex);
  if (refused.contains(request.workload))
    return make_error(Code::kConflict, "open workload", request.workload + ": an older incarnation",
                      "Ask the coordinator.");
  auto& workload = workloads[request.workload];
  if (!workload.hasher) {
    workload.table = dedup::PageTable(request.kind);
    workload.hasher = std::make_unique<dedup::PageHasher>(request.kind, request.hash_key);
  }
  workload.request = request;
  Opened opened;
  opened.reply.tip_seq = workload.tip_seq;
  opened.reply.tip_incarnation = request.incarnation;
  if (!workload.table.empty()) opened.reply.objects.push_back({1, workload.table.root(*workload.hasher)});
  opened.channel = std::make_unique<MemoryChannel>(*this, request.workload);
  return opened;
}

Result<std::string> MemoryNode::on_fetch_checkpoint(const StreamPeer&, std::string_view workload,
                                                    std::uint64_t seq) {
  std::lock_guard lock(mutex);
  auto at_name = workloads.find(std::string(workload));
  if (at_name != workloads.end()) {
    auto& records = at_name->second.records;
    auto found = seq == 0 && !records.empty() ? std::prev(records.end()) : records.find(seq);
    if (found != records.end()) return found->second;
  }
  return make_error(Code::kNotFound, "fetch checkpoint",
                    std::string(workload) + "@" + std::to_string(seq));
}

Result<void> MemoryNode::on_fetch_pages(const StreamPeer&, std::string_view workload,
                                        const DomainBytes&, dedup::DigestKind,
                                        std::span<const Digest> digests, std::span<std::byte> out,
                                        std::vector<bool>& present) {
  std::lock_guard lock(mutex);
  auto& pages = workloads[std::string(workload)].pages;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    auto found = pages.find(digests[i]);
    if (found == pages.end()) continue;
    std::memcpy(out.data() + i * kPageBytes, found->second.data(), kPageBytes);
    present[i] = true;
  }
  return {};
}

void MemoryNode::on_stream_error(const Error& error) {
  std::lock_guard lock(mutex);
  errors_.push_back(error);
}
std::vector<Error> MemoryNode::errors() const {
  std::lock_guard lock(mutex);
  return errors_;
}
std::string MemoryNode::last_error_text() const {
  std::lock_guard lock(mutex);
  return errors_.empty() ? "" : errors_.back().message();
}

void MemoryNode::close_gate() {
  std::lock_guard lock(gate_mutex_);
  gate_closed_ = true;
}
void MemoryNode::open_gate() {
  std::lock_guard lock(gate_mutex_);
  gate_closed_ = false;
  gate_changed_.notify_all();
}
void MemoryNode::pass_gate() {
  std::unique_lock lock(gate_mutex_);
  gate_changed_.wait(lock, [&] { return !gate_closed_; });
}

// ------------------------------------------------------------ proxy

namespace {

sockaddr_in loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int connect_to(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = loopback(port);
  CHECK(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  return fd;
}

}  // namespace

Proxy::Proxy(int to_port) : to_port_(to_port) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = loopback(0);
  CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK(::listen(listener_, 16) == 0);
  socklen_t bytes = sizeof address;
  CHECK(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &bytes) == 0);
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_loop(); });
}

Proxy::~Proxy() {
  stop_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  cut();
  for (std::thread& thread : threads_) thread.join();
  for (int fd : sockets_) ::close(fd);
  ::close(listener_);
}

void Proxy::cut() {
  std::lock_guard lock(mutex_);
  for (int fd : sockets_) ::shutdown(fd, SHUT_RDWR);
}

void Proxy::accept_loop() {
  while (!stop_) {
    const int client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) return;
    const int server = connect_to(to_port_);
    std::lock_guard lock(mutex_);
    sockets_.push_back(client);
    sockets_.push_back(server);
    threads_.emplace_back([=, this] { pump(client, server, true); });
    threads_.emplace_back([=, this] { pump(server, client, false); });
  }
}

void Proxy::pump(int from, int to, bool from_client) {
  std::vector<char> buffer(64 * 1024);
  std::uint64_t passed = 0;
  bool lost = false;
  for (;;) {
    pollfd poll{from, POLLIN, 0};
    if (frozen_ && !stop_) {
      std::this_thread::sleep_for(5ms);
      char end;  // only a cut ends a frozen connection
      if (::recv(from, &end, 1, MSG_PEEK | MSG_DONTWAIT) == 0) break;
      continue;
    }
    if (::poll(&poll, 1, 20) == 0) continue;
    if (frozen_ && !stop_) continue;
    const ssize_t got = ::recv(from, buffer.data(), buffer.size(), 0);
    lost = got < 0;
    if (got <= 0) break;
    const std::uint64_t flip = flip_at_;
    if (from_client && flip >= passed && flip < passed + static_cast<std::uint64_t>(got))
      buffer[flip - passed] = static_cast<char>(buffer[flip - passed] ^ 0x10);
    passed += static_cast<std::uint64_t>(got);
    ssize_t sent = 0;
    while (sent < got) {
      const ssize_t n = ::send(to, buffer.data() + sent, static_cast<std::size_t>(got - sent), MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += n;
    }
    lost = sent < got;
    if (lost) break;
  }
  // A half-close passes as one: what the other side still sends must not meet a reset.
  if (lost) ::shutdown(from, SHUT_RDWR);
  ::shutdown(to, lost ? SHUT_RDWR : SHUT_WR);
}

// ------------------------------------------------------------ raw client

struct RawClient::State {
  SSL_CTX* context = nullptr;
  SSL* ssl = nullptr;
  int fd = -1;
  ~State() {
    SSL_free(ssl);
    SSL_CTX_free(context);
    if (fd >= 0) ::close(fd);
  }
};

RawClient::RawClient(int port, const TlsFiles& tls, bool with_certificate, int max_tls_version)
    : state_(std::make_unique<State>()) {
  state_->context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_verify(state_->context, SSL_VERIFY_NONE, nullptr);
  SSL_CTX_set_max_proto_version(state_->context, max_tls_version);
  if (with_certificate) {
    auto certificate = x509::parse_certificate(tls.cert_pem);
    auto key = x509::parse_key(tls.key_pem);
    CHECK(SSL_CTX_use_certificate(state_->context, certificate->get()) == 1);
    CHECK(SSL_CTX_use_PrivateKey(state_->context, key->get()) == 1);
  }
  state_->fd = connect_to(port);
  timeval patience{20, 0};
  ::setsockopt(state_->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  state_->ssl = SSL_new(state_->context);
  SSL_set_fd(state_->ssl, state_->fd);
  done_ = SSL_connect(state_->ssl) == 1;
}
RawClient::~RawClient() { ERR_clear_error(); }

bool RawClient::write(const void* data, std::size_t bytes) {
  return SSL_write(state_->ssl, data, static_cast<int>(bytes)) == static_cast<int>(bytes);
}

std::string RawClient::read(std::size_t bytes) {
  std::string out(bytes, '\0');
  std::size_t done = 0;
  while (done < bytes) {
    const int got = SSL_read(state_->ssl, out.data() + done, static_cast<int>(bytes - done));
    if (got <= 0) break;
    done += static_cast<std::size_t>(got);
  }
  out.resize(done);
  return out;
}

}  // namespace baton::transport::testing
