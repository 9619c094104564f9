// AddressSpace: the private memory of one or more processes that share it, as one memory
// object: tracked, collected, copied out, and verified.
//
// `pending` are pages known to differ from what was handed to the sinks; they stay there
// until a sink has taken them. `known` are pages that the last checkpoint has.
//
// Threads: one at a time. Processes may run beside collect and copy; then a later call finds
// what changed meanwhile.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/memory/content.h"
#include "agent/backend/linux/memory/copier.h"
#include "agent/backend/linux/memory/memory_map.h"
#include "agent/backend/linux/memory/pagemap.h"
#include "agent/backend/linux/memory/tracker.h"
#include "agent/backend/linux/memory/vm_flags.h"

namespace baton::linux_backend {

// Where shared memory has a guard region, in hexadecimal, which no checkpoint can hold; empty: nowhere.
std::string shared_guard(const MemoryMap& map, const Pagemap& pagemap);

class AddressSpace {
 public:
  // `thread` is a stopped thread of `pid`. `tracker`: empty: the best that works here; a named
  // one that does not work is an error. Fails: kUnsupported, kTraceeGone, kInvalid (no such tracker).
  // `copier` is shared by the address spaces of a workload (null: one plain read at a time); pages
  // are copied in aligned groups of `granularity`.
  static Result<std::unique_ptr<AddressSpace>> attach(pid_t pid, std::uint64_t object, Tracee& thread,
                                                      const std::string& tracker, bool keep_digests,
                                                      std::shared_ptr<Copier> copier = nullptr,
                                                      std::uint32_t granularity = 1);

  std::uint64_t object() const { return object_; }
  pid_t pid() const { return pid_; }
  const MemoryMap& map() const { return map_; }
  MemoryMap& map() { return map_; }
  const Tracker& tracker() const { return *tracker_; }
  std::uint64_t pages_pending() const { return pending_.size(); }
  std::uint64_t pages_known() const { return known_.size(); }

  // Reads the mappings (unless `still` says that they are the same), asks the tracker, tells
  // `sink` what is gone. Answers pages found written.
  // Fails: kTraceeGone (the processes execute another program, or have ended), kUnsupported
  // (a mapping that cannot be captured has appeared).
  Result<std::uint64_t> collect(backend::PageSink& sink, const Stillness& still = {});
  // Pages of mappings that the last collect had to leave out; and with the program stopped, takes
  // them up (Tracker::enroll).
  std::uint64_t pages_untracked() const { return collected_.untracked; }
  Result<void> enroll();
  // These are to be copied too, if they are there.
  void copy_again(PageRun run);
  // Copies pending pages while the sink has room. Answers pages taken.
  // Fails: kTraceeGone, kUnsupported (a page that nobody can read).
  Result<std::uint64_t> copy(backend::PageSink& sink);
  // The same, stopped, for few pages: into memory of our own that is there already, so that no
  // lock and no page fault stands in the way; emit_staged hands them to a sink afterwards. False:
  // there are too many, or one cannot be read so: copy them.
  Result<bool> stage();
  // Answers pages taken; those without room stay pending.
  std::uint64_t emit_staged(backend::PageSink& sink);
  // Only while stopped, after collect and copy with nothing left pending.
  Result<void> verify(VerifyReport& report);

  // While stopped. `same`: no call has changed mappings since the last time.
  Result<std::uint64_t> program_break(Tracee& thread, bool same);
  // Fixed values of the layout (memory_map.h), read once.
  Result<void> know_layout();
  Result<pb::MmLayout> layout();

  // VmFlags are read again when mappings changed or when they are seconds old: madvise(2) or
  // mlock(2) of a whole mapping shows nowhere else. Walks all page tables (some 10 ms per GiB):
  // for while the program runs.
  void refresh_flags();
  // Adds them to mappings that fill_mapping wrote; refreshed first unless `frozen`.
  void write_flags(bool frozen, pb::ProcessState& out);
  // Guard regions (madvise(2) MADV_GUARD_INSTALL) as of the last stopped collect and copy.
  void write_guards(pb::ProcessState& out) const;

 private:
  AddressSpace() = default;
  std::uint64_t read_total_pages() const;
  void forget_unmapped(backend::PageSink& sink);
  Result<std::uint64_t> copy_exact(backend::PageSink& sink);
  Result<std::uint64_t> copy_compared(backend::PageSink& sink);
  // Copies the pages of `runs` into `to`. Answers how many came before one that cannot be read.
  Result<std::uint64_t> read_pages(std::span<const PageRun> runs, std::span<std::byte> to);
  // Reads one page that process_vm_readv refuses: true if it could be read.
  Result<bool> read_stubborn(std::uint64_t page, std::span<std::byte> to);
  void add_group(PageRun run);
  void taken(PageRun run, std::span<const std::byte> bytes);
  void forget(PageRun run, backend::PageSink& sink);
  Result<void> look_at_guards();

  pid_t pid_ = 0;
  std::uint64_t object_ = 0;
  MemoryMap map_;
  std::unique_ptr<Tracker> tracker_;
  std::shared_ptr<Copier> copier_;
  std::uint32_t granularity_ = 1;
  Pagemap pagemap_;
  Fd mem_, statm_;
  std::uint64_t total_pages_ = 0;      // of all mappings, when map_ was read
  PageSet known_, pending_;
  PageSet guards_;                     // none of them in known_
  Collected collected_;
  bool map_changed_ = false;           // found by enroll()
  bool keep_digests_ = false;
  ContentMap digests_;
  std::vector<std::byte> buffer_;
  std::vector<std::byte> stage_;
  std::vector<PageRun> staged_, group_;
  std::uint64_t brk_ = 0;
  bool have_brk_ = false;
  std::unique_ptr<pb::MmLayout> layout_;
  std::map<std::uint64_t, VmFlags> flags_;
  std::size_t flags_of_mappings_ = 0;
  std::chrono::steady_clock::time_point flags_read_{};
  std::string problem_;
};

}  // namespace baton::linux_backend
