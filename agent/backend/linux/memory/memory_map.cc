#include "agent/backend/linux/memory/memory_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "agent/backend/linux/remote/proc.h"
#include "base/linux_abi.h"

namespace baton::linux_backend {
namespace {

constexpr std::string_view kDeletedSuffix = " (deleted)";

std::string range_text(const Vma& v) {
  char text[64];
  std::snprintf(text, sizeof text, "%llx-%llx", static_cast<unsigned long long>(v.start),
                static_cast<unsigned long long>(v.end));
  return text;
}

// Hexadecimal digits from `p`, which is moved behind them.
std::uint64_t hex(const char*& p) {
  std::uint64_t value = 0;
  for (;; ++p) {
    char c = *p;
    if (c >= '0' && c <= '9') value = value * 16 + static_cast<std::uint64_t>(c - '0');
    else if (c >= 'a' && c <= 'f') value = value * 16 + static_cast<std::uint64_t>(c - 'a' + 10);
    else return value;
  }
}

// A path of /proc/PID/maps with its "\012" for newline undone.
std::string unescape(std::string_view raw) {
  std::string out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (raw.substr(i, 4) == "\\012") {
      out += '\n';
      i += 3;
    } else {
      out += raw[i];
    }
  }
  return out;
}

}  // namespace

Result<MemoryMap> MemoryMap::open(pid_t pid) {
  MemoryMap map;
  map.pid_ = pid;
  std::string path = "/proc/" + std::to_string(pid) + "/maps";
  auto fd = open_file(path, O_RDONLY);
  if (!fd) {
    Error e = std::move(fd).error();
    if (e.sys_errno == ENOENT || e.sys_errno == ESRCH) e.code = Code::kTraceeGone;
    return e;
  }
  map.fd_ = std::move(*fd);
  map.next_.resize(1 << 14);
  BATON_TRY(map.refresh());
  return map;
}

Result<bool> MemoryMap::refresh() {
  // One pread after the other: the kernel gives whole lines, about a page of them at a time.
  std::size_t used = 0;
  for (;;) {
    if (next_.size() - used < 8192) next_.resize(next_.size() * 2);
    ssize_t n = ::pread(fd_.get(), next_.data() + used, next_.size() - used, static_cast<off_t>(used));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != ESRCH) return errno_error("read maps of", "process " + std::to_string(pid_));
    if (n <= 0) break;
    used += static_cast<std::size_t>(n);
  }
  if (used == 0) {
    return make_error(Code::kTraceeGone, "read maps",
                      "process " + std::to_string(pid_) + ": its address space is gone");
  }
  if (used == text_.size() && std::char_traits<char>::compare(text_.data(), next_.data(), used) == 0) {
    return false;
  }
  std::swap(text_, next_);
  if (next_.size() < (1 << 14)) next_.resize(1 << 14);
  text_.resize(used);
  BATON_TRY(parse());
  next_.resize(std::max(next_.size(), text_.size() + 16384));
  return true;
}

Result<void> MemoryMap::parse() {
  vmas_.clear();
  problem_.clear();
  const char* p = text_.data();
  const char* const end = p + text_.size();
  while (p < end) {
    Vma v;
    v.start = hex(p);
    ++p;
    v.end = hex(p);
    ++p;
    if (p + 5 > end) break;
    if (p[0] == 'r') v.prot |= PROT_READ;
    if (p[1] == 'w') v.prot |= PROT_WRITE;
    if (p[2] == 'x') v.prot |= PROT_EXEC;
    v.shared = p[3] == 's';
    p += 5;
    v.offset = hex(p);
    ++p;
    v.device = hex(p) << 32;
    ++p;
    v.device |= hex(p);
    ++p;
    while (p < end && *p >= '0' && *p <= '9') v.inode = v.inode * 10 + static_cast<std::uint64_t>(*p++ - '0');
    while (p < end && *p == ' ') ++p;
    const char* line_end = static_cast<const char*>(
        ::memchr(p, '\n', static_cast<std::size_t>(end - p)));
    if (line_end == nullptr) line_end = end;
    v.path_at = static_cast<std::uint32_t>(p - text_.data());
    v.path_bytes = static_cast<std::uint32_t>(line_end - p);
    std::string_view name = path(v);
    p = line_end + 1;

    if (name == "[vdso]") {
      v.kind = pb::MAPPING_VDSO;
    } else if (name == "[vvar]" || name == "[vvar_vclock]") {
      v.kind = pb::MAPPING_VVAR;
    } else if (name == "[vsyscall]") {
      v.kind = pb::MAPPING_VSYSCALL;
    } else if (v.inode == 0 && !v.shared && (name.empty() || name.front() == '[')) {
      if (name == "[uprobes]") problem_ = "mapping " + range_text(v) + ": probed by uprobes";
      v.kind = pb::MAPPING_ANONYMOUS;
    } else {
      v.file = file_info(v, name);
      switch (v.file->kind) {
        case FileKind::kRegular:
          v.kind = v.shared ? pb::MAPPING_FILE_SHARED : pb::MAPPING_FILE_PRIVATE;
          break;
        case FileKind::kZeroDevice:
          v.kind = pb::MAPPING_ANONYMOUS;
          break;
        case FileKind::kDeleted:
        case FileKind::kSharedMemory:
        case FileKind::kSysv:
          v.kind = v.shared ? pb::MAPPING_SHARED : pb::MAPPING_FILE_PRIVATE;
          break;
        case FileKind::kUnsupported:
          if (problem_.empty()) {
            problem_ = "mapping " + range_text(v) + " (" + std::string(name) + "): " + v.file->problem;
          }
          break;
      }
    }
    vmas_.push_back(v);
  }
  return {};
}

