// Watchdog: no freeze outlives its reason. Who freezes a program arms a guard; when it is
// not disarmed in time, `late` runs (it asks the capture to end); when even that does not
// help for as long again, the process ends itself: the kernel then detaches every traced
// thread, injected code returns by itself, and the programs run on.
//
// Threads: one of its own. `late` runs on it, under its lock, and must not block.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

namespace baton::warden {

class Watchdog {
 public:
  Watchdog();
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  class Guard {
   public:
    Guard(Watchdog& dog, std::uint64_t id) : dog_(dog), id_(id) {}
    ~Guard() { dog_.disarm(id_); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Watchdog& dog_;
    std::uint64_t id_;
  };
  [[nodiscard]] Guard arm(std::string what, std::chrono::milliseconds limit, std::function<void()> late);
  // Calls `then` once, after `delay`, unless the watchdog ends first.
  void after(std::chrono::milliseconds delay, std::function<void()> then);

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Entry {
    std::string what;
    Time due;
    std::chrono::milliseconds limit;
    std::function<void()> late;
    bool once = false, warned = false;
  };
  std::uint64_t add(Entry entry);
  void disarm(std::uint64_t id);
  void run();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Entry> entries_;
  std::uint64_t next_ = 1;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace baton::warden
