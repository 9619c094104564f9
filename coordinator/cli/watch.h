// --watch: the same listing again and again, also across a coordinator that went away.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "coordinator/cli/commands.h"

namespace baton::cli {

inline constexpr std::chrono::seconds kWatchInterval{1};

// What a listing prints, from one answer of the coordinator.
using Listing = std::function<Result<std::string>(Client&)>;

// Prints it once; with `watch` until Ctrl-C: on a terminal in place, elsewhere whenever it
// changed, a JSON document per line. A coordinator that does not answer is said once and
// asked again. Leaves the exit code in the context.
void list_or_watch(Context& context, bool watch, const Listing& listing,
                   std::chrono::milliseconds interval = kWatchInterval);

// match_name, but a shortened name is taken on a terminal only, and said.
Result<std::string> name_meant(const std::string& kind, const std::string& given,
                               const std::vector<std::string>& known);

// The names of all workloads, or nodes.
Result<std::vector<std::string>> workload_names(Client& client);
Result<std::vector<std::string>> node_names(Client& client);
// name_meant among them.
Result<std::string> workload_named(Client& client, const std::string& given);
Result<std::string> node_named(Client& client, const std::string& given);

}  // namespace baton::cli
