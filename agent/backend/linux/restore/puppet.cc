#include "agent/backend/linux/restore/puppet.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

extern "C" {
extern const unsigned char baton_puppet_begin[], baton_puppet_single[], baton_puppet_loop[],
    baton_puppet_spin[], baton_puppet_end[];
}

namespace baton::restore {
namespace {

constexpr std::uint64_t kAllButTrap = ~(1ull << (SIGTRAP - 1));
constexpr long kOptions = PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE;

Error gone(pid_t pid, const char* what) {
  return make_error(Code::kTraceeGone, what, "process " + std::to_string(pid) + " that was being built has died");
}

Error ptrace_error(pid_t pid, const char* what) {
  if (errno == ESRCH) return gone(pid, what);
  return errno_error(what, "process " + std::to_string(pid));
}

void fill(std::uint64_t (&to)[6], std::initializer_list<std::uint64_t> args) {
  std::size_t i = 0;
  for (std::uint64_t a : args) to[i++] = a;
}

}  // namespace

std::uint64_t vdso_syscall_offset() {
  const auto* vdso = reinterpret_cast<const unsigned char*>(::getauxval(AT_SYSINFO_EHDR));
  if (vdso == nullptr) return 0;
  for (std::uint64_t i = sizeof(Elf64_Ehdr); i + 1 < 4096; ++i) {
    if (vdso[i] == 0x0f && vdso[i + 1] == 0x05) return i;
  }
  return 0;
}

void reap_puppets(const PuppetGroup& group) {
  for (int tries = 0; !group->empty() && tries < 5000; ++tries) {
    for (auto it = group->begin(); it != group->end();) {
      int status = 0;
      pid_t got = ::waitpid(*it, &status, __WALL | WNOHANG);
      bool dead = (got < 0 && errno == ECHILD) || (got > 0 && (WIFEXITED(status) || WIFSIGNALED(status)));
      it = dead ? group->erase(it) : std::next(it);
    }
    if (!group->empty()) ::usleep(1000);
  }
}

Puppet::Puppet(pid_t pid, pid_t inside, std::uint64_t area, PuppetGroup group)
    : pid_(pid), inside_(inside), area_(area), group_(std::move(group)) {
  group_->insert(pid);
}

Result<int> Puppet::wait() {
  for (;;) {
    int status = 0;
    pid_t got = ::waitpid(pid_, &status, __WALL);
    if (got < 0) {
      if (errno == EINTR) continue;
      return gone(pid_, "wait");
    }
    if (WIFEXITED(status) || WIFSIGNALED(status)) return gone(pid_, "wait");
    return status;
  }
}

Result<Puppet> Puppet::seize(pid_t pid, pid_t inside, std::uint64_t area, PuppetGroup group) {
  if (::ptrace(PTRACE_SEIZE, pid, 0, kOptions) != 0) return ptrace_error(pid, "PTRACE_SEIZE");
  Puppet puppet(pid, inside, area, std::move(group));
  if (::ptrace(PTRACE_INTERRUPT, pid, 0, 0) != 0) return ptrace_error(pid, "PTRACE_INTERRUPT");
  BATON_TRY(puppet.adopt());
  std::span<const unsigned char> code(baton_puppet_begin, baton_puppet_end);
  BATON_TRY(puppet.write(area, std::as_bytes(code)));
  // The C library's rseq area is about to be unmapped: the kernel must not write to it.
  __ptrace_rseq_configuration rseq{};
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), pid, sizeof rseq, &rseq) > 0 && rseq.rseq_abi_pointer != 0) {
    constexpr std::uint64_t kUnregister = 1;
    BATON_TRY(puppet.checked("unregister rseq", "blank process", SYS_rseq, {rseq.rseq_abi_pointer, rseq.rseq_abi_size, kUnregister, rseq.signature}));
  }
  return puppet;
}

