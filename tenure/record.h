// Small facts about records and ballots.
#pragma once

#include <algorithm>
#include <string>
#include <tuple>

#include "proto/tenure.pb.h"

namespace baton::tenure {

inline constexpr const char* kOwnerKnows = "owner knows";   // `reason` of a PROMISE

inline bool is_voter(const pb::TenureRecord& record, const std::string& node) {
  return std::any_of(record.voters().begin(), record.voters().end(), [&](const auto& peer) { return peer.node() == node; });
}
inline bool is_standby(const pb::TenureRecord& record, const std::string& node) {
  return std::any_of(record.standbys().begin(), record.standbys().end(),
                     [&](const auto& peer) { return peer.node() == node; });
}
inline bool concerns(const pb::TenureRecord& record, const std::string& node) {
  return record.owner() == node || is_voter(record, node) || is_standby(record, node);
}
inline int majority(const pb::TenureRecord& record) { return record.voters_size() / 2 + 1; }

inline int compare(const pb::TenureBallot& a, const pb::TenureBallot& b) {
  if (a.round() != b.round()) return a.round() < b.round() ? -1 : 1;
  return a.node().compare(b.node());
}
inline bool newer(const pb::TenureTip& a, const pb::TenureTip& b) {
  return std::make_pair(a.incarnation(), a.seq()) > std::make_pair(b.incarnation(), b.seq());
}
// The checkpoint that the record's owner started from: nobody may go on from an older one.
inline pb::TenureTip started_from(const pb::TenureRecord& record) {
  pb::TenureTip out;
  out.set_incarnation(record.committed_incarnation());
  out.set_seq(record.committed_seq());
  return out;
}
// Round 0 belongs to the owner of the base alone: it needs no promises.
inline pb::TenureBallot first_ballot(const std::string& owner) {
  pb::TenureBallot out;
  out.set_node(owner);
  return out;
}

}  // namespace baton::tenure
