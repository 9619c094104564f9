// Tracker "wp-async": a userfaultfd made inside the program by an injected system call, taken
// over with pidfd_getfd and closed there, write-protects all private memory asynchronously:
// the kernel itself lifts the protection at the first write, and PAGEMAP_SCAN tells which
// pages have lost it, and puts it back. Linux 6.7.
//
// What it relies on (fs/proc/task_mmu.c, mm/userfaultfd.c of Linux 6.7 to 6.18):
// - a mapping made after the last call is not registered; PM_SCAN_CHECK_WPASYNC says so;
// - in a registered anonymous mapping an empty entry of a populated page table counts as
//   written until it is scanned, so that pages given back with MADV_DONTNEED show up;
// - where a whole page table (or huge page) went away they do not in older kernels: hence
//   `find_holes`; in newer ones all that has no page table counts as written, and a scan fills
//   it with page tables: hence reserved memory, gigabytes of it, is only asked for its pages;
// - fork gives the child no registration, execve begins a new address space: both begin anew.
//
// Made with UFFD_USER_MODE_ONLY, which programs without privileges may: asynchronous
// write-protection hands no fault to anybody, so writes by the kernel are resolved all the same.
//
// Refuses a program that uses userfaultfd itself.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <dirent.h>

#include "agent/backend/linux/memory/pagemap.h"
#include "agent/backend/linux/memory/tracker.h"
#include "base/fault_point.h"
#include "base/linux_abi.h"

namespace baton::linux_backend {
namespace {

constexpr std::uint64_t kFeatures = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                    abi::kUffdWpUnpopulated | abi::kUffdWpAsync;

Error api_error(int saved) {
  return Error{Code::kUnsupported, saved, "UFFDIO_API",
               "asynchronous write-protection is not in this kernel (Linux 6.7 brought it)", ""};
}

struct Found {
  bool in_use = false;        // the program has a userfaultfd of its own
  std::uint64_t number = 0;   // else: one that an earlier attempt, cut short, has left behind
  Fd left_over;
};

// Looks through the process's descriptors for userfaultfds. One on which nobody has made the
// UFFDIO_API call yet is no program's: it came from us.
Found find_userfaultfds(pid_t pid) {
  Found found;
  std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  DIR* dir = ::opendir(folder.c_str());
  if (dir == nullptr) return found;
  char link[64];
  while (const dirent* entry = ::readdir(dir)) {
    ssize_t n = ::readlinkat(::dirfd(dir), entry->d_name, link, sizeof link);
    if (n <= 0 || std::string_view(link, static_cast<std::size_t>(n)) != "anon_inode:[userfaultfd]") continue;
    auto number = std::strtoull(entry->d_name, nullptr, 10);
    Fd pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    Fd uffd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = kFeatures;
    if (uffd && !found.left_over && ::ioctl(uffd.get(), UFFDIO_API, &api) == 0) {
      found.number = number;
      found.left_over = std::move(uffd);
    } else {
      found.in_use = true;
    }
  }
  ::closedir(dir);
  return found;
}

class WpAsync final : public Tracker {
 public:
  WpAsync(pid_t pid, Fd uffd, Pagemap pagemap)
      : pid_(pid), uffd_(std::move(uffd)), pagemap_(std::move(pagemap)) {}

  std::string_view name() const override { return "wp-async"; }
  bool is_exact() const override { return true; }

  Result<void> collect(const MemoryMap& map, const PageSet& known, const Stillness& still,
                       Collected& out) override {
    for (const Vma& v : map.vmas()) {
      if (!v.is_private()) continue;
      // What could not be written then cannot have been written since.
      if (still.mappings && still.transfers && (v.prot & PROT_WRITE) == 0) continue;
      bool file = v.kind == pb::MAPPING_FILE_PRIVATE;
      std::size_t at = out.written.size();
      if (is_fresh(v)) {
        BATON_TRY(begin_with(v, known, still, out));
        continue;
      }
      BATON_ASSIGN(Pagemap::Outcome outcome,
                   file ? pagemap_.scan(v.start, v.end, kWrittenFile, out.written) : scan_anonymous(v, known, out));
      if (outcome == Pagemap::Outcome::kNotTracked) {
        if (still.stopped) {
          BATON_TRY(take_up(v));
          BATON_TRY(begin_with(v, known, still, out));
        } else {
          out.untracked += (v.end - v.start) / 4096;
        }
      } else if (file) {
        BATON_TRY(keep_own_pages(at, out));
        if (!still.mappings) BATON_TRY(find_given_back(v, known, out));
      } else {
        BATON_TRY(keep_pages(at, known, out));
        if (!still.mappings) BATON_TRY(find_holes(v, known, out));
      }
    }
    if (still.stopped) fresh_.clear();
    return {};
  }

