// One process's address space: everything of the blank process goes, vdso and vvar move to
// where the program knows them, the mappings of the checkpoint come. The driver's area stays
// until activation.
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "agent/backend/linux/restore/construction.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23   // Linux 5.14
#endif

namespace baton::restore {
namespace {

constexpr std::uint64_t kTaskSize = 0x7ffffffff000;
constexpr std::uint64_t kPopulateBytes = 128u << 10;
constexpr int kGuardInstall = 102, kGuardRemove = 103;   // MADV_*, Linux 6.13

struct Region {
  std::uint64_t start = 0, end = 0;
  std::string name;
};

Result<std::vector<Region>> regions_of(pid_t pid) {
  BATON_ASSIGN(std::string text, read_file("/proc/" + std::to_string(pid) + "/maps"));
  std::vector<Region> regions;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    std::string line = text.substr(at, end - at);
    at = end + 1;
    Region r;
    int name_at = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %*s %n", &r.start, &r.end, &name_at) < 2) continue;
    if (name_at > 0) r.name = line.substr(static_cast<std::size_t>(name_at));
    regions.push_back(std::move(r));
  }
  return regions;
}

bool moves(const Region& r) { return r.name == "[vdso]" || r.name.rfind("[vvar", 0) == 0; }

std::string subject(const BuiltProcess& process) { return "process " + std::to_string(process.state->pid()); }

PuppetRecord record(long number, std::initializer_list<std::uint64_t> args, std::uint64_t flags = 0) {
  PuppetRecord r;
  r.number = static_cast<std::uint64_t>(number);
  std::size_t i = 0;
  for (std::uint64_t a : args) r.args[i++] = a;
  r.flags = flags;
  return r;
}

Result<void> run(Puppet& puppet, std::vector<PuppetRecord>& records, const char* what, const std::string& about) {
  BATON_ASSIGN(std::size_t done, puppet.batch(records));
  if (done > 0 && !(records[done - 1].flags & kMayFail)) {
    std::int64_t answer = records[done - 1].answer;
    if (answer < 0 && answer >= -4095) {
      char where[96];
      std::snprintf(where, sizeof where, " (call %lu at %lx)", records[done - 1].number, records[done - 1].args[0]);
      return errno_error(static_cast<int>(-answer), what, about + where);
    }
  }
  records.clear();
  return {};
}

// vdso and vvar by way of a free place, because old and new may overlap.
Result<void> move_vdso(Construction& c, BuiltProcess& process, const std::vector<Region>& regions) {
  struct Move { std::uint64_t from, bytes, to; };
  std::vector<Move> moving;
  std::vector<PuppetRecord> calls;
  for (const auto& region : regions) {
    if (!moves(region)) continue;
    const pb::Mapping* wanted = nullptr;
    for (const auto& m : process.state->mappings()) {
      if ((m.kind() == pb::MAPPING_VDSO || m.kind() == pb::MAPPING_VVAR) && m.name() == region.name) wanted = &m;
    }
    if (wanted == nullptr) {
      if (region.name == "[vdso]") return make_error(Code::kUnsupported, "build", subject(process) + ": it has unmapped its vdso");
      calls.push_back(record(SYS_munmap, {region.start, region.end - region.start}));
    } else if (wanted->end() - wanted->start() != region.end - region.start) {
      return make_error(Code::kUnsupported, "build", subject(process) + ": this kernel's " + region.name + " has another size", "Restore on a node with the same kernel.");
    } else {
      moving.push_back({region.start, region.end - region.start, wanted->start()});
    }
  }
  for (const auto& m : process.state->mappings()) {
    if (m.kind() != pb::MAPPING_VDSO && m.kind() != pb::MAPPING_VVAR) continue;
    bool here = false;
    for (const auto& region : regions) here = here || region.name == m.name();
    if (!here) return make_error(Code::kUnsupported, "build", subject(process) + ": this kernel has no " + m.name(), "Restore on a node with the same kernel.");
  }
  std::uint64_t aside = c.area + kAreaBytes;
  for (auto& m : moving) {
    calls.push_back(record(SYS_mremap, {m.from, m.bytes, m.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, aside}));
    m.from = aside;
    aside += m.bytes;
  }
  for (const auto& m : moving) calls.push_back(record(SYS_mremap, {m.from, m.bytes, m.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, m.to}));
  return run(process.leader(), calls, "move the vdso", subject(process));
}

struct Advice { const char* flag; int advice; };
constexpr Advice kAdvice[] = {{"dc", MADV_DONTFORK}, {"dd", MADV_DONTDUMP}, {"wf", 18 /* WIPEONFORK */},
                              {"hg", MADV_HUGEPAGE}, {"nh", MADV_NOHUGEPAGE}, {"mg", MADV_MERGEABLE},
                              {"rr", MADV_RANDOM}, {"sr", MADV_SEQUENTIAL}};

// A file of a volume that is mapped for good or ill by others, too: there only once the volume is
// mounted. (Private mappings of such files are refused when they are captured.)
bool is_of_volume(const Construction& c, const pb::Mapping& m) {
  return m.kind() == pb::MAPPING_FILE_SHARED && m.object() == 0 && !c.state.volumes().empty() && in_volume(c, m.path());
}

// Mappings, as batches; a path that several neighbours share is opened once.
class Mapper {
 public:
  Mapper(Construction& c, BuiltProcess& process, bool of_volumes = false) : c_(c), process_(process), puppet_(process.leader()), of_volumes_(of_volumes) {}

