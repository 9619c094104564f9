#include "coordinator/cli/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <limits>

namespace baton::cli {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr std::array<Unit, 7> kDurations = {{{"ns", 1e-3},
                                             {"us", 1},
                                             {"ms", 1e3},
                                             {"s", 1e6},
                                             {"m", 60e6},
                                             {"min", 60e6},
                                             {"h", 3600e6}}};
constexpr std::array<Unit, 13> kSizes = {{{"b", 1},
                                          {"kb", 1e3},
                                          {"mb", 1e6},
                                          {"gb", 1e9},
                                          {"tb", 1e12},
                                          {"k", 1024},
                                          {"m", 1048576},
                                          {"g", 1073741824},
                                          {"kib", 1024},
                                          {"mib", 1048576},
                                          {"gib", 1073741824},
                                          {"tib", 1099511627776},
                                          {"t", 1099511627776}}};
constexpr std::array<Unit, 4> kBits = {
    {{"bit", 0.125}, {"kbit", 125}, {"mbit", 125e3}, {"gbit", 125e6}}};

template <std::size_t N>
Result<std::uint64_t> parse(std::string_view text, const std::array<Unit, N>& units,
                            const char* what, const char* hint) {
  auto wrong = [&](const std::string& why) {
    return make_error(Code::kInvalid, std::string("read ") + what,
                      "'" + std::string(text.substr(0, 40)) + "' " + why, hint);
  };
  double number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number,
                                             std::chars_format::fixed);
  if (failed != std::errc() || end == text.data() || !std::isfinite(number)) {
    return wrong(std::string("is not a ") + what);
  }
  if (number < 0) return wrong("is negative");
  std::string unit(end, text.data() + text.size());
  unit.erase(0, unit.find_first_not_of(' ') == std::string::npos ? 0 : unit.find_first_not_of(' '));
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::tolower(c); });
  if (unit.empty()) {
    if (number == 0) return std::uint64_t{0};
    return wrong("has no unit");
  }
  for (const auto& known : units) {
    if (known.name != unit) continue;
    const double value = number * known.factor;
    if (value > 9e18) return wrong("is too large");
    return static_cast<std::uint64_t>(std::llround(value));
  }
  return wrong("has an unknown unit");
}

std::string number(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, value < 10 ? "%.2f" : value < 100 ? "%.1f" : "%.0f", value);
  return buffer;
}

}  // namespace

Result<std::uint64_t> parse_duration_us(std::string_view text) {
  return parse(text, kDurations, "duration", "Like 500us, 20ms, 1s or 2m.");
}

Result<std::uint64_t> parse_size_bytes(std::string_view text) {
  return parse(text, kSizes, "size", "Like 4096B, 64MiB or 2GB.");
}

Result<std::uint64_t> parse_rate(std::string_view text) {
  std::string_view base = text;
  if (base.ends_with("/s")) base.remove_suffix(2);
  constexpr const char* kHint = "Like 10mbit, 1gbit or 100MB.";
  auto bits = parse(base, kBits, "rate", kHint);
  if (bits) return bits;
  auto bytes = parse(base, kSizes, "rate", kHint);
  if (bytes && *bytes == 0) {
    return make_error(Code::kInvalid, "read rate", "'" + std::string(text) + "' is zero", kHint);
  }
  return bytes;
}

std::string format_duration_us(std::uint64_t us) {
  const double value = static_cast<double>(us);
  if (us < 1'000) return std::to_string(us) + " us";
  if (us < 1'000'000) return number(value / 1e3) + " ms";
  if (us < 120'000'000) return number(value / 1e6) + " s";
  return number(value / 60e6) + " min";
}

std::string format_bytes(std::uint64_t bytes) {
  static const char* kNames[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? std::to_string(bytes) + " B" : number(value) + " " + kNames[unit];
}

std::string format_wall_ns(std::uint64_t ns) {
  const std::time_t seconds = static_cast<std::time_t>(ns / 1'000'000'000);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  char day[32], out[48];
  std::strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(out, sizeof out, "%s.%03uZ", day,
                static_cast<unsigned>(ns / 1'000'000 % 1000));
  return out;
}

std::string suggest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const auto& candidate : known) {
    std::vector<std::size_t> row(candidate.size() + 1);
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j < row.size(); ++j) {
        const std::size_t above = row[j];
        row[j] = std::min({above + 1, row[j - 1] + 1,
                           diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1)});
        diagonal = above;
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

Result<CheckpointName> parse_checkpoint_name(std::string_view text) {
  CheckpointName out;
  const auto at = text.find('@');
  out.name = text.substr(0, at);
  if (at == std::string_view::npos || text.substr(at + 1) == "newest") return out;
  const std::string_view digits = text.substr(at + 1);
  const auto [end, failed] =
      std::from_chars(digits.data(), digits.data() + digits.size(), out.seq);
  if (failed != std::errc() || end != digits.data() + digits.size() || out.seq == 0) {
    return make_error(Code::kInvalid, "read checkpoint",
                      "'" + std::string(text.substr(0, 80)) + "' is not NAME@SEQ",
                      "Like redis@42; see baton checkpoints NAME.");
  }
  return out;
}

}  // namespace baton::cli
