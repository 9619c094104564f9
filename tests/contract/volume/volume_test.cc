// A volume as a program uses it, and what a second server is filled with beside it.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "agent/volume/volume_client.h"

using namespace baton;
using volume::VolumeClient;

namespace {

// Keeps what it is handed, in the order in which it came.
class Sink final : public backend::PageSink {
 public:
  explicit Sink(std::size_t room_pages = 1u << 20) : room_(room_pages) {}
  std::span<std::byte> reserve(std::size_t bytes) override {
    stage_.resize(std::min(bytes, room_ * backend::kPageBytes));
    return stage_;
  }
  void emit(std::uint64_t object, std::uint64_t first, std::uint32_t count) override {
    EXPECT_EQ(object, 9u);
    for (std::uint32_t i = 0; i < count; ++i) {
      pages[first + i].assign(stage_.begin() + i * backend::kPageBytes, stage_.begin() + (i + 1) * backend::kPageBytes);
    }
    room_ -= count;
    emitted += count;
  }
  void drop(std::uint64_t, std::uint64_t first, std::uint64_t count) override {
    pages.erase(pages.lower_bound(first), pages.lower_bound(first + count));
    dropped.push_back({9, first, count});
  }
  std::size_t free_bytes() const override { return room_ * backend::kPageBytes; }
  void make_room(std::size_t pages_more) { room_ += pages_more; }

  std::map<std::uint64_t, std::vector<std::byte>> pages;
  std::vector<backend::PageRange> dropped;
  std::uint64_t emitted = 0;

 private:
  std::size_t room_;
  std::vector<std::byte> stage_;
};

class Volume : public testing::Test {
 protected:
  void SetUp() override {
    static const bool possible = ::geteuid() == 0 && ::access("/dev/fuse", R_OK | W_OK) == 0 && ::unshare(CLONE_NEWNS) == 0 &&
                                 ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    if (!possible) GTEST_SKIP() << "needs: root and /dev/fuse";
    std::string name = "/tmp/baton-volume-XXXXXX";
    top_ = ::mkdtemp(name.data());
    for (const char* folder : {"/a", "/b", "/state"}) std::filesystem::create_directories(top_ + folder);
    a_ = serve("a");
  }
  void TearDown() override {
    for (auto* server : {&a_, &b_}) {
      if (!*server) continue;
      EXPECT_TRUE((*server)->quit());
    }
    if (!top_.empty()) std::filesystem::remove_all(top_);
  }
  std::unique_ptr<VolumeClient> serve(const std::string& name) {
    auto server = VolumeClient::start(top_ + "/state/" + name, top_ + "/state", "baton:" + name);
    EXPECT_TRUE(server) << server.error().message();
    return server ? std::move(*server) : nullptr;
  }
  std::string at(const std::string& path) const { return top_ + "/" + path; }
  void mount_a() {
    auto mounted = a_->mount(at("a"), 0);
    ASSERT_TRUE(mounted) << mounted.error().message();
  }
  // What b lacks goes over, and b is seen beside a.
  void follow() {
    if (!b_) b_ = serve("b");
    auto taken = a_->collect(9, sink_);
    ASSERT_TRUE(taken) << taken.error().message();
    for (const auto& range : sink_.dropped) ASSERT_TRUE(b_->drop(range.first_page, range.count));
    for (const auto& [page, bytes] : sink_.pages) {
      auto filled = b_->fill(page, bytes);
      ASSERT_TRUE(filled) << filled.error().message();
    }
    sink_.pages.clear();
    sink_.dropped.clear();
    auto settled = b_->settle();
    ASSERT_TRUE(settled) << settled.error().message();
  }
  // Both folders, as stat(2) and read(2) show them.
  std::map<std::string, std::string> seen(const std::string& folder) const {
    std::map<std::string, std::string> out;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(at(folder))) {
      struct stat st {};
      EXPECT_EQ(::lstat(entry.path().c_str(), &st), 0);
      std::string text = std::to_string(st.st_mode) + " " + std::to_string(st.st_uid) + " " + std::to_string(st.st_gid) + " " + std::to_string(st.st_nlink) + " " +
                         std::to_string(st.st_ino) + " " + std::to_string(S_ISREG(st.st_mode) ? st.st_size : 0) + " " + std::to_string(st.st_mtim.tv_sec) + "." +
                         std::to_string(st.st_mtim.tv_nsec);
      if (S_ISREG(st.st_mode)) text += " " + read(entry.path().string());
      if (S_ISLNK(st.st_mode)) text += " " + std::filesystem::read_symlink(entry.path()).string();
      out[entry.path().lexically_relative(at(folder)).string()] = text;
    }
    return out;
  }
  void same() {
    ASSERT_TRUE(b_->settle(true));
    auto mounted = b_->mount(at("b"), 0);
    ASSERT_TRUE(mounted) << mounted.error().message();
    EXPECT_EQ(seen("b"), seen("a"));
  }
  static std::string read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  static void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