  Result<void> enroll(const MemoryMap& map) override {
    std::vector<PageRun> ignored;
    for (const Vma& v : map.vmas()) {
      if (!v.is_private()) continue;
      BATON_ASSIGN(Pagemap::Outcome outcome, pagemap_.scan(v.start, v.start + 4096, kAnyTracked, ignored));
      if (outcome != Pagemap::Outcome::kNotTracked) continue;
      BATON_TRY(take_up(v));
      fresh_.push_back({v.start / 4096, (v.end - v.start) / 4096});
    }
    return {};
  }

 private:
  static constexpr Pagemap::Query kAnyTracked{.flags = abi::kScanCheckWpAsync, .mask = abi::kPageIsPresent,
                                              .returned = abi::kPageIsPresent};
  static constexpr Pagemap::Query kWrittenAnonymous{
      .flags = abi::kScanWpMatching | abi::kScanCheckWpAsync, .mask = abi::kPageIsWritten,
      .returned = abi::kPageIsWritten};
  // Where nothing is known yet: not what is empty.
  static constexpr Pagemap::Query kNewAnonymous{
      .flags = abi::kScanWpMatching | abi::kScanCheckWpAsync, .mask = abi::kPageIsWritten,
      .any_of = abi::kPageIsPresent | abi::kPageIsSwapped, .returned = abi::kPageIsWritten};
  // Of a private file mapping only the pages that are no longer the file's.
  static constexpr Pagemap::Query kWrittenFile{
      .flags = abi::kScanWpMatching | abi::kScanCheckWpAsync, .inverted = abi::kPageIsFile,
      .mask = abi::kPageIsWritten | abi::kPageIsFile, .returned = abi::kPageIsWritten};
  static constexpr Pagemap::Query kPresentAnonymous{
      .flags = abi::kScanWpMatching | abi::kScanCheckWpAsync,
      .any_of = abi::kPageIsPresent | abi::kPageIsSwapped, .returned = abi::kPageIsPresent};
  static constexpr Pagemap::Query kPresentFile{
      .flags = abi::kScanWpMatching | abi::kScanCheckWpAsync, .inverted = abi::kPageIsFile,
      .mask = abi::kPageIsFile, .any_of = abi::kPageIsPresent | abi::kPageIsSwapped,
      .returned = abi::kPageIsPresent};

  bool is_fresh(const Vma& v) const {
    return std::any_of(fresh_.begin(), fresh_.end(), [&](const PageRun& run) {
      return run.first < v.end / 4096 && v.start / 4096 < run.end();
    });
  }

  // A mapping that is new, the program being stopped. What cannot be registered is read each time.
  Result<void> take_up(const Vma& v) {
    uffdio_register reg{};
    reg.range = {v.start, v.end - v.start};
    reg.mode = UFFDIO_REGISTER_MODE_WP;
    if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &reg) == 0) return {};
    const int saved = errno;
    if (saved == ENOENT || saved == EINVAL || saved == ENOMEM) return {};
    if (saved == ESRCH) {
      return make_error(Code::kTraceeGone, "track writes",
                        "process " + std::to_string(pid_) + ": its address space is gone");
    }
    if (saved == EBUSY) {
      return make_error(Code::kUnsupported, "track writes",
                        "process " + std::to_string(pid_) + ": it uses userfaultfd itself");
    }
    return errno_error(saved, "UFFDIO_REGISTER", "process " + std::to_string(pid_));
  }

