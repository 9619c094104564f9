// A shadow follows a real program over many checkpoints and is activated at the last: the
// program checks itself. The primary's processes stand in another network namespace, as they
// would on another machine.
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <fcntl.h>

#include "base/clock.h"
#include "proto/linux_state.pb.h"
#include "tests/contract/backend/fixture.h"

namespace baton {
namespace {

using namespace testing_restore;

class Shadow : public Restore {
 protected:
  using Pages = std::map<std::uint64_t, std::map<std::uint64_t, std::byte*>>;

  void TearDown() override {
    shadow_.reset();
    attachment_.reset();
    Restore::TearDown();
    if (home_ >= 0) {
      ::setns(home_, CLONE_NEWNET);
      ::close(home_);
    }
  }

  // What is started from now on by this thread is on "another machine".
  void leave_network() {
    home_ = ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(home_, 0);
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    int probe = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ifreq request{};
    std::snprintf(request.ifr_name, sizeof request.ifr_name, "lo");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    ASSERT_EQ(::ioctl(probe, SIOCSIFFLAGS, &request), 0);
    ::close(probe);
  }

  void begin(const std::vector<std::string>& argv) {
    start(argv);
    if (HasFatalFailure()) return;
    ASSERT_TRUE(logged(0, "ready")) << text_of(log(0));
    leave_network();
    if (HasFatalFailure()) return;
    backend::AttachTarget target;
    target.root = root_;
    target.keeper = keepers_.back();
    target.cgroup = groups_[0].path();
    target.spec = spec_;
    auto attachment = backend_.attach(target);
    ASSERT_TRUE(attachment) << attachment.error().message();
    attachment_ = std::move(*attachment);
  }

  // A checkpoint that shows a process on its way out, without memory but not yet a zombie,
  // cannot be built from, by anybody: the next one is taken.
  void checkpoint(bool last) {
    for (int tries = 0; tries < 50; ++tries) {
      take_checkpoint(last);
      if (HasFatalFailure()) return;
      pb::LinuxState state;
      ASSERT_TRUE(state.ParseFromString(manifest_.state()));
      bool whole = true;
      for (const auto& process : state.processes()) whole = whole && (process.zombie() || !process.layout().exe().empty());
      if (whole) return;
      if (last) {
        ASSERT_TRUE(attachment_->thaw());
      }
    }
    FAIL() << "a process is on its way out in each of fifty checkpoints";
  }

  void take_checkpoint(bool last) {
    auto round = attachment_->round(sink_, {});
    ASSERT_TRUE(round) << round.error().message();
    backend::CaptureOptions options;
    options.keep_frozen = last;
    pb::Manifest manifest;
    auto stats = attachment_->capture(options, sink_, manifest);
    ASSERT_TRUE(stats) << stats.error().message();
    manifest_ = std::move(manifest);
    frozen_at_ = std::chrono::steady_clock::now();
  }

  Result<std::unique_ptr<backend::Build>> build_shadow() {
    side_ = side_ == 1 ? 2 : 1;
    backend::BuildTarget target;
    target.spec = spec_;
    target.cgroup = groups_[side_].path();
    target.log_path = log(1);
    target.exit_path = folder_ / "exit1";
    target.away = std::chrono::steady_clock::now() - frozen_at_;
    target.shadow = true;
    auto built = restore::build(manifest_, target);
    if (built) fill(**built);
    at_ = sink_.pages;
    return built;
  }

  void fill_pages(std::uint64_t object, std::uint64_t page, const std::byte* bytes) {
    auto filled = shadow_->fill(object, page, std::span(bytes, backend::kPageBytes));
    ASSERT_TRUE(filled) << filled.error().message();
    ++pages_filled_;
  }

  bool listed(std::uint64_t object) const {
    for (const auto& o : manifest_.objects()) {
      if (o.id() == object) return true;
    }
    return false;
  }

  // To the newest checkpoint, by following where that is possible.
  void bring_up() {
    std::vector<backend::PageRange> dropped;
    for (const auto& [object, pages] : at_) {
      for (const auto& [page, bytes] : pages) {
        if (sink_.pages[object].count(page) == 0) dropped.push_back({object, page, 1});
      }
    }
    auto followed = shadow_->apply(manifest_, dropped);
    if (!followed && followed.error().code == Code::kConflict) {
      ++rebuilds_;
      last_reason_ = followed.error().message();
      auto built = build_shadow();   // beside the old one, which stands where it stood
      ASSERT_TRUE(built) << built.error().message();
      shadow_ = std::move(*built);
      return;
    }
    ASSERT_TRUE(followed) << followed.error().message();
    ++applied_;
    for (const auto& [object, pages] : sink_.pages) {
      if (!listed(object)) continue;
      const auto& before = at_[object];
      for (const auto& [page, bytes] : pages) {
        auto was = before.find(page);
        if (was == before.end() || was->second != bytes) fill_pages(object, page, bytes);
      }
    }
    for (const auto& range : followed->again) {
      auto& pages = sink_.pages[range.object];
      for (auto it = pages.lower_bound(range.first_page); it != pages.end() && it->first < range.first_page + range.count; ++it) {
        fill_pages(range.object, it->first, it->second);
      }
    }
    at_ = sink_.pages;
  }

