// What the CLI reads and prints, without a coordinator.
#include <gtest/gtest.h>

#include "coordinator/cli/progress.h"
#include "coordinator/cli/render.h"
#include "coordinator/cli/spec_fields.h"
#include "coordinator/cli/spec_file.h"
#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

TEST(Units, Durations_NeedAUnitAndAreExact) {
  EXPECT_EQ(*parse_duration_us("20ms"), 20'000u);
  EXPECT_EQ(*parse_duration_us("1.5s"), 1'500'000u);
  EXPECT_EQ(*parse_duration_us("500us"), 500u);
  EXPECT_EQ(*parse_duration_us("2m"), 120'000'000u);
  EXPECT_EQ(*parse_duration_us("0"), 0u);
  for (const char* wrong : {"", "20", "ms", "-1s", "1e3s", "20 parsecs", "nan", "99999999999999h"}) {
    auto result = parse_duration_us(wrong);
    ASSERT_FALSE(result) << wrong;
    EXPECT_EQ(result.error().code, Code::kInvalid);
  }
}

TEST(Units, SizesAndRates_KnowBothKindsOfThousand) {
  EXPECT_EQ(*parse_size_bytes("64MiB"), 64u << 20);
  EXPECT_EQ(*parse_size_bytes("2GB"), 2'000'000'000u);
  EXPECT_EQ(*parse_size_bytes("4096B"), 4096u);
  EXPECT_EQ(*parse_rate("10mbit"), 1'250'000u);
  EXPECT_EQ(*parse_rate("1gbit"), 125'000'000u);
  EXPECT_EQ(*parse_rate("100MB"), 100'000'000u);
  EXPECT_EQ(*parse_rate("100MB/s"), 100'000'000u);
  EXPECT_FALSE(parse_rate("fast"));
  EXPECT_FALSE(parse_size_bytes("100"));
}

TEST(Units, CheckpointNames) {
  EXPECT_EQ(parse_checkpoint_name("redis@42")->seq, 42u);
  EXPECT_EQ(parse_checkpoint_name("redis")->seq, 0u);
  for (const char* wrong : {"redis@", "redis@x", "redis@0", "redis@-1", "redis@1x"}) {
    EXPECT_FALSE(parse_checkpoint_name(wrong)) << wrong;
  }
}

TEST(Units, Suggest_FindsTheNearWord) {
  EXPECT_EQ(suggest("intervall", {"interval", "mode"}), "interval");
  EXPECT_EQ(suggest("zzzzzz", {"interval", "mode"}), "");
}

TEST(ExitCodes, FollowTheErrorCode) {
  EXPECT_EQ(exit_code(Code::kFailed), 1);
  EXPECT_EQ(exit_code(Code::kConflict), 1);
  EXPECT_EQ(exit_code(Code::kInvalid), 2);
  EXPECT_EQ(exit_code(Code::kNotFound), 3);
  EXPECT_EQ(exit_code(Code::kUnreachable), 4);
  EXPECT_EQ(exit_code(Code::kNotAllowed), 5);
  EXPECT_EQ(exit_code(Code::kTimedOut), 6);
}

TEST(SpecFile, GoodFile_GivesSpecsWithDefaults) {
  auto specs = parse_spec_text(R"(
    [[workload]]
    name = "redis"
    command = ["redis-server", "--save", ""]
    node = "ecu1"
    standby = ["ecu2", "ecu3"]
    mode = "warm"
    interval = "20ms"
    env = { LANG = "C" }
    max_slowdown = 1.05
    with_files = true
    keep_last = 20

    [[workload]]
    name = "ctl"
    pid = 4711
    node = "ecu2"
    standby = "none"
  )", "f.toml");
  ASSERT_TRUE(specs) << specs.error().message();
  ASSERT_EQ(specs->size(), 2u);
  const auto& redis = (*specs)[0];
  EXPECT_EQ(redis.argv_size(), 3);
  EXPECT_EQ(redis.standbys_size(), 2);
  EXPECT_EQ(redis.standby_count(), 2u);
  EXPECT_EQ(redis.interval_us(), 20'000u);
  EXPECT_DOUBLE_EQ(redis.max_slowdown(), 1.05);
  EXPECT_EQ(redis.retention().keep_last(), 20u);
  EXPECT_TRUE(redis.with_files());
  EXPECT_EQ(redis.env(0), "LANG=C");
  EXPECT_TRUE(redis.env(1).starts_with("PATH="));
  EXPECT_EQ((*specs)[1].origin(), pb::ORIGIN_PROTECT);
  EXPECT_EQ((*specs)[1].standby_count(), 0u);
}

TEST(SpecFile, EachMistake_IsRefusedWithItsLine) {
  const std::string start = "[[workload]]\nname = \"x\"\ncommand = [\"a\"]\n";  // line 4 follows
  const std::vector<std::pair<std::string, std::string>> mistakes = {
      {"intervall = \"20ms\"", "Did you mean interval?"},
      {"interval = \"20\"", "no unit"},
      {"interval = 20", "no unit"},
      {"interval = \"1us\"", "out of range"},
      {"mode = \"hott\"", "Did you mean hot?"},
      {"max_slowdown = 0.9", "max_slowdown"},
      {"keep_last = 0", "keep_last"},
      {"with_files = \"yes\"", "true or false"},
      {"node = [\"a\", \"b\"]", "one value"},
      {"node = \"NODE\"", "not a name"},
      {"store_budget = \"100\"", "no unit"},
      {"env = [\"NOEQUALS\"]", "env"},
      {"pid = 0", "pid"},
      {"name = \"again\"", ""},
      {"mode = ", ""},
  };
  for (const auto& [line, text] : mistakes) {
    auto specs = parse_spec_text(start + line + "\n", "f.toml");
    ASSERT_FALSE(specs) << line;
    EXPECT_EQ(specs.error().code, Code::kInvalid);
    const std::string message = specs.error().message();
    EXPECT_NE(message.find("f.toml:4"), std::string::npos) << message;
    EXPECT_NE(message.find(text), std::string::npos) << message;
  }
  EXPECT_FALSE(parse_spec_text("", "f.toml"));
  EXPECT_FALSE(parse_spec_text("[workload]\nname = \"x\"", "f.toml"));
  EXPECT_FALSE(parse_spec_text("top = 1", "f.toml"));
  EXPECT_FALSE(parse_spec_text(start + start, "f.toml")) << "the same name twice";
  EXPECT_EQ(read_spec_file("/nonexistent/f.toml").error().code, Code::kNotFound);
}

TEST(SpecFields, EveryField_HasAFlagAndRefusesNonsenseWhereItHasAForm) {
  for (const auto& field : spec_fields()) {
    EXPECT_TRUE(field.flag().starts_with("--"));
    EXPECT_EQ(field.flag().find('_'), std::string::npos);
    EXPECT_FALSE(field.help.empty());
    if (field.form.find('|') != std::string::npos && field.key != "user" && field.key != "dedup" &&
        field.key != "digest" && field.key != "standby") {
      pb::WorkloadSpec spec;
      EXPECT_FALSE(field.set(spec, "nonsense")) << field.key;
    }
  }
}

TEST(Render, WorkloadJson_HasTheStableFields) {
  pb::WorkloadInfo info;
  info.mutable_spec()->set_name("x");
  info.mutable_spec()->set_mode(pb::MODE_HOT);
  info.mutable_spec()->add_standbys("ecu2");
  info.mutable_status()->set_state("running");
  info.mutable_status()->mutable_pause()->set_p99_us(900);
  const Json json = Json::parse(workload_json(info).dump());
  for (const char* field : {"state", "node", "pid", "standbys", "mode", "incarnation",
                            "last_committed", "lag_us", "interval_us", "pause_us"}) {
    EXPECT_TRUE(json.contains(field)) << field;
  }
  EXPECT_EQ(json["standbys"][0], "ecu2");
  EXPECT_EQ(json["mode"], "hot");
  EXPECT_EQ(json["pause_us"]["p99"], 900);
  EXPECT_TRUE(json["pause_us"].contains("p50") && json["pause_us"].contains("max"));
}

TEST(Render, HandoverAndCheckpointJson_HaveTheStableFields) {
  for (const char* field : {"pause_us", "total_ms", "bytes_sent", "pages_sent", "pages_known",
                            "rounds", "strategy"}) {
    EXPECT_TRUE(handover_json({}).contains(field)) << field;
  }
  pb::CheckpointInfo info;
  info.set_wall_ns(1'000'000'000ull * 86400);
  EXPECT_EQ(checkpoint_json(info)["wall_time"], "1970-01-02T00:00:00.000Z");
  for (const char* field : {"seq", "pause_us", "pages_changed", "pages_total", "bytes_stored",
                            "incarnation", "nodes"}) {
    EXPECT_TRUE(checkpoint_json(info).contains(field)) << field;
  }
}

TEST(Render, ControlCharactersFromOutside_DoNotReachTheTerminal) {
  pb::Event event;
  event.set_text("a\x1b[2Jb\n");
  EXPECT_EQ(event_line(event).find('\x1b'), std::string::npos);
  EXPECT_EQ(printable("caf\xc3\xa9\x07"), "caf\xc3\xa9?");
}

TEST(Progress, Line_ShowsPhaseRoundBytesRateAndEta) {
  ProgressState state{"copy", 2, 512u << 20, 1024u << 20, 110u << 20, 5'000'000};
  const std::string plain = progress_line(state, false);
  for (const char* text : {"copy", "round 2", "50 %", "512 MiB", "110 MiB/s", "ETA 5.00 s"}) {
    EXPECT_NE(plain.find(text), std::string::npos) << plain;
  }
  EXPECT_NE(progress_line(state, true).find("[============>"), std::string::npos);
  state.bytes_done = state.bytes_total * 2;
  EXPECT_NE(progress_line(state, true).find("100 %"), std::string::npos);
}

TEST(Table, Columns_LineUpWithWideCharacters) {
  Table table({"A", "B"});
  table.row({"größer", "1"});
  table.row({"x", "2"});
  EXPECT_EQ(table.text(), "A       B\ngrößer  1\nx       2\n");
}

}  // namespace
}  // namespace baton::cli
