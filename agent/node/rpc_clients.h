// The real OwnerRecords, TenureRegistry and TargetAgent, over gRPC with certificates.
#pragma once

#include <memory>
#include <string>

#include "agent/node/node_env.h"
#include "agent/node/node_tenure.h"
#include "transport/identity.h"

namespace baton::node {

std::unique_ptr<OwnerRecords> make_owner_records(const std::string& coordinator_address,
                                                 const transport::TlsFiles& tls);
std::unique_ptr<TenureRegistry> make_tenure_registry(const std::string& coordinator_address,
                                                     const transport::TlsFiles& tls);
std::unique_ptr<TargetAgent> make_target_agent(const pb::PeerAddress& peer, const transport::TlsFiles& tls);

}  // namespace baton::node
