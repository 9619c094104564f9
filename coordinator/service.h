// The coordinator's wire: roles in front of each call, gRPC around it, nothing else.
//
// Who may call what is one table, kRpcRoles (roles.h); a call that is not in it is refused.
// Threads: gRPC's; a session or a followed stream occupies one for as long as it lasts.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "coordinator/audit.h"
#include "coordinator/coordinator.h"
#include "coordinator/logins.h"
#include "coordinator/movements.h"
#include "coordinator/roles.h"
#include "transport/identity.h"

namespace grpc {
class ServerContextBase;
}

namespace baton::coordinator {

// What the operator's side shares with the wire. All outlive the server; absent: calls are not
// audited, movements not recorded, and the calls of the service Operator answer kUnsupported.
struct OperatorSide {
  AuditLog* audit = nullptr;
  Movements* movements = nullptr;
  Logins* logins = nullptr;
  std::string dashboard_url;  // "https://10.0.0.1:7443"; empty: none is served
};

// Who calls, if the table lets them. Fails: kNotAllowed, naming the role that it takes.
Result<transport::Identity> authorize(const grpc::ServerContextBase& context, std::string_view rpc);
// A person's program takes kUnreachable as "the coordinator is": an unreachable node is an
// operation that failed.
Error for_people(Error error);

class CoordinatorServer {
 public:
  // Serves `coordinator`, which outlives it, on ADDRESS:PORT (port 0: a free one).
  // Fails: kConflict (address in use), kFailed.
  static Result<std::unique_ptr<CoordinatorServer>> start(const std::string& address,
                                                          const transport::TlsFiles& tls,
                                                          Coordinator& coordinator,
                                                          const OperatorSide& side = {});
  virtual ~CoordinatorServer() = default;
  virtual int port() const = 0;
  // Refuses new calls and ends those under way. Call before the coordinator goes.
  virtual void shutdown() = 0;
};

}  // namespace baton::coordinator
