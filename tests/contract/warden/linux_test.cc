// The real warden over the linux backend, end to end on one machine: a program counts,
// is captured, stopped, built again from what was captured, and counts on.
#include <algorithm>
#include <csignal>
#include <cstring>
#include <map>
#include <string>

#include <unistd.h>

#include "base/fd.h"
#include "harness.h"

namespace baton::warden::testing {
namespace {

class LinuxWarden : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups, ptrace and namespaces";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
  }
  using Memory = std::map<std::pair<std::uint64_t, std::uint64_t>, std::string>;   // (object, page)

  template <typename Info>
  static void apply(const Info& info, const CapturedPages& pages, Memory& memory) {
    for (const auto& range : info.dropped()) {
      auto from = memory.lower_bound({range.object(), range.first_page()});
      auto to = memory.lower_bound({range.object(), range.first_page() + range.count()});
      memory.erase(from, to);
    }
    for (const auto& run : pages.runs()) {
      for (std::uint32_t i = 0; i < run.count(); ++i) {
        memory[{run.object(), run.first_page() + i}] =
            std::string(reinterpret_cast<const char*>(pages.data(run)) + i * 4096u, 4096);
      }
    }
  }
  Result<void> fill(const std::string& name, const Memory& memory, bool beside = false) {
    for (auto it = memory.begin(); it != memory.end();) {
      BATON_ASSIGN(FillSpace space, client->fill_space(256 * 4096));
      pb::FillRequest request;
      request.set_workload(name);
      request.set_beside(beside);
      for (std::uint64_t slot = 0; slot < 256 && it != memory.end(); ++slot, ++it) {
        std::memcpy(space.bytes().data() + slot * 4096, it->second.data(), 4096);
        auto* run = request.add_runs();
        run->set_object(it->first.first);
        run->set_first_page(it->first.second);
        run->set_count(1);
        run->set_offset(space.offset() + slot * 4096);
      }
      BATON_TRY(client->fill(request));
    }
    return {};
  }
  std::string log_of(const std::string& name) {
    pb::LogsRequest request;
    request.set_workload(name);
    auto logs = client->logs(request);
    return logs ? logs->data() : std::string();
  }
  // The last number that the counter has printed; 0: none.
  static std::uint64_t last_count(const std::string& log) {
    auto end = log.rfind('\n');
    if (end == std::string::npos || end == 0) return 0;
    auto begin = log.rfind('\n', end - 1);
    std::string line = log.substr(begin == std::string::npos ? 0 : begin + 1, end);
    return line.compare(0, 6, "count ") == 0 ? std::strtoull(line.c_str() + 6, nullptr, 10) : 0;
  }
  void stop(const std::string& name) {
    pb::StopRequest request;
    request.set_workload(name);
    request.set_kill(true);
    auto stopped = client->stop(request);
    ASSERT_TRUE(stopped) << stopped.error().message();
  }

  WardenProcess warden{LINUX_WARDEN};
  std::unique_ptr<WardenClient> client;
};

TEST_F(LinuxWarden, Probe_ThisNode_HasATrackerAndRegisters) {
  auto facts = client->probe();
  ASSERT_TRUE(facts) << facts.error().message();
  EXPECT_GT(facts->trackers_size(), 0);
  EXPECT_GT(facts->xsave_bytes(), 0u);
}

