// Two agents in one process: nodes, stores and the receiver's contract are real, the
// program is in memory, and the wires between them can fail at every place.
#include "agent/node/node.h"
#include "tests/unit/agent/fakes.h"

namespace baton::node {
namespace {

using namespace testing;
using namespace std::chrono_literals;

// The owner record, with outcomes that can be lost.
class FakeRecords final : public OwnerRecords {
 public:
  enum class Mishap { kNone, kRefused, kAppliedUnheard, kLost };
  Result<pb::Ownership> change_owner(const pb::ChangeOwnerRequest& request) override {
    std::lock_guard lock(mutex_);
    const Mishap mishap = std::exchange(next, Mishap::kNone);
    if (mishap == Mishap::kRefused) return make_error(Code::kInvalid, "change owner", "refused");
    if (mishap == Mishap::kLost) return make_error(Code::kUnknownOutcome, "change owner", "lost");
    auto& record = records_[request.workload()];
    if (record.incarnation() != request.expected_incarnation()) {
      return make_error(Code::kConflict, "change owner", "at " + std::to_string(record.incarnation()));
    }
    record.set_owner(request.new_owner());
    record.set_incarnation(record.incarnation() + 1);
    if (mishap == Mishap::kAppliedUnheard) return make_error(Code::kUnreachable, "change owner", "no answer");
    return record;
  }
  Result<pb::Ownership> get_owner(const std::string& name) override {
    std::lock_guard lock(mutex_);
    if (silent) return make_error(Code::kUnreachable, "get owner", "no answer");
    return records_[name];
  }
  void set(const std::string& name, const std::string& owner, std::uint64_t incarnation) {
    std::lock_guard lock(mutex_);
    records_[name].set_workload(name);
    records_[name].set_owner(owner);
    records_[name].set_incarnation(incarnation);
  }
  std::atomic<bool> silent{false};
  Mishap next = Mishap::kNone;

 private:
  std::mutex mutex_;
  std::map<std::string, pb::Ownership> records_;
};

struct Ecu {
  std::string name;
  TempStore store;
  FakeWarden warden;
  std::unique_ptr<Receiver> receiver;
  std::shared_ptr<LoopbackReplica::Line> line = std::make_shared<LoopbackReplica::Line>();
  std::function<Result<void>(const std::string& rpc)> rpc_mishap;  // before the call; after it: "rpc/answer"
  std::shared_ptr<Node> node;   // replaced by the test's thread alone, under the mutex
  std::shared_ptr<Node> up() {
    std::lock_guard lock(mutex);
    return node;
  }
  void put(std::shared_ptr<Node> other) {
    std::unique_lock lock(mutex);
    std::shared_ptr<Node> old = std::exchange(node, std::move(other));
    lock.unlock();   // its end waits for its threads
  }
  std::mutex mutex;
  Ecu(std::string n, Runners& runners) : name(std::move(n)), warden(runners, name) {}
  pb::PeerAddress peer() const {
    pb::PeerAddress out;
    out.set_node(name);
    out.set_rpc(name + ":1");
    out.set_stream(name + ":2");
    return out;
  }
};

class DirectTarget final : public TargetAgent {
 public:
  explicit DirectTarget(Ecu& ecu) : ecu_(ecu) {}
  Result<pb::PrepareTargetResponse> prepare(const pb::PrepareTargetRequest& request) override {
    return call<pb::PrepareTargetResponse>("prepare", [&](Node& n) { return n.prepare_target(request); });
  }
  Result<pb::BuildTargetResponse> build(const pb::BuildTargetRequest& request) override {
    return call<pb::BuildTargetResponse>("build", [&](Node& n) { return n.build_target(request); });
  }
  Result<pb::ActivateTargetResponse> activate(const pb::ActivateTargetRequest& request) override {
    return call<pb::ActivateTargetResponse>("activate", [&](Node& n) { return n.activate_target(request); });
  }
  Result<void> discard(const std::string& name) override {
    auto node = ecu_.up();
    if (!node) return make_error(Code::kUnreachable, "discard", ecu_.name);
    return node->discard_target(name);
  }
  Result<void> put_file(const std::string&, const std::string& path,
                        std::function<Result<pb::ReadFileResponse>(std::uint64_t)>) override {
    ecu_.warden.missing_files.erase(path);
    return {};
  }

