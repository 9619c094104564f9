// Unix sockets of a checkpoint, made in the template process, in two steps: each by itself; then,
// once every open file is there, what leads from one to the other: what waits in queues,
// descriptors on their way included, connections by name, connections that wait to be accepted.
//
// Names that no file has (a socket that was accepted has its listener's; a sender may be gone)
// are given in a folder that is the whole world of a process made for it. A connection to a
// program outside is made by a process with the user of the one that had it, and found closed
// where nobody answers.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>

#include "agent/backend/linux/restore/socket_calls.h"

namespace baton::restore {
namespace {

constexpr std::size_t kHeadBytes = 4096;                     // of a message in the driver's area, before its data
constexpr std::size_t kMaxPart = kAreaDataBytes - kHeadBytes;
constexpr int kMaxFilesOfPacket = 253;                       // SCM_MAX_FD
constexpr int kRoomPerPacket = 1024;                         // what the kernel counts beside the bytes, about

// Outlives no call: a child of the template that shares its descriptors.
class Helper {
 public:
  static Result<Helper> begin(Puppet& maker) {
    BATON_ASSIGN(Puppet puppet, maker.clone(CLONE_FILES, SIGCHLD, 0));
    return Helper(maker, std::move(puppet));
  }
  Result<void> end() {
    const int inside = puppet_.inside();
    BATON_TRY(puppet_.end(0));
    BATON_TRY(maker_->checked("wait4", "a child", SYS_wait4, {as_argument(inside), 0, __WALL, 0}));
    return {};
  }
  Puppet& puppet() { return puppet_; }

 private:
  Helper(Puppet& maker, Puppet puppet) : maker_(&maker), puppet_(std::move(puppet)) {}
  Puppet* maker_;
  Puppet puppet_;
};

bool is_relative(const std::string& address) { return address.size() > sizeof(sa_family_t) && address[sizeof(sa_family_t)] != 0 && address[sizeof(sa_family_t)] != '/'; }

// The first process that has the file; null: it is on its way only.
const pb::ProcessState* holder_of(const pb::LinuxState& state, int index) {
  for (const auto& process : state.processes()) {
    for (const auto& d : process.descriptors()) {
      if (static_cast<int>(d.open_file()) == index) return &process;
    }
  }
  return nullptr;
}

// As the checkpoint has it.
Result<void> check_name(const std::string& name) {
  if (name.size() <= sizeof(sockaddr_un)) return {};
  return make_error(Code::kCorrupt, "build", "a unix socket's name of " + std::to_string(name.size()) + " bytes");
}

Result<void> bind_in(Puppet& puppet, std::uint64_t fd, const std::string& name) {
  BATON_TRY(check_name(name));
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(name))));
  BATON_TRY(puppet.checked("bind", describe_address(name), SYS_bind, {fd, at, name.size()}));
  return {};
}

// Binds under names whose files are of no matter: `work` runs in a world of its own.
template <typename Work>
auto in_a_world(Puppet& maker, const Work& work) -> decltype(work(maker)) {
  BATON_ASSIGN(Helper helper, Helper::begin(maker));
  Puppet& puppet = helper.puppet();
  const std::string world = "/tmp/.baton-names-" + std::to_string(maker.pid()) + "-" + std::to_string(puppet.inside());
  auto done = [&]() -> decltype(work(maker)) {
    BATON_ASSIGN(std::uint64_t root, puppet.put(world));
    BATON_TRY(puppet.checked("mkdir", world, SYS_mkdir, {root, 0700}));
    BATON_TRY(puppet.checked("chroot", world, SYS_chroot, {root}));
    BATON_ASSIGN(std::uint64_t top, puppet.put(std::string("/")));
    BATON_TRY(puppet.checked("chdir", world, SYS_chdir, {top}));
    return work(puppet);
  }();
  BATON_TRY(helper.end());
  std::error_code ignored;
  std::filesystem::remove_all(world, ignored);
  return done;
}

