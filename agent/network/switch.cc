#include "agent/network/switch.h"

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netlink.h>

#include <cerrno>
#include <cstring>

namespace baton::network {
namespace {

const std::string kOpen = "open";
constexpr std::chrono::milliseconds kGateMargin{1};
std::string chain_of(const std::string& interface) { return "from-" + interface; }
Hook ingress(const std::string& device) { return {NF_NETDEV_INGRESS, 0, device}; }

}  // namespace

Result<std::unique_ptr<Switch>> Switch::open(std::string id) {
  std::unique_ptr<Switch> made(new Switch(std::move(id)));
  BATON_ASSIGN(made->route_, Netlink::open(NETLINK_ROUTE));
  BATON_ASSIGN(made->filter_, Netlink::open(NETLINK_NETFILTER));
  BATON_ASSIGN(made->gate_, Netlink::open(NETLINK_NETFILTER));
  return made;
}

Result<void> Switch::prepare() {
  if (prepared_) return {};
  std::vector<Message> all;
  all.push_back(new_table(table_));
  all.push_back(new_mac_set(table_, kOpen));
  auto done = filter_.commit(all, "nf_tables", "table " + table_.name);
  if (!done) {
    Error error = std::move(done).error();
    error.hint = "Workloads with an address need nf_tables with its netdev family in the kernel.";
    return error;
  }
  prepared_ = true;
  return {};
}

// From a workload: nobody else's frames, and only while the gate is open.
void Switch::describe_port(const SwitchPort& port, std::vector<Message>& out) const {
  const std::string chain = chain_of(port.name);
  out.push_back(Rule(table_, chain).source_mac_is_not(port.mac).verdict(Verdict::kDrop).finish());
  out.push_back(Rule(table_, chain).source_mac_not_in(kOpen).count().verdict(Verdict::kDrop).finish());
  if (port.uplink.bridge) {
    out.push_back(Rule(table_, chain).verdict(Verdict::kAccept).finish());
    return;
  }
  for (const auto& [name, other] : ports_) {
    if (name == port.name || other.uplink.index != port.uplink.index) continue;
    out.push_back(Rule(table_, chain).for_a_group().copy_to(other.index).finish());
    out.push_back(Rule(table_, chain).target_mac_is(other.mac).hand_to(other.index).finish());
  }
  out.push_back(Rule(table_, chain).for_a_group().copy_to(port.uplink.index).finish());
  out.push_back(Rule(table_, chain).for_a_group().verdict(Verdict::kAccept).finish());   // this node hears it too
  out.push_back(Rule(table_, chain).target_mac_is(port.uplink.mac).verdict(Verdict::kAccept).finish());
  out.push_back(Rule(table_, chain).hand_to(port.uplink.index).finish());
}

void Switch::describe_uplink(const std::string& uplink, std::vector<Message>& out) const {
  const std::string chain = chain_of(uplink);
  for (const auto& [name, port] : ports_) {
    if (port.uplink.name != uplink) continue;
    out.push_back(Rule(table_, chain).for_a_group().copy_to(port.index).finish());
    out.push_back(Rule(table_, chain).target_mac_is(port.mac).hand_to(port.index).finish());
  }
}

// All chains of one uplink, at one instant. Chains of ports that were disconnected are empty
// and drop everything.
Result<void> Switch::rewrite(const std::string& uplink, const SwitchPort* added) {
  std::vector<Message> all;
  if (added) {
    all.push_back(new_base_chain(table_, chain_of(added->name), ingress(added->name), Verdict::kDrop));
    if (!added->uplink.bridge) all.push_back(new_base_chain(table_, chain_of(uplink), ingress(uplink), Verdict::kAccept));
  }
  bool bridged = added && added->uplink.bridge;
  for (const auto& [name, port] : ports_) {
    if (port.uplink.name != uplink) continue;
    bridged = port.uplink.bridge;
    all.push_back(flush_chain(table_, chain_of(name)));
    describe_port(port, all);
  }
  if (!bridged) {
    all.push_back(flush_chain(table_, chain_of(uplink)));
    describe_uplink(uplink, all);
  }
  return filter_.commit(all, "nf_tables", "rules between " + uplink + " and its workloads");
}

Result<void> Switch::connect(const SwitchPort& port) {
  BATON_TRY(prepare());
  auto before = ports_;
  ports_[port.name] = port;
  auto done = rewrite(port.uplink.name, &port);
  if (!done) ports_ = std::move(before);
  return done;
}

Result<void> Switch::disconnect(const SwitchPort& port) {
  auto found = ports_.find(port.name);
  if (found == ports_.end()) return {};
  SwitchPort gone = found->second;
  ports_.erase(found);
  std::vector<Message> own;
  own.push_back(flush_chain(table_, chain_of(gone.name)));
  auto done = filter_.commit(own, "nf_tables", "rules of " + gone.name);
  if (done || done.error().sys_errno == ENOENT) done = rewrite(gone.uplink.name, nullptr);
  return done;
}

Result<void> Switch::pass_one_way(const std::string& from, const std::string& into, int into_index) {
  BATON_TRY(prepare());
  std::vector<Message> all;
  for (const auto& name : {from, into}) {
    all.push_back(new_base_chain(table_, chain_of(name), ingress(name), Verdict::kDrop));
    all.push_back(flush_chain(table_, chain_of(name)));
  }
  all.push_back(Rule(table_, chain_of(from)).hand_to(into_index).finish());
  return filter_.commit(all, "nf_tables", "rules between " + from + " and " + into);
}

Result<void> Switch::set_gate(const Mac& mac, std::optional<std::chrono::milliseconds> timeout, bool open) {
  std::lock_guard lock(gate_mutex_);
  // Removed and added in one step: kernels before 6.12 do not prolong an element that is there.
  std::vector<Message> both;
  both.push_back(remove_mac(table_, kOpen, mac));
  if (open) both.push_back(add_mac(table_, kOpen, mac, timeout));
  auto done = gate_.commit(both, "egress gate", to_text(mac));
  if (done || done.error().sys_errno != ENOENT) return done;
  if (!open) return {};
  std::vector<Message> add;
  add.push_back(add_mac(table_, kOpen, mac, timeout));
  return gate_.commit(add, "egress gate", to_text(mac));
}

// The kernel counts from when it sees the request, we from before it was made: what may lie
// between is taken off, and when more lay between, it is asked again for less.
Result<void> Switch::open_until(const Mac& mac, BootTime deadline) {
  std::chrono::nanoseconds margin = kGateMargin;
  for (;;) {
    const auto before = read_clock(CLOCK_BOOTTIME);
    const auto time = std::chrono::floor<std::chrono::milliseconds>(deadline - before - margin);
    if (time.count() < 1) return close(mac);
    BATON_TRY(set_gate(mac, time, true));
    const auto took = read_clock(CLOCK_BOOTTIME) - before;
    if (took <= margin) return {};
    margin = 2 * took;
  }
}
Result<void> Switch::open_without_end(const Mac& mac) { return set_gate(mac, std::nullopt, true); }
Result<void> Switch::close(const Mac& mac) { return set_gate(mac, std::nullopt, false); }

bool Switch::is_open(const Mac& mac) {
  std::lock_guard lock(gate_mutex_);
  Message m = get_set(table_, kOpen);
  bool open = false;
  auto done = gate_.dump(m, "egress gate", [&](const nlmsghdr& h) {
    if ((h.nlmsg_type & 0xff) != NFT_MSG_NEWSETELEM) return;
    // Keys are the only six bytes of an element: finding them needs no further parsing.
    const auto* begin = reinterpret_cast<const std::uint8_t*>(&h);
    const auto* end = begin + h.nlmsg_len;
    for (const auto* at = begin; at + mac.size() <= end && !open; ++at) open = std::memcmp(at, mac.data(), mac.size()) == 0;
  });
  return done && open;
}

}  // namespace baton::network
