#include "agent/network/port.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/log.h"

namespace baton::network {
namespace {

constexpr std::size_t kAddressesMax = 16;

std::uint64_t hash(const std::string& text) { return XXH3_64bits(text.data(), text.size()); }

// The same wherever the workload goes, so that no neighbour has to learn a new one. The domain
// is the coordinator's random number of the workload.
Mac mac_of(const pb::WorkloadSpec& spec) {
  std::uint64_t h = hash(spec.domain() + "/" + spec.name());
  Mac mac{0x02};
  for (std::size_t i = 1; i < mac.size(); ++i) mac[i] = static_cast<std::uint8_t>(h >> (8 * i));
  return mac;
}

// The link-local address that belongs to a hardware address (RFC 4291, appendix A).
Address link_local(const Mac& m) {
  Address out;
  out.family = AF_INET6;
  out.bits = 64;
  out.raw = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(m[0] ^ 2), m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]};
  return out;
}

}  // namespace

Result<std::unique_ptr<Port>> Port::plan(Switch& sw, const pb::WorkloadSpec& spec, bool other) {
  std::unique_ptr<Port> port(new Port(sw));
  port->workload_ = spec.name();
  if (static_cast<std::size_t>(spec.addresses_size()) > kAddressesMax) {
    return make_error(Code::kInvalid, "address", "more than 16 addresses");
  }
  for (const auto& cidr : spec.addresses()) {
    BATON_ASSIGN(Address address, parse_address(cidr));
    port->addresses_.push_back(address);
  }
  port->link_.mac = mac_of(spec);
  port->held_back_ = spec.output_commit();
  port->other_ = other;
  char name[16];
  std::snprintf(name, sizeof name, "%s-%012llx", other ? "ct" : "bt", static_cast<unsigned long long>(hash(spec.name()) & 0xffffffffffffull));
  port->link_.name = name;
  return port;
}

// The interface of this node that stands in the addresses' network.
Result<void> Port::find_uplink() {
  BATON_ASSIGN(auto all, interfaces(switch_.route()));
  BATON_ASSIGN(auto known, network::addresses(switch_.route()));
  std::string lacking;
  std::optional<Interface> found;
  for (const auto& address : addresses_) {
    int index = 0;
    for (const auto& here : known) {
      if (address.in_network_of(here.address) && here.address.bits < here.address.bytes() * 8) index = here.index;
    }
    if (index == 0) {
      lacking = address.host();
      continue;
    }
    for (const auto& one : all) {
      if (one.index != index) continue;
      if (found && found->index != one.index) {
        return make_error(Code::kUnsupported, "address", "the addresses of " + workload_ + " belong to different interfaces, " +
                                                             found->name + " and " + one.name);
      }
      found = one;
    }
  }
  // An address of another family beside one that decides: on the same interface.
  if (!found) {
    return make_error(Code::kUnsupported, "address", "no interface of this node is in the network of " + lacking,
                      "Give the node an address in that network, or the workload one in the node's.");
  }
  if (!found->ethernet) return make_error(Code::kUnsupported, "address", found->name + " is no Ethernet interface");
  for (const auto& one : all) {
    if (found->master != 0 && one.index == found->master && one.bridge) found = one;   // its frames are the bridge's
  }
  link_.uplink = *found;
  return {};
}

bool Port::shares_address_with(const Port& other) const {
  return std::any_of(addresses_.begin(), addresses_.end(), [&](const Address& a) {
    return std::any_of(other.addresses_.begin(), other.addresses_.end(), [&](const Address& b) { return a.same_host(b); });
  });
}

Result<void> Port::check_free() {
  std::vector<InterfaceAddress> known;
  {
    std::lock_guard lock(switch_.mutex());
    BATON_TRY(find_uplink());
    BATON_ASSIGN(known, network::addresses(switch_.route()));
  }
  for (const auto& here : known) {
    for (const auto& mine : addresses_) {
      if (mine.same_host(here.address)) return make_error(Code::kConflict, "address", mine.host() + " is this node's own");
    }
  }
  BATON_ASSIGN(auto holder, find_holder(link_.uplink, link_.mac, addresses_, kConflictPatience));
  if (!holder) return {};
  return make_error(Code::kConflict, "address", holder->address.host() + " is in use: " + to_text(holder->mac) + " answers for it on " +
                                                    link_.uplink.name, "Choose another address, or end what has it.");
}

