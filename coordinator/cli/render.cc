#include "coordinator/cli/render.h"

#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

template <typename T>
Json list_of(const google::protobuf::RepeatedPtrField<T>& items) {
  Json out = Json::array();
  for (const auto& item : items) out.push_back(item);
  return out;
}

std::vector<std::string> strings(const google::protobuf::RepeatedPtrField<std::string>& items) {
  return {items.begin(), items.end()};
}

std::string dash(const std::string& text) { return text.empty() ? "-" : text; }

void line(std::string& out, const std::string& key, const std::string& value) {
  if (value.empty()) return;
  out += key;
  out.append(key.size() < 16 ? 16 - key.size() : 1, ' ');
  out += printable(value) + "\n";
}

std::string hex(std::uint64_t value) {
  char buffer[24];
  std::snprintf(buffer, sizeof buffer, "0x%llx", static_cast<unsigned long long>(value));
  return buffer;
}

}  // namespace

std::string mode_name(pb::Mode mode) {
  return mode == pb::MODE_HOT ? "hot" : mode == pb::MODE_WARM ? "warm" : "cold";
}

Json node_json(const pb::NodeInfo& node) {
  const auto& facts = node.facts();
  Json features = Json::array();
  for (const auto& feature : facts.features()) {
    features.push_back({{"name", feature.name()},
                        {"available", feature.available()},
                        {"detail", feature.detail()}});
  }
  return {{"name", node.name()},
          {"state", node.state()},
          {"address", node.rpc_address()},
          {"stream_address", node.stream_address()},
          {"kernel", facts.kernel()},
          {"arch", facts.arch()},
          {"cpu_model", facts.cpu_model()},
          {"cpus", facts.cpus()},
          {"cpu_features", list_of(facts.cpu_features())},
          {"xsave_features", facts.xsave_features()},
          {"memory_bytes", facts.memory_bytes()},
          {"memory_free_bytes", facts.memory_free_bytes()},
          {"disk_free_bytes", facts.disk_free_bytes()},
          {"store_bytes", facts.store_bytes()},
          {"features", features},
          {"backends", list_of(facts.backends())},
          {"trackers", list_of(facts.trackers())},
          {"version", facts.version()},
          {"boot_id", facts.boot_id()},
          {"last_seen_us_ago", node.last_seen_us_ago()},
          {"workloads", list_of(node.workloads())},
          {"standby_for", list_of(node.standby_for())}};
}

std::string nodes_table(const pb::ListNodesResponse& nodes, bool wide) {
  std::vector<std::string> headers = {"NODE", "STATE", "ADDRESS", "ARCH", "MEMORY FREE", "WORKLOADS",
                                      "STANDBY FOR"};
  if (wide) {
    for (const char* more : {"CPUS", "MEMORY", "STORE", "DISK FREE", "LAST SEEN", "KERNEL", "VERSION"}) {
      headers.push_back(more);
    }
  }
  Table table(headers);
  for (const auto& node : nodes.nodes()) {
    const auto& facts = node.facts();
    std::vector<std::string> row = {node.name(), node.state(), node.rpc_address(), dash(facts.arch()),
                                    format_bytes(facts.memory_free_bytes()),
                                    dash(join(strings(node.workloads()))),
                                    dash(join(strings(node.standby_for())))};
    if (wide) {
      row.insert(row.end(), {std::to_string(facts.cpus()), format_bytes(facts.memory_bytes()),
                             format_bytes(facts.store_bytes()), format_bytes(facts.disk_free_bytes()),
                             format_duration_us(node.last_seen_us_ago()), dash(facts.kernel()),
                             dash(facts.version())});
    }
    table.row(std::move(row));
  }
  return table.text();
}

std::string node_text(const pb::NodeInfo& node) {
  const auto& facts = node.facts();
  std::string out;
  line(out, "node", node.name());
  line(out, "state", node.state());
  line(out, "address", node.rpc_address());
  line(out, "last seen", format_duration_us(node.last_seen_us_ago()) + " ago");
  line(out, "version", facts.version());
  line(out, "kernel", facts.kernel() + " " + facts.arch());
  line(out, "processor", facts.cpu_model() + ", " + std::to_string(facts.cpus()) +
                             " CPUs, XCR0 " + hex(facts.xsave_features()));
  line(out, "memory", format_bytes(facts.memory_free_bytes()) + " free of " +
                          format_bytes(facts.memory_bytes()));
  line(out, "store", format_bytes(facts.store_bytes()) + ", " +
                         format_bytes(facts.disk_free_bytes()) + " of disk free");
  line(out, "backends", join(strings(facts.backends())));
  line(out, "trackers", join(strings(facts.trackers())));
  line(out, "workloads", dash(join(strings(node.workloads()))));
  line(out, "standby for", dash(join(strings(node.standby_for()))));
  out += "\n";
  Table table({"FEATURE", "AVAILABLE", "DETAIL"});
  for (const auto& feature : facts.features()) {
    table.row({feature.name(), feature.available() ? "yes" : "no", feature.detail()});
  }
  return out + table.text();
}

