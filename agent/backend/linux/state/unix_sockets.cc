// Unix sockets: who is connected to whom, and who waits to be accepted by whom (sock_diag(7)).
// What waits in their queues is read in unix_queues.cc.
//
// A connection that has not been accepted has one descriptor only, its client's; what has been
// sent on it already nobody can read without accepting it, so that is refused.
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

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

Result<void> SocketReader::load_unix() {
  if (unix_known) return {};
  unix_known = true;
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
  message.request.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN | UDIAG_SHOW_ICONS;
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
      UnixFacts& facts = unix_facts[m->udiag_ino];
      facts.type = m->udiag_type;
      int bytes = static_cast<int>(h->nlmsg_len - NLMSG_LENGTH(sizeof *m));
      for (auto* a = reinterpret_cast<nlattr*>(m + 1); bytes >= static_cast<int>(sizeof *a) && a->nla_len >= sizeof *a;) {
        const char* data = reinterpret_cast<const char*>(a) + NLA_HDRLEN;
        const std::size_t length = a->nla_len > NLA_HDRLEN ? a->nla_len - NLA_HDRLEN : 0u;
        std::uint32_t value = 0;
        if (length >= sizeof value) std::memcpy(&value, data, sizeof value);
        if (a->nla_type == UNIX_DIAG_PEER && length >= sizeof value) {
          facts.peer = value;
          facts.had_peer = true;
        } else if (a->nla_type == UNIX_DIAG_RQLEN && length >= sizeof value) {
          facts.receive_queue = value;
        } else if (a->nla_type == UNIX_DIAG_SHUTDOWN && length >= 1) {
          facts.shut = static_cast<unsigned char>(*data);
        } else if (a->nla_type == UNIX_DIAG_ICONS) {
          facts.waiting.resize(length / sizeof value);
          std::memcpy(facts.waiting.data(), data, facts.waiting.size() * sizeof value);
          for (std::size_t i = 0; i < facts.waiting.size(); ++i) {
            if (facts.waiting[i] != 0) waits[facts.waiting[i]] = {m->udiag_ino, static_cast<std::int64_t>(i)};
          }
        }
        int step = NLA_ALIGN(a->nla_len);
        bytes -= step;
        a = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(a) + step);
      }
    }
  }
}

bool SocketReader::leads_outside(std::uint64_t inode) const {
  auto facts = unix_facts.find(inode);
  if (facts == unix_facts.end()) return false;
  const UnixFacts& own = facts->second;
  if (own.peer != 0) return inside.count(own.peer) == 0;
  if (auto waiting = waits.find(inode); waiting != waits.end()) return inside.count(waiting->second.listener) == 0;
  // Connected, and not shut by a peer's end: it waits at a listener of another network namespace.
  return own.had_peer && own.type != SOCK_DGRAM && own.shut != 3;
}

Result<void> SocketReader::load_unix_queue(int fd, std::uint64_t inode) {
  BATON_TRY(load_unix());
  auto facts = unix_facts.find(inode);
  if (facts == unix_facts.end() || queues.contains(inode)) return {};
  if (leads_outside(inode) && spec->external_unix() != pb::EXTERNAL_UNIX_CLOSE) return {};   // not taken along
  const int type = facts->second.type;
  if (type == SOCK_STREAM && facts->second.receive_queue == 0) return {};   // of packets it tells the first one's length
  int listening = 0;
  socklen_t bytes = sizeof listening;
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) == 0 && listening != 0) return {};
  auto got = read_unix_queue(fd, type, queues[inode]);
  if (!got && got.error().code != Code::kUnsupported) return got;
  if (!got) refused_queues[inode] = got.error().subject;
  return {};
}

Result<bool> SocketReader::load_queue_of_pair(int fd, int type, std::uint64_t inode) {
  auto& queue = queues[inode];
  auto got = read_unix_queue(fd, type, queue);
  if (!got && got.error().code != Code::kUnsupported) return got.error();
  if (!got) refused_queues[inode] = got.error().subject;
  return std::all_of(queue.packets.begin(), queue.packets.end(), [](const WaitingPacket& packet) { return packet.files.empty(); });
}

