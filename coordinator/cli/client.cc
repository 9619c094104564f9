#include "coordinator/cli/client.h"

#include <cstdlib>
#include <thread>

#include <grpcpp/grpcpp.h>

#include "coordinator/cli/units.h"
#include "proto/coordinator.grpc.pb.h"
#include "proto/operator.grpc.pb.h"
#include "proto/tenure.grpc.pb.h"
#include "proto/store.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::cli {
namespace {

constexpr std::chrono::milliseconds kGreetPause{100};

class GrpcClient final : public Client {
 public:
  GrpcClient(std::string address, std::shared_ptr<grpc::Channel> channel)
      : address_(std::move(address)),
        channel_(std::move(channel)),
        stub_(pb::Coordinator::NewStub(channel_)),
        operator_(pb::Operator::NewStub(channel_)),
        tenure_(pb::TenureCoordinator::NewStub(channel_)),
        store_(pb::Store::NewStub(channel_)) {}

  Result<void> greet() {
    std::chrono::microseconds timeout = kConnectTimeout;
    if (const char* text = std::getenv("BATON_CONNECT_TIMEOUT")) {
      BATON_ASSIGN(const std::uint64_t us, parse_duration_us(text));
      timeout = std::chrono::microseconds(us);
    }
    const auto end = std::chrono::steady_clock::now() + timeout;
    auto ask = [&] {
      return unary<pb::VersionInfo>("reach the coordinator", &Stub::Version, pb::Empty(),
                                    end - std::chrono::steady_clock::now());
    };
    auto answer = ask();
    // A busy machine may be slow to shake hands; one that refuses will not do otherwise.
    while (!answer && answer.error().code == Code::kUnreachable &&
           answer.error().message().find("refused") == std::string::npos &&
           std::chrono::steady_clock::now() + kGreetPause < end) {
      std::this_thread::sleep_for(kGreetPause);
      answer = ask();
    }
    if (!answer) {
      Error error = answer.error();
      if (error.code != Code::kNotAllowed) {
        error.code = Code::kUnreachable;
        if (error.hint.empty()) {
          error.hint = "Check that it runs, and --coordinator or BATON_COORDINATOR.";
        }
      }
      return error;
    }
    version_ = *answer;
    return {};
  }

  const pb::VersionInfo& version() const override { return version_; }
  Result<pb::ListNodesResponse> list_nodes() override {
    return unary<pb::ListNodesResponse>("node ls", &Stub::ListNodes, pb::Empty());
  }
  Result<pb::NodeInfo> show_node(const std::string& name) override {
    pb::NodeName request;
    request.set_name(name);
    return unary<pb::NodeInfo>("node show", &Stub::ShowNode, request);
  }
  Result<pb::ListWorkloadsResponse> list_workloads() override {
    return unary<pb::ListWorkloadsResponse>("ls", &Stub::ListWorkloads, pb::Empty());
  }
  Result<pb::WorkloadInfo> show_workload(const std::string& name) override {
    return unary<pb::WorkloadInfo>("show", &Stub::ShowWorkload, named(name));
  }
  Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& name) override {
    pb::ListCheckpointsRequest request;
    request.set_name(name);
    return unary<pb::ListCheckpointsResponse>("checkpoints", &Stub::ListCheckpoints, request);
  }
  Result<pb::WorkloadInfo> run(const pb::RunWorkloadRequest& request) override {
    return unary<pb::WorkloadInfo>("run", &Stub::Run, request);
  }
  Result<pb::ApplyResponse> apply(const pb::ApplyRequest& request) override {
    return unary<pb::ApplyResponse>("apply", &Stub::Apply, request);
  }
  Result<void> remove(const pb::DeleteRequest& request) override {
    return drop(unary<pb::Empty>("delete", &Stub::Delete, request));
  }
  Result<pb::CheckpointInfo> checkpoint(const pb::CheckpointNowRequest& request) override {
    return unary<pb::CheckpointInfo>("checkpoint", &Stub::Checkpoint, request);
  }
  Result<void> abort_migration(const std::string& name) override {
    return drop(unary<pb::Empty>("abort migration", &Stub::AbortMigration, named(name)));
  }
  Result<pb::AgentInspectResponse> inspect(const pb::InspectWorkloadRequest& request) override {
    return unary<pb::AgentInspectResponse>("dry run", &Stub::Inspect, request);
  }

