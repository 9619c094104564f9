// Open files that follow: each description that is the same as before stays, with its place
// in every process; changed ones are closed everywhere, made anew in the template and brought
// into place. What makes two descriptions the same is `key_of`; positions and flags are
// adjusted, timers are set at activation.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "agent/backend/linux/restore/batch.h"
#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

constexpr std::uint32_t kSettable = O_APPEND | O_DIRECT | O_NOATIME | O_NONBLOCK;   // O_ASYNC: see set_owner

std::uint64_t u(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }

bool has_position(const pb::OpenFile& file) {
  return (file.flags() & O_PATH) == 0 && (file.kind() == pb::OPEN_FILE_PATH || file.kind() == pb::OPEN_FILE_DELETED || file.kind() == pb::OPEN_FILE_MEMFD);
}
bool is_anonymous(const pb::OpenFile& file) {
  switch (file.kind()) {
    case pb::OPEN_FILE_PATH:
    case pb::OPEN_FILE_DELETED:
    case pb::OPEN_FILE_MEMFD:
    case pb::OPEN_FILE_PIPE:
    case pb::OPEN_FILE_SOCKET:
    case pb::OPEN_FILE_NULL: return false;
    default: return true;
  }
}
// 0: it stands for itself. Descriptions of one group stay or go together.
std::uint64_t group_of(const pb::OpenFile& file) {
  if (file.pipe() != 0) return file.pipe();
  if (file.socket().pair() != 0) return 1ull << 32 | file.socket().pair();
  return 0;
}

std::string key_of(const pb::LinuxState& state, const pb::OpenFile& file) {
  pb::OpenFile key = file;
  key.set_flags(file.flags() & ~kSettable);
  key.clear_size_bytes();
  std::string more;
  if (has_position(file)) key.clear_position();
  if (file.kind() == pb::OPEN_FILE_TIMERFD) {
    key.clear_timer_ticks();
    key.clear_timer_flags();
    key.clear_timer_left_ns();
    key.clear_timer_interval_ns();
  }
  if (file.pipe() != 0) {
    key.set_pipe(1);
    if (file.pipe() <= static_cast<std::uint32_t>(state.pipes_size())) more += state.pipes(static_cast<int>(file.pipe() - 1)).SerializeAsString();
  }
  if (file.has_socket()) {
    auto& socket = *key.mutable_socket();
    if (socket.pair() != 0) socket.set_pair(1);
    if (socket.queue() != 0 && socket.queue() <= static_cast<std::uint32_t>(state.unix_queues_size())) {
      more += state.unix_queues(static_cast<int>(socket.queue() - 1)).SerializeAsString();
      socket.set_queue(1);
    }
  }
  return key.SerializeAsString() + more;
}

using Place = std::pair<int, int>;   // PID, descriptor
std::vector<std::set<Place>> places_of(const pb::LinuxState& state) {
  std::vector<std::set<Place>> places(static_cast<std::size_t>(state.open_files_size()));
  for (const auto& process : state.processes()) {
    for (const auto& d : process.descriptors()) {
      if (d.open_file() < places.size()) places[d.open_file()].insert({process.pid(), d.number()});
    }
  }
  return places;
}

bool meet(const std::set<Place>& a, const std::set<Place>& b) {
  return std::any_of(a.begin(), a.end(), [&](const Place& place) { return b.count(place) != 0; });
}

// For each description of `now` the index of the same one in `old`, or -1.
std::vector<int> match(const pb::LinuxState& old, const pb::LinuxState& now, const std::vector<int>& old_numbers) {
  std::multimap<std::string, int> by_key;
  for (int i = 0; i < old.open_files_size(); ++i) {
    if (old_numbers[static_cast<std::size_t>(i)] >= 0) by_key.emplace(key_of(old, old.open_files(i)), i);
  }
  auto before = places_of(old), after = places_of(now);
  std::vector<int> same(static_cast<std::size_t>(now.open_files_size()), -1);
  for (bool by_place : {true, false}) {
    for (int j = 0; j < now.open_files_size(); ++j) {
      auto at = static_cast<std::size_t>(j);
      if (same[at] >= 0 || (!by_place && is_anonymous(now.open_files(j)))) continue;
      auto range = by_key.equal_range(key_of(now, now.open_files(j)));
      for (auto it = range.first; it != range.second; ++it) {
        if (by_place && !meet(before[static_cast<std::size_t>(it->second)], after[at])) continue;
        same[at] = it->second;
        by_key.erase(it);
        break;
      }
    }
  }
  // A group of which one end is new, or that comes from two, is made anew.
  std::map<std::uint64_t, std::uint64_t> groups;
  std::set<std::uint64_t> broken;
  for (int j = 0; j < now.open_files_size(); ++j) {
    std::uint64_t group = group_of(now.open_files(j));
    if (group == 0) continue;
    int i = same[static_cast<std::size_t>(j)];
    std::uint64_t from = i < 0 ? 0 : group_of(old.open_files(i));
    if (from == 0 || groups.emplace(group, from).first->second != from) broken.insert(group);
  }
  for (int j = 0; j < now.open_files_size(); ++j) {
    if (broken.count(group_of(now.open_files(j))) != 0) same[static_cast<std::size_t>(j)] = -1;
  }
  return same;
}

