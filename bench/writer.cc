// The program under test of the benchmarks: maps memory, fills it, and then writes a
// fixed number of pages per interval, in order or scattered.
//
//   writer --bytes N --pages P --interval-us U --pattern sequential|scattered --random-share 0.5
//
// random-share is the share of each page that does not compress. Prints "ready" once
// the memory is filled, then runs until it is killed. The longest gap between two turns
// of its loop beyond the interval (the stall it saw) is printed at SIGUSR1.
#include <sys/mman.h>
#include <time.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

volatile sig_atomic_t report_wanted = 0;

std::uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

std::uint64_t state = 88172645463325252ull;
std::uint64_t next_random() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

void fill_page(unsigned char* page, std::size_t random_bytes) {
  for (std::size_t at = 0; at + 8 <= random_bytes; at += 8) {
    std::uint64_t value = next_random();
    std::memcpy(page + at, &value, 8);
  }
  if (random_bytes < 4096) std::memset(page + random_bytes, static_cast<int>(next_random() & 7) + 1, 4096 - random_bytes);
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t bytes = 256u << 20, pages_per_interval = 2000;
  std::uint64_t interval_us = 20000;
  bool scattered = false;
  double random_share = 0.5;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--bytes") bytes = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pages") pages_per_interval = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--interval-us") interval_us = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pattern") scattered = value == "scattered";
    else if (key == "--random-share") random_share = std::atof(value.c_str());
    else {
      std::fprintf(stderr, "writer: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  std::signal(SIGUSR1, [](int) { report_wanted = 1; });
  auto* memory = static_cast<unsigned char*>(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) {
    std::perror("writer: mmap");
    return 1;
  }
  const std::size_t pages = bytes / 4096;
  const auto random_bytes = static_cast<std::size_t>(4096 * random_share) & ~std::size_t{7};
  for (std::size_t p = 0; p < pages; ++p) fill_page(memory + p * 4096, random_bytes);
  std::printf("ready\n");
  std::fflush(stdout);
  std::size_t cursor = 0;
  std::uint64_t due = now_ns(), worst_ns = 0;
  for (;;) {
    for (std::size_t n = 0; n < pages_per_interval; ++n) {
      std::size_t page = scattered ? next_random() % pages : cursor++ % pages;
      std::uint64_t value = next_random();
      std::memcpy(memory + page * 4096 + (value % 500) * 8, &value, 8);
    }
    due += interval_us * 1000;
    std::uint64_t now = now_ns();
    if (now < due) {
      timespec until{static_cast<time_t>(due / 1'000'000'000), static_cast<long>(due % 1'000'000'000)};
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
      now = now_ns();
    }
    if (now > due && now - due > worst_ns) worst_ns = now - due;
    if (now > due + interval_us * 1000) due = now;
    if (report_wanted) {
      report_wanted = 0;
      std::printf("worst_stall_us %llu\n", static_cast<unsigned long long>(worst_ns / 1000));
      std::fflush(stdout);
      worst_ns = 0;
    }
  }
}
