#include "coordinator/observe/observatory.h"

#include <algorithm>
#include <condition_variable>
#include <stop_token>

#include "base/log.h"

namespace baton::coordinator {
namespace {

// A counter of the agent's begins anew when it takes a workload up again.
float rise(std::uint64_t before, std::uint64_t now) {
  return static_cast<float>(now >= before ? now - before : now);
}

bool moves(const std::string& kind) {
  return kind == "migrate" || kind == "failover" || kind == "restore";
}

}  // namespace

Observatory::Observatory(Coordinator& coordinator, Movements& movements, const Clock& clock)
    : coordinator_(coordinator),
      movements_(movements),
      clock_(clock),
      picture_(std::make_shared<Picture>()),
      looked_(clock.monotonic_now()) {}

Observatory::~Observatory() { stop(); }

void Observatory::start(std::function<void(std::shared_ptr<const Picture>)> listener) {
  listener_ = std::move(listener);
  thread_ = std::jthread([this](std::stop_token stop) {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::unique_lock lock(mutex);
    bool failing = false;
    while (!stop.stop_requested()) {
      const auto looked = look();
      if (!looked && !failing) spdlog::warn("no new picture: {}", looked.error().message());
      failing = !looked;
      if (looked && listener_) listener_(picture());
      wake.wait_for(lock, stop, kHeartbeat, [] { return false; });
    }
  });
}

void Observatory::stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

Sample Observatory::sample(Track& track, const pb::WorkloadInfo& info, std::chrono::nanoseconds now,
                           std::uint64_t wall_ms) {
  const auto& status = info.status();
  Sample out;
  const bool first = track.at.count() == 0;
  if (!first) out.span_ms = static_cast<std::uint32_t>((now - track.at).count() / 1'000'000);
  out.wall_ms = wall_ms;
  out.lag_us = out.lag_max_us = static_cast<float>(status.lag_us());
  out.pause_p50_us = static_cast<float>(status.pause().p50_us());
  out.pause_p99_us = static_cast<float>(status.pause().p99_us());
  out.pause_max_us = static_cast<float>(status.pause().max_us());
  if (!first && !info.status_is_stale()) {
    const auto& last = track.last;
    // The numbers of checkpoints go on with a new owner; the sums begin anew.
    if (status.last_committed() > last.last_committed()) {
      out.committed = static_cast<float>(status.last_committed() - last.last_committed());
    }
    out.pages_written = rise(last.pages_written(), status.pages_written());
    out.pages_known = rise(last.pages_known(), status.pages_known());
    out.pages_zero = rise(last.pages_zero(), status.pages_zero());
    out.pages_sent = rise(last.pages_sent(), status.pages_sent());
    out.bytes_sent = rise(last.bytes_sent(), status.bytes_sent());
  }
  track.at = now;
  if (!info.status_is_stale()) track.last = status;
  return out;
}

Rates Observatory::rates_of(const Track& track) const {
  Rates out;
  double span_s = 0, committed = 0, written = 0, known = 0, bytes = 0;
  for (const Sample& one : track.history.newest(kRateSpanMs / kHistoryLevels[0].span_ms)) {
    span_s += one.span_ms / 1'000.0;
    committed += one.committed;
    written += one.pages_written;
    known += one.pages_known;
    bytes += one.bytes_sent;
  }
  if (span_s > 0) {
    out.checkpoints_per_s = committed / span_s;
    out.pages_written_per_s = written / span_s;
    out.bytes_sent_per_s = bytes / span_s;
  }
  if (written > 0) out.known_share = std::min(1.0, known / written);
  return out;
}

void Observatory::take_events(const std::vector<pb::Event>& events) {
  for (const auto& event : events) {
    last_event_ = std::max(last_event_, event.id());
    if (event.workload().empty()) continue;
    if (moves(event.kind())) {
      handovers_[event.workload()] = {event.kind(), event.wall_ns(), event.text()};
    } else if (event.kind() == "delete") {
      handovers_.erase(event.workload());
    }
  }
}

Result<void> Observatory::look() {
  BATON_ASSIGN(auto nodes, coordinator_.list_nodes());
  BATON_ASSIGN(auto workloads, coordinator_.list_workloads());
  std::vector<pb::Event> events;
  pb::EventsRequest ask;
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    ask.set_after_id(last_event_);
    first = last_event_ == 0;
  }
  // The first look reads the whole log, for the newest handovers; the next ones what was added.
  const Sink<pb::Event> gather = [&](const pb::Event& event) {
    if (!first || moves(event.kind()) || event.kind() == "delete") events.push_back(event);
    ask.set_after_id(event.id());
    return first || events.size() < kMaxEventsPerLook;
  };
  BATON_TRY(coordinator_.events(ask, gather, [] { return true; }));

  auto next = std::make_shared<Picture>();
  next->wall_ns = static_cast<std::uint64_t>(clock_.wall_now().count());
  next->nodes = std::move(nodes);
  const auto now = clock_.monotonic_now();
  std::lock_guard lock(mutex_);
  take_events(events);
  last_event_ = std::max(last_event_, ask.after_id());
  std::map<std::string, Track> kept;
  for (auto& info : *workloads.mutable_workloads()) {
    const std::string& name = info.spec().name();
    Row row;
    row.lag_target_us = lag_target_us(info);
    row.risk = assess(info);
    if (kept.size() < kMaxTracked) {
      Track& track = kept.emplace(name, std::move(tracks_[name])).first->second;
      track.history.add(sample(track, info, now, next->wall_ns / 1'000'000));
      row.rates = rates_of(track);
    }
    if (auto found = handovers_.find(name); found != handovers_.end()) {
      row.last_handover = found->second;
    }
    if (info.status().state() != "migrating") movements_.settle(name, info.ownership().owner());
    row.info = std::move(info);
    next->rows.push_back(std::move(row));
  }
  std::erase_if(handovers_, [&](const auto& item) { return !kept.contains(item.first); });
  tracks_ = std::move(kept);
  std::stable_sort(next->rows.begin(), next->rows.end(), [](const Row& a, const Row& b) {
    if (a.risk.level != b.risk.level) return a.risk.level > b.risk.level;
    return a.info.spec().name() < b.info.spec().name();
  });
  if (!first) next->new_events = std::move(events);
  next->number = picture_->number + 1;
  picture_ = std::move(next);
  looked_ = now;
  return {};
}

std::shared_ptr<const Picture> Observatory::picture() const {
  std::lock_guard lock(mutex_);
  return picture_;
}

std::chrono::nanoseconds Observatory::age() const {
  std::lock_guard lock(mutex_);
  return clock_.monotonic_now() - looked_;
}

Result<std::vector<Sample>> Observatory::history(const std::string& workload,
                                                 std::uint64_t from_ms) const {
  std::lock_guard lock(mutex_);
  auto found = tracks_.find(workload);
  if (found == tracks_.end()) {
    return make_error(Code::kNotFound, "history", "no workload named " + workload,
                      "See baton ls.");
  }
  return found->second.history.since(from_ms);
}

std::vector<Sample> Observatory::spark(const std::string& workload) const {
  std::lock_guard lock(mutex_);
  auto found = tracks_.find(workload);
  return found == tracks_.end() ? std::vector<Sample>()
                                : found->second.history.newest(kSparkPoints);
}

}  // namespace baton::coordinator
