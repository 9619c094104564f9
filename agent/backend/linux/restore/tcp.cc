#include "agent/backend/linux/restore/tcp.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <vector>

#include "agent/backend/linux/restore/socket_calls.h"

namespace baton::restore {
namespace {

constexpr int kBufLock = 72;               // SO_BUF_LOCK (Linux 5.14)
constexpr std::uint32_t kRoomBytes = 256u << 10;   // beside a queue, for the kernel's own structures
constexpr std::size_t kPieceBytes = 64u << 10;

class Connection {
 public:
  Connection(int fd, const pb::Socket& socket) : fd_(fd), socket_(socket), tcp_(socket.tcp()) {}

  Result<void> set(int level, int name, const void* value, std::size_t bytes, const char* what) {
    if (::setsockopt(fd_, level, name, value, static_cast<socklen_t>(bytes)) == 0) return {};
    return errno_error(what, subject());
  }
  Result<void> set(int level, int name, int value, const char* what) { return set(level, name, &value, sizeof value, what); }

  std::string subject() const {
    return "TCP connection " + describe_address(socket_.local()) + " to " + describe_address(socket_.peer());
  }

  // Room for the queues, before they are filled: the size that the program knows comes after.
  Result<void> make_room() {
    auto twice = [](std::uint64_t bytes) { return static_cast<int>(std::min<std::uint64_t>(2 * bytes + kRoomBytes, 1u << 30)); };
    BATON_TRY(set(SOL_SOCKET, SO_SNDBUFFORCE, twice(tcp_.send_queue().size()), "SO_SNDBUFFORCE"));
    return set(SOL_SOCKET, SO_RCVBUFFORCE, twice(tcp_.receive_queue().size()), "SO_RCVBUFFORCE");
  }

  // The kernel doubles what it is told, and takes a told size for the program's own wish.
  Result<void> set_buffers() {
    BATON_TRY(set(SOL_SOCKET, SO_SNDBUFFORCE, static_cast<int>(tcp_.send_buffer_bytes() / 2), "SO_SNDBUFFORCE"));
    BATON_TRY(set(SOL_SOCKET, SO_RCVBUFFORCE, static_cast<int>(tcp_.receive_buffer_bytes() / 2), "SO_RCVBUFFORCE"));
    int lock = static_cast<int>(tcp_.buffer_lock());
    ::setsockopt(fd_, SOL_SOCKET, kBufLock, &lock, sizeof lock);   // an older kernel keeps the sizes fixed
    return {};
  }

  Result<void> set_sequence(int queue, std::uint32_t value) {
    BATON_TRY(set(IPPROTO_TCP, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE"));
    return set(IPPROTO_TCP, TCP_QUEUE_SEQ, static_cast<int>(value), "TCP_QUEUE_SEQ");
  }

  Result<void> join() {
    const auto& local = socket_.local();
    const auto& peer = socket_.peer();
    BATON_TRY(set_sequence(TCP_RECV_QUEUE, tcp_.receive_seq() - static_cast<std::uint32_t>(tcp_.receive_queue().size())));
    BATON_TRY(set_sequence(TCP_SEND_QUEUE, tcp_.send_seq() - static_cast<std::uint32_t>(tcp_.send_queue().size())));
    if (::bind(fd_, reinterpret_cast<const sockaddr*>(local.data()), static_cast<socklen_t>(local.size())) != 0) {
      Error error = errno_error("bind", describe_address(local));
      if (error.sys_errno == EADDRNOTAVAIL) error.hint = "Its connection belongs to an address that the workload does not have here.";
      return error;
    }
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(peer.data()), static_cast<socklen_t>(peer.size())) != 0) {
      return errno_error("connect", subject());
    }
    return {};
  }

  Result<void> negotiate() {
    std::vector<tcp_repair_opt> options;
    auto add = [&](std::uint32_t code, std::uint32_t value) { options.push_back({code, value}); };
    if (tcp_.selective_acks()) add(TCPOPT_SACK_PERMITTED, 0);
    if (tcp_.window_scaling()) add(TCPOPT_WINDOW, tcp_.send_scale() | tcp_.receive_scale() << 16);
    if (tcp_.timestamps()) add(TCPOPT_TIMESTAMP, 0);
    add(TCPOPT_MAXSEG, tcp_.mss_clamp());
    BATON_TRY(set(IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(), options.size() * sizeof options[0], "TCP_REPAIR_OPTIONS"));
    if (!tcp_.timestamps()) return {};
    // Two on: its lowest bit means something since Linux 6.7, and it must not go back.
    return set(IPPROTO_TCP, TCP_TIMESTAMP, static_cast<int>(tcp_.timestamp() + 2), "TCP_TIMESTAMP");
  }

