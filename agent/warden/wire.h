// How warden messages travel: one protobuf per SOCK_SEQPACKET packet while it is
// small, else in a sealed memfd that is passed along. The only place that knows.
//
// Packet: byte 0 = 1: the rest is the protobuf. Byte 0 = 2: 8 bytes little-endian
// length follow, the protobuf is in the first descriptor. Further descriptors are
// the message's own. Protobufs are at most kMessageMax.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <google/protobuf/message_lite.h>

#include "base/fd.h"
#include "base/unix_socket.h"

namespace baton::warden {

inline constexpr std::size_t kInlineMax = 128u << 10;
inline constexpr std::size_t kMessageMax = 64u << 20;
inline constexpr std::uint32_t kProtocolVersion = 1;

// Blocks while the peer's queue is full. Fails: kUnreachable, kTimedOut, kNoSpace (larger than kMessageMax).
Result<void> send_message(UnixSocket& socket, const google::protobuf::MessageLite& message,
                          std::span<const int> fds = {});

// Reads one message into `message` and its descriptors into `fds`; false: the peer has closed.
// Fails with kCorrupt for whatever does not parse; the connection is then good for nothing more.
Result<bool> receive_message(UnixSocket& socket, google::protobuf::MessageLite& message,
                             std::vector<Fd>& fds);

}  // namespace baton::warden
