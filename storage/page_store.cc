#include "storage/page_store.h"

#include <algorithm>


namespace baton::storage {

std::string DomainId::to_hex() const {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::byte b : bytes) {
    auto v = std::to_integer<unsigned>(b);
    out += kDigits[v >> 4];
    out += kDigits[v & 15];
  }
  return out;
}

Result<DomainId> DomainId::from_hex(std::string_view text) {
  auto digest = text.size() == 32 ? Digest::from_hex(text) : Result<Digest>(Error{});
  if (!digest) {
    return make_error(Code::kInvalid, "read domain id", "expected 32 hexadecimal digits");
  }
  DomainId id;
  std::copy_n(digest->bytes.begin(), id.bytes.size(), id.bytes.begin());
  return id;
}

Result<DomainId> DomainId::make_random() {
  BATON_ASSIGN(dedup::HashKey key, dedup::make_hash_key());
  DomainId id;
  std::copy_n(key.begin(), id.bytes.size(), id.bytes.begin());
  return id;
}

}  // namespace baton::storage
