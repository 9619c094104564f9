#include "tenure/host.h"

#include <sched.h>

#include <algorithm>
#include <random>

#include "base/clock.h"
#include "base/log.h"

namespace baton::tenure {
namespace {

Time now() { return read_clock(CLOCK_BOOTTIME); }

std::string port_above(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon + 1 >= address.size()) return {};
  const std::string port = address.substr(colon + 1);
  if (port.size() > 5 || port.find_first_not_of("0123456789") != std::string::npos || std::stoi(port) >= 65535) return {};
  return address.substr(0, colon + 1) + std::to_string(std::stoi(port) + 1);
}

Error refusal(const Event& event, Outcome outcome, const std::string& text) {
  const std::string subject = event.workload + (text.empty() ? "" : ": " + text);
  switch (outcome) {
    case Outcome::kNotFound: return make_error(Code::kNotFound, "change owner", subject);
    case Outcome::kTimedOut:
      return make_error(Code::kTimedOut, "change owner", subject,
                        "A majority of its voters must be reachable; `baton show` names them.");
    case Outcome::kUnknown: return make_error(Code::kUnknownOutcome, "change owner", subject);
    case Outcome::kOlder:
      return make_error(Code::kConflict, "change owner", subject,
                        "Choose the node with the newest checkpoint, or accept the loss with --allow-loss.");
    default: return make_error(Code::kConflict, "change owner", subject);
  }
}

// A late wake-up delays a failover or costs a tenure. Where it is not allowed, it is done without.
void prefer_this_thread() {
  sched_param priority{};
  priority.sched_priority = 1;
  (void)::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &priority);
}

}  // namespace

std::string tenure_address(const pb::PeerAddress& peer) {
  return port_above(peer.stream().empty() ? peer.rpc() : peer.stream());
}

class Host::NodeView final : public View {
 public:
  explicit NodeView(const Handlers& handlers) : handlers_(handlers) {}
  pb::TenureTip tip(const std::string& workload) const override { return handlers_.tip(workload); }
  pb::TenureTip held(const std::string& workload) const override {
    return handlers_.held ? handlers_.held(workload) : handlers_.tip(workload);
  }
  bool knows_commits(const std::string& workload) const override { return handlers_.knows_commits(workload); }
  bool leaving(const std::string& workload) const override { return handlers_.leaving && handlers_.leaving(workload); }

 private:
  const Handlers& handlers_;
};

Host::Host(Options options, Handlers handlers)
    : options_(std::move(options)), handlers_(std::move(handlers)), view_(std::make_unique<NodeView>(handlers_)) {}

Result<std::unique_ptr<Host>> Host::start(Options options, const transport::TlsFiles& tls, Handlers handlers) {
  std::unique_ptr<Host> host(new Host(std::move(options), std::move(handlers)));
  Host* raw = host.get();
  VoterLog::Callbacks on_log;
  on_log.done = [raw](std::uint64_t token) {
    Event event;
    event.kind = EventKind::kStored;
    event.token = token;
    raw->tell(std::move(event));
  };
  on_log.problem = [raw](const std::string& text) { raw->handlers_.problem(text); };
  BATON_ASSIGN(host->log_, VoterLog::open(raw->options_.folder, std::move(on_log)));
  host->state_ = begin(raw->options_.self, host->log_->found(), host->log_->doubtful(), now(), std::random_device{}());
  if (host->log_->doubtful()) {
    spdlog::warn("tenure: {} has been restored or damaged: this voter votes when all other voters have told what they know",
                 raw->options_.folder);
  }
  raw->publish({});
  transport::FrameHub::Handlers on_hub;
  auto peer_event = [raw](EventKind kind, const std::string& peer) {
    Event event;
    event.kind = kind;
    event.peer = peer;
    raw->step(event);
  };
  on_hub.up = [peer_event](const std::string& peer) { peer_event(EventKind::kLinkUp, peer); };
  on_hub.down = [peer_event](const std::string& peer) { peer_event(EventKind::kLinkDown, peer); };
  on_hub.frame = [raw](const std::string& peer, std::string_view bytes) {
    Event event;
    event.kind = EventKind::kFrame;
    event.peer = peer;
    if (event.frame.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) raw->step(event);
  };
  on_hub.timer = [raw] { raw->step(Event{}); };
  BATON_ASSIGN(host->hub_, transport::FrameHub::start(raw->options_.listen, tls, std::move(on_hub)));
  host->hub_->post([raw] {
    prefer_this_thread();
    raw->thread_ = ::gettid();
    raw->update_peers();
    raw->step(Event{});
  });
  return host;
}

Host::~Host() {
  {
    std::lock_guard lock(end_mutex_);
    ended_ = true;      // the log's thread goes on for a moment
  }
  if (hub_) hub_->stop();   // its handlers use what follows
  log_.reset();
}

void Host::tell(Event event) {
  std::lock_guard lock(end_mutex_);
  if (!ended_ && hub_) hub_->post([this, event = std::move(event)] { step(event); });
}

void Host::know(const pb::PeerAddress& peer) {
  {
    std::lock_guard lock(mutex_);
    auto& known = told_peers_[peer.node()];
    if (known.rpc() == peer.rpc() && known.stream() == peer.stream()) return;
    known = peer;
  }
  hub_->post([this] { update_peers(); });
}

