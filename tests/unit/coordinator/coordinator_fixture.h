// What the tests of the coordinator's decisions share: it runs with agents that are objects in this process and a clock
// that the test turns.
#pragma once

#include "coordinator/coordinator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace baton::coordinator::test {

using namespace std::chrono_literals;

// ManualClock that several threads may read.
class TestClock final : public Clock {
 public:
  BootTime boot_now() const override { return std::chrono::nanoseconds(now_.load()); }
  std::chrono::nanoseconds monotonic_now() const override { return boot_now(); }
  std::chrono::nanoseconds wall_now() const override { return boot_now() + 1'000'000s; }
  void advance(std::chrono::nanoseconds by) { now_ += by.count(); }

 private:
  std::atomic<std::int64_t> now_{1'000'000'000};
};

class FakeAgent : public AgentClient {
 public:
  Result<pb::StartResponse> start(const pb::StartRequest& request) override {
    started.push_back(request);
    if (start_error) return *start_error;
    pb::StartResponse out = start_response;
    out.mutable_status()->set_name(request.spec().name());
    if (out.status().state().empty()) out.mutable_status()->set_state("running");
    if (out.verdicts().empty()) out.mutable_status()->set_pid(4711);
    out.mutable_status()->set_incarnation(request.ownership().incarnation());
    return out;
  }
  Result<void> stop(const pb::StopWorkloadRequest& request) override {
    stopped.push_back(request);
    return {};
  }
  Result<pb::CheckpointInfo> checkpoint_now(const pb::CheckpointNowRequest&) override {
    return pb::CheckpointInfo();
  }
  Result<pb::ListCheckpointsResponse> list_checkpoints(const std::string& name) override {
    pb::ListCheckpointsResponse out;
    for (const auto& info : checkpoints) {
      if (info.workload() == name) *out.add_checkpoints() = info;
    }
    return out;
  }
  Result<pb::AgentInspectResponse> inspect(const pb::AgentInspectRequest&) override {
    pb::AgentInspectResponse out;
    out.set_acceptable(true);
    return out;
  }
  Result<void> drop_workload(const std::string& name) override {
    dropped.push_back(name);
    return {};
  }
  Result<void> abort_migration(const std::string&) override { return {}; }
  Result<pb::Ownership> propose_owner(const pb::ProposeOwnerRequest& request) override {
    proposed.push_back(request);
    if (!on_propose) return make_error(Code::kTimedOut, "propose owner", "no majority");
    return on_propose(request);
  }
  Result<pb::FailoverReport> take_over(const pb::TakeOverRequest& request) override {
    taken_over.push_back(request);
    pb::FailoverReport out;
    out.set_workload(request.name());
    out.set_committed_seq(7);
    out.set_pid(99);
    return out;
  }
  std::vector<pb::ProposeOwnerRequest> proposed;
  std::vector<pb::TakeOverRequest> taken_over;
  std::function<Result<pb::Ownership>(const pb::ProposeOwnerRequest&)> on_propose;
  Result<void> migrate(const pb::MigrateRequest& request,
                       const std::function<bool(const pb::MigrateProgress&)>& sink,
                       std::stop_token stop) override {
    return on_migrate ? on_migrate(request, sink, stop)
                      : Result<void>(make_error(Code::kFailed, "migrate", "no handler"));
  }
  Result<void> restore(const pb::RestoreRequest& request,
                       const std::function<bool(const pb::RestoreProgress&)>& sink,
                       std::stop_token) override {
    restored.push_back(request);
    if (restore_error) return *restore_error;
    pb::RestoreProgress progress;
    progress.set_phase("fetch");
    sink(progress);
    progress.set_phase("done");
    progress.mutable_report()->set_pid(99);
    progress.mutable_report()->set_seq(request.seq());
    sink(progress);
    return {};
  }
  Result<void> logs(const pb::AgentLogsRequest&,
                    const std::function<bool(const pb::LogChunk&)>&, std::stop_token) override {
    return {};
  }

  void hold(const std::string& workload, std::uint64_t seq, std::uint64_t incarnation = 1) {
    pb::CheckpointInfo info;
    info.set_workload(workload);
    info.set_seq(seq);
    info.set_incarnation(incarnation);
    checkpoints.push_back(info);
  }

