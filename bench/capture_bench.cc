// The linux backend's freeze over bench_writer:
//   bench_capture [--bytes N] [--pages P] [--pattern sequential|scattered] [--captures C]
//                 [--rounds R] [--interval-us U] [--tracker NAME]
// R copy rounds beside the running program before each freeze. Prints one JSON object.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "agent/backend/linux/attachment.h"

using namespace baton;

namespace {

// Room for `bytes`, used again from the start at each capture; touched beforehand.
class RingSink final : public backend::PageSink {
 public:
  explicit RingSink(std::size_t bytes) : bytes_(bytes) {
    area_ = static_cast<std::byte*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  }
  void begin() { used_ = 0; }
  std::span<std::byte> reserve(std::size_t bytes) override {
    std::size_t n = std::min(bytes, bytes_ - used_);
    return {area_ + used_, n};
  }
  void emit(std::uint64_t, std::uint64_t, std::uint32_t count) override { used_ += count * 4096ul; }
  void drop(std::uint64_t, std::uint64_t, std::uint64_t) override {}
  std::size_t free_bytes() const override { return bytes_ - used_; }

 private:
  std::byte* area_;
  std::size_t bytes_, used_ = 0;
};

double at(std::vector<double> v, double q) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<std::size_t>(std::ceil(q * static_cast<double>(v.size()))) - 1)];
}

double us(std::chrono::nanoseconds d) { return static_cast<double>(d.count()) / 1000.0; }

}  // namespace

int main(int argc, char** argv) {
  std::string bytes = "268435456", pages = "2000", pattern = "scattered", interval = "20000", tracker = "auto";
  int captures = 500, rounds = 0;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = argv[i], value = argv[i + 1];
    if (key == "--bytes") bytes = value;
    else if (key == "--pages") pages = value;
    else if (key == "--pattern") pattern = value;
    else if (key == "--interval-us") interval = value;
    else if (key == "--captures") captures = std::atoi(value.c_str());
    else if (key == "--rounds") rounds = std::atoi(value.c_str());
    else if (key == "--tracker") tracker = value;
    else {
      std::fprintf(stderr, "bench_capture: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  // Its output goes to a file: a pipe to the outside would be refused.
  std::string said = "/tmp/bench_capture." + std::to_string(::getpid());
  int out = ::open(said.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
  if (out < 0) return 1;
  pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(out, 1);
    ::dup2(out, 2);
    ::close(0);
    ::open("/dev/null", O_RDONLY);
    ::close_range(3, ~0u, 0);
    ::setsid();
    ::execl(BENCH_WRITER, BENCH_WRITER, "--bytes", bytes.c_str(), "--pages", pages.c_str(), "--interval-us",
            interval.c_str(), "--pattern", pattern.c_str(), nullptr);
    ::_exit(127);
  }
  char line[64];
  for (int i = 0; i < 30000 && ::pread(out, line, sizeof line, 0) <= 0; ++i) ::usleep(1000);

  int status = 1;
  {
    backend::AttachTarget target;
    target.root = pid;
    target.tracker = tracker;
    target.spec.set_name("bench");
    RingSink sink(std::strtoull(bytes.c_str(), nullptr, 10) + (64u << 20));
    auto attachment = linux_backend::LinuxAttachment::attach(target);
    std::vector<double> pause, stop, scan, copy, state, resume, copied;
    auto run = [&]() -> Result<void> {
      if (!attachment) return attachment.error();
      BATON_TRY((*attachment)->round(sink, {}));
      auto next = std::chrono::steady_clock::now();
      for (int i = 0; i < captures; ++i) {
        next += std::chrono::microseconds(std::atoi(interval.c_str()));
        std::this_thread::sleep_until(next);
        sink.begin();
        for (int r = 0; r < rounds; ++r) BATON_TRY((*attachment)->round(sink, {}));
        pb::Manifest manifest;
        BATON_ASSIGN(auto s, (*attachment)->capture({}, sink, manifest));
        if (i < 10) continue;   // warm-up
        pause.push_back(us(s.pause));
        stop.push_back(us(s.stop));
        scan.push_back(us(s.scan));
        copy.push_back(us(s.copy));
        state.push_back(us(s.state));
        resume.push_back(us(s.resume));
        copied.push_back(static_cast<double>(s.pages.pages_copied));
      }
      return {};
    };
    if (auto done = run(); !done) {
      std::fprintf(stderr, "bench_capture: %s\n", done.error().message().c_str());
    } else {
      utsname host{};
      ::uname(&host);
      std::printf("{\"bench\": \"capture\", \"unit\": \"us\", \"kernel\": \"%s\", \"bytes\": %s, "
                  "\"pages_per_interval\": %s, \"interval_us\": %s, \"pattern\": \"%s\", \"tracker\": \"%s\", "
                  "\"rounds\": %d, \"captures\": %zu, \"pages_copied_p50\": %.0f",
                  host.release, bytes.c_str(), pages.c_str(), interval.c_str(), pattern.c_str(),
                  (*attachment)->tracker_name().c_str(), rounds, pause.size(), at(copied, 0.5));
      auto print = [](const char* name, const std::vector<double>& v) {
        std::printf(", \"%s\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, at(v, 0.5), at(v, 0.99), at(v, 1));
      };
      print("pause", pause);
      print("stop", stop);
      print("scan", scan);
      print("copy", copy);
      print("state", state);
      print("resume", resume);
      std::printf("}\n");
      status = 0;
    }
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  ::unlink(said.c_str());
  return status;
}
