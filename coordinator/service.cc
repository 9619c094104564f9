#include "coordinator/service.h"

#include <thread>

#include <grpcpp/grpcpp.h>

#include "base/log.h"
#include "proto/coordinator.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::coordinator {
namespace {

// Each session and each follower holds a thread of gRPC's.
constexpr int kMaxRpcThreads = 1'100;
constexpr std::chrono::milliseconds kShutdownGrace{500};
constexpr std::chrono::milliseconds kListenerPoll{100};

using transport::Identity;
using transport::Role;

Result<Identity> authorize(const grpc::ServerContextBase& context, std::string_view rpc) {
  BATON_ASSIGN(auto who, transport::peer_identity(context));
  for (const auto& entry : kRpcRoles) {
    if (entry.rpc != rpc) continue;
    if ((who.role == Role::kViewer && entry.viewer) ||
        (who.role == Role::kOperator && entry.operator_) ||
        (who.role == Role::kNode && entry.node)) {
      return who;
    }
    const char* needed = entry.node && !entry.operator_ ? "node"
                         : entry.viewer                 ? "viewer or operator"
                                                        : "operator";
    return make_error(Code::kNotAllowed, std::string(rpc),
                      who.to_string() + " may not: it needs the role " + needed,
                      "Use a certificate of that role (baton pki issue --role).");
  }
  return make_error(Code::kNotAllowed, std::string(rpc), "nobody may call it");
}

// A person's program takes kUnreachable as "the coordinator is": an unreachable node is
// an operation that failed.
Error for_people(Error error) {
  if (error.code == Code::kUnreachable) error.code = Code::kFailed;
  return error;
}

class Service final : public pb::Coordinator::Service {
 public:
  explicit Service(Coordinator& coordinator) : coordinator_(coordinator) {}

  // Answers `body(identity)`, a Result of the response, under the roles of `rpc`.
  template <typename Response, typename Body>
  grpc::Status answer(grpc::ServerContext* context, const char* rpc, Response* response,
                      Body&& body) {
    auto who = authorize(*context, rpc);
    if (!who) return transport::to_status(who.error());
    auto result = body(*who);
    if (!result) {
      spdlog::debug("{} by {}: {}", rpc, who->to_string(), result.error().message());
      return transport::to_status(who->role == Role::kNode ? result.error()
                                                           : for_people(result.error()));
    }
    if constexpr (!std::is_same_v<Response, pb::Empty>) *response = std::move(*result);
    return grpc::Status::OK;
  }

  template <typename Message, typename Body>
  grpc::Status stream(grpc::ServerContext* context, const char* rpc,
                      grpc::ServerWriter<Message>* writer, Body&& body) {
    auto who = authorize(*context, rpc);
    if (!who) return transport::to_status(who.error());
    Result<void> result = body(*who, [&](const Message& message) {
      return !context->IsCancelled() && writer->Write(message);
    });
    if (!result) return transport::to_status(for_people(result.error()));
    return grpc::Status::OK;
  }

#define BATON_UNARY(NAME, REQUEST, RESPONSE, EXPR)                                          \
  grpc::Status NAME(grpc::ServerContext* context, const REQUEST* request, RESPONSE* response) \
      override {                                                                            \
    return answer(context, #NAME, response, [&]([[maybe_unused]] const Identity& who) {     \
      (void)request;                                                                        \
      return EXPR;                                                                          \
    });                                                                                     \
  }
  BATON_UNARY(ListNodes, pb::Empty, pb::ListNodesResponse, coordinator_.list_nodes())
  BATON_UNARY(ShowNode, pb::NodeName, pb::NodeInfo, coordinator_.show_node(request->name()))
  BATON_UNARY(ListWorkloads, pb::Empty, pb::ListWorkloadsResponse, coordinator_.list_workloads())
  BATON_UNARY(ShowWorkload, pb::WorkloadName, pb::WorkloadInfo,
              coordinator_.show_workload(request->name()))
  BATON_UNARY(ListCheckpoints, pb::ListCheckpointsRequest, pb::ListCheckpointsResponse,
              coordinator_.list_checkpoints(request->name()))
  BATON_UNARY(Version, pb::Empty, pb::VersionInfo, Result<pb::VersionInfo>(coordinator_.version()))
  BATON_UNARY(Run, pb::RunWorkloadRequest, pb::WorkloadInfo,
              coordinator_.run(*request, who.to_string()))
  BATON_UNARY(Apply, pb::ApplyRequest, pb::ApplyResponse,
              coordinator_.apply(*request, who.to_string()))
  BATON_UNARY(Delete, pb::DeleteRequest, pb::Empty, coordinator_.remove(*request, who.to_string()))
  BATON_UNARY(Checkpoint, pb::CheckpointNowRequest, pb::CheckpointInfo,
              coordinator_.checkpoint(*request))
  BATON_UNARY(AbortMigration, pb::WorkloadName, pb::Empty,
              coordinator_.abort_migration(request->name()))
  BATON_UNARY(Inspect, pb::InspectWorkloadRequest, pb::AgentInspectResponse,
              coordinator_.inspect(*request))
  BATON_UNARY(ChangeOwner, pb::ChangeOwnerRequest, pb::Ownership,
              coordinator_.change_owner(who.name, *request))
  BATON_UNARY(GetOwner, pb::WorkloadName, pb::Ownership, coordinator_.get_owner(request->name()))
#undef BATON_UNARY

