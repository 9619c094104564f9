#include "agent/node/node.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "agent/node/node_tenure.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/fd.h"
#include "base/log.h"

namespace baton::node {

using namespace std::chrono_literals;

namespace {
constexpr std::size_t kMaxEvents = 1000;
constexpr auto kShadowPatience = 30s;   // its source makes checkpoints all the time
constexpr auto kBuiltPatience = 10min;
}  // namespace

Node::Node(Options options, NodeEnv env)
    : options_(std::move(options)),
      env_(std::move(env)),
      standbys_({env_.warden, env_.store, env_.clock,
                 [this](const std::string& kind, const std::string& workload, const std::string& text) {
                   add_event(kind, workload, text);
                 }},
                options_.data_dir + "/workloads", options_.standby_budget_bytes) {
  env_.node = options_.name;
  env_.self = [this] { return options_.self; };
  env_.event = [this](const std::string& kind, const std::string& workload, const std::string& text) {
    add_event(kind, workload, text);
  };
  env_.report_soon = [this] { report_soon(); };
  env_.moved_away = [this](const std::string& name) {
    post([this, name] { remove(name); });
  };
  env_.new_incarnation = [this](const std::string& name, std::uint64_t) {
    post([this, name] {
      if (auto workload = find(name)) {
        if (auto saved = save(*workload); !saved) spdlog::error("{}: {}", name, saved.error().message());
      }
    });
  };
  std::error_code ignored;
  std::filesystem::create_directories(options_.data_dir + "/workloads", ignored);
  ::chmod((options_.data_dir + "/workloads").c_str(), 0700);
  chores_thread_ = std::thread([this] { chores(); });
  join_tenure();
}

Node::~Node() {
  if (env_.tenure) env_.tenure->detach();
  std::map<std::string, std::shared_ptr<HealthCheck>> checks;
  {
    std::lock_guard lock(mutex_);
    checks.swap(health_);
  }
  checks.clear();
  std::map<std::string, std::shared_ptr<Workload>> gone;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  chores_thread_.join();
  takeovers_.clear();
  {
    std::lock_guard lock(mutex_);
    gone.swap(workloads_);
  }
  for (auto& [name, workload] : gone) workload->halt({});
}

// ------------------------------------------------------------------ maps and files

std::shared_ptr<Workload> Node::find(const std::string& name) const {
  std::lock_guard lock(mutex_);
  auto it = workloads_.find(name);
  return it == workloads_.end() ? nullptr : it->second;
}

Result<std::shared_ptr<Workload>> Node::need(const std::string& name) const {
  auto workload = find(name);
  if (!workload) return make_error(Code::kNotFound, "workload", name + " does not run on " + options_.name);
  return workload;
}

std::uint64_t Node::runs_here(const std::string& name) const {
  auto workload = find(name);
  if (!workload || workload->state() == "moved") return 0;
  return workload->incarnation();
}

std::optional<pb::PeerAddress> Node::peer(const std::string& node) const {
  std::lock_guard lock(mutex_);
  auto it = peers_.find(node);
  if (it == peers_.end()) return std::nullopt;
  return it->second;
}

void Node::halt() {
  std::vector<std::shared_ptr<Workload>> all;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, workload] : workloads_) all.push_back(workload);
  }
  for (const auto& workload : all) workload->halt({});
}

std::string Node::state_path(const std::string& name) const {
  return options_.data_dir + "/workloads/" + name + ".state";
}
std::string Node::incoming_path(const std::string& name) const {
  return options_.data_dir + "/workloads/" + name + ".incoming";
}
void Node::erase_file(const std::string& path) const { ::unlink(path.c_str()); }

Result<void> Node::save(const Workload& workload) {
  pb::StartRequest record;
  *record.mutable_spec() = workload.spec();
  record.mutable_ownership()->set_workload(workload.name());
  record.mutable_ownership()->set_owner(options_.name);
  record.mutable_ownership()->set_incarnation(workload.incarnation());
  for (const auto& peer : workload.standbys()) *record.add_peers() = peer;
  return replace_file(state_path(workload.name()), record.SerializeAsString());
}

