// Sockets that are not unix sockets, as far as a program has them by itself: UDP with what waits,
// groups, listeners, raw sockets, netlink, options of all of them. Connections to others are
// tests/system's (stream).
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "zoo.h"

using namespace zoo;

namespace {

sockaddr_in loopback(int port = 0) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  a.sin_port = htons(static_cast<uint16_t>(port));
  return a;
}
sockaddr_in6 loopback6(int port = 0) {
  sockaddr_in6 a{};
  a.sin6_family = AF_INET6;
  a.sin6_addr = in6addr_loopback;
  a.sin6_port = htons(static_cast<uint16_t>(port));
  return a;
}
template <typename A>
const sockaddr* raw(const A& a) { return reinterpret_cast<const sockaddr*>(&a); }

std::string name_of(int fd, bool peer = false) {
  sockaddr_storage a{};
  socklen_t bytes = sizeof a;
  const int got = peer ? getpeername(fd, reinterpret_cast<sockaddr*>(&a), &bytes) : getsockname(fd, reinterpret_cast<sockaddr*>(&a), &bytes);
  return got == 0 ? std::string(reinterpret_cast<char*>(&a), bytes) : "error " + std::to_string(errno);
}
int port_of(int fd) {
  sockaddr_storage a{};
  socklen_t bytes = sizeof a;
  MUST(getsockname(fd, reinterpret_cast<sockaddr*>(&a), &bytes) == 0);
  return ntohs(reinterpret_cast<sockaddr_in&>(a).sin_port);
}
int udp() {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  auto a = loopback();
  MUST(fd >= 0 && bind(fd, raw(a), sizeof a) == 0);
  return fd;
}

// --- options ------------------------------------------------------------------

struct Wish { int level, name, value; };
const Wish kGeneral[] = {
    {SOL_SOCKET, SO_REUSEADDR, 1}, {SOL_SOCKET, SO_REUSEPORT, 1}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {SOL_SOCKET, SO_BROADCAST, 1},
    {SOL_SOCKET, SO_OOBINLINE, 1}, {SOL_SOCKET, SO_PRIORITY, 3}, {SOL_SOCKET, SO_RCVLOWAT, 5}, {SOL_SOCKET, SO_TIMESTAMP, 1},
    {SOL_SOCKET, SO_DONTROUTE, 1}, {SOL_SOCKET, SO_RXQ_OVFL, 1}, {SOL_SOCKET, SO_SELECT_ERR_QUEUE, 1}, {SOL_SOCKET, SO_ZEROCOPY, 1},
    {SOL_SOCKET, SO_NOFCS, 1}, {SOL_SOCKET, SO_TIMESTAMPING, 8}, {SOL_SOCKET, 74 /* SO_TXREHASH */, 0},
};
const Wish kIp[] = {
    {IPPROTO_IP, IP_TOS, 16}, {IPPROTO_IP, IP_TTL, 33}, {IPPROTO_IP, IP_PKTINFO, 1}, {IPPROTO_IP, IP_RECVTTL, 1}, {IPPROTO_IP, IP_RECVTOS, 1},
    {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE}, {IPPROTO_IP, IP_FREEBIND, 1}, {IPPROTO_IP, IP_RECVERR, 1}, {IPPROTO_IP, IP_MULTICAST_TTL, 7},
    {IPPROTO_IP, IP_MULTICAST_LOOP, 0}, {IPPROTO_IP, IP_MULTICAST_ALL, 0}, {IPPROTO_IP, IP_RECVORIGDSTADDR, 1}, {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1},
    {IPPROTO_IP, IP_MINTTL, 5}, {IPPROTO_IP, IP_CHECKSUM, 1}, {IPPROTO_IP, IP_RECVFRAGSIZE, 1}, {IPPROTO_IP, IP_RECVOPTS, 1}, {IPPROTO_IP, IP_RETOPTS, 1},
};
const Wish kIp6[] = {
    {IPPROTO_IPV6, IPV6_V6ONLY, 1}, {IPPROTO_IPV6, IPV6_UNICAST_HOPS, 21}, {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 9}, {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, 1}, {IPPROTO_IPV6, IPV6_RECVTCLASS, 1}, {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1}, {IPPROTO_IPV6, IPV6_TCLASS, 8},
    {IPPROTO_IPV6, IPV6_RECVERR, 1}, {IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE}, {IPPROTO_IPV6, IPV6_DONTFRAG, 1},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, 1}, {IPPROTO_IPV6, IPV6_RECVRTHDR, 1}, {IPPROTO_IPV6, IPV6_RECVDSTOPTS, 1}, {IPPROTO_IPV6, IPV6_RECVPATHMTU, 1},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0}, {IPPROTO_IPV6, IPV6_MINHOPCOUNT, 6}, {IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0}, {IPPROTO_IPV6, IPV6_FREEBIND, 1},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE, 1}, {IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1}, {IPPROTO_IPV6, 33 /* IPV6_FLOWINFO_SEND */, 1},
};
const Wish kTcp[] = {
    {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 71}, {IPPROTO_TCP, TCP_KEEPINTVL, 12}, {IPPROTO_TCP, TCP_KEEPCNT, 4},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 4321}, {IPPROTO_TCP, TCP_SYNCNT, 3}, {IPPROTO_TCP, TCP_LINGER2, 17}, {IPPROTO_TCP, 25 /* TCP_NOTSENT_LOWAT */, 16384},
    {IPPROTO_TCP, 16 /* TCP_THIN_LINEAR_TIMEOUTS */, 1}, {IPPROTO_TCP, 27 /* TCP_SAVE_SYN */, 1}, {IPPROTO_TCP, 34 /* TCP_FASTOPEN_NO_COOKIE */, 1},
    {IPPROTO_TCP, 36 /* TCP_INQ */, 1},
};
const Wish kUdp[] = {{IPPROTO_UDP, UDP_SEGMENT, 1200}, {IPPROTO_UDP, UDP_GRO, 1}};

