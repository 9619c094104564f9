// What injection needs to know of the processor. One implementation per
// architecture, in the folder of its name; nothing outside arch/ names a register.
//
// The injected code lives in a slot: a piece of executable memory of the target
// that the program never runs (the slack behind the vdso's text). It has two
// entries, one system call or a loop over many, both of which end in the marker,
// a call that stops a traced thread and does nothing to an untraced one; behind
// the marker stands the code that gives the thread its own signal mask, registers
// and instruction pointer back without any help from outside.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace baton::linux_backend {
struct RemoteCall;
}

namespace baton::linux_backend::arch {

// The image of NT_PRSTATUS.
using Registers = user_regs_struct;

inline constexpr int kMaxSlotBytes = 1024;

// One call of the loop, as it stands in the target's memory; the answer takes the place of the number.
struct LoopRecord {
  std::uint64_t number;
  std::uint64_t args[6];
};

struct Marker {
  long number = 0;              // system call
  std::uint64_t args[2] = {0, 0};
};

// Bytes that the slot takes.
std::size_t slot_bytes();
// The slot's content for a thread whose own state is `own` and `own_mask`.
void fill_slot(std::span<std::byte> slot, const Registers& own, std::uint64_t own_mask,
               const Marker& marker, std::uint64_t stamp_ns);
// True when `bytes` begin with a slot that somebody filled; then when (fill_slot's stamp).
bool holds_slot_code(std::span<const std::byte> bytes, std::uint64_t& stamp_ns);
// Registers with which the thread performs one call, or `count` records at `records`, and then the marker.
Registers single_entry(const Registers& own, std::uint64_t slot, const RemoteCall& call);
Registers loop_entry(const Registers& own, std::uint64_t slot, std::uint64_t records,
                     std::uint64_t count, bool stop_at_error);
// True when the thread has performed the marker; then its answer: the value of the
// single call, or how many records were performed.
bool is_behind_marker(const Registers& now, std::uint64_t slot);
std::int64_t answer(const Registers& now);
// At a system-call stop behind the marker: true when entering, not leaving.
bool is_call_entry(const Registers& now);

// The two bytes of the instruction that enters a system call, little-endian (0: it is not told
// apart from others), and where struct pt_regs has the address behind it, the call's number, and
// its arguments 0 to 2.
std::uint16_t call_instruction();
std::size_t instruction_pointer_offset();
std::size_t call_number_offset();
std::size_t argument_offset(unsigned which);

// False for a thread in a 32-bit mode.
bool is_native(const Registers& regs, std::size_t image_bytes);
std::uint64_t instruction_pointer(const Registers& regs);
void set_instruction_pointer(Registers& regs, std::uint64_t to);

// Calls that answer EINTR after any stop, signal or not (signal(7), "Interruption of system
// calls by stop signals"): true when `regs` hold such an answer, which then asks the kernel to
// make the call again unless a signal handler comes first, and only then to tell EINTR.
bool hide_interruption(Registers& regs);

// A call with a time limit that stands so. The limit: where it is among the arguments, and
// whether as milliseconds or as the address of a struct timespec.
struct TimedCall {
  long number = 0;
  int argument = 0;
  bool milliseconds = false;
  std::uint64_t value = 0;       // of that argument
};
// False: `regs` are at no such call, or one without a limit.
bool timed_call(const Registers& regs, TimedCall& out);
void set_time_argument(Registers& regs, const TimedCall& call, std::uint64_t value);
// Below what the program may use beside its stack pointer (psABI: the red zone).
std::uint64_t below_stack(const Registers& regs);

// NT_ constant of the extended state (vector registers and the like).
int extended_state_note();
inline constexpr std::size_t kMaxExtendedStateBytes = 16384;

}  // namespace baton::linux_backend::arch
