// Ports, the switch with its egress gate, announcements and holds, in three network namespaces:
// "node" (this test's own, with eth0), "outside" at the other end of eth0's cable, and one per
// workload. The latter are held by processes that do nothing else.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "agent/network/hold.h"
#include "agent/network/port.h"
#include "base/clock.h"

namespace baton::network {
namespace {

using namespace std::chrono_literals;

// A process in a network namespace of its own.
class Space {
 public:
  Space() {
    int told[2];
    if (::pipe(told) != 0) return;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      char done = ::unshare(CLONE_NEWNET) == 0 ? 1 : 0;
      if (::write(told[1], &done, 1) < 0) ::_exit(1);
      for (;;) ::pause();
    }
    char done = 0;
    good_ = ::read(told[0], &done, 1) == 1 && done == 1;
    ::close(told[0]);
    ::close(told[1]);
    run("ip link set lo up");
  }
  ~Space() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Space(const Space&) = delete;
  Space& operator=(const Space&) = delete;

  pid_t pid() const { return pid_; }
  bool good() const { return good_; }
  bool run(const std::string& command) const {
    return std::system(("nsenter --net=/proc/" + std::to_string(pid_) + "/ns/net " + command).c_str()) == 0;
  }
  int socket(int family, int type, int protocol = 0) const {
    auto space = namespace_of(pid_);
    int fd = -1;
    EXPECT_TRUE(space && inside(space->get(), [&]() -> Result<void> {
      fd = ::socket(family, type | SOCK_CLOEXEC, protocol);
      return {};
    }));
    EXPECT_GE(fd, 0);
    return fd;
  }
  int index(const std::string& name) const {
    auto space = namespace_of(pid_);
    auto route = Netlink::open_in(space->get(), NETLINK_ROUTE);
    auto found = find_interface(*route, name);
    return found ? found->index : 0;
  }

