// gRPC at Baton's edge: channels and servers with mutual TLS, the peer's identity, and the
// one conversion between Error and grpc::Status. gRPC status appears nowhere else.
//
// Refuses plaintext in both directions; there is no option for it. A peer whose
// certificate is not of this cluster's CA, or whose identity is not the expected one, is
// refused in the handshake.
// Threads: all functions may be called from any thread. gRPC's own threads are bounded by
// RpcServerOptions::max_threads. TLS 1.3 is what two Baton programs negotiate; gRPC 1.51
// has no switch that forbids 1.2 (grpc_security.h), with the same certificates.
#pragma once

#include <chrono>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "transport/identity.h"

namespace grpc {
class Channel;
class ClientContext;
class Server;
class ServerContextBase;
class Service;
class Status;
}  // namespace grpc

namespace baton::transport {

inline constexpr int kMaxRpcMessageBytes = 64 << 20;
// A peer that vanished without FIN or RST is noticed within interval + timeout.
inline constexpr std::chrono::milliseconds kKeepaliveInterval{1500};
inline constexpr std::chrono::milliseconds kKeepaliveTimeout{2500};
inline constexpr int kDefaultRpcThreads = 64;

// A channel to HOST:PORT (IPv6: [::1]:PORT). Connects at the first call and again after
// every loss, with back-off from 100 ms to 2 s. Calls fail with kNotAllowed when the peer
// is not `role` of our cluster (and `name`, unless empty).
std::shared_ptr<grpc::Channel> make_channel(const std::string& address, const TlsFiles& tls,
                                            Role role, std::string_view name = {});

struct RpcServerOptions {
  int max_threads = kDefaultRpcThreads;
};

// A running gRPC server. The services outlive it.
class RpcServer {
 public:
  // Listens on HOST:PORT; port 0 asks for a free one. Every client must show a certificate
  // of the cluster. Fails: kConflict (address in use), kFailed.
  static Result<std::unique_ptr<RpcServer>> start(const std::string& address, const TlsFiles& tls,
                                                  const std::vector<grpc::Service*>& services,
                                                  RpcServerOptions options = {});
  ~RpcServer();  // shutdown(1 s)
  int port() const { return port_; }
  // Refuses new calls, gives those under way `grace`, then cancels them. Blocks; once.
  void shutdown(std::chrono::milliseconds grace);
  void wait();  // until shutdown from another thread

 private:
  RpcServer();
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

// Who calls. Fails: kNotAllowed (no, or more than one, well-formed identity).
Result<Identity> peer_identity(const grpc::ServerContextBase& context);
// peer_identity, and its role is one of `roles`.
// Fails: kNotAllowed: "DeleteWorkload needs the role operator; viewer jo is not".
Result<Identity> require_role(const grpc::ServerContextBase& context, std::string_view rpc,
                              std::initializer_list<Role> roles);

// Error -> Status and back. Code, errno, operation, subject and hint survive between Baton
// programs; a status made by gRPC itself becomes kUnreachable (also when the connection
// broke mid-call and the call is known not to have been sent), kTimedOut, kCancelled,
// kNotAllowed (certificates) or kUnknownOutcome (the connection broke while a call was
// under way).
grpc::Status to_status(const Error& error);
grpc::Status to_status(const Result<void>& result);
Error from_status(const grpc::Status& status, std::string_view operation, std::string_view peer);
Result<void> to_result(const grpc::Status& status, std::string_view operation,
                       std::string_view peer);

void set_deadline(grpc::ClientContext& context, std::chrono::nanoseconds from_now);

}  // namespace baton::transport
