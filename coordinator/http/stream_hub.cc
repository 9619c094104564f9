#include "coordinator/http/stream_hub.h"

#include "coordinator/cli/render.h"
#include "coordinator/http/json.h"

namespace baton::coordinator::http {
namespace {

// The newest is under way or has just ended; older ones do not change any more.
constexpr std::size_t kMovementsPerFrame = 16;

Frame movements_frame(const Movements& movements) {
  Json list = Json::array();
  for (const auto& one : movements.list()) {
    list.push_back(movement_json(one));
    if (list.size() == kMovementsPerFrame) break;
  }
  return make_frame("movements", dumped(list));
}

}  // namespace

Frame make_frame(const std::string& kind, const std::string& data, std::uint64_t id) {
  std::string out = "event: " + kind + "\n";
  if (id > 0) out += "id: " + std::to_string(id) + "\n";
  out += "data: " + data + "\n\n";
  return std::make_shared<const std::string>(std::move(out));
}

Frame StreamHub::overview_frame() const {
  return make_frame("overview", dumped(overview_json(*picture_)), picture_->number);
}

void StreamHub::push(Listener& listener, const Frame& frame) {
  // One that reads so slowly asks for the lists again when it sees the gap.
  if (listener.queue.size() >= kMaxQueuedFrames) {
    listener.queue.clear();
    listener.queue.push_back(make_frame("gap", "{}"));
  }
  listener.queue.push_back(frame);
  if (listener.wake) listener.wake();
}

void StreamHub::join(Listener& listener) {
  listeners_.insert(&listener);
  if (picture_) listener.overview = overview_frame();
  push(listener, movements_frame(movements_));
}

void StreamHub::leave(Listener& listener) { listeners_.erase(&listener); }

void StreamHub::picture(std::shared_ptr<const Picture> picture,
                        std::chrono::steady_clock::time_point now) {
  picture_ = std::move(picture);
  if (listeners_.empty()) return;
  for (const auto& event : picture_->new_events) {
    const Frame frame = make_frame("log", dumped(cli::event_json(event)));
    for (Listener* listener : listeners_) push(*listener, frame);
  }
  // A little early counts: the ticks of the clock and of the observatory drift.
  if (picture_->rows.size() > kManyRows && now - sent_ < kSlowTick - kMovementTick) return;
  sent_ = now;
  const Frame frame = overview_frame();
  for (Listener* listener : listeners_) {
    listener->overview = frame;
    if (listener->wake) listener->wake();
  }
}

void StreamHub::tick() {
  const std::uint64_t version = movements_.version();
  if (version == movements_seen_) return;
  movements_seen_ = version;
  if (listeners_.empty()) return;
  const Frame frame = movements_frame(movements_);
  for (Listener* listener : listeners_) push(*listener, frame);
}

}  // namespace baton::coordinator::http
