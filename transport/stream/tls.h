// TLS 1.3 for the page stream: contexts, the handshake with both certificates checked, and
// what OpenSSL's errors mean to a person. Threads: the io thread of the stream.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::transport::stream {

namespace asio = boost::asio;
using asio::ip::tcp;
using TlsStream = asio::ssl::stream<tcp::socket>;

struct HostPort {
  std::string host;
  std::string port;
};
// "10.0.0.1:7401", "[::1]:7401", "ecu1:7401". Fails: kInvalid.
Result<HostPort> parse_address(std::string_view address);

// Fails: kInvalid (OpenSSL does not accept the files).
Result<std::shared_ptr<asio::ssl::context>> make_context(const TlsFiles& tls, bool server);

// Completes the handshake and says who the peer is: an identity of our cluster. `who` names
// the peer in messages. Fails: kNotAllowed, kUnreachable, kUnsupported, kCorrupt.
asio::awaitable<Result<Identity>> handshake(TlsStream& stream, bool server, const TlsFiles& tls,
                                            std::string who);

// An error of reading or writing once TLS is up (also the peer's refusal of our
// certificate, which TLS 1.3 reports only at the first read).
Error stream_error(const boost::system::error_code& error, const std::string& who,
                   std::string_view operation, const TlsFiles& tls);

// Small blocking-style helpers. Fail as stream_error.
asio::awaitable<Result<void>> read_all(TlsStream& stream, asio::mutable_buffer out,
                                       const std::string& who, const TlsFiles& tls);
asio::awaitable<Result<void>> write_everything(TlsStream& stream, asio::const_buffer bytes,
                                               const std::string& who, const TlsFiles& tls);

// NODELAY and close-on-exec. Not TCP_USER_TIMEOUT: it also counts the time in which the
// peer's window is closed (tcp(7)), that is, a slow disk there; pings find a dead peer.
void tune_socket(tcp::socket& socket);

}  // namespace baton::transport::stream
