// The warden dies at any point and comes back: programs run on, once, and are taken up again.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "agent/warden/record.h"
#include "base/cgroup.h"
#include "base/fd.h"
#include "harness.h"

namespace baton::warden::testing {
namespace {

class Restart : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups and ptrace";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
  }
  void come_back() {
    warden.arm("");
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
  }
  pid_t run(const std::string& name) {
    auto process = client->run(spec_of(name, {"sleep", "1000"}));
    EXPECT_TRUE(process) << process.error().message();
    return process ? static_cast<pid_t>(process->pid()) : 0;
  }
  Result<Capture> capture(bool keep_frozen) {
    pb::CaptureRequest request;
    request.set_workload("counter");
    request.set_keep_frozen(keep_frozen);
    return client->capture(request);
  }
  // What is listed under the name "counter"; state empty: nothing.
  pb::WorkloadProcess listed() {
    auto all = client->list();
    EXPECT_TRUE(all && all->size() <= 1);
    return all && !all->empty() ? all->front() : pb::WorkloadProcess();
  }
  WardenProcess warden{FAKE_WARDEN};
  std::unique_ptr<WardenClient> client;
};

TEST_F(Restart, Killed_ProgramRunsOn_TakenUpAgain) {
  pid_t pid = run("counter");
  warden.kill(SIGKILL);
  EXPECT_TRUE(eventually([&] { return warden.lost() == 1; }));
  EXPECT_EQ(client->list().error().code, Code::kUnreachable);
  EXPECT_TRUE(alive(pid));
  come_back();
  EXPECT_EQ(listed().pid(), pid);
  EXPECT_EQ(listed().state(), "running");
  pb::WorkloadSpec spec;
  ASSERT_TRUE(spec.ParseFromString(listed().spec()));
  EXPECT_EQ(spec.argv(0), "sleep");
  EXPECT_TRUE(capture(false));
  ::kill(pid, SIGINT);
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("counter", event));
  EXPECT_EQ(event.wait_status(), SIGINT);
}

TEST_F(Restart, Terminated_EndsCleanlyAndProgramRunsOn) {
  pid_t pid = run("counter");
  ::kill(warden.pid(), SIGTERM);
  int status = warden.wait();
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(alive(pid));
  come_back();
  EXPECT_EQ(listed().pid(), pid);
}

TEST_F(Restart, ProgramEndedMeanwhile_ReportedWithItsStatus) {
  pid_t pid = run("counter");
  warden.kill(SIGKILL);
  ::kill(pid, SIGTERM);
  ASSERT_TRUE(eventually([&] { return !alive(pid); }));
  come_back();   // its keeper may still be writing down the end
  EXPECT_TRUE(eventually([&] { return listed().state() == "exited"; }));
  EXPECT_EQ(listed().wait_status(), SIGTERM);
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("counter", event));
  EXPECT_EQ(event.wait_status(), SIGTERM);
}

TEST_F(Restart, Held_StaysFrozenUntilToldOtherwise) {
  pid_t pid = run("counter");
  ASSERT_TRUE(capture(true));
  ASSERT_TRUE(client->hold("counter"));
  warden.kill(SIGKILL);
  auto group = Cgroup::of(pid);
  ASSERT_TRUE(group);
  EXPECT_TRUE(eventually([&] { return *group->frozen(); }));
  come_back();
  EXPECT_TRUE(listed().frozen());
  EXPECT_TRUE(*group->frozen());
  ASSERT_TRUE(client->thaw("counter"));
  EXPECT_FALSE(*group->frozen());
  EXPECT_TRUE(capture(false));
}

TEST_F(Restart, KeptFrozenNotHeld_RunsAgainByItself) {
  pid_t pid = run("counter");
  ASSERT_TRUE(capture(true));
  warden.kill(SIGKILL);
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  come_back();
  EXPECT_FALSE(listed().frozen());
}

// Killed at each step of starting: afterwards either it runs and is listed, or nothing is left.
TEST_F(Restart, KilledWhileStarting_RunsListedOrNotAtAll) {
  for (const char* point : {"warden.run.before", "warden.run.launched", "warden.run.recorded"}) {
    warden.arm(std::string(point) + "=kill");
    std::string mark = warden.folder() + "/mark";
    auto out = client->run(spec_of("counter", {"sh", "-c", "echo $$ > " + mark + "; exec sleep 1000"}));
    ASSERT_FALSE(out);
    EXPECT_EQ(out.error().code, Code::kUnreachable);
    warden.wait();
    come_back();
    auto now = listed();
    if (std::string(point) == "warden.run.recorded") {
      EXPECT_EQ(now.state(), "running");
      EXPECT_TRUE(alive(static_cast<pid_t>(now.pid())));
      pb::StopRequest stop;
      stop.set_workload("counter");
      stop.set_kill(true);
      EXPECT_TRUE(client->stop(stop));
    } else {
      EXPECT_TRUE(now.state().empty()) << point;
      pid_t pid = 0;
      std::ifstream(mark) >> pid;
      EXPECT_TRUE(pid == 0 || !alive(pid)) << point;
    }
    ::unlink(mark.c_str());
  }
}

