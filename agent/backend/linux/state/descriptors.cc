// Descriptors: every open file description once, whoever shares it.
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "agent/backend/linux/restore/keeper_protocol.h"
#include "agent/backend/linux/state/descriptor_reader.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::size_t kMaxDescriptors = 1u << 20;   // of one process

}  // namespace

Result<void> DescriptorReader::all(const std::vector<ProcessRef>& processes) {
  BATON_TRY(find_keeper_pipes());
  processes_ = processes;
  sockets_.spec = options_.spec;
  sockets_.out = &out_;
  sockets_.guard = options_.guard;
  sockets_.stopped = !options_.running;
  sockets_.any_pid = processes.empty() ? 0 : processes.front().pid;
  if (known_ != nullptr) note_what_happened();
  for (const auto& process : processes) {
    auto listed = list(process);
    const bool ended = !listed && (listed.error().code == Code::kTraceeGone || listed.error().code == Code::kNotFound);
    if (!listed && !(options_.running && ended)) return listed;
  }
  for (const auto& f : found_) {
    if (S_ISSOCK(f.stat.st_mode)) sockets_.inside.insert(f.stat.st_ino);
  }
  if (known_ != nullptr) BATON_TRY(look_at_unix_sockets());
  for (auto& f : found_) {
    if (!S_ISSOCK(f.stat.st_mode) || options_.spec->tcp() != pb::TCP_ESTABLISHED) continue;
    if (f.before >= 0) BATON_TRY(make_copy(f));
    if (f.copy) sockets_.note_ends(f.copy.get(), f.stat.st_ino);
  }
  if (!options_.running && !unix_kept_) BATON_TRY(find_carried());
  find_terminals();
  for (auto& f : found_) BATON_TRY(take(f));
  for (auto& f : found_) {
    if (f.carried_by == 0 && out_.open_files(static_cast<int>(f.file)).kind() == pb::OPEN_FILE_EPOLL) BATON_TRY(take_epoll(f));
  }
  if (unix_kept_) remap_unix_sockets();
  else settle_unix();
  return look_at_timers_again();
}

std::shared_ptr<DescriptorMemory> DescriptorReader::memory() {
  auto memory = std::make_shared<DescriptorMemory>();
  memory->found = std::move(found_);
  for (auto& f : memory->found) {
    f.copy.reset();
    f.before = -1;
    f.kept = false;
  }
  memory->keeper_out = keeper_out_;
  memory->keeper_err = keeper_err_;
  return memory;
}

void DescriptorReader::judge(const Found& f, const char* verdict, std::string kind, std::string detail) {
  judged_ = true;
  const bool carried = f.carried_by != 0;
  options_.report({carried ? f.carried_by : f.process.pid,
                   carried ? std::string("a descriptor on its way through a unix socket") : "fd " + std::to_string(f.number),
                   std::move(kind), verdict, std::move(detail)});
}

Result<void> DescriptorReader::find_keeper_pipes() {
  if (options_.keeper == 0) return {};
  if (known_ != nullptr) {
    keeper_out_ = known_->memory->keeper_out;
    keeper_err_ = known_->memory->keeper_err;
    return {};
  }
  for (auto [number, inode] : {std::pair{restore::kKeeperOutRead, &keeper_out_}, std::pair{restore::kKeeperErrRead, &keeper_err_}}) {
    struct stat st {};
    std::string path = "/proc/" + std::to_string(options_.keeper) + "/fd/" + std::to_string(number);
    if (::stat(path.c_str(), &st) != 0) return errno_error("stat", path);
    *inode = st.st_ino;
  }
  return {};
}

// Those whose master the workload has.
void DescriptorReader::find_terminals() {
  std::map<std::uint32_t, std::pair<int, int>> ends;   // master, slave
  for (const auto& f : found_) {
    auto end = f.copy ? terminal_end(f.copy.get(), f.stat) : std::nullopt;
    if (end) (end->master ? ends.try_emplace(end->number, -1, -1).first->second.first : ends.try_emplace(end->number, -1, -1).first->second.second) = f.copy.get();
  }
  for (const auto& [number, pair] : ends) {
    if (pair.first < 0) continue;
    read_terminal(pair.first, pair.second, number, processes_, *out_.add_terminals(), terminals_[number]);
  }
}

Result<void> DescriptorReader::list(const ProcessRef& process) {
  std::vector<Found> before;
  if (known_ != nullptr) before = take_known(process);
  std::vector<int> numbers;
  if (known_ != nullptr && known_->same_numbers) {
    for (const auto& f : before) numbers.push_back(f.number);
  } else {
    std::string folder = "/proc/" + std::to_string(process.pid) + "/fd";
    BATON_ASSIGN(numbers, list_numbers(folder));
    if (numbers.size() > kMaxDescriptors) return make_error(Code::kUnsupported, "capture", folder + ": too many descriptors");
  }
  auto next = before.begin();   // in the same order
  for (int number : numbers) {
    while (next != before.end() && next->number < number) ++next;
    if (next != before.end() && next->number == number && may_keep(*next)) found_.push_back(std::move(*next));
    else BATON_TRY(find(process, number));
  }
  return {};
}

