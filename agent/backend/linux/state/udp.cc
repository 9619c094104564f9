// Datagrams that wait in a socket, read in place (MSG_PEEK with SO_PEEK_OFF, socket(7)), and the
// groups it is in: no call lists them, so each group of the network namespace is asked for.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::size_t kMaxQueueBytes = 16u << 20;   // of one socket
constexpr std::size_t kMaxSources = 64;             // of one group (net.ipv4.igmp_max_msf is 10)

struct Group { std::uint32_t interface = 0; std::string address; };   // sockaddr

// /proc/PID/net/igmp: a line per interface, then its groups, as the processor stores them.
void groups_of_4(const std::string& text, std::vector<Group>& out) {
  std::istringstream lines(text);
  std::uint32_t interface = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    if (line[0] >= '0' && line[0] <= '9') {
      interface = static_cast<std::uint32_t>(std::strtoul(line.c_str(), nullptr, 10));
    } else if (line[0] == '\t' && interface != 0) {
      sockaddr_in group{};
      group.sin_family = AF_INET;
      group.sin_addr.s_addr = static_cast<in_addr_t>(std::strtoul(line.c_str(), nullptr, 16));
      out.push_back({interface, std::string(reinterpret_cast<const char*>(&group), sizeof group)});
    }
  }
}

// /proc/PID/net/igmp6: "2  eth0  ff02000000000000000000000000fb01  1 …".
void groups_of_6(const std::string& text, std::vector<Group>& out) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::uint32_t interface = 0;
    std::string name, hex;
    if (!(words >> interface >> name >> hex) || hex.size() != 32) continue;
    sockaddr_in6 group{};
    group.sin6_family = AF_INET6;
    for (std::size_t i = 0; i < 16; ++i) group.sin6_addr.s6_addr[i] = static_cast<std::uint8_t>(std::stoul(hex.substr(2 * i, 2), nullptr, 16));
    out.push_back({interface, std::string(reinterpret_cast<const char*>(&group), sizeof group)});
  }
}

// Is it in that group, and with which filter? (MCAST_MSFILTER, ip(7))
void read_membership(int fd, const Group& group, pb::DatagramState& out) {
  std::vector<std::byte> buffer(GROUP_FILTER_SIZE(kMaxSources));
  auto& filter = *reinterpret_cast<group_filter*>(buffer.data());
  filter.gf_interface = group.interface;
  std::memcpy(&filter.gf_group, group.address.data(), group.address.size());
  filter.gf_numsrc = kMaxSources;
  socklen_t bytes = static_cast<socklen_t>(buffer.size());
  int level = group.address.size() == sizeof(sockaddr_in) ? IPPROTO_IP : IPPROTO_IPV6;
  if (::getsockopt(fd, level, MCAST_MSFILTER, buffer.data(), &bytes) != 0) return;   // EADDRNOTAVAIL: no
  auto& membership = *out.add_memberships();
  membership.set_group(group.address);
  membership.set_interface(group.interface);
  membership.set_filter_mode(filter.gf_fmode);
  for (std::uint32_t i = 0; i < filter.gf_numsrc && i < kMaxSources; ++i) {
    membership.add_sources(std::string(reinterpret_cast<const char*>(&filter.gf_slist[i]), group.address.size()));
  }
}

Result<void> read_queue(int fd, pb::DatagramState& out, std::string& refused) {
  pollfd arrived{fd, POLLIN, 0};
  if (::poll(&arrived, 1, 0) == 0) return {};
  int before = -1, from_start = 0;
  socklen_t bytes = sizeof before;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &before, &bytes) != 0) return errno_error("SO_PEEK_OFF", "UDP socket");
  if (::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &from_start, sizeof from_start) != 0) return errno_error("SO_PEEK_OFF", "UDP socket");
  std::vector<char> buffer(65536);
  std::size_t all = 0;
  for (;;) {
    sockaddr_storage source{};
    iovec part{buffer.data(), buffer.size()};
    msghdr header{};
    header.msg_name = &source;
    header.msg_namelen = sizeof source;
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    ssize_t n = ::recvmsg(fd, &header, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;   // EAGAIN: that was all; an error of the socket stays for the program
    all += static_cast<std::size_t>(n);
    if (all > kMaxQueueBytes) {
      refused = "more than 16 MiB of datagrams wait in it";
      break;
    }
    auto& datagram = *out.add_queue();
    datagram.set_data(buffer.data(), static_cast<std::size_t>(n));
    datagram.set_source(reinterpret_cast<const char*>(&source), header.msg_namelen);
  }
  if (::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &before, sizeof before) != 0) return errno_error("SO_PEEK_OFF", "UDP socket");
  return {};
}

}  // namespace

Result<void> SocketReader::read_datagrams(int fd, pb::Socket& socket, const pb::Socket* known, std::string& refused) {
  pb::DatagramState state;
  BATON_TRY(read_queue(fd, state, refused));
  if (known != nullptr) *state.mutable_memberships() = known->datagrams().memberships();
  if (known == nullptr && !groups_known) {
    std::string folder = "/proc/" + std::to_string(any_pid) + "/net/";
    std::vector<Group> all;
    if (auto text = read_file(folder + "igmp")) groups_of_4(*text, all);
    if (auto text = read_file(folder + "igmp6")) groups_of_6(*text, all);
    for (auto& group : all) groups.emplace_back(group.interface, std::move(group.address));
    groups_known = true;
  }
  for (const auto& [interface, address] : groups) {
    if (known != nullptr) break;
    if (address.size() == sizeof(sockaddr_in6) && socket.domain() != AF_INET6) continue;
    read_membership(fd, {interface, address}, state);
  }
  if (state.queue_size() > 0 || state.memberships_size() > 0) *socket.mutable_datagrams() = std::move(state);
  return {};
}

}  // namespace baton::linux_backend::state