  std::string top_;
  std::unique_ptr<VolumeClient> a_, b_;
  Sink sink_;
};

TEST_F(Volume, ordinary_calls_do_what_they_do_elsewhere_and_a_copy_is_the_same) {
  mount_a();
  std::filesystem::create_directories(at("a/x/y"));
  write(at("a/x/y/text"), "hello");
  write(at("a/long"), std::string(3 << 20, 'l') + "end");
  ASSERT_EQ(::link(at("a/long").c_str(), at("a/x/again").c_str()), 0);
  ASSERT_EQ(::symlink("x/y", at("a/short").c_str()), 0);
  EXPECT_EQ(read(at("a/short/text")), "hello");
  write(at("a/\xff\xfe no text"), "names are bytes");
  ASSERT_EQ(::symlink("\xfd", at("a/nowhere").c_str()), 0);
  ASSERT_EQ(::chown(at("a/x/y/text").c_str(), 12, 34), 0);
  ASSERT_EQ(::chmod(at("a/x/y/text").c_str(), 0604), 0);
  const int fd = ::open(at("a/log").c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(::write(fd, "line\n", 5), 5);
  ASSERT_EQ(::ftruncate(fd, 123), 0);
  ASSERT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 20), 0);
  ASSERT_EQ(::fsync(fd), 0);
  char byte = 1;
  ASSERT_EQ(::pread(fd, &byte, 1, 15), 1);
  EXPECT_EQ(byte, 0);
  ASSERT_EQ(::unlink(at("a/long").c_str()), 0);
  EXPECT_EQ(read(at("a/x/again")).size(), (3u << 20) + 3);
  EXPECT_EQ(::rmdir(at("a/x").c_str()), -1);
  EXPECT_EQ(errno, ENOTEMPTY);
  ASSERT_EQ(::rename(at("a/log").c_str(), at("a/x/log").c_str()), 0);
  ASSERT_EQ(::renameat2(AT_FDCWD, at("a/x/log").c_str(), AT_FDCWD, at("a/x/again").c_str(), RENAME_EXCHANGE), 0);
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_size, 123);
  EXPECT_EQ(st.st_nlink, 1u);
  ::close(fd);
  follow();
  // Further changes, and only they.
  const std::uint64_t before = sink_.emitted;
  write(at("a/x/y/text"), "changed");
  ASSERT_EQ(::unlink(at("a/short").c_str()), 0);
  follow();
  EXPECT_LT(sink_.emitted - before, 10u);
  same();
}