Result<int> DescriptorReader::pidfd(pid_t pid) {
  Fd& pidfd = pidfds_[pid];
  if (!pidfd) pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) return errno_error("pidfd_open", std::to_string(pid));
  return pidfd.get();
}

Result<void> DescriptorReader::find(const ProcessRef& process, int number) {
  Found f;
  f.process = process;
  f.number = number;
  std::string path = "/proc/" + std::to_string(process.pid) + "/fd/" + std::to_string(number);
  char target[PATH_MAX];
  ssize_t n = ::readlink(path.c_str(), target, sizeof target);
  auto info = read_fdinfo(process.pid, number);
  if (n < 0 || !info || ::stat(path.c_str(), &f.stat) != 0) {
    if (options_.running && errno != EACCES) return {};   // closed meanwhile
    return n < 0 ? errno_error("readlink", path) : errno_error("stat", path);
  }
  f.target.assign(target, static_cast<std::size_t>(n));
  f.info = std::move(*info);
  f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
  if ((f.info.flags & O_PATH) == 0) {
    auto copied = make_copy(f);
    if (!copied && options_.running && (copied.error().sys_errno == EBADF || copied.error().sys_errno == ENOENT)) return {};
    BATON_TRY(copied);
  }
  found_.push_back(std::move(f));
  return {};
}

Result<void> DescriptorReader::make_copy(Found& f) {
  if (f.copy || f.carried_by != 0 || (f.info.flags & O_PATH) != 0) return {};
  const std::string path = "/proc/" + std::to_string(f.process.pid) + "/fd/" + std::to_string(f.number);
  // A copy of a running program's file would keep its flock after its close, and, opened for
  // writing, forbid its execution (ETXTBSY).
  if (options_.running && S_ISREG(f.stat.st_mode) && f.target.rfind("/memfd:", 0) != 0) {
    f.copy = Fd::adopt(::open(path.c_str(), O_PATH | O_CLOEXEC));
  } else {
    BATON_ASSIGN(int from, pidfd(f.process.pid));
    f.copy = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_getfd, from, f.number, 0)));
  }
  if (!f.copy) return errno_error("pidfd_getfd", path);
  return {};
}

