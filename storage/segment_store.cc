#include "storage/segment_store.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <boost/unordered/unordered_flat_set.hpp>
#include <spdlog/spdlog.h>

#include "base/check.h"
#include "base/fault_point.h"
#include "storage/bytes/byte_io.h"
#include "storage/pages/segment_pages.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;

// Pages compressed before each write: bounds the memory of one put.
constexpr std::size_t kPutFrames = 32;
constexpr int kMaxLookups = 16;

Error bad_digest() {
  return make_error(Code::kInvalid, "page store", "an absent digest names no page");
}

std::string describe(const Digest& digest, const PageHasher& hasher) {
  return digest.to_hex(hasher.kind());
}

}  // namespace

Result<std::unique_ptr<PageStore>> open_segment_store(const std::string& folder,
                                                      SegmentStoreOptions options) {
  auto store = std::make_unique<SegmentPageStore>(folder, options);
  BATON_TRY(store->open());
  return std::unique_ptr<PageStore>(std::move(store));
}

SegmentPageStore::SegmentPageStore(std::string folder, SegmentStoreOptions options)
    : folder_(std::move(folder)),
      options_(options),
      disk_(options.disk ? *options.disk : real_disk()),
      byte_limit_(options.byte_limit) {
  options_.segment_bytes = std::clamp<std::uint64_t>(options_.segment_bytes, 1u << 16, 1u << 30);
}

SegmentPageStore::~SegmentPageStore() = default;

Result<void> SegmentPageStore::open() {
  BATON_TRY(disk_.make_folder(folder_));
  BATON_ASSIGN(lock_file_, disk_.lock(folder_ + "/LOCK"));
  std::vector<std::uint32_t> ids;
  BATON_ASSIGN(auto names, disk_.list(folder_));
  for (const std::string& name : names) {
    unsigned id = 0;
    if (std::sscanf(name.c_str(), "seg-%8x.pages", &id) == 1 && name == Segment::file_name(id)) {
      ids.push_back(id);
    }
  }
  std::sort(ids.begin(), ids.end());

  std::uint64_t damaged = 0;
  std::map<DomainId, PageIndex::Loader> found_pages;
  PageIndex::Loader* loader = nullptr;   // of the domain that the last page was of
  DomainId loading{};
  for (std::uint32_t id : ids) {
    next_id_ = std::max(next_id_, id + 1);
    auto found = [&](const DomainId& domain, const Digest& digest, const PagePlace& place) {
      if (place.frame >= kMaxSegmentFrames) return false;
      if (loader == nullptr || !(loading == domain)) {
        loader = &found_pages[domain];
        loading = domain;
      }
      loader->add(digest, place);
      return true;
    };
    BATON_ASSIGN(auto segment, Segment::open(folder_, id, disk_, found, damaged));
    if (!segment) continue;
    bytes_ += segment->file_bytes();
    segments_[id] = segment;
    if (segment->appendable()) {
      if (active_) (void)active_->seal();
      active_ = segment;
    }
  }
  for (auto& [domain, pages] : found_pages) {
    for (const PagePlace& place : index_of(domain).load(std::move(pages))) {
      if (auto segment = segments_.find(place.segment); segment != segments_.end()) segment->second->add_dead(place.frame);
    }
  }
  damaged_frames_ = damaged;
  if (damaged != 0) spdlog::warn("page store {}: {} damaged places", folder_, damaged);
  return {};
}

PageIndex& SegmentPageStore::index_of(const DomainId& domain) {
  if (PageIndex* known = find_index(domain)) return *known;
  std::unique_lock lock(domains_mutex_);
  auto& slot = domains_[domain];
  if (!slot) slot = std::make_unique<PageIndex>();
  return *slot;
}

PageIndex* SegmentPageStore::find_index(const DomainId& domain) const {
  std::shared_lock lock(domains_mutex_);
  auto it = domains_.find(domain);
  return it == domains_.end() ? nullptr : it->second.get();
}

