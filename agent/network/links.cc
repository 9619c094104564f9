#include "agent/network/links.h"

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_link.h>
#include <linux/if_arp.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

#include <cerrno>
#include <cstring>

namespace baton::network {
namespace {

constexpr std::uint8_t kNoAddressOfItsOwn = 1;   // IN6_ADDR_GEN_MODE_NONE

Result<void> unless(Result<void> done, int harmless) {
  if (!done && done.error().sys_errno == harmless) return {};
  return done;
}

ifinfomsg& link_header(Message& m, int index) {
  auto& head = m.extra<ifinfomsg>();
  head.ifi_family = AF_UNSPEC;
  head.ifi_index = index;
  return head;
}

// What both ends of a pair are told alike.
void describe_end(Message& m, const PairEnd& end, std::uint32_t mtu) {
  m.put(IFLA_IFNAME, end.name);
  m.put(IFLA_ADDRESS, std::as_bytes(std::span(end.mac)));
  m.put_u32(IFLA_MTU, mtu);
  if (end.space >= 0) m.put_u32(IFLA_NET_NS_FD, static_cast<std::uint32_t>(end.space));
}

// libmnl's own loops are macros for C.
template <typename Each>
void attributes_in(const void* begin, std::size_t bytes, Each each) {
  const auto* at = static_cast<const std::byte*>(begin);
  const auto* end = at + bytes;
  while (mnl_attr_ok(reinterpret_cast<const nlattr*>(at), static_cast<int>(end - at))) {
    const auto& a = *reinterpret_cast<const nlattr*>(at);
    each(a);
    at += MNL_ALIGN(a.nla_len);
  }
}
template <typename Each>
void attributes(const nlmsghdr& h, std::size_t header_bytes, Each each) {
  std::size_t skip = MNL_ALIGN(header_bytes);
  attributes_in(static_cast<const std::byte*>(mnl_nlmsg_get_payload(&h)) + skip, mnl_nlmsg_get_payload_len(&h) - skip, each);
}

Address address_of(int family, const nlattr& a, unsigned bits) {
  Address out;
  out.family = family;
  out.bits = bits;
  std::memcpy(out.raw.data(), mnl_attr_get_payload(&a), std::min<std::size_t>(mnl_attr_get_payload_len(&a), out.bytes()));
  return out;
}

}  // namespace

Result<std::vector<Interface>> interfaces(Netlink& route) {
  std::vector<Interface> out;
  Message m(RTM_GETLINK, 0);
  link_header(m, 0);
  BATON_TRY(route.dump(m, "list interfaces", [&](const nlmsghdr& h) {
    if (h.nlmsg_type != RTM_NEWLINK) return;
    const auto& head = *static_cast<const ifinfomsg*>(mnl_nlmsg_get_payload(&h));
    Interface one;
    one.index = head.ifi_index;
    one.up = (head.ifi_flags & IFF_UP) != 0;
    one.ethernet = head.ifi_type == ARPHRD_ETHER;
    attributes(h, sizeof head, [&](const nlattr& a) {
      switch (mnl_attr_get_type(&a)) {
        case IFLA_IFNAME: one.name = mnl_attr_get_str(&a); break;
        case IFLA_MTU: one.mtu = mnl_attr_get_u32(&a); break;
        case IFLA_MASTER: one.master = static_cast<int>(mnl_attr_get_u32(&a)); break;
        case IFLA_ADDRESS:
          if (mnl_attr_get_payload_len(&a) == one.mac.size()) std::memcpy(one.mac.data(), mnl_attr_get_payload(&a), one.mac.size());
          break;
        case IFLA_LINKINFO: {
          attributes_in(mnl_attr_get_payload(&a), mnl_attr_get_payload_len(&a), [&](const nlattr& inner) {
            if (mnl_attr_get_type(&inner) == IFLA_INFO_KIND) one.bridge = std::string(mnl_attr_get_str(&inner)) == "bridge";
          });
          break;
        }
        default: break;
      }
    });
    out.push_back(std::move(one));
  }));
  return out;
}

std::optional<Interface> find_interface(Netlink& route, const std::string& name) {
  auto all = interfaces(route);
  if (!all) return std::nullopt;
  for (auto& one : *all) {
    if (one.name == name) return one;
  }
  return std::nullopt;
}

Result<std::vector<InterfaceAddress>> addresses(Netlink& route) {
  std::vector<InterfaceAddress> out;
  Message m(RTM_GETADDR, 0);
  m.extra<ifaddrmsg>().ifa_family = AF_UNSPEC;
  BATON_TRY(route.dump(m, "list addresses", [&](const nlmsghdr& h) {
    if (h.nlmsg_type != RTM_NEWADDR) return;
    const auto& head = *static_cast<const ifaddrmsg*>(mnl_nlmsg_get_payload(&h));
    std::optional<Address> local, any;
    attributes(h, sizeof head, [&](const nlattr& a) {
      if (mnl_attr_get_type(&a) == IFA_LOCAL) local = address_of(head.ifa_family, a, head.ifa_prefixlen);
      if (mnl_attr_get_type(&a) == IFA_ADDRESS) any = address_of(head.ifa_family, a, head.ifa_prefixlen);
    });
    if (local || any) out.push_back({static_cast<int>(head.ifa_index), local ? *local : *any});
  }));
  return out;
}

Result<std::vector<Gateway>> default_gateways(Netlink& route) {
  std::vector<Gateway> out;
  for (int family : {AF_INET, AF_INET6}) {
    Message m(RTM_GETROUTE, 0);
    m.extra<rtmsg>().rtm_family = static_cast<unsigned char>(family);
    BATON_TRY(route.dump(m, "list routes", [&](const nlmsghdr& h) {
      if (h.nlmsg_type != RTM_NEWROUTE) return;
      const auto& head = *static_cast<const rtmsg*>(mnl_nlmsg_get_payload(&h));
      if (head.rtm_dst_len != 0 || head.rtm_table != RT_TABLE_MAIN || head.rtm_type != RTN_UNICAST) return;
      Gateway one;
      bool has = false;
      attributes(h, sizeof head, [&](const nlattr& a) {
        if (mnl_attr_get_type(&a) == RTA_OIF) one.index = static_cast<int>(mnl_attr_get_u32(&a));
        if (mnl_attr_get_type(&a) != RTA_GATEWAY) return;
        one.address = address_of(family, a, family == AF_INET ? 32 : 128);
        has = true;
      });
      if (has) out.push_back(one);
    }));
  }
  return out;
}

Result<void> make_pair(Netlink& route, const PairEnd& one, const PairEnd& other, std::uint32_t mtu) {
  Message m(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
  link_header(m, 0);
  describe_end(m, one, mtu);
  m.begin(IFLA_LINKINFO).put(IFLA_INFO_KIND, std::string_view("veth")).begin(IFLA_INFO_DATA).begin(VETH_INFO_PEER);
  link_header(m, 0);
  describe_end(m, other, mtu);
  m.end().end().end();
  return route.ask(m, "make interface", one.name);
}

void no_address_of_its_own(Netlink& route, int index) {
  Message m(RTM_NEWLINK, 0);
  link_header(m, index);
  m.begin(IFLA_AF_SPEC).begin(AF_INET6).put(IFLA_INET6_ADDR_GEN_MODE, bytes_of(kNoAddressOfItsOwn)).end().end();
  (void)route.ask(m, "choose no IPv6 address", std::to_string(index)).has_value();   // without IPv6: none anyway
}

Result<void> delete_interface(Netlink& route, const std::string& name) {
  Message m(RTM_DELLINK, 0);
  link_header(m, 0);
  m.put(IFLA_IFNAME, name);
  return unless(route.ask(m, "remove interface", name), ENODEV);
}

Result<void> set_up(Netlink& route, int index, bool up) {
  Message m(RTM_NEWLINK, 0);
  auto& head = link_header(m, index);
  head.ifi_change = IFF_UP;
  head.ifi_flags = up ? IFF_UP : 0;
  return route.ask(m, up ? "set interface up" : "set interface down", std::to_string(index));
}

Result<void> set_master(Netlink& route, int index, int master) {
  Message m(RTM_NEWLINK, 0);
  link_header(m, index);
  m.put_u32(IFLA_MASTER, static_cast<std::uint32_t>(master));
  return route.ask(m, "make a port of a bridge", std::to_string(index));
}

Result<void> want_all_groups(Netlink& route, int index, bool wanted) {
  Message m(RTM_NEWLINK, 0);
  auto& head = link_header(m, index);
  head.ifi_change = IFF_ALLMULTI;
  head.ifi_flags = wanted ? IFF_ALLMULTI : 0;
  return route.ask(m, "receive all groups", std::to_string(index));
}

Result<void> want_mac(Netlink& route, const Interface& on, const Mac& mac, bool wanted) {
  Message m(wanted ? RTM_NEWNEIGH : RTM_DELNEIGH, static_cast<std::uint16_t>(wanted ? NLM_F_CREATE : 0));
  auto& head = m.extra<ndmsg>();
  head.ndm_family = AF_BRIDGE;
  head.ndm_ifindex = on.index;
  head.ndm_state = NUD_PERMANENT | NUD_NOARP;
  head.ndm_flags = NTF_SELF;
  m.put(NDA_LLADDR, std::as_bytes(std::span(mac)));
  auto done = route.ask(m, "receive for " + to_text(mac), on.name);
  if (done || done.error().sys_errno == EEXIST || !wanted) return {};
  Message all(RTM_NEWLINK, 0);
  auto& flags = link_header(all, on.index);
  flags.ifi_change = flags.ifi_flags = IFF_PROMISC;
  return route.ask(all, "receive everything", on.name);
}

Result<void> add_neighbour(Netlink& route, int index, const Address& address, const Mac& mac) {
  Message m(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE);
  auto& head = m.extra<ndmsg>();
  head.ndm_family = static_cast<std::uint8_t>(address.family);
  head.ndm_ifindex = index;
  head.ndm_state = NUD_PERMANENT;
  m.put(NDA_DST, address.data()).put(NDA_LLADDR, std::as_bytes(std::span(mac)));
  return route.ask(m, "add neighbour", address.host());
}

Result<void> add_address(Netlink& route, int index, const Address& address) {
  Message m(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
  auto& head = m.extra<ifaddrmsg>();
  head.ifa_family = static_cast<unsigned char>(address.family);
  head.ifa_prefixlen = static_cast<unsigned char>(address.bits);
  head.ifa_flags = address.family == AF_INET6 ? IFA_F_NODAD : 0;   // who else has it was asked before
  head.ifa_index = static_cast<unsigned>(index);
  bool link_local = address.family == AF_INET6 && address.raw[0] == 0xfe && (address.raw[1] & 0xc0) == 0x80;
  head.ifa_scope = link_local ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
  m.put(IFA_LOCAL, address.data());
  m.put(IFA_ADDRESS, address.data());
  if (address.family == AF_INET && address.bits < 31) {
    Address broadcast = address;
    for (unsigned bit = address.bits; bit < 32; ++bit) broadcast.raw[bit / 8] |= static_cast<std::uint8_t>(0x80u >> (bit % 8));
    m.put(IFA_BROADCAST, broadcast.data());
  }
  return unless(route.ask(m, "give address", address.host()), EEXIST);
}

namespace {

Message route_message(std::uint16_t type, std::uint16_t flags, int family, unsigned bits, unsigned char scope) {
  Message m(type, flags);
  auto& head = m.extra<rtmsg>();
  head.rtm_family = static_cast<unsigned char>(family);
  head.rtm_dst_len = static_cast<unsigned char>(bits);
  head.rtm_table = RT_TABLE_MAIN;
  head.rtm_protocol = RTPROT_STATIC;
  head.rtm_scope = scope;
  head.rtm_type = RTN_UNICAST;
  return m;
}

}  // namespace

Result<void> add_host_route(Netlink& route, int index, const Address& to) {
  Message m = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, to.family, static_cast<unsigned>(to.bytes() * 8), RT_SCOPE_LINK);
  m.put(RTA_DST, to.data()).put_u32(RTA_OIF, static_cast<std::uint32_t>(index));
  return route.ask(m, "add route", to.host());
}

Result<void> remove_host_route(Netlink& route, int index, const Address& to) {
  Message m = route_message(RTM_DELROUTE, 0, to.family, static_cast<unsigned>(to.bytes() * 8), RT_SCOPE_LINK);
  m.put(RTA_DST, to.data()).put_u32(RTA_OIF, static_cast<std::uint32_t>(index));
  return unless(route.ask(m, "remove route", to.host()), ESRCH);
}

Result<void> add_default_route(Netlink& route, int index, const Address& gateway) {
  Message m = route_message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, gateway.family, 0, RT_SCOPE_UNIVERSE);
  m.put(RTA_GATEWAY, gateway.data()).put_u32(RTA_OIF, static_cast<std::uint32_t>(index));
  return route.ask(m, "add default route", gateway.host());
}

}  // namespace baton::network