Result<std::vector<int>> DescriptorReader::list_numbers(const std::string& folder) {
  BATON_ASSIGN(Fd dir, open_file(folder, O_RDONLY | O_DIRECTORY));
  std::vector<int> numbers;
  alignas(8) char buffer[32768];
  for (;;) {
    long n = ::syscall(SYS_getdents64, dir.get(), buffer, sizeof buffer);
    if (n < 0) return errno_error("getdents64", folder);
    if (n == 0) break;
    for (long at = 0; at < n;) {
      unsigned short length = 0;
      std::memcpy(&length, buffer + at + 16, sizeof length);
      const char* name = buffer + at + 19;   // linux_dirent64: ino, off, reclen, type, name
      if (*name >= '0' && *name <= '9') numbers.push_back(std::atoi(name));
      at += length;
    }
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

// The same open file description as one that has been taken already?
bool DescriptorReader::same_as(const Found& a, const Found& b) const {
  // Close-on-exec is shown among the flags, and belongs to the descriptor.
  if (((a.info.flags ^ b.info.flags) & ~static_cast<std::uint32_t>(O_CLOEXEC)) != 0) return false;
  return ::syscall(SYS_kcmp, a.process.pid, b.process.pid, KCMP_FILE, a.number, b.number) == 0;
}

Result<void> DescriptorReader::take(Found& f) {
  auto range = by_inode_.equal_range({f.stat.st_dev, f.stat.st_ino});
  Found* known = nullptr;
  for (auto it = range.first; it != range.second && known == nullptr; ++it) {
    if (f.before >= 0 && it->second->before >= 0) continue;   // told apart by places_
    if (same_as(*it->second, f)) known = it->second;
  }
  if (f.before >= 0 && places_[static_cast<std::size_t>(f.before)] >= 0) {
    f.file = static_cast<std::uint32_t>(places_[static_cast<std::size_t>(f.before)]);
    f.kept = true;
    known = &f;
  } else if (known != nullptr) {
    f.file = known->file;
  } else {
    f.file = static_cast<std::uint32_t>(out_.open_files_size());
    auto& file = *out_.add_open_files();
    if (f.before >= 0) {
      places_[static_cast<std::size_t>(f.before)] = static_cast<int>(f.file);
      BATON_TRY(place_known(f, file));
    } else {
      BATON_TRY(describe(f, file));
    }
    by_inode_.emplace(std::pair{f.stat.st_dev, f.stat.st_ino}, &f);
  }
  if (f.carried_by != 0) {
    take_description_locks(f);
    return {};
  }
  auto& d = *find_or_add(out_, f.process.ns_pid)->add_descriptors();
  d.set_number(f.number);
  d.set_open_file(f.file);
  d.set_close_on_exec((f.info.flags & O_CLOEXEC) != 0);
  take_locks(f, d, known == nullptr);
  return {};
}

void DescriptorReader::take_locks(const Found& f, pb::Descriptor& d, bool first) {
  if (first && f.before < 0) take_description_locks(f);
  auto range = f.info.fields.equal_range("lock");
  for (auto it = range.first; it != range.second; ++it) {
    LockLine lock = parse_lock(it->second);
    if (lock.kind == LockLine::kPosix) *d.add_posix_locks() = record_of(lock);
    if (lock.kind == LockLine::kLease && !lock.settled) refuse(f, "file lease", "somebody waits for its end");
  }
}

pb::RecordLock DescriptorReader::record_of(const LockLine& lock) {
  pb::RecordLock record;
  record.set_write(lock.write);
  record.set_start(lock.start);
  record.set_bytes(lock.bytes);
  return record;
}

// Those that belong to the open file description.
void DescriptorReader::take_description_locks(const Found& f) {
  auto& file = *out_.mutable_open_files(static_cast<int>(f.file));
  auto range = f.info.fields.equal_range("lock");
  for (auto it = range.first; it != range.second; ++it) {
    LockLine lock = parse_lock(it->second);
    switch (lock.kind) {
      case LockLine::kFlock: file.set_flock(lock.write ? "w" : "r"); break;
      case LockLine::kOfd: *file.add_record_locks() = record_of(lock); break;
      case LockLine::kLease:
        if (lock.settled) file.set_lease(lock.write ? "w" : "r");
        break;
      case LockLine::kPosix: break;
      default: refuse(f, "file lock", "a lock of unknown kind");
    }
  }
}

// Once per epoll description, by the first process in whose table the numbers stand.
Result<void> DescriptorReader::take_epoll(Found& f) {
  if (!watched_.insert(f.file).second) return {};
  if (f.before >= 0) {
    BATON_ASSIGN(const bool kept, keep_epoll(f));
    if (kept) return {};
  }
  auto range = f.info.fields.equal_range("tfd");
  std::map<int, std::uint32_t> entries;   // so far, of each number: the kernel tells of them in this order too
  for (auto it = range.first; it != range.second; ++it) {
    int target = -1;
    unsigned events = 0;
    unsigned long long data = 0, position = 0, inode = 0, device = 0;
    if (std::sscanf(it->second.c_str(), "%d events: %x data: %llx pos:%llu ino:%llx sdev:%llx", &target, &events, &data, &position, &inode, &device) < 5) {
      refuse(f, "epoll", "an entry that cannot be read: " + it->second);
      continue;
    }
    const std::uint32_t before = entries[target]++;
    // The number may have been closed or given to another file since it was added.
    auto matches = [&](const Found& g) {
      if (g.process.pid != f.process.pid || g.stat.st_ino != inode) return false;
      struct { std::uint32_t epoll, target, offset; } slot{static_cast<std::uint32_t>(f.number), static_cast<std::uint32_t>(target), before};
      return ::syscall(SYS_kcmp, f.process.pid, f.process.pid, 7 /* KCMP_EPOLL_TFD, Linux 4.13 */, g.number, &slot) == 0;
    };
    const Found* holder = nullptr;
    for (const auto& g : found_) {
      if (matches(g) && (holder == nullptr || g.number == target)) holder = &g;
    }
    if (holder == nullptr) {
      if (!options_.running) refuse(f, "epoll", "it watches descriptor " + std::to_string(target) + ", which has been closed");
      continue;
    }
    auto& watch = *find_or_add(out_, f.process.ns_pid)->add_epoll_watches();
    watch.set_epoll(f.number);
    watch.set_target(target);
    if (holder->number != target) watch.set_open_file(holder->file + 1);
    watch.set_events(events);
    watch.set_data(data);
  }
  return {};
}

Result<std::shared_ptr<DescriptorMemory>> read_descriptors(const std::vector<ProcessRef>& processes, const DescriptorOptions& options,
                                                           const KnownDescriptors* known, pb::LinuxState& out,
                                                           std::vector<DescriptorObject>& objects) {
  DescriptorReader reader(options, known, out, objects);
  BATON_TRY(reader.all(processes));
  return reader.memory();
}

}  // namespace baton::linux_backend::state
