// Coordinator: everything that the coordinator decides, without its wire.
//
// Reading order: owner_registry.h (who may run what), membership.h (who is there),
// placement.h, this. service.cc puts roles and gRPC in front of it.
//
// Each method blocks until its answer is final. What must survive a crash is in the
// StateStore before anything happens on a node: an OperationRecord is the lock on its
// workload and tells a restarted coordinator what was under way (recovery.cc).
// At most one operation per workload; a second one is refused with kConflict.
//
// Threads: any. No lock of this class is held during a call to an agent.
// Lifetimes: store, registry, agents and clock outlive it.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "coordinator/agent_client.h"
#include "coordinator/membership.h"
#include "coordinator/owner_registry.h"
#include "coordinator/placement.h"
#include "coordinator/state/store.h"
#include "proto/tenure.pb.h"

namespace baton::coordinator {

template <typename T>
using Sink = std::function<bool(const T&)>;  // false: nobody listens any more

// One node's session. Held by the stream's handler; the coordinator only wakes it.
struct Session {
  std::string node;
  std::uint64_t number = 0;
  std::set<std::string> reported;   // the workloads of its last report
  std::string sent_peers;           // as last sent, serialised
  std::map<std::string, std::string> sent_standbys;
  bool due = true;
  bool closed = false;
};

class Coordinator {
 public:
  Coordinator(StateStore& store, OwnerRegistry& registry, AgentDirectory& agents,
              const Clock& clock, std::string cluster);
  ~Coordinator();  // ends its threads; what was under way is found again at the next start

  // Loads what is known; call once, before anything else.
  Result<void> start();
  // Ends sessions, followers and waits, so that the wire can shut down. What is under way
  // keeps its operation record. No call after it does anything but fail.
  void stop();

  // --- viewer
  Result<pb::ListNodesResponse> list_nodes();
  Result<pb::NodeInfo> show_node(const std::string& name);
  Result<pb::ListWorkloadsResponse> list_workloads();
  Result<pb::WorkloadInfo> show_workload(const std::string& name);
  Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& name);
  // follow: goes on until `sink` or `alive` answers false.
  Result<void> events(const pb::EventsRequest& request, const Sink<pb::Event>& sink,
                      const std::function<bool()>& alive);
  Result<void> logs(const pb::AgentLogsRequest& request, const Sink<pb::LogChunk>& sink,
                    std::stop_token stop);
  pb::VersionInfo version() const;

  // --- operator; `who` is named in the event log
  Result<pb::WorkloadInfo> run(const pb::RunWorkloadRequest& request, const std::string& who);
  Result<pb::ApplyResponse> apply(const pb::ApplyRequest& request, const std::string& who);
  Result<void> remove(const pb::DeleteRequest& request, const std::string& who);
  Result<pb::CheckpointInfo> checkpoint(const pb::CheckpointNowRequest& request);
  // The migration goes on when nobody listens any more.
  Result<void> migrate(const pb::MigrateWorkloadRequest& request,
                       const Sink<pb::MigrateProgress>& sink, const std::string& who);
  Result<void> abort_migration(const std::string& name);
  Result<void> restore(const pb::RestoreWorkloadRequest& request,
                       const Sink<pb::RestoreProgress>& sink, const std::string& who);
  Result<void> failover(const pb::FailoverRequest& request, const Sink<pb::RestoreProgress>& sink,
                        const std::string& who);
  Result<pb::AgentInspectResponse> inspect(const pb::InspectWorkloadRequest& request);

  // --- node; `node` is the name in the caller's certificate
  Result<std::shared_ptr<Session>> open_session(const std::string& node,
                                                const pb::NodeReport& first);
  Result<void> report(Session& session, const pb::NodeReport& report);
  // The next order; blocks until there is one. Absent: the session has ended.
  std::optional<pb::NodeOrder> next_order(Session& session);
  void close_session(Session& session);
  Result<pb::Ownership> change_owner(const std::string& node, const pb::ChangeOwnerRequest& request);
  Result<pb::Ownership> get_owner(const std::string& workload);
  // What a node knows of voted records and failovers; follows what is news.
  Result<pb::TenureAdvice> note_tenure(const std::string& node, const pb::TenureNote& note);
  Result<pb::Ownership> enter_voters(const std::string& node, const pb::TenureRecord& record);
  // HOST:PORT of this coordinator as a voter; empty (at first): it does not vote.
  void set_voter_address(const std::string& address);
  // Where every node that has registered is reached.
  std::vector<pb::PeerAddress> peers() const;
  // As a voter it hears of records itself.
  void follow_record(const pb::TenureRecord& record);

  // --- voting.cc, drain.cc; viewer and operator
  Result<pb::FailoverReports> failovers(const std::string& workload);
  // One workload after the other, to its best standby. Goes on when nobody listens; what cannot
  // move is named and stays. Afterwards nothing is placed there until resume_node().
  Result<void> drain(const std::string& node, const Sink<pb::DrainProgress>& sink, const std::string& who);
  Result<void> resume_node(const std::string& node, const std::string& who);

