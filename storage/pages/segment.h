// Segment: one append-only file of frames (docs/formats/store.md).
//
// Appending, sealing and removing happen under the store's append lock, one caller at a
// time; reading and the live counts may be used by any thread. A removed segment's file
// stays readable for those who still hold the object.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.h"
#include "storage/disk.h"
#include "storage/pages/frame.h"
#include "storage/pages/page_index.h"

namespace baton::storage {

inline constexpr std::size_t kSegmentHeadBytes = 64;

struct FrameEntry {
  std::uint64_t at = 0;
  std::uint32_t bytes = 0;
  std::uint16_t pages = 0;
  std::uint16_t live = 0;
};

class Segment {
 public:
  // Told of each page found at open; false: it is known from elsewhere, this copy is dead.
  using Found = std::function<bool(const DomainId&, const Digest&, const PagePlace&)>;

  // Fails: kNoSpace, kFailed; then no file is left.
  static Result<std::shared_ptr<Segment>> create(const std::string& folder, std::uint32_t id,
                                                 Disk& disk);
  // Reads the footer, or scans and cuts off a torn end. nullptr: the file held nothing and
  // was removed. Counts what is unreadable in `damaged`.
  static Result<std::shared_ptr<Segment>> open(const std::string& folder, std::uint32_t id,
                                               Disk& disk, const Found& found,
                                               std::uint64_t& damaged);
  static std::string file_name(std::uint32_t id);

  std::uint32_t id() const { return id_; }
  std::uint64_t file_bytes() const { return end_.load(); }
  bool appendable() const { return !sealed_ && !broken_; }
  bool sealed() const { return sealed_; }

  // Appends whole frames. Returns the index of the first. On failure nothing was appended;
  // when even the cleaning up failed, appendable() turns false.
  Result<std::uint32_t> append(std::string_view frames, std::span<const FrameHead> heads);
  // Syncs the frames, then writes the footer that vouches for them; the segment takes no more
  // frames, whatever the outcome.
  Result<void> seal();
  void retire() { broken_ = true; }
  Result<void> remove_file();

  // Syncs what was written; afterwards synced_frames() counts the frames that are safe.
  Result<void> sync();
  bool dirty() const { return dirty_.load(); }
  bool suspect() const { return suspect_.load(); }  // a sync failed; see SegmentPageStore
  void clear_suspect() { suspect_.store(false); }
  std::uint32_t synced_frames() const { return synced_frames_.load(); }

  std::uint32_t frame_count() const;
  FrameEntry frame(std::uint32_t index) const;
  // Reads one frame, not yet checked. Fails: kFailed (EIO), kCorrupt (file too short).
  Result<void> read_frame(std::uint32_t index, std::string& out) const;

  void add_dead(std::uint32_t frame);
  std::uint64_t live_pages() const { return live_pages_.load(); }
  std::uint64_t total_pages() const { return total_pages_.load(); }

 private:
  Segment(std::string folder, std::uint32_t id, Fd fd, Disk& disk)
      : folder_(std::move(folder)), id_(id), fd_(std::move(fd)), disk_(disk) {}

  bool load_footer(std::uint64_t size, const Found& found);
  Result<void> scan(std::uint64_t size, const Found& found, std::uint64_t& damaged);
  // The start of the next whole frame at or after `from`, or `size`.
  Result<std::uint64_t> find_frame(std::uint64_t from, std::uint64_t size, std::string& frame,
                                   FrameHead& head) const;
  void enter_frame(std::uint64_t at, std::string_view frame_start, const FrameHead& head,
                   const Found* found);

  const std::string folder_;
  const std::uint32_t id_;
  const Fd fd_;
  Disk& disk_;
  std::atomic<std::uint64_t> end_{0};
  std::atomic<bool> sealed_{false}, broken_{false}, dirty_{false}, suspect_{false};
  std::atomic<std::uint32_t> synced_frames_{0};
  std::atomic<std::uint64_t> live_pages_{0}, total_pages_{0};
  mutable std::mutex mutex_;  // frames_
  std::vector<FrameEntry> frames_;
  std::string footer_;  // entries so far; empty once sealed
};

}  // namespace baton::storage
