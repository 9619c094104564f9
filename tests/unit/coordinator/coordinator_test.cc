// The coordinator's decisions, with agents that are objects in this process and a clock
// that the test turns.
#include "coordinator/coordinator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace baton::coordinator {
namespace {

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

TEST_F(CoordinatorTest, Run_OnAReadyNode_StartsUnderIncarnationOneWithASecretKey) {
  running_x();
  ASSERT_EQ(agents_.at("ecu1")->started.size(), 1u);
  const auto& request = agents_.at("ecu1")->started[0];
  EXPECT_EQ(request.ownership().incarnation(), 1u);
  EXPECT_EQ(request.ownership().owner(), "ecu1");
  EXPECT_EQ(request.spec().hash_key().size(), 32u);
  EXPECT_EQ(request.spec().domain().size(), 32u);
  EXPECT_EQ(request.spec().standbys(0), "ecu2");
  auto info = core_->show_workload("x");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->status().state(), "running");
  EXPECT_EQ(info->status().pid(), 4711);
  EXPECT_TRUE(info->spec().hash_key().empty()) << "the key must not leave the coordinator";
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Run_WithoutStandbyFlag_ChoosesOneWhereThereIsAnotherNode) {
  join("ecu1");
  auto alone = core_->run(run_request("a"), "test");
  ASSERT_TRUE(alone) << alone.error().message();
  EXPECT_EQ(alone->spec().standbys_size(), 0);
  join("ecu2");
  // The workload takes a standby as soon as there is a node for it.
  EXPECT_TRUE(soon([&] { return core_->show_workload("a")->spec().standbys_size() == 1; }));
}

TEST_F(CoordinatorTest, Run_OfATakenName_IsAConflictAndStartsNothing) {
  running_x();
  auto second = core_->run(run_request("x", "ecu2"), "test");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
  EXPECT_TRUE(agents_.at("ecu2")->started.empty());
}

TEST_F(CoordinatorTest, Run_OnAnUnknownNode_IsNotFound) {
  join("ecu1");
  EXPECT_EQ(core_->run(run_request("x", "ecu9"), "test").error().code, Code::kNotFound);
}

TEST_F(CoordinatorTest, Run_RefusedByTheAgent_GivesTheNameBackAndPassesTheErrorOn) {
  join("ecu1");
  agents_.at("ecu1")->start_error =
      make_error(Code::kUnsupported, "protect", "fd 7: io_uring is not supported");
  auto refused = core_->run(run_request("x", "ecu1"), "test");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().subject, "fd 7: io_uring is not supported");
  EXPECT_EQ(state("x"), "none");
  agents_.at("ecu1")->start_error.reset();
  EXPECT_TRUE(core_->run(run_request("x", "ecu1"), "test"));
}

TEST_F(CoordinatorTest, Run_RefusedByVerdicts_NamesTheResource) {
  join("ecu1");
  auto& verdict = *agents_.at("ecu1")->start_response.add_verdicts();
  verdict.set_resource("fd 7");
  verdict.set_kind("io_uring");
  verdict.set_verdict("refused");
  auto refused = core_->run(run_request("x", "ecu1"), "test");
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().subject.find("fd 7: io_uring"), std::string::npos);
  EXPECT_EQ(state("x"), "none");
}

