#include "agent/backend/linux/state/tcp.h"

#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include "base/check.h"

namespace baton::linux_backend::state {
namespace {

constexpr int kBufLock = 72;          // SO_BUF_LOCK (Linux 5.14)
constexpr int kReadingsMax = 8;

Result<int> option(int fd, int level, int name, const char* what) {
  int value = 0;
  socklen_t bytes = sizeof value;
  if (::getsockopt(fd, level, name, &value, &bytes) != 0) return errno_error(what, "TCP connection");
  return value;
}

Result<void> set_option(int fd, int level, int name, int value, const char* what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) != 0) return errno_error(what, "TCP connection");
  return {};
}

Result<std::uint32_t> waiting(int fd, unsigned long which, const char* what) {
  int value = 0;
  if (::ioctl(fd, which, &value) != 0) return errno_error(what, "TCP connection");
  return static_cast<std::uint32_t>(value);
}

// Repair mode for the life of this object; afterwards the socket is as it was, and has said
// nothing to its peer.
class Repair {
 public:
  static Result<Repair> begin(int fd, RepairGuard& guard) {
    BATON_ASSIGN(int reuse, option(fd, SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR"));
    BATON_ASSIGN(int urgent_inline, option(fd, SOL_SOCKET, SO_OOBINLINE, "SO_OOBINLINE"));
    BATON_TRY(guard.cover(fd));
    BATON_TRY(set_option(fd, IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON, "TCP_REPAIR"));
    Repair made(fd, reuse, urgent_inline);
    // Else neither the queue's length nor its content would go beyond an urgent byte.
    if (urgent_inline == 0) BATON_TRY(set_option(fd, SOL_SOCKET, SO_OOBINLINE, 1, "SO_OOBINLINE"));
    return made;
  }
  Repair(Repair&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), reuse_(other.reuse_), urgent_inline_(other.urgent_inline_) {}
  Repair& operator=(Repair&&) = delete;
  ~Repair() {
    if (fd_ < 0) return;
    int off = TCP_REPAIR_OFF_NO_WP;
    CHECK(::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off) == 0);   // else the guard does it
    // Repair mode sets it, and its end clears it.
    ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &reuse_, sizeof reuse_);
    if (urgent_inline_ == 0) ::setsockopt(fd_, SOL_SOCKET, SO_OOBINLINE, &urgent_inline_, sizeof urgent_inline_);
  }

 private:
  Repair(int fd, int reuse, int urgent_inline) : fd_(fd), reuse_(reuse), urgent_inline_(urgent_inline) {}
  int fd_;
  int reuse_, urgent_inline_;
};

