// What a freeze does not read again because it is proved unchanged: whatever call a program
// makes between two captures, the second one shows what a capture that reads everything shows.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <sstream>
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
// More that is open at the start, in this order from number 10 on.
enum Open { kFile = 10, kPipeOut, kPipeIn, kPairA, kPairB, kUdp, kListening, kEvent, kTimer, kEpoll, kOneShot, kMemory, kDeleted, kFifo, kConnected, kAccepted, kDatagram, kOther, kSameFile, kEnd };
char* area = nullptr;
std::string file_name() { return "/tmp/unchanged_test." + std::to_string(::getppid()); }

std::string fifo_name() { return file_name() + ".fifo"; }
std::string held_name() { return file_name() + ".held"; }

void send_descriptor(int through, int what) {
  char byte = 'd';
  union { cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control{};
  iovec part{&byte, 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = &control;
  message.msg_controllen = sizeof control;
  control.head.cmsg_level = SOL_SOCKET;
  control.head.cmsg_type = SCM_RIGHTS;
  control.head.cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(&control.head), &what, sizeof what);
  ::sendmsg(through, &message, 0);
}
sockaddr_in address_of(int fd) {
  sockaddr_in own{};
  socklen_t bytes = sizeof own;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &bytes);
  return own;
}

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
      {"Duplicate", [] { ::dup2(file_at_start, 70); }},
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
      {"PipeWrite", [] { (void)!::write(kPipeIn, "ab", 2); }},
      {"PipeRead", [] { char c = 0; (void)!::read(kPipeOut, &c, 1); }},
      {"PipeThroughProc", [] { int fd = ::open("/proc/self/fd/12", O_WRONLY); (void)!::write(fd, "z", 1); ::close(fd); }},
      {"PipeSize", [] { ::fcntl(kPipeIn, 1031 /* F_SETPIPE_SZ */, 8192); }},
      {"PipeEnd", [] { ::close(kPipeIn); }},
      {"PairWrite", [] { (void)!::write(kPairA, "abc", 3); }},
      {"PairRead", [] { char c = 0; (void)!::recv(kPairB, &c, 1, 0); }},
      {"PairShut", [] { ::shutdown(kPairA, SHUT_WR); }},
      {"PairOption", [] { int one = 1; ::setsockopt(kPairA, SOL_SOCKET, SO_PASSCRED, &one, sizeof one); }},
      {"PairSendsDescriptor", [] { send_descriptor(kPairA, kEvent); }},
      {"PairReceivesDescriptor", [] { send_descriptor(kPairA, kFile); char c[8]; union { cmsghdr head; char room[64]; } control; iovec part{c, 8}; msghdr m{}; m.msg_iov = &part; m.msg_iovlen = 1; m.msg_control = &control; m.msg_controllen = sizeof control; ::recvmsg(kPairB, &m, 0); }},
      {"MessageWithoutDescriptor", [] { char c = 0; iovec part{&c, 1}; msghdr m{}; m.msg_iov = &part; m.msg_iovlen = 1; ::recvmsg(kPairB, &m, 0); }},
      {"Datagram", [] { (void)!::send(kUdp, "to myself", 9, 0); }},
      {"DatagramTaken", [] { char c[64]; (void)!::recv(kUdp, c, sizeof c, MSG_DONTWAIT); }},
      {"DatagramOption", [] { int value = 7; ::setsockopt(kUdp, IPPROTO_IP, IP_TTL, &value, sizeof value); }},
      {"UnixDatagram", [] { (void)!::send(kDatagram, "x", 1, 0); }},
      {"NewPair", [] { int both[2]; (void)!::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, both); (void)!::write(both[0], "1", 1); }},
      {"Listen", [] { ::listen(kListening, 77); }},
      {"EventRaised", [] { std::uint64_t n = 3; (void)!::write(kEvent, &n, sizeof n); }},
      {"EventTaken", [] { std::uint64_t n = 0; (void)!::read(kEvent, &n, sizeof n); }},
      {"TimerSet", [] { itimerspec when{{0, 0}, {5000, 0}}; ::timerfd_settime(kTimer, 0, &when, nullptr); }},
      {"EpollAdd", [] { epoll_event e{EPOLLIN, {.u64 = 12}}; ::epoll_ctl(kEpoll, EPOLL_CTL_ADD, kUdp, &e); }},
      {"EpollChange", [] { epoll_event e{EPOLLOUT, {.u64 = 13}}; ::epoll_ctl(kEpoll, EPOLL_CTL_MOD, kEvent, &e); }},
      {"EpollLosesClosed", [] { ::close(kEvent); }},
      {"EpollOneShot", [] { epoll_event e{}; (void)!::epoll_wait(kOneShot, &e, 1, 0); }},
      {"MemoryWritten", [] { (void)!::write(kMemory, "some more", 9); }},
      {"MemoryCutThroughProc", [] { int fd = ::open("/proc/self/fd/21", O_RDWR); (void)!::ftruncate(fd, 3); ::close(fd); }},
      {"MemorySealed", [] { ::fcntl(kMemory, F_ADD_SEALS, F_SEAL_GROW); }},
      {"DeletedWritten", [] { (void)!::write(kDeleted, "some more", 9); }},
      {"FifoWrittenByName", [] { int fd = ::open(fifo_name().c_str(), O_RDWR); (void)!::write(fd, "q", 1); ::close(fd); }},
      {"PositionByDuplicate", [] { int fd = ::dup(kFile); ::lseek(fd, 5, SEEK_SET); ::close(fd); }},
      {"PositionByControlledDuplicate", [] { int fd = ::fcntl(kFile, F_DUPFD_CLOEXEC, 40); ::lseek(fd, 6, SEEK_SET); ::close(fd); }},
      {"PositionBySendfile", [] { (void)!::sendfile(kPairA, kFile, nullptr, 4); }},
      {"PositionByCopy", [] { (void)!::copy_file_range(kFile, nullptr, kDeleted, nullptr, 3, 0); }},
      {"StatusFlags", [] { ::fcntl(kOther, F_SETFL, O_APPEND); }},
      {"NonBlocking", [] { int one = 1; ::ioctl(kUdp, FIONBIO, &one); }},
      {"Owner", [] { ::fcntl(kUdp, F_SETOWN, ::getpid()); }},
      {"Lock", [] { ::flock(kFile, LOCK_SH); }},
      {"RecordLock", [] { struct flock lock{F_WRLCK, SEEK_SET, 1, 2, 0}; ::fcntl(kOther, F_SETLK, &lock); }},
      {"RecordLockLostByClose", [] { struct flock lock{F_WRLCK, SEEK_SET, 1, 2, 0}; ::fcntl(kOther, F_SETLK, &lock); ::close(::open(file_name().c_str(), O_RDONLY)); }, false},
      {"HeldLockLostByClose", [] { ::close(::open(held_name().c_str(), O_RDONLY)); }},
      {"Swapped", [] { ::close(kFile); (void)!::open("/dev/zero", O_RDONLY); }},
      {"ReplacedByDup3", [] { ::dup3(kEvent, kSameFile, O_CLOEXEC); }},
      {"ComesAndGoes", [] { int fd = ::socket(AF_INET, SOCK_STREAM, 0); ::close(fd); fd = ::open("/etc/passwd", O_RDONLY); char c; (void)!::read(fd, &c, 1); ::close(fd); }, false},
      {"Connects", [] { sockaddr_in to = address_of(kListening); ::connect(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), reinterpret_cast<sockaddr*>(&to), sizeof to); ::usleep(10'000); }},
      {"ConnectionEnds", [] { ::close(kAccepted); }},
      {"Rename", [] { ::rename(file_name().c_str(), (file_name() + ".new").c_str()); }},
      {"Unlink", [] { ::unlink(file_name().c_str()); }},
      {"Folder", [] { char room[4096]; (void)!::syscall(SYS_getdents64, kEnd, room, sizeof room); }},
      {"OomByOldDescriptor", [] { (void)!::write(62, "8", 1); }},
      {"Oom", [] { std::ofstream("/proc/self/oom_score_adj") << 7; }},
      {"Nice", [] { (void)!::nice(3); }},
  };
  return list;
}

