// The process tree: every process is made by a process in the right session, as a child of
// the right parent. Leaders that are gone are stood in for by ghosts, which end once all
// who carry their number exist.
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>
#include <set>

#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {
namespace {

class TreeMaker {
 public:
  explicit TreeMaker(Construction& c) : c_(c) {}

  Result<void> make() {
    for (const auto& p : c_.state.processes()) known_[p.pid()] = &p;
    for (const auto& p : c_.state.processes()) {
      if (known_.count(p.ppid()) != 0) children_[p.ppid()].push_back(&p);
      else tops_.push_back(&p);
    }
    // Those that can be born anywhere first: they may be the leaders the others need.
    std::stable_sort(tops_.begin(), tops_.end(), [this](auto* a, auto* b) { return birth(*a) == kAnywhere && birth(*b) != kAnywhere; });
    for (const auto* p : tops_) BATON_TRY(make_top(*p));
    BATON_TRY(set_groups());
    BATON_TRY(settle_terminals(c_));
    BATON_TRY(end_zombies());
    for (auto& [number, ghost] : ghosts_) BATON_TRY(ghost.end(0));
    return {};
  }

 private:
  static constexpr int kAnywhere = -1;

  // The session in which a process must be born.
  int birth(const pb::ProcessState& p) const {
    if (p.sid() != p.pid()) return p.sid();
    auto found = children_.find(p.pid());
    if (found != children_.end()) {
      for (const auto* child : found->second) {
        if (child->sid() != child->pid() && child->sid() != p.sid()) return child->sid();
      }
    }
    return kAnywhere;
  }

  Puppet& puppet(int pid) { return c_.processes.at(pid).leader(); }
  bool alive(int pid) const { return c_.processes.count(pid) != 0; }

  Result<void> add(const pb::ProcessState& p, Puppet made, int session) {
    BuiltProcess built;
    built.state = &p;
    built.threads.push_back(std::move(made));
    c_.processes.emplace(p.pid(), std::move(built));
    top_session_.emplace(p.pid(), session);
    auto& mine = children_[p.pid()];
    if (p.sid() == p.pid()) {
      for (const auto* child : mine) {
        if (birth(*child) != kAnywhere && birth(*child) != p.sid()) BATON_TRY(make_child(p, *child, session));
      }
      BATON_TRY(puppet(p.pid()).checked("setsid", subject(p), SYS_setsid));
      BATON_TRY(take_terminal(c_, p, puppet(p.pid())));
      session = p.sid();
    }
    for (const auto* child : mine) {
      if (!alive(child->pid())) BATON_TRY(make_child(p, *child, session));
    }
    return {};
  }

  Result<void> make_child(const pb::ProcessState& parent, const pb::ProcessState& child, int session) {
    if (birth(child) != kAnywhere && birth(child) != session) {
      return make_error(Code::kUnsupported, "build",
                        "process " + std::to_string(child.pid()) + " is in session " + std::to_string(child.sid()) +
                            ", in which its parent " + std::to_string(parent.pid()) + " cannot make it");
    }
    BATON_ASSIGN(Puppet made, puppet(parent.pid()).clone(0, SIGCHLD, child.pid()));
    return add(child, std::move(made), session);
  }

  Result<void> make_top(const pb::ProcessState& p) {
    int session = birth(p);
    if (session == kAnywhere || session <= 1) {
      BATON_ASSIGN(Puppet made, c_.maker().clone(CLONE_PARENT, 0, p.pid()));
      return add(p, std::move(made), 0);
    }
    BATON_ASSIGN(Puppet made, in_session(session, p.pid()));
    return add(p, std::move(made), session);
  }

