#include "transport/stream/server.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/log.h"

namespace baton::transport::stream {
namespace {

using namespace std::chrono;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

}  // namespace

Server::Server(TlsFiles tls, StreamHandler& handler, StreamServerOptions options)
    : tls_(std::move(tls)),
      handler_(handler),
      options_(options),
      workers_(static_cast<std::size_t>(std::max(1, options.worker_threads))) {}

Server::~Server() { stop(); }

Result<void> Server::start(const std::string& address) {
  BATON_ASSIGN(const HostPort where, parse_address(address));
  BATON_ASSIGN(context_, make_context(tls_, true));
  boost::system::error_code error;
  tcp::resolver resolver(io_);
  const auto endpoints = resolver.resolve(where.host, where.port, tcp::resolver::passive, error);
  if (error || endpoints.empty())
    return make_error(Code::kInvalid, "listen", address + ": " + error.message());
  const tcp::endpoint endpoint = endpoints.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) ::fcntl(acceptor_.native_handle(), F_SETFD, FD_CLOEXEC);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error)
    return make_error(error == asio::error::address_in_use ? Code::kConflict : Code::kFailed, "listen",
                      address + ": " + error.message(),
                      "Is the address of this machine, and is another program using the port?");
  port_ = acceptor_.local_endpoint().port();
  asio::co_spawn(io_, accept_loop(), asio::detached);
  io_thread_ = std::thread([this] { io_.run(); });
  return {};
}

void Server::stop() {
  std::lock_guard lock(stop_mutex_);
  if (std::exchange(stopped_, true)) return;
  asio::post(io_, [this] {
    stopping_ = true;
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    for (tcp::socket* socket : greeting_) socket->close(ignored);
    const auto live = live_;
    for (const auto& connection : live)
      connection->session().close(make_error(Code::kCancelled, "page stream", "the server stops"));
  });
  if (io_thread_.joinable()) io_thread_.join();
  workers_.join();
}

std::size_t Server::connections() const { return live_count_.load(); }

void Server::report(const Error& error) {
  spdlog::warn("{}", error.message());
  handler_.on_stream_error(error);
}

asio::awaitable<void> Server::accept_loop() {
  asio::steady_timer pause(io_);
  while (!stopping_) {
    auto [error, socket] = co_await acceptor_.async_accept(kAwait);
    if (stopping_) co_return;
    if (error) {  // out of descriptors, or the peer is gone again: not a reason to stop
      spdlog::warn("page stream: accept: {}", error.message());
      pause.expires_after(milliseconds(100));
      co_await pause.async_wait(kAwait);
      continue;
    }
    if (greeting_.size() + live_.size() >= kMaxStreamConnections) {
      report(make_error(Code::kNoSpace, "accept page stream",
                        "more than " + std::to_string(kMaxStreamConnections) + " connections"));
      continue;  // and the socket closes
    }
    asio::co_spawn(io_, greet(std::move(socket)), asio::detached);
  }
}

// TLS, roles and greetings. An error is for our log; where the peer can still read, it has
// been told.
asio::awaitable<Result<void>> Server::greet_peer(TlsStream& stream, StreamPeer& peer) {
  const std::string who = peer.address;
  Result<Identity> identity = co_await handshake(stream, true, tls_, who);
  if (!identity) co_return std::move(identity).error();
  peer.identity = std::move(*identity);

  std::array<std::byte, kGreetingBytes> greeting = encode_greeting();
  Result<void> step = co_await write_everything(stream, asio::buffer(greeting), who, tls_);
  if (step) step = co_await read_all(stream, asio::buffer(greeting), who, tls_);
  if (!step) co_return step;
  step = check_greeting(greeting);
  if (step && peer.identity.role != Role::kNode)
    step = make_error(Code::kNotAllowed, "open page stream",
                      "only nodes may; " + peer.identity.to_string() + " is none");
  const std::string payload = step ? std::string() : encode_error(step.error());
  const auto head = encode_header(step ? FrameType::kWelcome : FrameType::kRefused, false, 0, 0,
                                  std::as_bytes(std::span(payload)));
  std::string frame(reinterpret_cast<const char*>(head.data()), head.size());
  frame += payload;
  Result<void> sent = co_await write_everything(stream, asio::buffer(frame), who, tls_);
  if (!step) {
    boost::system::error_code ignored;
    stream.next_layer().shutdown(tcp::socket::shutdown_send, ignored);
    char rest[256];
    for (;;) {  // until the peer has read it and closes; the timer bounds this
      auto [error, bytes] = co_await stream.next_layer().async_read_some(asio::buffer(rest), kAwait);
      if (error) break;
    }
    Error error = std::move(step).error();
    error.subject = who + ": " + error.subject;
    co_return error;
  }
  co_return sent;
}

