// tenure_simulate [--seed N] [--seeds COUNT] [--trace] [--without RULE]: runs the simulation and
// says which seeds break an invariant, with the command that repeats each.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "simulation.h"
#include "tenure/rules.h"

int main(int argc, char** argv) {
  using namespace baton::tenure;
  simulation::Options options;
  std::uint64_t first = 1, count = 0, failures = 0, steps = 0;
  int takeovers = 0, migrations = 0, changes = 0;
  std::string without;
  for (int i = 1; i < argc; ++i) {
    std::string flag = argv[i];
    if (flag == "--trace") {
      options.trace = true;
    } else if (flag == "--seed" && i + 1 < argc) {
      first = std::strtoull(argv[++i], nullptr, 10);
      if (count == 0) count = 1;
    } else if (flag == "--seeds" && i + 1 < argc) {
      count = std::strtoull(argv[++i], nullptr, 10);
    } else if (flag == "--without" && i + 1 < argc && switch_off(options.rules, argv[i + 1])) {
      without = argv[++i];
    } else {
      std::fprintf(stderr, "usage: tenure_simulate [--seed N] [--seeds COUNT] [--trace] [--without RULE]\nrules: %s\n", rule_names().c_str());
      return 2;
    }
  }
  std::map<std::string, int> faults;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    options.seed = seed;
    auto result = simulation::run(options);
    steps += result.steps;
    takeovers += result.takeovers;
    migrations += result.migrations;
    changes += result.voter_changes;
    for (const auto& [kind, number] : result.faults) faults[kind] += number;
    if (result.violation.empty()) continue;
    ++failures;
    std::printf("seed %llu: %s\n  again: tenure_simulate --seed %llu --trace%s\n", static_cast<unsigned long long>(seed),
                result.violation.c_str(), static_cast<unsigned long long>(seed), without.empty() ? "" : (" --without " + without).c_str());
  }
  std::printf("%llu seeds, %llu steps, %d takeovers, %d migrations, %d changes of voters; %llu failed\n",
              static_cast<unsigned long long>(count), static_cast<unsigned long long>(steps), takeovers, migrations, changes,
              static_cast<unsigned long long>(failures));
  for (const auto& [kind, number] : faults) std::printf("  %6d %s\n", number, kind.c_str());
  return failures == 0 ? 0 : 1;
}
