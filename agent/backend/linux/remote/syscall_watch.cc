#include "agent/backend/linux/remote/syscall_watch.h"

#include <linux/bpf.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bitset>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "agent/backend/linux/remote/arch/arch.h"
#include "base/fd.h"

namespace baton::linux_backend {
namespace {

// kWhenDone: nothing has happened until the call succeeds; then it counts as kOther. These are
// calls that wait, and that a freeze interrupts and the kernel begins anew.
enum Kind : std::uint8_t { kHarmless = 0, kMapping = 1, kTransfer = 2, kOther = 3, kWhenDone = 4 };
constexpr std::uint32_t kNumbers = 512;           // system call numbers that have a kind; beyond: kOther
constexpr std::uint32_t kKinds = 8;               // counters of one watch; a cache line
constexpr std::size_t kCounterBytes = SyscallWatch::kMaxWatches * kKinds * sizeof(std::uint64_t);

// Calls that are not in these lists are kOther.
//
// Harmless: the registers, the blocked and the pending signals are read in every freeze, memory
// is tracked; nothing else changes by these.
constexpr long kHarmlessCalls[] = {
    SYS_nanosleep, SYS_clock_nanosleep, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_times,
    SYS_getpid, SYS_getppid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid,
    SYS_getresgid, SYS_getgroups, SYS_getpgid, SYS_getsid, SYS_getcwd, SYS_getcpu, SYS_getrandom,
    SYS_getrusage, SYS_getpriority, SYS_getitimer, SYS_getrlimit, SYS_sysinfo, SYS_uname, SYS_sched_yield,
    SYS_sched_getaffinity, SYS_sched_getparam, SYS_sched_getscheduler, SYS_sched_get_priority_max,
    SYS_sched_get_priority_min, SYS_futex, SYS_rt_sigprocmask, SYS_rt_sigpending, SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_kill, SYS_tkill, SYS_tgkill,
    SYS_restart_syscall, SYS_mincore, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_statfs, SYS_fstatfs,
    SYS_faccessat, SYS_readlinkat, SYS_process_vm_readv, SYS_ppoll, SYS_pselect6, SYS_getpeername,
    SYS_getsockname, SYS_getsockopt, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timerfd_gettime,
#ifdef SYS_poll
    SYS_poll, SYS_select, SYS_pause, SYS_time, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getpgrp,
#endif
};
constexpr long kMappingCalls[] = {
    SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_brk, SYS_madvise, SYS_mlock, SYS_munlock, SYS_msync,
};
// epoll_wait: it disarms EPOLLONESHOT entries.
constexpr long kTransferCalls[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2,
    SYS_pwritev2, SYS_lseek, SYS_sendto, SYS_recvfrom, SYS_sendmmsg, SYS_sendfile, SYS_splice, SYS_tee,
    SYS_copy_file_range, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
    SYS_epoll_wait,
#endif
};

// recvmsg may bring descriptors, wait4 takes a zombie away.
constexpr long kWhenDoneCalls[] = {SYS_accept, SYS_accept4, SYS_recvmsg, SYS_recvmmsg, SYS_wait4, SYS_waitid};

std::array<std::uint8_t, kNumbers> kinds_of_calls() {
  std::array<std::uint8_t, kNumbers> kinds;
  kinds.fill(kOther);
  for (long n : kHarmlessCalls) kinds[static_cast<std::size_t>(n)] = kHarmless;
  for (long n : kMappingCalls) kinds[static_cast<std::size_t>(n)] = kMapping;
  for (long n : kTransferCalls) kinds[static_cast<std::size_t>(n)] = kTransfer;
  for (long n : kWhenDoneCalls) kinds[static_cast<std::size_t>(n)] = kWhenDone;
  return kinds;
}

Result<long> bpf(int command, bpf_attr& attr, const char* what) {
  long answer = ::syscall(SYS_bpf, command, &attr, sizeof attr);
  if (answer >= 0) return answer;
  return Error{Code::kUnsupported, errno, what, "system calls cannot be watched here", ""};
}

std::uint64_t pointer(const void* p) { return reinterpret_cast<std::uint64_t>(p); }

Result<Fd> make_map(std::uint32_t type, std::uint32_t key, std::size_t value, std::uint32_t entries, std::uint32_t flags) {
  bpf_attr attr{};
  attr.map_type = type;
  attr.key_size = key;
  attr.value_size = static_cast<std::uint32_t>(value);
  attr.max_entries = entries;
  attr.map_flags = flags;
  BATON_ASSIGN(long fd, bpf(BPF_MAP_CREATE, attr, "make a BPF map"));
  return Fd::adopt(static_cast<int>(fd));
}

// A small assembler: forward jumps to labels, filled in at the end.
class Assembler {
 public:
  enum Label { kCount, kIsOther, kEnd, kLabels };
  void op(int code, int dst, int src, int offset, int immediate) {
    bpf_insn i{};
    i.code = static_cast<std::uint8_t>(code);
    i.dst_reg = static_cast<std::uint8_t>(dst & 15);
    i.src_reg = static_cast<std::uint8_t>(src & 15);
    i.off = static_cast<std::int16_t>(offset);
    i.imm = immediate;
    code_.push_back(i);
  }
  void jump(int code, int dst, int immediate, Label to) {
    jumps_.push_back({code_.size(), to});
    op(BPF_JMP | code, dst, 0, 0, immediate);
  }
  void here(Label label) { at_[label] = code_.size(); }
  void move(int dst, int src) { op(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0); }
  void set(int dst, int immediate) { op(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, immediate); }
  void add(int dst, int immediate) { op(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, immediate); }
  void load(int size, int dst, int src, int offset) { op(BPF_LDX | size | BPF_MEM, dst, src, offset, 0); }
  void store(int size, int dst, int offset, int src) { op(BPF_STX | size | BPF_MEM, dst, src, offset, 0); }
  void call(int helper) { op(BPF_JMP | BPF_CALL, 0, 0, 0, helper); }
  void map(int dst, int fd) { wide(dst, BPF_PSEUDO_MAP_FD, fd); }
  void map_value(int dst, int fd) { wide(dst, BPF_PSEUDO_MAP_VALUE, fd); }
  std::vector<bpf_insn> finish() {
    for (const auto& [from, to] : jumps_) code_[from].off = static_cast<std::int16_t>(at_[to] - from - 1);
    return std::move(code_);
  }