  Result<void> migrate(const pb::MigrateWorkloadRequest& request,
                       const Sink<pb::MigrateProgress>& sink,
                       std::chrono::nanoseconds timeout) override {
    grpc::ClientContext context;
    limit(context, timeout);
    return stream("migrate", context, stub_->Migrate(&context, request), sink);
  }
  Result<void> restore(const pb::RestoreWorkloadRequest& request,
                       const Sink<pb::RestoreProgress>& sink,
                       std::chrono::nanoseconds timeout) override {
    grpc::ClientContext context;
    limit(context, timeout);
    return stream("restore", context, stub_->Restore(&context, request), sink);
  }
  Result<void> failover(const pb::FailoverRequest& request, const Sink<pb::RestoreProgress>& sink,
                        std::chrono::nanoseconds timeout) override {
    grpc::ClientContext context;
    limit(context, timeout);
    return stream("failover", context, stub_->Failover(&context, request), sink);
  }
  Result<pb::FailoverReports> failovers(const std::string& name) override {
    return unary_of<pb::FailoverReports>(*tenure_, "failovers", &pb::TenureCoordinator::Stub::ListFailovers, named(name));
  }
  Result<void> drain(const std::string& node, const Sink<pb::DrainProgress>& sink,
                     std::chrono::nanoseconds timeout) override {
    grpc::ClientContext context;
    limit(context, timeout);
    pb::DrainRequest request;
    request.set_node(node);
    return stream("drain", context, tenure_->Drain(&context, request), sink);
  }
  Result<void> resume_node(const std::string& node) override {
    pb::DrainRequest request;
    request.set_node(node);
    return drop(unary_of<pb::Empty>(*tenure_, "resume", &pb::TenureCoordinator::Stub::ResumeNode, request));
  }
  Result<void> events(const pb::EventsRequest& request, const Sink<pb::Event>& sink) override {
    grpc::ClientContext context;
    return stream("events", context, stub_->Events(&context, request), sink);
  }
  Result<pb::DashboardLinkResponse> dashboard_link() override {
    return unary_of<pb::DashboardLinkResponse>(*operator_, "dashboard",
                                               &pb::Operator::Stub::DashboardLink, pb::Empty());
  }
  Result<pb::ListMovementsResponse> list_movements() override {
    return unary_of<pb::ListMovementsResponse>(*operator_, "list movements",
                                               &pb::Operator::Stub::ListMovements, pb::Empty());
  }
  Result<void> audit(const pb::AuditRequest& request,
                     const Sink<pb::AuditEntry>& sink) override {
    grpc::ClientContext context;
    return stream("audit", context, operator_->Audit(&context, request), sink);
  }
  Result<void> logs(const pb::AgentLogsRequest& request, const Sink<pb::LogChunk>& sink) override {
    grpc::ClientContext context;
    return stream("logs", context, stub_->Logs(&context, request), sink);
  }

  Result<pb::StoreStatResponse> store_stat(const pb::StoreRequest& request) override {
    return store_unary<pb::StoreStatResponse>("store stat", &pb::Store::Stub::StoreStat, request);
  }
  Result<pb::StoreGcResponse> store_gc(const pb::StoreRequest& request) override {
    return store_unary<pb::StoreGcResponse>("store gc", &pb::Store::Stub::StoreGc, request);
  }
  Result<void> store_verify(const pb::StoreVerifyRequest& request,
                            const Sink<pb::StoreVerifyProgress>& sink) override {
    grpc::ClientContext context;
    limit(context, kStoreCallTimeout);
    return stream("store verify", context, store_->StoreVerify(&context, request), sink);
  }
  Result<pb::CheckpointMarks> tag(const pb::TagCheckpointRequest& request) override {
    return store_unary<pb::CheckpointMarks>("tag", &pb::Store::Stub::TagCheckpoint, request);
  }
  Result<pb::ListMarksResponse> list_marks(const std::string& name) override {
    return store_unary<pb::ListMarksResponse>("checkpoints", &pb::Store::Stub::ListMarks, named(name));
  }
  Result<pb::AnalyzeResponse> analyze(const pb::AnalyzeRequest& request) override {
    return store_unary<pb::AnalyzeResponse>("analyze", &pb::Store::Stub::Analyze, request);
  }
  Result<void> diff(const pb::DiffRequest& request, const Sink<pb::DiffPart>& sink) override {
    grpc::ClientContext context;
    limit(context, kStoreCallTimeout);
    return stream("diff", context, store_->Diff(&context, request), sink);
  }
  Result<void> export_core(const pb::ExportRequest& request, const Sink<pb::ExportChunk>& sink) override {
    grpc::ClientContext context;
    limit(context, kStoreCallTimeout);
    return stream("export", context, store_->Export(&context, request), sink);
  }

