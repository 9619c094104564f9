#include "transport/rpc.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include <grpc/support/log.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include "base/log.h"
#include "proto/warden.pb.h"

namespace baton::transport {
namespace {

namespace ex = grpc::experimental;

// Begins the binary details of a status that carries an Error (a pb::WardenError follows).
constexpr std::string_view kErrorMagic = "BTNE";
// Marks what our verifier says, so that it can be found in gRPC's longer text.
constexpr std::string_view kPeerMark = "[baton peer] ";
constexpr std::size_t kMaxFieldBytes = 1500;
constexpr std::size_t kMaxDetailBytes = 16 * 1024;
constexpr int kMaxMetadataBytes = 64 * 1024;

Result<Identity> single_identity(const std::vector<std::string>& uris) {
  if (uris.size() != 1)
    return make_error(Code::kNotAllowed, "identify the peer",
                      "its certificate names " + std::to_string(uris.size()) + " identities, not one");
  auto identity = parse_identity(uris.front());
  if (!identity) {
    Error error = std::move(identity).error();
    error.code = Code::kNotAllowed;
    return error;
  }
  return identity;
}

// Checks the identity after OpenSSL has checked the chain.
class PeerVerifier final : public ex::ExternalCertificateVerifier {
 public:
  // role_any: every role of the cluster will do.
  PeerVerifier(std::string cluster, bool role_any, Role role, std::string name)
      : cluster_(std::move(cluster)), role_any_(role_any), role_(role), name_(std::move(name)) {}

  bool Verify(ex::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)> callback, grpc::Status* sync_status) override {
    (void)callback;
    std::vector<std::string> uris;
    for (const grpc::string_ref& uri : request->uri_names()) uris.emplace_back(uri.data(), uri.size());
    const std::string why = problem(single_identity(uris));
    if (!why.empty())
      *sync_status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED, std::string(kPeerMark) + why);
    return true;  // decided here and now
  }
  void Cancel(ex::TlsCustomVerificationCheckRequest*) override {}

 private:
  std::string problem(const Result<Identity>& peer) const {
    if (!peer) return peer.error().message();
    if (peer->cluster != cluster_)
      return peer->to_string() + " is of the cluster " + peer->cluster + ", not " + cluster_;
    if (role_any_) return {};
    if (peer->role != role_ || (!name_.empty() && peer->name != name_))
      return "expected " + std::string(role_name(role_)) + (name_.empty() ? "" : " " + name_) +
             ", but " + peer->to_string() + " answers there";
    return {};
  }

  const std::string cluster_;
  const bool role_any_;
  const Role role_;
  const std::string name_;
};

std::shared_ptr<ex::CertificateProviderInterface> provider_of(const TlsFiles& tls) {
  return std::make_shared<ex::StaticDataCertificateProvider>(
      tls.ca_pem, std::vector<ex::IdentityKeyCertPair>{{tls.key_pem, tls.cert_pem}});
}

// gRPC's own log lines go to ours, for debugging: what matters comes back as a status.
void take_over_log() {
  static std::once_flag once;
  std::call_once(once, [] {
    gpr_set_log_function([](gpr_log_func_args* line) {
      spdlog::debug("grpc {}:{}: {}", line->file, line->line, line->message);
    });
  });
}

int ms(std::chrono::milliseconds duration) { return static_cast<int>(duration.count()); }

std::string clipped(const std::string& text) {
  if (text.size() <= kMaxFieldBytes) return text;
  return text.substr(0, kMaxFieldBytes) + "…";
}