Result<void> Port::equip(pid_t member) {
  std::lock_guard lock(switch_.mutex());
  BATON_TRY(find_uplink());
  BATON_ASSIGN(space_, namespace_of(member));
  BATON_TRY(switch_.prepare());
  Netlink& route = switch_.route();
  BATON_TRY(delete_interface(route, link_.name));   // of a workload of this name that was killed
  BATON_TRY(delete_interface(route, side_name("bo")));
  auto made = [&]() -> Result<void> {
    BATON_TRY(make_links());
    BATON_TRY(find_links());
    if (held_back_) {
      BATON_TRY(set_up(route, outlet_index_, true));
      BATON_TRY(set_up(route, inlet_index_, true));
    }
    if (link_.uplink.bridge) BATON_TRY(set_master(route, link_.index, link_.uplink.index));
    BATON_ASSIGN(Netlink within, Netlink::open_in(space_.get(), NETLINK_ROUTE));
    auto there = find_interface(within, kInterfaceInside);
    if (!there) return make_error(Code::kFailed, "make interface", "eth0 is not there");
    return equip_inside(there->index);
  }();
  if (!made) {
    (void)delete_interface(route, link_.name).has_value();
    (void)delete_interface(route, side_name("bo")).has_value();
  }
  return made;
}

Result<void> Port::make_links() {
  Netlink& route = switch_.route();
  PairEnd here{link_.name, link_.uplink.bridge ? link_.mac : link_.uplink.mac, -1};
  if (link_.uplink.bridge) here.mac[0] ^= 0x04;    // its own, locally administered too
  const PairEnd there{kInterfaceInside, link_.mac, space_.get()};
  if (!held_back_) return make_pair(route, here, there, link_.uplink.mtu);
  Mac side = link_.mac;
  side[0] ^= 0x08;
  BATON_TRY(make_pair(route, here, {side_name("bi"), side, -1}, link_.uplink.mtu));
  return make_pair(route, {side_name("bo"), side, -1}, there, link_.uplink.mtu);
}

Result<void> Port::find_links() {
  auto find = [&](const std::string& name, int& index) -> Result<void> {
    auto found = find_interface(switch_.route(), name);
    if (!found) return make_error(Code::kNotFound, "interface", name + " of " + workload_ + " is gone");
    index = found->index;
    return {};
  };
  BATON_TRY(find(link_.name, link_.index));
  no_address_of_its_own(switch_.route(), link_.index);
  if (!held_back_) return {};
  BATON_TRY(find(side_name("bo"), outlet_index_));
  BATON_TRY(find(side_name("bi"), inlet_index_));
  for (int index : {outlet_index_, inlet_index_}) no_address_of_its_own(switch_.route(), index);
  return switch_.pass_one_way(side_name("bi"), side_name("bo"), outlet_index_);
}

Result<void> Port::equip_inside(int index) {
  BATON_ASSIGN(auto gateways, default_gateways(switch_.route()));
  BATON_ASSIGN(Netlink within, Netlink::open_in(space_.get(), NETLINK_ROUTE));
  no_address_of_its_own(within, index);
  BATON_TRY(set_up(within, index, true));
  bool six = false;
  for (const auto& address : addresses_) {
    BATON_TRY(add_address(within, index, address));
    six = six || address.family == AF_INET6;
  }
  if (six || ::access("/proc/sys/net/ipv6", F_OK) == 0) {
    // Groups of the link need it; a kernel or namespace without IPv6 goes without.
    auto added = add_address(within, index, link_local(link_.mac));
    if (!added && six) return added;
  }
  for (const auto& gateway : gateways) {
    if (gateway.index != link_.uplink.index) continue;
    bool reachable = gateway.address.family == AF_INET6 && gateway.address.raw[0] == 0xfe;
    for (const auto& address : addresses_) reachable = reachable || gateway.address.in_network_of(address);
    if (reachable) BATON_TRY(add_default_route(within, index, gateway.address));
  }
  return {};
}

Result<void> Port::take_up(pid_t member) {
  std::lock_guard lock(switch_.mutex());
  BATON_TRY(find_uplink());
  BATON_ASSIGN(space_, namespace_of(member));
  BATON_TRY(find_links());
  auto end = find_interface(switch_.route(), link_.name);
  if (end && end->up) {
    BATON_TRY(switch_.connect(link_));
    attached_ = true;
  }
  leased_ = true;   // the gate stays as the kernel has it
  return {};
}

