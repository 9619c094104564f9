// The life of a workload: started or taken in, held, stopped, given back, taken up again
// after a restart. Captures and builds: workload_state.cc.
#include "agent/warden/workload.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/fault_point.h"
#include "base/log.h"

namespace baton::warden {
namespace {

using namespace std::chrono_literals;
constexpr auto kKillTimeout = 10s;
constexpr int kMovePassesMax = 50;
constexpr std::string_view kCgroupMark = "/baton.workloads-";

}  // namespace

Workload::Workload(const Surroundings& around, std::uint64_t id, std::string name)
    : around_(around), id_(id), name_(std::move(name)), sink_(*around.capture_buffer),
      thread_([this] { run_tasks(); }) {}

Workload::~Workload() {
  tasks_.close();
  thread_.join();
}

bool Workload::post(std::function<void()> task, bool own) {
  if (!own && tasks_open_.load() >= kTasksMax - kTasksReserved) return false;
  tasks_open_.fetch_add(1);
  if (tasks_.try_push(std::move(task))) return true;
  tasks_open_.fetch_sub(1);
  return false;
}

void Workload::run_tasks() {
  while (auto task = tasks_.pop()) {
    (*task)();
    publish();
    tasks_open_.fetch_sub(1);
  }
  // On this thread: the tracer has to let go itself.
  if (build_) {
    beside_.reset();
    build_.reset();
    clean_up(true);
  }
  attachment_.reset();
  sink_.discard();
}

void Workload::publish() {
  pb::WorkloadProcess now;
  Place place;
  if (!record_.phase().empty()) {
    now.set_workload(name_);
    now.set_pid(record_.root_pid());
    now.set_state(record_.phase());
    now.set_frozen(kept_frozen_ || held_);
    now.set_incarnation(record_.incarnation());
    now.set_spec(record_.spec().SerializeAsString());
    now.set_wait_status(record_.wait_status());
    now.set_shadow_seq(build_ && applying_seq_ == 0 ? shadow_seq_ : 0);
    if (attachment_) {
      now.set_tracker(attachment_->tracker_name());
      now.set_copier(attachment_->copier_name());
    }
    place.root = static_cast<pid_t>(record_.root_pid());
    place.keeper = static_cast<pid_t>(record_.keeper_pid());
    place.cgroup = record_.cgroup();
    place.log_path = record_.log_path();
    place.has_log = record_.spec().origin() != pb::ORIGIN_PROTECT || record_.keeper_pid() != 0;
    place.spec = record_.spec();
    place.backend = record_.backend();
  }
  std::lock_guard lock(published_mutex_);
  published_ = std::move(now);
  published_place_ = std::move(place);
}

pb::WorkloadProcess Workload::snapshot() const {
  pb::WorkloadProcess out;
  {
    std::lock_guard lock(published_mutex_);
    out = published_;
  }
  if (out.state() != "running") return out;
  const auto lease = around_.leases->get(name_);
  out.set_lease_until_ns(lease.until_ns);
  out.set_lease_frozen(lease.frozen);
  return out;
}

Workload::Place Workload::place() const {
  std::lock_guard lock(published_mutex_);
  return published_place_;
}

Result<backend::Backend*> Workload::find_backend(const std::string& name, const std::string& tracker) const {
  backend::Backend* backend = around_.backend(name);
  if (!backend) return make_error(Code::kUnsupported, "backend", "this node has no backend '" + name + "'");
  if (!tracker.empty() && tracker != "auto") {
    auto known = backend->trackers();
    if (std::find(known.begin(), known.end(), tracker) == known.end()) {
      std::string names;
      for (const auto& one : known) names += (names.empty() ? "" : ", ") + one;
      return make_error(Code::kInvalid, "tracker", "'" + tracker + "' is not available here", "This node has: " + names + ".");
    }
  }
  return backend;
}

// Takes the name: the record and an empty cgroup.
Result<void> Workload::begin(const pb::WorkloadSpec& spec, const char* phase, const std::string& backend) {
  if (!record_.phase().empty() && record_.phase() != "exited") {
    return make_error(Code::kConflict, "workload", name_ + " is here already (" + record_.phase() + ")",
                      "Stop it first or choose another name.");
  }
  clean_up(true);
  around_.leases->forget(name_);
  record_.Clear();
  record_.set_version(1);
  record_.set_workload(name_);
  record_.set_phase(phase);
  *record_.mutable_spec() = spec;
  record_.mutable_spec()->set_name(name_);
  cgroup_ = around_.cgroups.child(name_);
  record_.set_cgroup(cgroup_.path());
  record_.set_log_path(around_.records->log_path(name_));
  record_.set_exit_path(around_.records->exit_path(name_));
  record_.set_backend(backend);
  record_.set_boot_id(around_.boot_id);
  around_.records->remove(record_);   // a log and an exit status of earlier times
  auto ready = [&]() -> Result<void> {
    BATON_TRY(around_.records->save(record_));
    BATON_TRY(cgroup_.make());
    BATON_ASSIGN(bool populated, cgroup_.populated());
    if (populated) {
      return make_error(Code::kConflict, "workload", cgroup_.path() + " already holds processes",
                        "Another warden may own them; look at its cgroup.procs.");
    }
    // Left frozen by a workload that was killed while it was held.
    return cgroup_.thaw();
  }();
  if (!ready) {
    around_.records->remove(record_);
    record_.Clear();
  }
  return ready;
}

Result<void> Workload::set_phase(const char* phase) {
  record_.set_phase(phase);
  return around_.records->save(record_);
}

Result<void> Workload::adopt(pid_t root, pid_t keeper) {
  record_.set_root_pid(root);
  record_.set_keeper_pid(keeper);
  if (keeper != 0) {
    BATON_ASSIGN(keeper_, HeldProcess::open(keeper));
    record_.set_keeper_start(keeper_.start());
  }
  auto held = HeldProcess::open(root);
  if (held) {
    root_ = std::move(*held);
    record_.set_root_start(root_.start());
  } else if (keeper == 0) {
    return held.error();
  }
  // A program as short-lived as that has its end reported by its keeper.
  return {};
}

void Workload::watch() { around_.watch_exit(keeper_ ? keeper_.fd() : root_.fd(), id_); }

void Workload::remove_cgroup(Cgroup& group) {
  if (!group.exists()) return;
  auto killed = group.kill();
  auto empty = group.wait_empty(kKillTimeout);
  if (!killed || !empty || !*empty) spdlog::error("{}: processes in {} do not die", name_, group.path());
  if (auto removed = group.remove(); !removed) spdlog::warn("{}: {}", name_, removed.error().message());
}

// Forgets the workload. `kill`: what is left of its processes dies first.
void Workload::clean_up(bool kill) {
  if (record_.phase().empty()) return;
  if (kill) detach_network();   // nobody hears of its end by a broken connection: it may live elsewhere
  if (kill && cgroup_.exists()) {
    auto killed = cgroup_.kill();
    auto empty = cgroup_.wait_empty(kKillTimeout);
    if (!killed || !empty || !*empty) spdlog::error("{}: processes in {} do not die", name_, cgroup_.path());
  }
  attachment_.reset();
  build_.reset();
  beside_.reset();
  shadow_seq_ = applying_seq_ = 0;
  end_volumes(false);
  if (keeper_) (void)keeper_.wait_status();   // reaps it, if it is our child
  if (root_) (void)root_.wait_status();
  remove_network();
  auto removed = cgroup_.remove();
  if (!removed) spdlog::warn("{}: {}", name_, removed.error().message());
  for (const std::string& other : {name_, name_ + std::string(kBesideSuffix)}) {   // of a shadow's rebuilding
    Cgroup group = around_.cgroups.child(other);
    if (group.path() != record_.cgroup() && kill) remove_cgroup(group);
  }
  beside_cgroup_ = Cgroup();
  around_.records->remove(record_);
  around_.leases->forget(name_);
  record_.Clear();
  root_ = HeldProcess();
  keeper_ = HeldProcess();
  sink_.discard();
  kept_frozen_ = held_ = freeze_expired_ = agent_lost_frozen_ = false;
}

Result<pb::WorkloadProcess> Workload::run(const pb::WorkloadSpec& spec) {
  if (spec.argv().empty() || spec.argv(0).empty()) {
    return make_error(Code::kInvalid, "run", name_ + ": no command was given");
  }
  if (!around_.launch) return make_error(Code::kUnsupported, "run", "this warden starts no programs");
  BATON_ASSIGN(backend::Backend * backend, find_backend(around_.default_backend, spec.tracker()));
  BATON_TRY(backend->check_spec(spec));
  BATON_TRY(begin(spec, "launching", around_.default_backend));
  record_.mutable_spec()->set_origin(pb::ORIGIN_RUN);
  auto done = [&]() -> Result<void> {
    BATON_TRY(fault_point("warden.run.before"));
    BATON_TRY(plan_network(true));
    BATON_TRY(start_volumes());
    LaunchTarget target{record_.spec(), record_.cgroup(), record_.log_path(), record_.exit_path(), {}};
    target.equip = [this](pid_t member) -> Result<void> {
      BATON_TRY(port_->equip(member));
      return attach_network();
    };
    BATON_ASSIGN(LaunchedProgram program, around_.launch(target));
    BATON_TRY(fault_point("warden.run.launched"));
    BATON_TRY(adopt(program.root, program.keeper));
    BATON_TRY(set_phase("running"));
    return fault_point("warden.run.recorded");
  }();
  if (!done) {
    clean_up(true);
    return done.error();
  }
  watch();
  publish();
  return snapshot();
}

Result<pb::WorkloadProcess> Workload::protect(const pb::WorkloadSpec& spec) {
  pid_t pid = static_cast<pid_t>(spec.pid());
  if (spec.pid() <= 0 || spec.pid() != pid) return make_error(Code::kInvalid, "protect", "no PID was given");
  BATON_TRY(check_protectable(pid));
  if (spec.addresses_size() > 0) {
    return make_error(Code::kUnsupported, "protect", "--address: a program that runs already stays in the network it is in",
                      "Start it with `baton run --address`, or leave --address out.");
  }
  if (spec.volumes_size() > 0) {
    return make_error(Code::kUnsupported, "protect", "--volume: a program that runs already has its files open where they are",
                      "Start it with `baton run --volume`, or leave --volume out.");
  }
  for (pid_t member : process_tree(pid)) {
    auto where = Cgroup::of(member);
    if (!where) {
      if (member != pid) continue;
      return where.error();
    }
    if (where->path().find(kCgroupMark) != std::string::npos) {
      return make_error(Code::kConflict, "protect",
                        "PID " + std::to_string(member) + " belongs to workload " +
                            where->path().substr(where->path().rfind('/') + 1) + " already");
    }
  }
  BATON_ASSIGN(backend::Backend * backend, find_backend(around_.default_backend, spec.tracker()));
  BATON_TRY(backend->check_spec(spec));
  backend::AttachTarget target;
  target.root = pid;
  target.spec = spec;
  BATON_ASSIGN(backend::Inspection seen, backend->inspect(target));
  if (!seen.acceptable) {
    for (const auto& verdict : seen.verdicts) {
      if (verdict.verdict() != "refused") continue;
      return make_error(Code::kUnsupported, "protect",
                        "PID " + std::to_string(verdict.pid()) + ", " + verdict.resource() + ": " + verdict.kind() +
                            (verdict.detail().empty() ? "" : " (" + verdict.detail() + ")"));
    }
    return make_error(Code::kUnsupported, "protect", "PID " + std::to_string(pid) + " holds what cannot be captured");
  }
  BATON_TRY(begin(spec, "protecting", around_.default_backend));
  record_.mutable_spec()->set_origin(pb::ORIGIN_PROTECT);
  auto done = [&]() -> Result<void> {
    BATON_TRY(adopt(pid, 0));
    BATON_TRY(fault_point("warden.protect.before"));
    BATON_TRY(move_in(pid));
    BATON_TRY(fault_point("warden.protect.moved"));
    BATON_TRY(set_phase("running"));
    return fault_point("warden.protect.recorded");
  }();
  if (!done) {
    move_back();
    clean_up(false);
    return done.error();
  }
  watch();
  publish();
  return snapshot();
}

// Moves `root` and its descendants into the workload's cgroup, remembering where each was.
Result<void> Workload::move_in(pid_t root) {
  for (int pass = 0; pass < kMovePassesMax; ++pass) {
    BATON_ASSIGN(auto inside, cgroup_.members());
    std::vector<pid_t> outside;
    for (pid_t pid : process_tree(root)) {
      if (std::find(inside.begin(), inside.end(), pid) != inside.end()) continue;
      auto stat = read_process(pid);
      auto from = Cgroup::of(pid);
      if (!stat || stat->state == 'Z' || !from) continue;
      auto* old = record_.add_old_cgroups();
      old->set_pid(pid);
      old->set_start(stat->start);
      old->set_path(from->path());
      outside.push_back(pid);
    }
    if (outside.empty()) return {};
    BATON_TRY(around_.records->save(record_));   // before the move: a restart finds the way back
    for (pid_t pid : outside) {
      auto moved = cgroup_.add(pid);
      if (!moved && (moved.error().code != Code::kTraceeGone || pid == root)) return moved.error();
    }
  }
  return make_error(Code::kFailed, "protect", name_ + ": it forks faster than its processes can be moved",
                    "Try again when it is calmer, or start it with run.");
}

void Workload::move_back() {
  std::string fallback;
  for (const auto& old : record_.old_cgroups()) {
    if (old.pid() == record_.root_pid()) fallback = old.path();
  }
  for (int pass = 0; pass < kMovePassesMax; ++pass) {
    auto inside = cgroup_.members();
    if (!inside || inside->empty()) return;
    for (pid_t pid : *inside) {
      auto stat = read_process(pid);
      std::string to = fallback;
      for (const auto& old : record_.old_cgroups()) {
        if (stat && old.pid() == pid && old.start() == stat->start) to = old.path();
      }
      if (to.empty() || !Cgroup::at(to).add(pid)) {
        // Its old folder is gone: out of ours in any case, to where the warden itself is.
        auto parent = Cgroup::of(0);
        if (parent) (void)parent->add(pid).has_value();
      }
    }
  }
}

Result<void> Workload::need_running(const char* operation) const {
  if (record_.phase() == "running") return {};
  if (record_.phase().empty()) return make_error(Code::kNotFound, operation, "no workload " + name_ + " on this node");
  if (record_.phase() == "exited") return make_error(Code::kTraceeGone, operation, name_ + " has ended");
  return make_error(Code::kConflict, operation, name_ + " is " + record_.phase() + ", not running");
}

Result<void> Workload::thaw() {
  BATON_TRY(need_running("thaw"));
  BATON_TRY(fault_point("warden.thaw.before"));
  // First the cgroup: letting go may need the program to run a few instructions.
  // A program without its network is better off than one that stands still.
  if (auto attached = attach_network(); !attached) spdlog::error("{}: {}", name_, attached.error().message());
  if (held_) {
    around_.leases->set_held(name_, false);
    if (!around_.leases->get(name_).frozen) BATON_TRY(cgroup_.thaw());
    held_ = false;
  }
  if (kept_frozen_) {
    kept_frozen_ = false;
    auto thawed = attachment_->thaw();
    if (!thawed) {
      attachment_.reset();   // lets go in any case
      return thawed.error();
    }
  }
  if (agent_lost_frozen_) attachment_.reset();
  agent_lost_frozen_ = false;
  return fault_point("warden.thaw.after");
}

Result<void> Workload::hold() {
  BATON_TRY(need_running("hold"));
  if (freeze_expired_) {
    return make_error(Code::kConflict, "hold", name_ + ": the freeze of its last capture has run out; it runs",
                      "Capture again.");
  }
  BATON_TRY(fault_point("warden.hold.before"));
  around_.leases->set_held(name_, true);
  if (auto frozen = cgroup_.freeze(kHoldTimeout); !frozen) {
    around_.leases->set_held(name_, false);
    // It has thawed the cgroup again; what has no lease any more stays frozen.
    if (around_.leases->get(name_).frozen) (void)cgroup_.freeze(kHoldTimeout).has_value();
    return frozen;
  }
  held_ = true;
  detach_network();   // before any other node may have the address
  return fault_point("warden.hold.after");
}

Result<void> Workload::stop(const pb::StopRequest& request) {
  if (record_.phase().empty()) return make_error(Code::kNotFound, "stop", "no workload " + name_ + " on this node");
  BATON_TRY(fault_point("warden.stop.before"));
  // Frozen: it may run elsewhere by now, and its files are there.
  const bool ends_here = record_.phase() == "running" && !held_ && !kept_frozen_ && !around_.leases->get(name_).frozen;
  if (kept_frozen_ || held_ || build_ || request.kill()) detach_network();
  if (kept_frozen_ && attachment_) {
    auto destroyed = attachment_->destroy();
    if (!destroyed) spdlog::warn("{}: {}", name_, destroyed.error().message());
    kept_frozen_ = false;
  } else if (!held_ && !around_.leases->get(name_).frozen && !request.kill() && record_.phase() == "running" && root_) {
    // Held: another node may own it by now, so it must not run one more instruction.
    attachment_.reset();
    (void)root_.signal(SIGTERM).has_value();
    auto grace = std::chrono::microseconds(std::min<std::uint64_t>(request.grace_us(), 600'000'000));
    (void)cgroup_.wait_empty(std::chrono::duration_cast<std::chrono::milliseconds>(grace)).has_value();
  }
  drop_beside();
  build_.reset();
  auto killed = cgroup_.exists() ? cgroup_.kill() : Result<void>{};
  if (!killed) return killed.error();
  auto empty = cgroup_.wait_empty(kKillTimeout);
  if (!empty) return empty.error();
  if (!*empty) {
    return make_error(Code::kUnknownOutcome, "stop", name_ + ": its processes do not die",
                      "They may wait for a device; try again.");
  }
  if (hold_) hold_->hand_on();   // it runs elsewhere, if it was frozen
  BATON_TRY(fault_point("warden.stop.killed"));
  end_volumes(ends_here);
  clean_up(false);
  return {};
}

Result<void> Workload::release() {
  if (record_.phase().empty()) return make_error(Code::kNotFound, "release", "no workload " + name_ + " on this node");
  if (record_.keeper_pid() != 0) {
    return make_error(Code::kInvalid, "release", name_ + " was started by Baton and lives in its keeper's namespaces",
                      "Stop it instead.");
  }
  if (record_.phase() == "running" && (kept_frozen_ || held_ || around_.leases->get(name_).frozen)) {
    return make_error(Code::kConflict, "release", name_ + " is frozen", "Thaw it or stop it first.");
  }
  BATON_TRY(fault_point("warden.release.before"));
  attachment_.reset();
  move_back();
  BATON_TRY(fault_point("warden.release.moved"));
  clean_up(false);
  return {};
}

Result<void> Workload::signal(int number) {
  BATON_TRY(need_running("signal"));
  if (number < 1 || number > 64) {
    return make_error(Code::kInvalid, "signal", std::to_string(number) + " is not a signal");
  }
  if (!root_) return make_error(Code::kTraceeGone, "signal", name_ + " has ended");
  return root_.signal(number);
}

int Workload::find_wait_status() const {
  if (record_.keeper_pid() == 0) return root_ ? root_.wait_status().value_or(kUnknownWaitStatus) : kUnknownWaitStatus;
  if (keeper_) (void)keeper_.wait_status();   // reaps
  if (auto text = read_file(record_.exit_path(), 64); text && !text->empty()) return std::atoi(text->c_str());
  return SIGKILL;   // its keeper was killed, and with it everything in its PID namespace
}

void Workload::mark_exited(int wait_status) {
  const bool fenced = held_ || kept_frozen_ || around_.leases->get(name_).frozen;
  attachment_.reset();
  remove_network();
  kept_frozen_ = held_ = false;
  around_.leases->forget(name_);
  if (record_.keeper_pid() != 0 && cgroup_.exists()) (void)cgroup_.kill().has_value();
  record_.set_wait_status(wait_status);
  auto saved = set_phase("exited");
  if (!saved) spdlog::error("{}: {}", name_, saved.error().message());
  spdlog::info("{} has ended, wait status {}", name_, wait_status);
  publish();
  pb::WardenEvent event;
  event.set_workload(name_);
  event.set_exited(true);
  event.set_wait_status(wait_status);
  around_.event(event);
  if (record_.volumes_size() == 0) return;
  end_volumes(!fenced);
  if (auto kept = around_.records->save(record_); !kept) spdlog::error("{}: {}", name_, kept.error().message());
}

void Workload::process_ended() {
  const HeldProcess& watched = keeper_ ? keeper_ : root_;
  if (record_.phase() != "running" || !watched || !watched.ended()) return;
  mark_exited(find_wait_status());
}

void Workload::agent_gone() {
  sink_.discard();
  if (build_) {
    spdlog::info("{}: its build is given up, the agent has gone", name_);
    clean_up(true);
    return;
  }
  if (held_) {
    agent_lost_frozen_ = true;   // stays as it is until an agent says; what it tracked is lost
    return;
  }
  if (kept_frozen_) {
    kept_frozen_ = false;
    spdlog::warn("{}: thawed, the agent that wanted it frozen has gone", name_);
    if (auto thawed = attachment_->thaw(); !thawed) spdlog::error("{}: {}", name_, thawed.error().message());
  }
  attachment_.reset();   // pages on their way to the agent are lost: tracking starts anew
}

void Workload::take_up(const pb::WardenRecord& record) {
  record_ = record;
  cgroup_ = Cgroup::at(record_.cgroup());
  bool same_boot = record_.boot_id() == around_.boot_id;
  const std::string phase = record_.phase();
  if (same_boot && phase == "protecting") {
    spdlog::warn("{}: protecting it was interrupted; its processes go back to their cgroups", name_);
    move_back();
    clean_up(false);
    return;
  }
  if (phase == "launching" || phase == "building" || phase == "protecting") {
    spdlog::warn("{}: {} it was interrupted; nothing is left of it", name_, phase);
    clean_up(same_boot);
    return;
  }
  if (phase == "exited") {
    publish();
    return;
  }
  bool alive = false;
  if (same_boot) {
    if (record_.keeper_pid() != 0) {
      auto keeper = HeldProcess::open(static_cast<pid_t>(record_.keeper_pid()), record_.keeper_start());
      if (keeper) keeper_ = std::move(*keeper);
      alive = keeper.has_value();
    }
    auto root = HeldProcess::open(static_cast<pid_t>(record_.root_pid()), record_.root_start());
    if (root) root_ = std::move(*root);
    if (record_.keeper_pid() == 0) alive = root.has_value();
  }
  if (!alive) {
    mark_exited(same_boot ? find_wait_status() : kUnknownWaitStatus);
    return;
  }
  if (phase != "running") {
    // Killed between activating and writing so: whatever was not yet activated died with the
    // tracer (PTRACE_O_EXITKILL); what lives on is activated.
    if (auto saved = set_phase("running"); !saved) spdlog::error("{}: {}", name_, saved.error().message());
  }
  // Frozen by a lease that ran out meanwhile, or held by a warden before this one.
  auto asked = cgroup_.freeze_asked();
  const auto lease = around_.leases->get(name_);
  held_ = asked && *asked && (lease.held || !lease.frozen);
  take_up_network();
  spdlog::info("{}: taken up again, PID {}{}", name_, record_.root_pid(), held_ ? ", frozen" : "");
  watch();
  publish();
}

}  // namespace baton::warden