Result<void> Puppet::adopt() {
  BATON_TRY(wait());
  BATON_TRY(set_mask(kAllButTrap));
  if (memory_of_leader_ < 0) {
    std::string path = "/proc/" + std::to_string(pid_) + "/mem";
    BATON_ASSIGN(memory_, open_file(path, O_RDWR));
    memory_of_leader_ = memory_.get();
  }
  BATON_ASSIGN(base_, registers());
  base_.orig_rax = ~0ull;
  base_.eflags = 0x202;
  return {};
}

Result<user_regs_struct> Puppet::registers() {
  user_regs_struct regs{};
  iovec part{&regs, sizeof regs};
  if (::ptrace(PTRACE_GETREGSET, pid_, NT_PRSTATUS, &part) != 0) return ptrace_error(pid_, "PTRACE_GETREGSET");
  return regs;
}

Result<void> Puppet::set_registers(const user_regs_struct& regs) {
  iovec part{const_cast<user_regs_struct*>(&regs), sizeof regs};
  if (::ptrace(PTRACE_SETREGSET, pid_, NT_PRSTATUS, &part) != 0) return ptrace_error(pid_, "PTRACE_SETREGSET");
  return {};
}

Result<void> Puppet::set_xsave(std::span<const std::byte> image) {
  iovec part{const_cast<std::byte*>(image.data()), image.size()};
  if (::ptrace(PTRACE_SETREGSET, pid_, NT_X86_XSTATE, &part) != 0) return ptrace_error(pid_, "set extended registers");
  return {};
}

Result<void> Puppet::set_mask(std::uint64_t mask) {
  if (::ptrace(PTRACE_SETSIGMASK, pid_, sizeof mask, &mask) != 0) return ptrace_error(pid_, "PTRACE_SETSIGMASK");
  return {};
}

