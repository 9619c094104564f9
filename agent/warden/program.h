// What every baton-warden does, whatever its backends and its way to start programs.
#pragma once

#include <string>

#include "agent/warden/launcher.h"

namespace baton::warden {

// Reads the command line, serves until SIGTERM or SIGINT, returns the exit code
// (0 done, 1 failed, 2 usage).
int warden_main(int argc, char** argv, const std::string& backend, Launcher launch);

}  // namespace baton::warden
