// What baton-volume and its clients say to each other, over a SOCK_SEQPACKET socket in the file
// system: fixed structures, one per message, within one machine and one version. Pages go through
// an area of shared memory that each connection has for itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace baton::volume {

inline constexpr std::size_t kBatchPages = 1024;
inline constexpr std::size_t kGoneMax = 512;
inline constexpr std::size_t kTextMax = 3800;

enum class VolumeOp : std::uint32_t {
  kHello = 1,   // answered with the area's descriptor
  kImport,      // text: a folder, whose content the empty volume takes over
  kExport,      // text: a folder, whose content becomes the volume's
  kMount,       // text: the folder; pid: in whose mount namespace (0: in ours)
  kUnmount,     // here; where else it is mounted ends with those who see it
  kCollect,     // count: pages at most; first != 0: everything counts as changed
  kAgain,       // first, count: these pages count as changed
  kFill,        // first, count: the area holds them
  kDrop,        // first, count
  kSettle,      // first != 0: a program is about to use it
  kQuit,        // unmounts and ends, whatever else uses it
};

struct VolumeRequest {
  VolumeOp op{};
  std::int32_t pid = 0;
  std::uint64_t first = 0, count = 0;
  char text[kTextMax] = {};
};

struct VolumeAnswer {
  std::uint32_t code = 0;         // baton::Code; 0: done
  std::int32_t sys_errno = 0;
  std::uint64_t count = 0;        // kCollect: pages in the area
  std::uint64_t gone = 0;         // runs in the area
  std::uint64_t left = 0;         // pages that are still to be collected
  char text[kTextMax] = {};       // operation, subject, hint; NUL-terminated each
};

struct VolumeArea {
  struct Run { std::uint64_t first, count; };
  std::uint64_t numbers[kBatchPages];
  Run gone[kGoneMax];
  alignas(4096) std::byte pages[kBatchPages * 4096];
};

}  // namespace baton::volume
