#include "base/fd.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace baton {

void Fd::reset() noexcept {
  if (fd_ >= 0) {
    int saved = errno;
    ::close(fd_);
    errno = saved;
    fd_ = -1;
  }
}

Result<Fd> Fd::duplicate() const {
  int copy = ::fcntl(fd_, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return errno_error("fcntl(F_DUPFD_CLOEXEC)", std::to_string(fd_));
  return Fd::adopt(copy);
}

Result<Fd> open_file(const std::string& path, int flags, unsigned mode) {
  for (;;) {
    int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    if (fd >= 0) return Fd::adopt(fd);
    if (errno != EINTR) return errno_error("open", path);
  }
}

Result<void> read_exact(int fd, std::span<std::byte> out) {
  while (!out.empty()) {
    ssize_t n = ::read(fd, out.data(), out.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("read", "");
    }
    if (n == 0) return make_error(Code::kCorrupt, "read", "ended early");
    out = out.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("write", "");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> pread_exact(int fd, std::span<std::byte> out, off_t at) {
  while (!out.empty()) {
    ssize_t n = ::pread(fd, out.data(), out.size(), at);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("pread", "");
    }
    if (n == 0) return make_error(Code::kCorrupt, "pread", "ended early");
    out = out.subspan(static_cast<std::size_t>(n));
    at += n;
  }
  return {};
}

Result<void> pwrite_all(int fd, std::span<const std::byte> bytes, off_t at) {
  while (!bytes.empty()) {
    ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), at);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("pwrite", "");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    at += n;
  }
  return {};
}

Result<std::string> read_file(const std::string& path, std::size_t max_bytes) {
  BATON_ASSIGN(Fd fd, open_file(path, O_RDONLY));
  std::string out;
  char buffer[16384];
  for (;;) {
    ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("read", path);
    }
    if (n == 0) return out;
    if (out.size() + static_cast<std::size_t>(n) > max_bytes) {
      return make_error(Code::kNoSpace, "read",
                        path + ": larger than " + std::to_string(max_bytes) + " bytes");
    }
    out.append(buffer, static_cast<std::size_t>(n));
  }
}

Result<void> replace_file(const std::string& path, std::string_view content, unsigned mode) {
  std::string temporary = path + ".new";
  {
    BATON_ASSIGN(Fd fd, open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC, mode));
    BATON_TRY(write_all(fd.get(), std::as_bytes(std::span(content.data(), content.size()))));
    if (::fsync(fd.get()) != 0) return errno_error("fsync", temporary);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return errno_error("rename", path);
  auto slash = path.rfind('/');
  std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  BATON_ASSIGN(Fd dir, open_file(folder, O_RDONLY | O_DIRECTORY));
  if (::fsync(dir.get()) != 0) return errno_error("fsync", folder);
  return {};
}

}  // namespace baton
