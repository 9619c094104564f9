// Injected system calls (arch.h describes the slot).
//
// The order of steps makes every moment safe to die in:
//   begin   the slot is filled: nobody runs it yet
//           the registers are set to an entry of the slot: from here the thread,
//           left alone, performs the call and then takes its own registers back
//           all signals but the marker's are blocked
//   end     its own signal mask first, its own registers second: between the two
//           the slot's way back would set both anyway
#include <fcntl.h>
#include <elf.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/tracee_impl.h"
#include "base/check.h"
#include "base/fault_point.h"

namespace baton::linux_backend {
namespace {
using std::chrono::steady_clock;

constexpr auto kCallTimeout = std::chrono::seconds(10);
constexpr std::size_t kMaxBatch = 65536;
constexpr std::size_t kRecordBytes = 16384;   // 292 calls; longer batches map their own
constexpr int kSlotTries = 400;               // of a millisecond each
constexpr std::uint64_t kSlotRest = 200'000'000;  // ns

std::uint64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_BOOTTIME, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

// One session per process: all threads of a process share the slot, which holds the way back
// of one of them. Per calling thread, as all tracing is.
using Sessions = std::unordered_map<pid_t, void*>;
Sessions& sessions() {
  thread_local Sessions map;
  return map;
}

std::uint64_t bit(int signal) { return 1ull << (signal - 1); }

// A signal that does nothing to an untraced program: neither handled, nor blocked
// (it may be waited for with sigwait or signalfd), nor pending. 0: none.
int choose_marker_signal(const TaskStatus& status) {
  for (int signal : {SIGWINCH, SIGURG}) {
    if (((status.caught | status.blocked | status.pending) & bit(signal)) == 0) return signal;
  }
  return 0;
}

}  // namespace

Tracee::Impl::~Impl() {
  auto it = sessions().find(session_process);
  if (it != sessions().end() && it->second == this) sessions().erase(it);
}

Result<arch::Registers> Tracee::Impl::read_registers() {
  arch::Registers regs{};
  iovec iov{&regs, sizeof regs};
  if (::ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &iov) < 0) {
    if (errno == ESRCH) return gone_error("read registers");
    return errno_error("read registers of", name());
  }
  if (!arch::is_native(regs, iov.iov_len)) {
    return make_error(Code::kUnsupported, "read registers of",
                      name() + ": 32-bit programs are not supported");
  }
  return regs;
}

Result<void> Tracee::Impl::write_registers(const arch::Registers& regs) {
  iovec iov{const_cast<arch::Registers*>(&regs), sizeof regs};
  if (::ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &iov) < 0) {
    if (errno == ESRCH) return gone_error("set registers");
    return errno_error("set registers of", name());
  }
  return {};
}

Result<void> Tracee::Impl::load_own() {
  if (have_own) return {};
  if (!stopped) return make_error(Code::kInvalid, "read registers", name() + ": not stopped");
  CHECK(!entered);
  BATON_ASSIGN(own, read_registers());
  // A thread stopped inside a restartable sequence must not go on in it: the kernel would
  // send it to the abort handler, and so do we (rseq(2); include/uapi/linux/rseq.h).
  struct {
    std::uint64_t pointer;
    std::uint32_t size, signature, flags, pad;
  } config{};
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), tid,
               sizeof config, &config) > 0 && config.pointer != 0) {
    std::uint64_t descriptor = 0;
    struct {
      std::uint32_t version, flags;
      std::uint64_t start, length, abort;
    } section{};
    auto fetch = [&](std::uint64_t at, void* to, std::size_t bytes) {
      iovec local{to, bytes}, remote{reinterpret_cast<void*>(at), bytes};
      return ::process_vm_readv(tid, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
    };
    if (fetch(config.pointer + 8, &descriptor, 8) && descriptor != 0 &&
        fetch(descriptor, &section, sizeof section)) {
      std::uint64_t ip = arch::instruction_pointer(own);
      if (ip - section.start < section.length) arch::set_instruction_pointer(own, section.abort);
    }
  }
  if (arch::hide_interruption(own)) own_dirty = true;
  have_own = true;
  return {};
}

