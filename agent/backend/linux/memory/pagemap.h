// Pagemap: /proc/PID/pagemap of one address space, read entry by entry or by PAGEMAP_SCAN.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "agent/backend/linux/memory/page_set.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/linux_abi.h"

namespace baton::linux_backend {

class Pagemap {
 public:
  static Result<Pagemap> open(pid_t pid);

  // Entries of [first, first + out.size()); beyond the address space: zero.
  Result<void> read(std::uint64_t first_page, std::span<std::uint64_t> out) const;

  struct Query {
    std::uint64_t flags = 0, inverted = 0, mask = 0, any_of = 0, returned = 0;
  };
  enum class Outcome { kDone, kNotTracked };
  // PAGEMAP_SCAN over [start, end): the matching pages, appended to `out`, also when the
  // answer is kNotTracked (some mapping there has no asynchronous write-protection).
  Result<Outcome> scan(std::uint64_t start, std::uint64_t end, const Query& query,
                       std::vector<PageRun>& out) const;

 private:
  pid_t pid_ = 0;
  Fd fd_;
};

// A page with content of its own: not an empty entry, not a marker in one.
inline bool entry_has_page(std::uint64_t entry) {
  if (entry & abi::kPagemapPresent) return true;
  return (entry & abi::kPagemapSwapped) &&
         (entry & abi::kPagemapSwapTypeMask) != abi::kPagemapSwapTypeMarker;
}

}  // namespace baton::linux_backend
