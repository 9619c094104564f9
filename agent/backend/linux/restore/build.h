// Building the processes of a checkpoint by remote control: a keeper in fresh namespaces,
// blank processes with the right PIDs, driven by injected system calls until they have the
// memory layout, descriptors and attributes of the manifest; stopped until activated.
//
// Refuses: a manifest that this machine cannot carry (kUnsupported names what is missing),
// and every resource that cannot be had here (a missing file, an address in use).
// After a failure nothing of the build is left.
// Threads: build(), fill(), activate() and the destructor on one thread (ptrace(2) binds to it).
#pragma once

#include <memory>

#include "agent/backend/backend.h"
#include "base/error.h"

namespace baton::restore {

// The keeper is a child of the calling process; see launch.h for its life.
Result<std::unique_ptr<backend::Build>> build(const pb::Manifest& manifest,
                                              const backend::BuildTarget& target);

}  // namespace baton::restore
