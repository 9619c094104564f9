#include "agent/node/node_tenure.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr auto kChangeTimeout = 3s;
constexpr auto kQueryTimeout = 3s;
constexpr auto kGrantWait = 6s;             // for the grants of a new owner: voters that have just started give none for a term
constexpr auto kReadyWait = 15s;
constexpr auto kUnknownRecordWait = 5ms;    // of a workload that this node has not heard of: probably it has no voters
constexpr std::chrono::milliseconds kCoordinatorRetry = 300ms, kAskAdvice = 5000ms, kAskWarden = 200ms;
constexpr std::size_t kMaxReports = 1000;

pb::Ownership ownership_of(const pb::TenureRecord& record) {
  pb::Ownership out;
  out.set_workload(record.workload());
  out.set_owner(record.owner());
  out.set_incarnation(record.incarnation());
  return out;
}

bool newer(const pb::TenureTip& a, const pb::TenureTip& b) {
  return std::make_pair(a.incarnation(), a.seq()) > std::make_pair(b.incarnation(), b.seq());
}
void raise(pb::TenureTip& tip, std::uint64_t incarnation, std::uint64_t seq) {
  pb::TenureTip to;
  to.set_incarnation(incarnation);
  to.set_seq(seq);
  if (newer(to, tip)) tip = to;
}

bool has_voters(const std::optional<tenure::Host::Known>& known) { return known && known->record.voters_size() > 0; }

}  // namespace

NodeTenure::NodeTenure(Options options, Warden& warden, OwnerRecords& registry, TenureRegistry& advice)
    : options_(std::move(options)), warden_(warden), registry_(registry), advice_(advice) {}

Result<std::unique_ptr<NodeTenure>> NodeTenure::start(Options options, const transport::TlsFiles& tls, Warden& warden,
                                                      OwnerRecords& registry, TenureRegistry& advice) {
  std::unique_ptr<NodeTenure> out(new NodeTenure(std::move(options), warden, registry, advice));
  NodeTenure* raw = out.get();
  tenure::Host::Handlers handlers;
  handlers.tip = [raw](const std::string& workload) {
    std::lock_guard lock(raw->mutex_);
    auto it = raw->tips_.find(workload);
    // Without its warden this node can run nothing: it does not stand.
    if (it == raw->tips_.end() || raw->without_warden_.contains(workload)) return pb::TenureTip();
    return it->second.newest;
  };
  handlers.held = [raw](const std::string& workload) {
    std::lock_guard lock(raw->mutex_);
    auto it = raw->tips_.find(workload);
    if (it == raw->tips_.end() || raw->without_warden_.contains(workload)) return pb::TenureTip();
    return newer(it->second.original, it->second.held) ? it->second.original : it->second.held;
  };
  handlers.leaving = [raw](const std::string& workload) {
    std::lock_guard lock(raw->mutex_);
    auto it = raw->tips_.find(workload);
    return it != raw->tips_.end() && it->second.leaving;
  };
  handlers.knows_commits = [raw](const std::string& workload) {
    std::lock_guard lock(raw->mutex_);
    auto it = raw->tips_.find(workload);
    return it != raw->tips_.end() && it->second.counted && !raw->without_warden_.contains(workload);
  };
  handlers.effect = [raw](const tenure::Effect& effect) { raw->on_effect(effect); };
  handlers.problem = [raw](const std::string& text) {
    if (text.empty()) {
      spdlog::info("tenure: the voter's log can be written again");
    } else {
      spdlog::error("tenure: this node cannot vote: {}", text);
    }
  };
  BATON_ASSIGN(out->host_, tenure::Host::start({raw->options_.node, raw->options_.listen, raw->options_.folder}, tls,
                                               std::move(handlers)));
  for (const auto& [name, known] : out->host_->all()) out->notes_[name] = known.record;
  pb::PeerAddress coordinator;
  coordinator.set_node(std::string(transport::kCoordinatorPeer));
  coordinator.set_rpc(raw->options_.coordinator);
  out->host_->know(coordinator);
  out->lease_thread_ = std::thread([raw] { raw->lease_loop(); });
  out->coordinator_thread_ = std::thread([raw] { raw->coordinator_loop(); });
  return out;
}

