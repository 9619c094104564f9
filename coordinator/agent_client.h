// How the coordinator speaks to an agent. An interface, so that everything above it
// compiles and is tested without gRPC; the real one is in agent_client.cc.
//
// Every call blocks, for at most its named timeout, and may be made from any thread.
// Fails with the agent's own error, or kUnreachable (nobody answers there), kTimedOut
// (the outcome is unknown), kCancelled (`stop` was requested).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "base/error.h"
#include "proto/agent.pb.h"
#include "proto/tenure.pb.h"

namespace baton::coordinator {

inline constexpr std::chrono::seconds kAgentQuickTimeout{5};
inline constexpr std::chrono::seconds kAgentStartTimeout{60};
inline constexpr std::chrono::seconds kAgentStopTimeout{30};
inline constexpr std::chrono::seconds kAgentCheckpointTimeout{120};

class AgentClient {
 public:
  virtual ~AgentClient() = default;

  virtual Result<pb::StartResponse> start(const pb::StartRequest& request) = 0;
  virtual Result<void> stop(const pb::StopWorkloadRequest& request) = 0;
  virtual Result<pb::CheckpointInfo> checkpoint_now(const pb::CheckpointNowRequest& request) = 0;
  virtual Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& workload) = 0;
  virtual Result<pb::AgentInspectResponse> inspect(const pb::AgentInspectRequest& request) = 0;
  virtual Result<void> drop_workload(const std::string& workload) = 0;
  virtual Result<void> abort_migration(const std::string& workload) = 0;
  // To the voters, through a node that votes or owns.
  virtual Result<pb::Ownership> propose_owner(const pb::ProposeOwnerRequest& request) = 0;
  virtual Result<pb::FailoverReport> take_over(const pb::TakeOverRequest& request) = 0;

  // Streams: each message goes to `sink` as it comes; false from it ends the call (kCancelled).
  virtual Result<void> migrate(const pb::MigrateRequest& request,
                               const std::function<bool(const pb::MigrateProgress&)>& sink,
                               std::stop_token stop) = 0;
  virtual Result<void> restore(const pb::RestoreRequest& request,
                               const std::function<bool(const pb::RestoreProgress&)>& sink,
                               std::stop_token stop) = 0;
  virtual Result<void> logs(const pb::AgentLogsRequest& request,
                            const std::function<bool(const pb::LogChunk&)>& sink,
                            std::stop_token stop) = 0;
};

class AgentDirectory {
 public:
  virtual ~AgentDirectory() = default;
  // A client for the agent of `node` at `rpc_address` (IP:PORT). Does not connect yet.
  virtual std::shared_ptr<AgentClient> agent(const std::string& node,
                                             const std::string& rpc_address) = 0;
};

}  // namespace baton::coordinator
