// Runs a fuzzer's entry point over its corpus, and over prefixes and mutations of each file.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>

#include "base/fd.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace baton {
namespace {

void run(const std::string& bytes) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
}

TEST(Corpus, EachFileAndItsMutations_DoNoHarm) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CORPUS)) {
    const std::string bytes = read_file(entry.path()).value();
    ++files;
    run(bytes);
    for (std::size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 100) run(bytes.substr(0, n));
    std::mt19937 random(7);
    for (int i = 0; i < 300; ++i) {
      std::string changed = bytes;
      for (int k = 0; k <= i % 4 && !changed.empty(); ++k) {
        changed[random() % changed.size()] = static_cast<char>(random());
      }
      run(changed);
    }
  }
  EXPECT_GE(files, 2);
}

}  // namespace
}  // namespace baton
