// Messages of nf_tables, as Netlink::commit takes them: tables, chains, rules of a few
// expressions, elements of sets. Constants: linux/netfilter/nf_tables.h; what each expression
// means is in nft(8).
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "agent/network/address.h"
#include "agent/network/netlink.h"

namespace baton::network {

enum class Verdict { kAccept, kDrop };

struct TableName { std::uint8_t family = 0; std::string name; };   // family: NFPROTO_*

Message new_table(const TableName& table, std::uint32_t flags = 0);   // NFT_TABLE_F_*
Message delete_table(const TableName& table);                          // ENOENT when it is not there
struct Hook { std::uint32_t number = 0; std::int32_t priority = 0; std::string device; };   // device: netdev family
Message new_base_chain(const TableName& table, const std::string& chain, const Hook& hook, Verdict policy);
Message set_policy(const TableName& table, const std::string& chain, Verdict policy);
Message new_chain(const TableName& table, const std::string& chain);
Message delete_chain(const TableName& table, const std::string& chain);
Message flush_chain(const TableName& table, const std::string& chain);

// A set of hardware addresses whose elements may run out.
Message new_mac_set(const TableName& table, const std::string& set);
Message add_mac(const TableName& table, const std::string& set, const Mac& mac, std::optional<std::chrono::milliseconds> timeout);
Message remove_mac(const TableName& table, const std::string& set, const Mac& mac);
Message get_set(const TableName& table, const std::string& set);       // for dump

// One rule, expression after expression; finish() gives the message.
class Rule {
 public:
  Rule(const TableName& table, const std::string& chain);
  Rule& source_mac_is_not(const Mac& mac);
  Rule& source_mac_not_in(const std::string& set);
  Rule& target_mac_is(const Mac& mac);
  Rule& for_a_group();                    // broadcast or multicast
  Rule& count();
  Rule& copy_to(int interface);
  Rule& hand_to(int interface);           // ends the packet's way here
  Rule& verdict(Verdict verdict);
  Message finish();

 private:
  Rule& load_mac(std::uint32_t offset, std::uint32_t bytes);
  Rule& compare(std::uint32_t op, std::span<const std::byte> with);
  void begin(const char* expression);
  void end();
  Rule& send_by(const char* expression, std::uint16_t attribute, int interface);
  Message message_;
};

}  // namespace baton::network
