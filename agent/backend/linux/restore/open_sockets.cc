// Sockets of a checkpoint, except those of AF_UNIX (open_unix_sockets.cc), made in the template
// process, which is in the workload's network namespace. A TCP connection that is not taken
// along becomes a connected socket whose peer has reset it: a pair over loopback, of which one
// end is closed with SO_LINGER 0.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>

#include "agent/backend/linux/restore/socket_calls.h"
#include "agent/backend/linux/restore/tcp.h"

namespace baton::restore {
namespace {

class SocketMaker : SocketCalls {
 public:
  using SocketCalls::SocketCalls;

  Result<int> make() {
    switch (socket_.kind()) {
      case pb::SOCKET_RESET: return reset();
      case pb::SOCKET_TCP:
      case pb::SOCKET_TCP_CONNECTING: return goes_on() ? connection() : reset();
      case pb::SOCKET_PLAIN:
      case pb::SOCKET_LISTENING:
      case pb::SOCKET_UDP_CONNECTED: return plain();
      default: return make_error(Code::kUnsupported, "build", "a socket of unknown kind");
    }
  }

 private:
  Result<int> plain() {
    BATON_ASSIGN(int fd, checked("socket", "domain " + std::to_string(socket_.domain()), SYS_socket,
                                 {u(socket_.domain()), static_cast<std::uint64_t>(socket_.type()) | SOCK_CLOEXEC, u(socket_.protocol())}));
    BATON_TRY(options(fd));
    if (!socket_.local().empty()) BATON_TRY(bind(fd));
    if (socket_.kind() == pb::SOCKET_LISTENING && !c_.shadow) {   // else: open_late_files
      BATON_TRY(checked("listen", describe_address(socket_.local()), SYS_listen, {u(fd), u(socket_.backlog())}));
    }
    if (socket_.has_datagrams()) BATON_TRY(open_datagrams(c_, fd, socket_));
    if (socket_.kind() == pb::SOCKET_UDP_CONNECTED) {
      BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(socket_.peer()))));
      BATON_TRY(checked("connect", describe_address(socket_.peer()), SYS_connect, {u(fd), at, socket_.peer().size()}));
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
    const bool tcp = socket_.type() == SOCK_STREAM;
    if (tcp) BATON_TRY(option(fd, SOL_SOCKET, SO_REUSEADDR, 1));   // the old connections may linger
    if (socket_.domain() == AF_INET || socket_.domain() == AF_INET6) BATON_TRY(option(fd, IPPROTO_IP, IP_FREEBIND, 1));
    BATON_ASSIGN(std::uint64_t at, maker_.put(std::as_bytes(std::span(socket_.local()))));
    auto bound = checked("bind", describe_address(socket_.local()), SYS_bind, {u(fd), at, socket_.local().size()});
    if (!bound) {
      Error error = std::move(bound).error();
      if (error.sys_errno == EADDRINUSE) error.hint = "Another program on this node holds that address.";
      return error;
    }
    if (tcp) BATON_TRY(option(fd, SOL_SOCKET, SO_REUSEADDR, saved_option(SOL_SOCKET, SO_REUSEADDR)));
    if (socket_.domain() == AF_INET || socket_.domain() == AF_INET6) BATON_TRY(option(fd, IPPROTO_IP, IP_FREEBIND, saved_option(IPPROTO_IP, IP_FREEBIND)));
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
};

}  // namespace

Result<int> open_socket(Construction& c, const pb::OpenFile& file) { return SocketMaker(c, file.socket()).make(); }

}  // namespace baton::restore
