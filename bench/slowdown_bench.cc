// What being protected costs a program: its speed in windows with and without checkpoints, in turn.
//
//   bench_slowdown [--kernel pricing|annealing|loop] [--bytes N] [--pages P] [--interval-us U]
//                  [--windows W] [--window-ms M] [--approach-us A] [--tracker NAME] [--copier NAME]
//                  [--program-cpu N] [--baton-cpu N]
//
// Each protected window begins when the first full copy is done. The slowdown is the median of
// the ratios of each protected window to the mean of its two neighbours. Without agent and
// network, which run on the other processor. Prints one JSON object.
#include <sys/utsname.h>

#include <thread>

#include "agent/backend/linux/attachment.h"
#include "bench/subject.h"

using namespace baton;
using namespace baton::bench;

namespace {

struct Progress {              // kernels.cc
  std::uint64_t ready, work, pages, worst_ns, late;
};

struct Window {
  double rate = 0, pages_per_interval = 0;
  std::uint64_t worst_ns = 0, late = 0;
};

class Meter {
 public:
  explicit Meter(const std::string& path) {
    int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    void* at = fd < 0 ? MAP_FAILED : ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) ::close(fd);
    if (at != MAP_FAILED) progress_ = static_cast<volatile Progress*>(at);
  }
  explicit operator bool() const { return progress_ != nullptr; }
  void begin() {
    progress_->worst_ns = 0;
    work_ = progress_->work;
    pages_ = progress_->pages;
    late_ = progress_->late;
    from_ = std::chrono::steady_clock::now();
  }
  Window end(double interval_us) const {
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - from_).count();
    Window w;
    w.rate = static_cast<double>(progress_->work - work_) / seconds;
    w.pages_per_interval = static_cast<double>(progress_->pages - pages_) / seconds * interval_us / 1e6;
    w.worst_ns = progress_->worst_ns;
    w.late = progress_->late - late_;
    return w;
  }

 private:
  volatile Progress* progress_ = nullptr;
  std::uint64_t work_ = 0, pages_ = 0, late_ = 0;
  std::chrono::steady_clock::time_point from_;
};

Result<Window> protected_window(const Options& options, const Subject& program, Meter& meter, RingSink& sink,
                                std::vector<double>& pauses, std::vector<double>& written) {
  auto number = [&](const char* key) { return std::atoi(options.at(key).c_str()); };
  BATON_ASSIGN(auto attachment, linux_backend::LinuxAttachment::attach(program.target(options)));
  BATON_TRY(attachment->round(sink, {}));
  backend::CaptureOptions capture;
  capture.approach = std::chrono::microseconds(number("approach-us"));
  for (int i = 0; i < 20; ++i) {
    pb::Manifest manifest;
    BATON_TRY(attachment->capture(capture, sink, manifest));
    std::this_thread::sleep_for(std::chrono::microseconds(number("interval-us")));
  }
  meter.begin();
  auto next = std::chrono::steady_clock::now();
  auto end = next + std::chrono::milliseconds(number("window-ms"));
  while (next < end) {
    next += std::chrono::microseconds(number("interval-us"));
    std::this_thread::sleep_until(next);
    pb::Manifest manifest;
    BATON_ASSIGN(auto stats, attachment->capture(capture, sink, manifest));
    pauses.push_back(us(stats.pause));
    written.push_back(static_cast<double>(stats.pages.pages_written));
  }
  return meter.end(std::atof(options.at("interval-us").c_str()));
}

Result<void> run(const Options& options) {
  auto number = [&](const char* key) { return std::atoi(options.at(key).c_str()); };
  std::string progress = "/tmp/baton-bench-progress." + std::to_string(::getpid());
  std::vector<std::string> words{BENCH_KERNELS, options.at("kernel"), "--progress", progress};
  for (const char* key : {"bytes", "pages"}) {
    words.push_back(std::string("--") + key);
    words.push_back(options.at(key));
  }
  Subject program(words, number("program-cpu"));
  Meter meter(progress);
  ::unlink(progress.c_str());
  if (!meter) return make_error(Code::kFailed, "bench", "the program has not begun");
  pin(0, number("baton-cpu"));
  RingSink sink;
  const double interval_us = std::atof(options.at("interval-us").c_str());
  std::vector<Window> bare, guarded;
  std::vector<double> pauses, written, ratios, rates;
  auto bare_window = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    meter.begin();
    std::this_thread::sleep_for(std::chrono::milliseconds(number("window-ms")));
    bare.push_back(meter.end(interval_us));
  };
  bare_window();
  for (int i = 0; i < number("windows"); ++i) {
    BATON_ASSIGN(Window w, protected_window(options, program, meter, sink, pauses, written));
    guarded.push_back(w);
    bare_window();
    double around = (bare[bare.size() - 2].rate + bare.back().rate) / 2;
    ratios.push_back(around / w.rate);
  }
  for (const Window& w : bare) rates.push_back(w.rate);
  std::uint64_t worst_bare = 0, worst_guarded = 0, late_bare = 0, late_guarded = 0;
  for (const Window& w : bare) worst_bare = std::max(worst_bare, w.worst_ns), late_bare += w.late;
  for (const Window& w : guarded) worst_guarded = std::max(worst_guarded, w.worst_ns), late_guarded += w.late;
  utsname host{};
  ::uname(&host);
  std::printf("{\"bench\": \"slowdown\", \"kernel\": \"%s\"", host.release);
  for (const auto& [key, value] : options) {
    std::printf(", \"%s\": \"%s\"", key == "kernel" ? "program" : key.c_str(), value.c_str());
  }
  std::printf(", \"slowdown\": {\"p50\": %.4f, \"min\": %.4f, \"max\": %.4f}, \"work_per_s\": %.0f, "
              "\"pages_per_interval\": %.0f, \"pages_captured_p50\": %.0f, \"pause_us\": {\"p50\": %.1f, "
              "\"p99\": %.1f, \"max\": %.1f}, \"late\": {\"bare\": %llu, \"protected\": %llu}, "
              "\"worst_late_us\": {\"bare\": %llu, \"protected\": %llu}}\n",
              at(ratios, 0.5), at(ratios, 0), at(ratios, 1), at(rates, 0.5),
              guarded.empty() ? 0 : guarded.back().pages_per_interval, at(written, 0.5), at(pauses, 0.5),
              at(pauses, 0.99), at(pauses, 1), static_cast<unsigned long long>(late_bare),
              static_cast<unsigned long long>(late_guarded), static_cast<unsigned long long>(worst_bare / 1000),
              static_cast<unsigned long long>(worst_guarded / 1000));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  Options options{{"kernel", "pricing"}, {"bytes", "629145600"}, {"pages", "300"},      {"interval-us", "20000"},
                  {"windows", "5"},      {"window-ms", "4000"},  {"approach-us", "12000"}, {"tracker", "auto"},
                  {"copier", "auto"},    {"program-cpu", "0"},   {"baton-cpu", "1"}};
  if (!read_options(argc, argv, options)) return 2;
  ::setpriority(PRIO_PROCESS, 0, -15);
  auto done = run(options);
  if (!done) std::fprintf(stderr, "bench_slowdown: %s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
