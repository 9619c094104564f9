#include "storage/memory_store.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include <boost/unordered/unordered_flat_map.hpp>

#include "storage/pages/gc_epochs.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;

Error bad_digest() {
  return make_error(Code::kInvalid, "page store", "an absent digest names no page");
}

class MemoryPageStore final : public PageStore {
 public:
  explicit MemoryPageStore(std::uint64_t byte_limit) : byte_limit_(byte_limit) {}

  WriteLease lease() override { return epochs_.lease(); }

  Result<PutResult> put(const DomainId& domain, std::span<const PagePut> pages) override {
    PutResult result;
    Domain& d = domain_of(domain);
    const std::uint32_t epoch = epochs_.now();
    for (const PagePut& p : pages) {
      if (p.digest.is_absent()) return bad_digest();
      if (p.digest.is_zero_page()) {
        ++result.known_pages;
        continue;
      }
      Shard& shard = d.shard(p.digest);
      std::lock_guard lock(shard.mutex);
      auto it = shard.pages.find(p.digest);
      if (it != shard.pages.end()) {
        it->second.touched = std::max(it->second.touched, epoch);
        ++result.known_pages;
        continue;
      }
      if (const auto limit = byte_limit_.load(); limit != 0 && bytes_.load() + kPageBytes > limit) {
        return make_error(Code::kNoSpace, "put pages", "the memory store's limit is reached",
                          "Raise the limit or keep fewer checkpoints.");
      }
      auto bytes = std::make_shared<Bytes>();
      std::memcpy(bytes->data(), p.page, kPageBytes);
      shard.pages.emplace(p.digest, Value{std::move(bytes), epoch});
      bytes_ += kPageBytes;
      ++result.new_pages;
      result.bytes_written += kPageBytes;
    }
    put_new_ += result.new_pages;
    put_known_ += result.known_pages;
    return result;
  }

  std::vector<bool> contains(const DomainId& domain, std::span<const Digest> digests) override {
    std::vector<bool> out(digests.size());
    Domain& d = domain_of(domain);
    const std::uint32_t epoch = epochs_.now();
    for (std::size_t i = 0; i < digests.size(); ++i) {
      if (digests[i].is_zero_page()) {
        out[i] = true;
        continue;
      }
      Shard& shard = d.shard(digests[i]);
      std::lock_guard lock(shard.mutex);
      auto it = shard.pages.find(digests[i]);
      if (it == shard.pages.end()) continue;
      it->second.touched = std::max(it->second.touched, epoch);
      out[i] = true;
    }
    return out;
  }

  Result<void> get(const DomainId& domain, const PageHasher& hasher,
                   std::span<const PageGet> pages) override {
    for (const PageGet& p : pages) {
      if (p.digest.is_absent()) return bad_digest();
      if (p.digest.is_zero_page()) {
        std::memset(p.out, 0, kPageBytes);
        continue;
      }
      auto bytes = find(domain, p.digest);
      if (!bytes) {
        return make_error(Code::kNotFound, "get page",
                          p.digest.to_hex(hasher.kind()) + ": not in the store");
      }
      std::memcpy(p.out, bytes->data(), kPageBytes);
      if (hasher.page(dedup::PageView(p.out, kPageBytes)) != p.digest) {
        return make_error(Code::kCorrupt, "get page",
                          p.digest.to_hex(hasher.kind()) + ": content does not match its digest");
      }
    }
    return {};
  }

  Result<void> sync(Durability) override { return {}; }
  void set_key(const DomainId&, SealerPtr) override {}

  PageStoreStats stats() const override {
    PageStoreStats s;
    s.bytes = bytes_;
    s.pages = bytes_ / kPageBytes;
    s.put_new = put_new_;
    s.put_known = put_known_;
    return s;
  }

  void set_byte_limit(std::uint64_t bytes) override { byte_limit_ = bytes; }
  std::uint64_t domain_bytes(const DomainId& domain) const override {
    std::uint64_t pages = 0;
    std::shared_lock lock(domains_mutex_);
    auto it = domains_.find(domain);
    if (it == domains_.end()) return 0;
    for (Shard& shard : it->second->shards) {
      std::lock_guard shard_lock(shard.mutex);
      pages += shard.pages.size();
    }
    return pages * kPageBytes;
  }

  Result<std::vector<BadPage>> verify(const DomainId& domain, const PageHasher& hasher,
                                      std::span<const Digest> pages) override {
    std::vector<BadPage> bad;
    Bytes buffer;
    for (const Digest& digest : pages) {
      PageGet one{digest, buffer.data()};
      if (auto got = get(domain, hasher, std::span(&one, 1)); !got) {
        bad.push_back({domain, digest, got.error().subject});
      }
    }
    return bad;
  }

  std::uint64_t gc_begin() override { return epochs_.begin(); }

  Result<GcResult> gc(std::uint64_t ticket, const MarkedPages& marked) override {
    GcResult result;
    std::vector<std::pair<DomainId, Domain*>> all;
    {
      std::shared_lock lock(domains_mutex_);
      for (auto& [id, d] : domains_) all.emplace_back(id, d.get());
    }
    for (auto& [id, d] : all) {
      auto it = marked.find(id);
      for (Shard& shard : d->shards) {
        std::lock_guard lock(shard.mutex);
        result.pages_removed += boost::unordered::erase_if(shard.pages, [&](const auto& entry) {
          return entry.second.touched < ticket &&
                 !(it != marked.end() && it->second.contains(entry.first));
        });
      }
    }
    result.bytes_freed = result.pages_removed * kPageBytes;
    bytes_ -= result.bytes_freed;
    return result;
  }

 private:
  using Bytes = std::array<std::byte, kPageBytes>;
  struct Value {
    std::shared_ptr<const Bytes> bytes;
    std::uint32_t touched = 0;
  };
  struct Shard {
    std::mutex mutex;
    boost::unordered_flat_map<Digest, Value, dedup::DigestHash> pages;
  };
  struct Domain {
    std::array<Shard, 16> shards;
    Shard& shard(const Digest& d) { return shards[std::to_integer<unsigned>(d.bytes[15]) & 15]; }
  };

  Domain& domain_of(const DomainId& id) {
    {
      std::shared_lock lock(domains_mutex_);
      auto it = domains_.find(id);
      if (it != domains_.end()) return *it->second;
    }
    std::unique_lock lock(domains_mutex_);
    auto& slot = domains_[id];
    if (!slot) slot = std::make_unique<Domain>();
    return *slot;
  }

  std::shared_ptr<const Bytes> find(const DomainId& domain, const Digest& digest) {
    Shard& shard = domain_of(domain).shard(digest);
    std::lock_guard lock(shard.mutex);
    auto it = shard.pages.find(digest);
    return it == shard.pages.end() ? nullptr : it->second.bytes;
  }

  std::atomic<std::uint64_t> byte_limit_;
  GcEpochs epochs_;
  mutable std::shared_mutex domains_mutex_;
  std::map<DomainId, std::unique_ptr<Domain>> domains_;
  std::atomic<std::uint64_t> bytes_{0}, put_new_{0}, put_known_{0};
};

}  // namespace

std::unique_ptr<PageStore> make_memory_store(std::uint64_t byte_limit) {
  return std::make_unique<MemoryPageStore>(byte_limit);
}

}  // namespace baton::storage
