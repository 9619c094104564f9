// TCP connections within a build: the sockets are the template's, and are worked on from here
// through copies of their descriptors.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "agent/backend/linux/restore/construction.h"
#include "agent/backend/linux/restore/tcp.h"
#include "agent/backend/linux/restore/udp.h"

namespace baton::restore {
namespace {

Result<Fd> raw_socket(Construction& c, int family) {
  BATON_ASSIGN(std::uint64_t number, c.maker().checked("socket", "raw", SYS_socket,
                                                       {static_cast<std::uint64_t>(family), SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW}));
  auto ours = fetch(c.maker().pid(), static_cast<int>(number));
  BATON_TRY(c.maker().call(SYS_close, {number}));
  return ours;
}

// On the wire: a v6-mapped connection is one of IPv4.
int family_of(const pb::Socket& socket) {
  if (socket.local().size() != sizeof(sockaddr_in6)) return AF_INET;
  const auto& in = *reinterpret_cast<const sockaddr_in6*>(socket.local().data());
  return IN6_IS_ADDR_V4MAPPED(&in.sin6_addr) ? AF_INET : AF_INET6;
}

}  // namespace

Result<void> open_connection(Construction& c, int fd, const pb::Socket& socket) {
  LiveConnection live;
  BATON_ASSIGN(live.ours, fetch(c.maker().pid(), fd));
  live.socket = &socket;
  if (socket.kind() == pb::SOCKET_TCP) BATON_TRY(rebuild_connection(live.ours.get(), socket));
  c.live.push_back(std::move(live));
  return {};
}

Result<void> open_datagrams(Construction& c, int fd, const pb::Socket& socket) {
  LiveConnection live;
  BATON_ASSIGN(live.ours, fetch(c.maker().pid(), fd));
  live.socket = &socket;
  BATON_TRY(join_groups(live.ours.get(), socket));
  if (socket.datagrams().queue_size() > 0) c.waiting.push_back(std::move(live));
  return {};
}

Result<void> settle_connections(Construction& c) {
  Fd raw[2];
  for (const auto& live : c.live) {
    if (!needs_settling(*live.socket)) continue;
    int family = family_of(*live.socket);
    Fd& by = raw[family == AF_INET6 ? 1 : 0];
    if (!by) {
      BATON_ASSIGN(by, raw_socket(c, family));
    }
    BATON_TRY(settle_connection(live.ours.get(), by.get(), *live.socket));
  }
  for (const auto& live : c.waiting) {
    int family = datagram_family(*live.socket);
    if (family == AF_UNSPEC) continue;
    Fd& by = raw[family == AF_INET6 ? 1 : 0];
    if (!by) {
      BATON_ASSIGN(by, raw_socket(c, family));
    }
    BATON_TRY(deliver_datagrams(by.get(), *live.socket));
  }
  c.waiting.clear();
  return {};
}

Result<void> resume_connections(Construction& c) {
  for (const auto& live : c.live) {
    if (live.socket->kind() == pb::SOCKET_TCP) BATON_TRY(resume_connection(live.ours.get(), *live.socket));
    else BATON_TRY(connect_again(live.ours.get(), *live.socket));
  }
  c.live.clear();
  return {};
}

}  // namespace baton::restore
