// Puppet: one thread of a process that is being built, traced by us and always
// stopped between two calls. It owns nothing worth saving: its registers are
// overwritten at will, and it dies with its builder (PTRACE_O_EXITKILL).
//
// The driver's area is a piece of memory at the same free address in every process
// of the build: code, call records, and room for arguments.
// Threads: the one that seized it.
#pragma once

#include <sys/types.h>
#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace baton::restore {

enum PuppetFlag : std::uint64_t {
  kKeptIsFirst = 1,    // the kept answer takes the place of argument 1
  kKeptIsFifth = 2,    // ... of argument 5 (the descriptor of mmap)
  kKeepAnswer = 4,
  kMayFail = 8,        // go on after an error
};

struct PuppetRecord {
  std::uint64_t number = 0;
  std::uint64_t args[6] = {};
  std::uint64_t flags = 0;
  std::int64_t answer = 0;
};

inline constexpr std::uint64_t kAreaBytes = 512u << 10;
inline constexpr std::uint64_t kAreaRecords = 4096;
inline constexpr std::uint64_t kAreaData = 64u << 10;
inline constexpr std::uint64_t kAreaDataBytes = kAreaBytes - kAreaData;
inline constexpr std::size_t kMaxBatch = (kAreaData - kAreaRecords) / sizeof(PuppetRecord);

// PIDs of all puppets of a build that are still traced: who gives up must reap them.
using PuppetGroup = std::shared_ptr<std::set<pid_t>>;
// After their keeper was killed: waits until the tracer has seen all of them die.
void reap_puppets(const PuppetGroup& group);

class Puppet {
 public:
  // Takes over the blank process `pid` (as seen here), whose area is at `area`.
  static Result<Puppet> seize(pid_t pid, pid_t inside, std::uint64_t area, PuppetGroup group);
  Puppet(Puppet&&) noexcept = default;
  Puppet& operator=(Puppet&&) noexcept = default;

  pid_t pid() const { return pid_; }         // as seen here; a thread's TID
  pid_t inside() const { return inside_; }
  std::uint64_t area() const { return area_; }
  std::uint64_t data() const { return area_ + kAreaData; }
  int memory() const { return memory_.get(); }   // /proc/PID/mem; -1 for threads (their leader has it)

  // One call; the value as the kernel gave it. Fails: kTraceeGone.
  Result<std::int64_t> call(long number, std::initializer_list<std::uint64_t> args = {});
  // -errno becomes an error that names `what` and `subject`.
  Result<std::uint64_t> checked(const char* what, const std::string& subject, long number,
                                std::initializer_list<std::uint64_t> args = {});
  // Many calls; stops at the first failure of one without kMayFail. Answers in the records;
  // the result is how many were performed (less than all: the last one performed failed).
  Result<std::size_t> batch(std::span<PuppetRecord> records);
  // One call through a `syscall` instruction at `gadget`, without the area and without a signal.
  Result<std::int64_t> call_at(std::uint64_t gadget, long number, std::initializer_list<std::uint64_t> args);

  Result<void> write(std::uint64_t to, std::span<const std::byte> bytes);
  Result<void> read(std::uint64_t from, std::span<std::byte> out);
  // Copies into the data area at `at`; the address there.
  Result<std::uint64_t> put(std::span<const std::byte> bytes, std::uint64_t at = 0);
  Result<std::uint64_t> put(const std::string& text, std::uint64_t at = 0);   // with its NUL

  // clone3 with set_tid; the child is traced and stopped. Flags: CLONE_PARENT, CLONE_THREAD|….
  Result<Puppet> clone(std::uint64_t flags, std::uint64_t exit_signal, pid_t inside);
  // exit_group or a signal; waits until the tracer has seen it die.
  Result<void> end(int wait_status);
  // SIGKILL, and the same wait: for a process whose memory nobody needs.
  Result<void> end_killed();
  // One thread that is not the leader, without a trace in the memory.
  Result<void> end_thread();

  // Starts a call that may block, lets it run until it sleeps, and interrupts it: what remains
  // is the kernel's own notion of an interrupted call. Answers the value (-516 and the like).
  Result<std::int64_t> interrupted_call(long number, std::initializer_list<std::uint64_t> args);

  // Final state, then off: from a stop in which the kernel still decides about restarting calls.
  Result<void> stop_for_signals();
  Result<void> set_registers(const user_regs_struct& regs);
  Result<user_regs_struct> registers();
  Result<void> set_xsave(std::span<const std::byte> image);
  Result<void> set_mask(std::uint64_t mask);
  Result<void> suspend_seccomp();            // filters that it gets do not bind it until it is released
  Result<void> release();                    // clears EXITKILL and detaches

 private:
  Puppet(pid_t pid, pid_t inside, std::uint64_t area, PuppetGroup group);
  Result<void> adopt();                      // first stop, options, mask
  Result<void> run_to_trap(const user_regs_struct& regs);
  Result<int> wait();
  Result<void> begin_exit(long number, int status);
  Result<void> await_end();

  pid_t pid_ = 0;
  pid_t inside_ = 0;
  std::uint64_t area_ = 0;
  pid_t new_child_ = 0;                      // of the clone under way
  PuppetGroup group_;
  user_regs_struct base_{};
  Fd memory_;
  int memory_of_leader_ = -1;
};

// Offset of a two-byte `syscall` instruction in the vdso of this machine; 0: none.
std::uint64_t vdso_syscall_offset();

}  // namespace baton::restore
