// A real program is launched, captured by the linux backend, killed while still frozen, and
// rebuilt from nothing but the manifest and the captured pages. The programs check themselves
// (tests/tracees): asked with SIGUSR1, they print "ok" or "FAILED: what".
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <thread>

#include "tests/contract/backend/fixture.h"

namespace baton {
namespace {

using namespace testing_restore;

TEST_F(Restore, Counter_Moved_GoesOnWhereItWas) {
  move({tracee("counter"), "20000"});
  if (HasFatalFailure()) return;
  auto number = [](const std::string& text, bool last) {
    auto at = last ? text.rfind("count ", text.rfind('\n') - 1) : text.find("count ");
    return std::atol(text.c_str() + at + 6);
  };
  EXPECT_EQ(number(text_of(log(1)), false), number(text_of(log(0)), true) + 1);
}
TEST_F(Restore, Threads_Moved_FindEverythingAsItWas) { move({tracee("threads")}); }
TEST_F(Restore, Registers_Moved_AreTheSame) { move({tracee("registers")}); }
TEST_F(Restore, Mappings_Moved_AreTheSame) { move({tracee("mappings")}); }
TEST_F(Restore, Signals_Moved_AreTheSame) { move({tracee("signals")}); }
TEST_F(Restore, Pending_Moved_AreTheSame) { move({tracee("pending")}); }
TEST_F(Restore, Descriptors_Moved_AreTheSame) { move({tracee("descriptors")}); }
TEST_F(Restore, Files_Moved_AreTheSame) { move({tracee("files")}); }
TEST_F(Restore, Events_Moved_AreTheSame) { move({tracee("events")}); }
TEST_F(Restore, Clocks_Moved_NeverRunBackwards) { move({tracee("clocks")}); }
TEST_F(Restore, Tree_Moved_KeepsSessionsGroupsAndZombies) { move({tracee("tree")}); }

TEST_F(Restore, Churn_Moved_GoesOn) { move({tracee("churn")}); }
TEST_F(Restore, Generator_Moved_GoesOnMidIteration) { move({"/usr/bin/python3", tracee("generator.py")}); }

// As an upgrade leaves it: the program and a library that it has loaded were replaced on the disk.
// Twice, because the second time they are files that this one made.
TEST_F(Restore, ProgramReplacedOnDisk_MovedTwice_GoesOn) {
  const fs::path program = folder_ / "program", library = folder_ / "libm.so.6";
  fs::copy_file(tracee("threads"), program);
  fs::copy_file("/lib/x86_64-linux-gnu/libm.so.6", library);
  start({"/usr/bin/env", "LD_PRELOAD=" + library.string(), program});
  ASSERT_TRUE(logged(0, "ready")) << text_of(log(0));
  fs::remove(program);
  fs::remove(library);
  std::ofstream(library) << "another";
  capture();
  if (HasFatalFailure()) return;
  rebuild();
  if (HasFatalFailure()) return;
  expect_ok(1);
  std::swap(groups_[0], groups_[1]);
  sink_.pages.clear();
  manifest_ = {};
  capture();
  if (HasFatalFailure()) return;
  fs::remove(log(1));
  rebuild();
  if (HasFatalFailure()) return;
  expect_ok(1);
}

// Three processes and their pipes, moved in mid-stream: the output is that of an undisturbed run.
TEST_F(Restore, Pipeline_Moved_LosesNoByte) {
  std::string undisturbed = folder_ / "undisturbed.xz";
  start({"/bin/sh", tracee("pipeline.sh"), "20000", folder_ / "moved.xz"});
  ASSERT_TRUE(wait_for([&] { return fs::exists(folder_ / "moved.xz"); }));
  std::this_thread::sleep_for(300ms);   // somewhere in the middle
  ASSERT_EQ(text_of(log(0)).find("done"), std::string::npos);
  capture();
  if (HasFatalFailure()) return;
  rebuild();
  if (HasFatalFailure()) return;
  ASSERT_TRUE(logged(1, "done")) << text_of(log(1));
  std::string command = "awk -v n=20000 'BEGIN { for (i = 1; i <= n; i++) { print i, (i * 7919) % 104729, \"the quick brown fox\"; if (i % 200 == 0) fflush() } }' | xz -1 -T1 -c > " + undisturbed;
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(text_of(undisturbed), text_of(folder_ / "moved.xz"));
}

// One command, one answer.
std::string ask(int socket, const std::string& command) {
  if (::send(socket, command.data(), command.size(), MSG_NOSIGNAL) < 0) return "send failed";
  char answer[512];
  ssize_t n = ::recv(socket, answer, sizeof answer, 0);
  return n <= 0 ? "connection ended" : std::string(answer, static_cast<std::size_t>(n));
}

int dial(std::uint16_t port) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  ::close(fd);
  return -1;
}

TEST_F(Restore, Redis_Moved_HoldsEveryKeyAndItsClientsComeBack) {
  if (::access("/usr/bin/redis-server", X_OK) != 0) GTEST_SKIP() << "needs redis-server";
  int probe = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(probe, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length), 0);
  std::uint16_t port = ntohs(address.sin_port);
  ::close(probe);
  start({"/usr/bin/redis-server", "--save", "", "--bind", "127.0.0.1", "--port", std::to_string(port)});
  if (HasFatalFailure()) return;
  int client = -1;
  ASSERT_TRUE(wait_for([&] { return (client = dial(port)) >= 0; })) << text_of(log(0));
  for (int i = 0; i < 2000; ++i) {
    ASSERT_EQ(ask(client, "SET key" + std::to_string(i) + " value" + std::to_string(i) + "\r\n"), "+OK\r\n");
  }
  capture();   // with a client connected
  if (HasFatalFailure()) return;
  ::close(client);
  rebuild();
  if (HasFatalFailure()) return;
  client = dial(port);
  ASSERT_GE(client, 0) << text_of(log(1));
  for (int i = 0; i < 2000; ++i) {
    std::string value = "value" + std::to_string(i);
    ASSERT_EQ(ask(client, "GET key" + std::to_string(i) + "\r\n"), "$" + std::to_string(value.size()) + "\r\n" + value + "\r\n");
  }
  // The old connection was seen as ended, not as still there.
  EXPECT_TRUE(wait_for([&] { return ask(client, "INFO clients\r\n").find("connected_clients:1\r") != std::string::npos; }, 5s));
  ::close(client);
}

