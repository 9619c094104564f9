// The coordinator behind its real wire: mutual TLS over loopback, agents that speak the
// agent's contract, and the `baton` program itself as the client.
#include "coordinator/service.h"

#include <gtest/gtest.h>
#include <grpcpp/grpcpp.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <span>
#include <thread>

#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "coordinator/agent_directory.h"
#include "coordinator/coordinator.h"
#include "proto/agent.grpc.pb.h"
#include "proto/coordinator.grpc.pb.h"
#include "transport/pki.h"
#include "transport/rpc.h"

namespace baton::coordinator {
namespace {

using namespace std::chrono_literals;
using transport::Role;
using Json = nlohmann::json;

// One certificate authority and everybody's certificates, made once.
class Pki {
 public:
  Pki() {
    char name[] = "/tmp/baton-coordinator-XXXXXX";
    path_ = ::mkdtemp(name);
    make("ca", "test");
    issue("ca", Role::kCoordinator, "coordinator");
    issue("ca", Role::kOperator, "olga");
    issue("ca", Role::kViewer, "vera");
    for (const char* node : {"ecu1", "ecu2"}) issue("ca", Role::kNode, node);
    make("other-ca", "other");
    issue("other-ca", Role::kOperator, "mallory");
  }
  ~Pki() { std::filesystem::remove_all(path_); }
  std::string dir(const std::string& name) const { return path_ + "/" + name; }
  transport::TlsFiles tls(const std::string& name) const {
    auto files = transport::load_tls(dir(name));
    EXPECT_TRUE(files) << files.error().message();
    return *files;
  }
  const std::string& path() const { return path_; }

 private:
  void make(const std::string& folder, const std::string& cluster) {
    auto made = transport::init_ca(dir(folder), cluster);
    EXPECT_TRUE(made) << made.error().message();
  }
  void issue(const std::string& ca, Role role, const std::string& name) {
    transport::IssueRequest request;
    request.role = role;
    request.name = name;
    request.addresses = {"127.0.0.1"};
    auto issued = transport::issue(dir(ca), request, dir(name));
    EXPECT_TRUE(issued) << issued.error().message();
  }
  std::string path_;
};

// An agent that holds no programs, but speaks as one that does.
class WireAgent final : public pb::Agent::Service {
 public:
  WireAgent(const Pki& pki, std::string node) : node_(std::move(node)), tls_(pki.tls(node_)) {
    auto server = transport::RpcServer::start("127.0.0.1:0", tls_, {this});
    EXPECT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
  }
  ~WireAgent() override {
    leave();
    server_->shutdown(0ms);
  }

  // Registers and sends heartbeats until leave(). `answer`: the stream's end, for a test.
  void join_cluster(int port, const std::string& claim = {}) {
    leave();
    leaving_ = false;
    channel_ = transport::make_channel("127.0.0.1:" + std::to_string(port), tls_, Role::kCoordinator);
    stub_ = pb::Coordinator::NewStub(channel_);
    thread_ = std::thread([this, claim] {
      while (!leaving_) {
        grpc::ClientContext context;
        auto stream = stub_->Session(&context);
        std::thread reader([&] {
          pb::NodeOrder order;
          while (stream->Read(&order)) {
            std::lock_guard lock(mutex_);
            orders_.push_back(order);
            for (const auto& ownership : order.ownerships()) {
              auto found = running_.find(ownership.workload());
              if (found != running_.end() && ownership.owner() != node_ &&
                  ownership.incarnation() >= found->second.incarnation()) {
                running_.erase(found);  // it stops what it does not own
              }
            }
          }
        });
        pb::NodeReport report;
        report.mutable_facts()->set_name(claim.empty() ? node_ : claim);
        report.mutable_facts()->set_memory_free_bytes(1ull << 30);
        report.set_rpc_address("127.0.0.1:" + std::to_string(server_->port()));
        report.set_stream_address("127.0.0.1:1");
        report.set_first(true);
        while (!leaving_) {
          {
            std::lock_guard lock(mutex_);
            report.clear_workloads();
            for (const auto& [name, status] : running_) *report.add_workloads() = status;
          }
          if (!stream->Write(report)) break;
          report.clear_facts();
          report.set_first(false);
          for (int i = 0; i < 10 && !leaving_; ++i) std::this_thread::sleep_for(10ms);
        }
        if (leaving_) context.TryCancel();
        reader.join();
        const grpc::Status status = stream->Finish();
        {
          std::lock_guard lock(mutex_);
          session_end_ = transport::from_status(status, "session", "coordinator");
          ++sessions_ended_;
        }
        std::this_thread::sleep_for(20ms);  // between two attempts
      }
    });
  }
  void leave() {
    leaving_ = true;
    if (thread_.joinable()) thread_.join();
  }

