#include "agent/backend/linux/attachment.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "agent/backend/linux/remote/proc.h"
#include "base/cgroup.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::linux_backend {
namespace {
using std::chrono::steady_clock;

bool same_memory(pid_t a, pid_t b) { return ::syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0; }

constexpr std::uint64_t kSysvKey = std::uint64_t{1} << 63;
constexpr std::uint64_t kEnrollPages = 256;   // of new mappings: fewer are not worth stopping the program
constexpr auto kJudgeWatchAfter = std::chrono::seconds(1);
constexpr auto kWatchAgainAfter = std::chrono::seconds(60);

bool is_gone(const Error& e) { return e.code == Code::kTraceeGone; }

// What its cgroup freezes reaches no ptrace stop.
bool is_frozen(const std::string& cgroup) {
  if (cgroup.empty()) return false;
  auto frozen = Cgroup::at(cgroup).freeze_asked();
  return frozen && *frozen;
}

}  // namespace

LinuxAttachment::LinuxAttachment(const backend::AttachTarget& target) : target_(target) {
  members_ = {target.cgroup, target.root, target.keeper};
}

LinuxAttachment::~LinuxAttachment() {
  release_network();
  tracer_.run([&] { kept_.reset(); });
}

Result<std::unique_ptr<LinuxAttachment>> LinuxAttachment::attach(const backend::AttachTarget& target) {
  std::unique_ptr<LinuxAttachment> a(new LinuxAttachment(target));
  BATON_ASSIGN(CopierChoice choice, parse_copier(target.spec.copier()));
  BATON_ASSIGN(a->copier_, make_copier(choice));
  a->granularity_ = choice.options.granularity;
  BATON_TRY(a->open_volumes());
  Result<void> outcome = {};
  a->tracer_.run([&] {
    outcome = [&]() -> Result<void> {
      BATON_ASSIGN(auto pids, a->members_.list());
      for (pid_t pid : pids) {
        BATON_TRY(check_native_program(pid));
        auto status = read_task_status(pid);
        auto threads = list_threads(pid);
        if (status && status->state == 'Z' && threads && threads->size() > 1) {
          return make_error(Code::kUnsupported, "attach", "process " + std::to_string(pid) + ": its first thread has ended while others run on");
        }
      }
      return a->take_up(pids, nullptr);
    }();
  });
  if (!outcome) return std::move(outcome).error();
  a->begin_watch();
  if (a->processes_.empty()) {
    if (read_task_status(target.root)) {
      return make_error(Code::kTimedOut, "attach",
                        "process " + std::to_string(target.root) + " does not stop (a parent in vfork)",
                        "Try again.");
    }
    return make_error(Code::kTraceeGone, "attach", "the workload has ended");
  }
  return a;
}

std::string LinuxAttachment::tracker_name() const {
  std::string name;
  for (const auto& [pid, p] : processes_) {
    std::string mine(p.space->tracker().name());
    if (name.empty()) name = mine;
    else if (name != mine) name = "mixed";
  }
  return name;
}

// --- which processes there are ---------------------------------------------

Result<void> LinuxAttachment::take_up_one(pid_t pid, Tracee& thread) {
  BATON_ASSIGN(TaskStatus status, read_task_status(pid));
  Process p;
  p.ns_pid = status.ns_tids.empty() ? pid : status.ns_tids.back();
  for (auto& [other, q] : processes_) {
    if (same_memory(pid, other)) {
      p.space = q.space;
      break;
    }
  }
  if (!p.space) {
    BATON_ASSIGN(auto space, AddressSpace::attach(pid, next_object_, thread, target_.tracker,
                                                  target_.spec.verify(), copier_, granularity_));
    ++next_object_;
    p.space = std::move(space);
  }
  processes_[pid] = std::move(p);
  return {};
}

