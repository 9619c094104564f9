// SegmentPageStore's class; see segment_store.h. Private to storage.
//
// Locks, in the order they may be taken: gc_mutex_, sync_mutex_, append_mutex_,
// segments_mutex_ / domains_mutex_, then the locks inside PageIndex and Segment.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>

#include "storage/pages/frame.h"
#include "storage/pages/gc_epochs.h"
#include "storage/pages/page_index.h"
#include "storage/pages/segment.h"
#include "storage/segment_store.h"

namespace baton::storage {

class SegmentPageStore final : public PageStore {
 public:
  SegmentPageStore(std::string folder, SegmentStoreOptions options);
  ~SegmentPageStore() override;
  Result<void> open();

  WriteLease lease() override { return epochs_.lease(); }
  Result<PutResult> put(const DomainId& domain, std::span<const PagePut> pages) override;
  std::vector<bool> contains(const DomainId& domain, std::span<const Digest> digests) override;
  Result<void> get(const DomainId& domain, const PageHasher& hasher,
                   std::span<const PageGet> pages) override;
  Result<void> sync(Durability level) override;
  PageStoreStats stats() const override;
  void set_byte_limit(std::uint64_t bytes) override { byte_limit_ = bytes; }
  std::uint64_t domain_bytes(const DomainId& domain) const override;
  Result<std::vector<BadPage>> verify(const DomainId& domain, const PageHasher& hasher,
                                      std::span<const Digest> pages) override;
  void set_key(const DomainId& domain, SealerPtr sealer) override;
  std::uint64_t gc_begin() override { return epochs_.begin(); }
  Result<GcResult> gc(std::uint64_t ticket, const MarkedPages& marked) override;

 private:
  struct Wanted {
    PagePlace place;
    std::size_t index = 0;  // into the caller's pages
  };
  struct Appended {
    std::shared_ptr<Segment> segment;
    std::uint32_t first_frame = 0;
  };

  PageIndex& index_of(const DomainId& domain);
  PageIndex* find_index(const DomainId& domain) const;
  SealerPtr find_key(const DomainId& domain) const;
  std::shared_ptr<Segment> find_segment(std::uint32_t id) const;
  std::vector<std::shared_ptr<Segment>> all_segments() const;

  // Writes frames (at most a segment's worth) behind each other into the active segment.
  Result<Appended> append(std::string_view frames, std::span<const FrameHead> heads);
  Result<void> put_new(const DomainId& domain, PageIndex& index, std::span<const PagePut> pages,
                       PutResult& result);
  void enter(PageIndex& index, const Appended& where, std::span<const FrameHead> heads,
             std::span<const PagePut> pages, std::uint32_t epoch);
  // Reads the pages of one frame. False in `moved`: done; true: look them up again.
  Result<void> get_frame(const DomainId& domain, const PageHasher& hasher,
                         std::span<const PageGet> pages, std::span<const Wanted> wanted,
                         bool& moved);
  // Copies what is live in frames [first, end) to the active segment, at that rate at most
  // (0: no limit); pages that cannot be read leave the index.
  Result<void> rewrite(const std::shared_ptr<Segment>& segment, std::uint32_t first_frame,
                       std::uint64_t bytes_per_s);
  Result<void> rewrite_frame(Segment& segment, std::uint32_t frame);
  Result<void> move_damaged(Segment& segment, std::uint32_t frame, std::string_view bytes);
  struct MovedPage {
    Digest digest;
    PagePlace from;
    std::uint8_t slot = 0;   // in the new frame
  };
  // Appends `frame`, and lets the index say so of those pages that lie where they lay.
  Result<void> move_pages(PageIndex& index, std::string_view frame, const FrameHead& head, std::span<const MovedPage> pages);
  // Empty: it is as it was written. It says nothing of the pages themselves.
  Result<std::string> problem_of_frame(const PagePlace& place);
  // Pages that have been compared with their digests.
  Result<void> write_again(const DomainId& domain, std::span<const PagePut> pages, std::span<const PagePlace> places);
  // Takes all pages of an unreadable frame out of the index.
  void drop_frame(Segment& segment, std::uint32_t frame);
  void retire_active_if(const std::function<bool(const Segment&)>& unfit);
  Result<void> sync_locked();
  Result<void> heal_locked();

  const std::string folder_;
  SegmentStoreOptions options_;
  Disk& disk_;
  Fd lock_file_;
  GcEpochs epochs_;

  std::mutex gc_mutex_;
  std::mutex sync_mutex_;
  std::uint64_t synced_ticket_ = 0;
  std::atomic<std::uint64_t> append_ticket_{1};
  std::atomic<bool> folder_dirty_{true};

  std::mutex append_mutex_;
  std::shared_ptr<Segment> active_;
  std::uint32_t next_id_ = 1;

  mutable std::shared_mutex segments_mutex_;
  std::map<std::uint32_t, std::shared_ptr<Segment>> segments_;
  mutable std::shared_mutex domains_mutex_;
  std::map<DomainId, std::unique_ptr<PageIndex>> domains_;
  std::map<DomainId, SealerPtr> keys_;  // under domains_mutex_

  std::atomic<std::uint64_t> byte_limit_{0};
  std::atomic<std::uint64_t> put_new_{0}, put_known_{0}, damaged_frames_{0}, bytes_{0};
};

}  // namespace baton::storage