  void follow(int checkpoints, const std::function<void(int)>& between = {}) {
    checkpoint(false);
    if (HasFatalFailure()) return;
    auto built = build_shadow();
    ASSERT_TRUE(built) << built.error().message();
    shadow_ = std::move(*built);
    for (int i = 0; i < checkpoints; ++i) {
      if (between) between(i);
      std::this_thread::sleep_for(20ms);
      checkpoint(i + 1 == checkpoints);
      if (HasFatalFailure()) return;
      bring_up();
      if (HasFatalFailure()) return;
    }
  }

  void take_over() {
    auto destroyed = attachment_->destroy();
    ASSERT_TRUE(destroyed) << destroyed.error().message();
    attachment_.reset();
    ASSERT_TRUE(wait_for([&] {
      pid_t got = ::waitpid(keepers_.back(), nullptr, WNOHANG | __WALL);
      return got == keepers_.back() || (got < 0 && errno == ECHILD);
    }));
    keepers_.pop_back();
    EXPECT_EQ(text_of(log(1)), "") << "a shadow must not run";
    auto begin = std::chrono::steady_clock::now();
    auto active = shadow_->activate(false, {});
    ASSERT_TRUE(active) << active.error().message();
    activation_ = std::chrono::steady_clock::now() - begin;
    root_ = shadow_->root();
    keepers_.push_back(shadow_->keeper());
    auto times = shadow_->activation_times();
    std::printf("activation %ld us (finish %ld, release %ld), %d applied, %d rebuilt%s%s\n", activation_.count() / 1000,
                times.finish.count() / 1000, times.release.count() / 1000, applied_, rebuilds_, rebuilds_ > 0 ? ": " : "", last_reason_.c_str());
  }

  void shadow(const std::vector<std::string>& argv) {
    begin(argv);
    if (HasFatalFailure()) return;
    follow(10);
    if (HasFatalFailure()) return;
    take_over();
    if (HasFatalFailure()) return;
    expect_ok(1);
  }

  std::unique_ptr<backend::Attachment> attachment_;
  std::unique_ptr<backend::Build> shadow_;
  Pages at_;
  int side_ = 2, applied_ = 0, rebuilds_ = 0, pages_filled_ = 0;
  std::string last_reason_;
  std::chrono::nanoseconds activation_{};
  int home_ = -1;
};

TEST_F(Shadow, Counter_TenCheckpoints_GoesOnWhereItWas) { shadow({tracee("counter"), "1000000"}); }
TEST_F(Shadow, Mappings_TenCheckpoints_AreTheSame) { shadow({tracee("mappings")}); }
TEST_F(Shadow, Threads_TenCheckpoints_FindEverythingAsItWas) { shadow({tracee("threads")}); }
TEST_F(Shadow, Registers_TenCheckpoints_AreTheSame) { shadow({tracee("registers")}); }
TEST_F(Shadow, Signals_TenCheckpoints_AreTheSame) { shadow({tracee("signals")}); }
TEST_F(Shadow, Pending_TenCheckpoints_AreTheSame) { shadow({tracee("pending")}); }
TEST_F(Shadow, Events_TenCheckpoints_AreTheSame) { shadow({tracee("events")}); }
TEST_F(Shadow, Clocks_TenCheckpoints_NeverRunBackwards) { shadow({tracee("clocks")}); }
TEST_F(Shadow, Tree_TenCheckpoints_KeepsSessionsGroupsAndZombies) { shadow({tracee("tree")}); }
TEST_F(Shadow, Descriptors_TenCheckpoints_AreTheSame) { shadow({tracee("descriptors")}); }
TEST_F(Shadow, Churn_TenCheckpoints_GoesOn) { shadow({tracee("churn")}); }
TEST_F(Shadow, Generator_TenCheckpoints_GoesOnMidIteration) { shadow({"/usr/bin/python3", tracee("generator.py")}); }

// A case of the zoo that changes what it holds before each checkpoint.
class ShadowOf : public Shadow, public ::testing::WithParamInterface<const char*> {};

TEST_P(ShadowOf, ChangesBetweenCheckpoints_IsAsItWasAtTheLast) {
  const std::string wanted = GetParam();
  const auto split = wanted.find(' ');
  begin({tracee("zoo_" + wanted.substr(0, split)), wanted.substr(split + 1)});
  if (HasFatalFailure()) return;
  follow(8, [&](int) {
    const auto lines = text_of(log(0)).size();
    ::kill(root_, SIGUSR2);
    ASSERT_TRUE(wait_for([&] { return text_of(log(0)).size() > lines; })) << "it has not changed";
  });
  if (HasFatalFailure()) return;
  take_over();
  if (HasFatalFailure()) return;
  expect_ok(1);
}

INSTANTIATE_TEST_SUITE_P(Zoo, ShadowOf,
                         ::testing::Values("memory guard-region", "memory guard-stacks", "memory guard-shrinks", "memory guard-moves",
                                           "memory memory-given-back", "memory memory-remapped", "memory memory-shared",
                                           "descriptors epoll-closed-number", "descriptors epoll-reused-number", "descriptors epoll-shared",
                                           "descriptors pidfd-shared", "descriptors pidfd-ended", "descriptors pidfd-zombie",
                                           "descriptors pipe-one-packet", "files proc-files", "files file-owner",
                                           "files terminal", "files terminal-controlling", "files terminal-interrupts", "ipc mqueue-empty", "ipc mqueue-full", "ipc mqueue-waited-for", "ipc msg-waiting", "ipc sem-values"),
                         [](const auto& one) {
                           std::string name = one.param;
                           for (char& c : name) if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

}  // namespace
}  // namespace baton
