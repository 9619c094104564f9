// SegmentPageStore: syncing, healing after a failed sync, and garbage collection.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/fault_point.h"
#include "storage/bytes/byte_io.h"
#include "storage/pages/segment_pages.h"

namespace baton::storage {

using dedup::kPageBytes;

namespace {
constexpr std::chrono::milliseconds kLongestBurst{5};  // of moving at full speed
}  // namespace

Result<void> SegmentPageStore::sync(Durability level) {
  if (level != Durability::kSynced) return {};  // put has written to the kernel already
  const std::uint64_t ticket = append_ticket_.load(std::memory_order_acquire);
  // Group commit: whoever waits here while another syncs often finds its work done.
  std::lock_guard lock(sync_mutex_);
  if (synced_ticket_ >= ticket) return {};
  BATON_TRY(fault_point("store.pages.sync"));
  return sync_locked();
}

Result<void> SegmentPageStore::sync_locked() {
  const std::uint64_t now = append_ticket_.load(std::memory_order_acquire);
  bool suspects = false;
  for (const auto& segment : all_segments()) {
    if (auto synced = segment->sync(); !synced) {
      spdlog::error("page store: sync of segment {}: {}; its new pages are written again",
                    segment->id(), synced.error().message());
    }
    suspects = suspects || segment->suspect();
  }
  if (suspects) BATON_TRY(heal_locked());
  if (folder_dirty_.exchange(false)) {
    if (auto synced = disk_.sync_folder(folder_); !synced) {
      folder_dirty_ = true;
      return synced.error();
    }
  }
  synced_ticket_ = now;
  return {};
}

void SegmentPageStore::retire_active_if(const std::function<bool(const Segment&)>& unfit) {
  std::lock_guard lock(append_mutex_);
  if (!active_ || !unfit(*active_)) return;
  const std::uint64_t before = active_->file_bytes();
  (void)active_->seal();
  bytes_ += active_->file_bytes() - before;
  active_.reset();
}

// After a failed fsync nothing says which pages reached the disk. The page cache (or the
// disk) is read once more, what checks out is written to a new segment, and that is synced.
Result<void> SegmentPageStore::heal_locked() {
  retire_active_if([](const Segment& s) { return s.suspect() || !s.appendable(); });
  std::vector<std::shared_ptr<Segment>> healed;
  for (const auto& segment : all_segments()) {
    if (!segment->suspect()) continue;
    BATON_TRY(rewrite(segment, segment->synced_frames(), 0));
    healed.push_back(segment);
  }
  for (const auto& segment : all_segments()) {
    if (segment->suspect()) continue;
    BATON_TRY(segment->sync());
  }
  for (const auto& segment : healed) {
    // A put that has appended but not yet entered its pages: the next sync sees to them.
    bool left = false;
    for (std::uint32_t f = segment->synced_frames(); f < segment->frame_count(); ++f) {
      left = left || segment->frame(f).live != 0;
    }
    if (!left) segment->clear_suspect();
  }
  return {};
}

Result<void> SegmentPageStore::rewrite(const std::shared_ptr<Segment>& segment,
                                       std::uint32_t first_frame, std::uint64_t bytes_per_s) {
  const std::uint32_t end = segment->frame_count();
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t moved = 0;
  for (std::uint32_t f = first_frame; f < end; ++f) {
    const FrameEntry frame = segment->frame(f);
    if (frame.live == 0) continue;
    BATON_TRY(rewrite_frame(*segment, f));
    moved += 2 * std::uint64_t{frame.bytes};
    if (bytes_per_s == 0) continue;
    // No lock that a put, a get or a commit takes is held here.
    const std::chrono::duration<double> due(static_cast<double>(moved) / static_cast<double>(bytes_per_s));
    if (due > kLongestBurst + (std::chrono::steady_clock::now() - begin)) {
      std::this_thread::sleep_until(begin + std::chrono::duration_cast<std::chrono::nanoseconds>(due));
    }
  }
  return {};
}

Result<void> SegmentPageStore::rewrite_frame(Segment& segment, std::uint32_t frame) {
  std::string bytes;
  auto read = segment.read_frame(frame, bytes);
  if (!read && read.error().code != Code::kCorrupt) return read.error();
  FrameHead head;
  if (!read || !check_frame(as_bytes_of(bytes), head)) {
    return move_damaged(segment, frame, read ? std::string_view(bytes) : std::string_view());
  }
  PageIndex& index = index_of(head.domain);
  std::vector<MovedPage> live;
  for (std::size_t slot = 0; slot < head.page_count; ++slot) {
    PagePlace place{segment.id(), frame, static_cast<std::uint8_t>(slot)};
    Digest digest = frame_digest(as_bytes_of(bytes), head, slot);
    auto now = index.find(digest);
    if (now && *now == place) live.push_back({digest, place, static_cast<std::uint8_t>(live.size())});
  }
  if (live.empty()) return {};

  std::string copy;
  FrameHead copy_head = head;
  if (live.size() == head.page_count) {
    copy = bytes;
  } else {
    std::vector<std::byte> raw(head.page_count * kPageBytes);
    const SealerPtr sealer = find_key(head.domain);
    BATON_TRY(decode_frame(as_bytes_of(bytes), head, raw, sealer.get()));
    std::vector<PagePut> pages;
    for (const MovedPage& page : live) pages.push_back({page.digest, raw.data() + page.from.slot * kPageBytes});
    copy_head = append_frame(copy, head.domain, pages, options_.zstd_level, sealer.get());
  }
  return move_pages(index, copy, copy_head, live);
}

Result<void> SegmentPageStore::move_pages(PageIndex& index, std::string_view frame, const FrameHead& head,
                                          std::span<const MovedPage> pages) {
  BATON_ASSIGN(Appended where, append(frame, std::span(&head, 1)));
  for (const MovedPage& page : pages) {
    PagePlace to{where.segment->id(), where.first_frame, page.slot};
    if (index.replace(page.digest, page.from, to)) {
      if (auto segment = find_segment(page.from.segment)) segment->add_dead(page.from.frame);
    } else {
      where.segment->add_dead(where.first_frame);
    }
  }
  append_ticket_.fetch_add(1, std::memory_order_acq_rel);
  return {};
}

// A frame whose checksum is wrong, moved as it is, with its wrong checksum: which of its pages are
// sound is seen when one is read, or by verify. The index says which it holds, whatever the frame's
// own list says by now.
Result<void> SegmentPageStore::move_damaged(Segment& segment, std::uint32_t frame, std::string_view bytes) {
  ++damaged_frames_;
  FrameHead head;
  if (!parse_frame_head(as_bytes_of(bytes), head) || head.frame_bytes() != bytes.size()) {
    spdlog::error("page store: segment {}, frame at {}: unreadable, its pages are lost", segment.id(), segment.frame(frame).at);
    drop_frame(segment, frame);
    return {};
  }
  std::vector<std::pair<DomainId, PageIndex*>> domains;
  {
    std::shared_lock lock(domains_mutex_);
    for (const auto& [id, index] : domains_) domains.emplace_back(id, index.get());
  }
  for (const auto& [id, index] : domains) {
    std::vector<MovedPage> pages;
    for (const auto& [digest, slot] : index->in_frame(segment.id(), frame)) pages.push_back({digest, {segment.id(), frame, slot}, slot});
    if (!pages.empty()) BATON_TRY(move_pages(*index, bytes, head, pages));
  }
  return {};
}

void SegmentPageStore::drop_frame(Segment& segment, std::uint32_t frame) {
  std::vector<PageIndex*> indexes;
  {
    std::shared_lock lock(domains_mutex_);
    for (const auto& [id, index] : domains_) indexes.push_back(index.get());
  }
  for (PageIndex* index : indexes) {
    for (std::size_t n = index->drop_frame(segment.id(), frame); n > 0; --n) {
      segment.add_dead(frame);
    }
  }
}

Result<GcResult> SegmentPageStore::gc(std::uint64_t ticket, const MarkedPages& marked) {
  std::lock_guard gc_lock(gc_mutex_);
  BATON_TRY(fault_point("store.gc.begin"));
  GcResult result;
  std::vector<std::pair<DomainId, PageIndex*>> domains;
  {
    std::shared_lock lock(domains_mutex_);
    for (const auto& [id, index] : domains_) domains.emplace_back(id, index.get());
  }
  for (auto& [id, index] : domains) {
    auto it = marked.find(id);
    const auto removed = index->sweep(it == marked.end() ? nullptr : &it->second,
                                      static_cast<std::uint32_t>(ticket));
    result.pages_removed += removed.size();
    for (const PagePlace& place : removed) {
      if (auto segment = find_segment(place.segment)) segment->add_dead(place.frame);
    }
  }
  auto share = [](const Segment& s) {
    return s.total_pages() == 0 ? 1.0
                                : static_cast<double>(s.live_pages()) /
                                      static_cast<double>(s.total_pages());
  };
  retire_active_if([&](const Segment& s) {
    return share(s) < options_.rewrite_below && s.file_bytes() > options_.segment_bytes / 8;
  });

  std::shared_ptr<Segment> active;
  {
    std::lock_guard lock(append_mutex_);
    active = active_;
  }
  std::vector<std::shared_ptr<Segment>> victims;
  for (const auto& segment : all_segments()) {
    if (segment == active || segment->appendable() || segment->suspect()) continue;
    if (segment->live_pages() != 0 && share(*segment) >= options_.rewrite_below) continue;
    if (segment->live_pages() != 0) {
      BATON_TRY(fault_point("store.gc.rewrite"));
      if (auto moved = rewrite(segment, 0, options_.upkeep_bytes_per_s); !moved) {
        // No room to move pages: empty segments still go, the rest waits.
        spdlog::warn("page store: rewrite of segment {}: {}", segment->id(),
                     moved.error().message());
        continue;
      }
      ++result.segments_rewritten;
    }
    if (segment->live_pages() == 0) victims.push_back(segment);
  }
  if (victims.empty()) return result;
  BATON_TRY(sync(Durability::kSynced));  // the copies first
  BATON_TRY(fault_point("store.gc.remove"));
  for (const auto& segment : victims) {
    if (segment->live_pages() != 0) continue;
    {
      std::unique_lock lock(segments_mutex_);
      segments_.erase(segment->id());
    }
    BATON_TRY(segment->remove_file());
    bytes_ -= segment->file_bytes();
    result.bytes_freed += segment->file_bytes();
    ++result.segments_removed;
  }
  folder_dirty_ = true;
  return result;
}

}  // namespace baton::storage
