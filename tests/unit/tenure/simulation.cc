#include "simulation.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <queue>
#include <set>
#include <vector>

namespace baton::tenure::simulation {
namespace {

using namespace std::chrono_literals;
const std::string kName = "w";
const std::string kThird = "coordinator";

struct Rng {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  bool chance(double p) { return static_cast<double>(next() >> 11) < p * 9007199254740992.0; }
  Time between(Time a, Time b) { return a + Time(static_cast<Time::rep>(below(static_cast<std::uint64_t>((b - a).count()) + 1))); }
};

std::pair<std::string, std::string> pair_of(const std::string& a, const std::string& b) {
  return a < b ? std::pair(a, b) : std::pair(b, a);
}

struct Link {
  bool cut = false;
  Time delay = 100us, jitter = 100us;
  double loss = 0;             // each loss costs a retransmission
  Time last_arrival{};
  std::deque<pb::TenureFrame> waiting;   // sent into a cut: delivered when it heals, if the connection lives
};

class World;

struct Node final : View {
  World* world = nullptr;
  std::string name;
  bool on = true, agent = true, hung = false, warden = true;
  double rate = 1;
  Time offset{};
  State state;
  Time disk_free{};            // writes come one after the other
  std::uint64_t life = 0;      // of the agent: late effects of an earlier one are dropped
  pb::VoterFile disk;
  std::vector<pb::VoterFile> backups;
  std::deque<std::pair<std::string, pb::TenureFrame>> inbox;   // while hung
  std::vector<Event> queued;                                   // while hung
  // The program, in the warden's care: outlives the agent.
  bool program = false, held = false, expired = false;
  std::uint64_t incarnation = 0;
  Time until{};                // local; zero: without limit
  std::uint64_t lease_number = 0;
  // The store: outlives everything.
  pb::TenureTip stored;        // newest committed here
  std::uint64_t raised = 0;    // refuses older incarnations
  pb::TenureTip received;      // arrived and not committed yet
  // As owner:
  pb::TenureTip committed;     // acknowledged
  std::uint64_t captured = 0;
  bool activating = false;
  bool migrating = false;
  std::string target;
  std::set<std::uint64_t> decided_seen;

  pb::TenureTip tip(const std::string&) const override {
    return newer(committed, stored) ? committed : stored;
  }
  bool knows_commits(const std::string&) const override { return program && committed.seq() > 0; }
};

class World {
 public:
  explicit World(const Options& options) : options_(options), rng_{options.seed * 7919 + 17} {}
  Result run();

 private:
  struct Later {
    Time at;
    std::uint64_t order;
    std::function<void()> call;
    bool operator<(const Later& other) const { return std::tie(at, order) > std::tie(other.at, other.order); }
  };
  void after(Time delay, std::function<void()> call) { queue_.push({now_ + delay, order_++, std::move(call)}); }
  Time local(const Node& n) const { return n.offset + Time(static_cast<Time::rep>(static_cast<double>(now_.count()) * n.rate)); }
  Time from_local(const Node& n, Time t) const {
    return Time(static_cast<Time::rep>(static_cast<double>((t - n.offset).count()) / n.rate)) + 1ns;
  }
  Node& node(const std::string& name) { return *nodes_.at(name); }
  Link& link(const std::string& a, const std::string& b) { return links_[{a, b}]; }
  void fail(const std::string& what) {
    if (!result_.violation.empty()) return;
    result_.violation = "at " + std::to_string(now_ / 1us) + " us: " + what;
  }
  template <typename... Parts>
  void trace(const char* format, Parts... parts) {
    if (!options_.trace) return;
    std::printf("%10.3f ", static_cast<double>(now_.count()) / 1e6);
    std::printf(format, parts...);
    std::printf("\n");
  }

