#include "coordinator/service.h"

#include <thread>

#include <grpcpp/grpcpp.h>

#include "base/log.h"
#include "coordinator/request_text.h"
#include "coordinator/store_service.h"
#include "proto/coordinator.grpc.pb.h"
#include "proto/operator.grpc.pb.h"
#include "proto/tenure.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::coordinator {
namespace {

// Each session and each follower holds a thread of gRPC's.
constexpr int kMaxRpcThreads = 1'100;
constexpr std::chrono::milliseconds kShutdownGrace{500};
constexpr std::chrono::milliseconds kListenerPoll{100};

using transport::Identity;
using transport::Role;

const RpcRoles* entry_of(std::string_view rpc) {
  for (const auto& entry : kRpcRoles) {
    if (!rpc.empty() && entry.rpc == rpc) return &entry;
  }
  return nullptr;
}

// What the services here do around each call: roles, audit, errors.
class Desk {
 public:
  explicit Desk(const OperatorSide& side) : side_(side) {}

  template <typename Request>
  pb::AuditEntry entry(const grpc::ServerContext& context, const char* rpc, const Request& request,
                       const std::string& who) const {
    pb::AuditEntry out;
    out.set_who(who);
    out.set_from(context.peer());
    out.set_via("grpc");
    out.set_action(rpc);
    const RequestText text = request_text(request);
    out.set_target(text.target);
    out.set_detail(text.detail);
    return out;
  }
  template <typename Request>
  Result<Identity> admit(const grpc::ServerContext& context, const char* rpc,
                         const Request& request) const {
    auto who = authorize(context, rpc);
    if (!who && side_.audit && entry_of(rpc) && entry_of(rpc)->audited) {
      auto caller = transport::peer_identity(context);
      auto refused = entry(context, rpc, request, caller ? caller->to_string() : "unknown");
      refused.set_outcome("refused");
      refused.set_problem(who.error().message());
      if (auto done = side_.audit->append(std::move(refused)); !done) {
        spdlog::error("a refusal was not audited: {}", done.error().message());
      }
    }
    return who;
  }
  AuditLog* audit_of(const char* rpc) const {
    const RpcRoles* row = entry_of(rpc);
    return row && row->audited ? side_.audit : nullptr;
  }

  // Answers `body(identity)`, a Result of the response, under the roles of `rpc`.
  template <typename Request, typename Response, typename Body>
  grpc::Status answer(grpc::ServerContext* context, const char* rpc, const Request& request,
                      Response* response, Body&& body) const {
    auto who = admit(*context, rpc, request);
    if (!who) return transport::to_status(who.error());
    auto result = audited(audit_of(rpc), entry(*context, rpc, request, who->to_string()),
                          [&] { return body(*who); });
    if (!result) {
      spdlog::debug("{} by {}: {}", rpc, who->to_string(), result.error().message());
      return transport::to_status(who->role == Role::kNode ? result.error()
                                                           : for_people(result.error()));
    }
    if constexpr (!std::is_same_v<Response, pb::Empty>) *response = std::move(*result);
    return grpc::Status::OK;
  }

  template <typename Request, typename Message, typename Body>
  grpc::Status stream(grpc::ServerContext* context, const char* rpc, const Request& request,
                      grpc::ServerWriter<Message>* writer, Body&& body) const {
    auto who = admit(*context, rpc, request);
    if (!who) return transport::to_status(who.error());
    Result<void> result = audited(
        audit_of(rpc), entry(*context, rpc, request, who->to_string()), [&]() -> Result<void> {
          return body(*who, [&](const Message& message) {
            return !context->IsCancelled() && writer->Write(message);
          });
        });
    if (!result) return transport::to_status(for_people(result.error()));
    return grpc::Status::OK;
  }

