#include "coordinator/cli/spec_fields.h"

#include <algorithm>
#include <charconv>

#include "coordinator/cli/units.h"
#include "coordinator/spec_rules.h"

namespace baton::cli {
namespace {

using Spec = pb::WorkloadSpec;

Error wrong(const std::string& what, const std::string& text, const std::string& hint) {
  return make_error(Code::kInvalid, "read " + what, "'" + text.substr(0, 80) + "' is not valid",
                    hint);
}

template <typename E>
Result<E> choice(const std::string& what, const std::string& text,
                 const std::vector<std::pair<std::string, E>>& choices) {
  std::string list;
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) {
    if (name == text) return value;
    list += (list.empty() ? "" : ", ") + name;
    names.push_back(name);
  }
  const std::string near = suggest(text, names);
  return wrong(what, text,
               (near.empty() ? "" : "Did you mean " + near + "? ") + "One of " + list + ".");
}

template <typename T>
Result<T> integer(const std::string& what, const std::string& text, T low, T high) {
  T value{};
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size() || value < low || value > high) {
    return wrong(what, text,
                 "A whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                     ".");
  }
  return value;
}

Result<bool> boolean(const std::string& what, const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  return wrong(what, text, "true or false.");
}

#define BATON_SWITCH(KEY)                                        \
  [](Spec& spec, const std::string& text) -> Result<void> {      \
    BATON_ASSIGN(const bool on, boolean(#KEY, text));            \
    spec.set_##KEY(on);                                          \
    return {};                                                   \
  }
#define BATON_TEXT(KEY)                                          \
  [](Spec& spec, const std::string& text) -> Result<void> {      \
    spec.set_##KEY(text);                                        \
    return {};                                                   \
  }

std::vector<SpecField> make_fields() {
  using enum FieldKind;
  std::vector<SpecField> fields;
  fields.push_back({"node", kText, "NODE", "where it runs; chosen when not given", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_TRY(coordinator::check_name("node", text));
                      spec.set_node(text);
                      return {};
                    }});
  fields.push_back({"standby", kList, "NODE[,NODE…]|none",
                    "who holds its copies, in order; one is chosen when not given", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      if (text == "none") {
                        spec.clear_standbys();
                        spec.set_standby_count(0);
                        return {};
                      }
                      BATON_TRY(coordinator::check_name("standby", text));
                      spec.add_standbys(text);
                      spec.set_standby_count(static_cast<std::uint32_t>(spec.standbys_size()));
                      return {};
                    }});
  fields.push_back({"standby_count", kText, "N", "how many standbys to choose (default 1)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto count,
                                   integer<std::uint32_t>("standby_count", text, 0, 8));
                      spec.set_standby_count(count);
                      return {};
                    }});
  fields.push_back({"mode", kText, "hot|warm|cold", "how ready its copies are (default cold)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto mode, (choice<pb::Mode>("mode", text,
                                                                      {{"hot", pb::MODE_HOT},
                                                                       {"warm", pb::MODE_WARM},
                                                                       {"cold", pb::MODE_COLD}})));
                      spec.set_mode(mode);
                      return {};
                    }});
  fields.push_back(
      {"interval", kText, "DURATION",
       "time between checkpoints (default: hot 20ms, warm 100ms, cold 1s)", false,
       [](Spec& spec, const std::string& text) -> Result<void> {
         BATON_ASSIGN(const auto us, parse_duration_us(text));
         if (us < coordinator::kMinIntervalUs || us > coordinator::kMaxIntervalUs) {
           return make_error(Code::kInvalid, "read interval", "'" + text + "' is out of range",
                             "From 500us to 1h.");
         }
         spec.set_interval_us(us);
         return {};
       }});
  fields.push_back({"address", kList, "CIDR", "an address of its own, which moves with it", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.add_addresses(text);
                      return {};
                    }});
  fields.push_back({"tcp", kText, "refuse|close|established",
                    "what happens to connected sockets (default refuse)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto tcp, (choice<pb::TcpPolicy>(
                                                       "tcp", text,
                                                       {{"refuse", pb::TCP_REFUSE},
                                                        {"close", pb::TCP_CLOSE},
                                                        {"established", pb::TCP_ESTABLISHED}})));
                      spec.set_tcp(tcp);
                      return {};
                    }});
  fields.push_back(
      {"external_unix", kText, "refuse|reconnect|close",
       "what happens to Unix sockets that lead out of it (default refuse)", false,
       [](Spec& spec, const std::string& text) -> Result<void> {
         BATON_ASSIGN(const auto policy, (choice<pb::ExternalUnix>(
                                             "external_unix", text,
                                             {{"refuse", pb::EXTERNAL_UNIX_REFUSE},
                                              {"reconnect", pb::EXTERNAL_UNIX_RECONNECT},
                                              {"close", pb::EXTERNAL_UNIX_CLOSE}})));
         spec.set_external_unix(policy);
         return {};
       }});
  fields.push_back({"output_commit", kSwitch, "", "hold its output back until it is committed",
                    false, BATON_SWITCH(output_commit)});
  fields.push_back({"volume", kList, "DIR", "a folder whose content goes with it", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.add_volumes(text);
                      return {};
                    }});
  fields.push_back({"with_files", kSwitch, "", "send files that the target lacks", false,
                    BATON_SWITCH(with_files)});
  fields.push_back(
      {"durability", kText, "memory|flushed|synced",
       "when a standby has a checkpoint (default flushed)", false,
       [](Spec& spec, const std::string& text) -> Result<void> {
         BATON_ASSIGN(const auto durability, (choice<pb::Durability>(
                                                 "durability", text,
                                                 {{"memory", pb::DURABILITY_MEMORY},
                                                  {"flushed", pb::DURABILITY_FLUSHED},
                                                  {"synced", pb::DURABILITY_SYNCED}})));
         spec.set_durability(durability);
         return {};
       }});
  fields.push_back({"on_exit", kText, "restart|failover|stop",
                    "what happens when the program ends (default stop)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto on_exit, (choice<pb::OnExit>(
                                                           "on_exit", text,
                                                           {{"stop", pb::ON_EXIT_STOP},
                                                            {"restart", pb::ON_EXIT_RESTART},
                                                            {"failover", pb::ON_EXIT_FAILOVER}})));
                      spec.set_on_exit(on_exit);
                      return {};
                    }});
  fields.push_back({"fail_back", kText, "never|auto",
                    "whether it goes back to its node after a failover (default never)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto fail_back, (choice<pb::FailBack>(
                                                             "fail_back", text,
                                                             {{"never", pb::FAIL_BACK_NEVER},
                                                              {"auto", pb::FAIL_BACK_AUTO}})));
                      spec.set_fail_back(fail_back);
                      return {};
                    }});
  fields.push_back({"max_slowdown", kText, "FACTOR", "how much slower it may run: 1.05 is 5 %",
                    false, [](Spec& spec, const std::string& text) -> Result<void> {
                      double factor = 0;
                      const auto [end, failed] =
                          std::from_chars(text.data(), text.data() + text.size(), factor);
                      if (failed != std::errc() || end != text.data() + text.size() ||
                          !(factor > 1.0 && factor <= 10.0)) {
                        return wrong("max_slowdown", text, "Above 1 and up to 10; 1.05 is 5 %.");
                      }
                      spec.set_max_slowdown(factor);
                      return {};
                    }});
  fields.push_back({"max_lag", kText, "DURATION", "the largest lag to aim for", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto us, parse_duration_us(text));
                      spec.set_max_lag_us(us);
                      return {};
                    }});
  fields.push_back({"priority", kText, "N", "its share of a busy link: larger goes first", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto value,
                                   integer<std::int32_t>("priority", text, -1000, 1000));
                      spec.set_priority(value);
                      return {};
                    }});
  fields.push_back({"tracker", kText, "NAME", "how written pages are found (default auto)", false,
                    BATON_TEXT(tracker)});
  fields.push_back(
      {"copier", kText, "NAME", "how pages are copied", false, BATON_TEXT(copier)});
  fields.push_back({"env", kList, "KEY=VALUE", "a variable of its environment", true,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      const auto equals = text.find('=');
                      if (equals == std::string::npos || equals == 0) {
                        return wrong("env", text, "Like KEY=VALUE.");
                      }
                      spec.add_env(text);
                      return {};
                    }});
  fields.push_back({"cwd", kText, "DIR", "the folder that it starts in (default /)", true,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      if (text.empty() || text.front() != '/') {
                        return wrong("cwd", text, "An absolute path.");
                      }
                      spec.set_cwd(text);
                      return {};
                    }});
  fields.push_back(
      {"user", kText, "NAME|UID[:GID]", "who runs it (default root)", true, BATON_TEXT(user)});
  fields.push_back({"dedup", kText, "workload|cluster", "who shares its pages", false,
                    BATON_TEXT(dedup)});
  fields.push_back({"digest", kText, "xxh3|sha256", "the digest of its pages", false,
                    BATON_TEXT(digest)});
  fields.push_back({"keep_last", kText, "N", "how many checkpoints are kept (default 100)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto count,
                                   integer<std::uint32_t>("keep_last", text, 1,
                                                          coordinator::kMaxKeepLast));
                      spec.mutable_retention()->set_keep_last(count);
                      return {};
                    }});
  fields.push_back({"keep_steps", kList, "EVERY/FOR", "besides those, one per EVERY as far back as FOR: 1s/1m", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.mutable_retention()->add_steps(text);
                      return {};
                    }});
  fields.push_back({"health_exec", kText, "COMMAND", "healthy when this ends with 0 in its namespaces (/bin/sh -c)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      auto& check = *spec.mutable_health();
                      check.clear_exec();
                      for (const char* word : {"/bin/sh", "-c"}) check.add_exec(word);
                      check.add_exec(text);
                      return {};
                    }});
  fields.push_back({"health_tcp", kText, "ADDRESS:PORT", "healthy when it accepts there", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.mutable_health()->set_tcp(text);
                      return {};
                    }});
  fields.push_back({"health_http", kText, "URL", "healthy when http://ADDRESS:PORT/PATH answers 200 to 399", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.mutable_health()->set_http(text);
                      return {};
                    }});
  fields.push_back({"health_interval", kText, "DURATION", "between two checks (default 1s)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto us, parse_duration_us(text));
                      spec.mutable_health()->set_interval_us(us);
                      return {};
                    }});
  fields.push_back({"health_failures", kText, "N", "failed checks in a row that count as its end (default 3)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto count, integer<std::uint32_t>("health_failures", text, 1, 1000));
                      spec.mutable_health()->set_failures(count);
                      return {};
                    }});
  fields.push_back({"health_grace", kText, "DURATION", "after its start nothing counts (default 10s)", false,
                    [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto us, parse_duration_us(text));
                      spec.mutable_health()->set_grace_us(us);
                      return {};
                    }});
  fields.push_back({"store_budget", kText, "SIZE", "the most its checkpoints may take per node",
                    false, [](Spec& spec, const std::string& text) -> Result<void> {
                      BATON_ASSIGN(const auto bytes, parse_size_bytes(text));
                      spec.mutable_retention()->set_budget_bytes(bytes);
                      return {};
                    }});
  fields.push_back({"keep_local", kSwitch, "", "keep checkpoints on its own node too", false,
                    BATON_SWITCH(keep_local)});
  fields.push_back({"require_features", kList, "FEATURE", "a processor feature that it needs",
                    false, [](Spec& spec, const std::string& text) -> Result<void> {
                      spec.add_require_features(text);
                      return {};
                    }});
  fields.push_back({"verify", kSwitch, "",
                    "compare each capture with the frozen program, byte by byte", false,
                    BATON_SWITCH(verify)});
  return fields;
}

}  // namespace

std::string SpecField::flag() const {
  std::string out = "--" + key;
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

const std::vector<SpecField>& spec_fields() {
  static const std::vector<SpecField> fields = make_fields();
  return fields;
}

pb::WorkloadSpec new_spec(pb::Origin origin) {
  pb::WorkloadSpec spec;
  spec.set_origin(origin);
  spec.set_standby_count(1);
  return spec;
}

void complete_environment(pb::WorkloadSpec& spec) {
  auto has = [&](const std::string& key) {
    return std::any_of(spec.env().begin(), spec.env().end(),
                       [&](const std::string& v) { return v.starts_with(key + "="); });
  };
  if (!has("PATH")) {
    spec.add_env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  }
  if (!has("HOME")) spec.add_env("HOME=/");
}

}  // namespace baton::cli