 private:
  void wide(int dst, int kind, int fd) {
    op(BPF_LD | BPF_DW | BPF_IMM, dst, kind, 0, fd);
    op(0, 0, 0, 0, 0);
  }
  std::vector<bpf_insn> code_;
  std::vector<std::pair<std::size_t, Label>> jumps_;
  std::array<std::size_t, kLabels> at_{};
};

// Both programs. Registers: r6 context, r7 second argument, r8 slot, r9 kind.
void begin_program(Assembler& c, int slots) {
  c.call(BPF_FUNC_get_current_cgroup_id);
  c.store(BPF_DW, 10, -8, 0);
  c.move(2, 10);
  c.add(2, -8);
  c.map(1, slots);
  c.call(BPF_FUNC_map_lookup_elem);
  c.jump(BPF_JEQ | BPF_K, 0, 0, Assembler::kEnd);
  c.load(BPF_W, 8, 0, 0);
}

// r9 = the kind of number r7, which is below kNumbers.
void look_up_kind(Assembler& c, int kinds) {
  c.map_value(1, kinds);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 7, 0, 0);
  c.load(BPF_B, 9, 1, 0);
}

// Reads 8 bytes of the pt_regs, whose address the context begins with, to the stack at -24; not 0
// in r0: it failed.
void read_saved(Assembler& c, std::size_t offset) {
  c.load(BPF_DW, 3, 6, 0);
  c.add(3, static_cast<int>(offset));
  c.move(1, 10);
  c.add(1, -24);
  c.set(2, 8);
  c.call(BPF_FUNC_probe_read_kernel);
}

void end_program(Assembler& c, int counters) {
  c.here(Assembler::kCount);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 8, 0, 0, static_cast<int>(SyscallWatch::kMaxWatches - 1));
  c.op(BPF_ALU64 | BPF_LSH | BPF_K, 8, 0, 0, 6);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 9, 0, 0, static_cast<int>(kKinds - 1));
  c.op(BPF_ALU64 | BPF_LSH | BPF_K, 9, 0, 0, 3);
  c.map_value(1, counters);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 8, 0, 0);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 9, 0, 0);
  c.set(2, 1);
  c.op(BPF_STX | BPF_DW | BPF_ATOMIC, 1, 2, 0, BPF_ADD);
  c.here(Assembler::kEnd);
  c.set(0, 0);
  c.op(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

// sys_enter(struct pt_regs* regs, long number): one more in the counter of the number's kind.
std::vector<bpf_insn> enter_program(int slots, int kinds, int counters) {
  Assembler c;
  c.move(6, 1);
  c.load(BPF_DW, 7, 1, 8);
  begin_program(c, slots);
  c.set(9, kOther);
  c.jump(BPF_JGE | BPF_K, 7, static_cast<int>(kNumbers), Assembler::kCount);
  look_up_kind(c, kinds);
  if (std::uint16_t expected = arch::call_instruction(); expected != 0) {
    // Entered by another instruction than this architecture's own (int 0x80), the number means
    // another call.
    read_saved(c, arch::instruction_pointer_offset());
    c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
    c.load(BPF_DW, 3, 10, -24);
    c.add(3, -2);
    c.store(BPF_DW, 10, -32, 0);
    c.move(1, 10);
    c.add(1, -32);
    c.set(2, 2);
    c.call(BPF_FUNC_probe_read_user);
    c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
    c.load(BPF_H, 1, 10, -32);
    c.jump(BPF_JEQ | BPF_K, 1, expected, Assembler::kCount);
    c.here(Assembler::kIsOther);
    c.set(9, kOther);
  }
  end_program(c, counters);
  return c.finish();
}

// sys_exit(struct pt_regs* regs, long answer): a kWhenDone call that has succeeded is one more kOther.
std::vector<bpf_insn> exit_program(int slots, int kinds, int counters) {
  Assembler c;
  c.move(6, 1);
  c.load(BPF_DW, 7, 1, 8);
  c.jump(BPF_JSLT | BPF_K, 7, 0, Assembler::kEnd);
  begin_program(c, slots);
  read_saved(c, arch::call_number_offset());
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kEnd);
  c.load(BPF_DW, 7, 10, -24);
  c.jump(BPF_JGE | BPF_K, 7, static_cast<int>(kNumbers), Assembler::kEnd);
  look_up_kind(c, kinds);
  c.jump(BPF_JNE | BPF_K, 9, kWhenDone, Assembler::kEnd);
  c.set(9, kOther);
  end_program(c, counters);
  return c.finish();
}

