#include "coordinator/placement.h"

#include <gtest/gtest.h>

#include "coordinator/spec_rules.h"

namespace baton::coordinator {
namespace {

Candidate node(const std::string& name, std::uint32_t workloads = 0,
               std::vector<std::string> features = {"avx", "avx2"}) {
  Candidate out;
  out.name = name;
  out.reachable = true;
  out.memory_free_bytes = 1ull << 30;
  out.cpu_features = std::move(features);
  out.workloads = workloads;
  return out;
}

std::string why(const Placement& placement) {
  std::string out;
  for (const auto& line : placement.why) out += line + "\n";
  return out;
}

TEST(Placement, NothingNamed_TakesTheLeastLoadedAndExplainsTheRest) {
  PlacementRequest request;
  request.standby_count = 1;
  auto placed = place(request, {node("ecu1", 3), node("ecu2", 1), node("ecu3", 2)});
  ASSERT_TRUE(placed);
  EXPECT_EQ(placed->node, "ecu2");
  EXPECT_EQ(placed->standbys, std::vector<std::string>{"ecu3"});
  EXPECT_NE(why(*placed).find("node ecu1: not needed"), std::string::npos);
  EXPECT_NE(why(*placed).find("standby ecu3: chosen"), std::string::npos);
}

TEST(Placement, EqualLoad_IsDecidedByMemoryThenName) {
  auto big = node("ecu9");
  big.memory_free_bytes = 2ull << 30;
  EXPECT_EQ(place({}, {node("ecu1"), big})->node, "ecu9");
  EXPECT_EQ(place({}, {node("ecu2"), node("ecu1")})->node, "ecu1");
}

TEST(Placement, NoFitNode_RefusesWithTheReasonForEach) {
  auto gone = node("ecu1");
  gone.reachable = false;
  auto drained = node("ecu2");
  drained.drained = true;
  auto full = node("ecu3");
  full.memory_free_bytes = 10 << 20;
  auto old = node("ecu4", 0, {"avx"});
  PlacementRequest request;
  request.require_features = {"avx2"};
  auto placed = place(request, {gone, drained, full, old});
  ASSERT_FALSE(placed);
  EXPECT_EQ(placed.error().code, Code::kUnsupported);
  for (const char* text : {"ecu1: not chosen, not reachable", "ecu2: not chosen, drained",
                           "ecu3: not chosen, too little memory", "lacks avx2"}) {
    EXPECT_NE(placed.error().subject.find(text), std::string::npos) << text;
  }
}

TEST(Placement, Volumes_WantNodesThatCanServeThem) {
  auto without = node("ecu1");
  without.has_volumes = false;
  PlacementRequest request;
  request.standby_count = 1;
  request.needs_volumes = true;
  auto placed = place(request, {without, node("ecu2", 5), node("ecu3", 7)});
  ASSERT_TRUE(placed);
  EXPECT_EQ(placed->node, "ecu2");
  EXPECT_EQ(placed->standbys, std::vector<std::string>{"ecu3"});
  EXPECT_NE(why(*placed).find("standby ecu1: not chosen, it cannot serve volumes"), std::string::npos);
  request.node = "ecu1";
  EXPECT_EQ(place(request, {without, node("ecu2")}).error().code, Code::kUnsupported);
  request.needs_volumes = false;
  EXPECT_TRUE(place(request, {without, node("ecu2")}));
}

TEST(Placement, Standby_MustHaveAllFeaturesOfThePrimary) {
  PlacementRequest request;
  request.node = "ecu1";
  request.standby_count = 1;
  const auto nodes = {node("ecu1", 0, {"avx", "avx2", "avx512f"}), node("ecu2", 0, {"avx", "avx2"}),
                      node("ecu3", 5, {"avx", "avx2", "avx512f", "amx"})};
  auto placed = place(request, nodes);
  ASSERT_TRUE(placed);
  EXPECT_EQ(placed->standbys, std::vector<std::string>{"ecu3"});
  EXPECT_NE(why(*placed).find("standby ecu2: not chosen, its processor lacks avx512f"),
            std::string::npos);
  request.standbys = {"ecu2"};
  EXPECT_EQ(place(request, nodes).error().code, Code::kUnsupported);
}

TEST(Placement, NamedStandby_KeepsThePrimaryToNodesItCanTakeOverFrom) {
  PlacementRequest request;
  request.standbys = {"ecu2"};
  auto placed = place(request, {node("ecu1", 0, {"avx", "avx512f"}), node("ecu2", 0, {"avx"}),
                                node("ecu3", 9, {"avx"})});
  ASSERT_TRUE(placed);
  EXPECT_EQ(placed->node, "ecu3");
}

TEST(Placement, NamedNodes_UnknownUnreachableOrTwice_AreRefused) {
  auto gone = node("ecu2");
  gone.reachable = false;
  PlacementRequest request;
  request.node = "ecu7";
  EXPECT_EQ(place(request, {node("ecu1"), gone}).error().code, Code::kNotFound);
  request.node = "ecu2";
  EXPECT_EQ(place(request, {node("ecu1"), gone}).error().code, Code::kUnreachable);
  request.node = "ecu1";
  request.standbys = {"ecu1"};
  EXPECT_EQ(place(request, {node("ecu1"), gone}).error().code, Code::kInvalid);
}

TEST(Placement, TooFewNodes_OptionalStandbysAreLeftOut_RequiredOnesRefused) {
  PlacementRequest request;
  request.standby_count = 1;
  request.standbys_optional = true;
  auto placed = place(request, {node("ecu1")});
  ASSERT_TRUE(placed);
  EXPECT_TRUE(placed->standbys.empty());
  EXPECT_NE(why(*placed).find("no standby: no other fit node"), std::string::npos);
  request.standby_count = 2;
  request.standbys_optional = false;
  EXPECT_EQ(place(request, {node("ecu1"), node("ecu2")}).error().code, Code::kUnsupported);
}

TEST(ChooseStandbys, KeepsHoldersAndFillsUp) {
  PlacementRequest request;
  request.standby_count = 2;
  auto chosen = choose_standbys(request, "ecu2", {"ecu3", "ecu2"},
                                {node("ecu1"), node("ecu2"), node("ecu3", 9), node("ecu4", 1)});
  EXPECT_EQ(chosen.standbys, (std::vector<std::string>{"ecu3", "ecu1"}));
}

pb::WorkloadSpec good_spec() {
  pb::WorkloadSpec spec;
  spec.set_name("web-1");
  spec.set_origin(pb::ORIGIN_RUN);
  spec.add_argv("sleep");
  return spec;
}

TEST(SpecRules, GoodSpec_Passes_EachWrongPartIsInvalid) {
  ASSERT_TRUE(check_spec(good_spec()));
  const std::vector<std::function<void(pb::WorkloadSpec&)>> wrongs = {
      [](auto& s) { s.set_name(""); },
      [](auto& s) { s.set_name("Upper"); },
      [](auto& s) { s.set_name("-x"); },
      [](auto& s) { s.set_name(std::string(64, 'a')); },
      [](auto& s) { s.set_name("a/b"); },
      [](auto& s) { s.clear_argv(); },
      [](auto& s) { s.set_origin(pb::ORIGIN_UNSPECIFIED); },
      [](auto& s) { s.set_origin(pb::ORIGIN_PROTECT); },
      [](auto& s) { s.add_env("NOVALUE"); },
      [](auto& s) { s.set_cwd("relative"); },
      [](auto& s) { s.set_node("../x"); },
      [](auto& s) { s.add_standbys("ECU"); },
      [](auto& s) { s.set_standby_count(9); },
      [](auto& s) { s.set_interval_us(10); },
      [](auto& s) { s.set_interval_us(kMaxIntervalUs + 1); },
      [](auto& s) { s.set_max_slowdown(0.5); },
      [](auto& s) { s.add_addresses("10.0.0.1"); },
      [](auto& s) { s.add_addresses("10.0.0.1/33"); },
      [](auto& s) { s.add_volumes("x"); },
      [](auto& s) { s.add_volumes("/"); },
      [](auto& s) { s.add_volumes("/proc/self"); },
      [](auto& s) { s.add_volumes("/data/"); },
      [](auto& s) { s.add_volumes("/data/../etc"); },
      [](auto& s) { s.add_volumes("/data"), s.add_volumes("/data/deep"); },
      [](auto& s) { s.set_dedup("everything"); },
      [](auto& s) { s.set_digest("md5"); },
      [](auto& s) { s.set_dedup("cluster"), s.set_digest("xxh3"); },
      [](auto& s) { s.set_cwd("/" + std::string(kMaxSpecBytes, 'x')); },
  };
  for (std::size_t i = 0; i < wrongs.size(); ++i) {
    auto spec = good_spec();
    wrongs[i](spec);
    auto checked = check_spec(spec);
    ASSERT_FALSE(checked) << "wrong part " << i << " was accepted";
    EXPECT_EQ(checked.error().code, Code::kInvalid);
  }
}

TEST(SpecRules, Defaults_FollowTheMode) {
  for (auto [mode, us] : {std::pair{pb::MODE_HOT, kHotIntervalUs},
                          {pb::MODE_WARM, kWarmIntervalUs},
                          {pb::MODE_UNSPECIFIED, kColdIntervalUs}}) {
    auto spec = good_spec();
    spec.set_mode(mode);
    fill_defaults(spec);
    EXPECT_EQ(spec.interval_us(), us);
  }
}

TEST(SpecRules, Compare_TellsChangeableFromFixed) {
  auto now = good_spec();
  now.set_standby_count(1);
  fill_defaults(now);
  now.set_domain("d");
  auto wanted = good_spec();
  wanted.set_standby_count(1);
  fill_defaults(wanted);
  auto same = compare_specs(now, wanted);
  EXPECT_TRUE(same.changeable.empty() && same.fixed.empty());
  wanted.set_interval_us(5000);
  wanted.add_argv("1");
  auto different = compare_specs(now, wanted);
  EXPECT_EQ(different.changeable, std::vector<std::string>{"interval_us"});
  EXPECT_EQ(different.fixed, std::vector<std::string>{"argv"});
}

}  // namespace
}  // namespace baton::coordinator