NodeTenure::~NodeTenure() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    events_ = {};
    changed_.notify_all();
  }
  if (lease_thread_.joinable()) lease_thread_.join();
  if (coordinator_thread_.joinable()) coordinator_thread_.join();
  host_.reset();
}

void NodeTenure::attach(Events events) {
  std::lock_guard lock(mutex_);
  events_ = std::move(events);
}
void NodeTenure::detach() {
  std::lock_guard lock(mutex_);
  events_ = {};
}

// ------------------------------------------------------------------ effects

void NodeTenure::on_effect(const tenure::Effect& effect) {
  Events events;
  {
    std::lock_guard lock(mutex_);
    events = events_;
  }
  switch (effect.kind) {
    case tenure::EffectKind::kLease:
      set_lease(effect.workload, static_cast<std::uint64_t>(effect.until.count()), effect.incarnation);
      return;
    case tenure::EffectKind::kOwned:
      if (effect.record.voters_size() > 0 && events.owned) events.owned(effect.record, effect.timeline);
      return;
    case tenure::EffectKind::kStop:
      if (events.lost) events.lost(effect.record);
      return;
    case tenure::EffectKind::kDecided: {
      if (events.decided) events.decided(effect.record);
      std::lock_guard lock(mutex_);
      if (effect.record.voters_size() > 0 || effect.record.owner().empty()) notes_[effect.workload] = effect.record;
      changed_.notify_all();
      return;
    }
    default: return;
  }
}

void NodeTenure::set_lease(const std::string& workload, std::uint64_t until_ns, std::uint64_t incarnation) {
  std::lock_guard lock(mutex_);
  auto& lease = leases_[workload];
  lease.set_workload(workload);
  lease.set_until_boot_ns(until_ns);
  lease.set_incarnation(incarnation);
  changed_.notify_all();
}

void NodeTenure::lease_loop() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (leases_.empty() && without_warden_.empty()) {
      changed_.wait(lock);
      continue;
    }
    if (leases_.empty()) {
      // A warden that hangs does not say when it is back: it is asked, by a lease that has run out.
      if (!changed_.wait_for(lock, kAskWarden, [&] { return stopping_ || !leases_.empty(); })) {
        for (const auto& name : without_warden_) {
          if (auto last = last_leases_.find(name); last != last_leases_.end()) leases_[name] = last->second;
        }
        if (leases_.empty()) changed_.wait_for(lock, kAskWarden);
      }
      continue;
    }
    std::map<std::string, pb::LeaseRequest> now;
    now.swap(leases_);
    for (const auto& [name, lease] : now) last_leases_[name] = lease;
    lock.unlock();
    prefer_threads();
    for (const auto& [name, lease] : now) {
      const auto asked = std::chrono::steady_clock::now();
      auto frozen = warden_.lease(lease);
      // A program that ends, a warden that is being restarted: the next lease is told like this one.
      const bool away = !frozen && (frozen.error().code == Code::kUnreachable || frozen.error().code == Code::kTimedOut);
      note_warden(name, away, asked);
      if (!frozen && frozen.error().code == Code::kConflict) spdlog::debug("{}: {}", name, frozen.error().message());
      if (frozen && *frozen) {
        Events events;
        {
          std::lock_guard held(mutex_);
          events = events_;
        }
        if (events.event) events.event("tenure", name, "supported by a majority again: goes on");
      }
    }
    lock.lock();
  }
}

// An agent without privileges asks its warden.
void NodeTenure::prefer_threads() {
  for (const pid_t tid : {host_->thread(), ::gettid()}) {
    if (tid == 0 || preferred_.contains(tid)) continue;
    auto done = ::sched_getscheduler(tid) == SCHED_OTHER ? warden_.prefer_thread(tid) : Result<void>();
    if (!done && done.error().code == Code::kUnreachable) return;   // the next time
    if (!done) spdlog::warn("leases are renewed without real-time priority: {}", done.error().message());
    preferred_.insert(tid);
  }
}

