#include "agent/backend/linux/remote/syscall_watch.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
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

// k…WhenDone: nothing has happened until the call succeeds; then it counts as kDescriptor or kOther.
// These are calls that wait, and that a freeze interrupts and the kernel begins anew. kCommand: the
// second argument tells (ioctl, fcntl).
enum Kind : std::uint8_t { kHarmless = 0, kMapping = 1, kTransfer = 2, kOther = 3, kDescriptor = 4, kDescriptorWhenDone = 5, kOtherWhenDone = 6, kCommand = 7 };
// Beside the kind: which arguments are descriptors that it is about, and that it opens a file by
// its name.
constexpr std::uint8_t kFirst = 0x10, kSecond = 0x20, kThird = 0x40, kOpens = 0x08;
constexpr std::uint32_t kCallNumbers = 512;       // system call numbers that have a kind; beyond: kOther
constexpr std::uint32_t kKinds = 8;               // counters of one watch; a cache line
constexpr std::size_t kCounterBytes = SyscallWatch::kMaxWatches * kKinds * sizeof(std::uint64_t);
constexpr std::size_t kNotesOfOne = 2 * SyscallWatch::kNumbers;   // a byte each: moved, then altered
constexpr std::size_t kNotesBytes = SyscallWatch::kMaxWatches * kNotesOfOne;

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
    SYS_getsockname, SYS_getsockopt, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timerfd_gettime, SYS_fadvise64,
#ifdef SYS_poll
    SYS_poll, SYS_select, SYS_pause, SYS_time, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getpgrp,
#endif
};
constexpr long kMappingCalls[] = {
    SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_brk, SYS_madvise, SYS_mlock, SYS_munlock, SYS_msync,
};
// epoll_wait: it disarms EPOLLONESHOT entries. Sent descriptors are found in the queue.
constexpr long kTransferCalls[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2,
    SYS_pwritev2, SYS_lseek, SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_sendmmsg, SYS_vmsplice, SYS_getdents64,
    SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_ftruncate, SYS_epoll_pwait,
#ifdef SYS_epoll_wait
    SYS_epoll_wait, SYS_getdents,
#endif
#ifdef SYS_epoll_pwait2
    SYS_epoll_pwait2,
#endif
};
// Make new numbers, which a look at the table finds. Not so those that make one more of a
// description that is there (dup, pidfd_getfd, a received descriptor): by a number that is gone
// again it may have been changed.
constexpr long kOpeningCalls[] = {
    SYS_socket, SYS_socketpair, SYS_pipe2, SYS_eventfd2, SYS_timerfd_create, SYS_epoll_create1,
    SYS_inotify_init1, SYS_memfd_create,
#ifdef SYS_open
    SYS_pipe, SYS_eventfd, SYS_epoll_create, SYS_inotify_init,
#endif
#ifdef SYS_pidfd_open
    SYS_pidfd_open,
#endif
};
constexpr long kAlteringCalls[] = {
    SYS_close, SYS_setsockopt, SYS_shutdown, SYS_bind, SYS_listen, SYS_connect, SYS_flock, SYS_epoll_ctl,
    SYS_timerfd_settime, SYS_inotify_add_watch, SYS_inotify_rm_watch, SYS_signalfd4,
#ifdef SYS_signalfd
    SYS_signalfd,
#endif
};
constexpr long kAcceptingCalls[] = {SYS_accept, SYS_accept4};
// The first two take zombies away, the others may bring descriptors; recvmsg does so only if it
// brings something beside the data.
constexpr long kWaitingCalls[] = {SYS_wait4, SYS_waitid, SYS_recvmsg, SYS_recvmmsg};

