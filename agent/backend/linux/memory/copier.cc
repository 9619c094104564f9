#include "agent/backend/linux/memory/copier.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>

#include "agent/backend/linux/memory/tracker.h"
#include "base/check.h"

namespace baton::linux_backend {
namespace {

constexpr std::size_t kPage = 4096;
constexpr int kMaxCpu = 1023;

std::vector<CopierType>& types() {
  static auto* list = new std::vector<CopierType>;
  return *list;
}

template <typename T>
bool parse_number(std::string_view text, T low, T high, T& out) {
  T value{};
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < low || value > high) return false;
  out = value;
  return true;
}

bool parse_cpus(std::string_view text, std::vector<int>& out) {
  while (!text.empty()) {
    auto plus = text.find('+');
    std::string_view part = text.substr(0, plus);
    auto dash = part.find('-');
    int first = 0, last = 0;
    if (!parse_number(part.substr(0, dash), 0, kMaxCpu, first)) return false;
    last = first;
    if (dash != std::string_view::npos && !parse_number(part.substr(dash + 1), first, kMaxCpu, last)) return false;
    for (int cpu = first; cpu <= last; ++cpu) out.push_back(cpu);
    if (plus == std::string_view::npos) return true;
    text.remove_prefix(plus + 1);
  }
  return false;
}

// Tries each copier over kTrial full batches, goes on with the fastest, and tries again after
// kPeriod batches: how much the other processors have to do changes.
class Measured final : public Copier {
 public:
  static constexpr std::uint64_t kTrial = 16, kPeriod = 4096;
  explicit Measured(std::vector<std::unique_ptr<Copier>> copiers) : copiers_(std::move(copiers)) {
    cost_.resize(copiers_.size());
  }
  std::string_view name() const override { return copiers_[chosen_]->name(); }

  Result<std::uint64_t> copy(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to) override {
    // Small batches go the simple way and say nothing about speed.
    std::uint64_t pages = 0;
    for (const PageRun& r : runs) pages += r.count;
    if (copiers_.size() == 1 || pages < kMaxPages) return copiers_[0]->copy(pid, runs, to);
    std::uint64_t at = batches_++ % kPeriod;
    std::size_t trial = at / kTrial;
    if (trial >= copiers_.size()) return copiers_[chosen_]->copy(pid, runs, to);
    auto start = std::chrono::steady_clock::now();
    auto done = copiers_[trial]->copy(pid, runs, to);
    cost_[trial] += std::chrono::steady_clock::now() - start;
    if (at + 1 == kTrial * copiers_.size()) {
      chosen_ = static_cast<std::size_t>(std::min_element(cost_.begin(), cost_.end()) - cost_.begin());
      std::fill(cost_.begin(), cost_.end(), std::chrono::nanoseconds{0});
    }
    return done;
  }

 private:
  std::vector<std::unique_ptr<Copier>> copiers_;
  std::vector<std::chrono::nanoseconds> cost_;
  std::uint64_t batches_ = 0;
  std::size_t chosen_ = 0;
};

}  // namespace

CopierRegistrar::CopierRegistrar(CopierType type) {
  CHECK(std::none_of(types().begin(), types().end(), [&](const CopierType& t) { return t.name == type.name; }));
  types().push_back(std::move(type));
  std::sort(types().begin(), types().end(), [](const CopierType& a, const CopierType& b) { return a.rank < b.rank; });
}

const std::vector<CopierType>& copier_types() { return types(); }

Result<CopierChoice> parse_copier(const std::string& text_untrusted) {
  CopierChoice choice;
  std::string_view rest = text_untrusted;
  auto colon = rest.find(':');
  choice.name = std::string(rest.substr(0, colon));
  if (choice.name.empty()) choice.name = "auto";
  bool known = choice.name == "auto" || std::any_of(types().begin(), types().end(),
                                                    [&](const CopierType& t) { return t.name == choice.name; });
  auto wrong = [&](const std::string& what) {
    std::string names = "auto";
    for (const CopierType& t : types()) names += ", " + t.name;
    return make_error(Code::kInvalid, "copier", what,
                      "Like parallel:threads=2,granularity=16,cpus=0-1. Copiers: " + names + ".");
  };
  if (!known) return wrong("no copier is called '" + choice.name + "'");
  rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  while (colon != std::string_view::npos) {
    auto comma = rest.find(',');
    std::string_view item = rest.substr(0, comma);
    auto equals = item.find('=');
    std::string_view key = item.substr(0, equals);
    std::string_view value = equals == std::string_view::npos ? std::string_view() : item.substr(equals + 1);
    bool sound = false;
    if (key == "granularity") sound = parse_number(value, 1u, Copier::kMaxGranularity, choice.options.granularity);
    else if (key == "threads") sound = parse_number(value, 0u, 64u, choice.options.threads);
    else if (key == "cpus") sound = parse_cpus(value, choice.options.cpus);
    if (!sound) return wrong("'" + std::string(item) + "' is not understood");
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  return choice;
}

Result<std::unique_ptr<Copier>> make_copier(const CopierChoice& choice) {
  std::vector<std::unique_ptr<Copier>> made;
  for (const CopierType& t : types()) {
    if (choice.name != "auto" && t.name != choice.name) continue;
    if (choice.name == "auto" && forced_off("copier-" + t.name)) continue;
    auto copier = t.make(choice.options);
    if (copier) made.push_back(std::move(*copier));
    else if (choice.name != "auto") return std::move(copier).error();
  }
  if (made.empty()) return make_error(Code::kUnsupported, "copier", "none works here");
  if (made.size() == 1) return std::move(made.front());
  return std::unique_ptr<Copier>(std::make_unique<Measured>(std::move(made)));
}

Result<std::uint64_t> read_remote(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to) {
  std::array<iovec, Copier::kMaxPages> remote;
  CHECK(runs.size() <= remote.size());
  std::uint64_t wanted = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    remote[i] = {reinterpret_cast<void*>(runs[i].first * kPage), runs[i].count * kPage};
    wanted += runs[i].count;
  }
  CHECK(wanted * kPage <= to.size());
  iovec local{to.data(), wanted * kPage};
  ssize_t n = ::process_vm_readv(pid, &local, 1, remote.data(), runs.size(), 0);
  if (n < 0) {
    if (errno == EFAULT || errno == EIO) return 0;
    if (errno == ESRCH) {
      return make_error(Code::kTraceeGone, "copy memory", "process " + std::to_string(pid) + ": it has ended");
    }
    return errno_error("copy memory of", "process " + std::to_string(pid));
  }
  return static_cast<std::uint64_t>(n) / kPage;
}

namespace {
class Single final : public Copier {
 public:
  std::string_view name() const override { return "single"; }
  Result<std::uint64_t> copy(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to) override {
    return read_remote(pid, runs, to);
  }
};
const CopierRegistrar registrar({"single", 10, [](const CopierOptions&) -> Result<std::unique_ptr<Copier>> {
                                   return std::unique_ptr<Copier>(std::make_unique<Single>());
                                 }});
}  // namespace
}  // namespace baton::linux_backend
