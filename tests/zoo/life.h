// The life of one program under the linux backend, without agent, warden or bench: launched by
// a keeper, checkpointed, killed while frozen, and built anew from what was captured.
//
// Threads: one. Needs root. The folder and the two cgroups are made and removed here.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "agent/backend/linux/linux_backend.h"
#include "base/cgroup.h"

namespace baton::zoo {

// Every page that was captured, as it is now.
class Pages final : public backend::PageSink {
 public:
  std::span<std::byte> reserve(std::size_t bytes) override {
    staged_.resize(std::min<std::size_t>(bytes, 1u << 20));
    taken_ = 0;
    return staged_;
  }
  void emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i, taken_ += backend::kPageBytes) {
      auto from = staged_.begin() + static_cast<std::ptrdiff_t>(taken_);
      pages[object][first_page + i].assign(from, from + backend::kPageBytes);
    }
  }
  void drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) override {
    auto& all = pages[object];
    all.erase(all.lower_bound(first_page), all.lower_bound(first_page + count));
  }
  std::size_t free_bytes() const override { return 1u << 30; }

  std::map<std::uint64_t, std::map<std::uint64_t, std::vector<std::byte>>> pages;

 private:
  std::vector<std::byte> staged_;
  std::size_t taken_ = 0;       // bytes of it that have been emitted
};

class Life {
 public:
  explicit Life(const std::string& name);
  ~Life();
  Life(const Life&) = delete;

  Result<void> start(const std::vector<std::string>& argv, pb::WorkloadSpec spec = {});
  // Verdicts as `protect --dry-run` has them.
  Result<backend::Inspection> inspect();
  Result<void> attach();
  // Beside the running program; every byte is compared with the program's while it is frozen.
  Result<backend::CaptureStats> checkpoint();
  // Captured frozen, killed, built anew; the next checkpoint starts with nothing known.
  Result<void> move();

  // Sends `signal` and waits for a line that the program has not said before. Empty: it said nothing.
  std::string ask(int signal, std::chrono::milliseconds limit = std::chrono::seconds(20));
  // Waits until it has said a line that begins with `what`, or has ended.
  bool said(const std::string& what, std::chrono::milliseconds limit = std::chrono::seconds(20));
  std::string log() const;
  pid_t root() const { return root_; }
  bool alive() const;
  const std::filesystem::path& folder() const { return folder_; }
  std::chrono::nanoseconds longest_pause() const { return longest_pause_; }

 private:
  backend::AttachTarget target() const;
  Result<void> rebuild(std::chrono::steady_clock::time_point frozen_at);

  linux_backend::LinuxBackend backend_;
  std::filesystem::path folder_;
  Cgroup groups_[2];
  int here_ = 0;
  pb::WorkloadSpec spec_;
  std::unique_ptr<backend::Attachment> attachment_;
  pb::Manifest manifest_;
  Pages pages_;
  pid_t root_ = 0, keeper_ = 0;
  std::size_t heard_ = 0;       // bytes of the log that ask() has passed
  std::chrono::nanoseconds longest_pause_{};
};

}  // namespace baton::zoo
