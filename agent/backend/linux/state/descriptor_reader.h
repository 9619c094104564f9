// DescriptorReader: one reading of all descriptors of a workload. Private to the room.
//   descriptors.cc     lists them, tells which are one description, locks, epoll
//   known_descriptors.cc  what need not be read again, by what the last reading found
//   describe_files.cc  what each description is
//   carried_files.cc   those on their way through unix sockets, and what refers to other files
// Everything is read from outside, through copies of the descriptors (pidfd_getfd(2)) and /proc;
// no injected calls. Threads: the caller's.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {

struct Found {
  ProcessRef process;
  int number = -1;
  std::string target;          // of /proc/PID/fd/N
  struct stat stat {};
  FdInfo info;
  std::int64_t info_read_ns = 0;   // our CLOCK_MONOTONIC then
  Fd copy;                     // ours: the same description
  std::uint32_t file = 0;      // index in open_files
  int before = -1;             // index in the open_files of the last reading, if it still is that description
  bool kept = false;           // and nothing of it was read again
  pid_t carried_by = 0;        // no process has it: it is on its way through a socket of this one; `process` is ourselves
};

struct DescriptorMemory {
  std::vector<Found> found;    // in order of processes and numbers; without copies
  ino_t keeper_out = 0, keeper_err = 0;
};

class DescriptorReader {
 public:
  DescriptorReader(const DescriptorOptions& options, const KnownDescriptors* known, pb::LinuxState& out, std::vector<DescriptorObject>& objects)
      : options_(options), known_(known), out_(out), objects_(objects) {}

  Result<void> all(const std::vector<ProcessRef>& processes);
  std::shared_ptr<DescriptorMemory> memory();   // afterwards

 private:
  void judge(const Found& f, const char* verdict, std::string kind, std::string detail);
  Result<void> find_keeper_pipes();
  void find_terminals();
  Result<void> list(const ProcessRef& process);
  Result<void> find(const ProcessRef& process, int number);
  Result<void> make_copy(Found& f);
  Result<int> pidfd(pid_t pid);
  static Result<std::vector<int>> list_numbers(const std::string& folder);
  bool same_as(const Found& a, const Found& b) const;
  Result<void> take(Found& f);
  void take_locks(const Found& f, pb::Descriptor& d, bool first);
  static pb::RecordLock record_of(const LockLine& lock);
  void take_description_locks(const Found& f);
  Result<void> take_epoll(Found& f);
  void refuse(const Found& f, std::string kind, std::string detail) { judge(f, "refused", std::move(kind), std::move(detail)); }
  void differs(const Found& f, std::string kind, std::string detail) { judge(f, "differs", std::move(kind), std::move(detail)); }
  bool is_standard(const Found& f) const { return options_.keeper == 0 && f.number <= 2; }

  Result<void> describe(Found& f, pb::OpenFile& file);
  static void describe_socket_file(const Found& f, pb::OpenFile& file);
  static void read_owner(const Found& f, pb::OpenFile& file);
  Result<void> describe_anonymous(Found& f, pb::OpenFile& file, std::string& kind);
  static void fill_timer(const FdInfo& info, pb::OpenFile& file);
  Result<void> read_timer(Found& f, pb::OpenFile& file);
  Result<void> look_at_timers_again();
  void describe_pidfd(const Found& f, pb::OpenFile& file);
  std::vector<std::string> watched_paths(pid_t pid) const;
  void stand_in(const Found& f, pb::OpenFile& file, const std::string& what);
  Result<void> describe_pipe(Found& f, pb::OpenFile& file);
  void describe_path(Found& f, pb::OpenFile& file);
  void describe_character_device(Found& f, pb::OpenFile& file);
  void add_object(const Found& f, pb::OpenFile& file, bool memfd);

  Result<void> find_carried();
  Result<std::size_t> find_carried_file(Fd file, pid_t holder);
  static bool has_address(const pb::OpenFile& file);
  void settle_unix();

  // known_descriptors.cc
  enum class Since { kNothing, kMoved, kAltered };
  void note_what_happened();
  std::vector<Found> take_known(const ProcessRef& process);
  bool may_keep(const Found& f) const { return since_[static_cast<std::size_t>(f.before)] != Since::kAltered; }
  Result<void> look_at_unix_sockets();
  Result<bool> are_unix_sockets_kept();
  Result<void> place_known(Found& f, pb::OpenFile& file);
  Result<void> keep_socket(Found& f, pb::OpenFile& file);
  Result<void> keep_pipe(Found& f, pb::OpenFile& file);
  Result<bool> keep_epoll(Found& f);
  static Result<void> read_info_again(Found& f);
  static Result<void> read_facts_again(Found& f);
  void remap_unix_sockets();

  const DescriptorOptions& options_;
  const KnownDescriptors* known_;   // null: everything is read
  std::vector<Since> since_;        // by description of the last reading
  bool strangers_ = false;          // numbers were named that came and went: they may have been other ways to what is known
  std::vector<int> places_;         // index before -> index now, -1: not yet
  std::map<std::uint32_t, std::uint32_t> pairs_before_;   // the same, of pairs
  bool unix_kept_ = false;          // unix sockets refer to each other as they did
  std::set<std::uint32_t> pairs_moved_;   // of the last reading: those whose queues are read again
  std::map<pid_t, Fd> pidfds_;
  pb::LinuxState& out_;
  std::vector<DescriptorObject>& objects_;
  std::vector<ProcessRef> processes_;
  std::vector<Found> found_;
  std::multimap<std::pair<dev_t, ino_t>, Found*> by_inode_;
  std::map<std::pair<dev_t, ino_t>, std::uint32_t> pipes_;
  std::set<std::uint32_t> watched_;
  std::map<std::uint32_t, std::string> terminals_;   // by number: why it is refused, or empty
  SocketReader sockets_;
  std::map<ino_t, std::vector<std::vector<std::size_t>>> carried_;   // by socket and packet: places in found_
  std::size_t carried_files_ = 0;
  ino_t keeper_out_ = 0, keeper_err_ = 0;
  bool judged_ = false;        // the description under way has a verdict other than captured
};

}  // namespace baton::linux_backend::state