std::optional<pb::StartRequest> Node::load_state(const std::string& name) const {
  auto bytes = read_file(state_path(name), 4u << 20);
  pb::StartRequest record;
  if (!bytes || !record.ParseFromString(*bytes) || record.spec().name() != name) return std::nullopt;
  return record;
}

std::uint64_t Node::next_seq(const std::string& name) {
  auto tip = env_.store->tip(name);
  return tip && *tip ? (*tip)->seq + 1 : 1;
}

Result<void> Node::enter(pb::WorkloadSpec spec, std::uint64_t incarnation,
                         const pb::WorkloadProcess& process, std::uint64_t first_seq,
                         const std::vector<pb::PeerAddress>& standbys) {
  Workload::Options options;
  const std::string name = spec.name();
  options.spec = std::move(spec);
  options.incarnation = incarnation;
  options.process = process;
  options.next_seq = first_seq;
  options.standbys = standbys;
  BATON_ASSIGN(auto started, Workload::start(env_, std::move(options)));
  std::shared_ptr<Workload> workload(std::move(started));
  std::shared_ptr<Workload> old;
  {
    std::lock_guard lock(mutex_);
    old = std::exchange(workloads_[name], workload);
    lost_.erase(name);
  }
  if (old) old->halt({});
  watch_health(workload->spec());
  if (env_.tenure) {
    pb::Ownership ownership;
    ownership.set_owner(options_.name);
    ownership.set_incarnation(incarnation);
    env_.tenure->entered(name, ownership);
  }
  report_soon();
  return save(*workload);
}

void Node::remove(const std::string& name) {
  std::shared_ptr<Workload> gone;
  {
    std::lock_guard lock(mutex_);
    if (auto it = workloads_.find(name); it != workloads_.end()) {
      gone = std::move(it->second);
      workloads_.erase(it);
    }
    lost_.erase(name);
    restarts_.erase(name);
  }
  erase_file(state_path(name));
  end_health(name);
  if (gone) gone->halt({});
  if (gone && env_.tenure) env_.tenure->left(name);
  gone.reset();
  report_soon();
}

// ------------------------------------------------------------------ chores, events, reports

void Node::post(std::function<void()> chore) { post_after(0ms, std::move(chore)); }

void Node::post_after(std::chrono::milliseconds delay, std::function<void()> chore) {
  std::lock_guard lock(mutex_);
  chores_.push_back({std::chrono::steady_clock::now() + delay, std::move(chore)});
  changed_.notify_all();
}

void Node::chores() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    auto next = std::min_element(chores_.begin(), chores_.end(),
                                 [](const Chore& a, const Chore& b) { return a.when < b.when; });
    if (next == chores_.end()) {
      changed_.wait(lock);
      continue;
    }
    if (next->when > std::chrono::steady_clock::now()) {
      changed_.wait_until(lock, std::chrono::steady_clock::time_point(next->when));
      continue;
    }
    auto run = std::move(next->run);
    chores_.erase(next);
    lock.unlock();
    run();
    run = nullptr;
    lock.lock();
  }
}

void Node::add_event(const std::string& kind, const std::string& workload, const std::string& text) {
  spdlog::info("{}: {}: {}", workload, kind, text);
  std::lock_guard lock(mutex_);
  pb::Event event;
  event.set_kind(kind);
  event.set_workload(workload);
  event.set_node(options_.name);
  event.set_text(text);
  event.set_wall_ns(static_cast<std::uint64_t>(env_.clock->wall_now().count()));
  events_.push_back(std::move(event));
  if (events_.size() > kMaxEvents) events_.pop_front();
  report_now_ = true;
  changed_.notify_all();
}

void Node::report_soon() {
  std::lock_guard lock(mutex_);
  report_now_ = true;
  changed_.notify_all();
}

void Node::wait_report(std::chrono::microseconds interval) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, interval, [&] { return report_now_ || stopping_; });
  report_now_ = false;
}

