// Fills a volume with records from the input (file number and length, two bytes each, then the
// record), settles it, and uses whatever came of it.
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "agent/volume/file_tree.h"
#include "base/check.h"

using namespace baton;
using namespace baton::volume;

namespace {

void visit(FileTree& tree, std::uint64_t id, std::set<std::uint64_t>& seen) {
  CHECK(seen.insert(id).second || !tree.find(id)->is_folder());
  const File file = *tree.find(id);
  (void)tree.status(file);
  std::vector<std::byte> bytes(5000);
  CHECK(tree.read(id, bytes, 0) >= 0 || !S_ISREG(file.mode));
  for (const auto& [order, name] : file.order) {
    const std::uint64_t child = tree.child(id, name);
    CHECK(tree.find(child) != nullptr);
    visit(tree, child, seen);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto tree = FileTree::make("/dev/shm");
  CHECK(tree.has_value());
  for (std::size_t at = 0; at + 4 <= size;) {
    std::uint16_t id = 0, bytes = 0;
    std::memcpy(&id, data + at, 2);
    std::memcpy(&bytes, data + at + 2, 2);
    at += 4;
    std::vector<std::byte> page(kPage);
    const std::uint32_t length = static_cast<std::uint32_t>(std::min<std::size_t>({bytes, size - at, kPage - 4}));
    std::memcpy(page.data(), &length, 4);
    std::memcpy(page.data() + 4, data + at, length);
    at += length;
    if ((id & 0x8000) != 0) (void)(*tree)->drop({id & 0x7fffu, 3}).has_value();
    else (void)(*tree)->fill(id, page).has_value();
  }
  if (!(*tree)->settle()) return 0;
  (*tree)->forget_unused();
  std::set<std::uint64_t> seen;
  visit(**tree, kRootFile, seen);
  for (std::uint64_t id : seen) {
    if (!S_ISREG((*tree)->find(id)->mode)) continue;
    const std::uint64_t shorter = 3;
    Changes changes;
    changes.size = &shorter;
    (void)(*tree)->write(id, std::as_bytes(std::span("written", 7)), 4090);
    (void)(*tree)->change(id, changes);
  }
  std::uint64_t made = 0;
  (void)(*tree)->make_file(kRootFile, "fresh", S_IFREG | 0600, 0, 0, 0, "", made);
  std::vector<std::byte> pages(16 * kPage);
  std::vector<std::uint64_t> numbers;
  std::vector<PageRun> gone;
  (*tree)->change_all();
  for (int i = 0; i < 100 && (*tree)->pages_changed() != 0; ++i) {
    if (!(*tree)->collect(pages, numbers, gone)) break;
  }
  return 0;
}
