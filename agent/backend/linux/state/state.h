// Everything of a stopped process tree that is not memory: threads, signals, timers,
// descriptors, credentials, limits, scheduling, the tree itself. Read here, and what cannot
// be read or rebuilt is refused by name (docs/coverage.md lists both).
//
// Threads: the thread that seized the tree. A StateContext belongs to one attachment; it
// caches what stays true between captures.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/remote/stopped_tree.h"
#include "agent/backend/linux/remote/syscall_watch.h"
#include "agent/backend/linux/state/machine.h"
#include "base/error.h"
#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"

namespace baton::linux_backend::state {

class StateContext {
 public:
  StateContext();
  ~StateContext();
  StateContext(StateContext&&) noexcept;
  StateContext& operator=(StateContext&&) noexcept;
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// What is proved to be as it was at the context's last capture_state.
struct Unchanged {
  bool calls = false;       // no thread has made a call that leaves more behind than memory, descriptors and transfers
  bool descriptors = false; // and none that makes or changes descriptors
  bool transfers = false;   // and none that moves data or positions of files
  const SyscallWatch* notes = nullptr;   // the numbers that were named since; with `calls`
};

// Reads everything that the memory room does not. Kept in the context, in three parts: what every
// freeze reads (registers, signal queues, clocks), descriptors, and the rest; of the second and the
// third as much is read again as `unchanged` leaves open (and at times all the same, for what
// others may do to the program: prlimit(2), renice). Memory objects that a descriptor
// refers to (memfd, deleted file) are only referred to, by DescriptorObject (below).
// Fails: kUnsupported (names pid and resource), kTraceeGone, kFailed.
Result<void> capture_state(StoppedTree& tree, StateContext& context, const Unchanged& unchanged);
// Beside the running program, a few times per second at most: what others may have done to the
// files that it has open, so that the next freeze need not look.
void look_from_outside(StateContext& context);
// What the last capture_state has read, put together; after the thaw. For each process the entry
// with its pid (ns_pid) is found or added.
void write_state(StateContext& context, pb::LinuxState& out);
// The clocks as the last capture_state has read them.
const pb::ClockState& captured_clocks(StateContext& context);

// A file descriptor whose content must travel as a memory object: a memfd, or an open file
// that has no name any more. The memory room copies it and gives it the id.
// After write_state, `open_file` in LinuxState.open_files has object == 0; the caller sets it
// with the id of the memory object that has this device and inode.
struct DescriptorObject {
  std::uint64_t device = 0;    // st_dev, st_ino
  std::uint64_t inode = 0;
  std::uint64_t size_bytes = 0;
  std::uint32_t open_file = 0; // index in LinuxState.open_files
  pid_t pid = 0;               // who holds it, and at which number: pidfd_getfd from there
  int fd = -1;
  std::shared_ptr<Fd> held;    // ours, of one that is on its way through a socket and in no process
  bool memfd = false;          // else a deleted file: MEMORY_OBJECT_FILE_CONTENT
  std::string name;
};
std::vector<DescriptorObject> descriptor_objects(StateContext& context);  // of the last capture

// Verdicts on every resource of running processes, which are neither stopped nor traced.
// `pids` as this process sees them; keeper 0: none. Nothing is changed in the program.
void inspect(const std::vector<pid_t>& pids, pid_t keeper, const pb::WorkloadSpec& spec,
             std::vector<pb::Verdict>& verdicts, std::vector<pb::FileProof>& open_files);
bool acceptable(const std::vector<pb::Verdict>& verdicts);   // none is "refused"

}  // namespace baton::linux_backend::state
