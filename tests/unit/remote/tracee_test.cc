// Borrowing threads of programs that check themselves.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <thread>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/tracee.h"
#include "tests/unit/remote/victim.h"

namespace baton::linux_backend {
namespace {

using test::Victim;

// Where two xsave images differ, or -1. The bit map of components in use (bytes 512 to 519) is
// left out: the processor drops a component from it that holds only initial values.
long first_difference(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  if (a.size() != b.size()) return -2;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && (i < 512 || i >= 520)) return static_cast<long>(i);
  }
  return -1;
}

class TraceeOnEveryVictim : public testing::TestWithParam<const char*> {};

// Seizes, stops, calls, batches and lets go, over and over.
TEST_P(TraceeOnEveryVictim, Inject_Repeatedly_ProgramUnharmed) {
  Victim victim({REMOTE_VICTIM, GetParam()});
  ASSERT_TRUE(victim.ready());
  int injected = 0;
  for (int round = 0; round < 60; ++round) {
    auto threads = list_threads(victim.pid());
    ASSERT_TRUE(threads) << threads.error().message();
    for (pid_t tid : *threads) {
      auto tracee = Tracee::seize(tid);
      if (!tracee) {
        ASSERT_EQ(tracee.error().code, Code::kTraceeGone) << tracee.error().message();
        continue;
      }
      auto stopped = tracee->stop();
      if (!stopped) {
        ASSERT_EQ(stopped.error().code, Code::kTraceeGone) << stopped.error().message();
        continue;
      }
      auto regs = tracee->general_registers();
      ASSERT_TRUE(regs);
      auto vectors = tracee->extended_state();
      ASSERT_TRUE(vectors);
      auto mask = tracee->signal_mask();
      ASSERT_TRUE(mask);
      auto self = tracee->syscall(SYS_gettid);
      ASSERT_TRUE(self) << self.error().message();
      EXPECT_EQ(*self, tid);
      std::vector<RemoteCall> calls(50, RemoteCall{SYS_getppid, {}});
      calls[20] = {SYS_close, {static_cast<std::uint64_t>(-1)}};
      auto all = tracee->batch(calls, false);
      ASSERT_TRUE(all) << all.error().message();
      ASSERT_EQ(all->size(), 50u);
      EXPECT_EQ((*all)[20], -EBADF);
      EXPECT_EQ((*all)[49], ::getpid());
      auto some = tracee->batch(calls, true);
      ASSERT_TRUE(some);
      EXPECT_EQ(some->size(), 21u);
      EXPECT_EQ(*tracee->general_registers(), *regs);
      EXPECT_EQ(first_difference(*tracee->extended_state(), *vectors), -1);
      EXPECT_EQ(*tracee->signal_mask(), *mask);
      ASSERT_TRUE(tracee->resume());
      auto again = tracee->stop();
      if (!again && again.error().code == Code::kTraceeGone) continue;
      ASSERT_TRUE(again) << again.error().message();
      auto area = tracee->scratch(100);
      ASSERT_TRUE(area) << area.error().message();
      ASSERT_TRUE(tracee->write({area->address}, std::as_bytes(std::span("hello", 5))));
      EXPECT_EQ(*tracee->read_value<char>({area->address + 4}), 'o');
      auto gone = tracee->detach();
      ASSERT_TRUE(gone) << gone.error().message();
      ++injected;
    }
  }
  EXPECT_GT(injected, 10);
  EXPECT_EQ(victim.finish(), "ok");
}
INSTANTIATE_TEST_SUITE_P(Victims, TraceeOnEveryVictim,
                         testing::Values("spin", "sleep", "futex", "poll", "epoll", "read", "suspend",
                                         "storm", "threads", "catchall", "seccomp"),
                         [](const auto& param) { return std::string(param.param); });

TEST(Tracee, Seize_KernelThread_Refused) {
  auto status = read_task_status(2);
  if (!status || !status->kernel_thread) GTEST_SKIP() << "needs: a visible kernel thread as PID 2";
  auto tracee = Tracee::seize(2);
  ASSERT_FALSE(tracee);
  EXPECT_EQ(tracee.error().code, Code::kUnsupported);
}

TEST(Tracee, Seize_AlreadyTraced_ConflictNamesTracer) {
  Victim victim({REMOTE_VICTIM, "spin"});
  pid_t pid = victim.pid();
  pid_t other = ::fork();
  if (other == 0) {
    if (::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0) ::_exit(1);
    ::pause();
  }
  for (int i = 0; i < 2000 && read_task_status(pid)->tracer == 0; ++i) ::usleep(1000);
  auto tracee = Tracee::seize(pid);
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  ASSERT_FALSE(tracee);
  EXPECT_EQ(tracee.error().code, Code::kConflict);
  EXPECT_NE(tracee.error().message().find(std::to_string(other)), std::string::npos);
  EXPECT_EQ(victim.finish(), "ok");
}

