// Event sources that must go on after a move: an epoll set with an eventfd, a
// periodic timerfd, a signalfd and a pipe; a POSIX timer, an interval timer, and
// a second eventfd whose count nobody may change. Checked continuously: every
// event carries the data it was registered with, and all periodic ones go on.
#include <atomic>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "orders.h"

namespace {

enum Source : std::uint64_t { kEvent = 0x1111000011110000u, kTimer, kSignal, kPipe };
int epoll_fd, event_fd, still_fd, timer_fd, signal_fd, pipe_fds[2];
timer_t posix_timer;
std::uint64_t counts[4];
std::atomic<std::uint64_t> interval_ticks, posix_ticks;
std::uint64_t pipe_sent = 0, pipe_got = 0, event_sent = 0, event_got = 0, signals_sent = 0, signals_got = 0;

void on_alarm(int) { interval_ticks.fetch_add(1); }
void on_posix(int, siginfo_t* info, void*) {
  if (info->si_code != SI_TIMER || info->si_value.sival_int != 4711) tracee::failed("the POSIX timer's signal carries other data");
  posix_ticks.fetch_add(1);
}

void add(int fd, Source source) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = source;
  EXPECT_THAT(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

void produce() {
  std::uint64_t one = 1;
  EXPECT_THAT(write(event_fd, &one, 8) == 8);
  ++event_sent;
  ++pipe_sent;
  EXPECT_THAT(write(pipe_fds[1], &pipe_sent, 8) == 8);
  sigval value{};
  value.sival_int = static_cast<int>(++signals_sent);
  EXPECT_THAT(sigqueue(getpid(), SIGRTMIN + 3, value) == 0);
}

void consume() {
  epoll_event events[8];
  int n = epoll_wait(epoll_fd, events, 8, 20);
  if (n < 0 && errno == EINTR) return;
  EXPECT_THAT(n >= 0);
  for (int i = 0; i < n; ++i) {
    EXPECT_THAT(events[i].events == EPOLLIN);
    std::uint64_t word = 0;
    switch (events[i].data.u64) {
      case kEvent:
        EXPECT_THAT(read(event_fd, &word, 8) == 8);
        event_got += word;
        break;
      case kTimer:
        EXPECT_THAT(read(timer_fd, &word, 8) == 8 && word > 0);
        break;
      case kSignal: {
        signalfd_siginfo info{};
        EXPECT_THAT(read(signal_fd, &info, sizeof info) == sizeof info);
        EXPECT_THAT(info.ssi_signo == static_cast<std::uint32_t>(SIGRTMIN + 3));
        EXPECT_THAT(static_cast<std::uint64_t>(info.ssi_int) == ++signals_got);
        break;
      }
      case kPipe:
        EXPECT_THAT(read(pipe_fds[0], &word, 8) == 8);
        EXPECT_THAT(word == ++pipe_got);
        break;
      default:
        tracee::failed("epoll gives data that nobody registered");
    }
    ++counts[events[i].data.u64 - kEvent];
  }
}

void drain() {
  for (int i = 0; i < 200 && (event_got < event_sent || pipe_got < pipe_sent || signals_got < signals_sent); ++i) consume();
  EXPECT_THAT(event_got == event_sent);
  EXPECT_THAT(pipe_got == pipe_sent);
  EXPECT_THAT(signals_got == signals_sent);
}

void verify() {
  drain();
  itimerspec spec{};
  EXPECT_THAT(timerfd_gettime(timer_fd, &spec) == 0 && spec.it_interval.tv_nsec == 50'000'000);
  EXPECT_THAT(timer_gettime(posix_timer, &spec) == 0 && spec.it_interval.tv_nsec == 70'000'000);
  itimerval value{};
  EXPECT_THAT(getitimer(ITIMER_REAL, &value) == 0 && value.it_interval.tv_usec == 60'000);
  // Semaphore mode: one read gives 1 and leaves the rest; put it back at once.
  std::uint64_t word = 0;
  EXPECT_THAT(read(still_fd, &word, 8) == 8 && word == 1);
  EXPECT_THAT(write(still_fd, &word, 8) == 8);
  int left = 0;
  while (left < 10 && read(still_fd, &word, 8) == 8) ++left;
  EXPECT_THAT(left == 5 && errno == EAGAIN);
  word = 5;
  EXPECT_THAT(write(still_fd, &word, 8) == 8);
  std::uint64_t timer = counts[1], alarm = interval_ticks, posix = posix_ticks;
  std::int64_t limit = tracee::monotonic_ns() + 3'000'000'000;
  while (counts[1] < timer + 2 || interval_ticks < alarm + 2 || posix_ticks < posix + 2) {
    if (tracee::monotonic_ns() > limit) tracee::failed("a periodic timer has stopped (timerfd %d, itimer %d, POSIX %d)", counts[1] > timer, interval_ticks > alarm, posix_ticks > posix);
    consume();
  }
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  EXPECT_THAT(sigprocmask(SIG_BLOCK, &set, nullptr) == 0);
  struct sigaction action{};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  EXPECT_THAT(sigaction(SIGALRM, &action, nullptr) == 0);
  action = {};
  action.sa_sigaction = on_posix;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  EXPECT_THAT(sigaction(SIGRTMIN + 4, &action, nullptr) == 0);

  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  event_fd = eventfd(0, EFD_NONBLOCK);
  still_fd = eventfd(5, EFD_NONBLOCK | EFD_SEMAPHORE);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  signal_fd = signalfd(-1, &set, SFD_NONBLOCK);
  EXPECT_THAT(epoll_fd >= 0 && event_fd >= 0 && still_fd >= 0 && timer_fd >= 0 && signal_fd >= 0 && pipe(pipe_fds) == 0);
  add(event_fd, kEvent);
  add(timer_fd, kTimer);
  add(signal_fd, kSignal);
  add(pipe_fds[0], kPipe);
  itimerspec every{{0, 50'000'000}, {0, 50'000'000}};
  EXPECT_THAT(timerfd_settime(timer_fd, 0, &every, nullptr) == 0);
  sigevent notify{};
  notify.sigev_notify = SIGEV_SIGNAL;
  notify.sigev_signo = SIGRTMIN + 4;
  notify.sigev_value.sival_int = 4711;
  EXPECT_THAT(timer_create(CLOCK_MONOTONIC, &notify, &posix_timer) == 0);
  every = {{0, 70'000'000}, {0, 70'000'000}};
  EXPECT_THAT(timer_settime(posix_timer, 0, &every, nullptr) == 0);
  itimerval alarm{{0, 60'000}, {0, 60'000}};
  EXPECT_THAT(setitimer(ITIMER_REAL, &alarm, nullptr) == 0);
  tracee::ready();
  for (;;) {
    produce();
    consume();
    if (tracee::poll_order(0)) {
      verify();
      tracee::say("ok");
    }
  }
}