 private:
  pid_t pid_ = 0;
  bool good_ = false;
};

struct Destination {
  sockaddr_storage raw{};
  socklen_t bytes = 0;
  Destination(const std::string& host, int port) {
    if (host.find(':') != std::string::npos) {
      auto& in = reinterpret_cast<sockaddr_in6&>(raw);
      in.sin6_family = AF_INET6;
      in.sin6_port = htons(static_cast<std::uint16_t>(port));
      ::inet_pton(AF_INET6, host.c_str(), &in.sin6_addr);
      bytes = sizeof in;
    } else {
      auto& in = reinterpret_cast<sockaddr_in&>(raw);
      in.sin_family = AF_INET;
      in.sin_port = htons(static_cast<std::uint16_t>(port));
      ::inet_pton(AF_INET, host.c_str(), &in.sin_addr);
      bytes = sizeof in;
    }
  }
  const sockaddr* address() const { return reinterpret_cast<const sockaddr*>(&raw); }
  int family() const { return raw.ss_family; }
};

// Somebody with a closed port says so: the address is there.
bool answers(const Space* from, const std::string& host, std::chrono::milliseconds patience = 1000ms) {
  Destination to(host, 9);
  int fd = from ? from->socket(to.family(), SOCK_STREAM) : ::socket(to.family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
  timeval limit{0, static_cast<suseconds_t>(patience.count() * 1000)};
  if (patience >= 1000ms) limit = {patience.count() / 1000, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  bool refused = ::connect(fd, to.address(), to.bytes) != 0 && errno == ECONNREFUSED;
  ::close(fd);
  return refused;
}

class Ports : public ::testing::Test {
 protected:
  static bool in_a_node() {
    static const bool done = [] {
      return ::geteuid() == 0 && ::unshare(CLONE_NEWNET) == 0 && std::system("ip link set lo up") == 0;
    }();
    return done;
  }

  void SetUp() override {
    if (!in_a_node()) GTEST_SKIP() << "needs root: network namespaces";
    outside_ = std::make_unique<Space>();
    if (!outside_->good()) GTEST_SKIP() << "needs network namespaces";
    ASSERT_EQ(std::system(("ip link add eth0 type veth peer name wire netns " + std::to_string(outside_->pid())).c_str()), 0);
    ASSERT_EQ(std::system("ip link set eth0 up && ip address add 10.99.0.11/24 dev eth0 && ip address add fd99::11/64 dev eth0 nodad"), 0);
    ASSERT_TRUE(outside_->run("ip link set wire up") && outside_->run("ip address add 10.99.0.2/24 dev wire") &&
                outside_->run("ip address add fd99::2/64 dev wire nodad"));
    auto made = Switch::open("test");
    ASSERT_TRUE(made) << made.error().message();
    switch_ = std::move(*made);
  }

  void TearDown() override {
    ports_.clear();
    workloads_.clear();
    (void)!std::system("nft delete table netdev baton-test 2>/dev/null; ip link del eth0 2>/dev/null");
  }

  static pb::WorkloadSpec spec(const std::string& name, const std::vector<std::string>& addresses) {
    pb::WorkloadSpec out;
    out.set_name(name);
    for (const auto& a : addresses) out.add_addresses(a);
    return out;
  }

  Port& equip(const std::string& name, const std::vector<std::string>& addresses) {
    auto port = Port::plan(*switch_, spec(name, addresses));
    EXPECT_TRUE(port) << port.error().message();
    workloads_.push_back(std::make_unique<Space>());
    auto equipped = (*port)->equip(workloads_.back()->pid());
    EXPECT_TRUE(equipped) << equipped.error().message();
    ports_.push_back(std::move(*port));
    return *ports_.back();
  }

  std::unique_ptr<Space> outside_;
  std::unique_ptr<Switch> switch_;
  std::vector<std::unique_ptr<Space>> workloads_;
  std::vector<std::unique_ptr<Port>> ports_;
};

TEST_F(Ports, NotAttached_NobodyAnswers_AttachedEverybodyReachesIt) {
  Port& port = equip("one", {"10.99.0.50/24", "fd99::50/64"});
  EXPECT_FALSE(answers(outside_.get(), "10.99.0.50", 300ms));
  auto attached = port.attach();
  ASSERT_TRUE(attached) << attached.error().message();
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.50"));
  EXPECT_TRUE(answers(nullptr, "10.99.0.50"));                      // from the node itself
  EXPECT_TRUE(answers(workloads_[0].get(), "10.99.0.2"));
  EXPECT_TRUE(answers(workloads_[0].get(), "10.99.0.11"));
  EXPECT_TRUE(answers(outside_.get(), "fd99::50"));
  EXPECT_TRUE(answers(nullptr, "fd99::50", 3000ms));
  EXPECT_TRUE(answers(workloads_[0].get(), "fd99::2"));
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.11"));               // the node's own is as before
  ASSERT_TRUE(port.detach());
  EXPECT_FALSE(answers(outside_.get(), "10.99.0.50", 300ms));
  EXPECT_FALSE(answers(outside_.get(), "fd99::50", 300ms));
  ASSERT_TRUE(port.attach());
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.50"));
  port.remove();
  EXPECT_FALSE(answers(outside_.get(), "10.99.0.50", 300ms));
}

TEST_F(Ports, TwoOfOneNode_ReachEachOther) {
  Port& one = equip("one", {"10.99.0.50/24"});
  Port& two = equip("two", {"10.99.0.51/24"});
  ASSERT_TRUE(one.attach());
  ASSERT_TRUE(two.attach());
  EXPECT_TRUE(answers(workloads_[0].get(), "10.99.0.51"));
  EXPECT_TRUE(answers(workloads_[1].get(), "10.99.0.50"));
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.51"));
  one.remove();
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.51"));
  EXPECT_FALSE(answers(workloads_[1].get(), "10.99.0.50", 300ms));
}

TEST_F(Ports, Attach_IsAnnouncedByArpAndNeighbourAdvertisement) {
  Port& port = equip("one", {"10.99.0.50/24", "fd99::50/64"});
  int fd = outside_->socket(AF_PACKET, SOCK_RAW, 0);
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_protocol = htons(ETH_P_ALL);
  where.sll_ifindex = outside_->index("wire");
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&where), sizeof where), 0);
  ASSERT_TRUE(port.attach());
  bool arp = false, advertised = false;
  for (pollfd waiting{fd, POLLIN, 0}; !(arp && advertised) && ::poll(&waiting, 1, 1000) == 1;) {
    unsigned char frame[2048];
    ssize_t n = ::recv(fd, frame, sizeof frame, 0);
    if (n < 42 || std::memcmp(frame + 6, port.mac().data(), 6) != 0) continue;
    const unsigned char address[] = {10, 99, 0, 50};
    arp = arp || (frame[12] == 8 && frame[13] == 6 && std::memcmp(frame + 28, address, 4) == 0 && std::memcmp(frame + 38, address, 4) == 0);
    advertised = advertised || (n >= 78 && frame[12] == 0x86 && frame[20] == 58 && frame[54] == 136 && frame[77] == 0x50);
  }
  EXPECT_TRUE(arp);
  EXPECT_TRUE(advertised);
  ::close(fd);
}

