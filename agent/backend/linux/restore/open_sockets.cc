// Sockets of a checkpoint, made in the template process, which is in the workload's network
// namespace. A TCP connection that is not taken along becomes a connected socket whose peer
// has reset it: a pair over loopback, of which one end is closed with SO_LINGER 0.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "agent/backend/linux/restore/construction.h"
#include "agent/backend/linux/restore/tcp.h"

namespace baton::restore {
namespace {

std::uint64_t u(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }

std::string describe(const std::string& address) {
  sockaddr_storage raw{};
  std::memcpy(&raw, address.data(), std::min(address.size(), sizeof raw));
  char text[INET6_ADDRSTRLEN] = {};
  if (raw.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(raw);
    ::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(in.sin_port));
  }
  if (raw.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(raw);
    ::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text);
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(in.sin6_port));
  }
  if (raw.ss_family == AF_UNIX && address.size() > 2) {
    std::string path = address.substr(2);
    if (path[0] == 0) path[0] = '@';
    return path.c_str();
  }
  return "socket";
}

class SocketMaker {
 public:
  SocketMaker(Construction& c, const pb::OpenFile& file) : c_(c), maker_(c.maker()), file_(file), socket_(file.socket()) {}

  Result<int> make(std::map<std::uint32_t, std::pair<int, int>>& pairs) {
    switch (socket_.kind()) {
      case pb::SOCKET_RESET: return reset();
      case pb::SOCKET_TCP:
      case pb::SOCKET_TCP_CONNECTING: return goes_on() ? connection() : reset();
      case pb::SOCKET_UNIX_PAIR:
      case pb::SOCKET_UNIX_LONELY: return from_pair(pairs);
      case pb::SOCKET_PLAIN:
      case pb::SOCKET_LISTENING:
      case pb::SOCKET_UDP_CONNECTED: return plain();
      default: return make_error(Code::kUnsupported, "build", "a socket of unknown kind");
    }
  }

 private:
  Result<int> checked(const char* what, const std::string& subject, long number, std::initializer_list<std::uint64_t> args) {
    BATON_ASSIGN(std::uint64_t value, maker_.checked(what, subject, number, args));
    return static_cast<int>(value);
  }

  Result<void> option(int fd, int level, int name, const void* value, std::size_t bytes) {
    BATON_ASSIGN(std::uint64_t at, maker_.put(std::span(static_cast<const std::byte*>(value), bytes)));
    BATON_TRY(maker_.call(SYS_setsockopt, {u(fd), u(level), u(name), at, bytes}));  // one that this kernel lacks is left out
    return {};
  }
  Result<void> option(int fd, int level, int name, int value) { return option(fd, level, name, &value, sizeof value); }

  Result<void> options(int fd) {
    for (const auto& o : socket_.options()) BATON_TRY(option(fd, o.level(), o.name(), o.value().data(), o.value().size()));
    return {};
  }

  int saved_option(int level, int name) const {
    for (const auto& o : socket_.options()) {
      if (o.level() != level || o.name() != name || o.value().size() != sizeof(int)) continue;
      int value = 0;
      std::memcpy(&value, o.value().data(), sizeof value);
      return value;
    }
    return 0;
  }

