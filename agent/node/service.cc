#include "agent/node/service.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/queue.h"
#include "transport/rpc.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
using transport::Role;
using transport::to_status;

constexpr std::size_t kProgressQueue = 64;
constexpr auto kLogPoll = 200ms;

class AgentService final : public pb::Agent::Service {
 public:
  explicit AgentService(Node& node) : node_(node) {}

  // ---------------------------------------------------------------- role coordinator
  grpc::Status Start(grpc::ServerContext* context, const pb::StartRequest* request,
                     pb::StartResponse* response) override {
    return unary(*context, "Start", Role::kCoordinator, response, [&] { return node_.start(*request); });
  }
  grpc::Status Stop(grpc::ServerContext* context, const pb::StopWorkloadRequest* request, pb::Empty*) override {
    return plain(*context, "Stop", Role::kCoordinator, [&] { return node_.stop(*request); });
  }
  grpc::Status SetStandbys(grpc::ServerContext* context, const pb::SetStandbysRequest* request,
                           pb::Empty*) override {
    return plain(*context, "SetStandbys", Role::kCoordinator, [&] { return node_.set_standbys(*request); });
  }
  grpc::Status CheckpointNow(grpc::ServerContext* context, const pb::CheckpointNowRequest* request,
                             pb::CheckpointInfo* response) override {
    return unary(*context, "CheckpointNow", Role::kCoordinator, response,
                 [&] { return node_.checkpoint_now(*request); });
  }
  grpc::Status ListCheckpoints(grpc::ServerContext* context, const pb::ListCheckpointsRequest* request,
                               pb::ListCheckpointsResponse* response) override {
    return unary(*context, "ListCheckpoints", Role::kCoordinator, response,
                 [&] { return node_.list_checkpoints(request->name()); });
  }
  grpc::Status AbortMigration(grpc::ServerContext* context, const pb::WorkloadName* request,
                              pb::Empty*) override {
    return plain(*context, "AbortMigration", Role::kCoordinator,
                 [&] { return node_.abort_migration(request->name()); });
  }
  grpc::Status Inspect(grpc::ServerContext* context, const pb::AgentInspectRequest* request,
                       pb::AgentInspectResponse* response) override {
    return unary(*context, "Inspect", Role::kCoordinator, response, [&] { return node_.inspect(*request); });
  }
  grpc::Status Facts(grpc::ServerContext* context, const pb::Empty*, pb::NodeFacts* response) override {
    return unary(*context, "Facts", Role::kCoordinator, response, [&] { return node_.facts(); });
  }
  grpc::Status DropWorkload(grpc::ServerContext* context, const pb::WorkloadName* request,
                            pb::Empty*) override {
    return plain(*context, "DropWorkload", Role::kCoordinator,
                 [&] { return node_.drop_workload(request->name()); });
  }
  grpc::Status PullCheckpoint(grpc::ServerContext* context, const pb::PullCheckpointRequest* request,
                              pb::Empty*) override {
    return plain(*context, "PullCheckpoint", Role::kCoordinator,
                 [&] { return node_.pull_checkpoint(*request); });
  }

  // A migration goes on when nobody listens any more: only AbortMigration ends it.
  grpc::Status Migrate(grpc::ServerContext* context, const pb::MigrateRequest* request,
                       grpc::ServerWriter<pb::MigrateProgress>* writer) override {
    if (auto who = transport::require_role(*context, "Migrate", {Role::kCoordinator}); !who) {
      return to_status(who.error());
    }
    return stream<pb::MigrateProgress>(*writer, [&](auto tell) -> Result<void> {
      auto report = node_.migrate(*request, tell);
      if (!report) return report.error();
      return {};
    });
  }
  grpc::Status Restore(grpc::ServerContext* context, const pb::RestoreRequest* request,
                       grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    if (auto who = transport::require_role(*context, "Restore", {Role::kCoordinator}); !who) {
      return to_status(who.error());
    }
    return stream<pb::RestoreProgress>(*writer, [&](auto tell) -> Result<void> {
      auto report = node_.restore(*request, tell);
      if (!report) return report.error();
      return {};
    });
  }
  grpc::Status Logs(grpc::ServerContext* context, const pb::AgentLogsRequest* request,
                    grpc::ServerWriter<pb::LogChunk>* writer) override {
    if (auto who = transport::require_role(*context, "Logs", {Role::kCoordinator}); !who) {
      return to_status(who.error());
    }
    std::int64_t offset = request->offset();
    while (!context->IsCancelled()) {
      auto piece = node_.logs(request->name(), offset);
      if (!piece) return to_status(piece.error());
      offset = piece->next_offset();
      if (!piece->data().empty()) {
        pb::LogChunk chunk;
        chunk.set_data(std::move(*piece->mutable_data()));
        if (!writer->Write(chunk)) break;
        continue;
      }
      if (!request->follow()) break;
      std::this_thread::sleep_for(kLogPoll);
    }
    return grpc::Status::OK;
  }