  Result<void> fill(int queue, std::string_view bytes) {
    if (bytes.empty()) return {};
    BATON_TRY(set(IPPROTO_TCP, TCP_REPAIR_QUEUE, queue, "TCP_REPAIR_QUEUE"));
    for (std::size_t done = 0; done < bytes.size();) {
      ssize_t n = ::send(fd_, bytes.data() + done, std::min(kPieceBytes, bytes.size() - done), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return errno_error(queue == TCP_SEND_QUEUE ? "fill the send queue" : "fill the receive queue", subject());
      done += static_cast<std::size_t>(n);
    }
    return {};
  }

  std::string_view sent() const {
    std::string_view all = tcp_.send_queue();
    return all.substr(0, all.size() - std::min<std::size_t>(tcp_.unsent_bytes(), all.size()));
  }
  std::string_view unsent() const { return std::string_view(tcp_.send_queue()).substr(sent().size()); }

  Result<void> set_window() {
    if (!tcp_.has_window()) return {};
    const auto& w = tcp_.window();
    tcp_repair_window window{w.send_update(), w.send_bytes(), std::max(w.send_max_bytes(), w.send_bytes()), w.receive_bytes(),
                             w.receive_update()};
    return set(IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window, "TCP_REPAIR_WINDOW");
  }

  // What waits to be read, up to the urgent byte if there is one; that byte and the rest need a segment.
  std::string_view received() const {
    std::string_view all = tcp_.receive_queue();
    return tcp_.urgent() ? all.substr(0, tcp_.urgent_offset()) : all;
  }
  Result<void> add_urgent(int raw);
  // For segments that come while it is settled: the window that was saved begins behind them.
  Result<void> open_window(std::uint32_t next) {
    std::uint32_t send = tcp_.has_window() ? tcp_.window().send_bytes() : 65535;
    tcp_repair_window window{next, send, std::max(send, tcp_.window().send_max_bytes()), std::max<std::uint32_t>(tcp_.window().receive_bytes(), 65535), next};
    return set(IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof window, "TCP_REPAIR_WINDOW");
  }

  // A segment as the peer would send it. `ack`: what it says to have received.
  Result<void> inject(int raw, std::uint8_t flags, std::uint32_t seq, std::uint32_t ack, std::string_view data = {}) const;

  const pb::TcpConnection& tcp() const { return tcp_; }

 private:
  int fd_;
  const pb::Socket& socket_;
  const pb::TcpConnection& tcp_;
};

struct Ends { int family = 0; std::string local, peer; std::uint16_t local_port = 0, peer_port = 0; std::uint32_t scope = 0; };

// v6-mapped connections are IPv4 on the wire.
Ends ends_of(const pb::Socket& socket) {
  Ends out;
  auto take = [&](const std::string& raw, std::string& host, std::uint16_t& port) {
    sockaddr_storage any{};
    std::memcpy(&any, raw.data(), std::min(raw.size(), sizeof any));
    if (any.ss_family == AF_INET) {
      const auto& in = reinterpret_cast<const sockaddr_in&>(any);
      host.assign(reinterpret_cast<const char*>(&in.sin_addr), 4);
      port = in.sin_port;
    } else {
      const auto& in = reinterpret_cast<const sockaddr_in6&>(any);
      bool mapped = IN6_IS_ADDR_V4MAPPED(&in.sin6_addr);
      host.assign(reinterpret_cast<const char*>(&in.sin6_addr) + (mapped ? 12 : 0), mapped ? 4 : 16);
      port = in.sin6_port;
      out.scope = in.sin6_scope_id;
    }
  };
  take(socket.local(), out.local, out.local_port);
  take(socket.peer(), out.peer, out.peer_port);
  out.family = out.local.size() == 4 ? AF_INET : AF_INET6;
  return out;
}

std::uint16_t checksum(std::string bytes) {
  if (bytes.size() % 2 != 0) bytes.push_back('\0');
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i + 1 < bytes.size(); i += 2) {
    sum += static_cast<std::uint32_t>(static_cast<std::uint8_t>(bytes[i]) << 8 | static_cast<std::uint8_t>(bytes[i + 1]));
  }
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<std::uint16_t>(~sum));
}

template <typename T>
std::string text_of(const T& value) { return std::string(reinterpret_cast<const char*>(&value), sizeof value); }

Result<void> Connection::inject(int raw, std::uint8_t flags, std::uint32_t seq, std::uint32_t ack, std::string_view data) const {
  Ends ends = ends_of(socket_);
  tcphdr segment{};
  segment.th_sport = ends.peer_port;
  segment.th_dport = ends.local_port;
  segment.th_seq = htonl(seq);
  segment.th_ack = htonl(ack);
  segment.th_off = sizeof segment / 4;
  segment.th_flags = flags;
  if ((flags & TH_URG) != 0) segment.th_urp = htons(1);   // the byte before it (tcp(7), tcp_stdurg)
  std::uint32_t window = tcp_.has_window() ? tcp_.window().send_bytes() >> tcp_.send_scale() : 65535;
  segment.th_win = htons(static_cast<std::uint16_t>(std::min<std::uint32_t>(window, 65535)));
  std::string pseudo = ends.peer + ends.local;
  const std::size_t length = sizeof segment + data.size();
  if (ends.family == AF_INET) pseudo += text_of(htons(IPPROTO_TCP)) + text_of(htons(static_cast<std::uint16_t>(length)));
  else pseudo += text_of(htonl(static_cast<std::uint32_t>(length))) + text_of(htonl(IPPROTO_TCP));
  segment.th_sum = checksum(pseudo + text_of(segment) + std::string(data));

  std::string packet;
  sockaddr_storage to{};
  socklen_t to_bytes = 0;
  if (ends.family == AF_INET) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = sizeof ip / 4;
    ip.tot_len = htons(static_cast<std::uint16_t>(sizeof ip + length));
    ip.ttl = 64;
    ip.protocol = IPPROTO_TCP;
    std::memcpy(&ip.saddr, ends.peer.data(), 4);
    std::memcpy(&ip.daddr, ends.local.data(), 4);
    packet = text_of(ip);
    auto& in = reinterpret_cast<sockaddr_in&>(to);
    in.sin_family = AF_INET;
    std::memcpy(&in.sin_addr, ends.local.data(), 4);
    to_bytes = sizeof in;
  } else {
    ip6_hdr ip{};
    ip.ip6_flow = htonl(6u << 28);
    ip.ip6_plen = htons(static_cast<std::uint16_t>(length));
    ip.ip6_nxt = IPPROTO_TCP;
    ip.ip6_hlim = 64;
    std::memcpy(&ip.ip6_src, ends.peer.data(), 16);
    std::memcpy(&ip.ip6_dst, ends.local.data(), 16);
    packet = text_of(ip);
    auto& in = reinterpret_cast<sockaddr_in6&>(to);
    in.sin6_family = AF_INET6;
    std::memcpy(&in.sin6_addr, ends.local.data(), 16);
    in.sin6_scope_id = ends.scope;
    to_bytes = sizeof in;
  }
  packet += text_of(segment) + std::string(data);
  if (::sendto(raw, packet.data(), packet.size(), 0, reinterpret_cast<sockaddr*>(&to), to_bytes) < 0) {
    return errno_error("settle", subject());
  }
  return {};
}

