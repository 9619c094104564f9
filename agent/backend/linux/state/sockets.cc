// Sockets of the internet families; those of AF_UNIX are in unix_sockets.cc.
#include <linux/netlink.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
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

bool is_loopback(const std::string& name) {
  sockaddr_storage raw{};
  std::memcpy(&raw, name.data(), std::min(name.size(), sizeof raw));
  if (raw.ss_family == AF_INET) return (ntohl(reinterpret_cast<const sockaddr_in&>(raw).sin_addr.s_addr) >> 24) == 127;
  const auto& six = reinterpret_cast<const sockaddr_in6&>(raw).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&six) || (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == 127);
}

// Equal for the two ends of one connection when swapped, whether an end is v6-mapped or not.
std::string end_key(const std::string& name) {
  sockaddr_storage raw{};
  std::memcpy(&raw, name.data(), std::min(name.size(), sizeof raw));
  if (raw.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(raw);
    return std::string(reinterpret_cast<const char*>(&in.sin_addr), 4) + std::string(reinterpret_cast<const char*>(&in.sin_port), 2);
  }
  const auto& in = reinterpret_cast<const sockaddr_in6&>(raw);
  bool mapped = IN6_IS_ADDR_V4MAPPED(&in.sin6_addr);
  return std::string(reinterpret_cast<const char*>(&in.sin6_addr) + (mapped ? 12 : 0), mapped ? 4 : 16) +
         std::string(reinterpret_cast<const char*>(&in.sin6_port), 2);
}

bool has_port(const std::string& name) {
  sockaddr_storage raw{};
  std::memcpy(&raw, name.data(), std::min(name.size(), sizeof raw));
  if (raw.ss_family == AF_INET) return reinterpret_cast<const sockaddr_in&>(raw).sin_port != 0;
  if (raw.ss_family == AF_INET6) return reinterpret_cast<const sockaddr_in6&>(raw).sin6_port != 0;
  return false;
}

