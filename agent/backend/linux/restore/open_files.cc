// Open file descriptions: each is made once, in the template process, at a number above all
// that the programs use; every process of the build inherits them and puts them in place.
#include <dirent.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "agent/backend/linux/restore/construction.h"
#include "base/clock.h"

namespace baton::restore {
namespace {

constexpr std::uint64_t kSetTicks = 0x40085400;   // TFD_IOC_SET_TICKS (Linux 3.17)
constexpr int kMaxWatchNumber = 65536;
constexpr std::uint64_t kSecondText = 8192;   // in the area, behind a path
constexpr std::uint64_t kNotForOpen = O_CREAT | O_EXCL | O_TRUNC | O_CLOEXEC | O_ASYNC;
constexpr std::uint64_t kAtCwd = static_cast<std::uint64_t>(AT_FDCWD);

Error refuse(const std::string& text, const std::string& hint = {}) { return make_error(Code::kUnsupported, "build", text, hint); }

// A file of /proc/PID, which is there as soon as the process is.
bool is_of_process(const pb::OpenFile& file) {
  constexpr std::string_view kFolder = "/proc/";
  return file.kind() == pb::OPEN_FILE_PATH && file.path().rfind(kFolder, 0) == 0 && file.path().size() > kFolder.size() &&
         file.path()[kFolder.size()] >= '1' && file.path()[kFolder.size()] <= '9';
}

class Opener {
 public:
  explicit Opener(Construction& c) : c_(c), maker_(c.maker()), pipes_(static_cast<std::size_t>(c.state.pipes_size()), {-1, -1}) {}

  Result<void> some(const std::vector<int>& which) {
    c_.open_numbers.resize(static_cast<std::size_t>(c_.state.open_files_size()), -1);
    for (int index : which) {
      const auto& file = c_.state.open_files(index);
      auto low = open(index, file);
      if (!low) return std::move(low).error();
      BATON_ASSIGN(int number, keep_number(c_, *low, file.path()));
      if (file.kind() != pb::OPEN_FILE_PATH || (file.flags() & O_PATH) == 0) BATON_TRY(set_flags(file, number));
      if (!file.flock().empty()) {
        BATON_TRY(unless_held(maker_.checked("flock", file.path(), SYS_flock, {u(number), static_cast<std::uint64_t>(file.flock() == "w" ? 6 : 5)}), file.path()));
      }
      for (const auto& lock : file.record_locks()) BATON_TRY(set_lock(maker_, number, lock, F_OFD_SETLK, file.path()));
      c_.open_numbers[static_cast<std::size_t>(index)] = number;
    }
    // Ends that nobody has: closed, as they were.
    for (auto [reader, writer] : pipes_) {
      for (int end : {reader, writer}) BATON_TRY(close_kept(c_, end));
    }
    return settle_unix_sockets(c_, which, unix_ends_);
  }

