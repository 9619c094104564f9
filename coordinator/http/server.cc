#include "coordinator/http/server.h"

#include <fcntl.h>

#include <atomic>
#include <future>
#include <thread>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>

#include "base/log.h"
#include "coordinator/http/json.h"
#include "coordinator/http/stream_hub.h"
#include "transport/web_tls.h"

namespace baton::coordinator::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace wire = boost::beast::http;
using asio::ip::tcp;
using TlsStream = beast::ssl_stream<beast::tcp_stream>;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::seconds kAcceptPause{1};

constexpr std::pair<const char*, const char*> kSecurityHeaders[] = {
    {"Content-Security-Policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
     "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
    {"X-Content-Type-Options", "nosniff"},
    {"Referrer-Policy", "no-referrer"},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Cross-Origin-Resource-Policy", "same-origin"},
    {"Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"},
    {"Strict-Transport-Security", "max-age=31536000"},
};

std::string text_of(beast::string_view view) { return std::string(view.data(), view.size()); }

std::string lower(beast::string_view text) {
  std::string out = text_of(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

Request to_request(const wire::request<wire::string_body>& in, const std::string& peer,
                   const std::optional<transport::Identity>& certificate) {
  Request out;
  out.method = text_of(in.method_string());
  const std::string target = text_of(in.target());
  const std::size_t question = target.find('?');
  out.path = percent_decoded(target.substr(0, question));
  if (question != std::string::npos) out.query = parse_query(target.substr(question + 1));
  for (const auto& field : in) out.headers.emplace(lower(field.name_string()), text_of(field.value()));
  out.body = in.body();
  out.peer = peer;
  out.certificate = certificate;
  return out;
}

template <typename Message>
void set_headers(Message& out, const Response& response) {
  out.set(wire::field::server, "baton");
  out.set(wire::field::content_type, response.content_type);
  for (const auto& [name, value] : kSecurityHeaders) out.set(name, value);
  for (const auto& [name, value] : response.headers) out.set(name, value);
}

class Server final : public WebServer {
 public:
  Server(const transport::TlsFiles& tls, Routes& routes, Metrics& metrics, Movements& movements)
      : tls_(tls), routes_(routes), metrics_(metrics), hub_(movements), acceptor_(io_), ticker_(io_) {}
  ~Server() override { stop(); }

  Result<void> listen(const std::string& address) {
    const std::size_t colon = address.rfind(':');
    std::string host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
    boost::system::error_code error;
    const auto ip = asio::ip::make_address(host, error);
    unsigned port = 0;
    try {
      port = colon == std::string::npos ? 70'000u
                                        : static_cast<unsigned>(std::stoul(address.substr(colon + 1)));
    } catch (const std::exception&) {
      port = 70'000;
    }
    if (error || port > 65'535) {
      return make_error(Code::kInvalid, "serve the dashboard", "address '" + address + "'",
                        "Give --web IP:PORT, or --web off.");
    }
    BATON_ASSIGN(context_, transport::make_web_context(tls_));
    const tcp::endpoint endpoint(ip, static_cast<unsigned short>(port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return make_error(error == asio::error::address_in_use ? Code::kConflict : Code::kFailed,
                        "serve the dashboard", address + ": " + error.message(),
                        "Choose another with --web IP:PORT, or --web off.");
    }
    ::fcntl(acceptor_.native_handle(), F_SETFD, FD_CLOEXEC);
    asio::co_spawn(io_, accept(), asio::detached);
    asio::co_spawn(io_, tick(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
    return {};
  }

  int port() const override { return acceptor_.local_endpoint().port(); }

  Result<void> reload(const transport::TlsFiles& tls) override {
    BATON_ASSIGN(auto context, transport::make_web_context(tls));
    asio::post(io_, [this, context, tls] {
      context_ = context;
      tls_ = tls;
    });
    return {};
  }

  void publish(std::shared_ptr<const Picture> picture) override {
    asio::post(io_, [this, picture = std::move(picture)] {
      hub_.picture(picture, std::chrono::steady_clock::now());
    });
  }

  void stop() override {
    if (!thread_.joinable()) return;
    io_.stop();
    thread_.join();
    pool_.join();
  }

 private:
  asio::awaitable<void> tick() {
    while (true) {
      ticker_.expires_after(kMovementTick);
      co_await ticker_.async_wait(kAwait);
      hub_.tick();
    }
  }

  asio::awaitable<void> accept() {
    while (true) {
      auto [error, socket] = co_await acceptor_.async_accept(kAwait);
      if (error) {  // out of descriptors: those in use will be given back
        asio::steady_timer pause(io_, kAcceptPause);
        co_await pause.async_wait(kAwait);
        continue;
      }
      if (connections_ >= kMaxConnections) {
        metrics_.refused_connection();
        continue;  // closes it
      }
      ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
      boost::system::error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      metrics_.connections(++connections_);
      asio::co_spawn(io_, connection(std::move(socket)), [this](std::exception_ptr failed) {
        metrics_.connections(--connections_);
        try {
          if (failed) std::rethrow_exception(failed);
        } catch (const std::exception& thrown) {
          spdlog::warn("a connection of the dashboard ended: {}", thrown.what());
        }
      });
    }
  }

  asio::awaitable<void> connection(tcp::socket socket) {
    boost::system::error_code ignored;
    const auto remote = socket.remote_endpoint(ignored);
    const std::string peer = remote.address().to_string(ignored);
    const auto context = context_;  // reload() must not take it away
    TlsStream stream(beast::tcp_stream(std::move(socket)), *context);
    beast::get_lowest_layer(stream).expires_after(kHandshakeTime);
    auto [error] = co_await stream.async_handshake(asio::ssl::stream_base::server, kAwait);
    if (error) {
      spdlog::debug("{}: TLS: {}", peer, error.message());
      co_return;
    }
    auto identity = transport::web_peer(stream.native_handle(), tls_);
    if (!identity) {
      spdlog::warn("{}: {}", peer, identity.error().message());
      co_return;
    }
    co_await serve(stream, peer, *identity);
    // Best effort: a peer that does not answer is cut off by the destructor.
    beast::get_lowest_layer(stream).expires_after(kHandshakeTime);
    co_await stream.async_shutdown(kAwait);
  }

  asio::awaitable<void> serve(TlsStream& stream, const std::string& peer,
                              const std::optional<transport::Identity>& identity) {
    beast::flat_buffer buffer(kMaxHeaderBytes + kMaxBodyBytes);
    for (int count = 0; count < kMaxRequestsPerConnection; ++count) {
      wire::request_parser<wire::string_body> parser;
      parser.header_limit(kMaxHeaderBytes);
      parser.body_limit(kMaxBodyBytes);
      beast::get_lowest_layer(stream).expires_after(kRequestTime);
      auto [error, bytes] = co_await wire::async_read(stream, buffer, parser, kAwait);
      if (error) {
        const int status = error == wire::error::body_limit     ? 413
                           : error == wire::error::header_limit ? 431
                           : error.category() == wire::make_error_code(wire::error::bad_method).category() &&
                                   error != wire::error::end_of_stream
                               ? 400
                               : 0;
        if (status != 0) {
          Response refused = error_response(make_error(Code::kInvalid, "read the request", error.message()));
          refused.status = status;
          metrics_.answered("other", status, 0);
          co_await write(stream, refused, 11, false, false);
        }
        co_return;
      }
      const auto& message = parser.get();
      const bool keep = message.keep_alive() && count + 1 < kMaxRequestsPerConnection;
      const unsigned version = message.version();
      const Request request = to_request(message, peer, identity);
      const std::string pattern = Routes::pattern_of(request);
      const auto began = std::chrono::steady_clock::now();
      Response response = co_await answer(request);
      if (response.stream && request.method == "GET") {
        if (streams_ < kMaxStreams) {
          metrics_.answered(pattern, 200, 0);
          co_await events(stream, response, version);
          co_return;
        }
        response = error_response(make_error(Code::kNoSpace, "events", "too many listeners"));
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
      metrics_.answered(pattern, response.status, took.count());
      if (!co_await write(stream, response, version, keep, request.method == "HEAD") || !keep) co_return;
    }
  }

  asio::awaitable<Response> answer(const Request& request) {
    if (pending_ >= kMaxPending) {
      co_return error_response(make_error(Code::kNoSpace, "answer", "too many requests at once", "Try again."));
    }
    ++pending_;
    Response response = co_await asio::co_spawn(
        pool_,
        [this, &request]() -> asio::awaitable<Response> {
          try {
            co_return routes_.answer(request);
          } catch (const std::exception& error) {  // a library's; ours are Results
            spdlog::error("{} {}: {}", request.method, request.path, error.what());
            co_return error_response(make_error(Code::kFailed, "answer", "internal error"));
          }
        },
        asio::use_awaitable);
    --pending_;
    co_return response;
  }

  // False: the connection is of no more use.
  asio::awaitable<bool> write(TlsStream& stream, const Response& response, unsigned version, bool keep,
                              bool head) {
    wire::response<wire::string_body> out(static_cast<wire::status>(response.status), version);
    set_headers(out, response);
    out.keep_alive(keep);
    out.body() = response.status == 304 ? std::string() : response.body;
    out.prepare_payload();
    beast::get_lowest_layer(stream).expires_after(kWriteTime);
    boost::system::error_code error;
    if (head) {
      wire::response_serializer<wire::string_body> serializer(out);
      auto [failed, bytes] = co_await wire::async_write_header(stream, serializer, kAwait);
      error = failed;
    } else {
      auto [failed, bytes] = co_await wire::async_write(stream, out, kAwait);
      error = failed;
    }
    co_return !error;
  }

  asio::awaitable<void> events(TlsStream& stream, const Response& response, unsigned version) {
    wire::response<wire::empty_body> out(wire::status::ok, version);
    set_headers(out, response);
    out.keep_alive(false);
    wire::response_serializer<wire::empty_body> serializer(out);
    beast::get_lowest_layer(stream).expires_after(kWriteTime);
    auto [error, bytes] = co_await wire::async_write_header(stream, serializer, kAwait);
    if (error) co_return;

    Listener listener;
    asio::steady_timer wake(io_);
    listener.wake = [&wake] { wake.cancel(); };
    hub_.join(listener);
    metrics_.listeners(++streams_);
    while (true) {
      std::vector<Frame> frames(listener.queue.begin(), listener.queue.end());
      listener.queue.clear();
      if (listener.overview) frames.push_back(std::exchange(listener.overview, nullptr));
      if (frames.empty()) {
        wake.expires_after(kStreamPing);
        auto [woken] = co_await wake.async_wait(kAwait);
        if (woken == asio::error::operation_aborted) continue;
        static const Frame kPing = std::make_shared<const std::string>(": ping\n\n");
        frames.push_back(kPing);
      }
      std::string text;
      for (const Frame& frame : frames) text += *frame;
      beast::get_lowest_layer(stream).expires_after(kWriteTime);
      auto [failed, written] = co_await asio::async_write(stream, asio::buffer(text), kAwait);
      if (failed) break;
      beast::get_lowest_layer(stream).expires_never();
    }
    hub_.leave(listener);
    metrics_.listeners(--streams_);
  }

  asio::io_context io_{1};
  asio::thread_pool pool_{kHandlerThreads};
  transport::TlsFiles tls_;
  Routes& routes_;
  Metrics& metrics_;
  StreamHub hub_;
  std::shared_ptr<asio::ssl::context> context_;
  tcp::acceptor acceptor_;
  asio::steady_timer ticker_;
  std::thread thread_;
  int connections_ = 0, streams_ = 0, pending_ = 0;  // io thread
};

}  // namespace

Result<std::unique_ptr<WebServer>> WebServer::start(const std::string& address,
                                                    const transport::TlsFiles& tls, Routes& routes,
                                                    Metrics& metrics, Movements& movements) {
  auto server = std::make_unique<Server>(tls, routes, metrics, movements);
  BATON_TRY(server->listen(address));
  return std::unique_ptr<WebServer>(std::move(server));
}

}  // namespace baton::coordinator::http
