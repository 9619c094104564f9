// For tracees with options ("--name value" pairs) and whole pages to check:
// builds on tracee.h, which says how a tracee talks.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "tracee.h"

namespace tracee {

inline std::map<std::string, std::string>& options() {
  static std::map<std::string, std::string> values;
  return values;
}

inline std::string option(const std::string& name, const std::string& fallback) {
  auto it = options().find(name);
  return it == options().end() ? fallback : it->second;
}

inline long number(const std::string& name, long fallback) {
  auto it = options().find(name);
  return it == options().end() ? fallback : std::strtol(it->second.c_str(), nullptr, 10);
}

inline void start(int argc, char** argv) {
  for (int i = 1; i < argc; i += 2) {
    if (std::strncmp(argv[i], "--", 2) != 0 || i + 1 == argc) {
      std::fprintf(stderr, "usage: %s [--name value]...\n", argv[0]);
      std::exit(2);
    }
    options()[argv[i] + 2] = argv[i + 1];
  }
  std::signal(SIGPIPE, SIG_IGN);
}

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void failed(const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  say("FAILED: %s", text);
  ::_exit(1);
}

#define EXPECT_THAT(condition) \
  do {                         \
    if (!(condition)) ::tracee::failed("%s:%d: %s (errno %d)", __FILE__, __LINE__, #condition, errno); \
  } while (0)

// True when an order to verify has arrived, at the latest after `wait_ms`.
inline bool poll_order(long wait_ms) {
  const long long until = now_ns(CLOCK_MONOTONIC) + wait_ms * 1'000'000LL;
  while (!asked()) {
    long long left = until - now_ns(CLOCK_MONOTONIC);
    if (left <= 0) return false;
    timespec nap{0, left > 10'000'000 ? 10'000'000 : static_cast<long>(left)};
    nanosleep(&nap, nullptr);
  }
  return true;
}

[[noreturn]] inline void serve(const std::function<void()>& verify) {
  for (;;) {
    if (!poll_order(1000)) continue;
    verify();
    say("ok");
  }
}

inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::size_t kPage = 4096;

// Fills or checks one page with what follows from `seed`.
inline void fill_page(void* page, std::uint64_t seed) {
  auto* words = static_cast<std::uint64_t*>(page);
  for (std::size_t i = 0; i < kPage / 8; ++i) words[i] = mix(seed * 512 + i);
}

inline bool page_holds(const void* page, std::uint64_t seed) {
  auto* words = static_cast<const std::uint64_t*>(page);
  for (std::size_t i = 0; i < kPage / 8; ++i) {
    if (words[i] != mix(seed * 512 + i)) return false;
  }
  return true;
}

inline std::int64_t monotonic_ns(clockid_t clock = CLOCK_MONOTONIC) { return now_ns(clock); }

}  // namespace tracee