Json verdict_json(const pb::Verdict& verdict) {
  return {{"pid", verdict.pid()},
          {"resource", verdict.resource()},
          {"kind", verdict.kind()},
          {"verdict", verdict.verdict()},
          {"detail", verdict.detail()}};
}

std::string verdicts_table(const google::protobuf::RepeatedPtrField<pb::Verdict>& verdicts) {
  Table table({"PID", "RESOURCE", "KIND", "VERDICT", "DETAIL"});
  for (const auto& verdict : verdicts) {
    table.row({verdict.pid() ? std::to_string(verdict.pid()) : "-", verdict.resource(),
               verdict.kind(), verdict.verdict(), verdict.detail()});
  }
  return table.text();
}

static Json percentiles(const pb::PauseStats& stats) {
  return {{"p50", stats.p50_us()}, {"p99", stats.p99_us()}, {"max", stats.max_us()}};
}

static Json phases_json(const pb::CapturePhases& phases) {
  return {{"stop", percentiles(phases.stop())},
          {"scan", percentiles(phases.scan())},
          {"copy", percentiles(phases.copy())},
          {"state", percentiles(phases.state())},
          {"resume", percentiles(phases.resume())},
          {"rounds", phases.rounds()},
          {"pages_concurrent", phases.pages_concurrent()},
          {"pages_frozen", phases.pages_frozen()}};
}

Json workload_json(const pb::WorkloadInfo& info) {
  const auto& spec = info.spec();
  const auto& status = info.status();
  Json copies = Json::array();
  for (const auto& standby : status.standbys()) {
    copies.push_back({{"node", standby.node()},
                      {"connected", standby.connected()},
                      {"last_committed", standby.last_committed()},
                      {"mode", standby.mode() == pb::MODE_UNSPECIFIED ? "" : mode_name(standby.mode())},
                      {"mode_problem", standby.mode_problem()},
                      {"ready_seq", standby.ready_seq()},
                      {"problem", standby.problem()}});
  }
  Json verdicts = Json::array();
  for (const auto& verdict : info.verdicts()) verdicts.push_back(verdict_json(verdict));
  Json out = {{"name", spec.name()},
              {"state", status.state()},
              {"node", status.node()},
              {"pid", status.pid()},
              {"standbys", list_of(spec.standbys())},
              {"mode", mode_name(spec.mode())},
              {"incarnation", info.ownership().incarnation()},
              {"last_captured", status.last_captured()},
              {"last_committed", status.last_committed()},
              {"lag_us", status.lag_us()},
              {"interval_us", status.interval_us()},
              {"pause_us",
               {{"p50", status.pause().p50_us()},
                {"p99", status.pause().p99_us()},
                {"max", status.pause().max_us()}}},
              {"phases_us", phases_json(status.phases())},
              {"strategy", status.strategy()},
              {"strategy_why", status.strategy_why()},
              {"pacing_why", status.pacing_why()},
              {"problem", status.problem()},
              {"stale", info.status_is_stale()},
              {"origin", spec.origin() == pb::ORIGIN_PROTECT ? "protect" : "run"},
              {"command", list_of(spec.argv())},
              {"tracker", status.tracker()},
              {"copier", status.copier()},
              {"memory_bytes", status.memory_bytes()},
              {"pages_written", status.pages_written()},
              {"pages_known", status.pages_known()},
              {"pages_zero", status.pages_zero()},
              {"pages_sent", status.pages_sent()},
              {"bytes_sent", status.bytes_sent()},
              {"exit_status", status.exit_status()},
              {"tenure", status.tenure()},
              {"voters", list_of(status.voters())},
              {"health", status.health()},
              {"standby_copies", copies},
              {"addresses", list_of(spec.addresses())},
              {"why", list_of(info.why())}};
  if (!verdicts.empty()) out["verdicts"] = verdicts;
  return out;
}

