#include "transport/stream/tls.h"

#include <fcntl.h>

#include <optional>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "transport/x509/openssl.h"

namespace baton::transport::stream {
namespace {

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::string_view kHandshake = "open page stream";

Error not_allowed(std::string subject, std::string hint = {}) {
  return make_error(Code::kNotAllowed, kHandshake, std::move(subject), std::move(hint));
}

// What the peer's alert says about our own certificate; nothing when it is another error.
std::optional<Error> refused_certificate(int reason, const std::string& who, const TlsFiles& tls) {
  const std::string ours = "our certificate (" + tls.identity.to_string() + ")";
  switch (reason) {
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return not_allowed(who + " refuses " + ours + ": expired by its clock",
                         "Renew it with `baton pki renew`, or check the dates of both machines.");
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
      return not_allowed(who + " refuses " + ours + ": not signed by its cluster's CA",
                         "The nodes belong to different clusters: issue one of them again.");
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return not_allowed(who + " refuses us: we showed no certificate");
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
      return not_allowed(who + " refuses " + ours,
                         "Its log says why; often a certificate that is not valid yet.");
    default: return std::nullopt;
  }
}

Error handshake_error(const boost::system::error_code& error, const std::string& who,
                      const TlsFiles& tls) {
  if (error.category() != asio::error::get_ssl_category())
    return make_error(Code::kUnreachable, kHandshake, who + ": " + error.message());
  const int reason = ERR_GET_REASON(static_cast<unsigned long>(error.value()));
  if (auto refused = refused_certificate(reason, who, tls)) return *refused;
  switch (reason) {
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return not_allowed(who + " showed no certificate",
                         "Every node needs one of this cluster (`baton pki issue`).");
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
      return make_error(Code::kUnsupported, kHandshake, who + " does not speak TLS 1.3");
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
      return make_error(Code::kUnsupported, kHandshake, who + " does not speak TLS",
                        "Is it the address of a page stream?");
    default: return make_error(Code::kUnreachable, kHandshake, who + ": " + error.message());
  }
}

}  // namespace

Result<HostPort> parse_address(std::string_view address) {
  HostPort out;
  const std::size_t colon = address.rfind(':');
  if (colon != address.npos) {
    out.port = address.substr(colon + 1);
    std::string_view host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']')
      host = host.substr(1, host.size() - 2);
    out.host = host;
  }
  const bool numeric = !out.port.empty() && out.port.size() <= 5 &&
                       out.port.find_first_not_of("0123456789") == out.port.npos &&
                       std::stoi(out.port) <= 65535;
  if (out.host.empty() || !numeric)
    return make_error(Code::kInvalid, kHandshake, "address '" + std::string(address) + "'",
                      "Give HOST:PORT, or [IPV6]:PORT.");
  return out;
}

Result<std::shared_ptr<asio::ssl::context>> make_context(const TlsFiles& tls, bool server) {
  auto context = std::make_shared<asio::ssl::context>(server ? asio::ssl::context::tls_server
                                                             : asio::ssl::context::tls_client);
  SSL_CTX* raw = context->native_handle();
  SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION);
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(raw, 0);
  SSL_CTX_set_ciphersuites(
      raw, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
  boost::system::error_code error;
  context->set_verify_mode(
      asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert, error);
  if (!error) context->add_certificate_authority(asio::buffer(tls.ca_pem), error);
  if (!error)
    context->use_certificate(asio::buffer(tls.cert_pem), asio::ssl::context::pem, error);
  if (!error) context->use_private_key(asio::buffer(tls.key_pem), asio::ssl::context::pem, error);
  if (error)
    return make_error(Code::kInvalid, "load certificate",
                      tls.identity.to_string() + ": " + error.message());
  return context;
}

asio::awaitable<Result<Identity>> handshake(TlsStream& stream, bool server, const TlsFiles& tls,
                                            std::string who) {
  auto problem = std::make_shared<std::optional<Error>>();
  boost::system::error_code ignored;
  stream.set_verify_callback(
      [problem, who](bool good, asio::ssl::verify_context& context) {
        X509_STORE_CTX* raw = context.native_handle();
        if (!good && !*problem) {
          *problem = x509::verify_error(X509_STORE_CTX_get_error(raw),
                                        X509_STORE_CTX_get_current_cert(raw), kHandshake);
          (*problem)->subject = who + ": " + (*problem)->subject;
        }
        return good;
      },
      ignored);
  auto [error] = co_await stream.async_handshake(
      server ? asio::ssl::stream_base::server : asio::ssl::stream_base::client, kAwait);
  if (*problem) co_return **problem;
  if (error) co_return handshake_error(error, who, tls);

  x509::Certificate peer(SSL_get1_peer_certificate(stream.native_handle()));
  if (!peer) co_return not_allowed(who + " showed no certificate");
  auto identity = x509::identity_of(peer.get());
  if (!identity) {
    Error bad = std::move(identity).error();
    bad.subject = who + ": " + bad.subject;
    co_return bad;
  }
  if (identity->cluster != tls.identity.cluster)
    co_return not_allowed(who + ": " + identity->to_string() + " is of the cluster " +
                          identity->cluster + ", not " + tls.identity.cluster);
  co_return std::move(*identity);
}

Error stream_error(const boost::system::error_code& error, const std::string& who,
                   std::string_view operation, const TlsFiles& tls) {
  if (error.category() == asio::error::get_ssl_category()) {
    const int reason = ERR_GET_REASON(static_cast<unsigned long>(error.value()));
    if (auto refused = refused_certificate(reason, who, tls)) return *refused;
    return make_error(Code::kCorrupt, operation, who + ": " + error.message());
  }
  if (error == asio::error::eof || error == asio::ssl::error::stream_truncated ||
      error == asio::error::connection_reset || error == asio::error::broken_pipe)
    return make_error(Code::kUnreachable, operation, who + " closed the connection");
  if (error == asio::error::timed_out)
    return make_error(Code::kUnreachable, operation, who + " does not answer any more");
  return make_error(Code::kUnreachable, operation, who + ": " + error.message());
}

asio::awaitable<Result<void>> read_all(TlsStream& stream, asio::mutable_buffer out,
                                       const std::string& who, const TlsFiles& tls) {
  auto [error, bytes] = co_await asio::async_read(stream, out, kAwait);
  if (error) co_return stream_error(error, who, kHandshake, tls);
  co_return Result<void>();
}

asio::awaitable<Result<void>> write_everything(TlsStream& stream, asio::const_buffer data,
                                               const std::string& who, const TlsFiles& tls) {
  auto [error, bytes] = co_await asio::async_write(stream, data, kAwait);
  if (error) co_return stream_error(error, who, kHandshake, tls);
  co_return Result<void>();
}

void tune_socket(tcp::socket& socket) {
  boost::system::error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
}

}  // namespace baton::transport::stream
