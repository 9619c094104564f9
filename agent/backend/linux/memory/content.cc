#include "agent/backend/linux/memory/content.h"

#include <cstring>

#include "base/check.h"
#include "dedup/digest.h"

namespace baton::linux_backend {
namespace {
const dedup::PageHasher& hasher() {
  static const dedup::PageHasher instance = [] {
    auto key = dedup::make_hash_key();
    CHECK(key);
    return dedup::PageHasher(dedup::DigestKind::kXxh3_128, *key);
  }();
  return instance;
}
}  // namespace

ContentMap::Digest ContentMap::of(std::span<const std::byte> page) {
  dedup::Digest d = hasher().page(dedup::PageView(page.data(), dedup::kPageBytes));
  Digest out;
  std::memcpy(&out.low, d.bytes.data(), 8);
  std::memcpy(&out.high, d.bytes.data() + 8, 8);
  return out;
}

}  // namespace baton::linux_backend
