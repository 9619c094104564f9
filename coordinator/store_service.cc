#include "coordinator/store_service.h"

#include <algorithm>
#include <future>
#include <map>
#include <mutex>

#include <grpcpp/grpcpp.h>

#include "coordinator/service.h"
#include "proto/store.grpc.pb.h"
#include "transport/rpc.h"

namespace baton::coordinator {
namespace {

constexpr std::chrono::seconds kStatTimeout{5};
constexpr std::chrono::minutes kWorkTimeout{30};

using Stub = pb::Store::Stub;

class StoreForwarder final : public pb::Store::Service {
 public:
  StoreForwarder(Coordinator& coordinator, const transport::TlsFiles& tls) : coordinator_(coordinator), tls_(tls) {}

  grpc::Status StoreStat(grpc::ServerContext* context, const pb::StoreRequest* request,
                         pb::StoreStatResponse* response) override {
    return answer(*context, "StoreStat", [&] {
      return ask_all(*context, request->node(), kStatTimeout, &Stub::StoreStat, *request, *response);
    });
  }
  grpc::Status StoreGc(grpc::ServerContext* context, const pb::StoreRequest* request,
                       pb::StoreGcResponse* response) override {
    return answer(*context, "StoreGc", [&] {
      return ask_all(*context, request->node(), kWorkTimeout, &Stub::StoreGc, *request, *response);
    });
  }

  grpc::Status StoreVerify(grpc::ServerContext* context, const pb::StoreVerifyRequest* request,
                           grpc::ServerWriter<pb::StoreVerifyProgress>* writer) override {
    return answer(*context, "StoreVerify", [&]() -> Result<void> {
      if (request->parts() != 0 && (request->part() == 0 || request->part() > request->parts())) {
        return make_error(Code::kInvalid, "verify", "part " + std::to_string(request->part()) + " of " +
                                                        std::to_string(request->parts()));
      }
      BATON_ASSIGN(auto nodes, choose(request->node()));
      BATON_ASSIGN(const auto all, choose({}));
      std::mutex mutex;  // one writer for several nodes' answers
      std::vector<std::future<void>> asked;
      for (const auto& node : nodes) {
        asked.push_back(std::async(std::launch::async, [&, node] {
          auto ask = [&]() -> Result<void> {
            BATON_TRY(reachable(node));
            pb::StoreVerifyRequest one = *request;
            one.clear_replicas();
            for (const auto& other : all) {
              if (other.name() != node.name() && reachable(other)) add_peer(other, *one.add_replicas());
            }
            auto client = client_context(*context, kWorkTimeout);
            auto reader = stub(node)->StoreVerify(client.get(), one);
            pb::StoreVerifyProgress message;
            while (reader->Read(&message)) {
              std::lock_guard lock(mutex);
              (void)writer->Write(message);
            }
            return transport::to_result(reader->Finish(), "verify", node.name());
          };
          if (auto done = ask(); !done) {
            pb::StoreVerifyProgress last;
            last.set_node(node.name());
            last.mutable_report()->set_node(node.name());
            last.mutable_report()->set_error(done.error().message());
            std::lock_guard lock(mutex);
            (void)writer->Write(last);
          }
        }));
      }
      for (auto& one : asked) one.get();
      return {};
    });
  }

  // On every node that holds it: it is to stay on each.
  grpc::Status TagCheckpoint(grpc::ServerContext* context, const pb::TagCheckpointRequest* request,
                             pb::CheckpointMarks* response) override {
    return answer(*context, "TagCheckpoint", [&]() -> Result<void> {
      BATON_ASSIGN(auto held, holders(request->name()));
      BATON_ASSIGN(const pb::CheckpointInfo found, pick(held, request->name(), request->seq()));
      pb::TagCheckpointRequest one = *request;
      one.set_seq(found.seq());
      std::vector<std::string> done;
      for (const auto& name : found.nodes()) {
        BATON_ASSIGN(auto node, node_named(name));
        auto client = client_context(*context, kStatTimeout);
        pb::CheckpointMarks marks;
        const auto status = stub(node)->TagCheckpoint(client.get(), one, &marks);
        if (!status.ok()) {
          Error error = transport::from_status(status, "tag", name);
          if (!done.empty()) error.subject += " (done on " + done.front() + ")";
          return error;
        }
        if (done.empty()) *response = marks;
        done.push_back(name);
      }
      response->clear_nodes();
      for (const auto& name : done) response->add_nodes(name);
      return {};
    });
  }

