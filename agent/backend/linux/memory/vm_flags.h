// What /proc/PID/smaps alone tells of a mapping: its VmFlags (madvise, mlock, MAP_GROWSDOWN,
// MAP_NORESERVE …) and its protection key.
//
// Reading it makes the kernel walk every page table, so it is not read at each freeze: see
// AddressSpace::write_flags. Threads: one at a time.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"

namespace baton::linux_backend {

struct VmFlags {
  std::uint64_t end = 0;
  std::vector<std::string> flags;    // those that restore can set, two letters each; "pkN"
};

// By the start of each mapping; only those that have any. Fails: kTraceeGone.
Result<std::map<std::uint64_t, VmFlags>> read_vm_flags(pid_t pid);

}  // namespace baton::linux_backend
