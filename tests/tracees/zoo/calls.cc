// System calls under way at the freeze: each must end as if nothing had happened, at its time,
// and never with EINTR. A thread of its own makes the call; what it answered is checked.
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <atomic>
#include <memory>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

constexpr long long kMs = 1'000'000;

// Makes `call` again and again, each of which is to take `ms` and to answer `wanted`; anything
// else is kept. `slack`: how much later it may end (a move takes time; so does a busy machine).
struct Loop {
  std::function<long()> call;
  long long ms, slack_ms;
  long wanted;
  std::atomic<long> done{0};
  std::atomic<long> wrong{0};
  std::atomic<long long> early{0}, late{0};
};

void* run_loop(void* argument) {
  auto& loop = *static_cast<Loop*>(argument);
  for (;;) {
    long long begun = tracee::now_ns(CLOCK_MONOTONIC);
    errno = 0;
    long got = loop.call();
    int error = errno;
    long long took = (tracee::now_ns(CLOCK_MONOTONIC) - begun) / kMs;
    if ((got != loop.wanted || (got < 0 && error == EINTR)) && loop.wrong == 0) loop.wrong = got < 0 ? -error : got + 1000;
    if (took < loop.ms - 2 && loop.early == 0) loop.early = took + 1;
    if (took > loop.ms + loop.slack_ms && loop.late == 0) loop.late = took;
    ++loop.done;
  }
  return nullptr;
}

Animal repeated(long long ms, long wanted, std::function<long()> call) {
  auto* loop = new Loop{std::move(call), ms, 15000, wanted};
  pthread_t thread;
  MUST(pthread_create(&thread, nullptr, run_loop, loop) == 0);
  usleep(5000);
  return {[=](Check& c) {
            long before = loop->done;
            for (int i = 0; i < 20000 && loop->done == before; ++i) usleep(1000);
            c.expect(loop->done > before, "the call ends");
            c.same(loop->wrong, 0, "answer");
            c.same(loop->early, 0, "not before its time");
            c.same(loop->late, 0, "not long after it");
          },
          {}};
}

// A call that waits for `wake`: it must still wait, and then answer `wanted`.
Animal waiting(long wanted, std::function<long()> call, std::function<void()> wake) {
  struct Wait {
    std::function<long()> call;
    std::atomic<long> ended{0}, answer{0}, error{0};
  };
  auto* wait = new Wait{std::move(call)};
  pthread_t thread;
  auto body = [](void* argument) -> void* {
    auto& w = *static_cast<Wait*>(argument);
    for (;;) {
      errno = 0;
      w.answer = w.call();
      w.error = errno;
      ++w.ended;
    }
    return nullptr;
  };
  MUST(pthread_create(&thread, nullptr, body, wait) == 0);
  usleep(10000);
  return {[=](Check& c) {
            long before = wait->ended;
            usleep(30000);
            c.same(wait->ended, before, "it still waits");
            wake();
            for (int i = 0; i < 10000 && wait->ended == before; ++i) usleep(1000);
            c.same(wait->ended, before + 1, "it ends once");
            c.expect(wait->answer == wanted, "answer", wait->answer.load() < 0 ? -wait->error.load() : wait->answer.load(), wanted);
            usleep(5000);
          },
          {}};
}

