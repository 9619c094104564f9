// Restorer: from a held checkpoint to a built process: loads (or pulls) the image, lets
// the warden build the processes stopped, and fills their memory. Nothing runs before the
// caller activates; on any failure what was built is gone and nothing has started.
// Threads: any; a fill uses kFillThreads of its own.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "agent/node/snapshot.h"
#include "agent/node/warden.h"
#include "proto/agent.pb.h"
#include "storage/catalog.h"
#include "transport/identity.h"

namespace baton::node {

inline constexpr int kFillThreads = 2;

struct RestoreImage {
  storage::WorkloadIdentity identity;
  std::shared_ptr<const dedup::PageHasher> hasher;
  pb::Manifest manifest;
  Tables tables;
  std::uint64_t seq = 0;
  std::uint64_t incarnation = 0;
  std::uint64_t freeze_wall_ns = 0;
  std::uint64_t local_freeze_boot_ns = 0;   // by this node's boot clock; 0: not known
  std::uint64_t pages = 0;
  storage::WriteLease lease;  // of pulled pages that no commit holds
};

// One page of an image and where its content is wanted.
struct PieceGet {
  std::uint64_t object = 0;
  std::uint64_t page = 0;
  Digest digest;
  std::byte* out = nullptr;
};

// Where the content of an image comes from. Called from several threads at once.
class PageSource {
 public:
  virtual ~PageSource() = default;
  // Fails: kNotFound and kCorrupt, naming the page.
  virtual Result<void> get(std::span<const PieceGet> pages) = 0;
};

// The store: every page is checked against its digest.
class StoreSource final : public PageSource {
 public:
  StoreSource(storage::Store& store, storage::WorkloadIdentity identity, std::shared_ptr<const dedup::PageHasher> hasher)
      : store_(store), identity_(std::move(identity)), hasher_(std::move(hasher)) {}
  Result<void> get(std::span<const PieceGet> pages) override;

 private:
  storage::Store& store_;
  const storage::WorkloadIdentity identity_;
  const std::shared_ptr<const dedup::PageHasher> hasher_;
};

using FillProgress = std::function<void(std::uint64_t bytes_done, std::uint64_t bytes_total)>;

// seq 0: the newest. Fails: kNotFound, kCorrupt.
Result<RestoreImage> load_image(storage::Store& store, const std::string& workload, std::uint64_t seq);

// From another node's store; the pages it lacks here are fetched, checked and put.
// Fails: kUnreachable, kNotFound, kCorrupt (a page that does not match its digest).
Result<RestoreImage> pull_image(storage::Store& store, const transport::TlsFiles& tls,
                                const pb::PeerAddress& source, const storage::WorkloadIdentity& identity,
                                std::uint64_t seq, const FillProgress& progress);

// With request.beside: what is built beside an older one, which stays. `cancel` set: kCancelled.
// Fails: what the warden says, kCorrupt and kNotFound naming the page; then nothing is left of
// what was being built.
Result<void> build_and_fill(Warden& warden, PageSource& source, const RestoreImage& image,
                            const pb::BuildRequest& request, const FillProgress& progress,
                            const std::atomic<bool>* cancel = nullptr);

// The memory runs of `pages`, which lie one after the other from `offset` of the fill buffer.
template <typename Run, typename Add>
void add_runs(std::span<const PieceGet> pages, std::uint64_t offset, Add add) {
  Run* last = nullptr;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (last != nullptr && last->object() == pages[i].object && last->first_page() + last->count() == pages[i].page) {
      last->set_count(last->count() + 1);
      continue;
    }
    last = add();
    last->set_object(pages[i].object);
    last->set_first_page(pages[i].page);
    last->set_count(1);
    last->set_offset(offset + i * dedup::kPageBytes);
  }
}

}  // namespace baton::node
