#include "storage/disk.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <filesystem>
#include <vector>

namespace baton::storage {

Result<Fd> Disk::create(const std::string& path) {
  return open_file(path, O_RDWR | O_CREAT | O_EXCL, 0600);
}

Result<Fd> Disk::open(const std::string& path) { return open_file(path, O_RDWR); }

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

Result<void> Disk::make_folder(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return errno_error("mkdir", path);
  return {};
}

Result<std::vector<std::string>> Disk::list(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ec;
  for (std::filesystem::directory_iterator it(folder, ec), end; !ec && it != end; it.increment(ec)) {
    names.push_back(it->path().filename());
  }
  if (ec) return errno_error(ec.value(), "read folder", folder);
  return names;
}

bool Disk::is_folder(const std::string& path) {
  std::error_code ec;
  return std::filesystem::is_directory(path, ec);
}

void Disk::remove_tree(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

Result<std::string> Disk::read(const std::string& path, std::size_t max_bytes) {
  return read_file(path, max_bytes);
}

Result<void> Disk::replace(const std::string& path, std::string_view content) {
  return replace_file(path, content, 0600);
}

Result<Fd> Disk::lock(const std::string& path) {
  BATON_ASSIGN(Fd fd, open_file(path, O_RDWR | O_CREAT, 0600));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return make_error(Code::kConflict, "open store", path + ": in use by another process");
    }
    return errno_error("flock", path);
  }
  return fd;
}

Result<void> Disk::allocate(int fd, std::uint64_t bytes) {
  int rc;
  do {
    rc = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
  } while (rc == EINTR);
  if (rc != 0) return errno_error(rc, "posix_fallocate", "store file");
  return {};
}

std::uint64_t Disk::free_bytes(const std::string& path) {
  struct statvfs s {};
  if (::statvfs(path.c_str(), &s) != 0) return 0;
  return static_cast<std::uint64_t>(s.f_bavail) * s.f_frsize;
}

Disk& real_disk() {
  static Disk disk;
  return disk;
}

}  // namespace baton::storage
