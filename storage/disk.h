// Disk: everything that the store does to files and folders, passed in, so that a store can
// live in memory (memory_disk.h) and tests can let any single call fail or lose power between
// any two. Reads of an open file go to the kernel directly, by its descriptor.
//
// Threads: any. Paths are the store's own; nothing outside comes in here.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace baton::storage {

class Disk {
 public:
  virtual ~Disk() = default;

  // --- files that stay open
  virtual Result<Fd> create(const std::string& path);  // reading and writing; must not exist
  virtual Result<Fd> open(const std::string& path);    // reading and writing. Fails: kNotFound, …
  // All of it at `at`, or an error; what part was written is then unknown.
  virtual Result<void> write_at(int fd, std::span<const iovec> parts, std::uint64_t at);
  virtual Result<void> sync(int fd);  // fdatasync(2)
  virtual Result<void> truncate(int fd, std::uint64_t bytes);

  // --- names
  virtual Result<void> make_folder(const std::string& path);  // mode 0700; one that is there is fine
  virtual Result<std::vector<std::string>> list(const std::string& folder);  // names, any order
  virtual bool is_folder(const std::string& path);
  virtual Result<void> rename(const std::string& from, const std::string& to);
  virtual Result<void> unlink(const std::string& path);
  virtual void remove_tree(const std::string& path);  // as far as possible
  virtual Result<void> sync_folder(const std::string& path);

  // --- small files at once
  virtual Result<std::string> read(const std::string& path, std::size_t max_bytes);
  // Old or new content, whole, also after a power cut (base/fd.h, replace_file).
  virtual Result<void> replace(const std::string& path, std::string_view content);

  // Holds `path` against other processes for as long as the descriptor is open.
  // Fails: kConflict (another holds it).
  virtual Result<Fd> lock(const std::string& path);
  // Reserves room: later writes to these bytes do not fail for lack of it. posix_fallocate(3).
  virtual Result<void> allocate(int fd, std::uint64_t bytes);
  // Free bytes of the file system that holds `path`; 0: unknown.
  virtual std::uint64_t free_bytes(const std::string& path);
};

Disk& real_disk();

}  // namespace baton::storage
