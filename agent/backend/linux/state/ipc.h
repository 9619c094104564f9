// IpcNamespace: the System V objects of a workload that has an IPC namespace to itself: shared
// segments (attached or not), semaphores, message queues with what waits in them; and its POSIX
// message queues.
//
// A thread of its own stands in that namespace and answers; nothing is changed there. What no one
// can read: which process will undo which semaphore at its end (SEM_UNDO).
// Threads: one caller at a time.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "proto/linux_ipc.pb.h"

namespace baton::linux_backend::state {

struct IpcContent {
  std::vector<pb::SysvSegment> segments;       // `object` is the caller's to give
  std::vector<pb::SysvSemaphores> semaphores;
  std::vector<pb::SysvQueue> queues;
  std::vector<pb::PosixQueue> posix_queues;    // by name
  bool empty() const { return segments.empty() && semaphores.empty() && queues.empty() && posix_queues.empty(); }
};

// queues.cc: those of the caller's IPC namespace; `mount` is made by the first call. With everybody
// who uses them stopped. Fails: kUnsupported (a notification is asked for; too much waits), kFailed.
// mq_notify(3) is in effect: whom, the kernel does not tell.
bool somebody_is_notified(int queue);
Result<void> read_posix_queues(Fd& mount, IpcContent& out);

class IpcNamespace {
 public:
  // The namespace of process `pid`. Null: it is this program's own, which others use too.
  // Fails: kTraceeGone, kNotAllowed.
  static Result<std::unique_ptr<IpcNamespace>> enter(pid_t pid);
  ~IpcNamespace();

  // POSIX message queues only with the workload `stopped`.
  // Fails: kUnsupported (this kernel cannot copy messages), kFailed.
  Result<IpcContent> read(bool stopped);
  // A descriptor of the segment's memory, to read it by. Fails: kNotFound.
  Result<Fd> open_segment(int id);

 private:
  IpcNamespace() = default;
  void serve(Fd ns);
  void ask(std::function<void()> question);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> question_;
  bool entered_ = false, ending_ = false;
  int problem_ = 0;
  Fd queues_;          // a mount of the POSIX queues
  std::thread thread_;
};

// The process is in this program's own IPC namespace.
bool shares_our_ipc(pid_t pid);

// Segments of this program's own namespace that the process has attached, or semaphores and queues
// there that it was the last to touch: what cannot be told apart from others'. Empty: none.
std::string foreign_ipc(pid_t pid);

}  // namespace baton::linux_backend::state