 private:
  template <typename T, typename F>
  Result<T> call(const std::string& rpc, F&& f) {
    auto node = ecu_.up();
    if (!node) return make_error(Code::kUnreachable, rpc, ecu_.name + " is off");
    if (ecu_.rpc_mishap) BATON_TRY(ecu_.rpc_mishap(rpc));
    Result<T> out = f(*node);
    if (ecu_.rpc_mishap) BATON_TRY(ecu_.rpc_mishap(rpc + "/answer"));
    return out;
  }
  Ecu& ecu_;
};

class Nodes : public ::testing::Test {
 protected:
  Nodes() {
    boot(a_);
    boot(b_);
  }
  ~Nodes() override {
    a_.put(nullptr);
    b_.put(nullptr);
    EXPECT_FALSE(runners_.violated) << "two instances of one workload ran at the same time";
  }
  void boot(Ecu& ecu) {
    NodeEnv env;
    env.warden = &ecu.warden;
    env.store = ecu.store.store.get();
    env.clock = &clock_;
    env.owners = &records_;
    env.connect_target = [this](const pb::PeerAddress& peer) -> std::unique_ptr<TargetAgent> {
      return std::make_unique<DirectTarget>(ecu_of(peer.node()));
    };
    env.make_replica = [this](const pb::PeerAddress& peer, const pb::WorkloadSpec&,
                              const storage::WorkloadIdentity& identity) -> std::unique_ptr<Replica> {
      auto& other = ecu_of(peer.node());
      return std::make_unique<LoopbackReplica>(other.name, *other.receiver, identity, other.line);
    };
    Node::Options options;
    options.name = ecu.name;
    options.data_dir = ecu.store.folder;
    options.self = ecu.peer();
    if (!ecu.receiver) {
      ecu.receiver = std::make_unique<Receiver>(*ecu.store.store, [&ecu](const std::string& name) {
        auto node = ecu.up();
        return node ? node->runs_here(name) : 0;
      });
    }
    ecu.put(std::make_shared<Node>(options, std::move(env)));
    ecu.node->on_warden_connected();
  }
  // As after a crash: what is in memory is gone, the disk and held processes stay.
  void crash_and_boot(Ecu& ecu) {
    ecu.put(nullptr);
    ecu.warden.agent_gone();
    boot(ecu);
  }
  Ecu& ecu_of(const std::string& name) { return name == "ecu1" ? a_ : b_; }

  void start_on_a(bool standby_b = true) {
    pb::StartRequest request;
    *request.mutable_spec() = test_spec("w");
    if (standby_b) {
      request.mutable_spec()->add_standbys("ecu2");
      *request.add_peers() = b_.peer();
    }
    records_.set("w", "ecu1", 1);
    request.mutable_ownership()->set_workload("w");
    request.mutable_ownership()->set_owner("ecu1");
    request.mutable_ownership()->set_incarnation(1);
    auto started = a_.node->start(request);
    ASSERT_TRUE(started.has_value()) << started.error().message();
    pb::CheckpointNowRequest now;
    now.set_name("w");
    auto committed = a_.node->checkpoint_now(now);
    ASSERT_TRUE(committed.has_value()) << committed.error().message();
  }
  Result<pb::MigrateReport> migrate(const std::function<void(pb::MigrateRequest&)>& change = {}) {
    pb::MigrateRequest request;
    request.set_name("w");
    *request.mutable_target() = b_.peer();
    request.set_incarnation(1);
    if (change) change(request);
    return a_.node->migrate(request, {});
  }
  void expect_runs_only_on(Ecu& ecu) {
    EXPECT_TRUE(eventually([&] { return runners_.count("w") == 1; }));
    EXPECT_TRUE(eventually([&] { return ecu.node->runs_here("w") != 0; }));
    Ecu& other = &ecu == &a_ ? b_ : a_;
    EXPECT_TRUE(eventually([&] { return !other.warden.has("w"); }));
    const std::uint64_t n = ecu.warden.count_of("w");
    EXPECT_TRUE(eventually([&] { return ecu.warden.count_of("w") > n; }));
  }