TEST_F(CoordinatorTest, Run_WithUnknownOutcome_IsStoppedAndItsLateProgramToo) {
  join("ecu1");
  agents_.at("ecu1")->start_error = make_error(Code::kTimedOut, "start", "no answer");
  EXPECT_FALSE(core_->run(run_request("x", "ecu1"), "test"));
  ASSERT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
  // It ran after all: the node's report says so, and it is ended.
  beat("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return agents_.at("ecu1")->dropped.size() == 1; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 2u);
}

TEST_F(CoordinatorTest, Session_OfAnotherName_IsNotAllowed) {
  auto session = core_->open_session("ecu1", report("ecu2"));
  ASSERT_FALSE(session);
  EXPECT_EQ(session.error().code, Code::kNotAllowed);
}

TEST_F(CoordinatorTest, Session_OfTheSameNodeAgain_EndsTheOlder) {
  join("ecu1");
  auto old = sessions_["ecu1"];
  join("ecu1");
  EXPECT_FALSE(core_->next_order(*old));
  EXPECT_EQ(core_->report(*old, report("ecu1")).error().code, Code::kConflict);
}

TEST_F(CoordinatorTest, Orders_TellANodeWhatItDoesNotOwn) {
  running_x();
  beat("ecu1", {status("x", "running")});
  beat("ecu3", {status("x", "running", 7)});
  auto order = core_->next_order(*sessions_["ecu3"]);
  ASSERT_TRUE(order);
  ASSERT_EQ(order->ownerships_size(), 1);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu1");
  EXPECT_EQ(order->standbys_size(), 0);
  EXPECT_EQ(order->peers_size(), 3);
  auto mine = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(mine);
  ASSERT_EQ(mine->standbys_size(), 1);
  EXPECT_EQ(mine->standbys(0).standbys(0).node(), "ecu2");
  EXPECT_EQ(mine->standbys(0).spec().hash_key().size(), 32u);
  // Unchanged: neither peers nor standbys are sent again.
  beat("ecu1", {status("x", "running")});
  auto next = core_->next_order(*sessions_["ecu1"]);
  EXPECT_EQ(next->peers_size(), 0);
  EXPECT_EQ(next->standbys_size(), 0);
}

TEST_F(CoordinatorTest, Orders_OfAWorkloadNeverHeardOf_AreNotGiven) {
  join("ecu1", {status("stranger", "running")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships_size(), 0);
}

TEST_F(CoordinatorTest, Node_SilentForTooLong_IsUnreachableAndItsWorkloadLost) {
  running_x();
  EXPECT_EQ(state("x"), "running");
  ecu1_dies();
  EXPECT_EQ(core_->show_node("ecu1")->state(), "unreachable");
  EXPECT_EQ(core_->show_node("ecu2")->state(), "ready");
  EXPECT_EQ(state("x"), "lost");
  EXPECT_TRUE(core_->show_workload("x")->status_is_stale());
  beat("ecu1", {status("x", "running")});
  EXPECT_EQ(state("x"), "running");
}

TEST_F(CoordinatorTest, Migrate_BadTargets_EachHaveTheirOwnError) {
  running_x();
  EXPECT_EQ(migrate_x("ecu9").error().code, Code::kNotFound);
  auto same = migrate_x("ecu1");
  EXPECT_EQ(same.error().code, Code::kInvalid);
  EXPECT_NE(same.error().message().find("is already on ecu1"), std::string::npos);
  EXPECT_EQ(migrate_x("").error().code, Code::kInvalid);
  clock_.advance(kUnreachableAfter + 1s);
  beat("ecu1", {status("x", "running")});
  EXPECT_EQ(migrate_x("ecu2").error().code, Code::kUnreachable);
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Migrate_Done_MovesOwnerAndStandbys) {
  running_x();
  ecu1_hands_over();
  auto moved = migrate_x("ecu2");
  ASSERT_TRUE(moved) << moved.error().message();
  ASSERT_TRUE(progress_.back().has_report());
  EXPECT_EQ(progress_.back().report().incarnation(), 2u);
  EXPECT_EQ(progress_.back().report().from(), "ecu1");
  auto info = core_->show_workload("x");
  EXPECT_EQ(info->status().node(), "ecu2");
  EXPECT_EQ(info->status().pid(), 55);
  EXPECT_EQ(info->status().state(), "running");
  ASSERT_EQ(info->spec().standbys_size(), 1);
  EXPECT_EQ(info->spec().standbys(0), "ecu1");
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, Migrate_WhileAnotherIsUnderWay_IsAConflict) {
  running_x();
  std::promise<void> entered, leave;
  agents_.at("ecu1")->on_migrate = [&](const auto&, const auto&, std::stop_token) -> Result<void> {
    entered.set_value();
    leave.get_future().wait();
    return make_error(Code::kCancelled, "migrate", "aborted");
  };
  auto first = std::async(std::launch::async, [&] { return migrate_x("ecu2"); });
  entered.get_future().wait();
  EXPECT_EQ(state("x"), "migrating");
  EXPECT_EQ(migrate_x("ecu3").error().code, Code::kConflict);
  EXPECT_EQ(core_->remove([] {
                   pb::DeleteRequest request;
                   request.set_name("x");
                   request.set_stop_program(true);
                   return request;
                 }(), "test").error().code, Code::kConflict);
  leave.set_value();
  EXPECT_FALSE(first.get());
  EXPECT_EQ(state("x"), "running");
  EXPECT_FALSE(operation_under_way("x"));
}

TEST_F(CoordinatorTest, ChangeOwner_ByAnyoneButTheOwner_IsNotAllowed) {
  running_x();
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(1);
  change.set_new_owner("ecu3");
  EXPECT_EQ(core_->change_owner("ecu3", change).error().code, Code::kNotAllowed);
  change.set_new_owner("ecu9");
  EXPECT_EQ(core_->change_owner("ecu1", change).error().code, Code::kNotFound);
  change.set_new_owner("ecu3");
  ASSERT_TRUE(core_->change_owner("ecu1", change));
  EXPECT_TRUE(core_->change_owner("ecu1", change)) << "the answer was lost, asked again";
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 2u);
}

TEST_F(CoordinatorTest, Restore_WhileItRuns_IsRefused_AsAnotherNameItIsNot) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  EXPECT_EQ(restore_x().error().code, Code::kConflict);
  ASSERT_TRUE(restore_x(5, "ecu2", "copy"));
  const auto& request = agents_.at("ecu2")->restored.at(0);
  EXPECT_EQ(request.name(), "x");
  EXPECT_EQ(request.as(), "copy");
  EXPECT_EQ(request.spec().domain(), store_->get<pb::WorkloadRecord>("x")->value.spec().domain());
  EXPECT_EQ(state("copy"), "running");
  EXPECT_EQ(restore_x(5, "ecu2", "copy").error().code, Code::kConflict);
}

