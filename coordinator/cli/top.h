// What `baton top` shows: two looks at everything, and what happened between them. Pure, but
// for look(). The text fits 80 columns.
#pragma once

#include <chrono>
#include <string>

#include "coordinator/cli/client.h"
#include "coordinator/cli/output.h"

namespace baton::cli {

struct TopLook {
  std::chrono::steady_clock::time_point at{};
  pb::ListWorkloadsResponse workloads;
  pb::ListNodesResponse nodes;
};

Result<TopLook> look(Client& client);
std::string top_text(const TopLook& before, const TopLook& now, bool colour);
Json top_json(const TopLook& before, const TopLook& now);

}  // namespace baton::cli