// Processes that are not known yet. With `frozen` they are stopped; else each is stopped for
// as long as it takes.
Result<void> LinuxAttachment::take_up(const std::vector<pid_t>& pids, Freeze* frozen) {
  for (pid_t pid : pids) {
    if (processes_.contains(pid)) continue;
    if (frozen != nullptr) {
      for (auto& p : frozen->processes()) {
        if (p.pid != pid) continue;
        auto it = std::find_if(p.threads.begin(), p.threads.end(),
                               [](const StoppedThread& t) { return t.tracee != nullptr; });
        BATON_TRY(take_up_one(pid, *it->tracee));
      }
      continue;
    }
    auto tids = list_threads(pid);
    if (!tids) continue;
    for (pid_t tid : *tids) {
      auto outcome = [&]() -> Result<void> {
        BATON_ASSIGN(Tracee tracee, Tracee::seize(tid));
        // In an uninterruptible wait it may stay; on a busy machine it may take its time.
        auto stopped = tracee.stop(std::chrono::milliseconds(500));
        for (int i = 0; i < 10 && !stopped && stopped.error().code == Code::kTimedOut; ++i) {
          auto status = read_task_status(tid);
          if (!status || (status->state == 'D' && i >= 5) || is_frozen(target_.cgroup)) break;
          stopped = tracee.await_stop(std::chrono::milliseconds(500));
        }
        if (!stopped) {
          tracee.let_go(std::chrono::milliseconds(1));
          return stopped;
        }
        BATON_TRY(take_up_one(pid, tracee));
        return tracee.detach();
      }();
      if (outcome) break;
      if (outcome.error().code == Code::kTimedOut && is_frozen(target_.cgroup)) {
        return make_error(Code::kConflict, "attach", "the workload is frozen (its lease has run out, or it is held)");
      }
      if (outcome.error().code == Code::kTimedOut) break;   // in vfork: the freeze will see
      if (!is_gone(outcome.error())) return outcome;
    }
  }
  return {};
}

void LinuxAttachment::drop_ended(const std::vector<pid_t>& pids) {
  std::erase_if(processes_, [&](const auto& entry) {
    return !std::binary_search(pids.begin(), pids.end(), entry.first);
  });
}

// Processes that shared memory when they were taken up and do so no more: which of them has
// the old memory is not worth finding out; both begin anew.
void LinuxAttachment::drop_split_spaces() {
  if (processes_.size() < 2) return;
  std::set<const AddressSpace*> split;
  for (const auto& [pid, p] : processes_) {
    if (p.space.use_count() < 2) continue;
    bool owner_here = false;
    for (const auto& [other, q] : processes_) {
      if (other == pid || q.space != p.space) continue;
      if (!same_memory(pid, other)) split.insert(p.space.get());
    }
    for (const auto& [other, q] : processes_) {
      if (other == p.space->pid() && q.space == p.space) owner_here = true;
    }
    if (!owner_here) split.insert(p.space.get());
  }
  for (auto it = processes_.begin(); it != processes_.end();) {
    // The last one left of a group whose first has ended reads through a pid that is gone.
    bool orphan = it->second.space.use_count() == 1 && it->second.space->pid() != it->first;
    if (orphan || split.contains(it->second.space.get())) it = processes_.erase(it);
    else ++it;
  }
}

// --- memory ------------------------------------------------------------------

Result<void> LinuxAttachment::collect_private(backend::PageSink& sink, Freeze* frozen,
                                              backend::RoundStats& stats) {
  // Nobody can have come, gone or begun another program: what is known is all there is.
  const bool same = frozen != nullptr ? frozen->roster_held() : stillness(false).mappings;
  if (!same) {
    std::vector<pid_t> pids;
    if (frozen != nullptr) {
      for (auto& p : frozen->processes()) pids.push_back(p.pid);
      std::sort(pids.begin(), pids.end());
    } else {
      BATON_ASSIGN(pids, members_.list());
    }
    drop_ended(pids);
    drop_split_spaces();
    BATON_TRY(take_up(pids, frozen));
  }
  std::vector<AddressSpace*> done;
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<pid_t> renewed;
    for (auto& [pid, p] : processes_) {
      AddressSpace* space = p.space.get();
      if (std::find(done.begin(), done.end(), space) != done.end()) continue;
      auto found = space->collect(sink, stillness(frozen != nullptr));
      if (found) {
        stats.pages_written += *found;
        done.push_back(space);
      } else if (is_gone(found.error())) {
        renewed.push_back(pid);
      } else {
        return std::move(found).error();
      }
    }
    if (renewed.empty()) {
      if (pass > 0 || frozen != nullptr) return {};
      BATON_ASSIGN(const bool enrolled, enroll_new());
      if (!enrolled) return {};
      std::erase_if(done, [](const AddressSpace* space) { return space->pages_untracked() != 0; });
      continue;
    }
    // They execute another program now, or have ended.
    for (pid_t pid : renewed) processes_.erase(pid);
    if (pass == 0) BATON_TRY(take_up(renewed, frozen));
  }
  return {};
}