Result<void> adjust(Construction& c, const pb::OpenFile& old, const pb::OpenFile& now, int number) {
  if (has_position(now) && old.position() != now.position()) {
    bool seekable = now.kind() != pb::OPEN_FILE_PATH || S_ISREG(now.mode()) || S_ISDIR(now.mode()) || S_ISBLK(now.mode());
    if (seekable) BATON_TRY(c.maker().checked("seek", now.path(), SYS_lseek, {u(number), now.position(), SEEK_SET}));
  }
  if (((old.flags() ^ now.flags()) & kSettable) != 0) {
    BATON_TRY(c.maker().checked("F_SETFL", now.path(), SYS_fcntl, {u(number), F_SETFL, now.flags() & (kSettable | O_ASYNC)}));
  }
  return {};
}

// Closes what is not to stay where it is, in one process. A closed number takes the process's
// watches of it along.
Result<void> clear_places(const Construction& c, BuiltProcess& process, const std::map<int, PlacedDescriptor>& wanted) {
  Batch batch(process.leader(), "descriptors of process " + std::to_string(process.state->pid()));
  for (auto it = process.placed.begin(); it != process.placed.end();) {
    auto found = wanted.find(it->first);
    if (found != wanted.end() && found->second.made == it->second.made) {
      if (found->second.close_on_exec != it->second.close_on_exec) {
        BATON_TRY(batch.room());
        batch.add("F_SETFD", SYS_fcntl, {u(it->first), F_SETFD, found->second.close_on_exec ? FD_CLOEXEC : 0ull});
        it->second.close_on_exec = found->second.close_on_exec;
      }
      ++it;
      continue;
    }
    BATON_TRY(batch.room());
    // While both descriptions are still there, so that a number that is given again is not
    // taken for the old watch.
    for (auto watch = process.watches.begin(); watch != process.watches.end();) {
      const int stale = std::get<4>(*watch);
      const bool watched = stale < 0 ? std::get<1>(*watch) == it->first : stale == it->second.made;
      if (std::get<0>(*watch) != it->first && !watched) {
        ++watch;
        continue;
      }
      BATON_TRY(change_watch(c, process, *watch, EPOLL_CTL_DEL));   // one whose file has been closed is gone already
      watch = process.watches.erase(watch);
    }
    batch.add("close", SYS_close, {u(it->first)});
    it = process.placed.erase(it);
  }
  return batch.run();
}

Result<void> place_missing(Construction& c, BuiltProcess& process) {
  for (const auto& d : process.state->descriptors()) {
    int made = c.open_numbers[d.open_file()];
    if (made < 0 || process.placed.count(d.number()) != 0) continue;
    BATON_TRY(bring_descriptor(c, process.leader(), made, d.number(), d.close_on_exec()));
    process.placed[d.number()] = {made, d.close_on_exec()};
    BATON_TRY(set_owner(c, process, d));
  }
  return {};
}

std::string locks_of(const pb::ProcessState& process) {
  std::string all;
  for (const auto& d : process.descriptors()) {
    for (const auto& lock : d.posix_locks()) all += std::to_string(d.number()) + ":" + lock.SerializeAsString();
  }
  return all;
}

Result<void> drop_locks(BuiltProcess& process, const pb::ProcessState& old) {
  Batch batch(process.leader(), "locks of process " + std::to_string(old.pid()));
  struct flock all{};
  all.l_type = F_UNLCK;
  all.l_whence = SEEK_SET;
  for (const auto& d : old.descriptors()) {
    if (d.posix_locks().empty()) continue;
    BATON_TRY(batch.room());
    std::uint64_t at = batch.value(all);
    batch.add("unlock", SYS_fcntl, {u(d.number()), F_SETLK, at}, kMayFail);
  }
  return batch.run();
}

}  // namespace

Result<void> bring_descriptor(Construction& c, Puppet& puppet, int made, int to, bool close_on_exec) {
  std::string about = "descriptor " + std::to_string(to);
  BATON_ASSIGN(std::uint64_t low, puppet.checked("pidfd_open", about, SYS_pidfd_open, {u(c.maker().inside()), 0}));
  // Out of the way of the number that is asked for.
  std::uint64_t high = static_cast<std::uint64_t>(c.next_number) + 8;
  BATON_TRY(puppet.checked("dup3", about, SYS_dup3, {low, high, O_CLOEXEC}));
  BATON_TRY(puppet.call(SYS_close, {low}));
  BATON_ASSIGN(std::uint64_t got, puppet.checked("pidfd_getfd", about, SYS_pidfd_getfd, {high, u(made), 0}));
  Batch batch(puppet, about);
  if (got == u(to)) {
    batch.add("F_SETFD", SYS_fcntl, {got, F_SETFD, close_on_exec ? FD_CLOEXEC : 0ull});
  } else {
    batch.add("dup3", SYS_dup3, {got, u(to), close_on_exec ? O_CLOEXEC : 0ull});
    batch.add("close", SYS_close, {got});
  }
  batch.add("close", SYS_close, {high});
  return batch.run();
}

