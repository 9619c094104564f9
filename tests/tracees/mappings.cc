// 2,000 mappings of many kinds, each with content of its own, and holes between them.
#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "tracee.h"

namespace {
struct Piece {
  unsigned char* at;
  std::size_t pages;
  int prot;
  std::uint64_t seed;
};
std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  return x;
}
}  // namespace

int main() {
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    std::size_t pages = 1 + i % 3;
    // One page more, unmapped again, keeps neighbours from being merged.
    auto* at = static_cast<unsigned char*>(mmap(nullptr, (pages + 1) * 4096, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(at != MAP_FAILED);
    MUST(munmap(at + pages * 4096, 4096) == 0);
    for (std::size_t p = 0; p < pages; ++p)
      if ((i + p) % 5 != 0) *reinterpret_cast<std::uint64_t*>(at + p * 4096 + (i % 500) * 8) = mix(i * 7 + p);
    int prot = i % 7 == 0 ? PROT_READ : i % 11 == 0 ? PROT_NONE : PROT_READ | PROT_WRITE;
    MUST(mprotect(at, pages * 4096, prot) == 0);
    pieces.push_back({at, pages, prot, i});
  }
  tracee::ready();
  std::uint64_t turn = 0;
  for (;;) {
    while (!tracee::asked()) {
      Piece& piece = pieces[mix(turn) % pieces.size()];
      if (piece.prot == (PROT_READ | PROT_WRITE)) {
        auto* word = reinterpret_cast<volatile std::uint64_t*>(piece.at + 4088);
        *word = *word + 1;
        *word = *word - 1;
      }
      ++turn;
      usleep(100);
    }
    tracee::Check check;
    for (Piece& piece : pieces) {
      if (piece.prot == PROT_NONE) MUST(mprotect(piece.at, piece.pages * 4096, PROT_READ) == 0);
      for (std::size_t p = 0; p < piece.pages; ++p) {
        std::uint64_t wanted = (piece.seed + p) % 5 != 0 ? mix(piece.seed * 7 + p) : 0;
        for (std::size_t word = 0; word < 512; ++word) {
          std::uint64_t value = *reinterpret_cast<std::uint64_t*>(piece.at + p * 4096 + word * 8);
          check.expect(value == (word == piece.seed % 500 ? wanted : 0), "content of a mapping", static_cast<long long>(value), static_cast<long long>(wanted));
        }
      }
      if (piece.prot == PROT_NONE) MUST(mprotect(piece.at, piece.pages * 4096, PROT_NONE) == 0);
    }
  }
}
