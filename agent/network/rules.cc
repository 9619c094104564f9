#include "agent/network/rules.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/if_ether.h>

namespace baton::network {
namespace {

Message table_message(std::uint16_t type, std::uint16_t flags, const TableName& table) {
  Message m(static_cast<std::uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | type), flags);
  auto& head = m.extra<nfgenmsg>();
  head.nfgen_family = table.family;
  head.version = NFNETLINK_V0;
  head.res_id = 0;
  return m;
}

std::uint32_t code_of(Verdict verdict) { return verdict == Verdict::kAccept ? NF_ACCEPT : NF_DROP; }

Message mac_message(std::uint16_t type, std::uint16_t flags, const TableName& table, const std::string& set, const Mac& mac,
                    std::optional<std::chrono::milliseconds> timeout) {
  Message m = table_message(type, flags, table);
  m.put(NFTA_SET_ELEM_LIST_TABLE, table.name).put(NFTA_SET_ELEM_LIST_SET, set);
  m.begin(NFTA_SET_ELEM_LIST_ELEMENTS).begin(NFTA_LIST_ELEM).begin(NFTA_SET_ELEM_KEY);
  m.put(NFTA_DATA_VALUE, std::as_bytes(std::span(mac))).end();
  if (timeout) m.put_be64(NFTA_SET_ELEM_TIMEOUT, static_cast<std::uint64_t>(timeout->count()));
  m.end().end();
  return m;
}

}  // namespace

Message new_table(const TableName& table, std::uint32_t flags) {
  Message m = table_message(NFT_MSG_NEWTABLE, NLM_F_CREATE, table);
  m.put(NFTA_TABLE_NAME, table.name);
  if (flags != 0) m.put_be32(NFTA_TABLE_FLAGS, flags);
  return m;
}

Message delete_table(const TableName& table) {
  Message m = table_message(NFT_MSG_DELTABLE, 0, table);
  m.put(NFTA_TABLE_NAME, table.name);
  return m;
}

Message new_base_chain(const TableName& table, const std::string& chain, const Hook& hook, Verdict policy) {
  Message m = table_message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, table);
  m.put(NFTA_CHAIN_TABLE, table.name).put(NFTA_CHAIN_NAME, chain);
  m.begin(NFTA_CHAIN_HOOK).put_be32(NFTA_HOOK_HOOKNUM, hook.number);
  m.put_be32(NFTA_HOOK_PRIORITY, static_cast<std::uint32_t>(hook.priority));
  if (!hook.device.empty()) m.put(NFTA_HOOK_DEV, hook.device);
  m.end();
  m.put(NFTA_CHAIN_TYPE, std::string_view("filter")).put_be32(NFTA_CHAIN_POLICY, code_of(policy));
  return m;
}

Message set_policy(const TableName& table, const std::string& chain, Verdict policy) {
  Message m = table_message(NFT_MSG_NEWCHAIN, 0, table);
  m.put(NFTA_CHAIN_TABLE, table.name).put(NFTA_CHAIN_NAME, chain).put_be32(NFTA_CHAIN_POLICY, code_of(policy));
  return m;
}

Message new_chain(const TableName& table, const std::string& chain) {
  Message m = table_message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, table);
  m.put(NFTA_CHAIN_TABLE, table.name).put(NFTA_CHAIN_NAME, chain);
  return m;
}

Message delete_chain(const TableName& table, const std::string& chain) {
  Message m = table_message(NFT_MSG_DELCHAIN, 0, table);
  m.put(NFTA_CHAIN_TABLE, table.name).put(NFTA_CHAIN_NAME, chain);
  return m;
}

Message flush_chain(const TableName& table, const std::string& chain) {
  Message m = table_message(NFT_MSG_DELRULE, 0, table);
  m.put(NFTA_RULE_TABLE, table.name).put(NFTA_RULE_CHAIN, chain);
  return m;
}

Message new_mac_set(const TableName& table, const std::string& set) {
  Message m = table_message(NFT_MSG_NEWSET, NLM_F_CREATE, table);
  m.put(NFTA_SET_TABLE, table.name).put(NFTA_SET_NAME, set);
  m.put_be32(NFTA_SET_ID, 1).put_be32(NFTA_SET_FLAGS, NFT_SET_TIMEOUT);
  m.put_be32(NFTA_SET_KEY_TYPE, 9 /* ether_addr, as nft(8) numbers its types */).put_be32(NFTA_SET_KEY_LEN, 6);
  return m;
}

