/* See xxh3.h. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "dedup/xxh3.h"

struct baton_hash128 baton_xxh3_default(const void* data, size_t bytes, const void* secret,
                                   size_t secret_bytes) {
  XXH128_canonical_t canonical;
  struct baton_hash128 out;
  XXH128_canonicalFromHash(&canonical,
                           XXH3_128bits_withSecret(data, bytes, secret, secret_bytes));
  memcpy(out.bytes, canonical.digest, sizeof out.bytes);
  return out;
}
