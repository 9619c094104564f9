// What a datagram socket holds beyond its options: the groups it is in, and datagrams that wait,
// which are delivered to it once more by a raw socket of its network namespace, from the same
// senders and in the same order.
// Threads: one at a time.
#pragma once

#include "base/error.h"
#include "proto/linux_state.pb.h"

namespace baton::restore {

Result<void> join_groups(int fd, const pb::Socket& socket);
// AF_INET or AF_INET6, of the raw socket (IPPROTO_RAW) that is needed; AF_UNSPEC: nothing waits.
int datagram_family(const pb::Socket& socket);
Result<void> deliver_datagrams(int raw, const pb::Socket& socket);

}  // namespace baton::restore
