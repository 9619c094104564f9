// Switch: how the frames of this node's workloads get to the node's own interface and back.
//
// A workload's port is a veth pair: eth0 in its network namespace, one end here. Frames are
// handed from it to the node's interface (its uplink) and back by their hardware addresses, in
// nf_tables' ingress hooks, so that a workload stands in the node's own network segment: groups,
// IPv6 neighbours and ARP reach it, and it keeps its hardware address wherever it moves. Needed
// are veth and nf_tables (with fwd and dup), which a plain kernel has; the uplink's own
// configuration stays as it is. When the uplink is a bridge, a port simply joins it.
// Not chosen: macvlan and ipvlan (not everywhere; the node cannot talk to its own workloads, and
// there is no place for the gate outside the workload's reach); routing with proxy ARP (turns
// the node into a router, for IPv6 as a whole, and groups do not pass); a bridge of our own (the
// node's addresses would have to move onto it).
//
// The egress gate is part of it: a frame of a workload leaves its port only while the set
// `open` holds the workload's hardware address. Elements may run out by themselves: the kernel
// closes the gate whatever lives or dies here.
//
// All this is the kernel's: it outlives this process. One table per Switch ("baton-ID").
// Threads: any, one at a time inside.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "agent/network/address.h"
#include "agent/network/links.h"
#include "agent/network/netlink.h"
#include "agent/network/rules.h"
#include "base/clock.h"

namespace baton::network {

struct SwitchPort {
  int index = 0;            // of its end here
  std::string name;
  Mac mac{};                // the workload's
  Interface uplink;
};

class Switch {
 public:
  // `id`: tells the wardens of one network namespace apart. Changes nothing yet.
  static Result<std::unique_ptr<Switch>> open(std::string id);

  Netlink& route() { return route_; }
  std::mutex& mutex() { return mutex_; }      // guards route() too

  // The table and the gate, if they are not there yet. Callers hold mutex().
  Result<void> prepare();
  // Callers hold mutex(). The port's frames go to and fro from now on (outwards as far as the
  // gate lets them) / not any more. Fails: what nf_tables says; then nothing has changed.
  Result<void> connect(const SwitchPort& port);
  Result<void> disconnect(const SwitchPort& port);

  // What arrives at one interface leaves by the other; what arrives there does not (output_hold.h).
  Result<void> pass_one_way(const std::string& from, const std::string& into, int into_index);

  // The gate. Never open later than asked, whatever dies or stalls meanwhile; it closes up to a
  // kernel tick and 1 ms earlier (nf_tables counts from when it gets the element, in ticks). A
  // later call counts instead of an earlier one. CLOCK_BOOTTIME; a machine that sleeps is outside
  // the promise. Fails: what nf_tables says; then an earlier opening still counts.
  Result<void> open_until(const Mac& mac, BootTime deadline);
  Result<void> open_for(const Mac& mac, std::chrono::milliseconds time) { return open_until(mac, read_clock(CLOCK_BOOTTIME) + time); }
  Result<void> open_without_end(const Mac& mac);
  Result<void> close(const Mac& mac);
  bool is_open(const Mac& mac);               // now; for tests and status

 private:
  explicit Switch(std::string id) : table_{5 /* NFPROTO_NETDEV */, "baton-" + id} {}
  void describe_port(const SwitchPort& port, std::vector<Message>& out) const;
  void describe_uplink(const std::string& uplink, std::vector<Message>& out) const;
  Result<void> rewrite(const std::string& uplink, const SwitchPort* added);
  Result<void> set_gate(const Mac& mac, std::optional<std::chrono::milliseconds> timeout, bool open);

  const TableName table_;
  std::mutex mutex_;
  Netlink route_, filter_;
  std::mutex gate_mutex_;                     // for gate_ alone: never waits for links
  Netlink gate_;
  bool prepared_ = false;
  std::map<std::string, SwitchPort> ports_;   // connected ones, by name
};

}  // namespace baton::network