// Without its warden a program stands still as soon as its lease has run out. When that lasts, it
// is claimed no more: a standby goes on with it, unless the warden is back before.
void NodeTenure::note_warden(const std::string& workload, bool away, std::chrono::steady_clock::time_point asked) {
  const auto now = std::chrono::steady_clock::now();
  auto known = host_->known(workload);
  std::lock_guard lock(mutex_);
  if (!entered_.contains(workload)) {   // it has left while the warden was asked
    warden_away_.erase(workload);
    without_warden_.erase(workload);
    return;
  }
  if (!away) {
    warden_away_.erase(workload);
    if (without_warden_.erase(workload) == 0) return;
    spdlog::info("{}: its warden is back", workload);   // if somebody else has gone on with it, it is stopped
    tenure::Event back;
    back.kind = tenure::EventKind::kRunning;
    back.workload = workload;
    host_->tell(std::move(back));
    return;
  }
  if (without_warden_.contains(workload)) return;
  const auto since = warden_away_.try_emplace(workload, asked).first->second;
  if (!known || known->record.voters().empty() || now - since < tenure::term_of(known->record.mode()).length) return;
  warden_away_.erase(workload);
  without_warden_.insert(workload);
  spdlog::warn("{}: its warden is away, or does not answer; its standbys may go on with it", workload);
  tenure::Event gone;
  gone.kind = tenure::EventKind::kGone;
  gone.workload = workload;
  host_->tell(std::move(gone));
}

// ------------------------------------------------------------------ the coordinator

void NodeTenure::coordinator_loop() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    // Whether the coordinator votes is learned even when there is nothing to tell.
    const auto now = std::chrono::steady_clock::now();
    const bool ask = now >= ask_advice_;
    if (!ask && notes_.empty() && reports_.empty() && voters_wanted_.empty()) {
      changed_.wait_until(lock, ask_advice_);
      continue;
    }
    if (ask || !notes_.empty() || !reports_.empty()) tell_coordinator(lock);
    if (!voters_wanted_.empty() && !stopping_) ask_for_voters(lock);
    if (!stopping_ && !(notes_.empty() && reports_.empty())) changed_.wait_for(lock, kCoordinatorRetry, [&] { return stopping_; });
  }
}

void NodeTenure::tell_coordinator(std::unique_lock<std::mutex>& lock) {
  pb::TenureNote note;
  for (const auto& [name, record] : notes_) *note.add_records() = record;
  for (const auto& report : reports_) *note.add_failovers() = report;
  lock.unlock();
  auto answer = advice_.note(note);
  lock.lock();
  ask_advice_ = std::chrono::steady_clock::now() + (answer ? kAskAdvice : kCoordinatorRetry);
  if (!answer) return;
  coordinator_voter_ = answer->coordinator_tenure();
  for (const auto& told : note.records()) {
    auto it = notes_.find(told.workload());
    if (it != notes_.end() && it->second.incarnation() == told.incarnation()) notes_.erase(it);
  }
  reports_.erase(reports_.begin(), reports_.begin() + std::min<std::ptrdiff_t>(note.failovers_size(), static_cast<std::ptrdiff_t>(reports_.size())));
}

void NodeTenure::ask_for_voters(std::unique_lock<std::mutex>& lock) {
  std::map<std::string, pb::TenureRecord> wanted;
  wanted.swap(voters_wanted_);
  lock.unlock();
  for (const auto& [name, record] : wanted) {
    auto entered = advice_.enter_voters(record);
    if (!entered) {
      spdlog::warn("{}: no voters yet: {}", name, entered.error().message());
      continue;   // wished for again, soon
    }
    if (entered->owner() != options_.node || entered->incarnation() != record.incarnation()) continue;
    tenure::Event event;
    event.kind = tenure::EventKind::kAdopt;
    event.record = record;
    host_->tell(std::move(event));
  }
  lock.lock();
}

std::string NodeTenure::coordinator_voter() const {
  std::lock_guard lock(mutex_);
  return coordinator_voter_.empty() ? std::string() : options_.coordinator;
}

void NodeTenure::report(const pb::FailoverReport& report) {
  std::lock_guard lock(mutex_);
  reports_.push_back(report);
  if (reports_.size() > kMaxReports) reports_.pop_front();
  changed_.notify_all();
}