TEST_F(Ports, AddressInUse_IsRefusedWithWhoHasIt) {
  for (const char* taken : {"10.99.0.2/24", "fd99::2/64"}) {
    auto port = Port::plan(*switch_, spec("one", {taken}));
    ASSERT_TRUE(port);
    auto free = (*port)->check_free();
    ASSERT_FALSE(free);
    EXPECT_EQ(free.error().code, Code::kConflict);
    EXPECT_NE(free.error().subject.find("answers for it on eth0"), std::string::npos) << free.error().message();
  }
  auto own = Port::plan(*switch_, spec("one", {"10.99.0.11/24"}));
  EXPECT_EQ((*own)->check_free().error().code, Code::kConflict);
  auto free = Port::plan(*switch_, spec("one", {"10.99.0.60/24", "fd99::60/64"}));
  auto checked = (*free)->check_free();
  EXPECT_TRUE(checked) << checked.error().message();
}

TEST_F(Ports, NoInterfaceInThatNetwork_IsRefusedByName) {
  auto port = Port::plan(*switch_, spec("one", {"192.0.2.9/24"}));
  ASSERT_TRUE(port);
  auto checked = (*port)->check_free();
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, Code::kUnsupported);
  EXPECT_NE(checked.error().subject.find("192.0.2.9"), std::string::npos);
}

TEST_F(Ports, AnotherWarden_TakesUpWhatIsThere) {
  Port& port = equip("one", {"10.99.0.50/24"});
  ASSERT_TRUE(port.attach());
  auto other = Switch::open("test");
  ASSERT_TRUE(other);
  auto again = Port::plan(**other, spec("one", {"10.99.0.50/24"}));
  auto taken = (*again)->take_up(workloads_[0]->pid());
  ASSERT_TRUE(taken) << taken.error().message();
  EXPECT_TRUE((*again)->attached());
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.50"));
  ASSERT_TRUE((*again)->detach());
  EXPECT_FALSE(answers(outside_.get(), "10.99.0.50", 300ms));
}

