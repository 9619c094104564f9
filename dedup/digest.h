// Page digests: what names a 4 KiB page everywhere in Baton.
//
// A digest is keyed (32-byte secret of the dedup domain), so that nobody outside can aim
// for a collision. XXH3-128 fills the first 16 bytes and leaves the rest zero; SHA-256
// fills all 32. Two values are reserved and never come out of a hash:
//   absent     all zero. The page is not present; it reads as what its mapping has
//              beneath it: zeros for anonymous memory, the file for a private file mapping.
//   zero page  the first 16 bytes 0xFF, the rest zero, for both kinds: a present page of zeros.
// Threads: Digest is a value; PageHasher is immutable and used by any number of threads.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace baton::dedup {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kHashKeyBytes = 32;

using PageView = std::span<const std::byte, kPageBytes>;
using HashKey = std::array<std::byte, kHashKeyBytes>;

enum class DigestKind : std::uint8_t { kXxh3_128 = 1, kSha256 = 2 };

// Bytes of a digest that carry information: 16 or 32.
constexpr std::size_t digest_width(DigestKind kind) {
  return kind == DigestKind::kSha256 ? 32 : 16;
}
constexpr bool is_known_kind(std::uint8_t kind_untrusted) {
  return kind_untrusted == 1 || kind_untrusted == 2;
}

struct Digest {
  std::array<std::byte, 32> bytes{};

  static constexpr Digest absent() { return {}; }
  static constexpr Digest zero_page() {
    Digest d;
    for (std::size_t i = 0; i < 16; ++i) d.bytes[i] = std::byte{0xFF};
    return d;
  }
  bool is_absent() const { return *this == absent(); }
  bool is_zero_page() const { return *this == zero_page(); }
  // True when the upper 16 bytes are zero: an XXH3 digest or a reserved value.
  bool is_narrow() const {
    std::uint64_t high[2];
    std::memcpy(high, bytes.data() + 16, 16);
    return (high[0] | high[1]) == 0;
  }
  bool fits(DigestKind kind) const { return kind == DigestKind::kSha256 || is_narrow(); }

  std::string to_hex(DigestKind kind = DigestKind::kSha256) const;
  // 32 or 64 hexadecimal digits. Fails: kInvalid.
  static Result<Digest> from_hex(std::string_view text_untrusted);
  // 16 or 32 bytes, as they stand on disk and wire.
  static Digest from_bytes(std::span<const std::byte> raw);

  friend bool operator==(const Digest& a, const Digest& b) {
    return std::memcmp(a.bytes.data(), b.bytes.data(), 32) == 0;
  }
  friend std::strong_ordering operator<=>(const Digest& a, const Digest& b) {
    return std::memcmp(a.bytes.data(), b.bytes.data(), 32) <=> 0;
  }
};

struct DigestHash {
  using is_avalanching = void;  // boost::unordered: no further mixing needed
  std::size_t operator()(const Digest& d) const noexcept {
    std::uint64_t word[2];
    std::memcpy(word, d.bytes.data(), 16);
    return (word[0] ^ (word[1] >> 17)) * 0x9E3779B97F4A7C15ull;
  }
};

// True when all of the page is zero. Most other pages are told apart by their first line.
bool is_zero_page(PageView page);

class PageHasher {
 public:
  PageHasher(DigestKind kind, std::span<const std::byte, kHashKeyBytes> key);

  DigestKind kind() const { return kind_; }
  // The page's digest, or Digest::zero_page() when it holds only zeros.
  Digest page(PageView page) const;
  // Digest of an inner node over its 64 children; absent when all are absent.
  Digest node(std::span<const Digest> children) const;
  // Digest of any bytes (manifests, records). Never compare with page digests.
  Digest bytes(std::span<const std::byte> data) const;
  // As node(), over 64 digests packed at digest_width(kind) bytes each, not all absent.
  Digest packed_node(std::span<const std::byte> packed) const;

 private:
  enum Use : std::uint8_t { kPage = 0, kNode = 1, kBytes = 2 };
  static constexpr std::size_t kSecretBytes = 192;
  Digest hash(Use use, const std::byte* data, std::size_t bytes) const;

  DigestKind kind_;
  HashKey key_;
  alignas(64) std::array<std::array<unsigned char, kSecretBytes>, 3> secrets_;
};

// A fresh random key from the kernel.
Result<HashKey> make_hash_key();

// The vector unit that XXH3 uses on this machine: "avx512", "avx2", "sse2", "neon", "scalar".
std::string_view hash_vector_unit();

}  // namespace baton::dedup

template <>
struct std::hash<baton::dedup::Digest> {
  std::size_t operator()(const baton::dedup::Digest& d) const noexcept {
    return baton::dedup::DigestHash{}(d);
  }
};
