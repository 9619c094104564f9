// Volumes in captures: their servers hand out what changed, like memory that is tracked elsewhere.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "agent/backend/linux/attachment.h"
#include "agent/volume/volume_client.h"

namespace baton::linux_backend {

namespace {

using Digests = std::map<std::uint64_t, ContentMap::Digest>;

// Hands on, and remembers what it was.
class Noting final : public backend::PageSink {
 public:
  Noting(backend::PageSink& to, Digests& digests) : to_(to), digests_(digests) {}
  std::span<std::byte> reserve(std::size_t bytes) override { return reserved_ = to_.reserve(bytes); }
  void emit(std::uint64_t object, std::uint64_t first, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i) digests_[first + i] = ContentMap::of(reserved_.subspan(i * backend::kPageBytes, backend::kPageBytes));
    to_.emit(object, first, count);
  }
  void drop(std::uint64_t object, std::uint64_t first, std::uint64_t count) override {
    digests_.erase(digests_.lower_bound(first), digests_.lower_bound(first + count));
    to_.drop(object, first, count);
  }
  std::size_t free_bytes() const override { return to_.free_bytes(); }

 private:
  backend::PageSink& to_;
  Digests& digests_;
  std::span<std::byte> reserved_;
};

// Takes all there is, and finds out what the checkpoint has otherwise.
class Comparing final : public backend::PageSink {
 public:
  Comparing(const Digests& digests, const std::string& name, VerifyReport& report) : digests_(digests), name_(name), report_(report) {}
  std::span<std::byte> reserve(std::size_t bytes) override {
    stage_.resize(bytes);
    return stage_;
  }
  void emit(std::uint64_t, std::uint64_t first, std::uint32_t count) override {
    for (std::uint32_t i = 0; i < count; ++i) {
      ++report_.pages;
      seen_.insert(first + i);
      auto known = digests_.find(first + i);
      if (known == digests_.end()) differs(first + i, "the checkpoint lacks the page");
      else if (!(known->second == ContentMap::of(std::span(stage_).subspan(i * backend::kPageBytes, backend::kPageBytes)))) differs(first + i, "the content differs");
    }
  }
  void drop(std::uint64_t, std::uint64_t, std::uint64_t) override {}
  std::size_t free_bytes() const override { return std::size_t{1} << 30; }
  void finish() {
    const std::vector<std::byte> zeros(backend::kPageBytes);
    for (const auto& [page, digest] : digests_) {
      if (!seen_.contains(page) && !(digest == ContentMap::of(zeros))) differs(page, "the checkpoint has a page where there is none");
    }
  }

 private:
  void differs(std::uint64_t page, const char* how) {
    if (report_.differences++ == 0) report_.first = name_ + ", page " + std::to_string(page) + ": " + how;
  }
  const Digests& digests_;
  const std::string name_;
  VerifyReport& report_;
  std::set<std::uint64_t> seen_;
  std::vector<std::byte> stage_;
};

}  // namespace

Result<void> LinuxAttachment::open_volumes() {
  for (const auto& place : target_.volumes) {
    BATON_ASSIGN(auto server, volume::VolumeClient::connect(place.socket));
    volumes_.push_back({place.folder, next_object_++, std::move(server), place.socket, {}});
  }
  return {};
}

bool LinuxAttachment::in_volume(std::string_view path) const {
  return std::any_of(volumes_.begin(), volumes_.end(), [&](const AttachedVolume& one) { return volume::lies_in(one.folder, path); });
}

Result<void> LinuxAttachment::copy_volumes(backend::PageSink& sink, backend::RoundStats& stats) {
  for (auto& volume : volumes_) {
    Noting noting(sink, volume.handed_out);
    BATON_ASSIGN(const std::uint64_t pages, volume.server->collect(volume.object, target_.spec.verify() ? noting : sink));
    stats.pages_written += pages;
    stats.pages_copied += pages;
  }
  return {};
}

// Stores through shared mappings are with the kernel: now they go to the server, which is asked next.
// Answers whether there were any. After a collect: that the server answers has been seen then, and
// what is written out waits for it without an end.
Result<bool> LinuxAttachment::flush_volume_mappings() {
  if (volumes_.empty()) return false;
  std::set<const AddressSpace*> done;
  std::set<std::uint64_t> flushed;   // by inode
  for (const auto& [pid, process] : processes_) {
    if (!done.insert(process.space.get()).second) continue;
    const MemoryMap& map = process.space->map();
    for (const Vma& v : map.vmas()) {
      if (v.kind != pb::MAPPING_FILE_SHARED && v.kind != pb::MAPPING_FILE_PRIVATE) continue;
      if (v.is_nameless() || !in_volume(map.path(v))) continue;
      if (v.kind == pb::MAPPING_FILE_PRIVATE) {
        return make_error(Code::kUnsupported, "capture memory",
                          "process " + std::to_string(pid) + ": a private mapping of " + std::string(map.path(v)) + ", a file of its volume",
                          "Keep programs and libraries outside the volume.");
      }
      if ((v.prot & PROT_WRITE) == 0 || !flushed.insert(v.inode).second) continue;
      char link[96];
      std::snprintf(link, sizeof link, "/proc/%d/map_files/%llx-%llx", pid, static_cast<unsigned long long>(v.start), static_cast<unsigned long long>(v.end));
      BATON_ASSIGN(Fd fd, open_file(link, O_RDONLY));
      constexpr unsigned kAll = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
      if (::sync_file_range(fd.get(), 0, 0, kAll) != 0) return errno_error("flush a mapping", std::string(map.path(v)));
    }
  }
  return !flushed.empty();
}

// Stopped, with everything handed out: a second look at all of it.
Result<void> LinuxAttachment::verify_volumes(VerifyReport& report) {
  for (auto& volume : volumes_) {
    BATON_ASSIGN(auto second, volume::VolumeClient::connect(volume.socket));
    Comparing comparing(volume.handed_out, "volume " + volume.folder, report);
    BATON_TRY(second->collect(volume.object, comparing));
    comparing.finish();
  }
  return {};
}

void LinuxAttachment::write_volumes(pb::LinuxState& state, pb::Manifest& manifest) const {
  for (const auto& volume : volumes_) {
    auto& out = *state.add_volumes();
    out.set_object(volume.object);
    out.set_folder(volume.folder);
    pb::MemoryObject* object = manifest.add_objects();
    object->set_id(volume.object);
    object->set_kind(pb::MEMORY_OBJECT_VOLUME);
    object->set_name("volume " + volume.folder);
  }
}

}  // namespace baton::linux_backend