Result<void> Tracee::Impl::load_mask() {
  if (have_mask) return {};
  if (!stopped) return make_error(Code::kInvalid, "read signal mask", name() + ": not stopped");
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_GETSIGMASK), tid, sizeof own_mask, &own_mask) < 0) {
    if (errno == ESRCH) return gone_error("read signal mask");
    return errno_error("read signal mask of", name());
  }
  have_mask = true;
  return {};
}

// Executable bytes that nobody runs: zeros at the very end of the vdso, else of another
// executable private mapping. Needs `own`. Fails: kConflict (try again), kUnsupported.
Result<std::uint64_t> Tracee::Impl::find_slot() {
  BATON_ASSIGN(std::string maps, read_proc("/proc/" + std::to_string(tid) + "/maps"));
  std::vector<std::uint64_t> ends;
  std::size_t at = 0;
  while (at < maps.size()) {
    std::size_t end = maps.find('\n', at);
    if (end == std::string::npos) end = maps.size();
    unsigned long long start = 0, stop = 0;
    char prot[5] = {};
    std::string line = maps.substr(at, end - at);
    at = end + 1;
    if (std::sscanf(line.c_str(), "%llx-%llx %4s", &start, &stop, prot) != 3) continue;
    if (prot[0] != 'r' || prot[2] != 'x' || prot[3] != 'p') continue;
    if (line.find("[vsyscall]") != std::string::npos) continue;
    if (line.find("[vdso]") != std::string::npos) ends.insert(ends.begin(), stop);
    else ends.push_back(stop);
  }
  BATON_TRY(open_mem());
  std::size_t stride = (arch::slot_bytes() + 31) & ~std::size_t{15};
  std::vector<std::byte> bytes(stride);
  std::uint64_t left_over = 0;  // a slot in which an earlier tracer died
  bool recent = false;
  std::uint64_t now = now_ns();
  for (std::uint64_t stop : ends) {
    for (std::uint64_t i = 1; i <= 3; ++i) {
      std::uint64_t from = (stop & ~std::uint64_t{15}) - i * stride;
      if (::pread(mem.get(), bytes.data(), bytes.size(), static_cast<off_t>(from)) !=
          static_cast<ssize_t>(bytes.size())) {
        break;
      }
      if (std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; })) {
        return from;
      }
      std::uint64_t stamp = 0;
      if (!arch::holds_slot_code(bytes, stamp)) break;
      // Some thread may be on its way out of it, perhaps with a signal handler on top: leave it
      // alone for a while.
      std::uint64_t ip = arch::instruction_pointer(own);
      if (ip - from < stride) {
        return make_error(Code::kConflict, "inject", name() + ": it is still in an earlier injected call");
      }
      if (now - stamp < kSlotRest) recent = true;
      else if (left_over == 0) left_over = from;
    }
  }
  if (left_over != 0) return left_over;
  if (recent) {
    return make_error(Code::kConflict, "inject", name() + ": it is still in an earlier injected call");
  }
  return make_error(Code::kUnsupported, "inject",
                    name() + ": no free executable bytes (no vdso, no padding in its text)");
}

