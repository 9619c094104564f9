#include "agent/network/hold.h"

#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "agent/network/offload_header.h"
#include "base/log.h"

namespace baton::network {
namespace {

const TableName kTable{NFPROTO_INET, "baton-hold"};
constexpr std::uint32_t kOwner = 2;          // NFT_TABLE_F_OWNER (Linux 5.12)
const std::string kChain = "arriving", kLeaving = "leaving";
constexpr std::uint8_t kNetdev = 5;          // NFPROTO_NETDEV
constexpr std::size_t kFrameBytesMax = 70u << 10;

}  // namespace

Result<std::unique_ptr<Hold>> Hold::make(Port& port, std::function<void()> output_waits) {
  std::unique_ptr<Hold> made(new Hold(port));
  BATON_TRY(made->set_up());
  if (port.outlet_index() != 0) {
    BATON_ASSIGN(made->output_, OutputHold::start(port.outlet_index(), port.inlet_index(), std::move(output_waits)));
  }
  return made;
}

Result<void> Hold::set_up() {
  BATON_ASSIGN(filter_, Netlink::open_in(port_.space(), NETLINK_NETFILTER));
  std::vector<Message> all;
  all.push_back(new_table(kTable, kOwner));
  all.push_back(new_base_chain(kTable, kChain, {NF_INET_LOCAL_IN, -300, {}}, Verdict::kAccept));
  BATON_TRY(filter_.commit(all, "nf_tables", "table baton-hold of " + port_.name()));

  BATON_ASSIGN(leaving_, Netlink::open(NETLINK_NETFILTER));
  leaving_table_ = {kNetdev, "baton-hold-" + port_.name()};
  std::vector<Message> out;
  out.push_back(new_table(leaving_table_, kOwner));
  out.push_back(new_base_chain(leaving_table_, kLeaving, {NF_NETDEV_INGRESS, -300, port_.name()}, Verdict::kAccept));
  BATON_TRY(leaving_.commit(out, "nf_tables", "table " + leaving_table_.name));

  tap_ = Fd::adopt(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!tap_) return errno_error("packet socket", port_.uplink().name);
  int one = 1, bytes = kKeptBytesMax;
  // With offloads as they are: frames larger than the MTU and without checksums stay so.
  if (::setsockopt(tap_.get(), SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) != 0) return errno_error("PACKET_VNET_HDR", port_.uplink().name);
  ::setsockopt(tap_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  BATON_TRY(listen(false));
  sockaddr_ll where{};
  where.sll_family = AF_PACKET;
  where.sll_protocol = htons(ETH_P_ALL);
  where.sll_ifindex = port_.uplink().index;
  if (::bind(tap_.get(), reinterpret_cast<sockaddr*>(&where), sizeof where) != 0) return errno_error("bind packet socket", port_.uplink().name);
  return {};
}

// Frames for the workload's hardware address, or none.
Result<void> Hold::listen(bool on) {
  const Mac& m = port_.mac();
  const std::uint32_t low = static_cast<std::uint32_t>(m[2]) << 24 | static_cast<std::uint32_t>(m[3]) << 16 | m[4] << 8 | m[5];
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 3),
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(m[0] << 8 | m[1]), 0, 1),
      BPF_STMT(BPF_RET | BPF_K, on ? 0xffffffffu : 0u),
      BPF_STMT(BPF_RET | BPF_K, 0),
  };
  sock_fprog program{sizeof code / sizeof code[0], code};
  if (::setsockopt(tap_.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0) return errno_error("SO_ATTACH_FILTER", port_.name());
  return {};
}

Result<void> Hold::hold() {
  // First kept, then dropped: between the two a frame may come twice, but none is missing.
  BATON_TRY(listen(true));
  std::vector<Message> drop;
  drop.push_back(set_policy(kTable, kChain, Verdict::kDrop));
  auto done = filter_.commit(drop, "hold what arrives", port_.name());
  if (!done) {
    (void)listen(false).has_value();
    return done;
  }
  holding_ = true;
  if (output_) return {};
  std::vector<Message> stop;
  stop.push_back(set_policy(leaving_table_, kLeaving, Verdict::kDrop));
  done = leaving_.commit(stop, "hold what leaves", port_.name());
  if (!done) release();
  return done;
}

std::size_t Hold::pass_on(int interface, const Mac* source) {
  std::vector<std::byte> buffer(kFrameBytesMax);
  sockaddr_ll to{};
  to.sll_family = AF_PACKET;
  to.sll_ifindex = interface;
  std::size_t count = 0;
  for (;;) {
    sockaddr_ll from{};
    socklen_t length = sizeof from;
    ssize_t n = ::recvfrom(tap_.get(), buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return count;
    constexpr std::size_t kHead = sizeof(OffloadHeader);
    if (from.sll_pkttype == PACKET_OUTGOING || static_cast<std::size_t>(n) < kHead + ETH_HLEN) continue;
    if (source) std::memcpy(buffer.data() + kHead + ETH_ALEN, source->data(), source->size());
    // A checksum that the receiving side has found right needs no word; one still to be made does.
    auto* head = reinterpret_cast<OffloadHeader*>(buffer.data());
    head->flags &= kNeedsChecksum;
    if (::sendto(tap_.get(), buffer.data(), static_cast<std::size_t>(n), 0, reinterpret_cast<sockaddr*>(&to), sizeof to) >= 0) ++count;
  }
}

void Hold::release() {
  if (!std::exchange(holding_, false)) return;
  std::vector<Message> accept;
  accept.push_back(set_policy(kTable, kChain, Verdict::kAccept));
  if (auto done = filter_.commit(accept, "let in what arrives", port_.name()); !done) {
    spdlog::error("{}; its table is removed", done.error().message());
    filter_ = Netlink();   // the kernel removes what it owned
  }
  if (!output_) {
    std::vector<Message> go;
    go.push_back(set_policy(leaving_table_, kLeaving, Verdict::kAccept));
    if (auto done = leaving_.commit(go, "let out what leaves", port_.name()); !done) {
      spdlog::error("{}; its table is removed", done.error().message());
      leaving_ = Netlink();
    }
  }
  (void)listen(false).has_value();
  pass_on(port_.index(), nullptr);
}

void Hold::hand_on() {
  if (!std::exchange(holding_, false)) return;
  (void)listen(false).has_value();
  std::size_t count = pass_on(port_.uplink().index, &port_.uplink().mac);
  if (count > 0) spdlog::info("{} frames that came for {} meanwhile were sent after it", count, to_text(port_.mac()));
}

}  // namespace baton::network
