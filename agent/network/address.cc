#include "agent/network/address.h"

#include <arpa/inet.h>

#include <charconv>
#include <cstdio>

namespace baton::network {

std::string to_text(const Mac& mac) {
  char text[18];
  std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
  return text;
}

std::size_t Address::bytes() const { return family == AF_INET ? 4 : 16; }
std::span<const std::byte> Address::data() const { return std::as_bytes(std::span(raw)).first(bytes()); }

std::string Address::host() const {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family, raw.data(), text, sizeof text);
  return text;
}

bool Address::in_network_of(const Address& other) const {
  if (family != other.family) return false;
  for (unsigned bit = 0; bit < other.bits; ++bit) {
    unsigned mask = 0x80u >> (bit % 8);
    if ((raw[bit / 8] & mask) != (other.raw[bit / 8] & mask)) return false;
  }
  return true;
}

Result<Address> parse_address(const std::string& cidr_untrusted) {
  auto bad = [&] {
    return make_error(Code::kInvalid, "address", "'" + cidr_untrusted.substr(0, 80) + "' is not ADDRESS/BITS",
                      "Like 10.77.0.50/24 or fd00::50/64.");
  };
  auto slash = cidr_untrusted.find('/');
  if (slash == std::string::npos) return bad();
  Address out;
  std::string host = cidr_untrusted.substr(0, slash);
  if (::inet_pton(AF_INET, host.c_str(), out.raw.data()) == 1) out.family = AF_INET;
  else if (::inet_pton(AF_INET6, host.c_str(), out.raw.data()) == 1) out.family = AF_INET6;
  else return bad();
  const char* begin = cidr_untrusted.data() + slash + 1;
  const char* end = cidr_untrusted.data() + cidr_untrusted.size();
  auto [stop, failed] = std::from_chars(begin, end, out.bits);
  if (failed != std::errc() || stop != end || out.bits > out.bytes() * 8) return bad();
  return out;
}

}  // namespace baton::network
