// Calls under way that have a time limit and that the kernel would make again with all of it:
// epoll_wait, epoll_pwait, epoll_pwait2, semtimedop, rt_sigtimedwait, io_getevents. (poll, ppoll,
// select, pselect, nanosleep and futex keep their time themselves.)
//
// Without this a program that is checkpointed more often than its time-out would never see
// one. When the call began nobody can tell; the first freeze that meets it takes it as having
// begun just then, so it ends at most one interval late and never early. From then on it is
// made again for what is left. How a call is known to be the same one at the next freeze: its
// limit is a value that only we can have put there, namely
// - milliseconds: an int, so the register's upper half is ignored by the kernel; ours holds a number;
// - a struct timespec: ours stands below the stack's red zone, where no program has one.
#include <time.h>

#include <algorithm>
#include <cstring>

#include "agent/backend/linux/remote/arch/arch.h"
#include "agent/backend/linux/state/internal.h"
#include "base/clock.h"

namespace baton::linux_backend::state {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;
constexpr std::uint32_t kNumbers = 1u << 30;
constexpr std::uint64_t kPlaces = 8, kPlaceBytes = 16;

// What is left in the form that the call takes; `value` becomes its argument.
Result<void> put_left(Tracee& tracee, const arch::Registers& regs, const arch::TimedCall& call, std::int64_t left_ns,
                      std::uint32_t number, std::uint64_t& value) {
  if (call.milliseconds) {
    auto left_ms = static_cast<std::uint32_t>((left_ns + kMillisecond - 1) / kMillisecond);
    value = static_cast<std::uint64_t>(number % kNumbers + 1) << 32 | left_ms;
    return {};
  }
  std::int64_t left[2] = {left_ns / kSecond, left_ns % kSecond};
  value = arch::below_stack(regs) - number % kPlaces * kPlaceBytes;
  return tracee.write({value}, std::as_bytes(std::span(left)));
}

}  // namespace

Result<void> keep_time(Tracee& tracee, StateContext::Impl& context, std::int64_t workload_shift_ns, pb::Thread& out) {
  arch::Registers regs{};
  std::memcpy(&regs, out.registers().data(), std::min(out.registers().size(), sizeof regs));
  arch::TimedCall call;
  if (!arch::timed_call(regs, call)) {
    context.timed_calls.erase(tracee.tid());
    return {};
  }
  const std::int64_t now = read_clock(CLOCK_MONOTONIC).count();
  auto [entry, added] = context.timed_calls.try_emplace(tracee.tid());
  TimedCallSeen& seen = entry->second;
  if (added || seen.number != call.number || seen.value != call.value) {
    std::int64_t limit = static_cast<std::int32_t>(call.value) * kMillisecond;
    if (!call.milliseconds) {
      std::int64_t given[2] = {};
      if (!tracee.read({call.value}, std::as_writable_bytes(std::span(given))) || given[0] < 0 || given[1] < 0 ||
          given[1] >= kSecond || given[0] > (INT64_MAX - now) / kSecond - 1) {
        context.timed_calls.erase(entry);   // the kernel refuses it as well, or it is for ever
        return {};
      }
      limit = given[0] * kSecond + given[1];
    }
    seen.number = call.number;
    seen.until = now + limit;
  }
  std::int64_t left = std::max<std::int64_t>(0, seen.until - now);
  std::uint64_t value = 0;
  if (!put_left(tracee, regs, call, left, context.timed_call_number++, value)) {
    context.timed_calls.erase(entry);   // no room below the stack: made again with all of its time
    return {};
  }
  seen.value = value;
  arch::set_time_argument(regs, call, value);
  BATON_TRY(tracee.set_general_registers(std::as_bytes(std::span(&regs, 1))));
  out.set_registers(&regs, sizeof regs);
  out.set_wait_call(static_cast<std::int32_t>(call.number));
  out.set_wait_until_ns(static_cast<std::uint64_t>(seen.until + workload_shift_ns));
  if (!call.milliseconds) out.set_wait_timeout_at(value);
  return {};
}

}  // namespace baton::linux_backend::state
