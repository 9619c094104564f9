// An internet address with its prefix, as --address names it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace baton::network {

using Mac = std::array<std::uint8_t, 6>;
std::string to_text(const Mac& mac);

struct Address {
  int family = 0;                           // AF_INET, AF_INET6
  std::array<std::uint8_t, 16> raw{};       // the first 4 or all 16, in network order
  unsigned bits = 0;

  std::size_t bytes() const;
  std::span<const std::byte> data() const;
  std::string host() const;                 // without the prefix
  bool same_host(const Address& other) const { return family == other.family && raw == other.raw; }
  bool in_network_of(const Address& other) const;   // within other/bits
};

// "10.77.0.50/24", "fd00::50/64". Fails: kInvalid.
Result<Address> parse_address(const std::string& cidr_untrusted);

}  // namespace baton::network
