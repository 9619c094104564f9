// The adapter interface: what a backend (Linux processes, CRIU, QEMU guest) can
// do with a workload. Implementations live in folders beside this file and enter
// themselves into the registry (registry.h) by name.
//
// Threads: a Backend may be used from any thread. An Attachment or a Build is
// used by one thread at a time, and by the thread that made it: ptrace(2) binds
// a tracee to the thread that seized it.
//
// Every failure leaves the program exactly as if nothing had been tried, running.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.h"
#include "base/fd.h"
#include "proto/checkpoint.pb.h"
#include "proto/workload.pb.h"

namespace baton::backend {

inline constexpr std::size_t kPageBytes = 4096;

struct PageRange {
  std::uint64_t object = 0;
  std::uint64_t first_page = 0;
  std::uint64_t count = 0;
};

// Where captured pages go: a bounded buffer shared with the agent.
class PageSink {
 public:
  virtual ~PageSink() = default;
  // A stretch of at most `bytes` (a multiple of a page) to copy into; empty when the
  // buffer is full. Never blocks. What is reserved is either emitted or given back by
  // the next reserve.
  virtual std::span<std::byte> reserve(std::size_t bytes) = 0;
  // The first `count` pages of the last reserved stretch hold `object`'s pages from `first_page`.
  virtual void emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) = 0;
  // These pages are no longer there (unmapped, or given back to the kernel).
  virtual void drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) = 0;
  // Bytes that reserve could still hand out.
  virtual std::size_t free_bytes() const = 0;
};

struct RoundStats {
  std::uint64_t pages_written = 0;   // that the tracker found in this round
  std::uint64_t pages_copied = 0;
  std::uint64_t pages_pending = 0;   // found but not copied yet, because the sink was full
  std::chrono::nanoseconds scan{}, copy{};
};

struct CaptureOptions {
  // How long copy rounds beside the running program may take before the freeze; 0: none.
  std::chrono::microseconds approach{0};
  bool keep_frozen = false;
  bool verify = false;                    // compare, still frozen, every byte with what was captured
  std::span<const PageRange> again;       // copy these too, written or not
  std::uint64_t max_pending_pages = 0;    // 0: no limit. Else kNoSpace, thawed, nothing lost.
};

struct CaptureStats {
  RoundStats pages;
  std::chrono::nanoseconds pause{}, stop{}, scan{}, copy{}, state{}, resume{};
  std::uint64_t output_epoch = 0;         // of NetworkHold::mark_output
  std::uint32_t rounds = 0;               // beside the running program, before the freeze
  std::uint64_t pages_frozen = 0;         // copied while it stood still
  std::string strategy, why;              // "concurrent" or "stop-copy", and for a person why
  std::uint64_t verify_pages = 0;
  std::uint64_t verify_differences = 0;
  std::string verify_first;               // the first difference, for a person
};

// The network of a workload that has one of its own, as its freeze needs it.
class NetworkHold {
 public:
  virtual ~NetworkHold() = default;
  // From here on nothing that arrives reaches the workload's sockets; what comes from outside
  // is kept. Fails: then nothing is held.
  virtual Result<void> hold() = 0;
  // Everything arrives again, what was kept first. Safe when nothing is held.
  virtual void release() = 0;
  // Output commit: what the workload has sent so far belongs to the capture under way. 0: it
  // is not held.
  virtual std::uint64_t mark_output() = 0;
};

// Gives the network namespace of `member` its interface: called once, before anything of the
// workload runs in it. Empty: a namespace with nothing but `lo`.
using EquipNetwork = std::function<Result<void>(pid_t member)>;

// A folder whose files go with the workload, and where their server (agent/volume) listens.
struct VolumePlace {
  std::string folder;              // absolute, as program and node name it
  std::string socket;
};

struct AttachTarget {
  pid_t root = 0;               // as this process sees it
  std::string cgroup;           // absolute path of its cgroup v2 folder: all members are captured
  pid_t keeper = 0;             // 0: none (protect); its processes are never captured
  std::string tracker;          // empty or "auto": the best available
  pb::WorkloadSpec spec;
  NetworkHold* network = nullptr;   // outlives the attachment; null: the node's network
  std::vector<VolumePlace> volumes; // all of the spec's, served
};

// A workload under protection: tracked, between checkpoints not stopped and not traced.
class Attachment {
 public:
  virtual ~Attachment() = default;   // gives everything back; thaws
  virtual std::string tracker_name() const = 0;
  virtual std::string copier_name() const { return {}; }

