#include "coordinator/http/json.h"

#include <cmath>

#include <google/protobuf/util/json_util.h>

#include "coordinator/cli/render.h"
#include "coordinator/cli/units.h"

namespace baton::coordinator::http {
namespace {

double rounded(double value, double step) { return std::round(value / step) * step; }

Json node_light(const pb::NodeInfo& node) {
  Json out;
  const Json full = cli::node_json(node);
  for (const char* key : {"name", "state", "address", "arch", "kernel", "cpus", "memory_bytes",
                          "memory_free_bytes", "disk_free_bytes", "store_bytes",
                          "last_seen_us_ago", "workloads", "standby_for", "version"}) {
    out[key] = full.at(key);
  }
  return out;
}

}  // namespace

std::string dumped(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json error_json(const Error& error) {
  return {{"error",
           {{"code", code_name(error.code)},
            {"operation", error.operation},
            {"message", error.sys_errno == 0 && !error.subject.empty()
                            ? error.operation + ": " + error.subject
                            : error.message()},
            {"hint", error.hint}}}};
}

Json row_json(const Row& row) {
  Json out;
  const Json full = cli::workload_json(row.info);
  for (const char* key : {"name", "state", "node", "pid", "standbys", "mode", "incarnation",
                          "last_captured", "last_committed", "lag_us", "interval_us", "pause_us",
                          "problem", "stale", "memory_bytes", "standby_copies"}) {
    out[key] = full.at(key);
  }
  out["lag_target_us"] = row.lag_target_us;
  out["rates"] = {{"checkpoints_per_s", rounded(row.rates.checkpoints_per_s, 0.01)},
                  {"pages_written_per_s", rounded(row.rates.pages_written_per_s, 0.1)},
                  {"bytes_sent_per_s", rounded(row.rates.bytes_sent_per_s, 1)}};
  out["known_share"] = row.rates.known_share ? Json(rounded(*row.rates.known_share, 0.001)) : Json();
  Json reasons = Json::array();
  for (const auto& reason : row.risk.reasons) {
    reasons.push_back({{"code", reason.code}, {"text", reason.text}, {"remedy", reason.remedy}});
  }
  out["risk"] = {{"level", risk_level_name(row.risk.level)}, {"reasons", reasons}};
  out["last_handover"] = row.last_handover ? Json{{"kind", row.last_handover->kind},
                                                  {"wall_ns", row.last_handover->wall_ns},
                                                  {"text", row.last_handover->text}}
                                           : Json();
  return out;
}

Json overview_json(const Picture& picture) {
  Json rows = Json::array(), nodes = Json::array();
  for (const auto& row : picture.rows) rows.push_back(row_json(row));
  for (const auto& node : picture.nodes.nodes()) nodes.push_back(node_light(node));
  return {{"number", picture.number},
          {"wall_ns", picture.wall_ns},
          {"workloads", std::move(rows)},
          {"nodes", std::move(nodes)}};
}

Json samples_json(const std::vector<Sample>& samples) {
  // Columns, as a chart wants them, and a fifth of the size of objects.
  static constexpr std::pair<const char*, float Sample::*> kColumns[] = {
      {"lag_us", &Sample::lag_us},           {"lag_max_us", &Sample::lag_max_us},
      {"pause_p50_us", &Sample::pause_p50_us}, {"pause_p99_us", &Sample::pause_p99_us},
      {"pause_max_us", &Sample::pause_max_us}, {"committed", &Sample::committed},
      {"pages_written", &Sample::pages_written}, {"pages_known", &Sample::pages_known},
      {"pages_zero", &Sample::pages_zero},   {"pages_sent", &Sample::pages_sent},
      {"bytes_sent", &Sample::bytes_sent}};
  Json out = {{"wall_ms", Json::array()}, {"span_ms", Json::array()}};
  for (const auto& sample : samples) {
    out["wall_ms"].push_back(sample.wall_ms);
    out["span_ms"].push_back(sample.span_ms);
  }
  for (const auto& [name, field] : kColumns) {
    Json column = Json::array();
    for (const auto& sample : samples) {
      column.push_back(static_cast<std::uint64_t>(std::llround(sample.*field)));
    }
    out[name] = std::move(column);
  }
  return out;
}

Json movement_json(const pb::Movement& movement) {
  Json phases = Json::array();
  for (const auto& phase : movement.phases()) {
    phases.push_back({{"name", phase.name()}, {"after_us", phase.after_us()}});
  }
  Json out = {{"id", movement.id()},
              {"workload", movement.workload()},
              {"kind", movement.kind()},
              {"from", movement.from()},
              {"to", movement.to()},
              {"who", movement.who()},
              {"started_wall_ns", movement.started_wall_ns()},
              {"ended_wall_ns", movement.ended_wall_ns()},
              {"phase", movement.phase()},
              {"round", movement.round()},
              {"bytes_done", movement.bytes_done()},
              {"bytes_left", movement.bytes_left()},
              {"rate_bytes_per_s", movement.rate_bytes_per_s()},
              {"eta_us", movement.eta_us()},
              {"phases", phases},
              {"problem", movement.problem()},
              {"report", nullptr}};
  if (movement.has_handover()) out["report"] = cli::handover_json(movement.handover());
  if (movement.has_restore()) {
    out["restore"] = {{"pid", movement.restore().pid()},
                      {"total_ms", movement.restore().total_ms()},
                      {"seq", movement.restore().seq()},
                      {"pages", movement.restore().pages()},
                      {"lost_us", movement.restore().lost_us()}};
  }
  return out;
}

Json message_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return nullptr;
  Json out = Json::parse(text, nullptr, false);
  return out.is_discarded() ? Json() : out;
}

}  // namespace baton::coordinator::http