void SegmentPageStore::set_key(const DomainId& domain, SealerPtr sealer) {
  std::unique_lock lock(domains_mutex_);
  if (sealer) {
    keys_[domain] = std::move(sealer);
  } else {
    keys_.erase(domain);
  }
}

SealerPtr SegmentPageStore::find_key(const DomainId& domain) const {
  std::shared_lock lock(domains_mutex_);
  auto it = keys_.find(domain);
  return it == keys_.end() ? nullptr : it->second;
}

std::shared_ptr<Segment> SegmentPageStore::find_segment(std::uint32_t id) const {
  std::shared_lock lock(segments_mutex_);
  auto it = segments_.find(id);
  return it == segments_.end() ? nullptr : it->second;
}

std::vector<std::shared_ptr<Segment>> SegmentPageStore::all_segments() const {
  std::shared_lock lock(segments_mutex_);
  std::vector<std::shared_ptr<Segment>> out;
  out.reserve(segments_.size());
  for (const auto& [id, segment] : segments_) out.push_back(segment);
  return out;
}

Result<SegmentPageStore::Appended> SegmentPageStore::append(std::string_view frames,
                                                            std::span<const FrameHead> heads) {
  std::lock_guard lock(append_mutex_);
  BATON_TRY(fault_point("store.pages.append"));
  if (active_ && active_->appendable() && active_->frame_count() > 0 &&
      (active_->file_bytes() + frames.size() > options_.segment_bytes ||
       active_->frame_count() + heads.size() > kMaxSegmentFrames)) {
    const std::uint64_t before = active_->file_bytes();
    if (auto sealed = active_->seal(); !sealed) {
      spdlog::warn("page store: seal segment {}: {}", active_->id(), sealed.error().message());
    }
    bytes_ += active_->file_bytes() - before;
  }
  if (!active_ || !active_->appendable()) {
    active_.reset();
    // A fresh number even after a failure, whose leftover may not have gone away.
    BATON_ASSIGN(active_, Segment::create(folder_, next_id_++, disk_));
    folder_dirty_ = true;
    bytes_ += active_->file_bytes();
    std::unique_lock map_lock(segments_mutex_);
    segments_[active_->id()] = active_;
  }
  BATON_ASSIGN(std::uint32_t first, active_->append(frames, heads));
  bytes_ += frames.size();
  return Appended{active_, first};
}

void SegmentPageStore::enter(PageIndex& index, const Appended& where,
                             std::span<const FrameHead> heads, std::span<const PagePut> pages,
                             std::uint32_t epoch) {
  std::size_t next = 0;
  for (std::size_t f = 0; f < heads.size(); ++f) {
    const auto frame = where.first_frame + static_cast<std::uint32_t>(f);
    for (std::size_t slot = 0; slot < heads[f].page_count; ++slot) {
      PagePlace place{where.segment->id(), frame, static_cast<std::uint8_t>(slot)};
      if (!index.insert(pages[next].digest, place, epoch)) where.segment->add_dead(frame);
      ++next;
    }
  }
}