  grpc::Status Start(grpc::ServerContext* context, const pb::StartRequest* request,
                     pb::StartResponse* response) override {
    auto who = transport::require_role(*context, "Start", {Role::kCoordinator});
    if (!who) return transport::to_status(who.error());
    if (request->spec().argv(0) == "refused") {
      return transport::to_status(
          make_error(Code::kUnsupported, "run", "fd 7: io_uring is not supported"));
    }
    run(request->spec().name(), request->ownership().incarnation());
    std::lock_guard lock(mutex_);
    *response->mutable_status() = running_[request->spec().name()];
    return grpc::Status::OK;
  }
  grpc::Status Stop(grpc::ServerContext*, const pb::StopWorkloadRequest* request,
                    pb::Empty*) override {
    std::lock_guard lock(mutex_);
    running_.erase(request->name());
    return grpc::Status::OK;
  }
  grpc::Status DropWorkload(grpc::ServerContext*, const pb::WorkloadName*, pb::Empty*) override {
    return grpc::Status::OK;
  }
  grpc::Status ListCheckpoints(grpc::ServerContext*, const pb::ListCheckpointsRequest* request,
                               pb::ListCheckpointsResponse* response) override {
    auto& info = *response->add_checkpoints();
    info.set_workload(request->name());
    info.set_seq(7);
    info.set_incarnation(1);
    return grpc::Status::OK;
  }
  grpc::Status Logs(grpc::ServerContext*, const pb::AgentLogsRequest*,
                    grpc::ServerWriter<pb::LogChunk>* writer) override {
    pb::LogChunk chunk;
    chunk.set_data("hello from " + node_ + "\n");
    writer->Write(chunk);
    return grpc::Status::OK;
  }
  grpc::Status Migrate(grpc::ServerContext*, const pb::MigrateRequest* request,
                       grpc::ServerWriter<pb::MigrateProgress>* writer) override {
    pb::MigrateProgress progress;
    progress.set_phase("copy");
    progress.set_round(1);
    progress.set_bytes_sent(100);
    progress.set_bytes_left(100);
    writer->Write(progress);
    if (request->max_pause_us() == 1) {
      return transport::to_status(make_error(Code::kFailed, "migrate", "does not converge"));
    }
    // As an agent does: the owner record first, by itself.
    pb::ChangeOwnerRequest change;
    change.set_workload(request->name());
    change.set_expected_incarnation(request->incarnation());
    change.set_new_owner(request->target().node());
    pb::Ownership ownership;
    grpc::Status status;
    for (int i = 0; i < 500; ++i) {  // until it is known who owns it
      grpc::ClientContext context;
      transport::set_deadline(context, 2s);
      status = stub_->ChangeOwner(&context, change, &ownership);
      const auto code = transport::from_status(status, "", "").code;
      if (status.ok() || (code != Code::kUnreachable && code != Code::kUnknownOutcome &&
                          code != Code::kTimedOut && code != Code::kCancelled)) {
        break;
      }
      std::this_thread::sleep_for(20ms);
    }
    if (!status.ok()) return status;
    {
      std::lock_guard lock(mutex_);
      running_.erase(request->name());
    }
    others_.at(request->target().node())->run(request->name(), ownership.incarnation());
    progress.set_phase("done");
    progress.mutable_report()->set_pause_us(1234);
    progress.mutable_report()->set_total_ms(56.5);
    progress.mutable_report()->set_strategy(request->strategy());
    progress.mutable_report()->set_incarnation(ownership.incarnation());
    writer->Write(progress);
    return grpc::Status::OK;
  }
  grpc::Status Restore(grpc::ServerContext*, const pb::RestoreRequest* request,
                       grpc::ServerWriter<pb::RestoreProgress>* writer) override {
    run(request->as().empty() ? request->name() : request->as(),
        request->ownership().incarnation());
    pb::RestoreProgress progress;
    progress.mutable_report()->set_pid(77);
    progress.mutable_report()->set_seq(request->seq());
    writer->Write(progress);
    return grpc::Status::OK;
  }

