// The sending half of the page stream: what PageStreamConnection and PageStreamChannel
// hold. Threads: io (the session), pack (compression, in the order queued), events
// (callbacks). Locks: Client::mutex_ guards requests, channels and the loss; a channel's
// unanswered checkpoints are guarded by it too. Callbacks run without locks.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include "transport/page_stream.h"
#include "transport/stream/messages.h"
#include "transport/stream/session.h"

namespace baton::transport::stream {

using Deadline = std::chrono::steady_clock::time_point;

class Client;

struct ClientChannel {
  std::shared_ptr<Client> client;
  std::uint32_t id = 0;
  OpenRequest request;
  OpenReply opened;
  PageStreamConnection::OnAck on_ack;
  // Guarded by Client::mutex_.
  std::map<std::uint64_t, Deadline> unanswered;  // seq to when it was sent
  bool closed = false;
};

class Client final : public SessionOwner, public std::enable_shared_from_this<Client> {
 public:
  Client(TlsFiles tls, StreamOptions options);
  ~Client() override;

  Result<void> connect(const std::string& address, std::string_view expected_node);
  void close();
  bool connected() const;
  const Identity& peer() const { return peer_; }

  Result<std::shared_ptr<ClientChannel>> open(const OpenRequest& request,
                                              PageStreamConnection::OnAck on_ack, Deadline deadline);
  void close_channel(const std::shared_ptr<ClientChannel>& channel);
  // Sends a request and waits for its answer of type `expected`; lets `until_queued` go once
  // the request has its place in the queue.
  Result<std::string> ask(FrameType type, FrameType expected, std::uint32_t channel,
                          std::string payload, Deadline deadline,
                          std::unique_lock<std::timed_mutex>* until_queued = nullptr);
  Result<void> send_pages(ClientChannel& channel, std::span<const PageRef> pages, Deadline deadline);
  Result<void> send_checkpoint(ClientChannel& channel, std::uint64_t seq, std::string record,
                               Deadline deadline);
  void set_rate(std::uint64_t rate_bytes_per_s);
  StreamCounters counters() const;
  void count_known(std::uint64_t pages) { pages_known_ += pages; }

  Result<void> on_message(Message message) override;
  bool reading_paused() override { return false; }
  void on_closed(const Error& error) override;

 private:
  struct Work {
    FrameType type{};
    std::uint32_t channel = 0;
    std::uint32_t request = 0;
    std::string payload;  // of PAGES: the pages themselves, to be packed
    std::vector<dedup::Digest> digests;
    dedup::DigestKind kind = dedup::DigestKind::kXxh3_128;
    std::size_t cost = 0;
  };
  struct Pending {
    FrameType expected{};
    bool done = false;
    Result<std::string> answer{Error{}};
  };

  asio::awaitable<Result<std::shared_ptr<Session>>> establish(HostPort where, std::string who,
                                                              std::string expected_node);
  void pack_loop();
  void event_loop();
  void post_event(std::function<void()> event);
  Result<void> queue_work(Work work, std::size_t bytes, Deadline deadline);
  Error lost_error() const;  // mutex_ held
  Result<void> on_answer(Message& message);
  Result<void> on_ack(Message& message);
  void answer_checkpoint(const std::shared_ptr<ClientChannel>& channel, std::uint64_t seq,
                         tl::expected<AckInfo, Nack> answer);

  const TlsFiles tls_;
  const StreamOptions options_;
  Identity peer_;
  std::string who_;

  asio::io_context io_{1};  // before the session, whose socket and timers hang on it
  std::shared_ptr<Session> session_;
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> io_guard_;
  std::thread io_thread_, pack_thread_, event_thread_;

  mutable std::mutex mutex_;
  std::condition_variable answered_;
  std::map<std::uint32_t, Pending*> pending_;
  std::map<std::uint32_t, std::shared_ptr<ClientChannel>> channels_;
  std::optional<Error> lost_;
  bool closing_ = false;
  std::uint32_t next_request_ = 1, next_channel_ = 1;

  std::mutex work_mutex_;
  std::condition_variable work_ready_;
  std::deque<Work> work_;
  bool work_stopped_ = false;

  std::mutex event_mutex_;
  std::condition_variable event_ready_;
  std::deque<std::function<void()>> events_;
  bool events_stopped_ = false;

  std::timed_mutex open_mutex_;  // channels are opened in the order of their numbers
  std::mutex close_mutex_;

  std::atomic<std::uint64_t> pages_sent_{0}, page_bytes_sent_{0}, pages_known_{0}, acked_{0},
      nacked_{0};
};

}  // namespace baton::transport::stream
