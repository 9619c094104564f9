#include "base/cgroup.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include <gtest/gtest.h>

namespace baton {
namespace {

using namespace std::chrono_literals;

TEST(CgroupTest, Life_MakeJoinFreezeKillRemove) {
  auto own = Cgroup::of(0);
  if (!own || ::geteuid() != 0) GTEST_SKIP() << "needs root and a cgroup v2 hierarchy";
  Cgroup parent = own->child("baton-test-" + std::to_string(::getpid()));
  Cgroup group = parent.child("inner");
  ASSERT_TRUE(group.make());
  EXPECT_TRUE(group.exists());
  EXPECT_FALSE(*group.populated());
  pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  ASSERT_TRUE(group.add(child));
  EXPECT_EQ(*group.members(), std::vector<pid_t>{child});
  EXPECT_EQ(Cgroup::of(child)->path(), group.path());
  EXPECT_EQ(group.remove().error().code, Code::kConflict);
  ASSERT_TRUE(group.freeze(5s));
  EXPECT_TRUE(*group.frozen());
  EXPECT_TRUE(*group.freeze_asked());
  ASSERT_TRUE(group.thaw());
  EXPECT_FALSE(*group.freeze_asked());
  ASSERT_TRUE(group.freeze(5s));
  ASSERT_TRUE(group.kill());
  EXPECT_TRUE(*group.wait_empty(5s));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_TRUE(parent.remove());
  EXPECT_FALSE(group.exists());
  EXPECT_TRUE(group.remove());
  EXPECT_EQ(group.add(::getpid()).error().code, Code::kNotFound);
}

}  // namespace
}  // namespace baton
