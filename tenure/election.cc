// The proposer: takeovers, hand-overs, changes of voters, and asking who the owner is. One
// instance of single-decree Paxos per link of the chain; see docs/tenure.md, "Deciding".
#include <algorithm>

#include "base/check.h"
#include "tenure/stepper.h"

namespace baton::tenure {
namespace {

// The new owner's place among the standbys goes to the one before it.
void change_places(pb::TenureRecord& record, const std::string& owner, const pb::PeerAddress* before) {
  google::protobuf::RepeatedPtrField<pb::PeerAddress> standbys;
  bool placed = false;
  for (const auto& standby : record.standbys()) {
    if (standby.node() != owner) {
      *standbys.Add() = standby;
    } else if (before) {
      *standbys.Add() = *before;
      placed = true;
    }
  }
  if (before && !placed && !owner.empty()) *standbys.Add() = *before;
  *record.mutable_standbys() = std::move(standbys);
}

const pb::PeerAddress* address_in(const pb::TenureRecord& record, const std::string& node) {
  for (const auto& peer : record.voters()) {
    if (peer.node() == node) return &peer;
  }
  for (const auto& peer : record.standbys()) {
    if (peer.node() == node) return &peer;
  }
  return nullptr;
}

pb::TenureRecord successor(const pb::TenureRecord& base, const std::string& owner, const std::string& reason) {
  pb::TenureRecord out = base;
  out.set_incarnation(base.incarnation() + 1);
  out.set_owner(owner);
  out.set_reason(reason);
  out.set_previous_owner(base.owner());
  if (owner != base.owner()) change_places(out, owner, address_in(base, base.owner()));
  if (owner.empty()) {
    out.clear_voters();
    out.clear_standbys();
  }
  return out;
}

bool same_nodes(const google::protobuf::RepeatedPtrField<pb::PeerAddress>& a,
                const google::protobuf::RepeatedPtrField<pb::PeerAddress>& b, bool ordered) {
  std::vector<std::string> left, right;
  for (const auto& peer : a) left.push_back(peer.node());
  for (const auto& peer : b) right.push_back(peer.node());
  if (!ordered) {
    std::sort(left.begin(), left.end());
    std::sort(right.begin(), right.end());
  }
  return left == right;
}

}  // namespace

bool refused_by_a_voter(const State& s, const std::string& name, const Workload& w) {
  const pb::TenureRecord& base = w.disk.base();
  return std::any_of(base.voters().begin(), base.voters().end(), [&](const pb::PeerAddress& voter) {
    auto peer = s.peers.find(voter.node());
    return peer != s.peers.end() && peer->second.linked &&
           peer->second.mine[mode_index(base.mode())].refused.contains(name);
  });
}

// When the owner's silence is no longer believed to be chance; the second standby waits for the first.
Time suspicion_at(const State& s, const std::string&, const Workload& w) {
  const pb::TenureRecord& base = w.disk.base();
  if (base.owner().empty() || base.voters().empty()) return Time::max();
  const Term& term = term_of(base.mode());
  if (base.owner() == s.self) {
    // Its machine was restarted: the owner stands, too, after its standbys, which know more.
    if (w.running) return Time::max();
    const Time when = w.owner_heard + term.length + base.standbys_size() * (term.length / 2);
    return w.activating_until > s.woke ? std::max(when, w.activating_until) : when;
  }
  for (int i = 0; i < base.standbys_size(); ++i) {
    if (base.standbys(i).node() != s.self) continue;
    auto peer = s.peers.find(base.owner());
    const Time limit = peer == s.peers.end() ? term.length
                                             : peer->second.theirs[mode_index(base.mode())].gaps.limit(term.length);
    return w.owner_heard + limit + i * (term.length / 2);
  }
  // A voter that was a standby a moment ago may hold what its successors do not: it stands when they
  // have not made it, long after them.
  if (is_voter(base, s.self)) return w.owner_heard + (8 + base.standbys_size()) * term.length;
  return Time::max();
}

void Stepper::propose(const std::string& name, Workload& w, Proposal p) {
  const pb::TenureRecord& base = w.disk.base();
  // An owner that goes on names its newest commit: a new standby may not have it yet.
  if (p.value && p.value->owner() == s_.self && base.owner() == s_.self && view_.knows_commits(name) &&
      newer(view_.tip(name), started_from(*p.value))) {
    p.value->set_committed_incarnation(view_.tip(name).incarnation());
    p.value->set_committed_seq(view_.tip(name).seq());
  }
  p.own = p.value;
  const bool own_first = p.value && !p.takeover && base.owner() == s_.self && is_voter(base, s_.self) && w.trusted &&
                         !w.disk.has_accepted() && compare(w.disk.promised(), first_ballot(s_.self)) <= 0;
  if (own_first) {
    p.ballot = first_ballot(s_.self);
    p.phase = ProposalPhase::kAccepting;
  } else {
    p.ballot.set_round(std::max(w.disk.promised().round(), p.ballot.round()) + 1);
    p.ballot.set_node(s_.self);
  }
  p.started = now_;
  p.retry_after = kRetry;
  w.proposal = std::move(p);
  ask_votes(name, w);
}

void Stepper::ask_votes(const std::string& name, Workload& w) {
  Proposal& p = *w.proposal;
  const pb::TenureRecord base = w.disk.base();
  p.retry_at = now_ + p.retry_after;
  p.retry_after = std::min(p.retry_after * 2, kRetryMax);
  // The owner's first ballot has one value for ever: on its own disk before anybody hears of it.
  const bool self_first = p.phase == ProposalPhase::kAccepting && p.ballot.round() == 0 && !p.accepted.contains(s_.self);
  // A candidate votes for itself last: what it alone had accepted would have to be completed some
  // day, long after the owner has gone on and committed more.
  const bool self_last = p.phase == ProposalPhase::kAccepting && p.ballot.round() != 0 && p.value->owner() == s_.self &&
                         p.accepted.empty();
  for (const auto& voter : base.voters()) {
    const std::string& node = voter.node();
    if (self_last && node == s_.self) continue;
    if (p.phase == ProposalPhase::kPreparing) {
      if (p.promised.contains(node)) continue;
      auto m = message(Kind::PREPARE, name, w);
      *m.mutable_ballot() = p.ballot;
      *m.mutable_record() = base;
      send(node, std::move(m));
    } else {
      if (p.accepted.contains(node) || (self_first && node != s_.self)) continue;
      p.asked_at.emplace(node, now_);
      w.offered = w.offered || (p.value->owner() == s_.self && base.owner() != s_.self);
      auto m = message(Kind::ACCEPT, name, w);
      *m.mutable_ballot() = p.ballot;
      *m.mutable_record() = *p.value;
      *m.mutable_accepted() = base;
      m.set_release(p.release && p.own_value);
      m.set_allow_loss(p.allow_loss || !p.own_value);   // what is completed may have been decided already
      send(node, std::move(m));
    }
  }
}

void Stepper::next_round(const std::string& name, Workload& w, std::uint64_t above) {
  Proposal& p = *w.proposal;
  p.ballot.set_round(std::max({above, p.ballot.round(), w.disk.promised().round()}) + 1);
  p.ballot.set_node(s_.self);
  p.phase = ProposalPhase::kPreparing;
  p.promised.clear();
  p.accepted.clear();
  p.asked_at.clear();
  p.owner_knows = false;
  p.found.reset();
  p.found_ballot.Clear();
  p.value = p.own;
  p.own_value = true;
  ask_votes(name, w);
}

void Stepper::on_promise(const std::string& from, const pb::TenureMessage& m) {
  Workload* w = find(m.workload());
  if (!w || !w->proposal || m.base() != w->disk.base().incarnation()) return;
  Proposal& p = *w->proposal;
  if (p.phase != ProposalPhase::kPreparing || compare(m.ballot(), p.ballot) != 0 || !is_voter(w->disk.base(), from)) return;
  p.promised.insert(from);
  if (m.has_accepted() && (!p.found || compare(m.accepted_ballot(), p.found_ballot) > 0)) {
    p.found = m.accepted();
    p.found_ballot = m.accepted_ballot();
  }
  if (s_.rules.newest_only && p.takeover && !p.allow_loss && !p.found && newer(m.tip(), view_.tip(m.workload()))) {
    return end_proposal(m.workload(), *w, Outcome::kOlder,
                        from + " knows of " + m.workload() + "@" + std::to_string(m.tip().seq()));
  }
  p.owner_knows = p.owner_knows || (from == w->disk.base().owner() && m.reason() == kOwnerKnows);
  if (static_cast<int>(p.promised.size()) < majority(w->disk.base())) return;
  if (p.takeover && is_voter(w->disk.base(), s_.self) && !p.promised.contains(s_.self)) return;   // see begin()
  // Somebody among them must know the newest commit: the owner, if it remembers, or else all
  // standbys that vote.
  if (s_.rules.newest_only && p.takeover && !p.allow_loss && !p.found && !p.owner_knows) {
    const auto& base = w->disk.base();
    for (const auto& voter : base.voters()) {
      if (is_standby(base, voter.node()) && !p.promised.contains(voter.node())) return;
    }
  }
  if (p.found) {
    p.value = p.found;
    p.own_value = p.own && p.own->SerializeAsString() == p.found->SerializeAsString();
  } else if (!p.value) {
    return end_proposal(m.workload(), *w, Outcome::kDone, "");
  } else if (p.takeover) {
    const auto tip = view_.tip(m.workload());
    p.value->set_committed_incarnation(tip.incarnation());
    p.value->set_committed_seq(tip.seq());
  }
  p.phase = ProposalPhase::kAccepting;
  p.retry_after = kRetry;
  ask_votes(m.workload(), *w);
}

void Stepper::on_accepted(const std::string& from, const pb::TenureMessage& m) {
  Workload* w = find(m.workload());
  if (!w || !w->proposal || m.base() != w->disk.base().incarnation()) return;
  Proposal& p = *w->proposal;
  if (p.phase != ProposalPhase::kAccepting || compare(m.ballot(), p.ballot) != 0 || !is_voter(w->disk.base(), from)) return;
  const bool first_own = p.ballot.round() == 0 && from == s_.self && !p.accepted.contains(from);
  p.accepted.insert(from);
  if (static_cast<int>(p.accepted.size()) >= majority(w->disk.base())) return decide(m.workload(), *w);
  const bool own_turn = p.accepted.size() == 1 && from != s_.self && p.value->owner() == s_.self;
  if (first_own || own_turn) ask_votes(m.workload(), *w);
}

void Stepper::on_refuse(const std::string& from, const pb::TenureMessage& m) {
  Workload* w = find(m.workload());
  if (!w || !w->proposal || m.base() != w->disk.base().incarnation()) return;
  Proposal& p = *w->proposal;
  if (m.token() != p.ballot.round()) return;
  if (m.reason() == "older" && p.takeover) {
    return end_proposal(m.workload(), *w, Outcome::kOlder,
                        from + " knows of " + m.workload() + "@" + std::to_string(m.tip().seq()));
  }
  if (m.reason() == "promised" && compare(m.ballot(), p.ballot) > 0) {
    p.above = std::max(p.above, m.ballot().round());
    p.retry_at = now_ + Time(static_cast<Time::rep>(random() % static_cast<std::uint64_t>(2 * kRetry.count())));
  }
}

void Stepper::decide(const std::string& name, Workload& w) {
  const Proposal p = *w.proposal;
  const pb::TenureRecord before = w.disk.base(), value = *p.value;
  std::set<std::string> told;
  for (const auto* record : {&before, &value}) {
    for (const auto& peer : record->voters()) told.insert(peer.node());
    for (const auto& peer : record->standbys()) told.insert(peer.node());
    told.insert(record->owner());
  }
  CHECK(install(name, value));
  if (value.owner() == s_.self) {
    // Who accepted supports us for a term from then on; we count from before they were asked.
    const Time length = term_of(value.mode()).length;
    for (const auto& node : p.accepted) {
      if (node == s_.self || !is_voter(value, node)) continue;
      w.grants[node] = (s_.rules.count_from_sent ? p.asked_at.at(node) : now_) + length;
    }
  }
  for (const auto& node : told) {
    if (!node.empty() && node != s_.self) tell_base(node, name, w);
  }
}

void Stepper::end_proposal(const std::string& name, Workload& w, Outcome outcome, const std::string& text) {
  const Proposal p = *w.proposal;
  w.proposal.reset();
  if (p.request != 0) {
    Effect& effect = emit(EffectKind::kOutcome, name);
    effect.request = p.request;
    effect.outcome = outcome;
    effect.text = text;
    effect.record = w.disk.base();
  }
  if (outcome == Outcome::kDone) return;
  const Time length = term_of(w.disk.base().mode()).length;
  w.stand_at = now_ + length / 2 + Time(static_cast<Time::rep>(random() % static_cast<std::uint64_t>(length.count())));
  if (outcome == Outcome::kOlder) w.stand_at += length;
  w.want_again = now_ + kRetryMax;
}

// Whether this node holds the newest checkpoint that it knows of.
bool Stepper::could_run(const std::string& name, const pb::TenureRecord& base) const {
  const auto held = view_.held(name);
  if (held.seq() == 0) return false;
  return !s_.rules.newest_only || (!newer(started_from(base), held) && !newer(view_.tip(name), held));
}

void Stepper::take_over(const std::string& name, Workload& w, const Event* asked) {
  Proposal p;
  p.takeover = true;
  p.value = successor(w.disk.base(), s_.self, asked && !asked->reason.empty() ? asked->reason : "takeover");
  const auto tip = view_.tip(name);
  p.value->set_committed_incarnation(tip.incarnation());
  p.value->set_committed_seq(tip.seq());
  const Time length = term_of(w.disk.base().mode()).length;
  p.deadline = now_ + std::max<Time>(length * 4, std::chrono::seconds(1));
  if (asked) {
    p.request = asked->request;
    p.allow_loss = asked->allow_loss;
    p.deadline = now_ + asked->timeout;
  }
  w.timeline.last_sign = w.owner_heard;
  w.timeline.stood = now_;
  if (w.timeline.suspected == Time{}) w.timeline.suspected = now_;
  propose(name, w, std::move(p));
}

void Stepper::drive(const std::string& name, Workload& w) {
  const pb::TenureRecord& base = w.disk.base();
  if (w.proposal) {
    Proposal& p = *w.proposal;
    if (p.takeover && p.request == 0 && w.owner_heard > p.started) {
      end_proposal(name, w, Outcome::kConflict, base.owner() + " was heard again");
    } else if (now_ >= p.deadline) {
      end_proposal(name, w, p.asked_at.empty() ? Outcome::kTimedOut : Outcome::kUnknown,
                   std::string("no majority of its voters ") +
                       (p.asked_at.empty() ? "answers" : "has agreed: its owner may still be supported"));
    } else if (now_ >= p.retry_at) {
      if (p.above > 0) {
        next_round(name, w, std::exchange(p.above, 0));
      } else {
        ask_votes(name, w);
      }
    }
    return;
  }
  if (!w.trusted && now_ >= w.ask_again) {
    w.ask_again = now_ + kAskAgain;
    for (const auto& voter : base.voters()) {
      if (voter.node() != s_.self && !w.answered.contains(voter.node())) send(voter.node(), message(Kind::ASK, name, w));
    }
  }
  if (now_ >= suspicion_at(s_, name, w) && now_ >= w.stand_at && !silent(w) && !late(w) && could_run(name, base)) {
    w.timeline.suspected = now_;
    take_over(name, w, nullptr);
    return;
  }
  const bool claims = w.running || now_ < w.activating_until;
  const bool refused = base.owner() == s_.self && claims && refused_by_a_voter(s_, name, w);
  if (!refused) w.refused_since = Time{};
  if (refused && w.refused_since == Time{}) w.refused_since = now_;
  const bool lasting = refused && now_ >= w.refused_since + 4 * term_of(base.mode()).length;
  if (refused && now_ >= w.stand_at && w.trusted && (lasting || may_run_until(s_, name, now_) <= now_)) {
    w.refused_since = Time{};
    // A voter that answers and refuses has accepted somebody who never finished: it is ended
    // either way, and until it is, nothing counts as committed.
    {
      Proposal p;
      p.value = successor(base, s_.self, "settle");
      p.deadline = now_ + std::chrono::seconds(1);
      propose(name, w, std::move(p));
      return;
    }
  }
  if (!w.want || base.owner() != s_.self || !w.running || base.voters().empty() || now_ < w.want_again || view_.leaving(name)) return;
  if (same_nodes(base.voters(), w.want->voters(), false) && same_nodes(base.standbys(), w.want->standbys(), true)) {
    return;
  }
  w.want_again = now_ + kRetryMax;
  for (const auto& voter : w.want->voters()) {
    if (voter.node() == s_.self || is_voter(base, voter.node())) continue;
    auto peer = s_.peers.find(voter.node());
    if (peer == s_.peers.end() || !peer->second.linked) return;   // it must support us at once
  }
  Proposal p;
  p.value = successor(base, s_.self, "voters");
  *p.value->mutable_voters() = w.want->voters();
  *p.value->mutable_standbys() = w.want->standbys();
  p.deadline = now_ + std::chrono::seconds(5);
  propose(name, w, std::move(p));
}

void Stepper::on_request(const Event& event) {
  Workload* w = find(event.workload);
  auto answer = [&](Outcome outcome, const std::string& text) {
    if (event.request == 0) return;
    Effect& effect = emit(EffectKind::kOutcome, event.workload);
    effect.request = event.request;
    effect.outcome = outcome;
    effect.text = text;
    if (w) effect.record = w->disk.base();
  };
  if (event.kind == EventKind::kWant) {
    if (!w) return;
    w->want = event.record;
    w->want_again = now_;
    return;
  }
  if (!w || w->disk.base().voters().empty()) return answer(Outcome::kNotFound, "it has no voters that this node knows of");
  const pb::TenureRecord& base = w->disk.base();
  const std::string owner = event.kind == EventKind::kTakeOver ? s_.self : event.record.owner();
  if (event.kind != EventKind::kQuery && event.expected != 0 && base.incarnation() != event.expected) {
    const bool done = base.incarnation() == event.expected + 1 && base.owner() == owner && base.reason() == event.reason;
    return answer(done ? Outcome::kDone : Outcome::kConflict,
                  event.workload + " is at incarnation " + std::to_string(base.incarnation()) + ", owned by " + base.owner());
  }
  if (w->proposal) {
    if (w->proposal->request != 0) return answer(Outcome::kConflict, "another change of its owner is under way");
    w->proposal.reset();
  }
  if (event.kind == EventKind::kTakeOver) {
    if (base.owner() == s_.self && w->running) return answer(Outcome::kConflict, "this node owns it already");
    if (!event.allow_loss && !could_run(event.workload, base)) {
      return answer(Outcome::kOlder, base.owner() + " went on from @" + std::to_string(base.committed_seq()) +
                                         ", this node holds @" + std::to_string(view_.held(event.workload).seq()));
    }
    return take_over(event.workload, *w, &event);
  }
  Proposal p;
  p.request = event.request;
  p.deadline = now_ + event.timeout;
  if (event.kind == EventKind::kPropose) {
    p.release = event.release && base.owner() == s_.self;
    p.allow_loss = event.allow_loss;
    p.value = successor(base, owner, event.reason);
    p.value->set_committed_incarnation(event.record.committed_incarnation());
    p.value->set_committed_seq(event.record.committed_seq());
  }
  propose(event.workload, *w, std::move(p));
}

}  // namespace baton::tenure