  grpc::Status Events(grpc::ServerContext* context, const pb::EventsRequest* request,
                      grpc::ServerWriter<pb::Event>* writer) override {
    return stream(context, "Events", writer, [&](const Identity&, const Sink<pb::Event>& sink) {
      return coordinator_.events(*request, sink, [&] { return !context->IsCancelled(); });
    });
  }
  grpc::Status Logs(grpc::ServerContext* context, const pb::AgentLogsRequest* request,
                    grpc::ServerWriter<pb::LogChunk>* writer) override {
    return stream(context, "Logs", writer, [&](const Identity&, const Sink<pb::LogChunk>& sink) {
      // A quiet program says nothing to notice the listener's end by.
      std::stop_source left;
      std::jthread watcher([&](std::stop_token done) {
        while (!done.stop_requested() && !context->IsCancelled()) {
          std::this_thread::sleep_for(kListenerPoll);
        }
        left.request_stop();
      });
      return coordinator_.logs(*request, sink, left.get_token());
    });
  }
  grpc::Status Migrate(grpc::ServerContext* context, const pb::MigrateWorkloadRequest* request,
                       grpc::ServerWriter<pb::MigrateProgress>* writer) override {
    return stream(context, "Migrate", writer,
                  [&](const Identity& who, const Sink<pb::MigrateProgress>& sink) {
                    return coordinator_.migrate(*request, sink, who.to_string());
                  });
  }
  grpc::Status Restore(grpc::ServerContext* context, const pb::RestoreWorkloadRequest* request,
                       grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    return stream(context, "Restore", writer,
                  [&](const Identity& who, const Sink<pb::RestoreProgress>& sink) {
                    return coordinator_.restore(*request, sink, who.to_string());
                  });
  }
  grpc::Status Failover(grpc::ServerContext* context, const pb::FailoverRequest* request,
                        grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    return stream(context, "Failover", writer,
                  [&](const Identity& who, const Sink<pb::RestoreProgress>& sink) {
                    return coordinator_.failover(*request, sink, who.to_string());
                  });
  }

  grpc::Status Session(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<pb::NodeOrder, pb::NodeReport>* stream) override {
    auto who = authorize(*context, "Session");
    if (!who) return transport::to_status(who.error());
    pb::NodeReport report;
    if (!stream->Read(&report)) return grpc::Status::OK;
    auto session = coordinator_.open_session(who->name, report);
    if (!session) {
      spdlog::warn("{} was not registered: {}", who->name, session.error().message());
      return transport::to_status(session.error());
    }
    spdlog::info("{} registered at {}", who->name, report.rpc_address());
    std::jthread orders([&] {
      while (auto order = coordinator_.next_order(**session)) {
        if (!stream->Write(*order)) break;
      }
      context->TryCancel();  // ends the Read below, when it was us who ended the session
    });
    Result<void> outcome;
    while (outcome && stream->Read(&report)) outcome = coordinator_.report(**session, report);
    coordinator_.close_session(**session);
    orders.join();
    spdlog::info("the session of {} ended", who->name);
    return transport::to_status(outcome);
  }

 private:
  Coordinator& coordinator_;
};

class Server final : public CoordinatorServer {
 public:
  explicit Server(Coordinator& coordinator) : service_(coordinator) {}
  ~Server() override { shutdown(); }
  int port() const override { return server_->port(); }
  void shutdown() override {
    if (server_ && !std::exchange(down_, true)) server_->shutdown(kShutdownGrace);
  }

  Service service_;
  std::unique_ptr<transport::RpcServer> server_;
  bool down_ = false;
};

}  // namespace

Result<std::unique_ptr<CoordinatorServer>> CoordinatorServer::start(const std::string& address,
                                                                    const transport::TlsFiles& tls,
                                                                    Coordinator& coordinator) {
  auto server = std::make_unique<Server>(coordinator);
  transport::RpcServerOptions options;
  options.max_threads = kMaxRpcThreads;
  BATON_ASSIGN(server->server_,
               transport::RpcServer::start(address, tls, {&server->service_}, options));
  return std::unique_ptr<CoordinatorServer>(std::move(server));
}

}  // namespace baton::coordinator
