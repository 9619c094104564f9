// The checkpoint loop and its replicas over a program in memory and real stores.
#include <sys/wait.h>

#include "agent/node/workload.h"
#include "tests/unit/agent/fakes.h"

namespace baton::node {
namespace {

using namespace testing;
using namespace std::chrono_literals;
using LinePtr = std::shared_ptr<LoopbackReplica::Line>;

class Loop : public ::testing::Test {
 protected:
  struct Standby {
    TempStore store;
    std::unique_ptr<Receiver> receiver;
    LinePtr line = std::make_shared<LoopbackReplica::Line>();
    Standby() {
      receiver = std::make_unique<Receiver>(*store.store, [](const std::string&) { return std::uint64_t{0}; });
    }
    std::uint64_t tip(const std::string& name) {
      auto found = store.store->tip(name);
      return found && *found ? (*found)->seq : 0;
    }
  };

  Loop() {
    env_.node = "ecu1";
    env_.warden = &warden_;
    env_.store = local_.store.get();
    env_.clock = &clock_;
    env_.make_replica = [this](const pb::PeerAddress& peer, const pb::WorkloadSpec&,
                               const storage::WorkloadIdentity& identity) -> std::unique_ptr<Replica> {
      auto& standby = *standbys_.at(peer.node());
      return std::make_unique<LoopbackReplica>(peer.node(), *standby.receiver, identity, standby.line);
    };
    env_.event = [](const std::string&, const std::string&, const std::string&) {};
    env_.report_soon = [] {};
    env_.moved_away = [](const std::string&) {};
    env_.new_incarnation = [](const std::string&, std::uint64_t) {};
  }

  Standby& standby(const std::string& node) {
    auto& entry = standbys_[node];
    if (!entry) entry = std::make_unique<Standby>();
    return *entry;
  }
  static pb::PeerAddress peer(const std::string& node) {
    pb::PeerAddress out;
    out.set_node(node);
    out.set_stream(node + ":1");
    return out;
  }
  void start(const std::vector<std::string>& nodes, pb::WorkloadSpec spec = test_spec("w")) {
    Workload::Options options;
    options.spec = spec;
    options.incarnation = 1;
    for (const auto& node : nodes) {
      standby(node);
      options.standbys.push_back(peer(node));
    }
    auto process = warden_.run(spec);
    ASSERT_TRUE(process.has_value());
    options.process = *process;
    auto started = Workload::start(env_, std::move(options));
    ASSERT_TRUE(started.has_value()) << started.error().message();
    workload_ = std::move(*started);
  }
  bool committed(std::uint64_t seq) {
    return eventually([&] { return workload_->status().last_committed() >= seq; });
  }

