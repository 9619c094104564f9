// The simulation over 300 seeds, and the proof that it can fail: with any one rule of the
// machine switched off, it finds out.
#include <gtest/gtest.h>

#include "simulation.h"
#include "tenure/rules.h"

namespace baton::tenure::simulation {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kSeeds = 60;   // some ten times slower
#else
constexpr int kSeeds = 300;
#endif

TEST(Simulation, ThreeHundredSeeds_EveryInvariantHolds) {
  std::map<std::string, int> faults;
  int takeovers = 0, migrations = 0, changes = 0;
  for (std::uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Options options;
    options.seed = seed;
    auto result = run(options);
    EXPECT_EQ(result.violation, "") << "again: build/release/bin/tenure_simulate --seed " << seed << " --trace";
    for (const auto& [kind, count] : result.faults) faults[kind] += count;
    takeovers += result.takeovers;
    migrations += result.migrations;
    changes += result.voter_changes;
  }
  // It is no proof when nothing happens.
  EXPECT_GT(takeovers, kSeeds / 3);
  EXPECT_GT(migrations, kSeeds / 3);
  EXPECT_GT(changes, kSeeds / 6);
  for (const char* kind : {"power-off", "agent killed", "agent stopped", "warden killed", "link cut", "link cut in one direction",
                           "slow and lossy link", "change of standby", "restored from an old backup",
                           "owner and standby cut, third voter restarted"}) {
    EXPECT_GT(faults[kind], kSeeds / 30) << kind;
  }
}

TEST(Simulation, SameSeed_SameRun) {
  Options options;
  options.seed = 42;
  auto a = run(options), b = run(options);
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.takeovers, b.takeovers);
  EXPECT_EQ(a.down_ms, b.down_ms);
}

// How many seeds until it is caught; 0: never.
std::uint64_t caught_after(Options options, std::uint64_t seeds) {
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    options.seed = seed;
    if (!run(options).violation.empty()) return seed;
  }
  return 0;
}

class Without : public ::testing::TestWithParam<const char*> {};

TEST_P(Without, IsCaught) {
  Options options;
  ASSERT_TRUE(switch_off(options.rules, GetParam()));
  EXPECT_NE(caught_after(options, 3000), 0u) << "the simulation does not notice that '" << GetParam() << "' is missing";
}
INSTANTIATE_TEST_SUITE_P(ARule, Without, ::testing::Values("count-from-sent", "silence", "wait-for-grants", "newest-only", "owner-on-disk"));

TEST(Simulation, NobodyEnforcesLeases_IsCaught) {
  Options options;
  options.warden_enforces = false;
  EXPECT_NE(caught_after(options, 3000), 0u);
}

TEST(Simulation, ActivatesWhatNobodyCommitted_IsCaught) {
  Options options;
  options.activate_any = true;
  EXPECT_NE(caught_after(options, 3000), 0u);
}

}  // namespace
}  // namespace baton::tenure::simulation
