// kill -9 to the tracer at every step of an injection: the program runs on, unharmed.
#include <gtest/gtest.h>

#include "agent/backend/linux/remote/proc.h"
#include "tests/unit/remote/victim.h"

namespace baton::linux_backend {
namespace {

using test::Victim;

const char* const kPoints[] = {"inject.slot_filled", "inject.registers_set", "inject.signals_blocked",
                               "inject.running",     "inject.done",          "inject.mask_back",
                               "inject.registers_back"};

class InjectionCrash : public testing::TestWithParam<const char*> {};

void run_injector(pid_t victim, const std::string& fault, bool must_die) {
  pid_t pid = ::fork();
  if (pid == 0) {
    ::setenv("BATON_FAULT", fault.c_str(), 1);
    std::string target = std::to_string(victim);
    ::execl(REMOTE_INJECTOR, REMOTE_INJECTOR, target.c_str(), "20", nullptr);
    ::_exit(127);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  if (must_die) {
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << fault << " status " << status;
  }
}

TEST_P(InjectionCrash, KillTracer_AtEveryPoint_ProgramUnharmed) {
  Victim victim({REMOTE_VICTIM, GetParam()});
  ASSERT_TRUE(victim.ready());
  // It says that it is ready a moment before it is: starting, the C library blocks everything.
  auto blocked = read_task_status(victim.pid())->blocked;
  for (int same = 0; same < 10; ++same) {
    ::usleep(2000);
    auto now = read_task_status(victim.pid())->blocked;
    if (now != blocked) same = 0;
    blocked = now;
  }
  for (const char* point : kPoints) {
    for (int passage : {1, 2, 4, 7}) {
      run_injector(victim.pid(), std::string(point) + "=kill@" + std::to_string(passage), true);
      auto status = read_task_status(victim.pid());
      if (!status || status->state == 'Z') {
        FAIL() << point << "@" << passage << ": " << victim.finish();
      }
    }
  }
  std::string_view mode = GetParam();
  if (mode != "suspend" && mode != "threads") {  // those change their mask themselves
    for (int i = 0; i < 1000 && read_task_status(victim.pid())->blocked != blocked; ++i) ::usleep(1000);
    EXPECT_EQ(read_task_status(victim.pid())->blocked, blocked);
  }
  EXPECT_EQ(victim.finish(), "ok");
}

// Killed at any moment, from outside, while it injects without pause.
TEST_P(InjectionCrash, KillTracer_AtRandomMoments_ProgramUnharmed) {
  Victim victim({REMOTE_VICTIM, GetParam()});
  ASSERT_TRUE(victim.ready());
  unsigned seed = static_cast<unsigned>(::getpid());
  std::printf("seed %u\n", seed);
  for (int i = 0; i < 40; ++i) {
    pid_t pid = ::fork();
    if (pid == 0) {
      std::string target = std::to_string(victim.pid());
      ::execl(REMOTE_INJECTOR, REMOTE_INJECTOR, target.c_str(), "100000", nullptr);
      ::_exit(127);
    }
    ::usleep(5000 + static_cast<unsigned>(::rand_r(&seed)) % 10000);
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  EXPECT_EQ(victim.finish(), "ok");
}
INSTANTIATE_TEST_SUITE_P(Victims, InjectionCrash,
                         testing::Values("spin", "sleep", "futex", "poll", "read", "suspend", "storm",
                                         "threads", "catchall"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace baton::linux_backend
