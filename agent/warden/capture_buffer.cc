#include "agent/warden/capture_buffer.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/fault_point.h"

namespace baton::warden {
namespace {

constexpr std::uint64_t kPage = backend::kPageBytes;
constexpr std::uint64_t kSegmentPages = kSegmentBytes / kPage;

}  // namespace

Result<std::unique_ptr<CaptureBuffer>> CaptureBuffer::make(std::size_t bytes) {
  bytes = bytes / kSegmentBytes * kSegmentBytes;
  if (bytes == 0) return make_error(Code::kInvalid, "capture buffer", "smaller than 1 MiB");
  BATON_ASSIGN(SharedMemory memory, SharedMemory::make("baton-capture", bytes, true));
  return std::unique_ptr<CaptureBuffer>(new CaptureBuffer(std::move(memory)));
}

CaptureBuffer::CaptureBuffer(SharedMemory memory) : memory_(std::move(memory)) {
  segments_.resize(size() / kSegmentBytes);
  used_.resize(size() / kPage);
  given_.resize(size() / kPage);
  for (std::size_t i = segments_.size(); i-- > 0;) free_cold_.push_back(static_cast<int>(i));
}

int CaptureBuffer::take_segment() {
  std::lock_guard lock(mutex_);
  auto& pool = free_hot_.empty() ? free_cold_ : free_hot_;
  if (pool.empty()) return -1;
  int index = pool.back();
  pool.pop_back();
  Segment& segment = segments_[static_cast<std::size_t>(index)];
  segment.free = false;
  segment.open = true;
  segment.backed = true;
  return index;
}

void CaptureBuffer::close_segment(int index) {
  std::lock_guard lock(mutex_);
  segments_[static_cast<std::size_t>(index)].open = false;
  release_if_done(static_cast<std::size_t>(index));
}

void CaptureBuffer::release_if_done(std::size_t index) {
  Segment& segment = segments_[index];
  if (segment.free || segment.open || segment.used != 0) return;
  segment.free = true;
  if (free_hot_.size() < kHotSegments) {
    free_hot_.push_back(static_cast<int>(index));
    return;
  }
  memory_.punch(index * kSegmentBytes, kSegmentBytes);
  segment.backed = false;
  free_cold_.push_back(static_cast<int>(index));
}

void CaptureBuffer::mark_used(std::uint64_t first_page, std::uint64_t count) {
  std::lock_guard lock(mutex_);
  for (std::uint64_t page = first_page; page < first_page + count; ++page) {
    CHECK(!used_[page]);
    used_[page] = true;
  }
  segments_[first_page / kSegmentPages].used += static_cast<std::uint32_t>(count);
  used_count_ += count;
}

void CaptureBuffer::unmark(std::uint64_t first_page, std::uint64_t count) {
  for (std::uint64_t page = first_page; page < first_page + count; ++page) {
    CHECK(used_[page]);
    used_[page] = false;
    given_[page] = false;
  }
  std::size_t index = first_page / kSegmentPages;
  segments_[index].used -= static_cast<std::uint32_t>(count);
  used_count_ -= count;
  release_if_done(index);
}

void CaptureBuffer::give(const Runs& runs) {
  std::lock_guard lock(mutex_);
  for (const auto& run : runs) {
    std::uint64_t first = run.offset() / kPage;
    for (std::uint64_t page = first; page < first + run.count(); ++page) given_[page] = true;
  }
}

void CaptureBuffer::take_back(const Runs& runs) {
  std::lock_guard lock(mutex_);
  for (const auto& run : runs) unmark(run.offset() / kPage, run.count());
}

Result<void> CaptureBuffer::free_runs(const Runs& runs_untrusted) {
  std::lock_guard lock(mutex_);
  for (const auto& run : runs_untrusted) {
    std::uint64_t first = run.offset() / kPage;
    bool sound = run.offset() % kPage == 0 && run.count() > 0 && run.count() <= kSegmentPages &&
                 first < given_.size() && first + run.count() <= given_.size() &&
                 first / kSegmentPages == (first + run.count() - 1) / kSegmentPages;
    for (std::uint64_t page = first; sound && page < first + run.count(); ++page) sound = given_[page];
    if (!sound) return make_error(Code::kInvalid, "free buffer", "pages that were not given out");
    unmark(first, run.count());
  }
  return {};
}

void CaptureBuffer::free_all_given() {
  std::lock_guard lock(mutex_);
  for (std::uint64_t page = 0; page < given_.size(); ++page) {
    if (given_[page]) unmark(page, 1);
  }
}

void CaptureBuffer::trim() {
  std::lock_guard lock(mutex_);
  for (int index : free_hot_) {
    memory_.punch(static_cast<std::size_t>(index) * kSegmentBytes, kSegmentBytes);
    segments_[static_cast<std::size_t>(index)].backed = false;
    free_cold_.push_back(index);
  }
  free_hot_.clear();
}

std::size_t CaptureBuffer::free_segments() const {
  std::lock_guard lock(mutex_);
  return free_hot_.size() + free_cold_.size();
}

std::size_t CaptureBuffer::pages_used() const {
  std::lock_guard lock(mutex_);
  return used_count_;
}

CaptureSink::~CaptureSink() {
  discard();
  if (segment_ >= 0) buffer_.close_segment(segment_);
}

void CaptureSink::begin(std::size_t max_bytes, const char* fault_name) {
  fault_name_ = fault_name;
  taken_ = 0;
  limit_ = max_bytes;
  aborted_.store(false, std::memory_order_relaxed);
}

std::span<std::byte> CaptureSink::reserve(std::size_t bytes) {
  reserved_ = 0;
  if (const char* point = std::exchange(fault_name_, nullptr); point && !fault_point(point)) return {};
  if (aborted()) return {};
  if (limit_ != 0) bytes = std::min(bytes, limit_ - std::min(limit_, taken_));
  bytes = bytes / kPage * kPage;
  if (bytes == 0) return {};
  if (segment_ >= 0 && used_ == kSegmentBytes) {
    buffer_.close_segment(segment_);
    segment_ = -1;
  }
  if (segment_ < 0) {
    segment_ = buffer_.take_segment();
    used_ = 0;
    if (segment_ < 0) return {};
  }
  reserved_ = std::min(bytes, kSegmentBytes - used_);
  return buffer_.memory_.bytes().subspan(static_cast<std::size_t>(segment_) * kSegmentBytes + used_, reserved_);
}

void CaptureSink::emit(std::uint64_t object, std::uint64_t first_page, std::uint32_t count) {
  CHECK(segment_ >= 0 && count * kPage <= reserved_);
  if (count == 0) return;
  std::uint64_t at = static_cast<std::uint64_t>(segment_) * kSegmentBytes + used_;
  buffer_.mark_used(at / kPage, count);
  if (!events_.empty() && !events_.back().is_drop && events_.back().object == object &&
      events_.back().first_page + events_.back().count == first_page &&
      events_.back().at + events_.back().count * kPage == at &&
      events_.back().at / kSegmentBytes == at / kSegmentBytes) {
    events_.back().count += count;
  } else {
    events_.push_back({object, first_page, count, at, false});
  }
  used_ += count * kPage;
  taken_ += count * kPage;
  reserved_ -= count * kPage;
}

void CaptureSink::drop(std::uint64_t object, std::uint64_t first_page, std::uint64_t count) {
  if (count == 0) return;
  events_.push_back({object, first_page, count, 0, true});
}

std::size_t CaptureSink::free_bytes() const {
  if (aborted()) return 0;
  std::size_t free = buffer_.free_segments() * kSegmentBytes + (segment_ >= 0 ? kSegmentBytes - used_ : 0);
  return limit_ == 0 ? free : std::min(free, limit_ - std::min(limit_, taken_));
}

void CaptureSink::take(google::protobuf::RepeatedPtrField<pb::PageRun>* runs,
                       google::protobuf::RepeatedPtrField<pb::PageRange>* dropped) {
  struct Piece {
    std::uint64_t count, at;
  };
  std::map<std::pair<std::uint64_t, std::uint64_t>, Piece> pieces;   // (object, first page)
  std::vector<Piece> dead;
  auto cut = [&](std::uint64_t object, std::uint64_t first, std::uint64_t end) {
    auto it = pieces.upper_bound({object, first});
    if (it != pieces.begin()) {
      auto before = std::prev(it);
      if (before->first.first == object && before->first.second + before->second.count > first) it = before;
    }
    while (it != pieces.end() && it->first.first == object && it->first.second < end) {
      std::uint64_t start = it->first.second;
      Piece piece = it->second;
      it = pieces.erase(it);
      std::uint64_t from = std::max(start, first), to = std::min(start + piece.count, end);
      dead.push_back({to - from, piece.at + (from - start) * kPage});
      if (start < from) pieces[{object, start}] = {from - start, piece.at};
      if (to < start + piece.count) {
        it = std::next(pieces.insert_or_assign({object, to}, Piece{start + piece.count - to,
                                                                   piece.at + (to - start) * kPage}).first);
      }
    }
  };
  for (const Event& event : events_) {
    std::uint64_t end = event.first_page + event.count;
    cut(event.object, event.first_page, end);
    if (event.is_drop) {
      auto* range = dropped->Add();
      range->set_object(event.object);
      range->set_first_page(event.first_page);
      range->set_count(event.count);
    } else {
      pieces[{event.object, event.first_page}] = {event.count, event.at};
    }
  }
  events_.clear();
  runs->Reserve(static_cast<int>(pieces.size()));
  for (const auto& [key, piece] : pieces) {
    auto* run = runs->Add();
    run->set_object(key.first);
    run->set_first_page(key.second);
    run->set_count(static_cast<std::uint32_t>(piece.count));
    run->set_offset(piece.at);
  }
  std::lock_guard lock(buffer_.mutex_);
  for (const Piece& piece : dead) buffer_.unmark(piece.at / kPage, piece.count);
}

void CaptureSink::discard() {
  google::protobuf::RepeatedPtrField<pb::PageRun> runs;
  google::protobuf::RepeatedPtrField<pb::PageRange> dropped;
  take(&runs, &dropped);
  buffer_.take_back(runs);
}

}  // namespace baton::warden
