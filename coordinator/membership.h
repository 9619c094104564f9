// Membership: the nodes that have a session with the coordinator, and what each last
// said. In memory only: after a restart the nodes report again within one heartbeat.
//
// A node is reachable while its last report is younger than kUnreachableAfter. It is
// declared unreachable only when that much time has passed since both its last report and
// the start of this coordinator: a coordinator that has just started declares nobody dead.
//
// Threads: any; one mutex inside, never held while calling out.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "proto/coordinator.pb.h"
#include "proto/coordinator_state.pb.h"

namespace baton::coordinator {

inline constexpr std::chrono::milliseconds kHeartbeat{500};
inline constexpr int kMissedHeartbeats = 6;
inline constexpr std::chrono::milliseconds kUnreachableAfter = kHeartbeat * kMissedHeartbeats;
// What an answer of a node said outlives reports that were on their way at the same time.
inline constexpr std::chrono::milliseconds kNoteHolds = kHeartbeat * 3;
inline constexpr std::size_t kMaxNodes = 1'024;

struct NodeView {
  std::string name;
  std::string rpc_address;
  std::string stream_address;
  pb::NodeFacts facts;
  bool drained = false;
  bool reachable = false;
  bool declared_unreachable = false;
  std::chrono::nanoseconds silent_for{};
  std::chrono::nanoseconds registered_for{};   // since its present session began
  bool ever_seen = false;  // since this coordinator started
  std::map<std::string, pb::WorkloadStatus> statuses;
  std::map<std::string, pb::HeldCheckpoint> held;
};

class Membership {
 public:
  explicit Membership(const Clock& clock);

  // A node known from the store, not yet heard of.
  void remember(const pb::NodeRecord& record);
  void set_drained(const std::string& node, bool drained);
  // A session begins: ends the node's older one. Answers the new session's number.
  std::uint64_t register_node(const pb::NodeRecord& record);
  // False when `session` is not the node's present one: the caller ends its stream.
  bool report(const std::string& node, std::uint64_t session, const pb::NodeReport& report);
  bool is_current(const std::string& node, std::uint64_t session) const;
  // The stream broke. The node stays reachable until it has been silent for long enough.
  void end_session(const std::string& node, std::uint64_t session);

  // What an answer of the node said of a workload, ahead of its next report.
  void note(const std::string& node, const pb::WorkloadStatus& status);
  void forget(const std::string& node, const std::string& workload);

  std::optional<NodeView> view(const std::string& node) const;
  std::vector<NodeView> views() const;  // by name

 private:
  struct Noted {
    pb::WorkloadStatus status;
    std::chrono::nanoseconds at{};
    bool forgotten = false;
  };
  struct Node {
    pb::NodeRecord record;
    std::uint64_t session = 0;  // 0: none
    bool ever_seen = false;
    std::chrono::nanoseconds last_seen{}, registered_at{};
    std::map<std::string, pb::WorkloadStatus> statuses;
    std::map<std::string, pb::HeldCheckpoint> held;
    std::map<std::string, Noted> notes;
  };
  NodeView view_of(const std::string& name, const Node& node) const;

  const Clock& clock_;
  const std::chrono::nanoseconds started_;
  mutable std::mutex mutex_;
  std::map<std::string, Node> nodes_;
  std::uint64_t last_session_ = 0;
};

}  // namespace baton::coordinator
