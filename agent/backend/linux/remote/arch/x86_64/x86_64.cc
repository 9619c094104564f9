// x86-64's side of arch.h.
#include <elf.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "agent/backend/linux/remote/arch/arch.h"
#include "agent/backend/linux/remote/tracee.h"
#include "base/check.h"

extern "C" {
extern const unsigned char baton_slot_begin[], baton_slot_single[], baton_slot_loop[],
    baton_slot_behind_marker[], baton_slot_data[], baton_slot_end[];
}

namespace baton::linux_backend::arch {
namespace {

struct SlotData {
  std::uint64_t marker, arg0, arg1, eflags, rsp, mask, rip, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9,
      r10, r11, r12, r13, r14, r15, rax, stamp;
};

// The kernel's own codes for "interrupted: start again" (include/linux/errno.h);
// they never reach a program, but a tracer sees them.
constexpr std::int64_t kErestartSys = -512, kErestartNoIntr = -513, kErestartNoHand = -514,
                       kErestartBlock = -516;
constexpr long kIoPgetevents = 333, kEpollPwait2 = 441;   // Linux 4.18, 5.11
constexpr std::uint64_t kUserCs64 = 0x33;
constexpr std::uint64_t kTrapFlag = 0x100;

}  // namespace

std::uint16_t call_instruction() { return 0x050f; }   // syscall
// arch/x86/include/asm/ptrace.h: pt_regs is laid out as user_regs_struct up to ss.
std::size_t instruction_pointer_offset() { return offsetof(user_regs_struct, rip); }
std::size_t call_number_offset() { return offsetof(user_regs_struct, orig_rax); }
std::size_t argument_offset(unsigned which) {
  constexpr std::size_t kOffsets[] = {offsetof(user_regs_struct, rdi), offsetof(user_regs_struct, rsi), offsetof(user_regs_struct, rdx)};
  CHECK(which < std::size(kOffsets));
  return kOffsets[which];
}

std::size_t slot_bytes() {
  static_assert(sizeof(SlotData) == 23 * 8);
  auto bytes = static_cast<std::size_t>(baton_slot_end - baton_slot_begin);
  CHECK(bytes <= kMaxSlotBytes);
  CHECK(static_cast<std::size_t>(baton_slot_end - baton_slot_data) == sizeof(SlotData));
  return bytes;
}

void fill_slot(std::span<std::byte> slot, const Registers& own, std::uint64_t own_mask,
               const Marker& marker, std::uint64_t stamp_ns) {
  CHECK(slot.size() >= slot_bytes());
  std::memcpy(slot.data(), baton_slot_begin, slot_bytes());
  SlotData d{};
  d.stamp = stamp_ns;
  d.marker = static_cast<std::uint64_t>(marker.number);
  d.arg0 = marker.args[0];
  d.arg1 = marker.args[1];
  d.eflags = own.eflags & ~kTrapFlag;
  d.rsp = own.rsp;
  d.mask = own_mask;
  d.rip = own.rip;
  d.rax = own.rax;
  // An interrupted system call starts again, as the kernel would have it (arch_do_signal_or_restart).
  if (static_cast<std::int64_t>(own.orig_rax) >= 0) {
    auto code = static_cast<std::int64_t>(own.rax);
    if (code == kErestartSys || code == kErestartNoIntr || code == kErestartNoHand) {
      d.rax = own.orig_rax;
      d.rip = own.rip - 2;
    } else if (code == kErestartBlock) {
      d.rax = SYS_restart_syscall;
      d.rip = own.rip - 2;
    }
  }
  d.rbx = own.rbx, d.rcx = own.rcx, d.rdx = own.rdx, d.rsi = own.rsi, d.rdi = own.rdi;
  d.rbp = own.rbp, d.r8 = own.r8, d.r9 = own.r9, d.r10 = own.r10, d.r11 = own.r11;
  d.r12 = own.r12, d.r13 = own.r13, d.r14 = own.r14, d.r15 = own.r15;
  std::memcpy(slot.data() + (baton_slot_data - baton_slot_begin), &d, sizeof d);
}

bool holds_slot_code(std::span<const std::byte> bytes, std::uint64_t& stamp_ns) {
  auto code_bytes = static_cast<std::size_t>(baton_slot_data - baton_slot_begin);
  if (bytes.size() < slot_bytes() || std::memcmp(bytes.data(), baton_slot_begin, code_bytes) != 0) {
    return false;
  }
  std::memcpy(&stamp_ns, bytes.data() + code_bytes + offsetof(SlotData, stamp), sizeof stamp_ns);
  return true;
}

Registers single_entry(const Registers& own, std::uint64_t slot, const RemoteCall& call) {
  Registers r = own;
  r.orig_rax = ~0ull;  // no system call to restart
  r.eflags &= ~kTrapFlag;
  r.rip = slot + static_cast<std::uint64_t>(baton_slot_single - baton_slot_begin);
  r.rax = static_cast<std::uint64_t>(call.number);
  r.rdi = call.args[0], r.rsi = call.args[1], r.rdx = call.args[2];
  r.r10 = call.args[3], r.r8 = call.args[4], r.r9 = call.args[5];
  return r;
}

Registers loop_entry(const Registers& own, std::uint64_t slot, std::uint64_t records,
                     std::uint64_t count, bool stop_at_error) {
  Registers r = own;
  r.orig_rax = ~0ull;
  r.eflags &= ~(kTrapFlag | 0x400);  // and no direction flag
  r.rip = slot + static_cast<std::uint64_t>(baton_slot_loop - baton_slot_begin);
  r.rbx = records, r.r12 = count, r.r13 = stop_at_error ? 1 : 0, r.r14 = 0;
  return r;
}

bool is_behind_marker(const Registers& now, std::uint64_t slot) {
  return now.rip == slot + static_cast<std::uint64_t>(baton_slot_behind_marker - baton_slot_begin);
}
std::int64_t answer(const Registers& now) { return static_cast<std::int64_t>(now.r15); }
bool is_call_entry(const Registers& now) { return static_cast<std::int64_t>(now.rax) == -ENOSYS; }

bool is_native(const Registers& regs, std::size_t image_bytes) {
  return image_bytes == sizeof(Registers) && regs.cs == kUserCs64;
}
std::uint64_t instruction_pointer(const Registers& regs) { return regs.rip; }
void set_instruction_pointer(Registers& regs, std::uint64_t to) { regs.rip = to; }

bool hide_interruption(Registers& regs) {
  if (static_cast<std::int64_t>(regs.orig_rax) < 0 || static_cast<std::int64_t>(regs.rax) != -EINTR) return false;
  switch (static_cast<long>(regs.orig_rax)) {
    case SYS_epoll_wait: case SYS_epoll_pwait: case kEpollPwait2: case SYS_semop: case SYS_semtimedop:
    case SYS_rt_sigtimedwait: case SYS_io_getevents: case kIoPgetevents:
    // Sockets with SO_RCVTIMEO or SO_SNDTIMEO, and file systems in user space.
    case SYS_read: case SYS_readv: case SYS_write: case SYS_writev: case SYS_recvfrom: case SYS_recvmsg:
    case SYS_sendto: case SYS_sendmsg: case SYS_accept: case SYS_accept4: case SYS_connect:
      regs.rax = static_cast<std::uint64_t>(kErestartNoHand);
      return true;
    default:
      return false;
  }
}

bool timed_call(const Registers& regs, TimedCall& out) {
  if (static_cast<std::int64_t>(regs.orig_rax) < 0 || static_cast<std::int64_t>(regs.rax) != kErestartNoHand) return false;
  out = {static_cast<long>(regs.orig_rax), 0, false, 0};
  switch (out.number) {
    case SYS_epoll_wait: case SYS_epoll_pwait:
      out.argument = 3, out.milliseconds = true, out.value = regs.r10;
      return static_cast<std::int32_t>(regs.r10) > 0;
    case kEpollPwait2: case SYS_semtimedop: out.argument = 3, out.value = regs.r10; break;
    case SYS_rt_sigtimedwait: out.argument = 2, out.value = regs.rdx; break;
    case SYS_io_getevents: out.argument = 4, out.value = regs.r8; break;
    default: return false;
  }
  return out.value != 0;
}

void set_time_argument(Registers& regs, const TimedCall& call, std::uint64_t value) {
  if (call.argument == 2) regs.rdx = value;
  else if (call.argument == 3) regs.r10 = value;
  else regs.r8 = value;
}

std::uint64_t below_stack(const Registers& regs) { return (regs.rsp - 128 - 256) & ~std::uint64_t{15}; }

int extended_state_note() { return NT_X86_XSTATE; }

}  // namespace baton::linux_backend::arch