  // Everything present in it counts as written, and is protected from now on.
  Result<void> begin_with(const Vma& v, const PageSet& known, const Stillness& still, Collected& out) {
    bool file = v.kind == pb::MAPPING_FILE_PRIVATE;
    std::size_t at = out.written.size();
    Pagemap::Query query = file ? kPresentFile : kPresentAnonymous;
    BATON_ASSIGN(Pagemap::Outcome outcome, pagemap_.scan(v.start, v.end, query, out.written));
    if (outcome == Pagemap::Outcome::kNotTracked) {
      if (!still.stopped) {   // another one is there by now
        out.untracked += (v.end - v.start) / 4096;
        return {};
      }
      query.flags = 0;
      BATON_TRY(pagemap_.scan(v.start, v.end, query, out.written));
    }
    if (file) BATON_TRY(keep_own_pages(at, out));
    else BATON_TRY(keep_pages(at, PageSet{}, out));
    // What was known in this range and is not present now is gone.
    std::uint64_t page = v.start / 4096;
    for (std::size_t i = at; i < out.written.size(); ++i) {
      PageRun run = out.written[i];
      forget(known, page, std::max(page, run.first), out);
      page = run.end();
    }
    forget(known, page, v.end / 4096, out);
    if (!still.stopped) {
      std::erase_if(fresh_, [&](const PageRun& run) { return run.first >= v.start / 4096 && run.end() <= v.end / 4096; });
    }
    return {};
  }

  // Blocks with known pages by one query, those without by the other.
  Result<Pagemap::Outcome> scan_anonymous(const Vma& v, const PageSet& known, Collected& out) {
    const auto& blocks = known.blocks();
    std::uint64_t page = v.start / 4096;
    const std::uint64_t end = v.end / 4096;
    auto it = std::lower_bound(blocks.begin(), blocks.end(), page / PageSet::kBlockPages,
                               [](const PageSet::Block& b, std::uint64_t i) { return b.index < i; });
    while (page < end) {
      std::uint64_t next = it == blocks.end() ? end : std::min(end, it->index * PageSet::kBlockPages);
      if (page < next) {
        BATON_ASSIGN(Pagemap::Outcome outcome, pagemap_.scan(page * 4096, next * 4096, kNewAnonymous, out.written));
        if (outcome != Pagemap::Outcome::kDone) return outcome;
        page = next;
        continue;
      }
      next = page;
      while (it != blocks.end() && next < end && it->index * PageSet::kBlockPages <= next) {
        next = std::min(end, (it->index + 1) * PageSet::kBlockPages);
        ++it;
      }
      BATON_ASSIGN(Pagemap::Outcome outcome, pagemap_.scan(page * 4096, next * 4096, kWrittenAnonymous, out.written));
      if (outcome != Pagemap::Outcome::kDone) return outcome;
      page = next;
    }
    return Pagemap::Outcome::kDone;
  }

  // Of the long runs in out.written, from run `at` on, only what is there; known pages that are
  // not are gone. Short ones may hold empty pages: they are read as zeros.
  Result<void> keep_pages(std::size_t at, const PageSet& known, Collected& out) {
    constexpr std::uint64_t kLongRun = 16;
    if (std::none_of(out.written.begin() + static_cast<std::ptrdiff_t>(at), out.written.end(),
                     [](PageRun run) { return run.count >= kLongRun; })) {
      return {};
    }
    std::vector<PageRun> found(out.written.begin() + static_cast<std::ptrdiff_t>(at), out.written.end());
    out.written.resize(at);
    for (PageRun run : found) {
      if (run.count < kLongRun) {
        out.written.push_back(run);
        continue;
      }
      for (std::uint64_t first = run.first; first < run.end(); first += kEntriesAtOnce) {
        entries_.resize(std::min(run.end() - first, kEntriesAtOnce));
        BATON_TRY(pagemap_.read(first, entries_));
        std::uint64_t from = 0;
        while (from < entries_.size()) {   // stretches of the same
          const bool page = entry_has_page(entries_[from]);
          std::uint64_t to = from + 1;
          while (to < entries_.size() && entry_has_page(entries_[to]) == page) ++to;
          if (!page) {
            forget(known, first + from, first + to, out);
            for (std::uint64_t i = from; i < to; ++i) {
              if (entries_[i] & abi::kPagemapGuard) out.guard(first + i);
            }
          } else if (out.written.size() > at && out.written.back().end() == first + from) {
            out.written.back().count += to - from;
          } else {
            out.written.push_back({first + from, to - from});
          }
          from = to;
        }
      }
    }
    return {};
  }

