#include "coordinator/request_text.h"

namespace baton::coordinator {
namespace {

void add(std::string& text, const std::string& key, const std::string& value) {
  if (value.empty() || value == "0") return;
  text += (text.empty() ? "" : " ") + key + "=" + value;
}
void add(std::string& text, const std::string& key, bool set) {
  if (set) text += (text.empty() ? "" : " ") + key;
}

}  // namespace

RequestText request_text(const pb::RunWorkloadRequest& request) {
  const auto& spec = request.spec();
  RequestText out{spec.name(), {}};
  add(out.detail, "protect", spec.origin() == pb::ORIGIN_PROTECT);
  add(out.detail, "node", spec.node());
  add(out.detail, "pid", std::to_string(spec.pid()));
  for (const auto& standby : spec.standbys()) add(out.detail, "standby", standby);
  add(out.detail, "user", spec.user());
  add(out.detail, "dry_run", request.dry_run());
  return out;
}

RequestText request_text(const pb::ApplyRequest& request) {
  RequestText out;
  for (const auto& spec : request.specs()) {
    out.target += (out.target.empty() ? "" : ",") + spec.name();
  }
  add(out.detail, "dry_run", request.dry_run());
  return out;
}

RequestText request_text(const pb::DrainRequest& request) { return {request.node(), {}}; }

RequestText request_text(const pb::DeleteRequest& request) {
  RequestText out{request.name(), {}};
  add(out.detail, "stop_program", request.stop_program());
  return out;
}

RequestText request_text(const pb::MigrateWorkloadRequest& request) {
  RequestText out{request.name(), {}};
  add(out.detail, "to", request.to());
  add(out.detail, "strategy", request.strategy());
  add(out.detail, "max_pause_us", std::to_string(request.max_pause_us()));
  add(out.detail, "bandwidth_bytes_per_s", std::to_string(request.bandwidth_bytes_per_s()));
  return out;
}

RequestText request_text(const pb::RestoreWorkloadRequest& request) {
  RequestText out{request.name(), {}};
  add(out.detail, "seq", std::to_string(request.seq()));
  add(out.detail, "to", request.to());
  add(out.detail, "as", request.as());
  return out;
}

RequestText request_text(const pb::FailoverRequest& request) {
  RequestText out{request.name(), {}};
  add(out.detail, "to", request.to());
  add(out.detail, "allow_loss", request.allow_loss());
  return out;
}

}  // namespace baton::coordinator
