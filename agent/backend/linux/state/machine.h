// This machine as far as register images and the vdso depend on it.
// Threads: any; what is found is cached for the life of the process.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"

namespace baton::linux_backend::state {

// Architecture, kernel, processor features, xsave layout (xsave_features: XCR0).
pb::MachineState machine_state();
// kUnsupported, naming the feature, unless this machine has all that `machine` used.
Result<void> check_machine(const pb::MachineState& machine);
// kUnsupported unless the register images' components `used` (XSTATE_BV) exist here.
Result<void> check_xsave(std::uint64_t used);
// Extended components (number 2 and up) in the standard format, and the size of the whole image.
const std::vector<pb::XsaveComponent>& xsave_layout();
std::size_t xsave_bytes();
// SHA-256 over the vdso's pages.
const std::string& vdso_digest();
// The clocks as `pid` sees them in its time namespace.
Result<pb::ClockState> read_clocks(pid_t pid);

}  // namespace baton::linux_backend::state