  Result<int> plain() {
    BATON_ASSIGN(int fd, checked("socket", "domain " + std::to_string(socket_.domain()), SYS_socket,
                                 {u(socket_.domain()), static_cast<std::uint64_t>(socket_.type()) | SOCK_CLOEXEC, u(socket_.protocol())}));
    BATON_TRY(options(fd));
    if (!socket_.local().empty()) BATON_TRY(bind(fd));
    if (socket_.kind() == pb::SOCKET_LISTENING && !c_.shadow) {   // else: open_late_files
      BATON_TRY(checked("listen", describe(socket_.local()), SYS_listen, {u(fd), u(socket_.backlog())}));
    }
    if (socket_.has_datagrams()) BATON_TRY(open_datagrams(c_, fd, socket_));
    if (socket_.kind() == pb::SOCKET_UDP_CONNECTED) {
      BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(socket_.peer()))));
      BATON_TRY(checked("connect", describe(socket_.peer()), SYS_connect, {u(fd), at, socket_.peer().size()}));
    }
    return fd;
  }

  // A checkpoint that was never meant to be the last one does not hold the connection itself.
  bool goes_on() const { return c_.connections && (socket_.kind() == pb::SOCKET_TCP_CONNECTING || socket_.has_tcp()); }

  Result<int> connection() {
    BATON_ASSIGN(int fd, checked("socket", "TCP connection", SYS_socket,
                                 {u(socket_.domain()), static_cast<std::uint64_t>(socket_.type()) | SOCK_CLOEXEC, u(socket_.protocol())}));
    for (const auto& o : socket_.options()) {
      if (o.level() == SOL_SOCKET && o.name() == SO_BINDTODEVICE && needs_settling(socket_)) continue;
      BATON_TRY(option(fd, o.level(), o.name(), o.value().data(), o.value().size()));
    }
    BATON_TRY(open_connection(c_, fd, socket_));
    return fd;
  }

  Result<void> bind(int fd) {
    bool tcp = socket_.domain() != AF_UNIX && socket_.type() == SOCK_STREAM;
    if (tcp) BATON_TRY(option(fd, SOL_SOCKET, SO_REUSEADDR, 1));   // the old connections may linger
    if (socket_.domain() == AF_INET || socket_.domain() == AF_INET6) BATON_TRY(option(fd, IPPROTO_IP, IP_FREEBIND, 1));
    if (socket_.unix_path_bound()) BATON_TRY(clear_path());
    BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(socket_.local()))));
    auto bound = checked("bind", describe(socket_.local()), SYS_bind, {u(fd), at, socket_.local().size()});
    if (!bound) {
      Error error = std::move(bound).error();
      if (error.sys_errno == EADDRINUSE) error.hint = "Another program on this node holds that address.";
      return error;
    }
    if (socket_.unix_path_bound()) BATON_TRY(settle_path());
    if (tcp) BATON_TRY(option(fd, SOL_SOCKET, SO_REUSEADDR, saved_option(SOL_SOCKET, SO_REUSEADDR)));
    if (socket_.domain() == AF_INET || socket_.domain() == AF_INET6) BATON_TRY(option(fd, IPPROTO_IP, IP_FREEBIND, saved_option(IPPROTO_IP, IP_FREEBIND)));
    return {};
  }

  // Who may connect is a matter of the file's owner and mode.
  Result<void> settle_path() {
    const std::string path(socket_.local().c_str() + sizeof(sa_family_t));
    if (path.empty() || path[0] != '/') return {};
    BATON_ASSIGN(std::uint64_t at, maker_.put(path));
    if (file_.mode() == 0) {   // unlinked, as programs do with sockets that are only handed on
      BATON_TRY(maker_.checked("unlink", path, SYS_unlink, {at}));
      return {};
    }
    BATON_TRY(maker_.checked("lchown", path, SYS_lchown, {at, file_.uid(), file_.gid()}));
    BATON_TRY(maker_.checked("chmod", path, SYS_chmod, {at, file_.mode() & 07777}));
    return {};
  }

  // A socket file that nobody listens on any more is in the way.
  Result<void> clear_path() {
    sockaddr_un address{};
    std::memcpy(&address, socket_.local().data(), std::min(socket_.local().size(), sizeof address - 1));
    struct stat there{};
    if (::lstat(address.sun_path, &there) != 0 || !S_ISSOCK(there.st_mode)) return {};
    Fd probe = Fd::adopt(::socket(AF_UNIX, socket_.type() | SOCK_CLOEXEC, 0));
    if (::connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 && errno == ECONNREFUSED) {
      ::unlink(address.sun_path);
    }
    return {};
  }

  Result<int> reset() {
    sockaddr_storage raw{};
    socklen_t bytes = sizeof(sockaddr_in);
    if (socket_.domain() == AF_INET6) {
      auto& in = reinterpret_cast<sockaddr_in6&>(raw);
      in.sin6_family = AF_INET6;
      // Mapped loopback also works where a namespace has no ::1.
      in.sin6_addr.s6_addr[10] = in.sin6_addr.s6_addr[11] = 0xff;
      in.sin6_addr.s6_addr[12] = 127;
      in.sin6_addr.s6_addr[15] = 1;
      bytes = sizeof(sockaddr_in6);
    } else {
      auto& in = reinterpret_cast<sockaddr_in&>(raw);
      in.sin_family = AF_INET;
      in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    std::uint64_t type = SOCK_STREAM | SOCK_CLOEXEC;
    BATON_ASSIGN(int listener, checked("socket", "loopback", SYS_socket, {u(socket_.domain()), type, 0}));
    if (socket_.domain() == AF_INET6) BATON_TRY(option(listener, IPPROTO_IPV6, IPV6_V6ONLY, 0));
    BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(&raw, 1))));
    BATON_TRY(checked("bind", "loopback", SYS_bind, {u(listener), at, bytes}));
    BATON_TRY(checked("listen", "loopback", SYS_listen, {u(listener), 1}));
    std::uint32_t length = sizeof raw;
    BATON_TRY(maker_.put(std::as_bytes(std::span(&length, 1)), sizeof raw));
    BATON_TRY(checked("getsockname", "loopback", SYS_getsockname, {u(listener), at, maker_.data() + sizeof raw}));
    BATON_TRY(maker_.read(at, std::as_writable_bytes(std::span(&raw, 1))));
    BATON_ASSIGN(int fd, checked("socket", "loopback", SYS_socket, {u(socket_.domain()), type, 0}));
    if (socket_.domain() == AF_INET6) BATON_TRY(option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0));
    BATON_ASSIGN(std::uint64_t peer, maker_.put(std::as_bytes(std::span(&raw, 1))));
    BATON_TRY(checked("connect", "loopback", SYS_connect, {u(fd), peer, bytes}));
    BATON_ASSIGN(int other, checked("accept4", "loopback", SYS_accept4, {u(listener), 0, 0, SOCK_CLOEXEC}));
    linger now{1, 0};
    BATON_TRY(option(other, SOL_SOCKET, SO_LINGER, &now, sizeof now));
    BATON_TRY(options(fd));
    BATON_TRY(maker_.call(SYS_close, {u(other)}));
    BATON_TRY(maker_.call(SYS_close, {u(listener)}));
    return fd;
  }

  Result<int> from_pair(std::map<std::uint32_t, std::pair<int, int>>& pairs) {
    bool lonely = socket_.kind() == pb::SOCKET_UNIX_LONELY;
    std::pair<int, int> made{-1, -1};
    auto found = lonely ? pairs.end() : pairs.find(socket_.pair());
    if (found == pairs.end()) {
      BATON_ASSIGN(const auto both, new_pair(lonely));
      BATON_ASSIGN(made.first, keep_number(c_, both.first, "unix socket"));
      BATON_ASSIGN(made.second, keep_number(c_, both.second, "unix socket"));
      if (!lonely) found = pairs.emplace(socket_.pair(), made).first;
    }
    auto& ends = lonely ? made : found->second;
    bool first = lonely || socket_.first_of_pair();
    int mine = first ? ends.first : ends.second, other = first ? ends.second : ends.first;
    BATON_TRY(options(mine));
    if (socket_.queue() != 0) BATON_TRY(refill(other));
    if (lonely) BATON_TRY(maker_.call(SYS_close, {u(other)}));
    // Handed over as a low number: the kept one stays for the other end's queue.
    return checked("dup", "unix socket", SYS_dup, {u(mine)});
  }

  Result<std::pair<int, int>> new_pair(bool lonely) {
    std::string first = socket_.local(), second;
    for (const auto& file : c_.state.open_files()) {
      const auto& other = file.socket();
      if (lonely || other.kind() != pb::SOCKET_UNIX_PAIR || other.pair() != socket_.pair() || other.first_of_pair() == socket_.first_of_pair()) continue;
      second = other.local();
    }
    if (!lonely && !socket_.first_of_pair()) std::swap(first, second);
    if (socket_.type() != SOCK_DGRAM && !(first.empty() && second.empty())) {
      // Names are no reason to refuse: without them it is what socketpair(2) gives.
      if (auto named = first.empty() ? accepted(second, first) : accepted(first, second)) {
        return first.empty() ? std::pair{named->second, named->first} : *named;
      }
    }
    BATON_TRY(checked("socketpair", "unix socket", SYS_socketpair, {AF_UNIX, static_cast<std::uint64_t>(socket_.type()) | SOCK_CLOEXEC, 0, maker_.data()}));
    int both[2];
    BATON_TRY(maker_.read(maker_.data(), std::as_writable_bytes(std::span(both))));
    return std::pair{both[0], both[1]};
  }

  // A socket that was accepted has its listener's name: so by a listener under that name, for a
  // moment, in a folder that is the whole world of a process made for it.
  Result<std::pair<int, int>> accepted(const std::string& name, const std::string& peer) {
    BATON_ASSIGN(Puppet helper, maker_.clone(CLONE_FILES, SIGCHLD, 0));
    const std::string world = "/tmp/.baton-names-" + std::to_string(maker_.pid()) + "-" + std::to_string(helper.inside());
    auto made = [&]() -> Result<std::pair<int, int>> {
      BATON_ASSIGN(std::uint64_t root, helper.put(world));
      BATON_TRY(helper.checked("mkdir", world, SYS_mkdir, {root, 0700}));
      BATON_TRY(helper.checked("chroot", world, SYS_chroot, {root}));
      BATON_TRY(helper.checked("chdir", world, SYS_chdir, {root_of(helper)}));
      const std::uint64_t type = static_cast<std::uint64_t>(socket_.type()) | SOCK_CLOEXEC;
      BATON_ASSIGN(std::uint64_t listener, helper.checked("socket", "unix socket", SYS_socket, {AF_UNIX, type, 0}));
      BATON_ASSIGN(std::uint64_t client, helper.checked("socket", "unix socket", SYS_socket, {AF_UNIX, type, 0}));
      auto ends = [&]() -> Result<std::uint64_t> {
        BATON_TRY(bind_in(helper, listener, name));
        BATON_TRY(helper.checked("listen", describe(name), SYS_listen, {listener, 1}));
        if (!peer.empty() && peer != name) BATON_TRY(bind_in(helper, client, peer));
        BATON_ASSIGN(std::uint64_t at, helper.put(std::as_bytes(std::span(name))));
        BATON_TRY(helper.checked("connect", describe(name), SYS_connect, {client, at, name.size()}));
        return helper.checked("accept4", describe(name), SYS_accept4, {listener, 0, 0, SOCK_CLOEXEC});
      }();
      BATON_TRY(helper.call(SYS_close, {listener}));
      if (!ends) {
        BATON_TRY(helper.call(SYS_close, {client}));
        return std::move(ends).error();
      }
      return std::pair{static_cast<int>(*ends), static_cast<int>(client)};
    }();
    const int inside = helper.inside();
    BATON_TRY(helper.end(0));
    BATON_TRY(maker_.checked("wait4", "a child", SYS_wait4, {u(inside), 0, __WALL, 0}));
    std::error_code ignored;
    std::filesystem::remove_all(world, ignored);
    return made;
  }

  static std::uint64_t root_of(Puppet& puppet) {
    auto at = puppet.put(std::string("/"));
    return at ? *at : 0;
  }

  static Result<void> bind_in(Puppet& puppet, std::uint64_t fd, const std::string& name) {
    if (name.size() > 2 && name[2] != 0) {
      const std::string path = name.substr(2).c_str();
      for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
        BATON_ASSIGN(std::uint64_t folder, puppet.put(path.substr(0, at)));
        BATON_TRY(puppet.call(SYS_mkdir, {folder, 0700}));
      }
    }
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(name))));
    BATON_TRY(puppet.checked("bind", describe(name), SYS_bind, {fd, at, name.size()}));
    return {};
  }

  Result<void> refill(int into) {
    for (const auto& packet : c_.state.unix_queues(static_cast<int>(socket_.queue() - 1)).packets()) {
      for (std::size_t done = 0; done < packet.size() || packet.empty();) {
        std::size_t part = std::min<std::size_t>(packet.size() - done, kAreaDataBytes);
        BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(packet).subspan(done, part))));
        BATON_ASSIGN(std::uint64_t sent, maker_.checked("refill", "unix socket", SYS_sendto, {u(into), at, part, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0}));
        done += sent;
        if (packet.empty()) break;
      }
    }
    return {};
  }

  Construction& c_;
  Puppet& maker_;
  const pb::OpenFile& file_;
  const pb::Socket& socket_;
};

}  // namespace

Result<int> open_socket(Construction& c, const pb::OpenFile& file, std::map<std::uint32_t, std::pair<int, int>>& pairs) {
  return SocketMaker(c, file).make(pairs);
}

}  // namespace baton::restore
