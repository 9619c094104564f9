#include "agent/backend/linux/restore/udp.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace baton::restore {
namespace {

struct End { int family = AF_UNSPEC; std::string host; std::uint16_t port = 0; std::uint32_t scope = 0; };

End end_of(const std::string& raw) {
  sockaddr_storage any{};
  std::memcpy(&any, raw.data(), std::min(raw.size(), sizeof any));
  End out;
  if (any.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(any);
    out = {AF_INET, std::string(reinterpret_cast<const char*>(&in.sin_addr), 4), in.sin_port, 0};
  } else if (any.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(any);
    bool mapped = IN6_IS_ADDR_V4MAPPED(&in.sin6_addr);
    out = {mapped ? AF_INET : AF_INET6, std::string(reinterpret_cast<const char*>(&in.sin6_addr) + (mapped ? 12 : 0), mapped ? 4u : 16u),
           in.sin6_port, in.sin6_scope_id};
  }
  return out;
}

std::string loopback(int family) {
  if (family == AF_INET) return std::string("\x7f\0\0\1", 4);
  std::string out(16, '\0');
  out[15] = 1;
  return out;
}

template <typename T>
std::string text_of(const T& value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); }

std::uint16_t checksum(std::string bytes) {
  if (bytes.size() % 2 != 0) bytes.push_back('\0');
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    sum += static_cast<std::uint32_t>(static_cast<std::uint8_t>(bytes[i]) << 8 | static_cast<std::uint8_t>(bytes[i + 1]));
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  auto value = static_cast<std::uint16_t>(~sum);
  return htons(value == 0 ? 0xffff : value);   // RFC 768
}

}  // namespace

int datagram_family(const pb::Socket& socket) {
  for (const auto& datagram : socket.datagrams().queue()) return end_of(datagram.source()).family;
  return AF_UNSPEC;
}

Result<void> deliver_datagrams(int raw, const pb::Socket& socket) {
  End local = end_of(socket.local());
  for (const auto& datagram : socket.datagrams().queue()) {
    End from = end_of(datagram.source());
    std::string host = local.family == from.family ? local.host : std::string();
    if (host.find_first_not_of('\0') == std::string::npos) host = loopback(from.family);   // bound to any address
    udphdr udp{};
    udp.uh_sport = from.port;
    udp.uh_dport = local.port;
    const auto length = static_cast<std::uint16_t>(sizeof udp + datagram.data().size());
    udp.uh_ulen = htons(length);
    std::string pseudo = from.host + host;
    if (from.family == AF_INET) pseudo += text_of(htons(IPPROTO_UDP)) + text_of(htons(length));
    else pseudo += text_of(htonl(length)) + text_of(htonl(IPPROTO_UDP));
    udp.uh_sum = checksum(pseudo + text_of(udp) + datagram.data());
    std::string packet;
    sockaddr_storage to{};
    socklen_t to_bytes = 0;
    if (from.family == AF_INET) {
      iphdr ip{};
      ip.version = 4;
      ip.ihl = sizeof ip / 4;
      ip.tot_len = htons(static_cast<std::uint16_t>(sizeof ip + length));
      ip.ttl = 64;
      ip.protocol = IPPROTO_UDP;
      std::memcpy(&ip.saddr, from.host.data(), 4);
      std::memcpy(&ip.daddr, host.data(), 4);
      packet = text_of(ip);
      auto& in = reinterpret_cast<sockaddr_in&>(to);
      in.sin_family = AF_INET;
      std::memcpy(&in.sin_addr, host.data(), 4);
      to_bytes = sizeof in;
    } else {
      ip6_hdr ip{};
      ip.ip6_flow = htonl(6u << 28);
      ip.ip6_plen = htons(length);
      ip.ip6_nxt = IPPROTO_UDP;
      ip.ip6_hlim = 64;
      std::memcpy(&ip.ip6_src, from.host.data(), 16);
      std::memcpy(&ip.ip6_dst, host.data(), 16);
      packet = text_of(ip);
      auto& in = reinterpret_cast<sockaddr_in6&>(to);
      in.sin6_family = AF_INET6;
      std::memcpy(&in.sin6_addr, host.data(), 16);
      in.sin6_scope_id = local.scope;
      to_bytes = sizeof in;
    }
    packet += text_of(udp) + datagram.data();
    if (::sendto(raw, packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&to), to_bytes) < 0) {
      return errno_error("refill", "UDP socket");
    }
  }
  return {};
}

Result<void> join_groups(int fd, const pb::Socket& socket) {
  for (const auto& membership : socket.datagrams().memberships()) {
    const auto& group = membership.group();
    const int level = group.size() == sizeof(sockaddr_in) ? IPPROTO_IP : IPPROTO_IPV6;
    group_req join{};
    join.gr_interface = membership.interface();
    std::memcpy(&join.gr_group, group.data(), std::min(group.size(), sizeof join.gr_group));
    if (::setsockopt(fd, level, MCAST_JOIN_GROUP, &join, sizeof join) != 0 && errno != EADDRINUSE) {
      Error error = errno_error("join group", "interface " + std::to_string(membership.interface()));
      error.hint = "The node has no such interface; with --address the workload takes its own along.";
      return error;
    }
    if (membership.sources_size() == 0 && membership.filter_mode() == MCAST_EXCLUDE) continue;
    std::vector<std::byte> buffer(GROUP_FILTER_SIZE(static_cast<std::size_t>(membership.sources_size())));
    auto& filter = *reinterpret_cast<group_filter*>(buffer.data());
    filter.gf_interface = join.gr_interface;
    filter.gf_group = join.gr_group;
    filter.gf_fmode = membership.filter_mode();
    filter.gf_numsrc = static_cast<std::uint32_t>(membership.sources_size());
    for (int i = 0; i < membership.sources_size(); ++i) {
      std::memcpy(&filter.gf_slist[i], membership.sources(i).data(), std::min(membership.sources(i).size(), sizeof filter.gf_slist[i]));
    }
    if (::setsockopt(fd, level, MCAST_MSFILTER, buffer.data(), static_cast<socklen_t>(buffer.size())) != 0) {
      return errno_error("filter sources of a group", "UDP socket");
    }
  }
  return {};
}

}  // namespace baton::restore