// ------------------------------------------------------------------ owners

Result<pb::Ownership> NodeTenure::change_owner(const pb::ChangeOwnerRequest& request) {
  auto known = host_->known(request.workload());
  if (!has_voters(known)) return registry_.change_owner(request);
  tenure::Event event;
  event.kind = tenure::EventKind::kPropose;
  event.workload = request.workload();
  event.expected = request.expected_incarnation();
  event.record.set_owner(request.new_owner());
  event.record.set_committed_incarnation(request.expected_incarnation());
  event.record.set_committed_seq(request.committed_seq());
  event.reason = request.reason();
  event.release = request.new_owner() != options_.node;
  BATON_ASSIGN(auto record, host_->ask(std::move(event), kChangeTimeout));
  return ownership_of(record);
}

Result<pb::Ownership> NodeTenure::get_owner(const std::string& workload) {
  auto known = host_->known(workload);
  if (!has_voters(known)) {
    auto registered = registry_.get_owner(workload);
    // The registry may not have heard yet that nobody may run it.
    if (known && (!registered || registered->incarnation() < known->record.incarnation()) && known->record.incarnation() > 0) {
      return ownership_of(known->record);
    }
    return registered;
  }
  tenure::Event event;
  event.kind = tenure::EventKind::kQuery;
  event.workload = workload;
  BATON_ASSIGN(auto record, host_->ask(std::move(event), kQueryTimeout));
  return ownership_of(record);
}

Result<pb::TenureRecord> NodeTenure::take_over(const pb::TakeOverRequest& request) {
  tenure::Event event;
  event.kind = tenure::EventKind::kTakeOver;
  event.workload = request.name();
  event.reason = request.reason();
  event.allow_loss = request.allow_loss();
  return host_->ask(std::move(event), request.timeout_us() == 0 ? 10'000'000us : std::chrono::microseconds(request.timeout_us()));
}

Result<std::uint64_t> NodeTenure::lease_for_activation(const std::string& workload, std::uint64_t incarnation) const {
  auto ready = [&](const tenure::Host::Known& known) {
    return known.record.incarnation() > incarnation ||
           (known.record.incarnation() == incarnation && known.may_run_until > read_clock(CLOCK_BOOTTIME));
  };
  auto now = host_->known(workload);
  const bool voters = has_voters(now) && now->record.incarnation() + 1 >= incarnation;
  auto known = host_->wait(workload, voters ? std::chrono::nanoseconds(kGrantWait) : std::chrono::nanoseconds(kUnknownRecordWait), ready);
  if (!known) {
    if (!voters && !has_voters(host_->known(workload))) return 0;   // the registry's
    return make_error(Code::kTimedOut, "activate", workload + ": no majority of its voters supports this node");
  }
  if (known->record.incarnation() > incarnation || known->record.owner() != options_.node) {
    return make_error(Code::kConflict, "activate", workload + ": " + known->record.owner() + " owns it by now");
  }
  return known->may_run_until == tenure::Time::max() ? 0 : static_cast<std::uint64_t>(known->may_run_until.count());
}

// ------------------------------------------------------------------ what the node tells

void NodeTenure::entered(const std::string& workload, const pb::Ownership& ownership) {
  {
    std::lock_guard lock(mutex_);
    entered_[workload] = ownership.incarnation();
    without_warden_.erase(workload);
    // What is committed from here on is known; if this is its first owner, nothing was before.
    if (ownership.incarnation() <= 1) tips_[workload].counted = true;
  }
  auto known = host_->known(workload);
  if (!known || known->record.incarnation() < ownership.incarnation()) {
    tenure::Event event;
    event.kind = tenure::EventKind::kAdopt;
    event.record.set_workload(workload);
    event.record.set_owner(ownership.owner().empty() ? options_.node : ownership.owner());
    event.record.set_previous_owner(event.record.owner());
    event.record.set_incarnation(ownership.incarnation());
    event.record.set_reason("registry");
    host_->tell(std::move(event));
  }
  tenure::Event running;
  running.kind = tenure::EventKind::kRunning;
  running.workload = workload;
  host_->tell(std::move(running));
}