Result<void> Connection::add_urgent(int raw) {
  const std::string_view rest = std::string_view(tcp_.receive_queue()).substr(tcp_.urgent_offset());
  const std::uint32_t mark = tcp_.receive_seq() - static_cast<std::uint32_t>(rest.size());
  BATON_TRY(open_window(mark));
  std::uint32_t acknowledged = tcp_.send_seq() - static_cast<std::uint32_t>(tcp_.send_queue().size());
  BATON_TRY(inject(raw, TH_URG | TH_ACK | TH_PUSH, mark, acknowledged, rest.substr(0, 1)));
  if (tcp_.urgent_byte().empty()) {   // the program has it already; the mark is still ahead
    int off = 0, before = 0;
    socklen_t bytes = sizeof before;
    ::getsockopt(fd_, SOL_SOCKET, SO_OOBINLINE, &before, &bytes);
    BATON_TRY(set(IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP, "TCP_REPAIR"));
    BATON_TRY(set(SOL_SOCKET, SO_OOBINLINE, off, "SO_OOBINLINE"));
    char byte = 0;
    if (::recv(fd_, &byte, 1, MSG_OOB | MSG_DONTWAIT) != 1) return errno_error("take the urgent byte", subject());
    BATON_TRY(set(SOL_SOCKET, SO_OOBINLINE, before, "SO_OOBINLINE"));
    BATON_TRY(set(IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON, "TCP_REPAIR"));
  }
  return fill(TCP_RECV_QUEUE, rest.substr(1));
}

}  // namespace

bool needs_settling(const pb::Socket& socket) {
  return socket.kind() == pb::SOCKET_TCP && (socket.tcp().urgent() || socket.tcp().fin_received() || socket.tcp().fin_sent() || socket.tcp().receive_shut());
}