Result<void> Tracee::Impl::begin_session() {
  if (in_session) return {};
  if (gone) return gone_error("inject");
  if (!stopped) return make_error(Code::kInvalid, "inject", name() + ": not stopped");
  BATON_TRY(load_own());
  BATON_ASSIGN(TaskStatus status, read_task_status(tid));
  if (auto it = sessions().find(status.tgid); it != sessions().end() && it->second != this) {
    BATON_TRY(static_cast<Impl*>(it->second)->end_session());
  }
  for (int tries = 0; slot == 0; ++tries) {
    auto found = find_slot();
    if (found) {
      slot = *found;
      break;
    }
    if (found.error().code != Code::kConflict || tries == kSlotTries) return std::move(found).error();
    // A tracer died here a moment ago, and the thread has not taken its registers back yet.
    Deadline deadline = steady_clock::now() + std::chrono::seconds(1);
    have_own = have_mask = false;
    BATON_TRY(go_on(false, std::exchange(deliver_signal, 0)));
    timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
    BATON_TRY(trace(PTRACE_INTERRUPT, 0));
    for (;;) {
      BATON_ASSIGN(StopEvent e, wait_event(deadline));
      if (e.gone) return gone_error("inject");
      stopped = true;
      in_trap = true;
      at_event_stop = e.event == PTRACE_EVENT_STOP;
      if (at_event_stop) break;
      BATON_TRY(go_on(false, e.event == 0 && !e.system_call ? e.signal : 0));
    }
    BATON_TRY(load_own());
  }
  BATON_TRY(load_mask());
  arch::Marker marker;
  marker_signal = choose_marker_signal(status);
  if (marker_signal != 0 && !status.ns_tids.empty()) {
    marker = {SYS_tkill, {static_cast<std::uint64_t>(status.ns_tids.back()),
                          static_cast<std::uint64_t>(marker_signal)}};
  } else {
    marker_signal = 0;
    marker = {SYS_getpid, {0, 0}};
  }
  if (status.seccomp != 0 && !seccomp_suspended) {
    auto suspended = trace(PTRACE_SETOPTIONS, options | PTRACE_O_SUSPEND_SECCOMP);
    if (!suspended) {
      return make_error(Code::kUnsupported, "inject",
                        name() + ": it has a seccomp filter, and this kernel does not let us suspend it");
    }
    seccomp_suspended = true;
  }
  std::vector<std::byte> bytes(arch::slot_bytes());
  arch::fill_slot(bytes, own, own_mask, marker, now_ns());
  slot_dirty = true;
  session_process = status.tgid;
  sessions()[status.tgid] = this;
  BATON_TRY(poke(slot, bytes));
  in_session = true;
  return fault_point("inject.slot_filled");
}

