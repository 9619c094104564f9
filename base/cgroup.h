// Cgroup v2 folders: find the hierarchy, make, join, freeze, kill, remove.
// A Cgroup is only a path; making one owns nothing and destroying one removes nothing.
//
// The hierarchy is found in /proc/self/mountinfo, because on hybrid machines it is
// not at /sys/fs/cgroup. No controller is needed or enabled: freezing and killing
// are core features (Linux 5.2 and 5.14).
// Source: Documentation/admin-guide/cgroup-v2.rst.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.h"

namespace baton {

class Cgroup {
 public:
  Cgroup() = default;
  // `path`: absolute path of a folder in a mounted cgroup v2 hierarchy, existing or not.
  static Cgroup at(std::string path) { return Cgroup(std::move(path)); }
  // Where this process's mount namespace has the cgroup v2 hierarchy. Fails: kUnsupported.
  static Result<std::string> mount_point();
  // The folder of process `pid` (0: this process). Fails: kUnsupported, kTraceeGone,
  // kNotFound (it lies outside what this mount namespace shows).
  static Result<Cgroup> of(pid_t pid);

  const std::string& path() const { return path_; }
  bool exists() const;
  Cgroup child(const std::string& name) const { return Cgroup(path_ + "/" + name); }

  // Makes it and its missing parents; fine when it exists. Fails: kNotAllowed, kNoSpace.
  Result<void> make() const;
  // Moves a whole process (all threads) in. Fails: kTraceeGone (no such process), kNotFound.
  Result<void> add(pid_t pid) const;
  // The members of this folder itself, as this PID namespace sees them (0 for others').
  Result<std::vector<pid_t>> members() const;

  // True: somebody is in it or below it.
  Result<bool> populated() const;
  // True: every member is stopped (cgroup.events, frozen 1).
  Result<bool> frozen() const;
  // True: somebody asked for freezing (cgroup.freeze reads 1).
  Result<bool> freeze_asked() const;
  // Waits until every member has stopped; on timeout takes the freeze back and fails with kTimedOut.
  Result<void> freeze(std::chrono::milliseconds timeout) const;
  Result<void> thaw() const;
  // SIGKILL to every member, frozen ones and those being forked included.
  Result<void> kill() const;
  // False: still populated after `timeout`.
  Result<bool> wait_empty(std::chrono::milliseconds timeout) const;
  // Removes the folder and empty folders below it; fine when it is gone. Fails: kConflict (populated).
  Result<void> remove() const;

 private:
  explicit Cgroup(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace baton