  // Takes out of out.written, from run `at` on, what is no page of the program's own: scans
  // count an empty entry as written, and a marker in one as a swapped page.
  Result<void> keep_own_pages(std::size_t at, Collected& out) {
    std::vector<PageRun> found(out.written.begin() + static_cast<std::ptrdiff_t>(at), out.written.end());
    out.written.resize(at);
    for (PageRun run : found) {
      entries_.resize(run.count);
      BATON_TRY(pagemap_.read(run.first, entries_));
      for (std::uint64_t i = 0; i < run.count; ++i) {
        if (entries_[i] & abi::kPagemapGuard) out.guard(run.first + i);
        if (!entry_has_page(entries_[i]) || (entries_[i] & abi::kPagemapFile)) continue;
        if (out.written.size() > at && out.written.back().end() == run.first + i) ++out.written.back().count;
        else out.written.push_back({run.first + i, 1});
      }
    }
    return {};
  }

  static void forget(const PageSet& known, std::uint64_t from, std::uint64_t to, Collected& out) {
    if (from >= to) return;
    known.for_each_run(from, to, [&](PageRun run) {
      out.gone.push_back(run);
      return true;
    });
  }

  // Known pages of a private file mapping that show the file again (MADV_DONTNEED).
  Result<void> find_given_back(const Vma& v, const PageSet& known, Collected& out) {
    Result<void> outcome = {};
    known.for_each_run(v.start / 4096, v.end / 4096, [&](PageRun run) {
      entries_.resize(run.count);
      outcome = pagemap_.read(run.first, entries_);
      if (!outcome) return false;
      for (std::uint64_t i = 0; i < run.count; ++i) {
        if (!entry_has_page(entries_[i]) || (entries_[i] & abi::kPagemapFile)) {
          out.gone.push_back({run.first + i, 1});
        }
      }
      return true;
    });
    return outcome;
  }

  // Known pages whose whole page table is gone. After a scan every entry of a page table that
  // exists holds something, so one entry tells.
  Result<void> find_holes(const Vma& v, const PageSet& known, Collected& out) {
    std::uint64_t next = v.start / 4096;
    const std::uint64_t end = v.end / 4096;
    const auto& blocks = known.blocks();
    auto it = std::lower_bound(blocks.begin(), blocks.end(), next / PageSet::kBlockPages,
                               [](const PageSet::Block& b, std::uint64_t i) { return b.index < i; });
    for (; it != blocks.end() && it->index * PageSet::kBlockPages < end; ++it) {
      std::uint64_t from = std::max(next, it->index * PageSet::kBlockPages);
      std::uint64_t to = std::min(end, (it->index + 1) * PageSet::kBlockPages);
      std::uint64_t probe = to;
      known.for_each_run(from, to, [&](PageRun run) {
        probe = run.first;
        return false;
      });
      if (probe == to) continue;
      std::uint64_t entry = 0;
      BATON_TRY(pagemap_.read(probe, std::span(&entry, 1)));
      if (entry != 0) continue;
      entries_.resize(to - from);
      BATON_TRY(pagemap_.read(from, entries_));
      known.for_each_run(from, to, [&](PageRun run) {
        for (std::uint64_t p = run.first; p < run.end(); ++p) {
          if (entries_[p - from] == 0) out.gone.push_back({p, 1});
        }
        return true;
      });
    }
    return {};
  }

  static constexpr std::uint64_t kEntriesAtOnce = 1 << 16;

  pid_t pid_;
  Fd uffd_;
  Pagemap pagemap_;
  std::vector<std::uint64_t> entries_;
  std::vector<PageRun> fresh_;      // registered by enroll(), not collected yet
};

