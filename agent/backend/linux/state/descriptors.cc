// Descriptors: every open file description once, whoever shares it. Everything is read from
// outside, through copies of the descriptors (pidfd_getfd(2)) and /proc; no injected calls.
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/statfs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/restore/keeper_protocol.h"
#include "agent/backend/linux/state/internal.h"
#include "agent/backend/linux/state/ipc.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {
constexpr long kMessageQueues = 0x19800202;   // MQUEUE_MAGIC of the kernel

constexpr std::size_t kMaxDescriptors = 1u << 20;   // of one process

struct Found {
  ProcessRef process;
  int number = -1;
  std::string target;          // of /proc/PID/fd/N
  struct stat stat {};
  FdInfo info;
  std::int64_t info_read_ns = 0;   // our CLOCK_MONOTONIC then
  Fd copy;                     // ours: the same description
  std::uint32_t file = 0;      // index in open_files
};

bool ends_with(const std::string& text, const char* tail) {
  std::size_t n = std::strlen(tail);
  return text.size() >= n && text.compare(text.size() - n, n, tail) == 0;
}

class Reader {
 public:
  Reader(const DescriptorOptions& options, pb::LinuxState& out, std::vector<DescriptorObject>& objects)
      : options_(options), out_(out), objects_(objects) {}

  Result<void> all(const std::vector<ProcessRef>& processes) {
    BATON_TRY(find_keeper_pipes());
    processes_ = processes;
    for (const auto& process : processes) {
      auto listed = list(process);
      const bool ended = !listed && (listed.error().code == Code::kTraceeGone || listed.error().code == Code::kNotFound);
      if (!listed && !(options_.running && ended)) return listed;
    }
    sockets_.spec = options_.spec;
    sockets_.out = &out_;
    sockets_.guard = options_.guard;
    sockets_.stopped = !options_.running;
    sockets_.any_pid = processes.empty() ? 0 : processes.front().pid;
    for (const auto& f : found_) {
      if (!S_ISSOCK(f.stat.st_mode)) continue;
      sockets_.inside.insert(f.stat.st_ino);
      if (f.copy && options_.spec->tcp() == pb::TCP_ESTABLISHED) sockets_.note_ends(f.copy.get(), f.stat.st_ino);
    }
    find_terminals();
    for (auto& f : found_) BATON_TRY(take(f));
    for (auto& f : found_) {
      if (out_.open_files(static_cast<int>(f.file)).kind() == pb::OPEN_FILE_EPOLL) BATON_TRY(take_epoll(f));
    }
    return look_at_timers_again();
  }

 private:
  void refuse(const Found& f, std::string kind, std::string detail) {
    judged_ = true;
    options_.report({f.process.pid, "fd " + std::to_string(f.number), std::move(kind), "refused", std::move(detail)});
  }
  void differs(const Found& f, std::string kind, std::string detail) {
    judged_ = true;
    options_.report({f.process.pid, "fd " + std::to_string(f.number), std::move(kind), "differs", std::move(detail)});
  }

  Result<void> find_keeper_pipes() {
    if (options_.keeper == 0) return {};
    for (auto [number, inode] : {std::pair{restore::kKeeperOutRead, &keeper_out_}, std::pair{restore::kKeeperErrRead, &keeper_err_}}) {
      struct stat st {};
      std::string path = "/proc/" + std::to_string(options_.keeper) + "/fd/" + std::to_string(number);
      if (::stat(path.c_str(), &st) != 0) return errno_error("stat", path);
      *inode = st.st_ino;
    }
    return {};
  }