grpc::StatusCode status_code(Code code) {
  switch (code) {
    case Code::kFailed: return grpc::StatusCode::INTERNAL;
    case Code::kInvalid: return grpc::StatusCode::INVALID_ARGUMENT;
    case Code::kNotFound: return grpc::StatusCode::NOT_FOUND;
    // Not UNAVAILABLE: gRPC would take that for a broken connection of its own.
    case Code::kUnreachable: return grpc::StatusCode::FAILED_PRECONDITION;
    case Code::kNotAllowed: return grpc::StatusCode::PERMISSION_DENIED;
    case Code::kTimedOut: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case Code::kConflict: return grpc::StatusCode::ALREADY_EXISTS;
    case Code::kUnsupported: return grpc::StatusCode::UNIMPLEMENTED;
    case Code::kNoSpace: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case Code::kCorrupt: return grpc::StatusCode::DATA_LOSS;
    case Code::kTraceeGone: return grpc::StatusCode::FAILED_PRECONDITION;
    case Code::kUnknownOutcome: return grpc::StatusCode::UNKNOWN;
    case Code::kCancelled: return grpc::StatusCode::CANCELLED;
  }
  return grpc::StatusCode::INTERNAL;
}

bool contains_any(std::string_view text, std::initializer_list<std::string_view> needles) {
  return std::ranges::any_of(needles, [&](auto n) { return text.find(n) != text.npos; });
}

// UNAVAILABLE comes from gRPC itself: was the call ever sent?
Error unavailable(const std::string& text, std::string_view operation, std::string_view peer) {
  const std::string who(peer);
  if (const std::size_t mark = text.find(kPeerMark); mark != text.npos)
    return make_error(Code::kNotAllowed, operation, who + ": " + text.substr(mark + kPeerMark.size()),
                      "Check the address and the certificates.");
  if (contains_any(text, {"CERTIFICATE", "certificate", "SSL_ERROR_SSL"}))
    return make_error(Code::kNotAllowed, operation,
                      who + ": the certificates were not accepted: " + text,
                      "Both sides need a valid certificate of the same cluster (`baton pki`).");
  if (contains_any(text, {"ailed to connect", "DNS", "resol", "andshake", "No route", "refused"}))
    return make_error(Code::kUnreachable, operation, who + ": " + text,
                      "Check that it runs and that the address is right.");
  return make_error(Code::kUnknownOutcome, operation,
                    who + ": the connection broke before the answer: " + text, "Ask again.");
}

}  // namespace

std::shared_ptr<grpc::Channel> make_channel(const std::string& address, const TlsFiles& tls,
                                            Role role, std::string_view name) {
  take_over_log();
  ex::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider_of(tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_verify_server_certs(true);
  options.set_check_call_host(false);  // the identity in the URI SAN is what counts
  options.set_certificate_verifier(ex::ExternalCertificateVerifier::Create<PeerVerifier>(
      tls.identity.cluster, false, role, std::string(name)));

  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxRpcMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxRpcMessageBytes);
  arguments.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, ms(kKeepaliveInterval));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ms(kKeepaliveTimeout));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);  // also the connect timeout
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, ex::TlsCredentials(options), arguments);
}

RpcServer::RpcServer() = default;

Result<std::unique_ptr<RpcServer>> RpcServer::start(const std::string& address, const TlsFiles& tls,
                                                    const std::vector<grpc::Service*>& services,
                                                    RpcServerOptions server_options) {
  take_over_log();
  ex::TlsServerCredentialsOptions options(provider_of(tls));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.set_certificate_verifier(ex::ExternalCertificateVerifier::Create<PeerVerifier>(
      tls.identity.cluster, true, Role::kNode, std::string()));

  grpc::ServerBuilder builder;
  std::unique_ptr<RpcServer> server(new RpcServer());
  builder.AddListeningPort(address, ex::TlsServerCredentials(options), &server->port_);
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMaxRpcMessageBytes);
  builder.SetMaxSendMessageSize(kMaxRpcMessageBytes);
  grpc::ResourceQuota quota("baton rpc");
  quota.SetMaxThreads(server_options.max_threads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 2);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, ms(kKeepaliveInterval));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, ms(kKeepaliveTimeout));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0)
    return make_error(Code::kConflict, "listen", address + ": cannot be bound",
                      "Is the address of this machine, and is another program using the port?");
  return server;
}

RpcServer::~RpcServer() { shutdown(std::chrono::seconds(1)); }

