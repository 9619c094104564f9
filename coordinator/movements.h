// Movements: the migrations, failovers and restores under way and the newest that ended, with
// their progress and reports, for whoever wants to watch one that somebody else began.
//
// In memory, at most kMaxMovements (the oldest ended ones go); the event log is what lasts.
// run() starts one in a thread of its own, so that it goes on when nobody listens; the wire
// records those that its callers watch themselves through begin(), progress() and end().
// Threads: any; one mutex, never held while calling out.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "proto/operator.pb.h"

namespace baton::coordinator {

inline constexpr std::size_t kMaxMovements = 128;
inline constexpr std::size_t kMaxRunning = 16;
inline constexpr int kMaxPhases = 64;

class Movements {
 public:
  explicit Movements(const Clock& clock) : clock_(clock) {}
  ~Movements();
  // Waits for what run() started: stop the coordinator first.
  void finish();

  std::uint64_t begin(const std::string& kind, const std::string& workload, const std::string& from,
                      const std::string& to, const std::string& who);
  void progress(std::uint64_t id, const pb::MigrateProgress& progress);
  void progress(std::uint64_t id, const pb::RestoreProgress& progress);
  void end(std::uint64_t id, const Result<void>& outcome);
  // Its caller left before the end: how it went on is seen from outside, by settle().
  void detach(std::uint64_t id);
  // Of a detached movement of `workload`: it is not under way any more, and `node` runs it.
  void settle(const std::string& workload, const std::string& node);

  // Begins it and carries it out in a thread: `work` reports to the id and answers the outcome.
  // Fails: kNoSpace when kMaxRunning are under way.
  Result<std::uint64_t> run(const std::string& kind, const std::string& workload,
                            const std::string& from, const std::string& to, const std::string& who,
                            std::function<Result<void>(std::uint64_t id)> work);

  std::vector<pb::Movement> list() const;  // newest first
  std::optional<pb::Movement> find(std::uint64_t id) const;
  std::uint64_t version() const;  // rises with every change

 private:
  struct Entry {
    pb::Movement movement;
    std::chrono::nanoseconds began{};
    bool detached = false;
  };
  Entry* entry(std::uint64_t id);  // with mutex_ held
  void enter_phase(Entry& entry, const std::string& phase);

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // newest first
  std::uint64_t last_id_ = 0;
  std::uint64_t version_ = 1;
  struct Work {
    std::jthread thread;
    std::shared_ptr<bool> done;
  };
  std::list<Work> work_;
};

}  // namespace baton::coordinator
