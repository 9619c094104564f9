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
// How the clocks of a process's time namespace differ from ours, in ns. Fixed for a process that
// calls neither setns(2) nor execve(2).
struct ClockOffsets {
  std::int64_t monotonic = 0, boottime = 0;
};
Result<ClockOffsets> read_clock_offsets(pid_t pid);
// The clocks as such a process sees them.
pb::ClockState read_clocks(const ClockOffsets& offsets);

}  // namespace baton::linux_backend::state
