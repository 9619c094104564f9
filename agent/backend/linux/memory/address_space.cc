#include "agent/backend/linux/memory/address_space.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "agent/backend/linux/remote/proc.h"
#include "base/check.h"
#include "base/fault_point.h"

namespace baton::linux_backend {
namespace {
constexpr std::size_t kPage = backend::kPageBytes;
constexpr std::size_t kBatchPages = Copier::kMaxPages;
constexpr std::size_t kStagePages = 256;

std::string page_text(std::uint64_t page) {
  char text[32];
  std::snprintf(text, sizeof text, "%llx", static_cast<unsigned long long>(page * kPage));
  return text;
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}
}  // namespace

std::string shared_guard(const MemoryMap& map, const Pagemap& pagemap) {
  constexpr Pagemap::Query kGuards{.mask = abi::kPageIsGuard, .returned = abi::kPageIsGuard};
  std::vector<PageRun> found;
  for (const Vma& v : map.vmas()) {
    if (!v.shared) continue;
    if (!pagemap.scan(v.start, v.end, kGuards, found)) return "";   // a kernel that has none there
    if (!found.empty()) return page_text(found.front().first);
  }
  return "";
}

Result<std::unique_ptr<AddressSpace>> AddressSpace::attach(pid_t pid, std::uint64_t object,
                                                           Tracee& thread, const std::string& tracker,
                                                           bool keep_digests, std::shared_ptr<Copier> copier,
                                                           std::uint32_t granularity) {
  std::unique_ptr<AddressSpace> space(new AddressSpace);
  space->pid_ = pid;
  space->object_ = object;
  space->keep_digests_ = keep_digests;
  space->copier_ = std::move(copier);
  space->granularity_ = granularity;
  BATON_ASSIGN(space->map_, MemoryMap::open(pid));
  if (!space->map_.problem().empty()) {
    return make_error(Code::kUnsupported, "capture memory",
                      "process " + std::to_string(pid) + ", " + space->map_.problem());
  }
  BATON_ASSIGN(space->pagemap_, Pagemap::open(pid));
  BATON_ASSIGN(space->mem_, open_file("/proc/" + std::to_string(pid) + "/mem", O_RDONLY));
  BATON_ASSIGN(space->statm_, open_file("/proc/" + std::to_string(pid) + "/statm", O_RDONLY));
  space->stage_.resize(kStagePages * kPage, std::byte{1});   // touched, too
  space->staged_.reserve(kStagePages);
  bool automatic = tracker.empty() || tracker == "auto";
  Error last = make_error(Code::kInvalid, "track writes", "no tracker is called " + tracker,
                          "The node's list of trackers has their names.");
  for (const TrackerType& type : tracker_types()) {
    if (!automatic && type.name != tracker) continue;
    if (auto probed = type.probe(); !probed) {
      last = std::move(probed).error();
      continue;
    }
    auto attached = type.attach(pid, thread);
    if (attached) {
      space->tracker_ = std::move(*attached);
      return space;
    }
    last = std::move(attached).error();
    if (last.code != Code::kUnsupported) return last;
  }
  return last;
}

void AddressSpace::forget(PageRun run, backend::PageSink& sink) {
  known_.remove(run);
  pending_.remove(run);
  if (keep_digests_ || !tracker_->is_exact()) {
    for (std::uint64_t p = run.first; p < run.end(); ++p) digests_.erase(p);
  }
  sink.drop(object_, run.first, run.count);
}

// Pages outside of every private mapping.
void AddressSpace::forget_unmapped(backend::PageSink& sink) {
  std::vector<PageRun> lost;
  std::uint64_t at = 0;
  auto gap = [&](std::uint64_t from, std::uint64_t to) {
    if (from >= to) return;
    known_.for_each_run(from, to, [&](PageRun run) {
      lost.push_back(run);
      return true;
    });
  };
  std::vector<PageRun> unwanted;
  for (const Vma& v : map_.vmas()) {
    if (!v.is_private()) continue;
    gap(at, v.start / kPage);
    if (v.start / kPage > at) unwanted.push_back({at, v.start / kPage - at});
    at = v.end / kPage;
  }
  constexpr std::uint64_t kEnd = std::uint64_t{1} << 52;
  gap(at, kEnd);
  for (PageRun run : lost) forget(run, sink);
  std::vector<PageRun> stale;
  for (PageRun gap_run : unwanted) {
    pending_.for_each_run(gap_run.first, gap_run.end(), [&](PageRun run) {
      stale.push_back(run);
      return true;
    });
  }
  pending_.for_each_run(at, kEnd, [&](PageRun run) {
    stale.push_back(run);
    return true;
  });
  for (PageRun run : stale) pending_.remove(run);
}

// The first number of /proc/PID/statm; 0: unknown. It grows with the stack, which no call does.
std::uint64_t AddressSpace::read_total_pages() const {
  char text[128];
  ssize_t n = ::pread(statm_.get(), text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = 0;
  return std::strtoull(text, nullptr, 10);
}

Result<void> AddressSpace::enroll() {
  BATON_ASSIGN(const bool changed, map_.refresh());
  map_changed_ = map_changed_ || changed;
  if (!map_.problem().empty()) return {};   // told by collect
  return tracker_->enroll(map_);
}

Result<std::uint64_t> AddressSpace::collect(backend::PageSink& sink, const Stillness& still) {
  bool changed = false;
  // Before the mappings are read: what grows meanwhile is found the next time.
  std::uint64_t total = read_total_pages();
  if (!still.mappings || total == 0 || total != total_pages_) {
    BATON_ASSIGN(changed, map_.refresh());
    total_pages_ = total;
  }
  if (!map_.problem().empty()) {
    return make_error(Code::kUnsupported, "capture memory",
                      "process " + std::to_string(pid_) + ", " + map_.problem());
  }
  if (std::exchange(map_changed_, false) || changed) forget_unmapped(sink);
  collected_.clear();
  auto outcome = tracker_->collect(map_, known_, still, collected_);
  // What was found before a failure is protected again already: it must not be lost.
  std::uint64_t found = 0;
  for (PageRun run : collected_.written) {
    found += run.count;
    pending_.add(run);
    if (granularity_ > 1) add_group(run);
  }
  if (!outcome) return std::move(outcome).error();
  if (!problem_.empty()) return make_error(Code::kUnsupported, "capture memory", problem_);
  for (PageRun run : collected_.gone) forget(run, sink);
  if (!still.mappings) BATON_TRY(look_at_guards());
  for (PageRun run : collected_.guards) guards_.add(run);
  return found;
}

// Which of them are none any more: given up (MADV_GUARD_REMOVE), unmapped, moved.
Result<void> AddressSpace::look_at_guards() {
  if (guards_.empty()) return {};
  std::vector<std::uint64_t> entries;
  std::vector<PageRun> removed;
  Result<void> outcome = {};
  guards_.for_each_run([&](PageRun run) {
    entries.resize(run.count);
    outcome = pagemap_.read(run.first, entries);
    for (std::uint64_t i = 0; outcome && i < run.count; ++i) {
      if ((entries[i] & abi::kPagemapGuard) == 0) removed.push_back({run.first + i, 1});
    }
    return static_cast<bool>(outcome);
  });
  for (PageRun run : removed) guards_.remove(run);
  return outcome;
}

void AddressSpace::write_guards(pb::ProcessState& out) const {
  guards_.for_each_run([&](PageRun run) {
    pb::GuardRange* guard = out.add_guards();
    guard->set_start(run.first * kPage);
    guard->set_end(run.end() * kPage);
    return true;
  });
}

// The known pages around a written run: to the edges of its groups.
void AddressSpace::add_group(PageRun run) {
  std::uint64_t first = run.first / granularity_ * granularity_;
  std::uint64_t end = (run.end() + granularity_ - 1) / granularity_ * granularity_;
  group_.clear();
  known_.for_each_run(first, end, [&](PageRun r) {
    group_.push_back(r);
    return true;
  });
  for (PageRun r : group_) pending_.add(r);
}

void AddressSpace::copy_again(PageRun run) {
  // Of the asked-for pages those that the checkpoint has; the rest is absent by right.
  std::vector<PageRun> runs;
  known_.for_each_run(run.first, run.end(), [&](PageRun r) {
    runs.push_back(r);
    return true;
  });
  for (PageRun r : runs) {
    pending_.add(r);
    if (!tracker_->is_exact()) {
      for (std::uint64_t p = r.first; p < r.end(); ++p) digests_.erase(p);
    }
  }
}

Result<std::uint64_t> AddressSpace::copy(backend::PageSink& sink) {
  return tracker_->is_exact() ? copy_exact(sink) : copy_compared(sink);
}

Result<bool> AddressSpace::stage() {
  staged_.clear();
  if (!tracker_->is_exact() || keep_digests_ || pending_.size() > kStagePages) return false;
  std::uint64_t pages = 0;
  pending_.for_each_run([&](PageRun run) {
    staged_.push_back(run);
    pages += run.count;
    return true;
  });
  if (pages == 0) return true;
  BATON_ASSIGN(std::uint64_t got, read_pages(staged_, std::span(stage_).first(pages * kPage)));
  if (got == pages) return true;
  staged_.clear();
  return false;
}

std::uint64_t AddressSpace::emit_staged(backend::PageSink& sink) {
  std::uint64_t at = 0, total = 0;
  for (PageRun run : staged_) {
    while (run.count > 0) {
      auto room = sink.reserve(run.count * kPage);
      if (room.empty()) {
        staged_.clear();
        return total;
      }
      PageRun part{run.first, room.size() / kPage};
      auto bytes = std::span(stage_).subspan(at * kPage, room.size());
      std::memcpy(room.data(), bytes.data(), bytes.size());
      sink.emit(object_, part.first, static_cast<std::uint32_t>(part.count));
      taken(part, bytes);
      at += part.count;
      total += part.count;
      run.first += part.count;
      run.count -= part.count;
    }
  }
  staged_.clear();
  return total;
}

void AddressSpace::taken(PageRun run, std::span<const std::byte> bytes) {
  known_.add(run);
  pending_.remove(run);
  if (!keep_digests_ && tracker_->is_exact()) return;
  for (std::uint64_t i = 0; i < run.count; ++i) {
    digests_.set(run.first + i, ContentMap::of(bytes.subspan(i * kPage, kPage)));
  }
}

Result<std::uint64_t> AddressSpace::read_pages(std::span<const PageRun> runs, std::span<std::byte> to) {
  return copier_ ? copier_->copy(pid_, runs, to) : read_remote(pid_, runs, to);
}

Result<bool> AddressSpace::read_stubborn(std::uint64_t page, std::span<std::byte> to) {
  ssize_t n = ::pread(mem_.get(), to.data(), kPage, static_cast<off_t>(page * kPage));
  if (n == static_cast<ssize_t>(kPage)) return true;
  std::uint64_t entry = 0;
  BATON_TRY(pagemap_.read(page, std::span(&entry, 1)));
  if (entry & abi::kPagemapGuard) {
    guards_.add({page, 1});
  } else if ((entry & abi::kPagemapSwapped) && !entry_has_page(entry)) {
    return make_error(Code::kUnsupported, "copy memory",
                      "process " + std::to_string(pid_) + ", address " + page_text(page) +
                          ": the page is poisoned, or a guard region (MADV_GUARD_INSTALL) that this kernel does not tell of",
                      "Linux 6.15 tells of guard regions.");
  }
  return false;
}

Result<std::uint64_t> AddressSpace::copy_exact(backend::PageSink& sink) {
  std::uint64_t total = 0;
  std::vector<PageRun> batch;
  batch.reserve(kBatchPages);
  std::uint64_t cursor = 0;
  while (!pending_.empty()) {
    batch.clear();
    std::uint64_t pages = 0;
    pending_.for_each_run(cursor, ~std::uint64_t{0}, [&](PageRun run) {
      std::uint64_t take = std::min<std::uint64_t>(run.count, kBatchPages - pages);
      batch.push_back({run.first, take});
      pages += take;
      return pages < kBatchPages;
    });
    if (batch.empty()) break;
    auto room = sink.reserve(pages * kPage);
    if (room.empty()) break;
    std::uint64_t capacity = room.size() / kPage;
    while (pages > capacity) {
      PageRun& last = batch.back();
      std::uint64_t excess = std::min(last.count, pages - capacity);
      last.count -= excess;
      pages -= excess;
      if (last.count == 0) batch.pop_back();
    }
    BATON_ASSIGN(std::uint64_t got, read_pages(batch, room));
    std::uint64_t stubborn = ~std::uint64_t{0};   // the page that could not be read
    if (got < pages) {
      std::uint64_t skip = got;
      for (PageRun run : batch) {
        if (skip < run.count) {
          stubborn = run.first + skip;
          break;
        }
        skip -= run.count;
      }
      auto into = room.subspan(got * kPage, kPage);
      BATON_ASSIGN(bool readable, read_stubborn(stubborn, into));
      if (readable) {
        ++got;
        stubborn = ~std::uint64_t{0};
      }
    }
    std::uint64_t done = 0;
    for (PageRun run : batch) {
      if (done == got) break;
      PageRun part{run.first, std::min(run.count, got - done)};
      sink.emit(object_, part.first, static_cast<std::uint32_t>(part.count));
      taken(part, room.subspan(done * kPage, part.count * kPage));
      done += part.count;
      cursor = part.end();
    }
    total += got;
    if (stubborn != ~std::uint64_t{0}) {
      // Unmapped since it was found; a later collect tells if something else is there.
      forget({stubborn, 1}, sink);
      cursor = std::max(cursor, stubborn + 1);
    }
  }
  return total;
}

Result<std::uint64_t> AddressSpace::copy_compared(backend::PageSink& sink) {
  buffer_.resize(kBatchPages * kPage);
  std::uint64_t total = 0;
  std::uint64_t cursor = 0;
  for (;;) {
    PageRun run{0, 0};
    pending_.for_each_run(cursor, ~std::uint64_t{0}, [&](PageRun r) {
      run = {r.first, std::min<std::uint64_t>(r.count, kBatchPages)};
      return false;
    });
    if (run.count == 0) return total;
    std::span<std::byte> bytes(buffer_.data(), run.count * kPage);
    BATON_ASSIGN(std::uint64_t got, read_pages(std::span(&run, 1), bytes));
    if (got < run.count) {
      BATON_ASSIGN(bool readable, read_stubborn(run.first + got, bytes.subspan(got * kPage, kPage)));
      if (readable) {
        ++got;
      } else if (got == 0) {
        forget({run.first, 1}, sink);
        cursor = run.first + 1;
        continue;
      }
    }
    for (std::uint64_t i = 0; i < got; ++i) {
      std::uint64_t page = run.first + i;
      auto content = bytes.subspan(i * kPage, kPage);
      ContentMap::Digest digest = ContentMap::of(content);
      const ContentMap::Digest* before = known_.contains(page) ? digests_.find(page) : nullptr;
      if (before == nullptr || !(*before == digest)) {
        auto room = sink.reserve(kPage);
        if (room.empty()) return total;
        std::memcpy(room.data(), content.data(), kPage);
        sink.emit(object_, page, 1);
        known_.add({page, 1});
        digests_.set(page, digest);
        ++total;
      }
      pending_.remove({page, 1});
    }
    cursor = run.first + got;
  }
}

Result<void> AddressSpace::verify(VerifyReport& report) {
  if (!keep_digests_ && tracker_->is_exact()) {
    return make_error(Code::kInvalid, "verify", "the workload was not attached with verify",
                      "Set `verify` in its spec.");
  }
  std::vector<std::uint64_t> entries;
  std::vector<std::byte> page(kPage);
  auto differs = [&](std::uint64_t number, const char* how) {
    if (report.differences++ == 0) {
      const Vma* v = map_.find(number * kPage);
      report.first = "process " + std::to_string(pid_) + ", address " + page_text(number) + " (" +
                     (v != nullptr ? std::string(map_.path(*v)) : "") + "): " + how;
    }
  };
  for (const Vma& v : map_.vmas()) {
    if (!v.is_private()) continue;
    bool file = v.kind == pb::MAPPING_FILE_PRIVATE;
    constexpr std::uint64_t kChunk = 1 << 16;
    for (std::uint64_t from = v.start / kPage; from < v.end / kPage; from += kChunk) {
      std::uint64_t to = std::min(from + kChunk, v.end / kPage);
      entries.resize(to - from);
      BATON_TRY(pagemap_.read(from, entries));
      for (std::uint64_t p = from; p < to; ++p) {
        ++report.pages;
        std::uint64_t entry = entries[p - from];
        bool own = entry_has_page(entry) && !(file && (entry & abi::kPagemapFile));
        if (((entry & abi::kPagemapGuard) != 0) != guards_.contains(p)) {
          differs(p, own || entry == 0 ? "a guard region in the checkpoint only" : "a guard region that the checkpoint lacks");
        }
        const ContentMap::Digest* digest = known_.contains(p) ? digests_.find(p) : nullptr;
        if (!own && digest == nullptr) continue;      // zeros, or the file, here and there
        if (!own && file) {
          char how[96];
          std::snprintf(how, sizeof how, "the checkpoint has a page where the program has its file's (entry %llx)",
                        static_cast<unsigned long long>(entry));
          differs(p, how);
          continue;
        }
        if (own) {
          if (::pread(mem_.get(), page.data(), kPage, static_cast<off_t>(p * kPage)) !=
              static_cast<ssize_t>(kPage)) {
            differs(p, "the program's page cannot be read");
            continue;
          }
        } else {
          std::memset(page.data(), 0, kPage);
        }
        if (digest == nullptr) {
          if (file || !all_zero(page)) differs(p, "the checkpoint lacks the page");
        } else if (!(*digest == ContentMap::of(page))) {
          differs(p, "the content differs");
        }
      }
    }
  }
  // And nothing beyond the mappings.
  std::uint64_t inside = 0;
  for (const Vma& v : map_.vmas()) {
    if (!v.is_private()) continue;
    known_.for_each_run(v.start / kPage, v.end / kPage, [&](PageRun run) {
      inside += run.count;
      return true;
    });
  }
  if (inside != known_.size()) {
    ++report.differences;
    if (report.first.empty()) {
      report.first = "process " + std::to_string(pid_) + ": the checkpoint has pages outside of every mapping";
    }
  }
  return {};
}

Result<std::uint64_t> AddressSpace::program_break(Tracee& thread, bool same) {
  if (have_brk_ && same) return brk_;
  BATON_ASSIGN(brk_, thread.checked("brk in", SYS_brk, {0}));
  have_brk_ = true;
  return brk_;
}

Result<void> AddressSpace::know_layout() {
  if (layout_) return {};
  BATON_ASSIGN(auto fresh, read_layout(pid_));
  layout_ = std::make_unique<pb::MmLayout>(std::move(fresh));
  return {};
}

Result<pb::MmLayout> AddressSpace::layout() {
  BATON_TRY(know_layout());
  return *layout_;
}

void AddressSpace::refresh_flags() {
  constexpr auto kOldAfterChange = std::chrono::seconds(1);
  constexpr auto kOld = std::chrono::seconds(5);
  auto age = std::chrono::steady_clock::now() - flags_read_;
  bool changed = flags_of_mappings_ != map_.vmas().size();
  if (age > kOld || (changed && age > kOldAfterChange)) {
    if (auto read = read_vm_flags(pid_)) flags_ = std::move(*read);
    flags_of_mappings_ = map_.vmas().size();
    flags_read_ = std::chrono::steady_clock::now();
    problem_.clear();
    for (const auto& [start, entry] : flags_) {
      for (const auto& flag : entry.flags) {
        if (flag.rfind("pk", 0) != 0) continue;
        problem_ = "process " + std::to_string(pid_) + ", mapping at " + page_text(start / kPage) + ": protection keys are not supported";
      }
    }
    if (auto at = shared_guard(map_, pagemap_); !at.empty()) {
      problem_ = "process " + std::to_string(pid_) + ", address " + at + ": a guard region in shared memory is not supported";
    }
  }
}

void AddressSpace::write_flags(bool frozen, pb::ProcessState& out) {
  if (!frozen || flags_read_ == std::chrono::steady_clock::time_point{}) refresh_flags();
  for (auto& mapping : *out.mutable_mappings()) {
    // What covered its beginning then: a mapping that has grown keeps its flags.
    auto found = flags_.upper_bound(mapping.start());
    if (found == flags_.begin() || (--found)->second.end <= mapping.start()) continue;
    for (const auto& flag : found->second.flags) mapping.add_vm_flags(flag);
  }
}

}  // namespace baton::linux_backend