asio::awaitable<void> Server::greet(tcp::socket socket) {
  auto self = shared_from_this();
  boost::system::error_code ignored;
  StreamPeer peer;
  const auto endpoint = socket.remote_endpoint(ignored);
  peer.address = endpoint.address().to_string() + ":" + std::to_string(endpoint.port());
  tune_socket(socket);
  auto stream = std::make_unique<TlsStream>(std::move(socket), *context_);
  tcp::socket* raw = &stream->next_layer();
  greeting_.insert(raw);
  asio::steady_timer timer(io_, options_.handshake_timeout);
  timer.async_wait([raw](boost::system::error_code error) {
    boost::system::error_code unused;
    if (!error) raw->close(unused);
  });
  Result<void> greeted;
  try {
    greeted = co_await greet_peer(*stream, peer);
  } catch (const std::exception& e) {
    greeted = make_error(Code::kFailed, "accept page stream", peer.address + ": " + e.what());
  }
  greeting_.erase(raw);
  const bool timed_out = timer.expiry() <= steady_clock::now();
  timer.cancel();
  if (stopping_) co_return;
  if (!greeted || timed_out) {
    report(greeted ? make_error(Code::kTimedOut, "accept page stream", peer.address)
                   : greeted.error());
    co_return;
  }
  const std::string who = peer.identity.to_string() + " (" + peer.address + ")";
  auto session = std::make_shared<Session>(
      std::move(stream), SessionConfig{tls_, who, options_.ping_interval, options_.dead_after});
  auto connection = std::make_shared<ServerConnection>(self, session, std::move(peer));
  live_.insert(connection);
  live_count_ = live_.size();
  session->start(connection);
}

void Server::gone(const std::shared_ptr<ServerConnection>& connection, const Error& error) {
  live_.erase(connection);
  live_count_ = live_.size();
  if (!stopping_) report(error);
}

// ------------------------------------------------------------ a connection

ServerConnection::ServerConnection(std::shared_ptr<Server> server, std::shared_ptr<Session> session,
                                   StreamPeer peer)
    : server_(std::move(server)), session_(std::move(session)), peer_(std::move(peer)) {
  channels_[0] = std::make_shared<Channel>(asio::make_strand(server_->workers()), 0);
}

bool ServerConnection::reading_paused() {
  if (in_flight_.load() <= kMaxInFlightBytes) return false;
  waiting_.store(true);
  return in_flight_.load() > kMaxInFlightBytes;
}

void ServerConnection::on_closed(const Error& error) {
  for (auto& [id, channel] : channels_)
    asio::post(channel->strand, [channel, keep = shared_from_this()] { channel->receiver.reset(); });
  channels_.clear();
  server_->gone(shared_from_this(), error);
}

void ServerConnection::run_job(std::shared_ptr<Channel> channel, Job job, Message message) {
  const std::size_t cost = message.payload.size() + sizeof(Message);
  in_flight_.fetch_add(cost);
  asio::post(channel->strand, [self = shared_from_this(), channel, job, cost,
                               message = std::move(message)]() mutable {
    try {
      (self.get()->*job)(*channel, message);
    } catch (const std::exception& e) {
      self->end(make_error(Code::kFailed, "page stream", e.what()));
    }
    message = Message{};
    const std::size_t before = self->in_flight_.fetch_sub(cost);
    if (before - cost <= kMaxInFlightBytes && self->waiting_.exchange(false))
      self->session_->resume_reading();
  });
}

