// Analysis, comparison and core files over checkpoints whose content is known.
#include <elf.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/user.h>

#include "proto/checkpoint.pb.h"
#include "proto/linux_state.pb.h"
#include "storage/analysis.h"
#include "storage/comparison.h"
#include "storage/core_file.h"
#include "storage/memory_map.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::make_page;
using testing_ground::Page;
using testing_ground::StoreTest;

// A program of one process: heap at 0x10000, stack at 0x70000, a private file at 0x40000, a
// shared object, and pages whose content is a number.
class InspectTest : public StoreTest {
 protected:
  static constexpr std::uint64_t kMemory = 11, kShared = 12;

  void SetUp() override {
    StoreTest::SetUp();
    identity_.workload = "w";
    identity_.domain.bytes.fill(std::byte{1});
    hasher_ = std::make_shared<PageHasher>(identity_.kind, identity_.key);
    options_.retention.keep_last = 100;
    open();
    ASSERT_TRUE(store_->add_workload(identity_));
    auto& process = *state_.add_processes();
    process.set_pid(7);
    process.set_comm("prog");
    process.set_memory_object(kMemory);
    state_.set_root_pid(7);
    add_mapping(0x10000, 0x20000, pb::MAPPING_ANONYMOUS, "[heap]", PROT_READ | PROT_WRITE);
    add_mapping(0x40000, 0x44000, pb::MAPPING_FILE_PRIVATE, "/bin/prog", PROT_READ | PROT_EXEC);
    add_mapping(0x60000, 0x62000, pb::MAPPING_SHARED, "memfd:x", PROT_READ | PROT_WRITE)->set_object(kShared);
    add_mapping(0x70000, 0x80000, pb::MAPPING_ANONYMOUS, "[stack]", PROT_READ | PROT_WRITE);
    auto& thread = *process.add_threads();
    thread.set_tid(7);
    user_regs_struct registers{};
    registers.rip = 0x40123;
    registers.rsp = 0x7FF00;
    thread.set_registers(&registers, sizeof registers);
    thread.set_xsave(std::string(832, 'x'));
    process.mutable_layout()->set_auxv(std::string(16, '\0'));
  }

  pb::Mapping* add_mapping(std::uint64_t start, std::uint64_t end, pb::MappingKind kind, const std::string& name,
                           std::uint32_t prot) {
    auto* m = state_.mutable_processes(0)->add_mappings();
    m->set_start(start);
    m->set_end(end);
    m->set_kind(kind);
    m->set_prot(prot);
    m->set_flags(kind == pb::MAPPING_SHARED ? MAP_SHARED : MAP_PRIVATE);
    name[0] == '/' ? m->set_path(name) : m->set_name(name);
    return m;
  }
  void write(std::uint64_t address, std::uint64_t content) { image_[kMemory][address / 4096] = content; }
  Digest digest(std::uint64_t content) { return content == 0 ? Digest::zero_page() : hasher_->page(make_page(content)); }

  void checkpoint() {
    CheckpointRecord r;
    r.workload = "w";
    r.domain = identity_.domain;
    r.seq = ++seq_;
    r.incarnation = 1;
    r.freeze_wall_ns = seq_ * 1'000'000'000;
    pb::Manifest manifest;
    manifest.set_backend("linux");
    manifest.mutable_machine()->set_arch("x86_64");
    manifest.set_state(state_.SerializeAsString());
    r.manifest = manifest.SerializeAsString();
    for (const auto& [id, pages] : image_) {
      ObjectDelta o;
      o.object_id = id;
      o.from_empty = true;
      dedup::PageTable table(identity_.kind);
      for (const auto& [page, content] : pages) {
        table.set(page, digest(content));
        o.changes.push_back({page, digest(content)});
        if (content == 0) continue;
        const Page bytes = make_page(content);
        const PagePut put{digest(content), bytes.data()};
        ASSERT_TRUE(store_->pages().put(identity_.domain, std::span(&put, 1)));
      }
      o.root = table.root(*hasher_);
      r.objects.push_back(std::move(o));
    }
    auto done = store_->commit(r, Durability::kFlushed);
    ASSERT_TRUE(done) << done.error().message();
  }
  struct Difference {
    std::vector<pb::DiffMapping> mappings;
    std::vector<pb::DiffPage> pages;
    pb::DiffSummary summary;
  };
  Difference diff(std::uint64_t a, std::uint64_t b, CompareOptions options = {}) {
    Difference out;
    auto done = compare(*store_, {"w", a}, {"w", b}, options, [&](const pb::DiffPart& part) {
      if (part.has_mapping()) out.mappings.push_back(part.mapping());
      if (part.has_page()) out.pages.push_back(part.page());
      if (part.has_summary()) out.summary = part.summary();
      return true;
    });
    EXPECT_TRUE(done) << done.error().message();
    return out;
  }
  static const pb::AnalyzeCounts* group(const pb::AnalyzeResponse& r, const std::string& by, const std::string& name) {
    for (const auto& g : r.groups()) {
      if (g.by() == by && g.name() == name) return &g.counts();
    }
    return nullptr;
  }

