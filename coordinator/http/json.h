// What the API answers, as JSON: the CLI's own objects (coordinator/cli/render.h), so that the
// page and the command line cannot disagree, and what only the dashboard shows beside them.
// Documented in docs/api.md. Pure.
#pragma once

#include <vector>

#include "base/error.h"
#include "coordinator/cli/output.h"
#include "coordinator/observe/observatory.h"
#include "proto/operator.pb.h"

namespace baton::coordinator::http {

using cli::Json;

Json error_json(const Error& error);
Json row_json(const Row& row);              // one line of the overview
Json overview_json(const Picture& picture); // without sparklines
Json samples_json(const std::vector<Sample>& samples);
Json movement_json(const pb::Movement& movement);
// Every field of the message, by name, also those that this file does not know of.
Json message_json(const google::protobuf::Message& message);

std::string dumped(const Json& json);

}  // namespace baton::coordinator::http
