// Host: runs the tenure machine of one node (or of the coordinator, as a voter): its thread,
// its voter log, its connections to the other voters. What the machine decides comes as
// effects; what happens on the node goes in as events.
//
// Threads: one, the frame hub's, steps the machine and calls the handlers, which must be brief
// and never wait: a hot term is 30 ms. The public functions may be called from any thread;
// ask() blocks and may not be called from a handler.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "base/error.h"
#include "tenure/machine.h"
#include "tenure/voter_log.h"
#include "transport/frame_hub.h"

namespace baton::tenure {

// Where a peer's host listens: the port above its page stream's; the coordinator's (which has
// none): above its RPC port. Empty: the address makes no sense.
std::string tenure_address(const pb::PeerAddress& peer);

class Host {
 public:
  struct Handlers {
    std::function<pb::TenureTip(const std::string& workload)> tip;             // as View
    std::function<pb::TenureTip(const std::string& workload)> held;            // as View; unset: as tip
    std::function<bool(const std::string& workload)> knows_commits;           // as View
    std::function<bool(const std::string& workload)> leaving;                 // as View; unset: never
    std::function<void(const Effect& effect)> effect;                         // kLease, kOwned, kStop, kDecided
    std::function<void(const std::string& text)> problem;                     // of the voter's disk; empty: over
  };
  struct Options {
    std::string self;            // a node's name, or "coordinator"
    std::string listen;          // HOST:PORT
    std::string folder;          // of the voter's log
  };
  // Fails: as VoterLog::open and FrameHub::start.
  static Result<std::unique_ptr<Host>> start(Options options, const transport::TlsFiles& tls, Handlers handlers);
  ~Host();
  int port() const { return hub_->port(); }

  // What happens here; not for kPropose, kTakeOver and kQuery.
  void tell(Event event);
  // A peer that no record names: the coordinator, for instance.
  void know(const pb::PeerAddress& peer);

  // The outcome of kPropose, kTakeOver or kQuery: the record that holds then.
  // Fails: kNotFound (no such workload here), kConflict (it changed underneath, or another change
  // is under way), kTimedOut (no majority answers: nothing has happened), kUnknownOutcome (it may
  // still be decided).
  Result<pb::TenureRecord> ask(Event event, std::chrono::nanoseconds timeout);

  // What is known here, after the machine's last step.
  struct Known {
    pb::TenureRecord record;
    Time may_run_until{};        // Time::max(): without limit
    bool refused = false;        // a voter answers, and does not support us
    bool granted = false;        // granted_by_majority
    bool changing = false;       // a change of its record, proposed here, is under way
    std::vector<std::string> counting;
    bool voted_for_another = false;
  };
  std::optional<Known> known(const std::string& workload) const;
  // After the step under way: what was told to `tip` before is known to every later vote.
  bool voted_for_another(const std::string& workload, const std::string& owner) const;
  std::map<std::string, Known> all() const;
  bool linked(const std::string& peer) const;
  pid_t thread() const { return thread_; }   // which votes and renews; 0: not yet
  // Waits until `ready` holds for what is known of the workload. Empty: not within `timeout`.
  std::optional<Known> wait(const std::string& workload, std::chrono::nanoseconds timeout,
                            const std::function<bool(const Known&)>& ready) const;

 private:
  class NodeView;
  struct Answer {
    bool done = false;
    Outcome outcome = Outcome::kDone;
    pb::TenureRecord record;
    std::string text;
  };
  Host(Options options, Handlers handlers);
  void step(const Event& event);
  void publish(const std::vector<Effect>& effects);
  void update_peers();

  const Options options_;
  const Handlers handlers_;

  // The hub's thread:
  State state_;
  std::unique_ptr<NodeView> view_;
  std::map<std::string, std::string> peers_;

  std::atomic<pid_t> thread_{0};
  std::atomic<std::uint64_t> steps_{0};   // odd: a step is under way
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<std::string, Known> known_;
  std::set<std::string> linked_;
  std::map<std::string, pb::PeerAddress> told_peers_;
  std::map<std::uint64_t, Answer> answers_;
  std::uint64_t next_request_ = 1;

  std::mutex end_mutex_;
  bool ended_ = false;
  std::unique_ptr<transport::FrameHub> hub_;
  std::unique_ptr<VoterLog> log_;
};

}  // namespace baton::tenure
