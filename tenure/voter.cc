// The voter: what it promises and accepts, and when. docs/tenure.md, "Voting".
#include <algorithm>

#include "tenure/stepper.h"

namespace baton::tenure {

bool Stepper::silent(const Workload& w) const {
  if (!w.trusted) return true;
  if (!s_.rules.silence) return false;
  const Time length = term_of(w.disk.base().mode()).length;
  return now_ < s_.started + with_drift(length);
}

bool Stepper::late(const Workload& w) const {
  return s_.rules.late_rule && s_.no_votes_until != Time{} &&
         now_ < s_.no_votes_until + term_of(w.disk.base().mode()).interval;
}

void Stepper::tell_base(const std::string& to, const std::string& name, const Workload& w) {
  auto m = message(Kind::LEARN, name, w);
  *m.mutable_record() = w.disk.base();
  send(to, std::move(m));
}

void Stepper::refuse(const std::string& to, const pb::TenureMessage& m, const Workload& w, const std::string& reason) {
  auto out = message(Kind::REFUSE, m.workload(), w);
  out.set_reason(reason);
  *out.mutable_ballot() = w.disk.promised();
  *out.mutable_tip() = view_.tip(m.workload());
  out.set_token(m.ballot().round());
  send(to, std::move(out));
}

void Stepper::on_ask(const std::string& from, const pb::TenureMessage& m) {
  Workload* w = find(m.workload());
  if (!w || w->disk.base().incarnation() == 0) {
    auto empty = pb::TenureMessage();
    empty.set_kind(Kind::KNOWN);
    empty.set_workload(m.workload());
    return send(from, std::move(empty));
  }
  auto out = message(Kind::KNOWN, m.workload(), *w);
  *out.mutable_record() = w->disk.base();
  *out.mutable_ballot() = w->disk.promised();
  if (w->disk.has_accepted()) {
    *out.mutable_accepted_ballot() = w->disk.accepted_ballot();
    *out.mutable_accepted() = w->disk.accepted();
  }
  send(from, std::move(out));
  if (m.base() > w->disk.base().incarnation()) send(from, message(Kind::ASK, m.workload(), *w));
}

void Stepper::on_known(const std::string& from, const pb::TenureMessage& m) {
  if (m.base() > 0) install(m.workload(), m.record());
  Workload* w = find(m.workload());
  if (!w) return;
  if (m.base() < w->disk.base().incarnation()) {
    if (concerns(w->disk.base(), from)) tell_base(from, m.workload(), *w);
    // Who knows less than we do has seen nothing that we could have forgotten.
    if (w->trusted) return;
  }
  if (w->trusted || !is_voter(w->disk.base(), from)) return;
  // Our disk may have forgotten: what others promised and accepted holds for us, too.
  if (m.base() == w->disk.base().incarnation()) {
    if (compare(m.ballot(), w->disk.promised()) > 0) *w->disk.mutable_promised() = m.ballot();
    if (m.has_accepted() && m.accepted().incarnation() == m.base() + 1 &&
        (!w->disk.has_accepted() || compare(m.accepted_ballot(), w->disk.accepted_ballot()) > 0)) {
      *w->disk.mutable_accepted() = m.accepted();
      *w->disk.mutable_accepted_ballot() = m.accepted_ballot();
      if (compare(m.accepted_ballot(), w->disk.promised()) > 0) *w->disk.mutable_promised() = m.accepted_ballot();
    }
  }
  w->answered.insert(from);
  const auto& voters = w->disk.base().voters();
  w->trusted = std::all_of(voters.begin(), voters.end(), [&](const pb::PeerAddress& voter) {
    return voter.node() == s_.self || w->answered.contains(voter.node());
  });
  if (w->trusted) store(m.workload(), *w);
}

void Stepper::on_prepare(const std::string& from, const pb::TenureMessage& m) {
  install(m.workload(), m.record());
  Workload* w = find(m.workload());
  if (!w) return;
  if (w->disk.base().incarnation() > m.base()) return tell_base(from, m.workload(), *w);
  if (w->disk.base().incarnation() != m.base() || !is_voter(w->disk.base(), s_.self)) return;
  if (!w->trusted) return refuse(from, m, *w, "doubtful");
  const int order = compare(m.ballot(), w->disk.promised());
  if (order < 0 || m.ballot().round() == 0) return refuse(from, m, *w, "promised");
  if (order > 0) *w->disk.mutable_promised() = m.ballot();
  auto out = message(Kind::PROMISE, m.workload(), *w);
  *out.mutable_ballot() = m.ballot();
  *out.mutable_tip() = view_.tip(m.workload());
  out.set_wait_ns(static_cast<std::uint64_t>(std::max(Time{}, w->supports_until - now_).count()));
  if (w->disk.has_accepted()) {
    *out.mutable_accepted() = w->disk.accepted();
    *out.mutable_accepted_ballot() = w->disk.accepted_ballot();
  }
  if (w->disk.base().owner() == s_.self && view_.knows_commits(m.workload())) out.set_reason(kOwnerKnows);
  send_stored(from, std::move(out), store(m.workload(), *w));
}

Time owner_busy_until(const State& s, const std::string& name, const Workload& w, Time now) {
  if (w.disk.base().owner() != s.self || (!w.running && now >= w.activating_until)) return Time{};
  const Time until = may_run_until(s, name, now);
  if (until == Time::max() || until == Time{}) return until;
  return until + term_of(w.disk.base().mode()).guard + std::chrono::microseconds(1);
}

// From when on this voter may accept `m`; Time{}: at once; Time::max(): not before something changes.
Time Stepper::votes_at(const Workload& w, const pb::TenureMessage& m, const std::string& from) const {
  const pb::TenureRecord& base = w.disk.base();
  if (!w.trusted) return Time::max();
  if (m.record().owner() == base.owner()) return Time{};          // the same one goes on
  if (m.release() && from == base.owner()) return Time{};         // it has stopped for good
  if (!s_.rules.wait_for_grants) return Time{};
  const Term& term = term_of(base.mode());
  Time at = w.supports_until;
  if (s_.rules.silence) at = std::max(at, s_.started + with_drift(term.length));
  if (late(w)) at = std::max(at, s_.no_votes_until + term.interval);
  return std::max(at, owner_busy_until(s_, m.workload(), w, now_));
}

// Whether this voter knows of a newer checkpoint than the one that the candidate offers. Only the
// candidate itself is judged: what others complete may have been decided already.
bool Stepper::passes_over(const std::string& from, const pb::TenureMessage& m, const pb::TenureRecord& base) const {
  if (!s_.rules.newest_only || from != m.record().owner() || from == base.owner() || m.allow_loss()) return false;
  const auto offered = started_from(m.record());
  return newer(view_.tip(m.workload()), offered) || newer(started_from(base), offered);
}

void Stepper::on_accept(const std::string& from, const pb::TenureMessage& m) {
  install(m.workload(), m.accepted());     // the base that it builds on
  Workload* w = find(m.workload());
  if (!w) return;
  const pb::TenureRecord& base = w->disk.base();
  if (base.incarnation() >= m.record().incarnation()) return tell_base(from, m.workload(), *w);
  if (base.incarnation() + 1 != m.record().incarnation() || !is_voter(base, s_.self)) return;
  if (m.record().workload() != m.workload() || m.record().voters_size() > static_cast<int>(kMaxVoters)) return;
  if (compare(m.ballot(), w->disk.promised()) < 0) return refuse(from, m, *w, "promised");
  if (m.ballot().round() == 0 && from != base.owner()) return;
  if (w->disk.has_accepted() && compare(w->disk.accepted_ballot(), m.ballot()) == 0) {   // its answer was lost
    auto out = message(Kind::ACCEPTED, m.workload(), *w);
    *out.mutable_ballot() = m.ballot();
    return send_stored(from, std::move(out), s_.next_token - 1);
  }
  if (passes_over(from, m, base)) return refuse(from, m, *w, "older");
  const Time at = votes_at(*w, m, from);
  if (now_ < at) {
    w->parked = Parked{from, m};
    return;
  }
  accept(from, m, *w);
}

void Stepper::accept(const std::string& from, const pb::TenureMessage& m, Workload& w) {
  *w.disk.mutable_promised() = m.ballot();
  *w.disk.mutable_accepted_ballot() = m.ballot();
  *w.disk.mutable_accepted() = m.record();
  if (w.parked && compare(w.parked->message.ballot(), m.ballot()) <= 0) w.parked.reset();
  auto out = message(Kind::ACCEPTED, m.workload(), w);
  *out.mutable_ballot() = m.ballot();
  send_stored(from, std::move(out), store(m.workload(), w));
}

void Stepper::retry_parked(const std::string&, Workload& w) {
  if (!w.parked) return;
  Parked parked = *w.parked;
  if (compare(parked.message.ballot(), w.disk.promised()) < 0) {
    w.parked.reset();
    return refuse(parked.from, parked.message, w, "promised");
  }
  if (now_ < votes_at(w, parked.message, parked.from)) return;
  w.parked.reset();
  // What was committed while it waited counts.
  if (passes_over(parked.from, parked.message, w.disk.base())) return refuse(parked.from, parked.message, w, "older");
  accept(parked.from, parked.message, w);
}

}  // namespace baton::tenure
