#include "agent/backend/linux/remote/freeze.h"

#include <dirent.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <set>

#include "agent/backend/linux/remote/proc.h"
#include "base/fault_point.h"

namespace baton::linux_backend {
namespace {
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kFreezeTimeout = std::chrono::seconds(2);
// A parent in vfork stops when its child, let go before it, has executed or ended: on a busy machine
// that takes a while. The parent waits for the child anyway.
constexpr auto kLetGo = std::chrono::seconds(2);
constexpr auto kVforkPatience = milliseconds(200);   // its siblings stand still meanwhile
constexpr auto kStuckAfter = milliseconds(20);   // in an uninterruptible wait for that long

void append_numbers(const std::string& text, std::vector<pid_t>& out) {
  const char* p = text.c_str();
  for (;;) {
    char* next = nullptr;
    long v = std::strtol(p, &next, 10);
    if (next == p) return;
    out.push_back(static_cast<pid_t>(v));
    p = next;
  }
}

// `pid` and all its descendants that are alive.
void append_tree(pid_t pid, std::vector<pid_t>& out) {
  auto threads = list_threads(pid);
  if (!threads) return;
  out.push_back(pid);
  for (pid_t tid : *threads) {
    auto children = read_proc("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/children");
    if (!children) continue;
    std::vector<pid_t> pids;
    append_numbers(*children, pids);
    for (pid_t child : pids) append_tree(child, out);
  }
}

char state_of(pid_t tid) {
  auto status = read_task_status(tid);
  return status ? status->state : 'X';
}

}  // namespace

Result<std::vector<pid_t>> Members::list() const {
  std::vector<pid_t> pids;
  if (cgroup.empty()) {
    append_tree(root, pids);
  } else {
    BATON_ASSIGN(std::string text, read_proc(cgroup + "/cgroup.procs"));
    append_numbers(text, pids);
  }
  std::erase(pids, keeper);
  std::erase(pids, 0);
  std::sort(pids.begin(), pids.end());
  pids.erase(std::unique(pids.begin(), pids.end()), pids.end());
  if (pids.empty()) return make_error(Code::kTraceeGone, "find processes", "the workload has ended");
  return pids;
}

StoppedProcess& Freeze::process(pid_t pid) {
  for (auto& p : processes_) {
    if (p.pid == pid) return p;
  }
  processes_.push_back({});
  processes_.back().pid = pid;
  return processes_.back();
}

Result<void> Freeze::stop_new_threads(pid_t pid, std::vector<Tracee*>& asked) {
  auto tids = list_threads(pid);
  if (!tids) return {};  // it has ended
  return stop_threads(pid, *tids, asked);
}

Result<void> Freeze::stop_threads(pid_t pid, const std::vector<pid_t>& tids, std::vector<Tracee*>& asked) {
  StoppedProcess& p = process(pid);
  for (pid_t tid : tids) {
    bool have = std::any_of(p.threads.begin(), p.threads.end(),
                            [&](const StoppedThread& t) { return t.tid == tid; });
    if (have) continue;
    auto tracee = Tracee::seize(tid);
    if (!tracee) {
      if (tracee.error().code != Code::kTraceeGone) return std::move(tracee).error();
      if (tid == pid && state_of(tid) == 'Z' && tids.size() > 1) p.threads.push_back({tid, nullptr});
      continue;
    }
    if (first_stop_ == Time{}) first_stop_ = steady_clock::now();
    auto stopping = tracee->request_stop();
    if (!stopping && stopping.error().code != Code::kTraceeGone) return stopping;
    if (!stopping) continue;
    tracees_.push_back(std::move(*tracee));
    p.threads.push_back({tid, &tracees_.back()});
    asked.push_back(&tracees_.back());
  }
  return {};
}

std::vector<const Tracee*> Freeze::let_children_go(const Tracee& parent) {
  pid_t pid = 0;
  for (const auto& p : processes_) {
    for (const auto& t : p.threads) {
      if (t.tracee == &parent) pid = p.pid;
    }
  }
  std::vector<const Tracee*> released;
  for (auto& p : processes_) {
    if (p.pid == pid || p.threads.empty()) continue;
    auto fields = read_stat_fields(p.pid);
    if (!fields || fields->size() < 2 || std::atoi((*fields)[1].c_str()) != pid) continue;
    for (const auto& t : p.threads) {
      if (t.tracee == nullptr || !t.tracee->await_stop(kStuckAfter)) continue;
      (void)t.tracee->detach();
      released.push_back(t.tracee);
    }
    std::erase_if(p.threads, [&](const StoppedThread& t) {
      return std::find(released.begin(), released.end(), t.tracee) != released.end();
    });
  }
  return released;
}

Result<bool> Freeze::await_all(const std::vector<Tracee*>& asked, Time give_up) {
  std::set<const Tracee*> released;
  for (Tracee* tracee : asked) {
    while (!released.contains(tracee)) {
      auto stopped = tracee->await_stop(kStuckAfter);
      if (stopped) break;
      if (stopped.error().code == Code::kTraceeGone) {
        for (auto& p : processes_) {
          std::erase_if(p.threads, [&](const StoppedThread& t) { return t.tracee == tracee; });
        }
        break;
      }
      if (stopped.error().code != Code::kTimedOut) return std::move(stopped).error();
      if (steady_clock::now() > give_up) return std::move(stopped).error();
      if (state_of(tracee->tid()) != 'D') continue;
      // A parent in vfork waits for a child that we hold: let go, the child executes or ends, and
      // the parent stops. It is listed again afterwards.
      auto children = let_children_go(*tracee);
      released.insert(children.begin(), children.end());
      if (children.empty() || !tracee->await_stop(kVforkPatience)) return false;
      break;
    }
  }
  return true;
}

Result<bool> Freeze::attempt_known(const Roster& known, const std::function<bool()>& unchanged, Time give_up) {
  std::vector<Tracee*> asked;
  std::size_t threads = 0;
  for (const auto& p : known.processes) {
    threads += p.tids.size();
    BATON_TRY(stop_threads(p.pid, p.tids, asked));
  }
  if (!asked.empty()) BATON_TRY(fault_point("freeze.asked"));
  BATON_ASSIGN(bool stopped, await_all(asked, give_up));
  if (!stopped) return false;
  std::size_t held = 0;
  for (const auto& p : processes_) held += p.threads.size();
  roster_held_ = held == threads && held == tracees_.size() && unchanged();
  return true;
}

Result<bool> Freeze::attempt(const Members& members, Time give_up) {
  for (;;) {
    BATON_ASSIGN(auto pids, members.list());
    std::vector<Tracee*> asked;
    for (pid_t pid : pids) BATON_TRY(stop_new_threads(pid, asked));
    if (asked.empty()) break;
    BATON_TRY(fault_point("freeze.asked"));
    BATON_ASSIGN(bool stopped, await_all(asked, give_up));
    if (!stopped) return false;
  }
  return true;
}

// Without those that have ended meanwhile, in their order.
Result<void> Freeze::settle() {
  std::erase_if(processes_, [](const StoppedProcess& p) {
    return std::none_of(p.threads.begin(), p.threads.end(),
                        [](const StoppedThread& t) { return t.tracee != nullptr; });
  });
  if (processes_.empty()) return make_error(Code::kTraceeGone, "freeze", "the workload has ended");
  all_stopped_ = steady_clock::now();
  for (auto& p : processes_) {
    std::sort(p.threads.begin(), p.threads.end(), [&](const StoppedThread& a, const StoppedThread& b) {
      if ((a.tid == p.pid) != (b.tid == p.pid)) return a.tid == p.pid;
      return a.tid < b.tid;
    });
  }
  return {};
}

Roster Freeze::roster() const {
  Roster roster;
  for (const auto& p : processes_) {
    Roster::Process process{p.pid, {}};
    for (const auto& t : p.threads) process.tids.push_back(t.tid);
    roster.processes.push_back(std::move(process));
  }
  return roster;
}

Result<std::unique_ptr<Freeze>> Freeze::take(const Members& members, const Roster* known,
                                             const std::function<bool()>& unchanged) {
  Time give_up = steady_clock::now() + kFreezeTimeout;
  long pause_ns = 1'000'000;
  for (;;) {
    std::unique_ptr<Freeze> freeze(new Freeze);
    auto done = [&]() -> Result<bool> {
      if (known != nullptr) {
        BATON_ASSIGN(bool stopped, freeze->attempt_known(*known, unchanged, give_up));
        if (!stopped) return false;
      }
      if (!freeze->roster_held_) {
        BATON_ASSIGN(bool stopped, freeze->attempt(members, give_up));
        if (!stopped) return false;
      }
      BATON_TRY(freeze->settle());
      return true;
    }();
    // Asked before and not stopped since: a wait as uninterruptible as one that is seen now.
    const bool stuck = !done && done.error().code == Code::kTimedOut && steady_clock::now() <= give_up;
    if (!done && !stuck) {
      (void)freeze->release();
      return std::move(done).error();
    }
    if (!stuck && *done) return freeze;
    (void)freeze->release();
    if (steady_clock::now() > give_up) {
      return make_error(Code::kTimedOut, "freeze",
                        "a thread stays in an uninterruptible wait (such as a parent in vfork)",
                        "The next checkpoint tries again.");
    }
    timespec ts{0, pause_ns};
    ::nanosleep(&ts, nullptr);
    pause_ns = std::min(pause_ns * 2, 50'000'000L);
  }
}

Result<void> Freeze::release() {
  Result<void> first = {};
  // Those that have stopped first: others may be waiting for them.
  for (auto& t : tracees_) {
    if (!t.stopped()) continue;
    auto given_back = t.detach();
    if (!given_back && given_back.error().code != Code::kTraceeGone && first) first = std::move(given_back);
  }
  for (auto& t : tracees_) t.let_go(kLetGo);
  tracees_.clear();
  processes_.clear();
  return first;
}

Result<void> Freeze::kill_all() {
  for (auto& p : processes_) {
    if (::kill(p.pid, SIGKILL) != 0 && errno != ESRCH) {
      return errno_error("kill", "process " + std::to_string(p.pid));
    }
  }
  std::vector<pid_t> pids;
  for (auto& p : processes_) pids.push_back(p.pid);
  (void)release();   // reaps what we trace
  auto until = steady_clock::now() + std::chrono::seconds(10);
  for (pid_t pid : pids) {
    for (;;) {
      char state = state_of(pid);
      if (state == 'Z' || state == 'X') break;
      if (steady_clock::now() > until) {
        return make_error(Code::kTimedOut, "kill", "process " + std::to_string(pid) + " does not end");
      }
      timespec ts{0, 1'000'000};
      ::nanosleep(&ts, nullptr);
    }
  }
  return {};
}

}  // namespace baton::linux_backend