 private:
  struct Known {  // one workload, as stored
    Versioned<pb::WorkloadRecord> record;
    pb::OwnerRecord owner;
    Versioned<pb::OperationRecord> operation;
  };
  struct MigrationRun;
  struct Held {
    pb::CheckpointInfo info;
    std::vector<std::string> nodes;
  };

  // coordinator.cc
  Result<Known> known(const std::string& name);
  pb::WorkloadInfo describe(const Known& known);
  bool is_running(const Known& known);
  std::vector<std::string> standbys_of(const Known& known) const;
  std::vector<Candidate> candidates();
  std::shared_ptr<AgentClient> agent_of(const NodeView& view);
  Result<NodeView> ready_node(const std::string& name, const std::string& operation);
  pb::PeerAddress peer(const std::string& node) const;
  pb::WorkloadSpec wire_spec(const Known& known) const;
  pb::Event make_event(const std::string& kind, const std::string& workload,
                       const std::string& node, const std::string& text,
                       const std::string& who = "coordinator") const;
  void log_event(pb::Event event);  // best effort: a full disk must not stop a handover
  Result<void> commit(const Transaction& transaction);
  Result<pb::OperationRecord> begin(pb::OperationRecord operation, Transaction transaction = {});
  Result<void> finish(const std::string& workload);
  void wake_sessions();
  void background(std::function<void(std::stop_token)> work);
  bool ours(const pb::OperationRecord& operation) const { return operation.process() == process_; }

  // lifecycle.cc
  Result<pb::WorkloadInfo> start_workload(pb::WorkloadSpec spec, const std::string& who);
  void undo_run(const std::string& name, bool keep_program, const std::string& why);
  Result<Placement> place_spec(const pb::WorkloadSpec& spec);
  Result<void> update_workload(const pb::WorkloadSpec& wanted, const std::string& who);
  void clean_late_holder(const std::string& node, const pb::OwnerRecord& owner, bool has_program);

  // movement.cc
  Result<std::vector<Held>> collect_checkpoints(const std::string& name);
  Result<void> run_migration(const Known& known, const NodeView& source, const NodeView& target,
                             const pb::MigrateWorkloadRequest& request, MigrationRun& run,
                             std::stop_token stop);
  Result<void> restore_same(const Known& known, const Held& held, const NodeView& target,
                            const pb::RestoreWorkloadRequest& request, const std::string& reason,
                            const Sink<pb::RestoreProgress>& sink, const std::string& who);
  Result<void> restore_as(const Known& known, const Held& held, const NodeView& target,
                          const pb::RestoreWorkloadRequest& request,
                          const Sink<pb::RestoreProgress>& sink, const std::string& who);
  Result<NodeView> choose_restore_target(const Known& known, const Held& held,
                                         const std::string& to);
  pb::PeerAddress source_for(const Held& held, const std::string& target) const;
  // Brings the stored standbys in line with the owner and with who is there.
  // `suspect`: a node that fell silent just now; kept out where another can stand by. May be empty.
  void settle_standbys(const std::string& name, bool owner_moved, const std::string& suspect = {});

  // voting.cc
  bool voted(const pb::OwnerRecord& owner) const { return owner.tenure().voters_size() > 0; }
  // Until nobody owns it by its voters' decision; the registry decides alone from then on. Nothing
  // for a workload without voters. Fails: kTimedOut and others: no majority.
  Result<void> end_voting(const std::string& name, const std::string& reason);
  Result<void> take_over(const Known& known, const pb::FailoverRequest& request,
                         const Sink<pb::RestoreProgress>& sink, const std::string& who);
  bool wait_record(const std::string& name, std::uint64_t incarnation);

  // drain.cc
  Result<void> set_drained(const std::string& node, bool drained, const std::string& who);
  Result<std::string> drain_target(const Known& known, const std::string& from);
  void return_standbys(const std::string& node);

  // fail_back.cc
  std::string home_of(const Known& known);   // where it should go back to, and could; empty: nowhere
  void fail_back(const Known& known);
  void forget_homes(const std::set<std::string>& workloads);

  // recovery.cc
  void resolve_operations();
  void resolve_operation(const Known& known);
  void watch(std::stop_token stop);  // liveness, recovery, standbys

  StateStore& store_;
  OwnerRegistry& registry_;
  AgentDirectory& agents_;
  const Clock& clock_;
  const std::string cluster_;
  const std::string process_;  // names this run of the program in operation records
  Membership membership_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // orders are due, events were added, or we stop
  std::set<Session*> sessions_;
  std::map<std::string, std::shared_ptr<MigrationRun>> migrations_;
  std::set<std::string> cleaning_;      // "node/workload" being cleaned up
  std::set<std::string> unreachable_;   // nodes already declared so
  std::set<std::string> strangers_;     // "node/workload" reported, never heard of
  std::map<std::string, std::chrono::nanoseconds> homesick_;   // workload: when it may go back to its node
  bool failing_back_ = false;
  std::string voter_address_;
  bool stopping_ = false;
  std::stop_source stop_;               // requested with stopping_

  struct Work {
    std::jthread thread;
    std::shared_ptr<bool> done;
  };
  std::list<Work> work_;
};

}  // namespace baton::coordinator
