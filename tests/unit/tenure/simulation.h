// A cluster in one thread, from a seed: nodes with clocks that run apart, disks that lose
// what was not written, a network that delays, loses and cuts, wardens that enforce leases,
// programs that commit checkpoints, and everything that fails. After every event the
// invariants of docs/tenure.md are checked.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "tenure/machine.h"

namespace baton::tenure::simulation {

struct Options {
  std::uint64_t seed = 1;
  State::Rules rules;          // which rules of the machine are on
  bool trace = false;
  // Wrong on purpose, outside the machine:
  bool warden_enforces = true; // false: nobody freezes a program whose lease has run out
  bool activate_any = false;   // a standby starts what it has received, committed or not
};
struct Result {
  std::string violation;       // empty: none
  std::map<std::string, int> faults;
  std::uint64_t steps = 0;
  int takeovers = 0, migrations = 0, voter_changes = 0;
  double down_ms = 0;          // total time in which nothing ran
};
Result run(const Options& options);

}  // namespace baton::tenure::simulation
