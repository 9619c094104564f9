// StreamHub: turns pictures into frames of server-sent events, once for all listeners, and
// hands each listener what it has not had. Pure data structure: io thread only.
// Source of the frame format: HTML Living Standard, 9.2 Server-sent events.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "coordinator/http/server.h"

namespace baton::coordinator::http {

using Frame = std::shared_ptr<const std::string>;

// "event: KIND\nid: ID\ndata: …\n\n"; `data` holds no newline.
Frame make_frame(const std::string& kind, const std::string& data, std::uint64_t id = 0);

struct Listener {
  std::deque<Frame> queue;       // log entries and movements, in order
  Frame overview;                // the newest that was not sent yet
  std::function<void()> wake;
};

class StreamHub {
 public:
  explicit StreamHub(Movements& movements) : movements_(movements) {}

  void join(Listener& listener);   // gets the present overview and movements first
  void leave(Listener& listener);
  std::size_t size() const { return listeners_.size(); }

  void picture(std::shared_ptr<const Picture> picture, std::chrono::steady_clock::time_point now);
  void tick();  // movements that changed

 private:
  void push(Listener& listener, const Frame& frame);
  Frame overview_frame() const;

  Movements& movements_;
  std::set<Listener*> listeners_;
  std::shared_ptr<const Picture> picture_;
  std::chrono::steady_clock::time_point sent_{};
  std::uint64_t movements_seen_ = 0;
};

}  // namespace baton::coordinator::http
