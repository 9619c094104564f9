#include "agent/warden/watchdog.h"

#include <unistd.h>

#include <algorithm>

#include "base/log.h"

namespace baton::warden {

Watchdog::Watchdog() : thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

std::uint64_t Watchdog::add(Entry entry) {
  std::lock_guard lock(mutex_);
  std::uint64_t id = next_++;
  bool soonest = std::all_of(entries_.begin(), entries_.end(), [&](auto& e) { return entry.due < e.second.due; });
  entries_.emplace(id, std::move(entry));
  if (soonest) changed_.notify_all();
  return id;
}

Watchdog::Guard Watchdog::arm(std::string what, std::chrono::milliseconds limit, std::function<void()> late) {
  return Guard(*this, add({std::move(what), std::chrono::steady_clock::now() + limit, limit, std::move(late)}));
}

void Watchdog::after(std::chrono::milliseconds delay, std::function<void()> then) {
  add({"", std::chrono::steady_clock::now() + delay, delay, std::move(then), true});
}

void Watchdog::disarm(std::uint64_t id) {
  std::lock_guard lock(mutex_);
  entries_.erase(id);
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    Time now = std::chrono::steady_clock::now();
    Time next = now + std::chrono::seconds(60);
    for (auto it = entries_.begin(); it != entries_.end();) {
      Entry& entry = it->second;
      if (entry.due <= now && entry.once) {
        auto then = std::move(entry.late);
        entries_.erase(it);
        lock.unlock();   // it takes locks under which others arm
        then();
        lock.lock();
        next = now;      // the entries may have changed: look again
        break;
      }
      if (entry.due <= now && entry.warned) {
        spdlog::critical("{} did not end for {} ms: this warden ends itself so that the program runs on", entry.what,
                         2 * entry.limit.count());
        spdlog::default_logger()->flush();
        ::_exit(70);
      }
      if (entry.due <= now) {
        spdlog::error("{} is over its limit of {} ms; ending it", entry.what, entry.limit.count());
        entry.warned = true;
        entry.due = now + entry.limit;
        entry.late();
      }
      next = std::min(next, entry.due);
      ++it;
    }
    changed_.wait_until(lock, next);
  }
}

}  // namespace baton::warden