 protected:
  const OperatorSide side_;
};

class Service final : public pb::Coordinator::Service, private Desk {
 public:
  Service(Coordinator& coordinator, const OperatorSide& side)
      : Desk(side), coordinator_(coordinator) {}

#define BATON_UNARY(NAME, REQUEST, RESPONSE, EXPR)                                          \
  grpc::Status NAME(grpc::ServerContext* context, const REQUEST* request, RESPONSE* response) \
      override {                                                                            \
    return answer(context, #NAME, *request, response,                                       \
                  [&]([[maybe_unused]] const Identity& who) { return EXPR; });              \
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
    return stream(context, "Events", *request, writer, [&](const Identity&, const Sink<pb::Event>& sink) {
      return coordinator_.events(*request, sink, [&] { return !context->IsCancelled(); });
    });
  }
  grpc::Status Logs(grpc::ServerContext* context, const pb::AgentLogsRequest* request,
                    grpc::ServerWriter<pb::LogChunk>* writer) override {
    return stream(context, "Logs", *request, writer, [&](const Identity&, const Sink<pb::LogChunk>& sink) {
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
    return move(context, "Migrate", "migrate", *request, writer, request->detach(),
                [&](const Identity& who, const Sink<pb::MigrateProgress>& sink) {
                  return coordinator_.migrate(*request, sink, who.to_string());
                });
  }
  grpc::Status Restore(grpc::ServerContext* context, const pb::RestoreWorkloadRequest* request,
                       grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    return move(context, "Restore", "restore", *request, writer, false,
                [&](const Identity& who, const Sink<pb::RestoreProgress>& sink) {
                  return coordinator_.restore(*request, sink, who.to_string());
                });
  }
  grpc::Status Failover(grpc::ServerContext* context, const pb::FailoverRequest* request,
                        grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    return move(context, "Failover", "failover", *request, writer, false,
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
  // A movement that its caller watches, recorded for everybody else. It is recorded on when the
  // caller has left: only the writing to him ends then.
  template <typename Request, typename Progress, typename Body>
  grpc::Status move(grpc::ServerContext* context, const char* rpc, const char* kind,
                    const Request& request, grpc::ServerWriter<Progress>* writer, bool detach,
                    Body&& body) {
    return stream(context, rpc, request, writer,
                  [&](const Identity& who, const Sink<Progress>& sink) -> Result<void> {
                    if (!side_.movements) return body(who, sink);
                    std::string from;
                    if (auto shown = coordinator_.show_workload(request.name())) {
                      from = shown->ownership().owner();
                    }
                    const auto id = side_.movements->begin(kind, request.name(), from,
                                                           request.to(), who.to_string());
                    bool there = true;
                    Result<void> outcome = body(who, [&](const Progress& progress) {
                      side_.movements->progress(id, progress);
                      there = there && sink(progress);
                      return true;
                    });
                    if (outcome && detach) {
                      side_.movements->detach(id);
                    } else {
                      side_.movements->end(id, outcome);
                    }
                    return outcome;
                  });
  }

  Coordinator& coordinator_;
};

class TenureService final : public pb::TenureCoordinator::Service, private Desk {
 public:
  TenureService(Coordinator& coordinator, const OperatorSide& side) : Desk(side), coordinator_(coordinator) {}

  grpc::Status NoteTenure(grpc::ServerContext* context, const pb::TenureNote* request, pb::TenureAdvice* response) override {
    return answer(context, "NoteTenure", *request, response,
                  [&](const Identity& who) { return coordinator_.note_tenure(who.name, *request); });
  }
  grpc::Status EnterVoters(grpc::ServerContext* context, const pb::TenureRecord* request, pb::Ownership* response) override {
    return answer(context, "EnterVoters", *request, response,
                  [&](const Identity& who) { return coordinator_.enter_voters(who.name, *request); });
  }
  grpc::Status ListFailovers(grpc::ServerContext* context, const pb::WorkloadName* request, pb::FailoverReports* response) override {
    return answer(context, "ListFailovers", *request, response,
                  [&](const Identity&) { return coordinator_.failovers(request->name()); });
  }
  grpc::Status Drain(grpc::ServerContext* context, const pb::DrainRequest* request,
                     grpc::ServerWriter<pb::DrainProgress>* writer) override {
    return stream(context, "Drain", *request, writer, [&](const Identity& who, auto sink) {
      return coordinator_.drain(request->node(), sink, who.to_string());
    });
  }
  grpc::Status ResumeNode(grpc::ServerContext* context, const pb::DrainRequest* request, pb::Empty* response) override {
    return answer(context, "ResumeNode", *request, response,
                  [&](const Identity& who) { return coordinator_.resume_node(request->node(), who.to_string()); });
  }

 private:
  Coordinator& coordinator_;
};

class OperatorService final : public pb::Operator::Service, private Desk {
 public:
  explicit OperatorService(const OperatorSide& side) : Desk(side) {}

  grpc::Status DashboardLink(grpc::ServerContext* context, const pb::Empty* request,
                             pb::DashboardLinkResponse* response) override {
    return answer(context, "DashboardLink", *request, response,
                  [&](const Identity& who) -> Result<pb::DashboardLinkResponse> {
                    if (!side_.logins || side_.dashboard_url.empty()) {
                      return make_error(Code::kUnsupported, "dashboard",
                                        "this coordinator serves none",
                                        "Start it with --web IP:PORT.");
                    }
                    pb::DashboardLinkResponse out;
                    out.set_token(side_.logins->make_link(who));
                    out.set_url(side_.dashboard_url);
                    out.set_valid_s(static_cast<std::uint32_t>(kLinkLife.count()));
                    return out;
                  });
  }
  grpc::Status ListMovements(grpc::ServerContext* context, const pb::Empty* request,
                             pb::ListMovementsResponse* response) override {
    return answer(context, "ListMovements", *request, response,
                  [&](const Identity&) -> Result<pb::ListMovementsResponse> {
                    pb::ListMovementsResponse out;
                    if (!side_.movements) return out;
                    for (auto& one : side_.movements->list()) *out.add_movements() = std::move(one);
                    return out;
                  });
  }
  grpc::Status Audit(grpc::ServerContext* context, const pb::AuditRequest* request,
                     grpc::ServerWriter<pb::AuditEntry>* writer) override {
    return stream(context, "Audit", *request, writer,
                  [&](const Identity&, const Sink<pb::AuditEntry>& sink) -> Result<void> {
                    if (!side_.audit) {
                      return make_error(Code::kUnsupported, "audit", "no audit log is kept here");
                    }
                    return side_.audit->read(*request, sink);
                  });
  }
};

class Server final : public CoordinatorServer {
 public:
  Server(Coordinator& coordinator, const OperatorSide& side)
      : service_(coordinator, side), tenure_(coordinator, side), operator_(side) {}
  ~Server() override { shutdown(); }
  int port() const override { return server_->port(); }
  void shutdown() override {
    if (server_ && !std::exchange(down_, true)) server_->shutdown(kShutdownGrace);
  }

  Service service_;
  TenureService tenure_;
  OperatorService operator_;
  std::unique_ptr<grpc::Service> store_;
  std::unique_ptr<transport::RpcServer> server_;
  bool down_ = false;
};

}  // namespace

Result<Identity> authorize(const grpc::ServerContextBase& context, std::string_view rpc) {
  BATON_ASSIGN(auto who, transport::peer_identity(context));
  const RpcRoles* entry = entry_of(rpc);
  if (!entry) return make_error(Code::kNotAllowed, std::string(rpc), "nobody may call it");
  if (!may(who.role, *entry)) return not_allowed(who, rpc, *entry);
  return who;
}

Error for_people(Error error) {
  if (error.code == Code::kUnreachable) error.code = Code::kFailed;
  return error;
}

Result<std::unique_ptr<CoordinatorServer>> CoordinatorServer::start(const std::string& address,
                                                                    const transport::TlsFiles& tls,
                                                                    Coordinator& coordinator,
                                                                    const OperatorSide& side) {
  auto server = std::make_unique<Server>(coordinator, side);
  server->store_ = make_store_forwarder(coordinator, tls);
  transport::RpcServerOptions options;
  options.max_threads = kMaxRpcThreads;
  BATON_ASSIGN(server->server_,
               transport::RpcServer::start(
                   address, tls, {&server->service_, &server->tenure_, &server->operator_, server->store_.get()}, options));
  return std::unique_ptr<CoordinatorServer>(std::move(server));
}

}  // namespace baton::coordinator
