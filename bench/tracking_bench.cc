// What tracking and copying cost by themselves, apart from a pause's other parts: the price of a
// first write to a protected page, of a scan per MiB of memory, and the rate of copying.
//
//   bench_tracking [--bytes N] [--pages P] [--bursts B] [--program-cpu N] [--baton-cpu N]
//
// A program writes P pages at a word, in order or scattered, and times that itself; then it is
// frozen and captured, everything in the freeze. The same bursts before anything is attached are
// what the writes cost by themselves. Beside that the naive way: nothing is tracked, and all memory
// is read. One JSON object a line. Needs root and cgroup v2.
#include <sys/uio.h>

#include <string>

#include "agent/backend/linux/attachment.h"
#include "base/fd.h"
#include "bench/subject.h"

using namespace baton;
using namespace baton::bench;

namespace {

constexpr double kMiB = 1 << 20;

void row(const std::string& name, double value, double p99, const char* unit, const std::string& conditions) {
  std::printf("{\"name\": \"%s\", \"value\": %.3f, \"unit\": \"%s\", \"p99\": %.3f, \"conditions\": \"%s\"}\n", name.c_str(),
              value, unit, p99, conditions.c_str());
  std::fflush(stdout);
}

// Nanoseconds of one burst of the program.
Result<double> burst(Subject& program) {
  unsigned long long ns = 0;
  std::string line = program.report();
  if (std::sscanf(line.c_str(), "burst_ns %llu", &ns) != 1) {
    return make_error(Code::kFailed, "burst", "the program did not answer: " + line);
  }
  return static_cast<double>(ns);
}

struct Series {
  std::vector<double> write_ns, scan_us_per_mib, copy_gb_per_s;
  double pages = 0;
  std::string tracker;
};

class Bench {
 public:
  explicit Bench(Options options) : options_(std::move(options)), mib_(number("bytes") / kMiB) {}

  Result<void> run(const std::string& pattern) {
    BATON_ASSIGN(const double bare, bare_write_ns(pattern));
    const std::string about = std::to_string(static_cast<int>(mib_)) + " MiB, bursts of " + options_.at("pages") + " pages, " + pattern;
    row("tracking.bare_write." + pattern, bare, bare, "ns", about + "; the same write with nothing attached");
    for (const char* tracker : {"wp-async", "soft-dirty", "scan"}) {
      auto measured = series(pattern, tracker, bare);
      if (!measured) {
        std::fprintf(stderr, "bench_tracking: %s: %s\n", tracker, measured.error().message().c_str());
        if (measured.error().code == Code::kUnsupported) continue;
        return measured.error();
      }
      if (measured->tracker != tracker) continue;  // this kernel has it not
      const Series& s = *measured;
      const std::string with = about + "; " + tracker;
      row("tracking.first_write." + s.tracker + "." + pattern, at(s.write_ns, 0.5), at(s.write_ns, 0.99), "ns",
          with + ", beyond the bare write, per page");
      row("tracking.scan." + s.tracker + "." + pattern, at(s.scan_us_per_mib, 0.5), at(s.scan_us_per_mib, 0.99), "us/MiB",
          with + ", in the freeze");
      if (s.copy_gb_per_s.empty()) continue;   // this one copies while it scans
      row("tracking.copy." + s.tracker + "." + pattern, at(s.copy_gb_per_s, 0.5), at(s.copy_gb_per_s, 0.01), "GB/s",
          with + ", copier " + options_.at("copier") + ", " + std::to_string(static_cast<int>(s.pages)) + " pages per freeze; p99 is the slowest");
    }
    return naive(about, pattern);
  }

 private:
  double number(const char* key) const { return std::atof(options_.at(key).c_str()); }

  Subject program(const std::string& pattern) const {
    return Subject({BENCH_WRITER, "--step", "1", "--bytes", options_.at("bytes"), "--pages", options_.at("pages"), "--pattern", pattern},
                   static_cast<int>(number("program-cpu")));
  }

  Result<double> bare_write_ns(const std::string& pattern) const {
    Subject subject = program(pattern);
    std::vector<double> ns;
    for (int i = 0; i < static_cast<int>(number("bursts")); ++i) {
      BATON_ASSIGN(const double took, burst(subject));
      ns.push_back(took / number("pages"));
    }
    return at(ns, 0.5);
  }

