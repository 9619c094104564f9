#include "transport/frame_hub.h"

#include <fcntl.h>
#include <netinet/tcp.h>

#include <array>
#include <deque>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/log.h"
#include "transport/stream/tls.h"

namespace baton::transport {
namespace {

using namespace std::chrono;
namespace asio = boost::asio;
using asio::ip::tcp;
using stream::TlsStream;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::string_view kOperation = "tenure connection";
constexpr std::array<char, 8> kGreeting{'B', 'A', 'T', 'O', 'N', 'F', 'H', '1'};
constexpr milliseconds kGreetTimeout{3000};
constexpr milliseconds kRedialFirst{50}, kRedialMax{1000};

Result<std::string> peer_name(const Identity& identity) {
  if (identity.role == Role::kCoordinator) return std::string(kCoordinatorPeer);
  if (identity.role == Role::kNode && identity.name != kCoordinatorPeer) return identity.name;
  return make_error(Code::kNotAllowed, kOperation, "only nodes and the coordinator may; this is " + identity.to_string());
}

}  // namespace

// Coroutines and handlers outlive no Impl: its destructor comes after the thread's end, and ends
// them with the io_context.
struct FrameHub::Impl {
  struct Link {
    Link(std::unique_ptr<TlsStream> s, asio::io_context& io) : stream(std::move(s)), silence(io) {}
    std::unique_ptr<TlsStream> stream;
    asio::steady_timer silence;
    std::string queue, writing;
    bool closed = false;
  };
  Impl(const TlsFiles& files, Handlers given) : tls(files), handlers(std::move(given)), acceptor(io), timer(io) {}

  TlsFiles tls;
  Handlers handlers;
  std::string self;
  asio::io_context io{1};
  tcp::acceptor acceptor;
  asio::steady_timer timer;
  std::shared_ptr<asio::ssl::context> server_context, client_context;
  std::map<std::string, std::shared_ptr<Link>> links;
  std::map<std::string, std::string> addresses;
  std::map<std::string, std::uint64_t> dials;     // under way, by peer
  std::set<tcp::socket*> greeting;
  std::uint64_t next_dial = 1;
  std::map<std::string, std::string> told;        // the last problem logged, by peer
  bool stopping = false;
  std::thread thread;

  Result<void> listen(const std::string& address) {
    BATON_ASSIGN(self, peer_name(tls.identity));
    BATON_ASSIGN(const stream::HostPort where, stream::parse_address(address));
    BATON_ASSIGN(server_context, stream::make_context(tls, true));
    BATON_ASSIGN(client_context, stream::make_context(tls, false));
    boost::system::error_code error;
    tcp::resolver resolver(io);
    const auto endpoints = resolver.resolve(where.host, where.port, tcp::resolver::passive, error);
    if (error || endpoints.empty()) return make_error(Code::kInvalid, "listen", address + ": " + error.message());
    const tcp::endpoint endpoint = endpoints.begin()->endpoint();
    acceptor.open(endpoint.protocol(), error);
    if (!error) ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
    if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return make_error(error == asio::error::address_in_use ? Code::kConflict : Code::kFailed, "listen",
                        address + ": " + error.message(),
                        "Is the address of this machine, and is another program using the port?");
    }
    asio::co_spawn(io, accept_loop(), asio::detached);
    thread = std::thread([this] { io.run(); });
    return {};
  }

  void stop() {
    if (!thread.joinable()) return;
    asio::post(io, [this] {
      stopping = true;
      boost::system::error_code ignored;
      acceptor.close(ignored);
      timer.cancel();
      for (tcp::socket* socket : greeting) socket->close(ignored);
      for (auto& [name, link] : links) close(*link);
      links.clear();
      io.stop();
    });
    thread.join();
  }

  void log_once(const std::string& peer, const std::string& problem) {
    if (std::exchange(told[peer], problem) != problem && !problem.empty()) spdlog::warn("tenure: {}", problem);
  }

  static void close(Link& link) {
    if (std::exchange(link.closed, true)) return;
    boost::system::error_code ignored;
    link.silence.cancel();
    link.stream->next_layer().close(ignored);
  }

  asio::awaitable<void> accept_loop() {
    asio::steady_timer pause(io);
    while (!stopping) {
      auto [error, socket] = co_await acceptor.async_accept(kAwait);
      if (stopping) co_return;
      if (error) {
        pause.expires_after(milliseconds(100));
        co_await pause.async_wait(kAwait);
        continue;
      }
      if (greeting.size() + links.size() >= kMaxHubPeers) continue;
      boost::system::error_code ignored;
      const std::string who = socket.remote_endpoint(ignored).address().to_string();
      asio::co_spawn(io, greet_and_serve(std::move(socket), who, {}, 0), asio::detached);
    }
  }