void RpcServer::shutdown(std::chrono::milliseconds grace) {
  if (server_ == nullptr) return;
  server_->Shutdown(std::chrono::system_clock::now() + grace);
}

void RpcServer::wait() {
  if (server_ != nullptr) server_->Wait();
}

Result<Identity> peer_identity(const grpc::ServerContextBase& context) {
  const auto auth = context.auth_context();
  if (auth == nullptr || !auth->IsPeerAuthenticated())
    return make_error(Code::kNotAllowed, "identify the peer", "it showed no certificate");
  std::vector<std::string> uris;
  for (const grpc::string_ref& uri : auth->FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME))
    uris.emplace_back(uri.data(), uri.size());
  return single_identity(uris);
}

Result<Identity> require_role(const grpc::ServerContextBase& context, std::string_view rpc,
                              std::initializer_list<Role> roles) {
  BATON_ASSIGN(Identity peer, peer_identity(context));
  if (std::ranges::find(roles, peer.role) != roles.end()) return peer;
  std::string needed;
  for (Role role : roles) needed += (needed.empty() ? "" : " or ") + std::string(role_name(role));
  return make_error(Code::kNotAllowed, rpc, "needs the role " + needed + "; " + peer.to_string() +
                                                " does not have it");
}

grpc::Status to_status(const Error& error) {
  pb::WardenError details;
  details.set_code(static_cast<int>(error.code));
  details.set_sys_errno(error.sys_errno);
  details.set_operation(clipped(error.operation));
  details.set_subject(clipped(error.subject));
  details.set_hint(clipped(error.hint));
  return grpc::Status(status_code(error.code), clipped(error.message()),
                      std::string(kErrorMagic) + details.SerializeAsString());
}

grpc::Status to_status(const Result<void>& result) {
  return result ? grpc::Status::OK : to_status(result.error());
}

Error from_status(const grpc::Status& status, std::string_view operation, std::string_view peer) {
  const std::string details = status.error_details();
  if (details.size() <= kMaxDetailBytes && details.starts_with(kErrorMagic)) {
    pb::WardenError sent;
    if (sent.ParseFromString(details.substr(kErrorMagic.size())) &&
        sent.code() >= static_cast<int>(Code::kFailed) &&
        sent.code() <= static_cast<int>(Code::kCancelled))
      return Error{static_cast<Code>(sent.code()), sent.sys_errno(), sent.operation(),
                   sent.subject(), sent.hint()};
  }
  const std::string subject = std::string(peer) + ": " + status.error_message();
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE: return unavailable(status.error_message(), operation, peer);
    case grpc::StatusCode::DEADLINE_EXCEEDED: return make_error(Code::kTimedOut, operation, subject);
    case grpc::StatusCode::CANCELLED: return make_error(Code::kCancelled, operation, subject);
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::OUT_OF_RANGE: return make_error(Code::kInvalid, operation, subject);
    case grpc::StatusCode::NOT_FOUND: return make_error(Code::kNotFound, operation, subject);
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::FAILED_PRECONDITION: return make_error(Code::kConflict, operation, subject);
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED: return make_error(Code::kNotAllowed, operation, subject);
    case grpc::StatusCode::RESOURCE_EXHAUSTED: return make_error(Code::kNoSpace, operation, subject);
    case grpc::StatusCode::UNIMPLEMENTED:
      return make_error(Code::kUnsupported, operation, subject,
                        "Is the same version of Baton running there?");
    case grpc::StatusCode::DATA_LOSS: return make_error(Code::kCorrupt, operation, subject);
    default: return make_error(Code::kUnknownOutcome, operation, subject, "Ask again.");
  }
}

Result<void> to_result(const grpc::Status& status, std::string_view operation,
                       std::string_view peer) {
  if (status.ok()) return {};
  return from_status(status, operation, peer);
}

void set_deadline(grpc::ClientContext& context, std::chrono::nanoseconds from_now) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::duration_cast<std::chrono::system_clock::duration>(from_now));
}

}  // namespace baton::transport
