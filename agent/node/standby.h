// Standby: what this node keeps ready of a workload that runs elsewhere.
//
//   cold  its checkpoints are in the store.
//   warm  the newest committed one is in memory; the processes are built at activation.
//   hot   a shadow: its processes, built and stopped, brought to each checkpoint behind its
//         commit. Activation only sets registers and timers, and lets go.
//
// A shadow stands at a whole committed checkpoint or is on its way to the next; the way, once
// begun, is gone to its end before an activation. It can never run by accident: it is stopped
// by ptrace, and killed by the kernel when the warden ends. Where it cannot follow (processes
// came or went), another is built beside it, which then takes its place.
//
// Standbys shares this node's budget of memory among all of them (standby_budget.h), and
// writes DATA/workloads/NAME.standby (the spec without its secret), from which a restarted
// agent builds again, and with which it takes over.
//
// Threads: one of its own per standby. Public functions may be called from any thread.
// `work_mutex_` is held for each piece of work on the warden's shadow or the image.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "agent/node/standby_budget.h"
#include "agent/node/warden.h"
#include "agent/node/warm_image.h"
#include "base/clock.h"
#include "proto/workload.pb.h"

namespace baton::node {

struct StandbyEnv {
  Warden* warden = nullptr;
  storage::Store* store = nullptr;
  const Clock* clock = nullptr;
  std::function<void(const std::string& kind, const std::string& workload, const std::string& text)> event;
  std::mutex* one_build = nullptr;     // held while a shadow is built: one at a time per node
};

struct StandbyView {
  pb::Mode mode = pb::MODE_COLD;       // what it is at present
  std::string problem;                 // why it is less than wanted, or behind
  std::uint64_t ready_seq = 0;         // the checkpoint in memory, or at which the shadow stands
  std::uint64_t bytes = 0;
};

struct ActivationOrder {
  std::uint64_t seq = 0;               // must be this one; 0: the newest held here
  std::uint64_t incarnation = 0;
  pb::WorkloadSpec spec;
  bool paused = false;
  // Asked right before it is let go: until when it may run (ActivateRequest.lease_until_ns).
  std::function<Result<std::uint64_t>()> lease;
};
struct Activated {
  pb::WorkloadProcess process;
  std::uint64_t seq = 0;
  pb::Mode mode = pb::MODE_COLD;
};

class Standby {
 public:
  // `claim_changed`: its memory or what it wants has changed.
  Standby(const StandbyEnv& env, std::string name, pb::WorkloadSpec spec, std::function<void()> claim_changed);
  ~Standby();   // what it holds in memory goes; the store keeps its checkpoints

  void set_spec(const pb::WorkloadSpec& spec);
  // For a migration: hot, whatever the spec says, until released.
  void want_hot(bool wanted);
  pb::WorkloadSpec spec() const;                           // without its secret
  StandbyClaim claim() const;
  void grant(const StandbyGrant& grant);

  // The receiver's side.
  void stage(std::span<const transport::PageRef> pages);
  void committed(std::uint64_t pages_total);
  // Ahead of the commit of `seq`: waits, for `most`, while a shadow is far behind, so that what a
  // takeover would have to apply first stays little. The primary's checkpoints become rarer then,
  // and its lag tells.
  void let_catch_up(std::uint64_t seq, std::chrono::milliseconds most);

  void wake();                                             // the warden has been restarted
  StandbyView view() const;
  // Waits until it stands ready at `seq` or beyond. False: not within `timeout`, or it is not hot.
  bool wait_hot(std::uint64_t seq, std::chrono::milliseconds timeout);
  // Runs it: from the shadow, else from the image in memory. Empty: neither is there; then
  // nothing of it is left on the warden. Afterwards this object does no more.
  // Fails: the warden's error of the last way; nothing runs.
  Result<std::optional<Activated>> activate(const ActivationOrder& order);
  // No more work; the shadow goes.
  void retire();