  static Result<void> set_lock(Puppet& puppet, int number, const pb::RecordLock& lock, int command, const std::string& subject) {
    struct flock request{};
    request.l_type = lock.write() ? F_WRLCK : F_RDLCK;
    request.l_whence = SEEK_SET;
    request.l_start = static_cast<off_t>(lock.start());
    request.l_len = static_cast<off_t>(lock.bytes());
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&request, 1))));
    return unless_held(puppet.checked("lock", subject, SYS_fcntl, {u(number), u(command), at}), subject);
  }
  template <typename T>
  static Result<void> unless_held(const Result<T>& locked, const std::string& subject) {
    if (locked) return {};
    if (locked.error().sys_errno != EAGAIN && locked.error().sys_errno != EACCES) return locked.error();
    return make_error(Code::kConflict, "lock", subject + ": somebody holds a lock on it",
                      "Another program, or this one where it still is, if both nodes see the file.");
  }

  static std::uint64_t u(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }

 private:
  Result<int> checked(const char* what, const std::string& subject, long number, std::initializer_list<std::uint64_t> args) {
    BATON_ASSIGN(std::uint64_t value, maker_.checked(what, subject, number, args));
    return static_cast<int>(value);
  }

  Result<int> open_path(const std::string& path, std::uint64_t flags) {
    BATON_ASSIGN(std::uint64_t at, maker_.put(path));
    return checked("open", path, SYS_openat, {kAtCwd, at, flags | O_NOCTTY | O_CLOEXEC, 0});
  }

  Result<void> set_flags(const pb::OpenFile& file, int number) {
    constexpr std::uint32_t kSettable = O_APPEND | O_ASYNC | O_DIRECT | O_NOATIME | O_NONBLOCK;
    std::uint64_t wanted = file.flags() & kSettable;
    if (file.kind() != pb::OPEN_FILE_PIPE && file.kind() != pb::OPEN_FILE_PATH) wanted &= ~static_cast<std::uint64_t>(O_DIRECT);
    BATON_ASSIGN(std::int64_t now, maker_.call(SYS_fcntl, {u(number), F_GETFL}));
    if ((static_cast<std::uint64_t>(now) & kSettable) == wanted) return {};
    BATON_TRY(maker_.checked("F_SETFL", file.path(), SYS_fcntl, {u(number), F_SETFL, wanted}));
    return {};
  }

  Result<int> open(int index, const pb::OpenFile& file) {
    switch (file.kind()) {
      case pb::OPEN_FILE_PATH: return S_ISFIFO(file.mode()) && (file.flags() & O_PATH) == 0 ? open_pipe(file) : open_named(file);
      case pb::OPEN_FILE_DELETED:
      case pb::OPEN_FILE_MEMFD: return open_object(file);
      case pb::OPEN_FILE_PIPE: return open_pipe(file);
      case pb::OPEN_FILE_EPOLL: return checked("epoll_create1", "epoll", SYS_epoll_create1, {0});
      case pb::OPEN_FILE_EVENTFD: return open_eventfd(file);
      case pb::OPEN_FILE_TIMERFD: return open_timerfd(file);
      case pb::OPEN_FILE_SIGNALFD: {
        std::uint64_t mask = file.signal_mask();
        BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(&mask, 1))));
        return checked("signalfd4", "signalfd", SYS_signalfd4, {~0ull, at, 8, 0});
      }
      case pb::OPEN_FILE_SOCKET: return file.socket().domain() == AF_UNIX ? open_unix_socket(c_, index, unix_ends_) : open_socket(c_, file);
      case pb::OPEN_FILE_KEEPER_OUT: return checked("dup", "stdout", SYS_dup, {u(c_.keeper_out)});
      case pb::OPEN_FILE_KEEPER_ERR: return checked("dup", "stderr", SYS_dup, {u(c_.keeper_err)});
      case pb::OPEN_FILE_NULL: return open_path("/dev/null", file.flags() & O_ACCMODE);
      case pb::OPEN_FILE_INOTIFY: return open_inotify(file);
      case pb::OPEN_FILE_PIDFD: return open_pidfd(file);
      case pb::OPEN_FILE_TERMINAL: {
        auto built = file.terminal() == 0 ? c_.terminals.end() : c_.terminals.find(file.terminal() - 1);
        if (built == c_.terminals.end()) return make_error(Code::kCorrupt, "build", "a descriptor of an unknown terminal");
        if (file.terminal_master()) return checked("dup", file.path(), SYS_dup, {u(built->second.master)});
        return open_path("/dev/pts/" + std::to_string(built->first), file.flags() & (O_ACCMODE | O_NONBLOCK));
      }
      case pb::OPEN_FILE_POSIX_QUEUE: {
        if (file.path().size() < 2) return make_error(Code::kCorrupt, "build", "a message queue without a name");
        BATON_ASSIGN(std::uint64_t at, maker_.put(file.path().substr(1)));
        return checked("mq_open", file.path(), SYS_mq_open, {at, (file.flags() & (O_ACCMODE | O_NONBLOCK)) | O_CLOEXEC, 0, 0});
      }
      default: return refuse("an open file of unknown kind " + std::to_string(file.kind()));
    }
  }

  // Its process is there by now (comes_at_activation).
  Result<int> open_pidfd(const pb::OpenFile& file) {
    const std::string about = "process " + std::to_string(file.pidfd_pid());
    const std::uint64_t of_thread = file.flags() & O_EXCL;   // PIDFD_THREAD
    if (file.pidfd_pid() > 0) return checked("pidfd_open", about, SYS_pidfd_open, {u(file.pidfd_pid()), of_thread});
    // One that has been waited for: of a child that is at once.
    BATON_ASSIGN(Puppet child, maker_.clone(0, SIGCHLD, 0));
    BATON_ASSIGN(int low, checked("pidfd_open", "a child", SYS_pidfd_open, {u(child.inside()), of_thread}));
    const int inside = child.inside();
    BATON_TRY(child.end(0));
    BATON_TRY(maker_.checked("wait4", "a child", SYS_wait4, {u(inside), 0, __WALL, 0}));
    return low;
  }

  Result<int> open_named(const pb::OpenFile& file) {
    if (is_of_process(file)) {
      BATON_ASSIGN(int low, open_path(file.path(), file.flags() & ~kNotForOpen));
      if (file.position() != 0 && (file.flags() & O_PATH) == 0) BATON_TRY(maker_.call(SYS_lseek, {u(low), file.position(), SEEK_SET}));
      return low;
    }
    struct stat there{};
    if (in_volume(c_, file.path())) {
      there.st_mode = file.mode();   // its own file, whatever this node has there
    } else if (::stat(file.path().c_str(), &there) != 0) {
      Error error = errno_error("open", file.path());
      error.hint = "The program has it open; bring it to this node (--with-files).";
      return error;
    }
    if ((there.st_mode & S_IFMT) != (file.mode() & S_IFMT)) return refuse(file.path() + " is another kind of file here");
    BATON_ASSIGN(int low, open_path(file.path(), file.flags() & ~kNotForOpen));
    bool seekable = S_ISREG(file.mode()) || S_ISDIR(file.mode()) || S_ISBLK(file.mode());
    if (seekable && file.position() != 0 && (file.flags() & O_PATH) == 0) {
      BATON_TRY(maker_.checked("seek", file.path(), SYS_lseek, {u(low), file.position(), SEEK_SET}));
    }
    return low;
  }

  // Another description of what `number` refers to.
  Result<int> reopen(int number, std::uint64_t flags) { return open_path("/proc/self/fd/" + std::to_string(number), flags); }

  Result<int> open_object(const pb::OpenFile& file) {
    auto found = c_.objects.find(file.object());
    if (found == c_.objects.end()) return make_error(Code::kCorrupt, "build", file.path() + ": its memory object is missing");
    BATON_ASSIGN(int low, reopen(found->second.number, file.flags() & (O_ACCMODE | O_APPEND | O_DIRECT | O_NOATIME | O_SYNC)));
    if (file.position() != 0) BATON_TRY(maker_.checked("seek", file.path(), SYS_lseek, {u(low), file.position(), SEEK_SET}));
    return low;
  }

  Result<int> open_pipe(const pb::OpenFile& file) {
    if (file.pipe() == 0 || file.pipe() > pipes_.size()) return make_error(Code::kCorrupt, "build", "a pipe without content record");
    auto& ends = pipes_[file.pipe() - 1];
    if (ends.first < 0) BATON_TRY(make_pipe(file, ends));
    unsigned access = file.flags() & O_ACCMODE;
    return reopen(access == O_WRONLY ? ends.second : ends.first, access | (file.flags() & O_NONBLOCK));   // O_DIRECT by set_flags: open(2) refuses it
  }

  bool has_packets(const pb::OpenFile& file) const {
    const auto& all = c_.state.open_files();
    return c_.state.pipes(static_cast<int>(file.pipe() - 1)).packets_size() > 1 || std::any_of(all.begin(), all.end(), [&](const auto& end) {
      return end.pipe() == file.pipe() && (end.flags() & O_DIRECT) != 0 && (end.flags() & O_ACCMODE) != O_RDONLY;
    });
  }

  Result<void> make_pipe(const pb::OpenFile& file, std::pair<int, int>& ends) {
    const auto& pipe = c_.state.pipes(static_cast<int>(file.pipe() - 1));
    int first = -1, second = -1;
    if (file.kind() == pb::OPEN_FILE_PATH) {
      BATON_ASSIGN(first, open_path(file.path(), O_RDONLY | O_NONBLOCK));
      BATON_ASSIGN(second, open_path(file.path(), O_WRONLY | O_NONBLOCK));
    } else {
      BATON_TRY(maker_.checked("pipe2", "pipe", SYS_pipe2, {maker_.data(), static_cast<std::uint64_t>(has_packets(file) ? O_DIRECT | O_NONBLOCK : O_NONBLOCK)}));
      int pair[2];
      BATON_TRY(maker_.read(maker_.data(), std::as_writable_bytes(std::span(pair))));
      first = pair[0], second = pair[1];
    }
    BATON_ASSIGN(ends.first, keep_number(c_, first, "pipe"));
    BATON_ASSIGN(ends.second, keep_number(c_, second, "pipe"));
    if (pipe.capacity_bytes() != 0) {
      BATON_TRY(maker_.checked("F_SETPIPE_SZ", std::to_string(pipe.capacity_bytes()) + " bytes", SYS_fcntl, {u(ends.second), F_SETPIPE_SZ, pipe.capacity_bytes()}));
    }
    for (const auto& packet : pipe.packets()) {
      for (std::size_t done = 0; done < packet.size();) {
        std::size_t part = std::min<std::size_t>(packet.size() - done, kAreaDataBytes & ~4095ull);
        BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(packet).subspan(done, part))));
        BATON_ASSIGN(std::uint64_t written, maker_.checked("refill", "pipe", SYS_write, {u(ends.second), at, part}));
        done += written;
      }
    }
    return {};
  }

  Result<int> open_eventfd(const pb::OpenFile& file) {
    BATON_ASSIGN(int low, checked("eventfd2", "eventfd", SYS_eventfd2, {0, static_cast<std::uint64_t>((file.eventfd_semaphore() ? EFD_SEMAPHORE : 0) | EFD_NONBLOCK)}));
    std::uint64_t count = file.eventfd_count();
    if (count != 0) {
      BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(&count, 1))));
      BATON_TRY(maker_.checked("write", "eventfd", SYS_write, {u(low), at, 8}));
    }
    return low;
  }

  Result<int> open_timerfd(const pb::OpenFile& file) {
    BATON_ASSIGN(int low, checked("timerfd_create", "timerfd", SYS_timerfd_create, {u(file.timer_clock()), 0}));
    if (!c_.shadow) BATON_TRY(set_timerfd(c_, file, low));   // else: open_late_files
    return low;
  }

  // Watch numbers are given out one after the other: those in between are taken and given back.
  Result<int> open_inotify(const pb::OpenFile& file) {
    BATON_ASSIGN(int low, checked("inotify_init1", "inotify", SYS_inotify_init1, {0}));
    int next = 1;
    for (const auto& watch : file.inotify_watches()) {
      if (watch.number() > kMaxWatchNumber) return refuse("inotify watch number " + std::to_string(watch.number()));
      for (; next < watch.number(); ++next) {
        BATON_ASSIGN(std::uint64_t at, maker_.put(std::string("/")));
        BATON_ASSIGN(int got, checked("inotify_add_watch", "/", SYS_inotify_add_watch, {u(low), at, IN_IGNORED | IN_DELETE_SELF}));
        BATON_TRY(maker_.call(SYS_inotify_rm_watch, {u(low), u(got)}));
        drain_ = true;
      }
      BATON_ASSIGN(std::uint64_t at, maker_.put(watch.path()));
      BATON_TRY(checked("inotify_add_watch", watch.path(), SYS_inotify_add_watch, {u(low), at, watch.mask()}));
      next = watch.number() + 1;
    }
    if (drain_) {  // IN_IGNORED of those given back
      BATON_TRY(maker_.call(SYS_fcntl, {u(low), F_SETFL, O_NONBLOCK}));
      for (;;) {
        BATON_ASSIGN(std::int64_t n, maker_.call(SYS_read, {u(low), maker_.data(), 65536}));
        if (n <= 0) break;
      }
      BATON_TRY(maker_.call(SYS_fcntl, {u(low), F_SETFL, 0}));
      drain_ = false;
    }
    return low;
  }

  Construction& c_;
  Puppet& maker_;
  std::vector<std::pair<int, int>> pipes_;
  UnixEnds unix_ends_;
  bool drain_ = false;
};

}  // namespace

