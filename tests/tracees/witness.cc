// Tells who runs and how far it is, many times a second: appends "WALL_NS HOST COUNT" to FILE,
// which every machine sees. A reader finds out whether two ever ran at once, whether numbers were
// skipped, and how long nobody ran.
// Usage: witness FILE [PERIOD_US]
#include <fcntl.h>
#include <unistd.h>

#include "tracee.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const long period_us = argc > 2 ? std::atol(argv[2]) : 2000;
  tracee::ready();
  for (unsigned long long count = 1;; ++count) {
    char host[65] = "";
    MUST(gethostname(host, sizeof host - 1) == 0);
    char line[160];
    const int size = snprintf(line, sizeof line, "%lld %s %llu\n", tracee::now_ns(CLOCK_REALTIME), host, count);
    const int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    MUST(fd >= 0 && write(fd, line, static_cast<size_t>(size)) == size);
    close(fd);
    if (tracee::asked()) tracee::say("ok");
    usleep(static_cast<useconds_t>(period_us));
  }
}