const FileInfo* MemoryMap::file_info(const Vma& v, std::string_view name) {
  auto [it, is_new] = files_.try_emplace({v.device, v.inode});
  FileInfo& info = it->second;
  if (!is_new) return &info;
  bool deleted = name.ends_with(kDeletedSuffix);
  std::string link = "/proc/" + std::to_string(pid_) + "/map_files/" + range_text(v);
  struct stat st {};
  struct statfs fs {};
  Fd fd = Fd::adopt(::open(link.c_str(), O_PATH | O_CLOEXEC));
  if (fd && ::fstat(fd.get(), &st) == 0) {
    info.size_bytes = static_cast<std::uint64_t>(st.st_size);
    info.mode = st.st_mode;
    info.mtime_ns = static_cast<std::uint64_t>(st.st_mtim.tv_sec) * 1'000'000'000u +
                    static_cast<std::uint64_t>(st.st_mtim.tv_nsec);
  }
  auto refuse = [&](std::string why) {
    info.kind = FileKind::kUnsupported;
    info.problem = std::move(why);
    return &info;
  };
  if (fd && ::fstatfs(fd.get(), &fs) == 0 && static_cast<long>(fs.f_type) == abi::kHugetlbfsMagic) {
    return refuse("huge pages (hugetlb) are not supported");
  }
  if (name.starts_with("/anon_hugepage")) return refuse("huge pages (hugetlb) are not supported");
  if (name.starts_with("anon_inode:")) {
    return refuse(std::string(name.substr(11)) + " is not supported");
  }
  if (name.starts_with("/[aio]")) return refuse("asynchronous I/O (io_setup) is not supported");
  if (name.starts_with("/secretmem")) return refuse("secret memory (memfd_secret) is not supported");
  if (name.starts_with("socket:")) return refuse("a mapped socket is not supported");
  if (S_ISCHR(st.st_mode)) {
    if (name == "/dev/zero") {
      info.kind = FileKind::kZeroDevice;
      return &info;
    }
    return refuse("device memory is not supported");
  }
  if (S_ISBLK(st.st_mode)) return refuse("a mapped block device is not supported");
  if (name.starts_with("/dev/zero") || name.starts_with("/memfd:") || name.starts_with("[anon_shmem:")) {
    info.kind = FileKind::kSharedMemory;
  } else if (name.starts_with("/SYSV") && deleted) {
    info.kind = FileKind::kSysv;
  } else if (!deleted && is_named_memory(name, st, fs)) {
    info.kind = FileKind::kDeleted;   // its name goes along, see SharedObject
  } else if (deleted && (!fd || st.st_nlink == 0)) {
    info.kind = FileKind::kDeleted;
  } else if (deleted) {
    // Still linked somewhere, or its name is gone from this place only: the path cannot be used.
    info.kind = FileKind::kDeleted;
  }
  return &info;
}

const Vma* MemoryMap::find(std::uint64_t address) const {
  auto it = std::upper_bound(vmas_.begin(), vmas_.end(), address,
                             [](std::uint64_t a, const Vma& v) { return a < v.end; });
  return it != vmas_.end() && it->start <= address ? &*it : nullptr;
}

void fill_mapping(const MemoryMap& map, const Vma& v, pb::Mapping& out) {
  out.set_start(v.start);
  out.set_end(v.end);
  out.set_prot(v.prot);
  std::uint32_t flags = v.shared ? MAP_SHARED : MAP_PRIVATE;
  out.set_kind(v.kind);
  out.set_offset(v.offset);
  std::string_view name = map.path(v);
  if (!v.is_nameless() && (v.kind == pb::MAPPING_FILE_PRIVATE || v.kind == pb::MAPPING_FILE_SHARED)) {
    out.set_path(unescape(name));
    // A shared mapping that is writable now, or was when it was made, needs a writable descriptor.
    out.set_file_mode(v.shared && (v.prot & PROT_WRITE) ? O_RDWR : O_RDONLY);
  } else {
    out.set_name(std::string(name));
    if (v.shared) out.set_file_mode(O_RDWR);
  }
  if (name == "[stack]") flags |= MAP_GROWSDOWN;
  out.set_flags(flags);
}

Result<pb::MmLayout> read_layout(pid_t pid) {
  pb::MmLayout layout;
  std::string base = "/proc/" + std::to_string(pid);
  BATON_ASSIGN(auto fields, read_stat_fields(pid));
  // Numbers as in proc(5); our first field is the third.
  auto field = [&](std::size_t number) -> std::uint64_t {
    return number - 3 < fields.size() ? std::strtoull(fields[number - 3].c_str(), nullptr, 10) : 0;
  };
  layout.set_start_code(field(26));
  layout.set_end_code(field(27));
  layout.set_start_stack(field(28));
  layout.set_start_data(field(45));
  layout.set_end_data(field(46));
  layout.set_start_brk(field(47));
  layout.set_arg_start(field(48));
  layout.set_arg_end(field(49));
  layout.set_env_start(field(50));
  layout.set_env_end(field(51));
  BATON_ASSIGN(std::string auxv, read_proc(base + "/auxv"));
  layout.set_auxv(auxv);
  std::string exe(4096, '\0');
  ssize_t n = ::readlink((base + "/exe").c_str(), exe.data(), exe.size());
  if (n <= 0) {
    Error e = errno_error("readlink", base + "/exe");
    if (e.sys_errno == ENOENT || e.sys_errno == ESRCH) e.code = Code::kTraceeGone;
    return e;
  }
  exe.resize(static_cast<std::size_t>(n));
  layout.set_exe(exe);
  return layout;
}

}  // namespace baton::linux_backend
