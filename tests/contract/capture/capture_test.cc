// Attaches to programs that check themselves, freezes them again and again, and verifies each
// checkpoint byte by byte against the frozen program: no difference, and the program unharmed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "agent/backend/linux/attachment.h"
#include "agent/backend/linux/remote/proc.h"
#include "tests/contract/tracker/model_sink.h"

namespace baton::linux_backend {
namespace {

using test::ModelSink;

// A program with nothing that ties it to the test: files for input and output, its own session.
class Program {
 public:
  explicit Program(std::vector<std::string> argv) {
    base_ = "/tmp/capture_test." + std::to_string(::getpid()) + "." + std::to_string(++number_);
    for (auto& a : argv) {
      if (a == "END") a = base_ + ".end";
    }
    pid_ = ::fork();
    if (pid_ == 0) {
      int out = ::open((base_ + ".out").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      int in = ::open("/dev/null", O_RDONLY);
      ::dup2(in, 0);
      ::dup2(out, 1);
      ::dup2(out, 2);
      ::close_range(3, ~0u, 0);
      ::setsid();
      std::vector<char*> args;
      for (auto& a : argv) args.push_back(a.data());
      args.push_back(nullptr);
      ::execv(args[0], args.data());
      ::_exit(127);
    }
    for (int i = 0; i < 20000 && output().find("ready") == std::string::npos; ++i) ::usleep(1000);
  }
  ~Program() {
    if (pid_ > 0) {
      ::kill(-pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    ::unlink((base_ + ".out").c_str());
    ::unlink((base_ + ".end").c_str());
  }
  pid_t pid() const { return pid_; }
  std::string output() const {
    std::ifstream in(base_ + ".out");
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Its last words.
  std::string finish() {
    std::ofstream(base_ + ".end").put('x');
    int status = 0;
    for (int i = 0; i < 20000; ++i) {
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        std::string text = output();
        if (WIFSIGNALED(status)) text += " killed by signal " + std::to_string(WTERMSIG(status));
        auto at = text.find('\n');
        return at == std::string::npos ? text : text.substr(at + 1);
      }
      ::usleep(1000);
    }
    return "does not end";
  }

 private:
  static inline int number_ = 0;
  std::string base_;
  pid_t pid_ = -1;
};

Result<std::unique_ptr<LinuxAttachment>> attach(pid_t pid, const std::string& tracker) {
  backend::AttachTarget target;
  target.root = pid;
  target.tracker = tracker;
  target.spec.set_name("test");
  target.spec.set_verify(true);
  return LinuxAttachment::attach(target);
}

struct Case {
  const char* mode;
  const char* tracker;
};
class EveryVictim : public testing::TestWithParam<Case> {};

TEST_P(EveryVictim, Capture_Verified_NoDifferenceAndProgramUnharmed) {
  Program program({REMOTE_VICTIM, GetParam().mode, "END"});
  auto attachment = attach(program.pid(), GetParam().tracker);
  ASSERT_TRUE(attachment) << attachment.error().message();
  ModelSink sink;
  int captured = 0;
  for (int i = 0; i < 25; ++i) {
    sink.begin(i % 3 == 1 ? 20 : 1u << 28);
    if (i % 2 == 1) {
      auto round = (*attachment)->round(sink, {});
      ASSERT_TRUE(round) << round.error().message();
    }
    sink.begin(1u << 28);
    pb::Manifest manifest;
    auto stats = (*attachment)->capture({.verify = true}, sink, manifest);
    if (!stats) {
      // A freeze may meet a vfork that takes its time.
      ASSERT_EQ(stats.error().code, Code::kTimedOut) << stats.error().message();
      continue;
    }
    ++captured;
    ASSERT_EQ(stats->verify_differences, 0u) << stats->verify_first;
    EXPECT_GT(stats->verify_pages, 100u);
    pb::LinuxState state;
    ASSERT_TRUE(state.ParseFromString(manifest.state()));
    EXPECT_GE(state.processes_size(), 1);
    EXPECT_GE(manifest.objects_size(), 1);
    EXPECT_GT(state.processes(0).mappings_size(), 5);
    EXPECT_NE(state.processes(0).layout().brk(), 0u);
    EXPECT_FALSE(state.processes(0).layout().auxv().empty());
  }
  EXPECT_GT(captured, 15);
  EXPECT_EQ(read_task_status(program.pid())->tracer, 0);
  EXPECT_EQ(program.finish(), "ok\n");
}
INSTANTIATE_TEST_SUITE_P(
    Victims, EveryVictim,
    testing::Values(Case{"spin", "wp-async"}, Case{"sleep", "wp-async"}, Case{"futex", "wp-async"},
                    Case{"poll", "wp-async"}, Case{"storm", "wp-async"}, Case{"threads", "wp-async"},
                    Case{"catchall", "wp-async"}, Case{"spawn", "wp-async"}, Case{"memory", "wp-async"},
                    Case{"memory", "scan"}, Case{"threads", "scan"}, Case{"spawn", "scan"}),
    [](const auto& param) {
      return std::string(param.param.mode) + (std::string(param.param.tracker) == "scan" ? "_scan" : "");
    });

TEST(Capture, Python_Threads_Verified) {
  Program program({"/usr/bin/python3", "-c",
                   "import threading,os,sys,time\n"
                   "d={}\n"
                   "def f(n):\n"
                   "  i=0\n"
                   "  while not os.path.exists(sys.argv[1]):\n"
                   "    d[(n,i%5000)]=str(i)*3; i+=1\n"
                   "t=[threading.Thread(target=f,args=(n,)) for n in range(3)]\n"
                   "print('ready',flush=True)\n"
                   "[x.start() for x in t]; [x.join() for x in t]\n"
                   "print('ok')\n", "END"});
  auto attachment = attach(program.pid(), "auto");
  ASSERT_TRUE(attachment) << attachment.error().message();
  ModelSink sink;
  for (int i = 0; i < 10; ++i) {
    pb::Manifest manifest;
    sink.begin(1u << 28);
    auto stats = (*attachment)->capture({.verify = true}, sink, manifest);
    ASSERT_TRUE(stats) << stats.error().message();
    ASSERT_EQ(stats->verify_differences, 0u) << stats->verify_first;
    ::usleep(20000);
  }
  EXPECT_EQ(program.finish(), "ok\n");
}

TEST(Capture, SinkTooSmall_NoSpace_ProgramRunsAndNothingIsLost) {
  Program program({REMOTE_VICTIM, "memory", "END"});
  auto attachment = attach(program.pid(), "auto");
  ASSERT_TRUE(attachment) << attachment.error().message();
  ModelSink sink;
  pb::Manifest manifest;
  for (int i = 0; i < 20; ++i) {
    sink.begin(10);
    auto stats = (*attachment)->capture({.verify = true}, sink, manifest);
    ASSERT_FALSE(stats);
    EXPECT_EQ(stats.error().code, Code::kNoSpace);
  }
  sink.begin(1u << 28);
  auto limited = (*attachment)->capture({.verify = true, .max_pending_pages = 5}, sink, manifest);
  ASSERT_FALSE(limited);
  EXPECT_EQ(limited.error().code, Code::kNoSpace);
  auto stats = (*attachment)->capture({.verify = true}, sink, manifest);
  ASSERT_TRUE(stats) << stats.error().message();
  EXPECT_EQ(stats->verify_differences, 0u) << stats->verify_first;
  EXPECT_EQ(program.finish(), "ok\n");
}

TEST(Capture, KeepFrozen_ThawAndDestroy) {
  Program program({REMOTE_VICTIM, "threads", "END"});
  auto attachment = attach(program.pid(), "auto");
  ASSERT_TRUE(attachment) << attachment.error().message();
  ModelSink sink;
  pb::Manifest manifest;
  ASSERT_TRUE((*attachment)->capture({.keep_frozen = true}, sink, manifest));
  EXPECT_EQ(read_task_status(program.pid())->state, 't');
  EXPECT_FALSE((*attachment)->capture({}, sink, manifest));
  ASSERT_TRUE((*attachment)->thaw());
  EXPECT_EQ(read_task_status(program.pid())->tracer, 0);
  ASSERT_TRUE((*attachment)->capture({.keep_frozen = true}, sink, manifest));
  auto destroyed = (*attachment)->destroy();
  EXPECT_TRUE(destroyed) << destroyed.error().message();
  // Gone, or a zombie that its parent has not reaped yet.
  auto dead = [&] {
    auto status = read_task_status(program.pid());
    return !status || status->state == 'Z' || status->state == 'X';
  };
  for (int i = 0; i < 500 && !dead(); ++i) ::usleep(10'000);
  EXPECT_TRUE(dead());
}

// The other half of the next test: attaches and captures once, in a process of its own.
TEST(CaptureHelper, AttachAsToldByEnvironment) {
  const char* pid = std::getenv("CAPTURE_TEST_PID");
  if (pid == nullptr) return;
  auto attachment = attach(std::atoi(pid), "wp-async");
  ASSERT_TRUE(attachment) << attachment.error().message();
  ModelSink sink;
  pb::Manifest manifest;
  ASSERT_TRUE((*attachment)->round(sink, {}));
  ASSERT_TRUE((*attachment)->capture({}, sink, manifest));
}

TEST(Capture, TracerKilledAtEveryPoint_ProgramUnharmedAndCapturedAgain) {
  Program program({REMOTE_VICTIM, "memory", "END"});
  for (const char* point : {"track.uffd_made", "round.collected", "capture.begin", "freeze.asked",
                            "capture.frozen", "capture.copied", "capture.state_read"}) {
    pid_t pid = ::fork();
    if (pid == 0) {
      ::setenv("CAPTURE_TEST_PID", std::to_string(program.pid()).c_str(), 1);
      ::setenv("BATON_FAULT", (std::string(point) + "=kill").c_str(), 1);
      ::execl("/proc/self/exe", "capture_test", "--gtest_filter=CaptureHelper.*", nullptr);
      ::_exit(127);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << point << " status " << status;
    auto attachment = attach(program.pid(), "wp-async");
    ASSERT_TRUE(attachment) << point << ": " << attachment.error().message();
    ModelSink sink;
    pb::Manifest manifest;
    auto stats = (*attachment)->capture({.verify = true}, sink, manifest);
    ASSERT_TRUE(stats) << point << ": " << stats.error().message();
    EXPECT_EQ(stats->verify_differences, 0u) << stats->verify_first;
    for (int fd = 3; fd < 12; ++fd) {
      EXPECT_NE(::access(("/proc/" + std::to_string(program.pid()) + "/fd/" + std::to_string(fd)).c_str(), F_OK), 0)
          << point << ": descriptor " << fd << " was left in the program";
    }
  }
  EXPECT_EQ(program.finish(), "ok\n");
}

TEST(Capture, ProgramEnds_TraceeGone) {
  auto program = std::make_unique<Program>(std::vector<std::string>{REMOTE_VICTIM, "spin", "END"});
  auto attachment = attach(program->pid(), "auto");
  ASSERT_TRUE(attachment) << attachment.error().message();
  program.reset();
  ModelSink sink;
  pb::Manifest manifest;
  auto stats = (*attachment)->capture({}, sink, manifest);
  ASSERT_FALSE(stats);
  EXPECT_EQ(stats.error().code, Code::kTraceeGone);
}

}  // namespace
}  // namespace baton::linux_backend