Result<Fd> fetch(pid_t pid, int number) {
  Fd process = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) return errno_error("pidfd_open", std::to_string(pid));
  int got = static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0));
  if (got < 0) return errno_error("pidfd_getfd", std::to_string(number));
  return Fd::adopt(got);
}

// A datagram that comes before its time would be taken by a program that does not run; watches
// of files would fill up; a kind that is not known here may be as particular.
static bool lies_in_volume(const Construction& c, const pb::OpenFile& file) {
  if (c.state.volumes().empty()) return false;
  if (file.kind() == pb::OPEN_FILE_PATH) return in_volume(c, file.path());
  if (file.kind() == pb::OPEN_FILE_INOTIFY) {
    return std::any_of(file.inotify_watches().begin(), file.inotify_watches().end(), [&](const auto& watch) { return in_volume(c, watch.path()); });
  }
  if (file.kind() == pb::OPEN_FILE_SOCKET && file.socket().domain() == AF_UNIX && file.socket().local().size() > sizeof(sa_family_t)) {
    const auto kind = file.socket().kind();
    return (kind == pb::SOCKET_LISTENING || kind == pb::SOCKET_PLAIN) && in_volume(c, file.socket().local().c_str() + sizeof(sa_family_t));
  }
  return false;
}

static bool comes_late_itself(const Construction& c, const pb::OpenFile& file) {
  if (file.kind() == pb::OPEN_FILE_PIDFD || is_of_process(file)) return true;   // once the process is there
  if (lies_in_volume(c, file)) return true;   // once that is mounted
  if (unix_socket_comes_late(c, file)) return true;
  if (!c.shadow) return false;
  if (file.kind() == pb::OPEN_FILE_INOTIFY) return true;
  if (file.kind() != pb::OPEN_FILE_SOCKET) return false;
  switch (file.socket().kind()) {
    case pb::SOCKET_LISTENING:
    case pb::SOCKET_RESET:
    case pb::SOCKET_UNIX_PAIR:
    case pb::SOCKET_UNIX_LONELY: return false;
    case pb::SOCKET_PLAIN: return file.socket().type() != SOCK_STREAM && !file.socket().local().empty();
    default: return true;
  }
}

