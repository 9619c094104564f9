// Unix sockets: who is connected to whom (sock_diag(7)), and what waits in their queues,
// read with MSG_PEEK and SO_PEEK_OFF, which take nothing out.
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::size_t kMaxQueueBytes = 16u << 20;

// A netlink socket in the network namespace of `pid`; the calling thread comes back to its own.
Result<Fd> diag_socket(pid_t pid) {
  BATON_ASSIGN(Fd own, open_file("/proc/thread-self/ns/net", O_RDONLY));
  BATON_ASSIGN(Fd theirs, open_file("/proc/" + std::to_string(pid) + "/ns/net", O_RDONLY));
  bool moved = ::setns(theirs.get(), CLONE_NEWNET) == 0;
  int fd = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  int saved = errno;
  if (moved && ::setns(own.get(), CLONE_NEWNET) != 0) return errno_error("setns", "back to the own network namespace");
  if (fd < 0) return errno_error(saved, "socket", "NETLINK_SOCK_DIAG");
  return Fd::adopt(fd);
}

}  // namespace

Result<void> SocketReader::load_unix_peers() {
  if (peers_known) return {};
  peers_known = true;
  BATON_ASSIGN(Fd netlink, diag_socket(any_pid));
  struct {
    nlmsghdr header;
    unix_diag_req request;
  } message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  message.request.sdiag_family = AF_UNIX;
  message.request.udiag_states = ~0u;
  message.request.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
  if (::send(netlink.get(), &message, sizeof message, 0) < 0) return errno_error("send", "sock_diag");
  std::vector<char> buffer(64 << 10);
  for (;;) {
    ssize_t n = ::recv(netlink.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return errno_error("recv", "sock_diag");
    int left = static_cast<int>(n);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
      if (h->nlmsg_type == NLMSG_DONE) return {};
      if (h->nlmsg_type == NLMSG_ERROR) return make_error(Code::kFailed, "sock_diag", "unix sockets: this kernel does not answer (CONFIG_UNIX_DIAG)");
      auto* m = static_cast<unix_diag_msg*>(NLMSG_DATA(h));
      auto& peer = peers[m->udiag_ino];
      int bytes = static_cast<int>(h->nlmsg_len - NLMSG_LENGTH(sizeof *m));
      for (auto* a = reinterpret_cast<nlattr*>(m + 1); bytes >= static_cast<int>(sizeof *a) && a->nla_len >= sizeof *a;) {
        const char* data = reinterpret_cast<const char*>(a) + NLA_HDRLEN;
        if (a->nla_type == UNIX_DIAG_PEER && a->nla_len >= NLA_HDRLEN + 4) {
          std::uint32_t inode = 0;
          std::memcpy(&inode, data, 4);
          peer = inode;
        } else if (a->nla_type == UNIX_DIAG_RQLEN && a->nla_len >= NLA_HDRLEN + 4) {
          std::uint32_t length = 0;
          std::memcpy(&length, data, 4);
          receive_queues[m->udiag_ino] = length;
        } else if (a->nla_type == UNIX_DIAG_SHUTDOWN && a->nla_len >= NLA_HDRLEN + 1) {
          shut[m->udiag_ino] = static_cast<unsigned char>(*data);
        }
        int step = NLA_ALIGN(a->nla_len);
        bytes -= step;
        a = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(a) + step);
      }
    }
  }
}

namespace {

// Everything that waits to be received. Fails with kUnsupported when descriptors are on the way.
Result<void> read_queue(int fd, bool stream, pb::UnixQueue& out) {
  int usual = -1;
  socklen_t size = sizeof usual;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &usual, &size) != 0) usual = -1;
  int begin = 0;
  if (::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &begin, sizeof begin) != 0) return errno_error("SO_PEEK_OFF", "unix socket");
  Result<void> result;
  std::vector<char> buffer(256 << 10);
  std::size_t total = 0;
  for (;;) {
    char control[CMSG_SPACE(sizeof(int) * 253) + CMSG_SPACE(sizeof(ucred))];
    iovec iov{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t n = ::recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      if (errno != EAGAIN && errno != ENOTCONN && errno != EINVAL && errno != ECONNRESET) result = errno_error("peek", "unix socket");
      break;
    }
    bool descriptors = false;
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      descriptors = true;
      std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int received = -1;
        std::memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof received);
        ::close(received);
      }
    }
    if (descriptors) {
      result = make_error(Code::kUnsupported, "capture", "descriptors are on their way through a unix socket");
      break;
    }
    if (n == 0 && stream) break;
    total += static_cast<std::size_t>(n);
    if (total > kMaxQueueBytes || (message.msg_flags & MSG_TRUNC) != 0) {
      result = make_error(Code::kUnsupported, "capture", "too much waits in a unix socket");
      break;
    }
    out.add_packets(buffer.data(), static_cast<std::size_t>(n));
    if (n == 0) break;   // an empty packet: the peek offset cannot pass it
  }
  ::setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &usual, sizeof usual);
  return result;
}

}  // namespace

