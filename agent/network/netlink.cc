#include "agent/network/netlink.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace baton::network {
namespace {

constexpr int kAnswerTimeoutMs = 5'000;
constexpr std::size_t kReceiveBytes = 64u << 10;

Message batch_edge(std::uint16_t type) {
  Message m(type, 0);
  auto& head = m.extra<nfgenmsg>();
  head.nfgen_family = AF_UNSPEC;
  head.version = NFNETLINK_V0;
  head.res_id = htons(NFNL_SUBSYS_NFTABLES);
  return m;
}

}  // namespace

Result<Fd> namespace_of(pid_t pid) {
  auto fd = open_file("/proc/" + std::to_string(pid) + "/ns/net", O_RDONLY);
  if (!fd && fd.error().code == Code::kNotFound) {
    return make_error(Code::kTraceeGone, "network namespace", "process " + std::to_string(pid) + " has ended");
  }
  return fd;
}

Result<void> inside(int space, const std::function<Result<void>()>& work) {
  BATON_ASSIGN(Fd own, open_file("/proc/thread-self/ns/net", O_RDONLY));
  if (::setns(space, CLONE_NEWNET) != 0) return errno_error("setns", "a workload's network namespace");
  auto done = work();
  CHECK(::setns(own.get(), CLONE_NEWNET) == 0);
  return done;
}

Message::Message(std::uint16_t type, std::uint16_t flags) {
  bytes_.reserve(512);
  bytes_.resize(sizeof(nlmsghdr));
  header().nlmsg_type = type;
  header().nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  header().nlmsg_len = static_cast<std::uint32_t>(bytes_.size());
}

std::byte* Message::grow(std::size_t bytes) {
  std::size_t at = bytes_.size();
  bytes_.resize(at + MNL_ALIGN(bytes));
  header().nlmsg_len = static_cast<std::uint32_t>(bytes_.size());
  return bytes_.data() + at;
}

Message& Message::put(std::uint16_t type, std::span<const std::byte> data) {
  auto* at = reinterpret_cast<nlattr*>(grow(MNL_ATTR_HDRLEN + data.size()));
  at->nla_type = type;
  at->nla_len = static_cast<std::uint16_t>(MNL_ATTR_HDRLEN + data.size());
  if (!data.empty()) std::memcpy(reinterpret_cast<std::byte*>(at) + MNL_ATTR_HDRLEN, data.data(), data.size());
  return *this;
}

Message& Message::put(std::uint16_t type, std::string_view text) {
  std::string with_nul(text);
  return put(type, std::as_bytes(std::span(with_nul.c_str(), with_nul.size() + 1)));
}

Message& Message::put_u32(std::uint16_t type, std::uint32_t value) { return put(type, bytes_of(value)); }
Message& Message::put_be32(std::uint16_t type, std::uint32_t value) { return put_u32(type, htonl(value)); }

Message& Message::put_be64(std::uint16_t type, std::uint64_t value) {
  std::uint64_t big = htobe64(value);
  return put(type, bytes_of(big));
}

Message& Message::begin(std::uint16_t type) {
  open_.push_back(bytes_.size());
  return put(static_cast<std::uint16_t>(type | NLA_F_NESTED), std::span<const std::byte>());
}

Message& Message::end() {
  auto* at = reinterpret_cast<nlattr*>(bytes_.data() + open_.back());
  at->nla_len = static_cast<std::uint16_t>(bytes_.size() - open_.back());
  open_.pop_back();
  return *this;
}

Result<Netlink> Netlink::open(int protocol) {
  Fd fd = Fd::adopt(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!fd) return errno_error("socket", "netlink protocol " + std::to_string(protocol));
  int one = 1, bytes = 1 << 20;
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
  return Netlink(std::move(fd));
}

Result<Netlink> Netlink::open_in(int space, int protocol) {
  Netlink made;
  BATON_TRY(inside(space, [&]() -> Result<void> {
    BATON_ASSIGN(made, open(protocol));
    return {};
  }));
  return made;
}

Result<void> Netlink::send(std::span<const std::byte> bytes, std::string_view what) {
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  ssize_t n = ::sendto(fd_.get(), bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel);
  if (n != static_cast<ssize_t>(bytes.size())) return errno_error(what, "send to the kernel");
  return {};
}

Result<void> Netlink::receive(std::uint32_t first, std::uint32_t last, std::size_t answers, std::string_view what,
                              const std::string& subject, const std::function<void(const nlmsghdr&)>& each) {
  std::vector<std::byte> buffer(kReceiveBytes);
  int problem = 0;
  for (std::size_t got = 0; got < answers;) {
    pollfd waiting{fd_.get(), POLLIN, 0};
    int ready = ::poll(&waiting, 1, kAnswerTimeoutMs);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return make_error(Code::kTimedOut, what, subject + ": the kernel does not answer");
    ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(what, subject);
    int left = static_cast<int>(n);
    for (auto* h = reinterpret_cast<nlmsghdr*>(buffer.data()); mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
      if (h->nlmsg_seq - first > last - first) continue;   // of an earlier request that timed out
      if (h->nlmsg_type == NLMSG_ERROR) {
        int error = -static_cast<nlmsgerr*>(mnl_nlmsg_get_payload(h))->error;
        if (error != 0 && problem == 0) problem = error;
        // A batch that fails as a whole is answered once, at its first message.
        if (error != 0 && answers > 1 && h->nlmsg_seq == first) return errno_error(error, what, subject);
        ++got;
      } else if (h->nlmsg_type == NLMSG_DONE) {
        ++got;
      } else if (each) {
        each(*h);
      }
    }
  }
  if (problem != 0) return errno_error(problem, what, subject);
  return {};
}

Result<void> Netlink::ask(Message& message, std::string_view what, const std::string& subject) {
  message.header().nlmsg_flags |= NLM_F_ACK;
  std::uint32_t seq = message.header().nlmsg_seq = sequence_++;
  BATON_TRY(send(message.bytes(), what));
  return receive(seq, seq, 1, what, subject, {});
}

Result<void> Netlink::commit(std::span<Message> messages, std::string_view what, const std::string& subject) {
  Message begin = batch_edge(NFNL_MSG_BATCH_BEGIN), end = batch_edge(NFNL_MSG_BATCH_END);
  std::vector<std::byte> all;
  auto append = [&](Message& m) {
    m.header().nlmsg_seq = sequence_++;
    all.insert(all.end(), m.bytes().begin(), m.bytes().end());
  };
  std::uint32_t first = sequence_;
  append(begin);
  for (auto& m : messages) {
    m.header().nlmsg_flags |= NLM_F_ACK;
    append(m);
  }
  append(end);
  BATON_TRY(send(all, what));
  return receive(first, sequence_ - 1, messages.size(), what, subject, {});
}

Result<void> Netlink::dump(Message& message, std::string_view what, const std::function<void(const nlmsghdr&)>& each) {
  message.header().nlmsg_flags |= NLM_F_DUMP;
  std::uint32_t seq = message.header().nlmsg_seq = sequence_++;
  BATON_TRY(send(message.bytes(), what));
  return receive(seq, seq, 1, what, "dump", each);
}

}  // namespace baton::network
