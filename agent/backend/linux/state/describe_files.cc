// What an open file description is: anonymous ones by their fdinfo, the others by what /proc says
// they refer to. What cannot be taken along is refused here, by name.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "agent/backend/linux/state/descriptor_reader.h"
#include "agent/backend/linux/state/ipc.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

constexpr long kMessageQueues = 0x19800202;   // MQUEUE_MAGIC of the kernel

bool ends_with(const std::string& text, const char* tail) {
  std::size_t n = std::strlen(tail);
  return text.size() >= n && text.compare(text.size() - n, n, tail) == 0;
}

}  // namespace

Result<void> DescriptorReader::describe(Found& f, pb::OpenFile& file) {
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
    if (is_standard(f)) {
      BATON_TRY(sockets_.load_unix());
      if (sockets_.leads_outside(f.stat.st_ino)) {
        stand_in(f, file, "socket");
        return {};
      }
    }
    file.set_kind(pb::OPEN_FILE_SOCKET);
    std::string refused, different;
    BATON_TRY(sockets_.read(f.copy.get(), f.stat.st_ino, file, nullptr, refused, different));
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

// The name of a unix socket in the file system; mode 0: it has been unlinked, or is not where a
// relative name would lead now.
void DescriptorReader::describe_socket_file(const Found& f, pb::OpenFile& file) {
  const std::string name(file.socket().local().c_str() + sizeof(sa_family_t));
  const std::string process = "/proc/" + std::to_string(f.process.pid);
  struct stat st {};
  file.set_mode(0);
  if (::lstat((name[0] == '/' ? process + "/root" + name : process + "/cwd/" + name).c_str(), &st) != 0 || !S_ISSOCK(st.st_mode)) return;
  file.set_mode(st.st_mode);
  file.set_uid(st.st_uid);
  file.set_gid(st.st_gid);
}

void DescriptorReader::read_owner(const Found& f, pb::OpenFile& file) {
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

Result<void> DescriptorReader::describe_anonymous(Found& f, pb::OpenFile& file, std::string& kind) {
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
    if (f.carried_by != 0) refuse(f, kind, "nobody has it open, so nobody can tell what it watches");
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

void DescriptorReader::fill_timer(const FdInfo& info, pb::OpenFile& file) {
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

Result<void> DescriptorReader::read_timer(Found& f, pb::OpenFile& file) {
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
Result<void> DescriptorReader::look_at_timers_again() {
  for (auto& f : found_) {
    auto& file = *out_.mutable_open_files(static_cast<int>(f.file));
    if (f.kept || file.kind() != pb::OPEN_FILE_TIMERFD || file.timer_left_ns() != 0 || file.timer_ticks() != 0) continue;
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
void DescriptorReader::describe_pidfd(const Found& f, pb::OpenFile& file) {
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

std::vector<std::string> DescriptorReader::watched_paths(pid_t pid) const {
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

// A protected program's stdio from outside becomes the keeper's after a restore.
void DescriptorReader::stand_in(const Found& f, pb::OpenFile& file, const std::string& what) {
  if ((f.info.flags & O_ACCMODE) == O_RDONLY || f.number == 0) {
    file.set_kind(pb::OPEN_FILE_NULL);
    differs(f, what, what + " to the outside: /dev/null after a restore");
  } else {
    file.set_kind(f.number == 2 ? pb::OPEN_FILE_KEEPER_ERR : pb::OPEN_FILE_KEEPER_OUT);
    differs(f, what, what + " to the outside: goes to the workload's log after a restore");
  }
}

Result<void> DescriptorReader::describe_pipe(Found& f, pb::OpenFile& file) {
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
  for (auto& other : found_) {
    if (other.stat.st_ino == f.stat.st_ino && other.stat.st_dev == f.stat.st_dev) BATON_TRY(make_copy(other));
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

void DescriptorReader::describe_path(Found& f, pb::OpenFile& file) {
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

void DescriptorReader::describe_character_device(Found& f, pb::OpenFile& file) {
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

void DescriptorReader::add_object(const Found& f, pb::OpenFile& file, bool memfd) {
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
  if (f.carried_by != 0) {   // nobody else has it for us until it is read
    object.held = std::make_shared<Fd>(Fd::adopt(::fcntl(f.copy.get(), F_DUPFD_CLOEXEC, 0)));
    object.fd = object.held->get();
  }
  object.memfd = memfd;
  object.name = memfd ? "memfd:" + file.name() : file.path();
  objects_.push_back(std::move(object));
}

}  // namespace baton::linux_backend::state
