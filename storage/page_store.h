// PageStore: content-addressed pages, keyed by (dedup domain, digest).
//
// Two implementations pass one contract suite: SegmentPageStore (segment_store.h, on disk)
// and MemoryPageStore (memory_store.h). A put page can be read at once by every thread; it
// outlives a crash of the program once sync(kFlushed) returned, and a power cut once
// sync(kSynced) returned.
//
// Garbage collection removes pages that the caller did not mark, except pages that were
// put or asked for since the oldest WriteLease that was held when the collection began.
// So: take a lease before the first put or contains of a checkpoint, hold it until commit.
//
// Threads: every function may be called by any number of threads at once.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/unordered/unordered_flat_set.hpp>

#include "base/error.h"
#include "dedup/digest.h"
#include "storage/seal.h"

namespace baton::storage {

using dedup::Digest;
using dedup::DigestKind;
using dedup::PageHasher;

// Names a dedup domain: pages are shared only within one.
struct DomainId {
  std::array<std::byte, 16> bytes{};
  friend auto operator<=>(const DomainId&, const DomainId&) = default;
  std::string to_hex() const;
  static Result<DomainId> from_hex(std::string_view text_untrusted);
  static Result<DomainId> make_random();
};

enum class Durability : std::uint8_t {
  kMemory = 1,   // this program has it
  kFlushed = 2,  // the kernel has it: survives a crash of the program
  kSynced = 3,   // the disk has it: survives a power cut
};

struct PagePut {
  Digest digest;
  const std::byte* page = nullptr;  // kPageBytes, readable during the call
};
struct PageGet {
  Digest digest;
  std::byte* out = nullptr;  // kPageBytes
};

struct PutResult {
  std::uint64_t new_pages = 0;
  std::uint64_t known_pages = 0;  // stored before, repeated in the batch, or zero pages
  std::uint64_t bytes_written = 0;  // on disk, compressed, with framing
  PutResult& operator+=(const PutResult& o) {
    new_pages += o.new_pages;
    known_pages += o.known_pages;
    bytes_written += o.bytes_written;
    return *this;
  }
};

struct PageStoreStats {
  std::uint64_t pages = 0;         // in the index
  std::uint64_t bytes = 0;         // on disk (or in memory), dead ones included
  std::uint64_t dead_pages = 0;    // still on disk, no longer in the index
  std::uint64_t segments = 0;
  std::uint64_t put_new = 0, put_known = 0;  // since open
  std::uint64_t damaged_frames = 0;          // found unreadable since open
  std::uint64_t index_bytes = 0;             // memory of the index
};

struct BadPage {
  DomainId domain;
  Digest digest;
  std::string reason;  // "not in the store", "segment 3 frame at 4096: checksum differs", …
};

using DigestSet = boost::unordered_flat_set<Digest, dedup::DigestHash>;
// What to keep. Pages of a domain that is not listed are garbage.
using MarkedPages = std::map<DomainId, DigestSet>;

struct GcResult {
  std::uint64_t pages_removed = 0;
  std::uint64_t bytes_freed = 0;
  std::uint64_t segments_removed = 0;
  std::uint64_t segments_rewritten = 0;
};

// Holds back the garbage collection of what its holder has put or asked for. Move-only.
class WriteLease {
 public:
  WriteLease() noexcept = default;
  explicit WriteLease(std::function<void()> release) : release_(std::move(release)) {}
  WriteLease(WriteLease&& o) noexcept : release_(std::exchange(o.release_, nullptr)) {}
  WriteLease& operator=(WriteLease&& o) noexcept {
    if (this != &o) {
      reset();
      release_ = std::exchange(o.release_, nullptr);
    }
    return *this;
  }
  ~WriteLease() { reset(); }
  void reset() noexcept {
    if (auto release = std::exchange(release_, nullptr)) release();
  }
  explicit operator bool() const { return static_cast<bool>(release_); }

 private:
  std::function<void()> release_;
};

class PageStore {
 public:
  virtual ~PageStore() = default;

  // Holds back collection until released; must not outlive the store.
  virtual WriteLease lease() = 0;

  // Stores what is not known yet. Digests are trusted: whoever takes pages from outside
  // checks them first. Blocks for compression and the write into the page cache.
  // Fails: kInvalid (an absent digest), kNoSpace (disk or budget full), kFailed (EIO).
  // On failure some of the batch may be stored; all of it can be put again.
  virtual Result<PutResult> put(const DomainId& domain, std::span<const PagePut> pages) = 0;

  // One bit per digest, true when known (zero pages always are).
  virtual std::vector<bool> contains(const DomainId& domain, std::span<const Digest> digests) = 0;

  // Reads pages and checks each against its digest.
  // Fails: kInvalid (an absent digest), kNotFound, kCorrupt; the subject names the page.
  // On failure the content of all `out` is unspecified.
  virtual Result<void> get(const DomainId& domain, const PageHasher& hasher,
                           std::span<const PageGet> pages) = 0;

  // Brings all pages put before the call to at least this level. kNoSpace or kFailed mean
  // that they may not be there; the store stays usable and tries again at the next call.
  virtual Result<void> sync(Durability level) = 0;

  virtual PageStoreStats stats() const = 0;
  // put refuses beyond it with kNoSpace; 0: no limit.
  virtual void set_byte_limit(std::uint64_t bytes) = 0;
  // What the pages of one domain take, at the store's mean size of a page.
  virtual std::uint64_t domain_bytes(const DomainId& domain) const = 0;

  // Reads and checks the given pages and returns those that are bad.
  virtual Result<std::vector<BadPage>> verify(const DomainId& domain, const PageHasher& hasher,
                                              std::span<const Digest> pages) = 0;

  // Pages of this domain are sealed with this key from now on, and those that are sealed can be
  // read. Without one they are stored as they are. A store in memory does nothing with it.
  virtual void set_key(const DomainId& domain, SealerPtr sealer) = 0;

  // Collection in two steps: begin, then collect the marks from everything committed
  // (including what commits in between), then gc with both. Puts go on meanwhile.
  virtual std::uint64_t gc_begin() = 0;
  virtual Result<GcResult> gc(std::uint64_t ticket, const MarkedPages& marked) = 0;
};

}  // namespace baton::storage