  // Of all nodes that answer: the same checkpoint's marks are one.
  grpc::Status ListMarks(grpc::ServerContext* context, const pb::WorkloadName* request,
                         pb::ListMarksResponse* response) override {
    return answer(*context, "ListMarks", [&]() -> Result<void> {
      BATON_ASSIGN(auto nodes, choose({}));
      std::map<std::pair<std::uint64_t, std::uint64_t>, pb::CheckpointMarks> merged;
      for (const auto& node : nodes) {
        if (!reachable(node)) continue;
        auto client = client_context(*context, kStatTimeout);
        pb::ListMarksResponse one;
        if (!stub(node)->ListMarks(client.get(), *request, &one).ok()) continue;
        for (const auto& marks : one.marks()) {
          auto [it, fresh] = merged.try_emplace({marks.seq(), marks.incarnation()}, marks);
          if (fresh) continue;
          it->second.set_pinned(it->second.pinned() || marks.pinned());
          it->second.add_nodes(node.name());
          for (const auto& tag : marks.tags()) {
            const auto& known = it->second.tags();
            if (std::find(known.begin(), known.end(), tag) == known.end()) it->second.add_tags(tag);
          }
        }
      }
      for (auto& [key, marks] : merged) *response->add_marks() = std::move(marks);
      return {};
    });
  }

  grpc::Status Analyze(grpc::ServerContext* context, const pb::AnalyzeRequest* request,
                       pb::AnalyzeResponse* response) override {
    return answer(*context, "Analyze", [&]() -> Result<void> {
      std::string name = request->node();
      if (name.empty()) {
        BATON_ASSIGN(auto held, holders(request->name()));
        std::map<std::string, int> count;
        for (const auto& info : held.checkpoints()) {
          if (info.seq() < request->first_seq() ||
              (request->last_seq() != 0 && info.seq() > request->last_seq())) {
            continue;
          }
          for (const auto& node : info.nodes()) ++count[node];
        }
        for (const auto& [node, held_there] : count) {
          if (name.empty() || held_there > count[name]) name = node;
        }
        if (name.empty()) {
          return make_error(Code::kNotFound, "analyze", "no reachable node holds checkpoints of " + request->name() +
                                                            " in that range");
        }
      }
      BATON_ASSIGN(auto node, node_named(name));
      auto client = client_context(*context, kWorkTimeout);
      return transport::to_result(stub(node)->Analyze(client.get(), *request, response), "analyze", name);
    });
  }

  grpc::Status Diff(grpc::ServerContext* context, const pb::DiffRequest* request,
                    grpc::ServerWriter<pb::DiffPart>* writer) override {
    return answer(*context, "Diff", [&]() -> Result<void> {
      pb::DiffRequest one = *request;
      if (one.name_b().empty()) one.set_name_b(one.name_a());
      BATON_ASSIGN(auto held_a, holders(one.name_a()));
      BATON_ASSIGN(const auto a, pick(held_a, one.name_a(), one.seq_a()));
      auto held_b = held_a;
      if (one.name_b() != one.name_a()) {
        BATON_ASSIGN(held_b, holders(one.name_b()));
      }
      BATON_ASSIGN(const auto b, pick(held_b, one.name_b(), one.seq_b()));
      one.set_seq_a(a.seq());
      one.set_seq_b(b.seq());
      std::string name = one.node();
      for (const auto& node : a.nodes()) {
        if (name.empty() && std::count(b.nodes().begin(), b.nodes().end(), node) > 0) name = node;
      }
      if (name.empty()) {
        return make_error(Code::kNotFound, "diff", "no node holds both checkpoints",
                          "baton checkpoints says who holds what.");
      }
      BATON_ASSIGN(auto node, node_named(name));
      auto client = client_context(*context, kWorkTimeout);
      return forward(*stub(node)->Diff(client.get(), one), *client, *writer, "diff", name);
    });
  }

  grpc::Status Export(grpc::ServerContext* context, const pb::ExportRequest* request,
                      grpc::ServerWriter<pb::ExportChunk>* writer) override {
    return answer(*context, "Export", [&]() -> Result<void> {
      pb::ExportRequest one = *request;
      BATON_ASSIGN(auto held, holders(one.name()));
      BATON_ASSIGN(const auto found, pick(held, one.name(), one.seq()));
      one.set_seq(found.seq());
      const std::string name = one.node().empty() && found.nodes_size() > 0 ? found.nodes(0) : one.node();
      BATON_ASSIGN(auto node, node_named(name));
      auto client = client_context(*context, kWorkTimeout);
      return forward(*stub(node)->Export(client.get(), one), *client, *writer, "export", name);
    });
  }

 private:
  template <typename Body>
  grpc::Status answer(grpc::ServerContext& context, const char* rpc, Body&& body) {
    if (auto who = authorize(context, rpc); !who) return transport::to_status(who.error());
    Result<void> result = body();
    if (!result) return transport::to_status(for_people(result.error()));
    return grpc::Status::OK;
  }

