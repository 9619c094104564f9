#include "tenure/machine.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "tenure/stepper.h"

namespace baton::tenure {

State begin(const std::string& self, const pb::VoterFile& file, bool doubtful, Time now, std::uint64_t seed) {
  State s;
  s.self = self;
  s.start = file.start() + 1;
  s.started = s.woke = s.expected_wake = now;
  s.random = seed | 1;
  for (const auto& kept : file.workloads()) {
    if (s.workloads.size() >= kMaxWorkloads || kept.base().workload().empty()) continue;
    Workload& w = s.workloads[kept.base().workload()];
    w.disk = kept;
    w.owner_heard = now;
    w.trusted = !doubtful || !is_voter(kept.base(), self);
    w.stand_at = now;
    // Its own promise was written before it asked for a vote.
    w.offered = kept.promised().round() > 0 && kept.promised().node() == self && kept.base().owner() != self;
  }
  return s;
}

Workload* Stepper::find(const std::string& name) {
  auto it = s_.workloads.find(name);
  return it == s_.workloads.end() ? nullptr : &it->second;
}

Workload& Stepper::make(const std::string& name) {
  Workload& w = s_.workloads[name];
  if (w.disk.base().workload().empty()) {
    w.disk.mutable_base()->set_workload(name);
    w.owner_heard = now_;
  }
  return w;
}

std::uint64_t Stepper::random() {   // splitmix64
  std::uint64_t z = (s_.random += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

Effect& Stepper::emit(EffectKind kind, const std::string& workload) {
  Effect effect;
  effect.kind = kind;
  effect.workload = workload;
  out_.push_back(std::move(effect));
  return out_.back();
}

std::uint64_t Stepper::store(const std::string& name, const Workload& w) {
  Effect& effect = emit(EffectKind::kStore, name);
  effect.token = s_.next_token++;
  effect.voter = w.disk;
  return effect.token;
}

pb::TenureMessage Stepper::message(Kind::Kind kind, const std::string& name, const Workload& w) const {
  pb::TenureMessage m;
  m.set_kind(kind);
  m.set_workload(name);
  m.set_base(w.disk.base().incarnation());
  return m;
}

void Stepper::send(const std::string& to, pb::TenureMessage m) {
  if (to == s_.self) {
    local_.emplace_back(to, std::move(m));
    return;
  }
  auto peer = s_.peers.find(to);
  if (peer == s_.peers.end() || !peer->second.linked) return;   // asked again, or told at link-up
  *frames_[to].add_messages() = std::move(m);
}

void Stepper::send_stored(const std::string& to, pb::TenureMessage m, std::uint64_t token) {
  if (!s_.rules.store_first || token <= s_.stored) return send(to, std::move(m));
  s_.held.push_back({token, to, std::move(m)});
}

void Stepper::stored(std::uint64_t token) {
  s_.stored = std::max(s_.stored, token);
  std::vector<State::Held> held;
  held.swap(s_.held);
  for (auto& one : held) {
    if (one.token <= s_.stored) {
      send(one.peer, std::move(one.message));
    } else {
      s_.held.push_back(std::move(one));
    }
  }
}

void Stepper::deliver_local() {
  while (!local_.empty()) {
    auto [from, m] = std::move(local_.front());
    local_.pop_front();
    receive(from, m);
  }
}

// Whether this node stood, and `record` is what it stood for: not another's change that it completed.
bool stood_for(const Workload& w, const pb::TenureRecord& record) {
  return w.proposal && w.proposal->takeover && w.proposal->own && w.proposal->own->owner() == record.owner() &&
         w.proposal->own->incarnation() == record.incarnation() && w.proposal->own->reason() == record.reason() &&
         w.proposal->own->committed_seq() == record.committed_seq();
}

// A record that is decided. False: not newer than what is known.
// `adopted`: from the registry, before any of its voters was told.
bool Stepper::install(const std::string& name, const pb::TenureRecord& record, bool adopted) {
  if (record.workload() != name || record.voters_size() > static_cast<int>(kMaxVoters)) return false;
  Workload* known = find(name);
  if (!known && s_.workloads.size() >= kMaxWorkloads) return false;
  Workload& w = known ? *known : make(name);
  const pb::TenureRecord& base = w.disk.base();
  if (record.incarnation() < base.incarnation()) return false;
  if (record.incarnation() == base.incarnation()) {
    // Two different records of one number: only a disk that forgot makes that possible. Who
    // holds the tenure ends it by the next number.
    if (record.owner() != base.owner() && base.owner() == s_.self && !w.proposal &&
        may_run_until(s_, name, now_) > now_) {
      Proposal again;
      again.value = base;
      again.value->set_incarnation(base.incarnation() + 1);
      again.value->set_reason("conflict");
      again.deadline = now_ + std::chrono::seconds(5);
      propose(name, w, std::move(again));
    }
    return false;
  }
  const bool first_voters = adopted && base.voters_size() == 0 && record.owner() == s_.self;
  const Time free_until = now_ + term_of(record.mode()).length;
  *w.disk.mutable_base() = record;
  w.disk.clear_promised();
  w.disk.clear_accepted();
  w.disk.clear_accepted_ballot();
  w.grants.clear();
  w.parked.reset();
  w.offered = false;
  w.answered.clear();
  w.leased_forever = false;
  w.free_until = first_voters ? free_until : Time{};
  w.owner_heard = now_;
  const Time length = term_of(record.mode()).length;
  w.supports_until = record.owner() == s_.self ? Time{} : now_ + (s_.rules.drift ? with_drift(length) : length);
  w.base_token = store(name, w);
  emit(EffectKind::kDecided, name).record = record;
  if (record.owner() == s_.self) {
    // An owner whose machine was restarted stays owner by such a record, but what it holds may
    // not be the newest: it stands like others.
    const bool to_run = record.previous_owner() != s_.self || record.reason() == "takeover" || stood_for(w, record);
    if (!w.running && to_run) {
      w.activating_until = now_ + kActivationMax;
      Effect& effect = emit(EffectKind::kOwned, name);
      effect.record = record;
      effect.timeline = w.timeline;
      effect.timeline.elected = now_;
    } else if (!w.running) {
      w.activating_until = Time{};
    }
  } else {
    w.activating_until = Time{};
    w.leased = Time{};
    if (w.running) emit(EffectKind::kStop, name).record = record;
  }
  w.timeline = {};
  if (w.proposal) {
    const Proposal& p = *w.proposal;
    if (p.own && p.own->owner() == record.owner() && p.own->incarnation() == record.incarnation()) {
      end_proposal(name, w, Outcome::kDone, "");
    } else if (!p.own) {
      Proposal again;      // who owns it, for certain: asked of the new voters
      again.request = p.request;
      again.deadline = p.deadline;
      w.proposal.reset();
      propose(name, w, std::move(again));
    } else {
      end_proposal(name, w, Outcome::kConflict,
                   record.owner() + " owns it by now, incarnation " + std::to_string(record.incarnation()));
    }
  }
  return true;
}

void Stepper::forget(const std::string& name) {
  Workload* w = find(name);
  if (!w) return;
  if (w->proposal) end_proposal(name, *w, Outcome::kNotFound, "deleted");
  std::erase_if(s_.held, [&](const State::Held& held) { return held.message.workload() == name; });
  s_.workloads.erase(name);
  Effect& effect = emit(EffectKind::kStore, name);
  effect.token = s_.next_token++;
  effect.erase = true;
}

void Stepper::link_up(const std::string& name) {
  if (!s_.peers.contains(name) && s_.peers.size() >= kMaxPeers) return;
  Peer& peer = s_.peers[name];
  peer.linked = true;
  for (auto& mine : peer.mine) {
    mine.told = false;
    mine.due = now_;
    mine.open.clear();
  }
  for (auto& theirs : peer.theirs) {
    theirs.known = false;
    theirs.gaps.reset();
  }
  for (auto& [workload, w] : s_.workloads) {
    if (concerns(w.disk.base(), name) || (w.disk.has_accepted() && concerns(w.disk.accepted(), name))) {
      send(name, message(Kind::ASK, workload, w));
    }
  }
}

void Stepper::receive(const std::string& from, const pb::TenureMessage& m) {
  switch (m.kind()) {
    case Kind::ASK: return on_ask(from, m);
    case Kind::LEARN: {
      if (!install(m.workload(), m.record())) {
        Workload* w = find(m.workload());
        if (w && w->disk.base().incarnation() > m.record().incarnation()) tell_base(from, m.workload(), *w);
      }
      return;
    }
    case Kind::KNOWN: return on_known(from, m);
    case Kind::PREPARE: return on_prepare(from, m);
    case Kind::ACCEPT: return on_accept(from, m);
    case Kind::PROMISE: return on_promise(from, m);
    case Kind::ACCEPTED: return on_accepted(from, m);
    case Kind::REFUSE: return on_refuse(from, m);
    default: return;
  }
}

void Stepper::handle(const Event& event) {
  switch (event.kind) {
    case EventKind::kTick: break;
    case EventKind::kLinkUp: link_up(event.peer); break;
    case EventKind::kLinkDown:
      if (auto it = s_.peers.find(event.peer); it != s_.peers.end()) it->second.linked = false;
      break;
    case EventKind::kFrame: {
      auto it = s_.peers.find(event.peer);
      if (it == s_.peers.end() || !it->second.linked) break;
      Peer& peer = it->second;
      if (event.frame.start() != peer.start) {
        peer.start = event.frame.start();
        for (auto& theirs : peer.theirs) theirs = Peer::Theirs();
      }
      for (const auto& claims : event.frame.claims()) on_claims(peer, claims);
      for (const auto& m : event.frame.messages()) receive(event.peer, m);
      for (const auto& renewal : event.frame.renewals()) on_renewal(event.peer, peer, renewal);
      for (const auto& grant : event.frame.grants()) on_grant(event.peer, peer, grant);
      break;
    }
    case EventKind::kStored: stored(event.token); break;
    case EventKind::kAdopt:
      if (install(event.record.workload(), event.record, true)) {
        Workload& w = s_.workloads.at(event.record.workload());
        std::set<std::string> told;
        for (const auto& peer : w.disk.base().voters()) told.insert(peer.node());
        for (const auto& peer : w.disk.base().standbys()) told.insert(peer.node());
        for (const auto& peer : told) {
          if (peer != s_.self) tell_base(peer, event.record.workload(), w);
        }
      }
      break;
    case EventKind::kRunning: {
      Workload& w = make(event.workload);
      w.running = true;
      w.activating_until = Time{};
      w.lease_again = true;
      if (!w.disk.base().owner().empty() && w.disk.base().owner() != s_.self) {
        emit(EffectKind::kStop, event.workload).record = w.disk.base();
      }
      break;
    }
    case EventKind::kGone:
      if (Workload* w = find(event.workload)) {
        // What is being activated here goes on, when what was here before it is cleared away.
        // Who could not run it lets the others try first.
        const bool ran = std::exchange(w->running, false);
        if (!ran || event.expected == w->disk.base().incarnation()) w->activating_until = Time{};
        if (w->disk.base().owner() == s_.self) {
          w->stand_at = std::max(w->stand_at, now_ + 10 * term_of(w->disk.base().mode()).length);
        }
      }
      break;
    case EventKind::kForget: forget(event.workload); break;
    case EventKind::kWant:
    case EventKind::kPropose:
    case EventKind::kTakeOver:
    case EventKind::kQuery: on_request(event); break;
  }
  deliver_local();
}

void Stepper::tick() {
  std::vector<std::string> names;   // proposals may change the map
  for (const auto& [name, w] : s_.workloads) names.push_back(name);
  for (const auto& name : names) {
    if (Workload* w = find(name)) {
      retry_parked(name, *w);
      drive(name, *w);
      update_lease(name, *w);
    }
    deliver_local();
  }
}

std::vector<Effect> Stepper::finish() {
  tick();
  update_claims();
  send_renewals();
  for (auto& [name, frame] : frames_) {
    frame.set_start(s_.start);
    s_.peers[name].sent_at = now_;
    Effect effect;
    effect.kind = EffectKind::kSend;
    effect.peer = name;
    effect.frame = std::move(frame);
    out_.push_back(std::move(effect));
  }
  return std::move(out_);
}

std::vector<Effect> step(State& state, const Event& event, Time now, const View& view) {
  now = std::max(now, state.woke);
  if (state.rules.late_rule && now > state.expected_wake + kLateLimit) state.no_votes_until = now;
  state.woke = now;
  Stepper stepper(state, now, view);
  stepper.handle(event);
  auto effects = stepper.finish();
  check_invariants(state);
  state.expected_wake = next_wake(state, now);
  return effects;
}

Time next_wake(const State& s, Time now) {
  Time next = now + std::chrono::milliseconds(250);
  auto at = [&](Time when) {
    // What is due and was not done waits for something else: looked at again, not at once.
    if (when > Time{}) next = std::min(next, when > now ? std::max(when, now + std::chrono::microseconds(100)) : now + kLookAgain);
  };
  for (const auto& [name, peer] : s.peers) {
    if (!peer.linked) continue;
    at(peer.sent_at + kIdleInterval);
    for (const auto& mine : peer.mine) {
      if (!mine.items.empty()) at(mine.due);
    }
  }
  for (const auto& [name, w] : s.workloads) {
    const Term& term = term_of(w.disk.base().mode());
    if (w.proposal) {
      at(w.proposal->retry_at);
      at(w.proposal->deadline);
    }
    if (w.parked) {
      const Time busy = owner_busy_until(s, name, w, now);
      at(std::max({w.supports_until, s.started + with_drift(term.length), s.no_votes_until + term.interval,
                   busy == Time::max() ? Time{} : busy}));
    }
    if (Time when = suspicion_at(s, name, w); when != Time::max() && !w.proposal) {
      at(std::max({when, w.stand_at, s.started + with_drift(term.length), s.no_votes_until + term.interval}));
    }
    if (w.want && w.disk.base().owner() == s.self) at(w.want_again);
  }
  return next;
}

void check_invariants(const State& s) {
  CHECK(s.workloads.size() <= kMaxWorkloads && s.peers.size() <= kMaxPeers + 1);
  for (const auto& [name, w] : s.workloads) {
    const auto& base = w.disk.base();
    CHECK(base.workload() == name);
    // What is accepted is for the link after the base, and was promised.
    if (w.disk.has_accepted()) {
      CHECK(w.disk.accepted().incarnation() == base.incarnation() + 1);
      CHECK(compare(w.disk.accepted_ballot(), w.disk.promised()) <= 0);
    }
    // Grants are counted by owners only, and of voters only.
    for (const auto& [node, until] : w.grants) {
      CHECK(base.owner() == s.self && node != s.self && is_voter(base, node));
    }
    if (w.proposal && w.proposal->value && w.proposal->phase == ProposalPhase::kAccepting) {
      CHECK(w.proposal->value->incarnation() == base.incarnation() + 1);
    }
    if (w.parked) CHECK(w.parked->message.record().incarnation() == base.incarnation() + 1);
  }
}

}  // namespace baton::tenure
