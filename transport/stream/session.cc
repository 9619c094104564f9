#include "transport/stream/session.h"

#include <algorithm>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "transport/stream/messages.h"

namespace baton::transport::stream {
namespace {

using namespace std::chrono;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr double kBurst = 0.02;  // seconds of the rate that may go at once

}  // namespace

Session::Session(std::unique_ptr<TlsStream> stream, SessionConfig config)
    : stream_(std::move(stream)),
      config_(std::move(config)),
      wake_(stream_->get_executor()),
      resume_(stream_->get_executor()),
      throttle_(stream_->get_executor()),
      ping_timer_(stream_->get_executor()),
      last_received_(steady_clock::now()),
      tokens_at_(last_received_) {}

void Session::spawn(asio::awaitable<void> (Session::*loop)()) {
  asio::co_spawn(executor(), (this->*loop)(), [self = shared_from_this()](std::exception_ptr thrown) {
    if (!thrown) return;
    std::string what = "unknown exception";
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& e) {
      what = e.what();
    } catch (...) {
    }
    self->close(make_error(Code::kFailed, "page stream", self->config_.who + ": " + what));
  });
}

void Session::start(std::shared_ptr<SessionOwner> owner) {
  owner_ = std::move(owner);
  last_received_ = tokens_at_ = steady_clock::now();
  spawn(&Session::read_loop);
  spawn(&Session::write_loop);
  spawn(&Session::ping_loop);
}

void Session::close(Error error) {
  if (closed_) return;
  closed_ = true;
  boost::system::error_code ignored;
  stream_->next_layer().close(ignored);
  wake_.cancel();
  resume_.cancel();
  throttle_.cancel();
  ping_timer_.cancel();
  budget_.close();
  const auto owner = std::exchange(owner_, nullptr);
  if (owner) owner->on_closed(farewell_ ? farewell_error_ : error);
}

void Session::refuse(Error error) {
  if (closed_ || farewell_) return;
  farewell_ = true;
  farewell_error_ = error;
  resume_.cancel();
  enqueue(FrameType::kRefused, 0, 0, encode_error(error), 0);
  {
    std::lock_guard lock(queue_mutex_);
    sealed_ = true;
  }
  wake_.cancel();
}

void Session::enqueue(FrameType type, std::uint32_t channel, std::uint32_t request,
                      std::string payload, std::size_t cost) {
  bool wake = false;
  {
    std::lock_guard lock(queue_mutex_);
    if (sealed_) return;
    queue_.push_back(Item{type, channel, request, std::move(payload), cost, 0});
    wake = !std::exchange(wake_posted_, true);
  }
  if (wake) asio::post(executor(), [self = shared_from_this()] { self->wake_.cancel(); });
}

void Session::resume_reading() {
  asio::post(executor(), [self = shared_from_this()] { self->resume_.cancel(); });
}

void Session::set_rate(std::uint64_t rate_bytes_per_s) {
  if (rate_bytes_per_s != 0) rate_bytes_per_s = std::max(rate_bytes_per_s, kMinRateBytesPerS);
  rate_.store(rate_bytes_per_s);
  asio::post(executor(), [self = shared_from_this()] { self->throttle_.cancel(); });
}

bool Session::queue_empty() {
  std::lock_guard lock(queue_mutex_);
  return queue_.empty();
}

std::size_t Session::fill(std::string& buffer) {
  std::size_t cost = 0;
  buffer.clear();
  std::lock_guard lock(queue_mutex_);
  wake_posted_ = false;
  while (!queue_.empty() && buffer.size() < kWriteBufferBytes) {
    Item& item = queue_.front();
    const std::size_t part = std::min(item.payload.size() - item.written, kPartBytes);
    const bool more = item.written + part < item.payload.size();
    const auto bytes = std::as_bytes(std::span(item.payload)).subspan(item.written, part);
    const auto head = encode_header(item.type, more, item.channel, item.request, bytes);
    buffer.append(reinterpret_cast<const char*>(head.data()), head.size());
    buffer.append(item.payload, item.written, part);
    item.written += part;
    if (more) continue;
    cost += item.cost;
    queue_.pop_front();
  }
  return cost;
}

asio::awaitable<void> Session::wait_for_tokens(std::size_t bytes) {
  while (!closed_) {
    const auto rate = static_cast<double>(rate_.load());
    const auto now = steady_clock::now();
    if (rate == 0) {
      tokens_ = 0;
      tokens_at_ = now;
      co_return;
    }
    const double burst = std::max(rate * kBurst, static_cast<double>(kThrottledChunkBytes));
    tokens_ = std::min(burst, tokens_ + duration<double>(now - tokens_at_).count() * rate);
    tokens_at_ = now;
    const auto needed = static_cast<double>(bytes);
    if (tokens_ >= needed) {
      tokens_ -= needed;
      co_return;
    }
    throttle_.expires_after(
        duration_cast<steady_clock::duration>(duration<double>((needed - tokens_) / rate)) +
        microseconds(50));
    co_await throttle_.async_wait(kAwait);
  }
}