bool comes_at_activation(const Construction& c, const pb::OpenFile& file) {
  // A connection by name comes after what it leads to.
  const pb::OpenFile* at = &file;
  for (int steps = 0; steps < c.state.open_files_size(); ++steps) {
    if (comes_late_itself(c, *at)) return true;
    const std::uint32_t to = at->socket().waiting() != 0 ? at->socket().waiting() : at->socket().target();
    if (to == 0 || to > static_cast<std::uint32_t>(c.state.open_files_size())) return false;
    at = &c.state.open_files(static_cast<int>(to - 1));
  }
  return false;
}

// Armed, or not, as the state says. What has come due meanwhile is counted here: setting a timer
// takes its count away, and one that comes due before the count is set again would be lost.
Result<void> set_timerfd(Construction& c, const pb::OpenFile& file, int number) {
  constexpr std::uint64_t kAtOnceNs = 100'000;
  const bool wall = file.timer_clock() == CLOCK_REALTIME || file.timer_clock() == CLOCK_REALTIME_ALARM;
  const bool boot = file.timer_clock() == CLOCK_BOOTTIME || file.timer_clock() == CLOCK_BOOTTIME_ALARM;
  const std::uint64_t interval = file.timer_interval_ns();
  std::uint64_t ticks = file.timer_ticks(), due = 0;
  if (file.timer_left_ns() != 0) {
    const std::uint64_t frozen = wall ? c.state.realtime_ns() : boot ? c.state.boottime_ns() : c.state.monotonic_ns();
    const auto monotonic = static_cast<std::uint64_t>(read_clock(CLOCK_MONOTONIC).count() + c.monotonic_shift_ns);
    const std::uint64_t now = wall ? static_cast<std::uint64_t>(read_clock(CLOCK_REALTIME).count()) : frozen + (monotonic - c.state.monotonic_ns());
    due = frozen + file.timer_left_ns();
    if (due <= now + kAtOnceNs) {
      const std::uint64_t passed = interval == 0 ? 1 : (now + kAtOnceNs - due) / interval + 1;
      ticks += passed;
      due = interval == 0 ? 0 : due + passed * interval;
    }
  }
  if (due != 0) {
    std::int64_t value[4] = {static_cast<std::int64_t>(interval / 1000000000), static_cast<std::int64_t>(interval % 1000000000),
                             static_cast<std::int64_t>(due / 1000000000), static_cast<std::int64_t>(due % 1000000000)};
    BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(value))));
    std::uint64_t cancel = file.timer_flags() & TFD_TIMER_CANCEL_ON_SET;
    BATON_TRY(c.maker().checked("timerfd_settime", "timerfd", SYS_timerfd_settime, {Opener::u(number), TFD_TIMER_ABSTIME | cancel, at, 0}));
  }
  if (ticks != 0) {
    BATON_ASSIGN(std::uint64_t at, c.maker().put(std::as_bytes(std::span(&ticks, 1))));
    BATON_TRY(c.maker().checked("TFD_IOC_SET_TICKS", "timerfd", SYS_ioctl, {Opener::u(number), kSetTicks, at}));
  }
  return {};
}