TEST_F(Volume, stores_through_a_shared_mapping_arrive_when_they_are_flushed) {
  mount_a();
  const int fd = ::open(at("a/map").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::ftruncate(fd, 16384), 0);
  auto* mapped = static_cast<char*>(::mmap(nullptr, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(mapped, MAP_FAILED);
  follow();
  for (int round = 0; round < 5; ++round) {
    mapped[round * 3000] = static_cast<char>('A' + round);
    const std::uint64_t before = sink_.emitted;
    ASSERT_EQ(::sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER), 0);
    follow();
    EXPECT_GE(sink_.emitted - before, 1u);
    EXPECT_LE(sink_.emitted - before, 3u);
  }
  EXPECT_EQ(::pwrite(fd, "w", 1, 1), 1);
  EXPECT_EQ(mapped[1], 'w') << "a mapping and a call see the same";
  ::munmap(mapped, 16384);
  ::close(fd);
  follow();
  same();
}

TEST_F(Volume, a_folder_that_changes_is_read_without_loss_or_repetition) {
  mount_a();
  std::set<std::string> kept;
  for (int i = 0; i < 3000; ++i) {
    const std::string name = "f" + std::to_string(i);
    write(at("a/" + name), "x");
    if (i % 2 == 0) kept.insert(name);
  }
  DIR* folder = ::opendir(at("a").c_str());
  ASSERT_NE(folder, nullptr);
  std::map<std::string, int> found;
  int steps = 0;
  while (dirent* entry = ::readdir(folder)) {
    ++found[entry->d_name];
    // Odd ones go, others come, while it is being read.
    if (steps < 1500) {
      ::unlink(at("a/f" + std::to_string(2 * steps + 1)).c_str());
      write(at("a/n" + std::to_string(steps)), "y");
    }
    ++steps;
  }
  ::closedir(folder);
  for (const auto& name : kept) ASSERT_EQ(found[name], 1) << name;
  for (const auto& [name, times] : found) EXPECT_EQ(times, 1) << name;
  follow();
  same();
}

TEST_F(Volume, locks_hold_between_processes_and_an_unlinked_file_lives_on) {
  mount_a();
  const int fd = ::open(at("a/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_len = 10;
  ASSERT_EQ(::fcntl(fd, F_SETLK, &range), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const int other = ::open(at("a/lock").c_str(), O_RDWR | O_CLOEXEC);
    struct flock mine {};
    mine.l_type = F_WRLCK;
    mine.l_len = 1;
    const bool refused = ::flock(other, LOCK_EX | LOCK_NB) != 0 && ::fcntl(other, F_SETLK, &mine) != 0;
    ::_exit(refused ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(::write(fd, "kept", 4), 4);
  ASSERT_EQ(::unlink(at("a/lock").c_str()), 0);
  char text[5] = {};
  EXPECT_EQ(::pread(fd, text, 4, 0), 4);
  EXPECT_STREQ(text, "kept");
  ::close(fd);
  EXPECT_FALSE(std::filesystem::exists(at("a/lock")));
}

TEST_F(Volume, a_sink_without_room_gets_the_rest_later) {
  mount_a();
  std::string text(400 * backend::kPageBytes, 0);
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + i / 4096);
  write(at("a/big"), text);
  Sink narrow(37);
  std::uint64_t total = 0;
  for (int i = 0; i < 50; ++i) {
    auto taken = a_->collect(9, narrow);
    ASSERT_TRUE(taken);
    total += *taken;
    if (a_->pages_pending() == 0) break;
    if (i == 3) write(at("a/later"), "meanwhile");
    narrow.make_room(37);
  }
  EXPECT_GE(total, 402u);
  b_ = serve("b");
  for (const auto& [page, bytes] : narrow.pages) ASSERT_TRUE(b_->fill(page, bytes));
  ASSERT_TRUE(b_->settle());
  follow();
  same();
}

TEST_F(Volume, ends_when_nobody_uses_it_and_not_before) {
  write(at("a/there"), "found");
  ASSERT_TRUE(a_->import_folder(at("a")));
  mount_a();
  const std::string socket = top_ + "/state/a";
  a_.reset();
  ::usleep(100'000);
  EXPECT_EQ(read(at("a/there")), "found") << "mounted, without a client";
  auto again = VolumeClient::connect(socket);
  ASSERT_TRUE(again) << again.error().message();
  ASSERT_TRUE((*again)->unmount());
  again->reset();
  for (int i = 0; i < 100 && std::filesystem::exists(socket); ++i) ::usleep(20'000);
  EXPECT_EQ(VolumeClient::connect(socket).error().code, Code::kNotFound);
}

TEST_F(Volume, many_writers_at_once_lose_nothing) {
  mount_a();
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([this, w] {
      for (int i = 0; i < 300; ++i) {
        const int fd = ::open(at("a/all").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        const std::string line = std::to_string(w) + ":" + std::to_string(i) + "\n";
        ASSERT_EQ(::write(fd, line.data(), line.size()), static_cast<ssize_t>(line.size()));
        ::close(fd);
      }
    });
  }
  for (int i = 0; i < 20; ++i) follow();
  for (auto& writer : writers) writer.join();
  follow();
  const std::string text = read(at("a/all"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1200);
  same();
}

}  // namespace
