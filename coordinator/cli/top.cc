#include "coordinator/cli/top.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

struct Rate {
  double checkpoints = 0, pages = 0, bytes = 0;  // per second
  double known = -1;                             // share of the pages written; below 0: none were
};

double rise(std::uint64_t before, std::uint64_t now) {
  return static_cast<double>(now >= before ? now - before : now);
}

std::map<std::string, Rate> rates(const TopLook& before, const TopLook& now) {
  const std::chrono::duration<double> span = now.at - before.at;
  std::map<std::string, const pb::WorkloadStatus*> old;
  for (const auto& info : before.workloads.workloads()) old[info.spec().name()] = &info.status();
  std::map<std::string, Rate> out;
  for (const auto& info : now.workloads.workloads()) {
    auto found = old.find(info.spec().name());
    if (found == old.end() || span.count() <= 0) continue;
    const auto& from = *found->second;
    const auto& to = info.status();
    Rate rate;
    if (to.last_committed() > from.last_committed()) {
      rate.checkpoints = static_cast<double>(to.last_committed() - from.last_committed()) / span.count();
    }
    const double written = rise(from.pages_written(), to.pages_written());
    rate.pages = written / span.count();
    rate.bytes = rise(from.bytes_sent(), to.bytes_sent()) / span.count();
    if (written > 0) rate.known = std::min(1.0, rise(from.pages_known(), to.pages_known()) / written);
    out[info.spec().name()] = rate;
  }
  return out;
}

std::string cut(const std::string& text, std::size_t width) {
  return text.size() <= width ? text : text.substr(0, width - 1) + "~";
}

std::string number(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, value < 100 ? "%.1f" : "%.0f", value);
  return buffer;
}

int connected(const pb::WorkloadStatus& status) {
  int out = 0;
  for (const auto& standby : status.standbys()) out += standby.connected();
  return out;
}

bool in_danger(const pb::WorkloadInfo& info) {
  const auto& status = info.status();
  return info.status_is_stale() || status.state() == "lost" || status.state() == "failed" ||
         status.last_committed() == 0 || !status.problem().empty() || connected(status) == 0;
}

}  // namespace

Result<TopLook> look(Client& client) {
  TopLook out;
  BATON_ASSIGN(out.workloads, client.list_workloads());
  BATON_ASSIGN(out.nodes, client.list_nodes());
  out.at = std::chrono::steady_clock::now();
  return out;
}

std::string top_text(const TopLook& before, const TopLook& now, bool colour) {
  auto rate = rates(before, now);
  std::vector<const pb::WorkloadInfo*> rows;
  for (const auto& info : now.workloads.workloads()) rows.push_back(&info);
  std::stable_sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) {
    return in_danger(*a) > in_danger(*b);
  });
  int danger = 0;
  char line[160];
  std::string body;
  for (const auto* info : rows) {
    const auto& status = info->status();
    const Rate& of = rate[info->spec().name()];
    const bool bad = in_danger(*info);
    danger += bad;
    std::snprintf(line, sizeof line, "%-1s %-15s %-9s %-7s %4s %9s %9s %7s %7s %3s",
                  bad ? "!" : "", cut(info->spec().name(), 15).c_str(), cut(status.state(), 9).c_str(),
                  cut(status.node(), 7).c_str(),
                  (std::to_string(connected(status)) + "/" + std::to_string(info->spec().standbys_size())).c_str(),
                  status.last_committed() ? format_duration_us(status.lag_us()).c_str() : "-",
                  status.pause().p99_us() ? format_duration_us(status.pause().p99_us()).c_str() : "-",
                  number(of.checkpoints).c_str(), number(of.pages).c_str(),
                  of.known < 0 ? "-" : std::to_string(static_cast<int>(std::lround(of.known * 100))).c_str());
    std::string text = printable(line);
    if (bad && colour) text = "\033[1;31m" + text + "\033[0m";
    body += text + "\n";
  }
  std::snprintf(line, sizeof line, "%-1s %-15s %-9s %-7s %4s %9s %9s %7s %7s %3s\n", "", "WORKLOAD", "STATE",
                "NODE", "STBY", "LAG", "PAUSE P99", "CKPT/S", "PAGES/S", "KN%");
  std::string out = std::to_string(rows.size()) + " workloads, " +
                    (danger == 0 ? "all with a standby" : std::to_string(danger) + " at risk (!)") + "\n\n" +
                    line + body + "\n";
  std::snprintf(line, sizeof line, "  %-16s %-11s %10s %10s %6s %7s %12s\n", "NODE", "STATE", "MEM FREE",
                "MEMORY", "RUNS", "COPIES", "LAST SEEN");
  out += line;
  for (const auto& node : now.nodes.nodes()) {
    std::snprintf(line, sizeof line, "%-1s %-16s %-11s %10s %10s %6d %7d %12s\n",
                  node.state() == "unreachable" ? "!" : "", cut(node.name(), 16).c_str(),
                  node.state().c_str(), format_bytes(node.facts().memory_free_bytes()).c_str(),
                  format_bytes(node.facts().memory_bytes()).c_str(), node.workloads_size(),
                  node.standby_for_size(), format_duration_us(node.last_seen_us_ago()).c_str());
    out += printable(std::string(line, std::strlen(line) - 1)) + "\n";
  }
  return out;
}

Json top_json(const TopLook& before, const TopLook& now) {
  auto rate = rates(before, now);
  Json workloads = Json::array(), nodes = Json::array();
  for (const auto& info : now.workloads.workloads()) {
    const auto& status = info.status();
    const Rate& of = rate[info.spec().name()];
    workloads.push_back({{"name", info.spec().name()},
                         {"state", status.state()},
                         {"node", status.node()},
                         {"standbys", info.spec().standbys_size()},
                         {"standbys_connected", connected(status)},
                         {"lag_us", status.lag_us()},
                         {"pause_p99_us", status.pause().p99_us()},
                         {"checkpoints_per_s", of.checkpoints},
                         {"pages_written_per_s", of.pages},
                         {"bytes_sent_per_s", of.bytes},
                         {"known_share", of.known < 0 ? Json() : Json(of.known)},
                         {"at_risk", in_danger(info)}});
  }
  for (const auto& node : now.nodes.nodes()) {
    nodes.push_back({{"name", node.name()},
                     {"state", node.state()},
                     {"memory_bytes", node.facts().memory_bytes()},
                     {"memory_free_bytes", node.facts().memory_free_bytes()},
                     {"workloads", node.workloads_size()},
                     {"standby_for", node.standby_for_size()},
                     {"last_seen_us_ago", node.last_seen_us_ago()}});
  }
  return {{"workloads", workloads}, {"nodes", nodes}};
}

}  // namespace baton::cli