  Runners runners_;
  SystemClock clock_;
  FakeRecords records_;
  Ecu a_{"ecu1", runners_}, b_{"ecu2", runners_};
};

TEST_F(Nodes, Migrate_ToAStandby_GoesOnThereAndBack) {
  start_on_a();
  const std::uint64_t n = a_.warden.count_of("w");
  auto report = migrate();
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->incarnation(), 2u);
  EXPECT_GT(report->pause_us(), 0u);
  EXPECT_EQ(report->strategy(), "precopy");
  expect_runs_only_on(b_);
  EXPECT_GE(b_.warden.count_of("w"), n);
  // Its checkpoints go on, with the old source as standby, and it can come back.
  pb::CheckpointNowRequest now;
  now.set_name("w");
  auto next = b_.node->checkpoint_now(now);
  ASSERT_TRUE(next.has_value()) << next.error().message();
  EXPECT_GT(next->seq(), report->seq());
  EXPECT_EQ(next->incarnation(), 2u);
  pb::MigrateRequest back;
  back.set_name("w");
  *back.mutable_target() = a_.peer();
  auto returned = b_.node->migrate(back, {});
  ASSERT_TRUE(returned.has_value()) << returned.error().message();
  EXPECT_EQ(returned->incarnation(), 3u);
  expect_runs_only_on(a_);
}

TEST_F(Nodes, Migrate_WithoutStandby_AndByStopAndCopy) {
  start_on_a(false);
  auto report = migrate([](pb::MigrateRequest& r) { r.set_strategy("stopcopy"); });
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->strategy(), "stopcopy");
  EXPECT_GT(report->pages_sent(), 0u);
  expect_runs_only_on(b_);
}

TEST_F(Nodes, Migrate_ToItself_IsRefused) {
  start_on_a();
  auto report = migrate([&](pb::MigrateRequest& r) { *r.mutable_target() = a_.peer(); });
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Code::kInvalid);
  expect_runs_only_on(a_);
}

TEST_F(Nodes, Migrate_EveryRpcFailing_RunsOnAtTheSource) {
  start_on_a();
  for (const std::string rpc : {"prepare", "build", "prepare/answer", "build/answer"}) {
    SCOPED_TRACE(rpc);
    b_.rpc_mishap = [&](const std::string& at) -> Result<void> {
      if (at == rpc) return make_error(Code::kUnreachable, at, "injected");
      return {};
    };
    auto report = migrate([&](pb::MigrateRequest& r) { r.set_incarnation(0); });
    EXPECT_FALSE(report.has_value());
    b_.rpc_mishap = nullptr;
    expect_runs_only_on(a_);
  }
}

TEST_F(Nodes, Migrate_WardenFailingAtEachOperation_OneRunner) {
  start_on_a();
  for (const std::string operation : {"inspect", "capture", "hold"}) {
    SCOPED_TRACE(operation);
    std::atomic<bool> armed{true};
    a_.warden.mishap = [&](const std::string& at) -> Result<void> {
      // Checkpoints use capture too: only the migration's failure counts here.
      if (armed && at == operation) return make_error(Code::kFailed, at, "injected");
      return {};
    };
    auto report = migrate([&](pb::MigrateRequest& r) { r.set_incarnation(0); });
    armed = false;
    EXPECT_FALSE(report.has_value());
    expect_runs_only_on(a_);
    a_.warden.mishap = nullptr;
  }
  for (const std::string operation : {"build", "fill"}) {
    SCOPED_TRACE(operation);
    b_.warden.mishap = [&](const std::string& at) -> Result<void> {
      if (at == operation) return make_error(Code::kFailed, at, "injected");
      return {};
    };
    auto report = migrate([&](pb::MigrateRequest& r) { r.set_incarnation(0); });
    b_.warden.mishap = nullptr;
    EXPECT_FALSE(report.has_value());
    expect_runs_only_on(a_);
  }
}