Result<void> SegmentPageStore::put_new(const DomainId& domain, PageIndex& index,
                                       std::span<const PagePut> pages, PutResult& result) {
  std::string frames;
  frames.reserve(std::min(pages.size() / kFramePages + 1, kPutFrames) * kMaxFrameBytes);
  std::vector<FrameHead> heads;
  const SealerPtr sealer = find_key(domain);
  for (std::size_t done = 0; done < pages.size();) {
    frames.clear();
    heads.clear();
    const auto group = pages.subspan(done, std::min(pages.size() - done, kPutFrames * kFramePages));
    for (std::size_t i = 0; i < group.size(); i += kFramePages) {
      heads.push_back(append_frame(frames, domain,
                                   group.subspan(i, std::min(kFramePages, group.size() - i)),
                                   options_.zstd_level, sealer.get()));
    }
    const std::uint64_t limit = byte_limit_.load();
    if (limit != 0 && bytes_.load() + frames.size() > limit) {
      Error full = make_error(Code::kNoSpace, "put pages",
                              folder_ + ": the store's limit of " + std::to_string(limit) +
                                  " bytes is reached",
                              "Raise the byte budget or keep fewer checkpoints.");
      if (options_.trouble) options_.trouble(full);
      return full;
    }
    const std::uint32_t epoch = epochs_.now();
    auto appended = append(frames, heads);
    if (!appended) {
      if (options_.trouble) options_.trouble(appended.error());
      return appended.error();
    }
    const Appended where = *appended;
    enter(index, where, heads, group, epoch);
    // Only now: a sync that has this ticket must find the pages in the index (heal_locked).
    append_ticket_.fetch_add(1, std::memory_order_acq_rel);
    result.new_pages += group.size();
    result.bytes_written += frames.size();
    done += group.size();
  }
  return {};
}

Result<PutResult> SegmentPageStore::put(const DomainId& domain, std::span<const PagePut> pages) {
  PutResult result;
  PageIndex& index = index_of(domain);
  const std::uint32_t epoch = epochs_.now();
  std::vector<PagePut> unknown;
  for (const PagePut& p : pages) {
    if (p.digest.is_absent()) return bad_digest();
    if (p.digest.is_zero_page() || index.touch(p.digest, epoch)) {
      ++result.known_pages;
    } else {
      unknown.push_back(p);
    }
  }
  if (!unknown.empty()) {
    DigestSet seen;
    seen.reserve(unknown.size());
    auto end = std::remove_if(unknown.begin(), unknown.end(), [&](const PagePut& p) {
      return !seen.insert(p.digest).second;
    });
    result.known_pages += static_cast<std::uint64_t>(unknown.end() - end);
    unknown.erase(end, unknown.end());
    BATON_TRY(put_new(domain, index, unknown, result));
  }
  put_new_ += result.new_pages;
  put_known_ += result.known_pages;
  return result;
}

std::vector<bool> SegmentPageStore::contains(const DomainId& domain,
                                             std::span<const Digest> digests) {
  std::vector<bool> out(digests.size());
  PageIndex* index = find_index(domain);
  const std::uint32_t epoch = epochs_.now();
  for (std::size_t i = 0; i < digests.size(); ++i) {
    out[i] = digests[i].is_zero_page() ||
             (index && !digests[i].is_absent() && index->touch(digests[i], epoch));
  }
  return out;
}

Result<void> SegmentPageStore::get(const DomainId& domain, const PageHasher& hasher,
                                   std::span<const PageGet> pages) {
  PageIndex* index = find_index(domain);
  std::vector<std::size_t> open(pages.size());
  for (std::size_t i = 0; i < open.size(); ++i) open[i] = i;
  // A page may move (gc, healing) between lookup and read; then it is looked up again.
  for (int round = 0; round < kMaxLookups && !open.empty(); ++round) {
    std::vector<Wanted> wanted;
    wanted.reserve(open.size());
    for (std::size_t i : open) {
      if (pages[i].digest.is_absent()) return bad_digest();
      if (pages[i].digest.is_zero_page()) {
        std::memset(pages[i].out, 0, kPageBytes);
        continue;
      }
      auto place = index ? index->find(pages[i].digest) : std::nullopt;
      if (!place) {
        return make_error(Code::kNotFound, "get page",
                          describe(pages[i].digest, hasher) + ": not in the store");
      }
      wanted.push_back({*place, i});
    }
    std::sort(wanted.begin(), wanted.end(), [](const Wanted& a, const Wanted& b) {
      return std::tie(a.place.segment, a.place.frame, a.place.slot) <
             std::tie(b.place.segment, b.place.frame, b.place.slot);
    });
    open.clear();
    for (std::size_t i = 0; i < wanted.size();) {
      std::size_t end = i + 1;
      while (end < wanted.size() && wanted[end].place.segment == wanted[i].place.segment &&
             wanted[end].place.frame == wanted[i].place.frame) {
        ++end;
      }
      bool moved = false;
      const auto group = std::span(wanted).subspan(i, end - i);
      BATON_TRY(get_frame(domain, hasher, pages, group, moved));
      if (moved) {
        for (const Wanted& w : group) open.push_back(w.index);
      }
      i = end;
    }
  }
  if (!open.empty()) {
    return make_error(Code::kFailed, "get page",
                      describe(pages[open[0]].digest, hasher) + ": moved again and again",
                      "Try again.");
  }
  return {};
}