std::array<std::uint8_t, kCallNumbers> kinds_of_calls() {
  std::array<std::uint8_t, kCallNumbers> kinds;
  kinds.fill(kOther);
  auto put = [&](auto& calls, int kind) {
    for (long n : calls) kinds[static_cast<std::size_t>(n)] = static_cast<std::uint8_t>(kind);
  };
  put(kHarmlessCalls, kHarmless);
  put(kMappingCalls, kMapping);
  put(kTransferCalls, kTransfer | kFirst);
  put(kOpeningCalls, kDescriptor);
  put(kAlteringCalls, kDescriptor | kFirst);
  put(kAcceptingCalls, kDescriptorWhenDone | kFirst);
  put(kWaitingCalls, kOtherWhenDone);
  for (long n : {SYS_recvmsg, SYS_recvmmsg}) kinds[static_cast<std::size_t>(n)] |= kFirst;
  for (long n : {SYS_sendfile, SYS_tee}) kinds[static_cast<std::size_t>(n)] = kTransfer | kFirst | kSecond;
  for (long n : {SYS_splice, SYS_copy_file_range}) kinds[static_cast<std::size_t>(n)] = kTransfer | kFirst | kThird;
  kinds[SYS_openat] = kDescriptor | kOpens;
#ifdef SYS_open
  kinds[SYS_open] = kDescriptor | kOpens;
#endif
  for (long n : {SYS_ioctl, SYS_fcntl}) kinds[static_cast<std::size_t>(n)] = kCommand | kFirst;
  return kinds;
}

// Of ioctl(2) and fcntl(2), whose numbers do not meet; others are kOther.
constexpr std::uint32_t kHarmlessCommands[] = {FIONREAD, TIOCOUTQ, TCGETS, TIOCGWINSZ, TIOCGPGRP, F_GETFD, F_GETFL, F_GETLK, F_OFD_GETLK, F_GETOWN, F_GETPIPE_SZ};
constexpr std::uint32_t kAlteringCommands[] = {FIONBIO, FIOASYNC, FIOCLEX, FIONCLEX, F_SETFD, F_SETFL, F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW};
constexpr std::size_t kControlLength = offsetof(msghdr, msg_controllen);

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
  enum Label { kCount, kIsOther, kIsHarmless, kIsDescriptor, kIsNoOpen, kOpenAt, kName, kFirstDone, kSecondDone, kThirdDone, kEnd, kLabels };
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

// All programs. Registers: r6 context, r7 second argument, r8 slot, r9 kind. Stack: -8 cgroup,
// -24 what was read of the pt_regs, -32 of the program, -40 the entry in the table of kinds.
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

// r9 = the kind of number r7, which is below kCallNumbers; at -40 the whole entry.
void look_up_kind(Assembler& c, int kinds) {
  c.map_value(1, kinds);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 7, 0, 0);
  c.load(BPF_B, 9, 1, 0);
  c.store(BPF_DW, 10, -40, 9);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 9, 0, 0, static_cast<int>(kKinds - 1));
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

// Reads `bytes` of the program's memory, `from` bytes behind the address at -24, to -32; not 0 in
// r0: it failed.
void read_pointed_at(Assembler& c, int from, int bytes) {
  c.load(BPF_DW, 3, 10, -24);
  c.add(3, from);
  c.move(1, 10);
  c.add(1, -32);
  c.set(2, bytes);
  c.call(BPF_FUNC_probe_read_user);
}

// One more in counter r9 of slot r8, which becomes the slot times 64.
void count(Assembler& c, int counters) {
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 8, 0, 0, static_cast<int>(SyscallWatch::kMaxWatches - 1));
  c.op(BPF_ALU64 | BPF_LSH | BPF_K, 8, 0, 0, 6);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 9, 0, 0, static_cast<int>(kKinds - 1));
  c.move(3, 9);
  c.op(BPF_ALU64 | BPF_LSH | BPF_K, 3, 0, 0, 3);
  c.map_value(1, counters);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 8, 0, 0);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 3, 0, 0);
  c.set(2, 1);
  c.op(BPF_STX | BPF_DW | BPF_ATOMIC, 1, 2, 0, BPF_ADD);
}