pb::NodeReport Node::report(bool first) {
  pb::NodeReport out;
  out.set_first(first);
  out.set_rpc_address(options_.self.rpc());
  out.set_stream_address(options_.self.stream());
  if (auto known = facts()) {
    out.set_memory_free_bytes(known->memory_free_bytes());
    out.set_disk_free_bytes(known->disk_free_bytes());
    if (first) *out.mutable_facts() = std::move(*known);
  } else if (first) {
    out.mutable_facts()->set_name(options_.name);
  }
  std::vector<std::shared_ptr<Workload>> all;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, workload] : workloads_) all.push_back(workload);
    for (const auto& [name, status] : lost_) *out.add_workloads() = status;
    for (auto& event : events_) *out.add_events() = std::move(event);
    events_.clear();
  }
  for (const auto& workload : all) {
    auto status = workload->status();
    describe_tenure(status);
    if (status.state() != "moved") *out.add_workloads() = std::move(status);
  }
  const auto views = standbys_.views();
  for (const auto& name : env_.store->workloads()) {
    auto tip = env_.store->tip(name);
    if (!tip || !*tip) continue;
    auto* held = out.add_held();
    held->set_workload(name);
    held->set_incarnation((*tip)->incarnation);
    held->set_seq((*tip)->seq);
    describe_standby(views, *held);
  }
  return out;
}

// ------------------------------------------------------------------ the coordinator's word

void Node::obey(const pb::NodeOrder& order) {
  if (order.peers_size() > 0) {
    std::lock_guard lock(mutex_);
    peers_.clear();
    for (const auto& peer : order.peers()) peers_[peer.node()] = peer;
    if (env_.tenure) env_.tenure->peers(peers_);
  }
  for (const auto& set : order.standbys()) {
    auto workload = find(set.workload());
    if (!workload) continue;
    std::vector<pb::PeerAddress> wanted(set.standbys().begin(), set.standbys().end());
    auto now = workload->standbys();
    const bool same = std::equal(now.begin(), now.end(), wanted.begin(), wanted.end(),
                                 [](const pb::PeerAddress& a, const pb::PeerAddress& b) {
                                   return a.node() == b.node() && a.stream() == b.stream();
                                 });
    if (same) continue;
    workload->set_standbys(wanted);
    if (auto saved = save(*workload); !saved) spdlog::error("{}: {}", set.workload(), saved.error().message());
  }
  for (const auto& ownership : order.ownerships()) {
    const std::string& name = ownership.workload();
    {
      std::lock_guard lock(mutex_);
      if (auto lost = lost_.find(name); lost != lost_.end() && ownership.owner() != options_.name) {
        lost_.erase(lost);
        erase_file(state_path(name));
      }
    }
    auto workload = find(name);
    if (!workload) continue;
    {
      std::lock_guard lock(mutex_);
      if (ending_.contains(name)) continue;   // whoever stops it does so to the end
    }
    const std::string state = workload->state();
    // A migration under way asks for the owner itself, and acts on it.
    if (state == "migrating" || state == "moved" || ownership.incarnation() < workload->incarnation()) continue;
    if (ownership.owner() == options_.name) {
      if (ownership.incarnation() > workload->incarnation()) {
        workload->set_incarnation(ownership.incarnation());
        if (auto saved = save(*workload); !saved) spdlog::error("{}: {}", name, saved.error().message());
      }
      continue;
    }
    if (ownership.owner().empty() && ownership.incarnation() == workload->incarnation()) continue;
    if (auto voted = env_.tenure ? env_.tenure->known(name) : std::nullopt;
        voted && voted->record.owner().empty() && voted->record.reason() == "exited" &&
        voted->record.incarnation() >= ownership.incarnation()) {
      continue;   // its end is what the record says
    }
    std::string why = "the record names " +
                      (ownership.owner().empty() ? std::string("nobody") : ownership.owner()) +
                      " at incarnation " + std::to_string(ownership.incarnation());
    workload->halt("stopped");
    give_up_soon(*workload, why);
  }
}

void Node::give_up_soon(const Workload& workload, const std::string& why) {
  const std::string name = workload.name();
  {
    std::lock_guard lock(mutex_);
    if (!giving_up_.insert(name).second) return;
  }
  post([this, name, why, incarnation = workload.incarnation()] { give_up_workload(name, why, incarnation); });
}

