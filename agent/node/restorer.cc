#include "agent/node/restorer.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/fault_point.h"
#include "base/log.h"
#include "transport/page_stream.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr std::size_t kFillBatchPages = 1024;  // 4 MiB per fill
constexpr std::size_t kPullBatchPages = 1024;
constexpr auto kPullTimeout = 30s;

std::vector<PieceGet> pieces_of(const Tables& tables) {
  std::vector<PieceGet> pieces;
  for (const auto& [object, table] : tables) {
    pieces.reserve(pieces.size() + table.count());
    table.for_each([&, id = object](std::uint64_t page, const Digest& digest) {
      pieces.push_back({id, page, digest, nullptr});
    });
  }
  return pieces;
}

Result<void> fill_batch(Warden& warden, PageSource& source, const pb::BuildRequest& build, std::span<PieceGet> pieces) {
  BATON_ASSIGN(auto space, warden.fill_space(pieces.size() * dedup::kPageBytes));
  std::byte* at = space->bytes().data();
  for (auto& piece : pieces) {
    piece.out = at;
    at += dedup::kPageBytes;
  }
  pb::FillRequest request;
  request.set_workload(build.workload());
  request.set_beside(build.beside());
  add_runs<pb::PageRun>(pieces, space->offset(), [&] { return request.add_runs(); });
  BATON_TRY(source.get(pieces));
  return warden.fill(request);
}

void give_up(Warden& warden, const pb::BuildRequest& request) {
  Result<void> gone;
  if (request.beside()) {
    pb::ShadowRequest drop;
    drop.set_workload(request.workload());
    drop.set_step(pb::SHADOW_STEP_DROP);
    if (auto dropped = warden.shadow(drop); !dropped) gone = dropped.error();
  } else {
    gone = warden.stop(request.workload(), 0, true);
  }
  if (!gone) spdlog::warn("{}: what was built could not be removed: {}", request.workload(), gone.error().message());
}

}  // namespace

Result<void> StoreSource::get(std::span<const PieceGet> pages) {
  std::vector<storage::PageGet> gets;
  gets.reserve(pages.size());
  for (const auto& page : pages) gets.push_back({page.digest, page.out});
  return store_.pages().get(identity_.domain, *hasher_, gets);
}

Result<RestoreImage> load_image(storage::Store& store, const std::string& workload, std::uint64_t seq) {
  RestoreImage image;
  BATON_ASSIGN(image.identity, store.identity(workload));
  image.lease = store.lease();
  if (seq == 0) {
    BATON_ASSIGN(auto tip, store.tip(workload));
    if (!tip) return make_error(Code::kNotFound, "restore", workload + " has no checkpoint on this node");
    seq = tip->seq;
  }
  BATON_ASSIGN(auto checkpoint, store.load(workload, seq));
  if (!image.manifest.ParseFromString(checkpoint.manifest)) {
    return make_error(Code::kCorrupt, "restore", workload + "@" + std::to_string(seq) + ": the manifest does not parse");
  }
  image.hasher = checkpoint.hasher;
  image.tables = std::move(checkpoint.objects);
  image.seq = seq;
  image.incarnation = checkpoint.info.incarnation;
  image.freeze_wall_ns = checkpoint.info.freeze_wall_ns;
  image.local_freeze_boot_ns = checkpoint.info.local_freeze_boot_ns;
  image.pages = checkpoint.info.pages;
  return image;
}

