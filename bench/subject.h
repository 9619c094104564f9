// What benchmarks of captures share: a program alone on one processor in a cgroup of its own, and
// a sink like the warden's, without its agent.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "agent/backend/backend.h"
#include "base/cgroup.h"

namespace baton::bench {

// Hands out a ring of 64 MiB, touched beforehand; what it held is overwritten.
class RingSink final : public backend::PageSink {
 public:
  RingSink() {
    area_ = static_cast<std::byte*>(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
  }
  ~RingSink() override { ::munmap(area_, kBytes); }
  std::span<std::byte> reserve(std::size_t bytes) override {
    if (used_ == kBytes) used_ = 0;
    return {area_ + used_, std::min(bytes, kBytes - used_)};
  }
  void emit(std::uint64_t, std::uint64_t, std::uint32_t count) override { used_ += count * 4096ul; }
  void drop(std::uint64_t, std::uint64_t, std::uint64_t) override {}
  std::size_t free_bytes() const override { return kBytes; }

 private:
  static constexpr std::size_t kBytes = 64u << 20;
  std::byte* area_;
  std::size_t used_ = 0;
};

inline double at(std::vector<double> v, double q) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<std::size_t>(std::ceil(q * static_cast<double>(v.size()))) - 1)];
}

inline double us(std::chrono::nanoseconds d) { return static_cast<double>(d.count()) / 1000.0; }

inline void pin(pid_t pid, int cpu) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  ::sched_setaffinity(pid, sizeof set, &set);
}

using Options = std::map<std::string, std::string>;

// --KEY VALUE pairs over the defaults in `options`. False: an unknown key, which was printed.
inline bool read_options(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string key = std::string(argv[i]).substr(std::min<std::size_t>(2, std::string(argv[i]).size()));
    if (!options.contains(key)) {
      std::fprintf(stderr, "%s: unknown option %s\n", argv[0], argv[i]);
      return false;
    }
    options[key] = argv[i + 1];
  }
  return true;
}

class Subject {
 public:
  // Starts `words` on processor `cpu` and waits until it has said "ready".
  Subject(std::vector<std::string> words, int cpu)
      : group_(Cgroup::at(Cgroup::mount_point().value_or("/nowhere") + "/baton-bench-" + std::to_string(::getpid()))),
        said_("/tmp/baton-bench." + std::to_string(::getpid())) {
    if (auto made = group_.make(); !made) {
      std::fprintf(stderr, "%s\n", made.error().message().c_str());
      std::exit(1);
    }
    // Its output goes to a file: a pipe to the outside would be refused.
    out_ = ::open(said_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    int go[2];
    if (out_ < 0 || ::pipe(go) != 0) std::exit(1);
    pid_ = ::fork();
    if (pid_ == 0) become(words, go[0]);
    ::close(go[0]);
    pin(pid_, cpu);
    if (!group_.add(pid_)) std::exit(1);
    (void)!::write(go[1], "g", 1);
    ::close(go[1]);
    read_line();
  }
  ~Subject() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(out_);
    ::unlink(said_.c_str());
    (void)group_.wait_empty(std::chrono::seconds(5)).has_value();
    (void)group_.remove().has_value();
  }
  Subject(const Subject&) = delete;
  Subject& operator=(const Subject&) = delete;

  pid_t pid() const { return pid_; }
  // The next line that it prints; empty after 60 s.
  std::string read_line() {
    for (int i = 0; i < 60000; ++i) {
      std::string text(4096, 0);
      ssize_t n = ::pread(out_, text.data(), text.size(), static_cast<off_t>(read_));
      auto end = n > 0 ? text.find('\n') : std::string::npos;
      if (end != std::string::npos) {
        read_ += end + 1;
        return text.substr(0, end);
      }
      ::usleep(1000);
    }
    return "";
  }
  std::string report() {
    ::kill(pid_, SIGUSR1);
    return read_line();
  }
  backend::AttachTarget target(const Options& options) const {
    backend::AttachTarget t;
    t.root = pid_;
    t.cgroup = group_.path();
    t.tracker = options.at("tracker");
    t.spec.set_name("bench");
    t.spec.set_copier(options.at("copier"));
    return t;
  }

 private:
  [[noreturn]] void become(std::vector<std::string>& words, int go) const {
    char byte = 0;
    (void)!::read(go, &byte, 1);
    ::setpriority(PRIO_PROCESS, 0, -15);
    ::dup2(out_, 1);
    ::dup2(out_, 2);
    ::close(0);
    ::open("/dev/null", O_RDONLY);
    ::close_range(3, ~0u, 0);
    ::setsid();
    std::vector<char*> argv;
    for (auto& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  Cgroup group_;
  std::string said_;
  int out_ = -1;
  pid_t pid_ = 0;
  std::size_t read_ = 0;
};

}  // namespace baton::bench