// Mappings that are new since the last freeze, beside the running program: few of them wait for the
// next freeze; for many the program is stopped, for as long as it takes to register them.
Result<bool> LinuxAttachment::enroll_new() {
  std::uint64_t untracked = 0;
  for (auto& [pid, p] : processes_) untracked += p.space->pages_untracked();
  if (untracked < kEnrollPages) return false;
  BATON_ASSIGN(auto freeze, Freeze::take(members_));
  Result<void> outcome = {};
  std::set<AddressSpace*> done;
  for (auto& [pid, p] : processes_) {
    if (!done.insert(p.space.get()).second) continue;
    outcome = p.space->enroll();
    if (!outcome && is_gone(outcome.error())) outcome = {};   // found by the next collect
    if (!outcome) break;
  }
  auto released = freeze->release();
  if (!outcome) return std::move(outcome).error();
  if (!released) return std::move(released).error();
  return true;
}

Result<void> LinuxAttachment::copy_private(backend::PageSink& sink, backend::RoundStats& stats) {
  std::set<AddressSpace*> done;
  for (auto& [pid, p] : processes_) {
    if (!done.insert(p.space.get()).second) continue;
    auto copied = p.space->copy(sink);
    if (!copied) {
      if (is_gone(copied.error())) continue;   // collected anew, or left out, next time
      return std::move(copied).error();
    }
    stats.pages_copied += *copied;
  }
  return {};
}

// In the freeze: few pages go through memory of our own, and to the sink after the thaw.
Result<void> LinuxAttachment::stage_private(backend::PageSink& sink, backend::RoundStats& stats) {
  std::set<AddressSpace*> done;
  for (auto& [pid, p] : processes_) {
    if (!done.insert(p.space.get()).second) continue;
    auto staged = p.space->stage();
    if (!staged && !is_gone(staged.error())) return std::move(staged).error();
    if (staged && *staged) continue;
    auto copied = p.space->copy(sink);
    if (!copied) {
      if (is_gone(copied.error())) continue;
      return std::move(copied).error();
    }
    stats.pages_copied += *copied;
  }
  return {};
}

void LinuxAttachment::emit_staged(backend::PageSink& sink, backend::RoundStats& stats) {
  for (auto& [pid, p] : processes_) stats.pages_copied += p.space->emit_staged(sink);
}

Result<SharedObject*> LinuxAttachment::shared_object(Fd fd, pb::MemoryObjectKind kind,
                                                     const std::string& name) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno_error("stat", name);
  FileKey key{st.st_dev, st.st_ino};
  if (kind == pb::MEMORY_OBJECT_SYSV) key.first |= kSysvKey;   // their inodes are numbered apart
  auto it = shared_.find(key);
  if (it == shared_.end()) {
    auto object = std::make_unique<SharedObject>(next_object_++, kind, name, std::move(fd));
    it = shared_.emplace(key, std::move(object)).first;
  }
  return it->second.get();
}

Result<SharedObject*> LinuxAttachment::shared_mapping(const MemoryMap& map, const Vma& v) {
  FileKey key = maps_key(v);
  if (auto it = by_maps_key_.find(key); it != by_maps_key_.end()) return it->second;
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%llx-%llx", map.pid(),
                static_cast<unsigned long long>(v.start), static_cast<unsigned long long>(v.end));
  BATON_ASSIGN(Fd fd, open_file(link, O_RDONLY));
  pb::MemoryObjectKind kind = pb::MEMORY_OBJECT_SHARED;
  if (v.file != nullptr && v.file->kind == FileKind::kSysv) kind = pb::MEMORY_OBJECT_SYSV;
  if (v.is_nameless()) kind = pb::MEMORY_OBJECT_FILE_CONTENT;
  BATON_ASSIGN(SharedObject * object, shared_object(std::move(fd), kind, std::string(map.path(v))));
  by_maps_key_[key] = object;
  return object;
}

LinuxAttachment::FileKey LinuxAttachment::maps_key(const Vma& v) {
  const bool sysv = v.file != nullptr && v.file->kind == FileKind::kSysv;
  return {v.device | (sysv ? kSysvKey : 0), v.inode};
}

// What is mapped of a segment must be all of it: shmat(2) attaches no less.
Result<void> LinuxAttachment::check_segment(const MemoryMap& map, const Vma& v) const {
  if (!ipc_) {
    return make_error(Code::kUnsupported, "capture memory",
                      "process " + std::to_string(map.pid()) + ": System V shared memory of the node's own IPC namespace",
                      "Start the program with baton run, which gives it one of its own.");
  }
  for (const auto& segment : ipc_content_.segments) {
    if (segment.inode() != v.inode) continue;
    if (v.offset == 0 && v.end - v.start == (segment.size_bytes() + 4095) / 4096 * 4096) return {};
    return make_error(Code::kUnsupported, "capture memory",
                      "process " + std::to_string(map.pid()) + ": part of the System V segment " + std::to_string(segment.owner().id()));
  }
  return {};   // it came after the segments were read: the next capture finds it
}