  Runners runners_;
  FakeWarden warden_{runners_};
  SystemClock clock_;
  TempStore local_;
  NodeEnv env_;
  std::map<std::string, std::unique_ptr<Standby>> standbys_;
  std::unique_ptr<Workload> workload_;
};

TEST_F(Loop, WithoutStandby_CommitsInstantsToTheLocalStore) {
  start({});
  ASSERT_TRUE(committed(5));
  auto held = local_.store->list("w");
  ASSERT_TRUE(held.has_value());
  ASSERT_FALSE(held->empty());
  std::uint64_t last = 0;
  for (const auto& info : *held) {
    const std::uint64_t n = verify_image(load_memory(*local_.store, "w", info.seq));
    EXPECT_GE(n, last) << "seq " << info.seq;  // equal when the program got no turn between two
    last = n;
  }
  EXPECT_GT(last, 0u);
  auto status = workload_->status();
  EXPECT_EQ(status.pause().p50_us(), 100u);
  EXPECT_TRUE(status.problem().empty()) << status.problem();
  EXPECT_GT(status.pages_written(), 0u);
}

// Output commit: what waits for a checkpoint gets one long before the interval has passed, and
// goes out when that is committed, not before.
TEST_F(Loop, OutputWaits_CheckpointIsMadeSoonAndReleasesItOnCommit) {
  auto spec = test_spec("w");
  spec.set_interval_us(60'000'000);
  warden_.holds_output = true;
  start({"ecu2"}, spec);
  ASSERT_TRUE(committed(1));
  ASSERT_TRUE(eventually([&] { return warden_.released_output() == 1; }));
  for (std::uint64_t seq = 2; seq < 6; ++seq) {
    workload_->output_waits();
    ASSERT_TRUE(committed(seq)) << seq;
    ASSERT_TRUE(eventually([&] { return warden_.released_output() == seq; }));
  }
  standby("ecu2").line->cut = true;
  workload_->output_waits();
  std::this_thread::sleep_for(100ms);
  EXPECT_EQ(warden_.released_output(), 5u);   // nobody has committed it
}

TEST_F(Loop, WithStandby_CommitsThereAndNotLocally) {
  start({"ecu2"});
  ASSERT_TRUE(committed(5));
  EXPECT_GT(verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w"))), 0u);
  auto tip = local_.store->tip("w");
  EXPECT_TRUE(!tip || !*tip) << "pages stay with the standby without keep-local";
  EXPECT_EQ(workload_->status().standbys_size(), 1);
  EXPECT_TRUE(workload_->status().standbys(0).connected());
}

TEST_F(Loop, KeepLocal_BothHoldIt) {
  auto spec = test_spec("w");
  spec.set_keep_local(true);
  start({"ecu2"}, spec);
  ASSERT_TRUE(committed(3));
  EXPECT_TRUE(eventually([&] {
    auto tip = local_.store->tip("w");
    return tip && *tip && (*tip)->seq >= 3;
  }));
}

TEST_F(Loop, CheckpointNow_AnswersWithItsCommit) {
  auto spec = test_spec("w");
  spec.set_interval_us(60'000'000);
  start({"ecu2"}, spec);
  const std::uint64_t before = warden_.count_of("w");
  auto first = workload_->checkpoint_now(20s);
  ASSERT_TRUE(first.has_value()) << first.error().message();
  auto second = workload_->checkpoint_now(20s);
  ASSERT_TRUE(second.has_value()) << second.error().message();
  EXPECT_GT(second->seq(), first->seq());
  ASSERT_EQ(second->nodes_size(), 1);
  EXPECT_EQ(second->nodes(0), "ecu2");
  EXPECT_GE(verify_image(load_memory(*standby("ecu2").store.store, "w", second->seq())), before);
}

TEST_F(Loop, StandbyAwayAndBack_IsBroughtUpToDate) {
  start({"ecu2", "ecu3"});
  ASSERT_TRUE(committed(3));
  standby("ecu2").line->cut = true;
  const std::uint64_t at = workload_->status().last_committed();
  ASSERT_TRUE(committed(at + 10)) << "the other standby goes on alone";
  EXPECT_TRUE(workload_->status().problem().empty());
  EXPECT_TRUE(eventually([&] { return !workload_->status().standbys(0).connected(); }));
  EXPECT_NE(workload_->status().standbys(0).problem(), "");
  standby("ecu2").line->cut = false;
  ASSERT_TRUE(eventually([&] { return standby("ecu2").tip("w") > at + 10; }));
  verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w")));
}

TEST_F(Loop, NewStandby_GetsAllPagesWhileCheckpointsGoOn) {
  start({"ecu2"});
  ASSERT_TRUE(committed(3));
  standby("ecu3");
  workload_->set_standbys({peer("ecu2"), peer("ecu3")});
  ASSERT_TRUE(eventually([&] { return standby("ecu3").tip("w") > 0; }));
  verify_image(load_memory(*standby("ecu3").store.store, "w", standby("ecu3").tip("w")));
  // And the first one is let go.
  workload_->set_standbys({peer("ecu3")});
  const std::uint64_t at = workload_->status().last_committed();
  ASSERT_TRUE(committed(at + 3));
  EXPECT_EQ(workload_->status().standbys_size(), 1);
}

TEST_F(Loop, AllStandbysAway_SaysSoAndLagGrows) {
  start({"ecu2"});
  ASSERT_TRUE(committed(3));
  standby("ecu2").line->cut = true;
  ASSERT_TRUE(eventually([&] { return workload_->status().problem().find("standby ecu2") != std::string::npos; }))
      << workload_->status().problem();
  const auto lag = workload_->status().lag_us();
  EXPECT_TRUE(eventually([&] { return workload_->status().lag_us() > lag + 50'000; }));
  EXPECT_EQ(workload_->status().state(), "running");
  standby("ecu2").line->cut = false;
  const std::uint64_t at = workload_->status().last_committed();
  ASSERT_TRUE(committed(at + 2));
  EXPECT_TRUE(eventually([&] { return workload_->status().problem().empty(); }));
}

TEST_F(Loop, SlowStandby_CheckpointsBecomeRarerAndNothingQueues) {
  start({"ecu2"});
  ASSERT_TRUE(committed(3));
  standby("ecu2").line->stalled = true;
  std::this_thread::sleep_for(300ms);
  auto status = workload_->status();
  EXPECT_LE(status.last_captured() - status.last_committed(), Replicator::kMaxSnapshots + 1);
  standby("ecu2").line->stalled = false;
  ASSERT_TRUE(committed(status.last_captured() + 2));
  verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w")));
}

TEST_F(Loop, DiskFullOnStandby_NamedInTheProblemAndOvercome) {
  start({"ecu2"});
  ASSERT_TRUE(committed(2));
  auto line = standby("ecu2").line;
  std::atomic<bool> full{true};
  line->mishap = [&](const std::string& operation) -> Result<void> {
    if (full && operation == "put") return make_error(Code::kNoSpace, "put", "disk full");
    return {};
  };
  EXPECT_TRUE(eventually([&] { return workload_->status().problem().find("disk full") != std::string::npos; }))
      << workload_->status().problem();
  full = false;
  const std::uint64_t at = workload_->status().last_committed();
  ASSERT_TRUE(committed(at + 2));
  verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w")));
}

TEST_F(Loop, CaptureFails_ProgramRunsOnAndTheProblemIsNamed) {
  start({});
  ASSERT_TRUE(committed(1));
  std::atomic<bool> broken{true};
  warden_.mishap = [&](const std::string& operation) -> Result<void> {
    if (broken && operation == "capture") return make_error(Code::kUnsupported, "capture", "fd 7: io_uring");
    return {};
  };
  EXPECT_TRUE(eventually([&] { return workload_->status().problem().find("io_uring") != std::string::npos; }));
  const std::uint64_t n = warden_.count_of("w");
  EXPECT_TRUE(eventually([&] { return warden_.count_of("w") > n; }));
  broken = false;
  const std::uint64_t at = workload_->status().last_committed();
  ASSERT_TRUE(committed(at + 1));
  EXPECT_TRUE(eventually([&] { return workload_->status().problem().empty(); }));
}

TEST_F(Loop, WardenRestarted_BeginsWithAFullCopy) {
  start({"ecu2"});
  ASSERT_TRUE(committed(3));
  for (int i = 0; i < 5; ++i) {
    warden_.agent_gone();
    const std::uint64_t at = workload_->status().last_captured();
    ASSERT_TRUE(committed(at + 2));
    verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w")));
  }
}

TEST_F(Loop, RestartedAgent_ContinuesTheSequence) {
  start({"ecu2"});
  ASSERT_TRUE(committed(4));
  const std::uint64_t at = workload_->status().last_committed();
  workload_.reset();
  warden_.agent_gone();
  Workload::Options options;
  options.spec = test_spec("w");
  options.incarnation = 1;
  options.standbys = {peer("ecu2")};
  auto started = Workload::start(env_, std::move(options));
  ASSERT_TRUE(started.has_value());
  workload_ = std::move(*started);
  ASSERT_TRUE(committed(at + 2));
  ASSERT_TRUE(eventually([&] { return standby("ecu2").tip("w") >= at + 2; }));
  verify_image(load_memory(*standby("ecu2").store.store, "w", standby("ecu2").tip("w")));
}

TEST_F(Loop, OlderIncarnation_IsRefusedByTheStandby) {
  start({"ecu2"});
  ASSERT_TRUE(committed(2));
  ASSERT_TRUE(standby("ecu2").store.store->raise_incarnation("w", 9).has_value());
  EXPECT_TRUE(eventually([&] { return !workload_->status().problem().empty(); }));
  EXPECT_EQ(workload_->status().state(), "running");
}

TEST_F(Loop, Exited_StopsCheckpoints) {
  start({});
  ASSERT_TRUE(committed(2));
  workload_->exited(3 << 8);
  auto status = workload_->status();
  EXPECT_EQ(status.state(), "exited");
  EXPECT_EQ(WEXITSTATUS(status.exit_status()), 3);
  EXPECT_FALSE(workload_->checkpoint_now(1s).has_value());
}

TEST_F(Loop, Pauses_AreRankedOverTheLastThousand) {
  PauseStats stats;
  for (int i = 1; i <= 1100; ++i) stats.add(static_cast<std::uint64_t>(i));
  auto summary = stats.summary();  // 101 … 1100
  EXPECT_EQ(summary.p50_us(), 600u);
  EXPECT_EQ(summary.p99_us(), 1090u);
  EXPECT_EQ(summary.max_us(), 1100u);
}

}  // namespace
}  // namespace baton::node
