// The real AgentDirectory: mutual-TLS channels, one per node, made again when a node's
// address changes. Its clients accept only a peer whose certificate names that node.
#pragma once

#include <memory>

#include "coordinator/agent_client.h"
#include "transport/identity.h"

namespace baton::coordinator {

std::unique_ptr<AgentDirectory> make_agent_directory(const transport::TlsFiles& tls);

}  // namespace baton::coordinator
