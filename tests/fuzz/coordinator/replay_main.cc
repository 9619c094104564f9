// Runs the fuzz entry over the files of a folder, and over mutations of them. The seed is
// printed; give it as the second argument to run it again.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);

namespace {

constexpr int kMutations = 20'000;

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FOLDER [SEED]\n", argv[0]);
    return 2;
  }
  const unsigned seed = argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 10)) : std::random_device()();
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  std::mt19937 random(seed);
  std::vector<std::string> inputs;
  for (const auto& file : std::filesystem::recursive_directory_iterator(argv[1])) {
    if (!file.is_regular_file()) continue;
    std::ifstream in(file.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  if (inputs.empty()) {
    std::fprintf(stderr, "no input in %s\n", argv[1]);
    return 1;
  }
  for (const auto& input : inputs) run(input);
  for (int i = 0; i < kMutations; ++i) {
    std::string input = inputs[random() % inputs.size()];
    for (unsigned n = random() % 6 + 1; n > 0 && !input.empty(); --n) {
      const std::size_t at = random() % input.size();
      switch (random() % 4) {
        case 0: input[at] = static_cast<char>(random()); break;
        case 1: input.erase(at, random() % 16); break;
        case 2: input.insert(at, input.substr(random() % input.size(), random() % 64)); break;
        default: {  // the head of one with the tail of another
          const std::string& other = inputs[random() % inputs.size()];
          input = input.substr(0, at) + other.substr(std::min<std::size_t>(at, other.size()));
        }
      }
    }
    run(input);
  }
  std::printf("%zu files, %d mutations\n", inputs.size(), kMutations);
  return 0;
}
