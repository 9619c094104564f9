#include "storage/core_file.h"

#include <elf.h>
#include <sys/mman.h>
#include <sys/procfs.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "storage/bytes/byte_io.h"
#include "storage/memory_map.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;
constexpr std::size_t kReadPages = 256;     // a piece of 1 MiB
constexpr std::size_t kXsaveLegacyBytes = 512;  // the FXSAVE area (Intel SDM 1, 13.4.1)
constexpr std::uint64_t kMaxSegments = 1u << 20;

// A program header to be, and the pages behind it.
struct Segment {
  std::uint64_t start = 0, end = 0;
  std::uint32_t rights = 0;
  bool has_content = false;
  std::uint64_t file_at = 0;
  const MappingView* mapping = nullptr;
};

void add_note(std::string& out, std::uint32_t type, std::string_view content) {
  const bool linux_own = type == NT_X86_XSTATE;
  const std::string_view owner = linux_own ? std::string_view("LINUX\0", 6) : std::string_view("CORE\0", 5);
  put_int<std::uint32_t>(out, static_cast<std::uint32_t>(owner.size()));
  put_int<std::uint32_t>(out, static_cast<std::uint32_t>(content.size()));
  put_int<std::uint32_t>(out, type);
  out.append(owner);
  out.resize((out.size() + 3) & ~std::size_t{3});
  out.append(content);
  out.resize((out.size() + 3) & ~std::size_t{3});
}