Animal in_nanosleep() { return repeated(300, 0, [] { timespec t{0, 300 * kMs}; return (long)syscall(SYS_nanosleep, &t, nullptr); }); }
Animal in_nanosleep_left() { return repeated(300, 0, [] { timespec t{0, 300 * kMs}, left{}; return (long)syscall(SYS_nanosleep, &t, &left); }); }
Animal in_clock_nanosleep() {
  return repeated(300, 0, [] { timespec t{0, 300 * kMs}; return (long)clock_nanosleep(CLOCK_MONOTONIC, 0, &t, nullptr); });
}
Animal in_clock_nanosleep_absolute() {
  return repeated(300, 0, [] {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 300 * kMs;
    if (t.tv_nsec >= 1000 * kMs) t.tv_nsec -= 1000 * kMs, ++t.tv_sec;
    return (long)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
  });
}
Animal in_poll() { return repeated(300, 0, [] { return (long)poll(nullptr, 0, 300); }); }
Animal in_ppoll() { return repeated(300, 0, [] { timespec t{0, 300 * kMs}; return (long)ppoll(nullptr, 0, &t, nullptr); }); }
Animal in_select() { return repeated(300, 0, [] { timeval t{0, 300000}; return (long)select(0, nullptr, nullptr, nullptr, &t); }); }
Animal in_pselect() { return repeated(300, 0, [] { timespec t{0, 300 * kMs}; return (long)pselect(0, nullptr, nullptr, nullptr, &t, nullptr); }); }
Animal in_epoll_wait() {
  int epoll = epoll_create1(0);
  return repeated(300, 0, [=] { epoll_event e; return (long)epoll_wait(epoll, &e, 1, 300); });
}
Animal in_epoll_pwait() {
  int epoll = epoll_create1(0);
  return repeated(300, 0, [=] {
    sigset_t none;
    sigfillset(&none);
    epoll_event e;
    return (long)epoll_pwait(epoll, &e, 1, 300, &none);
  });
}
Animal in_epoll_pwait2() {
  int epoll = epoll_create1(0);
  return repeated(300, 0, [=] { timespec t{0, 300 * kMs}; epoll_event e; return syscall(441, epoll, &e, 1, &t, nullptr, 8); });
}
Animal in_futex_timed() {
  auto* word = new int(0);
  return repeated(300, -1, [=] { timespec t{0, 300 * kMs}; return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, &t, nullptr, 0); });
}
Animal in_sigtimedwait() {
  return repeated(300, -1, [] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 9);
    timespec t{0, 300 * kMs};
    return (long)sigtimedwait(&set, nullptr, &t);
  });
}
Animal in_semtimedop() {
  int id = semget(IPC_PRIVATE, 1, 0600);
  return repeated(300, -1, [=] { sembuf take{0, -1, 0}; timespec t{0, 300 * kMs}; return (long)semtimedop(id, &take, 1, &t); });
}
Animal in_mq_timedreceive() {
  mqd_t queue = mq_open("/zoo-timed", O_CREAT | O_RDWR, 0600, nullptr);
  // The limit is by the wall clock, which may be some ms apart from the loop's after a move.
  return repeated(290, -1, [=] {
    timespec t{};
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 300 * kMs;
    if (t.tv_nsec >= 1000 * kMs) t.tv_nsec -= 1000 * kMs, ++t.tv_sec;
    static char text[8192];
    const long got = mq_timedreceive(queue, text, sizeof text, nullptr, &t);
    return tracee::now_ns(CLOCK_REALTIME) < t.tv_sec * 1000 * kMs + t.tv_nsec ? -99L : got;
  });
}
Animal in_cond_timedwait() {
  auto* mutex = new pthread_mutex_t(PTHREAD_MUTEX_INITIALIZER);
  auto* cond = new pthread_cond_t;
  // By the clock that the loop measures with: the wall clock may be some ms apart after a move.
  pthread_condattr_t by_monotonic;
  MUST(pthread_condattr_init(&by_monotonic) == 0 && pthread_condattr_setclock(&by_monotonic, CLOCK_MONOTONIC) == 0);
  MUST(pthread_cond_init(cond, &by_monotonic) == 0);
  return repeated(300, ETIMEDOUT, [=] {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 300 * kMs;
    if (t.tv_nsec >= 1000 * kMs) t.tv_nsec -= 1000 * kMs, ++t.tv_sec;
    pthread_mutex_lock(mutex);
    long got = pthread_cond_timedwait(cond, mutex, &t);
    pthread_mutex_unlock(mutex);
    return got;
  });
}