 private:
  using Stub = pb::Coordinator::Stub;

  template <typename Response, typename Method, typename Request>
  Result<Response> store_unary(const char* operation, Method method, const Request& request) {
    grpc::ClientContext context;
    transport::set_deadline(context, kStoreCallTimeout);
    Response response;
    const grpc::Status status = ((*store_).*method)(&context, request, &response);
    if (!status.ok()) return transport::from_status(status, operation, peer());
    return response;
  }

  template <typename Response, typename Service, typename Method, typename Request>
  Result<Response> unary_of(Service& service, const char* operation, Method method,
                            const Request& request,
                            std::chrono::nanoseconds timeout = kCallTimeout) {
    grpc::ClientContext context;
    transport::set_deadline(context, timeout);
    Response response;
    const grpc::Status status = (service.*method)(&context, request, &response);
    if (!status.ok()) return transport::from_status(status, operation, peer());
    return response;
  }
  template <typename Response, typename Method, typename Request>
  Result<Response> unary(const char* operation, Method method, const Request& request,
                         std::chrono::nanoseconds timeout = kCallTimeout) {
    return unary_of<Response>(*stub_, operation, method, request, timeout);
  }
  template <typename Message>
  Result<void> stream(const char* operation, grpc::ClientContext& context,
                      std::unique_ptr<grpc::ClientReader<Message>> reader,
                      const Sink<Message>& sink) {
    Message message;
    bool left = false;
    while (reader->Read(&message)) {
      if (!left && !sink(message)) {
        left = true;
        context.TryCancel();
      }
    }
    const grpc::Status status = reader->Finish();
    if (left) return {};
    return transport::to_result(status, operation, peer());
  }
  static void limit(grpc::ClientContext& context, std::chrono::nanoseconds timeout) {
    if (timeout.count() > 0) transport::set_deadline(context, timeout);
  }
  static Result<void> drop(const Result<pb::Empty>& result) {
    if (!result) return result.error();
    return {};
  }
  static pb::WorkloadName named(const std::string& name) {
    pb::WorkloadName out;
    out.set_name(name);
    return out;
  }
  std::string peer() const { return "coordinator " + address_; }

  const std::string address_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<Stub> stub_;
  const std::unique_ptr<pb::Operator::Stub> operator_;
  const std::unique_ptr<pb::TenureCoordinator::Stub> tenure_;
  const std::unique_ptr<pb::Store::Stub> store_;
  pb::VersionInfo version_;
};

}  // namespace

Result<std::unique_ptr<Client>> Client::connect(const std::string& address,
                                                const std::string& tls_dir) {
  if (address.empty()) {
    return make_error(Code::kInvalid, "reach the coordinator", "no address given",
                      "Set BATON_COORDINATOR=IP:PORT or give --coordinator.");
  }
  if (tls_dir.empty()) {
    return make_error(Code::kInvalid, "reach the coordinator", "no certificate given",
                      "Set BATON_TLS_DIR=DIR or give --tls-dir.");
  }
  auto tls = transport::load_tls(tls_dir);
  if (!tls) {
    Error error = tls.error();
    if (error.code == Code::kNotFound) error.code = Code::kInvalid;  // not the thing asked for
    return error;
  }
  auto client = std::make_unique<GrpcClient>(
      address, transport::make_channel(address, *tls, transport::Role::kCoordinator));
  BATON_TRY(client->greet());
  return std::unique_ptr<Client>(std::move(client));
}

}  // namespace baton::cli
