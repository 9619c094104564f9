// Coordinator: workloads whose voters decide. The coordinator follows what it is told of their
// records, asks them where a person wants a change, and keeps the reports of failovers.
#include <algorithm>

#include "base/log.h"
#include "coordinator/coordinator.h"

namespace baton::coordinator {
namespace {

constexpr int kMaxFailovers = 20;                    // kept per workload
constexpr int kMaxNotes = 4096;
constexpr std::chrono::milliseconds kRecordWait{3000};
constexpr std::chrono::milliseconds kRecordPoll{5};
constexpr std::uint64_t kTakeOverTimeoutUs = 10'000'000;

bool concerns(const pb::TenureRecord& record, const std::string& node) {
  auto named = [&](const auto& peers) {
    return std::any_of(peers.begin(), peers.end(), [&](const pb::PeerAddress& peer) { return peer.node() == node; });
  };
  return record.owner() == node || record.previous_owner() == node || named(record.voters()) || named(record.standbys());
}

}  // namespace

void Coordinator::set_voter_address(const std::string& address) {
  std::lock_guard lock(mutex_);
  voter_address_ = address;
}

void Coordinator::follow_record(const pb::TenureRecord& record) {
  auto before = registry_.get(record.workload());
  if (!before || !*before || (*before)->deleted()) return;
  auto news = registry_.follow(record);
  if (!news) {
    spdlog::warn("{}: {}", record.workload(), news.error().message());
    return;
  }
  if (!*news) return;
  if ((*before)->owner() != record.owner() && !record.owner().empty()) {
    membership_.forget((*before)->owner(), record.workload());
    auto operation = store_.get<pb::OperationRecord>(record.workload());
    // A migration or restore under way settles its standbys itself.
    // A takeover that nobody asked for: its last owner does not answer, though it is not declared unreachable yet.
    const std::string suspect = record.reason() == "takeover" ? (*before)->owner() : std::string();
    if (operation && operation->version == 0) settle_standbys(record.workload(), true, suspect);
  }
  changed_.notify_all();
  wake_sessions();
}

Result<pb::TenureAdvice> Coordinator::note_tenure(const std::string& node, const pb::TenureNote& note) {
  if (note.records_size() > kMaxNotes || note.failovers_size() > kMaxNotes) {
    return make_error(Code::kInvalid, "note tenure", node + " tells too much at once");
  }
  for (const auto& record : note.records()) {
    auto known = registry_.get(record.workload());
    const bool heard = known && *known && concerns((*known)->tenure(), node);
    if (!concerns(record, node) && !heard) {
      spdlog::warn("{} tells of {}, which does not concern it: not followed", node, record.workload());
      continue;
    }
    follow_record(record);
  }
  for (const auto& report : note.failovers()) {
    for (int attempt = 0; attempt < 5; ++attempt) {
      auto stored = store_.get<pb::WorkloadRecord>(report.workload());
      if (!stored || stored->version == 0) break;
      auto& kept = *stored->value.mutable_failovers();
      const bool known = std::any_of(kept.begin(), kept.end(), [&](const pb::FailoverReport& one) {
        return one.incarnation() == report.incarnation() && one.to() == report.to();
      });
      if (known) break;
      *kept.Add() = report;
      if (kept.size() > kMaxFailovers) kept.DeleteSubrange(0, kept.size() - kMaxFailovers);
      auto done = commit(Transaction().put(report.workload(), stored->version, stored->value));
      if (done) break;
      if (done.error().code != Code::kConflict) return done.error();
    }
  }
  pb::TenureAdvice advice;
  std::lock_guard lock(mutex_);
  advice.set_coordinator_tenure(voter_address_);
  return advice;
}

Result<pb::Ownership> Coordinator::enter_voters(const std::string& node, const pb::TenureRecord& record) {
  if (record.workload().empty()) return make_error(Code::kInvalid, "enter voters", "no workload is named");
  if (record.owner() != node) {
    return make_error(Code::kNotAllowed, "enter voters", node + " does not own " + record.workload());
  }
  BATON_ASSIGN(auto operation, store_.get<pb::OperationRecord>(record.workload()));
  if (operation.version != 0) {
    return make_error(Code::kConflict, "enter voters",
                      record.workload() + ": a " + operation.value.kind() + " is under way");
  }
  BATON_ASSIGN(auto entered, registry_.enter_voters(record));
  wake_sessions();
  return entered;
}

bool Coordinator::wait_record(const std::string& name, std::uint64_t incarnation) {
  const auto until = std::chrono::steady_clock::now() + kRecordWait;
  while (std::chrono::steady_clock::now() < until) {
    auto owner = registry_.get(name);
    if (owner && *owner && (*owner)->incarnation() >= incarnation) return true;
    std::this_thread::sleep_for(kRecordPoll);
  }
  return false;
}

Result<void> Coordinator::end_voting(const std::string& name, const std::string& reason) {
  BATON_ASSIGN(auto now, registry_.get(name));
  if (!now || !voted(*now)) return {};
  pb::ProposeOwnerRequest request;
  request.set_name(name);
  request.set_reason(reason);
  request.set_allow_loss(true);
  // The owner first: it can give up by itself; another voter must wait until it has lapsed.
  std::vector<std::string> ask{now->owner()};
  for (const auto& voter : now->tenure().voters()) {
    if (voter.node() != now->owner()) ask.push_back(voter.node());
  }
  Result<void> last = make_error(Code::kUnreachable, "ask the voters of " + name, "no node that votes is reachable",
                                 "Two of its three voters must be: see baton show " + name + ".");
  for (const auto& node : ask) {
    auto view = membership_.view(node);
    if (!view || !view->reachable) continue;
    auto answer = agent_of(*view)->propose_owner(request);
    if (answer && answer->owner().empty()) {
      if (wait_record(name, answer->incarnation())) return {};
      return make_error(Code::kTimedOut, "ask the voters of " + name, "their decision is not known here yet", "Try again.");
    }
    last = answer ? make_error(Code::kConflict, "ask the voters of " + name, answer->owner() + " owns it")
                  : std::move(answer).error();
  }
  return last;
}

Result<pb::FailoverReports> Coordinator::failovers(const std::string& workload) {
  pb::FailoverReports out;
  if (!workload.empty()) {
    BATON_ASSIGN(auto one, known(workload));
    *out.mutable_failovers() = one.record.value.failovers();
    return out;
  }
  BATON_ASSIGN(auto records, store_.list<pb::WorkloadRecord>());
  std::vector<pb::FailoverReport> all;
  for (const auto& record : records) {
    all.insert(all.end(), record.value.failovers().begin(), record.value.failovers().end());
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.wall_ns() < b.wall_ns(); });
  for (auto& one : all) *out.add_failovers() = std::move(one);
  return out;
}