using Values = std::map<std::pair<int, int>, std::string>;

std::string value_of(int fd, int level, int name) {
  char value[128];
  socklen_t bytes = sizeof value;
  if (getsockopt(fd, level, name, value, &bytes) != 0) return "error";
  std::string hex;
  for (socklen_t i = 0; i < bytes; ++i) {
    char two[3];
    snprintf(two, sizeof two, "%02x", static_cast<unsigned char>(value[i]));
    hex += two;
  }
  return hex;
}

template <size_t N>
void wish(int fd, const Wish (&wishes)[N], Values& values) {
  for (const auto& w : wishes) {
    if (setsockopt(fd, w.level, w.name, &w.value, sizeof w.value) != 0) continue;   // not of this kind of socket, or kernel
    values[{w.level, w.name}] = "";
  }
}

// All of them set, with a rate and a buffer that are no ints.
Animal options(int domain, int type, int protocol, size_t least) {
  int fd = socket(domain, type, protocol);
  MUST(fd >= 0);
  auto values = std::make_shared<Values>();
  wish(fd, kGeneral, *values);
  wish(fd, kIp, *values);
  if (domain == AF_INET6) wish(fd, kIp6, *values);
  if (type == SOCK_STREAM) wish(fd, kTcp, *values);
  if (type == SOCK_DGRAM) wish(fd, kUdp, *values);
  uint64_t rate = 123456;
  if (setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate) == 0) (*values)[{SOL_SOCKET, SO_MAX_PACING_RATE}] = "";
  linger wait{1, 9};
  if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait) == 0) (*values)[{SOL_SOCKET, SO_LINGER}] = "";
  timeval patience{2, 500000};
  if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0) (*values)[{SOL_SOCKET, SO_SNDTIMEO}] = "";
  for (auto& [option, value] : *values) value = value_of(fd, option.first, option.second);
  MUST(values->size() >= least);
  return {[=](Check& c) {
            for (const auto& [option, value] : *values) {
              const std::string now = value_of(fd, option.first, option.second);
              if (now != value) c.expect(false, ("option " + std::to_string(option.first) + "/" + std::to_string(option.second) + " is " + now + ", was " + value).c_str());
            }
          },
          [=] {
            int ttl = (value_of(fd, IPPROTO_IP, IP_TTL) == "21000000") ? 34 : 33;
            if (setsockopt(fd, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl) == 0) (*values)[{IPPROTO_IP, IP_TTL}] = value_of(fd, IPPROTO_IP, IP_TTL);
          }};
}
Animal options_tcp() { return options(AF_INET, SOCK_STREAM, 0, 35); }
Animal options_tcp6() { return options(AF_INET6, SOCK_STREAM, 0, 45); }
Animal options_udp() { return options(AF_INET, SOCK_DGRAM, 0, 25); }
Animal options_udp6() { return options(AF_INET6, SOCK_DGRAM, 0, 40); }
Animal options_raw() { return options(AF_INET, SOCK_RAW, IPPROTO_ICMP, 20); }

// --- UDP ----------------------------------------------------------------------