Result<void> make_folders(Puppet& puppet, const std::string& name) {
  BATON_TRY(check_name(name));
  if (name.size() <= sizeof(sa_family_t) || name[sizeof(sa_family_t)] == 0) return {};
  const std::string path = name.substr(sizeof(sa_family_t)).c_str();
  for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
    BATON_ASSIGN(std::uint64_t folder, puppet.put(path.substr(0, at)));
    BATON_TRY(puppet.call(SYS_mkdir, {folder, 0700}));
  }
  return {};
}

class UnixMaker : SocketCalls {
 public:
  UnixMaker(Construction& c, int index) : SocketCalls(c, c.state.open_files(index).socket()), index_(index), file_(c.state.open_files(index)) {}

  Result<int> make(UnixEnds& ends) {
    switch (socket_.kind()) {
      case pb::SOCKET_UNIX_PAIR:
        if (socket_.waiting() != 0) return unconnected();
        if (socket_.pair() == 0) return make_error(Code::kCorrupt, "build", "a unix socket without its pair");
        return from_pair(ends);
      case pb::SOCKET_UNIX_LONELY: return lonely(ends);
      case pb::SOCKET_UNIX_OUTSIDE: return outside(ends);
      case pb::SOCKET_UNIX_ONE_WAY:
      case pb::SOCKET_PLAIN:
      case pb::SOCKET_LISTENING: return unconnected();
      default: return make_error(Code::kUnsupported, "build", "a unix socket of unknown kind");
    }
  }

  // What waits in it: by its other end, or, if it has a name, by the senders themselves.
  Result<void> refill(const UnixEnds& ends) {
    if (socket_.queue() == 0 || socket_.queue() > static_cast<std::uint32_t>(c_.state.unix_queues_size())) return {};
    const auto& queue = c_.state.unix_queues(static_cast<int>(socket_.queue() - 1));
    int other = -1;
    if (socket_.kind() == pb::SOCKET_UNIX_PAIR) {
      auto pair = ends.pairs.find(socket_.pair());
      if (pair != ends.pairs.end()) other = socket_.first_of_pair() ? pair->second.second : pair->second.first;
    } else if (auto gone = ends.gone.find(index_); gone != ends.gone.end()) {
      other = gone->second;
    }
    if (other >= 0) return send_all(other, queue, {});
    for (const auto& packet : queue.packets()) BATON_TRY(send_as({}, plain(packet)));
    for (const auto& packet : queue.full_packets()) BATON_TRY(send_as(packet.sender(), packet));
    return {};
  }

  // To another socket of the workload, by its name.
  Result<void> connect_inside() {
    const std::uint32_t to = socket_.waiting() != 0 ? socket_.waiting() : socket_.target();
    if (to == 0 || to > static_cast<std::uint32_t>(c_.state.open_files_size())) return {};
    const auto& target = c_.state.open_files(static_cast<int>(to - 1)).socket();
    // Without blocking: a listener whose queue is shorter here must not hold the activation up.
    BATON_ASSIGN(const std::uint64_t flags, maker_.checked("F_GETFL", "unix socket", SYS_fcntl, {u(number()), F_GETFL}));
    BATON_TRY(maker_.checked("F_SETFL", "unix socket", SYS_fcntl, {u(number()), F_SETFL, flags | O_NONBLOCK}));
    BATON_ASSIGN(const std::int64_t answer, connect_by_name(number(), target.local(), holder_of(c_.state, static_cast<int>(to - 1)), nullptr));
    BATON_TRY(maker_.checked("F_SETFL", "unix socket", SYS_fcntl, {u(number()), F_SETFL, flags}));
    if (answer < 0) return errno_error(static_cast<int>(-answer), "connect", describe_address(target.local()));
    return {};
  }

  Result<void> shut() {
    if (socket_.shutdown() == 0 || socket_.kind() != pb::SOCKET_UNIX_PAIR) return {};
    BATON_TRY(maker_.call(SYS_shutdown, {u(number()), socket_.shutdown() == 3 ? 2ull : socket_.shutdown() - 1ull}));
    return {};
  }

