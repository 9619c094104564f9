// The warden's contract with its agent, over a backend with real processes and made-up memory.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "agent/warden/process.h"
#include "agent/warden/wire.h"
#include "base/cgroup.h"
#include "harness.h"

namespace baton::warden::testing {
namespace {

class WardenContract : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: cgroups and ptrace";
    warden.start();
    client = warden.connect();
    ASSERT_TRUE(client);
  }
  pb::WorkloadProcess run(const std::string& name, std::vector<std::string> env = {},
                          std::vector<std::string> argv = {"sleep", "1000"}) {
    auto process = client->run(spec_of(name, std::move(argv), std::move(env)));
    EXPECT_TRUE(process) << process.error().message();
    return process ? *process : pb::WorkloadProcess();
  }
  Result<Capture> capture(const std::string& name, bool keep_frozen = false) {
    pb::CaptureRequest request;
    request.set_workload(name);
    request.set_keep_frozen(keep_frozen);
    return client->capture(request);
  }
  Result<Round> round(const std::string& name) {
    pb::RoundRequest request;
    request.set_workload(name);
    return client->round(request);
  }
  Result<void> stop(const std::string& name, bool kill = true) {
    pb::StopRequest request;
    request.set_workload(name);
    request.set_kill(kill);
    request.set_grace_us(2'000'000);
    return client->stop(request);
  }
  pb::WorkloadProcess listed(const std::string& name) {
    auto all = client->list();
    EXPECT_TRUE(all);
    if (all) {
      for (auto& one : *all) {
        if (one.workload() == name) return one;
      }
    }
    return {};
  }

  WardenProcess warden{FAKE_WARDEN};
  std::unique_ptr<WardenClient> client;
};

TEST_F(WardenContract, Probe_AnyNode_TellsKernelAndBackends) {
  auto facts = client->probe();
  ASSERT_TRUE(facts) << facts.error().message();
  EXPECT_FALSE(facts->kernel().empty());
  EXPECT_GT(facts->memory_bytes(), 0u);
  ASSERT_EQ(facts->backends_size(), 1);
  EXPECT_EQ(facts->backends(0), "fake");
  EXPECT_EQ(facts->trackers(0), "fake-tracker");
}

TEST_F(WardenContract, RunListStop_OneProgram_LivesInItsCgroupAndLeavesNothing) {
  auto process = run("counter");
  EXPECT_EQ(process.state(), "running");
  ASSERT_TRUE(alive(static_cast<pid_t>(process.pid())));
  auto group = Cgroup::of(static_cast<pid_t>(process.pid()));
  ASSERT_TRUE(group);
  EXPECT_TRUE(group->path().ends_with("/counter")) << group->path();
  EXPECT_EQ(listed("counter").pid(), process.pid());
  ASSERT_TRUE(stop("counter"));
  EXPECT_FALSE(alive(static_cast<pid_t>(process.pid())));
  EXPECT_FALSE(group->exists());
  EXPECT_TRUE(listed("counter").state().empty());
  EXPECT_EQ(stop("counter").error().code, Code::kNotFound);
  for (const auto& left : std::filesystem::directory_iterator(warden.state())) {
    EXPECT_EQ(left.path().filename(), "leases") << "of all workloads; nothing else may be left";
  }
}

TEST_F(WardenContract, Run_NameTaken_Conflict) {
  auto process = run("counter");
  auto again = client->run(spec_of("counter", {"sleep", "1"}));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::kConflict);
  EXPECT_TRUE(alive(static_cast<pid_t>(process.pid())));
}

TEST_F(WardenContract, Run_BadNamesAndSpecs_Refused) {
  for (const char* name : {"", "A", "../x", "-a", "a/b", "a.b"}) {
    auto out = client->run(spec_of(name, {"sleep", "1"}));
    ASSERT_FALSE(out) << name;
    EXPECT_EQ(out.error().code, Code::kInvalid) << name;
  }
  EXPECT_EQ(client->run(spec_of(std::string(64, 'a'), {"true"})).error().code, Code::kInvalid);
  EXPECT_EQ(client->run(spec_of("empty", {})).error().code, Code::kInvalid);
  auto spec = spec_of("tracker", {"true"});
  spec.set_tracker("no-such");
  EXPECT_EQ(client->run(spec).error().code, Code::kInvalid);
  EXPECT_TRUE(client->list()->empty());
}

