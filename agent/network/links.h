// Interfaces, addresses and routes, by rtnetlink(7). Every function works in the network
// namespace of the socket that it is given. What is there already, or gone already, is no failure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "agent/network/address.h"
#include "agent/network/netlink.h"

namespace baton::network {

struct Interface {
  int index = 0;
  std::string name;
  Mac mac{};
  std::uint32_t mtu = 1500;
  bool up = false;
  bool bridge = false;
  bool ethernet = false;
  int master = 0;
};
Result<std::vector<Interface>> interfaces(Netlink& route);
std::optional<Interface> find_interface(Netlink& route, const std::string& name);

struct InterfaceAddress { int index = 0; Address address; };
Result<std::vector<InterfaceAddress>> addresses(Netlink& route);

struct Gateway { int index = 0; Address address; };
Result<std::vector<Gateway>> default_gateways(Netlink& route);

struct PairEnd { std::string name; Mac mac{}; int space = -1; };   // space -1: where the socket is
// A veth pair; both ends down.
Result<void> make_pair(Netlink& route, const PairEnd& one, const PairEnd& other, std::uint32_t mtu);
// The kernel gives it no link-local address when it goes up.
void no_address_of_its_own(Netlink& route, int index);
Result<void> delete_interface(Netlink& route, const std::string& name);
Result<void> set_up(Netlink& route, int index, bool up);
Result<void> set_master(Netlink& route, int index, int master);
// All frames for groups are wanted, although this machine is in none of them.
Result<void> want_all_groups(Netlink& route, int index, bool wanted);
// Frames for `mac` are wanted on an interface whose own it is not; else everything is.
Result<void> want_mac(Netlink& route, const Interface& on, const Mac& mac, bool wanted);

Result<void> add_address(Netlink& route, int index, const Address& address);
// A neighbour that is not asked for.
Result<void> add_neighbour(Netlink& route, int index, const Address& address, const Mac& mac);
Result<void> add_host_route(Netlink& route, int index, const Address& to);
Result<void> remove_host_route(Netlink& route, int index, const Address& to);
Result<void> add_default_route(Netlink& route, int index, const Address& gateway);

}  // namespace baton::network
