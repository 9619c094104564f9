// SharedMemory: a memfd of fixed size, mapped. The warden makes two and hands them to
// its agent: the capture buffer read-only, the fill buffer writable.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace baton::warden {

class SharedMemory {
 public:
  SharedMemory() noexcept = default;
  // Sparse; sealed so that nobody can shrink or grow it under a mapping. Only its maker and
  // who is handed a descriptor can open it. `map_writable`: how this process maps it.
  static Result<SharedMemory> make(const std::string& name, std::size_t bytes, bool map_writable);
  // Maps what was received; refuses what can still be shrunk.
  static Result<SharedMemory> map(Fd fd, std::size_t bytes, bool writable);
  SharedMemory(SharedMemory&& other) noexcept;
  SharedMemory& operator=(SharedMemory&& other) noexcept;
  ~SharedMemory();

  std::span<std::byte> bytes() const noexcept { return {data_, size_}; }
  int fd() const noexcept { return fd_.get(); }
  // A second descriptor of the same memory through which it can only be read.
  Result<Fd> open_read_only() const;
  // Gives the pages back to the kernel; they read as zero afterwards.
  void punch(std::size_t offset, std::size_t length) noexcept;

 private:
  Fd fd_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace baton::warden
