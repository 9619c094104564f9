#include "agent/warden/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace baton::warden {
namespace {

class Files : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("baton-files-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "data";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result<void> write(const std::string& text, const std::string& workload) {
    pb::WriteFileRequest request;
    request.set_path(path_);
    request.set_data(text);
    request.set_end(true);
    request.set_mode(0640);
    request.set_workload(workload);
    request.set_uid(1234);
    request.set_gid(1235);
    request.set_mtime_ns(1'600'000'000'123'456'789);
    return room_.write(request);
  }
  void leave(const std::string& workload) {
    pb::ReadFileRequest request;
    request.set_path(path_);
    request.set_max_bytes(1);
    request.set_workload(workload);
    request.set_leaving(true);
    ASSERT_TRUE(FileRoom::read(request, 0));
  }
  std::string content() {
    std::ostringstream out;
    out << std::ifstream(path_).rdbuf();
    return out.str();
  }
  bool has_attributes() {
    std::ofstream(folder_ / "probe") << "x";
    return ::setxattr((folder_ / "probe").c_str(), "trusted.baton.probe", "1", 1, 0) == 0;
  }

  FileRoom room_;
  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(Files, Write_OwnerModeAndTime_AreTheSenders) {
  ASSERT_TRUE(write("text", "w"));
  struct stat info{};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 1234u);
  EXPECT_EQ(info.st_gid, 1235u);
  EXPECT_EQ(info.st_mode & 07777, 0640u);
  EXPECT_EQ(info.st_mtim.tv_sec, 1'600'000'000);
  EXPECT_EQ(info.st_mtim.tv_nsec, 123'456'789);
}

TEST_F(Files, CopyLeftBehind_UntouchedAndOfTheSameWorkload_IsReplaced) {
  if (!has_attributes()) GTEST_SKIP() << "trusted extended attributes are missing here";
  ASSERT_TRUE(write("first", "w"));
  EXPECT_EQ(write("second", "w").error().code, Code::kConflict) << "never left";
  leave("w");
  EXPECT_EQ(write("second", "another").error().code, Code::kConflict);
  ASSERT_TRUE(write("second", "w"));
  EXPECT_EQ(content(), "second");
  EXPECT_EQ(write("third", "w").error().code, Code::kConflict) << "it is at home again";
}

TEST_F(Files, CopyLeftBehind_WrittenToSince_IsKept) {
  if (!has_attributes()) GTEST_SKIP() << "trusted extended attributes are missing here";
  ASSERT_TRUE(write("first", "w"));
  leave("w");
  { std::ofstream(path_, std::ios::app) << " and more"; }
  EXPECT_EQ(write("second", "w").error().code, Code::kConflict);
  EXPECT_EQ(content(), "first and more");
}

TEST_F(Files, Prove_ChangedThroughAMapping_IsSeen) {
  ASSERT_TRUE(write(std::string(8192, 'a'), "w"));
  const int fd = ::open(path_.c_str(), O_RDWR);
  ASSERT_GE(fd, 0);
  auto* at = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  at[0] = 'b';
  ::usleep(1'100'000);   // its times are old enough for the cache
  const auto before = room_.prove(path_, 0, true);
  at[1] = 'c';           // the page is writable already: no time changes
  const auto after = room_.prove(path_, 0, true);
  ::munmap(at, 8192);
  ::close(fd);
  ASSERT_TRUE(before && after);
  EXPECT_NE(before->sha256(), after->sha256());
}

}  // namespace
}  // namespace baton::warden