// Frozen first, which nothing undoes by accident, then killed.
void Node::give_up_workload(const std::string& name, const std::string& why, std::uint64_t incarnation) {
  auto finished = [this, &name] {
    std::lock_guard lock(mutex_);
    giving_up_.erase(name);
  };
  if (auto here = find(name); here && here->incarnation() > incarnation) return finished();   // it is back
  add_event("stopped", name, "not the owner: " + why);
  auto done = env_.warden->hold(name);
  if (done || done.error().code != Code::kNotFound) done = env_.warden->stop(name, 0, true);
  if (!done && done.error().code != Code::kNotFound) {
    spdlog::error("{}: cannot be stopped: {}; trying again", name, done.error().message());
    post_after(200ms, [this, name, why, incarnation] { give_up_workload(name, why, incarnation); });
    return;
  }
  remove(name);
  finished();
}

// ------------------------------------------------------------------ the warden

void Node::on_warden_event(const pb::WardenEvent& event) {
  if (event.output_waits()) {
    if (auto workload = find(event.workload())) workload->output_waits();
    return;
  }
  if (event.lease_expired()) {
    add_event("tenure", event.workload(), "stands still: no majority of its voters supports this node");
    return;
  }
  if (!event.exited()) return;
  post([this, name = event.workload(), status = event.wait_status()] { process_ended(name, status, true); });
}

void Node::process_ended(const std::string& name, int wait_status, bool witnessed) {
  auto workload = find(name);
  if (!workload || workload->state() == "moved" || workload->state() == "stopped") return;
  const bool known = workload->state() == "exited";
  workload->exited(wait_status);
  end_health(name);
  if (known) return;
  std::string text = WIFSIGNALED(wait_status) ? "killed by signal " + std::to_string(WTERMSIG(wait_status))
                                              : "exit status " + std::to_string(WEXITSTATUS(wait_status));
  add_event("exited", name, text);
  const pb::WorkloadSpec spec = workload->spec();
  if (spec.on_exit() != pb::ON_EXIT_RESTART || spec.origin() != pb::ORIGIN_RUN) {
    // Killed while nobody looked: it was the end of this machine's power, not of the program.
    if (witnessed || !WIFSIGNALED(wait_status) || WTERMSIG(wait_status) != SIGKILL) {
      end_tenure(workload);
    } else if (env_.tenure) {
      env_.tenure->left(name);
    }
    return;
  }
  std::uint32_t count = 0;
  {
    std::lock_guard lock(mutex_);
    count = restarts_[name]++;
  }
  auto delay = std::min<std::chrono::milliseconds>(200ms * (1u << std::min(count, 8u)), 30s);
  post_after(delay, [this, workload] { restart(workload); });
}

void Node::restart(const std::shared_ptr<Workload>& workload) {
  const std::string name = workload->name();
  if (find(name) != workload || workload->state() != "exited") return;
  if (auto gone = env_.warden->stop(name, 0, true); !gone && gone.error().code != Code::kNotFound) {
    spdlog::warn("{}: {}", name, gone.error().message());
  }
  auto process = env_.warden->run(workload->spec());
  if (!process) {
    add_event("restart failed", name, process.error().message());
    post_after(5s, [this, workload] { restart(workload); });
    return;
  }
  workload->set_process(*process);
  watch_health(workload->spec());
  add_event("restarted", name, "pid " + std::to_string(process->pid()));
}

void Node::on_warden_connected() {
  post([this] { take_up(); });
}