TEST_F(LinuxWarden, Counter_CapturedStoppedBuilt_CountsOn) {
  auto spec = spec_of("counter", {COUNTER, "5000"}, {"PATH=/usr/bin:/bin"});
  spec.set_verify(true);
  auto process = client->run(spec);
  ASSERT_TRUE(process) << process.error().message();
  ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > 3; })) << log_of("counter");

  Memory memory;
  pb::RoundRequest round;
  round.set_workload("counter");
  for (int i = 0; i < 3; ++i) {
    auto copied = client->round(round);
    ASSERT_TRUE(copied) << copied.error().message();
    apply(copied->info, copied->pages, memory);
  }
  pb::CaptureRequest capture;
  capture.set_workload("counter");
  capture.set_verify(true);
  {
    auto running = client->capture(capture);
    ASSERT_TRUE(running) << running.error().message();
    apply(running->info, running->pages, memory);
    EXPECT_EQ(running->info.verify_differences(), 0u) << running->info.verify_first();
    EXPECT_GT(running->info.pause_us(), 0u);
  }
  capture.set_keep_frozen(true);
  auto frozen = client->capture(capture);
  ASSERT_TRUE(frozen) << frozen.error().message();
  apply(frozen->info, frozen->pages, memory);
  EXPECT_EQ(frozen->info.verify_differences(), 0u) << frozen->info.verify_first();
  auto held = client->hold("counter");
  ASSERT_TRUE(held) << held.error().message();
  std::uint64_t reached = last_count(log_of("counter"));
  stop("counter");

  pb::BuildRequest build;
  build.set_workload("counter");
  *build.mutable_manifest() = frozen->info.manifest();
  *build.mutable_spec() = spec_of("counter", {COUNTER, "5000"});
  build.set_incarnation(2);
  auto built = client->build(build);
  ASSERT_TRUE(built) << built.error().message();
  auto filled = fill("counter", memory);
  ASSERT_TRUE(filled) << filled.error().message();
  pb::ActivateRequest activate;
  activate.set_workload("counter");
  activate.set_away_ns(1'000'000);
  auto again = client->activate(activate);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ(again->incarnation(), 2u);

  ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 20; })) << log_of("counter");
  std::string log = log_of("counter");
  EXPECT_EQ(log.find("FAILED"), std::string::npos) << log;
  std::uint64_t first = std::strtoull(log.c_str() + 6, nullptr, 10);
  EXPECT_LE(first, reached + 2) << "the copy goes on where the original stopped";
  EXPECT_GE(first + 2, reached);
  ASSERT_TRUE(client->signal("counter", SIGUSR1));   // it checks its own memory
  EXPECT_TRUE(eventually([&] { return log_of("counter").find("\nok") != std::string::npos; })) << log_of("counter");
  stop("counter");
}

TEST_F(LinuxWarden, Counter_HeldAndWardenKilled_StaysFrozenThenRuns) {
  ASSERT_TRUE(client->run(spec_of("counter", {COUNTER, "2000"}, {"PATH=/usr/bin:/bin"})));
  ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > 3; }));
  pb::CaptureRequest capture;
  capture.set_workload("counter");
  capture.set_keep_frozen(true);
  ASSERT_TRUE(client->capture(capture));
  ASSERT_TRUE(client->hold("counter"));
  warden.kill(SIGKILL);
  warden.start();
  client = warden.connect();
  std::uint64_t reached = last_count(log_of("counter"));
  ASSERT_FALSE(client->list()->empty());
  EXPECT_TRUE(client->list()->front().frozen());
  ::usleep(100'000);
  EXPECT_EQ(last_count(log_of("counter")), reached);
  ASSERT_TRUE(client->thaw("counter"));
  EXPECT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 5; }));
  capture.set_keep_frozen(false);
  EXPECT_TRUE(client->capture(capture));
  stop("counter");
}

TEST_F(LinuxWarden, Counter_WardenKilledWhileCapturing_CountsOn) {
  ASSERT_TRUE(client->run(spec_of("counter", {COUNTER, "2000"}, {"PATH=/usr/bin:/bin"})));
  ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > 3; }));
  pb::CaptureRequest capture;
  capture.set_workload("counter");
  for (const char* point : {"warden.attach.after", "warden.capture.frozen", "warden.capture.done"}) {
    warden.arm(std::string(point) + "=kill");
    ASSERT_FALSE(client->capture(capture)) << point;
    warden.wait();
    warden.arm("");
    warden.start();
    client = warden.connect();
    std::uint64_t reached = last_count(log_of("counter"));
    EXPECT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 5; })) << point;
  }
  auto after = client->capture(capture);
  EXPECT_TRUE(after) << after.error().message();
  EXPECT_EQ(log_of("counter").find("FAILED"), std::string::npos);
  stop("counter");
}

