// What the parts of the state room share. Private to it.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/remote/syscall_watch.h"
#include "agent/backend/linux/state/state.h"
#include "agent/backend/linux/state/tcp.h"
#include "base/fd.h"

namespace baton::linux_backend::state {

// A call with a time limit that the last freeze met (timed_calls.cc).
struct TimedCallSeen {
  long number = 0;
  std::uint64_t value = 0;      // the argument with which it was made again
  std::int64_t until = 0;       // our CLOCK_MONOTONIC, ns
};

struct DescriptorMemory;          // descriptor_reader.h

struct LockFuture { std::uint64_t locked_kib = 0; std::uint32_t flags = 0; };

struct StateContext::Impl {
  std::map<pid_t, int> restart_calls;            // thread -> the call that its restart block stands for
  std::map<pid_t, TimedCallSeen> timed_calls;    // by thread
  std::uint32_t timed_call_number = 0;
  std::int64_t workload_shift_ns = 0;            // the workload's CLOCK_MONOTONIC minus ours
  std::map<pid_t, LockFuture> lock_future;       // by process (options.cc)
  std::vector<DescriptorObject> objects;         // of the last capture
  std::shared_ptr<DescriptorMemory> memory;      // of the last reading of descriptors; null: none to begin with
  std::chrono::steady_clock::time_point look_again{};      // when look_from_outside is due
  std::string vdso_digest;
  std::vector<pb::XsaveComponent> xsave_layout;
  RepairGuard guard;
  // The last capture in parts. A field is in one of them only.
  pb::LinuxState lasting, descriptors, momentary;
  bool lasting_valid = false, descriptors_valid = false;   // read whole, and may be taken again
  std::map<pid_t, pid_t> tids;                   // ours -> inside, of the threads in `lasting`
  struct Holder { pid_t pid = 0, ns_pid = 0; std::vector<pid_t> tids; };
  std::vector<Holder> holders;                   // of what is in `lasting`, zombies left out
  pb::ClockState clocks;
  ClockOffsets offsets;                          // of the root's time namespace
};

// A process as the descriptor reader sees it.
struct ProcessRef {
  pid_t pid = 0;      // ours
  pid_t ns_pid = 0;   // inside
};

// Where problems go: capture stops at the first, inspect collects all.
struct Problem {
  pid_t pid = 0;
  std::string resource, kind, verdict, detail;   // verdict: refused, differs, captured
};
using Report = std::function<void(const Problem&)>;

inline Error refusal(const Problem& p) {
  return make_error(Code::kUnsupported, "capture",
                    "process " + std::to_string(p.pid) + ", " + p.resource + ": " + p.detail);
}

// fdinfo.cc ------------------------------------------------------------------
// "key: value" lines of /proc/PID/fdinfo/FD; lines that repeat (tfd, lock, inotify) in order.
struct FdInfo {
  std::uint64_t position = 0;
  std::uint32_t flags = 0;
  std::multimap<std::string, std::string> fields;
  std::string field(const std::string& key) const;
};
Result<FdInfo> read_fdinfo(pid_t pid, int fd);
// A line of "lock:": false when it is of a kind that has no place here.
struct LockLine {
  enum Kind { kFlock, kPosix, kOfd, kLease, kOther } kind = kOther;
  bool write = false;
  bool settled = false;                 // a lease that nobody wants to break
  pid_t pid = 0;
  std::uint64_t start = 0, bytes = 0;   // bytes 0: to the end of the file
};
LockLine parse_lock(const std::string& text);

// watches.cc -------------------------------------------------------------------
// The watches of an inotify descriptor, with their paths as process `pid` sees them. `paths`:
// where to look for what has no handle. A watch without a name goes into `refused`.
Result<void> read_watches(pid_t pid, const FdInfo& info, const std::vector<std::string>& paths, pb::OpenFile& out,
                          std::string& refused);

// pipes.cc ---------------------------------------------------------------------
// Content of the pipe whose read end `reader` is (ours, the same description), left in place.
Result<void> read_pipe(int reader, bool packets, pb::Pipe& out);

// unix_queues.cc ---------------------------------------------------------------
struct WaitingPacket {
  std::string data;
  std::vector<Fd> files;                         // ours: copies of what is on its way
  std::string sender;                            // sockaddr_un of a datagram's sender; empty: no name
};
struct WaitingQueue { std::vector<WaitingPacket> packets; };
// All that waits to be received, left in place. kUnsupported: too much.
Result<void> read_unix_queue(int fd, int type, WaitingQueue& out);

// sockets.cc, unix_sockets.cc ------------------------------------------------------
// What sock_diag(7) tells of one unix socket.
struct UnixFacts {
  int type = 0;
  std::uint64_t peer = 0;                        // inode; 0: it has none, or one that nobody holds
  bool had_peer = false;                         // connected, even if the peer is gone or waits to be accepted
  std::uint32_t shut = 0;                        // 1: receive, 2: send
  std::uint32_t receive_queue = 0;               // bytes; of a listener: connections
  std::vector<std::uint32_t> waiting;            // of a listener: the clients' inodes, in order; 0: gone already
};
struct SocketReader {
  const pb::WorkloadSpec* spec = nullptr;
  pb::LinuxState* out = nullptr;
  std::set<std::uint64_t> inside;                // inodes of all sockets that the workload holds
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint32_t> pairs;   // inodes, lower first -> index
  std::map<std::uint64_t, UnixFacts> unix_facts; // by inode
  struct Waits { std::uint64_t listener = 0; std::int64_t order = 0; };
  std::map<std::uint64_t, Waits> waits;          // clients that have not been accepted, by inode
  bool unix_known = false;
  // By inode, read before any socket is described; and those of them that have a place in `out`.
  std::map<std::uint64_t, WaitingQueue> queues;
  std::map<std::uint64_t, std::string> refused_queues;
  std::vector<std::pair<int, std::uint64_t>> placed_queues;   // index in unix_queues, inode
  pid_t any_pid = 0;                             // whose network namespace counts
  bool stopped = false;                          // queues may be read
  bool groups_known = false;
  std::vector<std::pair<std::uint32_t, std::string>> groups;   // of any_pid's network: interface, sockaddr
  RepairGuard* guard = nullptr;                  // set: TCP connections are read; else only judged
  std::map<std::string, std::uint64_t> tcp_ends; // local and peer name of every connection inside -> inode

