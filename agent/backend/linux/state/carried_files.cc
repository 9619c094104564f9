// Descriptors on their way through unix sockets (SCM_RIGHTS), and what of a unix socket refers to
// other open files.
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>

#include "agent/backend/linux/state/descriptor_reader.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::size_t kMaxCarried = 4096;           // on their way through sockets

}  // namespace

// What waits in unix sockets, and the descriptors in it: of files that a process has too, or of
// more that are found here, sockets with queues of their own among them.
Result<void> DescriptorReader::find_carried() {
  for (std::size_t i = 0; i < found_.size(); ++i) {   // grows
    if (!S_ISSOCK(found_[i].stat.st_mode) || !found_[i].copy) continue;
    const ino_t inode = found_[i].stat.st_ino;
    int domain = 0;
    socklen_t bytes = sizeof domain;
    if (::getsockopt(found_[i].copy.get(), SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0 || domain != AF_UNIX) continue;
    BATON_TRY(sockets_.load_unix_queue(found_[i].copy.get(), inode));
    auto queue = sockets_.queues.find(inode);
    if (queue == sockets_.queues.end() || carried_.contains(inode)) continue;
    auto& packets = carried_[inode];
    const pid_t holder = found_[i].carried_by != 0 ? found_[i].carried_by : found_[i].process.pid;
    for (auto& packet : queue->second.packets) {
      auto& files = packets.emplace_back();
      for (Fd& file : packet.files) {
        BATON_ASSIGN(const std::size_t which, find_carried_file(std::move(file), holder));
        files.push_back(which);
      }
    }
  }
  return {};
}

// Its place in found_, which it is added to if no process has it.
Result<std::size_t> DescriptorReader::find_carried_file(Fd file, pid_t holder) {
  Found f;
  f.process = {::getpid(), 0};
  f.number = file.get();
  f.carried_by = holder;
  if (::fstat(file.get(), &f.stat) != 0) return errno_error("fstat", "a descriptor on its way");
  BATON_ASSIGN(f.info, read_fdinfo(f.process.pid, f.number));
  for (std::size_t i = 0; i < found_.size(); ++i) {
    if (found_[i].stat.st_ino == f.stat.st_ino && found_[i].stat.st_dev == f.stat.st_dev && same_as(found_[i], f)) return i;
  }
  if (++carried_files_ > kMaxCarried) return make_error(Code::kUnsupported, "capture", "more than " + std::to_string(kMaxCarried) + " descriptors are on their way through unix sockets");
  char target[PATH_MAX];
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(f.number)).c_str(), target, sizeof target);
  if (n < 0) return errno_error("readlink", "a descriptor on its way");
  f.target.assign(target, static_cast<std::size_t>(n));
  f.info_read_ns = read_clock(CLOCK_MONOTONIC).count();
  f.copy = std::move(file);
  if (S_ISSOCK(f.stat.st_mode)) sockets_.inside.insert(f.stat.st_ino);
  found_.push_back(std::move(f));
  return found_.size() - 1;
}

// A name by which a unix socket can be reached.
bool DescriptorReader::has_address(const pb::OpenFile& file) {
  return !file.socket().local().empty() && (!file.socket().unix_path_bound() || file.mode() != 0);
}

// What refers to other open files, now that all have their places.
void DescriptorReader::settle_unix() {
  std::map<ino_t, const Found*> sockets;
  for (const auto& f : found_) {
    if (S_ISSOCK(f.stat.st_mode)) sockets.emplace(f.stat.st_ino, &f);
  }
  for (const auto& [index, inode] : sockets_.placed_queues) {
    auto& queue = *out_.mutable_unix_queues(index);
    const auto& packets = carried_[inode];
    for (int i = 0; i < queue.full_packets_size(); ++i) {
      for (const std::size_t which : packets[static_cast<std::size_t>(i)]) queue.mutable_full_packets(i)->add_files(found_[which].file);
    }
  }
  for (const auto& [inode, f] : sockets) {
    auto& file = *out_.mutable_open_files(static_cast<int>(f->file));
    auto& socket = *file.mutable_socket();
    const bool waits = socket.kind() == pb::SOCKET_UNIX_PAIR && socket.pair() == 0;
    if (waits || socket.kind() == pb::SOCKET_UNIX_ONE_WAY) {
      const std::uint64_t other = waits ? sockets_.waits[inode].listener : sockets_.unix_facts[inode].peer;
      auto target = sockets.find(other);
      if (target == sockets.end()) continue;   // refused already, or a listener that was closed meanwhile
      if (!has_address(out_.open_files(static_cast<int>(target->second->file)))) {
        refuse(*f, "socket", "the unix socket that it is connected to cannot be reached by a name any more");
      }
      if (waits) socket.set_waiting(target->second->file + 1);
      else socket.set_target(target->second->file + 1);
    }
    const bool by_name = socket.kind() == pb::SOCKET_PLAIN || socket.kind() == pb::SOCKET_UNIX_ONE_WAY;
    if (socket.queue() != 0 && by_name && !has_address(file)) refuse(*f, "socket", "datagrams wait in a unix socket that cannot be reached by a name any more");
  }
}

}  // namespace baton::linux_backend::state
