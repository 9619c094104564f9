// A TCP connection is read from one of its two ends, which then vanishes without a word, and is
// made anew from what was read. The other end must notice nothing. Over loopback in a network
// namespace of the test's own.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <thread>

#include "agent/backend/linux/restore/tcp.h"
#include "agent/backend/linux/state/tcp.h"

namespace baton {
namespace {

using namespace std::chrono_literals;
using linux_backend::state::RepairGuard;

bool enter_own_network() {
  static const bool done = [] {
    if (::geteuid() != 0 || ::unshare(CLONE_NEWNET) != 0) return false;
    return std::system("ip link set lo up") == 0;
  }();
  return done;
}

enum class Kind { kFour, kSix, kMapped };

struct Pair {
  int near = -1, far = -1;     // near: the one that moves
  ~Pair() {
    for (int fd : {near, far}) {
      if (fd >= 0) ::close(fd);
    }
  }
};

std::string name_of(int fd, bool peer) {
  sockaddr_storage raw{};
  socklen_t bytes = sizeof raw;
  int done = peer ? ::getpeername(fd, reinterpret_cast<sockaddr*>(&raw), &bytes) : ::getsockname(fd, reinterpret_cast<sockaddr*>(&raw), &bytes);
  EXPECT_EQ(done, 0);
  return std::string(reinterpret_cast<const char*>(&raw), bytes);
}

int tcp_waiting(int fd) {
  int value = -1;
  EXPECT_EQ(::ioctl(fd, FIONREAD, &value), 0);
  return value;
}

int state_of(int fd) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes), 0);
  return info.tcpi_state;
}

void set(int fd, int level, int name, int value) { ASSERT_EQ(::setsockopt(fd, level, name, &value, sizeof value), 0) << std::strerror(errno); }

bool wait_for(const std::function<bool()>& done) {
  auto end = std::chrono::steady_clock::now() + 5s;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

std::string noise(std::size_t bytes, unsigned seed) {
  std::mt19937 random(seed);
  std::string out(bytes, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

std::size_t pour(int fd, std::string_view bytes) {   // as much as goes in
  std::size_t done = 0;
  while (done < bytes.size()) {
    ssize_t n = ::send(fd, bytes.data() + done, bytes.size() - done, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

std::string drain(int fd, std::size_t bytes) {
  std::string out;
  while (out.size() < bytes) {
    pollfd waiting{fd, POLLIN, 0};
    if (::poll(&waiting, 1, 5000) <= 0) break;
    char buffer[65536];
    ssize_t n = ::recv(fd, buffer, std::min(sizeof buffer, bytes - out.size()), 0);
    if (n <= 0) break;
    out.append(buffer, static_cast<std::size_t>(n));
  }
  return out;
}

class Tcp : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (!enter_own_network()) GTEST_SKIP() << "needs root: network namespaces, TCP_REPAIR";
  }

  // `near` is the accepted end when `accepted`, else the one that connected.
  void connect(Pair& pair, bool accepted = true, int receive_bytes = 0) {
    sockaddr_storage raw{};
    socklen_t bytes = 0;
    int family = AF_INET;
    if (GetParam() == Kind::kFour) {
      auto& in = reinterpret_cast<sockaddr_in&>(raw);
      in.sin_family = AF_INET;
      in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      bytes = sizeof in;
    } else {
      family = AF_INET6;
      auto& in = reinterpret_cast<sockaddr_in6&>(raw);
      in.sin6_family = AF_INET6;
      ::inet_pton(AF_INET6, GetParam() == Kind::kSix ? "::1" : "::ffff:127.0.0.1", &in.sin6_addr);
      bytes = sizeof in;
    }
    int listener = ::socket(family, SOCK_STREAM, 0);
    if (family == AF_INET6) set(listener, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&raw), bytes), 0) << std::strerror(errno);
    ASSERT_EQ(::listen(listener, 4), 0);
    ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&raw), &bytes), 0);
    int client = ::socket(family, SOCK_STREAM, 0);
    if (receive_bytes != 0) set(client, SOL_SOCKET, SO_RCVBUF, receive_bytes);
    ASSERT_EQ(::connect(client, reinterpret_cast<sockaddr*>(&raw), bytes), 0) << std::strerror(errno);
    int server = ::accept(listener, nullptr, nullptr);
    ASSERT_GE(server, 0);
    listener_ = listener;
    pair.near = accepted ? server : client;
    pair.far = accepted ? client : server;
  }

  void TearDown() override {
    if (listener_ >= 0) ::close(listener_);
  }

  pb::Socket read(int fd) {
    pb::Socket socket;
    socket.set_kind(pb::SOCKET_TCP);
    socket.set_domain(GetParam() == Kind::kFour ? AF_INET : AF_INET6);
    socket.set_local(name_of(fd, false));
    socket.set_peer(name_of(fd, true));
    std::string refused;
    auto done = linux_backend::state::read_connection(fd, guard_, *socket.mutable_tcp(), refused);
    EXPECT_TRUE(done) << done.error().message();
    EXPECT_EQ(refused, "");
    guard_.uncover();
    return socket;
  }

  // The end vanishes: no FIN, no RST.
  static void vanish(int& fd) {
    set(fd, IPPROTO_TCP, TCP_REPAIR, 1);
    ::close(fd);
    fd = -1;
  }

  int rebuild(const pb::Socket& socket) {
    int fd = ::socket(socket.domain(), SOCK_STREAM, 0);
    for (const auto& o : socket.options()) {
      EXPECT_EQ(::setsockopt(fd, o.level(), o.name(), o.value().data(), static_cast<socklen_t>(o.value().size())), 0);
    }
    auto built = restore::rebuild_connection(fd, socket);
    EXPECT_TRUE(built) << built.error().message();
    if (restore::needs_settling(socket)) {
      int raw = ::socket(GetParam() == Kind::kSix ? AF_INET6 : AF_INET, SOCK_RAW, IPPROTO_RAW);
      auto settled = restore::settle_connection(fd, raw, socket);
      EXPECT_TRUE(settled) << settled.error().message();
      ::close(raw);
    }
    auto resumed = restore::resume_connection(fd, socket);
    EXPECT_TRUE(resumed) << resumed.error().message();
    return fd;
  }

  void move(Pair& pair) {
    pb::Socket socket = read(pair.near);
    vanish(pair.near);
    pair.near = rebuild(socket);
  }

  void expect_alive(Pair& pair, unsigned seed = 99) {
    for (auto [from, to] : {std::pair{pair.near, pair.far}, std::pair{pair.far, pair.near}}) {
      std::string sent = noise(20'000, seed++);
      ASSERT_EQ(pour(from, sent), sent.size());
      EXPECT_EQ(drain(to, sent.size()), sent);
    }
  }

  RepairGuard guard_;
  int listener_ = -1;
};

