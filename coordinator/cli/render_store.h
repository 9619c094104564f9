// What the verbs about stores print, as JSON and as text. The JSON fields are stable: docs/cli.md.
#pragma once

#include <string>
#include <vector>

#include "coordinator/cli/output.h"
#include "proto/store.pb.h"

namespace baton::cli {

Json store_stat_json(const pb::StoreStatResponse& response);
std::string store_stat_text(const pb::StoreStatResponse& response);

Json store_gc_json(const pb::StoreGcResponse& response);
std::string store_gc_text(const pb::StoreGcResponse& response);

Json store_verify_json(const std::vector<pb::StoreVerifyReport>& reports);
std::string store_verify_text(const std::vector<pb::StoreVerifyReport>& reports);

Json marks_json(const pb::CheckpointMarks& marks);

Json diff_part_json(const pb::DiffPart& part);
std::string diff_part_text(const pb::DiffPart& part);  // lines, with their ends

Json analysis_json(const pb::AnalyzeResponse& response);
std::string analysis_text(const pb::AnalyzeResponse& response);

// A drawing of the analysis: pages of each checkpoint by origin, and the bytes that each
// mechanism leaves. A whole SVG document.
std::string analysis_svg(const pb::AnalyzeResponse& response);

}  // namespace baton::cli
