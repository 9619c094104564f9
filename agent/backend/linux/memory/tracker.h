// Tracker: tells which private pages of one address space were written since it was
// last asked. Implementations enter themselves by name (TrackerRegistrar).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "agent/backend/linux/memory/memory_map.h"
#include "agent/backend/linux/memory/page_set.h"
#include "agent/backend/linux/remote/tracee.h"

namespace baton::linux_backend {

struct Collected {
  std::vector<PageRun> written;   // may have changed; page number = address / 4096
  std::vector<PageRun> gone;      // of `known`: read as zeros, or as the file, again
  std::vector<PageRun> guards;    // new ones, as far as they were met (MADV_GUARD_INSTALL)
  std::uint64_t untracked = 0;    // pages of mappings that are left out until enroll() or a stopped collect
  void clear() { written.clear(); gone.clear(); guards.clear(); untracked = 0; }
  void guard(std::uint64_t page) {
    if (!guards.empty() && guards.back().end() == page) ++guards.back().count;
    else guards.push_back({page, 1});
  }
};

// What is known of the program's threads while a tracker collects.
struct Stillness {
  bool stopped = false;    // they all stand still
  // And since the last collect none has made a call that changes the memory map or gives pages
  // back to the kernel; nor a transfer, by which a program may write through /proc/PID/mem.
  bool mappings = false, transfers = false;
};

class Tracker {
 public:
  virtual ~Tracker() = default;   // tracking ends; nothing is left in the program
  virtual std::string_view name() const = 0;
  // The pages it reports have been written. False: they may have been, compare their content.
  virtual bool is_exact() const = 0;
  // With the program stopped: takes up what is new in `map`; its pages come with the next collect.
  // Where a tracker has to do something to a mapping, it does so here or in a stopped collect only:
  // done to half of one that the program has just resized, it would be two for the program, whose
  // mremap(2) of both then fails.
  virtual Result<void> enroll(const MemoryMap& /*map*/) { return {}; }
  // Pages written since the last call, and protected again. The first call, and whatever is
  // new in `map`, gives every page present. May run beside the program, or with it stopped;
  // then the answer is complete. Fails: kTraceeGone; nothing is lost then that the next call
  // or another tracker's first call would not find.
  virtual Result<void> collect(const MemoryMap& map, const PageSet& known, const Stillness& still,
                               Collected& out) = 0;
};

struct TrackerType {
  std::string name;
  int rank = 0;                                   // "auto" takes the lowest that works
  std::function<Result<void>()> probe;            // can this node do it? Fails: kUnsupported
  // `thread` is a stopped thread of process `pid`. Fails: kUnsupported (the program itself
  // stands in the way: it uses userfaultfd), kTraceeGone, kFailed.
  std::function<Result<std::unique_ptr<Tracker>>(pid_t pid, Tracee& thread)> attach;
};

class TrackerRegistrar {
 public:
  explicit TrackerRegistrar(TrackerType type);
};

// By rank.
const std::vector<TrackerType>& tracker_types();
const TrackerType* find_tracker(std::string_view name);

// BATON_FORCE_OFF holds `feature`.
bool forced_off(std::string_view feature);

}  // namespace baton::linux_backend
