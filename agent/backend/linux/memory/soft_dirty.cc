// Tracker "soft-dirty": the kernel marks each page that is written (bit 55 of /proc/PID/pagemap)
// until "4" is written to /proc/PID/clear_refs. Linux 3.11 with CONFIG_MEM_SOFT_DIRTY
// (Documentation/admin-guide/mm/soft-dirty.rst).
//
// Reading and clearing are two calls, and a write between them would be lost. So marks are
// cleared only while the program stands still; rounds beside it report what is not known yet.
// New mappings count as written altogether; a huge page is one page here.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "agent/backend/linux/memory/pagemap.h"
#include "agent/backend/linux/memory/tracker.h"

namespace baton::linux_backend {
namespace {

constexpr std::uint64_t kChunkPages = 32768;
constexpr std::uint64_t kSoftDirty = 1ull << 55;

class SoftDirty final : public Tracker {
 public:
  SoftDirty(pid_t pid, Pagemap pagemap, Fd clear) : pid_(pid), pagemap_(std::move(pagemap)), clear_(std::move(clear)) {}
  std::string_view name() const override { return "soft-dirty"; }
  bool is_exact() const override { return true; }

  Result<void> collect(const MemoryMap& map, const PageSet& known, const Stillness& still, Collected& out) override {
    for (const Vma& v : map.vmas()) {
      if (!v.is_private()) continue;
      bool file = v.kind == pb::MAPPING_FILE_PRIVATE;
      for (std::uint64_t at = v.start / 4096; at < v.end / 4096; at += kChunkPages) {
        std::uint64_t to = std::min(at + kChunkPages, v.end / 4096);
        entries_.resize(to - at);
        BATON_TRY(pagemap_.read(at, entries_));
        for (std::uint64_t page = at; page < to; ++page) {
          std::uint64_t entry = entries_[page - at];
          bool own = entry_has_page(entry) && !(file && (entry & abi::kPagemapFile));
          bool have = known.contains(page);
          if (!own) {
            if (have) out.gone.push_back({page, 1});
            if (entry & abi::kPagemapGuard) out.guard(page);
          } else if (!have || (still.stopped && (entry & kSoftDirty))) {
            if (!out.written.empty() && out.written.back().end() == page) ++out.written.back().count;
            else out.written.push_back({page, 1});
          }
        }
      }
    }
    return still.stopped ? clear() : Result<void>{};
  }

  Result<void> clear() {
    if (::pwrite(clear_.get(), "4", 1, 0) == 1) return {};
    if (errno == ESRCH) {
      return make_error(Code::kTraceeGone, "track writes", "process " + std::to_string(pid_) + ": it has ended");
    }
    return errno_error("clear soft-dirty marks of", "process " + std::to_string(pid_));
  }

 private:
  pid_t pid_;
  Pagemap pagemap_;
  Fd clear_;
  std::vector<std::uint64_t> entries_;
};

// clear_refs belongs to the process and not to the address space that was opened: a program that
// has executed another has no known pages here, and everything counts as written.
Result<std::unique_ptr<Tracker>> attach(pid_t pid, Tracee&) {
  BATON_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
  BATON_ASSIGN(Fd clear_fd, open_file("/proc/" + std::to_string(pid) + "/clear_refs", O_WRONLY));
  auto tracker = std::make_unique<SoftDirty>(pid, std::move(pagemap), std::move(clear_fd));
  BATON_TRY(tracker->clear());   // what is written from here on, beside the first full copy, shows
  return std::unique_ptr<Tracker>(std::move(tracker));
}

// A fresh page that was written is marked, if the kernel marks at all.
Result<void> probe() {
  if (forced_off("soft-dirty")) return make_error(Code::kUnsupported, "probe", "forced off");
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return errno_error("mmap", "this node");
  *static_cast<volatile char*>(page) = 1;
  std::uint64_t entry = 0;
  auto read = [&]() -> Result<void> {
    BATON_ASSIGN(Pagemap own, Pagemap::open(::getpid()));
    return own.read(reinterpret_cast<std::uint64_t>(page) / 4096, std::span(&entry, 1));
  }();
  ::munmap(page, 4096);
  BATON_TRY(read);
  if (entry & kSoftDirty) return {};
  return make_error(Code::kUnsupported, "probe", "soft-dirty marks are not in this kernel (CONFIG_MEM_SOFT_DIRTY)");
}

const TrackerRegistrar registrar({"soft-dirty", 20, probe, attach});

}  // namespace
}  // namespace baton::linux_backend
