// Renewals: one small frame per pair of nodes and mode, whatever the number of workloads, and
// what follows for the leases of the programs.
#include <algorithm>
#include <vector>

#include "tenure/stepper.h"

namespace baton::tenure {

void Stepper::on_claims(Peer& peer, const pb::TenureClaims& claims) {
  auto& theirs = peer.theirs[mode_index(claims.mode())];
  if (claims.items_size() > static_cast<int>(kMaxWorkloads)) return;
  theirs.set = claims.set();
  theirs.known = true;
  theirs.items.clear();
  for (const auto& item : claims.items()) theirs.items[item.workload()] = Claim{item.incarnation()};
}

void Stepper::on_renewal(const std::string& from, Peer& peer, const pb::TenureRenewal& renewal) {
  auto& theirs = peer.theirs[mode_index(renewal.mode())];
  auto& grant = *frames_[from].add_grants();
  grant.set_mode(renewal.mode());
  grant.set_set(renewal.set());
  grant.set_token(renewal.token());
  if (!theirs.known || theirs.set != renewal.set()) {
    grant.set_unknown_set(true);
    return;
  }
  theirs.gaps.arrived(now_);
  for (const auto& [name, claim] : theirs.items) {
    Workload* w = find(name);
    const std::uint64_t known = w ? w->disk.base().incarnation() : 0;
    const bool same = w && known == claim.incarnation && w->disk.base().owner() == from;
    if (same) w->owner_heard = now_;
    const bool moving = same && voted_for_another(s_, name, from);
    if (!same || moving || !is_voter(w->disk.base(), s_.self) || !w->trusted) {
      grant.add_refused(name);
      if (known > claim.incarnation) {
        tell_base(from, name, *w);
      } else if (known < claim.incarnation) {
        pb::TenureMessage ask;
        ask.set_kind(Kind::ASK);
        ask.set_workload(name);
        ask.set_base(known);
        send(from, std::move(ask));
      }
      continue;
    }
    const Time length = term_of(w->disk.base().mode()).length;
    w->supports_until = std::max(w->supports_until, now_ + (s_.rules.drift ? with_drift(length) : length));
    // The owner lives: who wanted its place is not waited for.
    if (w->parked && w->parked->from != from) w->parked.reset();
  }
}

void Stepper::on_grant(const std::string& from, Peer& peer, const pb::TenureGrant& grant) {
  auto& mine = peer.mine[mode_index(grant.mode())];
  if (grant.set() != mine.set) return;
  if (grant.unknown_set()) {
    mine.told = false;
    mine.due = now_;
    return;
  }
  auto open = mine.open.find(grant.token());
  if (open == mine.open.end()) return;
  const Time counted = s_.rules.count_from_sent ? open->second : now_;
  mine.open.erase(mine.open.begin(), std::next(open));
  mine.refused = {grant.refused().begin(), grant.refused().end()};
  for (const auto& [name, claim] : mine.items) {
    if (mine.refused.contains(name)) continue;
    Workload* w = find(name);
    if (!w || w->disk.base().incarnation() != claim.incarnation || w->disk.base().owner() != s_.self) continue;
    if (!is_voter(w->disk.base(), from)) continue;
    Time& until = w->grants[from];
    until = std::max(until, counted + term_of(w->disk.base().mode()).length);
  }
}

// What each peer is asked to support: everything owned here that runs or is about to.
void Stepper::update_claims() {
  for (auto& [node, peer] : s_.peers) {
    std::map<std::string, Claim> items[kModes];
    for (const auto& [name, w] : s_.workloads) {
      const pb::TenureRecord& base = w.disk.base();
      if (base.owner() != s_.self || (!w.running && now_ >= w.activating_until)) continue;
      if (w.disk.has_accepted() && w.disk.accepted().owner() != s_.self) continue;   // given up
      if (!is_voter(base, node) && !is_standby(base, node)) continue;
      items[mode_index(base.mode())][name] = Claim{base.incarnation()};
    }
    for (std::size_t i = 0; i < kModes; ++i) {
      auto& mine = peer.mine[i];
      if (items[i] == mine.items) continue;
      mine.items = std::move(items[i]);
      mine.set = (s_.start << 32) + (mine.set & 0xffffffff) + 1;
      mine.told = false;
      mine.refused.clear();
      mine.open.clear();
      mine.due = now_;
    }
  }
}

void Stepper::send_renewals() {
  for (auto& [node, peer] : s_.peers) {
    if (!peer.linked) continue;
    for (std::size_t i = 0; i < kModes; ++i) {
      auto& mine = peer.mine[i];
      const Term& term = term_of(mode_at(i));
      // A frame that goes there anyway takes along what would be due soon.
      const Time early = frames_.contains(node) ? term.interval / 2 : Time{};
      if (mine.items.empty() || now_ + early < mine.due) continue;
      pb::TenureFrame& frame = frames_[node];
      if (!mine.told) {
        auto& claims = *frame.add_claims();
        claims.set_mode(mode_at(i));
        claims.set_set(mine.set);
        for (const auto& [name, claim] : mine.items) {
          auto& item = *claims.add_items();
          item.set_workload(name);
          item.set_incarnation(claim.incarnation);
        }
        mine.told = true;
      }
      auto& renewal = *frame.add_renewals();
      renewal.set_mode(mode_at(i));
      renewal.set_set(mine.set);
      renewal.set_token(mine.next_token);
      mine.open[mine.next_token++] = now_;
      if (mine.open.size() > kMaxOpenTokens) mine.open.erase(mine.open.begin());
      mine.due = now_ + term.interval;
    }
    if (!frames_.contains(node) && now_ >= peer.sent_at + kIdleInterval) frames_[node];
  }
}

Time may_run_until(const State& s, const std::string& workload, Time) {
  auto it = s.workloads.find(workload);
  if (it == s.workloads.end()) return Time{};
  const Workload& w = it->second;
  const pb::TenureRecord& base = w.disk.base();
  if (base.owner() != s.self || base.incarnation() == 0) return Time{};
  if (base.voters().empty()) return Time::max();
  if (w.disk.has_accepted() && w.disk.accepted().owner() != s.self) return Time{};   // given up
  std::vector<Time> untils;
  for (const auto& voter : base.voters()) {
    if (voter.node() == s.self) {
      untils.push_back(w.trusted ? Time::max() : Time{});   // we accept nobody else while it runs
    } else {
      auto grant = w.grants.find(voter.node());
      untils.push_back(grant == w.grants.end() ? Time{} : grant->second);
    }
  }
  std::sort(untils.begin(), untils.end(), std::greater<>());
  Time until = std::max(untils[static_cast<std::size_t>(majority(base)) - 1], w.free_until);
  if (until == Time::max()) return until;
  const Time guard = term_of(base.mode()).guard;
  return until > guard ? until - guard : Time{};
}

bool voted_for_another(const State& s, const std::string& workload, const std::string& owner) {
  auto it = s.workloads.find(workload);
  if (it == s.workloads.end()) return false;
  const pb::VoterState& disk = it->second.disk;
  return disk.base().owner() == owner && (it->second.offered || (disk.has_accepted() && disk.accepted().owner() != owner));
}

std::vector<std::string> counting(const State& s, const std::string& workload, Time now) {
  auto it = s.workloads.find(workload);
  if (it == s.workloads.end()) return {};
  const Workload& w = it->second;
  const pb::TenureRecord& base = w.disk.base();
  if (base.owner() != s.self || (w.base_token > s.stored && s.rules.owner_on_disk) || may_run_until(s, workload, now) <= now ||
      refused_by_a_voter(s, workload, w)) {
    return {};
  }
  std::vector<std::string> out;
  for (const auto& standby : base.standbys()) {
    const std::string& node = standby.node();
    const bool stays = !w.want || (is_voter(*w.want, node) && is_standby(*w.want, node));
    if (is_voter(base, node) && stays) out.push_back(node);
  }
  return out;
}

bool granted_by_majority(const State& s, const std::string& workload, Time now) {
  auto it = s.workloads.find(workload);
  if (it == s.workloads.end()) return false;
  const pb::TenureRecord& base = it->second.disk.base();
  int support = 0;
  for (const auto& voter : base.voters()) {
    auto grant = it->second.grants.find(voter.node());
    if (voter.node() == s.self ? it->second.trusted : grant != it->second.grants.end() && grant->second > now) ++support;
  }
  return base.voters().empty() || support >= majority(base);
}

void Stepper::update_lease(const std::string& name, Workload& w) {
  // Also while it is being activated: that takes longer than a term, on a busy machine.
  if ((!w.running && now_ >= w.activating_until) || w.disk.base().owner() != s_.self) return;
  const Time until = may_run_until(s_, name, now_);
  if (until == Time::max()) {
    if (w.leased_forever && !w.lease_again) return;
    w.leased_forever = true;
    w.lease_again = false;
    w.leased = Time{};
    emit(EffectKind::kLease, name).incarnation = w.disk.base().incarnation();
    return;
  }
  // Not for every grant: two voters answer each renewal.
  const Time step = term_of(w.disk.base().mode()).interval / 2;
  if (until <= now_ || (!w.lease_again && w.leased > now_ && until < w.leased + step)) return;
  w.lease_again = false;
  w.leased = until;
  w.leased_forever = false;
  Effect& effect = emit(EffectKind::kLease, name);
  effect.until = until;
  effect.incarnation = w.disk.base().incarnation();
}

}  // namespace baton::tenure