TEST_F(Nodes, Migrate_MissingFile_RefusedByPathOrSent) {
  start_on_a();
  b_.warden.missing_files.insert("/opt/data");
  // The fake's inspection names no files: ask the target directly.
  pb::PrepareTargetRequest request;
  request.set_name("x");
  request.add_files()->set_path("/opt/data");
  auto answer = b_.node->prepare_target(request);
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(answer->missing_files_size(), 1);
  EXPECT_EQ(answer->missing_files(0), "/opt/data");
}

TEST_F(Nodes, Migrate_MachineWithoutAFeature_Refused) {
  pb::PrepareTargetRequest request;
  request.set_name("x");
  request.mutable_machine()->set_arch("x86_64");
  request.mutable_machine()->set_xsave_features(0xe7);
  auto answer = b_.node->prepare_target(request);
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(answer->problems_size(), 1);
  EXPECT_NE(answer->problems(0).detail().find("XCR0"), std::string::npos);
}

TEST_F(Nodes, Handover_RefusedUnheardOrLost_OneRunner) {
  start_on_a();
  records_.next = FakeRecords::Mishap::kRefused;
  EXPECT_FALSE(migrate().has_value());
  expect_runs_only_on(a_);
  records_.next = FakeRecords::Mishap::kLost;  // asked again: still ours, reclaimed, thawed
  EXPECT_FALSE(migrate().has_value());
  expect_runs_only_on(a_);
  EXPECT_EQ(a_.node->runs_here("w"), 2u);
  records_.next = FakeRecords::Mishap::kAppliedUnheard;
  auto report = migrate([](pb::MigrateRequest& r) { r.set_incarnation(2); });
  ASSERT_TRUE(report.has_value()) << report.error().message();
  expect_runs_only_on(b_);
}

TEST_F(Nodes, Handover_OutcomeUnknownAndCoordinatorSilent_StaysFrozenUntilAnswered) {
  start_on_a();
  records_.next = FakeRecords::Mishap::kAppliedUnheard;
  records_.silent = true;
  std::optional<Result<pb::MigrateReport>> report;
  std::jthread caller([&] { report = migrate(); });
  ASSERT_TRUE(eventually([&] { return a_.warden.frozen("w"); }));
  std::this_thread::sleep_for(300ms);
  EXPECT_EQ(runners_.count("w"), 0);
  records_.silent = false;
  caller.join();
  ASSERT_TRUE(report && report->has_value());
  expect_runs_only_on(b_);
}

TEST_F(Nodes, ActivationAnswerLost_AskedAgainAndDoneOnce) {
  start_on_a();
  std::atomic<int> lost{0};
  b_.rpc_mishap = [&](const std::string& at) -> Result<void> {
    if (at == "activate/answer" && lost++ < 2) return make_error(Code::kUnreachable, at, "lost");
    return {};
  };
  auto report = migrate();
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_GE(lost, 2);
  expect_runs_only_on(b_);
}

TEST_F(Nodes, TargetCrashesAfterHandover_StartsFromTheFinalCheckpoint) {
  start_on_a();
  std::atomic<bool> down{true};
  b_.rpc_mishap = [&](const std::string& at) -> Result<void> {
    if (at == "activate" && down) return make_error(Code::kUnreachable, at, "down");
    return {};
  };
  std::optional<Result<pb::MigrateReport>> report;
  std::jthread caller([&] { report = migrate(); });
  ASSERT_TRUE(eventually([&] { return records_.get_owner("w")->owner() == "ecu2"; }));
  const std::uint64_t n = a_.warden.count_of("w");
  crash_and_boot(b_);  // its build is gone; it learns from the record that it owns w
  ASSERT_TRUE(eventually([&] { return b_.node->runs_here("w") == 2; }));
  EXPECT_GE(b_.warden.count_of("w"), n);
  down = false;
  caller.join();
  ASSERT_TRUE(report && report->has_value());
  expect_runs_only_on(b_);
}

TEST_F(Nodes, SourceAgentRestarted_TakesItsWorkloadsUp) {
  start_on_a();
  crash_and_boot(a_);
  ASSERT_TRUE(eventually([&] { return a_.node->runs_here("w") == 1; }));
  pb::CheckpointNowRequest now;
  now.set_name("w");
  auto committed = a_.node->checkpoint_now(now);
  ASSERT_TRUE(committed.has_value()) << committed.error().message();
  expect_runs_only_on(a_);
}

