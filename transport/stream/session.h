// Session: one established connection of the page stream, of either side. Reads frames,
// checks and assembles them, writes a queue of messages within a bandwidth limit, and
// notices a peer that went silent.
//
// Ends once, with an Error: a lost link, a peer silent for dead_after, a bad frame
// (kCorrupt; the peer is told), close(). Nothing of a bad frame reaches the owner.
// Threads: all work is done on the io thread; functions marked "any thread" may be called
// by others. Lives as long as its coroutines; holds its owner until on_closed.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include <boost/asio/steady_timer.hpp>

#include "base/error.h"
#include "transport/identity.h"
#include "transport/stream/budget.h"
#include "transport/stream/frame.h"
#include "transport/stream/tls.h"

namespace baton::transport::stream {

inline constexpr std::size_t kWriteBufferBytes = 256u << 10;
inline constexpr std::size_t kPartBytes = 256u << 10;       // of a message in several frames
inline constexpr std::size_t kThrottledChunkBytes = 16u << 10;
inline constexpr std::chrono::milliseconds kFarewellTime{500};

// All called on the io thread; must not block.
class SessionOwner {
 public:
  virtual ~SessionOwner() = default;
  // An error ends the connection, and the peer is told.
  virtual Result<void> on_message(Message message) = 0;
  // True: no more messages until Session::resume_reading.
  virtual bool reading_paused() = 0;
  virtual void on_closed(const Error& error) = 0;  // once
};

struct SessionConfig {
  TlsFiles tls;
  std::string who;  // the peer, for messages
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds dead_after{4000};
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::unique_ptr<TlsStream> stream, SessionConfig config);

  void start(std::shared_ptr<SessionOwner> owner);  // io thread
  void close(Error error);                          // io thread
  // Tells the peer why, then closes. io thread.
  void refuse(Error error);

  asio::any_io_executor executor() { return stream_->get_executor(); }

  // Any thread. Queues a message; `cost` was acquired from budget() and is given back once
  // the message is written.
  void enqueue(FrameType type, std::uint32_t channel, std::uint32_t request, std::string payload,
               std::size_t cost);
  void resume_reading();  // any thread
  void set_rate(std::uint64_t rate_bytes_per_s);  // any thread
  ByteBudget& budget() { return budget_; }
  std::uint64_t bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_received() const { return bytes_received_.load(std::memory_order_relaxed); }

 private:
  struct Item {
    FrameType type{};
    std::uint32_t channel = 0;
    std::uint32_t request = 0;
    std::string payload;
    std::size_t cost = 0;
    std::size_t written = 0;
  };

  asio::awaitable<void> read_loop();
  asio::awaitable<Result<void>> read_bytes(char* out, std::size_t bytes, std::string_view inside);
  asio::awaitable<Result<void>> read_frame(FrameHeader& header, std::string& payload);
  Result<void> take_frame(const FrameHeader& header, std::string payload);
  asio::awaitable<void> write_loop();
  asio::awaitable<void> wait_for_tokens(std::size_t bytes);
  asio::awaitable<void> ping_loop();
  // Fills the write buffer with frames; returns the cost of the items that are now whole in it.
  std::size_t fill(std::string& buffer);
  bool queue_empty();
  void spawn(asio::awaitable<void> (Session::*loop)());

  std::unique_ptr<TlsStream> stream_;
  const SessionConfig config_;
  std::shared_ptr<SessionOwner> owner_;
  ByteBudget budget_{kMaxQueuedBytes};
  Assembler assembler_;

  std::mutex queue_mutex_;
  std::deque<Item> queue_;      // guarded by queue_mutex_
  bool wake_posted_ = false;    // guarded by queue_mutex_
  bool sealed_ = false;         // guarded by queue_mutex_; a refusal is the last message

  asio::steady_timer wake_, resume_, throttle_, ping_timer_;
  bool closed_ = false;
  bool farewell_ = false;       // only what is queued is still written; what comes is dropped
  Error farewell_error_;
  bool tls_failed_ = false;     // nothing can be written any more
  bool paused_ = false;
  std::chrono::steady_clock::time_point last_received_;
  std::chrono::steady_clock::time_point tokens_at_;
  double tokens_ = 0;
  std::atomic<std::uint64_t> rate_{0};
  std::atomic<std::uint64_t> bytes_sent_{0}, bytes_received_{0};
};

}  // namespace baton::transport::stream
