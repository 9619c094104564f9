// FrameHub: one connection per pair of peers for small frames: TLS 1.3, certificates on both
// sides. Of two peers the one whose name sorts first calls the other, again and again. A peer
// is a node, by its name, or the coordinator (kCoordinatorPeer). Wire: docs/formats/tenure.md.
//
// Nothing is kept for a peer that is not connected, and nothing is sent again: whoever sends
// frames repeats what matters. A connection on which nothing was received for kDeadAfter is
// closed: peers send something at least every second.
//
// Threads: one of its own. Handlers, post()ed functions and the timer run there, and send()
// belongs there; the rest may be called from any thread. TlsFiles are copied.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::transport {

inline constexpr std::string_view kCoordinatorPeer = "coordinator";
inline constexpr std::size_t kMaxFrameBytes = 4u << 20;
inline constexpr std::size_t kMaxQueuedFrameBytes = 8u << 20;   // per peer; beyond: disconnected
inline constexpr std::size_t kMaxHubPeers = 128;
inline constexpr std::chrono::milliseconds kDeadAfter{2500};

class FrameHub {
 public:
  struct Handlers {
    std::function<void(const std::string& peer)> up;
    std::function<void(const std::string& peer)> down;
    std::function<void(const std::string& peer, std::string_view frame)> frame;
    std::function<void()> timer;
  };
  // Listens at HOST:PORT (port 0: a free one). Fails: kConflict (in use), kInvalid, kFailed.
  static Result<std::unique_ptr<FrameHub>> start(const std::string& listen, const TlsFiles& tls,
                                                 Handlers handlers);
  ~FrameHub();   // stop()
  // Ends all connections; blocks until no handler is called any more. Idempotent.
  void stop();
  int port() const;

  // Everybody to be connected to: name → HOST:PORT. Who is not in it is disconnected.
  void set_peers(std::map<std::string, std::string> addresses);
  // Dropped when `peer` is not connected.
  void send(const std::string& peer, std::string frame);
  void post(std::function<void()> work);
  // Calls the timer handler once, no earlier than after `delay`; replaces an earlier call's.
  void set_timer(std::chrono::nanoseconds delay);

 private:
  struct Impl;
  explicit FrameHub(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::transport