  Result<void> read_datagrams(int fd, pb::Socket& socket, const pb::Socket* known, std::string& refused);   // udp.cc
  Result<void> read_netlink(int fd, pb::Socket& socket, std::string& refused, std::string& differs);
  void note_ends(int fd, std::uint64_t inode);   // sockets.cc: before any is read
  // sockets.cc: a TCP socket that is neither closed nor listening.
  Result<void> read_tcp(int fd, int state, pb::Socket& socket, std::string& refused, std::string& differs);

  // Fills file.socket from our copy `fd`; a refusal goes into `refused`. `known`: the same socket as
  // it was read before; its options and memberships still hold.
  Result<void> read(int fd, std::uint64_t inode, pb::OpenFile& file, const pb::Socket* known, std::string& refused, std::string& differs);
  Result<void> read_unix(int fd, std::uint64_t inode, pb::Socket& socket, std::string& refused, std::string& differs);
  Result<void> load_unix();
  // Those that have a queue, before any is read.
  Result<void> load_unix_queue(int fd, std::uint64_t inode);
  // Another program holds its other end.
  bool leads_outside(std::uint64_t inode) const;
  // The same of one that is known to be connected to another inside; false: descriptors wait in it.
  Result<bool> load_queue_of_pair(int fd, int type, std::uint64_t inode);
  void place_queue(std::uint64_t inode, pb::Socket& socket, std::string& refused);

