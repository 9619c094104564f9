// TCP connections, read with TCP_REPAIR (tcp(7); Linux 4.8 for the window): state, both queues,
// sequence numbers, negotiated options. What arrives must be held meanwhile (NetworkHold), or
// the connection must be a loopback one between stopped programs: what an acknowledgement
// already confirmed must not be missing in what is read. A reading that changed underneath is
// begun anew.
//
// While it is read a socket is in repair mode, in which the program's own calls would fail.
// The program is stopped then, and the RepairGuard sees to it that the mode ends even when this
// process is killed: a process of its own, which holds copies of the descriptors.
//
// Threads: one at a time.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "proto/linux_network.pb.h"

namespace baton::linux_backend::state {

inline constexpr std::size_t kMaxTcpQueueBytes = 64u << 20;   // of one queue

class RepairGuard {
 public:
  RepairGuard() = default;
  RepairGuard(const RepairGuard&) = delete;
  RepairGuard& operator=(const RepairGuard&) = delete;
  ~RepairGuard();
  // From now on `fd` leaves repair mode when this process ends. Starts the guard when needed.
  Result<void> cover(int fd);
  void uncover();                    // all of them: none is in repair mode any more. Waits until it has let go
  pid_t pid() const { return pid_; } // for tests; 0: not started

 private:
  Result<void> start();
  Fd control_;
  pid_t pid_ = 0;
  std::size_t covered_ = 0;
};

// `fd`: our copy of the program's descriptor, connected. `refused` says what cannot be taken
// along, then `out` means nothing. Fails: what the kernel says; the connection is as before in
// any case.
Result<void> read_connection(int fd, RepairGuard& guard, pb::TcpConnection& out, std::string& refused);

// Connections of the network namespace of `pid` that belong to no descriptor and would be lost:
// established ones that wait to be accepted, and closed ones that still have data to send.
struct Loose { std::size_t to_be_accepted = 0, closing = 0; };
Result<Loose> loose_connections(pid_t pid);
// Where the socket with this inode is connecting to, which getpeername(2) does not tell yet.
// Empty: it is not any more.
Result<std::string> connecting_to(pid_t pid, std::uint64_t inode);

}  // namespace baton::linux_backend::state
