#include "agent/warden/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

namespace baton::warden {

Result<SharedMemory> SharedMemory::make(const std::string& name, std::size_t bytes, bool map_writable) {
  Fd fd = Fd::adopt(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return errno_error("memfd_create", name);
  // Born with mode 0777: without this, a reader could reopen it for writing by /proc/self/fd.
  if (::fchmod(fd.get(), 0600) != 0) return errno_error("fchmod", name);
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return errno_error("ftruncate", name);
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return errno_error("fcntl(F_ADD_SEALS)", name);
  }
  return map(std::move(fd), bytes, map_writable);
}

Result<SharedMemory> SharedMemory::map(Fd fd, std::size_t bytes, bool writable) {
  int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
    return make_error(Code::kCorrupt, "shared memory", "not a memory file sealed against shrinking");
  }
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return errno_error("fstat", "shared memory");
  if (static_cast<std::size_t>(info.st_size) < bytes || bytes == 0) {
    return make_error(Code::kCorrupt, "shared memory", "smaller than announced");
  }
  void* at = ::mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE,
                    fd.get(), 0);
  if (at == MAP_FAILED) return errno_error("mmap", "shared memory");
  ::madvise(at, bytes, MADV_DONTDUMP);
  SharedMemory out;
  out.fd_ = std::move(fd);
  out.data_ = static_cast<std::byte*>(at);
  out.size_ = bytes;
  return out;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : fd_(std::move(other.fd_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (data_) ::munmap(data_, size_);
}

Result<Fd> SharedMemory::open_read_only() const {
  return open_file("/proc/self/fd/" + std::to_string(fd_.get()), O_RDONLY);
}

void SharedMemory::punch(std::size_t offset, std::size_t length) noexcept {
  ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(length));
}

}  // namespace baton::warden
