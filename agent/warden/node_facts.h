// What this node is: kernel, processor, memory, and what its backends can do.
#pragma once

#include "agent/backend/backend.h"
#include "proto/workload.pb.h"

namespace baton::warden {

// Probes every backend given; blocks for as long as their probes take.
pb::NodeFacts collect_node_facts(const std::vector<backend::Backend*>& backends);

// The version of Baton that this program belongs to.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace baton::warden