// sched_process_exit(struct task_struct* task, …), in the task itself: the end of a thread is one
// more kOther. Killed from outside it makes no call, and its number may be given to another.
std::vector<bpf_insn> end_of_thread_program(int slots, int counters) {
  Assembler c;
  begin_program(c, slots);
  c.set(9, kOther);
  end_program(c, counters);
  return c.finish();
}

Result<Fd> load_program(const std::vector<bpf_insn>& code) {
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
  attr.insns = pointer(code.data());
  attr.insn_cnt = static_cast<std::uint32_t>(code.size());
  attr.license = pointer("GPL");     // the helpers that read memory ask for it
  BATON_ASSIGN(long program, bpf(BPF_PROG_LOAD, attr, "load a BPF program"));
  return Fd::adopt(static_cast<int>(program));
}

Result<Fd> attach_to(const char* tracepoint, const Fd& program) {
  bpf_attr attr{};
  attr.raw_tracepoint.name = pointer(tracepoint);
  attr.raw_tracepoint.prog_fd = static_cast<std::uint32_t>(program.get());
  BATON_ASSIGN(long link, bpf(BPF_RAW_TRACEPOINT_OPEN, attr, "attach to a tracepoint"));
  return Fd::adopt(static_cast<int>(link));
}

}  // namespace

