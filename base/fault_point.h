// Named points where tests make a program die, stop or fail. In production the
// environment variable is unset and a point costs one relaxed load.
//
//   BATON_FAULT="migrate.source.frozen=kill"          SIGKILL to this program at the point
//   BATON_FAULT="store.commit=error,stream.ack=stop"  an injected error; SIGSTOP
//   BATON_FAULT="x=kill@3"                            only at the third passage
//
// BATON_FAULT_FILE=PATH does the same from a file that is read again at every
// passage, so that a test can arm a program that is already running.
// The list of all points: docs/fault-points.md.
#pragma once

#include <string_view>

#include "base/error.h"

namespace baton {

// Ok, or the injected error (kFailed, operation "fault point", subject NAME).
// Does not return when armed with kill.
Result<void> fault_point(std::string_view name);

// True once when the environment armed any point at all (a program says so in its log).
bool fault_points_armed();

}  // namespace baton