template <typename T>
std::string_view as_text(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

std::string thread_status(const pb::ProcessState& process, const pb::Thread& thread) {
  elf_prstatus status{};
  status.pr_pid = thread.tid();
  status.pr_ppid = process.ppid();
  status.pr_pgrp = process.pgid();
  status.pr_sid = process.sid();
  status.pr_sighold = thread.blocked();
  static_assert(sizeof(elf_gregset_t) == 27 * 8);
  std::memcpy(&status.pr_reg, thread.registers().data(),
              std::min(thread.registers().size(), sizeof status.pr_reg));
  status.pr_fpvalid = thread.xsave().size() >= kXsaveLegacyBytes;
  return std::string(as_text(status));
}

std::string process_info(const pb::ProcessState& process, const std::string& arguments) {
  elf_prpsinfo info{};
  info.pr_sname = process.stopped() ? 'T' : 'S';
  info.pr_pid = process.pid();
  info.pr_ppid = process.ppid();
  info.pr_pgrp = process.pgid();
  info.pr_sid = process.sid();
  if (process.threads_size() > 0 && process.threads(0).credentials().uids_size() > 0) {
    info.pr_uid = process.threads(0).credentials().uids(0);
    info.pr_gid = process.threads(0).credentials().gids_size() > 0 ? process.threads(0).credentials().gids(0) : 0;
  }
  std::strncpy(info.pr_fname, process.comm().c_str(), sizeof info.pr_fname - 1);
  std::strncpy(info.pr_psargs, arguments.c_str(), sizeof info.pr_psargs - 1);
  return std::string(as_text(info));
}

// NT_FILE: count, page size, then start, end, offset in pages; then the names.
std::string file_note(const std::vector<const MappingView*>& files) {
  std::string out, names;
  put_int<std::uint64_t>(out, files.size());
  put_int<std::uint64_t>(out, kPageBytes);
  for (const auto* m : files) {
    put_int<std::uint64_t>(out, m->start);
    put_int<std::uint64_t>(out, m->end);
    put_int<std::uint64_t>(out, m->mapping->offset() / kPageBytes);
    names += m->name;
    names.push_back('\0');
  }
  return out + names;
}

class CoreWriter {
 public:
  CoreWriter(Store& store, const std::function<Result<void>(std::uint64_t, std::span<const std::byte>)>& put)
      : store_(store), put_(put) {}

  Result<CoreSummary> run(const std::string& workload, std::uint64_t seq, std::int32_t pid) {
    const auto lease = store_.lease();
    BATON_ASSIGN(checkpoint_, store_.load(workload, seq));
    BATON_ASSIGN(const MemoryMap map, MemoryMap::parse(checkpoint_.manifest));
    BATON_ASSIGN(process_, choose(map, pid));
    CoreSummary summary;
    BATON_TRY(lay_out(map));
    const std::string head = make_head(summary);
    BATON_TRY(put_pieces(0, head));
    for (const Segment& s : segments_) {
      if (s.has_content) BATON_TRY(put_segment(s, summary));
    }
    summary.pid = process_->pid();
    summary.command = process_->comm();
    summary.threads = static_cast<std::uint64_t>(process_->threads_size());
    summary.file_bytes = file_bytes_;
    return summary;
  }

 private:
  static Result<const pb::ProcessState*> choose(const MemoryMap& map, std::int32_t pid) {
    const std::string& arch = map.manifest().machine().arch();
    if (map.manifest().backend() != "linux" || arch != "x86_64") {
      return make_error(Code::kUnsupported, "export",
                        "a core file of a " + (arch.empty() ? "program" : arch + " program") + " of backend '" +
                            map.manifest().backend() + "'",
                        "Core files are made of x86_64 programs of the linux backend.");
    }
    const pb::ProcessState* process = map.process(pid == 0 ? map.state().root_pid() : pid);
    if (!process && pid == 0 && map.state().processes_size() > 0) process = &map.state().processes(0);
    if (!process) {
      std::string there;
      for (const auto& p : map.state().processes()) {
        there += (there.empty() ? "" : ", ") + std::to_string(p.pid()) + " " + p.comm();
      }
      return make_error(Code::kNotFound, "export", "no process " + std::to_string(pid) + " in the checkpoint",
                        "It holds: " + there + ".");
    }
    if (process->zombie() || process->threads_size() == 0) {
      return make_error(Code::kUnsupported, "export", "process " + std::to_string(process->pid()) + " is a zombie: it has no memory");
    }
    return process;
  }

  const dedup::PageTable* table_of(const MappingView& m) const {
    auto it = checkpoint_.objects.find(m.object);
    return m.object == 0 || it == checkpoint_.objects.end() ? nullptr : &it->second;
  }

  // Pages of `m` that are present, rising; a table is asked in one walk, not page by page.
  std::vector<std::uint64_t> present(const MappingView& m) {
    std::vector<std::uint64_t> out;
    const dedup::PageTable* table = table_of(m);
    if (!table) return out;
    auto [it, fresh] = pages_.try_emplace(m.object);
    if (fresh) table->for_each([&](std::uint64_t page, const Digest&) { it->second.push_back(page); });
    auto from = std::lower_bound(it->second.begin(), it->second.end(), m.first_page);
    auto to = std::lower_bound(from, it->second.end(), m.first_page + m.page_count());
    out.assign(from, to);
    return out;
  }

  Result<void> lay_out(const MemoryMap& map) {
    const std::int32_t owner = process_->shares_memory_with() != 0 ? process_->shares_memory_with() : process_->pid();
    for (const MappingView& m : map.mappings()) {
      if (m.pid != owner) continue;
      if (m.mapping->kind() == pb::MAPPING_VSYSCALL) continue;
      if (!m.mapping->path().empty()) files_.push_back(&m);
      Segment whole{m.start, m.end, m.prot, false, 0, &m};
      if (m.kind != MemoryKind::kPrivateFile) {
        whole.has_content = table_of(m) != nullptr && !present(m).empty();
        segments_.push_back(whole);
        continue;
      }
      // Only what the program changed is in the checkpoint; between, the file itself is read.
      std::uint64_t at = m.start;
      for (std::uint64_t page : present(m)) {
        const std::uint64_t address = m.address_of(page);
        if (address > at) segments_.push_back({at, address, m.prot, false, 0, &m});
        if (address == at && at != m.start && segments_.back().has_content && segments_.back().end == at) {
          segments_.back().end = address + kPageBytes;
        } else {
          segments_.push_back({address, address + kPageBytes, m.prot, true, 0, &m});
        }
        at = address + kPageBytes;
      }
      if (at < m.end) segments_.push_back({at, m.end, m.prot, false, 0, &m});
    }
    if (segments_.size() > kMaxSegments) {
      return make_error(Code::kUnsupported, "export", std::to_string(segments_.size()) + " segments");
    }
    return {};
  }

  std::string notes() const {
    std::string out;
    auto registers = [&](const pb::Thread& thread) {
      if (thread.xsave().size() < kXsaveLegacyBytes) return;
      add_note(out, NT_FPREGSET, std::string_view(thread.xsave()).substr(0, kXsaveLegacyBytes));
      add_note(out, NT_X86_XSTATE, thread.xsave());
    };
    const auto& leader = process_->threads(0);
    add_note(out, NT_PRSTATUS, thread_status(*process_, leader));
    add_note(out, NT_PRPSINFO, process_info(*process_, process_->layout().exe()));
    add_note(out, NT_AUXV, process_->layout().auxv());
    add_note(out, NT_FILE, file_note(files_));
    registers(leader);
    for (int i = 1; i < process_->threads_size(); ++i) {
      add_note(out, NT_PRSTATUS, thread_status(*process_, process_->threads(i)));
      registers(process_->threads(i));
    }
    return out;
  }

  std::string make_head(CoreSummary& summary) {
    const std::string note = notes();
    const std::uint64_t count = segments_.size() + 1;
    const bool extended = count >= PN_XNUM;
    const std::uint64_t note_at = sizeof(Elf64_Ehdr) + count * sizeof(Elf64_Phdr) + (extended ? sizeof(Elf64_Shdr) : 0);
    std::uint64_t at = (note_at + note.size() + kPageBytes - 1) / kPageBytes * kPageBytes;
    for (Segment& s : segments_) {
      s.file_at = at;
      if (s.has_content) at += s.end - s.start;
      if (s.mapping->start == s.start) ++summary.mappings;
    }
    file_bytes_ = at;

    Elf64_Ehdr elf{};
    std::memcpy(elf.e_ident, ELFMAG, SELFMAG);
    elf.e_ident[EI_CLASS] = ELFCLASS64;
    elf.e_ident[EI_DATA] = ELFDATA2LSB;
    elf.e_ident[EI_VERSION] = EV_CURRENT;
    elf.e_type = ET_CORE;
    elf.e_machine = EM_X86_64;
    elf.e_version = EV_CURRENT;
    elf.e_phoff = sizeof(Elf64_Ehdr);
    elf.e_ehsize = sizeof(Elf64_Ehdr);
    elf.e_phentsize = sizeof(Elf64_Phdr);
    elf.e_phnum = extended ? PN_XNUM : static_cast<std::uint16_t>(count);
    if (extended) {
      elf.e_shoff = note_at - sizeof(Elf64_Shdr);
      elf.e_shentsize = sizeof(Elf64_Shdr);
      elf.e_shnum = 1;
    }
    std::string out(as_text(elf));
    Elf64_Phdr header{};
    header.p_type = PT_NOTE;
    header.p_offset = note_at;
    header.p_filesz = note.size();
    header.p_align = 4;
    out += as_text(header);
    for (const Segment& s : segments_) {
      header = {};
      header.p_type = PT_LOAD;
      header.p_flags = (s.rights & PROT_READ ? PF_R : 0u) | (s.rights & PROT_WRITE ? PF_W : 0u) |
                       (s.rights & PROT_EXEC ? PF_X : 0u);
      header.p_offset = s.file_at;
      header.p_vaddr = s.start;
      header.p_memsz = s.end - s.start;
      header.p_filesz = s.has_content ? header.p_memsz : 0;
      header.p_align = kPageBytes;
      out += as_text(header);
    }
    if (extended) {
      Elf64_Shdr counts{};  // elf(5): PN_XNUM, the number stands in sh_info of section 0
      counts.sh_info = static_cast<std::uint32_t>(count);
      out += as_text(counts);
    }
    return out + note;
  }

  Result<void> put_pieces(std::uint64_t at, std::string_view bytes) {
    for (std::size_t done = 0; done < bytes.size();) {
      const auto piece = bytes.substr(done, kReadPages * kPageBytes);
      BATON_TRY(put_(at + done, as_bytes_of(piece)));
      done += piece.size();
    }
    return {};
  }

  Result<void> put_segment(const Segment& s, CoreSummary& summary) {
    const MappingView& m = *s.mapping;
    const dedup::PageTable& table = *table_of(m);
    std::vector<std::byte> buffer(kReadPages * kPageBytes);
    std::vector<PageGet> gets;
    std::uint64_t first = 0;
    auto flush = [&]() -> Result<void> {
      if (gets.empty()) return {};
      BATON_TRY(store_.pages().get(checkpoint_.domain, *checkpoint_.hasher, gets));
      BATON_TRY(put_(s.file_at + (m.address_of(first) - s.start), std::span(buffer).first(gets.size() * kPageBytes)));
      summary.pages += gets.size();
      gets.clear();
      return {};
    };
    for (std::uint64_t page : present(m)) {
      const std::uint64_t address = m.address_of(page);
      if (address < s.start || address >= s.end) continue;
      const Digest digest = table.get(page);
      if (digest.is_zero_page()) continue;
      if (!gets.empty() && (page != first + gets.size() || gets.size() == kReadPages)) BATON_TRY(flush());
      if (gets.empty()) first = page;
      gets.push_back({digest, buffer.data() + gets.size() * kPageBytes});
    }
    return flush();
  }

  Store& store_;
  const std::function<Result<void>(std::uint64_t, std::span<const std::byte>)>& put_;
  Checkpoint checkpoint_;
  const pb::ProcessState* process_ = nullptr;
  std::vector<Segment> segments_;
  std::vector<const MappingView*> files_;
  std::map<std::uint64_t, std::vector<std::uint64_t>> pages_;  // by object
  std::uint64_t file_bytes_ = 0;
};

}  // namespace

Result<CoreSummary> write_core(
    Store& store, const std::string& workload, std::uint64_t seq, std::int32_t pid,
    const std::function<Result<void>(std::uint64_t, std::span<const std::byte>)>& put) {
  return CoreWriter(store, put).run(workload, seq, pid);
}

}  // namespace baton::storage