TEST_F(CoordinatorTest, Restore_BeforeItsNodeIsDeclaredUnreachable_IsRefused) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  clock_.advance(kUnreachableAfter - 100ms);
  beat("ecu2");
  EXPECT_EQ(restore_x().error().code, Code::kConflict);
  ecu1_dies();
  EXPECT_TRUE(restore_x());
}

TEST_F(CoordinatorTest, Restore_OfTheNewest_RaisesTheIncarnationAndNamesTheSource) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  agents_.at("ecu2")->hold("x", 6);
  agents_.at("ecu3")->hold("x", 5);
  ecu1_dies();
  auto restored = restore_x(0, "ecu3");
  ASSERT_TRUE(restored) << restored.error().message();
  const auto& request = agents_.at("ecu3")->restored.at(0);
  EXPECT_EQ(request.seq(), 6u);
  EXPECT_EQ(request.source().node(), "ecu2");
  EXPECT_EQ(request.ownership().incarnation(), 2u);
  EXPECT_EQ(request.standbys(0).node(), "ecu2") << "a reachable standby, not the dead ecu1";
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu3");
  // The dead node comes back with the program still there: it is told who owns it.
  join("ecu1", {status("x", "running")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu3");
  EXPECT_EQ(order->ownerships(0).incarnation(), 2u);
}

TEST_F(CoordinatorTest, Restore_ThatFails_CanBeTriedAgain) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  ecu1_dies();
  agents_.at("ecu2")->restore_error = make_error(Code::kCorrupt, "restore", "a page is corrupt");
  EXPECT_EQ(restore_x().error().code, Code::kCorrupt);
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu1");
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 3u);
  agents_.at("ecu2")->restore_error = make_error(Code::kTimedOut, "restore", "no answer");
  EXPECT_FALSE(restore_x());
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu2") << "it may run there";
  agents_.at("ecu2")->restore_error.reset();
  EXPECT_TRUE(restore_x());
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 5u);
}

TEST_F(CoordinatorTest, Restore_OfAMissingCheckpoint_IsNotFound) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  ecu1_dies();
  EXPECT_EQ(restore_x(6).error().code, Code::kNotFound);
  EXPECT_EQ(core_->get_owner("x")->incarnation(), 1u);
}

