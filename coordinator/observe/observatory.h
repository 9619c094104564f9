// Observatory: looks at everything that the coordinator knows, once per heartbeat, and keeps
// what people want to see of it: the present picture, rates, risks, and each workload's history.
//
// It asks the coordinator as anybody would; nothing in the coordinator knows of it.
// Bounded: kMaxTracked histories; those of deleted workloads go.
// Threads: one of its own, which also calls the listener; every method may be called from any.
// Lifetimes: coordinator, movements and clock outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "coordinator/coordinator.h"
#include "coordinator/movements.h"
#include "coordinator/observe/history.h"
#include "coordinator/observe/risk.h"

namespace baton::coordinator {

inline constexpr std::size_t kMaxTracked = 1'024;
inline constexpr std::size_t kSparkPoints = 60;
inline constexpr std::uint32_t kRateSpanMs = 5'000;
inline constexpr std::size_t kMaxEventsPerLook = 1'000;

struct Rates {  // over the newest kRateSpanMs
  double checkpoints_per_s = 0;
  double pages_written_per_s = 0;
  double bytes_sent_per_s = 0;
  std::optional<double> known_share;  // of the pages written; absent: none were
};

struct Handover {  // the newest change of place
  std::string kind;  // as in the event log: migrate, failover, restore
  std::uint64_t wall_ns = 0;
  std::string text;
};

struct Row {
  pb::WorkloadInfo info;
  Risk risk;
  Rates rates;
  std::uint64_t lag_target_us = 0;
  std::optional<Handover> last_handover;
};

struct Picture {
  std::uint64_t number = 0;  // rises by one
  std::uint64_t wall_ns = 0;
  pb::ListNodesResponse nodes;
  std::vector<Row> rows;     // the greatest risk first, then by name
  std::vector<pb::Event> new_events;
};

class Observatory {
 public:
  Observatory(Coordinator& coordinator, Movements& movements, const Clock& clock);
  ~Observatory();

  // `listener` gets every new picture, on the observatory's thread; it must not block.
  void start(std::function<void(std::shared_ptr<const Picture>)> listener);
  void stop();
  // One look, now; start() does it every kHeartbeat. Fails as the coordinator's listings do.
  Result<void> look();

  std::shared_ptr<const Picture> picture() const;  // never null
  // How long ago the picture was made: it is stale when the coordinator's own disk hangs.
  std::chrono::nanoseconds age() const;
  // Samples newer than `from_ms` (wall clock). Fails: kNotFound.
  Result<std::vector<Sample>> history(const std::string& workload, std::uint64_t from_ms) const;
  std::vector<Sample> spark(const std::string& workload) const;

 private:
  struct Track {
    pb::WorkloadStatus last;
    std::chrono::nanoseconds at{};
    History history;
    std::optional<Handover> handover;
  };
  Sample sample(Track& track, const pb::WorkloadInfo& info, std::chrono::nanoseconds now,
                std::uint64_t wall_ms);
  Rates rates_of(const Track& track) const;
  void take_events(const std::vector<pb::Event>& events);

  Coordinator& coordinator_;
  Movements& movements_;
  const Clock& clock_;
  std::function<void(std::shared_ptr<const Picture>)> listener_;

  mutable std::mutex mutex_;
  std::map<std::string, Track> tracks_;
  std::map<std::string, Handover> handovers_;
  std::shared_ptr<const Picture> picture_;
  std::chrono::nanoseconds looked_{};
  std::uint64_t last_event_ = 0;
  std::jthread thread_;
};

}  // namespace baton::coordinator