void SocketReader::place_queue(std::uint64_t inode, pb::Socket& socket, std::string& refused) {
  if (auto no = refused_queues.find(inode); no != refused_queues.end()) refused = no->second;
  auto queue = queues.find(inode);
  if (queue == queues.end() || queue->second.packets.empty() || !refused.empty()) return;
  auto& placed = *out->add_unix_queues();
  placed_queues.emplace_back(out->unix_queues_size() - 1, inode);
  socket.set_queue(static_cast<std::uint32_t>(out->unix_queues_size()));
  const auto& packets = queue->second.packets;
  const bool full = std::any_of(packets.begin(), packets.end(), [](const auto& one) { return !one.files.empty() || !one.sender.empty(); });
  for (const auto& packet : packets) {
    if (!full) {
      placed.add_packets(packet.data);
      continue;
    }
    auto& more = *placed.add_full_packets();
    more.set_data(packet.data);
    more.set_sender(packet.sender);
  }
}

void SocketReader::read_unix_listener(const UnixFacts& facts, pb::Socket& socket, std::string& refused, std::string& differs) {
  socket.set_kind(pb::SOCKET_LISTENING);
  socket.set_backlog(4096);   // the kernel does not tell it; the usual maximum serves
  if (facts.receive_queue != 0 && facts.waiting.empty()) {
    refused = "connections wait to be accepted on a unix socket, and this kernel does not tell whose they are";
  }
  for (const std::uint32_t client : facts.waiting) {
    if (client == 0) {
      refused = "a connection waits to be accepted on a unix socket whose client has gone already; what it sent cannot be read";
    } else if (inside.count(client) == 0) {
      if (spec->external_unix() == pb::EXTERNAL_UNIX_RECONNECT || spec->external_unix() == pb::EXTERNAL_UNIX_CLOSE) {
        differs = "connections from outside that wait to be accepted are closed after a move";
      } else {
        refused = "a connection from outside the workload waits to be accepted on a unix socket; with --external-unix close it is closed after a move";
      }
    }
  }
}

// Connected to a program outside: the policy says what becomes of it.
void SocketReader::read_unix_outside(int fd, pb::Socket& socket, std::string& refused, std::string& differs) {
  sockaddr_un peer{};
  socklen_t length = sizeof peer;
  const bool named = ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0 && length > sizeof peer.sun_family;
  const std::string name = !named ? "a program" : peer.sun_path[0] == 0 ? "@" + std::string(peer.sun_path + 1, length - sizeof peer.sun_family - 1)
                                                                         : std::string(peer.sun_path);
  if (spec->external_unix() == pb::EXTERNAL_UNIX_RECONNECT && named) {
    socket.set_kind(pb::SOCKET_UNIX_OUTSIDE);
    socket.set_peer(reinterpret_cast<const char*>(&peer), length);
    differs = "it is connected to " + name + " outside the workload, and to that name again after a move (--external-unix reconnect)";
  } else if (spec->external_unix() == pb::EXTERNAL_UNIX_RECONNECT || spec->external_unix() == pb::EXTERNAL_UNIX_CLOSE) {
    socket.set_kind(pb::SOCKET_UNIX_LONELY);
    differs = "it is connected to " + name + " outside the workload; after a move the program finds the connection closed";
  } else {
    refused = "it is connected to " + name + " outside the workload; with --external-unix reconnect it is connected again after a move, "
              "with close the program finds it closed";
  }
}