  WorkloadIdentity identity_;
  std::shared_ptr<PageHasher> hasher_;
  pb::LinuxState state_;
  std::map<std::uint64_t, std::map<std::uint64_t, std::uint64_t>> image_;
  std::uint64_t seq_ = 0;
};

TEST_F(InspectTest, Map_FindsTheMappingOfEachPage) {
  checkpoint();
  auto map = MemoryMap::parse(store_->load("w", 1)->manifest);
  ASSERT_TRUE(map);
  EXPECT_EQ(map->find(kMemory, 0x10)->kind, MemoryKind::kHeap);
  EXPECT_EQ(map->find(kMemory, 0x1F)->kind, MemoryKind::kHeap);
  EXPECT_EQ(map->find(kMemory, 0x20), nullptr);
  EXPECT_EQ(map->find(kMemory, 0x41)->kind, MemoryKind::kPrivateFile);
  EXPECT_EQ(map->find(kShared, 1)->name, "memfd:x");
  EXPECT_EQ(map->find(kShared, 1)->address_of(1), 0x61000u);
  EXPECT_EQ(map->find(kShared, 2), nullptr);
  EXPECT_FALSE(MemoryMap::parse("\xFF\xFF not a manifest"));
}

TEST_F(InspectTest, Analyze_CountsEachOriginByKindMappingAndProcess) {
  for (std::uint64_t i = 0; i < 8; ++i) write(0x10000 + i * 4096, 100 + i);
  image_[kShared][0] = 500;
  checkpoint();  // 9 new
  write(0x10000, 0);            // zero
  write(0x11000, 200);          // new
  write(0x12000, 200);          // repeats this one
  write(0x13000, 105);          // repeats an earlier one
  write(0x70000, 300);          // new, on the stack
  image_[kShared][1] = 500;     // repeats an earlier one
  checkpoint();
  auto r = analyze(*store_, "w", {});
  ASSERT_TRUE(r) << r.error().message();
  ASSERT_EQ(r->checkpoints_size(), 2);
  EXPECT_EQ(r->checkpoints(0).against(), 0u);
  EXPECT_EQ(r->checkpoints(0).counts().written(), 9u);
  EXPECT_EQ(r->checkpoints(0).counts().fresh(), 9u);
  const auto& second = r->checkpoints(1).counts();
  EXPECT_EQ(second.written(), 6u);
  EXPECT_EQ(second.zero(), 1u);
  EXPECT_EQ(second.fresh(), 2u);
  EXPECT_EQ(second.intra(), 1u);
  EXPECT_EQ(second.inter(), 2u);
  EXPECT_EQ(r->sum().written(), 15u);
  EXPECT_EQ(r->sum().zero_bytes(), 4096u);
  EXPECT_EQ(r->sum().inter_bytes(), 2u * 4096);
  ASSERT_TRUE(group(*r, "kind", "heap"));
  EXPECT_EQ(group(*r, "kind", "heap")->written(), 12u);
  EXPECT_EQ(group(*r, "kind", "stack")->fresh(), 1u);
  EXPECT_EQ(group(*r, "mapping", "memfd:x")->written(), 2u);
  EXPECT_EQ(group(*r, "process", "7 prog")->written(), 13u);
  // Pages of 512 random bytes and zeros: seven eighths go, and all of them were measured.
  EXPECT_EQ(r->measured_pages(), 11u);
  EXPECT_GT(r->sum().zstd_bytes(), 11u * 4096 * 3 / 4);
  EXPECT_EQ(r->sum().zstd_bytes() + r->sum().left_bytes(), 11u * 4096);
  // A range of its own: what was there before it is known, not new.
  AnalyzeOptions only;
  only.first_seq = only.last_seq = 2;
  r = analyze(*store_, "w", only);
  ASSERT_TRUE(r);
  ASSERT_EQ(r->checkpoints_size(), 1);
  EXPECT_EQ(r->checkpoints(0).against(), 1u);
  EXPECT_EQ(r->sum().inter(), 2u);
  EXPECT_EQ(r->sum().fresh(), 2u);
  only.first_seq = 7, only.last_seq = 9;
  EXPECT_EQ(analyze(*store_, "w", only).error().code, Code::kNotFound);
}

