// Names as typed, and what `baton top` makes of two looks.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include <sstream>

#include "coordinator/cli/bundle.h"
#include "coordinator/cli/names.h"
#include "coordinator/cli/top.h"

namespace baton::cli {
namespace {

const std::vector<std::string> kNames = {"redis", "redis-cache", "web", "worker"};

TEST(Names, WholeNameOrOnlyBeginning_IsTaken) {
  EXPECT_EQ(*match_name("workload", "web", kNames), "web");
  EXPECT_EQ(*match_name("workload", "redis", kNames), "redis") << "a whole name is not ambiguous";
  EXPECT_EQ(*match_name("workload", "redis-", kNames), "redis-cache");
  EXPECT_EQ(*match_name("workload", "wo", kNames), "worker");
}

TEST(Names, AmbiguousBeginning_ListsTheCandidates) {
  auto found = match_name("workload", "w", kNames);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Code::kInvalid);
  EXPECT_NE(found.error().subject.find("web, worker"), std::string::npos) << found.error().subject;
}

TEST(Names, UnknownName_SuggestsTheNearest) {
  auto found = match_name("workload", "reids", kNames);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, Code::kNotFound);
  EXPECT_NE(found.error().hint.find("redis"), std::string::npos) << found.error().hint;
  EXPECT_EQ(match_name("workload", "", kNames).error().code, Code::kNotFound);
  EXPECT_EQ(match_name("node", "zzzzzzz", {}).error().code, Code::kNotFound);
}

TopLook look_of(std::uint64_t committed, std::uint64_t written, std::uint64_t known,
                std::chrono::steady_clock::time_point at) {
  TopLook out;
  out.at = at;
  auto& info = *out.workloads.add_workloads();
  info.mutable_spec()->set_name("a-workload-with-quite-a-long-name");
  info.mutable_spec()->add_standbys("ecu2");
  auto& status = *info.mutable_status();
  status.set_state("migrating");
  status.set_node("a-long-node-name");
  status.set_last_committed(committed);
  status.set_lag_us(123'456'789);
  status.mutable_pause()->set_p99_us(987'654);
  status.set_pages_written(written);
  status.set_pages_known(known);
  auto& standby = *status.add_standbys();
  standby.set_connected(true);
  auto& node = *out.nodes.add_nodes();
  node.set_name("a-long-node-name-too");
  node.set_state("unreachable");
  node.mutable_facts()->set_memory_bytes(64ull << 30);
  return out;
}

TEST(Top, TwoLooks_GiveRatesWithin80Columns) {
  const std::chrono::steady_clock::time_point begin{};
  const auto before = look_of(100, 1'000'000, 0, begin);
  const auto now = look_of(150, 5'000'000, 3'000'000, begin + std::chrono::seconds(2));
  const auto json = top_json(before, now);
  EXPECT_DOUBLE_EQ(json["workloads"][0]["checkpoints_per_s"].get<double>(), 25);
  EXPECT_DOUBLE_EQ(json["workloads"][0]["pages_written_per_s"].get<double>(), 2'000'000);
  EXPECT_DOUBLE_EQ(json["workloads"][0]["known_share"].get<double>(), 0.75);
  EXPECT_FALSE(json["workloads"][0]["at_risk"].get<bool>());
  std::istringstream lines(top_text(before, now, false));
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
}

TEST(Top, Danger_ComesFirstAndIsMarkedWithoutColour) {
  auto now = look_of(1, 1, 1, {});
  auto& lost = *now.workloads.add_workloads();
  lost.mutable_spec()->set_name("lost-one");
  lost.mutable_status()->set_state("lost");
  const std::string text = top_text(now, now, false);
  EXPECT_LT(text.find("! lost-one"), text.find("a-workload"));
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_NE(top_text(now, now, true).find('\033'), std::string::npos);
  EXPECT_NE(text.find("1 at risk"), std::string::npos) << text;
}

TEST(Bundle, Tar_IsReadableByTar) {
  char name[] = "/tmp/baton-bundle-XXXXXX";
  const int fd = ::mkstemp(name);
  ASSERT_GE(fd, 0);
  const std::string tar = tar_of("b", {{"one.json", "{}\n"}, {"two.json", std::string(1'000, 'x')}}, 1'700'000'000);
  EXPECT_EQ(tar.size() % 512, 0u);
  ASSERT_EQ(::write(fd, tar.data(), tar.size()), static_cast<ssize_t>(tar.size()));
  ::close(fd);
  std::FILE* pipe = ::popen(("tar -tvf " + std::string(name) + " 2>&1").c_str(), "r");
  std::string said;
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe)) said += buffer;
  EXPECT_EQ(::pclose(pipe), 0) << said;
  EXPECT_NE(said.find("b/one.json"), std::string::npos) << said;
  EXPECT_NE(said.find("1000"), std::string::npos) << said;
  EXPECT_NE(said.find("-rw-------"), std::string::npos) << said;
  ::unlink(name);
}

TEST(Bundle, CommandLines_AreCutToTheProgram) {
  const Json cut = without_secrets({{"name", "db"}, {"command", {"/usr/bin/db", "--password", "hunter2"}}});
  EXPECT_EQ(cut.dump().find("hunter2"), std::string::npos) << cut.dump();
  EXPECT_EQ(cut["command"][0], "/usr/bin/db");
}

}  // namespace
}  // namespace baton::cli
