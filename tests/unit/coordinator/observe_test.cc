// What the dashboard knows of workloads: histories, risks, movements.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>

#include "coordinator/movements.h"
#include "coordinator/observe/history.h"
#include "coordinator/observe/risk.h"

namespace baton::coordinator {
namespace {

using namespace std::chrono_literals;

Sample half_second(std::uint64_t wall_ms, float lag_us, float committed = 1) {
  Sample out;
  out.wall_ms = wall_ms;
  out.span_ms = 500;
  out.lag_us = out.lag_max_us = lag_us;
  out.committed = committed;
  return out;
}

TEST(History, RecentWindow_IsAnsweredOneByOne) {
  History history;
  for (std::uint64_t i = 1; i <= 100; ++i) history.add(half_second(i * 500, static_cast<float>(i)));
  const auto samples = history.since(40'000);
  ASSERT_EQ(samples.size(), 20u);
  EXPECT_EQ(samples.front().wall_ms, 40'500u);
  EXPECT_EQ(samples.back().lag_us, 100);
  EXPECT_EQ(history.newest(3).size(), 3u);
  EXPECT_EQ(history.newest(3).front().wall_ms, 49'000u);
}

TEST(History, LongWindow_KeepsSumsAndWorst) {
  History history;
  const std::uint64_t count = 3 * 3'600 * 2;  // three hours
  for (std::uint64_t i = 1; i <= count; ++i) {
    history.add(half_second(i * 500, i == 5'000 ? 9'000.f : 100.f));
  }
  const auto hour = history.since(count * 500 - 3'600'000);
  ASSERT_EQ(hour.size(), 360u);
  EXPECT_EQ(hour.front().span_ms, 10'000u);
  EXPECT_FLOAT_EQ(hour.front().committed, 20);
  EXPECT_FLOAT_EQ(hour.front().lag_us, 100);
  const auto all = history.since(0);
  EXPECT_EQ(all.front().span_ms, 120'000u);
  float worst = 0, committed = 0;
  for (const auto& sample : all) {
    worst = std::max(worst, sample.lag_max_us);
    committed += sample.committed;
  }
  EXPECT_FLOAT_EQ(worst, 9'000) << "a peak must not be averaged away";
  EXPECT_FLOAT_EQ(committed, static_cast<float>(count));
}

TEST(History, Length_IsBounded) {
  History history;
  for (std::uint64_t i = 1; i <= 400'000; ++i) history.add(half_second(i * 500, 1));
  EXPECT_EQ(history.newest(1'000'000).size(), kHistoryLevels[0].length);
  EXPECT_LE(history.since(0).size(), kHistoryLevels[2].length);
  const auto beyond = history.since(1);
  EXPECT_EQ(beyond.front().span_ms, 120'000u) << "the level that reaches back furthest";
}

pb::WorkloadInfo healthy() {
  pb::WorkloadInfo info;
  info.mutable_spec()->set_name("redis");
  info.mutable_spec()->add_standbys("ecu2");
  auto& status = *info.mutable_status();
  status.set_state("running");
  status.set_node("ecu1");
  status.set_last_committed(7);
  status.set_interval_us(100'000);
  status.set_lag_us(120'000);
  auto& standby = *status.add_standbys();
  standby.set_node("ecu2");
  standby.set_connected(true);
  return info;
}

std::string first_code(const pb::WorkloadInfo& info) {
  const Risk risk = assess(info);
  return risk.reasons.empty() ? "" : risk.reasons.front().code;
}

TEST(Risk, EveryCode_IsReachedAndNamed) {
  EXPECT_EQ(assess(healthy()).level, RiskLevel::kNone);
  EXPECT_TRUE(assess(healthy()).reasons.empty());
  std::map<std::string, pb::WorkloadInfo> cases;
  for (const auto& code : kRiskCodes) cases[code.code] = healthy();
  cases["lost"].mutable_status()->set_state("lost");
  cases["failed"].mutable_status()->set_state("failed");
  cases["ended"].mutable_status()->set_state("exited");
  cases["node-silent"].set_status_is_stale(true);
  cases["never-committed"].mutable_status()->set_last_committed(0);
  cases["no-standby"].mutable_spec()->clear_standbys();
  cases["no-standby"].mutable_status()->clear_standbys();
  cases["standbys-away"].mutable_status()->mutable_standbys(0)->set_connected(false);
  cases["not-committing"].mutable_status()->set_problem("disk full");
  cases["lag-over-target"].mutable_status()->set_lag_us(600'000);
  auto& away = *cases["standby-away"].mutable_status()->add_standbys();
  away.set_node("ecu3");
  cases["standby-behind"].mutable_status()->mutable_standbys(0)->set_problem("disk full");
  for (const auto& code : kRiskCodes) {
    const Risk risk = assess(cases[code.code]);
    ASSERT_FALSE(risk.reasons.empty()) << code.code;
    EXPECT_EQ(risk.reasons.front().code, code.code);
    EXPECT_EQ(risk.level, code.level) << code.code;
    EXPECT_FALSE(risk.reasons.front().text.empty());
    EXPECT_FALSE(risk.reasons.front().remedy.empty()) << code.code;
  }
}

TEST(Risk, EveryCode_IsDocumented) {
  std::ifstream file(BATON_SOURCE_DIR "/docs/health.md");
  std::stringstream text;
  text << file.rdbuf();
  std::set<std::string> known;
  for (const auto& code : kRiskCodes) {
    known.insert(code.code);
    EXPECT_NE(text.str().find("| `" + std::string(code.code) + "` |"), std::string::npos)
        << "docs/health.md lacks " << code.code;
  }
  EXPECT_EQ(known.size(), std::size(kRiskCodes)) << "a code stands twice";
}

TEST(Risk, LagTarget_IsTheSpecsOrFollowsTheInterval) {
  auto info = healthy();
  EXPECT_EQ(lag_target_us(info), 500'000u);
  info.mutable_status()->set_interval_us(1'000);
  EXPECT_EQ(lag_target_us(info), 250'000u);
  info.mutable_spec()->set_max_lag_us(30'000);
  EXPECT_EQ(lag_target_us(info), 30'000u);
  EXPECT_EQ(first_code(info), "lag-over-target");
}

TEST(Risk, GravestReason_ComesFirst) {
  auto info = healthy();
  info.mutable_status()->mutable_standbys(0)->set_problem("slow");
  info.mutable_status()->set_lag_us(900'000);
  EXPECT_EQ(first_code(info), "lag-over-target");
  EXPECT_EQ(assess(info).reasons.size(), 2u);
}

TEST(Movements, Progress_IsKeptWithItsPhases) {
  ManualClock clock;
  Movements movements(clock);
  const auto id = movements.begin("migrate", "redis", "ecu1", "ecu2", "operator olga");
  pb::MigrateProgress progress;
  for (const char* phase : {"prepare", "copy", "copy", "freeze"}) {
    clock.advance(10ms);
    progress.set_phase(phase);
    movements.progress(id, progress);
  }
  progress.mutable_report()->set_pause_us(1'234);
  progress.mutable_report()->set_from("ecu1");
  progress.mutable_report()->set_to("ecu2");
  movements.progress(id, progress);
  const auto before = movements.version();
  movements.end(id, {});
  EXPECT_GT(movements.version(), before);
  const auto one = movements.find(id);
  ASSERT_TRUE(one);
  EXPECT_EQ(one->handover().pause_us(), 1'234u);
  ASSERT_EQ(one->phases_size(), 4);  // prepare, copy, freeze, done
  EXPECT_EQ(one->phases(1).after_us(), 20'000u);
  EXPECT_EQ(one->phases(2).after_us(), 40'000u);
  EXPECT_TRUE(one->problem().empty());
}

TEST(Movements, Failure_SaysWhy) {
  ManualClock clock;
  Movements movements(clock);
  const auto id = movements.begin("migrate", "redis", "ecu1", "ecu2", "x");
  movements.end(id, make_error(Code::kConflict, "migrate", "another operation is under way"));
  EXPECT_NE(movements.find(id)->problem().find("another operation"), std::string::npos);
}

TEST(Movements, Detached_IsSettledByWhereTheWorkloadIs) {
  ManualClock clock;
  clock.advance(1s);
  Movements movements(clock);
  const auto there = movements.begin("migrate", "a", "ecu1", "ecu2", "x");
  const auto back = movements.begin("migrate", "b", "ecu1", "ecu2", "x");
  const auto watched = movements.begin("migrate", "c", "ecu1", "ecu2", "x");
  movements.detach(there);
  movements.detach(back);
  movements.settle("a", "ecu2");
  movements.settle("b", "ecu1");
  movements.settle("c", "ecu1");
  EXPECT_NE(movements.find(there)->ended_wall_ns(), 0u);
  EXPECT_TRUE(movements.find(there)->problem().empty());
  EXPECT_FALSE(movements.find(back)->problem().empty());
  EXPECT_EQ(movements.find(watched)->ended_wall_ns(), 0u) << "its caller ends it";
}

TEST(Movements, List_IsBoundedAndKeepsThoseUnderWay) {
  ManualClock clock;
  clock.advance(1s);
  Movements movements(clock);
  const auto first = movements.begin("migrate", "w", "a", "b", "x");
  for (std::size_t i = 0; i < 2 * kMaxMovements; ++i) {
    movements.end(movements.begin("migrate", "w", "a", "b", "x"), {});
  }
  EXPECT_LE(movements.list().size(), kMaxMovements + 1);
  EXPECT_TRUE(movements.find(first));
}

}  // namespace
}  // namespace baton::coordinator