TEST_P(Tcp, Established_ReadTwice_IsUntouched) {
  Pair pair;
  connect(pair);
  set(pair.near, SOL_SOCKET, SO_REUSEADDR, 1);
  ASSERT_EQ(pour(pair.far, "waiting"), 7u);
  read(pair.near);
  pb::Socket again = read(pair.near);
  EXPECT_EQ(again.tcp().receive_queue(), "waiting");
  int reuse = 0, repair = -1;
  socklen_t bytes = sizeof reuse;
  ASSERT_EQ(::getsockopt(pair.near, SOL_SOCKET, SO_REUSEADDR, &reuse, &bytes), 0);
  EXPECT_EQ(reuse, 1);
  ASSERT_EQ(::getsockopt(pair.near, IPPROTO_TCP, TCP_REPAIR, &repair, &bytes), 0);
  EXPECT_EQ(repair, 0);
  EXPECT_EQ(drain(pair.near, 7), "waiting");
  expect_alive(pair);
}

TEST_P(Tcp, Established_Moved_GoesOnFromBothRoles) {
  for (bool accepted : {true, false}) {
    Pair pair;
    connect(pair, accepted);
    expect_alive(pair);
    for (int i = 0; i < 5; ++i) {
      move(pair);
      expect_alive(pair, static_cast<unsigned>(i));
    }
    ::close(std::exchange(listener_, -1));
  }
}

