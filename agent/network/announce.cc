#include "agent/network/announce.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace baton::network {
namespace {

constexpr Mac kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr int kProbes = 3;
using Frame = std::vector<std::uint8_t>;

void append(Frame& to, std::span<const std::uint8_t> bytes) { to.insert(to.end(), bytes.begin(), bytes.end()); }
void append(Frame& to, std::initializer_list<std::uint8_t> bytes) { to.insert(to.end(), bytes.begin(), bytes.end()); }

// ARP for Ethernet and IPv4 (RFC 826).
Frame arp(std::uint8_t operation, const Mac& sender, std::span<const std::uint8_t> sender_ip, std::span<const std::uint8_t> target_ip) {
  Frame f;
  append(f, kBroadcast);
  append(f, sender);
  append(f, {0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation});
  append(f, sender);
  append(f, sender_ip);
  append(f, operation == 2 ? kBroadcast : Mac{});
  append(f, target_ip);
  f.resize(60);
  return f;
}

std::uint16_t checksum(std::span<const std::uint8_t> pseudo, std::span<const std::uint8_t> body) {
  std::uint32_t sum = 0;
  for (auto part : {pseudo, body}) {
    for (std::size_t i = 0; i + 1 < part.size(); i += 2) sum += static_cast<std::uint32_t>(part[i] << 8 | part[i + 1]);
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

// An ICMPv6 message of neighbour discovery, whose hop limit is 255.
Frame icmp6(const Mac& source_mac, std::span<const std::uint8_t> from, std::span<const std::uint8_t> to, Frame body) {
  Frame f;
  append(f, {0x33, 0x33, to[12], to[13], to[14], to[15]});
  append(f, source_mac);
  append(f, {0x86, 0xdd, 0x60, 0, 0, 0, 0, static_cast<std::uint8_t>(body.size()), 58, 255});
  append(f, from);
  append(f, to);
  Frame pseudo;
  append(pseudo, from);
  append(pseudo, to);
  append(pseudo, {0, 0, 0, static_cast<std::uint8_t>(body.size()), 0, 0, 0, 58});
  std::uint16_t sum = checksum(pseudo, body);
  body[2] = static_cast<std::uint8_t>(sum >> 8);
  body[3] = static_cast<std::uint8_t>(sum);
  append(f, body);
  return f;
}

Frame advertisement(const Mac& mac, const Address& address) {
  std::array<std::uint8_t, 16> everybody{0xff, 0x02};
  everybody[15] = 1;
  Frame body{136, 0, 0, 0, 0x20 /* override */, 0, 0, 0};
  append(body, address.raw);
  append(body, {2, 1});
  append(body, mac);
  return icmp6(mac, address.raw, everybody, std::move(body));
}

Frame solicitation(const Mac& mac, const Address& address) {
  std::array<std::uint8_t, 16> group{0xff, 0x02}, nobody{};
  group[11] = 1;
  group[12] = 0xff;
  std::copy(address.raw.begin() + 13, address.raw.end(), group.begin() + 13);
  Frame body{135, 0, 0, 0, 0, 0, 0, 0};
  append(body, address.raw);
  return icmp6(mac, nobody, group, std::move(body));
}

std::span<const std::uint8_t> ip4(const Address& a) { return std::span(a.raw).first(4); }

Result<Fd> packet_socket(const Interface& on, std::uint16_t protocol) {
  Fd fd = Fd::adopt(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_error("packet socket", on.name);
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_protocol = htons(protocol);
  where.sll_ifindex = on.index;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&where), sizeof where) != 0) return errno_error("bind packet socket", on.name);
  return fd;
}

Result<void> send(const Fd& fd, const Interface& on, const Frame& frame) {
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_ifindex = on.index;
  where.sll_protocol = htons(static_cast<std::uint16_t>(frame[12] << 8 | frame[13]));
  ssize_t n = ::sendto(fd.get(), frame.data(), frame.size(), 0, reinterpret_cast<sockaddr*>(&where), sizeof where);
  if (n < 0) return errno_error("send", on.name);
  return {};
}

// Does this frame say that its sender has one of the addresses?
std::optional<Holder> claim_in(std::span<const std::uint8_t> frame, const Mac& own, const std::vector<Address>& addresses) {
  Mac sender{};
  if (frame.size() < 42) return std::nullopt;
  std::copy_n(frame.begin() + 6, sender.size(), sender.begin());
  if (sender == own) return std::nullopt;
  for (const auto& address : addresses) {
    if (address.family == AF_INET && frame[12] == 0x08 && frame[13] == 0x06) {
      if (std::equal(address.raw.begin(), address.raw.begin() + 4, frame.begin() + 28)) return Holder{address, sender};
    }
    if (address.family == AF_INET6 && frame.size() >= 78 && frame[12] == 0x86 && frame[13] == 0xdd && frame[20] == 58 && frame[54] == 136) {
      if (std::equal(address.raw.begin(), address.raw.end(), frame.begin() + 62)) return Holder{address, sender};
    }
  }
  return std::nullopt;
}

}  // namespace

Result<void> announce(const Interface& uplink, const Mac& mac, const std::vector<Address>& addresses) {
  BATON_ASSIGN(Fd fd, packet_socket(uplink, 0));
  for (const auto& address : addresses) {
    if (address.family == AF_INET) {
      // Both forms: some listen to requests only, some to answers only (RFC 5227, section 3).
      BATON_TRY(send(fd, uplink, arp(1, mac, ip4(address), ip4(address))));
      BATON_TRY(send(fd, uplink, arp(2, mac, ip4(address), ip4(address))));
    } else {
      BATON_TRY(send(fd, uplink, advertisement(mac, address)));
    }
  }
  return {};
}

Result<std::optional<Holder>> find_holder(const Interface& uplink, const Mac& mac, const std::vector<Address>& addresses,
                                          std::chrono::milliseconds patience) {
  BATON_ASSIGN(Fd fd, packet_socket(uplink, ETH_P_ALL));
  const std::array<std::uint8_t, 4> nobody{};
  const auto end = std::chrono::steady_clock::now() + patience;
  for (int probe = 0; probe < kProbes; ++probe) {
    for (const auto& address : addresses) {
      BATON_TRY(send(fd, uplink, address.family == AF_INET ? arp(1, mac, nobody, ip4(address)) : solicitation(mac, address)));
    }
    const auto next = probe + 1 == kProbes ? end : end - patience / kProbes * (kProbes - 1 - probe);
    for (auto now = std::chrono::steady_clock::now(); now < next; now = std::chrono::steady_clock::now()) {
      pollfd waiting{fd.get(), POLLIN, 0};
      auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - now).count();
      if (::poll(&waiting, 1, static_cast<int>(left) + 1) <= 0) continue;
      std::uint8_t buffer[256];
      for (;;) {
        sockaddr_ll from{};
        socklen_t length = sizeof from;
        ssize_t n = ::recvfrom(fd.get(), buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
        if (n <= 0) break;
        if (from.sll_pkttype == PACKET_OUTGOING) continue;
        auto holder = claim_in(std::span(buffer, static_cast<std::size_t>(n)), mac, addresses);
        if (holder) return holder;
      }
    }
  }
  return std::optional<Holder>();
}

}  // namespace baton::network