void forget_number(Construction& c, int number) { c.free_numbers.push_back(number); }

Result<void> close_kept(Construction& c, int number) {
  if (number < 0) return {};
  BATON_TRY(c.maker().call(SYS_close, {Opener::u(number)}));
  forget_number(c, number);
  return {};
}

Result<int> keep_number(Construction& c, int low, const std::string& subject) {
  int number = c.next_number;
  if (c.free_numbers.empty()) {
    ++c.next_number;
  } else {
    number = c.free_numbers.back();
    c.free_numbers.pop_back();
  }
  auto u = Opener::u;
  BATON_TRY(c.maker().checked("dup3", subject, SYS_dup3, {u(low), u(number), O_CLOEXEC}));
  BATON_TRY(c.maker().call(SYS_close, {u(low)}));
  return number;
}

Result<int> open_new(Puppet& maker, std::uint64_t path, const std::string& name) {
  BATON_ASSIGN(std::uint64_t got, maker.checked("make", name, SYS_openat, {kAtCwd, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600}));
  return static_cast<int>(got);
}

// Shared memory and the content of files without a name; filled later.
Result<void> make_objects(Construction& c) {
  std::map<std::uint64_t, const pb::OpenFile*> files;
  for (const auto& file : c.state.open_files()) {
    if (file.object() != 0) files.emplace(file.object(), &file);
  }
  std::map<std::uint64_t, const pb::NamedMemory*> named;
  for (const auto& memory : c.state.named_memory()) named.emplace(memory.object(), &memory);
  for (const auto& object : c.manifest->objects()) {
    if (object.kind() == pb::MEMORY_OBJECT_PRIVATE || object.kind() == pb::MEMORY_OBJECT_VOLUME || c.objects.count(object.id()) != 0) continue;
    if (object.kind() == pb::MEMORY_OBJECT_SYSV) return make_error(Code::kCorrupt, "build", object.name() + ": nothing says what it is");
    const pb::OpenFile* file = files.count(object.id()) != 0 ? files[object.id()] : nullptr;
    int low = -1;
    const pb::NamedMemory* memory = named.count(object.id()) != 0 ? named[object.id()] : nullptr;
    std::string temporary;
    if (memory != nullptr) {
      // A file that is made without a name never shows the one that it gets later; renamed, it does.
      temporary = memory->path().substr(0, memory->path().rfind('/') + 1) + ".baton-" + std::to_string(c.maker().pid()) + "-" +
                  std::to_string(object.id()) + "-" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count());
      BATON_ASSIGN(std::uint64_t at, c.maker().put(temporary));
      BATON_ASSIGN(low, open_new(c.maker(), at, temporary));
    } else if (file != nullptr && file->kind() == pb::OPEN_FILE_DELETED) {
      std::string folder = file->path().substr(0, file->path().rfind('/') + 1);
      for (const std::string& where : {folder, std::string("/tmp")}) {
        BATON_ASSIGN(std::uint64_t at, c.maker().put(where));
        BATON_ASSIGN(std::int64_t got, c.maker().call(SYS_openat, {kAtCwd, at, O_RDWR | O_TMPFILE | O_CLOEXEC, file->mode() & 07777}));
        low = static_cast<int>(got);
        if (low >= 0) break;
      }
      if (low < 0) return errno_error(-low, "make unnamed file", file->path());
    } else {
      std::string name = file != nullptr ? file->name() : "baton-shared";
      BATON_ASSIGN(std::uint64_t at, c.maker().put(name));
      bool seals = file != nullptr ? (file->memfd_seals() & F_SEAL_SEAL) == 0 : object.kind() == pb::MEMORY_OBJECT_FILE_CONTENT;
      BATON_ASSIGN(std::uint64_t got, c.maker().checked("memfd_create", name, SYS_memfd_create, {at, static_cast<std::uint64_t>(MFD_CLOEXEC | (seals || (file != nullptr && file->memfd_seals() != F_SEAL_SEAL) ? MFD_ALLOW_SEALING : 0))}));
      low = static_cast<int>(got);
    }
    std::uint64_t size = file != nullptr ? file->size_bytes() : object.size_bytes();
    SharedObject made;
    made.size_bytes = size;
    made.temporary = temporary;
    BATON_ASSIGN(made.number, keep_number(c, low, object.name()));
    BATON_ASSIGN(made.ours, fetch(c.maker().pid(), made.number));
    if (::ftruncate(made.ours.get(), static_cast<off_t>(size)) != 0) return errno_error("set size", object.name());
    if (file != nullptr && ::fchown(made.ours.get(), file->uid(), file->gid()) != 0) return errno_error("set owner", object.name());
    if (memory != nullptr && (::fchown(made.ours.get(), memory->uid(), memory->gid()) != 0 || ::fchmod(made.ours.get(), memory->mode()) != 0)) {
      return errno_error("set owner and mode", memory->path());
    }
    c.objects.emplace(object.id(), std::move(made));
  }
  return {};
}

