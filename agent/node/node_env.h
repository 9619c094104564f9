// What a workload on this node needs of the rest: interfaces, so that tests put fakes there.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "agent/node/replica.h"
#include "agent/node/warden.h"
#include "base/clock.h"
#include "proto/agent.pb.h"
#include "proto/coordinator.pb.h"

namespace baton::node {

// The keeper of owner records (the coordinator). Calls block, bounded by a deadline.
class OwnerRecords {
 public:
  virtual ~OwnerRecords() = default;
  // Fails: kConflict (another incarnation), kUnknownOutcome and kUnreachable (it may have
  // happened), others: it did not happen.
  virtual Result<pb::Ownership> change_owner(const pb::ChangeOwnerRequest& request) = 0;
  virtual Result<pb::Ownership> get_owner(const std::string& workload) = 0;
};

// The agent of a migration's target.
class TargetAgent {
 public:
  virtual ~TargetAgent() = default;
  virtual Result<pb::PrepareTargetResponse> prepare(const pb::PrepareTargetRequest& request) = 0;
  virtual Result<pb::BuildTargetResponse> build(const pb::BuildTargetRequest& request) = 0;
  virtual Result<pb::ActivateTargetResponse> activate(const pb::ActivateTargetRequest& request) = 0;
  virtual Result<void> discard(const std::string& workload) = 0;
  // `read` answers the next piece and sets `end`.
  virtual Result<void> put_file(const std::string& workload, const std::string& path,
                                std::function<Result<pb::ReadFileResponse>(std::uint64_t offset)> read) = 0;
};

class NodeTenure;

struct NodeEnv {
  std::string node;
  Warden* warden = nullptr;
  storage::Store* store = nullptr;
  const Clock* clock = nullptr;
  OwnerRecords* owners = nullptr;
  NodeTenure* tenure = nullptr;        // null in tests: the owner records decide, nothing is leased
  std::function<pb::PeerAddress()> self;
  std::function<std::unique_ptr<TargetAgent>(const pb::PeerAddress&)> connect_target;
  std::function<std::unique_ptr<Replica>(const pb::PeerAddress&, const pb::WorkloadSpec&,
                                         const storage::WorkloadIdentity&)>
      make_replica;
  std::function<void(const std::string& kind, const std::string& workload, const std::string& text)> event;
  std::function<void()> report_soon;
  // The workload has left this node (migrated away), or its incarnation changed.
  std::function<void(const std::string& workload)> moved_away;
  std::function<void(const std::string& workload, std::uint64_t incarnation)> new_incarnation;
};

}  // namespace baton::node
