// Whatever a program does with its memory, what the sink holds after a collection with the
// program stopped is exactly what the program has: for every tracker.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <random>

#include "agent/backend/linux/memory/address_space.h"
#include "agent/backend/linux/remote/proc.h"
#include "tests/contract/tracker/model_sink.h"

namespace baton::linux_backend {
namespace {

using test::ModelSink;
constexpr std::size_t kPage = 4096;

// A forked copy of this test that turns its memory upside down, step by step, on command.
class Churner {
 public:
  explicit Churner(unsigned seed) {
    int in[2], out[2];
    if (::pipe(in) != 0 || ::pipe(out) != 0) ::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(in[1]);
      ::close(out[0]);
      run(seed, in[0], out[1]);
    }
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  ~Churner() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(in_);
    ::close(out_);
  }
  pid_t pid() const { return pid_; }
  // Asks for `steps` steps, without waiting for them.
  void go(int steps) { (void)!::write(in_, &steps, sizeof steps); }
  void wait() {
    char done = 0;
    ASSERT_EQ(::read(out_, &done, 1), 1);
  }

 private:
  [[noreturn]] static void run(unsigned seed, int in, int out) {
    std::mt19937 random(seed);
    struct Area {
      char* at;
      std::size_t bytes;
      bool readable;
      bool of_file;
    };
    static Area areas[64];
    int count = 0;
    int file = ::open("/proc/self/exe", O_RDONLY);
    for (;;) {
      int steps = 0;
      if (::read(in, &steps, sizeof steps) != sizeof steps) ::_exit(0);
      while (steps-- > 0) {
        unsigned what = random() % 16;
        Area* a = count > 0 ? &areas[random() % static_cast<unsigned>(count)] : nullptr;
        if (a == nullptr || (what < 3 && count < 40)) {
          std::size_t bytes = (1 + random() % 900) * kPage;
          int flags = MAP_PRIVATE | MAP_ANONYMOUS;
          int fd = -1;
          if (random() % 4 == 0) {
            flags = MAP_PRIVATE;
            fd = file;
            bytes = 16 * kPage;
          }
          void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
          if (p == MAP_FAILED) continue;
          if (random() % 3 == 0) ::madvise(p, bytes, MADV_HUGEPAGE);
          areas[count++] = {static_cast<char*>(p), bytes, true, fd >= 0};
          continue;
        }
        std::size_t pages = a->bytes / kPage;
        std::size_t from = random() % pages, length = 1 + random() % (pages - from);
        if (what < 9) {
          if (!a->readable) continue;
          for (std::size_t i = 0; i < std::min<std::size_t>(length, 40); ++i) {
            std::size_t page = from + (what % 2 == 0 ? i : random() % length);
            if (page >= pages) break;
            a->at[page * kPage + random() % kPage] = static_cast<char>(random());
          }
        } else if (what == 9) {
          ::madvise(a->at + from * kPage, length * kPage, MADV_DONTNEED);
        } else if (what == 10) {
          ::munmap(a->at, a->bytes);
          *a = areas[--count];
        } else if (what == 11) {
          // The same place, another mapping: must not be taken for the old one.
          ::mmap(a->at, a->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          a->at[random() % a->bytes] = 7;
          a->readable = true;
          a->of_file = false;
        } else if (what == 12) {
          // Beyond the end of the file a touch would be SIGBUS.
          std::size_t bytes = (1 + random() % (a->of_file ? 16 : 900)) * kPage;
          void* p = ::mremap(a->at, a->bytes, bytes, MREMAP_MAYMOVE);
          if (p != MAP_FAILED) {
            a->at = static_cast<char*>(p);
            a->bytes = bytes;
          }
        } else if (what == 13) {
          a->readable = !a->readable;
          ::mprotect(a->at, a->bytes, a->readable ? PROT_READ | PROT_WRITE : PROT_NONE);
        } else if (what == 14) {
          ::mprotect(a->at, a->bytes, PROT_READ);
          ::mprotect(a->at, a->bytes, PROT_READ | PROT_WRITE);
          a->readable = true;
          a->at[from * kPage] = static_cast<char>(random());
        } else {
          char* now = static_cast<char*>(::sbrk(static_cast<intptr_t>((1 + random() % 63) * kPage)));
          now[0] = 1;
          pid_t child = ::fork();
          if (child == 0) ::_exit(0);
          ::waitpid(child, nullptr, 0);
        }
      }
      (void)!::write(out, "d", 1);
    }
  }
  pid_t pid_ = 0;
  int in_ = -1, out_ = -1;
};

class Watched {
 public:
  Watched(pid_t pid, const std::string& tracker) : pid_(pid) {
    auto tracee = Tracee::seize(pid);
    EXPECT_TRUE(tracee) << tracee.error().message();
    EXPECT_TRUE(tracee->stop());
    auto attached = AddressSpace::attach(pid, 1, *tracee, tracker, true);
    EXPECT_TRUE(attached) << attached.error().message();
    if (attached) space = std::move(*attached);
  }
  void round(ModelSink& sink, bool stopped = false) {
    auto found = space->collect(sink, {.stopped = stopped});
    ASSERT_TRUE(found) << found.error().message();
    auto copied = space->copy(sink);
    ASSERT_TRUE(copied) << copied.error().message();
  }
  // Stopped: takes the rest, verifies with the space's own verify, and with our own eyes.
  void freeze_and_compare(ModelSink& sink, bool every_byte = true) {
    auto tracee = Tracee::seize(pid_);
    ASSERT_TRUE(tracee) << tracee.error().message();
    ASSERT_TRUE(tracee->stop());
    for (int tries = 0; tries < 100000; ++tries) {
      sink.begin(1u << 30);
      round(sink, true);
      if (space->pages_pending() == 0) break;
    }
    VerifyReport report;
    auto verified = space->verify(report);
    ASSERT_TRUE(verified) << verified.error().message();
    EXPECT_EQ(report.differences, 0u) << report.first;
    EXPECT_GT(report.pages, 100u);
    if (every_byte) compare(sink.objects[1]);
  }
  // By the space's own verify alone: two gigabytes are read too slowly page by page.
  void freeze_and_compare_quickly(ModelSink& sink) { freeze_and_compare(sink, false); }

