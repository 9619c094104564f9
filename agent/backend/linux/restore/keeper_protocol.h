// What the keeper and the program that starts it say to each other, over a
// SOCK_SEQPACKET pair: fixed structures, one per message, within one machine and one
// version. Descriptor numbers below are the keeper's own, by which others recognise its pipes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::restore {

inline constexpr int kKeeperControl = 3;
inline constexpr int kKeeperOutRead = 10;    // the read ends of the workload's stdout, stderr
inline constexpr int kKeeperErrRead = 11;
inline constexpr int kKeeperOutWrite = 12;
inline constexpr int kKeeperErrWrite = 13;
inline constexpr std::size_t kMaxKeeperMessage = 1u << 20;
inline constexpr std::uint64_t kLogRotateBytes = 16u << 20;
inline constexpr int kMaxPath = 4096;

enum class KeeperOp : std::uint32_t {
  kConfig = 1,   // to the keeper, first
  kReady,        // from the keeper (with its credentials, which carry its PID)
  kSpawn,        // make a blank process
  kBlank,        // from the blank process (credentials)
  kLaunch,       // fork and exec
  kHello,        // from the launched process, before its exec (credentials)
  kResult,       // from the keeper: error 0 or errno, and the step
  kWatch,        // the program is complete: `pid` (inside) is its root; the pair is closed
};

struct KeeperConfig {
  KeeperOp op = KeeperOp::kConfig;
  std::uint32_t new_network = 0;
  std::uint32_t new_time = 0;
  std::int64_t monotonic_offset_ns = 0;   // relative to the initial time namespace
  std::int64_t boottime_offset_ns = 0;
  char log_path[kMaxPath] = {};
  char exit_path[kMaxPath] = {};
};

struct KeeperSpawn {
  KeeperOp op = KeeperOp::kSpawn;
  std::int32_t pid = 0;                   // inside
  std::uint64_t area = 0;                 // where the blank process maps the driver's area
  std::uint64_t area_bytes = 0;
};

// Followed by NUL-terminated strings: cwd, argv…, env…
struct KeeperLaunch {
  KeeperOp op = KeeperOp::kLaunch;
  std::int32_t pid = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t group_count = 0;
  std::uint32_t argc = 0;
  std::uint32_t envc = 0;
  std::uint32_t groups[64] = {};
};

enum class KeeperStep : std::uint32_t {
  kNone = 0, kTimeNamespace, kNamespaces, kNetwork, kMount, kLog, kPipes, kFork, kIdentity, kDirectory, kExec,
};

struct KeeperResult {
  KeeperOp op = KeeperOp::kResult;
  KeeperStep step = KeeperStep::kNone;
  std::int32_t error = 0;
};

struct KeeperWatch {
  KeeperOp op = KeeperOp::kWatch;
  std::int32_t pid = 0;
};

}  // namespace baton::restore