TEST_F(InspectTest, Analyze_MeasuresWhatDeltasSave) {
  for (std::uint64_t i = 0; i < 16; ++i) write(0x10000 + i * 4096, 100 + i);
  checkpoint();
  // Nearly the same content: a delta is much smaller than the page's 512 random bytes.
  for (std::uint64_t i = 0; i < 16; ++i) {
    Page page = make_page(100 + i);
    page[9] ^= std::byte{1};
    const Digest changed = hasher_->page(page);
    const PagePut put{changed, page.data()};
    ASSERT_TRUE(store_->pages().put(identity_.domain, std::span(&put, 1)));
  }
  CheckpointRecord r;
  r.workload = "w";
  r.domain = identity_.domain;
  r.seq = 2;
  r.incarnation = 1;
  r.parent_seq = 1;
  r.manifest = store_->load("w", 1)->manifest;
  ObjectDelta o;
  o.object_id = kMemory;
  auto table = store_->load("w", 1)->objects.at(kMemory);
  for (std::uint64_t i = 0; i < 16; ++i) {
    Page page = make_page(100 + i);
    page[9] ^= std::byte{1};
    o.changes.push_back({0x10 + i, hasher_->page(page)});
  }
  table.apply(o.changes);
  o.root = table.root(*hasher_);
  r.objects.push_back(o);
  ASSERT_TRUE(store_->commit(r, Durability::kFlushed));
  AnalyzeOptions only;
  only.first_seq = only.last_seq = 2;
  auto analysed = analyze(*store_, "w", only);
  ASSERT_TRUE(analysed);
  EXPECT_EQ(analysed->sum().fresh(), 16u);
  EXPECT_GT(analysed->sum().delta_bytes(), analysed->sum().left_bytes() / 2);
  EXPECT_LT(analysed->sum().delta_bytes(), analysed->sum().left_bytes());
}

TEST_F(InspectTest, Diff_TellsMappingsPagesAndBytes) {
  write(0x10000, 1), write(0x11000, 2), write(0x41000, 3), write(0x70000, 4);
  checkpoint();
  write(0x10000, 9);                          // changed
  image_[kMemory].erase(0x11);                // gone
  write(0x12000, 5);                          // there for the first time
  auto* process = state_.mutable_processes(0);
  process->mutable_mappings(0)->set_end(0x22000);  // the heap has grown
  process->mutable_mappings()->DeleteSubrange(2, 1);  // the memfd is no longer mapped
  add_mapping(0x90000, 0x91000, pb::MAPPING_ANONYMOUS, "[anon:new]", PROT_READ);
  process->add_descriptors()->set_number(5);
  process->add_threads()->set_tid(8);
  checkpoint();
  CompareOptions options;
  options.max_pages = 10;
  options.content = true;
  const Difference d = diff(1, 2, options);
  std::map<std::string, pb::DiffMapping> by_name;
  for (const auto& m : d.mappings) by_name[m.name()] = m;
  EXPECT_EQ(by_name.at("[heap]").change(), "changed");
  EXPECT_EQ(by_name.at("[heap]").detail(), "was 10000-20000");
  EXPECT_EQ(by_name.at("[heap]").pages_changed(), 1u);
  EXPECT_EQ(by_name.at("[heap]").pages_added(), 1u);
  EXPECT_EQ(by_name.at("[heap]").pages_removed(), 1u);
  EXPECT_EQ(by_name.at("memfd:x").change(), "removed");
  EXPECT_EQ(by_name.at("[anon:new]").change(), "added");
  EXPECT_EQ(by_name.count("/bin/prog"), 0u) << "nothing in it differs";
  EXPECT_EQ(by_name.count("[stack]"), 0u);
  ASSERT_EQ(d.pages.size(), 3u);
  EXPECT_EQ(d.pages[0].address(), 0x10000u);
  EXPECT_EQ(d.pages[0].change(), "changed");
  const Page before = make_page(1), after = make_page(9);
  std::uint32_t differ = 0;
  for (std::size_t i = 0; i < before.size(); ++i) differ += before[i] != after[i];
  EXPECT_EQ(d.pages[0].bytes_differ(), differ);
  ASSERT_EQ(d.pages[0].runs_size(), 32);
  EXPECT_EQ(std::memcmp(d.pages[0].runs(1).before().data(), before.data() + 16, 16), 0);
  EXPECT_EQ(std::memcmp(d.pages[0].runs(1).after().data(), after.data() + 16, 16), 0);
  EXPECT_EQ(d.pages[1].change(), "removed");
  EXPECT_EQ(d.pages[2].change(), "added");
  EXPECT_EQ(d.summary.pages_changed() + d.summary.pages_added() + d.summary.pages_removed(), 3u);
  ASSERT_EQ(d.summary.state_size(), 2);
  EXPECT_EQ(d.summary.state(0), "process 7 prog: 1 threads, now 2");
  EXPECT_EQ(d.summary.state(1), "process 7 prog: descriptors opened: 5");
  // The same one twice: nothing.
  const Difference none = diff(2, 2, options);
  EXPECT_TRUE(none.mappings.empty());
  EXPECT_TRUE(none.pages.empty());
  EXPECT_EQ(none.summary.state_size(), 0);
}

