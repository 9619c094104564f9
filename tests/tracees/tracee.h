// What every program under test shares: it sets something up, prints "ready", waits,
// and checks itself whenever it gets SIGUSR1, printing "ok" or "FAILED: what".
// A check that runs all the time ends the program with "FAILED: what" and status 1.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace tracee {

inline volatile sig_atomic_t g_asked = 0;

inline void say(const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(line, sizeof line - 1, format, args);
  va_end(args);
  if (n > static_cast<int>(sizeof line) - 2) n = static_cast<int>(sizeof line) - 2;
  line[n++] = '\n';
  for (int at = 0; at < n;) {
    ssize_t w = write(1, line + at, static_cast<size_t>(n - at));
    if (w < 0 && errno == EINTR) continue;
    if (w <= 0) _exit(3);
    at += static_cast<int>(w);
  }
}

// Call when set up. Installs the SIGUSR1 handler.
inline void ready() {
  struct sigaction action {};
  action.sa_handler = [](int) { g_asked = 1; };
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  say("ready");
}

inline bool asked() {
  if (!g_asked) return false;
  g_asked = 0;
  return true;
}

// Waits until asked; wakes at the latest every 20 ms so that no wake-up is lost.
inline void wait_until_asked() {
  while (!asked()) {
    timespec nap{0, 20'000'000};
    nanosleep(&nap, nullptr);
  }
}

[[noreturn]] inline void fail_now(const char* what) {
  say("FAILED: %s (errno %d)", what, errno);
  _exit(1);
}

// Inside a self-check: collects the first failure.
struct Check {
  bool ok = true;
  void expect(bool condition, const char* what, long long got = 0, long long wanted = 0) {
    if (condition || !ok) return;
    ok = false;
    say("FAILED: %s (got %lld, wanted %lld, errno %d)", what, got, wanted, errno);
  }
  void same(long long got, long long wanted, const char* what) {
    expect(got == wanted, what, got, wanted);
  }
  ~Check() {
    if (ok) say("ok");
  }
};

inline long long now_ns(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return ts.tv_sec * 1'000'000'000ll + ts.tv_nsec;
}

}  // namespace tracee

#define MUST(condition) \
  do {                  \
    if (!(condition)) tracee::fail_now(#condition); \
  } while (0)
