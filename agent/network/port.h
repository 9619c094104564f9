// Port: the network of one workload on this node. Made when its processes get their network
// namespace (equip), with the link down: nobody sees the address. attach() makes the address
// appear here, detach() makes it gone; neither touches the program.
//
// Everything about it follows from the workload's name and spec, and its state is the kernel's:
// a restarted warden finds it again (take_up), and with the namespace of an ended workload it
// goes by itself.
//
// Threads: one at a time per port.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "agent/network/announce.h"
#include "agent/network/switch.h"
#include "proto/workload.pb.h"

namespace baton::network {

inline constexpr const char* kInterfaceInside = "eth0";
inline constexpr std::chrono::milliseconds kConflictPatience{90};

class Port {
 public:
  // Fails: kInvalid (an address), kUnsupported (no interface of this node is in its network).
  // `other`: under the second of the two names that a workload's port may have, for one that is
  // made while another stands.
  static Result<std::unique_ptr<Port>> plan(Switch& sw, const pb::WorkloadSpec& spec, bool other = false);
  ~Port() = default;       // what the kernel holds stays

  // kConflict: this node itself or somebody who answers in its network has the address.
  Result<void> check_free();
  // Gives the network namespace of process `member` its interface, addresses and routes; down.
  Result<void> equip(pid_t member);
  Result<void> take_up(pid_t member);       // what an earlier warden has made; attached or not
  bool attached() const { return attached_; }
  // From here on the address is on this node, the egress gate as it was left (new: open, until
  // the first lease). Announces it. Fails: then it is not.
  Result<void> attach();
  Result<void> announce_again();
  // The address is gone: frames go neither way. Safe in any state.
  Result<void> detach();
  void remove();                            // the interface too
  void discard();                           // of a port that was never attached: the interface alone
  bool is_other() const { return other_; }

  const std::vector<Address>& addresses() const { return addresses_; }
  const std::string& name() const { return link_.name; }
  // Output commit: between eth0 and the port, see output_hold.h. 0: not asked for.
  int outlet_index() const { return outlet_index_; }       // bo-X: where the workload's frames come
  int inlet_index() const { return inlet_index_; }         // bi-X: where they go on
  const Interface& uplink() const { return link_.uplink; }
  int index() const { return link_.index; }    // of its end on this node
  const Mac& mac() const { return link_.mac; }
  int space() const { return space_.get(); }   // the workload's network namespace; -1: not equipped
  bool shares_address_with(const Port& other) const;
  Switch& through() { return switch_; }
  void leased() { leased_ = true; }         // the gate is opened by leases from now on

 private:
  explicit Port(Switch& sw) : switch_(sw) {}
  Result<void> find_uplink();
  Result<void> equip_inside(int index);
  Result<void> introduce_node();
  Result<void> make_links();
  Result<void> find_links();
  std::string side_name(const char* prefix) const;   // "bo-…", "bi-…"; of the other port "co-…", "ci-…"

  Switch& switch_;
  std::string workload_;
  std::vector<Address> addresses_;
  SwitchPort link_;
  Fd space_;
  bool other_ = false;
  bool held_back_ = false;                     // output commit
  int outlet_index_ = 0, inlet_index_ = 0;
  bool attached_ = false;
  std::atomic<bool> leased_{false};
};

}  // namespace baton::network