 private:
  void loop();
  std::optional<std::chrono::milliseconds> step();         // when it is due again unasked, if it failed
  Result<void> do_step(pb::Mode granted);
  Result<void> follow();
  Result<void> keep_warm();
  Result<void> build(bool beside);
  Result<void> build_now(bool beside);
  Result<void> bring_to(const RestoreImage& image);        // kConflict: it cannot follow, and stands where it stood
  Result<pb::ShadowResponse> send(pb::ShadowRequest& request, std::span<PieceGet> pages, PageSource& source, bool last);
  void watch_clock(const RestoreImage& image, std::int64_t ahead_ns);
  bool stands_at(const storage::CheckpointInfo& checkpoint) const { return has_shadow() && shadow_seq_ == checkpoint.seq && shadow_incarnation_ == checkpoint.incarnation; }
  Result<Activated> activate_shadow(const ActivationOrder& order, std::uint64_t seq);
  Result<Activated> activate_warm(const ActivationOrder& order, const RestoreImage& image);
  void drop_shadow();
  bool has_shadow() const { return shadow_seq_ != 0 && shadow_epoch_ == env_.warden->epoch(); }
  std::chrono::nanoseconds age_of(const RestoreImage& image) const;
  void note(pb::Mode mode, std::uint64_t seq, std::uint64_t bytes, std::string problem);

  const StandbyEnv env_;
  const std::string name_;
  const std::function<void()> claim_changed_;

  std::mutex work_mutex_;
  // Under work_mutex_:
  WarmImage image_;
  Tables shadow_tables_;
  std::uint64_t shadow_seq_ = 0, shadow_incarnation_ = 0;
  std::uint64_t shadow_epoch_ = 0;        // of the warden that has it
  std::uint32_t failures_ = 0;
  std::chrono::steady_clock::time_point rebuild_not_before_{};
  // What the shadow's clocks are ahead of a checkpoint as it is applied, and of the program: the
  // least of the last applies.
  std::int64_t clock_ahead_ns_ = 0, clock_beyond_ns_ = 0;
  std::uint32_t clock_samples_ = 0;
  bool clock_used_up_ = false;

  PageStage stage_;
  std::atomic<bool> hurry_{false};        // an activation waits: leave off what can be left off
  std::atomic<bool> staging_{false};
  std::atomic<bool> building_{false};     // its shadow follows nothing meanwhile

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  pb::WorkloadSpec spec_;
  bool want_hot_ = false;
  StandbyGrant granted_;
  StandbyView view_;
  std::uint64_t tip_pages_ = 0;
  std::uint32_t failed_in_a_row_ = 0;
  bool woken_ = true;
  bool stopping_ = false;
  std::thread thread_;
};

class Standbys {
 public:
  Standbys(StandbyEnv env, std::string folder, std::uint64_t budget_bytes);
  ~Standbys();

  // As the agent was stopped: from the files. Names in `running` are of workloads that run here.
  void load(const std::set<std::string>& running);
  // Null: the name is being taken over on this node, or there is nothing to keep ready.
  std::shared_ptr<Standby> open(const std::string& name, const pb::WorkloadSpec& spec);
  std::shared_ptr<Standby> find(const std::string& name) const;
  std::map<std::string, StandbyView> views() const;
  // Forgets it, shadow and file included; `barred`: until `allow`, so that nothing is built
  // under the name while the caller does.
  void remove(const std::string& name, bool barred = false);
  void allow(const std::string& name);
  void wake_all();                                 // the warden has been restarted
  std::uint64_t budget_bytes() const { return budget_bytes_; }

 private:
  void share();
  std::string path(const std::string& name) const;

  StandbyEnv env_;
  const std::string folder_;
  const std::uint64_t budget_bytes_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Standby>> all_;
  std::set<std::string> barred_;
  std::mutex share_mutex_;
  std::mutex one_build_;
};

// While a name is taken over nothing may be built under it for a standby.
class Barred {
 public:
  Barred(Standbys& standbys, std::string name) : standbys_(standbys), name_(std::move(name)) {}
  ~Barred() { standbys_.allow(name_); }
  Barred(const Barred&) = delete;
  Barred& operator=(const Barred&) = delete;

 private:
  Standbys& standbys_;
  const std::string name_;
};

}  // namespace baton::node
