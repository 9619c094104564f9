// Time as a program sees it: monotonic and boot time never run backwards (seen
// through the vdso and through the system call), sleeps last as long as asked
// for, absolute sleeps end after their deadline, and the offset between the two
// ways of asking stays small. Checked continuously.
#include <sys/syscall.h>

#include "orders.h"

namespace {

std::int64_t by_system_call(clockid_t clock) {
  timespec now{};
  syscall(SYS_clock_gettime, clock, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

struct Watched {
  clockid_t clock;
  const char* name;
  std::int64_t last;
};
Watched watched[] = {{CLOCK_MONOTONIC, "CLOCK_MONOTONIC", 0}, {CLOCK_BOOTTIME, "CLOCK_BOOTTIME", 0}, {CLOCK_MONOTONIC_RAW, "CLOCK_MONOTONIC_RAW", 0}};

void look() {
  for (auto& w : watched) {
    std::int64_t now = tracee::monotonic_ns(w.clock);
    if (now < w.last) tracee::failed("%s ran backwards by %lld ns", w.name, static_cast<long long>(w.last - now));
    std::int64_t called = by_system_call(w.clock);
    if (called < now) tracee::failed("%s: the system call is %lld ns behind the vdso", w.name, static_cast<long long>(now - called));
    w.last = called;
  }
}

void sleep_a_while() {
  std::int64_t before = tracee::monotonic_ns();
  timespec wait{0, 20'000'000};
  while (nanosleep(&wait, &wait) != 0) {}
  if (tracee::monotonic_ns() - before < 20'000'000) tracee::failed("a sleep of 20 ms ended early");
  std::int64_t deadline = tracee::monotonic_ns() + 20'000'000;
  timespec at{deadline / 1'000'000'000, deadline % 1'000'000'000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, nullptr) != 0) {}
  if (tracee::monotonic_ns() < deadline) tracee::failed("an absolute sleep ended before its deadline");
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  look();
  tracee::ready();
  for (;;) {
    for (int i = 0; i < 1000; ++i) look();
    sleep_a_while();
    if (tracee::poll_order(0)) tracee::say("ok");
  }
}