  // Those whose master the workload has.
  void find_terminals() {
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

  Result<void> list(const ProcessRef& process) {
    std::string folder = "/proc/" + std::to_string(process.pid) + "/fd";
    BATON_ASSIGN(auto numbers, list_numbers(folder));
    if (numbers.size() > kMaxDescriptors) return make_error(Code::kUnsupported, "capture", folder + ": too many descriptors");
    Fd pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, process.pid, 0)));
    if (!pidfd) return errno_error("pidfd_open", std::to_string(process.pid));
    for (int number : numbers) {
      Found f;
      f.process = process;
      f.number = number;
      std::string path = folder + "/" + std::to_string(number);
      char target[PATH_MAX];
      ssize_t n = ::readlink(path.c_str(), target, sizeof target);
      auto info = read_fdinfo(process.pid, number);
      if (n < 0 || !info || ::stat(path.c_str(), &f.stat) != 0) {
        if (options_.running && errno != EACCES) continue;   // closed meanwhile
        return n < 0 ? errno_error("readlink", path) : errno_error("stat", path);
      }
      f.target.assign(target, static_cast<std::size_t>(n));
      f.info = std::move(*info);
      f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
      // A copy of a running program's file would keep its flock after its close, and, opened for
      // writing, forbid its execution (ETXTBSY).
      const bool harmful = options_.running && S_ISREG(f.stat.st_mode) && f.target.rfind("/memfd:", 0) != 0;
      if ((f.info.flags & O_PATH) == 0) {
        f.copy = Fd::adopt(harmful ? ::open(path.c_str(), O_PATH | O_CLOEXEC)
                                   : static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
        if (!f.copy) {
          if (options_.running && (errno == EBADF || errno == ENOENT)) continue;
          return errno_error("pidfd_getfd", path);
        }
      }
      found_.push_back(std::move(f));
    }
    return {};
  }

  static Result<std::vector<int>> list_numbers(const std::string& folder) {
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
  bool same_as(const Found& a, const Found& b) const {
    // Close-on-exec is shown among the flags, and belongs to the descriptor.
    if (((a.info.flags ^ b.info.flags) & ~static_cast<std::uint32_t>(O_CLOEXEC)) != 0) return false;
    return ::syscall(SYS_kcmp, a.process.pid, b.process.pid, KCMP_FILE, a.number, b.number) == 0;
  }

  Result<void> take(Found& f) {
    auto range = by_inode_.equal_range({f.stat.st_dev, f.stat.st_ino});
    Found* known = nullptr;
    for (auto it = range.first; it != range.second && known == nullptr; ++it) {
      if (same_as(*it->second, f)) known = it->second;
    }
    if (known != nullptr) {
      f.file = known->file;
    } else {
      f.file = static_cast<std::uint32_t>(out_.open_files_size());
      BATON_TRY(describe(f, *out_.add_open_files()));
      by_inode_.emplace(std::pair{f.stat.st_dev, f.stat.st_ino}, &f);
    }
    auto& d = *find_or_add(out_, f.process.ns_pid)->add_descriptors();
    d.set_number(f.number);
    d.set_open_file(f.file);
    d.set_close_on_exec((f.info.flags & O_CLOEXEC) != 0);
    take_locks(f, d, known == nullptr);
    return {};
  }

  void take_locks(const Found& f, pb::Descriptor& d, bool first) {
    auto& file = *out_.mutable_open_files(static_cast<int>(f.file));
    auto range = f.info.fields.equal_range("lock");
    for (auto it = range.first; it != range.second; ++it) {
      LockLine lock = parse_lock(it->second);
      pb::RecordLock record;
      record.set_write(lock.write);
      record.set_start(lock.start);
      record.set_bytes(lock.bytes);
      switch (lock.kind) {
        case LockLine::kFlock:
          if (first) file.set_flock(lock.write ? "w" : "r");
          break;
        case LockLine::kPosix:
          *d.add_posix_locks() = std::move(record);
          break;
        case LockLine::kOfd:
          if (first) *file.add_record_locks() = std::move(record);
          break;
        case LockLine::kLease:
          if (lock.settled) file.set_lease(lock.write ? "w" : "r");
          else refuse(f, "file lease", "somebody waits for its end");
          break;
        default:
          refuse(f, "file lock", "a lock of unknown kind");
      }
    }
  }

  Result<void> describe(Found& f, pb::OpenFile& file) {
    judged_ = false;
    file.set_flags(f.info.flags & ~static_cast<std::uint32_t>(O_CLOEXEC));
    file.set_mode(f.stat.st_mode);
    file.set_device(f.stat.st_dev);
    file.set_inode(f.stat.st_ino);
    file.set_position(f.info.position);
    if (f.copy) read_owner(f, file);
    std::string kind;
    if (f.target.rfind("anon_inode:", 0) == 0) {
      BATON_TRY(describe_anonymous(f, file, kind));
    } else if (f.target.rfind("pipe:", 0) == 0 || S_ISFIFO(f.stat.st_mode)) {
      kind = "pipe";
      BATON_TRY(describe_pipe(f, file));
    } else if (f.target.rfind("socket:", 0) == 0) {
      kind = "socket";
      file.set_kind(pb::OPEN_FILE_SOCKET);
      std::string refused, different;
      BATON_TRY(sockets_.read(f.copy.get(), f.stat.st_ino, file, refused, different));
      if (!refused.empty()) refuse(f, kind, refused);
      else if (!different.empty()) differs(f, kind, different);
      if (file.socket().unix_path_bound()) describe_socket_file(f, file);
    } else {
      kind = "file";
      describe_path(f, file);
    }
    if (options_.captured && !judged_) options_.captured({f.process.pid, "fd " + std::to_string(f.number), kind, "captured", f.target});
    return {};
  }

  // The name of a unix socket in the file system; mode 0: it has been unlinked.
  static void describe_socket_file(const Found& f, pb::OpenFile& file) {
    const char* name = file.socket().local().c_str() + sizeof(sa_family_t);
    if (name[0] != '/') return;
    struct stat st {};
    file.set_mode(0);
    if (::lstat(("/proc/" + std::to_string(f.process.pid) + "/root" + name).c_str(), &st) != 0 || !S_ISSOCK(st.st_mode)) return;
    file.set_mode(st.st_mode);
    file.set_uid(st.st_uid);
    file.set_gid(st.st_gid);
  }

  static void read_owner(const Found& f, pb::OpenFile& file) {
    f_owner_ex owner{};
    if (::fcntl(f.copy.get(), F_GETOWN_EX, &owner) == 0 && owner.pid != 0) {
      auto status = read_task_status(owner.pid);
      int inside = status && !status->ns_tids.empty() ? status->ns_tids.back() : owner.pid;
      file.set_owner(inside);
      file.set_owner_type(owner.type);
    }
    int signal = ::fcntl(f.copy.get(), F_GETSIG);
    if (signal > 0) file.set_owner_signal(signal);
  }

  Result<void> describe_anonymous(Found& f, pb::OpenFile& file, std::string& kind) {
    std::string name = f.target.substr(std::strlen("anon_inode:"));
    if (name.size() > 2 && name.front() == '[') name = name.substr(1, name.size() - 2);
    kind = name;
    if (name == "eventfd") {
      file.set_kind(pb::OPEN_FILE_EVENTFD);
      file.set_eventfd_count(std::strtoull(f.info.field("eventfd-count").c_str(), nullptr, 16));
      std::string semaphore = f.info.field("eventfd-semaphore");   // Linux 6.5
      if (semaphore.empty()) differs(f, kind, "this kernel does not tell whether it is a semaphore; taken as a counter");
      file.set_eventfd_semaphore(semaphore == "1");
    } else if (name == "timerfd") {
      file.set_kind(pb::OPEN_FILE_TIMERFD);
      file.set_timer_clock(std::atoi(f.info.field("clockid").c_str()));
      BATON_TRY(read_timer(f, file));
    } else if (name == "signalfd") {
      file.set_kind(pb::OPEN_FILE_SIGNALFD);
      file.set_signal_mask(std::strtoull(f.info.field("sigmask").c_str(), nullptr, 16));
    } else if (name == "eventpoll") {
      file.set_kind(pb::OPEN_FILE_EPOLL);
    } else if (name == "inotify") {
      file.set_kind(pb::OPEN_FILE_INOTIFY);
      int waiting = 0;
      std::string refused;
      if (::ioctl(f.copy.get(), FIONREAD, &waiting) == 0 && waiting > 0) {
        refused = "inotify events wait in it that only the program can take out; try again";
      } else {
        BATON_TRY(read_watches(f.process.pid, f.info, watched_paths(f.process.pid), file, refused));
      }
      if (!refused.empty()) refuse(f, kind, refused);
    } else if (name == "pidfd") {
      file.set_kind(pb::OPEN_FILE_PIDFD);
      describe_pidfd(f, file);
    } else {
      refuse(f, name, name + " is not supported");
    }
    return {};
  }

  static void fill_timer(const FdInfo& info, pb::OpenFile& file) {
    file.set_timer_ticks(std::strtoull(info.field("ticks").c_str(), nullptr, 10));
    file.set_timer_flags(std::strtoull(info.field("settime flags").c_str(), nullptr, 8));
    auto time = [](const std::string& text) {   // "(SECONDS, NANOSECONDS)"
      unsigned long long s = 0, ns = 0;
      std::sscanf(text.c_str(), "(%llu, %llu)", &s, &ns);
      return s * 1'000'000'000u + ns;
    };
    file.set_timer_left_ns(time(info.field("it_value")));
    file.set_timer_interval_ns(time(info.field("it_interval")));
  }

  Result<void> read_timer(Found& f, pb::OpenFile& file) {
    file.set_timer_clock(std::atoi(f.info.field("clockid").c_str()));
    fill_timer(f.info, file);
    // One that has come due says nothing of when next, until somebody asks it: then the kernel counts
    // what has passed meanwhile and lets it run on, as a read would, and nothing is taken out.
    if (file.timer_left_ns() == 0 && file.timer_interval_ns() != 0 && file.timer_ticks() != 0 && f.copy) {
      itimerspec now{};
      if (::timerfd_gettime(f.copy.get(), &now) != 0) return errno_error("timerfd_gettime", f.target);
      BATON_ASSIGN(f.info, read_fdinfo(f.process.pid, f.number));
      f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
      fill_timer(f.info, file);
    }
    if (file.timer_left_ns() != 0 && options_.clocks_read_ns != 0) {
      const std::int64_t since = f.info_read_ns - options_.clocks_read_ns;
      file.set_timer_left_ns(file.timer_left_ns() + static_cast<std::uint64_t>(std::max<std::int64_t>(since, 0)));
    }
    return {};
  }

  // A timer of which nothing was left, and that had not come due: it is not armed, or the interrupt
  // was on its way. By now it has arrived.
  Result<void> look_at_timers_again() {
    for (auto& f : found_) {
      auto& file = *out_.mutable_open_files(static_cast<int>(f.file));
      if (file.kind() != pb::OPEN_FILE_TIMERFD || file.timer_left_ns() != 0 || file.timer_ticks() != 0) continue;
      auto info = read_fdinfo(f.process.pid, f.number);
      if (!info) {
        if (options_.running) continue;
        return std::move(info).error();
      }
      f.info = std::move(*info);
      f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
      BATON_TRY(read_timer(f, file));
    }
    return {};
  }

  // Of a process, or a thread (PIDFD_THREAD), of the workload; or of one that has been waited for.
  void describe_pidfd(const Found& f, pb::OpenFile& file) {
    const pid_t pid = std::atoi(f.info.field("Pid").c_str());
    if (pid == -1) {
      file.set_pidfd_pid(-1);
      return;
    }
    auto status = pid > 0 ? read_task_status(pid) : make_error(Code::kNotFound, "", "");
    auto inside = [&](pid_t one) { return std::any_of(processes_.begin(), processes_.end(), [&](const auto& p) { return p.pid == one; }); };
    if (!status || (!inside(status->tgid) && !(status->state == 'Z' && inside(status->ppid)))) {
      refuse(f, "pidfd", "it stands for a process outside of the workload");
      return;
    }
    file.set_pidfd_pid(status->ns_tids.empty() ? pid : status->ns_tids.back());
  }

  std::vector<std::string> watched_paths(pid_t pid) const {
    std::vector<std::string> out;
    for (const auto& other : found_) {
      if (other.process.pid == pid && !other.target.empty() && other.target.front() == '/') out.push_back(other.target);
    }
    for (const char* link : {"cwd", "exe"}) {
      char target[PATH_MAX];
      const ssize_t n = ::readlink(("/proc/" + std::to_string(pid) + "/" + link).c_str(), target, sizeof target);
      if (n > 0) out.emplace_back(target, static_cast<std::size_t>(n));
    }
    return out;
  }

  bool is_standard(const Found& f) const { return options_.keeper == 0 && f.number <= 2; }

  // A protected program's stdio from outside becomes the keeper's after a restore.
  void stand_in(const Found& f, pb::OpenFile& file, const std::string& what) {
    if ((f.info.flags & O_ACCMODE) == O_RDONLY || f.number == 0) {
      file.set_kind(pb::OPEN_FILE_NULL);
      differs(f, what, what + " to the outside: /dev/null after a restore");
    } else {
      file.set_kind(f.number == 2 ? pb::OPEN_FILE_KEEPER_ERR : pb::OPEN_FILE_KEEPER_OUT);
      differs(f, what, what + " to the outside: goes to the workload's log after a restore");
    }
  }

  Result<void> describe_pipe(Found& f, pb::OpenFile& file) {
    if (f.stat.st_ino == keeper_out_ || f.stat.st_ino == keeper_err_) {
      file.set_kind(f.stat.st_ino == keeper_out_ ? pb::OPEN_FILE_KEEPER_OUT : pb::OPEN_FILE_KEEPER_ERR);
      return {};
    }
    bool named = f.target.rfind("pipe:", 0) != 0;
    file.set_kind(named ? pb::OPEN_FILE_PATH : pb::OPEN_FILE_PIPE);
    if (named) {
      if (ends_with(f.target, " (deleted)")) {
        refuse(f, "fifo", f.target + ": a FIFO that has no name any more");
        return {};
      }
      file.set_path(f.target);
      if ((f.info.flags & O_PATH) != 0) return {};
    }
    auto [entry, added] = pipes_.try_emplace({f.stat.st_dev, f.stat.st_ino}, 0);
    if (!added) {
      file.set_pipe(entry->second);
      return {};
    }
    // Who has the ends? Ours have been listed; an end that is neither here nor gone is outside.
    int reader = -1;
    bool packets = false, has_writer = false;
    for (const auto& other : found_) {
      if (other.stat.st_ino != f.stat.st_ino || other.stat.st_dev != f.stat.st_dev || !other.copy) continue;
      unsigned access = other.info.flags & O_ACCMODE;
      if (access != O_WRONLY && reader < 0) reader = other.copy.get();
      if (access != O_RDONLY) {
        has_writer = true;
        packets = packets || (!named && (other.info.flags & O_DIRECT) != 0);
      }
    }
    pollfd poll_entry{f.copy.get(), 0, 0};
    ::poll(&poll_entry, 1, 0);
    bool outside = (reader < 0 && (poll_entry.revents & POLLERR) == 0) || (!has_writer && (poll_entry.revents & POLLHUP) == 0);
    // Our own copies count as ends, but only of the kind that was found inside.
    if (outside) {
      if (is_standard(f)) {
        stand_in(f, file, "pipe");
        pipes_.erase(entry);
      } else {
        refuse(f, "pipe", "its other end is held by a program outside the workload (or, for a FIFO, nobody has opened it yet)");
      }
      return {};
    }
    auto& pipe = *out_.add_pipes();
    entry->second = static_cast<std::uint32_t>(out_.pipes_size());
    file.set_pipe(entry->second);
    if (reader >= 0) {
      auto content = read_pipe(reader, packets, pipe);
      if (!content && !options_.running) return content;
    } else if (int capacity = ::fcntl(f.copy.get(), F_GETPIPE_SZ); capacity > 0) {
      pipe.set_capacity_bytes(static_cast<std::uint32_t>(capacity));
    }
    return {};
  }

  void describe_path(Found& f, pb::OpenFile& file) {
    bool nameless = f.stat.st_nlink == 0 || ends_with(f.target, " (deleted)");
    if (f.target.rfind("/memfd:", 0) == 0) {
      if (f.target.rfind("/memfd:secretmem", 0) == 0 || f.target.rfind("/secretmem", 0) == 0) {
        refuse(f, "memfd_secret", "memfd_secret cannot be read by anybody");
        return;
      }
      file.set_kind(pb::OPEN_FILE_MEMFD);
      std::string name = f.target.substr(7);
      if (ends_with(name, " (deleted)")) name.resize(name.size() - 10);
      file.set_name(name);
      int seals = f.copy ? ::fcntl(f.copy.get(), F_GET_SEALS) : -1;
      file.set_memfd_seals(seals >= 0 ? static_cast<std::uint32_t>(seals) : 0u);
      add_object(f, file, true);
      return;
    }
    struct statfs where {};
    if (S_ISREG(f.stat.st_mode) && f.copy && ::fstatfs(f.copy.get(), &where) == 0 && where.f_type == kMessageQueues) {
      file.set_kind(pb::OPEN_FILE_POSIX_QUEUE);
      file.set_path(f.target);
      if (shares_our_ipc(f.process.pid)) {
        refuse(f, "POSIX message queue", f.target + ": it is in the node's own IPC namespace; a program that baton run starts has one of its own");
      } else if (nameless) {
        refuse(f, "POSIX message queue", f.target + ": it has no name any more");
      } else if (Fd again = Fd::adopt(::open(("/proc/self/fd/" + std::to_string(f.copy.get())).c_str(), O_RDONLY | O_CLOEXEC)); again && somebody_is_notified(again.get())) {
        refuse(f, "POSIX message queue", f.target + ": somebody has asked to be notified (mq_notify)");
      }
      return;
    }
    if (S_ISCHR(f.stat.st_mode)) return describe_character_device(f, file);
    if (S_ISBLK(f.stat.st_mode)) {
      refuse(f, "block device", f.target + ": block devices are not supported");
      return;
    }
    if (nameless && S_ISREG(f.stat.st_mode)) {
      if ((f.info.flags & O_PATH) != 0) {
        refuse(f, "file", f.target + ": O_PATH of a deleted file");
        return;
      }
      file.set_kind(pb::OPEN_FILE_DELETED);
      std::string path = f.target;
      if (ends_with(path, " (deleted)")) path.resize(path.size() - 10);
      file.set_path(path);
      add_object(f, file, false);
      return;
    }
    if (nameless) {
      refuse(f, "folder", f.target + ": a folder that has been removed");
      return;
    }
    if (f.target.empty() || f.target[0] != '/') {
      refuse(f, "descriptor", f.target + " is not supported");
      return;
    }
    if (f.copy && (f.info.flags & O_PATH) == 0 && is_named_memory(f.target, f.stat, where)) {
      file.set_kind(pb::OPEN_FILE_DELETED);   // its name goes along, see SharedObject
      file.set_path(f.target);
      add_object(f, file, false);
      return;
    }
    file.set_kind(pb::OPEN_FILE_PATH);
    file.set_path(f.target);
    file.set_size_bytes(static_cast<std::uint64_t>(f.stat.st_size));
    if (options_.proofs != nullptr && S_ISREG(f.stat.st_mode) && f.target.rfind("/proc/", 0) != 0 && f.target.rfind("/sys/", 0) != 0) {
      pb::FileProof proof;
      proof.set_path(f.target);
      proof.set_size_bytes(static_cast<std::uint64_t>(f.stat.st_size));
      proof.set_mode(f.stat.st_mode);
      proof.set_writable((f.info.flags & O_ACCMODE) != O_RDONLY);
      proof.set_mtime_ns(static_cast<std::uint64_t>(f.stat.st_mtim.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(f.stat.st_mtim.tv_nsec));
      options_.proofs->push_back(std::move(proof));
    }
  }

  void describe_character_device(Found& f, pb::OpenFile& file) {
    unsigned major_number = major(f.stat.st_rdev), minor_number = minor(f.stat.st_rdev);
    file.set_path(f.target);
    // null, zero, full, random, urandom: without state of their own.
    if (major_number == 1 && (minor_number == 3 || minor_number == 5 || minor_number == 7 || minor_number == 8 || minor_number == 9)) {
      file.set_kind(pb::OPEN_FILE_PATH);
      return;
    }
    if (auto end = terminal_end(f.copy ? f.copy.get() : -1, f.stat); end && terminals_.count(end->number) != 0) {
      file.set_kind(pb::OPEN_FILE_TERMINAL);
      file.set_terminal(end->number + 1);
      file.set_terminal_master(end->master);
      if (end->master && !terminals_[end->number].empty()) refuse(f, "terminal", terminals_[end->number]);
      return;
    }
    if (is_standard(f)) {
      stand_in(f, file, "terminal");
      return;
    }
    bool terminal = (major_number >= 136 && major_number <= 143) || major_number == 4 || major_number == 5;
    refuse(f, terminal ? "terminal" : "device",
           f.target + (terminal ? ": its other end is held by a program outside the workload" : ": this device is not supported"));
  }

  void add_object(const Found& f, pb::OpenFile& file, bool memfd) {
    file.set_size_bytes(static_cast<std::uint64_t>(f.stat.st_size));
    file.set_uid(f.stat.st_uid);
    file.set_gid(f.stat.st_gid);
    DescriptorObject object;
    object.device = f.stat.st_dev;
    object.inode = f.stat.st_ino;
    object.size_bytes = file.size_bytes();
    object.open_file = f.file;
    object.pid = f.process.pid;
    object.fd = f.number;
    object.memfd = memfd;
    object.name = memfd ? "memfd:" + file.name() : file.path();
    objects_.push_back(std::move(object));
  }

  // Once per epoll description, by the first process in whose table the numbers stand.
  Result<void> take_epoll(Found& f) {
    if (!watched_.insert(f.file).second) return {};
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

  const DescriptorOptions& options_;
  pb::LinuxState& out_;
  std::vector<DescriptorObject>& objects_;
  std::vector<ProcessRef> processes_;
  std::vector<Found> found_;
  std::multimap<std::pair<dev_t, ino_t>, Found*> by_inode_;
  std::map<std::pair<dev_t, ino_t>, std::uint32_t> pipes_;
  std::set<std::uint32_t> watched_;
  std::map<std::uint32_t, std::string> terminals_;   // by number: why it is refused, or empty
  SocketReader sockets_;
  ino_t keeper_out_ = 0, keeper_err_ = 0;
  bool judged_ = false;        // the description under way has a verdict other than captured
};

}  // namespace

Result<void> read_descriptors(const std::vector<ProcessRef>& processes, const DescriptorOptions& options,
                              pb::LinuxState& out, std::vector<DescriptorObject>& objects) {
  return Reader(options, out, objects).all(processes);
}

}  // namespace baton::linux_backend::state