Message add_mac(const TableName& table, const std::string& set, const Mac& mac, std::optional<std::chrono::milliseconds> timeout) {
  return mac_message(NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, set, mac, timeout);
}

Message remove_mac(const TableName& table, const std::string& set, const Mac& mac) {
  return mac_message(NFT_MSG_DELSETELEM, 0, table, set, mac, std::nullopt);
}

Message get_set(const TableName& table, const std::string& set) {
  Message m = table_message(NFT_MSG_GETSETELEM, 0, table);
  m.put(NFTA_SET_ELEM_LIST_TABLE, table.name).put(NFTA_SET_ELEM_LIST_SET, set);
  return m;
}

Rule::Rule(const TableName& table, const std::string& chain)
    : message_(table_message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table)) {
  message_.put(NFTA_RULE_TABLE, table.name).put(NFTA_RULE_CHAIN, chain).begin(NFTA_RULE_EXPRESSIONS);
}

void Rule::begin(const char* expression) {
  message_.begin(NFTA_LIST_ELEM).put(NFTA_EXPR_NAME, std::string_view(expression)).begin(NFTA_EXPR_DATA);
}

void Rule::end() { message_.end().end(); }

Rule& Rule::load_mac(std::uint32_t offset, std::uint32_t bytes) {
  begin("payload");
  message_.put_be32(NFTA_PAYLOAD_DREG, NFT_REG_1).put_be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_LL_HEADER);
  message_.put_be32(NFTA_PAYLOAD_OFFSET, offset).put_be32(NFTA_PAYLOAD_LEN, bytes);
  end();
  return *this;
}

Rule& Rule::compare(std::uint32_t op, std::span<const std::byte> with) {
  begin("cmp");
  message_.put_be32(NFTA_CMP_SREG, NFT_REG_1).put_be32(NFTA_CMP_OP, op);
  message_.begin(NFTA_CMP_DATA).put(NFTA_DATA_VALUE, with).end();
  end();
  return *this;
}

Rule& Rule::source_mac_is_not(const Mac& mac) {
  load_mac(ETH_ALEN, ETH_ALEN);
  return compare(NFT_CMP_NEQ, std::as_bytes(std::span(mac)));
}

Rule& Rule::target_mac_is(const Mac& mac) {
  load_mac(0, ETH_ALEN);
  return compare(NFT_CMP_EQ, std::as_bytes(std::span(mac)));
}

Rule& Rule::source_mac_not_in(const std::string& set) {
  load_mac(ETH_ALEN, ETH_ALEN);
  begin("lookup");
  message_.put(NFTA_LOOKUP_SET, set).put_be32(NFTA_LOOKUP_SREG, NFT_REG_1).put_be32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
  end();
  return *this;
}

Rule& Rule::for_a_group() {
  load_mac(0, 1);
  const std::byte group{1}, none{0};
  begin("bitwise");
  message_.put_be32(NFTA_BITWISE_SREG, NFT_REG_1).put_be32(NFTA_BITWISE_DREG, NFT_REG_1).put_be32(NFTA_BITWISE_LEN, 1);
  message_.begin(NFTA_BITWISE_MASK).put(NFTA_DATA_VALUE, std::span(&group, 1)).end();
  message_.begin(NFTA_BITWISE_XOR).put(NFTA_DATA_VALUE, std::span(&none, 1)).end();
  end();
  return compare(NFT_CMP_EQ, std::span(&group, 1));
}

Rule& Rule::count() {
  begin("counter");
  end();
  return *this;
}

Rule& Rule::send_by(const char* expression, std::uint16_t attribute, int interface) {
  auto index = static_cast<std::uint32_t>(interface);
  begin("immediate");
  message_.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
  message_.begin(NFTA_IMMEDIATE_DATA).put(NFTA_DATA_VALUE, bytes_of(index)).end();
  end();
  begin(expression);
  message_.put_be32(attribute, NFT_REG_1);
  end();
  return *this;
}

Rule& Rule::copy_to(int interface) { return send_by("dup", NFTA_DUP_SREG_DEV, interface); }
Rule& Rule::hand_to(int interface) { return send_by("fwd", NFTA_FWD_SREG_DEV, interface); }

Rule& Rule::verdict(Verdict verdict) {
  begin("immediate");
  message_.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
  message_.begin(NFTA_IMMEDIATE_DATA).begin(NFTA_DATA_VERDICT).put_be32(NFTA_VERDICT_CODE, code_of(verdict)).end().end();
  end();
  return *this;
}

Message Rule::finish() {
  message_.end();
  return std::move(message_);
}

}  // namespace baton::network
