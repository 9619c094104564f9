#include "coordinator/spec_rules.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include <google/protobuf/util/message_differencer.h>

#include "coordinator/placement.h"

namespace baton::coordinator {
namespace {

constexpr int kMaxRetentionSteps = 8;
constexpr std::uint64_t kMinHealthIntervalUs = 10'000;

// "500ms", "1s", "5m", "1h", "30d": as a store's agent reads it.
bool is_span(std::string_view text, double& seconds) {
  const auto digits = text.find_first_not_of("0123456789");
  if (digits == 0 || digits == text.npos || digits > 5) return false;
  const std::string_view unit = text.substr(digits);
  const double scale = unit == "ms" ? 0.001 : unit == "s" ? 1 : unit == "m" ? 60 : unit == "h" ? 3600 : unit == "d" ? 86400 : 0;
  seconds = std::stod(std::string(text.substr(0, digits))) * scale;
  return seconds > 0;
}
bool is_step(const std::string& text) {
  const auto slash = text.find('/');
  double every = 0, span = 0;
  return slash != text.npos && is_span(std::string_view(text).substr(0, slash), every) &&
         is_span(std::string_view(text).substr(slash + 1), span) && span >= every;
}

Error invalid(const std::string& subject, const std::string& hint = {}) {
  return make_error(Code::kInvalid, "check spec", subject, hint);
}

bool is_cidr(const std::string& text) {
  const auto slash = text.find('/');
  if (slash == std::string::npos) return false;
  const std::string host = text.substr(0, slash);
  int bits = -1;
  auto [end, failed] =
      std::from_chars(text.data() + slash + 1, text.data() + text.size(), bits);
  if (failed != std::errc() || end != text.data() + text.size() || bits < 0) return false;
  unsigned char address[16];
  if (::inet_pton(AF_INET, host.c_str(), address) == 1) return bits <= 32;
  return ::inet_pton(AF_INET6, host.c_str(), address) == 1 && bits <= 128;
}

// Folders of their own, under the names by which the kernel will know them.
Result<void> check_volumes(const pb::WorkloadSpec& spec) {
  constexpr int kMaxVolumes = 16;
  constexpr std::size_t kMaxFolderBytes = 1024;
  if (spec.volumes_size() > kMaxVolumes) return invalid("more than " + std::to_string(kMaxVolumes) + " volumes");
  if (spec.origin() == pb::ORIGIN_PROTECT && spec.volumes_size() > 0) {
    return invalid("a program that runs already has its files open where they are, and can have no volume",
                   "Start it with run --volume, or leave the volume out.");
  }
  for (const auto& volume : spec.volumes()) {
    const std::filesystem::path path(volume);
    if (volume.empty() || volume.front() != '/' || volume.size() > kMaxFolderBytes) {
      return invalid("volume '" + volume + "' is not an absolute path");
    }
    if (path.lexically_normal().string() != volume || (volume.size() > 1 && volume.back() == '/')) {
      return invalid("volume '" + volume + "' is not in its shortest form", "Without '.', '..', doubled and final slashes.");
    }
    for (const char* kept : {"/", "/proc", "/sys", "/dev", "/run", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot"}) {
      const std::string taken(kept);
      const bool below = taken != "/" && (taken == "/proc" || taken == "/sys" || taken == "/dev") && volume.starts_with(taken + "/");
      if (volume == taken || below) return invalid("volume '" + volume + "': " + taken + " is the system's", "Give a folder of the program's own.");
    }
    for (const auto& other : spec.volumes()) {
      if (&other != &volume && (other == volume || other.starts_with(volume + "/"))) {
        return invalid("volume '" + other + "' lies in volume '" + volume + "'");
      }
    }
  }
  return {};
}

}  // namespace

Result<void> check_name(const std::string& what, const std::string& name) {
  auto lower = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  const bool good = !name.empty() && name.size() <= 63 && lower(name.front()) &&
                    std::all_of(name.begin(), name.end(),
                                [&](char c) { return lower(c) || c == '-'; });
  if (good) return {};
  return make_error(Code::kInvalid, "check " + what, "'" + name.substr(0, 80) + "' is not a name",
                    "Use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit.");
}

Result<void> check_spec(const pb::WorkloadSpec& spec) {
  BATON_TRY(check_name("workload", spec.name()));
  if (spec.ByteSizeLong() > kMaxSpecBytes) return invalid("the spec is larger than 1 MiB");
  if (spec.origin() == pb::ORIGIN_PROTECT) {
    if (spec.pid() <= 0) return invalid("protect needs a pid", "Give --pid.");
    if (spec.node().empty()) return invalid("protect needs a node", "Give --node.");
    if (spec.argv_size() > 0) return invalid("protect takes no command");
  } else if (spec.origin() == pb::ORIGIN_RUN) {
    if (spec.argv_size() == 0 || spec.argv(0).empty()) {
      return invalid("run needs a command", "Give it after --.");
    }
    if (spec.argv_size() > kMaxArguments || spec.env_size() > kMaxArguments) {
      return invalid("more than " + std::to_string(kMaxArguments) + " arguments or variables");
    }
    for (const auto& variable : spec.env()) {
      const auto equals = variable.find('=');
      if (equals == 0 || equals == std::string::npos) {
        return invalid("env '" + variable + "' is not KEY=VALUE");
      }
    }
    if (!spec.cwd().empty() && spec.cwd().front() != '/') {
      return invalid("cwd '" + spec.cwd() + "' is not an absolute path");
    }
  } else {
    return invalid("the spec says neither run nor protect");
  }
  if (!spec.node().empty()) BATON_TRY(check_name("node", spec.node()));
  for (const auto& standby : spec.standbys()) BATON_TRY(check_name("standby", standby));
  if (spec.standby_count() > kMaxStandbys) {
    return invalid("more than " + std::to_string(kMaxStandbys) + " standbys");
  }
  if (spec.interval_us() != 0 &&
      (spec.interval_us() < kMinIntervalUs || spec.interval_us() > kMaxIntervalUs)) {
    return invalid("interval " + std::to_string(spec.interval_us()) + " us is out of range",
                   "From 500us to 1h.");
  }
  if (spec.max_slowdown() != 0 && !(spec.max_slowdown() > 1.0 && spec.max_slowdown() <= 10.0)) {
    return invalid("max_slowdown is out of range", "1.05 means 5 %; at most 10.");
  }
  if (spec.retention().keep_last() > kMaxKeepLast) {
    return invalid("keep_last " + std::to_string(spec.retention().keep_last()) +
                       " is out of range",
                   "At most " + std::to_string(kMaxKeepLast) + ".");
  }
  if (spec.retention().steps_size() > kMaxRetentionSteps) {
    return invalid("more than " + std::to_string(kMaxRetentionSteps) + " keep_steps");
  }
  for (const auto& step : spec.retention().steps()) {
    if (!is_step(step)) return invalid("keep_steps '" + step + "' is not EVERY/FOR", "Such as 1s/1m: one per second for a minute.");
  }
  if (spec.has_health()) {
    const auto& check = spec.health();
    const int kinds = (check.exec_size() > 0) + !check.tcp().empty() + !check.http().empty();
    if (kinds != 1) return invalid("a health check needs one of health_exec, health_tcp and health_http");
    if (!check.tcp().empty() && check.tcp().rfind(':') == std::string::npos) {
      return invalid("health_tcp '" + check.tcp() + "' is not ADDRESS:PORT");
    }
    if (!check.http().empty() && !check.http().starts_with("http://")) {
      return invalid("health_http '" + check.http() + "' is not http://ADDRESS:PORT/PATH");
    }
    if (check.interval_us() != 0 && check.interval_us() < kMinHealthIntervalUs) {
      return invalid("health_interval is below 10ms");
    }
  }
  for (const auto& address : spec.addresses()) {
    if (!is_cidr(address)) {
      return invalid("address '" + address + "' is not ADDRESS/BITS", "Like 10.77.0.50/24.");
    }
  }
  if (spec.origin() == pb::ORIGIN_PROTECT && spec.addresses_size() > 0) {
    return invalid("a program that runs already stays in the network it is in, and can have no address of its own",
                   "Start it with run --address, or leave the address out.");
  }
  if (spec.output_commit() && spec.addresses_size() == 0) {
    return invalid("output_commit needs an address of the workload's own", "Give --address.");
  }
  if (spec.output_commit() && spec.standbys_size() == 0 && spec.standby_count() == 0 && !spec.keep_local()) {
    return invalid("output_commit needs a standby: output waits for its commit", "Give --standby.");
  }
  BATON_TRY(check_volumes(spec));
  if (!spec.dedup().empty() && spec.dedup() != "workload" && spec.dedup() != "cluster") {
    return invalid("dedup '" + spec.dedup() + "' is unknown", "workload or cluster.");
  }
  if (!spec.digest().empty() && spec.digest() != "xxh3" && spec.digest() != "sha256") {
    return invalid("digest '" + spec.digest() + "' is unknown", "xxh3 or sha256.");
  }
  if (spec.dedup() == "cluster" && spec.digest() == "xxh3") {
    return invalid("dedup cluster needs digest sha256",
                   "A keyed XXH3 digest is private to one workload.");
  }
  return {};
}

void fill_defaults(pb::WorkloadSpec& spec) {
  if (spec.mode() == pb::MODE_UNSPECIFIED) spec.set_mode(pb::MODE_COLD);
  if (spec.interval_us() == 0) {
    spec.set_interval_us(spec.mode() == pb::MODE_HOT    ? kHotIntervalUs
                         : spec.mode() == pb::MODE_WARM ? kWarmIntervalUs
                                                        : kColdIntervalUs);
  }
  if (spec.durability() == pb::DURABILITY_UNSPECIFIED) {
    spec.set_durability(pb::DURABILITY_FLUSHED);
  }
  if (spec.tcp() == pb::TCP_UNSPECIFIED) spec.set_tcp(spec.output_commit() ? pb::TCP_ESTABLISHED : pb::TCP_REFUSE);
  if (spec.external_unix() == pb::EXTERNAL_UNIX_UNSPECIFIED) {
    spec.set_external_unix(pb::EXTERNAL_UNIX_REFUSE);
  }
  if (spec.on_exit() == pb::ON_EXIT_UNSPECIFIED) spec.set_on_exit(pb::ON_EXIT_STOP);
  if (spec.fail_back() == pb::FAIL_BACK_UNSPECIFIED) spec.set_fail_back(pb::FAIL_BACK_NEVER);
  if (spec.dedup().empty()) spec.set_dedup("workload");
  if (spec.digest().empty()) spec.set_digest(spec.dedup() == "cluster" ? "sha256" : "xxh3");
  if (spec.retention().keep_last() == 0) spec.mutable_retention()->set_keep_last(100);
  if (spec.cwd().empty() && spec.origin() == pb::ORIGIN_RUN) spec.set_cwd("/");
  if (spec.tracker().empty()) spec.set_tracker("auto");
}

SpecDifference compare_specs(const pb::WorkloadSpec& now, const pb::WorkloadSpec& wanted) {
  static const std::vector<std::string> kChangeable = {
      "mode",         "interval_us", "durability", "on_exit",      "max_slowdown",
      "max_lag_us",   "priority",    "tracker",    "copier",       "retention",
      "keep_local",   "verify",      "tcp",        "external_unix", "health",
      "with_files",   "standbys",    "standby_count", "fail_back"};
  static const std::vector<std::string> kIgnored = {"domain", "hash_key", "node"};
  SpecDifference out;
  const auto* descriptor = pb::WorkloadSpec::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    const std::string name(field->name());
    if (std::count(kIgnored.begin(), kIgnored.end(), name) > 0) continue;
    if (name == "standbys" && wanted.standbys_size() == 0) continue;
    if (name == "standby_count" && wanted.standbys_size() > 0) continue;
    pb::WorkloadSpec a, b;
    std::vector<const google::protobuf::FieldDescriptor*> fields = {field};
    google::protobuf::util::MessageDifferencer differ;
    if (differ.CompareWithFields(now, wanted, fields, fields)) continue;
    if (std::count(kChangeable.begin(), kChangeable.end(), name) > 0) {
      out.changeable.push_back(name);
    } else {
      out.fixed.push_back(name);
    }
  }
  return out;
}

}  // namespace baton::coordinator