void end_program(Assembler& c) {
  c.here(Assembler::kEnd);
  c.set(0, 0);
  c.op(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
}

// Notes the argument at `offset` of the pt_regs, if the entry says that it is a descriptor. r8 is
// the slot times 64, r9 the kind.
void note_argument(Assembler& c, int notes, int bit, std::size_t offset, Assembler::Label done) {
  c.load(BPF_DW, 1, 10, -40);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, bit);
  c.jump(BPF_JEQ | BPF_K, 1, 0, done);
  read_saved(c, offset);
  c.jump(BPF_JNE | BPF_K, 0, 0, done);
  c.load(BPF_DW, 2, 10, -24);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, static_cast<int>(SyscallWatch::kNumbers - 1));
  c.move(3, 8);
  static_assert(kNotesOfOne == 64 << 5);
  c.op(BPF_ALU64 | BPF_LSH | BPF_K, 3, 0, 0, 5);
  c.map_value(1, notes);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 3, 0, 0);
  c.op(BPF_ALU64 | BPF_ADD | BPF_X, 1, 2, 0, 0);
  c.set(2, 1);
  // The notes of what has moved come first, those of what was altered behind them.
  c.op(BPF_JMP | BPF_JNE | BPF_K, 9, 0, 2, kDescriptor);
  c.op(BPF_STX | BPF_B | BPF_MEM, 1, 2, SyscallWatch::kNumbers, 0);
  c.op(BPF_JMP | BPF_JA, 0, 0, 1, 0);
  c.op(BPF_STX | BPF_B | BPF_MEM, 1, 2, 0, 0);
  c.here(done);
}

// A file that is opened for writing counts as kOther if it may be one of /proc, by which a process
// changes more than files (oom_score_adj, comm): by its name, or when it has no absolute one.
void look_up_name(Assembler& c) {
  c.load(BPF_DW, 1, 10, -40);
  c.op(BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, kOpens);
  c.jump(BPF_JEQ | BPF_K, 1, 0, Assembler::kIsNoOpen);
  auto of_arguments = [&](unsigned name, unsigned flags) {
    read_saved(c, arch::argument_offset(flags));
    c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
    c.load(BPF_W, 1, 10, -24);
    c.op(BPF_ALU64 | BPF_AND | BPF_K, 1, 0, 0, O_ACCMODE);
    c.jump(BPF_JEQ | BPF_K, 1, O_RDONLY, Assembler::kCount);
    read_saved(c, arch::argument_offset(name));
  };
#ifdef SYS_open
  c.jump(BPF_JNE | BPF_K, 7, static_cast<int>(SYS_open), Assembler::kOpenAt);
  of_arguments(0, 1);
  c.jump(BPF_JA, 0, 0, Assembler::kName);
#endif
  c.here(Assembler::kOpenAt);
  of_arguments(1, 2);
  c.here(Assembler::kName);
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
  read_pointed_at(c, 0, 4);
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
  c.load(BPF_W, 1, 10, -32);
  for (const char* window : {"/pro", "/sys", "/dev"}) {
    std::int32_t beginning = 0;
    std::memcpy(&beginning, window, sizeof beginning);
    c.jump(BPF_JEQ | BPF_K, 1, beginning, Assembler::kIsOther);
  }
  c.load(BPF_B, 1, 10, -32);
  c.jump(BPF_JNE | BPF_K, 1, '/', Assembler::kIsOther);
  c.jump(BPF_JA, 0, 0, Assembler::kCount);
  c.here(Assembler::kIsNoOpen);
}

// Which kind an ioctl or fcntl is; the command is 32 bits wide.
void look_up_command(Assembler& c) {
  c.jump(BPF_JNE | BPF_K, 9, kCommand, Assembler::kCount);
  read_saved(c, arch::argument_offset(1));
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
  c.load(BPF_W, 1, 10, -24);
  for (std::uint32_t request : kHarmlessCommands) c.jump(BPF_JEQ | BPF_K, 1, static_cast<int>(request), Assembler::kIsHarmless);
  for (std::uint32_t request : kAlteringCommands) c.jump(BPF_JEQ | BPF_K, 1, static_cast<int>(request), Assembler::kIsDescriptor);
}

