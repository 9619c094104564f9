// One process's address space: everything of the blank process goes, vdso and vvar move to
// where the program knows them, the mappings of the checkpoint come. The driver's area stays
// until activation.
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

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

// Mappings, as batches; a path that several neighbours share is opened once.
class Mapper {
 public:
  Mapper(Construction& c, BuiltProcess& process) : c_(c), process_(process), puppet_(process.leader()) {}

  Result<void> add(const pb::Mapping& m) {
    std::uint64_t bytes = m.end() - m.start();
    std::uint64_t flags = (m.flags() & ~static_cast<std::uint32_t>(MAP_FIXED | MAP_ANONYMOUS)) | MAP_FIXED_NOREPLACE;
    switch (m.kind()) {
      case pb::MAPPING_ANONYMOUS:
        BATON_TRY(make_room());
        calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags | MAP_ANONYMOUS, ~0ull, 0}));
        break;
      case pb::MAPPING_FILE_PRIVATE:
      case pb::MAPPING_FILE_SHARED: {
        int mode = m.kind() == pb::MAPPING_FILE_SHARED ? static_cast<int>(m.file_mode()) & O_ACCMODE : O_RDONLY;
        BATON_TRY(open(m.path(), mode));
        calls_.push_back(record(SYS_mmap, {m.start(), bytes, m.prot(), flags, 0, m.offset()}, kKeptIsFifth));
        break;
      }
      case pb::MAPPING_SHARED: {
        BATON_TRY(make_room());
        auto found = c_.objects.find(m.object());
        if (found == c_.objects.end()) return make_error(Code::kCorrupt, "build", subject(process_) + ": a mapping of an unknown memory object");
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
  std::vector<PuppetRecord> calls_;
  std::uint64_t data_used_ = 0;
  std::string path_, last_path_;
  int mode_ = 0;
};

Result<void> set_layout(BuiltProcess& process) {
  const auto& layout = process.state->layout();
  Puppet& puppet = process.leader();
  BATON_ASSIGN(std::uint64_t path, puppet.put(layout.exe()));
  BATON_ASSIGN(std::uint64_t exe, puppet.checked("open", layout.exe(), SYS_openat, {static_cast<std::uint64_t>(AT_FDCWD), path, O_RDONLY | O_CLOEXEC, 0}));
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
  BATON_TRY(puppet.call(SYS_close, {exe}));
  return {};
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
  return set_layout(process);
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
