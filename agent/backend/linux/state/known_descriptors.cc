// What of the descriptors need not be read again. The last reading has found what each is; since
// then SyscallWatch has noted which numbers were named by calls that move data (a transfer) and by
// calls that alter what a descriptor is. Of what no call has named only that is looked at which
// changes without one: time, and what arrives from outside.
//
// Two ways in which a description changes without its number being named: by another number of
// the same description or file (note_what_happened spreads it), and by a number that has come and
// gone since (strangers_: a FIFO or a file without a name, opened once more through /proc).
// Calls that make a second number of one description (dup, pidfd_getfd, a received descriptor)
// are of the kind `other`: then everything is read.
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bitset>
#include <cstdio>

#include "agent/backend/linux/state/descriptor_reader.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

using Inode = std::pair<dev_t, ino_t>;
Inode inode_of(const Found& f) { return {f.stat.st_dev, f.stat.st_ino}; }

// All anonymous files share one inode.
bool is_anonymous(const Found& f) { return f.target.starts_with("anon_inode:"); }

bool is_unix(const pb::OpenFile& file) { return file.kind() == pb::OPEN_FILE_SOCKET && file.socket().domain() == AF_UNIX; }

// The windows of /proc and /sys show other things under the same name; a lease may be broken by
// anybody.
bool is_always_read(const Found& f) {
  if (f.target.starts_with("/proc/") || f.target.starts_with("/sys/")) return true;
  auto locks = f.info.fields.equal_range("lock");
  return std::any_of(locks.first, locks.second, [](const auto& line) { return parse_lock(line.second).kind == LockLine::kLease; });
}

}  // namespace

void DescriptorReader::note_what_happened() {
  const SyscallWatch& notes = *known_->notes;
  const auto count = static_cast<std::size_t>(known_->state->open_files_size());
  since_.assign(count, Since::kNothing);
  places_.assign(count, -1);
  std::map<Inode, Since> inodes;
  std::bitset<SyscallWatch::kNumbers> ours;
  bool told_apart = true;
  for (const auto& f : known_->memory->found) {
    if (f.carried_by != 0) continue;
    ours.set(static_cast<std::uint32_t>(f.number) % SyscallWatch::kNumbers);
    told_apart = told_apart && static_cast<std::uint32_t>(f.number) < SyscallWatch::kNumbers - 64;
    // A close of any descriptor of a file ends its record locks.
    const bool unlocked = !known_->same_numbers && f.info.fields.contains("lock");
    const Since what = notes.altered(f.number) || unlocked || is_always_read(f) ? Since::kAltered
                       : notes.moved(f.number) ? Since::kMoved : Since::kNothing;
    since_[f.file] = std::max(since_[f.file], what);
    if (!is_anonymous(f)) {
      Since& of = inodes.try_emplace(inode_of(f), Since::kNothing).first->second;
      of = std::max(of, what);
    }
  }
  for (const auto& f : known_->memory->found) {
    if (f.carried_by != 0 || is_anonymous(f)) continue;
    const Since of_inode = inodes[inode_of(f)];
    const auto& file = known_->state->open_files(static_cast<int>(f.file));
    const bool position_alone = file.kind() == pb::OPEN_FILE_PATH && file.pipe() == 0;   // moves with its own description
    if (of_inode == Since::kAltered || !position_alone) since_[f.file] = std::max(since_[f.file], of_inode);
  }
  if (known_->same_numbers) return;
  strangers_ = !told_apart;
  for (std::uint32_t n = 0; n < SyscallWatch::kNumbers && !strangers_; ++n) {
    const int number = static_cast<int>(n);
    strangers_ = !ours[n] && (notes.moved(number) || notes.altered(number));
  }
}

std::vector<Found> DescriptorReader::take_known(const ProcessRef& process) {
  std::vector<Found> out;
  for (auto& f : known_->memory->found) {
    if (f.process.pid != process.pid || f.carried_by != 0) continue;
    f.before = static_cast<int>(f.file);
    out.push_back(std::move(f));
  }
  return out;
}