  void event(Node& n, Event e);
  void perform(Node& n, Effect& effect);
  void wake(Node& n);
  void send(const std::string& from, const std::string& to, pb::TenureFrame frame);
  void deliver(const std::string& from, const std::string& to, pb::TenureFrame frame, std::uint64_t connection);
  void reconnect(const std::string& a, const std::string& b);
  void start_agent(Node& n, bool doubtful);
  void stop_agent(Node& n);
  void power_off(Node& n);
  void power_on(Node& n, bool doubtful);
  bool running(const Node& n) const { return n.on && n.program && !n.held && !n.expired; }
  void lease(Node& n, Time until, std::uint64_t incarnation);
  void arm(Node& n);
  void activate(Node& n, pb::TenureRecord record, int tries);
  void stop_program(Node& n);
  void checkpoint(Node& n);
  void migrate(Node& n);
  void outcome(Node& n, const Effect& effect);
  void check();
  void fault();
  void heal();
  Time term() const { return term_of(mode_).length; }
  bool connected(const std::string& a, const std::string& b) { return !link(a, b).cut && !link(b, a).cut; }

  Options options_;
  Rng rng_;
  Result result_;
  Time now_{};
  std::uint64_t order_ = 0;
  std::priority_queue<Later> queue_;
  std::map<std::string, std::unique_ptr<Node>> nodes_;
  std::map<std::pair<std::string, std::string>, Link> links_;
  std::map<std::pair<std::string, std::string>, std::uint64_t> connections_;   // a < b; 0: none
  std::uint64_t next_connection_ = 1;
  pb::Mode mode_ = pb::MODE_COLD;
  std::map<std::uint64_t, std::string> decided_;      // incarnation → owner
  std::set<std::pair<std::uint64_t, std::uint64_t>> committed_;
  pb::TenureTip acknowledged_;                        // the newest that any owner was told of
  std::uint64_t next_seq_ = 1;
  std::uint64_t next_request_ = 1;
  bool forgetful_ = false;                            // a disk has forgotten: two records of one number can be
  bool calm_ = false;
  Time idle_since_{};
  bool was_idle_ = false;
};

void World::event(Node& n, Event e) {
  if (!n.on || !n.agent) return;
  if (n.hung) {
    if (n.queued.size() < 200) n.queued.push_back(std::move(e));
    return;
  }
  ++result_.steps;
  auto effects = step(n.state, e, local(n), n);
  const std::uint64_t life = n.life;
  for (auto& effect : effects) {
    if (n.life == life) perform(n, effect);
  }
  wake(n);
}

void World::wake(Node& n) {
  const Time at = std::max(from_local(n, next_wake(n.state, local(n))), now_ + 100us);
  // A little late, always; sometimes much.
  const Time lateness = rng_.chance(0.002) ? rng_.between(1ms, 12ms) : rng_.between(0us, 100us);
  queue_.push({at + lateness, order_++, [this, &n, life = n.life, expected = at] {
    if (n.life != life || n.hung || n.state.woke >= local(n)) return;
    if (from_local(n, n.state.expected_wake) > now_ + 1us) return;    // something else has moved it on
    (void)expected;
    event(n, {});
  }});
}

void World::perform(Node& n, Effect& effect) {
  switch (effect.kind) {
    case EffectKind::kSend: send(n.name, effect.peer, std::move(effect.frame)); break;
    case EffectKind::kStore: {
      const Time takes = rng_.chance(0.02) ? rng_.between(5ms, 60ms) : rng_.between(100us, 3ms);
      n.disk_free = std::max(n.disk_free, now_) + takes;
      after(n.disk_free - now_, [this, &n, life = n.life, voter = effect.voter, token = effect.token] {
        if (n.life != life) return;      // lost with the machine, or with the process before the write
        pb::VoterFile next;
        next.set_start(n.disk.start());
        *next.add_workloads() = voter;
        n.disk = next;
        Event stored;
        stored.kind = EventKind::kStored;
        stored.token = token;
        event(n, std::move(stored));
      });
      break;
    }
    case EffectKind::kLease:
      if (!n.warden) break;
      after(rng_.between(20us, 300us), [this, &n, life = n.life, until = effect.until, incarnation = effect.incarnation] {
        if (n.life == life) lease(n, until, incarnation);
      });
      break;
    case EffectKind::kOwned:
      trace("%s owns it, incarnation %llu (%s)", n.name.c_str(), static_cast<unsigned long long>(effect.record.incarnation()), effect.record.reason().c_str());
      if (effect.record.reason() == "takeover") ++result_.takeovers;
      n.activating = true;
      activate(n, effect.record, 0);
      break;
    case EffectKind::kStop:
      trace("%s stops what is not its own", n.name.c_str());
      n.held = true;                     // frozen before anything else
      after(rng_.between(1ms, 5ms), [this, &n, life = n.life] {
        if (n.life == life) stop_program(n);
      });
      break;
    case EffectKind::kDecided: {
      const auto& record = effect.record;
      trace("%s knows: %s", n.name.c_str(), record.ShortDebugString().c_str());
      auto [it, fresh] = decided_.emplace(record.incarnation(), record.owner());
      if (!fresh && it->second != record.owner() && !forgetful_) {
        fail("two records of incarnation " + std::to_string(record.incarnation()) + ": " + it->second + " and " + record.owner());
      }
      if (fresh && record.reason() == "voters") ++result_.voter_changes;
      if (!n.decided_seen.empty() && record.incarnation() <= *n.decided_seen.rbegin()) fail(n.name + " went back to an older record");
      n.decided_seen.insert(record.incarnation());
      break;
    }
    case EffectKind::kOutcome: outcome(n, effect); break;
  }
}

void World::send(const std::string& from, const std::string& to, pb::TenureFrame frame) {
  auto key = pair_of(from, to);
  const std::uint64_t connection = connections_[key];
  if (connection == 0) return;
  Link& l = link(from, to);
  if (l.cut) {
    if (l.waiting.size() < 50) l.waiting.push_back(std::move(frame));
    return;
  }
  Time arrival = now_ + l.delay + rng_.between(0ns, l.jitter);
  while (rng_.chance(l.loss)) arrival += rng_.between(5ms, 200ms);   // sent again by TCP
  arrival = std::max(arrival, l.last_arrival + 1us);                 // in order
  l.last_arrival = arrival;
  queue_.push({arrival, order_++, [this, from, to, frame = std::move(frame), connection]() mutable {
    deliver(from, to, std::move(frame), connection);
  }});
}

void World::deliver(const std::string& from, const std::string& to, pb::TenureFrame frame, std::uint64_t connection) {
  if (connections_[pair_of(from, to)] != connection) return;
  Link& l = link(from, to);
  if (l.cut) {
    l.waiting.push_back(std::move(frame));
    return;
  }
  Event e;
  e.kind = EventKind::kFrame;
  e.peer = from;
  e.frame = std::move(frame);
  event(node(to), std::move(e));
}

// Breaks the connection between two agents, and makes a new one when both can.
void World::reconnect(const std::string& a, const std::string& b) {
  auto key = pair_of(a, b);
  connections_[key] = 0;
  for (auto [from, to] : {std::pair{a, b}, std::pair{b, a}}) {
    link(from, to).waiting.clear();
    Event down;
    down.kind = EventKind::kLinkDown;
    down.peer = to;
    event(node(from), std::move(down));
  }
  after(rng_.between(1ms, 30ms), [this, a, b, key] {
    if (connections_[key] != 0) return;
    Node &x = node(a), &y = node(b);
    if (!x.on || !y.on || !x.agent || !y.agent || x.hung || y.hung || !connected(a, b)) {
      after(rng_.between(10ms, 60ms), [this, a, b, key] {
        if (connections_[key] == 0) reconnect(a, b);
      });
      return;
    }
    connections_[key] = next_connection_++;
    for (auto [from, to] : {std::pair{a, b}, std::pair{b, a}}) {
      Event up;
      up.kind = EventKind::kLinkUp;
      up.peer = to;
      event(node(from), std::move(up));
    }
  });
}

void World::start_agent(Node& n, bool doubtful) {
  ++n.life;
  n.disk_free = now_;
  n.agent = true;
  n.hung = false;
  n.state = begin(n.name, n.disk, doubtful, local(n), rng_.next());
  n.state.rules = options_.rules;
  n.disk.set_start(n.state.start);
  n.activating = n.migrating = false;
  n.decided_seen.clear();
  if (n.program) {
    Event here;
    here.kind = EventKind::kRunning;
    here.workload = kName;
    // A migration that was interrupted: who owns it is asked before anything is thawed.
    event(n, std::move(here));
    if (n.held) outcome(n, Effect{.kind = EffectKind::kOutcome, .outcome = Outcome::kUnknown});
  }
  event(n, {});
  for (auto& [name, other] : nodes_) {
    if (name != n.name) reconnect(n.name, name);
  }
}

void World::stop_agent(Node& n) {
  ++n.life;
  n.agent = false;
  n.hung = false;
  n.queued.clear();
  for (auto& [name, other] : nodes_) {
    if (name == n.name) continue;
    auto key = pair_of(n.name, name);
    if (connections_[key] != 0) {
      connections_[key] = 0;
      if (n.on && connected(n.name, name)) {      // the kernel says so; a dead machine does not
        Event down;
        down.kind = EventKind::kLinkDown;
        down.peer = n.name;
        event(*other, std::move(down));
      }
    }
  }
}

void World::power_off(Node& n) {
  n.on = false;
  n.program = n.held = n.expired = false;
  ++n.lease_number;
  stop_agent(n);
}

void World::power_on(Node& n, bool doubtful) {
  n.on = true;
  n.warden = true;
  n.committed.Clear();
  start_agent(n, doubtful);
}

// ---- the warden

void World::lease(Node& n, Time until, std::uint64_t incarnation) {
  if (!n.on || !n.program || !n.warden) return;
  if (incarnation < n.incarnation) return;
  n.incarnation = incarnation;
  n.until = until;
  if (until == Time{} || until > local(n)) n.expired = false;
  arm(n);
}

void World::arm(Node& n) {
  const std::uint64_t number = ++n.lease_number;
  if (n.until == Time{} || !options_.warden_enforces) return;
  // It wakes late, and the freeze takes its time: within the guard.
  const Time late = rng_.between(0ns, term_of(mode_).guard / 2);
  const Time at = std::max(now_, from_local(n, n.until) + late);
  queue_.push({at, order_++, [this, &n, number] {
    if (n.lease_number == number && n.program) n.expired = true;
  }});
}

void World::activate(Node& n, pb::TenureRecord record, int tries) {
  const Time build = mode_ == pb::MODE_HOT ? rng_.between(500us, 2ms) : rng_.between(5ms, 60ms);
  after(build, [this, &n, life = n.life, record, tries] {
    if (n.life != life || !n.activating || n.hung) {
      if (n.life == life && n.hung) activate(n, record, tries);
      return;
    }
    auto it = n.state.workloads.find(kName);
    if (it == n.state.workloads.end() || it->second.disk.base().incarnation() != record.incarnation()) {
      n.activating = false;
      return;
    }
    n.raised = std::max(n.raised, record.incarnation());
    const Time until = may_run_until(n.state, kName, local(n));
    if (n.program || until <= local(n) + 200us) {
      if (tries < 4000) activate(n, record, tries + 1);
      return;
    }
    pb::TenureTip from = options_.activate_any && newer(n.received, n.stored) ? n.received : n.stored;
    if (n.stored.seq() == 0 && from.seq() == 0) {       // nothing to start from here
      n.activating = false;
      Event gone;
      gone.kind = EventKind::kGone;
      gone.workload = kName;
      event(n, std::move(gone));
      return;
    }
    if (!committed_.contains({from.incarnation(), from.seq()})) fail(n.name + " activates a checkpoint that nobody committed");
    if (!forgetful_ && newer(acknowledged_, from)) {
      fail(n.name + " activates @" + std::to_string(from.seq()) + ", and @" + std::to_string(acknowledged_.seq()) + " was committed");
    }
    n.program = true;
    n.held = n.expired = false;
    n.activating = false;
    n.incarnation = record.incarnation();
    n.committed = from;
    n.until = until == Time::max() ? Time{} : until;
    arm(n);
    trace("%s activates @%llu", n.name.c_str(), static_cast<unsigned long long>(from.seq()));
    Event here;
    here.kind = EventKind::kRunning;
    here.workload = kName;
    event(n, std::move(here));
  });
}

void World::stop_program(Node& n) {
  n.program = n.held = n.expired = false;
  n.migrating = false;
  n.committed.Clear();
  ++n.lease_number;
  Event gone;
  gone.kind = EventKind::kGone;
  gone.workload = kName;
  event(n, std::move(gone));
}

// The checkpoint loop of whoever runs it: to its standbys, acknowledged by those that voted it in.
void World::checkpoint(Node& n) {
  if (!running(n) || !n.agent || n.hung) return;
  auto it = n.state.workloads.find(kName);
  if (it == n.state.workloads.end() || it->second.disk.base().owner() != n.name) return;
  const auto& base = it->second.disk.base();
  pb::TenureTip tip;
  tip.set_incarnation(n.incarnation);
  tip.set_seq(next_seq_++);
  for (const auto& standby : base.standbys()) {
    Node& to = node(standby.node());
    if (!to.on || !to.agent || to.hung || !connected(n.name, to.name)) continue;
    after(rng_.between(100us, 3ms), [this, &n, &to, tip, life = n.life] {
      if (!to.on || !to.agent || to.hung || link(n.name, to.name).cut) return;
      if (tip.incarnation() < to.raised) return;          // stores refuse an older incarnation
      to.received = tip;
      after(rng_.between(100us, 1ms), [this, &n, &to, tip, life] {
        if (!to.on || !to.agent || tip.incarnation() < to.raised) return;
        if (!newer(tip, to.stored)) return;
        to.stored = tip;
        to.raised = std::max(to.raised, tip.incarnation());
        committed_.emplace(tip.incarnation(), tip.seq());
        if (options_.rules.vote_ends_commits && voted_for_another(to.state, kName, n.name)) return;
        after(rng_.between(100us, 1ms), [this, &n, &to, tip, life] {
          if (n.life != life || link(to.name, n.name).cut || !n.on) return;
          if (!newer(tip, n.committed)) return;
          n.committed = tip;
          // Counted when it comes from a voter: others may not be asked before a takeover.
          auto w = n.state.workloads.find(kName);
          if (w == n.state.workloads.end() || !newer(tip, acknowledged_)) return;
          const auto counted = counting(n.state, kName, local(n));
          if (std::find(counted.begin(), counted.end(), to.name) != counted.end()) {
            acknowledged_ = tip;
            trace("%s was told by %s of @%llu", n.name.c_str(), to.name.c_str(), static_cast<unsigned long long>(tip.seq()));
          }
        });
      });
    });
  }
}

// ---- migration, as MigrationRun does it: freeze, ship, propose with release, then act on the answer.
void World::migrate(Node& n) {
  auto it = n.state.workloads.find(kName);
  if (!running(n) || n.migrating || it == n.state.workloads.end()) return;
  const auto base = it->second.disk.base();
  if (base.owner() != n.name || base.standbys_size() == 0) return;
  const std::string to = base.standbys(static_cast<int>(rng_.below(static_cast<std::uint64_t>(base.standbys_size())))).node();
  Node& target = node(to);
  if (!target.on || !target.agent || target.hung || !connected(n.name, to)) return;
  n.migrating = true;
  n.held = true;
  pb::TenureTip tip;
  tip.set_incarnation(n.incarnation);
  tip.set_seq(next_seq_++);
  if (tip.incarnation() < target.raised) {
    n.held = n.migrating = false;
    return;
  }
  target.stored = tip;
  committed_.emplace(tip.incarnation(), tip.seq());
  n.committed = tip;
  ++result_.migrations;
  trace("%s migrates to %s", n.name.c_str(), to.c_str());
  Event e;
  e.kind = EventKind::kPropose;
  e.workload = kName;
  e.request = next_request_++;
  e.expected = base.incarnation();
  e.record.set_owner(to);
  e.record.set_committed_incarnation(tip.incarnation());
  e.record.set_committed_seq(tip.seq());
  e.reason = "migrate";
  e.release = true;
  e.timeout = std::max<Time>(term() * 2, 100ms);
  event(n, std::move(e));
}

// The answer to a proposal or a query of a node whose program is held.
void World::outcome(Node& n, const Effect& effect) {
  if (!n.program || !n.held) return;
  const auto& record = effect.record;
  if (effect.outcome == Outcome::kDone && record.owner() == n.name && record.reason() == "reclaim") {
    n.held = n.migrating = false;         // a lease thaws the rest
    return;
  }
  if (effect.outcome == Outcome::kDone && record.owner() != n.name) return stop_program(n);
  after(rng_.between(5ms, 30ms), [this, &n, life = n.life, done = effect.outcome == Outcome::kDone, record] {
    if (n.life != life || !n.program || !n.held) return;
    Event e;
    e.workload = kName;
    e.request = next_request_++;
    e.timeout = std::max<Time>(term() * 2, 100ms);
    if (done && record.owner() == n.name) {
      e.kind = EventKind::kPropose;
      e.record.set_owner(n.name);
      e.expected = record.incarnation();
      e.reason = "reclaim";
    } else {
      e.kind = EventKind::kQuery;
    }
    event(n, std::move(e));
  });
}

void World::check() {
  int count = 0;
  std::string who;
  for (auto& [name, n] : nodes_) {
    if (running(*n)) {
      ++count;
      who += " " + name;
    }
  }
  if (count > 1) fail("it runs on" + who);
  if (count == 0 && !was_idle_) idle_since_ = now_;
  if (count != 0 && was_idle_) result_.down_ms += static_cast<double>((now_ - idle_since_).count()) / 1e6;
  was_idle_ = count == 0;
}

// ---- faults

void World::fault() {
  std::vector<std::string> names;
  for (auto& [name, n] : nodes_) names.push_back(name);
  Node& n = node(names[rng_.below(names.size())]);
  const Time length = rng_.between(term() / 2, term() * 6);
  auto count = [&](const char* kind) {
    ++result_.faults[kind];
    trace("fault: %s %s for %.1f ms", kind, n.name.c_str(), static_cast<double>(length.count()) / 1e6);
  };
  const bool machine = n.name != kThird;
  switch (rng_.below(13)) {
    case 0:
    case 1:
      if (!n.on) break;
      count("power-off");
      if (machine && rng_.chance(0.2) && !n.backups.empty() && !forgetful_) {
        ++result_.faults["restored from an old backup"];
        forgetful_ = true;
        power_off(n);
        after(length, [this, &n] {
          if (n.on) return;
          n.disk = n.backups[rng_.below(n.backups.size())];
          power_on(n, options_.rules.doubt_old_disks);
        });
        break;
      }
      power_off(n);
      after(length, [this, &n] {
        if (!n.on) power_on(n, false);
      });
      break;
    case 2:
      if (!n.on || !n.agent) break;
      count("agent killed");
      stop_agent(n);
      after(rng_.between(5ms, term()), [this, &n] {
        if (n.on && !n.agent) start_agent(n, false);
      });
      break;
    case 3:
    case 4: {
      if (!n.on || !n.agent || n.hung) break;
      count("agent stopped");
      n.hung = true;
      after(length, [this, &n, life = n.life] {
        if (n.life != life || !n.hung) return;
        n.hung = false;
        auto queued = std::move(n.queued);
        n.queued.clear();
        event(n, {});       // its timers fire first, late
        for (auto& one : queued) event(n, std::move(one));
      });
      break;
    }
    case 5:
      if (!n.on || !n.warden) break;
      count("warden killed");
      n.warden = false;
      after(rng_.between(5ms, term()), [&n] { n.warden = true; });
      break;
    case 6:
    case 7:
    case 8: {
      const std::string other = names[rng_.below(names.size())];
      if (other == n.name) break;
      const bool one_way = rng_.chance(0.5);
      count(one_way ? "link cut in one direction" : "link cut");
      link(n.name, other).cut = true;
      if (!one_way) link(other, n.name).cut = true;
      const bool reset = rng_.chance(0.5);
      if (reset) {
        after(rng_.between(10ms, 100ms), [this, a = n.name, other] {
          if (!connected(a, other)) reconnect(a, other);
        });
      }
      after(length, [this, a = n.name, other] {
        for (auto [from, to] : {std::pair{a, other}, std::pair{other, a}}) {
          link(from, to).cut = false;
          auto waiting = std::move(link(from, to).waiting);
          link(from, to).waiting.clear();
          for (auto& frame : waiting) send(from, to, std::move(frame));   // late
        }
      });
      break;
    }
    case 9: {
      const std::string other = names[rng_.below(names.size())];
      count("slow and lossy link");
      Link& l = link(n.name, other);
      l.delay = rng_.between(1ms, term() / 3);
      l.jitter = l.delay;
      l.loss = 0.02;
      after(length, [&l] {
        l.delay = l.jitter = 100us;
        l.loss = 0;
      });
      break;
    }
    case 10: {
      for (auto& [name, owner] : nodes_) {
        if (!running(*owner) || !owner->agent) continue;
        auto w = owner->state.workloads.find(kName);
        if (w == owner->state.workloads.end() || w->second.disk.base().owner() != name) continue;
        ++result_.faults["change of standby"];
        Event want;
        want.kind = EventKind::kWant;
        want.workload = kName;
        std::vector<std::string> others;
        for (auto& [other, unused] : nodes_) {
          if (other != name && other != kThird) others.push_back(other);
        }
        const std::size_t first = rng_.below(others.size());
        const std::string standby = others[first], third = others.size() > 1 ? others[(first + 1) % others.size()] : kThird;
        if (node(standby).stored.seq() == 0) break;   // it has no copy yet
        want.record.add_standbys()->set_node(standby);
        if (third != kThird && rng_.chance(0.5)) want.record.add_standbys()->set_node(third);
        want.record.add_voters()->set_node(name);
        want.record.add_voters()->set_node(standby);
        want.record.add_voters()->set_node(rng_.chance(0.4) && want.record.standbys_size() == 1 ? kThird : third);
        event(*owner, std::move(want));
        break;
      }
      break;
    }
    case 12:
      // The pair that tempts a voter most: the standby does not hear the owner and asks for its
      // place, and the one voter that supports the owner forgets that it does.
      for (auto& [name, owner] : nodes_) {
        auto w = owner->state.workloads.find(kName);
        if (!running(*owner) || w == owner->state.workloads.end()) continue;
        const auto& base = w->second.disk.base();
        if (base.owner() != name || base.standbys_size() == 0) continue;
        const std::string a = name, b = base.standbys(0).node();
        for (const auto& voter : base.voters()) {
          if (voter.node() == a || voter.node() == b) continue;
          ++result_.faults["owner and standby cut, third voter restarted"];
          Node& third = node(voter.node());
          link(a, b).cut = link(b, a).cut = true;
          after(rng_.between(term() * 11 / 10, term() * 2), [this, &third] {
            if (!third.on || !third.agent || third.hung) return;
            stop_agent(third);
            after(rng_.between(1ms, 5ms), [this, &third] {
              if (third.on && !third.agent) start_agent(third, false);
            });
          });
          after(term() * 4, [this, a, b] {
            link(a, b).cut = link(b, a).cut = false;
            reconnect(a, b);
          });
          break;
        }
        break;
      }
      break;
    case 11:
      for (auto& [name, owner] : nodes_) {
        if (running(*owner) && owner->agent && !owner->hung) {
          migrate(*owner);
          break;
        }
      }
      break;
  }
}

void World::heal() {
  calm_ = true;
  for (auto& [key, l] : links_) {
    l.cut = false;
    l.delay = l.jitter = 100us;
    l.loss = 0;
    l.waiting.clear();
  }
  for (auto& [name, n] : nodes_) {
    n->warden = true;
    if (!n->on) power_on(*n, false);
    if (!n->agent) start_agent(*n, false);
    if (n->hung) {
      n->hung = false;
      auto queued = std::move(n->queued);
      n->queued.clear();
      event(*n, {});
      for (auto& one : queued) event(*n, std::move(one));
    }
  }
  for (auto a = nodes_.begin(); a != nodes_.end(); ++a) {
    for (auto b = std::next(a); b != nodes_.end(); ++b) reconnect(a->first, b->first);
  }
}

Result World::run() {
  mode_ = mode_at(rng_.below(3));
  const std::size_t machines = 2 + rng_.below(3);     // with two, the coordinator votes
  for (std::size_t i = 0; i <= machines; ++i) {
    auto n = std::make_unique<Node>();
    n->world = this;
    n->name = i == machines ? kThird : "n" + std::to_string(i + 1);
    n->rate = 1 + (static_cast<double>(rng_.below(1001)) - 500) * 0.98e-6;
    n->offset = rng_.between(1s, 1000s);
    nodes_[n->name] = std::move(n);
  }
  for (auto& [name, n] : nodes_) start_agent(*n, false);
  // It runs on n1 without a limit; then its standby has a first checkpoint, and voters take over.
  Node& first = node("n1");
  pb::TenureRecord record;
  record.set_workload(kName);
  record.set_owner("n1");
  record.set_incarnation(1);
  record.set_mode(mode_);
  record.set_reason("run");
  first.program = true;
  first.incarnation = 1;
  Event adopt{.kind = EventKind::kAdopt, .record = record};
  event(first, adopt);
  event(first, Event{.kind = EventKind::kRunning, .workload = kName});
  after(60ms, [this, record, machines]() mutable {
    pb::TenureTip tip;
    tip.set_incarnation(1);
    tip.set_seq(next_seq_++);
    Node& standby = node("n2");
    standby.stored = tip;
    node("n1").committed = tip;
    committed_.emplace(1, tip.seq());
    record.set_incarnation(2);
    record.set_reason("voters");
    record.add_standbys()->set_node("n2");
    record.add_voters()->set_node("n1");
    record.add_voters()->set_node("n2");
    record.add_voters()->set_node(machines >= 3 && rng_.chance(0.7) ? "n3" : kThird);
    event(node("n1"), Event{.kind = EventKind::kAdopt, .record = record});
  });
  // Checkpoints, backups, faults.
  const Time interval = std::max<Time>(term() / 4, 10ms);
  std::function<void()> beat = [&] {
    for (auto& [name, n] : nodes_) {
      checkpoint(*n);
      if (rng_.chance(0.05) && n->backups.size() < 8) n->backups.push_back(n->disk);
    }
    after(interval, beat);
  };
  after(interval, beat);
  const Time quiet = 100ms + term() * 2;
  const Time end_of_faults = quiet + term() * 30;
  std::function<void()> trouble = [&] {
    if (calm_) return;
    fault();
    if (rng_.chance(0.3)) fault();        // pairs
    after(rng_.between(term() / 4, term() * 3), trouble);
  };
  after(quiet, trouble);
  queue_.push({end_of_faults, order_++, [this] { heal(); }});
  const Time end = end_of_faults + term() * 25 + 2s;
  while (!queue_.empty() && result_.violation.empty()) {
    Later next = queue_.top();
    queue_.pop();
    if (next.at > end) break;
    now_ = next.at;
    next.call();
    check();
  }
  if (result_.violation.empty()) {
    int count = 0;
    for (auto& [name, n] : nodes_) count += running(*n) ? 1 : 0;
    // It may stand still only where nobody who may take over holds what the newest owner went
    // on from: rather that than to lose it.
    pb::TenureRecord newest;
    for (auto& [name, n] : nodes_) {
      auto w = n->state.workloads.find(kName);
      if (w != n->state.workloads.end() && w->second.disk.base().incarnation() > newest.incarnation()) newest = w->second.disk.base();
    }
    bool held = false;
    for (auto& [name, n] : nodes_) {
      held = held || ((name == newest.owner() || is_standby(newest, name)) && !newer(started_from(newest), n->tip("")));
    }
    if (count == 0 && !held) ++result_.faults["stands still: nobody who may take over holds its newest checkpoint"];
    if (count > 1 || (count == 0 && held)) {
      std::string known;
      for (auto& [name, n] : nodes_) {
        auto w = n->state.workloads.find(kName);
        if (w == n->state.workloads.end()) continue;
        known += "; " + name + " knows of " + w->second.disk.base().owner() + "/" + std::to_string(w->second.disk.base().incarnation()) +
                 (n->program ? " and has it" : "") + (n->held ? ", held" : "") + (n->expired ? ", expired" : "") +
                 (w->second.trusted ? "" : ", doubtful") + " tip " + std::to_string(n->tip("").seq());
        if (options_.trace) {
          const Workload& x = w->second;
          std::printf("%s: %s proposal %d stand_at %.1f heard %.1f now %.1f running %d activating %.1f parked %d supports %.1f promised %llu accepted %s\n",
                      name.c_str(), x.disk.base().ShortDebugString().c_str(), x.proposal.has_value(), static_cast<double>(x.stand_at.count()) / 1e6,
                      static_cast<double>(x.owner_heard.count()) / 1e6, static_cast<double>(local(*n).count()) / 1e6, x.running,
                      static_cast<double>(x.activating_until.count()) / 1e6, x.parked.has_value(), static_cast<double>(x.supports_until.count()) / 1e6,
                      static_cast<unsigned long long>(x.disk.promised().round()), x.disk.accepted().owner().c_str());
        }
      }
      fail("nothing runs although all are connected" + known);
    }
  }
  return result_;
}

}  // namespace

Result run(const Options& options) { return World(options).run(); }

}  // namespace baton::tenure::simulation
