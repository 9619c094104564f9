// Fd: owns one file descriptor of this process. Not shared between threads
// while it is being moved or reset; the descriptor itself may be used by many.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "base/error.h"

namespace baton {

class Fd {
 public:
  Fd() noexcept = default;
  // Takes ownership of `fd`, which is open (or -1: empty).
  static Fd adopt(int fd) noexcept { return Fd(fd); }
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }
  int release() noexcept { return std::exchange(fd_, -1); }
  void reset() noexcept;  // closes once; a failed close is never retried (close(2), NOTES)

  // A close-on-exec duplicate. Fails: kFailed (EMFILE).
  Result<Fd> duplicate() const;

 private:
  explicit Fd(int fd) noexcept : fd_(fd) {}
  int fd_ = -1;
};

// open(2) with O_CLOEXEC added; EINTR retried. Fails: kNotFound, kNotAllowed, kFailed.
Result<Fd> open_file(const std::string& path, int flags, unsigned mode = 0);

// Reads or writes all of it, retrying short transfers and EINTR.
// read_exact fails with kCorrupt at an early end of file.
Result<void> read_exact(int fd, std::span<std::byte> out);
Result<void> write_all(int fd, std::span<const std::byte> bytes);
Result<void> pread_exact(int fd, std::span<std::byte> out, off_t at);
Result<void> pwrite_all(int fd, std::span<const std::byte> bytes, off_t at);

// The whole file; fails with kNoSpace beyond `max_bytes`. For files and /proc.
Result<std::string> read_file(const std::string& path, std::size_t max_bytes = 64u << 20);

// Writes a new file beside `path`, syncs it, renames it over `path`, syncs the folder.
// After a crash, `path` holds the old or the new content, whole. Mode of the file: `mode`.
Result<void> replace_file(const std::string& path, std::string_view content, unsigned mode = 0600);

}  // namespace baton
