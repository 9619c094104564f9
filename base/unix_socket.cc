#include "base/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace baton {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return make_error(Code::kInvalid, "socket", path + ": a socket path has 1 to 107 bytes",
                      "Choose a shorter path.");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<Fd> make_socket() {
  int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno_error("socket", "AF_UNIX");
  return Fd::adopt(fd);
}

}  // namespace

Result<UnixSocket> UnixSocket::connect(const std::string& path) {
  BATON_ASSIGN(sockaddr_un address, address_of(path));
  BATON_ASSIGN(Fd fd, make_socket());
  for (;;) {
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return UnixSocket(std::move(fd));
    }
    if (errno == EINTR) continue;
    Error error = errno_error("connect", path);
    if (error.sys_errno == ECONNREFUSED || error.sys_errno == EAGAIN) error.code = Code::kUnreachable;
    return error;
  }
}

Result<std::pair<UnixSocket, UnixSocket>> UnixSocket::make_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
    return errno_error("socketpair", "AF_UNIX");
  }
  return std::pair(UnixSocket(Fd::adopt(fds[0])), UnixSocket(Fd::adopt(fds[1])));
}

void UnixSocket::shutdown() noexcept {
  if (fd_) ::shutdown(fd_.get(), SHUT_RDWR);
}

Result<PeerCredentials> UnixSocket::peer() const {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return errno_error("getsockopt(SO_PEERCRED)", "");
  }
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

Result<void> UnixSocket::set_send_timeout(std::chrono::milliseconds timeout) {
  timeval tv{};
  tv.tv_sec = timeout.count() / 1000;
  tv.tv_usec = (timeout.count() % 1000) * 1000;
  if (::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv) != 0) {
    return errno_error("setsockopt(SO_SNDTIMEO)", "");
  }
  return {};
}

void UnixSocket::grow_buffers(std::size_t bytes) {
  int value = static_cast<int>(bytes);
  if (::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &value, sizeof value) != 0) {
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUF, &value, sizeof value);
  }
}

Result<void> UnixSocket::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  if (fds.size() > kMaxPassedFds) {
    return make_error(Code::kInvalid, "sendmsg", "more than 8 descriptors in one message");
  }
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPassedFds)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  for (;;) {
    if (::sendmsg(fd_.get(), &message, MSG_NOSIGNAL) >= 0) return {};
    if (errno == EINTR) continue;
    Error error = errno_error("sendmsg", "");
    switch (error.sys_errno) {
      case EPIPE:
      case ECONNRESET:
      case ENOTCONN: error.code = Code::kUnreachable; break;
      case EMSGSIZE: error.code = Code::kNoSpace; break;
      case EAGAIN:
        error.code = Code::kTimedOut;
        error.subject = "the peer does not read";
        break;
      default: break;
    }
    return error;
  }
}

Result<std::optional<SocketMessage>> UnixSocket::receive(std::size_t max_bytes) {
  SocketMessage out;
  for (bool reset = false;;) {
    // The length first, so that nothing larger than the message is allocated.
    ssize_t length = ::recv(fd_.get(), nullptr, 0, MSG_PEEK | MSG_TRUNC);
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) {
      // The peer closed with something of ours unread: said first, once, before what it sent.
      if (errno == ECONNRESET && !std::exchange(reset, true)) continue;
      if (errno == ECONNRESET) return std::optional<SocketMessage>{};
      return errno_error("recv", "");
    }
    if (length == 0) return std::optional<SocketMessage>{};  // messages are never empty
    if (static_cast<std::size_t>(length) > max_bytes) {
      return make_error(Code::kCorrupt, "recvmsg",
                        "a message of " + std::to_string(length) + " bytes, the limit is " +
                            std::to_string(max_bytes));
    }
    out.bytes.resize(static_cast<std::size_t>(length));
    break;
  }
  iovec part{out.bytes.data(), out.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPassedFds)] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = ::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return errno_error("recvmsg", "");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      out.fds.push_back(Fd::adopt(fd));
    }
  }
  if (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) {
    return make_error(Code::kCorrupt, "recvmsg", "more descriptors than allowed in one message");
  }
  out.bytes.resize(static_cast<std::size_t>(n));
  return std::optional<SocketMessage>(std::move(out));
}

Result<UnixListener> UnixListener::bind(const std::string& path, uid_t owner) {
  BATON_ASSIGN(sockaddr_un address, address_of(path));
  UnixListener listener;
  BATON_ASSIGN(listener.fd_, make_socket());
  struct stat info{};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return make_error(Code::kConflict, "bind", path + ": exists and is no socket",
                        "Move it away or choose another path.");
    }
    if (UnixSocket::connect(path)) {
      return make_error(Code::kConflict, "bind", path + ": another program listens there",
                        "Stop it or choose another path.");
    }
    ::unlink(path.c_str());
  }
  mode_t old_mask = ::umask(0177);  // born with mode 0600
  int rc = ::bind(listener.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  int saved = errno;
  ::umask(old_mask);
  if (rc != 0) return errno_error(saved, "bind", path);
  listener.path_ = path;
  if (owner != ::geteuid() && ::lchown(path.c_str(), owner, static_cast<gid_t>(-1)) != 0) {
    return errno_error("lchown", path);
  }
  if (::listen(listener.fd_.get(), 8) != 0) return errno_error("listen", path);
  return listener;
}

UnixListener::~UnixListener() {
  if (fd_ && !path_.empty()) ::unlink(path_.c_str());
}

Result<UnixSocket> UnixListener::accept() {
  for (;;) {
    int fd = ::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd >= 0) return UnixSocket(Fd::adopt(fd));
    if (errno != EINTR && errno != ECONNABORTED) return errno_error("accept4", path_);
  }
}

}  // namespace baton