 private:
  int number() const { return c_.open_numbers[static_cast<std::size_t>(index_)]; }
  std::uint64_t type(int more = 0) const { return static_cast<std::uint64_t>(socket_.type() | SOCK_CLOEXEC | more); }

  Result<int> unconnected() {
    BATON_ASSIGN(int fd, checked("socket", "unix socket", SYS_socket, {AF_UNIX, type(), 0}));
    BATON_TRY(options(fd));
    BATON_TRY(bind(fd));
    if (socket_.kind() == pb::SOCKET_LISTENING && !c_.shadow) {   // else: open_late_files
      BATON_TRY(checked("listen", describe_address(socket_.local()), SYS_listen, {u(fd), u(socket_.backlog())}));
    }
    return fd;
  }

  Result<int> new_socketpair(int& other) {
    BATON_TRY(checked("socketpair", "unix socket", SYS_socketpair, {AF_UNIX, type(), 0, maker_.data()}));
    int both[2];
    BATON_TRY(maker_.read(maker_.data(), std::as_writable_bytes(std::span(both))));
    other = both[1];
    return both[0];
  }

  Result<int> lonely(UnixEnds& ends) {
    std::pair<int, int> both{-1, -1};
    bool named = false;
    if (socket_.type() != SOCK_DGRAM && !socket_.local().empty()) {
      auto made = accepted(socket_.local(), {});
      named = made.has_value();
      if (named) both = *made;
    }
    if (!named) {
      BATON_ASSIGN(both.first, new_socketpair(both.second));
    }
    BATON_TRY(options(both.first));
    if (socket_.type() == SOCK_DGRAM) BATON_TRY(bind(both.first));
    BATON_ASSIGN(ends.gone[index_], keep_number(c_, both.second, "unix socket"));
    return both.first;
  }

  Result<int> outside(UnixEnds& ends) {
    BATON_ASSIGN(int fd, checked("socket", "unix socket", SYS_socket, {AF_UNIX, type(SOCK_NONBLOCK), 0}));   // blocks where a listener is busy
    BATON_TRY(options(fd));
    BATON_TRY(bind(fd));
    const auto* holder = holder_of(c_.state, index_);
    BATON_ASSIGN(std::int64_t answer, connect_by_name(fd, socket_.peer(), holder, holder));
    if (answer == -EACCES || answer == -EPERM) {   // it has given privileges up since it connected
      BATON_ASSIGN(answer, connect_by_name(fd, socket_.peer(), holder, nullptr));
    }
    if (answer >= 0) {
      if ((file_.flags() & O_NONBLOCK) == 0) BATON_TRY(maker_.checked("F_SETFL", "unix socket", SYS_fcntl, {u(fd), F_SETFL, O_RDWR}));
      return fd;
    }
    BATON_TRY(maker_.call(SYS_close, {u(fd)}));
    return lonely(ends);
  }

