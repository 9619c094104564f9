#include "storage/disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <vector>

#include "base/fd.h"

namespace baton::storage {

Result<void> Disk::write_at(int fd, std::span<const iovec> parts, std::uint64_t at) {
  std::vector<iovec> left(parts.begin(), parts.end());
  std::size_t next = 0;
  while (true) {
    while (next < left.size() && left[next].iov_len == 0) ++next;
    if (next == left.size()) return {};
    ssize_t n = ::pwritev(fd, left.data() + next,
                          static_cast<int>(std::min<std::size_t>(left.size() - next, IOV_MAX)),
                          static_cast<off_t>(at));
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("pwritev", "store file");
    }
    at += static_cast<std::uint64_t>(n);
    for (std::size_t done = static_cast<std::size_t>(n); done > 0;) {
      std::size_t step = std::min(done, left[next].iov_len);
      left[next].iov_base = static_cast<char*>(left[next].iov_base) + step;
      left[next].iov_len -= step;
      done -= step;
      if (left[next].iov_len == 0) ++next;
    }
  }
}

Result<void> Disk::sync(int fd) {
  if (::fdatasync(fd) != 0) return errno_error("fdatasync", "store file");
  return {};
}

Result<void> Disk::truncate(int fd, std::uint64_t bytes) {
  int rc;
  do {
    rc = ::ftruncate(fd, static_cast<off_t>(bytes));
  } while (rc != 0 && errno == EINTR);
  if (rc != 0) return errno_error("ftruncate", "store file");
  return {};
}

Result<void> Disk::rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) return errno_error("rename", from + " to " + to);
  return {};
}

Result<void> Disk::unlink(const std::string& path) {
  if (::unlink(path.c_str()) != 0) return errno_error("unlink", path);
  return {};
}

Result<void> Disk::sync_folder(const std::string& path) {
  BATON_ASSIGN(Fd fd, open_file(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) return errno_error("fsync", path);
  return {};
}

Disk& real_disk() {
  static Disk disk;
  return disk;
}

}  // namespace baton::storage