Result<std::int64_t> Tracee::Impl::run(const arch::Registers& entry) {
  BATON_TRY(write_registers(entry));
  bool first = !std::exchange(entered, true);
  BATON_TRY(fault_point("inject.registers_set"));
  if (first) {
    std::uint64_t mask = ~std::uint64_t{0};
    if (marker_signal != 0) mask &= ~bit(marker_signal);
    if (::ptrace(static_cast<__ptrace_request>(PTRACE_SETSIGMASK), tid, sizeof mask, &mask) < 0) {
      return errno_error("block signals of", name());
    }
    BATON_TRY(fault_point("inject.signals_blocked"));
  }
  bool watch = marker_signal == 0;
  BATON_TRY(go_on(watch, 0));
  BATON_TRY(fault_point("inject.running"));
  Deadline deadline = steady_clock::now() + kCallTimeout;
  bool interrupted = false;
  for (;;) {
    auto waited = wait_event(deadline);
    if (!waited) {
      if (waited.error().code == Code::kTimedOut && !interrupted) {
        interrupted = true;
        deadline = steady_clock::now() + std::chrono::seconds(1);
        BATON_TRY(trace(PTRACE_INTERRUPT, 0));
        continue;
      }
      return std::move(waited).error();
    }
    StopEvent e = *waited;
    if (e.gone) return gone_error("inject");
    stopped = true;
    if (e.system_call || (e.event == 0 && e.signal == marker_signal)) {
      BATON_ASSIGN(arch::Registers now, read_registers());
      bool behind = arch::is_behind_marker(now, slot);
      if (behind && e.system_call && !arch::is_call_entry(now)) {
        in_trap = false;
        BATON_TRY(fault_point("inject.done"));
        return arch::answer(now);
      }
      if (behind && !e.system_call) {
        siginfo_t info{};
        if (::ptrace(PTRACE_GETSIGINFO, tid, nullptr, &info) == 0 && info.si_code == SI_TKILL) {
          in_trap = true;
          BATON_TRY(fault_point("inject.done"));
          return arch::answer(now);
        }
      }
    } else if (e.event == PTRACE_EVENT_STOP) {
      group_stop = e.signal != SIGTRAP;
      if (interrupted) {
        in_trap = true;
        return make_error(Code::kTimedOut, "inject", name() + ": the injected call does not return");
      }
    } else if (e.event == PTRACE_EVENT_CLONE || e.event == PTRACE_EVENT_FORK ||
               e.event == PTRACE_EVENT_VFORK) {
      unsigned long child = 0;
      if (::ptrace(PTRACE_GETEVENTMSG, tid, nullptr, &child) == 0) {
        new_children.push_back(static_cast<pid_t>(child));
      }
    } else if (e.event == 0) {
      if (e.signal == SIGSTOP) {
        deliver_signal = SIGSTOP;  // cannot be blocked: delivered afterwards
      } else if (e.signal == SIGSEGV || e.signal == SIGBUS || e.signal == SIGILL ||
                 e.signal == SIGFPE || e.signal == SIGTRAP || e.signal == SIGSYS) {
        siginfo_t info{};
        if (::ptrace(PTRACE_GETSIGINFO, tid, nullptr, &info) == 0 && info.si_code > 0) {
          in_trap = true;
          return make_error(Code::kFailed, "inject",
                            name() + ": signal " + std::to_string(e.signal) + " in injected code");
        }
        deliver_signal = e.signal;
      } else {
        deliver_signal = e.signal;
      }
    }
    BATON_TRY(go_on(watch, 0));
  }
}

Result<void> Tracee::Impl::end_session() {
  if (gone) return {};
  if (!stopped) return {};
  if (!in_session && !own_dirty && !mask_dirty) return {};
  // After a system-call stop the kernel would not look whether a call is to be restarted.
  if (entered && !in_trap) {
    BATON_TRY(trap_again(steady_clock::now() + std::chrono::seconds(5)));
  }
  if (entered || mask_dirty) {
    if (::ptrace(static_cast<__ptrace_request>(PTRACE_SETSIGMASK), tid, sizeof own_mask, &own_mask) < 0) {
      if (errno == ESRCH) return gone_error("give back signal mask");
      return errno_error("give back the signal mask of", name());
    }
    mask_dirty = false;
    BATON_TRY(fault_point("inject.mask_back"));
  }
  if (entered || own_dirty) {
    BATON_TRY(write_registers(own));
    entered = own_dirty = false;
    BATON_TRY(fault_point("inject.registers_back"));
  }
  if (slot_dirty) {
    std::byte zeros[arch::kMaxSlotBytes] = {};
    (void)poke(slot, std::span(zeros).first(arch::slot_bytes()));  // gone with its memory: no harm
    slot_dirty = false;
  }
  if (seccomp_suspended) {
    seccomp_suspended = false;
    BATON_TRY(trace(PTRACE_SETOPTIONS, options));
  }
  in_session = false;
  if (auto it = sessions().find(session_process); it != sessions().end() && it->second == this) {
    sessions().erase(it);
  }
  return {};
}

Result<std::int64_t> Tracee::syscall(long number, std::initializer_list<std::uint64_t> args) {
  Impl& t = *impl_;
  CHECK(args.size() <= 6);
  RemoteCall call{number, {}};
  std::copy(args.begin(), args.end(), call.args.begin());
  BATON_TRY(t.begin_session());
  return t.run(arch::single_entry(t.own, t.slot, call));
}

