// Machine: one node's part in the tenure of all workloads that concern it, as a pure state
// machine: step(state, event, now, view) -> effects. docs/tenure.md specifies it: messages,
// invariants and the argument for "at most one instance".
//
// The same machine serves an owner, a voter, a standby that may take over, and the
// coordinator when it is a voter; what it does follows from the records that it knows.
//
// No clock, no disk, no network: time is passed in, writes and messages are effects. Messages
// that rest on a write are held back until Event::kStored says that it is on disk.
// check_invariants() runs after every step.
//
// Bounded: kMaxWorkloads, kMaxPeers; one proposal and one waiting ACCEPT per workload.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "proto/tenure.pb.h"
#include "tenure/detector.h"
#include "tenure/record.h"
#include "tenure/terms.h"

namespace baton::tenure {

// What the machine reads of its node: never blocks.
class View {
 public:
  virtual ~View() = default;
  // The newest committed checkpoint of `workload` that this node knows of: a standby's own,
  // a primary's last commit. Zero: none.
  virtual pb::TenureTip tip(const std::string& workload) const = 0;
  // The newest checkpoint that this node could run it from: not what only others hold.
  virtual pb::TenureTip held(const std::string& workload) const { return tip(workload); }
  // Whether this node, as the owner, remembers what it has committed: not after a restart.
  virtual bool knows_commits(const std::string& workload) const = 0;
  // Whether this node, as the owner, is about to give it to another: no time for other voters.
  virtual bool leaving(const std::string& /*workload*/) const { return false; }
};

enum class EventKind {
  kTick,
  kLinkUp,      // peer
  kLinkDown,    // peer
  kFrame,       // peer, frame
  kStored,      // token: everything up to it is on disk
  kAdopt,       // record: decided by the coordinator's registry
  kWant,        // workload, want: the owner wishes these voters and standbys; once, and when they change
  kPropose,     // request, workload, want.owner, reason, …: a new owner
  kTakeOver,    // request, workload, reason: this node wants to become the owner
  kQuery,       // request, workload: who is the owner, for certain
  kRunning,     // workload: its program is here (running, frozen or being migrated away)
  kGone,        // workload: it is not here any more (ended, stopped, machine restarted)
  kForget,      // workload: deleted
};
struct Event {
  EventKind kind = EventKind::kTick;
  std::string peer;
  std::string workload;
  pb::TenureFrame frame;
  std::uint64_t token = 0;
  pb::TenureRecord record;
  std::uint64_t request = 0;           // names the answer; 0: nobody waits
  std::uint64_t expected = 0;          // incarnation that the proposal builds on; 0: whatever is known. kGone: the one that could not be started
  std::string reason;
  bool release = false;                // kPropose by the owner: the program is frozen for good under this record
  bool allow_loss = false;
  Time timeout{};
};

// When things happened on the way to a takeover, by this node's clock.
struct Timeline {
  Time last_sign{}, suspected{}, stood{}, elected{};
};

enum class Outcome { kDone, kConflict, kTimedOut, kUnknown, kNotFound, kOlder };
enum class EffectKind {
  kSend,        // peer, frame
  kStore,       // token, voter; erase: workload
  kLease,       // workload, until, incarnation: the program may run so long; until 0: without limit
  kOwned,       // record, timeline: this node owns it, and nothing runs here
  kStop,        // record: what runs here is not the owner's
  kDecided,     // record: the newest one known has changed
  kOutcome,     // request, outcome, record, text
};
struct Effect {
  EffectKind kind;
  std::string peer;
  std::string workload;
  pb::TenureFrame frame;
  std::uint64_t token = 0;
  pb::VoterState voter;
  bool erase = false;
  Time until{};
  std::uint64_t incarnation = 0;
  pb::TenureRecord record;
  Timeline timeline;
  std::uint64_t request = 0;
  Outcome outcome = Outcome::kDone;
  std::string text;
};

struct Claim {
  std::uint64_t incarnation = 0;
  friend bool operator==(const Claim&, const Claim&) = default;
};

// What passes between this node and one peer.
struct Peer {
  bool linked = false;
  std::uint64_t start = 0;                       // of the peer; another one: it was restarted
  Time sent_at{};                                // the last frame to it
  struct Mine {                                  // what this node claims
    std::uint64_t set = 0;
    std::map<std::string, Claim> items;
    std::set<std::string> refused;
    bool told = false;                           // on this link
    Time due{};                                  // of the next renewal
    std::uint64_t next_token = 1;
    std::map<std::uint64_t, Time> open;          // token → when the renewal was sent
  };
  struct Theirs {                                // what it claims
    std::uint64_t set = 0;
    bool known = false;
    std::map<std::string, Claim> items;
    Detector gaps;
  };
  Mine mine[kModes];
  Theirs theirs[kModes];
};

enum class ProposalPhase { kPreparing, kAccepting };
struct Proposal {
  ProposalPhase phase = ProposalPhase::kPreparing;
  pb::TenureBallot ballot;
  std::optional<pb::TenureRecord> value;         // none: only asking; what is found is completed
  std::optional<pb::TenureRecord> own;           // what was asked for
  bool own_value = true;                         // false: completing somebody else's
  std::uint64_t above = 0;                       // a round was refused: the next one goes above this
  Time started{};
  bool takeover = false;                         // by this node, of itself
  bool release = false, allow_loss = false;
  std::uint64_t request = 0;
  Time deadline{};
  Time retry_at{}, retry_after{};
  std::set<std::string> promised, accepted;
  bool owner_knows = false;                      // the owner promised, and told its newest commit
  pb::TenureBallot found_ballot;                 // the highest accepted that promises told of
  std::optional<pb::TenureRecord> found;
  std::map<std::string, Time> asked_at;          // when the ACCEPT was first sent to each
};

struct Parked {                                  // an ACCEPT that waits for this voter's promises to others to end
  std::string from;
  pb::TenureMessage message;
};

struct Workload {
  pb::VoterState disk;                           // base, promised, accepted: what is, or is being, written
  // as voter
  Time supports_until{};                         // for the owner of the base
  std::optional<Parked> parked;
  std::set<std::string> answered;                // after a start with a doubtful disk
  bool trusted = true;                           // false until all other voters have answered
  Time ask_again{};
  // as owner
  std::uint64_t base_token = 0;                  // the write that holds the base
  bool running = false;                          // the program is here
  Time activating_until{};                       // owned, nothing runs yet
  std::map<std::string, Time> grants;            // until when each other voter supports us
  Time free_until{};                             // before the first voters were told
  Time leased{};                                 // the last lease given out
  bool leased_forever = false;
  bool lease_again = false;                      // the program is new to the warden
  Time refused_since{};                          // a voter answers and refuses; zero: none does
  std::optional<pb::TenureRecord> want;          // voters and standbys wished for
  Time want_again{};
  // as standby
  Time owner_heard{};                            // the owner's last renewal that names it
  Time stand_at{};                               // not before; after a defeat
  bool offered = false;                          // others may have voted for us in the place of the base's owner
  Timeline timeline;
  std::optional<Proposal> proposal;
};

struct State {
  std::string self;
  std::uint64_t start = 1;                       // how often this voter has started
  Time started{};
  Time woke{};                                   // the last step
  Time expected_wake{};
  Time no_votes_until{};                         // this node was starved itself
  std::uint64_t random = 1;
  std::map<std::string, Peer> peers;
  std::map<std::string, Workload> workloads;
  std::uint64_t next_token = 1;
  struct Held {
    std::uint64_t token;
    std::string peer;
    pb::TenureMessage message;
  };
  std::vector<Held> held;                        // messages that wait for a write
  std::uint64_t stored = 0;
  // Rules that tests switch off to see that the simulation finds out; all on otherwise.
  struct Rules {
    bool count_from_sent = true;                 // grants count from when the renewal was sent
    bool silence = true;                         // after a start nothing is granted for a term
    bool wait_for_grants = true;                 // no vote for another while a grant lasts
    bool newest_only = true;                     // a voter refuses a candidate with an older checkpoint
    bool store_first = true;                     // answers wait for the disk
    bool doubt_old_disks = true;
    bool late_rule = true;
    bool vote_ends_commits = true;               // who has voted for another acknowledges nothing of the old owner
    bool owner_on_disk = true;                   // what an owner commits counts once its tenure is written
    bool drift = true;
  } rules;
};

// `doubtful`: the disk may hold less than this voter has promised (restored from a backup).
State begin(const std::string& self, const pb::VoterFile& file, bool doubtful, Time now, std::uint64_t seed);

std::vector<Effect> step(State& state, const Event& event, Time now, const View& view);

// When step() wants to be called at the latest, if nothing happens before.
Time next_wake(const State& state, Time now);

// Until when the program of `workload` may run here, by the grants held; zero: not at all.
// Time::max(): without limit.
Time may_run_until(const State& state, const std::string& workload, Time now);

// Whether a majority has granted by itself: voters that have just started do not yet, and would not
// support another owner either.
// Whether this voter has voted for somebody else in the place of `owner`, or others have perhaps voted for
// it: it acknowledges
// no checkpoint of `owner` any more, whether or not that vote comes to anything.
bool voted_for_another(const State& state, const std::string& workload, const std::string& owner);
// Whose acknowledgement of a checkpoint counts as its commit, for the owner: the standbys that vote and
// are to remain both, while it may run, no voter refuses, and its tenure is on disk. (Others are not
// asked before a takeover; an owner that forgot that it has owned would begin again from where it began.)
std::vector<std::string> counting(const State& state, const std::string& workload, Time now);
bool granted_by_majority(const State& state, const std::string& workload, Time now);

// Whether a voter answers the owner, and refuses to support it.
bool refused_by_a_voter(const State& state, const std::string& name, const Workload& w);

// Stops the program (CHECK) when one is broken.
void check_invariants(const State& state);

}  // namespace baton::tenure
