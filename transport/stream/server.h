// The receiving half of the page stream. ServerConnection: one peer; its channels' jobs run
// on the server's workers, one at a time per channel, in the order sent.
// Threads: one io thread, `worker_threads` workers. A connection whose jobs hold more than
// kMaxInFlightBytes is not read from until they are done.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>

#include "transport/page_stream.h"
#include "transport/stream/messages.h"
#include "transport/stream/session.h"

namespace baton::transport::stream {

class Server;

class ServerConnection final : public SessionOwner,
                               public std::enable_shared_from_this<ServerConnection> {
 public:
  ServerConnection(std::shared_ptr<Server> server, std::shared_ptr<Session> session, StreamPeer peer);

  Result<void> on_message(Message message) override;
  bool reading_paused() override;
  void on_closed(const Error& error) override;
  Session& session() { return *session_; }

 private:
  using Strand = asio::strand<asio::thread_pool::executor_type>;
  struct Channel {
    Channel(Strand s, std::uint32_t number) : strand(std::move(s)), id(number) {}
    Strand strand;
    const std::uint32_t id;
    // The rest belongs to the strand.
    OpenRequest request;
    std::unique_ptr<ReceiverChannel> receiver;
    std::unique_ptr<dedup::PageHasher> hasher;
    PageCodec codec;
    std::optional<Error> problem;  // of pages since the last checkpoint
  };
  using Job = void (ServerConnection::*)(Channel&, Message&);

  void run_job(std::shared_ptr<Channel> channel, Job job, Message message);
  void reply(const Message& to, FrameType type, std::string payload);
  void reply_error(const Message& to, const Error& error) { reply(to, FrameType::kRefused, encode_error(error)); }
  void end(Error error);  // worker: a message that breaks the protocol

  // Jobs, on the channel's strand.
  void open(Channel& channel, Message& message);
  void close_workload(Channel& channel, Message& message);
  void nodes(Channel& channel, Message& message);
  void have(Channel& channel, Message& message);
  void pages(Channel& channel, Message& message);
  void checkpoint(Channel& channel, Message& message);
  void fetch_checkpoint(Channel& channel, Message& message);
  void fetch_pages(Channel& channel, Message& message);

  const std::shared_ptr<Server> server_;
  const std::shared_ptr<Session> session_;
  const StreamPeer peer_;
  // io thread:
  std::map<std::uint32_t, std::shared_ptr<Channel>> channels_;  // 0: fetches
  std::uint32_t highest_channel_ = 0;
  std::atomic<std::size_t> in_flight_{0};
  std::atomic<bool> waiting_{false};
};

class Server : public std::enable_shared_from_this<Server> {
 public:
  Server(TlsFiles tls, StreamHandler& handler, StreamServerOptions options);
  ~Server();

  Result<void> start(const std::string& address);
  void stop();
  int port() const { return port_; }
  std::size_t connections() const;

  StreamHandler& handler() { return handler_; }
  asio::thread_pool& workers() { return workers_; }
  void gone(const std::shared_ptr<ServerConnection>& connection, const Error& error);

 private:
  asio::awaitable<void> accept_loop();
  asio::awaitable<void> greet(tcp::socket socket);
  asio::awaitable<Result<void>> greet_peer(TlsStream& stream, StreamPeer& peer);
  void report(const Error& error);

  const TlsFiles tls_;
  StreamHandler& handler_;
  const StreamServerOptions options_;
  asio::io_context io_{1};
  asio::thread_pool workers_;
  std::shared_ptr<asio::ssl::context> context_;
  tcp::acceptor acceptor_{io_};
  std::thread io_thread_;
  int port_ = 0;
  std::mutex stop_mutex_;
  bool stopped_ = false;  // guarded by stop_mutex_
  // io thread:
  bool stopping_ = false;
  std::set<tcp::socket*> greeting_;  // sockets that are no sessions yet
  std::set<std::shared_ptr<ServerConnection>> live_;
  std::atomic<std::size_t> live_count_{0};
};

}  // namespace baton::transport::stream
