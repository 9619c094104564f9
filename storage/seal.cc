#include "storage/seal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <cstring>

#include "base/check.h"
#include "base/fd.h"

namespace baton::storage {
namespace {

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* c) const { EVP_CIPHER_CTX_free(c); }
};

EVP_CIPHER_CTX* context() {
  thread_local std::unique_ptr<EVP_CIPHER_CTX, FreeContext> one(EVP_CIPHER_CTX_new());
  CHECK(one != nullptr);
  return one.get();
}

const unsigned char* raw(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Sealer::~Sealer() { OPENSSL_cleanse(key_.data(), key_.size()); }

Result<Sealer::Key> Sealer::make_key() {
  Key key;
  if (RAND_priv_bytes(reinterpret_cast<unsigned char*>(key.data()), static_cast<int>(key.size())) != 1) {
    return make_error(Code::kFailed, "make key", "no random bytes");
  }
  return key;
}

Result<Sealer::Key> Sealer::read_key(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return errno_error("read key", path);
  if ((st.st_mode & 077) != 0) {
    return make_error(Code::kNotAllowed, "read key", path + ": others may read it", "chmod 600 " + path);
  }
  BATON_ASSIGN(std::string text, read_file(path, 4096));
  Key key;
  bool good = text.size() == kSealKeyBytes;
  if (good) {
    std::memcpy(key.data(), text.data(), key.size());
  } else {
    std::string_view digits = text;
    if (digits.ends_with('\n')) digits.remove_suffix(1);
    good = digits.size() == 2 * kSealKeyBytes;
    for (std::size_t i = 0; good && i < kSealKeyBytes; ++i) {
      const int high = hex_digit(digits[2 * i]), low = hex_digit(digits[2 * i + 1]);
      good = high >= 0 && low >= 0;
      if (good) key[i] = std::byte(high * 16 + low);
    }
  }
  OPENSSL_cleanse(text.data(), text.size());
  if (!good) {
    return make_error(Code::kInvalid, "read key", path + ": neither 32 bytes nor 64 hexadecimal digits",
                      "openssl rand -hex 32 > " + path);
  }
  return key;
}

void Sealer::seal(std::span<const std::byte> plain, std::span<const std::byte> bound, std::string& out) const {
  const std::size_t at = out.size();
  out.resize(at + plain.size() + kSealBytes);
  auto* nonce = reinterpret_cast<unsigned char*>(out.data()) + at;
  auto* cipher = nonce + kSealNonceBytes;
  CHECK(RAND_bytes(nonce, kSealNonceBytes) == 1);
  EVP_CIPHER_CTX* c = context();
  int n = 0;
  CHECK(EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), nullptr, raw(key_), nonce) == 1);
  CHECK(bound.empty() || EVP_EncryptUpdate(c, nullptr, &n, raw(bound), static_cast<int>(bound.size())) == 1);
  CHECK(EVP_EncryptUpdate(c, cipher, &n, raw(plain), static_cast<int>(plain.size())) == 1);
  CHECK(EVP_EncryptFinal_ex(c, cipher + n, &n) == 1);
  CHECK(EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, kSealTagBytes, cipher + plain.size()) == 1);
}

Result<void> Sealer::open(std::span<const std::byte> sealed, std::span<const std::byte> bound,
                          std::span<std::byte> out) const {
  if (sealed.size() < kSealBytes || out.size() != sealed.size() - kSealBytes) {
    return make_error(Code::kCorrupt, "unseal", "wrong length");
  }
  const auto* nonce = raw(sealed);
  const auto* cipher = nonce + kSealNonceBytes;
  unsigned char tag[kSealTagBytes];
  std::memcpy(tag, cipher + out.size(), kSealTagBytes);
  auto* plain = reinterpret_cast<unsigned char*>(out.data());
  EVP_CIPHER_CTX* c = context();
  int n = 0;
  const bool good =
      EVP_DecryptInit_ex(c, EVP_aes_256_gcm(), nullptr, raw(key_), nonce) == 1 &&
      (bound.empty() || EVP_DecryptUpdate(c, nullptr, &n, raw(bound), static_cast<int>(bound.size())) == 1) &&
      EVP_DecryptUpdate(c, plain, &n, cipher, static_cast<int>(out.size())) == 1 &&
      EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, kSealTagBytes, tag) == 1 &&
      EVP_DecryptFinal_ex(c, plain + n, &n) == 1;
  if (good) return {};
  std::memset(out.data(), 0, out.size());
  return make_error(Code::kCorrupt, "unseal", "sealed with another key, or changed since");
}

}  // namespace baton::storage
