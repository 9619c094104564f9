#include "agent/node/warm_image.h"

#include <algorithm>
#include <cstring>

namespace baton::node {

void PageStage::put(std::span<const transport::PageRef> pages) {
  std::lock_guard lock(mutex_);
  if (!ring_) {
    ring_ = std::make_unique<std::byte[]>(kPages * dedup::kPageBytes);
    held_.resize(kPages);
  }
  for (const auto& page : pages) {
    if (where_.contains(page.digest)) continue;
    if (auto old = where_.find(held_[next_]); old != where_.end() && old->second == next_) where_.erase(old);
    std::memcpy(ring_.get() + next_ * dedup::kPageBytes, page.page, dedup::kPageBytes);
    held_[next_] = page.digest;
    where_[page.digest] = next_;
    next_ = (next_ + 1) % kPages;
  }
}

bool PageStage::get(const Digest& digest, std::byte* out) {
  std::lock_guard lock(mutex_);
  auto found = where_.find(digest);
  if (found == where_.end()) return false;
  std::memcpy(out, ring_.get() + found->second * dedup::kPageBytes, dedup::kPageBytes);
  return true;
}

void PageStage::clear() {
  std::lock_guard lock(mutex_);
  where_.clear();
  held_.clear();
  ring_.reset();
  next_ = 0;
}

Result<void> StagedSource::get(std::span<const PieceGet> pages) {
  std::vector<PieceGet> rest;
  for (const auto& page : pages) {
    if (page.digest.is_zero_page()) {
      std::memset(page.out, 0, dedup::kPageBytes);
    } else if (stage_ == nullptr || !stage_->get(page.digest, page.out)) {
      rest.push_back(page);
    }
  }
  return rest.empty() ? Result<void>() : store_.get(rest);
}

ImageDifference difference(const Tables& old_tables, const Tables& new_tables, const dedup::PageHasher& hasher) {
  ImageDifference out;
  for (const auto& [object, table] : new_tables) {
    auto old = old_tables.find(object);
    const dedup::PageTable empty(table.kind());
    dedup::PageTable::diff(
        old == old_tables.end() ? empty : old->second, table,
        [&, id = object](std::uint64_t page, const Digest&, const Digest& now) {
          if (!now.is_absent()) {
            out.changed.push_back({id, page, now, nullptr});
          } else if (!out.gone.empty() && out.gone.back().object == id && out.gone.back().first + out.gone.back().count == page) {
            ++out.gone.back().count;
          } else {
            out.gone.push_back({id, page, 1});
          }
        },
        &hasher);
  }
  return out;
}

// ------------------------------------------------------------------ WarmImage

std::size_t WarmImage::take_slot() {
  if (!free_.empty()) {
    std::size_t index = free_.back();
    free_.pop_back();
    return index;
  }
  if (used_ == chunks_.size() * kChunkPages) chunks_.push_back(std::make_unique_for_overwrite<std::byte[]>(kChunkPages * dedup::kPageBytes));
  return used_++;
}

void WarmImage::clear() {
  seq_ = 0;
  tables_.clear();
  chunks_.clear();
  used_ = 0;
  free_.clear();
  places_.clear();
}

Result<void> WarmImage::advance(const RestoreImage& image, PageSource& source) {
  if (image.seq == seq_) return {};
  auto differs = difference(tables_, image.tables, *image.hasher);
  for (const auto& [object, table] : tables_) {   // objects that are no more
    if (image.tables.contains(object)) continue;
    table.for_each([&, id = object](std::uint64_t page, const Digest&) { differs.gone.push_back({id, page, 1}); });
  }
  for (const auto& range : differs.gone) {
    for (std::uint64_t page = range.first; page < range.first + range.count; ++page) {
      auto found = places_.find({range.object, page});
      if (found == places_.end()) continue;
      free_.push_back(found->second);
      places_.erase(found);
    }
  }
  for (auto& page : differs.changed) {
    auto [place, fresh] = places_.try_emplace({page.object, page.page}, 0);
    if (fresh) place->second = take_slot();
    page.out = slot(place->second);
  }
  constexpr std::size_t kBatch = 4096;
  for (std::size_t at = 0; at < differs.changed.size(); at += kBatch) {
    auto part = std::span(differs.changed).subspan(at, std::min(kBatch, differs.changed.size() - at));
    if (auto got = source.get(part); !got) {
      clear();
      return got;
    }
  }
  tables_ = image.tables;
  seq_ = image.seq;
  return {};
}

Result<void> WarmImage::get(std::span<const PieceGet> pages) {
  for (const auto& page : pages) {
    auto found = places_.find({page.object, page.page});
    if (found == places_.end()) return make_error(Code::kNotFound, "warm image", "page " + std::to_string(page.page));
    std::memcpy(page.out, slot(found->second), dedup::kPageBytes);
  }
  return {};
}

}  // namespace baton::node