Result<void> SocketReader::read_unix(int fd, std::uint64_t inode, pb::Socket& socket, std::string& refused) {
  BATON_TRY(load_unix_peers());
  int listening = 0;
  socklen_t bytes = sizeof listening;
  ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes);
  sockaddr_un local{};
  socklen_t length = sizeof local;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 && length > sizeof local.sun_family) {
    socket.set_local(reinterpret_cast<const char*>(&local), length);
    socket.set_unix_path_bound(local.sun_path[0] != 0);
  }
  auto known = peers.find(inode);
  if (known == peers.end()) {
    refused = "unix socket of another network namespace";
    return {};
  }
  const std::uint64_t peer = known->second;
  bool stream = socket.type() == SOCK_STREAM || socket.type() == SOCK_SEQPACKET;
  if (listening != 0) {
    socket.set_kind(pb::SOCKET_LISTENING);
    auto waiting = receive_queues.find(inode);
    if (waiting != receive_queues.end() && waiting->second != 0) refused = "connections wait to be accepted on a unix socket";
    // The kernel does not tell the backlog; the usual maximum serves.
    socket.set_backlog(4096);
    return {};
  }
  if (peer != 0 && inside.count(peer) == 0) {
    refused = "it is connected to a unix socket outside the workload";
    return {};
  }
  if (peer != 0) {
    auto back = peers.find(peer);
    if (!stream && (back == peers.end() || back->second != inode)) {
      refused = "it is a unix datagram socket connected one way";
      return {};
    }
    socket.set_kind(pb::SOCKET_UNIX_PAIR);
    auto key = std::minmax(inode, peer);
    auto [entry, added] = pairs.try_emplace({key.first, key.second}, 0);
    if (added) {
      out->add_unix_pairs()->set_type(socket.type());
      entry->second = static_cast<std::uint32_t>(out->unix_pairs_size());
    }
    socket.set_pair(entry->second);
    if (auto ways = shut.find(inode); ways != shut.end()) socket.set_shutdown(ways->second & 3);
    socket.set_first_of_pair(inode == key.first);
  } else {
    int waiting = 0;
    bool lonely = stream && ::ioctl(fd, FIONREAD, &waiting) == 0;
    sockaddr_un gone{};
    socklen_t gone_length = sizeof gone;
    // A stream socket that was connected still knows it: reading tells the end, not ENOTCONN.
    char byte;
    ssize_t n = ::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    lonely = lonely && (n >= 0 || errno == ECONNRESET);
    (void)::getpeername(fd, reinterpret_cast<sockaddr*>(&gone), &gone_length);
    socket.set_kind(lonely ? pb::SOCKET_UNIX_LONELY : pb::SOCKET_PLAIN);
  }
  if (socket.kind() != pb::SOCKET_PLAIN || !stream) {
    pb::UnixQueue queue;
    auto got = read_queue(fd, socket.type() == SOCK_STREAM, queue);
    if (!got) {
      if (got.error().code != Code::kUnsupported) return got;
      refused = got.error().subject;
      return {};
    }
    if (queue.packets_size() != 0) {
      if (socket.kind() == pb::SOCKET_PLAIN) {
        refused = "datagrams from outside wait in a unix socket";
        return {};
      }
      *out->add_unix_queues() = std::move(queue);
      socket.set_queue(static_cast<std::uint32_t>(out->unix_queues_size()));
    }
  }
  return {};
}

}  // namespace baton::linux_backend::state
