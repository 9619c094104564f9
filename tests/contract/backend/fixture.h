// A real program under capture and restore by the linux backend, and where its pages go.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
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

#include "agent/backend/linux/linux_backend.h"
#include "agent/backend/linux/restore/build.h"
#include "agent/backend/linux/restore/launch.h"
#include "base/cgroup.h"

namespace baton::testing_restore {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

// Keeps pages as they come; an arena as large as the largest program here.
class MemorySink final : public backend::PageSink {
 public:
  static constexpr std::size_t kArena = 1u << 30;
  MemorySink() {
    arena_ = static_cast<std::byte*>(::mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  ~MemorySink() override { ::munmap(arena_, kArena); }
  std::span<std::byte> reserve(std::size_t bytes) override {
    reserved_ = std::min(bytes, kArena - used_);
    return {arena_ + used_, reserved_};
  }
  void emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i) pages[object][first_page + i] = arena_ + used_ + i * backend::kPageBytes;
    used_ += count * backend::kPageBytes;
  }
  void drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) override {
    auto& all = pages[object];
    all.erase(all.lower_bound(first_page), all.lower_bound(first_page + count));
  }
  std::size_t free_bytes() const override { return kArena - used_; }

  std::map<std::uint64_t, std::map<std::uint64_t, std::byte*>> pages;

 private:
  std::byte* arena_ = nullptr;
  std::size_t used_ = 0, reserved_ = 0;
};

inline std::string text_of(const fs::path& path) {
  std::ifstream in(path);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}