  // `place`: whose working directory a relative name starts at; `user`: as whom. Answers -errno.
  Result<std::int64_t> connect_by_name(int fd, const std::string& address, const pb::ProcessState* place, const pb::ProcessState* user) {
    if (address.size() <= sizeof(sa_family_t)) return -ENOTCONN;
    const bool elsewhere = is_relative(address) && place != nullptr;
    if (!elsewhere && user == nullptr) return connect_from(maker_, fd, address);
    BATON_ASSIGN(Helper helper, Helper::begin(maker_));
    auto done = [&]() -> Result<std::int64_t> {
      Puppet& puppet = helper.puppet();
      if (elsewhere) BATON_TRY(go_to(puppet, place->cwd()));
      if (user != nullptr && user->threads_size() > 0 && user->threads(0).credentials().uids_size() > 1 && user->threads(0).credentials().gids_size() > 1) {
        const auto& who = user->threads(0).credentials();
        const std::uint64_t gid = who.gids(1), uid = who.uids(1);
        if (who.groups_size() <= kMaxGroups) {
          std::vector<std::uint32_t> groups(who.groups().begin(), who.groups().end());
          BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(groups))));
          BATON_TRY(puppet.call(SYS_setgroups, {groups.size(), at}));
        }
        BATON_TRY(puppet.call(SYS_setresgid, {gid, gid, gid}));
        BATON_TRY(puppet.call(SYS_setresuid, {uid, uid, uid}));
      }
      return connect_from(puppet, fd, address);
    }();
    BATON_TRY(helper.end());
    return done;
  }

  static Result<std::int64_t> connect_from(Puppet& puppet, int fd, const std::string& address) {
    BATON_TRY(check_name(address));
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(address))));
    return puppet.call(SYS_connect, {u(fd), at, address.size()});
  }

  static Result<void> go_to(Puppet& puppet, const std::string& folder) {
    BATON_ASSIGN(std::uint64_t at, puppet.put(folder));
    BATON_TRY(puppet.checked("chdir", folder, SYS_chdir, {at}));
    return {};
  }

  Result<void> bind(int fd) {
    if (socket_.local().empty()) return {};
    if (socket_.unix_path_bound() && file_.mode() == 0) return bind_unlinked(fd);
    const auto* holder = is_relative(socket_.local()) ? holder_of(c_.state, index_) : nullptr;
    if (holder == nullptr) return bind_from(maker_, fd, {});
    BATON_ASSIGN(Helper helper, Helper::begin(maker_));
    auto done = go_to(helper.puppet(), holder->cwd());
    if (done) done = bind_from(helper.puppet(), fd, holder->cwd() + "/");
    BATON_TRY(helper.end());
    return done;
  }

  // Its file is gone, as programs do with sockets that are only handed on.
  Result<void> bind_unlinked(int fd) {
    return in_a_world(maker_, [&](Puppet& puppet) -> Result<void> {
      BATON_TRY(make_folders(puppet, socket_.local()));
      return bind_in(puppet, static_cast<std::uint64_t>(fd), socket_.local());
    });
  }

  Result<void> bind_from(Puppet& puppet, int fd, const std::string& folder) {
    if (socket_.unix_path_bound()) clear_path(folder);
    auto bound = bind_in(puppet, static_cast<std::uint64_t>(fd), socket_.local());
    if (!bound) {
      Error error = std::move(bound).error();
      if (error.sys_errno == EADDRINUSE) error.hint = "Another program on this node holds that address.";
      return error;
    }
    if (!socket_.unix_path_bound()) return {};
    // Who may connect is a matter of the file's owner and mode.
    const std::string path(socket_.local().c_str() + sizeof(sa_family_t));
    BATON_ASSIGN(std::uint64_t at, puppet.put(path));
    BATON_TRY(puppet.checked("lchown", path, SYS_lchown, {at, file_.uid(), file_.gid()}));
    BATON_TRY(puppet.checked("chmod", path, SYS_chmod, {at, file_.mode() & 07777}));
    return {};
  }

  // A socket file that nobody listens on any more is in the way.
  void clear_path(const std::string& folder) const {
    const std::string path = folder + (socket_.local().c_str() + sizeof(sa_family_t));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    struct stat there{};
    if (path.size() >= sizeof address.sun_path || ::lstat(path.c_str(), &there) != 0 || !S_ISSOCK(there.st_mode)) return;
    std::memcpy(address.sun_path, path.c_str(), path.size());
    Fd probe = Fd::adopt(::socket(AF_UNIX, socket_.type() | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 && errno == ECONNREFUSED) ::unlink(path.c_str());
  }

  Result<int> from_pair(UnixEnds& ends) {
    auto found = ends.pairs.find(socket_.pair());
    if (found == ends.pairs.end()) {
      BATON_ASSIGN(const auto both, new_pair());
      std::pair<int, int> kept;
      BATON_ASSIGN(kept.first, keep_number(c_, both.first, "unix socket"));
      BATON_ASSIGN(kept.second, keep_number(c_, both.second, "unix socket"));
      found = ends.pairs.emplace(socket_.pair(), kept).first;
    }
    const int mine = socket_.first_of_pair() ? found->second.first : found->second.second;
    BATON_TRY(options(mine));
    if (socket_.type() == SOCK_DGRAM) BATON_TRY(bind(mine));
    // Handed over as a low number: the kept one stays for the other end's queue.
    return checked("dup", "unix socket", SYS_dup, {u(mine)});
  }

  Result<std::pair<int, int>> new_pair() {
    std::string first = socket_.local(), second;
    for (const auto& file : c_.state.open_files()) {
      const auto& other = file.socket();
      if (other.kind() == pb::SOCKET_UNIX_PAIR && other.pair() == socket_.pair() && other.first_of_pair() != socket_.first_of_pair()) second = other.local();
    }
    if (!socket_.first_of_pair()) std::swap(first, second);
    if (socket_.type() != SOCK_DGRAM && !(first.empty() && second.empty())) {
      // Names are no reason to refuse: without them it is what socketpair(2) gives.
      if (auto named = first.empty() ? accepted(second, first) : accepted(first, second)) {
        return first.empty() ? std::pair{named->second, named->first} : *named;
      }
    }
    std::pair<int, int> both;
    BATON_ASSIGN(both.first, new_socketpair(both.second));
    return both;
  }

  // A socket that was accepted has its listener's name: so by a listener under that name, for a moment.
  Result<std::pair<int, int>> accepted(const std::string& name, const std::string& peer) {
    return in_a_world(maker_, [&](Puppet& helper) -> Result<std::pair<int, int>> {
      BATON_ASSIGN(std::uint64_t listener, helper.checked("socket", "unix socket", SYS_socket, {AF_UNIX, type(), 0}));
      BATON_ASSIGN(std::uint64_t client, helper.checked("socket", "unix socket", SYS_socket, {AF_UNIX, type(), 0}));
      auto ends = [&]() -> Result<std::uint64_t> {
        BATON_TRY(make_folders(helper, name));
        BATON_TRY(bind_in(helper, listener, name));
        BATON_TRY(helper.checked("listen", describe_address(name), SYS_listen, {listener, 1}));
        if (!peer.empty() && peer != name) {
          BATON_TRY(make_folders(helper, peer));
          BATON_TRY(bind_in(helper, client, peer));
        }
        BATON_ASSIGN(std::uint64_t at, helper.put(std::as_bytes(std::span(name))));
        BATON_TRY(helper.checked("connect", describe_address(name), SYS_connect, {client, at, name.size()}));
        return helper.checked("accept4", describe_address(name), SYS_accept4, {listener, 0, 0, SOCK_CLOEXEC});
      }();
      BATON_TRY(helper.call(SYS_close, {listener}));
      if (!ends) {
        BATON_TRY(helper.call(SYS_close, {client}));
        return std::move(ends).error();
      }
      return std::pair{static_cast<int>(*ends), static_cast<int>(client)};
    });
  }

  // ---------------------------------------------------------------- queues

  static pb::UnixPacket plain(const std::string& data) {
    pb::UnixPacket packet;
    packet.set_data(data);
    return packet;
  }

  // A queue may be fuller than a sender's usual limit lets it become.
  Result<void> send_all(int from, const pb::UnixQueue& queue, const std::string& to) {
    BATON_ASSIGN(int usual, buffer_size(from));
    std::size_t bytes = 65536;
    for (const auto& packet : queue.packets()) bytes += packet.size() + kRoomPerPacket;
    for (const auto& packet : queue.full_packets()) bytes += packet.data().size() + kRoomPerPacket;
    BATON_TRY(option(from, SOL_SOCKET, SO_SNDBUFFORCE, std::max(static_cast<int>(bytes), usual / 2)));
    for (const auto& packet : queue.packets()) BATON_TRY(send(from, plain(packet), to));
    for (const auto& packet : queue.full_packets()) BATON_TRY(send(from, packet, to));
    return option(from, SOL_SOCKET, SO_SNDBUFFORCE, usual / 2);
  }

  Result<int> buffer_size(int fd) {
    const std::uint32_t length = sizeof(int);
    BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(&length, 1))));
    BATON_TRY(maker_.checked("SO_SNDBUF", "unix socket", SYS_getsockopt, {u(fd), SOL_SOCKET, SO_SNDBUF, at + 8, at}));
    int value = 0;
    BATON_TRY(maker_.read(at + 8, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }

  // One datagram, by whoever sent it: a socket of the workload under that name, or one made for it.
  Result<void> send_as(const std::string& sender, const pb::UnixPacket& packet) {
    if (!sender.empty()) {
      for (int i = 0; i < c_.state.open_files_size(); ++i) {
        const auto& one = c_.state.open_files(i).socket();
        const int number = c_.open_numbers[static_cast<std::size_t>(i)];
        if (number >= 0 && one.domain() == AF_UNIX && one.type() == SOCK_DGRAM && one.local() == sender && one.kind() == pb::SOCKET_PLAIN) {
          return send(number, packet, socket_.local());
        }
      }
    }
    BATON_ASSIGN(std::uint64_t made, maker_.checked("socket", "unix socket", SYS_socket, {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0}));
    auto done = [&]() -> Result<void> {
      if (!sender.empty()) {
        // Where the name is taken, the datagram comes without one.
        auto bound = in_a_world(maker_, [&](Puppet& puppet) -> Result<void> {
          BATON_TRY(make_folders(puppet, sender));
          return bind_in(puppet, made, sender);
        });
        if (!bound && bound.error().sys_errno != EADDRINUSE) return bound;
      }
      pb::UnixQueue one;
      *one.add_full_packets() = packet;
      return send_all(static_cast<int>(made), one, socket_.local());
    }();
    BATON_TRY(maker_.call(SYS_close, {made}));
    return done;
  }

  Result<void> send(int from, const pb::UnixPacket& packet, const std::string& to) {
    std::vector<int> files;
    for (const std::uint32_t index : packet.files()) {
      const int number = index < c_.open_numbers.size() ? c_.open_numbers[index] : -1;
      if (number < 0 || files.size() == kMaxFilesOfPacket) return make_error(Code::kCorrupt, "build", "a descriptor on its way that is not there");
      files.push_back(number);
    }
    const std::string& data = packet.data();
    const auto* holder = is_relative(to) ? holder_of(c_.state, index_) : nullptr;
    if (holder == nullptr) return send_from(maker_, from, data, files, to);
    BATON_ASSIGN(Helper helper, Helper::begin(maker_));
    auto done = go_to(helper.puppet(), holder->cwd());
    if (done) done = send_from(helper.puppet(), from, data, files, to);
    BATON_TRY(helper.end());
    return done;
  }

  Result<void> send_from(Puppet& puppet, int from, const std::string& data, std::vector<int> files, const std::string& to) {
    if (socket_.type() != SOCK_STREAM && data.size() > kMaxPart) return make_error(Code::kCorrupt, "build", "a datagram of " + std::to_string(data.size()) + " bytes");
    std::size_t done = 0;
    do {
      const std::size_t part = std::min(data.size() - done, kMaxPart);
      BATON_ASSIGN(std::uint64_t sent, send_part(puppet, from, std::as_bytes(std::span(data).subspan(done, part)), files, to));
      done += sent;
      files.clear();   // they go with the first byte
    } while (done < data.size());
    return {};
  }

  // sendmsg(2): what describes the message stands at the beginning of the area, then the data.
  Result<std::uint64_t> send_part(Puppet& puppet, int from, std::span<const std::byte> data, const std::vector<int>& files, const std::string& to) {
    struct Head {
      msghdr message{};
      iovec part{};
      sockaddr_un to{};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFilesOfPacket)]{};
    } head;
    static_assert(sizeof(Head) <= kHeadBytes);
    const std::uint64_t at = puppet.data();
    auto remote = [&](std::size_t offset) { return reinterpret_cast<void*>(at + offset); };
    head.part = {remote(kHeadBytes), data.size()};
    if (!to.empty()) {
      BATON_TRY(check_name(to));
      std::memcpy(&head.to, to.data(), to.size());
      head.message.msg_name = remote(offsetof(Head, to));
      head.message.msg_namelen = static_cast<socklen_t>(to.size());
    }
    if (!files.empty()) {
      const std::size_t bytes = files.size() * sizeof(int);
      cmsghdr control{};
      control.cmsg_len = CMSG_LEN(bytes);
      control.cmsg_level = SOL_SOCKET;
      control.cmsg_type = SCM_RIGHTS;
      std::memcpy(head.control, &control, sizeof control);
      std::memcpy(head.control + CMSG_LEN(0), files.data(), bytes);
      head.message.msg_control = remote(offsetof(Head, control));
      head.message.msg_controllen = CMSG_SPACE(bytes);
    }
    head.message.msg_iov = static_cast<iovec*>(remote(offsetof(Head, part)));
    head.message.msg_iovlen = 1;
    BATON_TRY(puppet.put(std::as_bytes(std::span(&head, 1))));
    BATON_TRY(puppet.put(data, kHeadBytes));
    return puppet.checked("refill", "unix socket", SYS_sendmsg, {u(from), at, MSG_DONTWAIT | MSG_NOSIGNAL});
  }

  static constexpr int kMaxGroups = 65536;

  const int index_;
  const pb::OpenFile& file_;
};

