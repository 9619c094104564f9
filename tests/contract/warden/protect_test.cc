// Taking in programs that run already, and giving them back.
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "agent/warden/process.h"
#include "base/cgroup.h"
#include "harness.h"

namespace baton::warden::testing {
namespace {

class Protect : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups and ptrace";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
  }
  Result<pb::WorkloadProcess> protect(const std::string& name, std::int64_t pid, std::vector<std::string> env = {}) {
    auto spec = spec_of(name, {}, std::move(env));
    spec.set_pid(pid);
    return client->protect(spec);
  }
  WardenProcess warden{FAKE_WARDEN};
  std::unique_ptr<WardenClient> client;
};

TEST_F(Protect, Tree_TakenInAndReleased_BackInItsCgroups) {
  Child shell({"sh", "-c", "sleep 1000 & sleep 1000 & wait"});
  ASSERT_TRUE(eventually([&] { return process_tree(shell.pid()).size() == 3; }));
  auto tree = process_tree(shell.pid());
  auto before = Cgroup::of(shell.pid());
  ASSERT_TRUE(before);
  auto process = protect("shell", shell.pid());
  ASSERT_TRUE(process) << process.error().message();
  EXPECT_EQ(process->pid(), shell.pid());
  for (pid_t pid : tree) EXPECT_TRUE(Cgroup::of(pid)->path().ends_with("/shell"));
  pb::RoundRequest round;
  round.set_workload("shell");
  EXPECT_TRUE(client->round(round));

  auto again = protect("other", shell.pid());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::kConflict);
  EXPECT_NE(again.error().message().find("shell"), std::string::npos);

  auto released = client->release("shell");
  ASSERT_TRUE(released) << released.error().message();
  for (pid_t pid : tree) {
    EXPECT_EQ(Cgroup::of(pid)->path(), before->path());
    EXPECT_TRUE(alive(pid));
  }
  EXPECT_TRUE(client->list()->empty());
  EXPECT_TRUE(protect("shell", shell.pid()));
}

TEST_F(Protect, Release_OfARunProgram_Refused) {
  ASSERT_TRUE(client->run(spec_of("own", {"sleep", "1000"})));
  EXPECT_EQ(client->release("own").error().code, Code::kInvalid);
  EXPECT_EQ(client->release("nobody").error().code, Code::kNotFound);
}

TEST_F(Protect, Release_WhileFrozen_Refused) {
  Child child({"sleep", "1000"});
  ASSERT_TRUE(protect("child", child.pid()));
  ASSERT_TRUE(client->hold("child"));
  EXPECT_EQ(client->release("child").error().code, Code::kConflict);
  ASSERT_TRUE(client->thaw("child"));
  ASSERT_TRUE(client->release("child"));
}

TEST_F(Protect, WrongProcesses_EachWithItsOwnError) {
  EXPECT_EQ(protect("x", 0x7ffffff).error().code, Code::kNotFound);
  EXPECT_EQ(protect("x", 0).error().code, Code::kInvalid);
  EXPECT_EQ(protect("x", -5).error().code, Code::kInvalid);
  EXPECT_EQ(protect("x", std::int64_t{1} << 40).error().code, Code::kInvalid);
  EXPECT_EQ(protect("x", warden.pid()).error().code, Code::kInvalid);
  EXPECT_EQ(protect("x", ::getpid()).error().code, Code::kInvalid);   // above the warden

  auto kthreadd = read_process(2);
  if (kthreadd && (kthreadd->flags & 0x00200000)) {
    auto kernel = protect("x", 2);
    ASSERT_FALSE(kernel);
    EXPECT_NE(kernel.error().message().find("kernel thread"), std::string::npos);
  }

  Child traced({"sleep", "1000"});
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, traced.pid(), 0, 0), 0);
  auto refused = protect("x", traced.pid());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kConflict);
  EXPECT_NE(refused.error().message().find("traced"), std::string::npos);

  pid_t zombie = ::fork();
  if (zombie == 0) ::_exit(0);
  ASSERT_TRUE(eventually([&] { return state_of(zombie) == 'Z'; }));
  EXPECT_EQ(protect("x", zombie).error().code, Code::kNotFound);
  ::waitpid(zombie, nullptr, 0);

  Child ring({"sleep", "1000"});
  auto unsupported = protect("x", ring.pid(), {"FAKE_REFUSE=1"});
  ASSERT_FALSE(unsupported);
  EXPECT_EQ(unsupported.error().code, Code::kUnsupported);
  EXPECT_NE(unsupported.error().message().find("fd 7"), std::string::npos);
  EXPECT_TRUE(client->list()->empty());
}

TEST_F(Protect, Exit_OfAProgramThatIsNoChild_StatusFromTheKernel) {
  pid_t child = ::fork();
  if (child == 0) {
    ::execlp("sh", "sh", "-c", "sleep 0.3; exit 5", nullptr);
    ::_exit(127);
  }
  ASSERT_TRUE(protect("guest", child));
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("guest", event));
  EXPECT_TRUE(event.exited());
  EXPECT_EQ(event.wait_status(), 5 << 8);
  ::waitpid(child, nullptr, 0);
}

TEST_F(Protect, WardenKilledWhileMoving_ProcessesGoBack) {
  for (const char* point : {"warden.protect.before", "warden.protect.moved"}) {
    Child child({"sleep", "1000"});
    auto before = Cgroup::of(child.pid())->path();
    warden.arm(std::string(point) + "=kill");
    EXPECT_FALSE(protect("guest", child.pid()));
    warden.wait();
    warden.arm("");
    warden.start();
    client = warden.connect();
    EXPECT_TRUE(alive(child.pid()));
    EXPECT_EQ(Cgroup::of(child.pid())->path(), before) << point;
    EXPECT_TRUE(client->list()->empty()) << point;
  }
}

}  // namespace
}  // namespace baton::warden::testing
