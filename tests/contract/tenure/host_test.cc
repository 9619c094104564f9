// Three hosts over loopback, with certificates and logs: who owns a workload, what ends that.
#include "tenure/host.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/clock.h"
#include "tests/contract/transport/harness.h"

namespace baton::tenure {
namespace {

using namespace std::chrono_literals;
using transport::testing::Certificates;
using transport::testing::eventually;

struct Machine {
  std::mutex mutex;
  pb::TenureTip tip;
  std::vector<Effect> effects;
  std::unique_ptr<Host> host;

  int count(EffectKind kind) {
    std::lock_guard lock(mutex);
    return static_cast<int>(std::count_if(effects.begin(), effects.end(), [&](const Effect& e) { return e.kind == kind; }));
  }
  void set_tip(std::uint64_t incarnation, std::uint64_t seq) {
    std::lock_guard lock(mutex);
    tip.set_incarnation(incarnation);
    tip.set_seq(seq);
  }
};

class HostTest : public ::testing::Test {
 protected:
  HostTest() : folder_(std::filesystem::temp_directory_path() / ("tenure-host-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(folder_);
  }
  ~HostTest() override {
    machines_.clear();
    std::filesystem::remove_all(folder_);
  }
  void start(const std::string& name, int port = 0) {
    auto& machine = machines_[name];
    if (!machine) machine = std::make_unique<Machine>();
    Machine* raw = machine.get();
    Host::Handlers handlers;
    handlers.tip = [raw](const std::string&) {
      std::lock_guard lock(raw->mutex);
      return raw->tip;
    };
    handlers.knows_commits = [](const std::string&) { return true; };
    handlers.effect = [raw](const Effect& effect) {
      std::lock_guard lock(raw->mutex);
      raw->effects.push_back(effect);
    };
    handlers.problem = [](const std::string&) {};
    auto host = Host::start({name, "127.0.0.1:" + std::to_string(port), folder_ / name}, certificates_.node(name), handlers);
    ASSERT_TRUE(host) << host.error().message();
    machine->host = std::move(*host);
    ports_[name] = machine->host->port();
  }
  pb::PeerAddress address(const std::string& name) {
    pb::PeerAddress out;
    out.set_node(name);
    out.set_stream("127.0.0.1:" + std::to_string(ports_[name] - 1));
    return out;
  }
  pb::TenureRecord first(const std::string& owner, pb::Mode mode) {
    pb::TenureRecord record;
    record.set_workload("w");
    record.set_owner(owner);
    record.set_incarnation(2);
    record.set_mode(mode);
    for (const char* node : {"a", "b", "c"}) *record.add_voters() = address(node);
    *record.add_standbys() = address("b");
    return record;
  }
  void own(pb::Mode mode) {
    for (const char* name : {"a", "b", "c"}) start(name);
    machines_["b"]->set_tip(1, 7);
    machines_["a"]->host->tell(Event{.kind = EventKind::kRunning, .workload = "w"});
    machines_["a"]->host->tell(Event{.kind = EventKind::kAdopt, .record = first("a", mode)});
    ASSERT_TRUE(eventually([&] {
      auto known = machines_["a"]->host->known("w");
      return known && known->may_run_until > read_clock(CLOCK_BOOTTIME) && known_incarnation("b") == 2 && known_incarnation("c") == 2;
    }));
  }
  std::uint64_t known_incarnation(const std::string& name) {
    auto known = machines_[name]->host->known("w");
    return known ? known->record.incarnation() : 0;
  }
  bool supported(const std::string& name) {
    auto known = machines_[name]->host->known("w");
    return known && known->may_run_until > read_clock(CLOCK_BOOTTIME);
  }
  const std::filesystem::path folder_;
  Certificates certificates_;
  std::map<std::string, int> ports_;
  std::map<std::string, std::unique_ptr<Machine>> machines_;
};

TEST_F(HostTest, OwnerGone_StandbyOwnsItAndTheThirdAgrees) {
  own(pb::MODE_WARM);
  machines_["a"]->host.reset();
  ASSERT_TRUE(eventually([&] { return machines_["b"]->count(EffectKind::kOwned) == 1; }));
  ASSERT_TRUE(eventually([&] { return known_incarnation("c") == 3; }));
  EXPECT_EQ(machines_["b"]->host->known("w")->record.owner(), "b");
  EXPECT_EQ(machines_["b"]->host->known("w")->record.committed_seq(), 7u);
}

TEST_F(HostTest, OwnerAlone_IsNotSupportedAnyMore) {
  own(pb::MODE_WARM);
  machines_["b"]->host.reset();
  machines_["c"]->host.reset();
  EXPECT_TRUE(eventually([&] { return !supported("a"); }));
}

TEST_F(HostTest, OwnerHandsOver_TheOtherOwnsItAndIsSupported) {
  own(pb::MODE_WARM);
  Event event;
  event.kind = EventKind::kPropose;
  event.workload = "w";
  event.record.set_owner("b");
  event.reason = "migrate";
  event.release = true;
  auto decided = machines_["a"]->host->ask(event, 5s);
  ASSERT_TRUE(decided) << decided.error().message();
  EXPECT_EQ(decided->owner(), "b");
  EXPECT_EQ(decided->incarnation(), 3u);
  ASSERT_TRUE(eventually([&] { return machines_["b"]->count(EffectKind::kOwned) == 1; }));
  EXPECT_GE(machines_["a"]->count(EffectKind::kStop), 1);
  EXPECT_TRUE(eventually([&] { return supported("b"); }));
  EXPECT_FALSE(supported("a"));
}

TEST_F(HostTest, AskedWithoutAMajority_TimesOutAndNothingChanges) {
  own(pb::MODE_WARM);
  machines_["a"]->host.reset();
  machines_["c"]->host.reset();
  Event event;
  event.kind = EventKind::kTakeOver;
  event.workload = "w";
  auto decided = machines_["b"]->host->ask(event, 300ms);
  ASSERT_FALSE(decided);
  EXPECT_TRUE(decided.error().code == Code::kTimedOut || decided.error().code == Code::kConflict) << decided.error().message();
  EXPECT_EQ(known_incarnation("b"), 2u);
  EXPECT_FALSE(machines_["b"]->host->ask(Event{.kind = EventKind::kQuery, .workload = "unknown"}, 100ms));
}

TEST_F(HostTest, VoterRestarted_KnowsTheRecordAndTheTenureGoesOn) {
  own(pb::MODE_WARM);
  const int port = ports_["c"];
  machines_["c"]->host.reset();
  start("c", port);
  ASSERT_EQ(known_incarnation("c"), 2u);
  machines_["b"]->host.reset();
  // Only the restarted one is left to support the owner.
  std::this_thread::sleep_for(500ms);
  EXPECT_TRUE(eventually([&] { return supported("a"); }));
}

TEST(TenureAddress, IsThePortAbove) {
  pb::PeerAddress peer;
  peer.set_rpc("10.0.0.1:7400");
  EXPECT_EQ(tenure_address(peer), "10.0.0.1:7401");
  peer.set_stream("[::1]:7402");
  EXPECT_EQ(tenure_address(peer), "[::1]:7403");
  for (const char* wrong : {"nowhere", "a:", "a:65535", "a:x"}) {
    peer.set_stream(wrong);
    EXPECT_EQ(tenure_address(peer), "") << wrong;
  }
}

}  // namespace
}  // namespace baton::tenure
