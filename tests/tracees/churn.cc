// Maps, unmaps, remaps, protects, gives back and forks all the time, and knows at
// every moment what each page of its memory must hold.
#include <sys/mman.h>
#include <sys/wait.h>

#include <cstdint>
#include <vector>

#include "tracee.h"

namespace {

constexpr std::size_t kSlots = 200;
struct Slot {
  std::uint64_t* at = nullptr;
  std::size_t pages = 0;
  std::vector<std::uint64_t> wanted;   // the first word of each page
};
std::vector<Slot> g_slots(kSlots);

std::uint64_t g_state = 0x9E3779B97F4A7C15ull;
std::uint64_t next() {
  g_state ^= g_state << 13;
  g_state ^= g_state >> 7;
  g_state ^= g_state << 17;
  return g_state;
}

std::uint64_t* map_pages(std::size_t pages) {
  void* at = mmap(nullptr, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(at != MAP_FAILED);
  return static_cast<std::uint64_t*>(at);
}

bool right(const Slot& slot) {
  for (std::size_t p = 0; p < slot.pages; ++p)
    if (slot.at[p * 512] != slot.wanted[p]) return false;
  return true;
}

void step() {
  Slot& slot = g_slots[next() % kSlots];
  if (slot.at == nullptr) {
    slot.pages = 1 + next() % 16;
    slot.at = map_pages(slot.pages);
    slot.wanted.assign(slot.pages, 0);
    return;
  }
  MUST(right(slot));
  std::size_t page = next() % slot.pages;
  switch (next() % 7) {
    case 0:
      MUST(munmap(slot.at, slot.pages * 4096) == 0);
      slot = Slot{};
      break;
    case 1: {  // grow or shrink, perhaps at another place
      std::size_t pages = 1 + next() % 16;
      void* moved = mremap(slot.at, slot.pages * 4096, pages * 4096, MREMAP_MAYMOVE);
      MUST(moved != MAP_FAILED);
      slot.at = static_cast<std::uint64_t*>(moved);
      slot.pages = pages;
      slot.wanted.resize(pages, 0);
      break;
    }
    case 2:
      MUST(mprotect(slot.at, slot.pages * 4096, PROT_READ) == 0);
      MUST(right(slot));
      MUST(mprotect(slot.at, slot.pages * 4096, PROT_READ | PROT_WRITE) == 0);
      break;
    case 3:
      MUST(madvise(slot.at + page * 512, 4096, MADV_DONTNEED) == 0);
      slot.wanted[page] = 0;
      break;
    case 4: {  // a child that checks what it inherited
      if (next() % 20 != 0) break;
      pid_t child = fork();
      MUST(child >= 0);
      if (child == 0) {
        for (const Slot& each : g_slots)
          if (each.at != nullptr && !right(each)) _exit(9);
        _exit(0);
      }
      int status = 0;
      while (waitpid(child, &status, 0) < 0) MUST(errno == EINTR);
      MUST(WIFEXITED(status) && WEXITSTATUS(status) == 0);
      break;
    }
    default:
      slot.wanted[page] = next();
      slot.at[page * 512] = slot.wanted[page];
  }
}

}  // namespace

int main() {
  tracee::ready();
  for (;;) {
    for (int n = 0; n < 200; ++n) step();
    usleep(500);
    if (tracee::asked()) {
      tracee::Check check;
      for (const Slot& slot : g_slots)
        if (slot.at != nullptr) check.expect(right(slot), "content of a slot");
    }
  }
}
