#include "base/service_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/clock.h"
#include "base/fd.h"

namespace baton {

ServiceNotify::ServiceNotify(std::function<bool()> alive) {
  if (const char* path = std::getenv("NOTIFY_SOCKET")) socket_ = path;
  const char* usec = std::getenv("WATCHDOG_USEC");
  const char* pid = std::getenv("WATCHDOG_PID");
  if (socket_.empty() || !usec || (pid && std::atol(pid) != ::getpid())) return;
  const long half_us = std::atol(usec) / 2;
  if (half_us <= 0) return;
  watchdog_ = std::jthread([this, half_us, alive = std::move(alive)](std::stop_token stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    while (!stop.stop_requested()) {
      if (alive()) send("WATCHDOG=1");
      wake.wait_for(lock, stop, std::chrono::microseconds(half_us), [] { return false; });
    }
  });
}

void ServiceNotify::send(const std::string& message) const {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_.empty() || socket_.size() >= sizeof address.sun_path) return;
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // an abstract name
  Fd fd = Fd::adopt(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size());
  (void)::sendto(fd.get(), message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                 reinterpret_cast<const sockaddr*>(&address), size);
}

void ServiceNotify::ready(const std::string& text) const { send("READY=1\nSTATUS=" + text); }
void ServiceNotify::status(const std::string& text) const { send("STATUS=" + text); }
void ServiceNotify::reloading() const {
  send("RELOADING=1\nMONOTONIC_USEC=" +
       std::to_string(std::chrono::microseconds(
                          std::chrono::duration_cast<std::chrono::microseconds>(read_clock(CLOCK_MONOTONIC)))
                          .count()));
}
void ServiceNotify::stopping() const { send("STOPPING=1"); }

}  // namespace baton