TEST_F(CoordinatorTest, Failover_OfADeadNode_RestoresTheNewest_WithoutHiddenLoss) {
  running_x();
  auto newest = status("x", "running");
  newest.set_last_committed(8);
  beat("ecu1", {newest});
  agents_.at("ecu2")->hold("x", 7);
  ecu1_dies();
  pb::FailoverRequest request;
  request.set_name("x");
  std::vector<pb::RestoreProgress> steps;
  auto sink = [&](const pb::RestoreProgress& step) {
    steps.push_back(step);
    return true;
  };
  EXPECT_EQ(core_->failover(request, sink, "test").error().code, Code::kConflict);
  request.set_allow_loss(true);
  ASSERT_TRUE(core_->failover(request, sink, "test"));
  EXPECT_EQ(steps.back().handover().to(), "ecu2");
  EXPECT_GT(steps.back().handover().pause_us(), 3'000'000u) << "from the last sign of life";
}

// --- voters

pb::TenureRecord voted_x(std::uint64_t incarnation, const std::string& owner) {
  pb::TenureRecord record;
  record.set_workload("x");
  record.set_owner(owner);
  record.set_incarnation(incarnation);
  if (owner.empty()) return record;
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) record.add_voters()->set_node(node);
  return record;
}
pb::TenureNote note_of(const pb::TenureRecord& record) {
  pb::TenureNote note;
  *note.add_records() = record;
  return note;
}

TEST_F(CoordinatorTest, Voters_AreEnteredByTheOwnerAlone_AndFollowedFromThenOn) {
  running_x();
  EXPECT_EQ(core_->enter_voters("ecu2", voted_x(2, "ecu1")).error().code, Code::kNotAllowed);
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(2);
  change.set_new_owner("ecu2");
  EXPECT_EQ(core_->change_owner("ecu1", change).error().code, Code::kConflict);
  ASSERT_TRUE(core_->note_tenure("ecu3", note_of(voted_x(3, "ecu2"))));
  auto info = core_->show_workload("x");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->ownership().owner(), "ecu2");
  ASSERT_EQ(info->spec().standbys_size(), 1);
  EXPECT_EQ(info->spec().standbys(0), "ecu1") << "the node it left takes its standby's place";
}

TEST_F(CoordinatorTest, Failover_OfAVotedWorkload_GetsAnotherStandbyWhenTheOldNodeStaysAway) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  ASSERT_TRUE(core_->note_tenure("ecu2", note_of(voted_x(3, "ecu2"))));
  pb::TenureNote note;
  auto& report = *note.add_failovers();
  report.set_workload("x");
  report.set_from("ecu1");
  report.set_to("ecu2");
  report.set_incarnation(3);
  ASSERT_TRUE(core_->note_tenure("ecu2", note));
  ASSERT_TRUE(core_->note_tenure("ecu2", note)) << "told again";
  auto told = core_->failovers("x");
  ASSERT_TRUE(told);
  EXPECT_EQ(told->failovers_size(), 1);
  EXPECT_EQ(core_->failovers("")->failovers_size(), 1);
  clock_.advance(kUnreachableAfter + 1s);
  EXPECT_TRUE(soon([&] {
    beat("ecu2", {status("x", "running", 3)});
    beat("ecu3");
    auto info = core_->show_workload("x");
    return info && info->spec().standbys_size() == 1 && info->spec().standbys(0) == "ecu3";
  }));
  // A node that people named stands by again when it is back, beside the one that took its place.
  join("ecu1");
  EXPECT_TRUE(soon([&] {
    auto info = core_->show_workload("x");
    return info && info->spec().standbys_size() == 2 && info->spec().standbys(1) == "ecu1";
  }));
}

