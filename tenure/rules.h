// The names of the machine's rules, for tests that switch one off to see that the simulation
// notices. Nothing else ever does.
#pragma once

#include <string>
#include <utility>

#include "tenure/machine.h"

namespace baton::tenure {

inline constexpr std::pair<const char*, bool State::Rules::*> kRules[] = {
    {"count-from-sent", &State::Rules::count_from_sent}, {"silence", &State::Rules::silence},
    {"wait-for-grants", &State::Rules::wait_for_grants}, {"newest-only", &State::Rules::newest_only},
    {"store-first", &State::Rules::store_first},         {"doubt-old-disks", &State::Rules::doubt_old_disks},
    {"late-rule", &State::Rules::late_rule},             {"drift", &State::Rules::drift},
    {"vote-ends-commits", &State::Rules::vote_ends_commits}, {"owner-on-disk", &State::Rules::owner_on_disk},
};

inline bool switch_off(State::Rules& rules, const std::string& name) {
  for (const auto& [known, member] : kRules) {
    if (name == known) {
      rules.*member = false;
      return true;
    }
  }
  return false;
}
inline std::string rule_names() {
  std::string out;
  for (const auto& [known, member] : kRules) out += (out.empty() ? "" : ", ") + std::string(known);
  return out;
}

}  // namespace baton::tenure
