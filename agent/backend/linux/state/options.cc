// What prctl(2), membarrier(2), mlockall(2) and seccomp(2) have set for a process or a thread.
// All of it can change between checkpoints; it is asked for in the batch that reads the rest.
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

// Of Linux's prctl.h, where Debian 12's header (6.1) lacks them.
constexpr std::uint64_t kGetMdwe = 66, kSetMdwe = 65;                     // Linux 6.3
constexpr std::uint64_t kGetMemoryMerge = 68, kSetMemoryMerge = 67;       // Linux 6.4
constexpr std::uint64_t kGetRegistrations = 1 << 9;                       // MEMBARRIER_CMD_…, Linux 6.3
constexpr int kGetFilter = 0x420c, kGetDispatch = 0x4211;                 // PTRACE_SECCOMP_GET_FILTER, 4.4; …USER_DISPATCH_CONFIG, 6.4
constexpr int kMaxFilters = 1024;

RemoteCall call(long number, std::initializer_list<std::uint64_t> args) {
  RemoteCall c;
  c.number = number;
  std::size_t i = 0;
  for (std::uint64_t a : args) c.args[i++] = a;
  return c;
}

// Those whose value is what the call answers, and that are 0 when nobody set them.
struct Simple { std::uint64_t get, set; };
constexpr Simple kOfProcesses[] = {{PR_GET_IO_FLUSHER, PR_SET_IO_FLUSHER}, {kGetMdwe, kSetMdwe}, {kGetMemoryMerge, kSetMemoryMerge}};
constexpr std::uint64_t kSpeculation[] = {PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH};
constexpr std::int64_t kChosen = PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE | PR_SPEC_DISABLE_NOEXEC;

}  // namespace

void ask_options(bool leader, std::vector<RemoteCall>& calls) {
  for (std::uint64_t which : kSpeculation) calls.push_back(call(SYS_prctl, {PR_GET_SPECULATION_CTRL, which, 0, 0, 0}));
  if (!leader) return;
  for (const auto& option : kOfProcesses) calls.push_back(call(SYS_prctl, {option.get, 0, 0, 0, 0}));
  calls.push_back(call(SYS_membarrier, {kGetRegistrations, 0, 0}));
}

void take_options(bool leader, std::span<const std::int64_t> answers, pb::ProcessState& process, pb::Thread& thread) {
  std::size_t at = 0;
  for (std::uint64_t which : kSpeculation) {
    std::int64_t value = answers[at++];
    if (value <= 0 || (value & PR_SPEC_PRCTL) == 0 || (value & kChosen) == 0) continue;
    auto& option = *thread.add_options();
    option.set_option(PR_SET_SPECULATION_CTRL);
    option.set_second(which);
    option.set_third(static_cast<std::uint64_t>(value & ~static_cast<std::int64_t>(PR_SPEC_PRCTL)));
  }
  if (!leader) return;
  for (const auto& simple : kOfProcesses) {
    std::int64_t value = answers[at++];
    if (value <= 0) continue;
    auto& option = *process.add_options();
    option.set_option(static_cast<std::uint32_t>(simple.set));
    option.set_second(static_cast<std::uint64_t>(value));
  }
  if (answers[at] > 0) process.set_membarrier(static_cast<std::uint32_t>(answers[at]));
}

// mlockall(MCL_FUTURE) shows in what is mapped after it: our scratch area. Where smaps tells.
Result<void> read_lock_future(pid_t pid, std::uint64_t locked_kib, std::uint64_t scratch, StateContext::Impl& context, pb::ProcessState& out) {
  LockFuture& known = context.lock_future[pid];
  if (locked_kib != known.locked_kib) {   // only mlockall and munlockall change the rule, and both show here
    BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(pid) + "/smaps"));
    known = {locked_kib, 0};
    std::istringstream lines(text);
    bool inside = false;
    for (std::string line; std::getline(lines, line);) {
      unsigned long long from = 0, to = 0;
      if (line.rfind("VmFlags:", 0) != 0) {
        if (!line.empty() && (line[0] < 'A' || line[0] > 'Z') && std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2) inside = from <= scratch && scratch < to;
      } else if (inside) {
        if (line.find(" lo") != std::string::npos) known.flags |= MCL_FUTURE;
        if (line.find(" lf") != std::string::npos) known.flags |= MCL_ONFAULT;
        break;
      }
    }
  }
  out.set_lock_future(known.flags);
  return {};
}

// Filters, the oldest first, each program stored once however many threads have it.
Result<void> read_seccomp(pid_t tid, int mode, pb::LinuxState& state, pb::Thread& out) {
  if (mode == SECCOMP_MODE_STRICT) {
    auto& option = *out.add_options();
    option.set_option(PR_SET_SECCOMP);
    option.set_second(SECCOMP_MODE_STRICT);
  }
  if (mode != SECCOMP_MODE_FILTER) return {};
  for (int i = 0; i < kMaxFilters; ++i) {
    sock_filter program[BPF_MAXINSNS];
    long count = ::ptrace(static_cast<__ptrace_request>(kGetFilter), tid, i, program);
    if (count < 0 && errno == ENOENT) return {};
    if (count < 0) {
      return make_error(Code::kUnsupported, "capture", "thread " + std::to_string(tid) + ": its seccomp filter cannot be read (" + std::strerror(errno) + ")",
                        "The warden needs CAP_SYS_ADMIN and no filter of its own.");
    }
    std::string bytes(reinterpret_cast<const char*>(program), static_cast<std::size_t>(count) * sizeof(sock_filter));
    int index = 0;
    while (index < state.seccomp_filters_size() && state.seccomp_filters(index) != bytes) ++index;
    if (index == state.seccomp_filters_size()) state.add_seccomp_filters(bytes);
    out.add_seccomp(static_cast<std::uint32_t>(index));
  }
  return make_error(Code::kUnsupported, "capture", "thread " + std::to_string(tid) + ": more than " + std::to_string(kMaxFilters) + " seccomp filters");
}

Result<void> check_dispatch(pid_t tid) {
  struct { std::uint64_t mode, selector, offset, length; } config{};
  if (::ptrace(static_cast<__ptrace_request>(kGetDispatch), tid, sizeof config, &config) != 0 || config.mode == 0) return {};
  return make_error(Code::kUnsupported, "capture", "thread " + std::to_string(tid) + ": syscall user dispatch is not supported");
}

}  // namespace baton::linux_backend::state
