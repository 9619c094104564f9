// baton-keeper: the init of one workload's PID namespace. Small, static, without threads
// and without allocation after its start.
//
// It makes the namespaces, starts or hosts the program, moves what the program writes to
// stdout and stderr into the log, reaps, and when the program's root has ended leaves its
// wait status and ends, with which the kernel ends all that is left. While it is being set
// up, the end of the control pair (the starter died) ends everything too.
//
// Refuses to do anything but that: no signals are forwarded, no network is touched beyond `lo`.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/backend/linux/restore/keeper_protocol.h"

namespace {

using namespace baton::restore;

KeeperConfig config;
alignas(8) char message[kMaxKeeperMessage];
int log_fd = -1;
uint64_t log_bytes = 0;
pid_t root = 0;
bool root_ended = false;

[[noreturn]] void fail(KeeperStep step) {
  KeeperResult result{KeeperOp::kResult, step, errno};
  ::send(kKeeperControl, &result, sizeof result, MSG_NOSIGNAL);
  ::_exit(111);
}

// With the sender's credentials, which the receiver sees as of its own PID namespace.
void say(KeeperOp op) {
  iovec part{&op, sizeof op};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_CREDENTIALS;
  c->cmsg_len = CMSG_LEN(sizeof(ucred));
  ucred me{::getpid(), ::getuid(), ::getgid()};
  memcpy(CMSG_DATA(c), &me, sizeof me);
  ::sendmsg(kKeeperControl, &header, MSG_NOSIGNAL);
}

long clone_process(uint64_t flags, pid_t want, uint64_t exit_signal) {
  clone_args args{};
  args.flags = flags;
  args.exit_signal = exit_signal;
  if (want > 0) {
    args.set_tid = reinterpret_cast<uint64_t>(&want);
    args.set_tid_size = 1;
  }
  return ::syscall(SYS_clone3, &args, sizeof args);
}

void enter_time_namespace() {
  if (::unshare(CLONE_NEWTIME) != 0) fail(KeeperStep::kTimeNamespace);
  char text[160];
  auto seconds = [](int64_t ns) { return static_cast<long long>((ns - (((ns % 1000000000) + 1000000000) % 1000000000)) / 1000000000); };
  auto rest = [](int64_t ns) { return static_cast<long long>(((ns % 1000000000) + 1000000000) % 1000000000); };
  int n = snprintf(text, sizeof text, "monotonic %lld %lld\nboottime %lld %lld\n",
                   seconds(config.monotonic_offset_ns), rest(config.monotonic_offset_ns),
                   seconds(config.boottime_offset_ns), rest(config.boottime_offset_ns));
  int fd = ::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || ::write(fd, text, static_cast<size_t>(n)) != n) fail(KeeperStep::kTimeNamespace);
  ::close(fd);
}

void bring_loopback_up() {
  int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq request{};
  strcpy(request.ifr_name, "lo");
  if (fd < 0 || ::ioctl(fd, SIOCGIFFLAGS, &request) != 0) fail(KeeperStep::kNetwork);
  request.ifr_flags |= IFF_UP;
  if (::ioctl(fd, SIOCSIFFLAGS, &request) != 0) fail(KeeperStep::kNetwork);
  ::close(fd);
}

