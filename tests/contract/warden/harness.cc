#include "harness.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <thread>

#include "agent/warden/process.h"
#include "agent/warden/record.h"
#include "base/cgroup.h"

namespace baton::warden::testing {

using namespace std::chrono_literals;

bool eventually(const std::function<bool()>& condition) {
  auto deadline = std::chrono::steady_clock::now() + 10s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

WardenProcess::WardenProcess(std::string program) : program_(std::move(program)) {
  std::string pattern = std::filesystem::temp_directory_path() / "baton-warden-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
  folder_ = pattern;
}

WardenProcess::~WardenProcess() {
  if (running()) kill(SIGTERM);
  // What it left running, by its own records.
  std::set<std::string> parents;
  if (auto records = RecordStore::open(state())) {
    for (const auto& record : records->load_all()) {
      Cgroup group = Cgroup::at(record.cgroup());
      parents.insert(record.cgroup().substr(0, record.cgroup().rfind('/')));
      if (!group.exists()) continue;
      (void)group.kill().has_value();
      (void)group.wait_empty(5s).has_value();
      (void)group.remove().has_value();
    }
  }
  for (const auto& parent : parents) ::rmdir(parent.c_str());
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {}
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void WardenProcess::start(std::vector<std::string> more, std::map<std::string, std::string> environment) {
  std::vector<std::string> argv{program_, "--socket", socket(), "--agent-uid", std::to_string(::getuid()),
                                "--state-dir", state(), "--capture-buffer", "64MB", "--fill-buffer", "8MB"};
  argv.insert(argv.end(), more.begin(), more.end());
  ::unlink(socket().c_str());
  pid_ = ::fork();
  if (pid_ == 0) {
    ::setenv("BATON_FAULT_FILE", (folder_ + "/faults").c_str(), 1);
    for (const auto& [key, value] : environment) ::setenv(key.c_str(), value.c_str(), 1);
    int log = ::open((folder_ + "/warden.log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    ::dup2(log, 2);
    std::vector<char*> pointers;
    for (auto& one : argv) pointers.push_back(one.data());
    pointers.push_back(nullptr);
    ::execv(program_.c_str(), pointers.data());
    ::_exit(127);
  }
  ASSERT_TRUE(eventually([&] { return ::access(socket().c_str(), F_OK) == 0 || !running(); }));
}

void WardenProcess::kill(int signal) {
  ::kill(pid_, signal);
  wait();
}

bool WardenProcess::running() {
  if (pid_ <= 0) return false;
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

int WardenProcess::wait() {
  int status = 0;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  return status;
}

void WardenProcess::arm(const std::string& faults) {
  ASSERT_TRUE(replace_file(folder_ + "/faults", faults));
}

std::unique_ptr<WardenClient> WardenProcess::connect() {
  std::unique_ptr<WardenClient> out;
  Error last;
  eventually([&] {
    auto client = WardenClient::connect(
        socket(),
        [this](const pb::WardenEvent& event) {
          std::lock_guard lock(mutex_);
          events_.push_back(event);
          changed_.notify_all();
        },
        [this] {
          std::lock_guard lock(mutex_);
          ++lost_;
        });
    if (!client) {
      last = client.error();
      return false;
    }
    out = std::move(*client);
    return true;
  });
  EXPECT_TRUE(out) << last.message();
  return out;
}

std::vector<pb::WardenEvent> WardenProcess::events() {
  std::lock_guard lock(mutex_);
  return events_;
}

bool WardenProcess::wait_event(const std::string& workload, pb::WardenEvent& out) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, 10s, [&] {
    for (const auto& event : events_) {
      if (event.workload() != workload) continue;
      out = event;
      return true;
    }
    return false;
  });
}

int WardenProcess::lost() {
  std::lock_guard lock(mutex_);
  return lost_;
}

pb::WorkloadSpec spec_of(const std::string& name, std::vector<std::string> argv, std::vector<std::string> env) {
  pb::WorkloadSpec spec;
  spec.set_name(name);
  for (auto& one : argv) spec.add_argv(std::move(one));
  for (auto& one : env) spec.add_env(std::move(one));
  return spec;
}

bool alive(pid_t pid) {
  auto stat = read_process(pid);
  return stat && stat->state != 'Z' && stat->state != 'X';
}

char state_of(pid_t pid) {
  auto stat = read_process(pid);
  return stat ? stat->state : '?';
}

Child::Child(std::vector<std::string> argv) {
  pid_ = ::fork();
  if (pid_ == 0) {
    ::close_range(3, ~0u, 0);   // what the test itself was started with
    std::vector<char*> pointers;
    for (auto& one : argv) pointers.push_back(one.data());
    pointers.push_back(nullptr);
    ::execvp(pointers[0], pointers.data());
    ::_exit(127);
  }
}

Child::~Child() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

}  // namespace baton::warden::testing
