// AgentService: the gRPC edge of the agent: roles, limits of what comes in, and the
// conversion of errors. Everything else is Node's.
#pragma once

#include <memory>

#include <grpcpp/grpcpp.h>

#include "agent/node/node.h"
#include "proto/agent.grpc.pb.h"
#include "proto/tenure.grpc.pb.h"

namespace baton::node {

std::unique_ptr<grpc::Service> make_agent_service(Node& node);
std::unique_ptr<grpc::Service> make_tenure_service(Node& node);

}  // namespace baton::node