struct SyscallWatch::Program {
  Fd slots, kinds, counters, enter, exit, end, enter_link, exit_link, end_link;
  std::uint64_t* counts = nullptr;     // the counters, mapped
  std::mutex mutex;
  std::bitset<kMaxWatches> used;

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (counts != nullptr) ::munmap(counts, kCounterBytes);
  }

  static Result<std::shared_ptr<Program>> load() {
    auto p = std::make_shared<Program>();
    BATON_ASSIGN(p->slots, make_map(BPF_MAP_TYPE_HASH, 8, 4, kMaxWatches, 0));
    BATON_ASSIGN(p->kinds, make_map(BPF_MAP_TYPE_ARRAY, 4, kNumbers, 1, 0));
    BATON_ASSIGN(p->counters, make_map(BPF_MAP_TYPE_ARRAY, 4, kCounterBytes, 1, BPF_F_MMAPABLE));
    std::uint32_t zero = 0;
    auto table = kinds_of_calls();
    bpf_attr attr{};
    attr.map_fd = static_cast<std::uint32_t>(p->kinds.get());
    attr.key = pointer(&zero);
    attr.value = pointer(table.data());
    BATON_TRY(bpf(BPF_MAP_UPDATE_ELEM, attr, "fill a BPF map"));
    void* at = ::mmap(nullptr, kCounterBytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->counters.get(), 0);
    if (at == MAP_FAILED) {
      return Error{Code::kUnsupported, errno, "map BPF counters", "system calls cannot be watched here", ""};
    }
    p->counts = static_cast<std::uint64_t*>(at);
    const int slots_fd = p->slots.get(), kinds_fd = p->kinds.get(), counters_fd = p->counters.get();
    BATON_ASSIGN(p->enter, load_program(enter_program(slots_fd, kinds_fd, counters_fd)));
    BATON_ASSIGN(p->exit, load_program(exit_program(slots_fd, kinds_fd, counters_fd)));
    BATON_ASSIGN(p->end, load_program(end_of_thread_program(slots_fd, counters_fd)));
    BATON_ASSIGN(p->end_link, attach_to("sched_process_exit", p->end));
    BATON_ASSIGN(p->exit_link, attach_to("sys_exit", p->exit));
    BATON_ASSIGN(p->enter_link, attach_to("sys_enter", p->enter));
    return p;
  }

  static Result<std::shared_ptr<Program>> shared() {
    static std::mutex one;
    static std::weak_ptr<Program> current;
    std::lock_guard lock(one);
    if (auto p = current.lock()) return p;
    BATON_ASSIGN(auto p, load());
    current = p;
    return p;
  }
};

Result<std::unique_ptr<SyscallWatch>> SyscallWatch::begin(const std::string& cgroup) {
  struct stat st {};
  struct statfs fs {};
  // Anything else has no cgroup id: nobody's calls would be counted, and all would seem unchanged.
  if (cgroup.empty() || ::stat(cgroup.c_str(), &st) != 0 || ::statfs(cgroup.c_str(), &fs) != 0 ||
      fs.f_type != CGROUP2_SUPER_MAGIC) {
    return make_error(Code::kUnsupported, "watch system calls", "'" + cgroup + "' is no cgroup v2 folder");
  }
  BATON_ASSIGN(auto program, Program::shared());
  std::lock_guard lock(program->mutex);
  std::uint32_t slot = 0;
  while (slot < kMaxWatches && program->used[slot]) ++slot;
  if (slot == kMaxWatches) return make_error(Code::kNoSpace, "watch system calls", "256 workloads are watched already");
  std::memset(program->counts + slot * kKinds, 0, kKinds * sizeof(std::uint64_t));
  std::uint64_t id = st.st_ino;      // of a cgroup v2 folder: its id
  bpf_attr attr{};
  attr.map_fd = static_cast<std::uint32_t>(program->slots.get());
  attr.key = pointer(&id);
  attr.value = pointer(&slot);
  attr.flags = BPF_NOEXIST;          // a second watch would blind the first
  BATON_TRY(bpf(BPF_MAP_UPDATE_ELEM, attr, "watch a cgroup"));
  program->used[slot] = true;
  return std::unique_ptr<SyscallWatch>(new SyscallWatch(program, id, slot));
}

SyscallWatch::~SyscallWatch() {
  std::lock_guard lock(program_->mutex);
  bpf_attr attr{};
  attr.map_fd = static_cast<std::uint32_t>(program_->slots.get());
  attr.key = pointer(&cgroup_id_);
  (void)::syscall(SYS_bpf, BPF_MAP_DELETE_ELEM, &attr, sizeof attr);
  program_->used[slot_] = false;
}

SyscallWatch::Counts SyscallWatch::read() const {
  auto at = [&](Kind kind) {
    return std::atomic_ref<std::uint64_t>(program_->counts[slot_ * kKinds + kind]).load(std::memory_order_acquire);
  };
  return {at(kHarmless), at(kMapping), at(kTransfer), at(kOther)};
}

Result<void> probe_syscall_watch() {
  BATON_TRY(SyscallWatch::Program::load());
  return {};
}

}  // namespace baton::linux_backend