Result<void> LinuxAttachment::read_ipc(bool same, bool stopped) {
  if (!std::exchange(ipc_entered_, true)) {
    BATON_ASSIGN(ipc_, state::IpcNamespace::enter(target_.root));
  }
  if (!ipc_ || (same && ipc_content_.empty())) return {};
  auto queues = std::move(ipc_content_.posix_queues);
  BATON_ASSIGN(ipc_content_, ipc_->read(stopped));
  if (!stopped) ipc_content_.posix_queues = std::move(queues);
  std::map<int, SharedObject*> now;
  for (auto& segment : ipc_content_.segments) {
    const int id = segment.owner().id();
    auto it = segments_.find(id);
    if (it == segments_.end()) {
      auto fd = ipc_->open_segment(id);
      if (!fd) continue;   // removed meanwhile
      BATON_ASSIGN(SharedObject * object, shared_object(std::move(*fd), pb::MEMORY_OBJECT_SYSV, "System V segment " + std::to_string(id)));
      now[id] = object;
    } else {
      now[id] = it->second;
    }
    segment.set_object(now[id]->object());
  }
  segments_ = std::move(now);
  std::erase_if(ipc_content_.segments, [](const pb::SysvSegment& segment) { return segment.object() == 0; });
  return {};
}

Result<void> LinuxAttachment::copy_shared(backend::PageSink& sink, backend::RoundStats& stats, bool same, bool stopped) {
  for (auto& [key, object] : shared_) object->seen = false;
  BATON_TRY(read_ipc(same, stopped));
  for (auto& [pid, p] : processes_) {
    const MemoryMap& map = p.space->map();
    for (const Vma& v : map.vmas()) {
      if (v.kind != pb::MAPPING_SHARED) continue;
      auto object = shared_mapping(map, v);
      if (!object) {
        // Beside a running program the mapping may be gone already.
        if (object.error().code == Code::kNotFound) continue;
        return std::move(object).error();
      }
      if ((*object)->kind() == pb::MEMORY_OBJECT_SYSV) BATON_TRY(check_segment(map, v));
      if ((*object)->seen) continue;
      (*object)->seen = true;
      BATON_ASSIGN(std::uint64_t copied, (*object)->copy(sink));
      stats.pages_copied += copied;
      stats.pages_written += copied;
    }
  }
  for (auto& [pid, p] : processes_) {
    const MemoryMap& map = p.space->map();
    for (const Vma& v : map.vmas()) {
      if (!v.is_nameless()) continue;
      auto object = shared_mapping(map, v);
      if (!object && object.error().code == Code::kNotFound) continue;
      BATON_TRY(object);
      if (std::exchange((*object)->seen, true)) continue;
      BATON_ASSIGN(std::uint64_t copied, (*object)->copy_written(sink));
      stats.pages_copied += copied;
      stats.pages_written += copied;
    }
  }
  for (auto& [id, object] : segments_) {   // those that nobody has attached
    if (std::exchange(object->seen, true)) continue;
    BATON_ASSIGN(std::uint64_t copied, object->copy(sink));
    stats.pages_copied += copied;
    stats.pages_written += copied;
  }
  return {};
}

// Objects that the last capture has not met are gone for good.
void LinuxAttachment::drop_unseen_objects() {
  std::erase_if(by_maps_key_, [](const auto& e) { return !e.second->seen; });
  std::erase_if(segments_, [](const auto& e) { return !e.second->seen; });
  std::erase_if(shared_, [](const auto& e) { return !e.second->seen; });
}

void LinuxAttachment::copy_again(std::span<const backend::PageRange> ranges) {
  for (const auto& r : ranges) {
    for (auto& [pid, p] : processes_) {
      if (p.space->object() == r.object) {
        p.space->copy_again({r.first_page, r.count});
        break;
      }
    }
    for (auto& [key, object] : shared_) {
      if (object->object() == r.object) object->copy_again({r.first_page, r.count});
    }
    for (auto& volume : volumes_) {
      // When its server has ended the next collect says so.
      if (volume.object == r.object) (void)volume.server->change_again(r.first_page, r.count).has_value();
    }
  }
}

std::uint64_t LinuxAttachment::pages_pending() const {
  std::uint64_t pending = 0;
  std::set<const AddressSpace*> done;
  for (const auto& [pid, p] : processes_) {
    if (done.insert(p.space.get()).second) pending += p.space->pages_pending();
  }
  for (const auto& [key, object] : shared_) {
    if (object->seen) pending += object->pages_pending();
  }
  for (const auto& volume : volumes_) pending += volume.server->pages_pending();
  return pending;
}