// After a start of this agent or of the warden: what is there, against what should be.
void Node::take_up() {
  auto listed = env_.warden->list();
  if (!listed) {
    post_after(500ms, [this] { take_up(); });
    return;
  }
  std::set<std::string> seen;
  for (const auto& process : *listed) {
    seen.insert(process.workload());
    take_up_process(process);
  }
  std::vector<std::shared_ptr<Workload>> all;
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    first = std::exchange(first_take_up_, false);
    for (const auto& [name, workload] : workloads_) all.push_back(workload);
  }
  for (const auto& workload : all) {
    if (!seen.contains(workload->name()) && workload->state() == "running") {
      workload->exited(0);
      add_event("lost", workload->name(), "the warden no longer knows it");
    }
  }
  if (first) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(options_.data_dir + "/workloads", error)) {
      const std::string name = entry.path().stem();
      if (entry.path().extension() == ".incoming") {
        pb::BuildTargetRequest request;
        auto bytes = read_file(entry.path());
        if (bytes && request.ParseFromString(*bytes)) {
          std::lock_guard lock(mutex_);
          incoming_[name] = {request, env_.clock->boot_now()};
        }
      }
      if (entry.path().extension() != ".state" || seen.contains(name)) continue;
      auto record = load_state(name);
      if (!record) continue;
      pb::WorkloadStatus status;
      status.set_name(name);
      status.set_node(options_.name);
      status.set_state("lost");
      status.set_incarnation(record->ownership().incarnation());
      if (auto tip = env_.store->tip(name); tip && *tip) status.set_last_committed((*tip)->seq);
      status.set_problem("its processes are gone (this machine was restarted); restore it from a checkpoint");
      std::lock_guard lock(mutex_);
      lost_[name] = std::move(status);
    }
    std::set<std::string> here;
    for (const auto& workload : all) here.insert(workload->name());
    standbys_.load(here);
    post([this] { settle_incoming(); });
  }
  standbys_.wake_all();   // shadows ended with an earlier warden
  report_soon();
}

void Node::take_up_process(const pb::WorkloadProcess& process) {
  const std::string& name = process.workload();
  if (process.shadow_seq() != 0) return;   // it stands by, and does not run
  if (auto workload = find(name)) {
    if (process.state() == "exited") {
      process_ended(name, process.wait_status(), false);
    } else {
      workload->resume_captures();
      if (env_.tenure) {   // claimed no more while its warden was away
        pb::Ownership ownership;
        ownership.set_owner(options_.name);
        ownership.set_incarnation(workload->incarnation());
        env_.tenure->entered(name, ownership);
      }
    }
    return;
  }
  bool busy = false;
  {
    std::lock_guard lock(mutex_);
    busy = busy_.contains(name);
  }
  if (busy) return post_after(500ms, [this] { take_up(); });   // judged when that is over
  auto record = load_state(name);
  if (!record) {
    if (std::filesystem::exists(incoming_path(name))) return;   // settle_incoming judges these
    const std::string& state = process.state();
    if ((state == "building" || state == "built" || state == "activating") && !settle_built(process)) return;
    pb::StartRequest made;
    if (!made.mutable_spec()->ParseFromString(process.spec()) || made.spec().name().empty()) {
      spdlog::error("{}: the warden holds it, but nothing here says what it is; left alone", name);
      return;
    }
    add_hash_key(name, *made.mutable_spec());
    made.mutable_ownership()->set_incarnation(process.incarnation());
    record = made;
  }
  if (process.frozen()) {
    settle_frozen(process, *record);
    return;
  }
  std::vector<pb::PeerAddress> standbys(record->peers().begin(), record->peers().end());
  auto entered = enter(record->spec(), record->ownership().incarnation(), process, next_seq(name), standbys);
  if (!entered) {
    spdlog::error("{}: cannot be taken up: {}", name, entered.error().message());
    return;
  }
  if (process.state() == "exited") {
    process_ended(name, process.wait_status(), false);
  } else {
    add_event("taken up", name, "pid " + std::to_string(process.pid()) + ", by a restarted agent");
  }
}

// What was built here, perhaps let go just before the warden died, and awaited by nobody any more.
// Answers whether it is this node's to run.
bool Node::settle_built(const pb::WorkloadProcess& process) {
  const std::string& name = process.workload();
  auto answer = env_.owners->get_owner(name);
  if (!answer && answer.error().code != Code::kNotFound) {
    post_after(500ms, [this] { take_up(); });
    return false;
  }
  if (answer && answer->owner() == options_.name && answer->incarnation() == process.incarnation()) return true;
  give_up_workload(name, "it was built for an owner that it has no more");
  return false;
}