// Nobody waits until the node that fell silent is declared unreachable: until then nothing would be committed.
TEST_F(CoordinatorTest, Takeover_OfASilentNode_GetsAnotherStandbyAtOnce_UnlessItIsBackAlready) {
  for (bool back : {false, true}) {
    const std::string name = back ? "y" : "x";
    for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
    auto request = run_request(name, "ecu1");
    request.mutable_spec()->add_standbys("ecu2");
    ASSERT_TRUE(core_->run(request, "test"));
    auto voted = voted_x(2, "ecu1");
    voted.set_workload(name);
    ASSERT_TRUE(core_->enter_voters("ecu1", voted));
    for (int i = 0; i < 12; ++i) {
      clock_.advance(300ms);
      for (const char* node : {"ecu1", "ecu2", "ecu3"}) beat(node);
    }
    if (back) join("ecu1");
    auto taken = voted_x(3, "ecu2");
    taken.set_workload(name);
    taken.set_reason("takeover");
    taken.set_previous_owner("ecu1");
    ASSERT_TRUE(core_->note_tenure("ecu2", note_of(taken)));
    auto info = core_->show_workload(name);
    ASSERT_TRUE(info);
    ASSERT_EQ(info->spec().standbys_size(), 1);
    EXPECT_EQ(info->spec().standbys(0), back ? "ecu1" : "ecu3");
  }
}

TEST_F(CoordinatorTest, FailBack_AfterATakeover_GoesHomeOnceThatHasStoodByForAWhile) {
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
  auto request = run_request("x", "ecu1");
  request.mutable_spec()->add_standbys("ecu2");
  request.mutable_spec()->set_fail_back(pb::FAIL_BACK_AUTO);
  ASSERT_TRUE(core_->run(request, "test"));
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  auto taken = voted_x(3, "ecu2");
  taken.set_reason("takeover");
  taken.set_previous_owner("ecu1");
  ASSERT_TRUE(core_->note_tenure("ecu2", note_of(taken)));
  std::atomic<int> asked = 0;
  agents_.at("ecu2")->on_migrate = [&](const pb::MigrateRequest& order, const auto& sink, std::stop_token) -> Result<void> {
    EXPECT_EQ(order.target().node(), "ecu1");
    if (++asked == 1) return make_error(Code::kUnreachable, "migrate", "ecu1 does not answer");
    auto back = voted_x(4, "ecu1");
    back.set_reason("migrate");
    back.set_previous_owner("ecu2");
    EXPECT_TRUE(core_->note_tenure("ecu1", note_of(back)));
    pb::MigrateProgress progress;
    progress.set_phase("done");
    progress.mutable_report()->set_pid(56);
    sink(progress);
    return {};
  };
  // A third of a second of theirs; nobody falls silent meanwhile.
  auto pass = [&](bool in_step, std::chrono::milliseconds ours) {
    auto running = status("x", "running", 3);
    auto& copy = *running.add_standbys();
    copy.set_node("ecu1");
    copy.set_connected(in_step);
    copy.set_last_committed(5);
    clock_.advance(300ms);
    beat("ecu1");
    beat("ecu2", {running});
    beat("ecu3");
    std::this_thread::sleep_for(ours);
  };
  for (int i = 0; i < 50; ++i) pass(false, 50ms);
  EXPECT_EQ(asked, 0) << "it does not stand by yet";
  auto begun = clock_.monotonic_now();
  for (int i = 0; i < 200 && asked == 0; ++i) pass(true, 50ms);
  EXPECT_EQ(asked, 1);
  EXPECT_GE(clock_.monotonic_now() - begun, 10s);
  begun = clock_.monotonic_now();
  for (int i = 0; i < 1000 && asked == 1; ++i) pass(true, 10ms);
  EXPECT_EQ(asked, 2) << "it tries again";
  EXPECT_GE(clock_.monotonic_now() - begun, 50s);
  EXPECT_TRUE(soon([&] { return core_->show_workload("x")->ownership().owner() == "ecu1" && !operation_under_way("x"); }));
}

