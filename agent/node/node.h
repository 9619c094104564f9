// Node: everything that this agent holds: its running workloads, what is being built here
// for a migration, what was lost, and the records of them on disk. The service, the
// session with the coordinator and the warden's events all end here.
//
// On disk, DATA/workloads: NAME.state (a StartRequest: spec, ownership, standbys) for what
// this node runs; NAME.incoming (a BuildTargetRequest) for what a migration built here and
// has not activated. Mode 0600: a spec holds the digest key.
//
// Threads: public functions from any thread; `mutex_` guards the maps and is not held
// during calls elsewhere. A chores thread does what must not block its caller. A name
// under work (started, restored, activated, stopped) is `busy` meanwhile; others get kConflict.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agent/node/health.h"
#include "agent/node/node_env.h"
#include "agent/node/restorer.h"
#include "agent/node/standby.h"
#include "agent/node/workload.h"
#include "proto/coordinator.pb.h"
#include "proto/tenure.pb.h"
#include "tenure/machine.h"

namespace baton::node {

class Node {
 public:
  struct Options {
    std::string name;
    std::string data_dir;
    pb::PeerAddress self;
    const transport::TlsFiles* tls = nullptr;   // null in tests: pulls are refused
    std::uint64_t standby_budget_bytes = 0;     // memory for warm and hot standbys together
  };
  Node(Options options, NodeEnv env);
  ~Node();

  // --- what the service calls
  Result<pb::StartResponse> start(const pb::StartRequest& request);
  Result<void> stop(const pb::StopWorkloadRequest& request);
  Result<void> set_standbys(const pb::SetStandbysRequest& request);
  Result<pb::CheckpointInfo> checkpoint_now(const pb::CheckpointNowRequest& request);
  Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& name);
  Result<pb::MigrateReport> migrate(const pb::MigrateRequest& request, const Workload::Progress& progress);
  Result<void> abort_migration(const std::string& name);
  Result<pb::RestoreReport> restore(const pb::RestoreRequest& request,
                                    const std::function<void(const pb::RestoreProgress&)>& progress);
  // The one way in which this node begins to run a workload from a checkpoint that it holds:
  // from the shadow, else from memory, else from the store. The caller has made this node the
  // owner. All of it or nothing: after a failure nothing runs here and nothing is left.
  struct TakeOver {
    std::string name;                       // whose checkpoint
    std::string as;                         // to run under another name; empty: its own
    std::uint64_t seq = 0;                  // 0: the newest held here
    pb::Ownership ownership;
    pb::WorkloadSpec spec;
    std::vector<pb::PeerAddress> standbys;
    pb::PeerAddress source;                 // who holds it, when this node does not
    bool paused = false;
    std::function<void(const std::string& phase, std::uint64_t done, std::uint64_t total)> tell;
  };
  struct TakenOver {
    pb::WorkloadProcess process;
    std::uint64_t seq = 0, pages = 0;
    std::chrono::nanoseconds lost{};        // since the freeze of that checkpoint, by wall clocks
    BootTime activated{};                   // from then on it ran
    pb::Mode from = pb::MODE_COLD;
  };
  Result<TakenOver> take_over(const TakeOver& order);
  Standbys& standbys() { return standbys_; }
  // By the voters. What runs here is held first; when nothing has changed it goes on.
  Result<pb::Ownership> propose_owner(const pb::ProposeOwnerRequest& request);
  Result<pb::FailoverReport> take_over_asked(const pb::TakeOverRequest& request);
  Result<pb::AgentInspectResponse> inspect(const pb::AgentInspectRequest& request);
  Result<pb::LogsResponse> logs(const std::string& name, std::int64_t offset);
  Result<pb::NodeFacts> facts();
  Result<void> drop_workload(const std::string& name);
  Result<void> pull_checkpoint(const pb::PullCheckpointRequest& request);
  Result<pb::PrepareTargetResponse> prepare_target(const pb::PrepareTargetRequest& request);
  Result<pb::BuildTargetResponse> build_target(const pb::BuildTargetRequest& request);
  Result<pb::ActivateTargetResponse> activate_target(const pb::ActivateTargetRequest& request);
  Result<void> discard_target(const std::string& name);
  Warden& warden() { return *env_.warden; }

  // --- the session with the coordinator
  pb::NodeReport report(bool first);
  void obey(const pb::NodeOrder& order);
  void add_event(const std::string& kind, const std::string& workload, const std::string& text);
  // Waits until there is something to report at once, or for the interval.
  void wait_report(std::chrono::microseconds interval);
  void report_soon();

  // --- the warden
  void on_warden_event(const pb::WardenEvent& event);
  void on_warden_connected();

  // The incarnation at which the workload runs here; 0: it does not.
  std::uint64_t runs_here(const std::string& name) const;
  std::optional<pb::PeerAddress> peer(const std::string& node) const;
  // Ends all loops and migrations that have not reached the freeze; programs run on.
  void halt();