  Result<void> add(const pb::Mapping& m) {
    if (is_of_volume(c_, m) != of_volumes_) return {};
    std::uint64_t bytes = m.end() - m.start();
    std::uint64_t flags = (m.flags() & ~static_cast<std::uint32_t>(MAP_FIXED | MAP_ANONYMOUS)) | MAP_FIXED_NOREPLACE;
    for (const auto& flag : m.vm_flags()) {
      if (flag == "gd") flags |= MAP_GROWSDOWN;
      if (flag == "nr") flags |= MAP_NORESERVE;
    }
    switch (m.kind()) {
      case pb::MAPPING_ANONYMOUS:
        BATON_TRY(make_room());
        calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags | MAP_ANONYMOUS, ~0ull, 0}));
        break;
      case pb::MAPPING_FILE_PRIVATE:
      case pb::MAPPING_FILE_SHARED: {
        if (m.object() != 0) {
          BATON_TRY(make_room());
          auto found = c_.objects.find(m.object());
          if (found == c_.objects.end() || found->second.number < 0) return make_error(Code::kCorrupt, "build", subject(process_) + ": a mapping of an unknown memory object");
          calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags, static_cast<std::uint64_t>(found->second.number), m.offset()}));
          break;
        }
        int mode = m.kind() == pb::MAPPING_FILE_SHARED ? static_cast<int>(m.file_mode()) & O_ACCMODE : O_RDONLY;
        BATON_TRY(open(m.path(), mode));
        calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags, 0, m.offset()}, kKeptIsFifth));
        break;
      }
      case pb::MAPPING_SHARED: {
        BATON_TRY(make_room());
        auto found = c_.objects.find(m.object());
        if (found == c_.objects.end()) return make_error(Code::kCorrupt, "build", subject(process_) + ": a mapping of an unknown memory object");
        if (found->second.segment >= 0) {
          const std::uint64_t attach = ((m.prot() & PROT_WRITE) ? 0 : SHM_RDONLY) | ((m.prot() & PROT_EXEC) ? SHM_EXEC : 0);
          calls_.push_back(record(SYS_shmat, {static_cast<std::uint64_t>(found->second.segment), m.start(), attach}));
          break;
        }
        calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags, static_cast<std::uint64_t>(found->second.number), m.offset()}));
        break;
      }
      default:
        return {};
    }
    for (const auto& flag : m.vm_flags()) {
      for (const auto& advice : kAdvice) {
        if (flag == advice.flag) calls_.push_back(record(SYS_madvise, {m.start(), bytes, static_cast<std::uint64_t>(advice.advice)}, kMayFail));
      }
    }
    if (m.name().rfind("[anon:", 0) == 0 && m.name().size() > 7) {
      BATON_ASSIGN(std::uint64_t name, text(m.name().substr(6, m.name().size() - 7)));
      calls_.push_back(record(SYS_prctl, {PR_SET_VMA, PR_SET_VMA_ANON_NAME, m.start(), bytes, name}, kMayFail));
    }
    return {};
  }

  Result<void> finish() {
    BATON_TRY(close());
    return flush();
  }

 private:
  Result<void> flush() {
    if (calls_.empty()) return {};
    data_used_ = 0;
    return run(puppet_, calls_, "map memory", subject(process_) + (last_path_.empty() ? "" : ", near " + last_path_));
  }

  Result<void> make_room() {
    if (calls_.size() + 16 < kMaxBatch && data_used_ + 256 < kAreaDataBytes) return {};
    BATON_TRY(close());   // the kept descriptor does not outlive a batch
    return flush();
  }

  Result<std::uint64_t> text(const std::string& value) {
    BATON_ASSIGN(std::uint64_t at, puppet_.put(value, data_used_));
    data_used_ += value.size() + 1;
    return at;
  }

  Result<void> close() {
    if (path_.empty()) return {};
    calls_.push_back(record(SYS_close, {0}, kKeptIsFirst));
    path_.clear();
    return {};
  }

  Result<void> open(const std::string& path, int mode) {
    if (path == path_ && mode == mode_ && calls_.size() + 16 < kMaxBatch) return {};
    BATON_TRY(close());
    if (calls_.size() + 16 >= kMaxBatch || data_used_ + path.size() + 64 > kAreaDataBytes) BATON_TRY(flush());
    BATON_ASSIGN(std::uint64_t at, text(path));
    calls_.push_back(record(SYS_openat, {static_cast<std::uint64_t>(AT_FDCWD), at, static_cast<std::uint64_t>(mode | O_CLOEXEC | O_NOCTTY), 0}, kKeepAnswer));
    path_ = last_path_ = path;
    mode_ = mode;
    return {};
  }

  Construction& c_;
  BuiltProcess& process_;
  Puppet& puppet_;
  const bool of_volumes_;
  std::vector<PuppetRecord> calls_;
  std::uint64_t data_used_ = 0;
  std::string path_, last_path_;
  int mode_ = 0;
};