TEST_F(WardenContract, Run_LaunchFails_NothingIsLeft) {
  auto out = client->run(spec_of("broken", {"true"}, {"FAKE_FAIL=launch"}));
  ASSERT_FALSE(out);
  EXPECT_EQ(out.error().code, Code::kNotFound);
  EXPECT_TRUE(client->list()->empty());
  EXPECT_TRUE(run("broken").pid() > 0);
}

TEST_F(WardenContract, Exit_WhileConnected_EventCarriesStatus) {
  run("short", {}, {"sh", "-c", "exit 3"});
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("short", event));
  EXPECT_TRUE(event.exited());
  EXPECT_EQ(event.wait_status(), 3 << 8);
  EXPECT_EQ(listed("short").state(), "exited");
  EXPECT_EQ(capture("short").error().code, Code::kTraceeGone);
  EXPECT_GT(run("short").pid(), 0);   // the name is free for a new start
}

TEST_F(WardenContract, Exit_WhileDisconnected_ToldAtNextConnect) {
  auto process = run("short");
  client.reset();
  ::kill(static_cast<pid_t>(process.pid()), SIGTERM);
  ASSERT_TRUE(eventually([&] { return !alive(static_cast<pid_t>(process.pid())); }));
  client = warden.connect();
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("short", event));
  EXPECT_EQ(event.wait_status(), SIGTERM);
}

TEST_F(WardenContract, Stop_Graceful_TermReachesTheProgram) {
  run("polite", {}, {"sh", "-c", "trap 'echo bye > " + warden.folder() + "/bye; exit 0' TERM; while :; do sleep 0.05; done"});
  // The trap has to be set first.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  ASSERT_TRUE(stop("polite", false));
  EXPECT_TRUE(std::filesystem::exists(warden.folder() + "/bye"));
}

TEST_F(WardenContract, RoundAndCapture_Pages_ArriveWithTheirContent) {
  run("counter");
  {
    auto first = round("counter");
    ASSERT_TRUE(first) << first.error().message();
    EXPECT_EQ(first->info.pages_written(), 64u);
    std::uint64_t pages = 0;
    for (const auto& one : first->pages.runs()) {
      for (std::uint32_t i = 0; i < one.count(); ++i, ++pages) {
        std::uint64_t words[3];
        std::memcpy(words, first->pages.data(one) + i * 4096, sizeof words);
        EXPECT_EQ(words[0], one.object());
        EXPECT_EQ(words[1], one.first_page() + i);
      }
    }
    EXPECT_EQ(pages, 64u);
  }
  auto second = capture("counter");
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_EQ(second->info.manifest().workload(), "counter");
  EXPECT_EQ(second->info.pages_written(), 4u);
  ASSERT_EQ(second->info.dropped_size(), 1);
  EXPECT_EQ(second->info.dropped(0).first_page(), 74u);
  EXPECT_GT(second->info.pause_us(), 0u);
  EXPECT_EQ(listed("counter").tracker(), "fake-tracker");
}

