// ByteBudget: how many bytes may wait at once. Takers are served in the order they came;
// one that asks for more than the whole budget is served when nothing else is out.
// Threads: any; acquire blocks.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>

namespace baton::transport::stream {

class ByteBudget {
 public:
  enum class Taken { kYes, kTimedOut, kClosed };

  explicit ByteBudget(std::size_t limit_bytes) : limit_(limit_bytes) {}

  Taken acquire(std::size_t bytes, std::chrono::steady_clock::time_point deadline) {
    const std::size_t cost = std::min(bytes, limit_);
    std::unique_lock lock(mutex_);
    int place = 0;
    waiting_.push_back(&place);
    const bool in_time = changed_.wait_until(lock, deadline, [&] {
      return closed_ || (waiting_.front() == &place && used_ + cost <= limit_);
    });
    std::erase(waiting_, &place);
    if (in_time && !closed_) used_ += cost;
    if (!waiting_.empty()) changed_.notify_all();
    if (closed_) return Taken::kClosed;
    return in_time ? Taken::kYes : Taken::kTimedOut;
  }
  // `bytes` as they were acquired.
  void release(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    used_ -= std::min(std::min(bytes, limit_), used_);
    changed_.notify_all();
  }
  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  std::size_t used() const {
    std::lock_guard lock(mutex_);
    return used_;
  }

 private:
  const std::size_t limit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<int*> waiting_;  // by address of the taker's own variable
  std::size_t used_ = 0;
  bool closed_ = false;
};

}  // namespace baton::transport::stream