// What /proc says of a process, without what counts or differs by nature.
std::map<std::string, std::string> facts(pid_t pid) {
  std::map<std::string, std::string> found;
  std::string folder = "/proc/" + std::to_string(pid) + "/";
  std::istringstream status(text_of(folder + "status"));
  for (std::string line; std::getline(status, line);) {
    std::string key = line.substr(0, line.find(':'));
    for (const char* wanted : {"Name", "Umask", "NSpid", "NSpgid", "NSsid", "Uid", "Gid", "Groups", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh",
                               "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "THP_enabled", "Cpus_allowed_list", "Threads"}) {
      if (key == wanted) found[key] = line;
    }
  }
  // The innermost numbers only.
  for (const char* key : {"NSpid", "NSpgid", "NSsid"}) found[key] = found[key].substr(found[key].find_last_of('\t') + 1);
  for (const char* name : {"limits", "oom_score_adj", "coredump_filter", "personality", "auxv", "cmdline", "environ", "comm", "timerslack_ns"}) {
    found[name] = text_of(folder + name);
  }
  for (const char* name : {"cwd", "root", "exe"}) {
    std::error_code ignored;
    found[name] = fs::read_symlink(folder + name, ignored);
  }
  std::istringstream maps(text_of(folder + "maps"));
  std::string last_end, last_rest;   // equal neighbours count as one: the kernel merges them when it can
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string range, rights, offset, device, inode, path;
    words >> range >> rights >> offset >> device >> inode >> path;
    std::string begin = range.substr(0, range.find('-')), rest = rights + " " + path;
    if (begin != last_end || rest != last_rest) found["maps"] += last_end + "\n" + begin + " " + rest + " to ";
    last_end = range.substr(range.find('-') + 1);
    last_rest = rest;
  }
  return found;
}

TEST_F(Restore, Attributes_OfAUserWithLimits_AreTheSame) {
  spec_user_ = "nobody";
  start({"/bin/sh", "-c", "ulimit -n 512; ulimit -c 0; ulimit -s 4096; umask 027; trap '' USR2; exec nice -n 5 sleep 1000"});
  if (HasFatalFailure()) return;
  ASSERT_TRUE(wait_for([&] { return text_of("/proc/" + std::to_string(root_) + "/comm") == "sleep\n"; }));
  ASSERT_TRUE(wait_for([&] { return text_of("/proc/" + std::to_string(root_) + "/syscall").rfind("230 ", 0) == 0; }));
  auto before = facts(root_);
  int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(root_));
  capture();
  if (HasFatalFailure()) return;
  rebuild();
  if (HasFatalFailure()) return;
  auto after = facts(root_);
  for (const auto& [key, value] : before) EXPECT_EQ(value, after[key]) << key;
  EXPECT_EQ(::getpriority(PRIO_PROCESS, static_cast<id_t>(root_)), nice);
}

