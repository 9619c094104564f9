// A program that is stopped and injected into, and checks itself all the time.
// victim MODE: prints "ready PID", then works until SIGUSR1 is pending on the pipe
// of its standard input (end of file), then prints "ok" and exits 0. Anything wrong:
// prints what, exits 1.
//   spin     integer and vector registers live in a loop, flags included
//   sleep    clock_nanosleep that may never return early with an error
//   futex    timed waits that may only time out
//   poll     poll with a timeout that may never fail with EINTR
//   epoll    epoll_pwait with a mask
//   read     a blocking read of a pipe that another thread feeds byte by byte
//   suspend  sigsuspend, woken by another thread's signals, which are counted
//   storm    timer signals at 2 kHz with handlers that check the interrupted state
//   threads  threads that come and go
//   catchall handlers for every signal that can have one
//   seccomp  a filter that allows only what it needs
//   vfork    a parent in vfork for a while, again and again
//   spawn    short-lived children by fork, vfork and exec
//   memory   mappings that come and go, private and shared, by several threads and a child
// With a second argument it ends when that file exists instead.
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

[[noreturn]] void fail(const char* what) {
  std::printf("FAILED %s errno %d (%s)\n", what, errno, std::strerror(errno));
  std::fflush(stdout);
  _exit(1);
}

const char* end_file = nullptr;   // given: the program ends once it exists

bool finished() {
  if (end_file != nullptr) return ::access(end_file, F_OK) == 0;
  pollfd p{0, POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

std::atomic<bool> over{false};

long now_ms() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1000 + ts.tv_nsec / 1'000'000;
}

// One long stretch in which every general register but the stack pointer, the carry flag
// and a vector register hold known values; none is saved to memory in between.
__attribute__((noinline, target("avx2"))) void spin_once(std::uint64_t seed) {
  alignas(32) std::uint64_t in[4] = {seed, seed * 3, seed * 5, seed * 7};
  alignas(32) std::uint64_t out[4] = {};
  std::uint64_t regs[15];
  for (int i = 0; i < 15; ++i) regs[i] = seed * static_cast<std::uint64_t>(i + 11);
  std::uint64_t after[15];
  std::memcpy(after, regs, sizeof regs);
  std::uint64_t* p = after;
  unsigned char carry = 0;
  asm volatile(
      "push %%rbp\n sub $256, %%rsp\n"
      "vmovdqa (%1), %%ymm9\n"
      "push %0\n"              // where to store
      "mov %0, %%rax\n"
      "mov 8(%%rax), %%rbx\n mov 16(%%rax), %%rcx\n mov 24(%%rax), %%rdx\n mov 32(%%rax), %%rsi\n"
      "mov 40(%%rax), %%rdi\n mov 48(%%rax), %%rbp\n mov 56(%%rax), %%r8\n mov 64(%%rax), %%r9\n"
      "mov 72(%%rax), %%r10\n mov 80(%%rax), %%r11\n mov 88(%%rax), %%r12\n mov 96(%%rax), %%r13\n"
      "mov 104(%%rax), %%r14\n mov 112(%%rax), %%r15\n"
      "mov $200000, %%rax\n"
      "stc\n"
      "1: dec %%rax\n jnz 1b\n"   // dec leaves the carry flag alone
      "setc -100(%%rsp)\n"         // the red zone
      "movb -100(%%rsp), %%al\n"
      "xchg (%%rsp), %%r15\n"      // r15: where, (rsp): r15's value
      "mov %%rbx, 8(%%r15)\n mov %%rcx, 16(%%r15)\n mov %%rdx, 24(%%r15)\n mov %%rsi, 32(%%r15)\n"
      "mov %%rdi, 40(%%r15)\n mov %%rbp, 48(%%r15)\n mov %%r8, 56(%%r15)\n mov %%r9, 64(%%r15)\n"
      "mov %%r10, 72(%%r15)\n mov %%r11, 80(%%r15)\n mov %%r12, 88(%%r15)\n mov %%r13, 96(%%r15)\n"
      "mov %%r14, 104(%%r15)\n"
      "mov (%%rsp), %%rbx\n mov %%rbx, 112(%%r15)\n"
      "mov %%al, (%%r15)\n"
      "add $8, %%rsp\n"
      "add $256, %%rsp\n pop %%rbp\n"
      : "+a"(p)
      : "d"(in)
      : "rbx", "rcx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
        "cc", "xmm9");
  asm volatile("vmovdqa %%ymm9, (%0)" : : "r"(out) : "memory");
  carry = static_cast<unsigned char>(after[0]);
  for (int i = 1; i < 15; ++i) {
    if (after[i] != regs[i]) fail("a general register changed");
  }
  if (carry != 1) fail("the carry flag changed");
  if (std::memcmp(in, out, sizeof in) != 0) fail("a vector register changed");
}

void spin() {
  for (std::uint64_t i = 1; !finished(); ++i) spin_once(i * 0x9E3779B97F4A7C15ull);
}

void sleep_mode() {
  while (!finished()) {
    long start = now_ms();
    timespec ts{0, 30'000'000};
    if (clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, nullptr) != 0) fail("clock_nanosleep returned early");
    if (now_ms() - start < 29) fail("clock_nanosleep was short");
  }
}