Result<void> SegmentPageStore::get_frame(const DomainId& domain, const PageHasher& hasher,
                                         std::span<const PageGet> pages,
                                         std::span<const Wanted> wanted, bool& moved) {
  const PagePlace& place = wanted[0].place;
  auto segment = find_segment(place.segment);
  if (!segment) {
    moved = true;
    return {};
  }
  thread_local std::string frame;
  thread_local std::unique_ptr<std::byte[]> raw(new std::byte[kFramePages * kPageBytes]);
  auto read = segment->read_frame(place.frame, frame);
  if (!read && read.error().code != Code::kCorrupt) return read.error();
  FrameHead head;
  const auto bytes = as_bytes_of(frame);
  bool good = read && parse_frame_head(bytes, head) && head.frame_bytes() == bytes.size();
  if (good) {
    const SealerPtr sealer = head.sealed ? find_key(domain) : nullptr;
    auto decoded = decode_frame(bytes, head, std::span(raw.get(), head.page_count * kPageBytes), sealer.get());
    if (!decoded && decoded.error().code == Code::kNotAllowed) return decoded.error();
    good = decoded.has_value();
  }
  for (const Wanted& w : wanted) {
    const PageGet& page = pages[w.index];
    if (good && w.place.slot < head.page_count) {
      const std::byte* from = raw.get() + w.place.slot * kPageBytes;
      if (hasher.page(dedup::PageView(from, kPageBytes)) == page.digest) {
        std::memcpy(page.out, from, kPageBytes);
        continue;
      }
    }
    // Out of the index, so that whoever still has the page can put it again.
    if (find_index(domain)->replace(page.digest, w.place, std::nullopt)) {
      segment->add_dead(w.place.frame);
      ++damaged_frames_;
    }
    return make_error(Code::kCorrupt, "get page",
                      describe(page.digest, hasher) + ": segment " +
                          std::to_string(place.segment) + ", frame at " +
                          std::to_string(segment->frame(place.frame).at) +
                          ": content does not match the digest",
                      "Fetch the page from another node, or restore an other checkpoint.");
  }
  return {};
}

std::uint64_t SegmentPageStore::domain_bytes(const DomainId& domain) const {
  const PageIndex* index = find_index(domain);
  if (!index) return 0;
  std::uint64_t bytes = 0, pages = 0;
  for (const auto& segment : all_segments()) {
    bytes += segment->file_bytes();
    pages += segment->total_pages();
  }
  return pages == 0 ? 0 : static_cast<std::uint64_t>(static_cast<double>(bytes) / static_cast<double>(pages) *
                                                     static_cast<double>(index->size()));
}

PageStoreStats SegmentPageStore::stats() const {
  PageStoreStats s;
  {
    std::shared_lock lock(domains_mutex_);
    for (const auto& [id, index] : domains_) {
      s.pages += index->size();
      s.index_bytes += index->memory_bytes();
    }
  }
  for (const auto& segment : all_segments()) {
    ++s.segments;
    s.index_bytes += segment->frame_count() * sizeof(FrameEntry);
    s.bytes += segment->file_bytes();
    s.dead_pages += segment->total_pages() - segment->live_pages();
  }
  s.put_new = put_new_;
  s.put_known = put_known_;
  s.damaged_frames = damaged_frames_;
  return s;
}

