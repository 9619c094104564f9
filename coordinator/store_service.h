// The coordinator's end of pb::Store: asks the agents that hold what is asked for, and passes
// their answers on. Pages themselves pass through here only for diff and export, which show a
// person what is in them.
//
// Which node: the one that was named; else for stat, gc and verify all, for the rest one that
// holds the checkpoints. Roles: kRpcRoles in roles.h.
// Threads: gRPC's.
#pragma once

#include <memory>

#include "coordinator/coordinator.h"
#include "transport/identity.h"

namespace grpc {
class Service;
}

namespace baton::coordinator {

// `coordinator` outlives the service.
std::unique_ptr<grpc::Service> make_store_forwarder(Coordinator& coordinator,
                                                    const transport::TlsFiles& tls);

}  // namespace baton::coordinator