// Runs until the int3 at the end of our code. Births on the way are noted.
Result<void> Puppet::run_to_trap(const user_regs_struct& regs) {
  BATON_TRY(set_registers(regs));
  for (;;) {
    if (::ptrace(PTRACE_CONT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_CONT");
    BATON_ASSIGN(int status, wait());
    int event = status >> 16;
    if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
      unsigned long born = 0;
      if (::ptrace(PTRACE_GETEVENTMSG, pid_, 0, &born) != 0) return ptrace_error(pid_, "PTRACE_GETEVENTMSG");
      new_child_ = static_cast<pid_t>(born);
      continue;
    }
    if (event != 0) continue;
    if (WSTOPSIG(status) == SIGTRAP) return {};
    if (WSTOPSIG(status) == SIGSEGV || WSTOPSIG(status) == SIGILL || WSTOPSIG(status) == SIGBUS) {
      return make_error(Code::kFailed, "build", "the driver's code faulted in process " + std::to_string(inside_));
    }
  }
}

Result<std::int64_t> Puppet::call(long number, std::initializer_list<std::uint64_t> args) {
  std::uint64_t a[6] = {};
  fill(a, args);
  user_regs_struct regs = base_;
  regs.rip = area_ + static_cast<std::uint64_t>(baton_puppet_single - baton_puppet_begin);
  regs.rax = static_cast<std::uint64_t>(number);
  regs.rdi = a[0], regs.rsi = a[1], regs.rdx = a[2], regs.r10 = a[3], regs.r8 = a[4], regs.r9 = a[5];
  BATON_TRY(run_to_trap(regs));
  BATON_ASSIGN(user_regs_struct after, registers());
  return static_cast<std::int64_t>(after.rax);
}

Result<std::uint64_t> Puppet::checked(const char* what, const std::string& subject, long number,
                                      std::initializer_list<std::uint64_t> args) {
  BATON_ASSIGN(std::int64_t value, call(number, args));
  if (value < 0 && value >= -4095) return errno_error(static_cast<int>(-value), what, subject);
  return static_cast<std::uint64_t>(value);
}

Result<std::size_t> Puppet::batch(std::span<PuppetRecord> records) {
  std::size_t done = 0;
  while (done < records.size()) {
    auto part = records.subspan(done, std::min(records.size() - done, kMaxBatch));
    BATON_TRY(write(area_ + kAreaRecords, std::as_bytes(part)));
    user_regs_struct regs = base_;
    regs.rip = area_ + static_cast<std::uint64_t>(baton_puppet_loop - baton_puppet_begin);
    regs.rbx = area_ + kAreaRecords;
    regs.r12 = part.size();
    regs.r13 = ~0ull;
    BATON_TRY(run_to_trap(regs));
    BATON_ASSIGN(user_regs_struct after, registers());
    BATON_TRY(read(area_ + kAreaRecords, std::as_writable_bytes(part)));
    if (after.r12 != 0) return done + (part.size() - after.r12) + 1;
    done += part.size();
  }
  return done;
}

Result<std::int64_t> Puppet::call_at(std::uint64_t gadget, long number, std::initializer_list<std::uint64_t> args) {
  std::uint64_t a[6] = {};
  fill(a, args);
  user_regs_struct regs = base_;
  regs.rip = gadget;
  regs.rax = static_cast<std::uint64_t>(number);
  regs.rdi = a[0], regs.rsi = a[1], regs.rdx = a[2], regs.r10 = a[3], regs.r8 = a[4], regs.r9 = a[5];
  BATON_TRY(set_registers(regs));
  for (int stops = 0; stops < 2;) {  // entry, exit
    if (::ptrace(PTRACE_SYSCALL, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_SYSCALL");
    BATON_ASSIGN(int status, wait());
    if (status >> 16 == 0 && WSTOPSIG(status) == SIGTRAP) ++stops;
  }
  BATON_ASSIGN(user_regs_struct after, registers());
  return static_cast<std::int64_t>(after.rax);
}

Result<void> Puppet::write(std::uint64_t to, std::span<const std::byte> bytes) {
  auto done = pwrite_all(memory_of_leader_, bytes, static_cast<off_t>(to));
  if (!done) return make_error(Code::kFailed, "write memory", "process " + std::to_string(inside_) + " at " + std::to_string(to) + ": " + done.error().message());
  return {};
}

Result<void> Puppet::read(std::uint64_t from, std::span<std::byte> out) {
  return pread_exact(memory_of_leader_, out, static_cast<off_t>(from));
}

Result<std::uint64_t> Puppet::put(std::span<const std::byte> bytes, std::uint64_t at) {
  CHECK(at + bytes.size() <= kAreaDataBytes);
  BATON_TRY(write(data() + at, bytes));
  return data() + at;
}

Result<std::uint64_t> Puppet::put(const std::string& text, std::uint64_t at) {
  return put(std::as_bytes(std::span(text.c_str(), text.size() + 1)), at);
}

Result<Puppet> Puppet::clone(std::uint64_t flags, std::uint64_t exit_signal, pid_t inside) {
  struct {
    clone_args args;
    std::int32_t tid;
    std::int32_t pad;
  } request{};
  request.args.flags = flags;
  request.args.exit_signal = exit_signal;
  request.tid = inside;
  if (inside > 0) {
    request.args.set_tid = data() + offsetof(decltype(request), tid);
    request.args.set_tid_size = 1;
  }
  BATON_ASSIGN(std::uint64_t at, put(std::as_bytes(std::span(&request, 1))));
  new_child_ = 0;
  BATON_ASSIGN(std::uint64_t got, checked("make process", "PID " + std::to_string(inside) + " in the workload's namespace", SYS_clone3, {at, sizeof request.args}));
  if (new_child_ == 0) return make_error(Code::kFailed, "make process", "the new process was not reported");
  Puppet child(new_child_, static_cast<pid_t>(got), area_, group_);
  if ((flags & CLONE_VM) != 0) child.memory_of_leader_ = memory_of_leader_;
  BATON_TRY(child.adopt());
  return child;
}

Result<void> Puppet::end(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    rlimit none{0, 0};
    ::prlimit(pid_, RLIMIT_CORE, &none, nullptr);
    BATON_TRY(call(SYS_getpid));  // leaves it in a stop from which a signal can be delivered
    BATON_TRY(set_mask(0));
    if (::ptrace(PTRACE_CONT, pid_, 0, WTERMSIG(wait_status)) != 0) return ptrace_error(pid_, "PTRACE_CONT");
  } else {
    BATON_TRY(begin_exit(SYS_exit_group, WEXITSTATUS(wait_status)));
  }
  return await_end();
}

Result<void> Puppet::end_killed() {
  if (::kill(pid_, SIGKILL) != 0) return ptrace_error(pid_, "kill");
  return await_end();
}

Result<void> Puppet::end_thread() {
  // The kernel would clear the word of clear_child_tid and walk the robust list.
  BATON_TRY(call(SYS_set_robust_list, {0, 24}));
  BATON_TRY(call(SYS_set_tid_address, {0}));
  BATON_TRY(begin_exit(SYS_exit, 0));
  return await_end();
}

Result<void> Puppet::begin_exit(long number, int status) {
  user_regs_struct regs = base_;
  regs.rip = area_ + static_cast<std::uint64_t>(baton_puppet_single - baton_puppet_begin);
  regs.rax = static_cast<std::uint64_t>(number);
  regs.rdi = static_cast<std::uint64_t>(status);
  BATON_TRY(set_registers(regs));
  if (::ptrace(PTRACE_CONT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_CONT");
  return {};
}

Result<void> Puppet::await_end() {
  for (;;) {
    int status = 0;
    pid_t got = ::waitpid(pid_, &status, __WALL);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 || WIFEXITED(status) || WIFSIGNALED(status)) {
      group_->erase(pid_);
      return {};
    }
    ::ptrace(PTRACE_CONT, pid_, 0, 0);
  }
}

Result<void> Puppet::stop_for_signals() {
  user_regs_struct regs = base_;
  regs.rip = area_ + static_cast<std::uint64_t>(baton_puppet_spin - baton_puppet_begin);
  BATON_TRY(set_registers(regs));
  if (::ptrace(PTRACE_INTERRUPT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_INTERRUPT");
  for (;;) {
    if (::ptrace(PTRACE_CONT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_CONT");
    BATON_ASSIGN(int status, wait());
    if (status >> 16 == PTRACE_EVENT_STOP) return {};
  }
}

Result<std::int64_t> Puppet::interrupted_call(long number, std::initializer_list<std::uint64_t> args) {
  std::uint64_t a[6] = {};
  fill(a, args);
  user_regs_struct regs = base_;
  regs.rip = area_ + static_cast<std::uint64_t>(baton_puppet_single - baton_puppet_begin);
  regs.rax = static_cast<std::uint64_t>(number);
  regs.rdi = a[0], regs.rsi = a[1], regs.rdx = a[2], regs.r10 = a[3], regs.r8 = a[4], regs.r9 = a[5];
  BATON_TRY(set_registers(regs));
  // An entry stop proves that the call has begun; the interrupt is then met inside it.
  if (::ptrace(PTRACE_SYSCALL, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_SYSCALL");
  BATON_TRY(wait());
  if (::ptrace(PTRACE_INTERRUPT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_INTERRUPT");
  if (::ptrace(PTRACE_CONT, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_CONT");
  BATON_ASSIGN(int status, wait());
  BATON_ASSIGN(user_regs_struct after, registers());
  if (status >> 16 != PTRACE_EVENT_STOP) BATON_TRY(stop_for_signals());  // it had ended: int3
  return static_cast<std::int64_t>(after.rax);
}

Result<void> Puppet::suspend_seccomp() {
  if (::ptrace(PTRACE_SETOPTIONS, pid_, 0, kOptions | PTRACE_O_SUSPEND_SECCOMP) != 0) return ptrace_error(pid_, "suspend seccomp");
  return {};
}

Result<void> Puppet::release() {
  ::ptrace(PTRACE_SETOPTIONS, pid_, 0, 0);
  if (::ptrace(PTRACE_DETACH, pid_, 0, 0) != 0) return ptrace_error(pid_, "PTRACE_DETACH");
  group_->erase(pid_);
  memory_.reset();
  return {};
}

}  // namespace baton::restore
