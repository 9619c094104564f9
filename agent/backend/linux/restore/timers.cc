// Interval timers and POSIX timers. What runs on a clock that goes on while the program is
// away is due when it would have been due; what counts processor time goes on where it stood.
#include <linux/prctl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <algorithm>

#include "agent/backend/linux/restore/construction.h"
#include "base/clock.h"

namespace baton::restore {
namespace {

constexpr std::uint64_t kRestoreIds = 77;   // PR_TIMER_CREATE_RESTORE_IDS (Linux 6.16)
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr int kMaxIdSearch = 1 << 20;

std::int64_t elapsed(const Construction& c) {
  return read_clock(CLOCK_MONOTONIC).count() + c.monotonic_shift_ns - static_cast<std::int64_t>(c.state.monotonic_ns());
}

Result<void> create(Puppet& puppet, const pb::PosixTimer& timer, int& next_id, bool by_number) {
  struct {
    std::uint64_t value;
    std::int32_t signal, notify, thread, pad[11];
    std::int32_t id;
  } event{timer.value(), timer.signal(), static_cast<std::int32_t>(timer.notify()), timer.thread(), {}, timer.id()};
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(&event, 1))));
  std::uint64_t id_at = at + offsetof(decltype(event), id);
  std::string about = "timer " + std::to_string(timer.id());
  if (timer.id() - next_id > kMaxIdSearch) return make_error(Code::kUnsupported, "build", about + ": its number is too high for this kernel");
  for (;; ++next_id) {
    BATON_TRY(puppet.checked("timer_create", about, SYS_timer_create, {static_cast<std::uint64_t>(static_cast<std::int64_t>(timer.clock())), at, id_at}));
    std::int32_t got = 0;
    BATON_TRY(puppet.read(id_at, std::as_writable_bytes(std::span(&got, 1))));
    if (got == timer.id()) {
      next_id = got + 1;
      return {};
    }
    if (by_number || got > timer.id()) return make_error(Code::kFailed, "build", about + ": the kernel gave number " + std::to_string(got));
    BATON_TRY(puppet.call(SYS_timer_delete, {static_cast<std::uint64_t>(got)}));
  }
}

Result<void> arm(Construction& c, Puppet& puppet, const pb::PosixTimer& timer) {
  if (timer.left_ns() == 0) return {};
  bool wall = timer.clock() == CLOCK_REALTIME || timer.clock() == CLOCK_REALTIME_ALARM || timer.clock() == CLOCK_TAI;
  bool boot = timer.clock() == CLOCK_BOOTTIME || timer.clock() == CLOCK_BOOTTIME_ALARM;
  bool monotonic = timer.clock() == CLOCK_MONOTONIC;
  std::uint64_t due = timer.left_ns();
  if (wall) due += c.state.realtime_ns();
  if (boot) due += c.state.boottime_ns();
  if (monotonic) due += c.state.monotonic_ns();
  std::int64_t value[4] = {static_cast<std::int64_t>(timer.interval_ns()) / kSecond, static_cast<std::int64_t>(timer.interval_ns()) % kSecond,
                           static_cast<std::int64_t>(due) / kSecond, static_cast<std::int64_t>(due) % kSecond};
  BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(value))));
  bool absolute = wall || boot || monotonic;
  BATON_TRY(puppet.checked("timer_settime", "timer " + std::to_string(timer.id()), SYS_timer_settime,
                           {static_cast<std::uint64_t>(timer.id()), absolute ? TIMER_ABSTIME : 0ull, at, 0}));
  return {};
}

}  // namespace

Result<void> set_timers(Construction& c, BuiltProcess& process) {
  Puppet& puppet = process.leader();
  for (const auto& timer : process.state->itimers()) {
    std::int64_t left = static_cast<std::int64_t>(timer.left_ns());
    if (timer.which() == ITIMER_REAL) left = std::max<std::int64_t>(1000, left - elapsed(c));
    std::int64_t micro = std::max<std::int64_t>(1, left / 1000), interval = static_cast<std::int64_t>(timer.interval_ns()) / 1000;
    std::int64_t value[4] = {interval / 1'000'000, interval % 1'000'000, micro / 1'000'000, micro % 1'000'000};
    BATON_ASSIGN(std::uint64_t at, puppet.put(std::as_bytes(std::span(value))));
    BATON_TRY(puppet.checked("setitimer", "process " + std::to_string(process.state->pid()), SYS_setitimer, {timer.which(), at, 0}));
  }
  if (process.state->posix_timers().empty()) return {};
  BATON_ASSIGN(std::int64_t by_number, puppet.call(SYS_prctl, {kRestoreIds, 1, 0, 0, 0}));
  int next_id = 0;
  for (const auto& timer : process.state->posix_timers()) {
    BATON_TRY(create(puppet, timer, next_id, by_number == 0));
    BATON_TRY(arm(c, puppet, timer));
  }
  if (by_number == 0) BATON_TRY(puppet.call(SYS_prctl, {kRestoreIds, 0, 0, 0, 0}));
  return {};
}

}  // namespace baton::restore
