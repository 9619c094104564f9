// Counts, keeps its count in memory together with a checksum over 4 MiB that it also
// writes, and prints one line a turn. Lines never go back and never skip.
// Usage: counter [PERIOD_US [FILE]]: the lines go to FILE, opened for each of them anew.
#include <fcntl.h>

#include <cstdint>
#include <vector>

#include "tracee.h"

int main(int argc, char** argv) {
  const long period_us = argc > 1 ? std::atol(argv[1]) : 100'000;
  std::vector<std::uint64_t> memory(512 * 1024, 0);
  std::uint64_t count = 0, sum = 0;
  long long last = tracee::now_ns(CLOCK_MONOTONIC);
  tracee::ready();
  for (;;) {
    ++count;
    std::uint64_t& word = memory[(count * 7919) % memory.size()];
    sum += count - word;
    word = count;
    long long now = tracee::now_ns(CLOCK_MONOTONIC);
    if (now < last) tracee::fail_now("CLOCK_MONOTONIC ran backwards");
    last = now;
    if (argc > 2) {
      char line[40];
      int size = snprintf(line, sizeof line, "count %llu\n", static_cast<unsigned long long>(count));
      int fd = open(argv[2], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      MUST(fd >= 0 && write(fd, line, static_cast<size_t>(size)) == size);
      close(fd);
    } else {
      tracee::say("count %llu", static_cast<unsigned long long>(count));
    }
    if (tracee::asked()) {
      std::uint64_t total = 0;
      for (std::uint64_t value : memory) total += value;
      tracee::Check check;
      check.same(static_cast<long long>(total), static_cast<long long>(sum), "sum of the memory");
    }
    usleep(static_cast<useconds_t>(period_us));
  }
}