TEST_F(Nodes, SourceAgentRestartedWhileHeld_JudgedByTheRecord) {
  start_on_a();
  ASSERT_TRUE(a_.warden.hold("w").has_value());
  records_.silent = true;
  crash_and_boot(a_);
  std::this_thread::sleep_for(200ms);
  EXPECT_TRUE(a_.warden.frozen("w"));
  records_.silent = false;
  ASSERT_TRUE(eventually([&] { return !a_.warden.frozen("w"); }));
  expect_runs_only_on(a_);

  ASSERT_TRUE(a_.warden.hold("w").has_value());
  records_.set("w", "ecu2", 7);
  crash_and_boot(a_);
  EXPECT_TRUE(eventually([&] { return !a_.warden.has("w"); })) << "another owns it: it must go";
}

TEST_F(Nodes, OrderNamesAnotherOwner_TheWorkloadIsStopped) {
  start_on_a();
  pb::NodeOrder order;
  auto* ownership = order.add_ownerships();
  ownership->set_workload("w");
  ownership->set_owner("ecu1");
  ownership->set_incarnation(1);
  a_.node->obey(order);
  EXPECT_EQ(a_.node->runs_here("w"), 1u);
  ownership->set_owner("ecu2");
  ownership->set_incarnation(2);
  a_.node->obey(order);
  EXPECT_TRUE(eventually([&] { return !a_.warden.has("w"); }));
  EXPECT_EQ(runners_.count("w"), 0);
}

TEST_F(Nodes, Restore_OnTheStandby_AfterThePrimaryDied) {
  start_on_a();
  a_.node.reset();
  const std::uint64_t n = a_.warden.count_of("w");
  ASSERT_TRUE(a_.warden.stop("w", 0, true).has_value());
  pb::RestoreRequest request;
  request.set_name("w");
  *request.mutable_spec() = test_spec("w");
  request.mutable_ownership()->set_owner("ecu2");
  request.mutable_ownership()->set_incarnation(2);
  auto report = b_.node->restore(request, {});
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_LE(b_.warden.count_of("w"), n + 1000);
  EXPECT_GT(b_.warden.count_of("w"), 0u);
  pb::CheckpointNowRequest now;
  now.set_name("w");
  auto committed = b_.node->checkpoint_now(now);
  ASSERT_TRUE(committed.has_value()) << committed.error().message();
  EXPECT_GT(committed->seq(), report->seq());
  EXPECT_EQ(committed->incarnation(), 2u);
  boot(a_);
}

TEST_F(Nodes, Restore_AsANewName_RunsBesideTheOld) {
  start_on_a();
  pb::RestoreRequest request;
  request.set_name("w");
  request.set_as("w-copy");
  *request.mutable_spec() = test_spec("w-copy");
  request.mutable_ownership()->set_owner("ecu2");
  request.mutable_ownership()->set_incarnation(1);
  auto report = b_.node->restore(request, {});
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(runners_.count("w-copy"), 1);
  EXPECT_EQ(runners_.count("w"), 1);
}

TEST_F(Nodes, Restore_OfWhatRuns_IsRefused) {
  start_on_a();
  pb::RestoreRequest request;
  request.set_name("w");
  *request.mutable_spec() = test_spec("w");
  request.mutable_ownership()->set_owner("ecu1");
  request.mutable_ownership()->set_incarnation(2);
  auto report = a_.node->restore(request, {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code, Code::kConflict);
  expect_runs_only_on(a_);
}

TEST_F(Nodes, Restore_ActivationFails_NothingIsLeft) {
  start_on_a();
  b_.warden.mishap = [](const std::string& at) -> Result<void> {
    if (at == "fill") return make_error(Code::kCorrupt, at, "injected");
    return {};
  };
  pb::RestoreRequest request;
  request.set_name("w");
  request.set_as("x");
  *request.mutable_spec() = test_spec("x");
  request.mutable_ownership()->set_owner("ecu2");
  request.mutable_ownership()->set_incarnation(1);
  EXPECT_FALSE(b_.node->restore(request, {}).has_value());
  EXPECT_FALSE(b_.warden.has("x"));
}

}  // namespace
}  // namespace baton::node