// In the place of what has the name here: that was left by this workload when it ran on this node before.
Result<void> name_memory(Construction& c) {
  for (const auto& memory : c.state.named_memory()) {
    auto object = c.objects.find(memory.object());
    if (object == c.objects.end()) return make_error(Code::kCorrupt, "build", memory.path() + ": nothing is its content");
    std::string& temporary = object->second.temporary;
    if (temporary.empty()) continue;
    BATON_ASSIGN(std::uint64_t from, c.maker().put(temporary));
    BATON_ASSIGN(std::uint64_t to, c.maker().put(memory.path(), kSecondText));
    BATON_TRY(c.maker().checked("name", memory.path(), SYS_rename, {from, to}));
    temporary.clear();
  }
  return {};
}

Result<void> open_files(Construction& c) {
  Puppet& maker = c.maker();
  // What the template has from the keeper goes, except the pipes, which are taken along.
  BATON_ASSIGN(std::int64_t low, maker.call(SYS_close_range, {0, kKeeperOutWrite - 1, 0}));
  if (low < 0) return errno_error(static_cast<int>(-low), "close_range", "template process");
  BATON_TRY(maker.call(SYS_close_range, {kKeeperErrWrite + 1, static_cast<std::uint64_t>(c.first_number - 1), 0}));
  BATON_ASSIGN(c.keeper_out, keep_number(c, kKeeperOutWrite, "stdout"));
  BATON_ASSIGN(c.keeper_err, keep_number(c, kKeeperErrWrite, "stderr"));
  BATON_TRY(make_ipc(c));
  BATON_TRY(make_objects(c));
  BATON_TRY(make_terminals(c));
  std::vector<int> which;
  for (int i = 0; i < c.state.open_files_size(); ++i) {
    if (!comes_at_activation(c, c.state.open_files(i))) which.push_back(i);
  }
  return open_some(c, which);
}