TEST_F(LinuxWarden, RunningProgram_ProtectedCapturedReleased_CountsOn) {
  std::string output = warden.folder() + "/output";
  Child child({"sh", "-c", std::string("exec ") + COUNTER + " 2000 >" + output + " 2>&1 </dev/null"});
  auto printed = [&] { return last_count(baton::read_file(output).value_or("")); };
  ASSERT_TRUE(eventually([&] { return printed() > 3; }));
  pb::InspectRequest inspect;
  inspect.set_pid(child.pid());
  auto seen = client->inspect(inspect);
  ASSERT_TRUE(seen) << seen.error().message();
  EXPECT_TRUE(seen->acceptable()) << seen->DebugString();
  bool program_proven = false;
  for (const auto& file : seen->files()) {
    program_proven = program_proven || (file.path().ends_with("/counter") && file.sha256().size() == 32);
  }
  EXPECT_TRUE(program_proven) << seen->DebugString();
  auto spec = spec_of("guest", {});
  spec.set_pid(child.pid());
  auto taken = client->protect(spec);
  ASSERT_TRUE(taken) << taken.error().message();
  pb::CaptureRequest capture;
  capture.set_workload("guest");
  for (int i = 0; i < 5; ++i) {
    auto captured = client->capture(capture);
    ASSERT_TRUE(captured) << captured.error().message();
  }
  auto released = client->release("guest");
  ASSERT_TRUE(released) << released.error().message();
  std::uint64_t reached = printed();
  EXPECT_TRUE(eventually([&] { return printed() > reached + 5; }));
  EXPECT_EQ(baton::read_file(output)->find("FAILED"), std::string::npos);
}

// A second copy of a counter, which stands by under a name of its own.
class LinuxShadow : public LinuxWarden {
 protected:
  void SetUp() override {
    LinuxWarden::SetUp();
    if (!client) return;
    ASSERT_TRUE(client->run(spec_of("counter", {COUNTER, "2000"}, {"PATH=/usr/bin:/bin"})));
    ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > 3; }));
    checkpoint();
  }
  // Takes one of the running program; `changed`: what differs from the one before.
  void checkpoint(bool keep_frozen = false) {
    pb::CaptureRequest capture;
    capture.set_workload("counter");
    capture.set_keep_frozen(keep_frozen);
    Memory before = memory;
    taken = std::chrono::steady_clock::now();
    auto captured = client->capture(capture);
    ASSERT_TRUE(captured) << captured.error().message();
    apply(captured->info, captured->pages, memory);
    manifest = captured->info.manifest();
    changed.clear();
    for (const auto& [place, page] : memory) {
      auto was = before.find(place);
      if (was == before.end() || was->second != page) changed.emplace(place, page);
    }
  }
  Result<void> build(std::uint64_t seq, bool beside = false) {
    pb::BuildRequest request;
    request.set_workload("copy");
    *request.mutable_manifest() = manifest;
    *request.mutable_spec() = spec_of("copy", {COUNTER, "2000"});
    request.set_seq(seq);
    request.set_beside(beside);
    // As a standby does: the time that has gone, and some more, so that its clocks are ahead.
    request.set_away_ns(static_cast<std::uint64_t>((std::chrono::steady_clock::now() - taken + std::chrono::milliseconds(50)).count()));
    BATON_TRY(client->build(request));
    return fill("copy", memory, beside);
  }
  Result<pb::ShadowResponse> follow(std::uint64_t seq) {
    BATON_ASSIGN(FillSpace space, client->fill_space(std::max<std::size_t>(1, changed.size()) * 4096));
    pb::ShadowRequest request;
    request.set_workload("copy");
    request.set_step(pb::SHADOW_STEP_APPLY);
    request.set_seq(seq);
    *request.mutable_manifest() = manifest;
    std::uint64_t slot = 0;
    for (const auto& [place, page] : changed) {
      std::memcpy(space.bytes().data() + slot * 4096, page.data(), 4096);
      auto* run = request.add_runs();
      run->set_object(place.first);
      run->set_first_page(place.second);
      run->set_count(1);
      run->set_offset(space.offset() + slot++ * 4096);
    }
    request.set_last(true);
    return client->shadow(request);
  }
  pb::WorkloadProcess listed(const std::string& name) {
    auto all = client->list();
    if (all) {
      for (const auto& one : *all) {
        if (one.workload() == name) return one;
      }
    }
    return {};
  }

  Memory memory, changed;
  pb::Manifest manifest;
  std::chrono::steady_clock::time_point taken{};
};