TEST_P(Tcp, FullQueues_Moved_NoByteIsMissing) {
  Pair pair;
  connect(pair, true, 32768);   // fills up long before the send queue does
  std::string to_far = noise(8 << 20, 1), to_near = noise(8 << 20, 2);
  std::size_t out = pour(pair.near, to_far), in = pour(pair.far, to_near);
  ASSERT_GT(out, 200'000u);
  ASSERT_GT(in, 200'000u);
  pb::Socket socket = read(pair.near);
  EXPECT_GT(socket.tcp().receive_queue().size(), 50'000u);
  vanish(pair.near);
  pair.near = rebuild(socket);
  std::string got_far, got_near;
  std::thread other([&] { got_far = drain(pair.far, out); });
  got_near = drain(pair.near, in);
  other.join();
  EXPECT_TRUE(got_far == to_far.substr(0, out)) << got_far.size() << " of " << out;
  EXPECT_TRUE(got_near == to_near.substr(0, in)) << got_near.size() << " of " << in;
  expect_alive(pair);
}

TEST_P(Tcp, OptionsNegotiated_Moved_AreTheSame) {
  Pair pair;
  connect(pair);
  expect_alive(pair);
  tcp_info before{}, after{};
  socklen_t bytes = sizeof before;
  int send_before = 0, send_after = 0;
  socklen_t four = sizeof send_before;
  ::getsockopt(pair.near, SOL_SOCKET, SO_SNDBUF, &send_before, &four);
  ASSERT_EQ(::getsockopt(pair.near, IPPROTO_TCP, TCP_INFO, &before, &bytes), 0);
  move(pair);
  ASSERT_EQ(::getsockopt(pair.near, IPPROTO_TCP, TCP_INFO, &after, &bytes), 0);
  ::getsockopt(pair.near, SOL_SOCKET, SO_SNDBUF, &send_after, &four);
  EXPECT_EQ(before.tcpi_options & (TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE), after.tcpi_options & (TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE));
  EXPECT_EQ(before.tcpi_snd_wscale, after.tcpi_snd_wscale);
  EXPECT_EQ(before.tcpi_rcv_wscale, after.tcpi_rcv_wscale);
  EXPECT_EQ(send_before, send_after);
}

TEST_P(Tcp, PeerHasClosed_Moved_EndsAndStillSends) {
  Pair pair;
  connect(pair);
  ASSERT_EQ(pour(pair.far, "last"), 4u);
  ::shutdown(pair.far, SHUT_WR);
  ASSERT_TRUE(wait_for([&] { return state_of(pair.near) == TCP_CLOSE_WAIT; }));
  move(pair);
  EXPECT_EQ(state_of(pair.near), TCP_CLOSE_WAIT);
  EXPECT_EQ(drain(pair.near, 5), "last");   // and then the end
  std::string sent = noise(50'000, 3);
  ASSERT_EQ(pour(pair.near, sent), sent.size());
  EXPECT_EQ(drain(pair.far, sent.size()), sent);
  ::close(pair.near);
  pair.near = -1;
  char byte;
  EXPECT_EQ(::recv(pair.far, &byte, 1, 0), 0);
}

TEST_P(Tcp, OwnEndClosed_Moved_StillReceivesUntilThePeerCloses) {
  Pair pair;
  connect(pair);
  ::shutdown(pair.near, SHUT_WR);
  ASSERT_TRUE(wait_for([&] { return state_of(pair.near) == TCP_FIN_WAIT2; }));
  move(pair);
  EXPECT_EQ(state_of(pair.near), TCP_FIN_WAIT2);
  std::string sent = noise(50'000, 4);
  ASSERT_EQ(pour(pair.far, sent), sent.size());
  EXPECT_EQ(drain(pair.near, sent.size()), sent);
  ::close(pair.far);
  pair.far = -1;
  char byte;
  EXPECT_EQ(::recv(pair.near, &byte, 1, 0), 0);
}

// What was written before the close is on its way still: the peer's window is full.
TEST_P(Tcp, ClosingBehindAFullQueue_Moved_EverythingAndThenTheEndArrives) {
  Pair pair;
  connect(pair);
  std::string all = noise(8 << 20, 5);
  std::size_t out = pour(pair.near, all);
  ::shutdown(pair.near, SHUT_WR);
  EXPECT_EQ(state_of(pair.near), TCP_FIN_WAIT1);
  move(pair);
  std::string got = drain(pair.far, out);
  EXPECT_TRUE(got == all.substr(0, out)) << got.size() << " of " << out;
  char byte;
  EXPECT_EQ(::recv(pair.far, &byte, 1, 0), 0);
}

TEST_P(Tcp, BothClosedWithDataOnItsWay_Moved_LastAckEnds) {
  Pair pair;
  connect(pair);
  std::string all = noise(8 << 20, 6);
  std::size_t out = pour(pair.near, all);
  ::shutdown(pair.far, SHUT_WR);
  ASSERT_TRUE(wait_for([&] { return state_of(pair.near) == TCP_CLOSE_WAIT; }));
  ::shutdown(pair.near, SHUT_WR);
  EXPECT_EQ(state_of(pair.near), TCP_LAST_ACK);
  move(pair);
  std::string got = drain(pair.far, out);
  EXPECT_TRUE(got == all.substr(0, out)) << got.size() << " of " << out;
  char byte;
  EXPECT_EQ(::recv(pair.far, &byte, 1, 0), 0);
}

void expect_urgent(int fd) {
  EXPECT_TRUE(wait_for([&] {
    pollfd waiting{fd, POLLPRI, 0};
    return ::poll(&waiting, 1, 0) == 1;
  }));
}

// Out of band, in the middle of the stream; read by MSG_OOB, where the stream then has a gap.
TEST_P(Tcp, UrgentByteInTheMiddle_Moved_IsThereAtItsPlace) {
  for (bool moved : {false, true}) {
    Pair pair;
    connect(pair);
    ASSERT_EQ(pour(pair.far, "before"), 6u);
    ASSERT_EQ(::send(pair.far, "!", 1, MSG_OOB), 1);
    ASSERT_EQ(pour(pair.far, "after"), 5u);
    expect_urgent(pair.near);
    ASSERT_TRUE(wait_for([&] { return tcp_waiting(pair.near) == 6; }));
    if (moved) move(pair);
    else read(pair.near);
    expect_urgent(pair.near);
    char byte = 0;
    EXPECT_EQ(::recv(pair.near, &byte, 1, MSG_OOB), 1);
    EXPECT_EQ(byte, '!');
    if (moved) move(pair);   // read already, the mark is still ahead
    char buffer[64] = {};
    EXPECT_EQ(::recv(pair.near, buffer, sizeof buffer, 0), 6);   // up to the mark
    int at_mark = 0;
    EXPECT_EQ(::ioctl(pair.near, SIOCATMARK, &at_mark), 0);
    EXPECT_EQ(at_mark, 1);
    EXPECT_EQ(drain(pair.near, 5), "after");
    expect_alive(pair);
    ::close(std::exchange(listener_, -1));
  }
}

TEST_P(Tcp, UrgentByteFirstAndInline_Moved_StandsInTheStream) {
  Pair pair;
  connect(pair);
  set(pair.near, SOL_SOCKET, SO_OOBINLINE, 1);
  ASSERT_EQ(::send(pair.far, "!", 1, MSG_OOB), 1);
  ASSERT_EQ(pour(pair.far, "after"), 5u);
  expect_urgent(pair.near);
  ASSERT_TRUE(wait_for([&] { return tcp_waiting(pair.near) == 6; }));
  pb::Socket socket = read(pair.near);
  auto& inlined = *socket.add_options();
  int one = 1;
  inlined.set_level(SOL_SOCKET);
  inlined.set_name(SO_OOBINLINE);
  inlined.set_value(&one, sizeof one);
  vanish(pair.near);
  pair.near = rebuild(socket);
  expect_urgent(pair.near);
  EXPECT_EQ(drain(pair.near, 6), "!after");
  expect_alive(pair);
}

// Whoever reads is killed in the middle: the connection must not stay in repair mode.
TEST_P(Tcp, ReaderKilledInRepairMode_TheGuardEndsIt) {
  Pair pair;
  connect(pair);
  set(pair.near, SOL_SOCKET, SO_REUSEADDR, 1);
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  pid_t reader = ::fork();
  ASSERT_GE(reader, 0);
  if (reader == 0) {
    RepairGuard guard;
    int on = 1;
    if (!guard.cover(pair.near) || ::setsockopt(pair.near, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0) ::_exit(1);
    pid_t pid = guard.pid();
    if (::write(told[1], &pid, sizeof pid) < 0) ::_exit(1);
    for (;;) ::pause();
  }
  pid_t guard_pid = 0;
  ASSERT_EQ(::read(told[0], &guard_pid, sizeof guard_pid), static_cast<ssize_t>(sizeof guard_pid));
  int repair = 0;
  socklen_t bytes = sizeof repair;
  ASSERT_EQ(::getsockopt(pair.near, IPPROTO_TCP, TCP_REPAIR, &repair, &bytes), 0);
  EXPECT_EQ(repair, 1);
  ::kill(reader, SIGKILL);
  ::waitpid(reader, nullptr, 0);
  EXPECT_TRUE(wait_for([&] {
    int value = 1;
    socklen_t size = sizeof value;
    return ::getsockopt(pair.near, IPPROTO_TCP, TCP_REPAIR, &value, &size) == 0 && value == 0;
  }));
  int reuse = 0;
  EXPECT_TRUE(wait_for([&] { return ::getsockopt(pair.near, SOL_SOCKET, SO_REUSEADDR, &reuse, &bytes) == 0 && reuse == 1; }));
  expect_alive(pair);
  ::close(told[0]);
  ::close(told[1]);
}

INSTANTIATE_TEST_SUITE_P(All, Tcp, ::testing::Values(Kind::kFour, Kind::kSix, Kind::kMapped), [](const auto& kind) {
  return kind.param == Kind::kFour ? "Ipv4" : kind.param == Kind::kSix ? "Ipv6" : "Ipv4Mapped";
});

}  // namespace
}  // namespace baton