// A relative sleep ends when it would have ended, however often it is interrupted.
TEST_F(Restore, Sleep_Moved_EndsInTimeAndNeverWithEintr) {
  auto begun = std::chrono::steady_clock::now();
  start({"/bin/sh", "-c", "sleep 3; echo slept $?"});
  if (HasFatalFailure()) return;
  std::this_thread::sleep_for(1s);
  capture();
  if (HasFatalFailure()) return;
  std::this_thread::sleep_for(500ms);
  rebuild();
  if (HasFatalFailure()) return;
  ASSERT_TRUE(logged(1, "slept 0")) << text_of(log(1));
  auto took = std::chrono::steady_clock::now() - begun;
  EXPECT_GE(took, 2900ms);
  EXPECT_LT(took, 4500ms);
  EXPECT_TRUE(wait_for([&] { return fs::exists(folder_ / "exit1"); }));
  EXPECT_EQ(text_of(folder_ / "exit1"), "0\n");
}

TEST_F(Restore, Stopped_Moved_StaysStoppedUntilContinued) {
  start({tracee("counter"), "20000"});
  ASSERT_TRUE(logged(0, "ready"));
  ASSERT_EQ(::kill(root_, SIGSTOP), 0);
  auto state = [&] {
    std::string text = text_of("/proc/" + std::to_string(root_) + "/status");
    auto at = text.find("State:");
    return at == std::string::npos ? '?' : text[at + 7];
  };
  ASSERT_TRUE(wait_for([&] { return state() == 'T'; }));
  capture();
  if (HasFatalFailure()) return;
  rebuild();
  if (HasFatalFailure()) return;
  ASSERT_TRUE(wait_for([&] { return state() == 'T'; })) << state();
  EXPECT_EQ(text_of(log(1)), "");
  ASSERT_EQ(::kill(root_, SIGCONT), 0);
  EXPECT_TRUE(logged(1, "count"));
}

// A program that somebody else started: no keeper, a session of its starter, PIDs of the node.
TEST_F(Restore, Protected_Moved_KeepsItsPidAndWritesToTheLog) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], 1);
    ::close_range(3, ~0u, 0);
    std::string program = tracee("counter");
    ::execl(program.c_str(), "counter", "20000", static_cast<char*>(nullptr));
    ::_exit(127);
  }
  ::close(ends[1]);
  std::string said;
  char buffer[256];
  while (said.find("count") == std::string::npos) {
    ssize_t n = ::read(ends[0], buffer, sizeof buffer);
    ASSERT_GT(n, 0);
    said.append(buffer, static_cast<std::size_t>(n));
  }
  ASSERT_TRUE(groups_[0].add(child));
  root_ = child;
  spec_.set_origin(pb::ORIGIN_PROTECT);
  spec_.set_verify(true);
  keepers_.push_back(child);   // to be reaped as one
  capture(0);
  if (HasFatalFailure()) return;
  ::close(ends[0]);
  rebuild();
  if (HasFatalFailure()) return;
  expect_ok(1);
  EXPECT_EQ(facts(root_)["NSpid"], std::to_string(child));
}

// What could not be restored is refused before anything happens to the program.
TEST_F(Restore, SystemVSharedMemory_IsRefusedByNameAndTheProgramRunsOn) {
  pid_t child = ::fork();
  if (child == 0) {
    ::close_range(3, ~0u, 0);
    int id = ::shmget(IPC_PRIVATE, 4096, 0600);
    void* at = ::shmat(id, nullptr, 0);
    ::shmctl(id, IPC_RMID, nullptr);
    if (at == reinterpret_cast<void*>(-1)) ::_exit(1);
    for (;;) ::pause();
  }
  keepers_.push_back(child);
  ASSERT_TRUE(groups_[0].add(child));
  ASSERT_TRUE(wait_for([&] { return text_of("/proc/" + std::to_string(child) + "/maps").find("/SYSV") != std::string::npos; }));
  backend::AttachTarget target;
  target.root = child;
  target.cgroup = groups_[0].path();
  auto inspection = backend_.inspect(target);
  ASSERT_TRUE(inspection) << inspection.error().message();
  EXPECT_FALSE(inspection->acceptable);
  auto attachment = backend_.attach(target);
  if (attachment) {
    backend::CaptureOptions options;
    auto stats = (*attachment)->capture(options, sink_, manifest_);
    ASSERT_FALSE(stats);
    EXPECT_NE(stats.error().message().find("System V"), std::string::npos) << stats.error().message();
  } else {
    EXPECT_NE(attachment.error().message().find("System V"), std::string::npos) << attachment.error().message();
  }
  EXPECT_EQ(::kill(child, 0), 0);
}

