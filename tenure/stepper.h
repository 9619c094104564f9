// Stepper: one step of the machine under way. Private to this folder.
#pragma once

#include <deque>

#include "tenure/machine.h"

namespace baton::tenure {

class Stepper {
 public:
  Stepper(State& state, Time now, const View& view) : s_(state), now_(now), view_(view) {}
  void handle(const Event& event);
  std::vector<Effect> finish();

 private:
  using Kind = pb::TenureMessage;

  // machine.cc
  Workload* find(const std::string& name);
  Workload& make(const std::string& name);
  void deliver_local();
  void receive(const std::string& from, const pb::TenureMessage& message);
  void link_up(const std::string& peer);
  void tick();
  std::uint64_t store(const std::string& name, const Workload& w);
  void send(const std::string& to, pb::TenureMessage message);
  void send_stored(const std::string& to, pb::TenureMessage message, std::uint64_t token);
  void stored(std::uint64_t token);
  pb::TenureMessage message(Kind::Kind kind, const std::string& name, const Workload& w) const;
  Effect& emit(EffectKind kind, const std::string& workload);
  bool install(const std::string& name, const pb::TenureRecord& record, bool adopted = false);
  void forget(const std::string& name);
  std::uint64_t random();

  // voter.cc
  bool silent(const Workload& w) const;
  bool late(const Workload& w) const;
  Time votes_at(const Workload& w, const pb::TenureMessage& m, const std::string& from) const;
  void on_ask(const std::string& from, const pb::TenureMessage& m);
  void on_known(const std::string& from, const pb::TenureMessage& m);
  void on_prepare(const std::string& from, const pb::TenureMessage& m);
  void on_accept(const std::string& from, const pb::TenureMessage& m);
  void accept(const std::string& from, const pb::TenureMessage& m, Workload& w);
  void refuse(const std::string& to, const pb::TenureMessage& m, const Workload& w, const std::string& reason);
  void tell_base(const std::string& to, const std::string& name, const Workload& w);
  void retry_parked(const std::string& name, Workload& w);

  // election.cc
  void propose(const std::string& name, Workload& w, Proposal proposal);
  void take_over(const std::string& name, Workload& w, const Event* asked);
  bool passes_over(const std::string& from, const pb::TenureMessage& m, const pb::TenureRecord& base) const;
  bool could_run(const std::string& name, const pb::TenureRecord& base) const;
  void ask_votes(const std::string& name, Workload& w);
  void next_round(const std::string& name, Workload& w, std::uint64_t above);
  void on_promise(const std::string& from, const pb::TenureMessage& m);
  void on_accepted(const std::string& from, const pb::TenureMessage& m);
  void on_refuse(const std::string& from, const pb::TenureMessage& m);
  void decide(const std::string& name, Workload& w);
  void end_proposal(const std::string& name, Workload& w, Outcome outcome, const std::string& text);
  void drive(const std::string& name, Workload& w);   // suspicion, retries, deadlines, wishes
  void on_request(const Event& event);

  // renewal.cc
  void on_claims(Peer& peer, const pb::TenureClaims& claims);
  void on_renewal(const std::string& from, Peer& peer, const pb::TenureRenewal& renewal);
  void on_grant(const std::string& from, Peer& peer, const pb::TenureGrant& grant);
  void update_claims();
  void send_renewals();
  void update_lease(const std::string& name, Workload& w);

  State& s_;
  const Time now_;
  const View& view_;
  std::vector<Effect> out_;
  std::map<std::string, pb::TenureFrame> frames_;
  std::deque<std::pair<std::string, pb::TenureMessage>> local_;
};

// Shared with next_wake().
// Until when this node, being the owner, must vote for nobody else.
Time owner_busy_until(const State& state, const std::string& name, const Workload& w, Time now);
Time suspicion_at(const State& state, const std::string& name, const Workload& w);

}  // namespace baton::tenure
