// LeaseTable: until when each workload of this node may run, and who sees to it that it does
// not run longer. A lease is a deadline on CLOCK_BOOTTIME; when it passes without a newer one,
// the workload is frozen by its cgroup.
//
// The table is a file in the warden's state directory, mapped shared by everybody who enforces
// it: a thread of the warden (LeaseEnforcer), and a process of its own, the guard
// (`baton-warden --guard-leases`), which goes on when the warden is killed or stopped. Between
// them nobody's death lets a program outlive its lease. A guard ends when a newer one has
// taken over, or when the warden is gone and nothing runs on a lease any more.
//
// The file is memory, not a format: it means something until the next boot only, and is made
// anew when its magic, layout or boot id differ.
//
// A thread frozen by its cgroup cannot finish an injected call. So a capture, during which the
// program stands still anyway, may end first (kCapturePatience), and its end is the freeze; a
// copy round or an attachment, beside the running program, gets kRoundPatience. When the process
// that captures dies, its patience ends with it.
//
// Threads: all functions from any thread and any process that maps the file.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace baton::warden {

inline constexpr std::size_t kLeasesMax = 320;              // more than a warden has workloads
inline constexpr std::chrono::milliseconds kRoundPatience{4};
inline constexpr std::chrono::milliseconds kCapturePatience{5000};

class LeaseTable {
 public:
  // Opens or makes `path`. Fails: kNotAllowed, kNoSpace, kFailed.
  static Result<std::unique_ptr<LeaseTable>> open(const std::string& path, const std::string& boot_id);
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  // `until` = 0 ends the lease. Thaws what had run out (answers true), unless it is held for
  // another reason. Fails: kConflict (an older incarnation), kNoSpace (kLeasesMax), kFailed
  // (the cgroup cannot be thawed: still frozen).
  Result<bool> renew(const std::string& workload, const std::string& cgroup, std::uint64_t until_ns,
                     std::uint64_t incarnation);
  struct State {
    bool known = false;
    std::uint64_t until_ns = 0;
    bool frozen = false;      // because it ran out
    bool held = false;
  };
  State get(const std::string& workload) const;
  // Held by cgroup for another reason: no renewal thaws it.
  void set_held(const std::string& workload, bool held);
  void forget(const std::string& workload);

  // Marks a capture (`stopped`) or a round for its scope; `allowed()` is false when the lease
  // has run out.
  class Capturing {
   public:
    Capturing(LeaseTable& table, const std::string& workload, bool stopped);
    ~Capturing();
    Capturing(const Capturing&) = delete;
    Capturing& operator=(const Capturing&) = delete;
    bool allowed() const { return allowed_; }

   private:
    LeaseTable& table_;
    void* slot_;
    bool allowed_ = true;
  };

  // Freezes what is due. Answers when to look again (boot time; UINT64_MAX: nothing has a lease).
  std::uint64_t enforce(const std::function<void(const std::string& workload)>& frozen = {});
  // How many workloads run on a lease that can still run out.
  std::size_t running() const;
  // Raised by every guard that takes over.
  std::uint32_t next_guard();
  std::uint32_t guard() const;
  // An eventfd that is raised whenever enforce() has to be called sooner than it last
  // answered. Before any renewal; at most two.
  void wake_on_sooner(int eventfd) { wakes_.push_back(eventfd); }

 private:
  struct Layout;
  struct Slot;
  LeaseTable(Fd fd, Layout* layout) : fd_(std::move(fd)), layout_(layout) {}
  Slot* find(const std::string& workload) const;
  class SlotLock;
  bool expire(Slot& slot, std::size_t index);

  Fd fd_;
  Layout* layout_;
  void sooner() const;
  std::vector<int> wakes_;
  std::mutex making_;          // slots are made by the warden only
};

// Enforces a table on a thread of its own, with real-time priority where that is allowed.
class LeaseEnforcer {
 public:
  LeaseEnforcer(LeaseTable& table, std::function<void(const std::string& workload)> frozen);
  ~LeaseEnforcer();

 private:
  void run();
  LeaseTable& table_;
  std::function<void(const std::string&)> frozen_;
  Fd timer_, wake_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// The guard's whole life; answers its exit code. `warden`: whom it watches; `wake`: an eventfd.
int guard_leases(const std::string& path, pid_t warden, int wake);
// Starts guards, one after the other, for as long as it lives (on a thread of its own).
class GuardKeeper {
 public:
  GuardKeeper(LeaseTable& table, std::string table_path);
  ~GuardKeeper();    // the guard lives on until nothing needs it

 private:
  void run();
  const std::string path_;
  Fd wake_, wake_guard_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// SCHED_RR for the calling thread, if this process may. Answers whether.
bool make_realtime() noexcept;

}  // namespace baton::warden
