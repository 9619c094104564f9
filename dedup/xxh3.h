/* XXH3-128 with a 192-byte secret, compiled once per vector unit (xxh3_*.c). C, so that
   only this function is built for the unit. Called through digest.cc alone. */
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct baton_hash128 {
  unsigned char bytes[16]; /* canonical (big-endian) XXH128 */
};
typedef struct baton_hash128 (*baton_xxh3_fn)(const void* data, size_t bytes, const void* secret,
                                              size_t secret_bytes);

struct baton_hash128 baton_xxh3_default(const void* data, size_t bytes, const void* secret,
                                        size_t secret_bytes);
struct baton_hash128 baton_xxh3_avx2(const void* data, size_t bytes, const void* secret,
                                     size_t secret_bytes);
struct baton_hash128 baton_xxh3_avx512(const void* data, size_t bytes, const void* secret,
                                       size_t secret_bytes);

#ifdef __cplusplus
}
#endif