TEST_F(LinuxShadow, Followed_ActivatedOnlyAtItsCheckpoint_CountsOn) {
  auto built = build(1);
  ASSERT_TRUE(built) << built.error().message();
  EXPECT_EQ(listed("copy").shadow_seq(), 1u);
  for (std::uint64_t seq = 2; seq <= 5; ++seq) {
    std::uint64_t reached = last_count(log_of("counter"));
    ASSERT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 3; }));
    checkpoint(seq == 5);
    auto followed = follow(seq);
    ASSERT_TRUE(followed) << followed.error().message();
    EXPECT_FALSE(followed->rebuild()) << followed->reason();
    EXPECT_GT(followed->clock_ahead_ns(), 0) << "its clocks must not be behind the program's";
    EXPECT_EQ(listed("copy").shadow_seq(), seq);
  }
  EXPECT_EQ(log_of("copy"), "") << "it must not run";
  std::uint64_t reached = last_count(log_of("counter"));
  stop("counter");
  pb::ActivateRequest activate;
  activate.set_workload("copy");
  activate.set_seq(4);
  auto wrong = client->activate(activate);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Code::kConflict);
  activate.set_seq(5);
  auto runs = client->activate(activate);
  ASSERT_TRUE(runs) << runs.error().message();
  ASSERT_TRUE(eventually([&] { return last_count(log_of("copy")) > reached + 20; })) << log_of("copy");
  std::uint64_t first = std::strtoull(log_of("copy").c_str() + 6, nullptr, 10);
  EXPECT_LE(first, reached + 2);
  EXPECT_GE(first + 2, reached);
  ASSERT_TRUE(client->signal("copy", SIGUSR1));
  EXPECT_TRUE(eventually([&] { return log_of("copy").find("\nok") != std::string::npos; })) << log_of("copy");
  stop("copy");
}

TEST_F(LinuxShadow, BuiltBeside_TheOldOneStandsUntilItIsReplaced) {
  ASSERT_TRUE(build(1));
  const pid_t old = static_cast<pid_t>(listed("copy").pid());
  checkpoint();
  auto beside = build(2, true);
  ASSERT_TRUE(beside) << beside.error().message();
  EXPECT_EQ(listed("copy").shadow_seq(), 1u);
  EXPECT_TRUE(alive(old));
  pb::ShadowRequest replace;
  replace.set_workload("copy");
  replace.set_step(pb::SHADOW_STEP_REPLACE);
  replace.set_seq(2);
  auto replaced = client->shadow(replace);
  ASSERT_TRUE(replaced) << replaced.error().message();
  EXPECT_EQ(listed("copy").shadow_seq(), 2u);
  EXPECT_TRUE(eventually([&] { return !alive(old); }));
  stop("counter");
  pb::ActivateRequest activate;
  activate.set_workload("copy");
  activate.set_seq(2);
  auto runs = client->activate(activate);
  ASSERT_TRUE(runs) << runs.error().message();
  EXPECT_TRUE(eventually([&] { return last_count(log_of("copy")) > 3; }));
  stop("copy");
}

TEST_F(LinuxShadow, ApplyFailsHalfWay_NothingIsLeftOfIt) {
  ASSERT_TRUE(build(1));
  const pid_t shadow = static_cast<pid_t>(listed("copy").pid());
  checkpoint();
  warden.arm("warden.shadow.filled=error");
  EXPECT_FALSE(follow(2));
  warden.arm("");
  EXPECT_FALSE(alive(shadow));
  EXPECT_EQ(listed("copy").workload(), "");
  ASSERT_TRUE(build(2)) << "the name is free again";
  EXPECT_EQ(listed("copy").shadow_seq(), 2u);
  std::uint64_t reached = last_count(log_of("counter"));
  EXPECT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 5; }));
  stop("copy");
  stop("counter");
}

TEST_F(LinuxShadow, WardenKilledInTheMiddle_TheShadowDiesAndTheProgramRunsOn) {
  for (const char* point : {"warden.shadow.apply", "warden.shadow.filled", "warden.activate.before"}) {
    auto built = build(1);
    ASSERT_TRUE(built) << point << ": " << built.error().message();
    const pid_t shadow = static_cast<pid_t>(listed("copy").pid());
    ASSERT_TRUE(alive(shadow));
    warden.arm(std::string(point) + "=kill");
    pb::ActivateRequest activate;
    activate.set_workload("copy");
    if (std::string(point) == "warden.activate.before") EXPECT_FALSE(client->activate(activate));
    else EXPECT_FALSE(follow(2)) << point;
    warden.wait();
    EXPECT_TRUE(eventually([&] { return !alive(shadow); })) << point;
    warden.arm("");
    warden.start();
    client = warden.connect();
    EXPECT_EQ(listed("copy").workload(), "") << point;
    std::uint64_t reached = last_count(log_of("counter"));
    EXPECT_TRUE(eventually([&] { return last_count(log_of("counter")) > reached + 5; })) << point;
    memory.clear();   // its tracking begins anew
    checkpoint();
  }
  stop("counter");
}

}  // namespace
}  // namespace baton::warden::testing
