// The CLI's end of the coordinator's service. gRPC stays in client.cc.
//
// Calls block; unary ones for at most `timeout`. Fails with the coordinator's own error,
// kUnreachable (only when the coordinator itself is), kTimedOut, kNotAllowed.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "proto/coordinator.pb.h"
#include "proto/operator.pb.h"
#include "proto/store.pb.h"
#include "proto/tenure.pb.h"

namespace baton::cli {

inline constexpr std::chrono::seconds kConnectTimeout{3};
inline constexpr std::chrono::seconds kCallTimeout{180};
inline constexpr std::chrono::minutes kStoreCallTimeout{30};

template <typename T>
using Sink = std::function<bool(const T&)>;

class Client {
 public:
  // Connects, and asks for the coordinator's version to know that it answers.
  static Result<std::unique_ptr<Client>> connect(const std::string& address,
                                                 const std::string& tls_dir);
  virtual ~Client() = default;

  virtual const pb::VersionInfo& version() const = 0;
  virtual Result<pb::ListNodesResponse> list_nodes() = 0;
  virtual Result<pb::NodeInfo> show_node(const std::string& name) = 0;
  virtual Result<pb::ListWorkloadsResponse> list_workloads() = 0;
  virtual Result<pb::WorkloadInfo> show_workload(const std::string& name) = 0;
  virtual Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& name) = 0;
  virtual Result<pb::WorkloadInfo> run(const pb::RunWorkloadRequest& request) = 0;
  virtual Result<pb::ApplyResponse> apply(const pb::ApplyRequest& request) = 0;
  virtual Result<void> remove(const pb::DeleteRequest& request) = 0;
  virtual Result<pb::CheckpointInfo> checkpoint(const pb::CheckpointNowRequest& request) = 0;
  virtual Result<void> abort_migration(const std::string& name) = 0;
  virtual Result<pb::AgentInspectResponse> inspect(const pb::InspectWorkloadRequest& request) = 0;
  virtual Result<pb::DashboardLinkResponse> dashboard_link() = 0;
  virtual Result<pb::ListMovementsResponse> list_movements() = 0;

  // Streams run until they end or the sink answers false; a zero timeout is none.
  virtual Result<void> migrate(const pb::MigrateWorkloadRequest& request,
                               const Sink<pb::MigrateProgress>& sink,
                               std::chrono::nanoseconds timeout) = 0;
  virtual Result<void> restore(const pb::RestoreWorkloadRequest& request,
                               const Sink<pb::RestoreProgress>& sink,
                               std::chrono::nanoseconds timeout) = 0;
  virtual Result<void> failover(const pb::FailoverRequest& request,
                                const Sink<pb::RestoreProgress>& sink,
                                std::chrono::nanoseconds timeout) = 0;
  virtual Result<pb::FailoverReports> failovers(const std::string& name) = 0;   // empty: of all workloads
  virtual Result<void> drain(const std::string& node, const Sink<pb::DrainProgress>& sink,
                             std::chrono::nanoseconds timeout) = 0;
  virtual Result<void> resume_node(const std::string& node) = 0;
  virtual Result<void> events(const pb::EventsRequest& request, const Sink<pb::Event>& sink) = 0;
  virtual Result<void> audit(const pb::AuditRequest& request,
                             const Sink<pb::AuditEntry>& sink) = 0;
  virtual Result<void> logs(const pb::AgentLogsRequest& request, const Sink<pb::LogChunk>& sink) = 0;

  // The nodes' stores. Those that read much take as long as that takes.
  virtual Result<pb::StoreStatResponse> store_stat(const pb::StoreRequest& request) = 0;
  virtual Result<pb::StoreGcResponse> store_gc(const pb::StoreRequest& request) = 0;
  virtual Result<void> store_verify(const pb::StoreVerifyRequest& request,
                                    const Sink<pb::StoreVerifyProgress>& sink) = 0;
  virtual Result<pb::CheckpointMarks> tag(const pb::TagCheckpointRequest& request) = 0;
  virtual Result<pb::ListMarksResponse> list_marks(const std::string& name) = 0;
  virtual Result<pb::AnalyzeResponse> analyze(const pb::AnalyzeRequest& request) = 0;
  virtual Result<void> diff(const pb::DiffRequest& request, const Sink<pb::DiffPart>& sink) = 0;
  virtual Result<void> export_core(const pb::ExportRequest& request,
                                   const Sink<pb::ExportChunk>& sink) = 0;
};

}  // namespace baton::cli