// sys_enter(struct pt_regs* regs, long number): one more in the counter of the number's kind, and
// a note of each descriptor that it is about.
std::vector<bpf_insn> enter_program(int slots, int kinds, int counters, int notes) {
  Assembler c;
  c.move(6, 1);
  c.load(BPF_DW, 7, 1, 8);
  begin_program(c, slots);
  c.set(9, kOther);
  c.op(BPF_ST | BPF_DW | BPF_MEM, 10, 0, -40, kOther);
  c.jump(BPF_JGE | BPF_K, 7, static_cast<int>(kCallNumbers), Assembler::kCount);
  look_up_kind(c, kinds);
  if (std::uint16_t expected = arch::call_instruction(); expected != 0) {
    // Entered by another instruction than this architecture's own (int 0x80), the number means
    // another call.
    read_saved(c, arch::instruction_pointer_offset());
    c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
    read_pointed_at(c, -2, 2);
    c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
    c.load(BPF_H, 1, 10, -32);
    c.jump(BPF_JNE | BPF_K, 1, expected, Assembler::kIsOther);
  }
  look_up_name(c);
  look_up_command(c);
  c.here(Assembler::kIsOther);
  c.set(9, kOther);
  c.op(BPF_ST | BPF_DW | BPF_MEM, 10, 0, -40, kOther);
  c.jump(BPF_JA, 0, 0, Assembler::kCount);
  c.here(Assembler::kIsHarmless);
  c.set(9, kHarmless);
  c.op(BPF_ST | BPF_DW | BPF_MEM, 10, 0, -40, kHarmless);
  c.jump(BPF_JA, 0, 0, Assembler::kCount);
  c.here(Assembler::kIsDescriptor);
  c.set(9, kDescriptor);
  c.here(Assembler::kCount);
  count(c, counters);
  note_argument(c, notes, kFirst, arch::argument_offset(0), Assembler::kFirstDone);
  note_argument(c, notes, kSecond, arch::argument_offset(1), Assembler::kSecondDone);
  note_argument(c, notes, kThird, arch::argument_offset(2), Assembler::kThirdDone);
  end_program(c);
  return c.finish();
}

// sys_exit(struct pt_regs* regs, long answer): a call that counts when it is done, and has
// succeeded, is one more of its kind.
std::vector<bpf_insn> exit_program(int slots, int kinds, int counters) {
  Assembler c;
  c.move(6, 1);
  c.load(BPF_DW, 7, 1, 8);
  c.jump(BPF_JSLT | BPF_K, 7, 0, Assembler::kEnd);
  begin_program(c, slots);
  read_saved(c, arch::call_number_offset());
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kEnd);
  c.load(BPF_DW, 7, 10, -24);
  c.jump(BPF_JGE | BPF_K, 7, static_cast<int>(kCallNumbers), Assembler::kEnd);
  look_up_kind(c, kinds);
  c.set(1, kDescriptor);
  c.jump(BPF_JEQ | BPF_K, 9, kDescriptorWhenDone, Assembler::kIsDescriptor);
  c.jump(BPF_JNE | BPF_K, 9, kOtherWhenDone, Assembler::kEnd);
  c.jump(BPF_JNE | BPF_K, 7, static_cast<int>(SYS_recvmsg), Assembler::kIsOther);
  // Nothing beside the data (msg_controllen is 0 now): a transfer.
  read_saved(c, arch::argument_offset(1));
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
  read_pointed_at(c, static_cast<int>(kControlLength), 8);
  c.jump(BPF_JNE | BPF_K, 0, 0, Assembler::kIsOther);
  c.load(BPF_DW, 2, 10, -32);
  c.set(1, kTransfer);
  c.jump(BPF_JEQ | BPF_K, 2, 0, Assembler::kIsDescriptor);
  c.here(Assembler::kIsOther);
  c.set(1, kOther);
  c.here(Assembler::kIsDescriptor);
  c.move(9, 1);
  c.here(Assembler::kCount);
  count(c, counters);
  end_program(c);
  return c.finish();
}