bool has_waiting(int fd) {
  pollfd waiting{fd, POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 1 && (waiting.revents & POLLIN) != 0;
}

// What can be set to what was asked; not among them what the kernel adapts by itself (SO_INCOMING_CPU,
// TCP_WINDOW_CLAMP). Numbers: of newer kernels than these headers, linux/in.h, in6.h, tcp.h, udp.h.
struct Option { int level, name; bool tcp; };
constexpr Option kOptions[] = {
    {SOL_SOCKET, SO_REUSEADDR, false}, {SOL_SOCKET, SO_REUSEPORT, false}, {SOL_SOCKET, SO_KEEPALIVE, false},
    {SOL_SOCKET, SO_BROADCAST, false}, {SOL_SOCKET, SO_OOBINLINE, false}, {SOL_SOCKET, SO_PRIORITY, false},
    {SOL_SOCKET, SO_MARK, false}, {SOL_SOCKET, SO_RCVLOWAT, false}, {SOL_SOCKET, SO_LINGER, false},
    {SOL_SOCKET, SO_RCVTIMEO, false}, {SOL_SOCKET, SO_SNDTIMEO, false}, {SOL_SOCKET, SO_TIMESTAMP, false},
    {SOL_SOCKET, SO_PASSCRED, false}, {SOL_SOCKET, SO_DONTROUTE, false}, {SOL_SOCKET, SO_BINDTODEVICE, false},
    {SOL_SOCKET, SO_BUSY_POLL, false}, {SOL_SOCKET, SO_MAX_PACING_RATE, false}, {SOL_SOCKET, SO_TIMESTAMPNS, false},
    {SOL_SOCKET, SO_TIMESTAMPING, false}, {SOL_SOCKET, SO_RXQ_OVFL, false}, {SOL_SOCKET, SO_SELECT_ERR_QUEUE, false},
    {SOL_SOCKET, SO_ZEROCOPY, false}, {SOL_SOCKET, SO_TXTIME, false}, {SOL_SOCKET, SO_PASSSEC, false}, {SOL_SOCKET, SO_NOFCS, false},
    {SOL_SOCKET, 69 /* SO_PREFER_BUSY_POLL */, false}, {SOL_SOCKET, 70 /* SO_BUSY_POLL_BUDGET */, false},
    {SOL_SOCKET, 74 /* SO_TXREHASH */, false}, {SOL_SOCKET, 75 /* SO_RCVMARK */, false}, {SOL_SOCKET, 76 /* SO_PASSPIDFD */, false},
    {IPPROTO_IP, IP_TOS, false}, {IPPROTO_IP, IP_TTL, false}, {IPPROTO_IP, IP_PKTINFO, false},
    {IPPROTO_IP, IP_RECVTTL, false}, {IPPROTO_IP, IP_RECVTOS, false}, {IPPROTO_IP, IP_MTU_DISCOVER, false},
    {IPPROTO_IP, IP_FREEBIND, false}, {IPPROTO_IP, IP_TRANSPARENT, false}, {IPPROTO_IP, IP_RECVERR, false},
    {IPPROTO_IP, IP_MULTICAST_TTL, false}, {IPPROTO_IP, IP_MULTICAST_LOOP, false},
    {IPPROTO_IP, IP_MULTICAST_ALL, false}, {IPPROTO_IP, IP_RECVORIGDSTADDR, false}, {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, false},
    {IPPROTO_IP, IP_RECVOPTS, false}, {IPPROTO_IP, IP_RETOPTS, false}, {IPPROTO_IP, IP_OPTIONS, false}, {IPPROTO_IP, IP_PASSSEC, false},
    {IPPROTO_IP, IP_MINTTL, false}, {IPPROTO_IP, IP_NODEFRAG, false}, {IPPROTO_IP, IP_CHECKSUM, false}, {IPPROTO_IP, IP_RECVFRAGSIZE, false},
    {IPPROTO_IP, 26 /* IP_RECVERR_RFC4884 */, false}, {IPPROTO_IP, IP_UNICAST_IF, false}, {IPPROTO_IP, 51 /* IP_LOCAL_PORT_RANGE */, false},
    {IPPROTO_IPV6, IPV6_MULTICAST_ALL, false}, {IPPROTO_IPV6, IPV6_RECVHOPOPTS, false}, {IPPROTO_IPV6, IPV6_RECVRTHDR, false},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, false}, {IPPROTO_IPV6, IPV6_RECVPATHMTU, false}, {IPPROTO_IPV6, IPV6_DONTFRAG, false},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, false}, {IPPROTO_IPV6, IPV6_MINHOPCOUNT, false}, {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, false},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, false}, {IPPROTO_IPV6, IPV6_RECVFRAGSIZE, false}, {IPPROTO_IPV6, IPV6_FREEBIND, false},
    {IPPROTO_IPV6, 11 /* IPV6_FLOWINFO */, false}, {IPPROTO_IPV6, 33 /* IPV6_FLOWINFO_SEND */, false},
    {IPPROTO_IPV6, 31 /* IPV6_RECVERR_RFC4884 */, false}, {IPPROTO_IPV6, IPV6_UNICAST_IF, false},
    {IPPROTO_UDP, UDP_NO_CHECK6_TX, false}, {IPPROTO_UDP, UDP_NO_CHECK6_RX, false}, {IPPROTO_UDP, UDP_SEGMENT, false}, {IPPROTO_UDP, UDP_GRO, false},
    {IPPROTO_IPV6, IPV6_MULTICAST_IF, false}, {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, false},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, false}, {IPPROTO_IPV6, IPV6_RECVTCLASS, false},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, false}, {IPPROTO_IPV6, IPV6_MTU_DISCOVER, false},
    {IPPROTO_IP, IP_HDRINCL, false}, {SOL_RAW, 1 /* ICMP_FILTER, linux/icmp.h */, false}, {IPPROTO_ICMPV6, ICMP6_FILTER, false},
    {IPPROTO_IPV6, IPV6_V6ONLY, false}, {IPPROTO_IPV6, IPV6_RECVPKTINFO, false},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, false}, {IPPROTO_IPV6, IPV6_TCLASS, false}, {IPPROTO_IPV6, IPV6_RECVERR, false},
    {IPPROTO_TCP, TCP_NODELAY, true}, {IPPROTO_TCP, TCP_KEEPIDLE, true}, {IPPROTO_TCP, TCP_KEEPINTVL, true},
    {IPPROTO_TCP, TCP_KEEPCNT, true}, {IPPROTO_TCP, TCP_DEFER_ACCEPT, true}, {IPPROTO_TCP, TCP_USER_TIMEOUT, true},
    {IPPROTO_TCP, TCP_SYNCNT, true}, {IPPROTO_TCP, TCP_LINGER2, true}, {IPPROTO_TCP, TCP_CORK, true},
    {IPPROTO_TCP, TCP_FASTOPEN, true}, {IPPROTO_TCP, TCP_CONGESTION, true}, {IPPROTO_TCP, 16 /* TCP_THIN_LINEAR_TIMEOUTS */, true},
    {IPPROTO_TCP, 25 /* TCP_NOTSENT_LOWAT */, true}, {IPPROTO_TCP, 27 /* TCP_SAVE_SYN */, true}, {IPPROTO_TCP, 30 /* TCP_FASTOPEN_CONNECT */, true},
    {IPPROTO_TCP, 34 /* TCP_FASTOPEN_NO_COOKIE */, true}, {IPPROTO_TCP, 36 /* TCP_INQ */, true}, {IPPROTO_TCP, 37 /* TCP_TX_DELAY */, true},
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
    if ((o.level == IPPROTO_IPV6 || o.level == IPPROTO_ICMPV6) && socket.domain() != AF_INET6) continue;
    if (o.level != SOL_SOCKET && socket.domain() == AF_NETLINK) continue;
    std::string value = raw_option(fd, o);
    auto known = usual.find(o.level * 1000 + o.name);
    if (value.empty() || (known != usual.end() && known->second == value)) continue;
    auto& saved = *socket.add_options();
    saved.set_level(o.level);
    saved.set_name(o.name);
    saved.set_value(value);
  }
}