// --- what is proved unchanged ------------------------------------------------

Stillness LinuxAttachment::stillness(bool stopped) const {
  Stillness still{.stopped = stopped};
  if (!watch_ || !proven_) return still;
  auto now = watch_->read();
  const auto& then = proven_->counts;
  still.mappings = now.other == then.other && now.mapping == then.mapping;
  still.transfers = now.other == then.other && now.transfer == then.transfer && now.descriptor == then.descriptor;
  return still;
}

void LinuxAttachment::begin_watch() {
  proven_.reset();
  watch_.reset();
  if (target_.cgroup.empty() || forced_off("syscall-watch")) return;
  watch_from_ = steady_clock::now();
  calls_then_ = captures_watched_ = 0;
  frozen_proved_ = frozen_whole_ = {};
  auto watch = SyscallWatch::begin(target_.cgroup);
  if (watch) {
    watch_ = std::move(*watch);
  } else {
    spdlog::info("{}: every freeze reads everything: {}", target_.spec.name(), watch.error().message());
    watch_again_ = steady_clock::time_point::max();
  }
}

// A program that makes very many calls may pay more for being watched than its freezes save.
void LinuxAttachment::judge_watch(bool proved, std::chrono::nanoseconds frozen) {
  auto now = steady_clock::now();
  if (!watch_) {
    if (now > watch_again_) begin_watch();
    return;
  }
  auto& average = proved ? frozen_proved_ : frozen_whole_;
  average = average.count() == 0 ? frozen : average + (frozen - average) / 8;
  ++captures_watched_;
  if (now - watch_from_ < kJudgeWatchAfter) return;
  std::uint64_t calls = watch_->read().all();
  const double seconds = std::chrono::duration<double>(now - watch_from_).count();
  const double rate = static_cast<double>(calls - calls_then_) / seconds;
  const double costs = rate * SyscallWatch::kCallCostNs;
  const auto saved_each = frozen_proved_.count() == 0 ? 0 : std::max<std::int64_t>(0, (frozen_whole_ - frozen_proved_).count());
  const double saves = static_cast<double>(std::exchange(captures_watched_, 0)) / seconds * static_cast<double>(saved_each);
  calls_then_ = calls;
  watch_from_ = now;
  if (rate <= static_cast<double>(SyscallWatch::kFewCallsPerSecond) || costs <= saves) return;
  spdlog::info("{}: makes {:.0f} system calls per second: they are not watched for a while", target_.spec.name(), rate);
  watch_.reset();
  proven_.reset();
  watch_again_ = now + kWatchAgainAfter;
}

// --- rounds ------------------------------------------------------------------

Result<backend::RoundStats> LinuxAttachment::round(backend::PageSink& sink,
                                                   std::span<const backend::PageRange> again) {
  Result<backend::RoundStats> outcome = backend::RoundStats{};
  tracer_.run([&] { outcome = do_round(sink, again); });
  return outcome;
}

Result<backend::RoundStats> LinuxAttachment::do_round(backend::PageSink& sink,
                                                      std::span<const backend::PageRange> again) {
  if (kept_) return make_error(Code::kInvalid, "copy round", "the workload is frozen");
  backend::RoundStats stats;
  auto start = steady_clock::now();
  copy_again(again);
  BATON_TRY(collect_private(sink, nullptr, stats));
  BATON_TRY(fault_point("round.collected"));
  auto collected = steady_clock::now();
  BATON_TRY(copy_private(sink, stats));
  BATON_TRY(copy_shared(sink, stats, false, false));
  BATON_TRY(copy_volumes(sink, stats));
  for (auto& [pid, p] : processes_) p.space->refresh_flags();
  stats.scan = collected - start;
  stats.copy = steady_clock::now() - collected;
  stats.pages_pending = pages_pending();
  return stats;
}

Result<void> LinuxAttachment::thaw() {
  Result<void> outcome = {};
  tracer_.run([&] {
    release_network();
    if (kept_) outcome = kept_->release();
    kept_.reset();
  });
  return outcome;
}

Result<void> LinuxAttachment::destroy() {
  Result<void> outcome = {};
  tracer_.run([&] {
    if (!kept_) {
      outcome = make_error(Code::kInvalid, "destroy", "the workload is not frozen");
      return;
    }
    network_held_ = false;   // stays held: its sockets end without a word to their peers
    outcome = kept_->kill_all();
    kept_.reset();
  });
  return outcome;
}

}  // namespace baton::linux_backend
