// TLS 1.3 for a server that people's browsers and tools reach: it shows its certificate; a
// client may show one of the cluster, and one that does not stand up ends the handshake.
// Threads: a context may serve many connections; reading a peer belongs to its connection.
#pragma once

#include <memory>
#include <optional>

#include <boost/asio/ssl/context.hpp>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::transport {

// Offers http/1.1 only (ALPN). No tickets and no session cache: every connection proves anew
// who it is. Fails: kInvalid (OpenSSL does not accept the files).
Result<std::shared_ptr<boost::asio::ssl::context>> make_web_context(const TlsFiles& tls);

// Who the client's certificate speaks for, once the handshake is done; absent: it showed none.
// Fails: kNotAllowed (no well-formed identity, or of another cluster).
Result<std::optional<Identity>> web_peer(SSL* connection, const TlsFiles& tls);

}  // namespace baton::transport