Result<RestoreImage> pull_image(storage::Store& store, const transport::TlsFiles& tls,
                                const pb::PeerAddress& source, const storage::WorkloadIdentity& identity,
                                std::uint64_t seq, const FillProgress& progress) {
  BATON_ASSIGN(auto connection, transport::PageStreamConnection::connect(source.stream(), tls, source.node()));
  BATON_ASSIGN(std::string bytes, connection->fetch_checkpoint(identity.workload, seq, kPullTimeout));
  BATON_ASSIGN(auto record, storage::decode(bytes));
  if (record.workload != identity.workload || record.domain != identity.domain || record.kind != identity.kind) {
    return make_error(Code::kCorrupt, "pull", source.node() + " sent the record of another workload");
  }
  RestoreImage image;
  image.identity = identity;
  image.hasher = std::make_shared<const dedup::PageHasher>(
      identity.kind, std::span<const std::byte, dedup::kHashKeyBytes>(identity.key));
  image.seq = record.seq;
  image.incarnation = record.incarnation;
  image.freeze_wall_ns = record.freeze_wall_ns;
  if (!image.manifest.ParseFromString(record.manifest)) {
    return make_error(Code::kCorrupt, "pull", identity.workload + ": the manifest does not parse");
  }
  storage::DigestSet wanted_set;
  for (const auto& object : record.objects) {
    auto& table = image.tables.try_emplace(object.object_id, identity.kind).first->second;
    table.apply(object.changes);
    if (table.root(*image.hasher) != object.root) {
      return make_error(Code::kCorrupt, "pull", identity.workload + "@" + std::to_string(record.seq) +
                                                    ": the root of object " + std::to_string(object.object_id) +
                                                    " does not come out");
    }
    image.pages += table.count();
    for (const auto& change : object.changes) {
      if (!change.digest.is_zero_page()) wanted_set.insert(change.digest);
    }
  }
  image.lease = store.lease();
  std::vector<Digest> digests(wanted_set.begin(), wanted_set.end());
  auto there = store.pages().contains(identity.domain, digests);
  std::vector<Digest> wanted;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    if (!there[i]) wanted.push_back(digests[i]);
  }
  std::vector<std::byte> buffer(kPullBatchPages * dedup::kPageBytes);
  for (std::size_t at = 0; at < wanted.size(); at += kPullBatchPages) {
    BATON_TRY(fault_point("agent.pull.pages"));
    const std::size_t count = std::min(kPullBatchPages, wanted.size() - at);
    auto part = std::span<const Digest>(wanted).subspan(at, count);
    auto out = std::span(buffer).first(count * dedup::kPageBytes);
    BATON_ASSIGN(auto lacking, connection->fetch_pages(identity.workload, identity.domain.bytes, identity.kind,
                                                       part, out, kPullTimeout));
    if (!lacking.empty()) {
      return make_error(Code::kCorrupt, "pull",
                        source.node() + " cannot give " + std::to_string(lacking.size()) + " pages of " +
                            identity.workload + "@" + std::to_string(record.seq) + ", first " +
                            lacking.front().to_hex(identity.kind));
    }
    std::vector<storage::PagePut> puts;
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* page = out.data() + i * dedup::kPageBytes;
      if (image.hasher->page(dedup::PageView(page, dedup::kPageBytes)) != part[i]) {
        return make_error(Code::kCorrupt, "pull", source.node() + " sent a page that is not " +
                                                      part[i].to_hex(identity.kind));
      }
      puts.push_back({part[i], page});
    }
    BATON_TRY(store.pages().put(identity.domain, puts));
    if (progress) progress((at + count) * dedup::kPageBytes, wanted.size() * dedup::kPageBytes);
  }
  return image;
}

Result<void> build_and_fill(Warden& warden, PageSource& source, const RestoreImage& image,
                            const pb::BuildRequest& request, const FillProgress& progress,
                            const std::atomic<bool>* cancel) {
  BATON_TRY(fault_point("agent.restore.build"));
  BATON_TRY(warden.build(request));
  auto pieces = pieces_of(image.tables);
  std::atomic<std::size_t> next{0}, done{0};
  std::mutex mutex;
  std::optional<Error> problem;
  auto work = [&] {
    for (;;) {
      const std::size_t at = next.fetch_add(kFillBatchPages);
      if (at >= pieces.size()) return;
      {
        std::lock_guard lock(mutex);
        if (cancel != nullptr && *cancel && !problem) problem = make_error(Code::kCancelled, "build", request.workload() + ": something more urgent came");
        if (problem) return;
      }
      const std::size_t count = std::min(kFillBatchPages, pieces.size() - at);
      auto filled = fill_batch(warden, source, request, std::span(pieces).subspan(at, count));
      std::lock_guard lock(mutex);
      if (!filled) {
        if (!problem) problem = filled.error();
        return;
      }
      done += count;
      if (progress) progress(done * dedup::kPageBytes, pieces.size() * dedup::kPageBytes);
    }
  };
  {
    std::vector<std::jthread> helpers;
    const std::size_t batches = (pieces.size() + kFillBatchPages - 1) / kFillBatchPages;
    for (std::size_t i = 1; i < std::min<std::size_t>(kFillThreads, batches); ++i) helpers.emplace_back(work);
    work();
  }
  if (!problem) {
    if (auto point = fault_point("agent.restore.filled"); !point) problem = point.error();
  }
  if (problem) {
    give_up(warden, request);
    return *problem;
  }
  return {};
}

}  // namespace baton::node
