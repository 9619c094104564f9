// Answers of the coordinator as JSON and as text. The JSON fields are stable: docs/cli.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "coordinator/cli/output.h"
#include "proto/coordinator.pb.h"
#include "proto/tenure.pb.h"
#include "proto/operator.pb.h"

namespace baton::cli {

Json node_json(const pb::NodeInfo& node);
std::string nodes_table(const pb::ListNodesResponse& nodes, bool wide = false);
std::string node_text(const pb::NodeInfo& node);

Json workload_json(const pb::WorkloadInfo& info);
std::string workloads_table(const pb::ListWorkloadsResponse& list, bool wide = false);
std::string workload_text(const pb::WorkloadInfo& info, bool why);

Json checkpoint_json(const pb::CheckpointInfo& info);
// `marks`: the words for each checkpoint's tags and pin, by (seq, incarnation).
using MarkWords = std::map<std::pair<std::uint64_t, std::uint64_t>, std::string>;
std::string checkpoints_table(const pb::ListCheckpointsResponse& list, const MarkWords& marks = {});

Json event_json(const pb::Event& event);
Json failover_json(const pb::FailoverReport& report);
std::string failovers_table(const pb::FailoverReports& reports);
std::string event_line(const pb::Event& event);

Json audit_json(const pb::AuditEntry& entry);
std::string audit_table(const std::vector<pb::AuditEntry>& entries);

Json verdict_json(const pb::Verdict& verdict);
std::string verdicts_table(const google::protobuf::RepeatedPtrField<pb::Verdict>& verdicts);

Json handover_json(const pb::MigrateReport& report);
std::string handover_text(const std::string& name, const pb::MigrateReport& report);

std::string mode_name(pb::Mode mode);

}  // namespace baton::cli