// Datagrams leave the workload without a pause while the gate is opened for a term and closes
// by itself: the receiver's kernel stamps what arrives, and nothing may be stamped later.
TEST_F(Ports, GateOpenedForATerm_NothingLeavesAfterIt) {
  Port& port = equip("one", {"10.99.0.50/24"});
  ASSERT_TRUE(port.attach());
  ASSERT_TRUE(answers(workloads_[0].get(), "10.99.0.2"));   // its neighbour is known from here on
  ASSERT_TRUE(switch_->close(port.mac()));
  ASSERT_FALSE(switch_->is_open(port.mac()));
  Destination sink("10.99.0.2", 7000), any("0.0.0.0", 7000);
  int receiver = outside_->socket(AF_INET, SOCK_DGRAM), one = 1, room = 8 << 20;
  ::setsockopt(receiver, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
  ::setsockopt(receiver, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
  ASSERT_EQ(::bind(receiver, any.address(), any.bytes), 0);
  int sender = workloads_[0]->socket(AF_INET, SOCK_DGRAM);
  std::atomic<bool> stop{false};
  std::thread flood([&] {
    for (std::uint64_t n = 0; !stop; ++n) (void)!::sendto(sender, &n, sizeof n, 0, sink.address(), sink.bytes);
  });
  std::uint64_t late = 0, all = 0;
  std::chrono::nanoseconds shortest = std::chrono::hours(1);
  auto receive = [&](std::chrono::nanoseconds opened, std::chrono::nanoseconds deadline) {
    for (;;) {
      char byte[16];
      alignas(cmsghdr) char control[128];
      iovec part{byte, sizeof byte};
      msghdr header{};
      header.msg_iov = &part;
      header.msg_iovlen = 1;
      header.msg_control = control;
      header.msg_controllen = sizeof control;
      if (::recvmsg(receiver, &header, MSG_DONTWAIT) < 0) return;
      timespec stamp{};
      std::memcpy(&stamp, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof stamp);
      auto at = std::chrono::seconds(stamp.tv_sec) + std::chrono::nanoseconds(stamp.tv_nsec);
      ++all;
      if (at > deadline) ++late;
      if (at > opened) shortest = std::min(shortest, deadline - at);
    }
  };
  constexpr auto kTerm = 60ms;
  for (int i = 0; i < 12; ++i) {
    auto opened = read_clock(CLOCK_REALTIME);
    ASSERT_TRUE(switch_->open_for(port.mac(), kTerm));
    if (i % 3 == 0) {   // renewed: counts from then
      std::this_thread::sleep_for(20ms);
      opened = read_clock(CLOCK_REALTIME);
      ASSERT_TRUE(switch_->open_for(port.mac(), kTerm));
    }
    auto deadline = opened + kTerm;
    std::this_thread::sleep_for(kTerm + 60ms);
    receive(opened, deadline);
  }
  stop = true;
  flood.join();
  EXPECT_EQ(late, 0u);
  EXPECT_GT(all, 1000u);
  EXPECT_LT(shortest, 30ms);   // and it is not closed needlessly early
  RecordProperty("packets", static_cast<int>(all));
  RecordProperty("late", static_cast<int>(late));
  std::printf("%llu packets in 12 terms of 60 ms, %llu after a deadline, the last one %.1f ms before its own\n",
              static_cast<unsigned long long>(all), static_cast<unsigned long long>(late), static_cast<double>(shortest.count()) / 1e6);
  ::close(receiver);
  ::close(sender);
}

TEST_F(Ports, GateRenewedInTime_NeverCloses) {
  Port& port = equip("one", {"10.99.0.50/24"});
  ASSERT_TRUE(port.attach());
  auto end = std::chrono::steady_clock::now() + 600ms;
  while (std::chrono::steady_clock::now() < end) {
    ASSERT_TRUE(switch_->open_for(port.mac(), 80ms));
    EXPECT_TRUE(answers(workloads_[0].get(), "10.99.0.2", 500ms));
  }
}

// What comes while it is held arrives afterwards, each once and in order.
TEST_F(Ports, HeldAndReleased_NothingIsMissing) {
  Port& port = equip("one", {"10.99.0.50/24"});
  ASSERT_TRUE(port.attach());
  auto hold = Hold::make(port);
  ASSERT_TRUE(hold) << hold.error().message();
  Destination to("10.99.0.50", 7001), any("0.0.0.0", 7001);
  int receiver = workloads_[0]->socket(AF_INET, SOCK_DGRAM);
  ASSERT_EQ(::bind(receiver, any.address(), any.bytes), 0);
  int sender = outside_->socket(AF_INET, SOCK_DGRAM);
  int sent = 0;
  auto send = [&](int count) {
    for (int i = 0; i < count; ++i, ++sent) ASSERT_GT(::sendto(sender, &sent, sizeof sent, 0, to.address(), to.bytes), 0);
  };
  send(5);
  std::this_thread::sleep_for(20ms);
  for (int round = 0; round < 10; ++round) {
    ASSERT_TRUE((*hold)->hold());
    send(10);
    std::this_thread::sleep_for(5ms);
    (*hold)->release();
    send(5);
  }
  for (int expected = 0; expected < sent; ++expected) {
    pollfd waiting{receiver, POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 2000), 1) << "datagram " << expected << " of " << sent;
    int got = -1;
    ASSERT_EQ(::recv(receiver, &got, sizeof got, 0), static_cast<ssize_t>(sizeof got));
    EXPECT_EQ(got, expected);
  }
  // The owner has gone: the kernel lets everything in again.
  ASSERT_TRUE((*hold)->hold());
  EXPECT_FALSE(answers(outside_.get(), "10.99.0.50", 200ms));
  hold->reset();
  EXPECT_TRUE(answers(outside_.get(), "10.99.0.50", 3000ms));
  ::close(receiver);
  ::close(sender);
}

TEST(Address, Parsed) {
  auto four = parse_address("10.77.0.50/24");
  ASSERT_TRUE(four);
  EXPECT_EQ(four->bits, 24u);
  EXPECT_EQ(four->host(), "10.77.0.50");
  auto six = parse_address("fd00::5/64");
  ASSERT_TRUE(six);
  EXPECT_TRUE(six->in_network_of(*parse_address("fd00::99/64")));
  EXPECT_FALSE(six->in_network_of(*parse_address("fd01::99/64")));
  EXPECT_FALSE(four->in_network_of(*six));
  for (const char* bad : {"", "10.77.0.50", "10.77.0.50/33", "10.77.0/24", "fd00::/129", "10.77.0.50/-1", "10.77.0.50/2x", "x/8"}) {
    EXPECT_FALSE(parse_address(bad)) << bad;
  }
}

}  // namespace
}  // namespace baton::network