  std::unique_ptr<AddressSpace> space;

 private:
  // Reads all of the program's private memory, and the model's: equal, byte for byte.
  void compare(std::map<std::uint64_t, ModelSink::Page>& model) {
    Fd mem = *open_file("/proc/" + std::to_string(pid_) + "/mem", O_RDONLY);
    std::vector<std::byte> live(kPage), zero(kPage);
    std::map<std::string, Fd> files;
    std::size_t inside = 0;
    for (const Vma& v : space->map().vmas()) {
      if (!v.is_private()) continue;
      for (std::uint64_t at = v.start; at < v.end; at += kPage) {
        auto it = model.find(at / kPage);
        if (it != model.end()) ++inside;
        if (::pread(mem.get(), live.data(), kPage, static_cast<off_t>(at)) != static_cast<ssize_t>(kPage)) {
          EXPECT_EQ(it, model.end());
          continue;
        }
        const std::byte* expected = zero.data();
        std::vector<std::byte> from_file(kPage);
        if (it != model.end()) {
          expected = it->second.data();
        } else if (v.kind == pb::MAPPING_FILE_PRIVATE) {
          std::string path(space->map().path(v));
          auto& fd = files[path];
          if (!fd) fd = *open_file(path, O_RDONLY);
          (void)!::pread(fd.get(), from_file.data(), kPage, static_cast<off_t>(v.offset + at - v.start));
          expected = from_file.data();
        }
        ASSERT_EQ(std::memcmp(live.data(), expected, kPage), 0)
            << std::hex << "address " << at << " of " << space->map().path(v) << " kind " << v.kind
            << " in model " << (it != model.end());
      }
    }
    EXPECT_EQ(inside, model.size()) << "pages outside of every mapping";
  }
  pid_t pid_;
};

class EveryTracker : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const TrackerType* type = find_tracker(GetParam());
    ASSERT_NE(type, nullptr);
    if (auto probed = type->probe(); !probed) GTEST_SKIP() << "needs: " << probed.error().message();
  }
};

TEST_P(EveryTracker, Churn_StoppedBetweenSteps_SinkEqualsProgram) {
  unsigned seed = static_cast<unsigned>(std::random_device{}());
  std::printf("seed %u\n", seed);
  Churner churner(seed);
  churner.go(100);
  churner.wait();
  Watched watched(churner.pid(), GetParam());
  ASSERT_TRUE(watched.space);
  ModelSink sink;
  for (int i = 0; i < 12 && !HasFatalFailure(); ++i) {
    watched.freeze_and_compare(sink);
    churner.go(60);
    churner.wait();
    if (i % 3 == 0) watched.round(sink);
  }
}

TEST_P(EveryTracker, Churn_RoundsBesideRunningProgram_SinkEqualsProgram) {
  unsigned seed = static_cast<unsigned>(std::random_device{}());
  std::printf("seed %u\n", seed);
  Churner churner(seed);
  Watched watched(churner.pid(), GetParam());
  ASSERT_TRUE(watched.space);
  ModelSink sink;
  for (int i = 0; i < 6 && !HasFatalFailure(); ++i) {
    churner.go(400);
    for (int k = 0; k < 5; ++k) {
      sink.begin(k % 2 == 0 ? 50 : 100000);   // often full: nothing may be lost
      watched.round(sink);
    }
    watched.freeze_and_compare(sink);
    churner.wait();
  }
}