// A program that was replaced on the disk while it ran: its content is the object of its mappings.
int object_of_exe(const Construction& c, const pb::ProcessState& process) {
  for (const auto& m : process.mappings()) {
    if (m.kind() != pb::MAPPING_FILE_PRIVATE || m.object() == 0 || m.name() != process.layout().exe()) continue;
    auto found = c.objects.find(m.object());
    if (found != c.objects.end()) return found->second.number;
  }
  return -1;
}

Result<void> set_layout(Construction& c, BuiltProcess& process, bool with_exe) {
  const auto& layout = process.state->layout();
  Puppet& puppet = process.leader();
  std::uint64_t exe = ~0ull;
  const int object = with_exe ? object_of_exe(c, *process.state) : -1;
  if (object >= 0) {
    BATON_ASSIGN(exe, puppet.checked("dup", layout.exe(), SYS_fcntl, {static_cast<std::uint64_t>(object), F_DUPFD_CLOEXEC, 0}));
  } else if (with_exe) {
    BATON_ASSIGN(std::uint64_t path, puppet.put(layout.exe()));
    BATON_ASSIGN(exe, puppet.checked("open", layout.exe(), SYS_openat, {static_cast<std::uint64_t>(AT_FDCWD), path, O_RDONLY | O_CLOEXEC, 0}));
  }
  prctl_mm_map map{};
  map.start_code = layout.start_code();
  map.end_code = layout.end_code();
  map.start_data = layout.start_data();
  map.end_data = layout.end_data();
  map.start_brk = layout.start_brk();
  map.brk = layout.brk();
  map.start_stack = layout.start_stack();
  map.arg_start = layout.arg_start();
  map.arg_end = layout.arg_end();
  map.env_start = layout.env_start();
  map.env_end = layout.env_end();
  BATON_ASSIGN(std::uint64_t auxv, puppet.put(std::as_bytes(std::span(layout.auxv())), 512));
  map.auxv = reinterpret_cast<__u64*>(auxv);
  map.auxv_size = static_cast<std::uint32_t>(layout.auxv().size());
  map.exe_fd = static_cast<std::uint32_t>(exe);
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&map, 1))));
  BATON_TRY(puppet.checked("PR_SET_MM_MAP", subject(process), SYS_prctl, {PR_SET_MM, PR_SET_MM_MAP, at, sizeof map, 0}));
  if (with_exe) BATON_TRY(puppet.call(SYS_close, {exe}));
  return {};
}

bool is_fixed(const pb::Mapping& m) {
  return m.kind() != pb::MAPPING_ANONYMOUS && m.kind() != pb::MAPPING_FILE_PRIVATE && m.kind() != pb::MAPPING_FILE_SHARED && m.kind() != pb::MAPPING_SHARED;
}

unsigned advice_of(const pb::Mapping& m) {
  unsigned set = 0;
  for (const auto& flag : m.vm_flags()) {
    for (std::size_t i = 0; i < std::size(kAdvice); ++i) {
      if (flag == kAdvice[i].flag) set |= 1u << i;
    }
  }
  return set;
}