// Datagrams that wait, an empty one among them, from a bound and from an unbound sender.
Animal udp_queue() {
  int to = udp(), from = udp(), other = socket(AF_INET, SOCK_DGRAM, 0);
  auto target = loopback(port_of(to));
  auto sent = std::make_shared<std::vector<std::pair<int, std::string>>>();
  auto send_one = [=](int fd, const std::string& text) {
    MUST(sendto(fd, text.data(), text.size(), 0, raw(target), sizeof target) == static_cast<ssize_t>(text.size()));
    sent->push_back({fd, text});
  };
  send_one(from, "first");
  send_one(from, "");
  send_one(other, std::string(20000, 'l'));
  send_one(from, "last");
  auto turn = std::make_shared<int>(0);
  return {[=](Check& c) {
            auto expected = std::exchange(*sent, {});
            for (const auto& [fd, text] : expected) {
              std::vector<char> got(65536);
              sockaddr_in who{};
              socklen_t bytes = sizeof who;
              ssize_t n = recvfrom(to, got.data(), got.size(), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&who), &bytes);
              c.same(n, static_cast<long long>(text.size()), "a datagram's length");
              c.expect(n >= 0 && text == std::string(got.data(), static_cast<size_t>(n)), "a datagram's content");
              c.same(ntohs(who.sin_port), port_of(fd), "its sender");
            }
            char byte;
            c.same(recv(to, &byte, 1, MSG_DONTWAIT), -1, "nothing more waits");
            for (const auto& [fd, text] : expected) send_one(fd, text);
          },
          [=] { send_one(from, "more " + std::to_string(++*turn)); }};
}

Animal udp_connected() {
  int a = udp(), b = udp();
  auto to_a = loopback(port_of(a)), to_b = loopback(port_of(b));
  MUST(connect(a, raw(to_b), sizeof to_b) == 0 && connect(b, raw(to_a), sizeof to_a) == 0);
  const std::string own = name_of(a), peer = name_of(a, true);
  return {[=](Check& c) {
            c.expect(name_of(a) == own, "its name");
            c.expect(name_of(a, true) == peer, "its peer's name");
            MUST(send(a, "there", 5, 0) == 5);
            char got[8];
            c.same(recv(b, got, sizeof got, MSG_DONTWAIT), 5, "what it sends arrives");
            int stranger = udp();
            auto to = loopback(port_of(a));
            sendto(stranger, "x", 1, 0, raw(to), sizeof to);
            close(stranger);
            c.same(recv(a, got, sizeof got, MSG_DONTWAIT), -1, "others are not heard");
          },
          {}};
}

Animal udp_group() {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  MUST(fd >= 0 && bind(fd, raw(any), sizeof any) == 0);
  auto lo = static_cast<int>(if_nametoindex("lo"));
  ip_mreqn join{};
  join.imr_multiaddr.s_addr = inet_addr("239.9.8.7");
  join.imr_ifindex = lo;
  MUST(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join) == 0);
  return {[=](Check& c) {
            ip_mreqn again = join;
            c.same(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &again, sizeof again), -1, "it is in the group");
            c.same(errno, EADDRINUSE, "error");
          },
          {}};
}

// One that it sends to itself, more with each change.
Animal udp_option_and_queue() {
  int fd = udp();
  auto self = loopback(port_of(fd));
  MUST(connect(fd, raw(self), sizeof self) == 0);
  int one = 1;
  MUST(setsockopt(fd, IPPROTO_IP, IP_RECVTTL, &one, sizeof one) == 0);
  auto count = std::make_shared<int>(0);
  auto more = [=] {
    char text = static_cast<char>('a' + (*count)++ % 26);
    MUST(send(fd, &text, 1, 0) == 1);
  };
  more();
  return {[=](Check& c) {
            for (int i = 0; i < *count; ++i) {
              char got = 0;
              c.same(recv(fd, &got, 1, MSG_DONTWAIT), 1, "a datagram waits");
              c.same(got, 'a' + i % 26, "in its order");
            }
            const int all = std::exchange(*count, 0);
            for (int i = 0; i < all; ++i) more();
            int value = 0;
            socklen_t bytes = sizeof value;
            getsockopt(fd, IPPROTO_IP, IP_RECVTTL, &value, &bytes);
            c.same(value, 1, "IP_RECVTTL");
          },
          more};
}

Animal udp_corked() {
  int fd = udp(), one = 1;
  auto self = loopback(port_of(fd));
  MUST(connect(fd, raw(self), sizeof self) == 0 && setsockopt(fd, IPPROTO_UDP, UDP_CORK, &one, sizeof one) == 0);
  MUST(send(fd, "held", 4, 0) == 4);
  return {[](Check&) {}, {}};
}

