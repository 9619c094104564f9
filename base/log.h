// Logging set-up: every program logs to standard error, through spdlog's default logger.
// BATON_LOG_LEVEL (trace, debug, info, warn, error) sets the level; default info.
#pragma once

#include <string_view>

#include <spdlog/spdlog.h>

namespace baton {

// Call once, first thing in main. `program` names the lines.
void init_logging(std::string_view program);

}  // namespace baton