  std::vector<pb::StartRequest> started;
  std::vector<pb::StopWorkloadRequest> stopped;
  std::vector<pb::RestoreRequest> restored;
  std::vector<std::string> dropped;
  std::vector<pb::CheckpointInfo> checkpoints;
  std::optional<Error> start_error, restore_error;
  pb::StartResponse start_response;
  std::function<Result<void>(const pb::MigrateRequest&,
                             const std::function<bool(const pb::MigrateProgress&)>&,
                             std::stop_token)>
      on_migrate;
};

class FakeDirectory final : public AgentDirectory {
 public:
  std::shared_ptr<AgentClient> agent(const std::string& node, const std::string&) override {
    return at(node);
  }
  std::shared_ptr<FakeAgent> at(const std::string& node) {
    std::lock_guard lock(mutex_);
    auto& agent = agents_[node];
    if (!agent) agent = std::make_shared<FakeAgent>();
    return agent;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<FakeAgent>> agents_;
};

class CoordinatorTest : public testing::Test {
 protected:
  CoordinatorTest() { boot(); }
  ~CoordinatorTest() override {
    hang_up();
    core_.reset();
  }
  void hang_up() {
    for (auto& [node, session] : sessions_) core_->close_session(*session);
    for (auto& session : replaced_) core_->close_session(*session);
    sessions_.clear();
    replaced_.clear();
  }
  void boot() {
    sessions_.clear();
    core_ = std::make_unique<Coordinator>(*store_, *registry_, agents_, clock_, "test");
    EXPECT_TRUE(core_->start());
  }
  void restart() {
    hang_up();
    core_.reset();
    boot();
  }
  static pb::NodeReport report(const std::string& node,
                               const std::vector<pb::WorkloadStatus>& workloads = {}) {
    pb::NodeReport out;
    out.mutable_facts()->set_name(node);
    out.mutable_facts()->set_memory_free_bytes(1ull << 30);
    out.set_rpc_address("127.0.0.1:1");
    out.set_stream_address("127.0.0.1:2");
    for (const auto& status : workloads) *out.add_workloads() = status;
    return out;
  }
  static pb::WorkloadStatus status(const std::string& name, const std::string& state,
                                   std::uint64_t incarnation = 1) {
    pb::WorkloadStatus out;
    out.set_name(name);
    out.set_state(state);
    out.set_incarnation(incarnation);
    return out;
  }
  void join(const std::string& node, const std::vector<pb::WorkloadStatus>& workloads = {}) {
    auto session = core_->open_session(node, report(node, workloads));
    ASSERT_TRUE(session) << session.error().message();
    if (auto& now = sessions_[node]) replaced_.push_back(now);
    sessions_[node] = *session;
  }
  void beat(const std::string& node, const std::vector<pb::WorkloadStatus>& workloads = {}) {
    ASSERT_TRUE(core_->report(*sessions_[node], report(node, workloads)));
  }
  pb::RunWorkloadRequest run_request(const std::string& name, const std::string& node = {}) {
    pb::RunWorkloadRequest request;
    request.mutable_spec()->set_name(name);
    request.mutable_spec()->set_origin(pb::ORIGIN_RUN);
    request.mutable_spec()->add_argv("sleep");
    request.mutable_spec()->set_node(node);
    request.mutable_spec()->set_standby_count(1);
    return request;
  }
  // ecu1, ecu2 and ecu3 are there, x runs on ecu1 with standby ecu2.
  void running_x() {
    for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
    auto request = run_request("x", "ecu1");
    request.mutable_spec()->add_standbys("ecu2");
    auto ran = core_->run(request, "test");
    ASSERT_TRUE(ran) << ran.error().message();
  }
  // ecu1 falls silent for good, the others go on.
  void ecu1_dies() {
    clock_.advance(kUnreachableAfter + 1s);
    beat("ecu2");
    beat("ecu3");
  }
  Result<void> restore_x(std::uint64_t seq = 0, const std::string& to = {},
                         const std::string& as = {}) {
    pb::RestoreWorkloadRequest request;
    request.set_name("x");
    request.set_seq(seq);
    request.set_to(to);
    request.set_as(as);
    return core_->restore(request, [](const auto&) { return true; }, "test");
  }
  Result<void> migrate_x(const std::string& to) {
    pb::MigrateWorkloadRequest request;
    request.set_name("x");
    request.set_to(to);
    return core_->migrate(
        request, [&](const pb::MigrateProgress& progress) {
          progress_.push_back(progress);
          return true;
        },
        "test");
  }
  // What a source does: the owner record first, then the report.
  void ecu1_hands_over() {
    agents_.at("ecu1")->on_migrate = [this](const pb::MigrateRequest& request, const auto& sink,
                                            std::stop_token) -> Result<void> {
      pb::MigrateProgress progress;
      progress.set_phase("copy");
      sink(progress);
      pb::ChangeOwnerRequest change;
      change.set_workload(request.name());
      change.set_expected_incarnation(request.incarnation());
      change.set_new_owner(request.target().node());
      change.set_committed_seq(12);
      BATON_TRY(core_->change_owner("ecu1", change));
      progress.set_phase("done");
      progress.mutable_report()->set_pid(55);
      progress.mutable_report()->set_seq(12);
      sink(progress);
      return {};
    };
  }
  std::string state(const std::string& name) {
    auto info = core_->show_workload(name);
    return info ? info->status().state() : "none";
  }
  bool operation_under_way(const std::string& name) {
    return store_->get<pb::OperationRecord>(name)->version != 0;
  }
  template <typename Condition>
  bool soon(Condition condition) {
    for (int i = 0; i < 500; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }

  std::unique_ptr<StateStore> store_ = make_memory_store();
  TestClock clock_;
  std::unique_ptr<OwnerRegistry> registry_ = make_sole_decider(*store_, clock_);
  FakeDirectory agents_;
  std::unique_ptr<Coordinator> core_;
  std::map<std::string, std::shared_ptr<Session>> sessions_;
  std::vector<std::shared_ptr<Session>> replaced_;   // by another of the same node: its stream has not noticed yet
  std::vector<pb::MigrateProgress> progress_;
};

inline pb::TenureRecord voted_x(std::uint64_t incarnation, const std::string& owner) {
  pb::TenureRecord record;
  record.set_workload("x");
  record.set_owner(owner);
  record.set_incarnation(incarnation);
  if (owner.empty()) return record;
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) record.add_voters()->set_node(node);
  return record;
}
inline pb::TenureNote note_of(const pb::TenureRecord& record) {
  pb::TenureNote note;
  *note.add_records() = record;
  return note;
}

}  // namespace baton::coordinator::test
