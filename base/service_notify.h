// ServiceNotify: tells the service manager how a program is: ready, what it does, alive.
// The protocol of sd_notify(3) without its library: one datagram to $NOTIFY_SOCKET. Does
// nothing where there is none. Threads: any; nothing blocks for longer than a send.
#pragma once

#include <functional>
#include <string>
#include <thread>

namespace baton {

class ServiceNotify {
 public:
  // `alive` decides, every half of $WATCHDOG_USEC, whether the program may live on; while it
  // says no, the service manager's watchdog runs. It must not block.
  explicit ServiceNotify(std::function<bool()> alive = [] { return true; });

  void ready(const std::string& status) const;
  void status(const std::string& status) const;
  void reloading() const;  // followed by ready(); Source: sd_notify(3), RELOADING=1
  void stopping() const;

 private:
  void send(const std::string& message) const;

  std::string socket_;
  std::jthread watchdog_;
};

}  // namespace baton
