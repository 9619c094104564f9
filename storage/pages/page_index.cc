#include "storage/pages/page_index.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace baton::storage {

void PageIndex::Loader::add(const Digest& digest, const PagePlace& place) {
  Part& part = parts_[shard_number(digest)];
  auto enter = [&](auto& list, auto fresh) {
    fresh.set_place(place);
    list.push_back(fresh);
  };
  if (digest.is_narrow()) enter(part.narrow, Entry<2>{WordKey<2>::of(digest)});
  else enter(part.wide, Entry<4>{WordKey<4>::of(digest)});
}

template <std::size_t Words>
void PageIndex::lay_out(std::vector<Entry<Words>>& found, OrderedTable<Entry<Words>, WordKey<Words>>& table, std::vector<PagePlace>& superfluous) {
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    if (const auto order = a.key() <=> b.key(); order != 0) return order < 0;
    return a.segment != b.segment ? a.segment < b.segment : a.frame_slot < b.frame_slot;
  });
  const auto end = std::unique(found.begin(), found.end(), [&](const auto& kept, const auto& other) {
    if (kept.key() != other.key()) return false;
    superfluous.push_back(other.place());
    return true;
  });
  found.erase(end, found.end());
  table.fill(found);
  std::vector<Entry<Words>>().swap(found);
}

std::vector<PagePlace> PageIndex::load(Loader loader) {
  std::vector<PagePlace> superfluous;
  std::mutex mutex;
  std::atomic<std::size_t> next = 0;
  auto work = [&] {
    std::vector<PagePlace> mine;
    for (std::size_t i; (i = next.fetch_add(1)) < kShards;) {
      std::lock_guard lock(shards_[i].mutex);
      lay_out(loader.parts_[i].narrow, shards_[i].narrow, mine);
      lay_out(loader.parts_[i].wide, shards_[i].wide, mine);
    }
    std::lock_guard lock(mutex);
    superfluous.insert(superfluous.end(), mine.begin(), mine.end());
  };
  {
    std::vector<std::jthread> helpers;
    for (unsigned i = 1; i < std::clamp(std::thread::hardware_concurrency(), 1u, 4u); ++i) helpers.emplace_back(work);
    work();
  }
  return superfluous;
}

bool PageIndex::touch(const Digest& digest, std::uint32_t epoch) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_table(shard, digest, [&](auto& table, const auto& key) {
    auto* entry = table.find(key);
    if (!entry) return false;
    if (entry->touched < epoch) entry->touched = epoch;
    return true;
  });
}

std::optional<PagePlace> PageIndex::find(const Digest& digest) const {
  const Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_table(shard, digest, [&](const auto& table, const auto& key) -> std::optional<PagePlace> {
    const auto* entry = table.find(key);
    if (!entry) return std::nullopt;
    return entry->place();
  });
}

bool PageIndex::insert(const Digest& digest, const PagePlace& place, std::uint32_t epoch) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  auto enter = [&](auto& table, auto fresh) {
    fresh.set_place(place);
    fresh.touched = epoch;
    auto [entry, inserted] = table.insert(fresh);
    if (!inserted && entry->touched < epoch) entry->touched = epoch;
    return inserted;
  };
  if (digest.is_narrow()) return enter(shard.narrow, Entry<2>{WordKey<2>::of(digest)});
  return enter(shard.wide, Entry<4>{WordKey<4>::of(digest)});
}

void PageIndex::reserve(std::uint64_t pages) {
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    // A little more than the mean: digests spread evenly, not exactly.
    shard.narrow.reserve(static_cast<std::size_t>(pages / kShards + pages / kShards / 64 + 16));
  }
}

bool PageIndex::replace(const Digest& digest, const PagePlace& from, std::optional<PagePlace> to) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_table(shard, digest, [&](auto& table, const auto& key) {
    auto* entry = table.find(key);
    if (!entry || !(entry->place() == from)) return false;
    if (to) {
      entry->set_place(*to);
    } else {
      table.erase(entry);
    }
    return true;
  });
}

std::vector<PagePlace> PageIndex::sweep(const DigestSet* marked, std::uint32_t threshold) {
  std::vector<PagePlace> removed;
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    auto gone = [&](const auto& entry) {
      if (entry.touched >= threshold || (marked && marked->contains(entry.key().digest()))) return false;
      removed.push_back(entry.place());
      return true;
    };
    shard.narrow.erase_if(gone);
    shard.wide.erase_if(gone);
  }
  return removed;
}

std::vector<std::pair<Digest, std::uint8_t>> PageIndex::in_frame(std::uint32_t segment, std::uint32_t frame) const {
  std::vector<std::pair<Digest, std::uint8_t>> found;
  auto look = [&](const auto& entry) {
    if (entry.segment == segment && (entry.frame_slot >> 8) == frame) found.emplace_back(entry.key().digest(), entry.place().slot);
  };
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    shard.narrow.for_each(look);
    shard.wide.for_each(look);
  }
  return found;
}

std::size_t PageIndex::drop_frame(std::uint32_t segment, std::uint32_t frame) {
  std::size_t dropped = 0;
  auto there = [&](const auto& entry) {
    return entry.segment == segment && (entry.frame_slot >> 8) == frame;
  };
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    dropped += shard.narrow.erase_if(there);
    dropped += shard.wide.erase_if(there);
  }
  return dropped;
}

std::uint64_t PageIndex::size() const {
  std::uint64_t sum = 0;
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    sum += shard.narrow.size() + shard.wide.size();
  }
  return sum;
}

std::uint64_t PageIndex::memory_bytes() const {
  std::uint64_t sum = sizeof *this;
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    sum += shard.narrow.memory_bytes() + shard.wide.memory_bytes();
  }
  return sum;
}

}  // namespace baton::storage
