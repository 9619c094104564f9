// Handlers, masks, pending and queued signals with their siginfo, the alternate
// stack, interval and POSIX timers, and clocks that never run backwards.
#include <sys/syscall.h>
#include <sys/time.h>

#include <atomic>
#include <cstdint>

#include "tracee.h"

namespace {
std::atomic<int> g_alarms{0}, g_ticks{0}, g_on_alternate{0};
unsigned char g_alternate[64 * 1024];
std::atomic<int> g_order[8];
std::atomic<int> g_received{0};

void on_queue(int, siginfo_t* info, void*) {
  int at = g_received.fetch_add(1);
  if (at < 8) g_order[at] = info->si_code == SI_QUEUE ? info->si_value.sival_int : -1;
}
void on_alternate(int, siginfo_t*, void*) {
  unsigned char here;
  if (&here >= g_alternate && &here < g_alternate + sizeof g_alternate) g_on_alternate.fetch_add(1);
}
}  // namespace

int main() {
  stack_t stack{};
  stack.ss_sp = g_alternate;
  stack.ss_size = sizeof g_alternate;
  MUST(sigaltstack(&stack, nullptr) == 0);
  struct sigaction action {};
  action.sa_sigaction = on_alternate;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaddset(&action.sa_mask, SIGHUP);
  MUST(sigaction(SIGUSR2, &action, nullptr) == 0);
  action = {};
  action.sa_sigaction = on_queue;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  MUST(sigaction(SIGRTMIN + 5, &action, nullptr) == 0);
  action = {};
  action.sa_handler = [](int) { g_alarms.fetch_add(1); };
  action.sa_flags = SA_RESTART;
  MUST(sigaction(SIGALRM, &action, nullptr) == 0);
  action.sa_handler = [](int) { g_ticks.fetch_add(1); };
  MUST(sigaction(SIGRTMIN + 6, &action, nullptr) == 0);
  std::signal(SIGPIPE, SIG_IGN);

  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGRTMIN + 5);
  sigaddset(&blocked, SIGTERM);
  MUST(sigprocmask(SIG_BLOCK, &blocked, nullptr) == 0);
  itimerval repeat{{0, 50'000}, {0, 50'000}};
  MUST(setitimer(ITIMER_REAL, &repeat, nullptr) == 0);
  timer_t unused, timer;
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 6;
  event.sigev_value.sival_int = 99;
  MUST(timer_create(CLOCK_MONOTONIC, &event, &unused) == 0);
  MUST(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
  MUST(timer_delete(unused) == 0);   // so that the id of the one that stays is not the first
  itimerspec ticks{{0, 30'000'000}, {0, 30'000'000}};
  MUST(timer_settime(timer, 0, &ticks, nullptr) == 0);

  long long last_monotonic = 0, last_boot = 0;
  bool queued = false;
  auto queue_three = [&] {
    for (int i = 1; i <= 3; ++i) {
      sigval value{};
      value.sival_int = i * 1111;
      MUST(sigqueue(getpid(), SIGRTMIN + 5, value) == 0);
    }
    queued = true;
  };
  queue_three();
  tracee::ready();
  for (;;) {
    while (!tracee::asked()) {
      timespec nap{0, 5'000'000};
      nanosleep(&nap, nullptr);
      long long monotonic = tracee::now_ns(CLOCK_MONOTONIC), boot = tracee::now_ns(CLOCK_BOOTTIME);
      if (monotonic < last_monotonic) tracee::fail_now("CLOCK_MONOTONIC ran backwards");
      if (boot < last_boot) tracee::fail_now("CLOCK_BOOTTIME ran backwards");
      last_monotonic = monotonic;
      last_boot = boot;
    }
    tracee::Check c;
    sigset_t now, pending;
    sigprocmask(SIG_BLOCK, nullptr, &now);
    c.expect(sigismember(&now, SIGTERM) == 1 && sigismember(&now, SIGRTMIN + 5) == 1 && sigismember(&now, SIGHUP) == 0, "signal mask");
    sigpending(&pending);
    c.expect(queued && sigismember(&pending, SIGRTMIN + 5) == 1, "pending signal");
    g_received = 0;
    sigprocmask(SIG_UNBLOCK, &blocked, nullptr);
    sigprocmask(SIG_BLOCK, &blocked, nullptr);
    c.same(g_received, 3, "queued signals");
    for (int i = 0; i < 3; ++i) c.same(g_order[i], (i + 1) * 1111, "order and payload of the queue");
    queue_three();
    int before = g_on_alternate;
    raise(SIGUSR2);
    c.same(g_on_alternate, before + 1, "handler on the alternate stack");
    struct sigaction old {};
    sigaction(SIGUSR2, nullptr, &old);
    c.expect((old.sa_flags & (SA_SIGINFO | SA_ONSTACK)) == (SA_SIGINFO | SA_ONSTACK) && sigismember(&old.sa_mask, SIGHUP) == 1, "flags and mask of a handler");
    sigaction(SIGPIPE, nullptr, &old);
    c.expect(old.sa_handler == SIG_IGN, "ignored signal");
    int alarms = g_alarms, tick_count = g_ticks;
    for (int n = 0; n < 200 && (g_alarms == alarms || g_ticks == tick_count); ++n) {
      timespec nap{0, 5'000'000};
      nanosleep(&nap, nullptr);
    }
    c.expect(g_alarms > alarms, "ITIMER_REAL goes on");
    c.expect(g_ticks > tick_count, "the POSIX timer goes on");
    itimerspec left{};
    c.same(timer_gettime(timer, &left), 0, "the POSIX timer's id");
    c.same(left.it_interval.tv_nsec, 30'000'000, "interval of the POSIX timer");
  }
}