Result<void> open_some(Construction& c, const std::vector<int>& which) {
  BATON_TRY(Opener(c).some(which));
  BATON_TRY(c.maker().call(SYS_close_range, {0, static_cast<std::uint64_t>(c.first_number - 1), 0}));
  return {};
}

Result<void> place_descriptors(Construction& c, BuiltProcess& process) {
  auto u = Opener::u;
  Puppet& puppet = process.leader();
  std::vector<PuppetRecord> calls;
  for (const auto& d : process.state->descriptors()) {
    if (d.open_file() >= c.open_numbers.size()) return make_error(Code::kCorrupt, "build", "a descriptor of an unknown open file");
    int made = c.open_numbers[d.open_file()];
    if (made < 0) continue;
    PuppetRecord r;
    r.number = SYS_dup3;
    r.args[0] = u(made);
    r.args[1] = u(d.number());
    r.args[2] = d.close_on_exec() ? O_CLOEXEC : 0;
    calls.push_back(r);
    process.placed[d.number()] = {made, d.close_on_exec()};
  }
  BATON_ASSIGN(std::size_t done, puppet.batch(calls));
  if (done > 0 && calls[done - 1].answer < 0) {
    return errno_error(static_cast<int>(-calls[done - 1].answer), "place descriptor", std::to_string(calls[done - 1].args[1]) + " of process " + std::to_string(process.state->pid()));
  }
  for (const auto& d : process.state->descriptors()) {
    if (process.placed.count(d.number()) != 0) BATON_TRY(set_owner(c, process, d));
  }
  return set_watches(c, process);
}

Result<void> set_record_locks(Construction& c, BuiltProcess& process) {
  for (const auto& d : process.state->descriptors()) {
    const auto& file = c.state.open_files(static_cast<int>(d.open_file()));
    if (c.open_numbers[d.open_file()] < 0) continue;   // open_late_files
    for (const auto& lock : d.posix_locks()) BATON_TRY(Opener::set_lock(process.leader(), d.number(), lock, F_SETLK, file.path()));
  }
  return {};
}

