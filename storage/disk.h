// Disk: the changes that the store makes to files, passed in so that tests can let any of
// them fail. Reads and opens go to the kernel directly.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace baton::storage {

class Disk {
 public:
  virtual ~Disk() = default;
  // All of it at `at`, or an error; what part was written is then unknown.
  virtual Result<void> write_at(int fd, std::span<const iovec> parts, std::uint64_t at);
  virtual Result<void> sync(int fd);  // fdatasync(2)
  virtual Result<void> truncate(int fd, std::uint64_t bytes);
  virtual Result<void> rename(const std::string& from, const std::string& to);
  virtual Result<void> unlink(const std::string& path);
  virtual Result<void> sync_folder(const std::string& path);
};

Disk& real_disk();

}  // namespace baton::storage