Result<void> follow_files(Construction& c, const pb::LinuxState& old) {
  const std::vector<int> old_numbers = std::move(c.open_numbers);
  auto same = match(old, c.state, old_numbers);
  c.open_numbers.assign(same.size(), -1);
  std::set<int> kept;
  std::vector<int> fresh;
  for (std::size_t j = 0; j < same.size(); ++j) {
    const auto& file = c.state.open_files(static_cast<int>(j));
    if (same[j] >= 0) {
      c.open_numbers[j] = old_numbers[static_cast<std::size_t>(same[j])];
      kept.insert(same[j]);
    } else if (!comes_at_activation(c, file)) {
      fresh.push_back(static_cast<int>(j));
    }
  }
  for (auto& [pid, process] : c.processes) {
    if (process.threads.empty()) continue;
    std::map<int, PlacedDescriptor> wanted;
    for (const auto& d : process.state->descriptors()) wanted[d.number()] = {c.open_numbers[d.open_file()], d.close_on_exec()};
    BATON_TRY(clear_places(c, process, wanted));
  }
  Batch closing(c.maker(), "template process");
  for (std::size_t i = 0; i < old_numbers.size(); ++i) {
    if (old_numbers[i] < 0 || kept.count(static_cast<int>(i)) != 0) continue;
    BATON_TRY(closing.room());
    closing.add("close", SYS_close, {u(old_numbers[i])});
    c.signalling.erase(old_numbers[i]);
    forget_number(c, old_numbers[i]);
  }
  BATON_TRY(closing.run());
  // Memory objects of this checkpoint, in their sizes.
  for (const auto& object : c.manifest->objects()) {
    auto found = c.objects.find(object.id());
    if (found == c.objects.end()) continue;
    std::uint64_t size = object.size_bytes();
    for (const auto& file : c.state.open_files()) {
      if (file.object() == object.id()) size = file.size_bytes();
    }
    if (size == found->second.size_bytes) continue;
    if (::ftruncate(found->second.ours.get(), static_cast<off_t>(size)) != 0) return errno_error("set size", object.name());
    found->second.size_bytes = size;
  }
  BATON_TRY(make_objects(c));
  if (!fresh.empty()) BATON_TRY(open_some(c, fresh));
  for (std::size_t j = 0; j < same.size(); ++j) {
    if (same[j] >= 0) BATON_TRY(adjust(c, old.open_files(same[j]), c.state.open_files(static_cast<int>(j)), c.open_numbers[j]));
  }
  for (int i = 0; i < c.state.processes_size(); ++i) {
    auto found = c.processes.find(c.state.processes(i).pid());
    if (found == c.processes.end() || found->second.threads.empty()) continue;
    bool locks = locks_of(old.processes(i)) != locks_of(c.state.processes(i));
    if (locks) BATON_TRY(drop_locks(found->second, old.processes(i)));
    BATON_TRY(place_missing(c, found->second));
    // Closing any descriptor of a file has dropped this process's locks of it.
    BATON_TRY(set_record_locks(c, found->second));
    BATON_TRY(set_watches(c, found->second));
  }
  return {};
}

Result<void> open_late_files(Construction& c) {
  std::vector<int> late;
  Batch listening(c.maker(), "listening sockets");
  for (int i = 0; i < c.state.open_files_size(); ++i) {
    const auto& file = c.state.open_files(i);
    int number = c.open_numbers[static_cast<std::size_t>(i)];
    if (number < 0) {
      late.push_back(i);
    } else if (file.kind() == pb::OPEN_FILE_TIMERFD) {
      BATON_TRY(set_timerfd(c, file, number));
    } else if (file.kind() == pb::OPEN_FILE_SOCKET && file.socket().kind() == pb::SOCKET_LISTENING) {
      BATON_TRY(listening.room());
      listening.add("listen", SYS_listen, {u(number), u(file.socket().backlog())});
    }
  }
  BATON_TRY(listening.run());
  if (late.empty()) return {};
  BATON_TRY(open_some(c, late));
  for (auto& [pid, process] : c.processes) {
    if (process.threads.empty()) continue;
    BATON_TRY(place_missing(c, process));
    BATON_TRY(set_record_locks(c, process));
    BATON_TRY(set_watches(c, process));
  }
  return {};
}

}  // namespace baton::restore
