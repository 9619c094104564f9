#include "base/fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace baton {
namespace {

class FdTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/baton-fd-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(FdTest, OpenFile_OfMissingPath_SaysNotFound) {
  auto fd = open_file(folder_ + "/none", O_RDONLY);
  ASSERT_FALSE(fd);
  EXPECT_EQ(fd.error().code, Code::kNotFound);
}

TEST_F(FdTest, OpenFile_Always_SetsCloseOnExec) {
  auto fd = open_file(folder_, O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(fd);
  EXPECT_TRUE(fcntl(fd->get(), F_GETFD) & FD_CLOEXEC);
}

TEST_F(FdTest, ReplaceFile_Twice_LeavesTheNewContentAlone) {
  std::string path = folder_ + "/f";
  ASSERT_TRUE(replace_file(path, "one"));
  ASSERT_TRUE(replace_file(path, "two"));
  EXPECT_EQ(*read_file(path), "two");
  EXPECT_FALSE(std::filesystem::exists(path + ".new"));
}

TEST_F(FdTest, ReadExact_PastTheEnd_SaysCorrupt) {
  std::string path = folder_ + "/f";
  ASSERT_TRUE(replace_file(path, "abc"));
  auto fd = open_file(path, O_RDONLY);
  std::byte bytes[4];
  EXPECT_EQ(read_exact(fd->get(), bytes).error().code, Code::kCorrupt);
}

TEST_F(FdTest, Move_Always_ClosesExactlyOnce) {
  auto a = open_file("/dev/null", O_RDONLY);
  int raw = a->get();
  Fd b = std::move(*a);
  Fd c;
  c = std::move(b);
  EXPECT_EQ(c.get(), raw);
  c.reset();
  EXPECT_EQ(fcntl(raw, F_GETFD), -1);
}

}  // namespace
}  // namespace baton