TEST_F(CoordinatorTest, Failover_ByHandOfAVotedWorkload_AsksTheTarget) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  ecu1_dies();
  pb::FailoverRequest request;
  request.set_name("x");
  std::optional<pb::RestoreProgress> last;
  ASSERT_TRUE(core_->failover(request, [&](const pb::RestoreProgress& step) {
    last = step;
    return true;
  }, "test"));
  ASSERT_EQ(agents_.at("ecu2")->taken_over.size(), 1u);
  EXPECT_FALSE(agents_.at("ecu2")->taken_over[0].allow_loss());
  ASSERT_TRUE(last);
  EXPECT_EQ(last->handover().to(), "ecu2");
  EXPECT_TRUE(agents_.at("ecu2")->restored.empty());
}

TEST_F(CoordinatorTest, Delete_OfAVotedWorkload_NeedsItsVoters) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  pb::DeleteRequest request;
  request.set_name("x");
  request.set_stop_program(true);
  EXPECT_FALSE(core_->remove(request, "test")) << "no majority has agreed: a standby might run it on";
  EXPECT_EQ(state("x"), "running");
  EXPECT_FALSE(operation_under_way("x"));
  agents_.at("ecu1")->on_propose = [&](const pb::ProposeOwnerRequest&) -> Result<pb::Ownership> {
    pb::Ownership out;
    out.set_workload("x");
    out.set_incarnation(3);
    EXPECT_TRUE(core_->note_tenure("ecu1", note_of(voted_x(3, ""))));
    return out;
  };
  auto removed = core_->remove(request, "test");
  ASSERT_TRUE(removed) << removed.error().message();
  EXPECT_EQ(state("x"), "none");
}

TEST_F(CoordinatorTest, Program_ThatHasEnded_IsShownAsEndedAndOwnedByNobody) {
  running_x();
  ASSERT_TRUE(core_->enter_voters("ecu1", voted_x(2, "ecu1")));
  auto ended = voted_x(3, "");
  ended.set_reason("exited");
  ended.set_previous_owner("ecu1");
  beat("ecu1", {status("x", "exited", 3)});
  ASSERT_TRUE(core_->note_tenure("ecu1", note_of(ended)));
  EXPECT_EQ(state("x"), "exited");
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu1");
}

// --- drain

TEST_F(CoordinatorTest, Drain_MovesWhatRunsThereToItsStandbyAndPlacesNothingNew) {
  running_x();
  ecu1_hands_over();
  beat("ecu1", {status("x", "running")});
  std::vector<pb::DrainProgress> steps;
  auto drained = core_->drain("ecu1", [&](const pb::DrainProgress& step) {
    steps.push_back(step);
    return true;
  }, "test");
  ASSERT_TRUE(drained) << drained.error().message();
  ASSERT_FALSE(steps.empty());
  EXPECT_TRUE(steps.back().finished());
  EXPECT_EQ(steps.back().done(), 1u);
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu2");
  EXPECT_EQ(core_->show_node("ecu1")->state(), "drained");
  EXPECT_EQ(core_->show_workload("x")->spec().standbys(0), "ecu3") << "its copy goes where nobody works on the machine";
  auto ran = core_->run(run_request("y"), "test");
  ASSERT_TRUE(ran);
  EXPECT_NE(ran->ownership().owner(), "ecu1");
  restart();
  for (const char* node : {"ecu1", "ecu2", "ecu3"}) join(node);
  EXPECT_EQ(core_->show_node("ecu1")->state(), "drained") << "kept over a restart";
  ASSERT_TRUE(core_->resume_node("ecu1", "test"));
  EXPECT_EQ(core_->show_node("ecu1")->state(), "ready");
}

TEST_F(CoordinatorTest, Drain_MeetsAPassingFailure_TriesAgain) {
  running_x();
  ecu1_hands_over();
  beat("ecu1", {status("x", "running")});
  int calls = 0;
  auto hand_over = agents_.at("ecu1")->on_migrate;
  agents_.at("ecu1")->on_migrate = [&](const auto& request, const auto& sink, std::stop_token stop) -> Result<void> {
    if (++calls == 1) return make_error(Code::kConflict, "capture", "x is frozen: its lease has run out");
    return hand_over(request, sink, stop);
  };
  auto drained = core_->drain("ecu1", [](const auto&) { return true; }, "test");
  ASSERT_TRUE(drained) << drained.error().message();
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu2");
}

