// What waits in the queues of unix sockets, descriptors on their way included. It is read with
// MSG_PEEK and SO_PEEK_OFF (unix(7), socket(7)), which take nothing out: the kernel hands copies
// of the descriptors to whoever peeks.
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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

constexpr std::size_t kMaxQueueBytes = 16u << 20;
constexpr std::size_t kMaxPackets = 65536;
constexpr std::size_t kLeastRoom = 256u << 10;     // also the largest datagram
constexpr std::size_t kMaxFilesOfPacket = 253;     // SCM_MAX_FD
constexpr std::size_t kGuardBytes = 4096;

// Memory behind which nothing can be written.
class Room {
 public:
  Room() = default;
  ~Room() { release(); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  bool reserve(std::size_t bytes) {
    bytes = (std::max(bytes, kLeastRoom) + kGuardBytes - 1) / kGuardBytes * kGuardBytes;
    if (bytes <= bytes_) return true;
    release();
    void* got = ::mmap(nullptr, bytes + kGuardBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) return false;
    at_ = static_cast<char*>(got);
    bytes_ = bytes;
    return ::mprotect(at_ + bytes_, kGuardBytes, PROT_NONE) == 0;
  }
  char* begin() const { return at_; }
  char* end() const { return at_ + bytes_; }
  std::size_t size() const { return bytes_; }

 private:
  void release() {
    if (at_ != nullptr) ::munmap(at_, bytes_ + kGuardBytes);
    at_ = nullptr;
    bytes_ = 0;
  }
  char* at_ = nullptr;
  std::size_t bytes_ = 0;
};

struct Peeked {
  ssize_t bytes = 0;          // negative: -errno
  bool cut = false;           // the packet is longer
  std::vector<Fd> files;
  std::string sender;
};

class Peeker {
 public:
  Peeker(int fd, Room& room) : fd_(fd), room_(room) {
    socklen_t size = sizeof usual_;
    if (::getsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &usual_, &size) != 0) usual_ = -1;
  }
  ~Peeker() { (void)::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &usual_, sizeof usual_); }
  Peeker(const Peeker&) = delete;
  Peeker& operator=(const Peeker&) = delete;

  bool seek(std::size_t offset) {
    const int at = static_cast<int>(offset);
    return ::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &at, sizeof at) == 0;
  }
  Peeked peek() { return peek_into(room_.begin(), room_.size()); }

  Peeked peek_into(char* to, std::size_t bytes) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFilesOfPacket) + CMSG_SPACE(sizeof(ucred))];
    sockaddr_un from{};
    iovec part{to, bytes};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    Peeked out;
    do {
      out.bytes = ::recvmsg(fd_, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (out.bytes < 0 && errno == EINTR);
    if (out.bytes < 0) {
      out.bytes = -errno;
      return out;
    }
    out.cut = (message.msg_flags & MSG_TRUNC) != 0;
    if (message.msg_namelen > sizeof from.sun_family) out.sender.assign(reinterpret_cast<const char*>(&from), message.msg_namelen);
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int received = -1;
        std::memcpy(&received, CMSG_DATA(c) + i * sizeof(int), sizeof received);
        out.files.push_back(Fd::adopt(received));
      }
    }
    return out;
  }

 private:
  const int fd_;
  Room& room_;
  int usual_ = -1;
};

// Reading tells 0 both of an empty packet and of the end.
bool at_end(int fd) {
  pollfd one{fd, POLLRDHUP, 0};
  return ::poll(&one, 1, 0) == 1 && (one.revents & (POLLRDHUP | POLLHUP)) != 0;
}

// A peek into a stream gives what was sent without descriptors together with the first message
// behind it that has some: of the `bytes` at `offset`, those that come before that message. They
// are what can be copied when there is no room for the last byte: the message that does not fit
// is left out whole, with its descriptors.
std::string plain_before_files(Peeker& peeker, const Room& room, std::size_t offset, std::size_t bytes) {
  if (!peeker.seek(offset)) return {};
  char* const to = room.end() - (bytes - 1);
  const Peeked got = peeker.peek_into(to, bytes);
  return got.bytes > 0 && got.files.empty() ? std::string(to, static_cast<std::size_t>(got.bytes)) : std::string();
}

}  // namespace

Result<void> read_unix_queue(int fd, int type, WaitingQueue& out) {
  pollfd arrived{fd, POLLIN, 0};
  if (::poll(&arrived, 1, 0) == 0) return {};
  const Error too_much = make_error(Code::kUnsupported, "capture", "too much waits in a unix socket");
  const bool stream = type == SOCK_STREAM;
  static thread_local Room room;
  int waiting = 0;
  if (stream && ::ioctl(fd, FIONREAD, &waiting) != 0) return errno_error("FIONREAD", "unix socket");
  if (static_cast<std::size_t>(waiting) > kMaxQueueBytes) return too_much;
  if (!room.reserve(static_cast<std::size_t>(waiting) + 1)) return errno_error("mmap", "room for what waits in a unix socket");
  Peeker peeker(fd, room);
  std::size_t total = 0;
  auto keep = [&](std::string data, std::vector<Fd> files, std::string sender) {
    total += data.size();
    out.packets.push_back({std::move(data), std::move(files), std::move(sender)});
  };
  if (!peeker.seek(0)) return errno_error("SO_PEEK_OFF", "unix socket");
  for (;;) {
    Peeked got = peeker.peek();
    if (got.bytes < 0) {
      const int error = static_cast<int>(-got.bytes);
      if (error == EAGAIN || error == ENOTCONN || error == EINVAL || error == ECONNRESET) return {};
      return errno_error(error, "peek", "unix socket");
    }
    if (got.bytes == 0 && type != SOCK_DGRAM && at_end(fd)) return {};
    const auto bytes = static_cast<std::size_t>(got.bytes);
    if (got.cut || total + bytes > kMaxQueueBytes || out.packets.size() >= kMaxPackets) return too_much;
    if (!stream || got.files.empty()) {
      // An empty packet is passed once it has been peeked at.
      keep(std::string(room.begin(), bytes), std::move(got.files), type == SOCK_DGRAM ? std::move(got.sender) : std::string());
      continue;
    }
    std::string with(room.begin(), bytes);
    if (std::string plain = plain_before_files(peeker, room, total, bytes); !plain.empty()) {
      with.erase(0, plain.size());
      keep(std::move(plain), {}, {});
    }
    keep(std::move(with), std::move(got.files), {});
    if (!peeker.seek(total)) return errno_error("SO_PEEK_OFF", "unix socket");
  }
}

}  // namespace baton::linux_backend::state
