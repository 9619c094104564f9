#include "agent/node/receiver.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "agent/node/local_replica.h"
#include "agent/node/spec.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::node {
namespace {

constexpr std::chrono::milliseconds kCatchUp{50};   // of a commit for a shadow that is far behind

class Channel final : public transport::ReceiverChannel {
 public:
  Channel(storage::Store& store, storage::WorkloadIdentity identity,
          std::shared_ptr<const dedup::PageHasher> hasher, storage::Durability durability,
          std::shared_ptr<Standby> standby, std::string peer, const Receiver::Committed& committed,
          const Receiver::Fenced& fenced)
      : store_(store),
        standby_(std::move(standby)),
        peer_(std::move(peer)),
        committed_(committed),
        fenced_(fenced),
        identity_(std::move(identity)),
        hasher_(std::move(hasher)),
        durability_(durability),
        lease_(store.lease()) {}

  Result<std::vector<transport::NodeChildren>> on_nodes(
      std::span<const transport::NodeRef> nodes) override {
    BATON_ASSIGN(auto tip, store_.tip(identity_.workload));
    if (!tip) return make_error(Code::kNotFound, "query", identity_.workload + " has no checkpoint");
    BATON_ASSIGN(auto held, store_.load_tables(identity_.workload, tip->seq));
    std::vector<transport::NodeChildren> out;
    out.reserve(nodes.size());
    for (const auto& ref : nodes) {
      auto table = held.objects.find(ref.object);
      if (table == held.objects.end() || ref.level >= dedup::kTableLevels ||
          ref.index >= dedup::nodes_at_level(ref.level)) {
        return make_error(Code::kNotFound, "query", "no such node of object " + std::to_string(ref.object));
      }
      auto children = table->second.node_children(ref.level, ref.index, *hasher_);
      transport::NodeChildren copy;
      std::copy(children.begin(), children.end(), copy.begin());
      out.push_back(copy);
    }
    return out;
  }

  Result<std::vector<bool>> on_have(std::span<const dedup::Digest> digests) override {
    return store_.pages().contains(identity_.domain, digests);
  }

  Result<void> on_pages(std::span<const transport::PageRef> pages) override {
    BATON_TRY(fault_point("agent.receive.pages"));
    std::vector<storage::PagePut> puts;
    puts.reserve(pages.size());
    for (const auto& page : pages) puts.push_back({page.digest, page.page});
    BATON_TRY(store_.pages().put(identity_.domain, puts));
    if (standby_) standby_->stage(pages);
    return {};
  }

  tl::expected<transport::AckInfo, transport::Nack> on_checkpoint(std::uint64_t seq,
                                                                  std::string bytes) override {
    auto refuse = [](Error error, std::vector<dedup::Digest> missing = {}) {
      return tl::make_unexpected(transport::Nack{std::move(error), std::move(missing)});
    };
    if (auto point = fault_point("agent.receive.commit"); !point) return refuse(point.error());
    auto record = storage::decode(bytes);
    if (!record) return refuse(record.error());
    if (record->workload != identity_.workload || record->domain != identity_.domain ||
        record->kind != identity_.kind || record->seq != seq) {
      return refuse(make_error(Code::kCorrupt, "commit", "the record is not of " + identity_.workload + "@" +
                                                             std::to_string(seq)));
    }
    if (fenced_ && fenced_(identity_.workload, record->incarnation, peer_)) {
      return refuse(make_error(Code::kConflict, "commit", identity_.workload + " has another owner than " + peer_ + " by now"));
    }
    if (standby_) standby_->let_catch_up(seq, kCatchUp);
    std::vector<dedup::Digest> missing;
    auto done = store_.commit(*record, durability_, &missing);
    if (!done) return refuse(done.error(), std::move(missing));
    if (committed_) committed_(identity_.workload, record->incarnation, seq);
    // Once more, now that whoever decides knows of it: a vote in between has not counted it.
    if (fenced_ && fenced_(identity_.workload, record->incarnation, peer_)) {
      return refuse(make_error(Code::kConflict, "commit", identity_.workload + " is about to have another owner than " + peer_));
    }
    if (standby_) {   // behind the commit, on a thread of its own
      if (auto tip = store_.tip(identity_.workload); tip && *tip) standby_->committed((*tip)->pages);
    }
    if (auto point = fault_point("agent.receive.committed"); !point) return refuse(point.error());
    lease_ = store_.lease();
    transport::AckInfo info;
    info.durability = static_cast<std::uint8_t>(durability_);
    return info;
  }

 private:
  storage::Store& store_;
  const std::shared_ptr<Standby> standby_;
  const std::string peer_;
  const Receiver::Committed& committed_;      // the receiver's: it outlives its channels
  const Receiver::Fenced& fenced_;
  const storage::WorkloadIdentity identity_;
  const std::shared_ptr<const dedup::PageHasher> hasher_;
  const storage::Durability durability_;
  storage::WriteLease lease_;
};

}  // namespace

