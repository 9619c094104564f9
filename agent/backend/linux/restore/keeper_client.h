// The starter's side of a keeper: starts one, speaks its protocol.
// Threads: one at a time. Destroyed before watch(): the keeper and all it started end.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "agent/backend/linux/restore/keeper_protocol.h"
#include "base/error.h"
#include "base/fd.h"

namespace baton::restore {

struct KeeperSettings {
  bool new_network = false;
  bool new_time = false;
  std::int64_t monotonic_offset_ns = 0;   // relative to the initial time namespace
  std::int64_t boottime_offset_ns = 0;
  std::string log_path;
  std::string exit_path;
  std::string cgroup;                     // keeper and all its children; empty: stay
};

struct LaunchStrings {
  std::string cwd;
  std::vector<std::string> argv, env;
  std::uint32_t uid = 0, gid = 0;
  std::vector<std::uint32_t> groups;
};

class KeeperClient {
 public:
  static Result<KeeperClient> start(const KeeperSettings& settings);
  KeeperClient(KeeperClient&&) noexcept;
  KeeperClient& operator=(KeeperClient&&) = delete;
  ~KeeperClient();

  pid_t pid() const { return pid_; }      // as this process sees it

  // A blank child with PID `inside`, which has mapped `area` and waits. Answers its PID as seen here.
  Result<pid_t> spawn(pid_t inside, std::uint64_t area, std::uint64_t area_bytes);
  // Forks and executes; done once the exec has happened.
  Result<pid_t> launch(pid_t inside, const LaunchStrings& strings);
  // From now on the keeper stands alone, until its child `root_inside` ends.
  Result<void> watch(pid_t root_inside);

 private:
  KeeperClient(pid_t pid, Fd control) : pid_(pid), control_(std::move(control)) {}
  pid_t pid_ = 0;
  Fd control_;
};

// Path of baton-keeper: beside this program, or what BATON_KEEPER names.
Result<std::string> keeper_path();

}  // namespace baton::restore