std::string workloads_table(const pb::ListWorkloadsResponse& list, bool wide) {
  std::vector<std::string> headers = {"NAME", "STATE", "NODE", "PID", "STANDBYS", "MODE", "COMMITTED",
                                      "LAG", "PAUSE P50"};
  if (wide) {
    for (const char* more : {"PAUSE P99", "INTERVAL", "INCARNATION", "MEMORY", "TRACKER", "PROBLEM"}) {
      headers.push_back(more);
    }
  }
  Table table(headers);
  for (const auto& info : list.workloads()) {
    const auto& status = info.status();
    std::vector<std::string> row = {info.spec().name(), status.state(), dash(status.node()),
               status.pid() ? std::to_string(status.pid()) : "-",
               dash(join(strings(info.spec().standbys()))), mode_name(info.spec().mode()),
               status.last_committed() ? "@" + std::to_string(status.last_committed()) : "-",
               status.last_committed() ? format_duration_us(status.lag_us()) : "-",
               status.pause().p50_us() ? format_duration_us(status.pause().p50_us()) : "-"};
    if (wide) {
      row.insert(row.end(),
                 {status.pause().p99_us() ? format_duration_us(status.pause().p99_us()) : "-",
                  format_duration_us(status.interval_us()), std::to_string(info.ownership().incarnation()),
                  format_bytes(status.memory_bytes()), dash(status.tracker()), dash(status.problem())});
    }
    table.row(std::move(row));
  }
  return table.text();
}

std::string workload_text(const pb::WorkloadInfo& info, bool why) {
  const auto& spec = info.spec();
  const auto& status = info.status();
  std::string out;
  line(out, "workload", spec.name());
  line(out, "state", status.state() + (info.status_is_stale() ? " (last known)" : ""));
  line(out, "problem", status.problem());
  line(out, "node", status.node() + (status.pid() ? ", pid " + std::to_string(status.pid()) : ""));
  line(out, "standbys", dash(join(strings(spec.standbys()))));
  for (const auto& standby : status.standbys()) {
    line(out, "  " + standby.node(),
         std::string(standby.connected() ? "connected" : "not connected") + ", holds @" +
             std::to_string(standby.last_committed()) +
             (standby.mode() == pb::MODE_UNSPECIFIED ? "" : ", " + mode_name(standby.mode())) +
             (standby.ready_seq() == 0 ? "" : " at @" + std::to_string(standby.ready_seq())) +
             (standby.mode_problem().empty() ? "" : " (" + standby.mode_problem() + ")") +
             (standby.problem().empty() ? "" : ", " + standby.problem()));
  }
  line(out, "mode", mode_name(spec.mode()) + ", every " + format_duration_us(status.interval_us()));
  line(out, "incarnation", std::to_string(info.ownership().incarnation()));
  if (status.voters_size() > 0) line(out, "tenure", status.tenure() + ", voters " + join(strings(status.voters())));
  line(out, "health", status.health());
  line(out, "committed", "@" + std::to_string(status.last_committed()) + ", lag " +
                             format_duration_us(status.lag_us()));
  line(out, "pause", "p50 " + format_duration_us(status.pause().p50_us()) + ", p99 " +
                         format_duration_us(status.pause().p99_us()) + ", max " +
                         format_duration_us(status.pause().max_us()));
  line(out, "pages", std::to_string(status.pages_written()) + " written, " +
                         std::to_string(status.pages_known()) + " known, " +
                         std::to_string(status.pages_zero()) + " zero, " +
                         std::to_string(status.pages_sent()) + " sent (" +
                         format_bytes(status.bytes_sent()) + ")");
  line(out, "memory", format_bytes(status.memory_bytes()));
  line(out, "tracker", status.tracker());
  line(out, "copier", status.copier());
  if (!status.strategy().empty()) line(out, "capture", status.strategy() + ": " + status.strategy_why());
  line(out, "pacing", status.pacing_why());
  if (status.state() == "exited") line(out, "wait status", std::to_string(status.exit_status()));
  line(out, "command", join(strings(spec.argv()), " "));
  if (why) {
    for (const auto& text : info.why()) line(out, "why", text);
  }
  return out;
}

Json checkpoint_json(const pb::CheckpointInfo& info) {
  return {{"workload", info.workload()},
          {"seq", info.seq()},
          {"incarnation", info.incarnation()},
          {"wall_time", format_wall_ns(info.wall_ns())},
          {"wall_ns", info.wall_ns()},
          {"pause_us", info.pause_us()},
          {"pages_changed", info.pages_changed()},
          {"pages_total", info.pages_total()},
          {"bytes_stored", info.bytes_stored()},
          {"nodes", list_of(info.nodes())}};
}

std::string checkpoints_table(const pb::ListCheckpointsResponse& list, const MarkWords& marks) {
  Table table({"SEQ", "TIME", "PAUSE", "CHANGED", "TOTAL", "STORED", "INCARNATION", "NODES", "TAGS"});
  for (const auto& info : list.checkpoints()) {
    auto words = marks.find({info.seq(), info.incarnation()});
    table.row({std::to_string(info.seq()), format_wall_ns(info.wall_ns()),
               format_duration_us(info.pause_us()), std::to_string(info.pages_changed()),
               std::to_string(info.pages_total()), format_bytes(info.bytes_stored()),
               std::to_string(info.incarnation()), dash(join(strings(info.nodes()))),
               words == marks.end() ? "-" : words->second});
  }
  return table.text();
}