// Raises a stopped process's limit of open files above the numbers that it has, for as long as this lives.
class OneMoreFile {
 public:
  explicit OneMoreFile(pid_t pid) : pid_(pid) {
    if (::prlimit(pid_, RLIMIT_NOFILE, nullptr, &own_) != 0 || own_.rlim_cur > RLIM_INFINITY - kRoom) return;
    rlimit more = own_;
    more.rlim_cur += kRoom;      // the limit may have been lowered below the numbers in use
    more.rlim_max = std::max(more.rlim_max, more.rlim_cur);
    raised_ = ::prlimit(pid_, RLIMIT_NOFILE, &more, nullptr) == 0;
    if (raised_) return;
    more = {own_.rlim_max, own_.rlim_max};   // without CAP_SYS_RESOURCE: no higher than it could itself
    raised_ = ::prlimit(pid_, RLIMIT_NOFILE, &more, nullptr) == 0;
  }
  ~OneMoreFile() {
    if (raised_) (void)::prlimit(pid_, RLIMIT_NOFILE, &own_, nullptr);
  }
  OneMoreFile(const OneMoreFile&) = delete;
  OneMoreFile& operator=(const OneMoreFile&) = delete;

 private:
  static constexpr rlim_t kRoom = 4096;
  const pid_t pid_;
  rlimit own_{};
  bool raised_ = false;
};

Result<std::unique_ptr<Tracker>> attach(pid_t pid, Tracee& thread) {
  Found found = find_userfaultfds(pid);
  if (found.left_over) {
    BATON_TRY(thread.checked("close in", SYS_close, {found.number}));
    found.left_over.reset();
  }
  if (found.in_use) {
    return make_error(Code::kUnsupported, "track writes",
                      "process " + std::to_string(pid) + ": it uses userfaultfd itself");
  }
  BATON_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
  const std::initializer_list<std::uint64_t> flags = {static_cast<std::uint64_t>(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)};
  auto made = thread.checked("userfaultfd in", SYS_userfaultfd, flags);
  if (!made && made.error().sys_errno == EMFILE) {
    // It has as many open files as it may. One more, for as long as ours is among them.
    OneMoreFile room(pid);
    made = thread.checked("userfaultfd in", SYS_userfaultfd, flags);
    if (!made && made.error().sys_errno == EMFILE) {
      return make_error(Code::kConflict, "track writes",
                        "process " + std::to_string(pid) + ": it has as many files open as its hard limit allows, and this warden may not raise it",
                        "Give the warden CAP_SYS_RESOURCE, the program a higher limit, or choose --tracker scan.");
    }
  }
  BATON_ASSIGN(std::uint64_t remote, std::move(made));
  Fd uffd;
  int saved = 0;
  auto crossed = fault_point("track.uffd_made");
  {
    Fd pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (pidfd) {
      uffd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), remote, 0)));
    }
    saved = errno;
  }
  BATON_TRY(thread.checked("close in", SYS_close, {remote}));
  BATON_TRY(crossed);
  if (!uffd) return errno_error(saved, "pidfd_getfd", "process " + std::to_string(pid));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (::ioctl(uffd.get(), UFFDIO_API, &api) < 0) return api_error(errno);
  return std::unique_ptr<Tracker>(std::make_unique<WpAsync>(pid, std::move(uffd), std::move(pagemap)));
}

Result<void> probe() {
  if (forced_off("wp-async") || forced_off("pagemap-scan")) {
    return make_error(Code::kUnsupported, "probe", "forced off");
  }
  Fd uffd = Fd::adopt(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!uffd) return Error{Code::kUnsupported, errno, "userfaultfd", "cannot be made", ""};
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kFeatures;
  if (::ioctl(uffd.get(), UFFDIO_API, &api) < 0) return api_error(errno);
  BATON_ASSIGN(Pagemap own, Pagemap::open(::getpid()));
  std::vector<PageRun> runs;
  auto page = reinterpret_cast<std::uint64_t>(&api) & ~std::uint64_t{4095};
  auto scanned = own.scan(page, page + 4096,
                          Pagemap::Query{.any_of = abi::kPageIsPresent, .returned = abi::kPageIsPresent}, runs);
  if (!scanned || runs.size() != 1) {
    return make_error(Code::kUnsupported, "PAGEMAP_SCAN", "not in this kernel (Linux 6.7 brought it)");
  }
  return {};
}

const TrackerRegistrar registrar({"wp-async", 10, probe, attach});

}  // namespace
}  // namespace baton::linux_backend