TEST_F(WardenContract, Capture_MessagesOfManyMegabytes_Arrive) {
  run("big", {"FAKE_STATE=9000000", "FAKE_PAGES=12000", "FAKE_RUNS=scatter"});
  auto out = capture("big");
  ASSERT_TRUE(out) << out.error().message();
  EXPECT_EQ(out->info.manifest().state().size(), 9'000'000u);
  EXPECT_GE(out->pages.runs().size(), 12'000u - 256u);
}

TEST_F(WardenContract, Rounds_BufferSmallerThanProgram_PagesComeInTurns) {
  run("large", {"FAKE_PAGES=40000"});   // 156 MiB through a buffer of 64 MB
  std::uint64_t pages = 0;
  int rounds = 0;
  for (std::uint64_t pending = 1; pending > 0 && rounds < 10; ++rounds) {
    auto out = round("large");
    ASSERT_TRUE(out) << out.error().message();
    pending = out->info.pages_pending();
    for (const auto& one : out->pages.runs()) pages += one.count();
  }
  EXPECT_GE(pages, 40000u);
  EXPECT_GT(rounds, 2);
  ASSERT_TRUE(capture("large"));
}

TEST_F(WardenContract, Rounds_PagesNotGivenBack_CaptureFailsThawedAndLaterSucceeds) {
  auto process = run("large", {"FAKE_PAGES=40000"});
  {
    auto kept = round("large");
    ASSERT_TRUE(kept);
    auto out = capture("large");
    ASSERT_FALSE(out);
    EXPECT_EQ(out.error().code, Code::kNoSpace);
    EXPECT_TRUE(eventually([&] { return state_of(static_cast<pid_t>(process.pid())) == 'S'; }));
  }
  for (int i = 0; i < 8 && !capture("large"); ++i) {
    auto drained = round("large");
    ASSERT_TRUE(drained);
  }
  EXPECT_TRUE(capture("large"));
}

TEST_F(WardenContract, ManyCaptures_PagesGivenBack_BufferNeverRunsOut) {
  run("loop", {"FAKE_PAGES=5000"});
  for (int i = 0; i < 60; ++i) {
    pb::CaptureRequest request;
    request.set_workload("loop");
    auto* again = request.add_again();
    again->set_object(1);
    again->set_count(5000);
    auto out = client->capture(request);
    ASSERT_TRUE(out) << i << ": " << out.error().message();
  }
}

TEST_F(WardenContract, KeepFrozen_ThenThaw_RunsAgain) {
  auto pid = static_cast<pid_t>(run("counter").pid());
  ASSERT_TRUE(capture("counter", true));
  EXPECT_EQ(state_of(pid), 't');
  EXPECT_TRUE(listed("counter").frozen());
  EXPECT_EQ(capture("counter").error().code, Code::kConflict);
  EXPECT_EQ(round("counter").error().code, Code::kConflict);
  ASSERT_TRUE(client->thaw("counter"));
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  EXPECT_FALSE(listed("counter").frozen());
  EXPECT_TRUE(capture("counter"));
}

TEST_F(WardenContract, KeepFrozenAndHold_AgentGoes_StaysFrozen) {
  auto pid = static_cast<pid_t>(run("counter").pid());
  ASSERT_TRUE(capture("counter", true));
  auto held = client->hold("counter");
  ASSERT_TRUE(held) << held.error().message();
  client.reset();
  client = warden.connect();
  EXPECT_TRUE(listed("counter").frozen());
  auto group = Cgroup::of(pid);
  ASSERT_TRUE(group);
  EXPECT_TRUE(*group->frozen());
  ASSERT_TRUE(client->thaw("counter"));
  EXPECT_FALSE(*group->frozen());
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  auto fresh = round("counter");       // tracking began anew: everything is there
  ASSERT_TRUE(fresh);
  EXPECT_EQ(fresh->info.pages_written(), 64u);
}

TEST_F(WardenContract, KeepFrozenWithoutHold_AgentGoes_Thawed) {
  auto pid = static_cast<pid_t>(run("counter").pid());
  ASSERT_TRUE(capture("counter", true));
  client.reset();
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  client = warden.connect();
  EXPECT_FALSE(listed("counter").frozen());
}

TEST_F(WardenContract, Stop_Held_KilledWithoutRunning) {
  std::string mark = warden.folder() + "/ran";
  auto pid = static_cast<pid_t>(run("held", {}, {"sh", "-c", "trap 'echo ran > " + mark + "' TERM; while :; do sleep 0.05; done"}).pid());
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  ASSERT_TRUE(client->hold("held"));
  ASSERT_TRUE(stop("held", false));
  EXPECT_FALSE(alive(pid));
  EXPECT_FALSE(std::filesystem::exists(mark));
}

TEST_F(WardenContract, Stop_KeptFrozen_Destroyed) {
  auto pid = static_cast<pid_t>(run("counter").pid());
  ASSERT_TRUE(capture("counter", true));
  ASSERT_TRUE(stop("counter"));
  EXPECT_FALSE(alive(pid));
}

TEST_F(WardenContract, BuildFillActivate_FromManifest_RunsWithItsPages) {
  pb::BuildRequest build;
  build.set_workload("copy");
  build.mutable_manifest()->set_backend("fake");
  *build.mutable_spec() = spec_of("copy", {"sleep", "1000"});
  build.set_incarnation(7);
  ASSERT_TRUE(client->build(build));
  EXPECT_EQ(listed("copy").state(), "building");
  auto pid = static_cast<pid_t>(listed("copy").pid());
  EXPECT_EQ(state_of(pid), 't');
  {
    auto space = client->fill_space(2 * 4096);
    ASSERT_TRUE(space);
    for (std::uint64_t i = 0; i < 2; ++i) {
      std::uint64_t words[3] = {1, 40 + i, 1};
      std::memcpy(space->bytes().data() + i * 4096, words, sizeof words);
    }
    pb::FillRequest fill;
    fill.set_workload("copy");
    auto* one = fill.add_runs();
    one->set_object(1);
    one->set_first_page(40);
    one->set_count(2);
    one->set_offset(space->offset());
    ASSERT_TRUE(client->fill(fill));
    one->set_offset((8u << 20));       // outside
    auto outside = client->fill(fill);
    ASSERT_FALSE(outside);
    EXPECT_EQ(outside.error().code, Code::kInvalid);
  }
  pb::ActivateRequest activate;
  activate.set_workload("copy");
  auto process = client->activate(activate);
  ASSERT_TRUE(process) << process.error().message();
  EXPECT_EQ(process->state(), "running");
  EXPECT_EQ(process->incarnation(), 7u);
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  pb::LogsRequest logs;
  logs.set_workload("copy");
  auto text = client->logs(logs);
  ASSERT_TRUE(text);
  EXPECT_EQ(text->data(), "page 1:40 holds 40\npage 1:41 holds 41\n");
  ASSERT_TRUE(stop("copy"));
}

TEST_F(WardenContract, Build_Discarded_NothingIsLeft) {
  pb::BuildRequest build;
  build.set_workload("copy");
  build.mutable_manifest()->set_backend("fake");
  *build.mutable_spec() = spec_of("copy", {"sleep", "1000"});
  ASSERT_TRUE(client->build(build));
  auto pid = static_cast<pid_t>(listed("copy").pid());
  ASSERT_TRUE(stop("copy"));
  EXPECT_FALSE(alive(pid));
  EXPECT_TRUE(client->list()->empty());

  ASSERT_TRUE(client->build(build));
  pid = static_cast<pid_t>(listed("copy").pid());
  client.reset();                     // an agent that goes leaves no half-built process
  EXPECT_TRUE(eventually([&] { return !alive(pid); }));
  client = warden.connect();
  EXPECT_TRUE(eventually([&] { return client->list()->empty(); }));
}

TEST_F(WardenContract, Build_Paused_IsHeldUntilThaw) {
  pb::BuildRequest build;
  build.set_workload("copy");
  build.mutable_manifest()->set_backend("fake");
  *build.mutable_spec() = spec_of("copy", {"sleep", "1000"});
  ASSERT_TRUE(client->build(build));
  pb::ActivateRequest activate;
  activate.set_workload("copy");
  activate.set_paused(true);
  auto process = client->activate(activate);
  ASSERT_TRUE(process) << process.error().message();
  EXPECT_TRUE(process->frozen());
  ASSERT_TRUE(client->thaw("copy"));
  EXPECT_TRUE(eventually([&] { return state_of(static_cast<pid_t>(process->pid())) == 'S'; }));
}

TEST_F(WardenContract, Build_Fails_ErrorAndNothingLeft) {
  for (const char* how : {"FAKE_FAIL=build", "FAKE_FAIL=activate"}) {
    pb::BuildRequest build;
    build.set_workload("copy");
    build.mutable_manifest()->set_backend("fake");
    *build.mutable_spec() = spec_of("copy", {"sleep", "1000"}, {how});
    auto built = client->build(build);
    if (built) {
      pb::ActivateRequest activate;
      activate.set_workload("copy");
      EXPECT_FALSE(client->activate(activate));
    }
    EXPECT_TRUE(client->list()->empty()) << how;
  }
  pb::BuildRequest other;
  other.set_workload("copy");
  other.mutable_manifest()->set_backend("no-such-backend");
  EXPECT_EQ(client->build(other).error().code, Code::kUnsupported);
}

TEST_F(WardenContract, Capture_TooSlow_EndedAndRunsOn) {
  client.reset();
  warden.kill(SIGTERM);
  warden.start({"--freeze-limit-ms", "100"});
  client = warden.connect();
  auto pid = static_cast<pid_t>(run("slow", {"FAKE_SLOW=1"}).pid());
  auto out = capture("slow");
  ASSERT_FALSE(out);
  EXPECT_EQ(out.error().code, Code::kTimedOut);
  EXPECT_TRUE(eventually([&] { return state_of(pid) == 'S'; }));
  EXPECT_TRUE(warden.running());
}

TEST_F(WardenContract, Capture_BackendRefuses_ErrorNamesTheResource) {
  auto pid = static_cast<pid_t>(run("ring", {"FAKE_FAIL=capture"}).pid());
  auto out = capture("ring");
  ASSERT_FALSE(out);
  EXPECT_EQ(out.error().code, Code::kUnsupported);
  EXPECT_NE(out.error().message().find("fd 7"), std::string::npos);
  EXPECT_TRUE(alive(pid));
}

TEST_F(WardenContract, Logs_Ranges_AsAsked) {
  run("talker", {}, {"sh", "-c", "printf 0123456789; sleep 1000"});
  pb::LogsRequest request;
  request.set_workload("talker");
  ASSERT_TRUE(eventually([&] { return client->logs(request)->data() == "0123456789"; }));
  request.set_offset(4);
  request.set_max_bytes(3);
  EXPECT_EQ(client->logs(request)->data(), "456");
  EXPECT_EQ(client->logs(request)->next_offset(), 7);
  request.set_offset(-1);
  EXPECT_EQ(client->logs(request)->data(), "789");
  request.set_workload("nobody");
  EXPECT_EQ(client->logs(request).error().code, Code::kNotFound);
}

TEST_F(WardenContract, Signal_ToRoot_Arrives) {
  run("target");
  EXPECT_EQ(client->signal("target", 0).error().code, Code::kInvalid);
  EXPECT_EQ(client->signal("target", 65).error().code, Code::kInvalid);
  ASSERT_TRUE(client->signal("target", SIGUSR1));
  pb::WardenEvent event;
  ASSERT_TRUE(warden.wait_event("target", event));
  EXPECT_EQ(event.wait_status(), SIGUSR1);
}

TEST_F(WardenContract, Connection_SecondAgentAndStrangers_Refused) {
  auto second = WardenClient::connect(warden.socket(), nullptr, nullptr);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kConflict);
  struct stat info{};
  ASSERT_EQ(::stat(warden.socket().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);

  client.reset();
  ASSERT_EQ(::chmod(warden.socket().c_str(), 0666), 0);
  ASSERT_EQ(::chmod(warden.folder().c_str(), 0777), 0);
  pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(4242) != 0 || ::setuid(4242) != 0) ::_exit(9);
    auto stranger = WardenClient::connect(warden.socket(), nullptr, nullptr);
    ::_exit(stranger ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(warden.connect()->list());
}

TEST_F(WardenContract, Connection_Garbage_ClosedAndWardenLives) {
  client.reset();
  for (std::string bytes : {std::string("x"), std::string("\x01garbage!"), std::string("\x02" "12345678"),
                            std::string(1, '\x01'), std::string(100000, '\x01')}) {
    auto socket = UnixSocket::connect(warden.socket());
    ASSERT_TRUE(socket);
    (void)socket->send(std::as_bytes(std::span(bytes.data(), bytes.size()))).has_value();
    auto answer = socket->receive(1 << 20);
    EXPECT_TRUE(answer && !*answer) << "the connection should have been closed";
  }
  // A payload announced in something that is no memory file, and one larger than allowed.
  auto socket = UnixSocket::connect(warden.socket());
  ASSERT_TRUE(socket);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::string packet("\x02\x10\0\0\0\0\0\0\0", 9);
  int fd = ends[0];
  ASSERT_TRUE(socket->send(std::as_bytes(std::span(packet.data(), packet.size())), std::span(&fd, 1)));
  auto answer = socket->receive(1 << 20);
  EXPECT_TRUE(answer && !*answer);
  ::close(ends[0]);
  ::close(ends[1]);
  client = warden.connect();
  EXPECT_TRUE(client->list());
}

TEST_F(WardenContract, FreeBuffer_WhatWasNeverGiven_Ignored) {
  run("counter");
  client.reset();
  auto socket = UnixSocket::connect(warden.socket());
  ASSERT_TRUE(socket);
  pb::WardenRequest request;
  request.set_id(1);
  request.mutable_hello()->set_version(kProtocolVersion);
  ASSERT_TRUE(send_message(*socket, request));
  pb::WardenResponse response;
  std::vector<Fd> fds;
  ASSERT_TRUE(*receive_message(*socket, response, fds));
  ASSERT_EQ(fds.size(), 2u);
  EXPECT_EQ(::fcntl(fds[0].get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  for (auto [offset, count] : {std::pair<std::uint64_t, std::uint32_t>{0, 1}, {1, 1}, {UINT64_MAX - 4095, 2}, {0, UINT32_MAX}}) {
    pb::WardenRequest free;
    auto* one = free.mutable_free_buffer()->add_runs();
    one->set_offset(offset);
    one->set_count(count);
    ASSERT_TRUE(send_message(*socket, free));
  }
  pb::WardenRequest empty;
  empty.set_id(9);
  ASSERT_TRUE(send_message(*socket, empty));
  ASSERT_TRUE(*receive_message(*socket, response, fds));
  EXPECT_EQ(response.id(), 9u);
  EXPECT_EQ(response.error().code(), static_cast<int>(Code::kInvalid));
}

TEST_F(WardenContract, FillSpace_Full_WaitsForRoom) {
  auto all = client->fill_space(8'000'000);
  ASSERT_TRUE(all);
  EXPECT_EQ(client->fill_space(9u << 20).error().code, Code::kInvalid);
  std::atomic<bool> got{false};
  std::thread waiter([&] { got = client->fill_space(4 << 20).has_value(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_FALSE(got);
  *all = FillSpace();
  waiter.join();
  EXPECT_TRUE(got);
}

TEST_F(WardenContract, Files_ProveReadWrite_NothingIsOverwritten) {
  std::string path = warden.folder() + "/data/deep/file";
  pb::WriteFileRequest write;
  write.set_path(path);
  write.set_mode(0640);
  write.set_data(std::string(300'000, 'a'));
  ASSERT_TRUE(client->write_file(write));
  EXPECT_FALSE(std::filesystem::exists(path));
  write.set_offset(300'000);
  write.set_data("end");
  write.set_end(true);
  ASSERT_TRUE(client->write_file(write));
  struct stat info{};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0640u);

  pb::ReadFileRequest read;
  read.set_path(path);
  read.set_offset(299'999);
  auto bytes = client->read_file(read);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(bytes->data(), "aend");
  EXPECT_TRUE(bytes->end());

  pb::ProveFilesRequest ask;
  ask.add_files()->set_path(path);
  ask.mutable_files(0)->set_size_bytes(300'003);
  auto first = client->prove_files(ask);
  ASSERT_TRUE(first);
  EXPECT_FALSE(first->files(0).same());
  ask.mutable_files(0)->set_sha256(first->files(0).actual().sha256());
  EXPECT_TRUE(client->prove_files(ask)->files(0).same());
  { std::ofstream(path, std::ios::in | std::ios::out) << "b"; }
  EXPECT_FALSE(client->prove_files(ask)->files(0).same());

  pb::WriteFileRequest other;
  other.set_path(path);
  other.set_data("else");
  other.set_end(true);
  EXPECT_EQ(client->write_file(other).error().code, Code::kConflict);
  for (const char* bad : {"relative", "/a/../b", "/", "", "/a/"}) {
    other.set_path(bad);
    EXPECT_EQ(client->write_file(other).error().code, Code::kInvalid) << bad;
    read.set_path(bad);
    EXPECT_EQ(client->read_file(read).error().code, Code::kInvalid) << bad;
  }
  read.set_path("/dev/zero");
  EXPECT_EQ(client->read_file(read).error().code, Code::kUnsupported);
}

TEST_F(WardenContract, Inspect_ByPidAndName_FilesHaveDigests) {
  auto process = run("counter");
  pb::InspectRequest request;
  request.set_workload("counter");
  auto seen = client->inspect(request);
  ASSERT_TRUE(seen) << seen.error().message();
  EXPECT_EQ(seen->verdicts(0).pid(), process.pid());
  ASSERT_EQ(seen->files_size(), 1);
  EXPECT_EQ(seen->files(0).sha256().size(), 32u);
  pb::InspectRequest unknown;
  unknown.set_pid(0x7ffffff);
  EXPECT_EQ(client->inspect(unknown).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace baton::warden::testing