// Killed at each step of a capture: the program runs on unharmed and can be captured again.
TEST_F(Restart, KilledWhileCapturing_ProgramRunsOn) {
  pid_t pid = run("counter");
  for (const char* point : {"warden.attach.before", "warden.attach.after", "warden.capture.before",
                            "warden.capture.frozen", "warden.capture.done"}) {
    client.reset();   // the next agent's first capture attaches anew
    client = warden.connect();
    warden.arm(std::string(point) + "=kill");
    ASSERT_FALSE(capture(false)) << point;
    warden.wait();
    EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; })) << point;
    come_back();
    EXPECT_EQ(listed().pid(), pid) << point;
    EXPECT_FALSE(listed().frozen()) << point;
    auto out = capture(false);
    EXPECT_TRUE(out) << point;
    // Everything again: what was on its way is lost.
    EXPECT_EQ(out ? out->info.pages_written() : 0, 64u) << point;
  }
}

TEST_F(Restart, KilledAroundHold_FrozenOnlyIfHeld) {
  pid_t pid = run("counter");
  ASSERT_TRUE(capture(true));
  warden.arm("warden.hold.before=kill");
  EXPECT_FALSE(client->hold("counter"));
  warden.wait();
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  come_back();
  EXPECT_FALSE(listed().frozen());
  warden.arm("warden.hold.after=kill");
  EXPECT_FALSE(client->hold("counter"));
  warden.wait();
  come_back();
  EXPECT_TRUE(listed().frozen());
  EXPECT_TRUE(client->thaw("counter"));
}

// Killed at each step of a restore: before activation nothing is left, after it it runs.
TEST_F(Restart, KilledWhileBuilding_NothingLeftOrRunning) {
  for (const char* point : {"warden.build.begin", "warden.build.done", "warden.fill.before", "warden.fill.after",
                            "warden.activate.before", "warden.activate.after"}) {
    warden.arm(std::string(point) + "=kill");
    pb::BuildRequest build;
    build.set_workload("counter");
    build.mutable_manifest()->set_backend("fake");
    *build.mutable_spec() = spec_of("counter", {"sleep", "1000"});
    pid_t pid = 0;
    if (client->build(build)) {
      pid = static_cast<pid_t>(listed().pid());
      pb::FillRequest fill;
      fill.set_workload("counter");
      pb::ActivateRequest activate;
      activate.set_workload("counter");
      if (client->fill(fill)) {
        EXPECT_FALSE(client->activate(activate)) << point;
      }
    }
    warden.wait();
    come_back();
    if (std::string(point) == "warden.activate.after") {
      EXPECT_EQ(listed().state(), "running");
      EXPECT_EQ(listed().pid(), pid);
      EXPECT_TRUE(alive(pid));
    } else {
      EXPECT_NE(listed().state(), "running") << point;
      EXPECT_TRUE(eventually([&] { return pid == 0 || !alive(pid); })) << point;
    }
    if (!listed().state().empty()) {
      pb::StopRequest stop;
      stop.set_workload("counter");
      stop.set_kill(true);
      EXPECT_TRUE(client->stop(stop)) << point;
    }
  }
}

TEST_F(Restart, KilledWhileStopping_StopAgainFinishes) {
  for (const char* point : {"warden.stop.before", "warden.stop.killed"}) {
    pid_t pid = run("counter");
    pb::StopRequest stop;
    stop.set_workload("counter");
    stop.set_kill(true);
    warden.arm(std::string(point) + "=kill");
    EXPECT_FALSE(client->stop(stop));
    warden.wait();
    come_back();
    EXPECT_TRUE(client->stop(stop)) << point;
    EXPECT_FALSE(alive(pid));
    EXPECT_TRUE(listed().state().empty());
  }
}

TEST_F(Restart, RecordDamaged_MovedAsideAndProgramLeftAlone) {
  pid_t pid = run("counter");
  warden.kill(SIGKILL);
  std::string path = warden.state() + "/counter.workload";
  auto bytes = baton::read_file(path);
  ASSERT_TRUE(bytes);
  std::string damaged = *bytes;
  damaged.back() ^= 1;
  ASSERT_TRUE(replace_file(path, damaged));
  come_back();
  EXPECT_TRUE(listed().state().empty());
  EXPECT_TRUE(alive(pid));
  EXPECT_TRUE(std::filesystem::exists(path + ".corrupt"));
  // A new one of that name is refused while the old one's processes are there.
  EXPECT_EQ(client->run(spec_of("counter", {"true"})).error().code, Code::kConflict);
  ASSERT_TRUE(replace_file(path, *bytes));   // for the clean-up
}

TEST_F(Restart, PidOfAnother_IsNotTakenForTheProgram) {
  pid_t pid = run("counter");
  warden.kill(SIGKILL);
  std::string path = warden.state() + "/counter.workload";
  auto record = decode_record(*read_file(path));
  ASSERT_TRUE(record);
  auto real = *record;
  record->set_keeper_start(record->keeper_start() + 1);
  record->set_root_start(record->root_start() + 1);
  ASSERT_TRUE(replace_file(path, encode_record(*record)));
  come_back();
  EXPECT_EQ(listed().state(), "exited");
  (void)pid;
}

}  // namespace
}  // namespace baton::warden::testing