// Whether they still refer to each other as they did, so that at most what waits in some of them is
// other than it was: otherwise all of them are read.
Result<bool> DescriptorReader::are_unix_sockets_kept() {
  const pb::LinuxState& state = *known_->state;
  for (const auto& queue : state.unix_queues()) {
    for (const auto& packet : queue.full_packets()) {
      if (packet.files_size() != 0) return false;
    }
  }
  const bool policy = options_.spec->external_unix() == pb::EXTERNAL_UNIX_RECONNECT || options_.spec->external_unix() == pb::EXTERNAL_UNIX_CLOSE;
  for (int i = 0; i < state.open_files_size(); ++i) {
    if (!is_unix(state.open_files(i))) continue;
    const auto& socket = state.open_files(i).socket();
    if (policy && (socket.kind() == pb::SOCKET_UNIX_OUTSIDE || socket.kind() == pb::SOCKET_UNIX_LONELY)) return false;
    const Since since = since_[static_cast<std::size_t>(i)];
    if (since == Since::kNothing) continue;
    if (since == Since::kAltered || socket.kind() != pb::SOCKET_UNIX_PAIR || socket.pair() == 0) return false;
    pairs_moved_.insert(socket.pair());
  }
  for (auto& f : found_) {
    if (!S_ISSOCK(f.stat.st_mode)) continue;
    if (f.before < 0) {
      int domain = 0;
      socklen_t bytes = sizeof domain;
      if (!f.copy || ::getsockopt(f.copy.get(), SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0 || domain == AF_UNIX) return false;
      continue;
    }
    const auto& file = state.open_files(f.before);
    if (!is_unix(file)) continue;
    const auto& socket = file.socket();
    if (socket.pair() != 0 && pairs_moved_.contains(socket.pair())) {
      BATON_TRY(make_copy(f));
      BATON_ASSIGN(const bool plain, sockets_.load_queue_of_pair(f.copy.get(), socket.type(), f.stat.st_ino));
      if (!plain) return false;
    } else if (!socket.local().empty() || socket.kind() == pb::SOCKET_LISTENING) {   // others may reach it by its name
      BATON_TRY(make_copy(f));
      pollfd arrived{f.copy.get(), POLLIN, 0};
      if (::poll(&arrived, 1, 0) != 0) return false;
    }
  }
  return true;
}

Result<void> DescriptorReader::look_at_unix_sockets() {
  BATON_ASSIGN(unix_kept_, are_unix_sockets_kept());
  if (unix_kept_) return {};
  sockets_.queues.clear();
  sockets_.refused_queues.clear();
  for (auto& f : found_) {
    if (f.before >= 0 && is_unix(known_->state->open_files(f.before))) BATON_TRY(make_copy(f));
  }
  return {};
}

Result<void> DescriptorReader::read_info_again(Found& f) {
  BATON_ASSIGN(f.info, read_fdinfo(f.process.pid, f.number));
  f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
  return {};
}

Result<void> DescriptorReader::read_facts_again(Found& f) {
  const std::string path = "/proc/" + std::to_string(f.process.pid) + "/fd/" + std::to_string(f.number);
  if (::stat(path.c_str(), &f.stat) != 0) return errno_error("stat", path);
  return {};
}

// As the last reading described it, with what may be different now.
Result<void> DescriptorReader::place_known(Found& f, pb::OpenFile& file) {
  file.Swap(known_->state->mutable_open_files(f.before));
  judged_ = false;
  const bool moved = since_[static_cast<std::size_t>(f.before)] != Since::kNothing;
  std::string kind;
  switch (file.kind()) {
    case pb::OPEN_FILE_PATH:
      if (file.pipe() != 0) return keep_pipe(f, file);
      if (moved && (f.info.flags & O_PATH) == 0) {
        BATON_TRY(read_info_again(f));
        file.set_position(f.info.position);
      }
      return {};
    case pb::OPEN_FILE_MEMFD:
    case pb::OPEN_FILE_DELETED:
      if (moved || strangers_) {
        BATON_TRY(read_info_again(f));
        file.set_position(f.info.position);
        BATON_TRY(read_facts_again(f));
      }
      add_object(f, file, file.kind() == pb::OPEN_FILE_MEMFD);
      return {};
    case pb::OPEN_FILE_TIMERFD:
      if (!moved && file.timer_left_ns() == 0 && file.timer_interval_ns() == 0) {   // not armed, or it has come due for good
        f.kept = true;
        return {};
      }
      BATON_TRY(make_copy(f));
      BATON_TRY(read_info_again(f));
      return describe_anonymous(f, file, kind);
    case pb::OPEN_FILE_EVENTFD:
      if (!moved) return {};
      BATON_TRY(read_info_again(f));
      return describe_anonymous(f, file, kind);
    case pb::OPEN_FILE_INOTIFY: {
      BATON_TRY(make_copy(f));
      int waiting = 0;
      if (::ioctl(f.copy.get(), FIONREAD, &waiting) == 0 && waiting == 0) return {};
      return describe_anonymous(f, file, kind);
    }
    case pb::OPEN_FILE_EPOLL:
    case pb::OPEN_FILE_SIGNALFD:
    case pb::OPEN_FILE_PIDFD:
    case pb::OPEN_FILE_POSIX_QUEUE:
    case pb::OPEN_FILE_KEEPER_OUT:
    case pb::OPEN_FILE_KEEPER_ERR:
    case pb::OPEN_FILE_NULL:
      return {};
    case pb::OPEN_FILE_PIPE: return keep_pipe(f, file);
    case pb::OPEN_FILE_SOCKET: return keep_socket(f, file);
    default: break;
  }
  file.Clear();
  BATON_TRY(make_copy(f));
  BATON_TRY(read_info_again(f));
  return describe(f, file);
}

Result<void> DescriptorReader::keep_pipe(Found& f, pb::OpenFile& file) {
  if (auto placed = pipes_.find(inode_of(f)); placed != pipes_.end()) {
    file.set_pipe(placed->second);
    return {};
  }
  const std::uint32_t before = file.pipe();
  if (since_[static_cast<std::size_t>(f.before)] != Since::kNothing || strangers_) {
    BATON_TRY(make_copy(f));
    file.clear_pipe();
    return describe_pipe(f, file);
  }
  out_.add_pipes()->Swap(known_->state->mutable_pipes(static_cast<int>(before) - 1));
  const auto now = static_cast<std::uint32_t>(out_.pipes_size());
  pipes_[inode_of(f)] = now;
  file.set_pipe(now);
  return {};
}

Result<void> DescriptorReader::keep_socket(Found& f, pb::OpenFile& file) {
  auto& socket = *file.mutable_socket();
  const bool moved = since_[static_cast<std::size_t>(f.before)] != Since::kNothing;
  const bool ours_alone = socket.domain() == AF_NETLINK || socket.type() == SOCK_RAW;
  if (socket.domain() == AF_UNIX && unix_kept_) {
    if (pairs_moved_.contains(socket.pair())) {
      socket.clear_queue();
      std::string refused;
      sockets_.place_queue(f.stat.st_ino, socket, refused);
      if (!refused.empty()) refuse(f, "socket", refused);
    } else if (socket.queue() != 0) {
      out_.add_unix_queues()->Swap(known_->state->mutable_unix_queues(static_cast<int>(socket.queue()) - 1));
      socket.set_queue(static_cast<std::uint32_t>(out_.unix_queues_size()));
    }
    if (socket.pair() != 0) {
      auto [entry, added] = pairs_before_.try_emplace(socket.pair(), 0);
      if (added) {
        out_.add_unix_pairs()->Swap(known_->state->mutable_unix_pairs(static_cast<int>(socket.pair()) - 1));
        entry->second = static_cast<std::uint32_t>(out_.unix_pairs_size());
      }
      socket.set_pair(entry->second);
    }
    return {};
  }
  if (socket.domain() != AF_UNIX && socket.kind() == pb::SOCKET_LISTENING) return {};
  if (ours_alone && !moved) return {};
  pb::Socket before;
  before.Swap(&socket);
  BATON_TRY(make_copy(f));
  std::string refused, different;
  BATON_TRY(sockets_.read(f.copy.get(), f.stat.st_ino, file, ours_alone ? nullptr : &before, refused, different));
  if (!refused.empty()) refuse(f, "socket", refused);
  if (file.socket().unix_path_bound()) describe_socket_file(f, file);
  return {};
}

// False: it is to be read again.
Result<bool> DescriptorReader::keep_epoll(Found& f) {
  std::vector<pb::EpollWatch*> watches;
  for (auto& process : *known_->state->mutable_processes()) {
    if (process.pid() != f.process.ns_pid) continue;
    for (auto& watch : *process.mutable_epoll_watches()) {
      if (watch.epoll() == f.number) watches.push_back(&watch);
    }
  }
  const bool waited = since_[static_cast<std::size_t>(f.before)] != Since::kNothing;
  const bool disarmed = waited && std::any_of(watches.begin(), watches.end(), [](const auto* watch) { return (watch->events() & EPOLLONESHOT) != 0; });
  if (!known_->same_numbers || disarmed) {
    BATON_TRY(read_info_again(f));
    return false;
  }
  auto& process = *find_or_add(out_, f.process.ns_pid);
  for (auto* watch : watches) {
    auto& kept = *process.add_epoll_watches();
    kept.Swap(watch);
    if (kept.open_file() != 0) kept.set_open_file(static_cast<std::uint32_t>(places_[kept.open_file() - 1] + 1));
  }
  return true;
}

void DescriptorReader::remap_unix_sockets() {
  auto now = [&](std::uint32_t before) { return static_cast<std::uint32_t>(places_[before - 1] + 1); };   // a closed one was named
  for (const int place : places_) {
    if (place < 0 || !is_unix(out_.open_files(place))) continue;
    auto& socket = *out_.mutable_open_files(place)->mutable_socket();
    if (socket.waiting() != 0) socket.set_waiting(now(socket.waiting()));
    if (socket.target() != 0) socket.set_target(now(socket.target()));
  }
}

bool are_in_place(const DescriptorMemory& memory) {
  char path[64], target[PATH_MAX];
  return std::all_of(memory.found.begin(), memory.found.end(), [&](const Found& f) {
    if (f.carried_by != 0 || f.target.empty() || f.target[0] != '/' || f.target.starts_with("/memfd:")) return true;
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", f.process.pid, f.number);
    const ssize_t n = ::readlink(path, target, sizeof target);
    return n > 0 && f.target.compare(0, std::string::npos, target, static_cast<std::size_t>(n)) == 0;
  });
}

}  // namespace baton::linux_backend::state
