// The coordinator's wire: roles in front of each call, gRPC around it, nothing else.
//
// Who may call what is one table, kRpcRoles; a call that is not in it is refused.
// Threads: gRPC's; a session or a followed stream occupies one for as long as it lasts.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "coordinator/coordinator.h"
#include "transport/identity.h"

namespace baton::coordinator {

struct RpcRoles {
  std::string_view rpc;
  bool viewer, operator_, node;
};
inline constexpr RpcRoles kRpcRoles[] = {
    {"ListNodes", true, true, false},     {"ShowNode", true, true, false},
    {"ListWorkloads", true, true, false}, {"ShowWorkload", true, true, false},
    {"ListCheckpoints", true, true, false}, {"Events", true, true, false},
    {"Logs", true, true, false},          {"Version", true, true, true},
    {"Run", false, true, false},          {"Apply", false, true, false},
    {"Delete", false, true, false},       {"Checkpoint", false, true, false},
    {"Migrate", false, true, false},      {"AbortMigration", false, true, false},
    {"Restore", false, true, false},      {"Failover", false, true, false},
    {"Inspect", false, true, false},      {"Session", false, false, true},
    {"ChangeOwner", false, false, true},  {"GetOwner", false, false, true},
};

class CoordinatorServer {
 public:
  // Serves `coordinator`, which outlives it, on ADDRESS:PORT (port 0: a free one).
  // Fails: kConflict (address in use), kFailed.
  static Result<std::unique_ptr<CoordinatorServer>> start(const std::string& address,
                                                          const transport::TlsFiles& tls,
                                                          Coordinator& coordinator);
  virtual ~CoordinatorServer() = default;
  virtual int port() const = 0;
  // Refuses new calls and ends those under way. Call before the coordinator goes.
  virtual void shutdown() = 0;
};

}  // namespace baton::coordinator