Result<void> ServerConnection::on_message(Message message) {
  const std::string what = std::string(frame_name(message.type)) + " message of channel " +
                           std::to_string(message.channel);
  auto corrupt = [&](std::string_view why) -> Error {
    return make_error(Code::kCorrupt, "read page stream", what + ": " + std::string(why));
  };
  Job job = nullptr;
  bool fetch = false;
  switch (message.type) {
    case FrameType::kOpen: {
      if (message.channel <= highest_channel_) return corrupt("the channel has been used");
      if (channels_.size() > kMaxChannels) return corrupt("too many channels");
      highest_channel_ = message.channel;
      auto channel =
          std::make_shared<Channel>(asio::make_strand(server_->workers()), message.channel);
      channels_[message.channel] = channel;
      run_job(channel, &ServerConnection::open, std::move(message));
      return {};
    }
    case FrameType::kCloseWorkload: job = &ServerConnection::close_workload; break;
    case FrameType::kNodeQuery: job = &ServerConnection::nodes; break;
    case FrameType::kHaveQuery: job = &ServerConnection::have; break;
    case FrameType::kPages: job = &ServerConnection::pages; break;
    case FrameType::kCheckpoint: job = &ServerConnection::checkpoint; break;
    case FrameType::kFetchCheckpoint:
      job = &ServerConnection::fetch_checkpoint;
      fetch = true;
      break;
    case FrameType::kFetchPages:
      job = &ServerConnection::fetch_pages;
      fetch = true;
      break;
    default: return corrupt("not for a receiver");
  }
  if (fetch != (message.channel == 0)) return corrupt("wrong channel");
  auto at = channels_.find(message.channel);
  if (at == channels_.end()) {
    if (message.channel <= highest_channel_) return {};  // crossed with its closing
    return corrupt("no such channel");
  }
  auto channel = at->second;
  if (message.type == FrameType::kCloseWorkload) channels_.erase(at);
  run_job(std::move(channel), job, std::move(message));
  return {};
}

void ServerConnection::reply(const Message& to, FrameType type, std::string payload) {
  // Waits only while the peer does not take its answers; its silence closes the budget.
  const std::size_t cost = payload.size() + 1;
  if (session_->budget().acquire(cost, steady_clock::time_point::max()) != ByteBudget::Taken::kYes)
    return;
  session_->enqueue(type, to.channel, to.request, std::move(payload), cost);
}

void ServerConnection::end(Error error) {
  asio::post(session_->executor(),
             [session = session_, error = std::move(error)] { session->refuse(error); });
}

// ------------------------------------------------------------ jobs

void ServerConnection::open(Channel& channel, Message& message) {
  auto request = decode_open(message.payload);
  if (!request) return end(request.error());
  channel.request = std::move(*request);
  auto opened = server_->handler().on_open(peer_, channel.request);
  if (!opened) {
    // A closed channel's id is not used again; what crosses with this is dropped.
    asio::post(session_->executor(), [self = shared_from_this(), id = channel.id] {
      self->channels_.erase(id);
    });
    return reply_error(message, opened.error());
  }
  channel.receiver = std::move(opened->channel);
  channel.hasher =
      std::make_unique<dedup::PageHasher>(channel.request.kind, channel.request.hash_key);
  reply(message, FrameType::kOpened, encode_opened(opened->reply, channel.request.kind));
}

void ServerConnection::close_workload(Channel& channel, Message&) { channel.receiver.reset(); }

