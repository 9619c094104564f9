// decode over any bytes, as they are and with the checksum made right; what it accepts must
// be valid and encode to the same bytes again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "storage/bytes/checksum.h"
#include "storage/checkpoint_record.h"

namespace {

void try_decode(std::string_view bytes) {
  auto record = baton::storage::decode(bytes);
  if (!record) return;
  CHECK(baton::storage::validate(*record).has_value());
  auto again = baton::storage::encode(*record);
  CHECK(again.has_value() && *again == bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  try_decode(bytes);
  if (bytes.size() < 8) return 0;
  bytes.resize(bytes.size() - 8);
  const std::uint64_t sum = baton::storage::checksum(bytes);
  bytes.append(reinterpret_cast<const char*>(&sum), 8);
  try_decode(bytes);
  return 0;
}