  // `expected`: whom we called; empty: we were called.
  asio::awaitable<Result<std::string>> greet(TlsStream& stream, const std::string& who, const std::string& expected) {
    const bool server = expected.empty();
    Result<Identity> identity = co_await stream::handshake(stream, server, tls, who);
    if (!identity) co_return std::move(identity).error();
    Result<std::string> name = peer_name(*identity);
    if (!name) co_return name;
    if (!server && *name != expected) {
      co_return make_error(Code::kNotAllowed, kOperation, who + " is " + identity->to_string() + ", not " + expected);
    }
    if (server && *name > self) {
      co_return make_error(Code::kNotAllowed, kOperation, who + ": " + self + " calls " + *name + ", not the other way");
    }
    auto greeting_bytes = kGreeting;
    Result<void> step = co_await stream::write_everything(stream, asio::buffer(greeting_bytes), who, tls);
    if (step) step = co_await stream::read_all(stream, asio::buffer(greeting_bytes), who, tls);
    if (!step) co_return std::move(step).error();
    if (greeting_bytes != kGreeting) co_return make_error(Code::kUnsupported, kOperation, who + " speaks another protocol");
    co_return name;
  }

  asio::awaitable<void> greet_and_serve(tcp::socket socket, std::string who, std::string expected, std::uint64_t dial) {
    stream::tune_socket(socket);
    // Many small frames, late ones worth nothing: no backing off while little is under way.
    const int on = 1;
    ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, &on, sizeof on);
    auto tls_stream = std::make_unique<TlsStream>(std::move(socket), expected.empty() ? *server_context : *client_context);
    tcp::socket* raw = &tls_stream->next_layer();
    greeting.insert(raw);
    auto watch = std::make_shared<asio::steady_timer>(io, kGreetTimeout);
    watch->async_wait([this, raw](boost::system::error_code error) {
      boost::system::error_code ignored;
      if (!error && greeting.contains(raw)) raw->close(ignored);
    });
    Result<std::string> name = make_error(Code::kFailed, kOperation, who);
    try {
      name = co_await greet(*tls_stream, who, expected);
    } catch (const std::exception& e) {
      name = make_error(Code::kFailed, kOperation, who + ": " + e.what());
    }
    greeting.erase(raw);
    watch->cancel();
    if (!expected.empty() && dials[expected] == dial) dials.erase(expected);
    if (stopping) co_return;
    if (!name) {
      log_once(expected.empty() ? who : expected, name.error().message());
      if (!expected.empty()) redial(expected, kRedialMax);
      co_return;
    }
    log_once(*name, {});
    co_await serve(*name, std::make_shared<Link>(std::move(tls_stream), io));
  }

  asio::awaitable<void> serve(std::string name, std::shared_ptr<Link> link) {
    if (auto old = links.find(name); old != links.end()) {   // the peer has begun anew
      close(*old->second);
      links.erase(old);
      handlers.down(name);
    }
    links[name] = link;
    handlers.up(name);
    std::array<unsigned char, 4> head{};
    std::string frame;
    while (!link->closed) {
      watch_silence(link);
      auto [error, got] = co_await asio::async_read(*link->stream, asio::buffer(head), kAwait);
      if (error) break;
      const std::uint32_t bytes = head[0] | head[1] << 8 | head[2] << 16 | static_cast<std::uint32_t>(head[3]) << 24;
      if (bytes > kMaxFrameBytes) {
        log_once(name, name + " sends a frame of " + std::to_string(bytes) + " bytes");
        break;
      }
      frame.resize(bytes);
      auto [body_error, body_got] = co_await asio::async_read(*link->stream, asio::buffer(frame), kAwait);
      if (body_error) break;
      if (link->closed || stopping) break;
      handlers.frame(name, frame);
    }
    close(*link);
    if (stopping) co_return;
    auto it = links.find(name);
    if (it == links.end() || it->second != link) co_return;
    links.erase(it);
    handlers.down(name);
    redial(name, kRedialFirst);
  }

  void watch_silence(const std::shared_ptr<Link>& link) {
    link->silence.expires_after(kDeadAfter);
    link->silence.async_wait([weak = std::weak_ptr(link)](boost::system::error_code error) {
      if (auto held = weak.lock(); held && !error) close(*held);
    });
  }

  void send(const std::string& peer, std::string_view frame) {
    auto it = links.find(peer);
    if (it == links.end() || it->second->closed || frame.size() > kMaxFrameBytes) return;
    auto link = it->second;
    if (link->queue.size() > kMaxQueuedFrameBytes) return close(*link);
    const auto bytes = static_cast<std::uint32_t>(frame.size());
    for (int shift = 0; shift < 32; shift += 8) link->queue.push_back(static_cast<char>(bytes >> shift & 0xff));
    link->queue += frame;
    if (link->writing.empty()) write_on(link);
  }

  void write_on(const std::shared_ptr<Link>& link) {
    link->writing.swap(link->queue);
    asio::async_write(*link->stream, asio::buffer(link->writing),
                      [this, link](boost::system::error_code error, std::size_t) {
                        link->writing.clear();
                        if (error) return close(*link);
                        if (!link->closed && !link->queue.empty()) write_on(link);
                      });
  }

  // ------------------------------------------------------------ calling

  void set_peers(std::map<std::string, std::string> wanted) {
    wanted.erase(self);
    addresses = std::move(wanted);
    std::vector<std::string> gone;
    for (auto& [name, link] : links) {
      // Who calls us may know more than we do: left alone.
      if (self < name && !addresses.contains(name)) gone.push_back(name);
    }
    for (const auto& name : gone) close(*links.at(name));
    for (const auto& [name, address] : addresses) {
      if (self < name && !links.contains(name) && !dials.contains(name)) dial(name);
    }
  }

  void redial(const std::string& name, milliseconds delay) {
    if (stopping || !(self < name) || !addresses.contains(name)) return;
    auto pause = std::make_shared<asio::steady_timer>(io, delay);
    pause->async_wait([this, pause, name](boost::system::error_code error) {
      if (!error && !stopping && addresses.contains(name) && !links.contains(name) && !dials.contains(name)) dial(name);
    });
  }

  void dial(const std::string& name) {
    const std::uint64_t number = next_dial++;
    dials[name] = number;
    asio::co_spawn(io, call(name, addresses.at(name), number), asio::detached);
  }

  asio::awaitable<void> call(std::string name, std::string address, std::uint64_t number) {
    auto fail = [&](const std::string& text) {
      if (dials[name] == number) dials.erase(name);
      log_once(name, name + " at " + address + ": " + text);
      redial(name, kRedialMax / 4);
    };
    auto where = stream::parse_address(address);
    if (!where) {
      fail(where.error().message());
      co_return;
    }
    tcp::resolver resolver(io);
    auto [resolve_error, endpoints] = co_await resolver.async_resolve(where->host, where->port, kAwait);
    if (resolve_error || endpoints.empty()) {
      fail(resolve_error.message());
      co_return;
    }
    auto socket = std::make_shared<tcp::socket>(io);
    asio::steady_timer limit(io, milliseconds(1000));
    limit.async_wait([socket](boost::system::error_code error) {
      boost::system::error_code ignored;
      if (!error) socket->close(ignored);
    });
    auto [error] = co_await socket->async_connect(endpoints.begin()->endpoint(), kAwait);
    limit.cancel();
    if (stopping) co_return;
    if (error) {
      fail(error.message());
      co_return;
    }
    co_await greet_and_serve(std::move(*socket), name + " at " + address, name, number);
  }
};