inline bool wait_for(const std::function<bool()>& done, std::chrono::milliseconds limit = 60s) {
  auto end = std::chrono::steady_clock::now() + limit;
  while (!done()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

inline std::string tracee(const std::string& name) {
  std::string self = fs::read_symlink("/proc/self/exe").parent_path();
  return self + "/tracees/" + name;
}

class Restore : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root: PTRACE of other users' processes, namespaces";
    auto mount = Cgroup::mount_point();
    if (!mount) GTEST_SKIP() << "needs a cgroup v2 hierarchy";
    char name[] = "/tmp/baton-restore-XXXXXX";
    folder_ = ::mkdtemp(name);
    ::chmod(folder_.c_str(), 0755);
    group_ = *mount + "/baton-restore-" + std::to_string(::getpid());
    for (int i = 0; i < 3; ++i) {
      groups_[i] = Cgroup::at(group_ + "-" + std::to_string(i));
      ASSERT_TRUE(groups_[i].make());
    }
  }

  void TearDown() override {
    for (auto& group : groups_) {
      if (group.path().empty()) continue;
      (void)group.kill();
      (void)group.wait_empty(5s);
    }
    for (pid_t keeper : keepers_) ::waitpid(keeper, nullptr, __WALL);
    for (auto& group : groups_) {
      if (!group.path().empty()) (void)group.remove();
    }
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  fs::path log(int which) const { return folder_ / ("log" + std::to_string(which)); }
  bool logged(int which, const std::string& what) { return wait_for([&] { return text_of(log(which)).find(what) != std::string::npos; }); }

  void start(const std::vector<std::string>& argv) {
    restore::LaunchSpec spec;
    for (const auto& word : argv) spec.spec.add_argv(word);
    spec.spec.set_tcp(pb::TCP_CLOSE);
    spec.spec.set_verify(true);
    spec.spec.set_cwd(folder_);
    spec.spec.set_user(spec_user_);
    spec.cgroup = groups_[0].path();
    spec.log_path = log(0);
    spec.exit_path = folder_ / "exit0";
    spec_ = spec.spec;
    auto launched = restore::launch(spec);
    ASSERT_TRUE(launched) << launched.error().message();
    root_ = launched->root;
    keepers_.push_back(launched->keeper);
  }

  void capture() { capture(keepers_.back()); }
  void capture(pid_t keeper) {
    backend::AttachTarget target;
    target.root = root_;
    target.keeper = keeper;
    target.cgroup = groups_[0].path();
    target.spec = spec_;
    auto attachment = backend_.attach(target);
    ASSERT_TRUE(attachment) << attachment.error().message();
    auto round = (*attachment)->round(sink_, {});
    ASSERT_TRUE(round) << round.error().message();
    backend::CaptureOptions options;
    options.keep_frozen = true;
    options.verify = true;
    auto stats = (*attachment)->capture(options, sink_, manifest_);
    ASSERT_TRUE(stats) << stats.error().message();
    EXPECT_EQ(stats->verify_differences, 0u) << stats->verify_first;
    EXPECT_GT(stats->verify_pages, 0u);
    frozen_at_ = std::chrono::steady_clock::now();
    auto destroyed = (*attachment)->destroy();
    ASSERT_TRUE(destroyed) << destroyed.error().message();
    attachment->reset();
    // Our own child may have been reaped by its tracer, which is a thread of ours.
    ASSERT_TRUE(wait_for([&] {
      pid_t got = ::waitpid(keepers_.back(), nullptr, WNOHANG | __WALL);
      return got == keepers_.back() || (got < 0 && errno == ECHILD);
    }));
    keepers_.pop_back();
  }

  Result<std::unique_ptr<backend::Build>> build() {
    backend::BuildTarget target;
    target.spec = spec_;
    target.cgroup = groups_[1].path();
    target.log_path = log(1);
    target.exit_path = folder_ / "exit1";
    target.away = std::chrono::steady_clock::now() - frozen_at_;
    return restore::build(manifest_, target);
  }

  void fill(backend::Build& build) {
    for (const auto& [object, pages] : sink_.pages) {
      bool listed = false;
      for (const auto& o : manifest_.objects()) listed = listed || o.id() == object;
      if (!listed) continue;   // of a process that ended before the freeze
      std::vector<std::byte> run;
      std::uint64_t first = 0;
      auto flush = [&] {
        if (run.empty()) return;
        auto filled = build.fill(object, first, run);
        ASSERT_TRUE(filled) << filled.error().message();
        run.clear();
      };
      for (const auto& [page, bytes] : pages) {
        if (run.empty() || page != first + run.size() / backend::kPageBytes || run.size() >= (1u << 20)) {
          flush();
          first = page;
        }
        run.insert(run.end(), bytes, bytes + backend::kPageBytes);
      }
      flush();
    }
  }

  void rebuild(bool paused = false) {
    auto built = build();
    ASSERT_TRUE(built) << built.error().message();
    fill(**built);
    auto active = (*built)->activate(paused, std::chrono::steady_clock::now() - frozen_at_);
    ASSERT_TRUE(active) << active.error().message();
    root_ = (*built)->root();
    keepers_.push_back((*built)->keeper());
  }

  void expect_ok(int which) {
    ASSERT_EQ(::kill(root_, SIGUSR1), 0) << text_of(log(which));
    EXPECT_TRUE(wait_for([&] { auto t = text_of(log(which)); return t.find("ok") != std::string::npos || t.find("FAILED") != std::string::npos; }));
    std::string said = text_of(log(which));
    EXPECT_EQ(said.find("FAILED"), std::string::npos) << said.substr(said.find("FAILED") == std::string::npos ? 0 : said.find("FAILED"), 400);
    EXPECT_NE(said.find("ok"), std::string::npos);
  }

  // Once moved, the program finds everything as it was.
  void move(const std::vector<std::string>& argv) {
    start(argv);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(logged(0, "ready")) << text_of(log(0));
    capture();
    if (HasFatalFailure()) return;
    rebuild();
    if (HasFatalFailure()) return;
    expect_ok(1);
  }

  linux_backend::LinuxBackend backend_;
  fs::path folder_;
  std::string group_;
  Cgroup groups_[3];
  pb::WorkloadSpec spec_;
  std::string spec_user_;
  pb::Manifest manifest_;
  MemorySink sink_;
  pid_t root_ = 0;
  std::vector<pid_t> keepers_;
  std::chrono::steady_clock::time_point frozen_at_;
};

}  // namespace baton::testing_restore