TEST_F(InspectTest, Diff_OfWhatIsNotThereOrNotComparable_IsRefused) {
  checkpoint();
  auto sink = [](const pb::DiffPart&) { return true; };
  EXPECT_EQ(compare(*store_, {"w", 1}, {"w", 5}, {}, sink).error().code, Code::kNotFound);
  WorkloadIdentity other = identity_;
  other.workload = "v";
  other.domain.bytes.fill(std::byte{2});
  ASSERT_TRUE(store_->add_workload(other));
  EXPECT_FALSE(compare(*store_, {"w", 1}, {"v", 1}, {}, sink));
}

TEST_F(InspectTest, Core_HoldsThreadsMappingsAndEveryPage) {
  write(0x10000, 1), write(0x1F000, 2), write(0x41000, 3), write(0x43000, 4), write(0x7F000, 5), write(0x11000, 0);
  image_[kShared][1] = 6;
  checkpoint();
  std::string file;
  std::uint64_t last = 0;
  auto summary = write_core(*store_, "w", 1, 0, [&](std::uint64_t at, std::span<const std::byte> bytes) -> Result<void> {
    EXPECT_GE(at, last);
    last = at + bytes.size();
    if (file.size() < last) file.resize(last);
    std::memcpy(file.data() + at, bytes.data(), bytes.size());
    return {};
  });
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->pages, 6u);
  EXPECT_EQ(summary->mappings, 4u);
  file.resize(summary->file_bytes);
  Elf64_Ehdr elf;
  std::memcpy(&elf, file.data(), sizeof elf);
  ASSERT_EQ(std::memcmp(elf.e_ident, ELFMAG, SELFMAG), 0);
  EXPECT_EQ(elf.e_type, ET_CORE);
  std::vector<Elf64_Phdr> headers(elf.e_phnum);
  std::memcpy(headers.data(), file.data() + elf.e_phoff, headers.size() * sizeof(Elf64_Phdr));
  auto read = [&](std::uint64_t address) -> const char* {
    for (const auto& h : headers) {
      if (h.p_type == PT_LOAD && address >= h.p_vaddr && address < h.p_vaddr + h.p_filesz) {
        return file.data() + h.p_offset + (address - h.p_vaddr);
      }
    }
    return nullptr;
  };
  for (const auto& [address, content] : std::map<std::uint64_t, std::uint64_t>{
           {0x10000, 1}, {0x1F000, 2}, {0x41000, 3}, {0x43000, 4}, {0x7F000, 5}, {0x61000, 6}}) {
    ASSERT_NE(read(address), nullptr) << std::hex << address;
    EXPECT_EQ(std::memcmp(read(address), make_page(content).data(), 4096), 0) << std::hex << address;
  }
  EXPECT_EQ(std::memcmp(read(0x11000), Page{}.data(), 4096), 0);
  EXPECT_EQ(read(0x42000), nullptr) << "unchanged: the file itself is read";
  std::uint64_t covered = 0;
  for (const auto& h : headers) covered += h.p_type == PT_LOAD ? h.p_memsz : 0;
  EXPECT_EQ(covered, 0x10000u + 0x4000 + 0x2000 + 0x10000);
  // The first note is the leader's registers.
  const char* note = file.data() + headers[0].p_offset;
  std::uint32_t name_bytes, bytes, type;
  std::memcpy(&name_bytes, note, 4);
  std::memcpy(&bytes, note + 4, 4);
  std::memcpy(&type, note + 8, 4);
  EXPECT_EQ(type, static_cast<std::uint32_t>(NT_PRSTATUS));
  ASSERT_EQ(bytes, sizeof(elf_prstatus));
  elf_prstatus status;
  std::memcpy(&status, note + 12 + ((name_bytes + 3) & ~3u), sizeof status);
  user_regs_struct registers;
  std::memcpy(&registers, &status.pr_reg, sizeof registers);
  EXPECT_EQ(status.pr_pid, 7);
  EXPECT_EQ(registers.rip, 0x40123u);
  EXPECT_EQ(write_core(*store_, "w", 1, 99, [](auto, auto) -> Result<void> { return {}; }).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace baton::storage
