// What a freeze does not read again because it is proved unchanged: whatever call a program
// makes between two captures, the second one shows what a capture that reads everything shows.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "agent/backend/linux/attachment.h"
#include "agent/backend/linux/remote/syscall_watch.h"
#include "base/cgroup.h"
#include "tests/contract/tracker/model_sink.h"

namespace baton::linux_backend {
namespace {

using test::ModelSink;

// A cgroup of its own; its processes are killed with it.
class Group {
 public:
  Group() : group_(Cgroup::at(*Cgroup::mount_point() + "/baton-unchanged-test-" + std::to_string(::getpid()))) {
    EXPECT_TRUE(group_.make());
  }
  ~Group() {
    EXPECT_TRUE(group_.kill());
    EXPECT_TRUE(group_.wait_empty(std::chrono::seconds(10)));
    EXPECT_TRUE(group_.remove());
  }
  const std::string& path() const { return group_.path(); }
  // In a child that was forked from here.
  void join() const {
    if (!group_.add(::getpid())) ::_exit(99);
  }

 private:
  Cgroup group_;
};

// One step of a program's life between two captures.
struct Step {
  const char* name;
  std::function<void()> run;
  bool lasting = true;      // the state shows it
};

// Of the program, at the same place in both: written from outside, without a call of its own.
volatile int* const order = reinterpret_cast<volatile int*>(0x10000000000);
int file_at_start = -1;
char* area = nullptr;
std::string file_name() { return "/tmp/unchanged_test." + std::to_string(::getppid()); }

void handler_one(int) {}
void handler_two(int) {}

const std::vector<Step>& steps() {
  static const std::vector<Step> list = {
      {"Nothing", [] {}, false},
      {"Handler", [] { std::signal(SIGUSR1, handler_two); }},
      {"WorkingDirectory", [] { (void)!::chdir("/tmp"); }},
      {"Umask", [] { ::umask(0123); }},
      {"Limit", [] { rlimit limit{111, 222}; ::setrlimit(RLIMIT_NOFILE, &limit); }},
      {"Name", [] { ::prctl(PR_SET_NAME, "renamed"); }},
      {"ParentDeathSignal", [] { ::prctl(PR_SET_PDEATHSIG, SIGUSR2); }},
      {"AlternateStack", [] { stack_t stack{area, 0, 65536}; ::sigaltstack(&stack, nullptr); }},
      {"BlockedSignals", [] { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); ::sigprocmask(SIG_BLOCK, &set, nullptr); }},
      {"PendingSignal", [] { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); ::sigprocmask(SIG_BLOCK, &set, nullptr); ::raise(SIGUSR2); }},
      {"Timer", [] { itimerval timer{{1000, 0}, {1000, 0}}; ::setitimer(ITIMER_REAL, &timer, nullptr); }},
      {"Open", [] { ::open("/dev/null", O_RDONLY); }},
      {"Close", [] { ::close(file_at_start); }},
      {"Duplicate", [] { ::dup2(file_at_start, 17); }},
      {"DescriptorFlag", [] { ::fcntl(file_at_start, F_SETFD, FD_CLOEXEC); }},
      {"Position", [] { ::lseek(file_at_start, 3, SEEK_SET); }},
      {"Write", [] { (void)!::write(file_at_start, "abc", 3); }},
      {"Socket", [] { ::socket(AF_UNIX, SOCK_STREAM, 0); }},
      {"Event", [] { int fd = ::eventfd(5, 0); std::uint64_t two = 2; (void)!::write(fd, &two, sizeof two); }},
      {"Epoll", [] { int set = ::epoll_create1(0), fd = ::eventfd(0, 0); epoll_event e{EPOLLIN, {.u64 = 9}}; ::epoll_ctl(set, EPOLL_CTL_ADD, fd, &e); }},
      {"Pipe", [] { int ends[2]; (void)!::pipe(ends); (void)!::write(ends[1], "hello", 5); }},
      {"Map", [] { auto* p = static_cast<char*>(::mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); p[5000] = 1; }},
      {"Unmap", [] { ::munmap(area + 65536, 65536); }},
      {"Protect", [] { ::mprotect(area + 65536, 65536, PROT_READ); }},
      {"GiveBack", [] { ::madvise(area, 2 << 20, MADV_DONTNEED); }, false},
      {"Break", [] { (void)!::sbrk(100); }},
      {"Thread", [] { std::thread([] { for (;;) ::pause(); }).detach(); ::usleep(20'000); }},
      {"Child", [] { if (::fork() == 0) for (;;) ::pause(); ::usleep(20'000); }},
      {"Zombie", [] { if (::fork() == 0) ::_exit(3); ::usleep(20'000); }},
      {"Oom", [] { std::ofstream("/proc/self/oom_score_adj") << 7; }},
      {"Nice", [] { (void)!::nice(3); }},
  };
  return list;
}

[[noreturn]] void live(std::size_t step) {
  ::setsid();
  int null = ::open("/dev/null", O_RDWR);
  for (int fd : {0, 1, 2}) ::dup2(null, fd);
  file_at_start = ::open(file_name().c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  (void)!::write(file_at_start, "0123456789", 10);
  int kept = ::dup2(file_at_start, 5);
  if (kept != file_at_start) ::close(file_at_start);
  file_at_start = kept;
  ::close_range(6, ~0u, 0);
  ::close_range(3, 4, 0);
  std::signal(SIGUSR1, handler_one);
  std::signal(SIGUSR2, handler_one);
  void* place = ::mmap(const_cast<int*>(order), 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (place != const_cast<int*>(order)) ::_exit(98);
  area = static_cast<char*>(::mmap(nullptr, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < 4 << 20; i += 4096) area[i] = static_cast<char>(i >> 12);
  *order = 1;
  while (*order == 1) ::usleep(500);
  steps()[step].run();
  *order = 3;
  for (;;) ::usleep(500);
}

int read_order(pid_t pid) {
  int value = -1;
  iovec local{&value, sizeof value}, remote{const_cast<int*>(order), sizeof value};
  return ::process_vm_readv(pid, &local, 1, &remote, 1, 0) == sizeof value ? value : -1;
}
void await_order(pid_t pid, int wanted) {
  for (int i = 0; i < 20000 && read_order(pid) != wanted; ++i) ::usleep(500);
  ASSERT_EQ(read_order(pid), wanted);
}
void give_order(pid_t pid, int value) {
  iovec local{&value, sizeof value}, remote{const_cast<int*>(order), sizeof value};
  ASSERT_EQ(::process_vm_writev(pid, &local, 1, &remote, 1, 0), static_cast<ssize_t>(sizeof value));
}

Result<std::unique_ptr<LinuxAttachment>> attach(pid_t pid, const std::string& cgroup, const char* tracker) {
  backend::AttachTarget target;
  target.root = pid;
  target.cgroup = cgroup;
  target.tracker = tracker;
  target.spec.set_name("test");
  target.spec.set_verify(true);
  return LinuxAttachment::attach(target);
}

pb::LinuxState capture(LinuxAttachment& attachment, ModelSink& sink) {
  pb::Manifest manifest;
  sink.begin(1u << 28);
  auto stats = attachment.capture({.verify = true}, sink, manifest);
  pb::LinuxState state;
  EXPECT_TRUE(stats) << stats.error().message();
  if (!stats) return state;
  EXPECT_EQ(stats->verify_differences, 0u) << stats->verify_first;
  EXPECT_TRUE(state.ParseFromString(manifest.state()));
  return state;
}

// While it is tracked, memory that was added to a mapping is a mapping of its own until it is
// tracked too: neighbours that differ in nothing else count as one.
void join_neighbours(pb::ProcessState& process) {
  pb::ProcessState joined;
  for (const auto& m : process.mappings()) {
    auto* last = joined.mappings_size() > 0 ? joined.mutable_mappings(joined.mappings_size() - 1) : nullptr;
    if (last != nullptr && last->end() == m.start() && last->prot() == m.prot() && last->flags() == m.flags() &&
        last->kind() == m.kind() && m.kind() == pb::MAPPING_ANONYMOUS && last->name() == m.name()) {
      last->set_end(m.end());
    } else {
      *joined.add_mappings() = m;
    }
  }
  process.mutable_mappings()->Swap(joined.mutable_mappings());
}

// Without what goes on by itself.
std::string essence(pb::LinuxState state) {
  state.clear_monotonic_ns();
  state.clear_boottime_ns();
  state.clear_realtime_ns();
  for (auto& p : *state.mutable_processes()) {
    p.clear_memory_object();
    // Read beside the program once a second (AddressSpace::refresh_flags), before neighbours are joined.
    for (auto& m : *p.mutable_mappings()) m.clear_vm_flags();
    join_neighbours(p);
    for (auto& t : *p.mutable_itimers()) t.clear_left_ns();
    for (auto& t : *p.mutable_threads()) {
      t.clear_registers();
      t.clear_xsave();
      t.clear_has_sleep_left();
      t.clear_sleep_left_ns();
      t.clear_restart_call();
    }
  }
  return state.DebugString();
}

// The program of the next test, in a process of its own.
TEST(UnchangedHelper, LivesAsToldByEnvironment) {
  const char* step = std::getenv("UNCHANGED_STEP");
  if (step != nullptr) live(static_cast<std::size_t>(std::atoi(step)));
}

class EveryStep : public testing::TestWithParam<std::size_t> {};

TEST_P(EveryStep, CaptureAfterIt_ShowsWhatAFullOneShows) {
  if (auto probed = probe_syscall_watch(); !probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    ::setenv("UNCHANGED_STEP", std::to_string(GetParam()).c_str(), 1);
    ::execl("/proc/self/exe", "unchanged_test", "--gtest_filter=UnchangedHelper.*", nullptr);
    ::_exit(97);
  }
  await_order(pid, 1);
  {
    auto watched = attach(pid, group.path(), "auto");
    ASSERT_TRUE(watched) << watched.error().message();
    ModelSink sink;
    pb::LinuxState first = capture(**watched, sink);
    // Polling with nanosleep proves that nothing changed; this one is read in the short way.
    pb::LinuxState second = capture(**watched, sink);
    EXPECT_EQ(essence(first), essence(second));
    give_order(pid, 2);
    await_order(pid, 3);
    std::string after = essence(capture(**watched, sink));
    if (steps()[GetParam()].lasting) {
      EXPECT_NE(after, essence(second)) << "the step left no trace";
    }
    watched->reset();
    auto full = attach(pid, "", "scan");
    ASSERT_TRUE(full) << full.error().message();
    ModelSink whole;
    EXPECT_EQ(after, essence(capture(**full, whole)));
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  ::unlink(("/tmp/unchanged_test." + std::to_string(::getpid())).c_str());
}

INSTANTIATE_TEST_SUITE_P(Steps, EveryStep, testing::Range<std::size_t>(0, steps().size()),
                         [](const auto& param) { return std::string(steps()[param.param].name); });

TEST(SyscallWatch, Calls_AreCountedByKind_AndOnlyInThisCgroup) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  for (int i = 0; i < 1000; ++i) ::getppid();
  EXPECT_EQ((*watch)->read().all(), 0u);
  int out[2];
  ASSERT_EQ(::pipe(out), 0);
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    SyscallWatch::Counts counts[5];
    counts[0] = (*watch)->read();
    for (int i = 0; i < 100; ++i) ::getppid();
    counts[1] = (*watch)->read();
    for (int i = 0; i < 50; ++i) (void)!::write(out[1], "", 0);
    counts[2] = (*watch)->read();
    for (int i = 0; i < 20; ++i) ::madvise(nullptr, 0, MADV_NORMAL);
    counts[3] = (*watch)->read();
    for (int i = 0; i < 10; ++i) ::umask(022);
    ::syscall(100'000);                       // no such call
    ::waitpid(-1, nullptr, WNOHANG);          // ECHILD: nothing happened
    counts[4] = (*watch)->read();
    (void)!::write(out[1], counts, sizeof counts);
    ::_exit(0);
  }
  SyscallWatch::Counts counts[5];
  ASSERT_EQ(::read(out[0], counts, sizeof counts), static_cast<ssize_t>(sizeof counts));
  ::waitpid(pid, nullptr, 0);
  ::close(out[0]);
  ::close(out[1]);
  EXPECT_EQ(counts[1].harmless - counts[0].harmless, 100u);
  EXPECT_EQ(counts[2].transfer - counts[1].transfer, 50u);
  EXPECT_EQ(counts[3].mapping - counts[2].mapping, 20u);
  EXPECT_EQ(counts[4].other - counts[3].other, 11u);
  EXPECT_EQ(counts[4].harmless, counts[1].harmless);
}

TEST(SyscallWatch, FolderThatIsNoCgroup_IsRefused) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  auto watch = SyscallWatch::begin("/tmp");
  ASSERT_FALSE(watch);
  EXPECT_EQ(watch.error().code, Code::kUnsupported);
}

TEST(SyscallWatch, WatchedAlready_IsRefused_AndTheFirstGoesOn) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_FALSE(SyscallWatch::begin(group.path()));
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    for (int i = 0; i < 10; ++i) ::getppid();
    ::_exit((*watch)->read().harmless >= 10 ? 0 : 1);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  watch->reset();
  EXPECT_TRUE(SyscallWatch::begin(group.path()));
}

TEST(SyscallWatch, ProcessKilledFromOutside_CountsAsOther) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    (void)!::write(ready[1], "r", 1);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  auto before = (*watch)->read().other;
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_EQ((*watch)->read().other - before, 1u);
}

TEST(SyscallWatch, CallByAnotherInstruction_CountsAsOther) {
#ifdef __x86_64__
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    auto before = (*watch)->read().other;
    long answer = 0;
    asm volatile("int $0x80" : "=a"(answer) : "a"(39) : "memory");   // i386: mkdir; x86-64: getpid
    ::_exit((*watch)->read().other - before == 1 ? 0 : 1);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  // A kernel without 32-bit calls ends it with SIGSEGV.
  if (WIFSIGNALED(status)) GTEST_SKIP() << "needs: int 0x80";
  EXPECT_EQ(WEXITSTATUS(status), 0);
#else
  GTEST_SKIP() << "needs: x86-64";
#endif
}

}  // namespace
}  // namespace baton::linux_backend
