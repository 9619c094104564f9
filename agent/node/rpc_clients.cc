#include "agent/node/rpc_clients.h"

#include <grpcpp/grpcpp.h>

#include <thread>

#include "proto/agent.grpc.pb.h"
#include "proto/coordinator.grpc.pb.h"
#include "proto/tenure.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr auto kOwnerTimeout = 3s;
constexpr auto kPrepareTimeout = 120s;  // reads and compares files
constexpr auto kConnectPatience = 4s;
constexpr auto kBuildTimeout = 120s;
constexpr auto kActivateTimeout = 60s;
constexpr auto kDiscardTimeout = 20s;
constexpr auto kFileTimeout = 600s;

class RpcOwnerRecords final : public OwnerRecords {
 public:
  RpcOwnerRecords(const std::string& address, const transport::TlsFiles& tls)
      : address_(address),
        stub_(pb::Coordinator::NewStub(transport::make_channel(address, tls, transport::Role::kCoordinator))) {}

  Result<pb::Ownership> change_owner(const pb::ChangeOwnerRequest& request) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kOwnerTimeout);
    pb::Ownership out;
    auto status = stub_->ChangeOwner(&context, request, &out);
    if (!status.ok()) return transport::from_status(status, "change owner", "coordinator " + address_);
    return out;
  }
  Result<pb::Ownership> get_owner(const std::string& workload) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kOwnerTimeout);
    pb::WorkloadName name;
    name.set_name(workload);
    pb::Ownership out;
    auto status = stub_->GetOwner(&context, name, &out);
    if (!status.ok()) return transport::from_status(status, "get owner", "coordinator " + address_);
    return out;
  }

 private:
  const std::string address_;
  std::unique_ptr<pb::Coordinator::Stub> stub_;
};

class RpcTenureRegistry final : public TenureRegistry {
 public:
  RpcTenureRegistry(const std::string& address, const transport::TlsFiles& tls)
      : address_(address),
        stub_(pb::TenureCoordinator::NewStub(transport::make_channel(address, tls, transport::Role::kCoordinator))) {}

  Result<pb::TenureAdvice> note(const pb::TenureNote& note) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kOwnerTimeout);
    pb::TenureAdvice out;
    auto status = stub_->NoteTenure(&context, note, &out);
    if (!status.ok()) return transport::from_status(status, "note tenure", "coordinator " + address_);
    return out;
  }
  Result<pb::Ownership> enter_voters(const pb::TenureRecord& record) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kOwnerTimeout);
    pb::Ownership out;
    auto status = stub_->EnterVoters(&context, record, &out);
    if (!status.ok()) return transport::from_status(status, "enter voters", "coordinator " + address_);
    return out;
  }

 private:
  const std::string address_;
  std::unique_ptr<pb::TenureCoordinator::Stub> stub_;
};

class RpcTargetAgent final : public TargetAgent {
 public:
  RpcTargetAgent(const pb::PeerAddress& peer, const transport::TlsFiles& tls)
      : who_("node " + peer.node()),
        stub_(pb::Agent::NewStub(transport::make_channel(peer.rpc(), tls, transport::Role::kNode, peer.node()))) {}

  Result<pb::PrepareTargetResponse> prepare(const pb::PrepareTargetRequest& request) override {
    // The first call of the connection: on a lossy link a try to connect may come to nothing.
    const auto until = std::chrono::steady_clock::now() + kConnectPatience;
    for (;;) {
      pb::PrepareTargetResponse out;
      auto answer = call("prepare", kPrepareTimeout, out, [&](auto* context) {
        return stub_->PrepareTarget(context, request, &out);
      });
      if (answer || answer.error().code != Code::kUnreachable || std::chrono::steady_clock::now() >= until) return answer;
      std::this_thread::sleep_for(50ms);
    }
  }
  Result<pb::BuildTargetResponse> build(const pb::BuildTargetRequest& request) override {
    pb::BuildTargetResponse out;
    return call("build", kBuildTimeout, out, [&](auto* context) { return stub_->BuildTarget(context, request, &out); });
  }
  Result<pb::ActivateTargetResponse> activate(const pb::ActivateTargetRequest& request) override {
    pb::ActivateTargetResponse out;
    return call("activate", kActivateTimeout, out, [&](auto* context) {
      return stub_->ActivateTarget(context, request, &out);
    });
  }
  Result<void> discard(const std::string& workload) override {
    pb::WorkloadName name;
    name.set_name(workload);
    pb::Empty out;
    auto done = call("discard", kDiscardTimeout, out, [&](auto* context) {
      return stub_->DiscardTarget(context, name, &out);
    });
    if (!done) return done.error();
    return {};
  }
  Result<void> put_file(const std::string& workload, const std::string& path,
                        std::function<Result<pb::ReadFileResponse>(std::uint64_t offset)> read) override {
    grpc::ClientContext context;
    transport::set_deadline(context, kFileTimeout);
    pb::Empty out;
    auto writer = stub_->PutFile(&context, &out);
    std::uint64_t offset = 0;
    for (bool end = false; !end;) {
      auto piece = read(offset);
      if (!piece) {
        context.TryCancel();
        (void)writer->Finish();
        return piece.error();
      }
      pb::FileChunk chunk;
      chunk.set_name(workload);
      chunk.set_path(path);
      chunk.set_offset(offset);
      chunk.set_mode(piece->mode());
      chunk.set_uid(piece->uid());
      chunk.set_gid(piece->gid());
      chunk.set_mtime_ns(piece->mtime_ns());
      end = piece->end() || piece->data().empty();
      chunk.set_end(end);
      offset += piece->data().size();
      chunk.set_data(std::move(*piece->mutable_data()));
      if (!writer->Write(chunk)) break;
    }
    writer->WritesDone();
    return transport::to_result(writer->Finish(), "send " + path, who_);
  }

 private:
  template <typename Response, typename Call>
  Result<Response> call(const char* operation, std::chrono::seconds timeout, Response& out, Call&& make) {
    grpc::ClientContext context;
    transport::set_deadline(context, timeout);
    grpc::Status status = make(&context);
    if (!status.ok()) return transport::from_status(status, operation, who_);
    return std::move(out);
  }

  const std::string who_;
  std::unique_ptr<pb::Agent::Stub> stub_;
};

}  // namespace

std::unique_ptr<OwnerRecords> make_owner_records(const std::string& coordinator_address,
                                                 const transport::TlsFiles& tls) {
  return std::make_unique<RpcOwnerRecords>(coordinator_address, tls);
}

std::unique_ptr<TenureRegistry> make_tenure_registry(const std::string& coordinator_address,
                                                     const transport::TlsFiles& tls) {
  return std::make_unique<RpcTenureRegistry>(coordinator_address, tls);
}

std::unique_ptr<TargetAgent> make_target_agent(const pb::PeerAddress& peer, const transport::TlsFiles& tls) {
  if (peer.rpc().empty()) return nullptr;
  return std::make_unique<RpcTargetAgent>(peer, tls);
}

}  // namespace baton::node