 private:
  struct Incoming {
    pb::BuildTargetRequest request;
    BootTime since{};
    bool shadow = false;         // built ahead: it follows the checkpoints that go on arriving
    std::uint64_t followed = 0;  // how far it was when last looked at, and since when
    BootTime followed_at{};
  };
  class Busy;  // marks a name for the length of a scope

  std::shared_ptr<Workload> find(const std::string& name) const;
  Result<std::shared_ptr<Workload>> need(const std::string& name) const;
  Result<void> enter(pb::WorkloadSpec spec, std::uint64_t incarnation, const pb::WorkloadProcess& process,
                     std::uint64_t next_seq, const std::vector<pb::PeerAddress>& standbys);
  void remove(const std::string& name);
  void take_up();
  void take_up_process(const pb::WorkloadProcess& process);
  bool settle_built(const pb::WorkloadProcess& process);
  void settle_frozen(const pb::WorkloadProcess& process, const pb::StartRequest& record);
  void settle_incoming();
  bool abandoned(const std::string& name);
  // `witnessed`: while this agent was there.
  void process_ended(const std::string& name, int wait_status, bool witnessed);
  void restart(const std::shared_ptr<Workload>& workload);
  bool may_fail_over(const std::string& name);
  void end_tenure(const std::shared_ptr<Workload>& workload);
  // `incarnation`: of what is given up; what has come back since under a newer one is left alone.
  void give_up_workload(const std::string& name, const std::string& why, std::uint64_t incarnation = UINT64_MAX);
  void give_up_soon(const Workload& workload, const std::string& why);   // once, however often it is asked for
  Result<TakenOver> run_cold(const TakeOver& order, const std::string& name);
  void join_tenure();
  bool stopping() const;
  pb::WorkloadSpec spec_for_takeover(const std::string& name);
  void add_hash_key(const std::string& name, pb::WorkloadSpec& spec);
  void run_owned(const pb::TenureRecord& record, const tenure::Timeline& timeline);
  void lose(const pb::TenureRecord& record);
  void release_workload(const std::string& name);
  void follow_record(const pb::TenureRecord& record);
  Result<void> retire_tenure(const Workload& workload);
  void settle_held(const std::string& name);
  std::optional<pb::TenureRecord> wish_for(const Workload& workload);
  void tend_voters();
  void watch_health(const pb::WorkloadSpec& spec);   // from now on, if the spec asks for it
  void end_health(const std::string& name);
  void post_old_check(std::shared_ptr<HealthCheck> check);
  void describe_standby(const std::map<std::string, StandbyView>& views, pb::HeldCheckpoint& held) const;
  void describe_tenure(pb::WorkloadStatus& status) const;
  Result<std::uint64_t> lease_for(const std::string& name, std::uint64_t incarnation) const;
  Result<pb::BuildTargetResponse> build_ahead(const pb::BuildTargetRequest& request);
  Result<void> note_incoming(const pb::BuildTargetRequest& request, bool shadow);
  void forget_incoming(const std::string& name);
  bool built_ahead(const std::string& name, std::uint64_t incarnation) const;
  Result<void> check_target_files(const std::vector<pb::FileProof>& files, std::vector<std::string>& missing);
  std::uint64_t next_seq(const std::string& name);

  std::string state_path(const std::string& name) const;
  std::string incoming_path(const std::string& name) const;
  Result<void> save(const Workload& workload);
  std::optional<pb::StartRequest> load_state(const std::string& name) const;
  void erase_file(const std::string& path) const;

  void post(std::function<void()> chore);
  void post_after(std::chrono::milliseconds delay, std::function<void()> chore);
  void chores();

  const Options options_;
  NodeEnv env_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::shared_ptr<Workload>> workloads_;
  std::map<std::string, Incoming> incoming_;
  std::map<std::string, pb::WorkloadStatus> lost_;
  std::set<std::string> busy_;
  std::set<std::string> giving_up_;
  std::set<std::string> ending_;     // being stopped on request: their voters are told by that
  std::map<std::string, pb::PeerAddress> peers_;
  std::map<std::string, std::uint32_t> restarts_;
  std::map<std::string, std::deque<std::chrono::steady_clock::time_point>> exits_;
  std::deque<pb::Event> events_;
  std::optional<pb::NodeFacts> facts_;
  bool report_now_ = false;
  bool first_take_up_ = true;
  bool stopping_ = false;
  struct Chore {
    std::chrono::steady_clock::time_point when;
    std::function<void()> run;
  };
  std::deque<Chore> chores_;
  std::thread chores_thread_;
  std::vector<std::jthread> takeovers_;
  std::map<std::string, std::shared_ptr<HealthCheck>> health_;
  Standbys standbys_;            // last: its threads tell events
};

}  // namespace baton::node