std::string_view given_name(const pb::Mapping& m) {
  std::string_view name = m.name();
  return name.rfind("[anon:", 0) == 0 ? name : std::string_view();
}

// Whether the memory at `at` is of the same nature in both, protection apart.
bool same_nature(const pb::Mapping& a, const pb::Mapping& b, std::uint64_t at) {
  if (a.kind() != b.kind() || a.flags() != b.flags() || given_name(a) != given_name(b) || advice_of(a) != advice_of(b)) return false;
  if (a.kind() == pb::MAPPING_ANONYMOUS) return true;
  return a.object() == b.object() && a.path() == b.path() && a.file_mode() == b.file_mode() &&
         a.offset() + (at - a.start()) == b.offset() + (at - b.start());
}

using Mappings = google::protobuf::RepeatedPtrField<pb::Mapping>;

// Calls use(from, to, old, now) for every stretch in which neither list changes; null: nothing there.
template <typename Use>
void for_stretches(const Mappings& old, const Mappings& now, Use use) {
  int i = 0, j = 0;
  std::uint64_t at = 0;
  while (i < old.size() || j < now.size()) {
    const pb::Mapping* a = i < old.size() ? &old.Get(i) : nullptr;
    const pb::Mapping* b = j < now.size() ? &now.Get(j) : nullptr;
    if (a != nullptr && at >= a->end()) { ++i; continue; }
    if (b != nullptr && at >= b->end()) { ++j; continue; }
    std::uint64_t next = ~0ull;
    for (const pb::Mapping* m : {a, b}) {
      if (m != nullptr) next = std::min(next, at < m->start() ? m->start() : m->end());
    }
    const pb::Mapping* was = a != nullptr && a->start() <= at ? a : nullptr;
    const pb::Mapping* is = b != nullptr && b->start() <= at ? b : nullptr;
    if (was != nullptr || is != nullptr) use(at, next, was, is);
    at = next;
  }
}

struct Stretch {
  std::uint64_t start = 0, end = 0;
  const pb::Mapping* now = nullptr;
};

void extend(std::vector<Stretch>& list, std::uint64_t from, std::uint64_t to, const pb::Mapping* now) {
  if (!list.empty() && list.back().end == from && list.back().now == now) list.back().end = to;
  else list.push_back({from, to, now});
}

using Guards = google::protobuf::RepeatedPtrField<pb::GuardRange>;

Result<void> advise_guards(BuiltProcess& process, const Guards& guards, int advice, std::uint64_t flags) {
  std::vector<PuppetRecord> calls;
  for (const auto& guard : guards) {
    calls.push_back(record(SYS_madvise, {guard.start(), guard.end() - guard.start(), static_cast<std::uint64_t>(advice)}, flags));
    if (calls.size() == kMaxBatch) BATON_TRY(run(process.leader(), calls, "guard regions", subject(process)));
  }
  return calls.empty() ? Result<void>() : run(process.leader(), calls, "guard regions", subject(process));
}

bool same_guards(const Guards& a, const Guards& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) { return x.start() == y.start() && x.end() == y.end(); });
}

}  // namespace

Result<void> build_address_space(Construction& c, BuiltProcess& process) {
  Puppet& puppet = process.leader();
  BATON_ASSIGN(auto regions, regions_of(puppet.pid()));
  std::vector<PuppetRecord> calls;
  for (const auto& region : regions) {
    if (region.start == c.area || moves(region) || region.start >= kTaskSize) continue;
    calls.push_back(record(SYS_munmap, {region.start, region.end - region.start}));
  }
  BATON_TRY(run(puppet, calls, "unmap", subject(process)));
  BATON_TRY(move_vdso(c, process, regions));
  Mapper mapper(c, process);
  for (const auto& m : process.state->mappings()) BATON_TRY(mapper.add(m));
  BATON_TRY(mapper.finish());
  BATON_TRY(advise_guards(process, process.state->guards(), kGuardInstall, 0));
  BATON_TRY(set_layout(c, process, true));
  // The template's descriptors, which every process inherits.
  BATON_TRY(puppet.checked("close_range", subject(process), SYS_close_range, {static_cast<std::uint64_t>(c.first_number), ~0u, 0}));
  // Only now: closing any descriptor of a file ends the process's record locks on it (fcntl(2)).
  return set_record_locks(c, process);
}