bool is_unix(const pb::OpenFile& file) { return file.kind() == pb::OPEN_FILE_SOCKET && file.socket().domain() == AF_UNIX; }

bool carries_files(const pb::LinuxState& state, const pb::Socket& socket) {
  if (socket.queue() == 0 || socket.queue() > static_cast<std::uint32_t>(state.unix_queues_size())) return false;
  const auto& packets = state.unix_queues(static_cast<int>(socket.queue() - 1)).full_packets();
  return std::any_of(packets.begin(), packets.end(), [](const auto& packet) { return packet.files_size() > 0; });
}

}  // namespace

bool unix_socket_comes_late(const Construction& c, const pb::OpenFile& file) {
  const auto& socket = file.socket();
  if (!is_unix(file)) return false;
  if (socket.kind() == pb::SOCKET_UNIX_OUTSIDE) return true;   // whoever is there is not to be met before
  if (socket.kind() == pb::SOCKET_LISTENING) return false;
  auto late = [&](const pb::Socket& one) {
    if (carries_files(c.state, one)) return true;              // and they may come late themselves
    const bool named = one.type() == SOCK_DGRAM && !one.local().empty();   // others could send to it
    return c.shadow && (named || one.kind() == pb::SOCKET_UNIX_ONE_WAY || one.waiting() != 0);
  };
  if (socket.kind() != pb::SOCKET_UNIX_PAIR || socket.pair() == 0) return late(socket);
  const auto& all = c.state.open_files();
  return std::any_of(all.begin(), all.end(), [&](const auto& end) { return is_unix(end) && end.socket().pair() == socket.pair() && late(end.socket()); });
}

Result<int> open_unix_socket(Construction& c, int index, UnixEnds& ends) { return UnixMaker(c, index).make(ends); }

Result<void> settle_unix_sockets(Construction& c, const std::vector<int>& which, UnixEnds& ends) {
  std::vector<int> ours;
  std::copy_if(which.begin(), which.end(), std::back_inserter(ours), [&](int i) { return is_unix(c.state.open_files(i)); });
  for (int i : ours) BATON_TRY(UnixMaker(c, i).refill(ends));
  // Those that wait at a listener in the order in which they came.
  std::stable_sort(ours.begin(), ours.end(), [&](int a, int b) {
    return c.state.open_files(a).socket().waiting_order() < c.state.open_files(b).socket().waiting_order();
  });
  for (int i : ours) BATON_TRY(UnixMaker(c, i).connect_inside());
  for (int i : ours) BATON_TRY(UnixMaker(c, i).shut());
  for (const auto& [pair, both] : ends.pairs) {
    for (int end : {both.first, both.second}) BATON_TRY(close_kept(c, end));
  }
  for (const auto& [index, end] : ends.gone) BATON_TRY(close_kept(c, end));
  ends = {};
  return {};
}

}  // namespace baton::restore