TEST_F(CoordinatorTest, Drain_WhatCannotMove_StaysAndIsNamed) {
  running_x();
  agents_.at("ecu1")->on_migrate = [&](const auto&, const auto&, std::stop_token) -> Result<void> {
    return make_error(Code::kUnsupported, "migrate", "x uses what cannot be captured");
  };
  beat("ecu1", {status("x", "running")});
  std::string problem;
  auto drained = core_->drain("ecu1", [&](const pb::DrainProgress& step) {
    if (!step.error().empty()) problem = step.workload() + ": " + step.error();
    return true;
  }, "test");
  EXPECT_FALSE(drained);
  EXPECT_TRUE(problem.starts_with("x: ")) << problem;
  EXPECT_EQ(core_->show_workload("x")->ownership().owner(), "ecu1");
  EXPECT_EQ(core_->drain("ecu9", [](const auto&) { return true; }, "test").error().code, Code::kNotFound);
}

TEST_F(CoordinatorTest, Checkpoints_AreMergedOverTheirHolders) {
  running_x();
  agents_.at("ecu1")->hold("x", 6);
  agents_.at("ecu2")->hold("x", 5);
  agents_.at("ecu2")->hold("x", 6);
  auto list = core_->list_checkpoints("x");
  ASSERT_TRUE(list);
  ASSERT_EQ(list->checkpoints_size(), 2);
  EXPECT_EQ(list->checkpoints(0).nodes_size(), 1);
  EXPECT_EQ(list->checkpoints(1).nodes_size(), 2);
  EXPECT_EQ(core_->list_checkpoints("y").error().code, Code::kNotFound);
}

TEST_F(CoordinatorTest, Delete_OfARunProgram_StopsItAndFreesItsName) {
  running_x();
  pb::DeleteRequest request;
  request.set_name("x");
  EXPECT_EQ(core_->remove(request, "test").error().code, Code::kInvalid);
  request.set_stop_program(true);
  ASSERT_TRUE(core_->remove(request, "test"));
  EXPECT_FALSE(agents_.at("ecu1")->stopped.at(0).keep_program());
  EXPECT_EQ(agents_.at("ecu2")->dropped.size(), 1u);
  EXPECT_EQ(state("x"), "none");
  EXPECT_EQ(core_->remove(request, "test").error().code, Code::kNotFound);
  EXPECT_TRUE(core_->run(run_request("x"), "test"));
}

TEST_F(CoordinatorTest, Delete_WhileItsNodeIsAway_ReachesItWhenItComesBack) {
  running_x();
  ecu1_dies();
  pb::DeleteRequest request;
  request.set_name("x");
  request.set_stop_program(true);
  ASSERT_TRUE(core_->remove(request, "test"));
  EXPECT_TRUE(agents_.at("ecu1")->stopped.empty());
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return agents_.at("ecu1")->dropped.size() == 1; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
}

TEST_F(CoordinatorTest, Apply_CreatesUpdatesLeavesAndRefuses) {
  for (const char* node : {"ecu1", "ecu2"}) join(node);
  pb::ApplyRequest request;
  *request.add_specs() = run_request("x", "ecu1").spec();
  auto applied = core_->apply(request, "test");
  ASSERT_TRUE(applied);
  EXPECT_EQ(applied->changes(0).action(), "create");
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "none");
  request.mutable_specs(0)->set_interval_us(30'000);
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "update");
  EXPECT_EQ(core_->show_workload("x")->spec().interval_us(), 30'000u);
  EXPECT_EQ(core_->show_workload("x")->spec().standbys_size(), 1);
  request.mutable_specs(0)->add_argv("more");
  EXPECT_EQ(core_->apply(request, "test")->changes(0).action(), "refuse");
}

// --- after a restart -------------------------------------------------------------------

class AfterRestart : public CoordinatorTest {
 protected:
  void left_behind(const std::string& kind, const std::string& from, const std::string& to) {
    pb::OperationRecord operation;
    operation.set_workload("x");
    operation.set_kind(kind);
    operation.set_from(from);
    operation.set_to(to);
    operation.set_incarnation(1);
    operation.set_process("an earlier one");
    ASSERT_TRUE(store_->commit(Transaction().put("x", 0, operation)));
  }
  bool resolved() {
    return soon([&] { return !operation_under_way("x"); });
  }
};

