// The content of a pipe, read without taking it out: tee(2) into a pipe of our own.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {

Result<void> read_pipe(int reader, bool packets, pb::Pipe& out) {
  int capacity = ::fcntl(reader, F_GETPIPE_SZ);
  if (capacity < 0) return errno_error("F_GETPIPE_SZ", "pipe");
  out.set_capacity_bytes(static_cast<std::uint32_t>(capacity));
  int waiting = 0;
  if (::ioctl(reader, FIONREAD, &waiting) != 0) return errno_error("FIONREAD", "pipe");
  if (waiting == 0) return {};
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return errno_error("pipe2", "");
  Fd from = Fd::adopt(ends[0]), to = Fd::adopt(ends[1]);
  if (::fcntl(to.get(), F_SETPIPE_SZ, capacity) < 0) return errno_error("F_SETPIPE_SZ", std::to_string(capacity) + " bytes");
  ssize_t copied = ::tee(reader, to.get(), static_cast<std::size_t>(waiting), SPLICE_F_NONBLOCK);
  if (copied < 0) return errno_error("tee", "pipe");
  if (copied != waiting) {
    return make_error(Code::kFailed, "tee", "pipe: " + std::to_string(copied) + " of " + std::to_string(waiting) + " bytes");
  }
  std::string buffer(static_cast<std::size_t>(waiting), '\0');
  std::string all;
  for (ssize_t done = 0; done < copied;) {
    ssize_t n = ::read(from.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return errno_error("read", "copy of a pipe");
    if (packets) out.add_packets(buffer.data(), static_cast<std::size_t>(n));
    else all.append(buffer.data(), static_cast<std::size_t>(n));
    done += n;
  }
  if (!packets) out.add_packets(std::move(all));
  return {};
}

}  // namespace baton::linux_backend::state