Result<void> SocketReader::read(int fd, std::uint64_t inode, pb::OpenFile& file, const pb::Socket* known, std::string& refused, std::string& differs) {
  auto& socket = *file.mutable_socket();
  socket.set_inode(inode);
  if (known != nullptr) {
    socket.set_domain(known->domain());
    socket.set_type(known->type());
    socket.set_protocol(known->protocol());
    *socket.mutable_options() = known->options();
  } else {
    socket.set_domain(integer_option(fd, SOL_SOCKET, SO_DOMAIN));
    socket.set_type(integer_option(fd, SOL_SOCKET, SO_TYPE));
    socket.set_protocol(integer_option(fd, SOL_SOCKET, SO_PROTOCOL));
  }
  if (socket.domain() == AF_UNIX) {
    BATON_TRY(read_unix(fd, inode, socket, refused, differs));
    if (known == nullptr && socket.kind() != pb::SOCKET_LISTENING) read_unix_buffer_sizes(fd, socket);
    if (known == nullptr) read_socket_options(fd, socket);
    return {};
  }
  if (socket.domain() == AF_NETLINK) return read_netlink(fd, socket, refused, differs);
  if (socket.domain() != AF_INET && socket.domain() != AF_INET6) {
    const char* name = socket.domain() == AF_PACKET ? "packet sockets are" : nullptr;
    refused = name != nullptr ? std::string(name) + " not supported" : "sockets of family " + std::to_string(socket.domain()) + " are not supported";
    return {};
  }
  if (known == nullptr) read_socket_options(fd, socket);
  std::string local = own_name(fd);
  if (has_port(local)) socket.set_local(local);
  if (socket.type() == SOCK_DGRAM && socket.protocol() == IPPROTO_UDP) {
    std::string peer = peer_name(fd);
    socket.set_kind(peer.empty() ? pb::SOCKET_PLAIN : pb::SOCKET_UDP_CONNECTED);
    socket.set_peer(peer);
    if (integer_option(fd, IPPROTO_UDP, UDP_CORK) > 0) {
      refused = "a UDP socket that is corked: what it holds back cannot be read";
      return {};
    }
    return stopped ? read_datagrams(fd, socket, known, refused) : Result<void>();
  }
  if (socket.type() == SOCK_RAW) {
    std::string peer = peer_name(fd);
    socket.set_local(local);
    socket.set_peer(peer);
    socket.set_kind(peer.empty() ? pb::SOCKET_PLAIN : pb::SOCKET_UDP_CONNECTED);
    if (has_waiting(fd)) differs = "packets that wait in this raw socket are not taken along";
    return {};
  }
  if (socket.type() != SOCK_STREAM || socket.protocol() != IPPROTO_TCP) {
    refused = socket.type() == SOCK_DGRAM && socket.protocol() == IPPROTO_ICMP ? "ICMP sockets that are not raw are not supported" : "IP protocol " + std::to_string(socket.protocol()) + " is not supported";
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
      return read_tcp(fd, info.tcpi_state, socket, refused, differs);
  }
}

