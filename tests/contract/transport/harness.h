// What the transport's contract tests stand on: certificates in a temporary folder, a
// receiver that keeps everything in memory, a TCP proxy that can flip a bit, stop
// forwarding or cut, and a raw TLS client that may misbehave.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "dedup/page_table.h"
#include "transport/page_stream.h"
#include "transport/pki.h"

namespace baton::transport::testing {

using namespace std::chrono_literals;
inline constexpr std::chrono::milliseconds kPatience = 30s;

// Waits until `condition` holds; false after kPatience.
template <typename F>
bool eventually(F condition) {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

class Certificates {
 public:
  Certificates();
  ~Certificates();
  // A certificate of `cluster` (made at the first use), checked or not.
  TlsFiles make(const std::string& cluster, Role role, const std::string& name);
  TlsFiles make_expired(const std::string& name);  // of "vecu"; load_tls would refuse it
  TlsFiles node(const std::string& name) { return make("vecu", Role::kNode, name); }

 private:
  std::string ca_of(const std::string& cluster);
  std::string folder_;
  std::map<std::string, std::string> made_;
};

using Page = std::vector<std::byte>;
Page make_page(std::uint64_t seed, bool compressible = true);

// A checkpoint record of these tests: (page u64, digest 32) repeated; digest absent erases.
std::string encode_changes(const std::vector<dedup::PageChange>& changes);

// Everything of every workload in memory. Object 1 is the only memory object.
class MemoryNode : public StreamHandler {
 public:
  struct Workload {
    OpenRequest request;
    dedup::PageTable table;
    std::unique_ptr<dedup::PageHasher> hasher;
    std::map<dedup::Digest, Page> pages;
    std::map<std::uint64_t, std::string> records;
    std::uint64_t tip_seq = 0;
  };

  Result<Opened> on_open(const StreamPeer& peer, const OpenRequest& request) override;
  Result<std::string> on_fetch_checkpoint(const StreamPeer& peer, std::string_view workload,
                                          std::uint64_t seq) override;
  Result<void> on_fetch_pages(const StreamPeer& peer, std::string_view workload,
                              const DomainBytes& domain, dedup::DigestKind kind,
                              std::span<const dedup::Digest> digests, std::span<std::byte> out,
                              std::vector<bool>& present) override;
  void on_stream_error(const Error& error) override;

  std::vector<Error> errors() const;
  std::string last_error_text() const;

  mutable std::mutex mutex;
  std::map<std::string, Workload> workloads;
  std::set<std::string> refused;           // names that on_open refuses
  std::atomic<int> open_channels{0};
  std::atomic<std::uint64_t> pages_received{0};
  std::atomic<bool> disk_full{false};
  // While closed, on_pages waits.
  void close_gate();
  void open_gate();
  void pass_gate();

 private:
  std::vector<Error> errors_;
  std::mutex gate_mutex_;
  std::condition_variable gate_changed_;
  bool gate_closed_ = false;
};

// Forwards 127.0.0.1:port() to a local port.
class Proxy {
 public:
  explicit Proxy(int to_port);
  ~Proxy();
  int port() const { return port_; }
  void flip_bit_after(std::uint64_t client_bytes) { flip_at_ = client_bytes; }
  void freeze() { frozen_ = true; }  // keeps the connections, forwards nothing: a dead link
  void cut();                        // resets all connections

 private:
  void accept_loop();
  void pump(int from, int to, bool from_client);
  int listener_ = -1, port_ = 0, to_port_;
  std::atomic<bool> stop_{false}, frozen_{false};
  std::atomic<std::uint64_t> flip_at_{UINT64_MAX};
  std::mutex mutex_;
  std::vector<int> sockets_;
  std::thread acceptor_;
  std::vector<std::thread> threads_;
};

// TLS by hand, blocking.
class RawClient {
 public:
  // `with_certificate`: shows that of `tls`. Dies on failure to connect, not on TLS errors.
  RawClient(int port, const TlsFiles& tls, bool with_certificate, int max_tls_version);
  ~RawClient();
  bool handshake_done() const { return done_; }
  bool write(const void* data, std::size_t bytes);
  std::string read(std::size_t bytes);  // shorter at the end

 private:
  struct State;
  std::unique_ptr<State> state_;
  bool done_ = false;
};

std::string at(int port);

}  // namespace baton::transport::testing
