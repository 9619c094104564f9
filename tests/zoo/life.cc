#include "tests/zoo/life.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "agent/backend/linux/restore/build.h"
#include "agent/backend/linux/restore/launch.h"

namespace baton::zoo {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;
namespace fs = std::filesystem;

bool wait_for(const std::function<bool()>& done, std::chrono::milliseconds limit) {
  auto end = steady_clock::now() + limit;
  while (!done()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(2ms);
  }
  return true;
}

}  // namespace

Life::Life(const std::string& name) {
  std::string pattern = "/tmp/zoo-" + name + "-XXXXXX";
  folder_ = ::mkdtemp(pattern.data());
  ::chmod(folder_.c_str(), 0755);
  if (auto mount = Cgroup::mount_point()) {
    for (int i = 0; i < 2; ++i) {
      groups_[i] = Cgroup::at(*mount + "/baton-" + folder_.filename().string() + "-" + std::to_string(i));
      (void)groups_[i].make();
    }
  }
}

Life::~Life() {
  attachment_.reset();
  for (auto& group : groups_) {
    if (group.path().empty()) continue;
    (void)group.kill();
    (void)group.wait_empty(5s);
  }
  if (keeper_ != 0) ::waitpid(keeper_, nullptr, __WALL);
  for (auto& group : groups_) {
    if (!group.path().empty()) (void)group.remove();
  }
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

std::string Life::log() const {
  std::ifstream in(folder_ / "log");
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

bool Life::alive() const { return root_ != 0 && ::kill(root_, 0) == 0; }

backend::AttachTarget Life::target() const {
  backend::AttachTarget target;
  target.root = root_;
  target.keeper = keeper_;
  target.cgroup = groups_[here_].path();
  target.spec = spec_;
  return target;
}

Result<void> Life::start(const std::vector<std::string>& argv, pb::WorkloadSpec spec) {
  spec_ = std::move(spec);
  for (const auto& word : argv) spec_.add_argv(word);
  if (spec_.env_size() == 0) spec_.add_env("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  if (spec_.cwd().empty()) spec_.set_cwd(folder_);
  spec_.set_verify(true);
  restore::LaunchSpec launch;
  launch.spec = spec_;
  launch.cgroup = groups_[here_].path();
  launch.log_path = folder_ / "log";
  launch.exit_path = folder_ / "exit";
  BATON_ASSIGN(auto launched, restore::launch(launch));
  root_ = launched.root;
  keeper_ = launched.keeper;
  return {};
}

Result<backend::Inspection> Life::inspect() { return backend_.inspect(target()); }

Result<void> Life::attach() {
  BATON_ASSIGN(attachment_, backend_.attach(target()));
  return {};
}

Result<backend::CaptureStats> Life::checkpoint() {
  if (!attachment_) BATON_TRY(attach());
  BATON_TRY(attachment_->round(pages_, {}));
  backend::CaptureOptions options;
  options.verify = true;
  pb::Manifest manifest;
  BATON_ASSIGN(auto stats, attachment_->capture(options, pages_, manifest));
  if (stats.verify_differences != 0) return make_error(Code::kFailed, "verify", stats.verify_first);
  manifest_ = std::move(manifest);
  longest_pause_ = std::max(longest_pause_, stats.pause);
  return stats;
}

Result<void> Life::move() {
  if (!attachment_) BATON_TRY(attach());
  backend::CaptureOptions options;
  options.verify = true;
  options.keep_frozen = true;
  manifest_.Clear();
  BATON_ASSIGN(auto stats, attachment_->capture(options, pages_, manifest_));
  auto frozen_at = steady_clock::now();
  longest_pause_ = std::max(longest_pause_, stats.pause);
  if (stats.verify_differences != 0) return make_error(Code::kFailed, "verify", stats.verify_first);
  BATON_TRY(attachment_->destroy());
  attachment_.reset();
  // The keeper is a child of ours; its tracer, a thread of ours, may have reaped it.
  bool gone = wait_for([&] {
    pid_t got = ::waitpid(keeper_, nullptr, WNOHANG | __WALL);
    return got == keeper_ || (got < 0 && errno == ECHILD);
  }, 10s);
  if (!gone) return make_error(Code::kTimedOut, "move", "the keeper does not end");
  keeper_ = root_ = 0;
  return rebuild(frozen_at);
}

Result<void> Life::rebuild(steady_clock::time_point frozen_at) {
  here_ = 1 - here_;
  backend::BuildTarget target;
  target.spec = spec_;
  target.cgroup = groups_[here_].path();
  target.log_path = folder_ / "log";
  target.exit_path = folder_ / "exit";
  target.away = steady_clock::now() - frozen_at;
  BATON_ASSIGN(auto build, restore::build(manifest_, target));
  for (const auto& object : manifest_.objects()) {
    std::vector<std::byte> run;
    std::uint64_t first = 0;
    for (const auto& [page, bytes] : pages_.pages[object.id()]) {
      bool next = !run.empty() && page == first + run.size() / backend::kPageBytes && run.size() < (1u << 20);
      if (!next) {
        if (!run.empty()) BATON_TRY(build->fill(object.id(), first, run));
        run.clear();
        first = page;
      }
      run.insert(run.end(), bytes.begin(), bytes.end());
    }
    if (!run.empty()) BATON_TRY(build->fill(object.id(), first, run));
  }
  BATON_TRY(build->activate(false, steady_clock::now() - frozen_at));
  root_ = build->root();
  keeper_ = build->keeper();
  pages_.pages.clear();
  return {};
}

bool Life::said(const std::string& what, std::chrono::milliseconds limit) {
  bool found = false;
  wait_for([&] {
    std::string text = log();
    found = text.rfind(what, 0) == 0 || text.find("\n" + what) != std::string::npos;
    return found || !alive();
  }, limit);
  return found;
}

std::string Life::ask(int signal, std::chrono::milliseconds limit) {
  heard_ = log().size();
  if (::kill(root_, signal) != 0) return {};
  std::string line;
  wait_for([&] {
    std::string text = log();
    auto end = text.size() > heard_ ? text.find('\n', heard_) : std::string::npos;
    if (end != std::string::npos) line = text.substr(heard_, end - heard_);
    return !line.empty() || !alive();
  }, limit);
  if (line.empty()) {   // said with its last breath
    std::string text = log();
    if (text.size() > heard_) line = text.substr(heard_, text.find('\n', heard_) - heard_);
  }
  return line;
}

}  // namespace baton::zoo