// A migration was interrupted by a crash of this agent: only the owner may run it.
void Node::settle_frozen(const pb::WorkloadProcess& process, const pb::StartRequest& record) {
  const std::string name = process.workload();
  auto answer = env_.owners->get_owner(name);
  if (!answer && answer.error().code != Code::kNotFound) {
    spdlog::warn("{}: frozen since before this agent started; asking who owns it: {}", name,
                 answer.error().message());
    post_after(500ms, [this, process, record] { settle_frozen(process, record); });
    return;
  }
  pb::Ownership owner = answer ? *answer : pb::Ownership();
  if (judge_frozen(owner.owner(), options_.name, true) == FrozenVerdict::kDestroy) {
    give_up_workload(name, "a migration was interrupted after the handover");
    return;
  }
  // A handover request of the dead agent may still be under way: fence it off first.
  pb::ChangeOwnerRequest fence;
  fence.set_workload(name);
  fence.set_expected_incarnation(owner.incarnation());
  fence.set_new_owner(options_.name);
  fence.set_reason("migration interrupted");
  auto fenced = env_.owners->change_owner(fence);
  if (!fenced) {
    spdlog::warn("{}: stays frozen: {}", name, fenced.error().message());
    post_after(500ms, [this, process, record] { settle_frozen(process, record); });
    return;
  }
  if (auto thawed = env_.warden->thaw(name); !thawed) {
    spdlog::warn("{}: thaw: {}", name, thawed.error().message());
    post_after(500ms, [this, process, record] { settle_frozen(process, record); });
    return;
  }
  std::vector<pb::PeerAddress> standbys(record.peers().begin(), record.peers().end());
  auto entered = enter(record.spec(), fenced->incarnation(), process, next_seq(name), standbys);
  if (!entered) spdlog::error("{}: cannot be taken up: {}", name, entered.error().message());
  add_event("taken up", name, "thawed: an interrupted migration had not been handed over");
}

// What migrations built here and nobody has activated or discarded yet: if the record
// names this node, it runs here; if it names another and has moved on, it goes.
void Node::settle_incoming() {
  std::map<std::string, Incoming> open;
  {
    std::lock_guard lock(mutex_);
    open = incoming_;
  }
  for (const auto& [name, incoming] : open) {
    // The voters tell this node of their own accord; asking them would be a vote.
    auto voted = env_.tenure ? env_.tenure->known(name) : std::nullopt;
    Result<pb::Ownership> answer = pb::Ownership();
    if (voted && voted->record.voters_size() > 0) {
      answer->set_owner(voted->record.owner());
      answer->set_incarnation(voted->record.incarnation());
    } else {
      answer = env_.owners->get_owner(name);
    }
    if (!answer) continue;
    if (answer->owner() == options_.name && answer->incarnation() > incoming.request.incarnation()) {
      pb::ActivateTargetRequest request;
      request.set_name(name);
      *request.mutable_ownership() = *answer;
      *request.mutable_spec() = incoming.request.spec();
      auto done = activate_target(request);
      if (!done && done.error().code != Code::kConflict) {
        spdlog::error("{}: owned by this node, but not running yet: {}", name, done.error().message());
      }
    } else if (answer->incarnation() > incoming.request.incarnation() || abandoned(name)) {
      if (auto done = discard_target(name); !done) spdlog::warn("{}: {}", name, done.error().message());
    }
  }
  post_after(2s, [this] { settle_incoming(); });
}

// A migration's source that is gone sends no more checkpoints.
bool Node::abandoned(const std::string& name) {
  auto standby = standbys_.find(name);
  const std::uint64_t reached = standby ? standby->view().ready_seq : 0;
  const auto now = env_.clock->boot_now();
  std::lock_guard lock(mutex_);
  auto it = incoming_.find(name);
  if (it == incoming_.end()) return false;
  Incoming& incoming = it->second;
  if (incoming.followed_at == BootTime{} || reached != incoming.followed) {
    incoming.followed = reached;
    incoming.followed_at = now;
  }
  return now - incoming.followed_at > (incoming.shadow ? kShadowPatience : kBuiltPatience);
}

}  // namespace baton::node