Result<void> Port::attach() {
  std::lock_guard lock(switch_.mutex());
  if (attached_) return {};
  Netlink& route = switch_.route();
  auto done = [&]() -> Result<void> {
    BATON_TRY(set_up(route, link_.index, true));
    BATON_TRY(switch_.connect(link_));
    if (!leased_) BATON_TRY(switch_.open_without_end(link_.mac));
    if (!link_.uplink.bridge) {
      BATON_TRY(want_mac(route, link_.uplink, link_.mac, true));
      BATON_TRY(want_all_groups(route, link_.uplink.index, true));
      for (const auto& address : addresses_) {
        // This node asks for neighbours there with a link-local address of its own.
        if (address.family == AF_INET6) BATON_TRY(add_address(route, link_.index, link_local(link_.uplink.mac)));
        BATON_TRY(add_host_route(route, link_.index, address));
      }
      BATON_TRY(introduce_node());
    }
    return {};
  }();
  attached_ = true;
  if (!done) {
    Error error = std::move(done).error();
    (void)set_up(route, link_.index, false).has_value();
    (void)switch_.disconnect(link_).has_value();
    attached_ = false;
    return error;
  }
  if (auto told = announce(link_.uplink, link_.mac, addresses_); !told) spdlog::warn("{}: {}", workload_, told.error().message());
  return {};
}

// A node answers for an IPv6 address only on the interface that has it (RFC 4861, 7.2.3), which is
// not the port: the workload is told.
Result<void> Port::introduce_node() {
  bool six = false;
  for (const auto& address : addresses_) six = six || address.family == AF_INET6;
  if (!six) return {};
  BATON_ASSIGN(auto known, network::addresses(switch_.route()));
  BATON_ASSIGN(Netlink within, Netlink::open_in(space_.get(), NETLINK_ROUTE));
  auto inside_end = find_interface(within, kInterfaceInside);
  for (const auto& here : known) {
    if (!inside_end || here.index != link_.uplink.index || here.address.family != AF_INET6) continue;
    BATON_TRY(add_neighbour(within, inside_end->index, here.address, link_.uplink.mac));
  }
  return {};
}

Result<void> Port::announce_again() { return attached_ ? announce(link_.uplink, link_.mac, addresses_) : Result<void>(); }

Result<void> Port::detach() {
  std::lock_guard lock(switch_.mutex());
  if (!attached_) return {};
  // The rules first: they take effect at once; the rest follows.
  auto cut = switch_.disconnect(link_);
  auto down = set_up(switch_.route(), link_.index, false);
  if (!link_.uplink.bridge) {
    for (const auto& address : addresses_) (void)remove_host_route(switch_.route(), link_.index, address).has_value();
  }
  bool gone = !down && down.error().sys_errno == 19;   // ENODEV: with its namespace
  if (cut || down || gone) attached_ = false;
  if (!attached_) return {};
  return down;
}

std::string Port::side_name(const char* prefix) const {
  std::string name = prefix + link_.name.substr(2);
  if (other_) name[0] = 'c';
  return name;
}

void Port::discard() {
  std::lock_guard lock(switch_.mutex());
  for (const auto& interface : {link_.name, side_name("bo")}) {
    if (auto gone = delete_interface(switch_.route(), interface); !gone) spdlog::warn("{}: {}", workload_, gone.error().message());
  }
  space_.reset();
}

void Port::remove() {
  if (auto gone = detach(); !gone) spdlog::warn("{}: {}", workload_, gone.error().message());
  std::lock_guard lock(switch_.mutex());
  if (auto closed = switch_.close(link_.mac); !closed && closed.error().sys_errno != 2) {
    spdlog::warn("{}: {}", workload_, closed.error().message());
  }
  // Not in detach: what comes for a workload that has moved is sent after it (hold.h).
  if (link_.uplink.index != 0 && !link_.uplink.bridge) (void)want_mac(switch_.route(), link_.uplink, link_.mac, false).has_value();
  for (const auto& interface : {link_.name, side_name("bo")}) {
    if (auto gone = delete_interface(switch_.route(), interface); !gone) spdlog::warn("{}: {}", workload_, gone.error().message());
  }
  space_.reset();
}

}  // namespace baton::network