Result<void> rebuild_connection(int fd, const pb::Socket& socket) {
  Connection c(fd, socket);
  BATON_TRY(c.set(IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON, "TCP_REPAIR"));
  BATON_TRY(c.make_room());
  BATON_TRY(c.join());
  BATON_TRY(c.negotiate());
  BATON_TRY(c.fill(TCP_RECV_QUEUE, c.received()));
  BATON_TRY(c.fill(TCP_SEND_QUEUE, c.sent()));
  return needs_settling(socket) ? Result<void>() : c.set_window();
}

Result<void> settle_connection(int fd, int raw, const pb::Socket& socket) {
  Connection c(fd, socket);
  const auto& t = c.tcp();
  const std::uint32_t acknowledged = t.send_seq() - static_cast<std::uint32_t>(t.send_queue().size());
  if (t.urgent()) BATON_TRY(c.add_urgent(raw));
  BATON_TRY(c.open_window(t.receive_seq()));
  const bool peer_first = t.state() == TCP_LAST_ACK;   // whose FIN came first decides the state
  if (t.fin_received() && peer_first) BATON_TRY(c.inject(raw, TH_FIN | TH_ACK, t.receive_seq(), acknowledged));
  // With data that was never sent, our own end is closed after it (resume).
  if (t.fin_sent() && c.unsent().empty()) {
    BATON_TRY(c.set(IPPROTO_TCP, TCP_REPAIR_QUEUE, TCP_SEND_QUEUE, "TCP_REPAIR_QUEUE"));
    if (::shutdown(fd, SHUT_WR) != 0) return errno_error("shutdown", c.subject());
    if (t.state() == TCP_FIN_WAIT2) BATON_TRY(c.inject(raw, TH_ACK, t.receive_seq(), t.send_seq() + 1));
  }
  if (t.fin_received() && !peer_first) {
    BATON_TRY(c.inject(raw, TH_FIN | TH_ACK, t.receive_seq(), acknowledged));
  } else if (t.receive_shut() && ::shutdown(fd, SHUT_RD) != 0) {
    return errno_error("shutdown", c.subject());
  }
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return errno_error("TCP_INFO", c.subject());
  if (c.unsent().empty() && info.tcpi_state != t.state()) {
    return make_error(Code::kFailed, "settle", c.subject() + ": it came to state " + std::to_string(info.tcpi_state) + ", not " +
                                                       std::to_string(t.state()));
  }
  return c.set_window();
}

Result<void> resume_connection(int fd, const pb::Socket& socket) {
  Connection c(fd, socket);
  BATON_TRY(c.set(IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF, "TCP_REPAIR"));
  for (std::string_view rest = c.unsent(); !rest.empty();) {
    ssize_t n = ::send(fd, rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return errno_error("send what was not sent yet", c.subject());
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
  if (c.tcp().fin_sent() && !c.unsent().empty() && ::shutdown(fd, SHUT_WR) != 0) return errno_error("shutdown", c.subject());
  BATON_TRY(c.set_buffers());
  int reuse = 0;   // repair mode leaves it cleared
  for (const auto& o : socket.options()) {
    // The segments with which it was settled came by `lo`.
    if (o.level() == SOL_SOCKET && o.name() == SO_BINDTODEVICE && needs_settling(socket)) {
      BATON_TRY(c.set(SOL_SOCKET, SO_BINDTODEVICE, o.value().data(), o.value().size(), "SO_BINDTODEVICE"));
    }
    if (o.level() == SOL_SOCKET && o.name() == SO_REUSEADDR && o.value().size() == sizeof reuse) std::memcpy(&reuse, o.value().data(), sizeof reuse);
  }
  return c.set(SOL_SOCKET, SO_REUSEADDR, reuse, "SO_REUSEADDR");
}

Result<void> connect_again(int fd, const pb::Socket& socket) {
  if (!socket.local().empty()) {
    int one = 1, reuse = 0;
    socklen_t bytes = sizeof reuse;
    ::getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, &bytes);
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int bound = ::bind(fd, reinterpret_cast<const sockaddr*>(socket.local().data()), static_cast<socklen_t>(socket.local().size()));
    if (bound != 0) return errno_error("bind", describe_address(socket.local()));
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse);
  }
  int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return errno_error("F_SETFL", "TCP connection");
  int done = ::connect(fd, reinterpret_cast<const sockaddr*>(socket.peer().data()), static_cast<socklen_t>(socket.peer().size()));
  int saved = errno;
  if (::fcntl(fd, F_SETFL, flags) != 0) return errno_error("F_SETFL", "TCP connection");
  // Whatever else comes of it the program sees as the outcome of its own call.
  if (done != 0 && saved != EINPROGRESS && saved != ECONNREFUSED && saved != ENETUNREACH && saved != EHOSTUNREACH) {
    return errno_error(saved, "connect", describe_address(socket.peer()));
  }
  return {};
}

}  // namespace baton::restore