void futex_mode() {
  int word = 0;
  while (!finished()) {
    timespec ts{0, 30'000'000};
    long rc = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, nullptr, 0);
    if (rc != -1 || errno != ETIMEDOUT) fail("futex did not time out");
  }
}

void poll_mode() {
  int fds[2];
  if (pipe(fds) != 0) fail("pipe");
  while (!finished()) {
    pollfd p{fds[0], POLLIN, 0};
    long start = now_ms();
    if (::poll(&p, 1, 30) != 0) fail("poll did not time out");
    if (now_ms() - start < 29) fail("poll was short");
  }
}

void epoll_mode() {
  int ep = epoll_create1(0);
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR2);
  sigset_t outer;
  sigfillset(&outer);
  sigprocmask(SIG_SETMASK, &outer, nullptr);
  while (!finished()) {
    epoll_event e{};
    int rc = epoll_pwait(ep, &e, 1, 30, &mask);
    // epoll_pwait is documented to fail with EINTR on stop signals too; nothing else may come.
    if (rc != 0 && errno != EINTR) fail("epoll_pwait");
    sigset_t now;
    sigprocmask(SIG_SETMASK, nullptr, &now);
    for (int s = 1; s < 32; ++s) {
      if (s != SIGKILL && s != SIGSTOP && sigismember(&now, s) != 1) fail("the signal mask changed");
    }
  }
}

void read_mode() {
  int fds[2];
  if (pipe(fds) != 0) fail("pipe");
  std::thread feeder([&] {
    for (unsigned char i = 0; !over; ++i) {
      usleep(3000);
      if (write(fds[1], &i, 1) != 1) fail("write");
    }
    close(fds[1]);
  });
  unsigned char expected = 0, got = 0;
  for (;;) {
    ssize_t n = read(fds[0], &got, 1);
    if (n == 0) break;
    if (n != 1) fail("read");
    if (got != expected++) fail("a byte was lost");
    if (!over && finished()) over = true;
  }
  feeder.join();
}

std::atomic<long> handled{0};
void count_handler(int) { ++handled; }

void suspend_mode() {
  sigset_t block, empty;
  sigemptyset(&empty);
  sigemptyset(&block);
  sigaddset(&block, SIGUSR2);
  pthread_sigmask(SIG_SETMASK, &block, nullptr);
  struct sigaction sa {};
  sa.sa_handler = count_handler;
  sigaction(SIGUSR2, &sa, nullptr);
  pthread_t self = pthread_self();
  std::atomic<long> sent{0};
  std::thread sender([&] {
    pthread_sigmask(SIG_BLOCK, &block, nullptr);
    while (!over) {
      if (sent == handled) {
        ++sent;
        pthread_kill(self, SIGUSR2);
      }
      usleep(500);
    }
  });
  while (!finished()) {
    sigsuspend(&empty);
    if (errno != EINTR) fail("sigsuspend");
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    if (sigismember(&now, SIGUSR2) != 1) fail("mask after sigsuspend");
  }
  over = true;
  sender.join();
  if (handled > sent || sent - handled > 1) fail("signals lost");
}

void storm_mode() {
  struct sigaction sa {};
  sa.sa_handler = count_handler;
  sa.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &sa, nullptr);
  itimerval it{{0, 500}, {0, 500}};
  setitimer(ITIMER_REAL, &it, nullptr);
  long before = handled;
  for (std::uint64_t i = 1; !finished(); ++i) spin_once(i);
  if (handled == before) fail("no signals");
}