Result<void> check_address_space_follows(const Construction& c, const pb::ProcessState& old, const pb::ProcessState& now) {
  std::string about = "process " + std::to_string(now.pid());
  if (old.layout().exe() != now.layout().exe()) return make_error(Code::kConflict, "apply", about + " has executed another program");
  bool fixed = true, area = true;
  for_stretches(old.mappings(), now.mappings(), [&](std::uint64_t from, std::uint64_t, const pb::Mapping* was, const pb::Mapping* is) {
    bool either = (was != nullptr && is_fixed(*was)) || (is != nullptr && is_fixed(*is));
    if (either) fixed = fixed && was != nullptr && is != nullptr && was->kind() == is->kind() && was->start() == is->start() && was->end() == is->end();
    (void)from;
  });
  for (const auto& m : now.mappings()) area = area && (m.end() <= c.area || m.start() >= c.area + 3 * kAreaBytes);
  if (!fixed) return make_error(Code::kConflict, "apply", about + ": its vdso has moved");
  if (!area) return make_error(Code::kConflict, "apply", about + ": it has mapped where the driver is");
  return {};
}

// A mapping of the program that has become several here (the kernel joins only what has no
// history of its own) is made anew in one piece: mremap(2) fails on more than one.
static Result<void> make_whole(Construction& c, BuiltProcess& process, std::vector<backend::PageRange>& remade) {
  BATON_ASSIGN(auto regions, regions_of(process.leader().pid()));
  std::vector<PuppetRecord> unmapping;
  std::vector<const pb::Mapping*> split;
  auto region = regions.begin();
  for (const auto& m : process.state->mappings()) {
    if (is_fixed(m) || is_of_volume(c, m)) continue;
    while (region != regions.end() && region->end <= m.start()) ++region;
    if (region != regions.end() && region->start <= m.start() && region->end >= m.end()) continue;
    split.push_back(&m);
    unmapping.push_back(record(SYS_munmap, {m.start(), m.end() - m.start()}));
  }
  if (split.empty()) return {};
  BATON_TRY(run(process.leader(), unmapping, "unmap", subject(process)));
  Mapper mapper(c, process);
  for (const auto* m : split) {
    if (m->object() != 0) {
      auto found = c.objects.find(m->object());
      if (found == c.objects.end()) return make_error(Code::kCorrupt, "apply", subject(process) + ": a mapping of an unknown memory object");
      BATON_TRY(bring_descriptor(c, process.leader(), found->second.number, found->second.number, true));
    }
    if (m->kind() == pb::MAPPING_ANONYMOUS || m->kind() == pb::MAPPING_FILE_PRIVATE) {
      remade.push_back({process.state->memory_object(), m->start() / backend::kPageBytes, (m->end() - m->start()) / backend::kPageBytes});
    }
    BATON_TRY(mapper.add(*m));
  }
  BATON_TRY(mapper.finish());
  BATON_TRY(process.leader().checked("close_range", subject(process), SYS_close_range, {static_cast<std::uint64_t>(c.first_number), ~0u, 0}));
  return {};
}