Result<void> set_owner(Construction& c, BuiltProcess& process, const pb::Descriptor& descriptor) {
  auto u = Opener::u;
  Puppet& puppet = process.leader();
  const auto& file = c.state.open_files(static_cast<int>(descriptor.open_file()));
  const int number = descriptor.number();
  if (file.owner() != 0) {
    std::int32_t owner[2] = {file.owner_type(), file.owner() < 0 ? -file.owner() : file.owner()};
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(owner))));
    BATON_TRY(puppet.call(SYS_fcntl, {u(number), F_SETOWN_EX, at}));
  }
  if (file.owner_signal() != 0) BATON_TRY(puppet.call(SYS_fcntl, {u(number), F_SETSIG, u(file.owner_signal())}));
  if (!file.lease().empty()) {
    const std::uint64_t kind = file.lease() == "w" ? F_WRLCK : F_RDLCK;
    BATON_TRY(puppet.checked("F_SETLEASE", file.path(), SYS_fcntl, {u(number), F_SETLEASE, kind}));
  }
  if ((file.flags() & O_ASYNC) == 0 || (file.flags() & O_PATH) != 0) return {};
  // The signal tells by which number this was set: the first that the program has.
  if (!c.signalling.insert(c.open_numbers[descriptor.open_file()]).second) return {};
  for (std::uint32_t flags : {file.flags() & ~static_cast<std::uint32_t>(O_ASYNC), file.flags()}) {
    BATON_TRY(puppet.checked("F_SETFL", "descriptor " + std::to_string(number), SYS_fcntl, {u(number), F_SETFL, flags}));
  }
  return {};
}

Result<std::int64_t> change_watch(const Construction& c, BuiltProcess& process, const PlacedWatch& watch, int operation) {
  auto u = Opener::u;
  const auto& [epoll, target, events, data, made] = watch;
  Puppet& puppet = process.leader();
  struct { std::uint32_t events; std::uint32_t data[2]; } event{events, {}};
  std::memcpy(event.data, &data, sizeof event.data);
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&event, 1))));
  const std::uint64_t wanted = u(operation), number = u(target);
  if (made < 0) return puppet.call(SYS_epoll_ctl, {u(epoll), wanted, number, at});
  // For a moment the number is what it was when the program said it.
  const auto holder = std::find_if(process.placed.begin(), process.placed.end(), [&, m = made](const auto& one) { return one.second.made == m; });
  if (holder == process.placed.end()) return -ENOENT;
  const std::string about = "descriptor " + std::to_string(target);
  const auto present = process.placed.find(target);
  std::uint64_t aside = 0;
  if (present != process.placed.end()) {
    BATON_ASSIGN(aside, puppet.checked("dup", about, SYS_fcntl, {number, F_DUPFD_CLOEXEC, u(c.first_number)}));
  }
  BATON_TRY(puppet.checked("dup3", about, SYS_dup3, {u(holder->first), number, O_CLOEXEC}));
  BATON_ASSIGN(std::int64_t answer, puppet.call(SYS_epoll_ctl, {u(epoll), wanted, number, at}));
  if (present != process.placed.end()) {
    BATON_TRY(puppet.checked("dup3", about, SYS_dup3, {aside, number, present->second.close_on_exec ? O_CLOEXEC : 0ull}));
    BATON_TRY(puppet.call(SYS_close, {aside}));
  } else {
    BATON_TRY(puppet.call(SYS_close, {number}));
  }
  return answer;
}

Result<void> set_watches(Construction& c, BuiltProcess& process) {
  std::set<PlacedWatch> wanted;
  for (const auto& watch : process.state->epoll_watches()) {
    int made = -1;
    if (watch.open_file() != 0) {
      if (watch.open_file() > c.open_numbers.size()) return make_error(Code::kCorrupt, "build", "an epoll entry of an unknown open file");
      made = c.open_numbers[watch.open_file() - 1];
      if (made < 0) continue;   // it comes later
    } else if (process.placed.count(watch.target()) == 0) {
      continue;
    }
    if (process.placed.count(watch.epoll()) != 0) wanted.insert({watch.epoll(), watch.target(), watch.events(), watch.data(), made});
  }
  for (const auto& watch : process.watches) {   // one whose file has been closed is gone already
    if (wanted.count(watch) == 0) BATON_TRY(change_watch(c, process, watch, EPOLL_CTL_DEL));
  }
  for (const auto& watch : wanted) {
    if (process.watches.count(watch) != 0) continue;
    BATON_ASSIGN(std::int64_t answer, change_watch(c, process, watch, EPOLL_CTL_ADD));
    if (answer < 0) return errno_error(static_cast<int>(-answer), "epoll_ctl", "descriptor " + std::to_string(std::get<1>(watch)));
  }
  process.watches = std::move(wanted);
  return {};
}

}  // namespace baton::restore