Result<std::string> SegmentPageStore::problem_of_frame(const PagePlace& place) {
  auto segment = find_segment(place.segment);
  if (!segment) return std::string();   // moved meanwhile
  std::string bytes;
  auto read = segment->read_frame(place.frame, bytes);
  if (!read && read.error().code != Code::kCorrupt) return read.error();
  FrameHead head;
  if (!read || check_frame(as_bytes_of(bytes), head)) return std::string();   // what cannot be read is told of each page
  ++damaged_frames_;
  return "segment " + std::to_string(place.segment) + ", frame at " + std::to_string(segment->frame(place.frame).at) +
         ": the frame is damaged; the page is sound, and has been written again";
}

Result<void> SegmentPageStore::write_again(const DomainId& domain, std::span<const PagePut> pages, std::span<const PagePlace> places) {
  const SealerPtr sealer = find_key(domain);
  for (std::size_t at = 0; at < pages.size(); at += kFramePages) {
    const auto group = pages.subspan(at, std::min(kFramePages, pages.size() - at));
    std::string frame;
    const FrameHead head = append_frame(frame, domain, group, options_.zstd_level, sealer.get());
    std::vector<MovedPage> moved;
    for (std::size_t i = 0; i < group.size(); ++i) moved.push_back({group[i].digest, places[at + i], static_cast<std::uint8_t>(i)});
    BATON_TRY(move_pages(index_of(domain), frame, head, moved));
  }
  return {};
}

Result<std::vector<BadPage>> SegmentPageStore::verify(const DomainId& domain,
                                                      const PageHasher& hasher,
                                                      std::span<const Digest> pages) {
  std::vector<BadPage> bad;
  PageIndex* index = find_index(domain);
  std::vector<std::pair<PagePlace, Digest>> order;
  for (const Digest& d : pages) {
    if (d.is_zero_page()) continue;
    auto place = index && !d.is_absent() ? index->find(d) : std::nullopt;
    if (place) {
      order.emplace_back(*place, d);
    } else {
      bad.push_back({domain, d, describe(d, hasher) + ": not in the store"});
    }
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first.segment, a.first.frame) < std::tie(b.first.segment, b.first.frame);
  });
  constexpr std::size_t kBatch = 256;
  std::vector<std::byte> buffer(kBatch * kPageBytes);
  for (std::size_t at = 0; at < order.size(); at += kBatch) {
    std::vector<PageGet> batch;
    const std::size_t end = std::min(order.size(), at + kBatch);
    for (std::size_t i = at; i < end; ++i) batch.push_back({order[i].second, buffer.data() + (i - at) * kPageBytes});
    // What describes the pages of a frame no reading of a page looks at.
    std::map<std::size_t, std::string> worn;   // places in the batch
    for (std::size_t i = at; i < end;) {
      const PagePlace& first = order[i].first;
      std::size_t next = i + 1;
      while (next < end && order[next].first.segment == first.segment && order[next].first.frame == first.frame) ++next;
      BATON_ASSIGN(const std::string problem, problem_of_frame(first));
      for (; i < next; ++i) {
        if (!problem.empty()) worn[i - at] = problem;
      }
    }
    if (worn.empty() && get(domain, hasher, batch)) continue;
    std::vector<PagePut> sound;
    std::vector<PagePlace> places;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const PageGet& one = batch[i];
      if (auto got = get(domain, hasher, std::span(&one, 1)); !got) {
        bad.push_back({domain, one.digest, got.error().message()});
      } else if (auto known = worn.find(i); known != worn.end()) {
        bad.push_back({domain, one.digest, describe(one.digest, hasher) + ": " + known->second});
        sound.push_back({one.digest, one.out});
        places.push_back(order[at + i].first);
      }
    }
    BATON_TRY(write_again(domain, sound, places));
  }
  return bad;
}

}  // namespace baton::storage