TEST_P(EveryTracker, Nothing_Written_NothingCopied) {
  Churner churner(1);
  churner.go(50);
  churner.wait();
  Watched watched(churner.pid(), GetParam());
  ASSERT_TRUE(watched.space);
  ModelSink sink;
  watched.freeze_and_compare(sink);
  watched.freeze_and_compare(sink);
  auto before = sink.emitted;
  watched.freeze_and_compare(sink);
  EXPECT_LE(sink.emitted - before, 2u);
}

std::uint64_t status_kib(pid_t pid, const std::string& field) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(field + ":", 0) == 0) return std::strtoull(line.c_str() + field.size() + 1, nullptr, 10);
  return 0;
}

// As runtimes do: much address space, little memory. Neither is copied, nor filled with page tables.
TEST_P(EveryTracker, ReservedSpace_IsNotTakenForPages) {
  constexpr std::size_t kReserved = 1u << 30;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t pid = ::fork();
  if (pid == 0) {
    auto reserve = [](int prot) {
      return static_cast<char*>(::mmap(nullptr, kReserved, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    };
    char* closed = reserve(PROT_NONE);
    char* open = reserve(PROT_READ | PROT_WRITE);
    ::mprotect(closed + (64u << 20), 1u << 20, PROT_READ | PROT_WRITE);
    for (int i = 0; i < 10; ++i) closed[(64u << 20) + i * kPage] = open[(200u << 20) + i * 3 * kPage] = 1;
    (void)!::write(ready[1], "r", 1);
    for (;;) {
      ::usleep(1000);
      ++open[200u << 20];
    }
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  const std::uint64_t tables = status_kib(pid, "VmPTE"), pages = status_kib(pid, "VmRSS") / 4;
  {
    Watched watched(pid, GetParam());
    ASSERT_TRUE(watched.space);
    ModelSink sink;
    for (int i = 0; i < 4; ++i) {
      sink.begin(1u << 30);
      watched.round(sink);
      watched.round(sink, false);
      watched.freeze_and_compare_quickly(sink);
    }
    EXPECT_LT(sink.emitted, 2 * pages + 20'000);
    EXPECT_LT(status_kib(pid, "VmPTE"), tables + 1024);   // of 2 GiB they would be 4 MiB
  }
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

INSTANTIATE_TEST_SUITE_P(Trackers, EveryTracker, testing::Values("wp-async", "soft-dirty", "scan"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Trackers, Names_AreExactlyThese) {
  std::vector<std::string> names;
  for (const auto& t : tracker_types()) names.push_back(t.name);
  EXPECT_EQ(names, (std::vector<std::string>{"wp-async", "soft-dirty", "scan"}));
}

TEST(Trackers, Auto_OthersForcedOff_FallsBackToScan) {
  Churner churner(2);
  ::setenv("BATON_FORCE_OFF", "wp-async,soft-dirty", 1);
  Watched watched(churner.pid(), "auto");
  ::unsetenv("BATON_FORCE_OFF");
  ASSERT_TRUE(watched.space);
  EXPECT_EQ(watched.space->tracker().name(), "scan");
}

TEST(PageSet, AddRemove_Random_AgreesWithModel) {
  std::mt19937 random(7);
  PageSet set;
  std::vector<bool> model(5000);
  for (int i = 0; i < 3000; ++i) {
    std::uint64_t first = random() % 4900, count = 1 + random() % (random() % 8 == 0 ? 1000 : 20);
    count = std::min<std::uint64_t>(count, 5000 - first);
    bool add = random() % 2 == 0;
    if (add) set.add({first, count});
    else set.remove({first, count});
    for (std::uint64_t p = first; p < first + count; ++p) model[p] = add;
  }
  EXPECT_EQ(set.size(), static_cast<std::uint64_t>(std::count(model.begin(), model.end(), true)));
  std::vector<bool> walked(5000);
  std::uint64_t last_end = 0;
  set.for_each_run(100, 4800, [&](PageRun run) {
    EXPECT_TRUE(last_end == 0 || run.first > last_end);
    last_end = run.end();
    for (std::uint64_t p = run.first; p < run.end(); ++p) walked[p] = true;
    return true;
  });
  for (std::uint64_t p = 100; p < 4800; ++p) ASSERT_EQ(walked[p], model[p]) << p;
  for (std::uint64_t p = 0; p < 5000; ++p) ASSERT_EQ(set.contains(p), model[p]);
}

}  // namespace
}  // namespace baton::linux_backend
