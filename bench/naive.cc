// The naive way, measured beside ours: stop the program, read everything, write
// everything to a file, let it go on.
//
//   naive PID OUTPUT-FILE [REPEATS]     prints one JSON object
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/fd.h"

namespace {

struct Range {
  std::uint64_t start, end;
};

std::vector<Range> writable_ranges(pid_t pid) {
  std::vector<Range> ranges;
  auto text = baton::read_file("/proc/" + std::to_string(pid) + "/maps");
  if (!text) return ranges;
  std::size_t at = 0;
  while (at < text->size()) {
    auto end = text->find('\n', at);
    std::string line = text->substr(at, end - at);
    unsigned long long low = 0, high = 0;
    char prot[5] = {};
    if (std::sscanf(line.c_str(), "%llx-%llx %4s", &low, &high, prot) == 3 && prot[0] == 'r' &&
        prot[1] == 'w') {
      ranges.push_back({low, high});
    }
    if (end == std::string::npos) break;
    at = end + 1;
  }
  return ranges;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: naive PID OUTPUT-FILE [REPEATS]\n");
    return 2;
  }
  const pid_t pid = std::atoi(argv[1]);
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 10;
  using Clock = std::chrono::steady_clock;
  std::vector<double> pauses_us;
  std::uint64_t total_bytes = 0;
  std::vector<std::byte> buffer(4u << 20);
  for (int i = 0; i < repeats; ++i) {
    auto file = baton::open_file(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (!file) {
      std::fprintf(stderr, "naive: %s\n", file.error().message().c_str());
      return 1;
    }
    auto begin = Clock::now();
    if (ptrace(PTRACE_SEIZE, pid, nullptr, nullptr) != 0 || ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr) != 0) {
      std::perror("naive: ptrace");
      return 1;
    }
    int status = 0;
    waitpid(pid, &status, __WALL);
    total_bytes = 0;
    for (Range range : writable_ranges(pid)) {
      for (std::uint64_t at = range.start; at < range.end;) {
        std::size_t want = std::min<std::uint64_t>(buffer.size(), range.end - at);
        iovec local{buffer.data(), want}, remote{reinterpret_cast<void*>(at), want};
        ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
        if (got <= 0) break;
        if (!baton::write_all(file->get(), std::span(buffer.data(), static_cast<std::size_t>(got)))) return 1;
        at += static_cast<std::uint64_t>(got);
        total_bytes += static_cast<std::uint64_t>(got);
      }
    }
    ptrace(PTRACE_DETACH, pid, nullptr, nullptr);
    pauses_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  std::sort(pauses_us.begin(), pauses_us.end());
  std::printf("{\"pause_us\": {\"p50\": %.0f, \"max\": %.0f}, \"bytes\": %llu, \"repeats\": %d}\n",
              pauses_us[pauses_us.size() / 2], pauses_us.back(),
              static_cast<unsigned long long>(total_bytes), repeats);
  return 0;
}
