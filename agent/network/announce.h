// Telling the neighbours where an address is, and asking them whether somebody has it:
// gratuitous ARP and ARP probes (RFC 5227), unsolicited neighbour advertisements and duplicate
// address detection (RFC 4861, 4862), as frames of a packet socket on the uplink.
// Threads: any.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "agent/network/address.h"
#include "agent/network/links.h"

namespace baton::network {

// One announcement per address, from `mac`. A lost one is not noticed: announce again later.
Result<void> announce(const Interface& uplink, const Mac& mac, const std::vector<Address>& addresses);

struct Holder { Address address; Mac mac{}; };
// Who answers for one of the addresses within `patience`, other than `mac`; nobody: empty.
// Blocks for that time.
Result<std::optional<Holder>> find_holder(const Interface& uplink, const Mac& mac, const std::vector<Address>& addresses,
                                          std::chrono::milliseconds patience);

}  // namespace baton::network
