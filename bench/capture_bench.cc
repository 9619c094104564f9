// The linux backend's freeze over the writer, without agent and network:
//
//   bench_capture [--bytes N] [--pages P] [--pattern sequential|scattered] [--interval-us U]
//                 [--maps M] [--threads T] [--descriptors D] [--spread 0|1] [--huge 0|1] [--watch 0|1]   (of the writer)
//                 [--captures C] [--approach-us A] [--tracker NAME] [--copier NAME]
//                 [--program-cpu N] [--baton-cpu N]
//
// The program runs alone on one processor, this one on the other. --approach-us 0: everything
// is copied in the freeze. Prints one JSON object. Needs root and cgroup v2.
#include <sys/utsname.h>

#include <thread>

#include "agent/backend/linux/attachment.h"
#include "bench/subject.h"

using namespace baton;
using namespace baton::bench;

namespace {

void print(const Options& options, const std::map<std::string, std::vector<double>>& v,
           const backend::CaptureStats& last, const std::string& tracker, const std::string& copier, double first,
           const std::string& program) {
  utsname host{};
  ::uname(&host);
  std::printf("{\"bench\": \"capture\", \"unit\": \"us\", \"kernel\": \"%s\"", host.release);
  for (const auto& [key, value] : options) std::printf(", \"%s\": \"%s\"", key.c_str(), value.c_str());
  std::printf(", \"tracker_used\": \"%s\", \"copier_used\": \"%s\", \"strategy\": \"%s\", \"why\": \"%s\", "
              "\"first_pause\": %.1f, \"program\": \"%s\"",
              tracker.c_str(), copier.c_str(), last.strategy.c_str(), last.why.c_str(), first, program.c_str());
  for (const auto& [name, values] : v) {
    std::printf(", \"%s\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name.c_str(), at(values, 0.5),
                at(values, 0.99), at(values, 1));
  }
  std::printf("}\n");
}

Result<void> run(const Options& options) {
  std::vector<std::string> words{BENCH_WRITER};
  for (const char* key : {"bytes", "pages", "pattern", "interval-us", "maps", "threads", "descriptors", "spread", "huge", "watch"}) {
    words.push_back(std::string("--") + key);
    words.push_back(options.at(key));
  }
  auto number = [&](const char* key) { return std::atoi(options.at(key).c_str()); };
  Subject program(words, number("program-cpu"));
  pin(0, number("baton-cpu"));
  RingSink sink;
  BATON_ASSIGN(auto attachment, linux_backend::LinuxAttachment::attach(program.target(options)));
  BATON_TRY(attachment->round(sink, {}));
  std::map<std::string, std::vector<double>> v;
  double first = 0;
  backend::CaptureStats last;
  backend::CaptureOptions capture;
  capture.approach = std::chrono::microseconds(number("approach-us"));
  auto next = std::chrono::steady_clock::now();
  constexpr int kWarmUp = 20;
  for (int i = -kWarmUp; i < number("captures"); ++i) {
    // A little off the program's own interval, so that all its moments are met.
    next += std::chrono::microseconds(number("interval-us") * 1003 / 1000);
    std::this_thread::sleep_until(next);
    if (i == 0) program.report();
    pb::Manifest manifest;
    auto begun = std::chrono::steady_clock::now();
    BATON_ASSIGN(last, attachment->capture(capture, sink, manifest));
    if (i == -kWarmUp) first = us(last.pause);
    if (i < 0) continue;
    v["pause"].push_back(us(last.pause));
    v["stop"].push_back(us(last.stop));
    v["scan"].push_back(us(last.scan));
    v["copy"].push_back(us(last.copy));
    v["state"].push_back(us(last.state));
    v["resume"].push_back(us(last.resume));
    v["whole"].push_back(us(std::chrono::steady_clock::now() - begun));
    v["pages_written"].push_back(static_cast<double>(last.pages.pages_written));
    v["pages_frozen"].push_back(static_cast<double>(last.pages_frozen));
    v["rounds"].push_back(last.rounds);
  }
  print(options, v, last, attachment->tracker_name(), attachment->copier_name(), first, program.report());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  Options options{
      {"bytes", "268435456"}, {"pages", "2000"},   {"pattern", "scattered"}, {"interval-us", "20000"},
      {"maps", "1"},          {"threads", "0"},    {"descriptors", "0"}, {"spread", "0"},          {"huge", "0"},
      {"captures", "1000"},   {"approach-us", "12000"}, {"tracker", "auto"},  {"copier", "auto"},
      {"program-cpu", "0"},   {"baton-cpu", "1"},  {"watch", "0"}};
  if (!read_options(argc, argv, options)) return 2;
  ::setpriority(PRIO_PROCESS, 0, -15);
  auto done = run(options);
  if (!done) std::fprintf(stderr, "bench_capture: %s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