void open_log() {
  log_fd = ::open(config.log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
  if (log_fd < 0) fail(KeeperStep::kLog);
  struct stat st{};
  if (::fstat(log_fd, &st) == 0) log_bytes = static_cast<uint64_t>(st.st_size);
}

void rotate_log() {
  char old[kMaxPath + 3];
  snprintf(old, sizeof old, "%s.1", config.log_path);
  ::rename(config.log_path, old);
  int fd = ::open(config.log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
  if (fd < 0) return;  // goes on in the old one
  ::close(log_fd);
  log_fd = fd;
  log_bytes = 0;
}

void make_pipes() {
  int pair[2];
  const int ends[2][2] = {{kKeeperOutRead, kKeeperOutWrite}, {kKeeperErrRead, kKeeperErrWrite}};
  for (const auto& end : ends) {
    if (::pipe2(pair, O_CLOEXEC) != 0) fail(KeeperStep::kPipes);
    int high_read = ::fcntl(pair[0], F_DUPFD_CLOEXEC, 40), high_write = ::fcntl(pair[1], F_DUPFD_CLOEXEC, 40);
    if (high_read < 0 || high_write < 0) fail(KeeperStep::kPipes);
    ::close(pair[0]);
    ::close(pair[1]);
    if (::dup3(high_read, end[0], O_CLOEXEC) < 0 || ::dup3(high_write, end[1], O_CLOEXEC) < 0) fail(KeeperStep::kPipes);
    ::close(high_read);
    ::close(high_write);
    ::fcntl(end[0], F_SETFL, O_NONBLOCK);
  }
}

// True when something was moved.
bool drain(int from) {
  static char buffer[65536];
  ssize_t n = ::read(from, buffer, sizeof buffer);
  if (n <= 0) return false;
  if (log_bytes + static_cast<uint64_t>(n) > kLogRotateBytes) rotate_log();
  for (ssize_t done = 0; done < n;) {
    ssize_t written = ::write(log_fd, buffer + done, static_cast<size_t>(n - done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;  // a full disk loses log lines, never the program
    done += written;
    log_bytes += static_cast<uint64_t>(written);
  }
  return true;
}

[[noreturn]] void finish(int status) {
  // Children may still write: take what is there, not what may come.
  for (int i = 0; i < 64 && (drain(kKeeperOutRead) | drain(kKeeperErrRead)); ++i) {}
  char path[kMaxPath + 5], text[16];
  snprintf(path, sizeof path, "%s.new", config.exit_path);
  int n = snprintf(text, sizeof text, "%d\n", status);
  int fd = ::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
  if (fd >= 0) {
    bool good = ::write(fd, text, static_cast<size_t>(n)) == n && ::fsync(fd) == 0;
    ::close(fd);
    if (good) ::rename(path, config.exit_path);
  }
  ::_exit(0);
}

void reap() {
  int status = 0;
  for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG | __WALL)) > 0;) {
    if (root_ended || pid != root) continue;
    root_ended = true;
    finish(status);
  }
}

// A process for the builder to take over: its own copy of nothing, waiting.
[[noreturn]] void be_blank(const KeeperSpawn& spawn) {
  void* at = ::mmap(reinterpret_cast<void*>(spawn.area), spawn.area_bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (at != reinterpret_cast<void*>(spawn.area)) fail(KeeperStep::kFork);
  say(KeeperOp::kBlank);
  ::close(kKeeperControl);
  for (;;) ::pause();
}

void spawn_blank(const KeeperSpawn& spawn) {
  long pid = clone_process(0, spawn.pid, SIGCHLD);
  if (pid < 0) fail(KeeperStep::kFork);
  if (pid == 0) be_blank(spawn);
}

[[noreturn]] void be_program(KeeperLaunch& launch, size_t bytes, int error_pipe) {
  auto stop = [&](KeeperStep step) {
    KeeperResult result{KeeperOp::kResult, step, errno};
    if (::write(error_pipe, &result, sizeof result) < 0) ::_exit(112);
    ::_exit(111);
  };
  say(KeeperOp::kHello);
  static char* strings[65536];
  char* cursor = reinterpret_cast<char*>(&launch) + sizeof launch;
  char* end = reinterpret_cast<char*>(&launch) + bytes;
  const char* cwd = cursor;
  cursor += strlen(cursor) + 1;
  if (launch.argc + launch.envc + 2 > 65536) {
    errno = E2BIG;
    stop(KeeperStep::kExec);
  }
  char** argv = strings;
  size_t at = 0;
  for (uint32_t i = 0; i < launch.argc + launch.envc; ++i) {
    if (i == launch.argc) strings[at++] = nullptr;
    if (cursor >= end) {
      errno = EINVAL;
      stop(KeeperStep::kExec);
    }
    strings[at++] = cursor;
    cursor += strlen(cursor) + 1;
  }
  if (launch.envc == 0) strings[at++] = nullptr;
  strings[at] = nullptr;
  char** env = strings + launch.argc + 1;

  ::setsid();
  int null_fd = ::open("/dev/null", O_RDONLY);
  if (null_fd < 0 || ::dup2(null_fd, 0) < 0 || ::dup2(kKeeperOutWrite, 1) < 0 || ::dup2(kKeeperErrWrite, 2) < 0) stop(KeeperStep::kPipes);
  if (null_fd > 2) ::close(null_fd);
  for (int s = 1; s < NSIG; ++s) ::signal(s, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::setpriority(PRIO_PROCESS, 0, 0);
  sched_param normal{};
  ::sched_setscheduler(0, SCHED_OTHER, &normal);
  static unsigned char all_cpus[1024];
  memset(all_cpus, 0xff, sizeof all_cpus);
  ::syscall(SYS_sched_setaffinity, 0, sizeof all_cpus, all_cpus);
  int oom = ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (oom >= 0) {
    if (::write(oom, "0", 1) < 0) errno = 0;  // lower than the starter's: needs CAP_SYS_RESOURCE
    ::close(oom);
  }
  ::umask(022);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max < 1024 ? files.rlim_max : 1024;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  if (cwd[0] != 0 && ::chdir(cwd) != 0) stop(KeeperStep::kDirectory);
  if (launch.uid != 0 || launch.gid != 0) {
    if (::setgroups(launch.group_count, launch.groups) != 0 || ::setresgid(launch.gid, launch.gid, launch.gid) != 0 ||
        ::setresuid(launch.uid, launch.uid, launch.uid) != 0) {
      stop(KeeperStep::kIdentity);
    }
  }
  // The starter's descriptors were closed by exec; ours are all close-on-exec, but for this one.
  ::fcntl(kKeeperControl, F_SETFD, FD_CLOEXEC);
  ::clearenv();
  for (char** e = env; *e != nullptr; ++e) ::putenv(*e);
  ::execvpe(argv[0], argv, env);
  stop(KeeperStep::kExec);
  ::_exit(111);
}

void launch_program(KeeperLaunch& launch, size_t bytes) {
  message[bytes < sizeof message ? bytes : sizeof message - 1] = 0;
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) != 0) fail(KeeperStep::kPipes);
  long pid = clone_process(0, launch.pid, SIGCHLD);
  if (pid < 0) fail(KeeperStep::kFork);
  if (pid == 0) be_program(launch, bytes, pipe_fds[1]);
  ::close(pipe_fds[1]);
  KeeperResult result{};
  ssize_t n = ::read(pipe_fds[0], &result, sizeof result);
  ::close(pipe_fds[0]);
  if (n != static_cast<ssize_t>(sizeof result)) result = KeeperResult{};
  ::send(kKeeperControl, &result, sizeof result, MSG_NOSIGNAL);
  if (result.error != 0) ::_exit(111);
}

[[noreturn]] void be_keeper() {
  ::prctl(PR_SET_NAME, "baton-keeper");
  ::setsid();
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
    fail(KeeperStep::kMount);
  }
  // Terminals of its own, under numbers of its own. What has no /dev/pts goes without.
  (void)::mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5");
  if (config.new_network != 0) bring_loopback_up();
  if (::chdir("/") != 0) fail(KeeperStep::kMount);
  open_log();
  make_pipes();
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  ::sigprocmask(SIG_SETMASK, &child, nullptr);
  int signals = ::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) fail(KeeperStep::kPipes);
  say(KeeperOp::kReady);

  bool controlled = true;
  for (;;) {
    pollfd polled[4] = {{kKeeperOutRead, POLLIN, 0}, {kKeeperErrRead, POLLIN, 0}, {signals, POLLIN, 0}, {controlled ? kKeeperControl : -1, POLLIN, 0}};
    if (::poll(polled, 4, -1) < 0) continue;
    if (polled[0].revents != 0) drain(kKeeperOutRead);
    if (polled[1].revents != 0) drain(kKeeperErrRead);
    if (polled[3].revents != 0) {
      ssize_t n = ::recv(kKeeperControl, message, sizeof message, 0);
      KeeperOp op{};
      if (n < static_cast<ssize_t>(sizeof op)) ::_exit(111);  // the starter has gone
      memcpy(&op, message, sizeof op);
      if (op == KeeperOp::kSpawn) {
        KeeperSpawn spawn;
        memcpy(&spawn, message, sizeof spawn);
        spawn_blank(spawn);
      } else if (op == KeeperOp::kLaunch) {
        launch_program(*reinterpret_cast<KeeperLaunch*>(message), static_cast<size_t>(n));
      } else if (op == KeeperOp::kWatch) {
        KeeperWatch watch;
        memcpy(&watch, message, sizeof watch);
        root = watch.pid;
        KeeperResult done{};
        ::send(kKeeperControl, &done, sizeof done, MSG_NOSIGNAL);
        ::close(kKeeperControl);
        controlled = false;
        reap();
      }
    }
    if (polled[2].revents != 0) {
      signalfd_siginfo info;
      while (::read(signals, &info, sizeof info) > 0) {}
      // Before the root is known, its end must not be swallowed.
      if (!controlled) reap();
    }
  }
}

}  // namespace

int main() {
  int null_fd = ::open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) ::dup2(null_fd, fd);
  if (null_fd > 3) ::close(null_fd);
  for (int s = 1; s < NSIG; ++s) ::signal(s, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ssize_t n = ::recv(kKeeperControl, &config, sizeof config, 0);
  if (n != static_cast<ssize_t>(sizeof config)) return 1;
  config.log_path[kMaxPath - 1] = config.exit_path[kMaxPath - 1] = 0;
  ::umask(022);
  if (config.new_time != 0) enter_time_namespace();
  uint64_t flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_PARENT;
  if (config.new_network != 0) flags |= CLONE_NEWNET;
  long pid = clone_process(flags, 0, 0);
  if (pid < 0) fail(KeeperStep::kNamespaces);
  if (pid > 0) ::_exit(0);
  be_keeper();
}
