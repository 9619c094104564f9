// Sealer: bytes at rest under one key: AES-256-GCM (NIST SP 800-38D), a random nonce of 96 bits
// in front, the tag behind. What lies around the bytes (a frame's head, a name) can be bound to
// them: it is authenticated, not hidden.
//
// One key serves at most 2^32 messages (SP 800-38D, 8.3); a frame of 64 KiB each, that is 256 TiB.
// Threads: any; immutable.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace baton::storage {

inline constexpr std::size_t kSealKeyBytes = 32;
inline constexpr std::size_t kSealNonceBytes = 12;
inline constexpr std::size_t kSealTagBytes = 16;
inline constexpr std::size_t kSealBytes = kSealNonceBytes + kSealTagBytes;  // what sealing adds

class Sealer {
 public:
  using Key = std::array<std::byte, kSealKeyBytes>;

  explicit Sealer(const Key& key) : key_(key) {}
  ~Sealer();  // wipes the key
  Sealer(const Sealer&) = delete;
  Sealer& operator=(const Sealer&) = delete;

  static Result<Key> make_key();
  // From a file of 32 bytes, or of 64 hexadecimal digits and perhaps a newline, that nobody but
  // its owner may read. Fails: kNotFound, kNotAllowed (its mode), kInvalid (its content).
  static Result<Key> read_key(const std::string& path);

  const Key& key() const { return key_; }
  // Appends nonce, ciphertext and tag: kSealBytes more than `plain`.
  void seal(std::span<const std::byte> plain, std::span<const std::byte> bound, std::string& out) const;
  // `out` is kSealBytes shorter than `sealed`. Fails: kCorrupt (another key, or not these bytes).
  Result<void> open(std::span<const std::byte> sealed_untrusted, std::span<const std::byte> bound,
                    std::span<std::byte> out) const;

 private:
  Key key_;
};

using SealerPtr = std::shared_ptr<const Sealer>;

}  // namespace baton::storage
