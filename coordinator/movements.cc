#include "coordinator/movements.h"

#include <algorithm>

namespace baton::coordinator {
namespace {

std::uint64_t ns(std::chrono::nanoseconds time) { return static_cast<std::uint64_t>(time.count()); }

}  // namespace

Movements::~Movements() { finish(); }

void Movements::finish() {
  std::list<Work> work;
  {
    std::lock_guard lock(mutex_);
    work.swap(work_);
  }
  work.clear();  // joins
}

Movements::Entry* Movements::entry(std::uint64_t id) {
  auto found = std::find_if(entries_.begin(), entries_.end(),
                            [&](const Entry& one) { return one.movement.id() == id; });
  return found == entries_.end() ? nullptr : &*found;
}

std::uint64_t Movements::begin(const std::string& kind, const std::string& workload,
                               const std::string& from, const std::string& to,
                               const std::string& who) {
  std::lock_guard lock(mutex_);
  Entry one;
  one.movement.set_id(++last_id_);
  one.movement.set_kind(kind);
  one.movement.set_workload(workload);
  one.movement.set_from(from);
  one.movement.set_to(to);
  one.movement.set_who(who);
  one.movement.set_started_wall_ns(ns(clock_.wall_now()));
  one.began = clock_.monotonic_now();
  entries_.push_front(std::move(one));
  for (auto it = entries_.end(); entries_.size() > kMaxMovements && it != entries_.begin();) {
    --it;
    if (it->movement.ended_wall_ns() != 0 || it->detached) it = entries_.erase(it);
  }
  ++version_;
  return last_id_;
}

void Movements::enter_phase(Entry& one, const std::string& phase) {
  auto& movement = one.movement;
  movement.set_phase(phase);
  const auto& phases = movement.phases();
  const bool known = std::any_of(phases.begin(), phases.end(),
                                 [&](const auto& item) { return item.name() == phase; });
  if (known || phase.empty() || movement.phases_size() >= kMaxPhases) return;
  auto& entered = *movement.add_phases();
  entered.set_name(phase);
  entered.set_after_us(ns(clock_.monotonic_now() - one.began) / 1000);
}

void Movements::progress(std::uint64_t id, const pb::MigrateProgress& progress) {
  std::lock_guard lock(mutex_);
  Entry* one = entry(id);
  if (!one) return;
  auto& movement = one->movement;
  enter_phase(*one, progress.phase());
  movement.set_round(progress.round());
  movement.set_bytes_done(progress.bytes_sent());
  movement.set_bytes_left(progress.bytes_left());
  movement.set_rate_bytes_per_s(progress.rate_bytes_per_s());
  movement.set_eta_us(progress.eta_us());
  if (progress.has_report()) {
    *movement.mutable_handover() = progress.report();
    movement.set_to(progress.report().to());
    movement.set_from(progress.report().from());
  }
  ++version_;
}

void Movements::progress(std::uint64_t id, const pb::RestoreProgress& progress) {
  std::lock_guard lock(mutex_);
  Entry* one = entry(id);
  if (!one) return;
  auto& movement = one->movement;
  enter_phase(*one, progress.phase());
  movement.set_bytes_done(progress.bytes_done());
  movement.set_bytes_left(progress.bytes_total() > progress.bytes_done()
                              ? progress.bytes_total() - progress.bytes_done()
                              : 0);
  if (progress.has_report()) *movement.mutable_restore() = progress.report();
  if (progress.has_handover()) {
    *movement.mutable_handover() = progress.handover();
    if (!progress.handover().to().empty()) movement.set_to(progress.handover().to());
    if (!progress.handover().from().empty()) movement.set_from(progress.handover().from());
  }
  ++version_;
}

void Movements::end(std::uint64_t id, const Result<void>& outcome) {
  std::lock_guard lock(mutex_);
  Entry* one = entry(id);
  if (!one) return;
  one->movement.set_ended_wall_ns(ns(clock_.wall_now()));
  if (outcome) {
    enter_phase(*one, "done");
  } else {
    one->movement.set_problem(outcome.error().message());
  }
  ++version_;
}

void Movements::detach(std::uint64_t id) {
  std::lock_guard lock(mutex_);
  if (Entry* one = entry(id)) one->detached = true;
}

void Movements::settle(const std::string& workload, const std::string& node) {
  std::lock_guard lock(mutex_);
  for (auto& one : entries_) {
    auto& movement = one.movement;
    if (!one.detached || movement.ended_wall_ns() != 0 || movement.workload() != workload) continue;
    movement.set_ended_wall_ns(ns(clock_.wall_now()));
    if (movement.to() == node) {
      enter_phase(one, "done");
    } else {
      movement.set_problem("it ended, and the workload is on " + node);
    }
    ++version_;
  }
}

Result<std::uint64_t> Movements::run(const std::string& kind, const std::string& workload,
                                     const std::string& from, const std::string& to,
                                     const std::string& who,
                                     std::function<Result<void>(std::uint64_t)> work) {
  std::list<Work> finished;  // joined outside the lock
  {
    std::lock_guard lock(mutex_);
    for (auto it = work_.begin(); it != work_.end();) {
      auto next = std::next(it);
      if (*it->done) finished.splice(finished.end(), work_, it);
      it = next;
    }
    if (work_.size() >= kMaxRunning) {
      return make_error(Code::kNoSpace, kind,
                        std::to_string(kMaxRunning) + " movements begun here are under way",
                        "Try again when one has ended.");
    }
  }
  const std::uint64_t id = begin(kind, workload, from, to, who);
  auto done = std::make_shared<bool>(false);
  std::lock_guard lock(mutex_);
  work_.push_back({std::jthread([this, id, done, work = std::move(work)] {
                     end(id, work(id));
                     std::lock_guard guard(mutex_);
                     *done = true;
                   }),
                   done});
  return id;
}

std::vector<pb::Movement> Movements::list() const {
  std::lock_guard lock(mutex_);
  std::vector<pb::Movement> out;
  for (const auto& one : entries_) out.push_back(one.movement);
  return out;
}

std::optional<pb::Movement> Movements::find(std::uint64_t id) const {
  std::lock_guard lock(mutex_);
  for (const auto& one : entries_) {
    if (one.movement.id() == id) return one.movement;
  }
  return std::nullopt;
}

std::uint64_t Movements::version() const {
  std::lock_guard lock(mutex_);
  return version_;
}

}  // namespace baton::coordinator