// While the send queue is chosen the kernel counts everything that waits to be sent as sent, and
// sends nothing, should its pacing timer fire just then (tcp_write_xmit, net/ipv4/tcp_output.c). So
// it is chosen for the one call that needs it and no longer.
class ChosenQueue {
 public:
  static Result<ChosenQueue> choose(int fd, int queue) {
    BATON_TRY(set_option(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE"));
    return ChosenQueue(fd);
  }
  ChosenQueue(ChosenQueue&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ChosenQueue& operator=(ChosenQueue&&) = delete;
  ~ChosenQueue() {
    const int none = TCP_NO_QUEUE;
    if (fd_ >= 0) ::setsockopt(fd_, IPPROTO_TCP, TCP_REPAIR_QUEUE, &none, sizeof none);
  }

 private:
  explicit ChosenQueue(int fd) : fd_(fd) {}
  int fd_;
};

Result<std::uint32_t> sequence(int fd, int queue) {
  BATON_ASSIGN(ChosenQueue chosen, ChosenQueue::choose(fd, queue));
  BATON_ASSIGN(int value, option(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, "TCP_QUEUE_SEQ"));
  return static_cast<std::uint32_t>(value);
}

Result<std::string> content(int fd, int queue, std::uint32_t bytes) {
  std::string out(bytes, '\0');
  if (bytes == 0) return out;
  BATON_ASSIGN(ChosenQueue chosen, ChosenQueue::choose(fd, queue));
  ssize_t n = ::recv(fd, out.data(), out.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < 0) return errno_error("read queue", "TCP connection");
  out.resize(static_cast<std::size_t>(n));
  return out;
}

// An urgent byte stands in the way of reading: from it on, the rest needs an offset.
Result<void> read_receive_queue(int fd, std::uint32_t bytes, pb::TcpConnection& out) {
  BATON_ASSIGN(*out.mutable_receive_queue(), content(fd, TCP_RECV_QUEUE, bytes));
  int at_mark = 0;
  if (::ioctl(fd, SIOCATMARK, &at_mark) != 0) return errno_error("SIOCATMARK", "TCP connection");
  const std::size_t before = out.receive_queue().size();
  if (before == bytes && (at_mark == 0 || bytes == 0)) return {};
  if (at_mark == 0) {
    auto moved = set_option(fd, SOL_SOCKET, SO_PEEK_OFF, static_cast<int>(before), "SO_PEEK_OFF");
    if (!moved) {
      return make_error(Code::kUnsupported, "capture", "a TCP connection with an urgent byte among what waits to be read",
                        "Reading behind it needs Linux 6.9.");
    }
    auto rest = content(fd, TCP_RECV_QUEUE, bytes - static_cast<std::uint32_t>(before));
    BATON_TRY(set_option(fd, SOL_SOCKET, SO_PEEK_OFF, -1, "SO_PEEK_OFF"));
    if (!rest) return rest.error();
    out.mutable_receive_queue()->append(*rest);
  }
  const std::size_t offset = at_mark != 0 ? 0 : before;
  if (offset >= out.receive_queue().size()) return {};   // it changed meanwhile, which the caller sees
  pollfd valid{fd, POLLPRI, 0};
  ::poll(&valid, 1, 0);
  out.set_urgent(true);
  out.set_urgent_offset(static_cast<std::uint32_t>(offset));
  if ((valid.revents & POLLPRI) != 0) out.set_urgent_byte(out.receive_queue().substr(offset, 1));
  return {};
}

struct Marks {                         // what a change of the connection changes
  std::uint32_t received = 0, written = 0, in = 0, out = 0, unsent = 0;
  bool operator==(const Marks&) const = default;
};

Result<Marks> read_marks(int fd) {
  Marks m;
  BATON_ASSIGN(m.received, sequence(fd, TCP_RECV_QUEUE));
  BATON_ASSIGN(m.written, sequence(fd, TCP_SEND_QUEUE));
  BATON_ASSIGN(m.in, waiting(fd, SIOCINQ, "SIOCINQ"));
  BATON_ASSIGN(m.out, waiting(fd, SIOCOUTQ, "SIOCOUTQ"));
  BATON_ASSIGN(m.unsent, waiting(fd, SIOCOUTQNSD, "SIOCOUTQNSD"));
  return m;
}

bool fin_was_sent(int state) { return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING || state == TCP_LAST_ACK; }
bool fin_was_received(int state) { return state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING; }

// False: it changed meanwhile.
Result<bool> read_once(int fd, pb::TcpConnection& out) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return errno_error("TCP_INFO", "TCP connection");
  const int state = info.tcpi_state;
  BATON_ASSIGN(Marks marks, read_marks(fd));
  if (marks.in > kMaxTcpQueueBytes || marks.out > kMaxTcpQueueBytes) {
    return make_error(Code::kUnsupported, "capture", "a TCP connection with more than 64 MiB in a queue");
  }
  const bool sent = fin_was_sent(state), received = fin_was_received(state);
  out.set_state(static_cast<std::uint32_t>(state));
  out.set_fin_sent(sent);
  out.set_fin_received(received);
  out.set_receive_seq(marks.received - (received ? 1 : 0));
  out.set_send_seq(marks.written - (sent ? 1 : 0));
  const bool fin_waits = sent && state != TCP_FIN_WAIT2;      // it counts as a byte of the queue
  const std::uint32_t to_send = marks.out - (fin_waits && marks.out > 0 ? 1 : 0);
  out.set_unsent_bytes(std::min(to_send, marks.unsent - (fin_waits && marks.unsent > 0 ? 1 : 0)));
  BATON_ASSIGN(*out.mutable_send_queue(), content(fd, TCP_SEND_QUEUE, to_send));
  BATON_TRY(read_receive_queue(fd, marks.in, out));
  if (out.send_queue().size() != to_send || out.receive_queue().size() != marks.in) return false;

  out.set_timestamps((info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0);
  out.set_selective_acks((info.tcpi_options & TCPI_OPT_SACK) != 0);
  out.set_window_scaling((info.tcpi_options & TCPI_OPT_WSCALE) != 0);
  if (out.window_scaling()) {
    out.set_send_scale(info.tcpi_snd_wscale);
    out.set_receive_scale(info.tcpi_rcv_wscale);
  }
  BATON_ASSIGN(int mss, option(fd, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"));   // in repair mode: what was negotiated
  out.set_mss_clamp(static_cast<std::uint32_t>(mss));
  if (out.timestamps()) {
    BATON_ASSIGN(int stamp, option(fd, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP"));
    out.set_timestamp(static_cast<std::uint32_t>(stamp));
  }
  tcp_repair_window window{};
  bytes = sizeof window;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &bytes) == 0) {
    auto& w = *out.mutable_window();
    w.set_send_update(window.snd_wl1);
    w.set_send_bytes(window.snd_wnd);
    w.set_send_max_bytes(window.max_window);
    w.set_receive_bytes(window.rcv_wnd);
    w.set_receive_update(window.rcv_wup);
  }
  BATON_ASSIGN(Marks after, read_marks(fd));
  tcp_info again{};
  bytes = sizeof again;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &again, &bytes) != 0) return errno_error("TCP_INFO", "TCP connection");
  return after == marks && again.tcpi_state == info.tcpi_state;
}

}  // namespace

Result<void> read_connection(int fd, RepairGuard& guard, pb::TcpConnection& out, std::string& refused) {
  char upper[16] = {};
  socklen_t bytes = sizeof upper;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_ULP, upper, &bytes) == 0 && upper[0] != 0) {
    refused = std::string("a TCP connection with a layer of the kernel above it (") + upper + ")";
    return {};
  }
  pollfd shut{fd, POLLRDHUP, 0};
  ::poll(&shut, 1, 0);
  BATON_ASSIGN(int send_buffer, option(fd, SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF"));
  BATON_ASSIGN(int receive_buffer, option(fd, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"));
  auto peek = option(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF");   // of TCP: Linux 6.9
  if (peek && *peek >= 0) (void)set_option(fd, SOL_SOCKET, SO_PEEK_OFF, -1, "SO_PEEK_OFF").has_value();
  auto done = [&]() -> Result<void> {
    BATON_ASSIGN(Repair repair, Repair::begin(fd, guard));
    for (int i = 0; i < kReadingsMax; ++i) {
      out.Clear();
      BATON_ASSIGN(bool whole, read_once(fd, out));
      if (whole) return {};
    }
    return make_error(Code::kFailed, "capture", "a TCP connection that goes on changing while the program is stopped", "Try again.");
  }();
  if (peek && *peek >= 0) (void)set_option(fd, SOL_SOCKET, SO_PEEK_OFF, *peek, "SO_PEEK_OFF").has_value();
  BATON_TRY(done);
  out.set_receive_shut((shut.revents & POLLRDHUP) != 0 && !out.fin_received());
  out.set_send_buffer_bytes(static_cast<std::uint32_t>(send_buffer));
  out.set_receive_buffer_bytes(static_cast<std::uint32_t>(receive_buffer));
  if (auto lock = option(fd, SOL_SOCKET, kBufLock, "SO_BUF_LOCK")) out.set_buffer_lock(static_cast<std::uint32_t>(*lock));
  return {};
}

namespace {

// Every TCP connection of the network namespace of `pid` in one of `states`.
Result<void> each_connection(pid_t pid, std::uint32_t states, const std::function<void(const inet_diag_msg&)>& each) {
  BATON_ASSIGN(Fd own, open_file("/proc/thread-self/ns/net", O_RDONLY));
  BATON_ASSIGN(Fd theirs, open_file("/proc/" + std::to_string(pid) + "/ns/net", O_RDONLY));
  if (::setns(theirs.get(), CLONE_NEWNET) != 0) return errno_error("setns", "network namespace of " + std::to_string(pid));
  Fd netlink = Fd::adopt(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  int saved = errno;
  CHECK(::setns(own.get(), CLONE_NEWNET) == 0);
  if (!netlink) return errno_error(saved, "socket", "NETLINK_SOCK_DIAG");
  std::vector<char> buffer(64 << 10);
  for (int family : {AF_INET, AF_INET6}) {
    struct { nlmsghdr header; inet_diag_req_v2 request; } message{};
    message.header.nlmsg_len = sizeof message;
    message.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.request.sdiag_family = static_cast<std::uint8_t>(family);
    message.request.sdiag_protocol = IPPROTO_TCP;
    message.request.idiag_states = states;
    if (::send(netlink.get(), &message, sizeof message, 0) < 0) return errno_error("send", "sock_diag");
    for (bool more = true; more;) {
      ssize_t n = ::recv(netlink.get(), buffer.data(), buffer.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return errno_error("recv", "sock_diag");
      int left = static_cast<int>(n);
      for (auto* h = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
        if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR) {   // error: no such family here
          more = false;
          continue;
        }
        each(*static_cast<inet_diag_msg*>(NLMSG_DATA(h)));
      }
    }
  }
  return {};
}

}  // namespace

Result<Loose> loose_connections(pid_t pid) {
  Loose out;
  constexpr std::uint32_t kStates = 1u << TCP_ESTABLISHED | 1u << TCP_CLOSE_WAIT | 1u << TCP_FIN_WAIT1 | 1u << TCP_CLOSING | 1u << TCP_LAST_ACK;
  BATON_TRY(each_connection(pid, kStates, [&](const inet_diag_msg& m) {
    if (m.idiag_inode != 0) return;
    if (m.idiag_state == TCP_ESTABLISHED || m.idiag_state == TCP_CLOSE_WAIT) ++out.to_be_accepted;
    else if (m.idiag_wqueue > 1) ++out.closing;   // more than its FIN
  }));
  return out;
}

Result<std::string> connecting_to(pid_t pid, std::uint64_t inode) {
  std::string out;
  BATON_TRY(each_connection(pid, 1u << TCP_SYN_SENT, [&](const inet_diag_msg& m) {
    if (m.idiag_inode != inode) return;
    if (m.idiag_family == AF_INET) {
      sockaddr_in peer{};
      peer.sin_family = AF_INET;
      peer.sin_port = m.id.idiag_dport;
      std::memcpy(&peer.sin_addr, m.id.idiag_dst, sizeof peer.sin_addr);
      out.assign(reinterpret_cast<const char*>(&peer), sizeof peer);
    } else {
      sockaddr_in6 peer{};
      peer.sin6_family = AF_INET6;
      peer.sin6_port = m.id.idiag_dport;
      std::memcpy(&peer.sin6_addr, m.id.idiag_dst, sizeof peer.sin6_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&peer.sin6_addr)) peer.sin6_scope_id = m.id.idiag_if;
      out.assign(reinterpret_cast<const char*>(&peer), sizeof peer);
    }
  }));
  return out;
}

}  // namespace baton::linux_backend::state
