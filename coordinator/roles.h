// Roles: who may do what, in the one table that gRPC (service.cc) and HTTP (http/routes.cc)
// both obey. What is not in it is refused. The contract tests walk it row by row, both ways.
//
// A viewer looks; an operator also changes workloads and nodes and reads who did what; a node
// speaks for itself. The coordinator's own role may call nothing here.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::coordinator {

struct RpcRoles {
  std::string_view rpc;        // empty: over HTTP only
  bool viewer, operator_, node;
  std::string_view http = {};  // "GET /api/v1/nodes"; {name} stands for one path segment
  bool audited = false;        // leaves entries in the audit log

  constexpr bool changes() const { return http.starts_with("POST"); }
};

inline constexpr RpcRoles kRpcRoles[] = {
    {"ListNodes", true, true, false, "GET /api/v1/nodes"},
    {"ShowNode", true, true, false, "GET /api/v1/nodes/{name}"},
    {"ListWorkloads", true, true, false, "GET /api/v1/workloads"},
    {"ShowWorkload", true, true, false, "GET /api/v1/workloads/{name}"},
    {"ListCheckpoints", true, true, false, "GET /api/v1/workloads/{name}/checkpoints"},
    {"Events", true, true, false, "GET /api/v1/log"},
    {"Logs", true, true, false},
    {"Version", true, true, true, "GET /api/v1/version"},
    {"Run", false, true, false, {}, true},
    {"Apply", false, true, false, {}, true},
    {"Delete", false, true, false, {}, true},
    {"Checkpoint", false, true, false, "POST /api/v1/workloads/{name}/checkpoint", true},
    {"Migrate", false, true, false, "POST /api/v1/workloads/{name}/migrate", true},
    {"AbortMigration", false, true, false, "POST /api/v1/workloads/{name}/abort", true},
    {"Restore", false, true, false, {}, true},
    {"Failover", false, true, false, "POST /api/v1/workloads/{name}/failover", true},
    {"Inspect", false, true, false},
    {"Session", false, false, true},
    {"ChangeOwner", false, false, true},
    {"GetOwner", false, false, true},
    // The service TenureCoordinator.
    {"NoteTenure", false, false, true},
    {"EnterVoters", false, false, true},
    {"ListFailovers", true, true, false},
    {"Drain", false, true, false, {}, true},
    {"ResumeNode", false, true, false, {}, true},
    // The service Store.
    {"StoreStat", true, true, false},
    {"Analyze", true, true, false},
    {"ListMarks", true, true, false},
    {"StoreGc", false, true, false},
    {"StoreVerify", false, true, false},
    {"TagCheckpoint", false, true, false},
    {"Diff", false, true, false},
    {"Export", false, true, false},
    // The service Operator.
    {"DashboardLink", true, true, false},
    {"ListMovements", true, true, false, "GET /api/v1/movements"},
    {"Audit", false, true, false, "GET /api/v1/audit"},
    // Over HTTP only.
    {"", true, true, false, "GET /api/v1/overview"},
    {"", true, true, false, "GET /api/v1/events"},
    {"", true, true, false, "GET /api/v1/workloads/{name}/history"},
    {"", true, true, false, "GET /api/v1/movements/{name}"},
    {"", true, true, false, "GET /api/v1/session"},
    {"", true, true, false, "POST /api/v1/logout"},
    {"", true, true, false, "GET /metrics"},
};

constexpr bool may(transport::Role role, const RpcRoles& entry) {
  switch (role) {
    case transport::Role::kViewer: return entry.viewer;
    case transport::Role::kOperator: return entry.operator_;
    case transport::Role::kNode: return entry.node;
    case transport::Role::kCoordinator: return false;
  }
  return false;
}

// What `who` lacks to do `what`. kNotAllowed.
inline Error not_allowed(const transport::Identity& who, std::string_view what,
                         const RpcRoles& entry) {
  const char* needed = entry.node && !entry.operator_ ? "node"
                       : entry.viewer                 ? "viewer or operator"
                                                      : "operator";
  return make_error(Code::kNotAllowed, what,
                    who.to_string() + " may not: it needs the role " + needed,
                    "Use a certificate of that role (baton pki issue --role).");
}

}  // namespace baton::coordinator