Animal in_read_pipe() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(pipe(ends->data()) == 0);
  return waiting(1, [=] { char byte; return (long)read((*ends)[0], &byte, 1); }, [=] { MUST(write((*ends)[1], "x", 1) == 1); });
}
Animal in_read_eventfd() {
  int fd = eventfd(0, 0);
  return waiting(8, [=] { uint64_t v; return (long)read(fd, &v, 8); }, [=] { uint64_t v = 1; MUST(write(fd, &v, 8) == 8); });
}
Animal in_recv_unix() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  return waiting(1, [=] { char byte; return (long)recv((*ends)[0], &byte, 1, 0); }, [=] { MUST(send((*ends)[1], "x", 1, 0) == 1); });
}
Animal in_recv_timed() {   // SO_RCVTIMEO: the kernel answers EINTR to whoever is stopped
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  timeval limit{600, 0};
  setsockopt((*ends)[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return waiting(1, [=] { char byte; return (long)recv((*ends)[0], &byte, 1, 0); }, [=] { MUST(send((*ends)[1], "x", 1, 0) == 1); });
}
Animal in_epoll_for_ever() {
  int epoll = epoll_create1(0), fd = eventfd(0, EFD_NONBLOCK);
  epoll_event e{EPOLLIN, {.u64 = 1}};
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
  return waiting(1, [=] { epoll_event got; long n = epoll_wait(epoll, &got, 1, -1); uint64_t v; if (n == 1) (void)!read(fd, &v, 8); return n; },
                 [=] { uint64_t v = 1; MUST(write(fd, &v, 8) == 8); });
}
Animal in_futex() {
  auto* word = new std::atomic<int>(0);
  return waiting(0, [=] { long got = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0); *word = 0; return got; },
                 [=] { *word = 1; syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); });
}
Animal in_semop() {
  int id = semget(IPC_PRIVATE, 1, 0600);
  return waiting(0, [=] { sembuf take{0, -1, 0}; return (long)semop(id, &take, 1); }, [=] { sembuf give{0, 1, 0}; MUST(semop(id, &give, 1) == 0); });
}
Animal in_msgrcv() {
  int id = msgget(IPC_PRIVATE, 0600);
  struct M { long type; char text[8]; };
  return waiting(4, [=] { M m; return (long)msgrcv(id, &m, 8, 0, 0); }, [=] { M m{1, "abc"}; MUST(msgsnd(id, &m, 4, 0) == 0); });
}
Animal in_mq_receive() {
  mqd_t queue = mq_open("/zoo-receive", O_CREAT | O_RDWR, 0600, nullptr);
  return waiting(2, [=] { static char text[8192]; return (long)mq_receive(queue, text, sizeof text, nullptr); }, [=] { MUST(mq_send(queue, "hi", 2, 0) == 0); });
}
Animal in_sigwait() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 8);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return waiting(SIGRTMIN + 8, [=] { return (long)sigwaitinfo(&set, nullptr); }, [] { kill(getpid(), SIGRTMIN + 8); });
}
Animal in_flock() {
  std::string path = place("flock");
  int mine = open(path.c_str(), O_CREAT | O_RDWR, 0600), other = open(path.c_str(), O_RDWR);
  MUST(flock(mine, LOCK_EX) == 0);
  return waiting(0, [=] { long got = flock(other, LOCK_EX); flock(other, LOCK_UN); usleep(200000); return got; },
                 [=] { flock(mine, LOCK_UN); usleep(50000); flock(mine, LOCK_EX); });
}
Animal in_accept() {
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr address{AF_UNIX, {}};
  socklen_t bytes = sizeof address;
  MUST(bind(listener, &address, sizeof(sa_family_t)) == 0 && listen(listener, 4) == 0);
  static char raw[128];
  bytes = sizeof raw;
  getsockname(listener, (sockaddr*)raw, &bytes);
  return waiting(0, [=] { int got = accept(listener, nullptr, nullptr); if (got >= 0) close(got); return got >= 0 ? 0l : -1l; },
                 [=] { int fd = socket(AF_UNIX, SOCK_STREAM, 0); MUST(connect(fd, (sockaddr*)raw, bytes) == 0); close(fd); });
}
Animal in_waitpid() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(pipe(ends->data()) == 0);
  return waiting(0, [=] {
    pid_t pid = fork();
    if (pid == 0) { char b; (void)!read((*ends)[0], &b, 1); _exit(0); }
    int status = 1;
    return waitpid(pid, &status, 0) == pid && status == 0 ? 0l : -1l;
  }, [=] { MUST(write((*ends)[1], "x", 1) == 1); });
}
Animal in_vfork() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(pipe(ends->data()) == 0);
  child([=] {   // its parent in vfork most of the time; captures find it between
    for (;;) {
      pid_t pid = vfork();
      if (pid == 0) _exit(0);
      waitpid(pid, nullptr, 0);
      usleep(2000);
    }
  });
  return {[=](Check& c) { c.expect(true, "alive"); }, {}};
}
const std::vector<Case> kCases = {
    {"call-nanosleep", "call under way", nullptr, in_nanosleep},
    {"call-nanosleep-left", "call under way", nullptr, in_nanosleep_left},
    {"call-clock-nanosleep", "call under way", nullptr, in_clock_nanosleep},
    {"call-clock-nanosleep-absolute", "call under way", nullptr, in_clock_nanosleep_absolute},
    {"call-poll", "call under way", nullptr, in_poll},
    {"call-ppoll", "call under way", nullptr, in_ppoll},
    {"call-select", "call under way", nullptr, in_select},
    {"call-pselect", "call under way", nullptr, in_pselect},
    {"call-epoll-wait", "call under way", nullptr, in_epoll_wait},
    {"call-epoll-pwait", "call under way", nullptr, in_epoll_pwait},
    {"call-epoll-pwait2", "call under way", nullptr, in_epoll_pwait2},
    {"call-futex-timed", "call under way", nullptr, in_futex_timed},
    {"call-sigtimedwait", "call under way", nullptr, in_sigtimedwait},
    {"call-semtimedop", "call under way", nullptr, in_semtimedop},
    {"call-mq-timedreceive", "call under way", nullptr, in_mq_timedreceive},
    {"call-cond-timedwait", "call under way", nullptr, in_cond_timedwait},
    {"call-read-pipe", "call under way", nullptr, in_read_pipe},
    {"call-read-eventfd", "call under way", nullptr, in_read_eventfd},
    {"call-recv", "call under way", nullptr, in_recv_unix},
    {"call-recv-timed", "call under way", nullptr, in_recv_timed},
    {"call-epoll-for-ever", "call under way", nullptr, in_epoll_for_ever},
    {"call-futex", "call under way", nullptr, in_futex},
    {"call-semop", "call under way", nullptr, in_semop},
    {"call-msgrcv", "call under way", nullptr, in_msgrcv},
    {"call-mq-receive", "call under way", nullptr, in_mq_receive},
    {"call-sigwait", "call under way", nullptr, in_sigwait},
    {"call-flock", "call under way", nullptr, in_flock},
    {"call-accept", "call under way", nullptr, in_accept},
    {"call-waitpid", "call under way", nullptr, in_waitpid},
    {"call-vfork", "call under way", nullptr, in_vfork},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
