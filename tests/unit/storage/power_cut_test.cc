// Power lost at a random instant of a random history, again and again: what was acknowledged
// as synced is there, byte for byte; whatever else is listed is right too; and the store goes on.
//
// BATON_POWER_CUTS says how many (default 150; tier fault runs thousands), BATON_SEED which.
#include <gtest/gtest.h>

#include <cstdlib>

#include "power_cut_disk.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

using testing_ground::PowerCutDisk;
using testing_ground::Workload;

std::uint64_t number_from(const char* variable, std::uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

StoreOptions options_on(Disk& disk) {
  StoreOptions options;
  options.maintenance_thread = false;
  options.segment_bytes = 64u << 10;
  options.retention.keep_last = 4;
  options.disk = &disk;
  return options;
}

struct History {
  std::uint64_t synced = 0;         // the last one acknowledged at kSynced
  std::uint64_t acknowledged = 0;   // the last one acknowledged at all
  std::set<std::uint64_t> dropped;
  std::set<std::uint64_t> tagged;   // while synced
};

// One step after another until the power goes or the history is over.
void play(Store& store, Workload& w, std::mt19937_64& random, History& history) {
  for (int step = 0; step < 30; ++step) {
    const auto what = random() % 10;
    Result<void> done;
    if (what < 7) {
      for (int k = 0; k < 15; ++k) w.write(1 + random() % 2, random() % 60, 1 + random() % 5000);
      if (random() % 8 == 0) w.unmap(1, random() % 60);
      const auto durability = random() % 3 == 0 ? Durability::kFlushed : Durability::kSynced;
      done = w.checkpoint(store, durability, w.seq == 0);
      if (done) {
        history.acknowledged = w.seq;
        if (durability == Durability::kSynced) history.synced = w.seq;
      }
    } else if (what == 7) {
      auto collected = store.gc();
      if (!collected) done = collected.error();
    } else if (what == 8) {
      done = store.maintain();
    } else if (history.synced != 0) {
      auto marked = store.mark("w", history.synced, {{"t"}, {}, {}});
      if (marked) history.tagged.insert(history.synced);
      // One that retention has dropped meanwhile is no failure of the disk.
      if (!marked && marked.error().code != Code::kNotFound) done = marked.error();
    }
    if (!done) return;  // the power is gone
  }
}

void expect_survives(std::uint64_t seed, bool lying_sync, int* lost) {
  SCOPED_TRACE("BATON_POWER_CUTS=1 BATON_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  ManualClock clock;
  PowerCutDisk disk;
  disk.lying_sync = lying_sync;
  disk.cut_after = 8 + random() % 400;
  Workload w("w");
  History history;
  {
    auto store = Store::open("/store", options_on(disk), clock);
    if (store && (*store)->add_workload(w.identity())) play(**store, w, random, history);
  }
  auto after = disk.after_power_cut(random());
  auto store = Store::open("/store", options_on(*after), clock);
  ASSERT_TRUE(store) << store.error().message();
  auto listed = (*store)->list("w");
  if (history.acknowledged == 0 && !listed) return;  // it went before the workload was entered
  const auto tip = listed && !listed->empty() ? listed->back().seq : 0;
  if (lost) {
    *lost += tip < history.synced;
    return;
  }
  ASSERT_GE(tip, history.synced) << "an acknowledged checkpoint is gone";
  std::set<std::uint64_t> held;
  for (const auto& info : *listed) {
    ASSERT_EQ(w.compare(**store, info.seq), "") << "w@" << info.seq;
    ASSERT_EQ(info.missing_pages, 0u);
    held.insert(info.seq);
  }
  for (std::uint64_t seq : history.tagged) ASSERT_TRUE(held.contains(seq)) << "tagged w@" << seq << " is gone";
  ASSERT_TRUE((*store)->verify()->bad.empty());
  // And it goes on, from what it says it has.
  if (tip != 0) w.restart_from(tip, w.seq + 1);
  w.write(1, 1, 777'777);
  auto done = w.checkpoint(**store, Durability::kSynced, tip == 0);
  ASSERT_TRUE(done) << done.error().message();
  ASSERT_EQ(w.compare(**store, w.seq), "");
  ASSERT_TRUE((*store)->gc());
  ASSERT_EQ(w.compare(**store, w.seq), "");
}

TEST(PowerCut, AtAnyInstant_NothingSyncedIsLostAndNothingIsWrong) {
  const std::uint64_t first = number_from("BATON_SEED", 1);
  const std::uint64_t runs = number_from("BATON_POWER_CUTS", 150);
  for (std::uint64_t seed = first; seed < first + runs && !testing::Test::HasFatalFailure(); ++seed) {
    expect_survives(seed, false, nullptr);
  }
}

// The test of the test: with a disk whose syncs do nothing, checkpoints do get lost.
TEST(PowerCut, WithADiskThatOnlySaysItSynced_IsNoticed) {
  int lost = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) expect_survives(seed, true, &lost);
  EXPECT_GT(lost, 10);
}

}  // namespace
}  // namespace baton::storage