Result<void> follow_address_space(Construction& c, BuiltProcess& process, const pb::ProcessState& old, std::vector<backend::PageRange>& remade) {
  std::vector<Stretch> gone, made, protect;
  const std::uint64_t object = process.state->memory_object();
  for_stretches(old.mappings(), process.state->mappings(), [&](std::uint64_t from, std::uint64_t to, const pb::Mapping* was, const pb::Mapping* is) {
    if (is == nullptr) return extend(gone, from, to, nullptr);
    if (was == nullptr) return extend(made, from, to, is);
    if (is_fixed(*is) || (is_of_volume(c, *was) && is_of_volume(c, *is))) return;
    if (!same_nature(*was, *is, from)) {
      extend(gone, from, to, nullptr);
      extend(made, from, to, is);
      if (is->kind() == pb::MAPPING_ANONYMOUS || is->kind() == pb::MAPPING_FILE_PRIVATE) {
        remade.push_back({object, from / backend::kPageBytes, (to - from) / backend::kPageBytes});
      }
    } else if (was->prot() != is->prot()) {
      extend(protect, from, to, is);
    }
  });
  bool layout = old.layout().SerializeAsString() != process.state->layout().SerializeAsString();
  // Before mappings change: to find the old ones where they were.
  if (!same_guards(old.guards(), process.state->guards())) BATON_TRY(advise_guards(process, old.guards(), kGuardRemove, kMayFail));
  else if (gone.empty() && made.empty() && protect.empty() && !layout) return {};
  Puppet& puppet = process.leader();
  std::vector<PuppetRecord> calls;
  for (const auto& s : gone) calls.push_back(record(SYS_munmap, {s.start, s.end - s.start}));
  for (const auto& s : protect) calls.push_back(record(SYS_mprotect, {s.start, s.end - s.start, s.now->prot()}));
  BATON_TRY(run(puppet, calls, "unmap or protect", subject(process)));
  bool brought = false;
  for (const auto& s : made) {
    if (s.now->object() == 0) continue;
    auto found = c.objects.find(s.now->object());
    if (found == c.objects.end()) return make_error(Code::kCorrupt, "apply", subject(process) + ": a mapping of an unknown memory object");
    BATON_TRY(bring_descriptor(c, puppet, found->second.number, found->second.number, true));
    brought = true;
  }
  Mapper mapper(c, process);
  for (const auto& s : made) {
    pb::Mapping part = *s.now;
    part.set_offset(part.offset() + (s.start - part.start()));
    part.set_start(s.start);
    part.set_end(s.end);
    BATON_TRY(mapper.add(part));
  }
  BATON_TRY(mapper.finish());
  BATON_TRY(make_whole(c, process, remade));
  if (brought) BATON_TRY(puppet.checked("close_range", subject(process), SYS_close_range, {static_cast<std::uint64_t>(c.first_number), ~0u, 0}));
  if (layout) BATON_TRY(set_layout(c, process, false));
  // What was made anew has none.
  return advise_guards(process, process.state->guards(), kGuardInstall, 0);
}

Result<void> map_volume_files(Construction& c, BuiltProcess& process) {
  Mapper mapper(c, process, true);
  for (const auto& m : process.state->mappings()) BATON_TRY(mapper.add(m));
  return mapper.finish();
}

Result<void> drop_private(BuiltProcess& process, std::span<const backend::PageRange> pages) {
  std::vector<PuppetRecord> calls;
  for (const auto& range : pages) {
    calls.push_back(record(SYS_madvise, {range.first_page * backend::kPageBytes, range.count * backend::kPageBytes, MADV_DONTNEED}, kMayFail));   // unmapped since: gone anyway
    if (calls.size() == kMaxBatch) BATON_TRY(run(process.leader(), calls, "drop pages", subject(process)));
  }
  return calls.empty() ? Result<void>() : run(process.leader(), calls, "drop pages", subject(process));
}

Result<void> fill_private(Construction& c, BuiltProcess& process, std::uint64_t first_page, std::span<const std::byte> pages) {
  std::uint64_t at = first_page * backend::kPageBytes, end = at + pages.size();
  if (process.threads.empty()) return make_error(Code::kCorrupt, "fill", "pages for a process that has ended");
  // Where a stretch is long and writable, huge batches of faults are taken in one call first.
  if (pages.size() >= kPopulateBytes) {
    std::vector<PuppetRecord> calls;
    const auto& mappings = process.state->mappings();
    auto m = std::upper_bound(mappings.begin(), mappings.end(), at, [](std::uint64_t a, const pb::Mapping& x) { return a < x.end(); });
    for (; m != mappings.end() && m->start() < end; ++m) {
      std::uint64_t from = std::max<std::uint64_t>(at, m->start()), to = std::min<std::uint64_t>(end, m->end());
      if ((m->prot() & PROT_WRITE) == 0 || m->kind() == pb::MAPPING_SHARED || to - from < kPopulateBytes) continue;
      calls.push_back(record(SYS_madvise, {from, to - from, MADV_POPULATE_WRITE}, kMayFail));
      if (calls.size() + 1 >= kMaxBatch) break;
    }
    if (!calls.empty()) BATON_TRY(run(process.leader(), calls, "populate", subject(process)));
    iovec local{const_cast<std::byte*>(pages.data()), pages.size()}, remote{reinterpret_cast<void*>(at), pages.size()};
    ssize_t done = ::process_vm_writev(process.leader().pid(), &local, 1, &remote, 1, 0);
    if (done == static_cast<ssize_t>(pages.size())) return {};
    // Partly read-only, or not mapped: the rest by /proc/PID/mem, which says which.
    if (done > 0) {
      at += static_cast<std::uint64_t>(done);
      pages = pages.subspan(static_cast<std::size_t>(done));
    }
  }
  (void)c;
  return process.leader().write(at, pages);
}

}  // namespace baton::restore