Animal udp_lite() {
  MUST(socket(AF_INET, SOCK_DGRAM, 136 /* IPPROTO_UDPLITE */) >= 0);
  return {[](Check&) {}, {}};
}

// --- TCP ----------------------------------------------------------------------

// A connection through it works after the move, under the same port.
Animal tcp_listening(int domain, bool only_6) {
  int fd = socket(domain, SOCK_STREAM, 0), value = only_6 ? 1 : 0;
  if (domain == AF_INET6) {
    MUST(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value, sizeof value) == 0);
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    MUST(bind(fd, raw(any), sizeof any) == 0);
  } else {
    auto a = loopback();
    MUST(bind(fd, raw(a), sizeof a) == 0);
  }
  MUST(listen(fd, 7) == 0);
  const std::string own = name_of(fd);
  const int port = port_of(fd);
  return {[=](Check& c) {
            c.expect(name_of(fd) == own, "its name");
            tcp_info info{};
            socklen_t bytes = sizeof info;
            getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes);
            c.same(info.tcpi_state, TCP_LISTEN, "it listens");
            c.same(info.tcpi_sacked, 7, "its backlog");
            auto reach = [&](int family, const sockaddr* to, socklen_t length) {
              int client = socket(family, SOCK_STREAM, 0);
              const bool reached = connect(client, to, length) == 0;
              if (reached) {
                int accepted = accept(fd, nullptr, nullptr);
                c.expect(accepted >= 0, "it accepts");
                linger now{1, 0};   // no TIME_WAIT
                setsockopt(accepted, SOL_SOCKET, SO_LINGER, &now, sizeof now);
                close(accepted);
              }
              close(client);
              return reached;
            };
            auto four = loopback(port);
            c.same(reach(AF_INET, raw(four), sizeof four), domain == AF_INET || !only_6, "it is reached by IPv4");
            if (domain == AF_INET6) {
              auto six = loopback6(port);
              c.expect(reach(AF_INET6, raw(six), sizeof six), "it is reached by IPv6");
            }
          },
          {}};
}
Animal tcp_listening_4() { return tcp_listening(AF_INET, false); }
Animal tcp_listening_6() { return tcp_listening(AF_INET6, true); }
Animal tcp_listening_both() { return tcp_listening(AF_INET6, false); }

// Several listen on one port.
Animal tcp_reuseport() {
  int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  auto a = loopback();
  MUST(setsockopt(first, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0 && setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) == 0);
  MUST(bind(first, raw(a), sizeof a) == 0);
  a = loopback(port_of(first));
  MUST(bind(second, raw(a), sizeof a) == 0 && listen(first, 5) == 0 && listen(second, 5) == 0);
  return {[=](Check& c) {
            c.same(port_of(first), port_of(second), "their port");
            int third = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
            setsockopt(third, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes);
            auto same = loopback(port_of(first));
            c.same(bind(third, raw(same), sizeof same), 0, "another may join them");
            close(third);
            third = socket(AF_INET, SOCK_STREAM, 0);
            c.same(bind(third, raw(same), sizeof same), -1, "one that does not ask for it may not");
            close(third);
          },
          {}};
}

Animal tcp_bound() {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  auto a = loopback();
  MUST(fd >= 0 && bind(fd, raw(a), sizeof a) == 0);
  const std::string own = name_of(fd);
  return {[=](Check& c) {
            c.expect(name_of(fd) == own, "its name");
            char byte;
            c.same(recv(fd, &byte, 1, MSG_DONTWAIT), -1, "it is not connected");
            c.same(errno, ENOTCONN, "error");
          },
          {}};
}

// --- others -------------------------------------------------------------------

Animal raw_filter() {
  int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), six = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), own_header = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
  uint32_t filter = ~(1u << 8);
  MUST(fd >= 0 && setsockopt(fd, SOL_RAW, 1 /* ICMP_FILTER */, &filter, sizeof filter) == 0);
  icmp6_filter filter6;
  ICMP6_FILTER_SETBLOCKALL(&filter6);
  ICMP6_FILTER_SETPASS(ND_ROUTER_ADVERT, &filter6);
  MUST(six >= 0 && setsockopt(six, IPPROTO_ICMPV6, ICMP6_FILTER, &filter6, sizeof filter6) == 0);
  const std::string four = value_of(fd, SOL_RAW, 1), after = value_of(six, IPPROTO_ICMPV6, ICMP6_FILTER), header = value_of(own_header, IPPROTO_IP, IP_HDRINCL);
  return {[=](Check& c) {
            c.expect(value_of(fd, SOL_RAW, 1) == four, "ICMP_FILTER");
            c.expect(value_of(six, IPPROTO_ICMPV6, ICMP6_FILTER) == after, "ICMP6_FILTER");
            c.expect(value_of(own_header, IPPROTO_IP, IP_HDRINCL) == header, "IP_HDRINCL");
          },
          {}};
}