  Result<Series> series(const std::string& pattern, const std::string& tracker, double bare) const {
    Subject subject = program(pattern);
    pin(0, static_cast<int>(number("baton-cpu")));
    Options chosen = options_;
    chosen["tracker"] = tracker;
    RingSink sink;
    BATON_ASSIGN(auto attachment, linux_backend::LinuxAttachment::attach(subject.target(chosen)));
    Series s;
    s.tracker = attachment->tracker_name();
    if (s.tracker != tracker) return s;
    BATON_TRY(attachment->round(sink, {}));
    backend::CaptureOptions capture;
    capture.approach = std::chrono::microseconds(0);
    std::vector<double> pages;
    constexpr int kWarmUp = 5;
    for (int i = -kWarmUp; i < static_cast<int>(number("bursts")); ++i) {
      BATON_ASSIGN(const double took, burst(subject));
      pb::Manifest manifest;
      BATON_ASSIGN(const backend::CaptureStats stats, attachment->capture(capture, sink, manifest));
      if (i < 0) continue;
      s.write_ns.push_back(took / number("pages") - bare);
      // The one that compares finds out while it copies.
      s.scan_us_per_mib.push_back((us(stats.scan) + (tracker == "scan" ? us(stats.copy) : 0)) / mib_);
      pages.push_back(static_cast<double>(stats.pages_frozen));
      if (us(stats.copy) > 0 && stats.pages_frozen > 0 && tracker != "scan") {
        s.copy_gb_per_s.push_back(static_cast<double>(stats.pages_frozen) * 4096 / 1000 / us(stats.copy));
      }
    }
    s.pages = at(pages, 0.5);
    return s;
  }

  // Reads the same process whole, in pieces of 4 MiB.
  Result<void> naive(const std::string& about, const std::string& pattern) const {
    Subject subject = program(pattern);
    pin(0, static_cast<int>(number("baton-cpu")));
    BATON_ASSIGN(const std::string maps, read_file("/proc/" + std::to_string(subject.pid()) + "/maps"));
    std::vector<std::byte> buffer(4u << 20);
    std::vector<double> us_per_mib, rate;
    for (int repeat = 0; repeat < 10; ++repeat) {
      double bytes = 0;
      const auto begun = std::chrono::steady_clock::now();
      for (std::size_t line = 0; line < maps.size(); line = maps.find('\n', line) + 1) {
        unsigned long long low = 0, high = 0;
        char prot[5] = {};
        if (std::sscanf(maps.c_str() + line, "%llx-%llx %4s", &low, &high, prot) != 3 || prot[1] != 'w') continue;
        for (; low < high; low += buffer.size()) {
          iovec local{buffer.data(), std::min<std::size_t>(buffer.size(), high - low)};
          iovec remote{reinterpret_cast<void*>(low), local.iov_len};
          if (ssize_t got = ::process_vm_readv(subject.pid(), &local, 1, &remote, 1, 0); got > 0) bytes += static_cast<double>(got);
        }
      }
      const double took = us(std::chrono::steady_clock::now() - begun);
      us_per_mib.push_back(took / (bytes / kMiB));
      rate.push_back(bytes / 1000 / took);
    }
    row("tracking.naive_read." + pattern, at(us_per_mib, 0.5), at(us_per_mib, 0.99), "us/MiB",
        about + "; nothing tracked, no cost to a write, all memory read in pieces of 4 MiB");
    row("tracking.naive_copy." + pattern, at(rate, 0.5), at(rate, 0.01), "GB/s", about + "; the same by its rate; p99 is the slowest");
    return {};
  }

  Options options_;
  double mib_;
};

}  // namespace

int main(int argc, char** argv) {
  Options options{{"bytes", "268435456"}, {"pages", "2000"},    {"bursts", "200"}, {"copier", "single"},
                  {"program-cpu", "0"},   {"baton-cpu", "1"}, {"tracker", "auto"}};
  if (!read_options(argc, argv, options)) return 2;
  ::setpriority(PRIO_PROCESS, 0, -15);
  Bench bench(options);
  for (const char* pattern : {"sequential", "scattered"}) {
    if (auto done = bench.run(pattern); !done) {
      std::fprintf(stderr, "bench_tracking: %s\n", done.error().message().c_str());
      return 1;
    }
  }
  return 0;
}
