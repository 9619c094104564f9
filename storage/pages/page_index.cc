#include "storage/pages/page_index.h"

#include <cstring>

namespace baton::storage {
namespace {

// Calls `use` with the map that holds digests like this one, and the key in it.
template <typename Shard, typename Key, typename Use>
auto with_map(Shard& shard, const Digest& digest, Key narrow, Use use) {
  if (digest.is_narrow()) return use(shard.narrow, narrow);
  return use(shard.wide, digest);
}

}  // namespace

PageIndex::NarrowKey PageIndex::narrow_key(const Digest& d) {
  NarrowKey key;
  std::memcpy(&key, d.bytes.data(), 16);
  return key;
}

Digest PageIndex::widen(const NarrowKey& k) {
  Digest d;
  std::memcpy(d.bytes.data(), &k, 16);
  return d;
}

bool PageIndex::touch(const Digest& digest, std::uint32_t epoch) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_map(shard, digest, narrow_key(digest), [&](auto& map, const auto& key) {
    auto it = map.find(key);
    if (it == map.end()) return false;
    if (it->second.touched < epoch) it->second.touched = epoch;
    return true;
  });
}

std::optional<PagePlace> PageIndex::find(const Digest& digest) const {
  const Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_map(shard, digest, narrow_key(digest),
                  [&](const auto& map, const auto& key) -> std::optional<PagePlace> {
                    auto it = map.find(key);
                    if (it == map.end()) return std::nullopt;
                    return it->second.place;
                  });
}

bool PageIndex::insert(const Digest& digest, const PagePlace& place, std::uint32_t epoch) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_map(shard, digest, narrow_key(digest), [&](auto& map, const auto& key) {
    auto [it, inserted] = map.try_emplace(key, Value{place, epoch});
    if (!inserted && it->second.touched < epoch) it->second.touched = epoch;
    return inserted;
  });
}

bool PageIndex::replace(const Digest& digest, const PagePlace& from, std::optional<PagePlace> to) {
  Shard& shard = shard_of(digest);
  std::lock_guard lock(shard.mutex);
  return with_map(shard, digest, narrow_key(digest), [&](auto& map, const auto& key) {
    auto it = map.find(key);
    if (it == map.end() || !(it->second.place == from)) return false;
    if (to) {
      it->second.place = *to;
    } else {
      map.erase(it);
    }
    return true;
  });
}

std::vector<PagePlace> PageIndex::sweep(const DigestSet* marked, std::uint32_t threshold) {
  std::vector<PagePlace> removed;
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    auto sweep_map = [&](auto& map, auto to_digest) {
      for (auto it = map.begin(); it != map.end();) {
        if (it->second.touched < threshold && !(marked && marked->contains(to_digest(it->first)))) {
          removed.push_back(it->second.place);
          map.erase(it++);
        } else {
          ++it;
        }
      }
    };
    sweep_map(shard.narrow, [](const NarrowKey& k) { return widen(k); });
    sweep_map(shard.wide, [](const Digest& d) { return d; });
  }
  return removed;
}

std::size_t PageIndex::drop_frame(std::uint32_t segment, std::uint32_t frame) {
  std::size_t dropped = 0;
  auto there = [&](const auto& entry) {
    return entry.second.place.segment == segment && entry.second.place.frame == frame;
  };
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    dropped += boost::unordered::erase_if(shard.narrow, there);
    dropped += boost::unordered::erase_if(shard.wide, there);
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

}  // namespace baton::storage