// sched_process_exit(struct task_struct* task, …), in the task itself: the end of a thread is one
// more kOther. Killed from outside it makes no call, and its number may be given to another.
std::vector<bpf_insn> end_of_thread_program(int slots, int counters) {
  Assembler c;
  begin_program(c, slots);
  c.set(9, kOther);
  count(c, counters);
  end_program(c);
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

// The values of an array map in our memory.
Result<void*> map_values(const Fd& map, std::size_t bytes) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
  if (at == MAP_FAILED) return Error{Code::kUnsupported, errno, "map BPF values", "system calls cannot be watched here", ""};
  return at;
}

}  // namespace

struct SyscallWatch::Program {
  Fd slots, kinds, counters, notes, enter, exit, end, enter_link, exit_link, end_link;
  std::uint64_t* counts = nullptr;     // the counters, mapped
  std::uint8_t* noted = nullptr;       // the notes, mapped
  std::mutex mutex;
  std::bitset<kMaxWatches> used;

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (counts != nullptr) ::munmap(counts, kCounterBytes);
    if (noted != nullptr) ::munmap(noted, kNotesBytes);
  }

  static Result<std::shared_ptr<Program>> load() {
    auto p = std::make_shared<Program>();
    BATON_ASSIGN(p->slots, make_map(BPF_MAP_TYPE_HASH, 8, 4, kMaxWatches, 0));
    BATON_ASSIGN(p->kinds, make_map(BPF_MAP_TYPE_ARRAY, 4, kCallNumbers, 1, 0));
    BATON_ASSIGN(p->counters, make_map(BPF_MAP_TYPE_ARRAY, 4, kCounterBytes, 1, BPF_F_MMAPABLE));
    BATON_ASSIGN(p->notes, make_map(BPF_MAP_TYPE_ARRAY, 4, kNotesBytes, 1, BPF_F_MMAPABLE));
    std::uint32_t zero = 0;
    auto table = kinds_of_calls();
    bpf_attr attr{};
    attr.map_fd = static_cast<std::uint32_t>(p->kinds.get());
    attr.key = pointer(&zero);
    attr.value = pointer(table.data());
    BATON_TRY(bpf(BPF_MAP_UPDATE_ELEM, attr, "fill a BPF map"));
    BATON_ASSIGN(void* counts, map_values(p->counters, kCounterBytes));
    p->counts = static_cast<std::uint64_t*>(counts);
    BATON_ASSIGN(void* noted, map_values(p->notes, kNotesBytes));
    p->noted = static_cast<std::uint8_t*>(noted);
    const int slots_fd = p->slots.get(), kinds_fd = p->kinds.get(), counters_fd = p->counters.get();
    BATON_ASSIGN(p->enter, load_program(enter_program(slots_fd, kinds_fd, counters_fd, p->notes.get())));
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
  std::memset(program->noted + slot * kNotesOfOne, 0, kNotesOfOne);
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
  return {at(kHarmless), at(kMapping), at(kTransfer), at(kDescriptor), at(kOther)};
}

bool SyscallWatch::moved(int number) const {
  return program_->noted[slot_ * kNotesOfOne + static_cast<std::uint32_t>(number) % kNumbers] != 0;
}
bool SyscallWatch::altered(int number) const {
  return program_->noted[slot_ * kNotesOfOne + kNumbers + static_cast<std::uint32_t>(number) % kNumbers] != 0;
}
void SyscallWatch::forget() { std::memset(program_->noted + slot_ * kNotesOfOne, 0, kNotesOfOne); }

Result<void> probe_syscall_watch() {
  BATON_TRY(SyscallWatch::Program::load());
  return {};
}

}  // namespace baton::linux_backend