  // ---------------------------------------------------------------- role node
  grpc::Status PrepareTarget(grpc::ServerContext* context, const pb::PrepareTargetRequest* request,
                             pb::PrepareTargetResponse* response) override {
    return unary(*context, "PrepareTarget", Role::kNode, response, [&] { return node_.prepare_target(*request); });
  }
  grpc::Status BuildTarget(grpc::ServerContext* context, const pb::BuildTargetRequest* request,
                           pb::BuildTargetResponse* response) override {
    return unary(*context, "BuildTarget", Role::kNode, response, [&] { return node_.build_target(*request); });
  }
  grpc::Status ActivateTarget(grpc::ServerContext* context, const pb::ActivateTargetRequest* request,
                              pb::ActivateTargetResponse* response) override {
    return unary(*context, "ActivateTarget", Role::kNode, response, [&] { return node_.activate_target(*request); });
  }
  grpc::Status DiscardTarget(grpc::ServerContext* context, const pb::WorkloadName* request,
                             pb::Empty*) override {
    return plain(*context, "DiscardTarget", Role::kNode, [&] { return node_.discard_target(request->name()); });
  }
  grpc::Status PutFile(grpc::ServerContext* context, grpc::ServerReader<pb::FileChunk>* reader,
                       pb::Empty*) override {
    if (auto who = transport::require_role(*context, "PutFile", {Role::kNode}); !who) return to_status(who.error());
    pb::FileChunk chunk;
    while (reader->Read(&chunk)) {
      if (auto point = fault_point("agent.target.file"); !point) return to_status(point.error());
      pb::WriteFileRequest write;
      write.set_path(chunk.path());
      write.set_offset(chunk.offset());
      write.set_end(chunk.end());
      write.set_mode(chunk.mode());
      write.set_workload(chunk.name());
      write.set_uid(chunk.uid());
      write.set_gid(chunk.gid());
      write.set_mtime_ns(chunk.mtime_ns());
      write.set_data(std::move(*chunk.mutable_data()));
      if (auto done = node_.warden().write_file(write); !done) return to_status(done.error());
    }
    return grpc::Status::OK;
  }

 private:
  template <typename Response, typename Work>
  grpc::Status unary(grpc::ServerContext& context, const char* rpc, Role role, Response* response, Work&& work) {
    if (auto who = transport::require_role(context, rpc, {role}); !who) return to_status(who.error());
    auto result = work();
    if (!result) return to_status(result.error());
    *response = std::move(*result);
    return grpc::Status::OK;
  }
  template <typename Work>
  grpc::Status plain(grpc::ServerContext& context, const char* rpc, Role role, Work&& work) {
    if (auto who = transport::require_role(context, rpc, {role}); !who) return to_status(who.error());
    return to_status(work());
  }
  // Progress goes through a small queue, so that a slow reader delays nothing: what does
  // not fit is left out, the last message (with the report) never is.
  template <typename Message, typename Work>
  grpc::Status stream(grpc::ServerWriter<Message>& writer, Work&& work) {
    BoundedQueue<Message> queue(kProgressQueue);
    Result<void> outcome;
    std::jthread worker([&] {
      outcome = work([&](const Message& message) {
        if (message.has_report()) {
          (void)queue.push(message);
        } else {
          (void)queue.try_push(message);
        }
      });
      queue.close();
    });
    bool listening = true;
    while (auto message = queue.pop()) {
      if (listening) listening = writer.Write(*message);
    }
    worker.join();
    return to_status(outcome);
  }

  Node& node_;
};

class TenureService final : public pb::TenureAgent::Service {
 public:
  explicit TenureService(Node& node) : node_(node) {}

  grpc::Status ProposeOwner(grpc::ServerContext* context, const pb::ProposeOwnerRequest* request,
                            pb::Ownership* response) override {
    if (auto who = transport::require_role(*context, "ProposeOwner", {Role::kCoordinator}); !who) return to_status(who.error());
    auto changed = node_.propose_owner(*request);
    if (!changed) return to_status(changed.error());
    *response = std::move(*changed);
    return grpc::Status::OK;
  }
  grpc::Status TakeOver(grpc::ServerContext* context, const pb::TakeOverRequest* request,
                        pb::FailoverReport* response) override {
    if (auto who = transport::require_role(*context, "TakeOver", {Role::kCoordinator}); !who) return to_status(who.error());
    auto report = node_.take_over_asked(*request);
    if (!report) return to_status(report.error());
    *response = std::move(*report);
    return grpc::Status::OK;
  }

 private:
  Node& node_;
};

}  // namespace

std::unique_ptr<grpc::Service> make_tenure_service(Node& node) { return std::make_unique<TenureService>(node); }

std::unique_ptr<grpc::Service> make_agent_service(Node& node) { return std::make_unique<AgentService>(node); }

}  // namespace baton::node
