#include "coordinator/agent_client.h"

#include <map>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include "coordinator/agent_directory.h"
#include "proto/agent.grpc.pb.h"
#include "proto/tenure.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::coordinator {
namespace {

class GrpcAgentClient final : public AgentClient {
 public:
  GrpcAgentClient(std::string node, std::shared_ptr<grpc::Channel> channel)
      : node_(std::move(node)), channel_(std::move(channel)), stub_(pb::Agent::NewStub(channel_)), tenure_(pb::TenureAgent::NewStub(channel_)) {}

  Result<pb::StartResponse> start(const pb::StartRequest& request) override {
    return unary<pb::StartResponse>("start", &pb::Agent::Stub::Start, request, kAgentStartTimeout);
  }
  Result<void> stop(const pb::StopWorkloadRequest& request) override {
    return drop(unary<pb::Empty>("stop", &pb::Agent::Stub::Stop, request, kAgentStopTimeout));
  }
  Result<pb::CheckpointInfo> checkpoint_now(const pb::CheckpointNowRequest& request) override {
    return unary<pb::CheckpointInfo>("checkpoint", &pb::Agent::Stub::CheckpointNow, request,
                                     kAgentCheckpointTimeout);
  }
  Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& workload) override {
    pb::ListCheckpointsRequest request;
    request.set_name(workload);
    return unary<pb::ListCheckpointsResponse>(
        "list checkpoints", &pb::Agent::Stub::ListCheckpoints, request, kAgentQuickTimeout);
  }
  Result<pb::AgentInspectResponse> inspect(const pb::AgentInspectRequest& request) override {
    return unary<pb::AgentInspectResponse>("inspect", &pb::Agent::Stub::Inspect, request,
                                           kAgentStartTimeout);
  }
  Result<void> drop_workload(const std::string& workload) override {
    return drop(unary<pb::Empty>("drop workload", &pb::Agent::Stub::DropWorkload, named(workload),
                                 kAgentStopTimeout));
  }
  Result<void> abort_migration(const std::string& workload) override {
    return drop(unary<pb::Empty>("abort migration", &pb::Agent::Stub::AbortMigration,
                                 named(workload), kAgentQuickTimeout));
  }

  Result<pb::Ownership> propose_owner(const pb::ProposeOwnerRequest& request) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kAgentStopTimeout);
    pb::Ownership response;
    const grpc::Status status = tenure_->ProposeOwner(&context, request, &response);
    if (!status.ok()) return transport::from_status(status, "propose owner", node_);
    return response;
  }
  Result<pb::FailoverReport> take_over(const pb::TakeOverRequest& request) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kAgentCheckpointTimeout);
    pb::FailoverReport response;
    const grpc::Status status = tenure_->TakeOver(&context, request, &response);
    if (!status.ok()) return transport::from_status(status, "take over", node_);
    return response;
  }

  Result<void> migrate(const pb::MigrateRequest& request,
                       const std::function<bool(const pb::MigrateProgress&)>& sink,
                       std::stop_token stop) override {
    grpc::ClientContext context;
    std::stop_callback cancel(stop, [&] { context.TryCancel(); });
    return stream<pb::MigrateProgress>("migrate", context, stub_->Migrate(&context, request), sink);
  }
  Result<void> restore(const pb::RestoreRequest& request,
                       const std::function<bool(const pb::RestoreProgress&)>& sink,
                       std::stop_token stop) override {
    grpc::ClientContext context;
    std::stop_callback cancel(stop, [&] { context.TryCancel(); });
    return stream<pb::RestoreProgress>("restore", context, stub_->Restore(&context, request), sink);
  }
  Result<void> logs(const pb::AgentLogsRequest& request,
                    const std::function<bool(const pb::LogChunk&)>& sink,
                    std::stop_token stop) override {
    grpc::ClientContext context;
    std::stop_callback cancel(stop, [&] { context.TryCancel(); });
    return stream<pb::LogChunk>("logs", context, stub_->Logs(&context, request), sink);
  }

 private:
  template <typename Response, typename Method, typename Request>
  Result<Response> unary(const char* operation, Method method, const Request& request,
                         std::chrono::nanoseconds timeout) {
    grpc::ClientContext context;
    transport::set_deadline(context, timeout);
    Response response;
    const grpc::Status status = ((*stub_).*method)(&context, request, &response);
    if (!status.ok()) return transport::from_status(status, operation, node_);
    return response;
  }
  static Result<void> drop(const Result<pb::Empty>& result) {
    if (!result) return result.error();
    return {};
  }
  static pb::WorkloadName named(const std::string& workload) {
    pb::WorkloadName out;
    out.set_name(workload);
    return out;
  }
  template <typename Message, typename Reader>
  Result<void> stream(const char* operation, grpc::ClientContext& context, Reader reader,
                      const std::function<bool(const Message&)>& sink) {
    Message message;
    bool left = false;
    while (reader->Read(&message)) {
      if (!left && !sink(message)) {
        context.TryCancel();
        left = true;
      }
    }
    const grpc::Status status = reader->Finish();
    if (left) return make_error(Code::kCancelled, operation, "nobody listens any more");
    return transport::to_result(status, operation, node_);
  }

  const std::string node_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<pb::Agent::Stub> stub_;
  const std::unique_ptr<pb::TenureAgent::Stub> tenure_;
};

class GrpcAgentDirectory final : public AgentDirectory {
 public:
  explicit GrpcAgentDirectory(transport::TlsFiles tls) : tls_(std::move(tls)) {}

  std::shared_ptr<AgentClient> agent(const std::string& node, const std::string& address) override {
    std::lock_guard lock(mutex_);
    auto& entry = clients_[node];
    if (!entry.client || entry.address != address) {
      entry.address = address;
      entry.client = std::make_shared<GrpcAgentClient>(
          node, transport::make_channel(address, tls_, transport::Role::kNode, node));
    }
    return entry.client;
  }

 private:
  struct Entry {
    std::string address;
    std::shared_ptr<AgentClient> client;
  };
  const transport::TlsFiles tls_;
  std::mutex mutex_;
  std::map<std::string, Entry> clients_;  // at most one per known node
};

}  // namespace

std::unique_ptr<AgentDirectory> make_agent_directory(const transport::TlsFiles& tls) {
  return std::make_unique<GrpcAgentDirectory>(tls);
}

}  // namespace baton::coordinator