void Host::step(const Event& event) {
  ++steps_;
  const auto effects = tenure::step(state_, event, now(), *view_);
  publish(effects);
  ++steps_;
  for (const auto& effect : effects) {
    if (effect.kind == EffectKind::kSend) {
      hub_->send(effect.peer, effect.frame.SerializeAsString());
    } else if (effect.kind == EffectKind::kStore) {
      effect.erase ? log_->erase(effect.token, effect.workload) : log_->append(effect.token, effect.voter);
    }
  }
  bool records_changed = false;
  for (const auto& effect : effects) {
    records_changed = records_changed || effect.kind == EffectKind::kDecided || (effect.kind == EffectKind::kStore && effect.erase);
    if (effect.kind == EffectKind::kLease || effect.kind == EffectKind::kOwned || effect.kind == EffectKind::kStop ||
        effect.kind == EffectKind::kDecided) {
      handlers_.effect(effect);
    }
  }
  if (records_changed) update_peers();
  const Time at = now();
  hub_->set_timer(std::max(next_wake(state_, at) - at, Time{}));
}

void Host::publish(const std::vector<Effect>& effects) {
  std::lock_guard lock(mutex_);
  for (auto it = known_.begin(); it != known_.end();) it = state_.workloads.contains(it->first) ? std::next(it) : known_.erase(it);
  for (const auto& [name, w] : state_.workloads) {
    Known& known = known_[name];
    if (known.record.incarnation() != w.disk.base().incarnation()) known.record = w.disk.base();
    known.may_run_until = may_run_until(state_, name, state_.woke);
    known.refused = refused_by_a_voter(state_, name, w);
    known.granted = granted_by_majority(state_, name, state_.woke);
    known.changing = w.proposal.has_value();
    known.voted_for_another = tenure::voted_for_another(state_, name, w.disk.base().owner());
    known.counting = counting(state_, name, state_.woke);
  }
  linked_.clear();
  for (const auto& [name, peer] : state_.peers) {
    if (peer.linked) linked_.insert(name);
  }
  for (const auto& effect : effects) {
    if (effect.kind != EffectKind::kOutcome) continue;
    auto it = answers_.find(effect.request);
    if (it == answers_.end()) continue;
    it->second = {true, effect.outcome, effect.record, effect.text};
  }
  changed_.notify_all();
}

void Host::update_peers() {
  std::map<std::string, std::string> peers;
  auto add = [&](const pb::PeerAddress& peer) {
    if (const std::string at = tenure_address(peer); !at.empty() && peer.node() != options_.self) peers[peer.node()] = at;
  };
  for (const auto& [name, w] : state_.workloads) {
    for (const auto* record : {&w.disk.base(), &w.disk.accepted()}) {
      for (const auto& peer : record->voters()) add(peer);
      for (const auto& peer : record->standbys()) add(peer);
    }
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [name, peer] : told_peers_) add(peer);
  }
  if (peers == peers_) return;
  peers_ = peers;
  hub_->set_peers(std::move(peers));
}

Result<pb::TenureRecord> Host::ask(Event event, std::chrono::nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  const std::uint64_t request = next_request_++;
  answers_[request];
  event.request = request;
  event.timeout = timeout;
  hub_->post([this, event] { step(event); });
  // The machine answers by itself in time; this is for a thread that never gets to it.
  const bool answered = changed_.wait_for(lock, timeout + std::chrono::seconds(2), [&] { return answers_[request].done; });
  const Answer answer = answers_[request];
  answers_.erase(request);
  if (!answered) return make_error(Code::kUnknownOutcome, "change owner", event.workload + ": no answer in time");
  if (answer.outcome == Outcome::kDone) return answer.record;
  return refusal(event, answer.outcome, answer.text);
}

std::optional<Host::Known> Host::known(const std::string& workload) const {
  std::lock_guard lock(mutex_);
  auto it = known_.find(workload);
  if (it == known_.end()) return std::nullopt;
  return it->second;
}

bool Host::voted_for_another(const std::string& workload, const std::string& owner) const {
  // No lock: who asks has no priority, and the machine's thread must not wait for it.
  const std::uint64_t seen = steps_;
  while (seen % 2 == 1 && steps_ == seen) std::this_thread::yield();
  auto now = known(workload);
  return now && now->record.owner() == owner && now->voted_for_another;
}

std::map<std::string, Host::Known> Host::all() const {
  std::lock_guard lock(mutex_);
  return known_;
}

bool Host::linked(const std::string& peer) const {
  std::lock_guard lock(mutex_);
  return linked_.contains(peer);
}

std::optional<Host::Known> Host::wait(const std::string& workload, std::chrono::nanoseconds timeout,
                                      const std::function<bool(const Known&)>& ready) const {
  std::unique_lock lock(mutex_);
  std::optional<Known> out;
  changed_.wait_for(lock, timeout, [&] {
    auto it = known_.find(workload);
    if (it == known_.end() || !ready(it->second)) return false;
    out = it->second;
    return true;
  });
  return out;
}

}  // namespace baton::tenure