Json event_json(const pb::Event& event) {
  return {{"id", event.id()},         {"time", format_wall_ns(event.wall_ns())},
          {"wall_ns", event.wall_ns()}, {"kind", event.kind()},
          {"workload", event.workload()}, {"node", event.node()},
          {"text", event.text()},     {"who", event.who()}};
}

Json failover_json(const pb::FailoverReport& report) {
  // Times on the axis count from the last sign of life of `from`.
  return {{"workload", report.workload()},
          {"from", report.from()},
          {"to", report.to()},
          {"incarnation", report.incarnation()},
          {"cause", report.cause()},
          {"time", format_wall_ns(report.wall_ns())},
          {"wall_ns", report.wall_ns()},
          {"committed_seq", report.committed_seq()},
          {"last_commit_age_us", report.last_commit_age_us()},
          {"suspected_us", report.suspected_us()},
          {"stood_us", report.stood_us()},
          {"elected_us", report.elected_us()},
          {"activated_us", report.activated_us()},
          {"first_output_us", report.first_output_us()},
          {"lost_us", report.lost_us()},
          {"pid", report.pid()},
          {"error", report.error()}};
}

std::string failovers_table(const pb::FailoverReports& reports) {
  Table table({"TIME", "NAME", "FROM", "TO", "CHECKPOINT", "SUSPECTED", "ELECTED", "RUNNING", "LOST", "CAUSE"});
  for (const auto& one : reports.failovers()) {
    table.row({format_wall_ns(one.wall_ns()), one.workload(), dash(one.from()), one.to(),
               "@" + std::to_string(one.committed_seq()), format_duration_us(one.suspected_us()), format_duration_us(one.elected_us()),
               one.error().empty() ? format_duration_us(one.activated_us()) : "failed", format_duration_us(one.lost_us()),
               printable(one.error().empty() ? one.cause() : one.error())});
  }
  return table.text();
}

std::string event_line(const pb::Event& event) {
  return printable(format_wall_ns(event.wall_ns()) + "  " + event.kind() + "  " +
                   (event.workload().empty() ? "" : event.workload() + ": ") + event.text() +
                   (event.who().empty() || event.who() == "coordinator"
                        ? ""
                        : "  (" + event.who() + ")")) +
         "\n";
}

Json audit_json(const pb::AuditEntry& entry) {
  return {{"id", entry.id()},           {"time", format_wall_ns(entry.wall_ns())},
          {"wall_ns", entry.wall_ns()}, {"who", entry.who()},
          {"from", entry.from()},       {"via", entry.via()},
          {"action", entry.action()},   {"target", entry.target()},
          {"detail", entry.detail()},   {"outcome", entry.outcome()},
          {"problem", entry.problem()}, {"begun_id", entry.begun_id()}};
}

std::string audit_table(const std::vector<pb::AuditEntry>& entries) {
  Table table({"ID", "TIME", "WHO", "FROM", "ACTION", "ON", "OUTCOME", "DETAIL"});
  for (const auto& entry : entries) {
    table.row({std::to_string(entry.id()), format_wall_ns(entry.wall_ns()), entry.who(),
               entry.from(), entry.action(), dash(entry.target()),
               entry.outcome() + (entry.begun_id() ? " (" + std::to_string(entry.begun_id()) + ")" : ""),
               entry.problem().empty() ? entry.detail() : entry.problem()});
  }
  return table.text();
}

Json handover_json(const pb::MigrateReport& report) {
  return {{"pause_us", report.pause_us()},       {"total_ms", report.total_ms()},
          {"bytes_sent", report.bytes_sent()},   {"pages_sent", report.pages_sent()},
          {"pages_known", report.pages_known()}, {"rounds", report.rounds()},
          {"strategy", report.strategy()},       {"from", report.from()},
          {"to", report.to()},                   {"seq", report.seq()},
          {"incarnation", report.incarnation()}, {"pid", report.pid()},
          {"converged", report.converged()}};
}

std::string handover_text(const std::string& name, const pb::MigrateReport& report) {
  char total[32];
  std::snprintf(total, sizeof total, "%.1f", report.total_ms());
  std::string out;
  line(out, "workload", name);
  line(out, "moved", report.from() + " -> " + report.to() + ", pid " +
                         std::to_string(report.pid()) + ", incarnation " +
                         std::to_string(report.incarnation()));
  line(out, "pause", format_duration_us(report.pause_us()));
  line(out, "total", std::string(total) + " ms");
  line(out, "sent", format_bytes(report.bytes_sent()) + ", " +
                        std::to_string(report.pages_sent()) + " pages, " +
                        std::to_string(report.pages_known()) + " known already");
  line(out, "rounds", std::to_string(report.rounds()));
  line(out, "strategy", report.strategy());
  line(out, "checkpoint", name + "@" + std::to_string(report.seq()));
  return out;
}

}  // namespace baton::cli