Animal netlink_route() {
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), one = 1, group = RTNLGRP_LINK;
  sockaddr_nl own{};
  own.nl_family = AF_NETLINK;
  MUST(fd >= 0 && bind(fd, raw(own), sizeof own) == 0);
  MUST(setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0);
  MUST(setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one) == 0 && setsockopt(fd, SOL_NETLINK, NETLINK_PKTINFO, &one, sizeof one) == 0);
  const std::string name = name_of(fd);
  return {[=](Check& c) {
            sockaddr_nl was{}, is{};
            memcpy(&was, name.data(), std::min(name.size(), sizeof was));
            const std::string now = name_of(fd);
            memcpy(&is, now.data(), std::min(now.size(), sizeof is));
            c.same(is.nl_pid, was.nl_pid, "its port");
            c.same(is.nl_groups, was.nl_groups, "its groups");
            c.expect(value_of(fd, SOL_NETLINK, NETLINK_EXT_ACK) == "01000000", "NETLINK_EXT_ACK");
            c.expect(value_of(fd, SOL_NETLINK, NETLINK_PKTINFO) == "01000000", "NETLINK_PKTINFO");
            struct { nlmsghdr head; rtgenmsg body; } ask{};
            ask.head.nlmsg_len = sizeof ask;
            ask.head.nlmsg_type = RTM_GETLINK;
            ask.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
            MUST(send(fd, &ask, sizeof ask, 0) == static_cast<ssize_t>(sizeof ask));
            char answer[32768];
            bool done = false;
            for (int i = 0; i < 100 && !done; ++i) {
              int n = static_cast<int>(recv(fd, answer, sizeof answer, 0));
              for (auto* h = reinterpret_cast<nlmsghdr*>(answer); NLMSG_OK(h, static_cast<unsigned>(n)); h = NLMSG_NEXT(h, n)) done = done || h->nlmsg_type == NLMSG_DONE;
            }
            c.expect(done, "it answers");
          },
          {}};
}

Animal icmp() {
  FILE* f = fopen("/proc/sys/net/ipv4/ping_group_range", "w");   // of the runner's network namespace
  if (f != nullptr) {
    fprintf(f, "0 2147483647");
    fclose(f);
  }
  if (socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP) < 0) {
    tracee::say("SKIPPED: ICMP sockets (net.ipv4.ping_group_range)");
    _exit(0);
  }
  return {[](Check&) {}, {}};
}

Animal packet() {
  MUST(socket(AF_PACKET, SOCK_RAW, 0) >= 0);
  return {[](Check&) {}, {}};
}

Animal vsock() {
  if (socket(40 /* AF_VSOCK */, SOCK_STREAM, 0) < 0) {
    tracee::say("SKIPPED: AF_VSOCK (CONFIG_VSOCKETS)");
    _exit(0);
  }
  return {[](Check&) {}, {}};
}

const std::vector<Case> kCases = {
    {"socket-options-tcp", "socket options", nullptr, options_tcp},
    {"socket-options-tcp6", "socket options", nullptr, options_tcp6},
    {"socket-options-udp", "socket options", nullptr, options_udp},
    {"socket-options-udp6", "socket options", nullptr, options_udp6},
    {"socket-options-raw", "socket options", nullptr, options_raw},
    {"udp-queue", "UDP socket", nullptr, udp_queue},
    {"udp-connected", "UDP socket", nullptr, udp_connected},
    {"udp-to-itself", "UDP socket", nullptr, udp_option_and_queue},
    {"udp-group", "UDP socket", nullptr, udp_group},
    {"udp-corked", "UDP socket", "corked", udp_corked},
    {"udp-lite", "UDP-lite socket", "not supported", udp_lite},
    {"tcp-listening", "TCP listener", nullptr, tcp_listening_4},
    {"tcp-listening-6", "TCP listener", nullptr, tcp_listening_6},
    {"tcp-listening-both", "TCP listener", nullptr, tcp_listening_both},
    {"tcp-reuseport", "TCP listener", nullptr, tcp_reuseport},
    {"tcp-bound", "TCP socket", nullptr, tcp_bound},
    {"raw-filters", "raw socket", nullptr, raw_filter},
    {"netlink-route", "netlink socket", nullptr, netlink_route},
    {"icmp-socket", "ICMP socket", "not supported", icmp},
    {"packet-socket", "packet socket", "not supported", packet},
    {"foreign-family", "socket of another family", "not supported", vsock},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
