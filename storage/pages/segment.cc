#include "storage/pages/segment.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "base/check.h"
#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"

namespace baton::storage {
namespace {

constexpr std::string_view kSegmentMagic = "BATONSEG";
constexpr std::string_view kFooterMagic = "BATONFTR";
constexpr std::string_view kEndMagic = "BATONEND";
constexpr std::uint32_t kSegmentVersion = 2;  // 1: without sealed frames
constexpr std::size_t kTrailerBytes = 16;
constexpr std::uint64_t kMaxFooterBytes = 256u << 20;

std::string make_head(std::uint32_t id, std::uint32_t version = kSegmentVersion) {
  std::string head(kSegmentMagic);
  put_int(head, version);
  put_int<std::uint32_t>(head, 0);
  put_int<std::uint64_t>(head, id);
  head.resize(kSegmentHeadBytes - 8);
  put_int<std::uint64_t>(head, checksum(head));
  return head;
}

// A head that is whole and says a higher version: not damage, but a format from the future.
Result<void> refuse_newer(const std::string& path, std::string_view head) {
  std::uint32_t version;
  std::uint64_t sum;
  std::memcpy(&version, head.data() + kSegmentMagic.size(), sizeof version);
  std::memcpy(&sum, head.data() + kSegmentHeadBytes - 8, sizeof sum);
  if (!head.starts_with(kSegmentMagic) || version <= kSegmentVersion ||
      checksum(head.substr(0, kSegmentHeadBytes - 8)) != sum) {
    return {};
  }
  return make_error(Code::kUnsupported, "open segment",
                    path + ": format version " + std::to_string(version) + ", this program knows up to " +
                        std::to_string(kSegmentVersion),
                    "Use the version of Baton that wrote it, or a newer one.");
}

iovec as_iovec(std::string_view bytes) {
  return {const_cast<char*>(bytes.data()), bytes.size()};
}

std::span<std::byte> bytes_of(std::string& text) {
  return std::as_writable_bytes(std::span(text.data(), text.size()));
}

}  // namespace

std::string Segment::file_name(std::uint32_t id) {
  char name[32];
  std::snprintf(name, sizeof name, "seg-%08x.pages", id);
  return name;
}

Result<std::shared_ptr<Segment>> Segment::create(const std::string& folder, std::uint32_t id,
                                                 Disk& disk) {
  const std::string path = folder + "/" + file_name(id);
  BATON_ASSIGN(Fd fd, disk.create(path));
  const std::string head = make_head(id);
  iovec part = as_iovec(head);
  if (auto written = disk.write_at(fd.get(), std::span(&part, 1), 0); !written) {
    (void)disk.unlink(path);
    return written.error();
  }
  auto segment = std::shared_ptr<Segment>(new Segment(folder, id, std::move(fd), disk));
  segment->end_ = kSegmentHeadBytes;
  segment->dirty_ = true;
  return segment;
}

Result<std::shared_ptr<Segment>> Segment::open(const std::string& folder, std::uint32_t id,
                                               Disk& disk, const Found& found,
                                               std::uint64_t& damaged) {
  const std::string path = folder + "/" + file_name(id);
  BATON_ASSIGN(Fd fd, disk.open(path));
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return errno_error("fstat", path);
  const auto size = static_cast<std::uint64_t>(st.st_size);
  auto segment = std::shared_ptr<Segment>(new Segment(folder, id, std::move(fd), disk));
  if (size >= kSegmentHeadBytes) {
    std::string head(kSegmentHeadBytes, '\0');
    if (auto r = pread_exact(segment->fd_.get(), bytes_of(head), 0);
        !r || (head != make_head(id) && head != make_head(id, 1))) {
      BATON_TRY(refuse_newer(path, head));
      ++damaged;
    }
  }
  if (!segment->load_footer(size, found)) {
    BATON_TRY(segment->scan(size, found, damaged));
  }
  if (segment->frames_.empty() && segment->total_pages_ == 0) {
    BATON_TRY(disk.unlink(path));
    return std::shared_ptr<Segment>();
  }
  // What an earlier run wrote may be in the page cache only.
  segment->dirty_ = true;
  return segment;
}

void Segment::enter_frame(std::uint64_t at, std::string_view frame_start, const FrameHead& head,
                          const Found* found) {
  put_int(footer_, at);
  footer_.append(frame_start.substr(0, head.payload_at()));
  std::uint32_t index;
  FrameEntry entry{at, static_cast<std::uint32_t>(head.frame_bytes()), head.page_count,
                   head.page_count};
  {
    std::lock_guard lock(mutex_);
    index = static_cast<std::uint32_t>(frames_.size());
    frames_.push_back(entry);
  }
  live_pages_ += head.page_count;
  total_pages_ += head.page_count;
  if (!found) return;
  for (std::size_t slot = 0; slot < head.page_count; ++slot) {
    PagePlace place{id_, index, static_cast<std::uint8_t>(slot)};
    if (!(*found)(head.domain, frame_digest(as_bytes_of(frame_start), head, slot), place)) {
      add_dead(index);
    }
  }
}

bool Segment::load_footer(std::uint64_t size, const Found& found) {
  if (size < kSegmentHeadBytes + kFooterMagic.size() + 4 + 8 + kTrailerBytes) return false;
  std::string trailer(kTrailerBytes, '\0');
  if (!pread_exact(fd_.get(), bytes_of(trailer), static_cast<off_t>(size - kTrailerBytes))) {
    return false;
  }
  std::uint64_t footer_at;
  std::memcpy(&footer_at, trailer.data(), 8);
  if (trailer.substr(8) != kEndMagic || footer_at < kSegmentHeadBytes ||
      footer_at > size - kTrailerBytes - 8 ||
      size - kTrailerBytes - footer_at > kMaxFooterBytes) {
    return false;
  }
  std::string footer(size - kTrailerBytes - footer_at, '\0');
  if (!pread_exact(fd_.get(), bytes_of(footer), static_cast<off_t>(footer_at))) return false;
  std::uint64_t sum;
  std::memcpy(&sum, footer.data() + footer.size() - 8, 8);
  footer.resize(footer.size() - 8);
  if (checksum(footer) != sum || !footer.starts_with(kFooterMagic)) return false;

  ByteReader in(as_bytes_of(footer).subspan(kFooterMagic.size()));
  std::uint32_t count;
  if (!in.read_int(count)) return false;
  struct Entry {
    std::uint64_t at;
    std::string_view start;
    FrameHead head;
  };
  std::vector<Entry> entries;
  for (std::uint32_t i = 0; i < count; ++i) {
    Entry e;
    if (!in.read_int(e.at)) return false;
    const std::size_t here = footer.size() - in.left();
    std::span<const std::byte> skip;
    if (!parse_frame_head(as_bytes_of(std::string_view(footer).substr(here)), e.head) ||
        !in.read_view(e.head.payload_at(), skip) || e.at > footer_at ||
        e.head.frame_bytes() > footer_at - e.at) {
      return false;
    }
    e.start = std::string_view(footer).substr(here, e.head.payload_at());
    entries.push_back(e);
  }
  if (in.left() != 0) return false;
  for (const Entry& e : entries) enter_frame(e.at, e.start, e.head, &found);
  footer_.clear();
  sealed_ = true;
  end_ = size;
  return true;
}

Result<std::uint64_t> Segment::find_frame(std::uint64_t from, std::uint64_t size,
                                          std::string& frame, FrameHead& head) const {
  constexpr std::size_t kWindow = 1u << 20;
  std::string window;
  std::string_view magic(reinterpret_cast<const char*>(&kFrameMagic), 4);
  for (std::uint64_t base = from; base + kFrameHeadBytes <= size;) {
    // Windows overlap by a head, so that each candidate is seen whole in one of them.
    window.resize(std::min<std::uint64_t>(kWindow, size - base));
    BATON_TRY(pread_exact(fd_.get(), bytes_of(window), static_cast<off_t>(base)));
    for (std::size_t hit = window.find(magic); hit != std::string::npos;
         hit = window.find(magic, hit + 1)) {
      if (window.size() - hit < kFrameHeadBytes) break;
      if (!parse_frame_head(as_bytes_of(std::string_view(window).substr(hit)), head)) continue;
      if (head.frame_bytes() > size - base - hit) continue;
      frame.resize(head.frame_bytes());
      BATON_TRY(pread_exact(fd_.get(), bytes_of(frame), static_cast<off_t>(base + hit)));
      if (check_frame(as_bytes_of(frame), head)) return base + hit;
    }
    if (base + window.size() >= size) break;
    base += window.size() - kFrameHeadBytes + 1;
  }
  return size;
}

Result<void> Segment::scan(std::uint64_t size, const Found& found, std::uint64_t& damaged) {
  std::uint64_t good_end = std::min<std::uint64_t>(size, kSegmentHeadBytes);
  std::string frame;
  FrameHead head;
  bool readable = true;
  while (good_end < size) {
    // The next frame normally starts here; otherwise search, to tell damage from a torn end.
    frame.resize(std::min<std::uint64_t>(kFrameHeadBytes, size - good_end));
    readable = pread_exact(fd_.get(), bytes_of(frame), static_cast<off_t>(good_end)).has_value();
    if (!readable) break;
    std::uint64_t at = good_end;
    bool whole = parse_frame_head(as_bytes_of(frame), head) &&
                 head.frame_bytes() <= size - good_end;
    if (whole) {
      frame.resize(head.frame_bytes());
      readable = pread_exact(fd_.get(), bytes_of(frame), static_cast<off_t>(at)).has_value();
      whole = readable && check_frame(as_bytes_of(frame), head);
    }
    if (!whole) {
      auto next = find_frame(good_end + 1, size, frame, head);
      readable = next.has_value();
      if (!readable || *next == size) break;
      ++damaged;
      at = *next;
    }
    enter_frame(at, frame, head, &found);
    good_end = at + frame.size();
  }
  end_ = good_end;
  if (!readable) {
    ++damaged;
    end_ = size;
    broken_ = true;
  } else if (good_end < size) {
    if (auto cut = disk_.truncate(fd_.get(), good_end); !cut) broken_ = true;
  }
  return {};
}

Result<std::uint32_t> Segment::append(std::string_view frames, std::span<const FrameHead> heads) {
  CHECK(appendable());
  const std::uint64_t at = end_.load();
  iovec part = as_iovec(frames);
  if (auto written = disk_.write_at(fd_.get(), std::span(&part, 1), at); !written) {
    if (!disk_.truncate(fd_.get(), at)) broken_ = true;
    dirty_ = true;
    return written.error();
  }
  const std::uint32_t first = frame_count();
  std::size_t offset = 0;
  for (const FrameHead& head : heads) {
    enter_frame(at + offset, frames.substr(offset), head, nullptr);
    offset += head.frame_bytes();
  }
  CHECK(offset == frames.size());
  end_ = at + offset;
  dirty_ = true;
  return first;
}

Result<void> Segment::seal() {
  if (!appendable()) return {};
  // A footer is believed at open without a look at the frames, and a disk writes in any order:
  // it must not be able to get there before they are.
  if (auto synced = sync(); !synced) {
    footer_.clear();
    footer_.shrink_to_fit();
    return synced.error();
  }
  std::string footer(kFooterMagic);
  put_int<std::uint32_t>(footer, frame_count());
  footer += footer_;
  put_int<std::uint64_t>(footer, checksum(footer));
  put_int<std::uint64_t>(footer, end_.load());
  footer += kEndMagic;
  iovec part = as_iovec(footer);
  const std::uint64_t at = end_.load();
  auto written = disk_.write_at(fd_.get(), std::span(&part, 1), at);
  dirty_ = true;
  footer_.clear();
  footer_.shrink_to_fit();
  if (!written) {
    broken_ = true;
    (void)disk_.truncate(fd_.get(), at);  // a scan finds the frames in any case
    return written.error();
  }
  end_ = at + footer.size();
  sealed_ = true;
  return {};
}

Result<void> Segment::remove_file() { return disk_.unlink(folder_ + "/" + file_name(id_)); }

Result<void> Segment::sync() {
  const std::uint32_t frames_now = frame_count();
  if (!dirty_.exchange(false)) return {};
  if (auto synced = disk_.sync(fd_.get()); !synced) {
    // The kernel may drop the dirty pages and report success next time (fsync(2), NOTES).
    suspect_ = true;
    broken_ = true;
    return synced.error();
  }
  if (!suspect_) synced_frames_ = frames_now;
  return {};
}

std::uint32_t Segment::frame_count() const {
  std::lock_guard lock(mutex_);
  return static_cast<std::uint32_t>(frames_.size());
}

FrameEntry Segment::frame(std::uint32_t index) const {
  std::lock_guard lock(mutex_);
  return index < frames_.size() ? frames_[index] : FrameEntry{};
}

Result<void> Segment::read_frame(std::uint32_t index, std::string& out) const {
  const FrameEntry entry = frame(index);
  out.resize(entry.bytes);
  return pread_exact(fd_.get(), bytes_of(out), static_cast<off_t>(entry.at));
}

void Segment::add_dead(std::uint32_t frame) {
  std::lock_guard lock(mutex_);
  CHECK(frame < frames_.size() && frames_[frame].live > 0);
  --frames_[frame].live;
  --live_pages_;
}

}  // namespace baton::storage
