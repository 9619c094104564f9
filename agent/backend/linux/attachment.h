// The linux backend's Attachment: a process tree with one AddressSpace per address space and
// one SharedObject per shared one, kept between captures; nothing is traced or stopped then.
//
// Threads: calls from any thread, one at a time; tracing happens on a thread of its own.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "agent/backend/backend.h"
#include "agent/backend/linux/approach.h"
#include "agent/backend/linux/memory/address_space.h"
#include "agent/backend/linux/memory/shared_object.h"
#include "agent/backend/linux/remote/freeze.h"
#include "agent/backend/linux/remote/ptrace_thread.h"
#include "agent/backend/linux/remote/syscall_watch.h"
#include "agent/backend/linux/state/ipc.h"
#include "agent/backend/linux/state/state.h"
#include "agent/volume/volume_client.h"

namespace baton::linux_backend {


class LinuxAttachment final : public backend::Attachment {
 public:
  // Takes up every process, tracked from here on. Fails as Backend::attach.
  static Result<std::unique_ptr<LinuxAttachment>> attach(const backend::AttachTarget& target);
  ~LinuxAttachment() override;

  std::string tracker_name() const override;
  std::string copier_name() const override { return copier_ ? std::string(copier_->name()) : std::string(); }
  Result<backend::RoundStats> round(backend::PageSink& sink,
                                    std::span<const backend::PageRange> again) override;
  Result<backend::CaptureStats> capture(const backend::CaptureOptions& options, backend::PageSink& sink,
                                        pb::Manifest& manifest) override;
  Result<void> thaw() override;
  Result<void> destroy() override;

 private:
  struct Process {
    pid_t ns_pid = 0;
    std::shared_ptr<AddressSpace> space;
  };
  // A shared object is one file, whatever device and inode number it shows where.
  using FileKey = std::pair<std::uint64_t, std::uint64_t>;
  struct Captured;          // what a freeze leaves to be written into the manifest after the thaw

  explicit LinuxAttachment(const backend::AttachTarget& target);

  // All on the tracing thread.
  Result<void> take_up(const std::vector<pid_t>& pids, Freeze* frozen);
  Result<void> take_up_one(pid_t pid, Tracee& thread);
  void drop_ended(const std::vector<pid_t>& pids);
  void drop_split_spaces();
  Result<bool> enroll_new();   // whether there was anything worth it
  Result<void> collect_private(backend::PageSink& sink, Freeze* frozen, backend::RoundStats& stats);
  Result<void> copy_private(backend::PageSink& sink, backend::RoundStats& stats);
  Result<void> stage_private(backend::PageSink& sink, backend::RoundStats& stats);
  void emit_staged(backend::PageSink& sink, backend::RoundStats& stats);
  // `same`: nobody has made a call since the last freeze that could have changed System V objects.
  Result<void> copy_shared(backend::PageSink& sink, backend::RoundStats& stats, bool same, bool stopped);
  Result<void> read_ipc(bool same, bool stopped);
  Result<void> check_segment(const MemoryMap& map, const Vma& v) const;
  static FileKey maps_key(const Vma& v);
  Result<SharedObject*> shared_object(Fd fd, pb::MemoryObjectKind kind, const std::string& name);
  Result<SharedObject*> shared_mapping(const MemoryMap& map, const Vma& v);
  // attachment_volumes.cc
  Result<void> open_volumes();
  bool in_volume(std::string_view path) const;
  Result<void> copy_volumes(backend::PageSink& sink, backend::RoundStats& stats);
  Result<bool> flush_volume_mappings();
  Result<void> verify_volumes(VerifyReport& report);
  void write_volumes(pb::LinuxState& state, pb::Manifest& manifest) const;
  void drop_unseen_objects();
  void copy_again(std::span<const backend::PageRange> ranges);
  std::uint64_t pages_pending() const;

  Result<backend::RoundStats> do_round(backend::PageSink& sink, std::span<const backend::PageRange> again);
  Result<backend::CaptureStats> do_capture(const backend::CaptureOptions& options,
                                           backend::PageSink& sink, pb::Manifest& manifest);
  // Copy rounds beside the program, as many as pay.
  Result<void> approach_freeze(const backend::CaptureOptions& options, backend::PageSink& sink,
                               backend::CaptureStats& stats);
  Stillness stillness(bool stopped) const;
  void begin_watch();
  void judge_watch(bool proved, std::chrono::nanoseconds frozen);
  std::unique_ptr<Freeze> freeze_now(Result<void>& outcome);
  Result<void> capture_frozen(Freeze& freeze, const backend::CaptureOptions& options,
                              backend::PageSink& sink, backend::CaptureStats& stats, Captured& out);
  Result<void> read_objects(backend::PageSink& sink, backend::CaptureStats& stats, Captured& out);
  Result<void> describe_tree(Freeze& freeze, StoppedTree& tree, Captured& out);
  Result<void> order_tree(StoppedTree& tree);
  Result<void> let_connections_settle(std::unique_ptr<Freeze>& freeze);
  Result<void> hold_network();
  void release_network();
  void write_manifest(const Captured& captured, pb::Manifest& manifest);
  void prove_files(const Captured& captured, pb::Manifest& manifest);

  struct AttachedVolume {
    std::string folder;
    std::uint64_t object = 0;
    std::unique_ptr<volume::VolumeClient> server;
    std::string socket;
    std::map<std::uint64_t, ContentMap::Digest> handed_out;   // for verification
  };

  backend::AttachTarget target_;
  Members members_;
  std::vector<AttachedVolume> volumes_;
  std::map<pid_t, Process> processes_;
  std::map<FileKey, std::unique_ptr<SharedObject>> shared_;
  std::map<FileKey, SharedObject*> by_maps_key_;   // device and inode as maps writes them
  std::unique_ptr<state::IpcNamespace> ipc_;       // null: not the workload's alone
  bool ipc_entered_ = false;
  state::IpcContent ipc_content_;                  // of the last read
  std::map<int, SharedObject*> segments_;          // by shmid
  state::StateContext state_;
  std::unique_ptr<SyscallWatch> watch_;            // null: not possible here, or given up for a while
  // At the end of the last whole freeze; what was read there is proved to hold by equal counts.
  struct Proven {
    SyscallWatch::Counts counts;
    Roster roster;
  };
  std::optional<Proven> proven_;
  std::chrono::steady_clock::time_point watch_from_{}, watch_again_{};
  std::uint64_t calls_then_ = 0, captures_watched_ = 0;    // since watch_from_
  std::chrono::nanoseconds frozen_proved_{0}, frozen_whole_{0};   // averages: without and with reading everything
  Approach approach_;
  std::shared_ptr<Copier> copier_;
  std::uint32_t granularity_ = 1;
  std::uint64_t next_object_ = 1;
  std::unique_ptr<Freeze> kept_;                   // after keep_frozen
  bool network_held_ = false;                      // what arrives is held: with kept_, until it ends
  PtraceThread tracer_;
};

}  // namespace baton::linux_backend
