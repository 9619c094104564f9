#include "transport/web_tls.h"

#include <boost/asio/buffer.hpp>
#include <openssl/ssl.h>

#include "transport/x509/openssl.h"

namespace baton::transport {
namespace {

namespace asio = boost::asio;

constexpr unsigned char kHttp11[] = "\x08http/1.1";

int choose_protocol(SSL*, const unsigned char** out, unsigned char* out_bytes,
                    const unsigned char* in, unsigned int in_bytes, void*) {
  // Source: SSL_CTX_set_alpn_select_cb(3). No overlap: go on without; HTTP/1.1 is the default.
  const int found = SSL_select_next_proto(const_cast<unsigned char**>(out), out_bytes, kHttp11,
                                          sizeof kHttp11 - 1, in, in_bytes);
  return found == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

}  // namespace

Result<std::shared_ptr<asio::ssl::context>> make_web_context(const TlsFiles& tls) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_server);
  SSL_CTX* raw = context->native_handle();
  SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION);
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(raw, 0);
  SSL_CTX_set_alpn_select_cb(raw, choose_protocol, nullptr);
  boost::system::error_code error;
  context->set_verify_mode(asio::ssl::verify_peer, error);
  if (!error) context->add_certificate_authority(asio::buffer(tls.ca_pem), error);
  if (!error) context->use_certificate(asio::buffer(tls.cert_pem), asio::ssl::context::pem, error);
  if (!error) context->use_private_key(asio::buffer(tls.key_pem), asio::ssl::context::pem, error);
  if (error) {
    return make_error(Code::kInvalid, "load certificate",
                      tls.identity.to_string() + ": " + error.message());
  }
  // Browsers offer only certificates of this CA, and ask nobody who has none.
  BATON_ASSIGN(x509::Certificate ca, x509::parse_certificate(tls.ca_pem));
  if (SSL_CTX_add_client_CA(raw, ca.get()) != 1) {
    return make_error(Code::kInvalid, "load certificate", x509::take_error());
  }
  return context;
}

Result<std::optional<Identity>> web_peer(SSL* connection, const TlsFiles& tls) {
  x509::Certificate peer(SSL_get1_peer_certificate(connection));
  if (!peer) return std::optional<Identity>();
  BATON_ASSIGN(Identity identity, x509::identity_of(peer.get()));
  if (identity.cluster != tls.identity.cluster) {
    return make_error(Code::kNotAllowed, "identify the peer",
                      identity.to_string() + " is of the cluster " + identity.cluster + ", not " +
                          tls.identity.cluster);
  }
  return std::optional<Identity>(std::move(identity));
}

}  // namespace baton::transport