void put(int fd, int number) {
  if (fd == number) return;
  if (::dup2(fd, number) != number) ::_exit(96);
  ::close(fd);
}
int udp_to_itself() {
  int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in own{};
  own.sin_family = AF_INET;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(fd, reinterpret_cast<sockaddr*>(&own), sizeof own);
  own = address_of(fd);
  ::connect(fd, reinterpret_cast<sockaddr*>(&own), sizeof own);
  (void)!::send(fd, "first", 5, 0);
  return fd;
}
int listening() {
  int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in own{};
  own.sin_family = AF_INET;
  own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::bind(fd, reinterpret_cast<sockaddr*>(&own), sizeof own);
  ::listen(fd, 5);
  return fd;
}
int temporary(const std::string& name, bool keep) {
  int fd = ::open(name.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  (void)!::write(fd, "0123456789", 10);
  ::lseek(fd, 0, SEEK_SET);
  if (!keep) ::unlink(name.c_str());
  return fd;
}

void open_more() {
  int both[2];
  put(::open(file_name().c_str(), O_RDWR), kFile);
  (void)!::pipe2(both, O_NONBLOCK);
  put(both[0], kPipeOut);
  put(both[1], kPipeIn);
  (void)!::write(kPipeIn, "12345", 5);
  (void)!::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both);
  put(both[0], kPairA);
  put(both[1], kPairB);
  (void)!::write(kPairA, "12345", 5);
  put(udp_to_itself(), kUdp);
  put(listening(), kListening);
  put(::eventfd(4, EFD_NONBLOCK), kEvent);
  put(::timerfd_create(CLOCK_MONOTONIC, 0), kTimer);
  put(::epoll_create1(0), kEpoll);
  epoll_event readable{EPOLLIN, {.u64 = 1}};
  ::epoll_ctl(kEpoll, EPOLL_CTL_ADD, kEvent, &readable);
  put(::epoll_create1(0), kOneShot);
  epoll_event once{EPOLLIN | EPOLLONESHOT, {.u64 = 2}};
  ::epoll_ctl(kOneShot, EPOLL_CTL_ADD, kEvent, &once);
  put(static_cast<int>(::memfd_create("unchanged", MFD_ALLOW_SEALING)), kMemory);
  (void)!::write(kMemory, "0123456789", 10);
  put(temporary(file_name() + ".deleted", false), kDeleted);
  ::mkfifo(fifo_name().c_str(), 0600);
  put(::open(fifo_name().c_str(), O_RDWR), kFifo);
  (void)!::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both);
  put(both[0], kConnected);
  put(both[1], kAccepted);
  (void)!::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, both);
  put(both[0], kDatagram);
  put(both[1], 60);
  put(temporary(file_name() + ".other", true), kOther);
  put(::open(file_name().c_str(), O_RDONLY), kSameFile);
  put(::open("/tmp", O_RDONLY | O_DIRECTORY), kEnd);
  put(temporary(held_name(), true), 61);
  struct flock lock{F_WRLCK, SEEK_SET, 0, 4, 0};
  ::fcntl(61, F_SETLK, &lock);
  if (std::getenv("UNCHANGED_PROC") != nullptr) put(::open("/proc/self/oom_score_adj", O_WRONLY), 62);
}