  void run(const std::string& name, std::uint64_t incarnation) {
    std::lock_guard lock(mutex_);
    auto& status = running_[name];
    status.set_name(name);
    status.set_state("running");
    status.set_pid(42);
    status.set_incarnation(incarnation);
    status.set_last_committed(7);
  }
  bool runs(const std::string& name) {
    std::lock_guard lock(mutex_);
    return running_.contains(name);
  }
  void knows(const std::string& node, WireAgent& other) { others_[node] = &other; }
  Error session_end() {
    std::lock_guard lock(mutex_);
    return session_end_;
  }
  int sessions_ended() {
    std::lock_guard lock(mutex_);
    return sessions_ended_;
  }
  std::vector<pb::NodeOrder> orders() {
    std::lock_guard lock(mutex_);
    return orders_;
  }

 private:
  const std::string node_;
  const transport::TlsFiles tls_;
  std::map<std::string, WireAgent*> others_;
  std::unique_ptr<transport::RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<pb::Coordinator::Stub> stub_;
  std::thread thread_;
  std::atomic<bool> leaving_{false};
  std::mutex mutex_;
  std::map<std::string, pb::WorkloadStatus> running_;
  std::vector<pb::NodeOrder> orders_;
  Error session_end_;
  int sessions_ended_ = 0;
};

struct Output {
  int exit = -1;
  std::string out, err;
  Json json() const { return Json::parse(out); }
};

class CoordinatorService : public testing::Test {
 protected:
  static void SetUpTestSuite() { pki_ = new Pki; }
  static void TearDownTestSuite() {
    delete pki_;
    pki_ = nullptr;
  }
  CoordinatorService() {
    static int count = 0;
    data_dir_ = pki_->path() + "/data" + std::to_string(++count);
    ecu1_.knows("ecu2", ecu2_);
    ecu2_.knows("ecu1", ecu1_);
    boot(0);
  }
  ~CoordinatorService() override {
    ecu1_.leave();
    ecu2_.leave();
    halt();
  }
  void boot(int port) {
    auto store = open_sqlite_store(data_dir_);
    ASSERT_TRUE(store) << store.error().message();
    store_ = std::move(*store);
    registry_ = make_sole_decider(*store_, clock_);
    agents_ = make_agent_directory(pki_->tls("coordinator"));
    core_ = std::make_unique<Coordinator>(*store_, *registry_, *agents_, clock_, "test");
    ASSERT_TRUE(core_->start());
    auto server = CoordinatorServer::start("127.0.0.1:" + std::to_string(port),
                                           pki_->tls("coordinator"), *core_);
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
    port_ = server_->port();
  }
  void halt() {
    if (core_) core_->stop();
    server_.reset();
    core_.reset();
    agents_.reset();
    registry_.reset();
    store_.reset();
  }
  template <typename Condition>
  static bool soon(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + 20s;
    while (std::chrono::steady_clock::now() < end) {
      if (condition()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
  void nodes_ready() {
    ecu1_.join_cluster(port_);
    ecu2_.join_cluster(port_);
    ASSERT_TRUE(soon([&] {
      int ready = 0;
      const auto nodes = core_->list_nodes();
      for (const auto& node : nodes->nodes()) ready += node.state() == "ready";
      return ready == 2;
    }));
  }
  // Runs `baton ARGS` as `who`.
  Output baton(const std::string& args, const std::string& who = "olga", int port = 0) {
    const std::string err_path = pki_->path() + "/stderr";
    const std::string command = "BATON_CONNECT_TIMEOUT=30s BATON_COORDINATOR=127.0.0.1:" +
                                std::to_string(port ? port : port_) + " BATON_TLS_DIR=" +
                                pki_->dir(who) + " " BATON_PROGRAM " " + args + " 2>" + err_path +
                                " </dev/null";
    Output output;
    FILE* pipe = ::popen(command.c_str(), "r");
    char buffer[4096];
    std::size_t n;
    while ((n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0) output.out.append(buffer, n);
    const int status = ::pclose(pipe);
    output.exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    output.err = read_file(err_path).value_or("");
    return output;
  }
  std::unique_ptr<pb::Coordinator::Stub> stub(const std::string& who) {
    return pb::Coordinator::NewStub(transport::make_channel(
        "127.0.0.1:" + std::to_string(port_), pki_->tls(who), Role::kCoordinator));
  }

  static Pki* pki_;
  SystemClock clock_;
  std::string data_dir_;
  int port_ = 0;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<OwnerRegistry> registry_;
  std::unique_ptr<AgentDirectory> agents_;
  std::unique_ptr<Coordinator> core_;
  std::unique_ptr<CoordinatorServer> server_;
  WireAgent ecu1_{*pki_, "ecu1"};
  WireAgent ecu2_{*pki_, "ecu2"};
};
Pki* CoordinatorService::pki_ = nullptr;

TEST_F(CoordinatorService, RunShowMigrateRestoreDelete_ThroughTheProgram) {
  nodes_ready();
  auto nodes = baton("node ls -o json");
  ASSERT_EQ(nodes.exit, 0) << nodes.err;
  ASSERT_EQ(nodes.json().size(), 2u);
  EXPECT_EQ(nodes.json()[0]["state"], "ready");

  auto ran = baton("run x --node ecu1 --standby ecu2 --mode warm --interval 50ms -- sleep -1 --mode");
  ASSERT_EQ(ran.exit, 0) << ran.err;
  EXPECT_EQ(ran.out, "x runs on ecu1, pid 42, standby ecu2\n");
  auto shown = baton("show x --output json");
  ASSERT_EQ(shown.exit, 0) << shown.err;
  EXPECT_EQ(shown.json()["state"], "running");
  EXPECT_EQ(shown.json()["mode"], "warm");
  EXPECT_EQ(shown.json()["interval_us"], 50'000);
  EXPECT_EQ(shown.json()["command"], Json({"sleep", "-1", "--mode"}));
  EXPECT_EQ(baton("logs x").out, "hello from ecu1\n");
  EXPECT_EQ(baton("checkpoints x -o json").json()[0]["nodes"], Json({"ecu1", "ecu2"}));

  EXPECT_EQ(baton("migrate x --to ecu1").exit, 2);
  EXPECT_EQ(baton("migrate x --to ecu9").exit, 3);
  EXPECT_EQ(baton("migrate y --to ecu2").exit, 3);
  EXPECT_EQ(baton("migrate x").exit, 2);
  auto diverging = baton("migrate x --to ecu2 --max-pause 1us");
  EXPECT_EQ(diverging.exit, 1);
  EXPECT_NE(diverging.err.find("does not converge"), std::string::npos) << diverging.err;
  auto moved = baton("migrate x --to ecu2 --strategy stopcopy -o json");
  ASSERT_EQ(moved.exit, 0) << moved.err;
  EXPECT_EQ(moved.json()["pause_us"], 1234);
  EXPECT_EQ(moved.json()["strategy"], "stopcopy");
  EXPECT_NE(moved.err.find("copy"), std::string::npos) << "progress goes to stderr";
  EXPECT_EQ(baton("show x -o json").json()["node"], "ecu2");
  EXPECT_EQ(baton("show x -o json").json()["incarnation"], 2);

  EXPECT_EQ(baton("restore x@7 --to ecu1").exit, 1) << "it runs";
  auto copy = baton("restore x@7 --to ecu1 --as x2 -o json");
  ASSERT_EQ(copy.exit, 0) << copy.err;
  EXPECT_EQ(copy.json()["pid"], 77);
  EXPECT_EQ(baton("restore x@8 --to ecu1 --as x3").exit, 3);

  EXPECT_EQ(baton("delete x").exit, 2) << "nobody to ask, and no --yes";
  EXPECT_EQ(baton("delete x --yes").exit, 0);
  EXPECT_EQ(baton("show x").exit, 3);
  auto events = baton("events --workload x -o json");
  ASSERT_EQ(events.exit, 0);
  EXPECT_GE(events.json().size(), 5u);
  EXPECT_EQ(events.json()[0]["who"], "operator olga");
}

TEST_F(CoordinatorService, FailedRun_LeavesNothingAndSaysWhy) {
  nodes_ready();
  auto refused = baton("run x --node ecu1 -- refused");
  EXPECT_EQ(refused.exit, 1);
  EXPECT_NE(refused.err.find("fd 7: io_uring is not supported"), std::string::npos) << refused.err;
  EXPECT_TRUE(refused.out.empty());
  EXPECT_EQ(baton("ls -o json").json().size(), 0u);
  EXPECT_EQ(baton("run x --node ecu7 -- a").exit, 3);
  EXPECT_EQ(baton("run X --node ecu1 -- a").exit, 2);
  EXPECT_EQ(baton("run x --interval 20 -- a").exit, 2);
  EXPECT_EQ(baton("run x --intervall 20ms -- a").exit, 2);
  EXPECT_EQ(baton("run x").exit, 2);
  EXPECT_EQ(baton("frobnicate").exit, 2);
  EXPECT_EQ(baton("top").exit, 0);
  EXPECT_EQ(baton("node sho ecu1").exit, 2);
  EXPECT_NE(baton("node sho ecu1").err.find("show"), std::string::npos) << "a suggestion";
}

TEST_F(CoordinatorService, Apply_OfAFile_IsRepeatable) {
  nodes_ready();
  const std::string path = pki_->path() + "/spec.toml";
  std::ofstream(path) << "[[workload]]\nname = \"x\"\ncommand = [\"sleep\"]\n";
  auto first = baton("apply -f " + path + " -o json");
  ASSERT_EQ(first.exit, 0) << first.err;
  EXPECT_EQ(first.json()[0]["action"], "create");
  EXPECT_EQ(baton("apply -f " + path + " -o json").json()[0]["action"], "none");
  std::ofstream(path) << "[[workload]]\nname = \"x\"\ncomand = [\"sleep\"]\n";
  auto wrong = baton("apply -f " + path);
  EXPECT_EQ(wrong.exit, 2);
  EXPECT_NE(wrong.err.find("spec.toml:3: unknown key 'comand'"), std::string::npos) << wrong.err;
  EXPECT_NE(wrong.err.find("Did you mean command?"), std::string::npos) << wrong.err;
  EXPECT_EQ(baton("apply -f /nonexistent").exit, 3);
}

TEST_F(CoordinatorService, NobodyThere_IsExitFourWithinSeconds) {
  const auto start = std::chrono::steady_clock::now();
  auto output = baton("ls", "olga", 1);
  EXPECT_EQ(output.exit, 4) << output.err;
  EXPECT_TRUE(output.out.empty());
  EXPECT_LT(std::chrono::steady_clock::now() - start, 20s) << "refused, so not tried again";
}

TEST_F(CoordinatorService, StrangersAndViewers_AreRefusedWithExitFive) {
  nodes_ready();
  EXPECT_EQ(baton("ls", "vera").exit, 0);
  auto refused = baton("run x -- a", "vera");
  EXPECT_EQ(refused.exit, 5);
  EXPECT_NE(refused.err.find("viewer vera"), std::string::npos) << refused.err;
  const auto stranger = baton("ls", "mallory").exit;
  EXPECT_TRUE(stranger == 5 || stranger == 4) << stranger;
  EXPECT_EQ(core_->list_workloads()->workloads_size(), 0);
}

TEST_F(CoordinatorService, RolesTable_HoldsForEveryCallAndEveryRole) {
  std::map<std::string, std::string> service_of;
  for (const char* service : {"baton.pb.Coordinator", "baton.pb.Operator", "baton.pb.Store",
                              "baton.pb.TenureCoordinator"}) {
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(service);
    ASSERT_NE(descriptor, nullptr);
    for (int i = 0; i < descriptor->method_count(); ++i) {
      service_of[descriptor->method(i)->name()] = service;
    }
  }
  std::size_t rpcs = 0;
  for (const auto& entry : kRpcRoles) rpcs += !entry.rpc.empty();
  EXPECT_EQ(rpcs, service_of.size()) << "every method of these services is in the table";
  for (const char* who : {"vera", "olga", "ecu1"}) {
    auto channel = transport::make_channel("127.0.0.1:" + std::to_string(port_), pki_->tls(who),
                                           Role::kCoordinator);
    for (const auto& entry : kRpcRoles) {
      if (entry.rpc.empty()) continue;
      const bool allowed = who[0] == 'v'   ? entry.viewer
                           : who[0] == 'o' ? entry.operator_
                                           : entry.node;
      if (allowed && entry.rpc == "Session") continue;  // answers only to a report
      grpc::ClientContext context;
      transport::set_deadline(context, 10s);
      // An empty message is a valid request of each kind.
      const std::string path =
          "/" + service_of.at(std::string(entry.rpc)) + "/" + std::string(entry.rpc);
      grpc::internal::RpcMethod named(path.c_str(), grpc::internal::RpcMethod::SERVER_STREAMING,
                                      channel);
      std::unique_ptr<grpc::ClientReader<pb::Empty>> reader(
          grpc::internal::ClientReaderFactory<pb::Empty>::Create(channel.get(), named, &context,
                                                                 pb::Empty()));
      pb::Empty message;
      while (reader->Read(&message)) {
      }
      const grpc::Status status = reader->Finish();
      const bool refused =
          !status.ok() &&
          transport::from_status(status, "call", "coordinator").code == Code::kNotAllowed;
      EXPECT_EQ(!refused, allowed) << who << " calls " << entry.rpc << ": "
                                   << status.error_message();
    }
  }
}

TEST_F(CoordinatorService, Node_MaySpeakOnlyForItself) {
  ecu1_.join_cluster(port_, "ecu2");
  EXPECT_TRUE(soon([&] { return ecu1_.sessions_ended() > 0; }));
  EXPECT_EQ(ecu1_.session_end().code, Code::kNotAllowed);
  ecu1_.leave();
  nodes_ready();
  ASSERT_EQ(baton("run x --node ecu1 -- a").exit, 0);
  grpc::ClientContext context;
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(1);
  change.set_new_owner("ecu2");
  pb::Ownership ownership;
  const auto status = stub("ecu2")->ChangeOwner(&context, change, &ownership);
  EXPECT_EQ(transport::from_status(status, "", "").code, Code::kNotAllowed);
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu1");
}

TEST_F(CoordinatorService, SilentNode_IsUnreachable_AndItsWorkloadRestorable) {
  nodes_ready();
  ASSERT_EQ(baton("run x --node ecu1 --standby ecu2 -- a").exit, 0);
  ecu1_.leave();
  ASSERT_TRUE(soon([&] { return core_->show_node("ecu1")->state() == "unreachable"; }));
  EXPECT_EQ(baton("show x -o json").json()["state"], "lost");
  EXPECT_EQ(baton("migrate x --to ecu2").exit, 1) << "not 4: the coordinator is there";
  ASSERT_TRUE(soon([&] { return core_->show_workload("x")->status().state() == "lost"; }));
  auto restored = baton("restore x --to ecu2 -o json");
  ASSERT_EQ(restored.exit, 0) << restored.err;
  EXPECT_EQ(restored.json()["seq"], 7);
  EXPECT_EQ(restored.json()["incarnation"], 2);
  // ecu1 comes back, still running it, and is told.
  ecu1_.join_cluster(port_);
  EXPECT_TRUE(soon([&] {
    for (const auto& order : ecu1_.orders()) {
      for (const auto& ownership : order.ownerships()) {
        if (ownership.workload() == "x" && ownership.owner() == "ecu2") return true;
      }
    }
    return false;
  }));
}

TEST_F(CoordinatorService, Restart_AgentsComeBackAndNothingIsForgotten) {
  nodes_ready();
  ASSERT_EQ(baton("run x --node ecu1 --standby ecu2 -- a").exit, 0);
  const auto last_event = *store_->last_event_id();
  const int port = port_;
  halt();
  boot(port);
  EXPECT_TRUE(soon([&] { return core_->show_workload("x")->status().state() == "running"; }));
  EXPECT_EQ(core_->show_workload("x")->ownership().incarnation(), 1u);
  EXPECT_GT(*store_->last_event_id(), last_event);
  ASSERT_TRUE(soon([&] { return core_->show_node("ecu2")->state() == "ready"; }));
  auto moved = baton("migrate x --to ecu2");
  EXPECT_EQ(moved.exit, 0) << moved.err;
}

// The program itself, killed at one of its fault points.
class KilledCoordinator : public CoordinatorService,
                          public testing::WithParamInterface<const char*> {
 protected:
  void TearDown() override { end(); }
  // Starts baton-coordinator on `port` (0: any); answers its port.
  int launch(int port, const std::string& fault) {
    int pipe_fds[2];
    EXPECT_EQ(::pipe(pipe_fds), 0);
    const std::string listen = "127.0.0.1:" + std::to_string(port);
    const std::string tls = pki_->dir("coordinator"), data = data_dir_ + "-program";
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(pipe_fds[1], 1);
      ::close(pipe_fds[0]);
      ::setenv("BATON_LOG_LEVEL", "error", 1);
      if (!fault.empty()) ::setenv("BATON_FAULT", fault.c_str(), 1);
      ::execl(BATON_COORDINATOR_PROGRAM, BATON_COORDINATOR_PROGRAM, "--listen", listen.c_str(),
              "--tls-dir", tls.c_str(), "--data-dir", data.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(pipe_fds[1]);
    char line[128] = {};
    FILE* out = ::fdopen(pipe_fds[0], "r");
    EXPECT_NE(std::fgets(line, sizeof line, out), nullptr);
    std::fclose(out);
    int found = 0;
    EXPECT_EQ(std::sscanf(line, "listening on port %d", &found), 1) << line;
    return found;
  }
  bool died() {
    return soon([&] {
      int status = 0;
      if (::waitpid(child_, &status, WNOHANG) != child_) return false;
      child_ = -1;
      return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    });
  }
  void end() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }
  int programs() { return (ecu1_.runs("x") ? 1 : 0) + (ecu2_.runs("x") ? 1 : 0); }
  bool both_ready(int port) {
    return soon([&] {
      auto nodes = baton("node ls -o json", "olga", port);
      if (nodes.exit != 0) return false;
      int ready = 0;
      for (const auto& node : nodes.json()) ready += node["state"] == "ready";
      return ready == 2;
    });
  }
  pid_t child_ = -1;
};

TEST_P(KilledCoordinator, StartedAgain_TheProgramRunsOnceOrNotAtAll_AndCanBeCommanded) {
  const std::string point = GetParam();
  const bool in_run = point.find(".run.") != std::string::npos;
  const bool in_delete = point.find(".delete.") != std::string::npos;
  // The owner record's first change is the run's, the second the migration's.
  const bool owner = point.find(".owner.") != std::string::npos;
  const int port = launch(0, point + "=kill" + (owner ? "@2" : ""));
  ecu1_.join_cluster(port);
  ecu2_.join_cluster(port);
  ASSERT_TRUE(both_ready(port));
  auto ran = baton("run x --node ecu1 --standby ecu2 -- a", "olga", port);
  if (!in_run) {
    ASSERT_EQ(ran.exit, 0) << ran.err;
    if (in_delete) {
      EXPECT_NE(baton("delete x --yes", "olga", port).exit, 0);
    } else {
      EXPECT_NE(baton("migrate x --to ecu2", "olga", port).exit, 0);
    }
  } else {
    EXPECT_NE(ran.exit, 0);
  }
  ASSERT_TRUE(died()) << point << " was never reached";
  EXPECT_EQ(programs() <= 1, true);

  ASSERT_EQ(launch(port, ""), port);
  ASSERT_TRUE(both_ready(port));
  // Settled: known and running on the node that the record names, or unknown and nowhere.
  Json shown;
  ASSERT_TRUE(soon([&] {
    EXPECT_LE(programs(), 1);
    auto show = baton("show x -o json", "olga", port);
    if (show.exit == 3) {
      shown = Json();
      return programs() == 0;
    }
    if (show.exit != 0) return false;
    shown = show.json();
    if (in_delete) return false;  // it goes on to the end
    return shown["state"] == "running" && programs() == 1 &&
           (shown["node"] == "ecu1" ? ecu1_.runs("x") : ecu2_.runs("x"));
  })) << point << " " << shown;
  if (shown.is_null() || in_delete) {
    EXPECT_EQ(baton("run x --node ecu1 -- a", "olga", port).exit, 0) << "the name is free";
  } else {
    const std::string to = shown["node"] == "ecu1" ? "ecu2" : "ecu1";
    EXPECT_TRUE(soon([&] { return baton("migrate x --to " + to, "olga", port).exit == 0; }));
  }
  EXPECT_EQ(programs(), 1);
}

INSTANTIATE_TEST_SUITE_P(Points, KilledCoordinator,
                         testing::Values("coordinator.run.recorded", "coordinator.run.owned",
                                         "coordinator.run.started", "coordinator.migrate.recorded",
                                         "coordinator.owner.before_commit",
                                         "coordinator.owner.committed",
                                         "coordinator.migrate.answered",
                                         "coordinator.delete.recorded",
                                         "coordinator.delete.stopped"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST_F(CoordinatorService, Pki_AndCompletion_NeedNoCoordinator) {
  const std::string dir = pki_->path() + "/mine";
  EXPECT_EQ(baton("pki init --dir " + dir + "/ca --cluster mine", "olga", 1).exit, 0);
  EXPECT_EQ(baton("pki init --dir " + dir + "/ca --cluster mine", "olga", 1).exit, 1);
  EXPECT_EQ(baton("pki issue --dir " + dir + "/ca --role node --name ecu1 --out " + dir +
                      "/ecu1 --address 10.0.0.1 --address ecu1.local",
                  "olga", 1)
                .exit,
            0);
  const auto addresses = transport::inspect(dir + "/ecu1/tls.crt")->addresses;
  EXPECT_EQ(std::count(addresses.begin(), addresses.end(), "10.0.0.1"), 1);
  EXPECT_EQ(std::count(addresses.begin(), addresses.end(), "ecu1.local"), 1);
  EXPECT_EQ(baton("pki renew --dir " + dir + "/ca --out " + dir + "/ecu1", "olga", 1).exit, 0);
  EXPECT_EQ(baton("pki issue --dir " + dir + "/ca --role king --name x --out " + dir + "/x", "olga", 1)
                .exit,
            2);
  for (const char* shell : {"bash", "zsh", "fish"}) {
    auto script = baton(std::string("completion ") + shell, "olga", 1);
    EXPECT_EQ(script.exit, 0);
    EXPECT_NE(script.out.find("max-slowdown"), std::string::npos) << shell;
  }
  EXPECT_EQ(baton("completion tcsh", "olga", 1).exit, 2);
}

}  // namespace
}  // namespace baton::coordinator