TEST_F(AfterRestart, State_IsKept_AndNobodyIsDeclaredDeadAtOnce) {
  running_x();
  agents_.at("ecu2")->hold("x", 5);
  restart();
  join("ecu2");
  EXPECT_EQ(core_->list_nodes()->nodes_size(), 3);
  EXPECT_EQ(restore_x().error().code, Code::kConflict) << "ecu1 had no time to report yet";
  join("ecu1", {status("x", "running")});
  EXPECT_EQ(state("x"), "running");
}

TEST_F(AfterRestart, RunUnderWay_ReportedByItsNode_IsRunning) {
  running_x();
  left_behind("run", "", "ecu1");
  restart();
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "running");
}

TEST_F(AfterRestart, RunUnderWay_UnknownToItsNode_IsUndone) {
  running_x();
  left_behind("run", "", "ecu1");
  restart();
  join("ecu1");
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "none");
  EXPECT_EQ(core_->get_owner("x")->owner(), "");
}

TEST_F(AfterRestart, MigrationUnderWay_OwnerNotMoved_StaysWithTheSource) {
  running_x();
  left_behind("migrate", "ecu1", "ecu2");
  restart();
  join("ecu2");
  join("ecu1", {status("x", "migrating")});
  std::this_thread::sleep_for(600ms);
  EXPECT_TRUE(operation_under_way("x")) << "the source still tries";
  beat("ecu1", {status("x", "running")});
  EXPECT_TRUE(resolved());
  EXPECT_EQ(core_->show_workload("x")->status().node(), "ecu1");
}

TEST_F(AfterRestart, MigrationUnderWay_OwnerMoved_BelongsToTheTarget) {
  running_x();
  left_behind("migrate", "ecu1", "ecu2");
  restart();
  join("ecu1", {status("x", "migrating")});
  pb::ChangeOwnerRequest change;
  change.set_workload("x");
  change.set_expected_incarnation(1);
  change.set_new_owner("ecu2");
  ASSERT_TRUE(core_->change_owner("ecu1", change));
  join("ecu2", {status("x", "running", 2)});
  EXPECT_TRUE(resolved());
  auto info = core_->show_workload("x");
  EXPECT_EQ(info->status().node(), "ecu2");
  EXPECT_EQ(info->spec().standbys(0), "ecu1");
  // The source is told that it no longer owns the program.
  beat("ecu1", {status("x", "frozen")});
  auto order = core_->next_order(*sessions_["ecu1"]);
  ASSERT_TRUE(order);
  EXPECT_EQ(order->ownerships(0).owner(), "ecu2");
}

TEST_F(AfterRestart, RestoreUnderWay_NeverBegun_LeavesTheOwner) {
  running_x();
  left_behind("restore", "ecu1", "ecu2");
  restart();
  EXPECT_TRUE(resolved());
  EXPECT_EQ(core_->get_owner("x")->owner(), "ecu1");
}

TEST_F(AfterRestart, RestoreUnderWay_OwnerMoved_GoesByWhatTheTargetReports) {
  running_x();
  ASSERT_TRUE(registry_->change_owner({"x", 1, "ecu2", "restore", 5}));
  left_behind("restore", "ecu1", "ecu2");
  restart();
  join("ecu2");
  EXPECT_TRUE(resolved());
  EXPECT_EQ(state("x"), "lost");
  agents_.at("ecu2")->hold("x", 5);
  EXPECT_TRUE(restore_x()) << "it can be restored again";
}

TEST_F(AfterRestart, DeleteUnderWay_IsDoneToTheEnd) {
  running_x();
  left_behind("delete", "ecu1", "");
  restart();
  join("ecu1", {status("x", "running")});
  EXPECT_TRUE(soon([&] { return state("x") == "none"; }));
  EXPECT_EQ(agents_.at("ecu1")->stopped.size(), 1u);
}

}  // namespace
}  // namespace baton::coordinator