// By hand, of a workload whose owner is silent: the voters give it to the target.
Result<void> Coordinator::take_over(const Known& one, const pb::FailoverRequest& request,
                                    const Sink<pb::RestoreProgress>& sink, const std::string& who) {
  const std::string& name = request.name();
  std::string to = request.to();
  for (const auto& standby : standbys_of(one)) {
    auto view = membership_.view(standby);
    if (to.empty() && view && view->reachable) to = standby;
  }
  if (to.empty()) {
    return make_error(Code::kUnsupported, "failover", "no standby of " + name + " is reachable", "Give --to NODE.");
  }
  BATON_ASSIGN(auto target, ready_node(to, "failover"));
  pb::RestoreProgress step;
  step.set_phase("votes");
  sink(step);
  log_event(make_event("failover", name, to, "asked for, on " + to, who));
  pb::TakeOverRequest ask;
  ask.set_name(name);
  ask.set_allow_loss(request.allow_loss());
  ask.set_reason("asked for by " + who);
  ask.set_timeout_us(kTakeOverTimeoutUs);
  const auto began = std::chrono::steady_clock::now();
  auto report = agent_of(target)->take_over(ask);
  if (!report) {
    log_event(make_event("failover", name, to, "failed: " + report.error().message(), who));
    return report.error();
  }
  (void)wait_record(name, report->incarnation());
  pb::RestoreProgress last;
  last.set_phase("done");
  const double total_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
  last.mutable_report()->set_pid(report->pid());
  last.mutable_report()->set_seq(report->committed_seq());
  last.mutable_report()->set_lost_us(report->lost_us());
  last.mutable_report()->set_total_ms(total_ms);
  auto& handover = *last.mutable_handover();
  auto home = membership_.view(one.owner.owner());
  handover.set_pause_us((home ? static_cast<std::uint64_t>(home->silent_for.count() / 1000) : 0) +
                        static_cast<std::uint64_t>(total_ms * 1000));
  handover.set_total_ms(total_ms);
  handover.set_strategy("takeover");
  handover.set_seq(report->committed_seq());
  handover.set_pid(report->pid());
  handover.set_from(one.owner.owner());
  handover.set_to(to);
  handover.set_incarnation(report->incarnation());
  sink(last);
  return {};
}

}  // namespace baton::coordinator
