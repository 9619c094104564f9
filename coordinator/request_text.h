// What a request asks for, for the audit log: which workload or node, and the choices that
// matter. Never a command line, an environment or a key: they may hold secrets.
#pragma once

#include <string>

#include "proto/coordinator.pb.h"
#include "proto/tenure.pb.h"

namespace baton::coordinator {

struct RequestText {
  std::string target;
  std::string detail;
};

RequestText request_text(const pb::RunWorkloadRequest& request);
RequestText request_text(const pb::ApplyRequest& request);
RequestText request_text(const pb::DeleteRequest& request);
RequestText request_text(const pb::MigrateWorkloadRequest& request);
RequestText request_text(const pb::RestoreWorkloadRequest& request);
RequestText request_text(const pb::FailoverRequest& request);
RequestText request_text(const pb::DrainRequest& request);

// Requests that say no more than a name, and those that are not audited.
template <typename Request>
RequestText request_text(const Request& request) {
  if constexpr (requires { request.name(); }) return {std::string(request.name()), {}};
  return {};
}

}  // namespace baton::coordinator
