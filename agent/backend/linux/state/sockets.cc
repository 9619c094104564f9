// Sockets of the internet families; those of AF_UNIX are in unix_sockets.cc.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

int integer_option(int fd, int level, int name) {
  int value = 0;
  socklen_t bytes = sizeof value;
  return ::getsockopt(fd, level, name, &value, &bytes) == 0 ? value : -1;
}

std::string own_name(int fd) {
  sockaddr_storage raw{};
  socklen_t bytes = sizeof raw;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&raw), &bytes) != 0) return {};
  return std::string(reinterpret_cast<const char*>(&raw), bytes);
}

std::string peer_name(int fd) {
  sockaddr_storage raw{};
  socklen_t bytes = sizeof raw;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&raw), &bytes) != 0) return {};
  return std::string(reinterpret_cast<const char*>(&raw), bytes);
}

bool has_port(const std::string& name) {
  sockaddr_storage raw{};
  std::memcpy(&raw, name.data(), std::min(name.size(), sizeof raw));
  if (raw.ss_family == AF_INET) return reinterpret_cast<const sockaddr_in&>(raw).sin_port != 0;
  if (raw.ss_family == AF_INET6) return reinterpret_cast<const sockaddr_in6&>(raw).sin6_port != 0;
  return false;
}

struct Option { int level, name; bool tcp; };
constexpr Option kOptions[] = {
    {SOL_SOCKET, SO_REUSEADDR, false}, {SOL_SOCKET, SO_REUSEPORT, false}, {SOL_SOCKET, SO_KEEPALIVE, false},
    {SOL_SOCKET, SO_BROADCAST, false}, {SOL_SOCKET, SO_OOBINLINE, false}, {SOL_SOCKET, SO_PRIORITY, false},
    {SOL_SOCKET, SO_MARK, false}, {SOL_SOCKET, SO_RCVLOWAT, false}, {SOL_SOCKET, SO_LINGER, false},
    {SOL_SOCKET, SO_RCVTIMEO, false}, {SOL_SOCKET, SO_SNDTIMEO, false}, {SOL_SOCKET, SO_TIMESTAMP, false},
    {SOL_SOCKET, SO_PASSCRED, false}, {SOL_SOCKET, SO_DONTROUTE, false}, {SOL_SOCKET, SO_BINDTODEVICE, false},
    {SOL_SOCKET, SO_BUSY_POLL, false},
    {IPPROTO_IP, IP_TOS, false}, {IPPROTO_IP, IP_TTL, false}, {IPPROTO_IP, IP_PKTINFO, false},
    {IPPROTO_IP, IP_RECVTTL, false}, {IPPROTO_IP, IP_RECVTOS, false}, {IPPROTO_IP, IP_MTU_DISCOVER, false},
    {IPPROTO_IP, IP_FREEBIND, false}, {IPPROTO_IP, IP_TRANSPARENT, false}, {IPPROTO_IP, IP_RECVERR, false},
    {IPPROTO_IP, IP_MULTICAST_TTL, false}, {IPPROTO_IP, IP_MULTICAST_LOOP, false},
    {IPPROTO_IPV6, IPV6_V6ONLY, false}, {IPPROTO_IPV6, IPV6_RECVPKTINFO, false},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, false}, {IPPROTO_IPV6, IPV6_TCLASS, false}, {IPPROTO_IPV6, IPV6_RECVERR, false},
    {IPPROTO_TCP, TCP_NODELAY, true}, {IPPROTO_TCP, TCP_KEEPIDLE, true}, {IPPROTO_TCP, TCP_KEEPINTVL, true},
    {IPPROTO_TCP, TCP_KEEPCNT, true}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, true}, {IPPROTO_TCP, TCP_USER_TIMEOUT, true},
    {IPPROTO_TCP, TCP_SYNCNT, true}, {IPPROTO_TCP, TCP_LINGER2, true}, {IPPROTO_TCP, TCP_CORK, true},
    {IPPROTO_TCP, TCP_FASTOPEN, true}, {IPPROTO_TCP, TCP_CONGESTION, true},
};

std::string raw_option(int fd, const Option& o) {
  char value[64] = {};
  socklen_t bytes = sizeof value;
  if (::getsockopt(fd, o.level, o.name, value, &bytes) != 0) return {};
  return std::string(value, bytes);
}

