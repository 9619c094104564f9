// One workload under this warden: its processes, its record, its tracking, its build.
//
// Threads: a thread of its own makes every backend call (ptrace(2) binds a tracee to the
// thread that seized it) and runs the tasks posted to it in order; all functions marked
// "own thread" are called from such tasks. snapshot() and place() are for any thread.
//
// Freezes. A capture that keeps the program frozen does it by ptrace: that ends with this
// process, with the agent's connection, or after kKeptFrozenMax. hold() makes it a freeze by
// cgroup, which outlives everything until thaw() or stop(). A hold after such a freeze has
// run out is refused (kConflict): the captured state is then no longer the newest. A lease that
// has run out freezes by cgroup too (lease_table.h); the cgroup is thawed when neither holds.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "agent/backend/backend.h"
#include "agent/network/hold.h"
#include "agent/network/port.h"
#include "agent/warden/capture_buffer.h"
#include "agent/warden/launcher.h"
#include "agent/warden/lease_table.h"
#include "agent/warden/process.h"
#include "agent/warden/record.h"
#include "agent/warden/watchdog.h"
#include "base/cgroup.h"
#include "base/queue.h"
#include "proto/warden.pb.h"

namespace baton::warden {

inline constexpr std::size_t kTasksMax = 64;            // waiting for one workload
inline constexpr std::size_t kTasksReserved = 16;       // of them for the warden's own
inline constexpr std::size_t kRoundBytesMax = 128u << 20;   // one round's answer
inline constexpr std::chrono::milliseconds kKeptFrozenMax{30'000};
inline constexpr std::chrono::milliseconds kHoldTimeout{5'000};
inline constexpr int kUnknownWaitStatus = -1;
inline constexpr std::string_view kBesideSuffix = ".beside";   // a cgroup's: no workload's name has a dot

// What the workloads of one warden share.
struct Surroundings {
  const RecordStore* records = nullptr;
  CaptureBuffer* capture_buffer = nullptr;
  std::span<const std::byte> fill_buffer;               // written by the agent at any time
  std::function<backend::Backend*(const std::string& name)> backend;   // null: no such
  std::string default_backend;
  Launcher launch;
  Watchdog* watchdog = nullptr;
  LeaseTable* leases = nullptr;
  std::chrono::milliseconds freeze_limit{5'000};
  Cgroup cgroups;                                        // parent of every workload's
  std::string boot_id;
  network::Switch* frames = nullptr;                    // null: no workload here can have an address
  // The other workload of this node that has one of these addresses; empty: none.
  std::function<std::string(std::uint64_t workload_id, const pb::WorkloadSpec&)> address_holder;
  std::function<void(int pidfd, std::uint64_t workload_id)> watch_exit;
  std::function<void(const pb::WardenEvent&)> event;
  std::function<bool(std::uint64_t workload_id, std::function<void()> task)> post;  // by id: it may be gone
};

class Workload {
 public:
  Workload(const Surroundings& around, std::uint64_t id, std::string name);
  ~Workload();      // gives tracked programs back, running; discards a build
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  std::uint64_t id() const { return id_; }
  const std::string& name() const { return name_; }
  // False: too much is waiting already. `own`: a task of the warden itself.
  bool post(std::function<void()> task, bool own = false);
  bool idle() const { return tasks_open_.load() == 0; }

  pb::WorkloadProcess snapshot() const;   // state empty: there is nothing under this name
  struct Place {
    pid_t root = 0, keeper = 0;
    std::string cgroup, log_path;
    pb::WorkloadSpec spec;
    bool has_log = false;
    std::string backend;
  };
  Place place() const;

  // The egress gate, as a lease has it: open until then (CLOCK_BOOTTIME; 0: without end). Without
  // an address there is none. Any thread.
  Result<void> open_gate(std::uint64_t until_boot_ns);
  // Output commit: any thread. Fails: kNotFound.
  Result<void> release_output(std::uint64_t epoch);

  // Own thread.
  void take_up(const pb::WardenRecord& record);     // after a restart
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec& spec);
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec& spec);
  Result<void> round(const pb::RoundRequest& request, pb::RoundResponse& response);
  Result<void> capture(const pb::CaptureRequest& request, pb::CaptureResponse& response);
  Result<void> thaw();
  Result<void> hold();
  Result<void> stop(const pb::StopRequest& request);
  Result<void> release();
  Result<void> build(const pb::BuildRequest& request);
  Result<void> fill(const pb::FillRequest& request);
  // A shadow: a build that follows a workload which runs elsewhere. See shadow.cc.
  Result<void> shadow(const pb::ShadowRequest& request, pb::ShadowResponse& response);
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request);
  Result<void> signal(int number);
  void agent_gone();
  void process_ended();
  void publish();                                   // brings snapshot() and place() up to date

 private:
  void run_tasks();
  Result<void> begin(const pb::WorkloadSpec& spec, const char* phase, const std::string& backend);
  Result<void> set_phase(const char* phase);
  Result<void> adopt(pid_t root, pid_t keeper);
  void watch();
  void clean_up(bool kill);
  Result<void> move_in(pid_t root);
  void move_back();
  Result<void> need_running(const char* operation) const;
  Result<void> need_attachment();
  void mark_exited(int wait_status);
  int find_wait_status() const;
  Result<backend::Backend*> find_backend(const std::string& name, const std::string& tracker) const;
  void expire_kept_freeze(std::uint64_t freeze);
  Result<void> build_beside(const pb::BuildRequest& request);
  Result<void> apply_shadow(const pb::ShadowRequest& request, pb::ShadowResponse& response);
  Result<void> replace_shadow(const pb::ShadowRequest& request);
  void drop_beside();
  void remove_cgroup(Cgroup& group);
  template <typename Runs>
  Result<void> fill_runs(backend::Build& build, const Runs& runs);
  backend::BuildTarget build_target(const pb::BuildRequest& request, const std::string& cgroup, network::Port* port,
                                    const std::vector<backend::VolumePlace>& volumes);
  // workload_volumes.cc
  Result<std::vector<backend::VolumePlace>> plan_volumes() const;
  void record_volumes(const std::vector<backend::VolumePlace>& places);
  std::vector<backend::VolumePlace> volumes() const;
  Result<void> start_volumes();
  void end_volumes(bool write_back);
  void judge_volumes(const Error& error);   // of a capture or round
  // workload_network.cc
  Result<void> plan_network(bool ask_neighbours);
  Result<void> plan_network_beside();
  void take_network_beside();
  Result<void> attach_network();
  void detach_network();
  void take_up_network();
  void make_hold();
  void remove_network();

  const Surroundings& around_;
  const std::uint64_t id_;
  const std::string name_;

  // Own thread.
  pb::WardenRecord record_;               // phase empty: nothing there
  Cgroup cgroup_;
  HeldProcess root_, keeper_;
  std::unique_ptr<network::Port> port_;   // with addresses in the spec
  std::mutex hold_mutex_;                 // making and end of port_ and hold_, for other threads
  std::unique_ptr<network::Hold> hold_;   // with port_; outlives attachment_
  std::unique_ptr<backend::Attachment> attachment_;
  std::unique_ptr<backend::Build> build_;
  std::chrono::steady_clock::time_point build_asked_{};   // when the request under way came
  std::uint64_t shadow_seq_ = 0;          // the checkpoint at which build_ stands; 0: it follows none
  std::uint64_t applying_seq_ = 0;        // on its way there: it stands nowhere whole
  std::unique_ptr<backend::Build> beside_;   // what will replace build_
  Cgroup beside_cgroup_;
  std::unique_ptr<network::Port> beside_port_;   // of beside_
  std::vector<backend::VolumePlace> beside_volumes_;
  CaptureSink sink_;
  bool kept_frozen_ = false;              // by the attachment
  bool held_ = false;                     // by cgroup
  bool freeze_expired_ = false;
  bool agent_lost_frozen_ = false;        // tracking has to start anew after the thaw
  std::uint64_t freezes_ = 0;

  mutable std::mutex published_mutex_;
  pb::WorkloadProcess published_;
  Place published_place_;

  BoundedQueue<std::function<void()>> tasks_{kTasksMax};
  std::atomic<std::size_t> tasks_open_{0};
  std::thread thread_;                    // last: everything above exists when it starts
};

}  // namespace baton::warden
