#include <errno.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "agent/backend/linux/state/tcp.h"

namespace baton::linux_backend::state {
namespace {

constexpr int kControl = 3;
constexpr int kCoveredMax = 1 << 16;
constexpr int kAnswerTimeoutMs = 1000;

struct Flags { int reuse = 0, urgent_inline = 0; };   // what reading changes, as they were
struct Covered { int fd; Flags flags; };

// The guard's whole life; only calls that are safe after a fork of a program with threads.
[[noreturn]] void watch() {
  static Covered covered[kCoveredMax];
  int count = 0;
  for (;;) {
    Flags flags;
    iovec part{&flags, sizeof flags};
    alignas(cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))];
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = ancillary;
    header.msg_controllen = sizeof ancillary;
    ssize_t n = ::recvmsg(kControl, &header, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    const cmsghdr* c = CMSG_FIRSTHDR(&header);
    if (c != nullptr && c->cmsg_type == SCM_RIGHTS && count < kCoveredMax) {
      std::memcpy(&covered[count].fd, CMSG_DATA(c), sizeof(int));
      covered[count++].flags = flags;
      continue;
    }
    while (count > 0) ::close(covered[--count].fd);
    char done = 0;
    if (::send(kControl, &done, 1, MSG_NOSIGNAL) != 1) break;
  }
  for (int i = 0; i < count; ++i) {
    int off = TCP_REPAIR_OFF_NO_WP;
    ::setsockopt(covered[i].fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off);
    ::setsockopt(covered[i].fd, SOL_SOCKET, SO_REUSEADDR, &covered[i].flags.reuse, sizeof(int));
    ::setsockopt(covered[i].fd, SOL_SOCKET, SO_OOBINLINE, &covered[i].flags.urgent_inline, sizeof(int));
  }
  ::_exit(0);
}

}  // namespace

Result<void> RepairGuard::start() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return errno_error("socketpair", "repair guard");
  Fd ours = Fd::adopt(pair[0]), theirs = Fd::adopt(pair[1]);
  pid_t pid = ::fork();
  if (pid < 0) return errno_error("fork", "repair guard");
  if (pid == 0) {
    ::setsid();   // no signal meant for this process's group ends it
    for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);
    ::prctl(PR_SET_NAME, "baton-tcpguard");
    if (::dup2(theirs.get(), kControl) < 0) ::_exit(1);
    for (int fd = 0; fd < kControl; ++fd) ::close(fd);
    ::close_range(kControl + 1, ~0u, 0);
    watch();
  }
  pid_ = pid;
  control_ = std::move(ours);
  return {};
}

RepairGuard::~RepairGuard() {
  if (pid_ == 0) return;
  control_.reset();
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {}
}

Result<void> RepairGuard::cover(int fd) {
  if (pid_ == 0) BATON_TRY(start());
  Flags flags;
  socklen_t bytes = sizeof(int);
  ::getsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &flags.reuse, &bytes);
  ::getsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &flags.urgent_inline, &bytes);
  iovec part{&flags, sizeof flags};
  alignas(cmsghdr) char ancillary[CMSG_SPACE(sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = ancillary;
  header.msg_controllen = sizeof ancillary;
  cmsghdr* c = CMSG_FIRSTHDR(&header);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (::sendmsg(control_.get(), &header, MSG_NOSIGNAL) < 0) return errno_error("repair guard", "hand over a descriptor");
  ++covered_;
  return {};
}

void RepairGuard::uncover() {
  char nothing = 0;
  if (!control_ || covered_ == 0 || ::send(control_.get(), &nothing, 1, MSG_NOSIGNAL) != 1) return;
  covered_ = 0;
  // Waited for: a copy that is still open would keep a connection from ending with its program.
  pollfd answered{control_.get(), POLLIN, 0};
  if (::poll(&answered, 1, kAnswerTimeoutMs) == 1) (void)!::recv(control_.get(), &nothing, 1, MSG_DONTWAIT);
}

}  // namespace baton::linux_backend::state