// What a fresh socket of this kind answers: only what differs from it is worth keeping.
const std::map<int, std::string>& defaults(int domain, int type, int protocol) {
  static thread_local std::map<std::tuple<int, int, int>, std::map<int, std::string>> cache;
  auto [entry, added] = cache.try_emplace({domain, type, protocol});
  if (added) {
    Fd fresh = Fd::adopt(::socket(domain, type | SOCK_CLOEXEC, protocol));
    if (fresh) {
      for (const auto& o : kOptions) entry->second[o.level * 1000 + o.name] = raw_option(fresh.get(), o);
    }
  }
  return entry->second;
}

}  // namespace

void read_socket_options(int fd, pb::Socket& socket) {
  const auto& usual = defaults(socket.domain(), socket.type(), socket.protocol());
  bool tcp = socket.protocol() == IPPROTO_TCP;
  for (const auto& o : kOptions) {
    if (o.tcp && !tcp) continue;
    if (o.level != SOL_SOCKET && socket.domain() == AF_UNIX) continue;
    if (o.level == IPPROTO_IPV6 && socket.domain() != AF_INET6) continue;
    std::string value = raw_option(fd, o);
    auto known = usual.find(o.level * 1000 + o.name);
    if (value.empty() || (known != usual.end() && known->second == value)) continue;
    auto& saved = *socket.add_options();
    saved.set_level(o.level);
    saved.set_name(o.name);
    saved.set_value(value);
  }
}

Result<void> SocketReader::read(int fd, std::uint64_t inode, pb::OpenFile& file, std::string& refused, std::string& differs) {
  auto& socket = *file.mutable_socket();
  socket.set_domain(integer_option(fd, SOL_SOCKET, SO_DOMAIN));
  socket.set_type(integer_option(fd, SOL_SOCKET, SO_TYPE));
  socket.set_protocol(integer_option(fd, SOL_SOCKET, SO_PROTOCOL));
  socket.set_inode(inode);
  if (socket.domain() == AF_UNIX) {
    BATON_TRY(read_unix(fd, inode, socket, refused));
    read_socket_options(fd, socket);
    return {};
  }
  if (socket.domain() != AF_INET && socket.domain() != AF_INET6) {
    const char* name = socket.domain() == AF_NETLINK ? "netlink sockets are" : socket.domain() == AF_PACKET ? "packet sockets are" : nullptr;
    refused = name != nullptr ? std::string(name) + " not supported" : "sockets of family " + std::to_string(socket.domain()) + " are not supported";
    return {};
  }
  read_socket_options(fd, socket);
  std::string local = own_name(fd);
  if (has_port(local)) socket.set_local(local);
  if (socket.type() == SOCK_DGRAM && socket.protocol() == IPPROTO_UDP) {
    std::string peer = peer_name(fd);
    socket.set_kind(peer.empty() ? pb::SOCKET_PLAIN : pb::SOCKET_UDP_CONNECTED);
    socket.set_peer(peer);
    int waiting = 0;
    if (::ioctl(fd, FIONREAD, &waiting) == 0 && waiting > 0) differs = "UDP datagrams that wait to be received are not taken along";
    return {};
  }
  if (socket.type() != SOCK_STREAM || socket.protocol() != IPPROTO_TCP) {
    refused = socket.type() == SOCK_RAW ? "raw sockets are not supported" : "IP protocol " + std::to_string(socket.protocol()) + " is not supported";
    return {};
  }
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return errno_error("TCP_INFO", "socket");
  switch (info.tcpi_state) {
    case TCP_LISTEN:
      socket.set_kind(pb::SOCKET_LISTENING);
      socket.set_backlog(static_cast<std::int32_t>(info.tcpi_sacked));   // of a listener: sk_max_ack_backlog
      if (info.tcpi_unacked != 0) differs = "connections that wait to be accepted are reset";
      return {};
    case TCP_CLOSE:
      socket.set_kind(pb::SOCKET_PLAIN);
      return {};
    default:
      if (spec->tcp() != pb::TCP_CLOSE) {
        refused = spec->tcp() == pb::TCP_ESTABLISHED ? "connected TCP sockets cannot be taken along yet; --tcp close resets them after a move"
                                                    : "it is a connected TCP socket; with --tcp close the program sees it reset after a move";
        return {};
      }
      socket.set_kind(pb::SOCKET_RESET);
      differs = "the connection is reset after a move (--tcp close)";
      return {};
  }
}

}  // namespace baton::linux_backend::state