TEST(Tracee, Seize_NoSuchThread_Gone) {
  auto tracee = Tracee::seize(0x3ffffe);
  ASSERT_FALSE(tracee);
  EXPECT_EQ(tracee.error().code, Code::kTraceeGone);
}

TEST(Tracee, Inject_StoppedProgram_StaysStoppedAndContinuesLater) {
  Victim victim({REMOTE_VICTIM, "sleep"});
  ASSERT_TRUE(victim.ready());
  // Not a sleep that time away would shorten: stop it while it spins between sleeps or in one.
  ::kill(victim.pid(), SIGSTOP);
  for (int i = 0; i < 2000 && read_task_status(victim.pid())->state != 'T'; ++i) ::usleep(1000);
  for (int i = 0; i < 20; ++i) {
    auto tracee = Tracee::seize(victim.pid());
    ASSERT_TRUE(tracee);
    ASSERT_TRUE(tracee->stop());
    EXPECT_TRUE(tracee->group_stopped());
    EXPECT_EQ(*tracee->syscall(SYS_gettid), victim.pid());
    if (i % 2 == 0) {
      ASSERT_TRUE(tracee->resume());
      ::usleep(2000);
      ASSERT_TRUE(tracee->stop());
      EXPECT_TRUE(tracee->group_stopped());
    }
    ASSERT_TRUE(tracee->detach());
    char state = '?';
    for (int k = 0; k < 1000 && (state = read_task_status(victim.pid())->state) != 'T'; ++k) ::usleep(1000);
    EXPECT_EQ(state, 'T');
  }
  ::kill(victim.pid(), SIGCONT);
  EXPECT_EQ(victim.finish(), "ok");
}

TEST(Tracee, Stop_ParentInVfork_TimesOutAndEndOfThreadFreesIt) {
  Victim victim({REMOTE_VICTIM, "vfork"});
  ASSERT_TRUE(victim.ready());
  bool timed_out = false;
  for (int i = 0; i < 50 && !timed_out; ++i) {
    std::thread worker([&] {
      auto tracee = Tracee::seize(victim.pid());
      ASSERT_TRUE(tracee);
      auto stopped = tracee->stop(std::chrono::milliseconds(30));
      if (!stopped) {
        EXPECT_EQ(stopped.error().code, Code::kTimedOut);
        timed_out = true;
      }
    });
    worker.join();
  }
  EXPECT_TRUE(timed_out);
  EXPECT_EQ(victim.finish(), "ok");
}

TEST(Tracee, SetRegisters_RoundTrip_TakesEffect) {
  Victim victim({REMOTE_VICTIM, "spin"});
  auto tracee = Tracee::seize(victim.pid());
  ASSERT_TRUE(tracee);
  ASSERT_TRUE(tracee->stop());
  auto regs = *tracee->general_registers();
  auto vectors = *tracee->extended_state();
  ASSERT_TRUE(tracee->set_general_registers(regs));
  ASSERT_TRUE(tracee->set_extended_state(vectors));
  ASSERT_TRUE(tracee->set_signal_mask(*tracee->signal_mask()));
  ASSERT_TRUE(tracee->detach());
  EXPECT_EQ(victim.finish(), "ok");
}

TEST(Tracee, Inject_SlotIsGivenBack_VdsoUnchanged) {
  Victim victim({REMOTE_VICTIM, "spin"});
  auto tail = [&] {
    auto maps = read_proc("/proc/" + std::to_string(victim.pid()) + "/maps");
    auto at = maps->find("[vdso]");
    auto line = maps->rfind('\n', at) + 1;
    auto end = std::strtoull(maps->c_str() + maps->find('-', line) + 1, nullptr, 16);
    std::string bytes(4096, '\0');
    int fd = ::open(("/proc/" + std::to_string(victim.pid()) + "/mem").c_str(), O_RDONLY);
    EXPECT_EQ(::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(end - 4096)), 4096);
    ::close(fd);
    return bytes;
  };
  std::string before = tail();
  {
    auto tracee = Tracee::seize(victim.pid());
    ASSERT_TRUE(tracee->stop());
    ASSERT_TRUE(tracee->syscall(SYS_gettid));
    EXPECT_NE(tail(), before);
  }
  EXPECT_EQ(tail(), before);
  EXPECT_EQ(victim.finish(), "ok");
}

}  // namespace
}  // namespace baton::linux_backend
