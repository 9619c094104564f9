// MemoryMap: one process's mappings as /proc/PID/maps lists them, classified: what owns
// each one's pages, and what cannot be captured.
//
// The file is kept open. It belongs to the address space, not to the process: once the
// process has executed another program, it reads as empty, and that is how the change
// is noticed. Reading takes no lock of ours and does not stop the program.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "proto/linux_state.pb.h"

namespace baton::linux_backend {

// What the file behind a mapping is. Found once per (device, inode).
enum class FileKind : std::uint8_t {
  kRegular,        // a file with a name
  kDeleted,        // a file without
  kZeroDevice,     // /dev/zero, mapped privately: anonymous memory
  kSharedMemory,   // shared anonymous, memfd
  kSysv,
  kUnsupported,    // FileInfo::problem says what it is
};

struct FileInfo {
  FileKind kind = FileKind::kRegular;
  std::string problem;
  std::uint64_t size_bytes = 0;
  std::uint32_t mode = 0;
  std::uint64_t mtime_ns = 0;
};

struct Vma {
  std::uint64_t start = 0, end = 0;
  std::uint32_t prot = 0;          // PROT_*
  bool shared = false;
  pb::MappingKind kind = pb::MAPPING_UNSPECIFIED;
  std::uint64_t offset = 0;
  std::uint64_t device = 0, inode = 0;   // device as maps writes it: major << 32 | minor
  std::uint32_t path_at = 0, path_bytes = 0;  // in the map's text
  const FileInfo* file = nullptr;

  // Its pages belong to the private memory object.
  bool is_private() const {
    return kind == pb::MAPPING_ANONYMOUS || kind == pb::MAPPING_FILE_PRIVATE;
  }
  // A private mapping of a file that has no name any more (a library that was replaced), or never
  // had one (a memfd): what the file holds is an object of its own.
  bool is_nameless() const { return kind == pb::MAPPING_FILE_PRIVATE && file != nullptr && file->kind != FileKind::kRegular; }
};

class MemoryMap {
 public:
  static Result<MemoryMap> open(pid_t pid);

  // Reads the mappings again. True: they differ from the last time. An address space that
  // is gone gives kTraceeGone, and the map keeps what it had.
  Result<bool> refresh();

  pid_t pid() const { return pid_; }
  const std::vector<Vma>& vmas() const { return vmas_; }
  std::string_view path(const Vma& v) const { return std::string_view(text_).substr(v.path_at, v.path_bytes); }
  // The first mapping that cannot be captured: "mapping 7f00…-7f10… (/dev/nvidia0): …"; empty: none.
  const std::string& problem() const { return problem_; }
  // The mapping that holds `address`, or null.
  const Vma* find(std::uint64_t address) const;

 private:
  Result<void> parse();
  const FileInfo* file_info(const Vma& v, std::string_view path);

  pid_t pid_ = 0;
  Fd fd_;
  std::string text_, next_;
  std::vector<Vma> vmas_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, FileInfo> files_;
  std::string problem_;
};

// The mappings as the manifest has them; `shared_object` gives the id of a shared one's object.
template <typename SharedObjectId>
void write_mappings(const MemoryMap& map, SharedObjectId shared_object, pb::ProcessState& out);
void fill_mapping(const MemoryMap& map, const Vma& v, pb::Mapping& out);

template <typename SharedObjectId>
void write_mappings(const MemoryMap& map, SharedObjectId shared_object, pb::ProcessState& out) {
  for (const Vma& v : map.vmas()) {
    pb::Mapping* m = out.add_mappings();
    fill_mapping(map, v, *m);
    if (v.kind == pb::MAPPING_SHARED || v.is_nameless()) m->set_object(shared_object(v));
  }
}

// PR_SET_MM fields, auxv and executable of a process; all but `brk`, which /proc does not tell.
Result<pb::MmLayout> read_layout(pid_t pid);

}  // namespace baton::linux_backend
