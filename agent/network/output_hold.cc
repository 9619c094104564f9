#include "agent/network/output_hold.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "agent/network/offload_header.h"

namespace baton::network {
namespace {

constexpr std::size_t kFrameBytesMax = 70u << 10;
constexpr std::size_t kHead = sizeof(OffloadHeader);
constexpr int kTapBytes = 8 << 20;

// ARP and neighbour discovery (ICMPv6 133 to 137).
bool is_about_the_link(std::span<const std::byte> frame) {
  const auto* f = reinterpret_cast<const std::uint8_t*>(frame.data());
  if (f[12] == 0x08 && f[13] == 0x06) return true;
  return frame.size() >= ETH_HLEN + 41 && f[12] == 0x86 && f[13] == 0xdd && f[20] == 58 && f[54] >= 133 && f[54] <= 137;
}

}  // namespace

Result<std::unique_ptr<OutputHold>> OutputHold::start(int from, int into, std::function<void()> waits) {
  Fd tap = Fd::adopt(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!tap) return errno_error("packet socket", "output of a workload");
  int one = 1, bytes = kTapBytes;
  if (::setsockopt(tap.get(), SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) != 0) return errno_error("PACKET_VNET_HDR", "output of a workload");
  ::setsockopt(tap.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  ::setsockopt(tap.get(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one);
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_protocol = htons(ETH_P_ALL);
  where.sll_ifindex = from;
  if (::bind(tap.get(), reinterpret_cast<sockaddr*>(&where), sizeof where) != 0) return errno_error("bind packet socket", "output of a workload");
  Fd wake = Fd::adopt(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return errno_error("eventfd", "output of a workload");
  return std::unique_ptr<OutputHold>(new OutputHold(std::move(tap), std::move(wake), into, std::move(waits)));
}

OutputHold::OutputHold(Fd tap, Fd wake, int into, std::function<void()> waits)
    : tap_(std::move(tap)), wake_(std::move(wake)), into_(into), waits_(std::move(waits)), buffer_(kFrameBytesMax),
      thread_([this] { run(); }) {}

OutputHold::~OutputHold() {
  stopping_ = true;
  std::uint64_t one = 1;
  while (::write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) {}
  thread_.join();
}

void OutputHold::run() {
  while (!stopping_) {
    pollfd polled[2] = {{tap_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(polled, 2, -1) < 0) continue;
    bool first = false;
    {
      std::lock_guard lock(mutex_);
      first = take_in();
    }
    if (first && !stopping_) waits_();
  }
}

bool OutputHold::take_in() {
  bool first = false;
  for (;;) {
    ssize_t n = ::recv(tap_.get(), buffer_.data(), buffer_.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return first;
    if (static_cast<std::size_t>(n) < kHead + ETH_HLEN) continue;
    auto frame = std::span<const std::byte>(buffer_).first(static_cast<std::size_t>(n));
    if (is_about_the_link(frame.subspan(kHead))) {
      send(frame);
      continue;
    }
    if (stats_.held_bytes + frame.size() > kHeldBytesMax) {
      ++stats_.lost;
      continue;
    }
    frames_.push_back({epoch_, std::vector<std::byte>(frame.begin(), frame.end())});
    ++stats_.held;
    stats_.held_bytes += frame.size();
    first = first || !std::exchange(told_, true);
  }
}

void OutputHold::send(std::span<const std::byte> frame) {
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = into_;
  const auto* f = reinterpret_cast<const std::uint8_t*>(frame.data()) + kHead;
  to.sll_protocol = htons(static_cast<std::uint16_t>(f[12] << 8 | f[13]));
  for (int i = 0; i < 100; ++i) {
    if (::sendto(tap_.get(), frame.data(), frame.size(), 0, reinterpret_cast<sockaddr*>(&to), sizeof to) >= 0) {
      ++stats_.sent;
      return;
    }
    if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS) break;
    pollfd room{tap_.get(), POLLOUT, 0};
    ::poll(&room, 1, 1);
  }
  ++stats_.lost;
}

std::uint64_t OutputHold::mark() {
  std::lock_guard lock(mutex_);
  (void)take_in();
  told_ = false;
  return epoch_++;
}

void OutputHold::release(std::uint64_t epoch) {
  std::lock_guard lock(mutex_);
  while (!frames_.empty() && frames_.front().epoch <= epoch) {
    --stats_.held;
    stats_.held_bytes -= frames_.front().bytes.size();
    send(frames_.front().bytes);
    frames_.pop_front();
  }
}

OutputHold::Stats OutputHold::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace baton::network
