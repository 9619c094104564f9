// The warden's service: one agent at a time, over a local socket that only its user can
// reach, answered by a thread per workload and a small pool for what concerns none.
//
// Refuses: every other user (SO_PEERCRED), a second agent while one is connected, another
// protocol version, requests beyond the bounded queues. Nothing that an agent sends makes it
// end; at worst the connection is closed.
//
// Threads: serve() is the loop that reads requests; responses are sent by whoever has them,
// under one lock, with a time limit. When an agent goes, its captured pages are freed, its
// unfinished builds discarded and its freezes ended, except those held by cgroup. Leases are
// answered at once, ahead of what the workload's thread is busy with.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "agent/warden/launcher.h"
#include "base/error.h"

namespace baton::warden {

struct ServerOptions {
  std::string socket_path;
  uid_t agent_uid = 0;
  std::string state_dir;
  std::size_t capture_bytes = 1u << 30;
  std::size_t fill_bytes = 256u << 20;
  std::chrono::milliseconds freeze_limit{5'000};
  std::string backend = "linux";      // for run and protect; build follows the manifest
  Launcher launch;
  bool guard = false;                 // start guards (lease_table.h); the program is baton-warden itself
};

class Server {
 public:
  // Takes up the workloads of an earlier warden from state_dir, then listens.
  // Fails: kInvalid (options), kConflict (another warden listens there), kUnsupported (no cgroup v2).
  static Result<std::unique_ptr<Server>> create(ServerOptions options);
  ~Server();                  // workloads run on
  Result<void> serve();       // returns after stop()
  void stop() noexcept;       // any thread, and signal handlers

  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::warden