 private:
  void read_unix_listener(const UnixFacts& facts, pb::Socket& socket, std::string& refused, std::string& differs);
  void read_unix_outside(int fd, pb::Socket& socket, std::string& refused, std::string& differs);
  void read_unix_inside(int fd, const UnixFacts& facts, std::uint64_t inode, pb::Socket& socket, std::string& refused);
};
void read_socket_options(int fd, pb::Socket& socket);
void read_unix_buffer_sizes(int fd, pb::Socket& socket);

// descriptors.cc ---------------------------------------------------------------
struct DescriptorOptions {
  const pb::WorkloadSpec* spec = nullptr;
  pid_t keeper = 0;
  RepairGuard* guard = nullptr;   // set: TCP connections are read
  bool running = false;       // inspect: descriptors may come and go meanwhile
  Report report;              // refusals and differences
  Report captured;            // may be empty; every descriptor that is taken as it is
  std::vector<pb::FileProof>* proofs = nullptr;   // may be null
  std::int64_t clocks_read_ns = 0;   // our CLOCK_MONOTONIC when those that times left are relative to were read; 0: now
};
// What the last reading has found, and what has happened since.
struct KnownDescriptors {
  DescriptorMemory* memory = nullptr;        // taken apart
  pb::LinuxState* state = nullptr;           // that the memory's places refer to; taken apart
  const SyscallWatch* notes = nullptr;       // which numbers were named since
  bool same_numbers = false;                 // no call of the kind `descriptor`
};
// `known`: may be null. The answer: what the next reading can begin with.
Result<std::shared_ptr<DescriptorMemory>> read_descriptors(const std::vector<ProcessRef>& processes, const DescriptorOptions& options,
                                                           const KnownDescriptors* known, pb::LinuxState& out,
                                                           std::vector<DescriptorObject>& objects);
// Whether files are where the last reading found them; others may have renamed or removed them.
bool are_in_place(const DescriptorMemory& memory);

// timed_calls.cc -------------------------------------------------------------------
// Call with `out.registers` filled and nothing injected into the thread yet.
Result<void> keep_time(Tracee& tracee, StateContext::Impl& context, std::int64_t workload_shift_ns, pb::Thread& out);

// options.cc -----------------------------------------------------------------------
void ask_options(bool leader, std::vector<RemoteCall>& calls);
void take_options(bool leader, std::span<const std::int64_t> answers, pb::ProcessState& process, pb::Thread& thread);
Result<void> read_lock_future(pid_t pid, std::uint64_t locked_kib, std::uint64_t scratch, StateContext::Impl& context, pb::ProcessState& out);
Result<void> read_seccomp(pid_t tid, int mode, pb::LinuxState& state, pb::Thread& out);
Result<void> check_dispatch(pid_t tid);   // kUnsupported: syscall user dispatch

// threads.cc, process.cc -----------------------------------------------------------
// What changes from one moment to the next: registers, masks, queues. By ptrace(2) alone.
Result<void> read_threads_now(StoppedProcess& process, StateContext::Impl& context, pb::ProcessState& out);
// What a thread keeps until it calls for something else; injects calls. After read_threads_now.
Result<void> read_threads(StoppedProcess& process, StateContext::Impl& context, pb::LinuxState& state, pb::ProcessState& out);
// What /proc tells: tree, credentials, limits, folders.
struct Places { std::map<pid_t, pid_t> inside; };   // our pid -> inside
Result<void> read_process(pid_t pid, const Places& places, pb::ProcessState& out);
// Of these, what other programs may change (prlimit(2), renice(1), a rename of the working directory).
Result<void> read_changeable(pid_t pid, pb::ProcessState& out);
void read_changeable(pid_t tid, pb::Thread& out);
Result<void> add_zombies(const StoppedTree& tree, const Places& places, pb::LinuxState& out);
// Refuses what no process may have: seccomp filters, foreign namespaces, a tracer.
void check_process(pid_t pid, pid_t keeper, const pb::WorkloadSpec& spec, const Report& report);
bool share_tables(pid_t process, pid_t thread);          // descriptors, and working directory
std::string shared_tables(pid_t a, pid_t b);             // of two processes: what is refused; empty: nothing
// terminals.cc
struct TerminalEnd { std::uint32_t number = 0; bool master = false; };
// Of a pseudo-terminal, also by /dev/tty; none: something else.
std::optional<TerminalEnd> terminal_end(int fd, const struct stat& st);
// The number of the controlling terminal, plus 1; 0: it has none. Fields as read_stat_fields gives them.
std::uint32_t terminal_of(const std::vector<std::string>& stat_fields);
// `slave`: -1: nobody has one. `refused`: why it cannot be captured.
void read_terminal(int master, int slave, std::uint32_t number, const std::vector<ProcessRef>& processes, pb::Terminal& out, std::string& refused);
struct StatusFacts {
  int seccomp = 0;                // mode
  std::uint64_t locked_kib = 0;   // VmLck
};
Result<void> read_credentials(pid_t tid, pb::Credentials& out, StatusFacts& facts);

pb::ProcessState* find_or_add(pb::LinuxState& state, pid_t ns_pid);
std::string read_status_field(const std::string& status, const std::string& key);

}  // namespace baton::linux_backend::state
