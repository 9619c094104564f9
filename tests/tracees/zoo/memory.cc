// Memory: every kind of mapping and what madvise, mlock and mprotect made of it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <csetjmp>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

char* map(size_t bytes, int prot, int flags, int fd = -1, off_t at = 0) {
  void* got = mmap(nullptr, bytes, prot, flags, fd, at);
  MUST(got != MAP_FAILED);
  return static_cast<char*>(got);
}

// VmFlags of the mapping that holds `at`.
std::string flags_of(const void* at) {
  std::ifstream in("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    unsigned long from = 0, to = 0;
    if (line.rfind("VmFlags:", 0) == 0 && inside) return line;
    if (line.find('-') < 17 && sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) inside = from <= (unsigned long)at && (unsigned long)at < to;
  }
  return {};
}
void expect_flag(Check& c, const void* at, const char* flag) {
  c.expect((flags_of(at) + " ").find(std::string(" ") + flag + " ") != std::string::npos, flag);
}

sigjmp_buf g_escape;
bool faults(char* at) {
  struct sigaction action {}, old {};
  action.sa_handler = [](int) { siglongjmp(g_escape, 1); };
  sigaction(SIGSEGV, &action, &old);
  struct sigaction bus {};
  sigaction(SIGBUS, &action, &bus);
  bool failed = true;
  if (sigsetjmp(g_escape, 1) == 0) {
    *const_cast<volatile char*>(at);
    failed = false;
  }
  sigaction(SIGSEGV, &old, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  return failed;
}

Animal shared_anonymous() {
  auto* at = map(1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  at[100] = 1;
  child([=] {
    for (;;) {
      if (at[0] == 1) at[0] = 2;
      usleep(1000);
    }
  });
  return {[=](Check& c) {
            c.same(at[100] > 0, 1, "content");
            at[0] = 1;
            for (int i = 0; i < 5000 && at[0] != 2; ++i) usleep(1000);
            c.same(at[0], 2, "the child sees it");
          },
          [=] { ++at[100]; }};
}

Animal private_anonymous() {
  auto turn = std::make_shared<int>(1);
  auto* at = map(64 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  auto fill = [=] { for (int i = 0; i < 64; i += 2) at[i << 12] = (char)(i + *turn); };
  fill();
  return {[=](Check& c) {
            for (int i = 0; i < 64; ++i) c.same(at[i << 12], i % 2 ? 0 : (char)(i + *turn), "page");
          },
          [=] { ++*turn; fill(); }};
}

Animal given_back() {
  auto* at = map(64 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  memset(at, 7, 64 << 12);
  auto gone = std::make_shared<int>(0);
  return {[=](Check& c) {
            for (int i = 0; i < 64; ++i) c.same(at[i << 12], i < *gone ? 0 : 7, "page");
          },
          [=] { *gone += 5; madvise(at, (size_t)*gone << 12, MADV_DONTNEED); }};
}

Animal file_private_modified() {
  std::string path = place("private");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  std::string content(4 << 12, 'f');
  MUST(write(fd, content.data(), content.size()) == (ssize_t)content.size());
  auto* at = map(4 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  at[5000] = 'm';
  return {[=](Check& c) {
            c.same(at[0], 'f', "the file's page");
            c.same(at[5000], 'm', "the modified page");
            c.same(at[9000], 'f', "another of the file's");
          },
          {}};
}

Animal file_shared() {
  std::string path = place("shared");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  MUST(ftruncate(fd, 8192) == 0);
  auto* at = map(8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  auto turn = std::make_shared<int>('a');
  at[10] = 'a';
  return {[=](Check& c) {
            char byte = 0;
            c.same(pread(fd, &byte, 1, 10), 1, "read the file");
            c.same(byte, *turn, "one content");
            c.same(at[10], *turn, "through the mapping");
          },
          [=] { at[10] = (char)++*turn; }};
}

Animal deleted_private() {
  std::string path = place("deleted");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  std::string content(4 << 12, 'd');
  MUST(write(fd, content.data(), content.size()) == (ssize_t)content.size());
  auto* at = map(4 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  unlink(path.c_str());
  at[5000] = 'm';
  return {[=](Check& c) {
            c.same(at[0], 'd', "the file's page");
            c.same(at[5000], 'm', "the modified page");
          },
          {}};
}

Animal deleted_shared() {
  std::string path = place("deleted-shared");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  MUST(ftruncate(fd, 8192) == 0);
  auto* at = map(8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
  close(fd);
  unlink(path.c_str());
  at[4097] = 'x';
  return {[=](Check& c) { c.same(at[4097], 'x', "content"); }, {}};
}

Animal memfd_private() {
  int fd = (int)syscall(SYS_memfd_create, "code", 0);
  MUST(write(fd, "memfd content", 13) == 13);
  auto* at = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  at[1] = 'E';
  return {[=](Check& c) { c.same(memcmp(at, "mEmfd content", 13), 0, "content"); }, {}};
}

// Also open: what is written to it shows where the mapping has no page of its own.
Animal memfd_private_open() {
  int fd = (int)syscall(SYS_memfd_create, "code", 0);
  MUST(ftruncate(fd, 8192) == 0);
  auto* at = map(8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  at[1] = 'E';
  auto turn = std::make_shared<char>('a');
  MUST(pwrite(fd, turn.get(), 1, 4096) == 1);
  return {[=](Check& c) {
            c.same(at[1], 'E', "own page");
            c.same(at[4096], *turn, "the file's");
            ++*turn;
            c.same(pwrite(fd, turn.get(), 1, 4096), 1, "write to it");
            c.same(at[4096], *turn, "shows");
          },
          [=] {
            ++*turn;
            MUST(pwrite(fd, turn.get(), 1, 4096) == 1);
          }};
}

Animal beyond_end() {
  std::string path = place("end");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  MUST(write(fd, "short", 5) == 5);
  auto* at = map(8192, PROT_READ, MAP_PRIVATE, fd);
  return {[=](Check& c) {
            c.same(at[0], 's', "content");
            c.same(faults(at + 4096), 1, "beyond the end: SIGBUS");
          },
          {}};
}

Animal guard_region() {
  auto* at = map(16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  memset(at, 1, 16 << 12);
  if (madvise(at + (4 << 12), 2 << 12, 102 /* MADV_GUARD_INSTALL */) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
    _exit(77);
  }
  auto removed = std::make_shared<bool>(false);
  return {[=](Check& c) {
            c.same(at[3 << 12], 1, "before");
            c.same(faults(at + (4 << 12)), *removed ? 0 : 1, "first guard");
            c.same(faults(at + (5 << 12)), 1, "second guard");
            c.same(at[6 << 12], 1, "behind");
          },
          [=] { MUST(madvise(at + (4 << 12), 1 << 12, 103 /* MADV_GUARD_REMOVE */) == 0); *removed = true; }};
}

// As thread stacks of new C libraries have them; they come and go.
Animal guards_of_stacks() {
  constexpr size_t kStack = 16 << 12;
  auto stacks = std::make_shared<std::vector<char*>>();
  auto make = [=] {
    auto* at = map(kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK);
    if (madvise(at, 1 << 12, 102) != 0) {
      tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
      _exit(77);
    }
    at[kStack - 1] = (char)(stacks->size() + 1);
    stacks->push_back(at);
  };
  for (int i = 0; i < 200; ++i) make();
  return {[=](Check& c) {
            for (char* at : *stacks) c.same(faults(at) ? 1 : 0, 1, "guard");
            for (char* at : *stacks) c.same(faults(at + 4096) ? 1 : 0, 0, "its stack");
            c.same(stacks->back()[kStack - 1], (char)(stacks->size()), "content");
          },
          [=] {
            MUST(munmap(stacks->front(), kStack) == 0);
            stacks->erase(stacks->begin());
            char* kept = stacks->front();
            MUST(madvise(kept, 1 << 12, 103) == 0);
            kept[0] = 7;
            MUST(madvise(kept, 1 << 12, 102) == 0);   // what was written is gone
            for (int i = 0; i < 2; ++i) make();
            stacks->back()[kStack - 1] = (char)stacks->size();
          }};
}

// Larger than a page table, and shrinking.
Animal guard_that_shrinks() {
  constexpr size_t kBytes = 64 << 20;
  auto* at = map(kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  memset(at, 1, 64 << 12);
  auto begins = std::make_shared<size_t>(4 << 12);
  if (madvise(at + *begins, kBytes - *begins - 4096, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
    _exit(77);
  }
  return {[=](Check& c) {
            c.same(at[0], 1, "before");
            c.same(faults(at + *begins), 1, "begins");
            if (*begins > 4 << 12) c.same(at[*begins - 4096], 5, "where it was");
            c.same(faults(at + (kBytes / 2)), 1, "middle");
            c.same(faults(at + kBytes - 8192), 1, "end");
            c.same(faults(at + kBytes - 4096), 0, "behind");
          },
          [=] {
            MUST(madvise(at + *begins, 130 << 12, 103) == 0);
            *begins += 130 << 12;
            at[*begins - 4096] = 5;
          }};
}

Animal guard_that_moves() {
  auto where = std::make_shared<char*>(map(16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS));
  memset(*where, 3, 16 << 12);
  if (madvise(*where + (4 << 12), 2 << 12, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
    _exit(77);
  }
  return {[=](Check& c) {
            c.same((*where)[3 << 12], 3, "before");
            c.same(faults(*where + (4 << 12)), 1, "guard");
            c.same(faults(*where + (5 << 12)), 1, "its second page");
            c.same((*where)[6 << 12], 3, "behind");
          },
          [=] {
            char* free_place = map(32 << 12, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
            void* moved = mremap(*where, 16 << 12, 16 << 12, MREMAP_MAYMOVE | MREMAP_FIXED, free_place);
            MUST(moved != MAP_FAILED);
            *where = static_cast<char*>(moved);
          }};
}

Animal guard_in_locked_memory() {
  auto* at = map(8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (madvise(at + (2 << 12), 1 << 12, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
    _exit(77);
  }
  (void)mlock(at, 8 << 12);   // locks, and says that the guard cannot be filled
  at[0] = 9;
  return {[=](Check& c) {
            c.same(at[0], 9, "content");
            c.same(faults(at + (2 << 12)), 1, "guard");
            expect_flag(c, at, "lo");
          },
          {}};
}

Animal guard_of_two() {
  auto* at = map(8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  auto* told = map(4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  if (madvise(at + (2 << 12), 1 << 12, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL (Linux 6.13)");
    _exit(77);
  }
  child([=] {
    for (;;) {
      if (told[0] == 1) {
        told[1] = faults(at + (2 << 12)) ? 1 : 2;
        told[0] = 0;
      }
      usleep(1000);
    }
  });
  return {[=](Check& c) {
            c.same(faults(at + (2 << 12)), 1, "guard");
            told[1] = 0;
            told[0] = 1;
            for (int i = 0; i < 5000 && told[0] != 0; ++i) usleep(1000);
            c.same(told[1], 1, "the child's guard");
          },
          {}};
}

Animal guard_in_shared_memory() {
  auto* at = map(8 << 12, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  if (madvise(at + (2 << 12), 1 << 12, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL in shared memory (Linux 6.15)");
    _exit(77);
  }
  return {[=](Check& c) { c.same(faults(at + (2 << 12)), 1, "guard"); }, {}};
}

Animal guard_in_file() {
  std::string path = place("guard");
  int fd = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
  MUST(ftruncate(fd, 8 << 12) == 0);
  auto* at = map(8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  if (madvise(at + (2 << 12), 1 << 12, 102) != 0) {
    tracee::say("SKIPPED: MADV_GUARD_INSTALL in file mappings (Linux 6.15)");
    _exit(77);
  }
  return {[=](Check& c) {
            c.same(faults(at + (2 << 12)), 1, "guard");
            c.same(faults(at + (3 << 12)), 0, "behind");
          },
          {}};
}

Animal grows_down() {
  auto* at = map(64 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  munmap(at, 64 << 12);
  auto* stack = static_cast<char*>(mmap(at + (48 << 12), 4 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0));
  MUST(stack != MAP_FAILED);
  stack[0] = 'g';
  return {[=](Check& c) {
            c.same(stack[0], 'g', "content");
            expect_flag(c, stack, "gd");
          },
          {}};
}

template <int kAdvice>
Animal advised(const char* flag) {
  auto* at = map(4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  at[0] = 'a';
  MUST(madvise(at, 4 << 20, kAdvice) == 0);
  return {[=](Check& c) {
            expect_flag(c, at, flag);
            c.same(at[0], 'a', "content");
          },
          {}};
}
Animal advised_dontfork() { return advised<MADV_DONTFORK>("dc"); }
Animal advised_dontdump() { return advised<MADV_DONTDUMP>("dd"); }
Animal advised_wipeonfork() { return advised<18>("wf"); }
Animal advised_nohuge() { return advised<MADV_NOHUGEPAGE>("nh"); }
Animal advised_random() { return advised<MADV_RANDOM>("rr"); }
Animal advised_sequential() { return advised<MADV_SEQUENTIAL>("sr"); }
Animal advised_huge() {
  auto* at = map(8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (madvise(at, 8 << 20, MADV_HUGEPAGE) != 0) {
    tracee::say("SKIPPED: transparent huge pages");
    _exit(77);
  }
  memset(at, 'h', 8 << 20);
  return {[=](Check& c) {
            expect_flag(c, at, "hg");
            for (int i = 0; i < 2048 && c.ok; ++i) c.same(at[i << 12], 'h', "content");
          },
          [=] { at[3 << 20] = 'h'; }};
}

Animal locked() {
  auto* at = map(1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  MUST(mlock(at, 1 << 19) == 0);
  return {[=](Check& c) {
            expect_flag(c, at, "lo");
            c.expect(flags_of(at + (3 << 18)).find(" lo") == std::string::npos, "the rest is not locked");
          },
          {}};
}
Animal locked_on_fault() {
  auto* at = map(1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  MUST(syscall(SYS_mlock2, at, 1 << 20, 1) == 0);
  return {[=](Check& c) { expect_flag(c, at, "lf"); }, {}};
}
Animal locked_all() {
  MUST(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
  return {[=](Check& c) {
            auto* fresh = map(1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
            expect_flag(c, fresh, "lo");
            munmap(fresh, 1 << 16);
          },
          {}};
}

Animal protections() {
  auto* at = map(8 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  memset(at, 'p', 8 << 12);
  MUST(mprotect(at, 4096, PROT_READ) == 0);
  MUST(mprotect(at + 4096, 4096, PROT_NONE) == 0);
  MUST(mprotect(at + 8192, 4096, PROT_READ | PROT_EXEC) == 0);
  return {[=](Check& c) {
            c.same(at[0], 'p', "readable");
            c.same(faults(at + 4096), 1, "PROT_NONE");
            c.same(at[8192], 'p', "executable");
            c.same(mprotect(at + 4096, 4096, PROT_READ), 0, "opened");
            c.same(at[4096], 'p', "what was behind it");
            mprotect(at + 4096, 4096, PROT_NONE);
          },
          {}};
}

Animal remapped() {
  auto* at = map(16 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  for (int i = 0; i < 16; ++i) at[i << 12] = (char)i;
  auto now = std::make_shared<char*>(at);
  return {[=](Check& c) {
            for (int i = 0; i < 16; ++i) c.same((*now)[i << 12], i, "content");
          },
          [=] {
            auto* free = map(16 << 12, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
            void* moved = mremap(*now, 16 << 12, 16 << 12, MREMAP_MAYMOVE | MREMAP_FIXED, free);
            MUST(moved != MAP_FAILED);
            *now = static_cast<char*>(moved);
          }};
}

Animal break_moves() {
  auto* end = static_cast<char*>(sbrk(1 << 20));
  end[100] = 'b';
  return {[=](Check& c) {
            c.same(end[100], 'b', "content");
            auto* now = static_cast<char*>(sbrk(4096));
            c.expect(now >= end + (1 << 20), "the break goes on");
            now[0] = 1;
          },
          {}};
}

Animal named_anonymous() {
  auto* at = map(1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (syscall(SYS_prctl, 0x53564d41, 0, at, 1 << 16, "zoo name") != 0) {
    tracee::say("SKIPPED: names of anonymous mappings (CONFIG_ANON_VMA_NAME)");
    _exit(77);
  }
  return {[=](Check& c) {
            std::ifstream in("/proc/self/maps");
            std::stringstream all;
            all << in.rdbuf();
            c.expect(all.str().find("[anon:zoo name]") != std::string::npos, "name");
          },
          {}};
}

Animal many_mappings() {
  auto pages = std::make_shared<std::vector<char*>>();
  for (int i = 0; i < 1000; ++i) {
    pages->push_back(map(4096, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS));
    *pages->back() = (char)i;
  }
  return {[=](Check& c) {
            for (size_t i = 0; i < pages->size(); ++i) c.same(*(*pages)[i], (char)i, "content");
          },
          {}};
}

Animal copy_on_write() {
  auto* at = map(1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  memset(at, 'c', 1 << 20);
  auto* seen = map(4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  child([=] {
    at[4096] = 'k';
    for (;;) {
      seen[0] = at[4096];
      seen[1] = at[8192];
      seen[2] = 1;
      usleep(1000);
    }
  });
  return {[=](Check& c) {
            seen[2] = 0;
            for (int i = 0; i < 5000 && seen[2] == 0; ++i) usleep(1000);
            c.same(seen[0], 'k', "the child's own");
            c.same(seen[1], 'c', "what both had");
            c.same(at[4096], 'c', "mine");
          },
          {}};
}

Animal huge_page_table() {
  auto* at = static_cast<char*>(mmap(nullptr, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0));
  if (at == MAP_FAILED) {
    tracee::say("SKIPPED: huge pages (hugetlb)");
    _exit(77);
  }
  return {[=](Check& c) { c.expect(at != nullptr, "mapped"); }, {}};
}

Animal aio_ring() {
  unsigned long context = 0;
  MUST(syscall(SYS_io_setup, 16, &context) == 0);
  return {[=](Check& c) {
            timespec none{};
            char event[32];
            c.same(syscall(SYS_io_getevents, context, 0, 1, event, &none), 0, "idle");
          },
          {}};
}

Animal sparse() {
  auto* at = map(1ull << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  for (int i = 0; i < 8; ++i) at[(size_t)i << 27] = (char)(i + 1);
  return {[=](Check& c) {
            for (int i = 0; i < 8; ++i) c.same(at[(size_t)i << 27], i + 1, "page");
            c.same(at[12345 << 12], 0, "nothing between");
          },
          {}};
}

const std::vector<Case> kCases = {
    {"memory-private", "memory", nullptr, private_anonymous},
    {"memory-given-back", "memory", nullptr, given_back},
    {"memory-shared", "memory", nullptr, shared_anonymous},
    {"memory-copy-on-write", "memory", nullptr, copy_on_write},
    {"memory-protections", "memory", nullptr, protections},
    {"memory-remapped", "memory", nullptr, remapped},
    {"memory-break", "memory", nullptr, break_moves},
    {"memory-named", "memory", nullptr, named_anonymous},
    {"memory-many-mappings", "memory", nullptr, many_mappings},
    {"memory-sparse", "memory", nullptr, sparse},
    {"memory-grows-down", "memory", nullptr, grows_down},
    {"file-private-modified", "mapped file", nullptr, file_private_modified},
    {"file-shared", "mapped file", nullptr, file_shared},
    {"file-deleted-private", "mapped file", nullptr, deleted_private},
    {"file-deleted-shared", "mapped file", nullptr, deleted_shared},
    {"file-memfd-private", "mapped file", nullptr, memfd_private},
    {"file-memfd-private-open", "mapped file", nullptr, memfd_private_open},
    {"file-beyond-end", "mapped file", nullptr, beyond_end},
    {"guard-region", "guard region", nullptr, guard_region},
    {"guard-in-file", "guard region", nullptr, guard_in_file},
    {"guard-stacks", "guard region", nullptr, guards_of_stacks},
    {"guard-shrinks", "guard region", nullptr, guard_that_shrinks},
    {"guard-moves", "guard region", nullptr, guard_that_moves},
    {"guard-locked", "guard region", nullptr, guard_in_locked_memory},
    {"guard-forked", "guard region", nullptr, guard_of_two},
    {"guard-shared", "guard region", "guard region in shared memory", guard_in_shared_memory},
    {"madvise-dontfork", "madvise", nullptr, advised_dontfork},
    {"madvise-dontdump", "madvise", nullptr, advised_dontdump},
    {"madvise-wipeonfork", "madvise", nullptr, advised_wipeonfork},
    {"madvise-hugepage", "madvise", nullptr, advised_huge},
    {"madvise-nohugepage", "madvise", nullptr, advised_nohuge},
    {"madvise-random", "madvise", nullptr, advised_random},
    {"madvise-sequential", "madvise", nullptr, advised_sequential},
    {"mlock", "mlock", nullptr, locked},
    {"mlock-on-fault", "mlock", nullptr, locked_on_fault},
    {"mlockall-future", "mlock", nullptr, locked_all},
    {"hugetlb", "huge pages", "huge pages", huge_page_table},
    {"aio-ring", "asynchronous I/O", "io_setup", aio_ring},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
