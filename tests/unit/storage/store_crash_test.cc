// kill -9 at every fault point of the store, at several passages each, and at random moments.
// Afterwards the store opens, its tip is the last acknowledged checkpoint or the one that was
// being committed, every checkpoint it lists is right to the byte, and it goes on.
#include <gtest/gtest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <random>

#include "base/fd.h"
#include "crash_history.h"

namespace baton::storage {
namespace {

using testing_ground::StoreTest;
using testing_ground::Workload;

struct WriterRun {
  bool killed = false;
  int exit_code = -1;
  std::uint64_t last_acknowledged = 0;
};

class StoreCrashTest : public StoreTest {
 protected:
  // Runs the writer; `fault` for BATON_FAULT, or kills it once it has written `kill_after` lines.
  WriterRun run_writer(int rounds, const std::string& fault, std::uint64_t kill_after = 0) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const std::string store = folder_ + "/store", count = std::to_string(rounds);
    pid_t pid = ::fork();
    if (pid == 0) {
      ::dup2(ends[1], 1);
      if (fault.empty()) {
        ::unsetenv("BATON_FAULT");
      } else {
        ::setenv("BATON_FAULT", fault.c_str(), 1);
      }
      ::execl(STORE_CRASH_WRITER, "store_crash_writer", store.c_str(), count.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    Fd out = Fd::adopt(ends[0]);
    WriterRun run;
    std::string text;
    char c;
    std::uint64_t lines = 0;
    while (::read(out.get(), &c, 1) == 1) {
      if (c != '\n') {
        text += c;
        continue;
      }
      run.last_acknowledged = std::stoull(text);
      text.clear();
      if (++lines == kill_after) ::kill(pid, SIGKILL);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    run.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    run.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return run;
  }

  void check(std::uint64_t acknowledged) {
    options_ = testing_ground::crash_options();
    open();
    Workload expected("w");
    const std::uint64_t now = tip(expected);
    ASSERT_GE(now, acknowledged);
    ASSERT_LE(now, acknowledged + 1);
    expected = testing_ground::history(now);
    auto held = seqs(expected);
    ASSERT_EQ(held.size(), std::min<std::uint64_t>(now, 3));
    for (std::uint64_t seq : held) ASSERT_EQ(expected.compare(*store_, seq), "") << "w@" << seq;
    ASSERT_EQ(store_->stats().damaged_records, 0u);
    ASSERT_TRUE(store_->verify()->bad.empty());
    store_.reset();
  }
};

constexpr const char* kPoints[] = {
    "store.pages.append",    "store.pages.sync",      "store.commit.before_log",
    "store.commit.after_log", "store.commit.synced",   "store.gc.begin",
    "store.gc.rewrite",      "store.gc.remove",       "store.compact.begin",
    "store.compact.before_rename", "store.compact.installed",
};

TEST_F(StoreCrashTest, KilledAtEveryPoint_LosesNoAcknowledgedCommit) {
  for (const char* point : kPoints) {
    int reached = 0;
    std::uint64_t acknowledged = 0;
    std::filesystem::remove_all(folder_ + "/store");
    for (int passage = 1; passage <= 4; ++passage) {
      const std::string fault = std::string(point) + "=kill@" + std::to_string(passage);
      SCOPED_TRACE(fault);
      WriterRun run = run_writer(24, fault);
      ASSERT_TRUE(run.killed || run.exit_code == 0) << run.exit_code;
      reached += run.killed;
      if (run.last_acknowledged != 0) acknowledged = run.last_acknowledged;
      check(acknowledged);
      if (HasFatalFailure()) return;
      // Goes on from there, each time one kill later in its life.
      run = run_writer(2, "");
      ASSERT_EQ(run.exit_code, 0);
      acknowledged = run.last_acknowledged;
    }
    EXPECT_GE(reached, 1) << point << " was never passed";
  }
}

TEST_F(StoreCrashTest, KilledAtRandomMoments_LosesNoAcknowledgedCommit) {
  std::uint64_t acknowledged = 0;
  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  for (int i = 0; i < 15; ++i) {
    WriterRun run = run_writer(1000, "", 1 + random() % 12);
    ASSERT_TRUE(run.killed);
    acknowledged = run.last_acknowledged;
    check(acknowledged);
    if (HasFatalFailure()) return;
    auto found = Store::open(folder_ + "/store", options_, clock_);
    ASSERT_TRUE(found);
    acknowledged = (*(*found)->tip("w"))->seq;
  }
}

}  // namespace
}  // namespace baton::storage
