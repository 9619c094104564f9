// NodeTenure: this node's part in who may run which workload (docs/tenure.md): it runs the
// tenure machine for the node, hands its leases to the warden, and tells the coordinator.
//
// A workload without voters is the coordinator's registry's, as it is asked through
// OwnerRecords; one with voters is theirs, and this object asks them. Workloads enter and
// leave by entered() and left(); commits are told by note_tip() and judged by counts().
//
// Threads: the host's (events), one for leases, one for the coordinator. Public functions may
// be called from any thread; owner changes block, the others do not.
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

#include "agent/node/node_env.h"
#include "proto/tenure.pb.h"
#include "tenure/host.h"

namespace baton::node {

// The coordinator, as far as tenure concerns it. Calls block, bounded by a deadline.
class TenureRegistry {
 public:
  virtual ~TenureRegistry() = default;
  virtual Result<pb::TenureAdvice> note(const pb::TenureNote& note) = 0;
  virtual Result<pb::Ownership> enter_voters(const pb::TenureRecord& record) = 0;
};

class NodeTenure final : public OwnerRecords {
 public:
  struct Options {
    std::string node;
    std::string listen;               // HOST:PORT
    std::string folder;               // of the voter's log
    std::string coordinator;          // HOST:PORT of its RPC
  };
  // What happens to the node's workloads. Called on the host's thread: brief.
  struct Events {
    std::function<void(const pb::TenureRecord&, const tenure::Timeline&)> owned;  // run it here
    std::function<void(const pb::TenureRecord&)> lost;                            // stop what runs here
    std::function<void(const pb::TenureRecord&)> decided;                         // a newer record
    std::function<void(const std::string& kind, const std::string& workload, const std::string& text)> event;
  };
  // `registry` and `advice` are the coordinator's; all pointers outlive this object. Fails: as tenure::Host::start.
  static Result<std::unique_ptr<NodeTenure>> start(Options options, const transport::TlsFiles& tls, Warden& warden,
                                                   OwnerRecords& registry, TenureRegistry& advice);
  ~NodeTenure() override;
  // Once, before anything else but note_tip() happens.
  void attach(Events events);
  void detach();                       // no event is told any more

  // --- OwnerRecords. Votes where there are voters. A change away from this node means that the
  // program stands still here for good (release).
  Result<pb::Ownership> change_owner(const pb::ChangeOwnerRequest& request) override;
  Result<pb::Ownership> get_owner(const std::string& workload) override;

  // --- what the node tells
  void entered(const std::string& workload, const pb::Ownership& ownership);   // it runs here (or stands still)
  // `not_started`: the incarnation that was to run here and could not.
  void left(const std::string& workload, std::uint64_t not_started = 0);
  void forget(const std::string& workload);                                    // deleted
  void peers(const std::map<std::string, pb::PeerAddress>& all);
  // The newest commit of which this node knows: as a standby, before it acknowledges it; as a
  // primary, when it is counted.
  void note_tip(const std::string& workload, std::uint64_t incarnation, std::uint64_t seq, bool as_primary);
  // What has been handed over still stands here, frozen, at that checkpoint. Zero: it is gone.
  void note_original(const std::string& workload, std::uint64_t incarnation, std::uint64_t seq);
  // It is being moved away from here, or no longer: meanwhile its voters stay as they are.
  void note_leaving(const std::string& workload, bool leaving);
  // The wish of the owner: who votes and stands by. Without voters until now: the coordinator is
  // asked to hand over to them. Nothing happens when all is as wished.
  void want(const pb::TenureRecord& wish);
  void report(const pb::FailoverReport& report);                               // for the coordinator

  // --- what the node asks
  // Whether an acknowledgement of `standby`, received now, makes a checkpoint committed.
  bool counts(const std::string& workload, const std::string& standby) const;
  bool voted(const std::string& workload) const;                               // has voters
  bool voted_for_another(const std::string& workload, const std::string& owner) const { return host_->voted_for_another(workload, owner); }
  std::optional<tenure::Host::Known> known(const std::string& workload) const { return host_->known(workload); }
  // Until when a program that is activated now under `incarnation` may run, for the warden: boot
  // time in ns; 0: without limit. Waits for the grants. Fails: kTimedOut, kConflict (another owns it).
  Result<std::uint64_t> lease_for_activation(const std::string& workload, std::uint64_t incarnation) const;
  bool linked(const std::string& peer) const { return host_->linked(peer); }
  // Before a program is stopped to be moved, and after note_leaving: until no change of its voters is
  // under way and they support it of their own accord, as they will have to support its new owner.
  // The incarnation that it then has; 0: it has no voters. Fails: kTimedOut.
  Result<std::uint64_t> ready_to_move(const std::string& workload) const;
  std::string coordinator_voter() const;                                       // HOST:PORT of its RPC; empty: it does not vote
  // This node takes over, by votes; the program is started by Events::owned. Blocks.
  Result<pb::TenureRecord> take_over(const pb::TakeOverRequest& request);

 private:
  NodeTenure(Options options, Warden& warden, OwnerRecords& registry, TenureRegistry& advice);
  void on_effect(const tenure::Effect& effect);
  void set_lease(const std::string& workload, std::uint64_t until_ns, std::uint64_t incarnation);
  void lease_loop();
  void prefer_threads();
  void note_warden(const std::string& workload, bool away, std::chrono::steady_clock::time_point asked);
  void coordinator_loop();
  void tell_coordinator(std::unique_lock<std::mutex>& lock);
  void ask_for_voters(std::unique_lock<std::mutex>& lock);

  const Options options_;
  Warden& warden_;
  OwnerRecords& registry_;
  TenureRegistry& advice_;

  std::set<pid_t> preferred_;                      // the lease thread's own
  mutable std::mutex mutex_;                       // guards what follows; not held during calls
  std::condition_variable changed_;
  Events events_;
  struct Tip {
    pb::TenureTip newest;                          // known of
    pb::TenureTip held;                            // in this node's store
    pb::TenureTip original;                        // note_original()
    bool leaving = false;                          // note_leaving()
    bool counted = false;                          // committed by this node, as the owner, since its start
  };
  std::map<std::string, Tip> tips_;
  std::map<std::string, std::uint64_t> entered_;   // incarnations of what runs here
  std::map<std::string, pb::LeaseRequest> leases_; // to be told to the warden
  std::map<std::string, pb::LeaseRequest> last_leases_;
  std::map<std::string, std::chrono::steady_clock::time_point> warden_away_;   // since when, for that workload
  std::map<std::string, pb::TenureRecord> notes_;  // to be told to the coordinator
  std::deque<pb::FailoverReport> reports_;
  std::map<std::string, pb::TenureRecord> wishes_;
  std::map<std::string, std::string> told_wishes_; // serialized, to the machine
  std::map<std::string, pb::TenureRecord> voters_wanted_;   // to be asked of the coordinator
  std::string coordinator_voter_;
  std::chrono::steady_clock::time_point ask_advice_{};
  std::set<std::string> without_warden_;           // claimed no more for that
  bool stopping_ = false;

  std::unique_ptr<tenure::Host> host_;
  std::thread lease_thread_, coordinator_thread_;
};

}  // namespace baton::node