Result<std::uint64_t> Tracee::checked(const char* what, long number,
                                      std::initializer_list<std::uint64_t> args) {
  BATON_ASSIGN(std::int64_t value, syscall(number, args));
  if (value < 0 && value >= -4095) {
    return errno_error(static_cast<int>(-value), what, impl_->name());
  }
  return static_cast<std::uint64_t>(value);
}

Result<std::vector<std::int64_t>> Tracee::batch(std::span<const RemoteCall> calls, bool stop_at_error) {
  Impl& t = *impl_;
  std::vector<std::int64_t> answers;
  if (calls.empty()) return answers;
  if (calls.size() > kMaxBatch) {
    return make_error(Code::kInvalid, "inject", t.name() + ": more than 65,536 calls in one batch");
  }
  // The records have pages of their own: the caller's scratch area stays the caller's.
  std::size_t bytes = calls.size() * sizeof(arch::LoopRecord);
  std::size_t mapped = bytes <= kRecordBytes ? 0 : (bytes + 4095) & ~std::size_t{4095};
  std::uint64_t area = 0;
  if (mapped == 0) {
    BATON_TRY(scratch(1));
    area = t.scratch.address + t.scratch_bytes;
  } else {
    BATON_ASSIGN(area, checked("map the call records in", SYS_mmap,
                               {0, mapped, PROT_READ | PROT_WRITE,
                                static_cast<std::uint64_t>(MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE),
                                static_cast<std::uint64_t>(-1), 0}));
  }
  std::vector<arch::LoopRecord> records(calls.size());
  for (std::size_t i = 0; i < calls.size(); ++i) {
    records[i].number = static_cast<std::uint64_t>(calls[i].number);
    std::copy(calls[i].args.begin(), calls[i].args.end(), records[i].args);
  }
  auto outcome = [&]() -> Result<void> {
    BATON_TRY(write({area}, std::as_bytes(std::span(records))));
    BATON_ASSIGN(std::int64_t done,
                 t.run(arch::loop_entry(t.own, t.slot, area, calls.size(), stop_at_error)));
    CHECK(done >= 0 && static_cast<std::size_t>(done) <= calls.size());
    auto count = static_cast<std::size_t>(done);
    BATON_TRY(read({area}, std::as_writable_bytes(std::span(records)).first(count * sizeof records[0])));
    answers.resize(count);
    for (std::size_t i = 0; i < count; ++i) answers[i] = static_cast<std::int64_t>(records[i].number);
    return {};
  }();
  if (mapped != 0 && !t.gone && t.stopped) {
    auto unmapped = checked("unmap the call records of", SYS_munmap, {area, mapped});
    if (outcome && !unmapped) return std::move(unmapped).error();
  }
  if (!outcome) return std::move(outcome).error();
  return answers;
}

Result<RemotePtr<std::byte>> Tracee::scratch(std::size_t bytes) {
  Impl& t = *impl_;
  std::size_t wanted = (std::max<std::size_t>(bytes, 1) + 4095) & ~std::size_t{4095};
  if (t.scratch_bytes >= wanted) return t.scratch;
  BATON_TRY(release_scratch());
  BATON_ASSIGN(std::uint64_t area,
               checked("map a scratch area in", SYS_mmap,
                       {0, wanted + kRecordBytes, PROT_READ | PROT_WRITE,
                        static_cast<std::uint64_t>(MAP_PRIVATE | MAP_ANONYMOUS),
                        static_cast<std::uint64_t>(-1), 0}));
  t.scratch = {area};
  t.scratch_bytes = wanted;
  return t.scratch;
}

Result<void> Tracee::release_scratch() {
  Impl& t = *impl_;
  if (t.scratch_bytes == 0) return {};
  BATON_TRY(checked("unmap the scratch area of", SYS_munmap,
                    {t.scratch.address, t.scratch_bytes + kRecordBytes}));
  t.scratch = {};
  t.scratch_bytes = 0;
  return {};
}

}  // namespace baton::linux_backend
