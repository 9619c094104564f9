// Every copier copies what it is told to, in order, and stops where a page cannot be read.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <random>

#include "agent/backend/linux/memory/copier.h"

namespace baton::linux_backend {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kPages = 2000;

// A process with kPages pages, each filled with its number.
class Source {
 public:
  Source() {
    area_ = static_cast<char*>(::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (std::size_t p = 0; p < kPages; ++p) {
      for (std::size_t at = 0; at < kPage; at += 8) std::memcpy(area_ + p * kPage + at, &p, 8);
    }
    pid_ = ::fork();
    if (pid_ == 0) {
      for (;;) ::pause();
    }
  }
  ~Source() {
    end();
    ::munmap(area_, kPages * kPage);
  }
  void end() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ended_ = std::exchange(pid_, 0);
  }
  pid_t pid() const { return pid_ != 0 ? pid_ : ended_; }
  std::uint64_t first() const { return reinterpret_cast<std::uint64_t>(area_) / kPage; }
  char* area() const { return area_; }

 private:
  char* area_;
  pid_t pid_ = 0, ended_ = 0;
};

class EveryCopier : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto choice = parse_copier(GetParam());
    ASSERT_TRUE(choice) << choice.error().message();
    auto made = make_copier(*choice);
    if (!made && made.error().code == Code::kUnsupported) GTEST_SKIP() << "needs: " << made.error().message();
    ASSERT_TRUE(made) << made.error().message();
    copier_ = std::move(*made);
    to_.resize(Copier::kMaxPages * kPage);
  }
  std::uint64_t number_at(std::size_t page) const {
    std::uint64_t value = 0;
    std::memcpy(&value, to_.data() + page * kPage + 4088, 8);
    return value;
  }
  std::unique_ptr<Copier> copier_;
  std::vector<std::byte> to_;
};

TEST_P(EveryCopier, RandomRuns_ArriveInOrder) {
  Source source;
  unsigned seed = std::random_device{}();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (int turn = 0; turn < 200; ++turn) {
    std::vector<PageRun> runs;
    std::vector<std::uint64_t> expected;
    std::uint64_t at = random() % 20, room = turn % 3 == 0 ? 20 : Copier::kMaxPages;
    while (room > 0 && at < kPages) {
      std::uint64_t count = std::min<std::uint64_t>({1 + random() % (turn % 2 == 0 ? 2 : 60), room, kPages - at});
      runs.push_back({source.first() + at, count});
      for (std::uint64_t i = 0; i < count; ++i) expected.push_back(at + i);
      room -= count;
      at += count + 1 + random() % 6;
    }
    std::fill(to_.begin(), to_.end(), std::byte{0xEE});
    auto got = copier_->copy(source.pid(), runs, to_);
    ASSERT_TRUE(got) << got.error().message();
    ASSERT_EQ(*got, expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(number_at(i), expected[i]);
    for (std::size_t i = expected.size(); i < Copier::kMaxPages; ++i) {
      ASSERT_EQ(to_[i * kPage], std::byte{0xEE}) << "written beyond its end";
    }
  }
}

TEST_P(EveryCopier, PageThatCannotBeRead_EndsThere) {
  Source source;
  std::mt19937 random(3);
  for (std::uint64_t hole : {0u, 1u, 40u, 127u, 128u, 200u, 255u}) {
    std::vector<PageRun> runs;
    for (std::uint64_t i = 0; i < Copier::kMaxPages; ++i) runs.push_back({i == hole ? 1 : source.first() + i * 2, 1});
    auto got = copier_->copy(source.pid(), runs, to_);
    ASSERT_TRUE(got) << got.error().message();
    EXPECT_EQ(*got, hole);
    for (std::uint64_t i = 0; i < hole; ++i) ASSERT_EQ(number_at(i), i * 2);
  }
}

TEST_P(EveryCopier, ProcessGone_Fails) {
  Source source;
  std::vector<PageRun> runs(200, PageRun{source.first(), 1});
  source.end();
  auto got = copier_->copy(source.pid(), runs, to_);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().code, Code::kTraceeGone);
}

INSTANTIATE_TEST_SUITE_P(Copiers, EveryCopier,
                         testing::Values("auto", "single", "parallel", "parallel:threads=4", "parallel:threads=2,cpus=0"),
                         [](const auto& param) { return std::to_string(param.index); });

TEST(Copiers, Names_AreExactlyThese) {
  std::vector<std::string> names;
  for (const auto& t : copier_types()) names.push_back(t.name);
  EXPECT_EQ(names, (std::vector<std::string>{"single", "parallel"}));
}

TEST(Copiers, Text_IsParsedWholeOrRefused) {
  auto choice = parse_copier("parallel:threads=3,granularity=16,cpus=0-1+5");
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->options.threads, 3u);
  EXPECT_EQ(choice->options.granularity, 16u);
  EXPECT_EQ(choice->options.cpus, (std::vector<int>{0, 1, 5}));
  EXPECT_EQ(parse_copier("")->name, "auto");
  for (const char* wrong : {"fast", "single:", "single:granularity=0", "single:granularity=129", "single:granularity=2x",
                            "parallel:threads=65", "parallel:cpus=", "parallel:cpus=3-1", "parallel:cpus=9999",
                            "single:speed=1", "single:granularity=2,,"}) {
    auto parsed = parse_copier(wrong);
    ASSERT_FALSE(parsed) << wrong;
    EXPECT_EQ(parsed.error().code, Code::kInvalid);
  }
}

}  // namespace
}  // namespace baton::linux_backend