void NodeTenure::left(const std::string& workload, std::uint64_t not_started) {
  {
    std::lock_guard lock(mutex_);
    entered_.erase(workload);
    wishes_.erase(workload);
    told_wishes_.erase(workload);
    voters_wanted_.erase(workload);
    leases_.erase(workload);
    last_leases_.erase(workload);
    without_warden_.erase(workload);
    if (auto it = tips_.find(workload); it != tips_.end()) it->second.counted = false;
  }
  tenure::Event gone;
  gone.kind = tenure::EventKind::kGone;
  gone.expected = not_started;
  gone.workload = workload;
  host_->tell(std::move(gone));
}

void NodeTenure::forget(const std::string& workload) {
  {
    std::lock_guard lock(mutex_);
    tips_.erase(workload);
    notes_.erase(workload);
  }
  tenure::Event event;
  event.kind = tenure::EventKind::kForget;
  event.workload = workload;
  host_->tell(std::move(event));
}

void NodeTenure::peers(const std::map<std::string, pb::PeerAddress>& all) {
  for (const auto& [name, peer] : all) {
    if (name != options_.node) host_->know(peer);
  }
}

void NodeTenure::note_tip(const std::string& workload, std::uint64_t incarnation, std::uint64_t seq, bool as_primary) {
  std::lock_guard lock(mutex_);
  Tip& tip = tips_[workload];
  if (as_primary) tip.counted = true;
  if (!as_primary) raise(tip.held, incarnation, seq);
  raise(tip.newest, incarnation, seq);
}

void NodeTenure::note_original(const std::string& workload, std::uint64_t incarnation, std::uint64_t seq) {
  std::lock_guard lock(mutex_);
  pb::TenureTip& original = tips_[workload].original;
  original.set_incarnation(incarnation);
  original.set_seq(seq);
}

void NodeTenure::note_leaving(const std::string& workload, bool leaving) {
  std::lock_guard lock(mutex_);
  tips_[workload].leaving = leaving;
  if (leaving) voters_wanted_.erase(workload);
}

void NodeTenure::want(const pb::TenureRecord& wish) {
  const std::string& name = wish.workload();
  auto known = host_->known(name);
  if (!known || known->record.owner() != options_.node) return;
  if (!has_voters(known)) {
    pb::TenureRecord first = wish;
    first.set_owner(options_.node);
    first.set_previous_owner(options_.node);
    first.set_incarnation(known->record.incarnation() + 1);
    first.set_reason("voters");
    std::lock_guard lock(mutex_);
    if (tips_[name].leaving) return;
    first.set_committed_incarnation(tips_[name].newest.incarnation());
    first.set_committed_seq(tips_[name].newest.seq());
    voters_wanted_[name] = std::move(first);
    changed_.notify_all();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    const std::string text = wish.SerializeAsString() + std::to_string(known->record.incarnation());
    if (std::exchange(told_wishes_[name], text) == text) return;
  }
  tenure::Event event;
  event.kind = tenure::EventKind::kWant;
  event.workload = name;
  event.record = wish;
  host_->tell(std::move(event));
}

// ------------------------------------------------------------------ what the node asks

Result<std::uint64_t> NodeTenure::ready_to_move(const std::string& workload) const {
  if (!voted(workload)) return std::uint64_t{0};
  auto ready = [](const tenure::Host::Known& known) { return known.granted && !known.refused && !known.changing; };
  if (auto known = host_->wait(workload, kReadyWait, ready)) return known->record.owner() == options_.node ? known->record.incarnation() : 0;
  return make_error(Code::kTimedOut, "migrate", workload + ": its voters do not all support this node, and might not support another",
                    "See baton show " + workload + " and baton node ls.");
}

bool NodeTenure::voted(const std::string& workload) const { return has_voters(host_->known(workload)); }

bool NodeTenure::counts(const std::string& workload, const std::string& standby) const {
  auto known = host_->known(workload);
  if (!has_voters(known)) return true;
  return known->may_run_until > read_clock(CLOCK_BOOTTIME) &&
         std::find(known->counting.begin(), known->counting.end(), standby) != known->counting.end();
}

}  // namespace baton::node