  // One copy round beside the running program; the first copies everything present.
  // kNoSpace is no failure: stats say what is pending, the next round goes on.
  virtual Result<RoundStats> round(PageSink& sink, std::span<const PageRange> again) = 0;

  // Freezes, copies what is left, reads the rest of the state, thaws (or stays frozen).
  // Together with all rounds since the last capture the sink then holds every page that
  // differs from the last captured checkpoint. On failure: thawed, and what the sink
  // already got stays valid; the next round or capture covers the rest.
  // Fails: kUnsupported (names the resource), kTraceeGone (it ended), kNoSpace.
  virtual Result<CaptureStats> capture(const CaptureOptions& options, PageSink& sink,
                                       pb::Manifest& manifest) = 0;
  virtual Result<void> thaw() = 0;   // after keep_frozen
  // After keep_frozen, once another node owns the workload: kills every process, still frozen.
  virtual Result<void> destroy() = 0;
};

struct BuildTarget {
  pb::WorkloadSpec spec;
  std::string cgroup;              // existing, empty cgroup v2 folder to build in
  std::string log_path;            // where the keeper writes stdout and stderr
  std::string exit_path;           // where the keeper leaves the root's wait status
  std::chrono::nanoseconds away{}; // since the freeze
  // It will stand by and follow later checkpoints: what must not be seen of a program that
  // does not run (a listening port, a socket that takes datagrams) comes at activation.
  bool shadow = false;
  EquipNetwork equip;              // with addresses in the spec
  std::vector<VolumePlace> volumes;   // all of the spec's: the build starts their servers, which live on with the program
  // Called by activate once every socket is there: from then on frames may come. May be empty.
  std::function<Result<void>()> connect;
  bool connections = false;        // the manifest is the newest state: TCP connections go on, else they are reset
};

// What an apply left to be done or known.
struct Followed {
  std::vector<PageRange> again;    // of mappings that were made anew: to be filled, changed or not
  std::chrono::nanoseconds clock_ahead{};   // its monotonic clock minus the manifest's, when asked
};

struct ActivationTimes {
  std::chrono::nanoseconds finish{}, release{};
};

// Processes being built from a manifest: stopped until activate. What was built can follow:
// apply, then fill with every page in which the later checkpoint differs, any number of times.
class Build {
 public:
  virtual ~Build() = default;      // not activated: kills what was built
  virtual Result<void> fill(std::uint64_t object, std::uint64_t first_page,
                            std::span<const std::byte> pages) = 0;
  // Brings everything but page contents to `next`; pages in `dropped` lose their content.
  // Takes time by what changed, not by what there is.
  // Fails: kConflict: it cannot follow (says why) and nothing was changed: it stands where it
  // stood; build another. Any other failure: it stands nowhere and is to be destroyed.
  virtual Result<Followed> apply(const pb::Manifest& next, std::span<const PageRange> dropped) {
    (void)next, (void)dropped;
    return make_error(Code::kConflict, "apply", "this backend's builds do not follow");
  }
  // How long to wait until its clocks are where the program's were at the freeze: zero,
  // unless the other machine's run faster.
  virtual std::chrono::nanoseconds clock_behind() const { return {}; }
  virtual ActivationTimes activation_times() const { return {}; }
  // Resumes everything (or leaves it stopped with SIGSTOP-like freezing by cgroup when `paused`).
  // After success the object may be destroyed; the processes live on.
  virtual Result<void> activate(bool paused, std::chrono::nanoseconds away) = 0;
  virtual pid_t root() const = 0;      // as this process sees it
  virtual pid_t keeper() const = 0;
};

struct Inspection {
  std::vector<pb::Verdict> verdicts;   // every resource, with what would happen to it
  std::vector<pb::FileProof> files;    // mapped or open files, without sha256
  pb::MachineState machine;
  bool acceptable = true;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  // What this node can do, found by trying. BATON_FORCE_OFF=wp-async,pagemap-scan,… turns
  // features off, so that fallbacks are tested everywhere.
  virtual std::vector<pb::Feature> probe() = 0;
  virtual std::vector<std::string> trackers() = 0;
  // What the spec asks of captures, as far as it can be judged without the program.
  // Fails: kInvalid (an unknown tracker or copier), kUnsupported (known, but not on this node).
  virtual Result<void> check_spec(const pb::WorkloadSpec&) { return {}; }
  virtual Result<Inspection> inspect(const AttachTarget& target) = 0;
  virtual Result<std::unique_ptr<Attachment>> attach(const AttachTarget& target) = 0;
  virtual Result<std::unique_ptr<Build>> build(const pb::Manifest& manifest,
                                               const BuildTarget& target) = 0;
};

}  // namespace baton::backend