void threads_mode() {
  std::atomic<long> sum{0};
  while (!finished()) {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        spin_once(static_cast<std::uint64_t>(sum++) + 1);
      });
    }
    for (auto& t : threads) t.join();
  }
}

void catchall_mode() {
  for (int s = 1; s < 65; ++s) {
    struct sigaction sa {};
    sa.sa_handler = count_handler;
    sa.sa_flags = SA_RESTART;
    if (s == SIGKILL || s == SIGSTOP || s == 32 || s == 33 || s == SIGSEGV) continue;
    sigaction(s, &sa, nullptr);
  }
  int word = 0;
  while (!finished()) {
    spin_once(7);
    timespec ts{0, 2'000'000};
    long rc = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &ts, nullptr, 0);
    if (rc != -1 || errno != ETIMEDOUT) fail("futex did not time out");
  }
  if (handled != 0) fail("a handler ran");
}

void seccomp_mode() {
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
      ALLOW(SYS_poll), ALLOW(SYS_futex), ALLOW(SYS_write), ALLOW(SYS_exit_group),
      ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_restart_syscall), ALLOW(SYS_tkill), ALLOW(SYS_newfstatat),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  sock_fprog prog{sizeof filter / sizeof filter[0], filter};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0) fail("seccomp");
  while (!finished()) spin_once(3);
}

void vfork_mode() {
  while (!finished()) {
    pid_t child = vfork();
    if (child == 0) {
      timespec ts{0, 300'000'000};
      nanosleep(&ts, nullptr);
      _exit(0);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    if (status != 0) fail("vfork child");
  }
}

void spawn_mode() {
  static int i = 0;   // static: vfork(2) gives the same stack back
  for (; !finished(); ++i) {
    pid_t child = i % 2 == 0 ? fork() : vfork();
    if (child == 0) {
      if (i % 4 < 2) execl("/bin/true", "true", nullptr);
      _exit(0);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    if (status != 0) fail("a child failed");
  }
}

void memory_mode() {
  constexpr std::size_t kBytes = 1 << 20;
  auto* shared = static_cast<std::uint64_t*>(
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (std::uint64_t i = 0; !finished(); ++i) {
      shared[i % (kBytes / 8)] = i;
      if (i % 512 == 0) usleep(200);
    }
    _exit(0);
  }
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 3; ++t) {
    threads.emplace_back([t] {
      unsigned seed = t;
      while (!finished()) {
        std::size_t bytes = (1 + static_cast<unsigned>(rand_r(&seed)) % 300) * 4096;
        auto* p = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (p == MAP_FAILED) fail("mmap");
        for (std::size_t i = 0; i < bytes; i += 4096) p[i] = static_cast<char>(i >> 12);
        madvise(p, bytes / 2, MADV_DONTNEED);
        mprotect(p, 4096, PROT_NONE);
        usleep(500);
        for (std::size_t i = (bytes / 2 + 4095) & ~4095ul; i < bytes; i += 4096) {
          if (i >= 4096 && p[i] != static_cast<char>(i >> 12)) fail("memory changed");
        }
        munmap(p, bytes);
      }
    });
  }
  for (auto& t : threads) t.join();
  int status = 0;
  waitpid(child, &status, 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  std::string_view mode = argv[1];
  if (argc > 2) end_file = argv[2];
  std::printf("ready %d\n", getpid());
  std::fflush(stdout);
  if (mode == "spin") spin();
  else if (mode == "sleep") sleep_mode();
  else if (mode == "futex") futex_mode();
  else if (mode == "poll") poll_mode();
  else if (mode == "epoll") epoll_mode();
  else if (mode == "read") read_mode();
  else if (mode == "suspend") suspend_mode();
  else if (mode == "storm") storm_mode();
  else if (mode == "threads") threads_mode();
  else if (mode == "catchall") catchall_mode();
  else if (mode == "seccomp") seccomp_mode();
  else if (mode == "vfork") vfork_mode();
  else if (mode == "spawn") spawn_mode();
  else if (mode == "memory") memory_mode();
  else return 2;
  std::printf("ok\n");
  std::fflush(stdout);
  return 0;
}
