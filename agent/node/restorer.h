// Restorer: from a held checkpoint to a built process: loads (or pulls) the image, lets
// the warden build the processes stopped, and fills their memory. Nothing runs before the
// caller activates; on any failure what was built is gone and nothing has started.
// Threads: any; a fill uses kFillThreads of its own.
#pragma once

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
  std::uint64_t pages = 0;
  storage::WriteLease lease;  // of pulled pages that no commit holds
};

using FillProgress = std::function<void(std::uint64_t bytes_done, std::uint64_t bytes_total)>;

// seq 0: the newest. Fails: kNotFound, kCorrupt.
Result<RestoreImage> load_image(storage::Store& store, const std::string& workload, std::uint64_t seq);

// From another node's store; the pages it lacks here are fetched, checked and put.
// Fails: kUnreachable, kNotFound, kCorrupt (a page that does not match its digest).
Result<RestoreImage> pull_image(storage::Store& store, const transport::TlsFiles& tls,
                                const pb::PeerAddress& source, const storage::WorkloadIdentity& identity,
                                std::uint64_t seq, const FillProgress& progress);

// Fails: what the warden says, kCorrupt and kNotFound naming the page; then nothing is left.
Result<void> build_and_fill(Warden& warden, storage::Store& store, const RestoreImage& image,
                            const pb::BuildRequest& request, const FillProgress& progress);

}  // namespace baton::node