void ServerConnection::nodes(Channel& channel, Message& message) {
  if (!channel.receiver) return;
  auto query = decode_node_query(message.payload);
  if (!query) return end(query.error());
  auto children = channel.receiver->on_nodes(*query);
  if (!children) return reply_error(message, children.error());
  reply(message, FrameType::kNodeReply, encode_node_reply(*children, channel.request.kind));
}

void ServerConnection::have(Channel& channel, Message& message) {
  if (!channel.receiver) return;
  auto digests = decode_digests(message.payload, kMaxHavePerQuery, channel.request.kind,
                                FrameType::kHaveQuery);
  if (!digests) return end(digests.error());
  auto known = channel.receiver->on_have(*digests);
  if (!known) return reply_error(message, known.error());
  reply(message, FrameType::kHaveReply, encode_bitmap(*known));
}

void ServerConnection::pages(Channel& channel, Message& message) {
  if (!channel.receiver) return;
  auto pages = channel.codec.decode_pages(message.payload, channel.request.kind);
  if (!pages) return end(pages.error());
  std::vector<PageRef> refs(pages->digests.size());
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const std::byte* page = pages->bytes.data() + i * dedup::kPageBytes;
    refs[i] = PageRef{pages->digests[i], page};
    if (channel.hasher->page(dedup::PageView(page, dedup::kPageBytes)) != refs[i].digest) {
      channel.problem = make_error(Code::kCorrupt, "receive pages",
                                   channel.request.workload + ": a page does not have the digest " +
                                       refs[i].digest.to_hex(channel.request.kind));
      return;  // none of the batch
    }
  }
  auto taken = channel.receiver->on_pages(refs);
  if (!taken && !channel.problem) channel.problem = std::move(taken).error();
}

void ServerConnection::checkpoint(Channel& channel, Message& message) {
  const auto arrived = message.arrived;
  auto checkpoint = decode_checkpoint(std::move(message.payload));
  if (!checkpoint) return end(checkpoint.error());
  const std::uint64_t seq = checkpoint->seq;
  tl::expected<AckInfo, Nack> answer =
      tl::unexpected(Nack{make_error(Code::kNotFound, "receive checkpoint", "the workload is not open"), {}});
  const auto began = steady_clock::now();
  if (channel.problem)
    answer = tl::unexpected(Nack{*std::exchange(channel.problem, std::nullopt), {}});
  else if (channel.receiver)
    answer = channel.receiver->on_checkpoint(seq, std::move(checkpoint->record));
  if (!answer)
    return reply(message, FrameType::kNack, encode_nack(seq, answer.error(), channel.request.kind));
  answer->queued = began - arrived;
  if (answer->commit.count() == 0) answer->commit = steady_clock::now() - began;
  reply(message, FrameType::kAck, encode_ack(seq, *answer));
}

void ServerConnection::fetch_checkpoint(Channel&, Message& message) {
  auto fetch = decode_fetch_checkpoint(message.payload);
  if (!fetch) return end(fetch.error());
  auto record = server_->handler().on_fetch_checkpoint(peer_, fetch->workload, fetch->seq);
  if (record && record->size() > kMaxCheckpointBytes)
    record = make_error(Code::kNoSpace, "fetch checkpoint", fetch->workload + ": too many bytes");
  if (!record) return reply_error(message, record.error());
  reply(message, FrameType::kFetchedCheckpoint, std::move(*record));
}

void ServerConnection::fetch_pages(Channel& channel, Message& message) {
  auto fetch = decode_fetch_pages(message.payload);
  if (!fetch) return end(fetch.error());
  std::vector<std::byte> bytes(fetch->digests.size() * dedup::kPageBytes);
  std::vector<bool> present(fetch->digests.size(), false);
  auto fetched = server_->handler().on_fetch_pages(peer_, fetch->workload, fetch->domain,
                                                   fetch->kind, fetch->digests, bytes, present);
  if (!fetched) return reply_error(message, fetched.error());
  reply(message, FrameType::kFetchedPages, channel.codec.encode_fetched(present, bytes));
}

}  // namespace baton::transport::stream
