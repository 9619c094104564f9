// Opens a page store whose only segment is the input, reads what it lists, and goes on with it.
#include <stdlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include <spdlog/spdlog.h>

#include "base/check.h"
#include "storage/pages/segment.h"
#include "storage/segment_store.h"

using namespace baton::storage;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  spdlog::set_level(spdlog::level::off);
  static const std::string folder = [] {
    std::string name = std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp";
    name += "/baton-segment-fuzz-XXXXXX";
    CHECK(::mkdtemp(name.data()) != nullptr);
    static struct Cleaner {
      std::string path;
      ~Cleaner() { std::filesystem::remove_all(path); }
    } cleaner{name};
    return name;
  }();
  std::filesystem::remove_all(folder + "/pages");
  std::filesystem::create_directory(folder + "/pages");
  std::ofstream(folder + "/pages/seg-00000001.pages", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));

  std::vector<std::pair<DomainId, Digest>> listed;
  {
    std::filesystem::copy_file(folder + "/pages/seg-00000001.pages", folder + "/seg-00000001.pages",
                               std::filesystem::copy_options::overwrite_existing);
    std::uint64_t damaged = 0;
    auto segment = Segment::open(folder, 1, real_disk(),
                                 [&](const DomainId& domain, const Digest& digest, const PagePlace&) {
                                   listed.emplace_back(domain, digest);
                                   return true;
                                 },
                                 damaged);
    CHECK(segment.has_value());
  }
  auto store = open_segment_store(folder + "/pages");
  CHECK(store.has_value());
  PageHasher hasher(DigestKind::kXxh3_128, baton::dedup::HashKey{});
  for (const auto& [domain, digest] : listed) {
    (void)(*store)->verify(domain, hasher, std::span(&digest, 1));
  }
  // Whatever it was, the store takes new pages and gives them back.
  std::array<std::byte, baton::dedup::kPageBytes> page{}, out{};
  page[0] = std::byte{42};
  DomainId domain;
  PagePut put{hasher.page(page), page.data()};
  CHECK((*store)->put(domain, std::span(&put, 1)).has_value());
  PageGet get{put.digest, out.data()};
  auto got = (*store)->get(domain, hasher, std::span(&get, 1));
  CHECK(got.has_value() || got.error().code == baton::Code::kCorrupt);  // the input claimed it
  (void)(*store)->gc((*store)->gc_begin(), {});
  return 0;
}