[[noreturn]] void live(const std::vector<std::size_t>& numbers) {
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
  std::signal(SIGPIPE, SIG_IGN);
  open_more();
  std::signal(SIGUSR1, handler_one);
  std::signal(SIGUSR2, handler_one);
  void* place = ::mmap(const_cast<int*>(order), 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (place != const_cast<int*>(order)) ::_exit(98);
  area = static_cast<char*>(::mmap(nullptr, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (int i = 0; i < 4 << 20; i += 4096) area[i] = static_cast<char>(i >> 12);
  int now = 1;   // even: go on
  *order = now;
  for (std::size_t step : numbers) {
    while (*order == now) ::usleep(500);
    steps()[step].run();
    now += 2;
    *order = now;
  }
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
  target.spec.set_tcp(pb::TCP_CLOSE);
  return LinuxAttachment::attach(target);
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
  for (auto& f : *state.mutable_open_files()) {
    f.set_object(f.object() != 0 ? 1 : 0);   // counted by each attachment for itself
    f.set_timer_left_ns(f.timer_left_ns() != 0 ? 1 : 0);
  }
  return state.DebugString();
}

// What a capture shows: the state's essence, or why it is refused.
std::string capture(LinuxAttachment& attachment, ModelSink& sink) {
  pb::Manifest manifest;
  sink.begin(1u << 28);
  auto stats = attachment.capture({.verify = true}, sink, manifest);
  if (!stats && stats.error().code == Code::kUnsupported) return stats.error().message();
  EXPECT_TRUE(stats) << stats.error().message();
  if (!stats) return {};
  EXPECT_EQ(stats->verify_differences, 0u) << stats->verify_first;
  pb::LinuxState state;
  EXPECT_TRUE(state.ParseFromString(manifest.state()));
  return essence(std::move(state));
}

// The program of the next tests, in a process of its own.
TEST(UnchangedHelper, LivesAsToldByEnvironment) {
  const char* told = std::getenv("UNCHANGED_STEPS");
  if (told == nullptr) return;
  std::vector<std::size_t> numbers;
  std::istringstream words(told);
  for (std::size_t n = 0; words >> n;) numbers.push_back(n);
  live(numbers);
}

// Waits until it lives; it takes these steps when it is told to.
pid_t begin_program(const Group& group, const std::vector<std::size_t>& numbers) {
  std::string told;
  for (std::size_t n : numbers) told += std::to_string(n) + " ";
  const pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    ::setenv("UNCHANGED_STEPS", told.c_str(), 1);
    if (std::string(steps()[numbers.front()].name) == "OomByOldDescriptor") ::setenv("UNCHANGED_PROC", "1", 1);
    ::execl("/proc/self/exe", "unchanged_test", "--gtest_filter=UnchangedHelper.*", nullptr);
    ::_exit(97);
  }
  await_order(pid, 1);
  return pid;
}

void end_program(pid_t pid) {
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  const std::string name = "/tmp/unchanged_test." + std::to_string(::getpid());
  for (const char* end : {"", ".new", ".fifo", ".other", ".held"}) ::unlink((name + end).c_str());
}

// Captures it before and after each step, reading what is not proved unchanged, and at the end whole.
void expect_that_captures_show_all(const std::vector<std::size_t>& numbers) {
  Group group;
  const pid_t pid = begin_program(group, numbers);
  {
    auto watched = attach(pid, group.path(), "auto");
    ASSERT_TRUE(watched) << watched.error().message();
    ModelSink sink;
    std::string first = capture(**watched, sink);
    // Polling with nanosleep proves that nothing changed; this one is read in the short way.
    std::string before = capture(**watched, sink);
    EXPECT_EQ(first, before);
    std::string after = before;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const int value = static_cast<int>(2 * i);
      give_order(pid, value + 2);
      await_order(pid, value + 3);
      after = capture(**watched, sink);
    }
    if (numbers.size() == 1 && steps()[numbers.front()].lasting) {
      EXPECT_NE(after, before) << "the step left no trace";
    }
    watched->reset();
    auto full = attach(pid, "", "scan");
    ASSERT_TRUE(full) << full.error().message();
    ModelSink whole;
    EXPECT_EQ(after, capture(**full, whole));
  }
  end_program(pid);
}

class EveryStep : public testing::TestWithParam<std::size_t> {};

TEST_P(EveryStep, CaptureAfterIt_ShowsWhatAFullOneShows) {
  if (auto probed = probe_syscall_watch(); !probed) GTEST_SKIP() << "needs: " << probed.error().message();
  expect_that_captures_show_all({GetParam()});
}

class SomeSteps : public testing::TestWithParam<unsigned> {};

// Of those that concern descriptors: others are followed by a whole reading.
TEST_P(SomeSteps, CapturesBetweenThem_ShowWhatAFullOneShows) {
  if (auto probed = probe_syscall_watch(); !probed) GTEST_SKIP() << "needs: " << probed.error().message();
  std::mt19937 random(GetParam());
  std::vector<std::size_t> numbers;
  const auto first = static_cast<std::size_t>(std::find_if(steps().begin(), steps().end(), [](const Step& s) { return std::string(s.name) == "PipeWrite"; }) - steps().begin());
  std::string names;
  for (int i = 0; i < 8; ++i) {
    numbers.push_back(first + random() % (steps().size() - first));
    names += std::string(steps()[numbers.back()].name) + " ";
  }
  SCOPED_TRACE(names);
  expect_that_captures_show_all(numbers);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SomeSteps, testing::Range(1u, 41u));

INSTANTIATE_TEST_SUITE_P(Steps, EveryStep, testing::Range<std::size_t>(0, steps().size()),
                         [](const auto& param) { return std::string(steps()[param.param].name); });

// What others do to it is found by a look beside the running program.
TEST(Unchanged, WhatOthersChange_IsInTheCheckpointSoon) {
  if (auto probed = probe_syscall_watch(); !probed) GTEST_SKIP() << "needs: " << probed.error().message();
  struct Change { const char* name; std::function<void(pid_t)> make; };
  const std::string name = "/tmp/unchanged_test." + std::to_string(::getpid());
  const Change changes[] = {
      {"limit", [](pid_t pid) { rlimit limit{321, 654}; ASSERT_EQ(::prlimit(pid, RLIMIT_NOFILE, &limit, nullptr), 0); }},
      {"niceness", [](pid_t pid) { ASSERT_EQ(::setpriority(PRIO_PROCESS, static_cast<id_t>(pid), 5), 0); }},
      {"oom_score_adj", [](pid_t pid) { std::ofstream("/proc/" + std::to_string(pid) + "/oom_score_adj") << 9; }},
      {"affinity", [](pid_t pid) { cpu_set_t one; CPU_ZERO(&one); CPU_SET(0, &one); ASSERT_EQ(::sched_setaffinity(pid, sizeof one, &one), 0); }},
      {"renamed file", [&](pid_t) { ASSERT_EQ(::rename(name.c_str(), (name + ".new").c_str()), 0); }},
      {"deleted file", [&](pid_t) { ASSERT_EQ(::unlink((name + ".other").c_str()), 0); }},
  };
  Group group;
  const pid_t pid = begin_program(group, {0});
  auto watched = attach(pid, group.path(), "auto");
  ASSERT_TRUE(watched) << watched.error().message();
  ModelSink sink;
  std::string before = capture(**watched, sink);
  for (const auto& change : changes) {
    SCOPED_TRACE(change.name);
    change.make(pid);
    std::string after = before;
    for (int i = 0; i < 40 && after == before; ++i) {
      ::usleep(50'000);
      after = capture(**watched, sink);
    }
    EXPECT_NE(after, before);
    before = after;
  }
  watched->reset();
  auto full = attach(pid, "", "scan");
  ASSERT_TRUE(full) << full.error().message();
  ModelSink whole;
  EXPECT_EQ(before, capture(**full, whole));
  end_program(pid);
}

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

TEST(SyscallWatch, NumbersThatCallsName_AreNoted_UntilTheyAreForgotten) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    (void)!::read(200, nullptr, 0);
    ::close(201);
    int one = 1;
    ::setsockopt(202, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    ::fcntl(203, F_GETFL);
    ::fcntl(204, F_SETFL, 0);
    ::ioctl(205, FIONBIO, &one);
    ::ioctl(206, FIONREAD, &one);
    (void)!::sendfile(207, 208, nullptr, 0);
    (void)!::splice(209, nullptr, 210, nullptr, 0, 0);
    ::accept(211, nullptr, nullptr);
    (void)!::read(SyscallWatch::kNumbers + 212, nullptr, 0);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  std::set<int> moved, altered;
  for (int n = 200; n < 220; ++n) {
    if ((*watch)->moved(n)) moved.insert(n);
    if ((*watch)->altered(n)) altered.insert(n);
  }
  EXPECT_EQ(moved, (std::set<int>{200, 207, 208, 209, 210, 211, 212}));
  EXPECT_EQ(altered, (std::set<int>{201, 202, 204, 205}));
  (*watch)->forget();
  EXPECT_FALSE((*watch)->moved(200) || (*watch)->altered(201));
}

TEST(SyscallWatch, OpeningForWriting_CountsAsOther_WhereItMayBeAWindowOfTheKernel) {
  auto probed = probe_syscall_watch();
  if (!probed) GTEST_SKIP() << "needs: " << probed.error().message();
  Group group;
  auto watch = SyscallWatch::begin(group.path());
  ASSERT_TRUE(watch) << watch.error().message();
  struct Case { const char* path; int flags; bool other; };
  const Case cases[] = {
      {"/proc/self/oom_score_adj", O_RDWR, true}, {"/sys/none", O_WRONLY, true}, {"/dev/null", O_WRONLY, true}, {"none", O_WRONLY, true},
      {"", O_RDWR, true}, {nullptr, O_RDWR, true}, {"/tmp/none/none", O_RDWR | O_CREAT, false}, {"/proc/self/stat", O_RDONLY, false},
      {"none", O_RDONLY, false}};
  pid_t pid = ::fork();
  if (pid == 0) {
    group.join();
    int wrong = 0;
    for (const auto& one : cases) {
      for (long call : {SYS_openat, SYS_open}) {
        auto before = (*watch)->read();
        if (call == SYS_open) ::syscall(call, one.path, one.flags, 0600);
        else ::syscall(call, AT_FDCWD, one.path, one.flags, 0600);
        auto after = (*watch)->read();
        wrong += after.other - before.other != (one.other ? 1u : 0u) || after.descriptor - before.descriptor != (one.other ? 0u : 1u);
      }
    }
    ::_exit(wrong);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
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
