// Runs the fuzz entry over the files of a folder, and over mutations of them and of valid
// messages. The seed is printed; give it as the second argument to run it again.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "transport/stream/messages.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes);

namespace {

using namespace baton::transport;
using namespace baton::transport::stream;
using baton::dedup::Digest;
using baton::dedup::DigestKind;

constexpr int kMutations = 60'000;

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

std::string payload_of(FrameType type, const std::string& payload) {
  return static_cast<char>(type) + payload;
}

std::vector<std::string> valid_messages() {
  PageCodec codec;
  std::vector<std::byte> page(4096, std::byte{7});
  Digest digest;
  digest.bytes[3] = std::byte{5};
  const std::vector<Digest> one{digest};
  OpenRequest open;
  open.workload = "redis";
  const DigestKind kind = DigestKind::kXxh3_128;
  const baton::Error error = baton::make_error(baton::Code::kNoSpace, "put", "full", "Free some.");
  std::vector<std::string> out{
      payload_of(FrameType::kOpen, encode_open(open)),
      payload_of(FrameType::kOpened, encode_opened({1, 2, {{1, digest}}}, kind)),
      payload_of(FrameType::kRefused, encode_error(error)),
      payload_of(FrameType::kNodeQuery, encode_node_query(std::vector<NodeRef>{{1, 4, 3}})),
      payload_of(FrameType::kHaveQuery, encode_digests(one, kind)),
      payload_of(FrameType::kPages, codec.encode_pages(one, kind, page)),
      payload_of(FrameType::kAck, encode_ack(3, {})),
      payload_of(FrameType::kNack, encode_nack(3, {error, one}, kind)),
      payload_of(FrameType::kFetchCheckpoint, encode_fetch_checkpoint({"redis", 3})),
      payload_of(FrameType::kFetchPages, encode_fetch_pages("redis", {}, kind, one)),
      payload_of(FrameType::kFetchedPages, codec.encode_fetched(std::vector<bool>(9, true),
                                                                std::vector<std::byte>(9 * 4096))),
  };
  std::string stream(1, '\0');
  for (const std::string& message : out) {
    const std::string payload = message.substr(1);
    const auto head = encode_header(static_cast<FrameType>(message[0]), false, 1, 1,
                                    std::as_bytes(std::span(payload)));
    stream.append(reinterpret_cast<const char*>(head.data()), head.size());
    stream += payload;
  }
  out.push_back(stream);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS [SEED]\n", argv[0]);
    return 2;
  }
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  std::printf("seed %llu; again: %s %s %llu\n", static_cast<unsigned long long>(seed), argv[0],
              argv[1], static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  std::vector<std::string> inputs = valid_messages();
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  for (const std::string& input : inputs) run(input);
  std::mt19937_64 random(seed);
  for (int i = 0; i < kMutations; ++i) {
    std::string input = inputs[random() % inputs.size()];
    for (std::uint64_t n = random() % 4 + 1; n > 0 && input.size() > 1; --n) {
      const std::size_t at = random() % input.size();
      switch (random() % 4) {
        case 0: input[at] = static_cast<char>(input[at] ^ (1 << (random() % 8))); break;
        case 1: input[at] = static_cast<char>(random()); break;
        case 2: input.resize(at + 1); break;
        default: input.insert(at, input.substr(at, random() % 16 + 1)); break;
      }
    }
    run(input);
  }
  std::printf("%zu inputs and %d mutations\n", inputs.size(), kMutations);
  return 0;
}
