// What `baton support-bundle` packs: what the coordinator knows, for whoever helps from afar.
// No secrets and no content of programs: command lines are cut to the program's name, and
// environments, keys and logs of programs are not asked for. Pure.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "coordinator/cli/output.h"

namespace baton::cli {

// A workload as in workload_json, without what its command line may hold.
Json without_secrets(Json workload);

struct BundleFile {
  std::string name;  // at most 99 characters
  std::string content;
};

// The files below `folder`/ as a tar archive (POSIX ustar), each with mode 0600 and `mtime_s`.
// Source: pax(1), "ustar Interchange Format".
std::string tar_of(const std::string& folder, const std::vector<BundleFile>& files,
                   std::uint64_t mtime_s);

}  // namespace baton::cli
