// A PageSink that keeps what a standby would have: object and page to bytes. Refuses room
// after `limit` pages per call of begin, as a full buffer does.
#pragma once

#include <cstring>
#include <map>
#include <vector>

#include "agent/backend/backend.h"

namespace baton::test {

class ModelSink final : public backend::PageSink {
 public:
  using Page = std::vector<std::byte>;
  std::map<std::uint64_t, std::map<std::uint64_t, Page>> objects;

  void begin(std::size_t limit_pages) { left_ = limit_pages; }

  std::span<std::byte> reserve(std::size_t bytes) override {
    std::size_t pages = std::min(bytes / backend::kPageBytes, left_);
    buffer_.assign(pages * backend::kPageBytes, std::byte{0xEE});
    used_ = 0;
    return buffer_;
  }
  void emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::byte* from = buffer_.data() + (used_ + i) * backend::kPageBytes;
      objects[object][first_page + i] = Page(from, from + backend::kPageBytes);
    }
    used_ += count;
    left_ -= count;
    emitted += count;
  }
  void drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) override {
    auto& pages = objects[object];
    pages.erase(pages.lower_bound(first_page), pages.lower_bound(first_page + count));
  }
  std::size_t free_bytes() const override { return left_ * backend::kPageBytes; }

  std::uint64_t emitted = 0;

 private:
  std::vector<std::byte> buffer_;
  std::size_t used_ = 0;
  std::size_t left_ = 1u << 30;
};

}  // namespace baton::test
