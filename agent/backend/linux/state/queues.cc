// POSIX message queues of the caller's IPC namespace, with what waits in them.
//
// The kernel gives no message away without taking it out (mq_receive(3)). So they are taken out
// and put back, in the same order, while the program stands still, by a process of its own: it
// finishes whatever becomes of this one. Nobody is woken by that, because a stopped thread waits
// in no queue; a registered notification (mq_notify(3)) would be, and is refused.
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "agent/backend/linux/state/ipc.h"

namespace baton::linux_backend::state {
namespace {

// linux/mount.h, which does not go together with sys/mount.h.
constexpr int kFsopenCloexec = 1, kFsconfigCreate = 6, kFsmountCloexec = 1;
constexpr std::size_t kMaxQueueBytes = 256u << 20;

struct Slot {
  std::uint32_t priority = 0;
  std::uint32_t bytes = 0;
};

// A memory file that the process that takes the messages out and this one share.
struct Shared {
  std::byte* at = nullptr;
  std::size_t bytes = 0;
  explicit Shared(std::size_t size) : bytes(size) {
    void* got = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (got != MAP_FAILED) at = static_cast<std::byte*>(got);
  }
  ~Shared() {
    if (at != nullptr) ::munmap(at, bytes);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
};

// A mount of the namespace's queues that nobody else sees.
Result<Fd> mount_queues() {
  Fd context = Fd::adopt(static_cast<int>(::syscall(SYS_fsopen, "mqueue", kFsopenCloexec)));
  if (!context) return errno_error("fsopen", "mqueue");
  if (::syscall(SYS_fsconfig, context.get(), kFsconfigCreate, nullptr, nullptr, 0) != 0) return errno_error("fsconfig", "mqueue");
  Fd mount = Fd::adopt(static_cast<int>(::syscall(SYS_fsmount, context.get(), kFsmountCloexec, 0)));
  if (!mount) return errno_error("fsmount", "mqueue");
  Fd folder = Fd::adopt(::openat(mount.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));   // the mount itself is O_PATH
  if (!folder) return errno_error("open", "mqueue");
  return folder;
}

Result<std::vector<std::string>> names_in(int folder) {
  if (::lseek(folder, 0, SEEK_SET) < 0) return errno_error("lseek", "mqueue");
  std::vector<std::string> names;
  alignas(8) char buffer[4096];
  for (;;) {
    const long n = ::syscall(SYS_getdents64, folder, buffer, sizeof buffer);
    if (n < 0) return errno_error("getdents64", "mqueue");
    if (n == 0) return names;
    for (long at = 0; at < n;) {
      unsigned short length = 0;
      std::memcpy(&length, buffer + at + 16, sizeof length);   // linux_dirent64: ino, off, reclen, type, name
      const std::string_view name = buffer + at + 19;
      if (name != "." && name != "..") names.emplace_back(name);
      at += length;
    }
  }
}

// In the process that takes out and puts back: system calls only. Answers how many were taken.
long take_out_and_put_back(int queue, std::byte* area, std::size_t message_bytes, long most) {
  const std::size_t slot_bytes = sizeof(Slot) + message_bytes;
  const timespec past{0, 0};
  long taken = 0;
  for (; taken < most; ++taken) {
    std::byte* at = area + static_cast<std::size_t>(taken) * slot_bytes;
    Slot slot;
    const long n = ::syscall(SYS_mq_timedreceive, queue, at + sizeof slot, message_bytes, &slot.priority, &past);
    if (n < 0) break;
    slot.bytes = static_cast<std::uint32_t>(n);
    std::memcpy(at, &slot, sizeof slot);
  }
  for (long i = 0; i < taken; ++i) {
    const std::byte* at = area + static_cast<std::size_t>(i) * slot_bytes;
    Slot slot;
    std::memcpy(&slot, at, sizeof slot);
    if (::syscall(SYS_mq_timedsend, queue, at + sizeof slot, slot.bytes, slot.priority, &past) != 0) return -errno;
  }
  return taken;
}

Result<void> read_messages(int queue, const mq_attr& facts, pb::PosixQueue& out) {
  const auto most = static_cast<std::size_t>(facts.mq_curmsgs);
  const auto message_bytes = static_cast<std::size_t>(facts.mq_msgsize);
  if (most > kMaxQueueBytes / (message_bytes + sizeof(Slot))) {
    return make_error(Code::kUnsupported, "capture", "message queue " + out.name() + ": more waits in it than " + std::to_string(kMaxQueueBytes >> 20) + " MiB");
  }
  const std::size_t slot_bytes = sizeof(Slot) + message_bytes;
  Shared area(most * slot_bytes + sizeof(long));
  if (area.at == nullptr) return errno_error("mmap", "room for a message queue");
  std::byte* const messages = area.at + sizeof(long);
  const pid_t child = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (child < 0) return errno_error("clone", "to read a message queue");
  if (child == 0) {
    const long taken = take_out_and_put_back(queue, messages, message_bytes, static_cast<long>(most));
    std::memcpy(area.at, &taken, sizeof taken);
    ::syscall(SYS_exit_group, 0);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  long taken = 0;
  std::memcpy(&taken, area.at, sizeof taken);
  if (status != 0 || taken != facts.mq_curmsgs) {
    return make_error(Code::kFailed, "capture", "message queue " + out.name() + ": " + std::to_string(taken) + " of " + std::to_string(facts.mq_curmsgs) + " messages could be read");
  }
  for (std::size_t i = 0; i < most; ++i) {
    Slot slot;
    std::memcpy(&slot, messages + i * slot_bytes, sizeof slot);
    auto& message = *out.add_messages();
    message.set_priority(slot.priority);
    message.set_text(reinterpret_cast<const char*>(messages + i * slot_bytes + sizeof slot), slot.bytes);
  }
  return {};
}

}  // namespace

// "QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0"
bool somebody_is_notified(int queue) {
  char text[128] = {};
  if (::pread(queue, text, sizeof text - 1, 0) <= 0) return false;
  const char* at = std::strstr(text, "NOTIFY_PID:");
  return at != nullptr && std::atoi(at + 11) != 0;
}

Result<void> read_posix_queues(Fd& mount, IpcContent& out) {
  if (!mount) {
    auto made = mount_queues();
    if (!made) return made.error().sys_errno == ENODEV ? Result<void>() : Result<void>(std::move(made).error());   // a kernel without them
    mount = std::move(*made);
  }
  BATON_ASSIGN(auto names, names_in(mount.get()));
  for (const auto& name : names) {
    Fd queue = Fd::adopt(::openat(mount.get(), name.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!queue) {
      if (errno == ENOENT) continue;
      return errno_error("open", "message queue /" + name);
    }
    struct stat st {};
    mq_attr facts{};
    if (::fstat(queue.get(), &st) != 0 || ::syscall(SYS_mq_getsetattr, queue.get(), nullptr, &facts) != 0) return errno_error("mq_getattr", "/" + name);
    pb::PosixQueue found;
    found.set_name("/" + name);
    found.set_mode(st.st_mode & 07777);
    found.set_uid(st.st_uid);
    found.set_gid(st.st_gid);
    found.set_max_messages(facts.mq_maxmsg);
    found.set_message_bytes(facts.mq_msgsize);
    if (somebody_is_notified(queue.get())) {
      return make_error(Code::kUnsupported, "capture", "message queue /" + name + ": somebody has asked to be notified (mq_notify)");
    }
    if (facts.mq_curmsgs > 0) BATON_TRY(read_messages(queue.get(), facts, found));
    out.posix_queues.push_back(std::move(found));
  }
  std::sort(out.posix_queues.begin(), out.posix_queues.end(), [](const auto& a, const auto& b) { return a.name() < b.name(); });
  return {};
}

}  // namespace baton::linux_backend::state
