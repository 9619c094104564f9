// DescriptorReader: one reading of all descriptors of a workload. Private to the room.
//   descriptors.cc     lists them, tells which are one description, locks, epoll
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
  pid_t carried_by = 0;        // no process has it: it is on its way through a socket of this one; `process` is ourselves
};

class DescriptorReader {
 public:
  DescriptorReader(const DescriptorOptions& options, pb::LinuxState& out, std::vector<DescriptorObject>& objects)
      : options_(options), out_(out), objects_(objects) {}

  Result<void> all(const std::vector<ProcessRef>& processes);

 private:
  void judge(const Found& f, const char* verdict, std::string kind, std::string detail);
  Result<void> find_keeper_pipes();
  void find_terminals();
  Result<void> list(const ProcessRef& process);
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

  const DescriptorOptions& options_;
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
