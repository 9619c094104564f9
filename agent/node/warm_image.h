// Memory of a standby on this node: the newest pages as they came, and whole images.
//
// PageStage: a bounded ring of the pages that arrived last, by digest, so that a commit need
// not read them back from the store. WarmImage: all pages of one checkpoint, by place.
// Threads: PageStage any; WarmImage one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "agent/node/replicator.h"
#include "agent/node/restorer.h"
#include "agent/node/snapshot.h"
#include "transport/page_stream.h"

namespace baton::node {

class PageStage {
 public:
  static constexpr std::size_t kPages = 4096;   // 16 MiB
  void put(std::span<const transport::PageRef> pages);
  // True: copied to `out`.
  bool get(const Digest& digest, std::byte* out);
  void clear();

 private:
  std::mutex mutex_;
  std::unique_ptr<std::byte[]> ring_;
  std::vector<Digest> held_;
  std::unordered_map<Digest, std::size_t, dedup::DigestHash> where_;
  std::size_t next_ = 0;
};

// Pages of a checkpoint that was committed here: what the stage still has, else the store.
class StagedSource final : public PageSource {
 public:
  StagedSource(storage::Store& store, storage::WorkloadIdentity identity, std::shared_ptr<const dedup::PageHasher> hasher, PageStage* stage)
      : store_(store, std::move(identity), std::move(hasher)), stage_(stage) {}
  Result<void> get(std::span<const PieceGet> pages) override;

 private:
  StoreSource store_;
  PageStage* stage_;
};

class WarmImage final : public PageSource {
 public:
  // Brings it to `image`, whose pages that changed come from `source`. All or nothing at the
  // level of the whole: after a failure it holds nothing.
  Result<void> advance(const RestoreImage& image, PageSource& source);
  Result<void> get(std::span<const PieceGet> pages) override;
  std::uint64_t seq() const { return seq_; }   // 0: empty
  std::uint64_t bytes() const { return places_.size() * dedup::kPageBytes; }
  void clear();

 private:
  static constexpr std::size_t kChunkPages = 1024;
  using Place = std::pair<std::uint64_t, std::uint64_t>;   // object, page
  struct Hash {
    std::size_t operator()(const Place& place) const { return place.first * 0x9e3779b97f4a7c15ull + place.second * 0xff51afd7ed558ccdull; }
  };
  std::byte* slot(std::size_t index) { return chunks_[index / kChunkPages].get() + index % kChunkPages * dedup::kPageBytes; }
  std::size_t take_slot();

  std::uint64_t seq_ = 0;
  Tables tables_;
  std::vector<std::unique_ptr<std::byte[]>> chunks_;
  std::size_t used_ = 0;
  std::vector<std::size_t> free_;
  std::unordered_map<Place, std::size_t, Hash> places_;
};

// Where two images differ: pages to fetch, and pages that are gone.
struct ImageDifference {
  std::vector<PieceGet> changed;                                    // `out` empty; by object and page
  std::vector<PageRef> gone;
};
ImageDifference difference(const Tables& old_tables, const Tables& new_tables, const dedup::PageHasher& hasher);

}  // namespace baton::node
