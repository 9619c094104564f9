#include "storage/bytes/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace baton::storage {

std::uint64_t checksum(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace baton::storage