void SocketReader::read_unix_inside(int fd, const UnixFacts& facts, std::uint64_t inode, pb::Socket& socket, std::string& refused) {
  if (facts.shut != 0) socket.set_shutdown(facts.shut & 3);
  if (auto waiting = waits.find(inode); waiting != waits.end()) {
    int sent = 0;
    if (::ioctl(fd, SIOCOUTQ, &sent) == 0 && sent != 0) {
      refused = "data waits in a unix connection that has not been accepted yet, which nobody can read";
      return;
    }
    socket.set_kind(pb::SOCKET_UNIX_PAIR);
    socket.set_waiting_order(waiting->second.order);
    return;
  }
  if (facts.peer == 0) {
    socket.set_kind(facts.had_peer ? pb::SOCKET_UNIX_LONELY : pb::SOCKET_PLAIN);
    return;
  }
  auto back = unix_facts.find(facts.peer);
  if (socket.type() == SOCK_DGRAM && (back == unix_facts.end() || back->second.peer != inode)) {
    socket.set_kind(pb::SOCKET_UNIX_ONE_WAY);
    return;
  }
  socket.set_kind(pb::SOCKET_UNIX_PAIR);
  auto key = std::minmax(inode, facts.peer);
  auto [entry, added] = pairs.try_emplace({key.first, key.second}, 0);
  if (added) {
    out->add_unix_pairs()->set_type(socket.type());
    entry->second = static_cast<std::uint32_t>(out->unix_pairs_size());
  }
  socket.set_pair(entry->second);
  socket.set_first_of_pair(inode == key.first);
}

Result<void> SocketReader::read_unix(int fd, std::uint64_t inode, pb::Socket& socket, std::string& refused, std::string& differs) {
  BATON_TRY(load_unix());
  int listening = 0;
  socklen_t bytes = sizeof listening;
  ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes);
  sockaddr_un local{};
  socklen_t length = sizeof local;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 && length > sizeof local.sun_family) {
    socket.set_local(reinterpret_cast<const char*>(&local), length);
    socket.set_unix_path_bound(local.sun_path[0] != 0);
  }
  auto known = unix_facts.find(inode);
  if (known == unix_facts.end()) {
    refused = "unix socket of another network namespace";
    return {};
  }
  const UnixFacts& facts = known->second;
  if (listening != 0) {
    read_unix_listener(facts, socket, refused, differs);
    return {};
  }
  if (leads_outside(inode)) {
    read_unix_outside(fd, socket, refused, differs);
    if (socket.kind() == pb::SOCKET_UNIX_LONELY) place_queue(inode, socket, refused);
  } else {
    read_unix_inside(fd, facts, inode, socket, refused);
    place_queue(inode, socket, refused);
    if (socket.queue() != 0 && (socket.kind() == pb::SOCKET_PLAIN || socket.kind() == pb::SOCKET_UNIX_ONE_WAY) && socket.local().empty()) {
      refused = "datagrams wait in a unix socket without a name";
    }
  }
  return {};
}

// Those that were set.
void read_unix_buffer_sizes(int fd, pb::Socket& socket) {
  auto size = [](int of, int name) {
    int value = 0;
    socklen_t bytes = sizeof value;
    return ::getsockopt(of, SOL_SOCKET, name, &value, &bytes) == 0 ? value : 0;
  };
  static thread_local std::map<int, std::pair<int, int>> usual;   // by type: send, receive
  auto [entry, added] = usual.try_emplace(socket.type());
  if (added) {
    Fd fresh = Fd::adopt(::socket(AF_UNIX, socket.type() | SOCK_CLOEXEC, 0));
    entry->second = {size(fresh.get(), SO_SNDBUF), size(fresh.get(), SO_RCVBUF)};
  }
  auto keep = [&](int name, int value, int normal) {
    if (value == 0 || value == normal) return;
    value /= 2;   // the kernel doubles what is set
    auto& saved = *socket.add_options();
    saved.set_level(SOL_SOCKET);
    saved.set_name(name);
    saved.set_value(reinterpret_cast<const char*>(&value), sizeof value);
  };
  keep(SO_SNDBUFFORCE, size(fd, SO_SNDBUF), entry->second.first);
  keep(SO_RCVBUFFORCE, size(fd, SO_RCVBUF), entry->second.second);
}

}  // namespace baton::linux_backend::state