asio::awaitable<void> Session::write_loop() {
  std::string buffer;
  while (!closed_) {
    const std::size_t cost = fill(buffer);
    if (buffer.empty() || tls_failed_) {
      if (farewell_) {
        boost::system::error_code ignored;
        stream_->next_layer().shutdown(tcp::socket::shutdown_send, ignored);
        const auto until = steady_clock::now() + kFarewellTime;
        while (!closed_ && steady_clock::now() < until) {
          wake_.expires_at(until);
          co_await wake_.async_wait(kAwait);
        }
        close(farewell_error_);
        co_return;
      }
      wake_.expires_at(steady_clock::time_point::max());
      co_await wake_.async_wait(kAwait);
      continue;
    }
    std::size_t done = 0;
    while (done < buffer.size() && !closed_) {
      const bool throttled = rate_.load() != 0;
      const std::size_t chunk =
          throttled ? std::min(buffer.size() - done, kThrottledChunkBytes) : buffer.size() - done;
      if (throttled) co_await wait_for_tokens(chunk);
      if (closed_) co_return;
      auto [error, bytes] =
          co_await asio::async_write(*stream_, asio::buffer(buffer.data() + done, chunk), kAwait);
      if (error && error.category() != asio::error::get_system_category()) {
        tls_failed_ = true;  // the reader finds it too; a close before its alert is out loses it
        break;
      }
      if (error) {
        close(stream_error(error, config_.who, "write page stream", config_.tls));
        co_return;
      }
      bytes_sent_.fetch_add(bytes, std::memory_order_relaxed);
      done += bytes;
    }
    if (cost != 0) budget_.release(cost);
  }
}

asio::awaitable<Result<void>> Session::read_bytes(char* out, std::size_t bytes,
                                                  std::string_view inside) {
  std::size_t done = 0;
  while (done < bytes) {
    auto [error, got] =
        co_await stream_->async_read_some(asio::buffer(out + done, bytes - done), kAwait);
    if (error) {
      const bool midway = done != 0 || !inside.empty();
      if (error == asio::error::eof && midway)
        co_return make_error(Code::kCorrupt, "read page stream",
                             config_.who + ": truncated " + std::string(inside) + " frame");
      Error lost = stream_error(error, config_.who, "read page stream", config_.tls);
      if (midway) lost.subject += " in the middle of a " + std::string(inside) + " frame";
      co_return lost;
    }
    done += got;
    last_received_ = steady_clock::now();
    bytes_received_.fetch_add(got, std::memory_order_relaxed);
  }
  co_return Result<void>();
}

asio::awaitable<Result<void>> Session::read_frame(FrameHeader& header, std::string& payload) {
  std::array<std::byte, kHeaderBytes> head{};
  Result<void> read = co_await read_bytes(reinterpret_cast<char*>(head.data()), head.size(), "");
  if (!read) co_return read;
  Result<FrameHeader> decoded = decode_header(head);
  if (!decoded) co_return std::move(decoded).error();
  header = *decoded;
  payload.resize(header.payload_bytes);
  read = co_await read_bytes(payload.data(), payload.size(), frame_name(header.type));
  if (!read) co_return read;
  co_return check_payload(header, std::as_bytes(std::span(payload)));
}

Result<void> Session::take_frame(const FrameHeader& header, std::string payload) {
  if (header.type == FrameType::kPing) {
    enqueue(FrameType::kPong, 0, 0, {}, 0);
    return {};
  }
  if (header.type == FrameType::kPong) return {};
  if (header.type == FrameType::kRefused && header.channel == 0 && header.request == 0) {
    close(decode_error(payload));
    return {};
  }
  Message message;
  BATON_ASSIGN(const bool whole, assembler_.add(header, std::move(payload), message));
  if (!whole) return {};
  message.arrived = steady_clock::now();
  return owner_->on_message(std::move(message));
}

asio::awaitable<void> Session::read_loop() {
  FrameHeader header;
  while (!closed_) {
    std::string payload;
    if (farewell_) {  // drained unread, so that our refusal is not lost to a reset
      payload.resize(kPartBytes);
      auto [error, bytes] =
          co_await stream_->next_layer().async_read_some(asio::buffer(payload), kAwait);
      if (error) {
        close(farewell_error_);
        co_return;
      }
      continue;
    }
    Result<void> taken = co_await read_frame(header, payload);
    if (closed_) co_return;
    if (farewell_) continue;
    if (taken) taken = take_frame(header, std::move(payload));
    if (!taken) {
      Error error = std::move(taken).error();
      if (error.code == Code::kUnreachable || error.code == Code::kNotAllowed) {
        close(std::move(error));
        co_return;
      }
      refuse(std::move(error));
      continue;
    }
    while (!closed_ && !farewell_ && owner_->reading_paused()) {
      paused_ = true;
      resume_.expires_at(steady_clock::time_point::max());
      co_await resume_.async_wait(kAwait);
      last_received_ = steady_clock::now();
    }
    paused_ = false;
  }
}

asio::awaitable<void> Session::ping_loop() {
  while (!closed_) {
    ping_timer_.expires_after(config_.ping_interval);
    co_await ping_timer_.async_wait(kAwait);
    if (closed_) co_return;
    const auto silent = steady_clock::now() - last_received_;
    if (!paused_ && silent > config_.dead_after) {
      close(make_error(Code::kUnreachable, "page stream",
                       config_.who + " has been silent for " +
                           std::to_string(duration_cast<milliseconds>(silent).count()) + " ms",
                       "Is it switched off, or the link cut?"));
      co_return;
    }
    if (!farewell_ && queue_empty()) enqueue(FrameType::kPing, 0, 0, {}, 0);
  }
}

}  // namespace baton::transport::stream
