// TCP connections of a checkpoint, made anew with TCP_REPAIR (tcp(7)) on sockets that are in the
// workload's network namespace, in three steps:
//   rebuild   the socket has its addresses, sequence numbers, options and queues; still in
//             repair mode, it sends nothing
//   settle    once all connections stand: half-closed ones and those with an urgent byte get there,
//             by segments from the peer that never were on the wire
//   resume    the address is here: out of repair mode, with a segment that makes the peer say
//             where it is; then what was never sent
// Refuses what this kernel cannot set (the error names it).
// Threads: one at a time. `fd` is the caller's copy of the descriptor.
#pragma once

#include <string>

#include "base/error.h"
#include "proto/linux_state.pb.h"

namespace baton::restore {

Result<void> rebuild_connection(int fd, const pb::Socket& socket);
// `raw`: a raw socket (IPPROTO_RAW) of the connection's family in the same namespace.
Result<void> settle_connection(int fd, int raw, const pb::Socket& socket);
Result<void> resume_connection(int fd, const pb::Socket& socket);
// A connection whose handshake was under way: made anew, from the same address.
Result<void> connect_again(int fd, const pb::Socket& socket);

// Needs settle_connection to reach its state.
bool needs_settling(const pb::Socket& socket);

}  // namespace baton::restore