  static Result<void> reachable(const pb::NodeInfo& node) {
    if (node.state() != "unreachable" && !node.rpc_address().empty()) return {};
    return make_error(Code::kFailed, "store", node.name() + " is not reachable");
  }
  static void add_peer(const pb::NodeInfo& node, pb::PeerAddress& out) {
    out.set_node(node.name());
    out.set_rpc(node.rpc_address());
    out.set_stream(node.stream_address());
  }

  // The node of that name, or all. Unreachable ones stay in the list: they are told as such.
  Result<std::vector<pb::NodeInfo>> choose(const std::string& name) {
    BATON_ASSIGN(auto listed, coordinator_.list_nodes());
    std::vector<pb::NodeInfo> out;
    for (const auto& node : listed.nodes()) {
      if (name.empty() || node.name() == name) out.push_back(node);
    }
    if (out.empty() && !name.empty()) return make_error(Code::kNotFound, "store", "there is no node " + name);
    return out;
  }
  Result<pb::NodeInfo> node_named(const std::string& name) {
    BATON_ASSIGN(auto node, coordinator_.show_node(name));
    BATON_TRY(reachable(node));
    return node;
  }
  Result<pb::ListCheckpointsResponse> holders(const std::string& workload) {
    return coordinator_.list_checkpoints(workload);
  }
  // Of several incarnations' checkpoints of one number the newest; seq 0: the newest of all.
  static Result<pb::CheckpointInfo> pick(const pb::ListCheckpointsResponse& held, const std::string& workload,
                                         std::uint64_t seq) {
    const pb::CheckpointInfo* found = nullptr;
    for (const auto& info : held.checkpoints()) {
      if (seq == 0 || info.seq() == seq) found = &info;
    }
    if (found) return *found;
    return make_error(Code::kNotFound, "checkpoint",
                      workload + (seq == 0 ? " has no checkpoint" : "@" + std::to_string(seq) + " is held nowhere"),
                      "See baton checkpoints " + workload + ".");
  }

  // Cancelled with its caller, and never longer than that.
  static std::unique_ptr<grpc::ClientContext> client_context(const grpc::ServerContext& server,
                                                             std::chrono::nanoseconds timeout) {
    auto context = grpc::ClientContext::FromServerContext(
        server, grpc::PropagationOptions().disable_deadline_propagation());
    transport::set_deadline(*context, timeout);
    return context;
  }

  std::shared_ptr<Stub> stub(const pb::NodeInfo& node) {
    std::lock_guard lock(mutex_);
    auto& entry = stubs_[node.name()];
    if (!entry.stub || entry.address != node.rpc_address()) {
      entry.address = node.rpc_address();
      entry.stub = pb::Store::NewStub(
          transport::make_channel(entry.address, tls_, transport::Role::kNode, node.name()));
    }
    return entry.stub;
  }

  template <typename Method, typename Response>
  Result<void> ask_all(grpc::ServerContext& context, const std::string& name, std::chrono::nanoseconds timeout,
                       Method method, const pb::StoreRequest& request, Response& response) {
    BATON_ASSIGN(auto nodes, choose(name));
    std::vector<std::future<Result<Response>>> asked;
    for (const auto& node : nodes) {
      asked.push_back(std::async(std::launch::async, [&, node]() -> Result<Response> {
        BATON_TRY(reachable(node));
        auto client = client_context(context, timeout);
        Response one;
        const auto status = ((*stub(node)).*method)(client.get(), request, &one);
        if (!status.ok()) return transport::from_status(status, "store", node.name());
        return one;
      }));
    }
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      auto one = asked[i].get();
      if (one) {
        for (auto& entry : *one->mutable_nodes()) *response.add_nodes() = std::move(entry);
      } else {
        auto* entry = response.add_nodes();
        entry->set_node(nodes[i].name());
        entry->set_error(one.error().message());
      }
    }
    return {};
  }

  template <typename Message>
  static Result<void> forward(grpc::ClientReader<Message>& reader, grpc::ClientContext& client,
                              grpc::ServerWriter<Message>& writer, const char* operation, const std::string& node) {
    Message message;
    bool listening = true;
    while (reader.Read(&message)) {
      if (listening && !writer.Write(message)) {
        listening = false;
        client.TryCancel();
      }
    }
    return transport::to_result(reader.Finish(), operation, node);
  }

  struct Entry {
    std::string address;
    std::shared_ptr<Stub> stub;
  };
  Coordinator& coordinator_;
  const transport::TlsFiles tls_;
  std::mutex mutex_;
  std::map<std::string, Entry> stubs_;  // at most one per known node
};

}  // namespace

std::unique_ptr<grpc::Service> make_store_forwarder(Coordinator& coordinator, const transport::TlsFiles& tls) {
  return std::make_unique<StoreForwarder>(coordinator, tls);
}

}  // namespace baton::coordinator
