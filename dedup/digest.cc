#include "dedup/digest.h"

#include <openssl/evp.h>
#include <sys/random.h>

#include <cerrno>
#include <memory>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/check.h"
#include "dedup/xxh3.h"

namespace baton::dedup {
namespace {

struct Unit {
  baton_xxh3_fn hash;
  std::string_view name;
};

Unit pick_unit() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {baton_xxh3_avx512, "avx512"};
  if (__builtin_cpu_supports("avx2")) return {baton_xxh3_avx2, "avx2"};
  return {baton_xxh3_default, "sse2"};
#elif defined(__aarch64__)
  return {baton_xxh3_default, "neon"};
#else
  return {baton_xxh3_default, "scalar"};
#endif
}

const Unit kUnit = pick_unit();

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

struct FreeContext {
  void operator()(EVP_MD_CTX* c) const { EVP_MD_CTX_free(c); }
};

// SHA-256 over one 64-byte block (key, use, zeros) and the data. The lengths hashed under
// one use are fixed or trusted, so the key prefix is all that a MAC would add.
Digest keyed_sha256(const HashKey& key, std::uint8_t use, const std::byte* data,
                    std::size_t bytes) {
  thread_local std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  static EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  CHECK(context != nullptr && algorithm != nullptr);
  std::array<std::byte, 64> block{};
  std::memcpy(block.data(), key.data(), key.size());
  block[kHashKeyBytes] = std::byte{use};
  Digest out;
  unsigned length = 0;
  CHECK(EVP_DigestInit_ex2(context.get(), algorithm, nullptr) == 1);
  CHECK(EVP_DigestUpdate(context.get(), block.data(), block.size()) == 1);
  CHECK(EVP_DigestUpdate(context.get(), data, bytes) == 1);
  CHECK(EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(out.bytes.data()),
                           &length) == 1);
  CHECK(length == out.bytes.size());
  return out;
}

}  // namespace

std::string Digest::to_hex(DigestKind kind) const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < digest_width(kind); ++i) {
    auto v = std::to_integer<unsigned>(bytes[i]);
    out += kDigits[v >> 4];
    out += kDigits[v & 15];
  }
  return out;
}

Result<Digest> Digest::from_hex(std::string_view text) {
  if (text.size() != 32 && text.size() != 64) {
    return make_error(Code::kInvalid, "read digest", "expected 32 or 64 hexadecimal digits");
  }
  Digest out;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    int high = hex_value(text[i]), low = hex_value(text[i + 1]);
    if (high < 0 || low < 0) {
      return make_error(Code::kInvalid, "read digest", "a character is no hexadecimal digit");
    }
    out.bytes[i / 2] = std::byte(high * 16 + low);
  }
  return out;
}

Digest Digest::from_bytes(std::span<const std::byte> raw) {
  CHECK(raw.size() == 16 || raw.size() == 32);
  Digest out;
  std::memcpy(out.bytes.data(), raw.data(), raw.size());
  return out;
}

bool is_zero_page(PageView page) {
  const std::byte* p = page.data();
  for (std::size_t at = 0; at < kPageBytes; at += 128) {
    std::uint64_t words[16];
    std::memcpy(words, p + at, sizeof words);
    std::uint64_t any = 0;
    for (std::uint64_t w : words) any |= w;
    if (any != 0) return false;
  }
  return true;
}

PageHasher::PageHasher(DigestKind kind, std::span<const std::byte, kHashKeyBytes> key)
    : kind_(kind) {
  std::memcpy(key_.data(), key.data(), key.size());
  for (std::uint8_t use = 0; use < secrets_.size(); ++use) {
    std::array<std::byte, kHashKeyBytes + 1> seed;
    std::memcpy(seed.data(), key.data(), key.size());
    seed[kHashKeyBytes] = std::byte{use};
    CHECK(XXH3_generateSecret(secrets_[use].data(), kSecretBytes, seed.data(), seed.size()) ==
          XXH_OK);
  }
}

Digest PageHasher::hash(Use use, const std::byte* data, std::size_t bytes) const {
  Digest out;
  if (kind_ == DigestKind::kSha256) {
    out = keyed_sha256(key_, use, data, bytes);
  } else {
    baton_hash128 h = kUnit.hash(data, bytes, secrets_[use].data(), kSecretBytes);
    std::memcpy(out.bytes.data(), h.bytes, sizeof h.bytes);
  }
  // Keeps the reserved values out of the range of the hash.
  if (out.is_absent() || out.is_zero_page()) [[unlikely]] out.bytes[0] ^= std::byte{1};
  return out;
}

Digest PageHasher::page(PageView page) const {
  if (is_zero_page(page)) return Digest::zero_page();
  return hash(kPage, page.data(), page.size());
}

Digest PageHasher::packed_node(std::span<const std::byte> packed) const {
  return hash(kNode, packed.data(), packed.size());
}

Digest PageHasher::node(std::span<const Digest> children) const {
  const std::size_t width = digest_width(kind_);
  CHECK(children.size() <= 64);
  std::array<std::byte, 64 * 32> packed{};
  bool any = false;
  for (std::size_t i = 0; i < children.size(); ++i) {
    any = any || !children[i].is_absent();
    std::memcpy(packed.data() + i * width, children[i].bytes.data(), width);
  }
  if (!any) return Digest::absent();
  return packed_node(std::span(packed.data(), 64 * width));
}

Digest PageHasher::bytes(std::span<const std::byte> data) const {
  return hash(kBytes, data.data(), data.size());
}

Result<HashKey> make_hash_key() {
  HashKey key;
  ssize_t n;
  do {
    n = ::getrandom(key.data(), key.size(), 0);
  } while (n < 0 && errno == EINTR);
  if (n != static_cast<ssize_t>(key.size())) return errno_error("getrandom", "hash key");
  return key;
}

std::string_view hash_vector_unit() { return kUnit.name; }

}  // namespace baton::dedup
