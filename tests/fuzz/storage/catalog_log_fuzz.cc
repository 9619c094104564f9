// Opens a catalog log that is the input, then appends to it: the entry must be there at the
// next open, as the last one.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/check.h"
#include "storage/log/catalog_log.h"

using namespace baton::storage;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string folder = [] {
    std::string name = std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp";
    name += "/baton-log-fuzz-XXXXXX";
    CHECK(::mkdtemp(name.data()) != nullptr);
    static struct Cleaner {
      std::string path;
      ~Cleaner() { std::filesystem::remove_all(path); }
    } cleaner{name};
    return name;
  }();
  const std::string path = folder + "/catalog.log";
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  std::uint64_t seen = 0, last = 0, damaged = 0;
  auto visit = [&](const LogEntry& entry, std::span<const std::byte>, std::uint64_t) {
    ++seen;
    last = entry.value;
  };
  {
    auto log = CatalogLog::open(path, real_disk(), visit, damaged);
    if (!log) {
      CHECK(log.error().code == baton::Code::kCorrupt);
      return 0;
    }
    CHECK((*log)->entries() == seen);
    LogEntry entry;
    entry.type = EntryType::kDrop;
    entry.value = 4711;
    CHECK((*log)->append(entry, {}).has_value());
  }
  const std::uint64_t before = seen;
  seen = 0;
  auto log = CatalogLog::open(path, real_disk(), visit, damaged);
  CHECK(log.has_value() && seen == before + 1 && last == 4711);
  return 0;
}