TEST_F(Restore, Sleeper_MovedTwice_StillLives) {
  move({tracee("counter"), "20000"});
  if (HasFatalFailure()) return;
  std::swap(groups_[0], groups_[1]);
  fs::rename(log(1), log(0));
  sink_.pages.clear();
  manifest_.Clear();
  capture();
  if (HasFatalFailure()) return;
  rebuild();
  if (HasFatalFailure()) return;
  expect_ok(1);
}

TEST_F(Restore, Paused_NothingRunsUntilThawed) {
  start({tracee("counter"), "20000"});
  ASSERT_TRUE(logged(0, "ready"));
  capture();
  if (HasFatalFailure()) return;
  rebuild(true);
  if (HasFatalFailure()) return;
  ASSERT_TRUE(wait_for([&] { auto frozen = groups_[1].frozen(); return frozen && *frozen; }));
  EXPECT_EQ(text_of(log(1)), "");
  ASSERT_TRUE(groups_[1].thaw());
  EXPECT_TRUE(logged(1, "count"));
}

TEST_F(Restore, Discarded_LeavesNothing) {
  start({tracee("threads")});
  ASSERT_TRUE(logged(0, "ready"));
  capture();
  if (HasFatalFailure()) return;
  pid_t keeper = 0;
  {
    auto built = build();
    ASSERT_TRUE(built) << built.error().message();
    keeper = (*built)->keeper();
  }
  EXPECT_EQ(::kill(keeper, 0), -1);
  auto populated = groups_[1].populated();
  ASSERT_TRUE(populated);
  EXPECT_FALSE(*populated);
}

TEST_F(Restore, Manifest_OfAProcessorWithMore_IsRefusedByName) {
  start({tracee("counter")});
  ASSERT_TRUE(logged(0, "ready"));
  capture();
  if (HasFatalFailure()) return;
  manifest_.mutable_machine()->add_cpu_features("avx9000");
  auto built = build();
  ASSERT_FALSE(built);
  EXPECT_EQ(built.error().code, Code::kUnsupported);
  EXPECT_NE(built.error().message().find("avx9000"), std::string::npos) << built.error().message();
}

TEST_F(Restore, Launch_NoSuchCommand_IsAnErrorAndLeavesNoKeeper) {
  restore::LaunchSpec spec;
  spec.spec.add_argv("/no/such/command");
  spec.log_path = log(0);
  spec.exit_path = folder_ / "exit0";
  auto launched = restore::launch(spec);
  ASSERT_FALSE(launched);
  EXPECT_EQ(launched.error().code, Code::kNotFound);
  EXPECT_NE(launched.error().message().find("/no/such/command"), std::string::npos);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG | __WALL), -1);
  EXPECT_FALSE(fs::exists(spec.exit_path));
}

TEST_F(Restore, Launch_ProgramEnds_StatusIsLeft) {
  restore::LaunchSpec spec;
  for (const char* word : {"sh", "-c", "echo out; echo err >&2; exit 3"}) spec.spec.add_argv(word);
  spec.log_path = log(0);
  spec.exit_path = folder_ / "exit0";
  auto launched = restore::launch(spec);
  ASSERT_TRUE(launched) << launched.error().message();
  int status = 0;
  ASSERT_EQ(::waitpid(launched->keeper, &status, 0), launched->keeper);
  EXPECT_EQ(text_of(spec.exit_path), std::to_string(3 << 8) + "\n");
  EXPECT_NE(text_of(log(0)).find("out\n"), std::string::npos);
  EXPECT_NE(text_of(log(0)).find("err\n"), std::string::npos);
}

}  // namespace
}  // namespace baton