Result<transport::Opened> Receiver::on_open(const transport::StreamPeer& peer,
                                            const transport::OpenRequest& request) {
  if (const std::uint64_t here = runs_here_(request.workload); here >= request.incarnation) {
    return make_error(Code::kConflict, "open " + request.workload,
                      "it runs on this node at incarnation " + std::to_string(here) + ", " +
                          peer.identity.name + " offers " + std::to_string(request.incarnation));
  }
  if (fenced_ && fenced_(request.workload, request.incarnation, peer.identity.name)) {
    return make_error(Code::kConflict, "open " + request.workload, "it has another owner than " + peer.identity.name + " by now");
  }
  storage::WorkloadIdentity identity;
  identity.workload = request.workload;
  identity.domain.bytes = request.domain;
  identity.kind = request.kind;
  identity.key = request.hash_key;
  BATON_TRY(enter_workload(store_, identity, request.incarnation));
  BATON_ASSIGN(auto hasher, store_.hasher(request.workload));
  transport::Opened opened;
  BATON_ASSIGN(auto tip, store_.tip(request.workload));
  if (tip && tip->missing_pages == 0) {
    BATON_ASSIGN(auto held, store_.load_tables(request.workload, tip->seq));
    opened.reply.tip_seq = tip->seq;
    opened.reply.tip_incarnation = tip->incarnation;
    for (const auto& [object, root] : held.roots) opened.reply.objects.push_back({object, root});
  }
  pb::WorkloadSpec spec;
  const bool have_spec = spec.ParseFromString(request.context);
  auto durability = storage::Durability::kFlushed;
  if (request.durability >= 1 && request.durability <= 3) {
    durability = static_cast<storage::Durability>(request.durability);
  }
  if (have_spec) BATON_TRY(store_.set_policy(request.workload, retention_of(spec)));
  std::shared_ptr<Standby> standby;
  if (standbys_ != nullptr && have_spec && spec.name() == request.workload) standby = standbys_->open(request.workload, spec);
  opened.channel = std::make_unique<Channel>(store_, std::move(identity), std::move(hasher), durability, std::move(standby),
                                             peer.identity.name, committed_, fenced_);
  spdlog::info("{}: standing by for {}, newest here: {}", request.workload, peer.identity.name,
               opened.reply.tip_seq);
  return opened;
}

storage::CheckpointRecord full_record(const storage::Checkpoint& checkpoint) {
  storage::CheckpointRecord record;
  record.workload = checkpoint.info.workload;
  record.domain = checkpoint.domain;
  record.kind = checkpoint.hasher->kind();
  record.incarnation = checkpoint.info.incarnation;
  record.seq = checkpoint.info.seq;
  record.freeze_wall_ns = checkpoint.info.freeze_wall_ns;
  record.pause_ns = checkpoint.info.pause_ns;
  record.manifest = checkpoint.manifest;
  for (const auto& [id, table] : checkpoint.objects) {
    storage::ObjectDelta delta;
    delta.object_id = id;
    delta.from_empty = true;
    auto root = checkpoint.roots.find(id);
    delta.root = root != checkpoint.roots.end() ? root->second : table.root(*checkpoint.hasher);
    table.for_each([&](std::uint64_t page, const dedup::Digest& digest) {
      delta.changes.push_back({page, digest});
    });
    record.objects.push_back(std::move(delta));
  }
  return record;
}

Result<std::string> Receiver::on_fetch_checkpoint(const transport::StreamPeer&,
                                                  std::string_view workload, std::uint64_t seq) {
  const std::string name(workload);
  if (seq == 0) {
    BATON_ASSIGN(auto tip, store_.tip(name));
    if (!tip) return make_error(Code::kNotFound, "fetch", name + " has no checkpoint here");
    seq = tip->seq;
  }
  BATON_ASSIGN(auto checkpoint, store_.load(name, seq));
  return storage::encode(full_record(checkpoint));
}

Result<void> Receiver::on_fetch_pages(const transport::StreamPeer&, std::string_view workload,
                                      const transport::DomainBytes& domain, dedup::DigestKind kind,
                                      std::span<const dedup::Digest> digests, std::span<std::byte> out,
                                      std::vector<bool>& present) {
  const std::string name(workload);
  BATON_ASSIGN(auto identity, store_.identity(name));
  if (identity.domain.bytes != domain || identity.kind != kind) {
    return make_error(Code::kNotAllowed, "fetch", name + ": another dedup domain");
  }
  BATON_ASSIGN(auto hasher, store_.hasher(name));
  present.assign(digests.size(), true);
  std::vector<storage::PageGet> gets;
  gets.reserve(digests.size());
  for (std::size_t i = 0; i < digests.size(); ++i) {
    gets.push_back({digests[i], out.data() + i * dedup::kPageBytes});
  }
  if (store_.pages().get(identity.domain, *hasher, gets)) return {};
  for (std::size_t i = 0; i < gets.size(); ++i) {  // one is bad: say which
    present[i] = store_.pages().get(identity.domain, *hasher, std::span(&gets[i], 1)).has_value();
    if (!present[i]) std::memset(gets[i].out, 0, dedup::kPageBytes);
  }
  return {};
}

void Receiver::on_stream_error(const Error& error) {
  spdlog::warn("page stream: {}", error.message());
}

}  // namespace baton::node