// Those that only ask and listen; what they are told is the machine's, not the program's.
Result<void> SocketReader::read_netlink(int fd, pb::Socket& socket, std::string& refused, std::string& differs) {
  switch (socket.protocol()) {
    case NETLINK_ROUTE: case NETLINK_SOCK_DIAG: case NETLINK_KOBJECT_UEVENT: case NETLINK_GENERIC: break;
    default:
      refused = "netlink sockets of protocol " + std::to_string(socket.protocol()) + " are not supported";
      return {};
  }
  socket.set_kind(pb::SOCKET_PLAIN);
  sockaddr_nl own{};
  socklen_t bytes = sizeof own;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &bytes) != 0) return errno_error("getsockname", "netlink socket");
  if (own.nl_pid != 0) socket.set_local(reinterpret_cast<const char*>(&own), sizeof own);   // with the groups: to bind is to replace them
  read_socket_options(fd, socket);
  auto keep = [&](int name, int value) {
    auto& saved = *socket.add_options();
    saved.set_level(SOL_NETLINK);
    saved.set_name(name);
    saved.set_value(reinterpret_cast<const char*>(&value), sizeof value);
  };
  for (int name : {NETLINK_PKTINFO, NETLINK_BROADCAST_ERROR, NETLINK_NO_ENOBUFS, NETLINK_LISTEN_ALL_NSID, NETLINK_CAP_ACK,
                   NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK}) {
    if (int value = integer_option(fd, SOL_NETLINK, name); value > 0) keep(name, value);
  }
  std::uint32_t joined[32] = {};
  bytes = sizeof joined;
  if (::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, joined, &bytes) == 0) {
    for (int group = 1; group <= 32 * 32; ++group) {
      if ((joined[(group - 1) / 32] >> ((group - 1) % 32) & 1) != 0) keep(NETLINK_ADD_MEMBERSHIP, group);
    }
  }
  if (has_waiting(fd)) differs = "messages that wait in this netlink socket are not taken along";
  return {};
}

void SocketReader::note_ends(int fd, std::uint64_t inode) {
  std::string peer = peer_name(fd);
  if (peer.empty() || (peer.size() != sizeof(sockaddr_in) && peer.size() != sizeof(sockaddr_in6))) return;
  tcp_ends[end_key(own_name(fd)) + end_key(peer)] = inode;
}

Result<void> SocketReader::read_tcp(int fd, int state, pb::Socket& socket, std::string& refused, std::string& differs) {
  if (spec->tcp() == pb::TCP_CLOSE) {
    socket.set_kind(pb::SOCKET_RESET);
    differs = "the connection is reset after a move (--tcp close)";
    return {};
  }
  if (spec->tcp() != pb::TCP_ESTABLISHED) {
    refused = "it is a connected TCP socket; with --tcp close the program sees it reset after a move, with --tcp established it is taken along";
    return {};
  }
  const std::string local = own_name(fd);
  std::string peer = peer_name(fd);
  if (state == TCP_SYN_SENT) {
    BATON_ASSIGN(peer, connecting_to(any_pid, socket.inode()));
    socket.set_local(local);
    socket.set_peer(peer);
    socket.set_kind(peer.empty() ? pb::SOCKET_RESET : pb::SOCKET_TCP_CONNECTING);
    differs = "its handshake is under way, and begins anew after a move";
    return {};
  }
  if (peer.empty()) {   // reset by the peer or timed out, which the program has yet to see
    socket.set_kind(pb::SOCKET_RESET);
    return {};
  }
  if (is_loopback(local) || is_loopback(peer)) {
    if (!tcp_ends.contains(end_key(peer) + end_key(local)) && !spec->addresses().empty()) {
      // In a network namespace of its own nobody else can be the other end.
      if (state == TCP_ESTABLISHED) {
        socket.set_kind(pb::SOCKET_RESET);
        differs = "its other end waits to be accepted, and is reset after a move";
        return {};
      }
    } else if (!tcp_ends.contains(end_key(peer) + end_key(local))) {
      refused = "the other end of this loopback connection is outside the workload, or has been closed";
      return {};
    }
  } else if (spec->addresses().empty()) {
    refused = "it is a connected TCP socket of the node's own address, which stays; --tcp established takes along connections of an "
              "--address of the workload and of loopback";
    return {};
  }
  socket.set_local(local);
  socket.set_peer(peer);
  socket.set_kind(pb::SOCKET_TCP);
  if (guard == nullptr) return {};
  return read_connection(fd, *guard, *socket.mutable_tcp(), refused);
}

}  // namespace baton::linux_backend::state
