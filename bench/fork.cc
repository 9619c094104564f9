// The peer fork(): a program that takes snapshots of itself by forking, as redis does. What it is
// stopped for is the fork itself; afterwards every first write to a page copies it.
//
//   bench_fork [--bytes N] [--pages P] [--pattern sequential|scattered] [--interval-us U] [--captures C]
//
// The child reads all of its memory, as one that saves it would, and ends. Prints one JSON object.
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {
std::uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}
double at(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<std::size_t>(q * static_cast<double>(v.size())))];
}
}  // namespace

int main(int argc, char** argv) {
  std::size_t bytes = 256u << 20, pages = 2000;
  std::uint64_t interval_us = 20000, state = 88172645463325252ull;
  int captures = 100;
  bool scattered = true;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--bytes") bytes = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pages") pages = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--pattern") scattered = value == "scattered";
    else if (key == "--interval-us") interval_us = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "--captures") captures = std::atoi(value.c_str());
    else return 2;
  }
  auto* memory = static_cast<unsigned char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return 1;
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  std::memset(memory, 1, bytes);
  const std::size_t count = bytes / 4096;
  std::vector<double> pauses, writes;
  std::size_t cursor = 0;
  std::uint64_t due = now_ns();
  for (int c = 0; c < captures; ++c) {
    std::uint64_t begun = now_ns();
    pid_t child = fork();
    if (child == 0) {
      volatile unsigned char sum = 0;
      for (std::size_t p = 0; p < count; ++p) sum = static_cast<unsigned char>(sum + memory[p * 4096]);
      _exit(0);
    }
    if (child < 0) return 1;
    pauses.push_back(static_cast<double>(now_ns() - begun) / 1000);
    begun = now_ns();
    for (std::size_t n = 0; n < pages; ++n) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      std::size_t page = scattered ? state % count : cursor++ % count;
      memory[page * 4096 + state % 4096] = static_cast<unsigned char>(state);
    }
    writes.push_back(static_cast<double>(now_ns() - begun) / 1000);
    waitpid(child, nullptr, 0);
    due = std::max(due + interval_us * 1000, now_ns());
    timespec until{static_cast<time_t>(due / 1'000'000'000), static_cast<long>(due % 1'000'000'000)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
  }
  std::printf("{\"bench\": \"fork\", \"unit\": \"us\", \"bytes\": %zu, \"pages\": %zu, \"pause\": {\"p50\": %.1f, \"p99\": %.1f, "
              "\"max\": %.1f}, \"first_write\": {\"p50\": %.2f}}\n",
              bytes, pages, at(pauses, 0.5), at(pauses, 0.99), at(pauses, 1), at(writes, 0.5) / static_cast<double>(std::max<std::size_t>(pages, 1)));
  return 0;
}
