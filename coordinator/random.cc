#include "coordinator/random.h"

#include <sys/random.h>

#include "base/check.h"

namespace baton::coordinator {

std::string random_bytes(std::size_t count) {
  CHECK(count <= 256);
  std::string out(count, '\0');
  CHECK(::getrandom(out.data(), count, 0) == static_cast<ssize_t>(count));
  return out;
}

std::string random_hex(std::size_t bytes) {
  static const char kDigits[] = "0123456789abcdef";
  std::string out;
  for (unsigned char byte : random_bytes(bytes)) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace baton::coordinator
