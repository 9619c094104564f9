// What a migration does before its pause so that the pause holds nothing that grows with the
// memory: once the target holds a whole checkpoint, it builds a shadow from it, which follows
// the checkpoints of the later rounds. A target that has none (no room, a program that no
// shadow can follow) builds in the pause, as ever.
#include <algorithm>
#include <atomic>
#include <thread>

#include "agent/node/migration_run.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {
using namespace std::chrono_literals;
constexpr auto kBetweenLooks = 5ms;
}  // namespace

// A checkpoint that the target has committed; the program goes on.
Result<void> MigrationRun::checkpoint_on_target() {
  BATON_ASSIGN(auto snapshot, w_.take_snapshot(false, {}, 0, link_.get()));
  for (const auto& link : w_.links()) {
    if (link.replicator != link_) link.replicator->offer(snapshot);
  }
  if (!link_->offer(snapshot, true)) return make_error(Code::kUnreachable, "page stream", link_->name() + ": " + link_->problem());
  BATON_TRY(wait_drained());
  if (link_->last_committed() < snapshot->seq) {
    return make_error(Code::kFailed, "checkpoint", link_->name() + " has not committed @" + std::to_string(snapshot->seq));
  }
  ahead_seq_ = snapshot->seq;
  return {};
}

// Blocks until the target's shadow stands at the newest checkpoint that it has committed.
Result<void> MigrationRun::shadow_follows() {
  pb::BuildTargetRequest request;
  request.set_name(w_.name());
  request.set_seq(ahead_seq_);
  *request.mutable_spec() = w_.spec_;
  request.set_incarnation(w_.incarnation());
  BATON_TRY(target_->build(request));   // no time away: it runs
  return {};
}

// Once, after the first round. A failure costs time in the pause, and nothing else.
void MigrationRun::build_ahead() {
  if (std::exchange(ahead_tried_, true) || state_.stop_and_copy) return;
  report("build");
  auto done = fault_point("agent.migrate.ahead");
  if (done) done = checkpoint_on_target();
  if (done) {
    std::atomic<bool> answered{false};
    std::jthread asking([&] {
      done = shadow_follows();
      answered = true;
    });
    while (!answered) {   // the lag must not grow meanwhile
      if (auto taken = checkpoint_when_due(); !taken) spdlog::warn("{}: {}", w_.name(), taken.error().message());
      std::this_thread::sleep_for(kBetweenLooks);
    }
  }
  ahead_ = done.has_value();
  if (!done) {
    spdlog::info("{}: {} builds it in the pause: {}", w_.name(), request_.target().node(), done.error().message());
  }
}

void MigrationRun::begin_hold() {
  hold_ = std::async(std::launch::async, [this] { return w_.env_.warden->hold(w_.name()); });
}

Result<void> MigrationRun::end_hold() {
  if (!hold_.valid()) return w_.env_.warden->hold(w_.name());
  return hold_.get();
}

void MigrationRun::note_round_trip(std::chrono::steady_clock::time_point asked, std::uint64_t worked_us) {
  const auto took = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - asked);
  const auto us = static_cast<std::uint64_t>(took.count());
  round_trip_us_ = us > worked_us ? us - worked_us : 0;
}

// Until the program ran on the target: its answer comes later, after the target has written
// down what it runs. With a whole round trip where half of one would do: never too little
// but for what the network varies. An answer that names no time counts as it came.
std::uint64_t MigrationRun::pause_us(std::uint64_t away_before_us, std::uint64_t activate_us) const {
  const std::uint64_t answered_us = away_ns() / 1000;
  if (activate_us == 0) return answered_us;
  return std::min(answered_us, away_before_us + activate_us + round_trip_us_);
}

// Enters the time since the last phase of the pause ended.
void MigrationRun::phase_took(std::uint64_t& phase_us) {
  const auto now = std::chrono::steady_clock::now();
  phase_us = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now - phase_began_).count());
  phase_began_ = now;
}

std::string MigrationRun::phases() const {
  auto one = [](const char* name, std::uint64_t us) { return std::string(name) + " " + std::to_string(us); };
  return std::string(" (") + one("freeze", phases_.freeze_us) + ", " + one("ship", phases_.ship_us) + ", " +
         one("hold", phases_.hold_us) + ", " + one(ahead_ ? "apply" : "build", phases_.apply_us) + ", " +
         one("owner", phases_.owner_us) + ", " + one("activate", phases_.activate_us) + ")";
}

}  // namespace baton::node
