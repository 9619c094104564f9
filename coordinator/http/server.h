// WebServer: HTTPS for people, by Boost.Beast: TLS 1.3 only, no plaintext port.
//
// Everything that a stranger can make it spend has a limit here. One thread does all input and
// output; kHandlerThreads answer (they may block in the coordinator); a request that finds
// kMaxPending others waiting is answered 503.
// Event streams (GET /api/v1/events) get, from publish(): a whole overview, then one per
// picture (thinned to kSlowTick above kManyRows rows), the log's new entries, and movements as
// they change, at most every kMovementTick. A listener that reads too slowly misses overviews,
// never queues them.
// Lifetimes: routes, metrics and movements outlive it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/error.h"
#include "coordinator/http/metrics.h"
#include "coordinator/http/routes.h"
#include "transport/identity.h"

namespace baton::coordinator::http {

inline constexpr int kMaxConnections = 256;
inline constexpr int kMaxStreams = 64;
inline constexpr int kMaxPending = 64;
inline constexpr int kHandlerThreads = 4;
inline constexpr std::uint32_t kMaxHeaderBytes = 16 * 1024;
inline constexpr std::uint64_t kMaxBodyBytes = 64 * 1024;
inline constexpr int kMaxRequestsPerConnection = 1'000;
inline constexpr std::chrono::seconds kHandshakeTime{5};
inline constexpr std::chrono::seconds kRequestTime{30};  // waiting for it and reading it
inline constexpr std::chrono::seconds kWriteTime{15};
inline constexpr std::size_t kManyRows = 50;
inline constexpr std::chrono::milliseconds kSlowTick{1'000};
inline constexpr std::chrono::milliseconds kMovementTick{100};
inline constexpr std::chrono::seconds kStreamPing{10};
inline constexpr std::size_t kMaxQueuedFrames = 64;

class WebServer {
 public:
  // Serves on ADDRESS:PORT (port 0: a free one).
  // Fails: kConflict (address in use), kInvalid (address, certificate), kFailed.
  static Result<std::unique_ptr<WebServer>> start(const std::string& address,
                                                  const transport::TlsFiles& tls, Routes& routes,
                                                  Metrics& metrics, Movements& movements);
  virtual ~WebServer() = default;
  virtual int port() const = 0;
  // New connections use these files; those that are open keep theirs.
  // Fails: kInvalid; then nothing changes.
  virtual Result<void> reload(const transport::TlsFiles& tls) = 0;
  // For event streams; any thread, does not block.
  virtual void publish(std::shared_ptr<const Picture> picture) = 0;
  // Ends every connection. Blocks until handlers under way are done; once.
  virtual void stop() = 0;
};

}  // namespace baton::coordinator::http