FrameHub::FrameHub(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<FrameHub>> FrameHub::start(const std::string& listen, const TlsFiles& tls, Handlers handlers) {
  auto impl = std::make_unique<Impl>(tls, std::move(handlers));
  BATON_TRY(impl->listen(listen));
  return std::unique_ptr<FrameHub>(new FrameHub(std::move(impl)));
}

FrameHub::~FrameHub() { stop(); }

void FrameHub::stop() { impl_->stop(); }

int FrameHub::port() const { return impl_->acceptor.local_endpoint().port(); }

void FrameHub::set_peers(std::map<std::string, std::string> addresses) {
  asio::post(impl_->io, [impl = impl_.get(), addresses = std::move(addresses)]() mutable { impl->set_peers(std::move(addresses)); });
}

void FrameHub::send(const std::string& peer, std::string frame) { impl_->send(peer, frame); }

void FrameHub::post(std::function<void()> work) { asio::post(impl_->io, std::move(work)); }

void FrameHub::set_timer(nanoseconds delay) {
  impl_->timer.expires_after(std::max(delay, nanoseconds{}));
  impl_->timer.async_wait([impl = impl_.get()](boost::system::error_code error) {
    if (!error && !impl->stopping) impl->handlers.timer();
  });
}

}  // namespace baton::transport