  // A child of the keeper, born in `session`.
  Result<Puppet> in_session(int session, int pid) {
    if (alive(session) && known_.count(session) != 0) {
      const auto& leader = *known_[session];
      if (known_.count(leader.ppid()) == 0) return puppet(session).clone(CLONE_PARENT, 0, pid);
      // The leader is deeper: by a helper, whose end leaves its child to the keeper.
      BATON_ASSIGN(Puppet helper, puppet(session).clone(0, 0, 0));
      BATON_ASSIGN(Puppet made, helper.clone(0, SIGCHLD, pid));
      pid_t inside = helper.inside();
      BATON_TRY(helper.end(0));
      BATON_TRY(puppet(session).checked("wait4", "helper", SYS_wait4, {static_cast<std::uint64_t>(inside), 0, __WALL, 0}));
      return made;
    }
    auto found = ghosts_.find(session);
    if (found == ghosts_.end()) {
      BATON_ASSIGN(Puppet ghost, c_.maker().clone(CLONE_PARENT, 0, session));
      BATON_TRY(ghost.checked("setsid", "session " + std::to_string(session), SYS_setsid));
      found = ghosts_.emplace(session, std::move(ghost)).first;
    }
    return found->second.clone(CLONE_PARENT, 0, pid);
  }

  Result<void> set_groups() {
    for (const auto& p : c_.state.processes()) {  // leaders first
      if (p.pgid() == p.pid() && p.sid() != p.pid()) {
        BATON_TRY(puppet(p.pid()).checked("setpgid", subject(p), SYS_setpgid, {0, 0}));
      }
    }
    for (const auto& p : c_.state.processes()) {
      if (p.pgid() == p.pid() || p.pgid() <= 1) continue;
      BATON_ASSIGN(std::int64_t now, puppet(p.pid()).call(SYS_getpgid, {0}));
      if (now == p.pgid()) continue;
      if (!alive(p.pgid()) && ghosts_.count(p.pgid()) == 0) {
        int session = p.sid();
        auto ghost = session <= 1 ? c_.maker().clone(CLONE_PARENT, 0, p.pgid()) : in_session(session, p.pgid());
        if (!ghost) return std::move(ghost).error();
        BATON_TRY(ghost->checked("setpgid", "group " + std::to_string(p.pgid()), SYS_setpgid, {0, 0}));
        ghosts_.emplace(p.pgid(), std::move(*ghost));
      }
      BATON_TRY(puppet(p.pid()).checked("setpgid", subject(p), SYS_setpgid, {0, static_cast<std::uint64_t>(p.pgid())}));
    }
    return {};
  }

  Result<void> end_zombies() {
    for (const auto& p : c_.state.processes()) {
      if (!p.zombie()) continue;
      auto& built = c_.processes.at(p.pid());
      BATON_ASSIGN(std::uint64_t name, built.leader().put(p.comm()));
      BATON_TRY(built.leader().checked("prctl", "name", SYS_prctl, {15, name}));
      BATON_TRY(built.leader().end(p.exit_status()));
      built.threads.clear();
      if (known_.count(p.ppid()) == 0) continue;
      // Its SIGCHLD is not part of the checkpoint (the parent's own pending signals are).
      Puppet& parent = puppet(p.ppid());
      struct { std::uint64_t set; std::int64_t zero[2]; } wait{1ull << (SIGCHLD - 1), {0, 0}};
      BATON_ASSIGN(std::uint64_t at, parent.put(std::as_bytes(std::span(&wait, 1))));
      BATON_TRY(parent.call(SYS_rt_sigtimedwait, {at, 0, at + 8, 8}));
    }
    return {};
  }

  static std::string subject(const pb::ProcessState& p) { return "process " + std::to_string(p.pid()); }

  Construction& c_;
  std::map<int, const pb::ProcessState*> known_;
  std::map<int, std::vector<const pb::ProcessState*>> children_;
  std::vector<const pb::ProcessState*> tops_;
  std::map<int, int> top_session_;
  std::map<int, Puppet> ghosts_;
};

}  // namespace

Result<void> make_processes(Construction& c) { return TreeMaker(c).make(); }

Result<void> make_threads(Construction& c) {
  constexpr std::uint64_t kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  for (auto& [pid, process] : c.processes) {
    if (process.threads.empty()) continue;
    for (const auto& thread : process.state->threads()) {
      if (thread.tid() == pid) continue;
      BATON_ASSIGN(Puppet made, process.leader().clone(kThread, 0, thread.tid()));
      process.threads.push_back(std::move(made));
    }
  }
  return {};
}

}  // namespace baton::restore
