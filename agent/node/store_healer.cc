#include "agent/node/store_healer.h"

#include <map>
#include <set>

#include "base/log.h"
#include "storage/checkpoint_record.h"
#include "transport/page_stream.h"

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr std::size_t kHealBatchPages = 256;
constexpr auto kHealTimeout = 30s;

// A workload of this store whose key checks the pages of a domain: any of them will do.
std::map<storage::DomainId, std::string> workloads_by_domain(storage::Store& store) {
  std::map<storage::DomainId, std::string> out;
  for (const auto& name : store.workloads()) {
    if (auto identity = store.identity(name)) out.emplace(identity->domain, name);
  }
  return out;
}

class Healer {
 public:
  Healer(storage::Store& store, const storage::VerifyResult& found, pb::StoreVerifyReport& report)
      : store_(store), found_(found), report_(report) {
    for (std::size_t i = 0; i < found.bad.size(); ++i) pages_[found.bad[i].page.domain].push_back(i);
    for (std::size_t i = 0; i < found.bad_manifests.size(); ++i) manifests_.insert(i);
  }

  bool done() const { return pages_.empty() && manifests_.empty(); }

  Result<void> from(transport::PageStreamConnection& peer, const std::string& node) {
    const auto names = workloads_by_domain(store_);
    for (auto it = pages_.begin(); it != pages_.end();) {
      auto name = names.find(it->first);
      if (name != names.end()) BATON_TRY(pages_from(peer, node, name->second, it->second));
      it = it->second.empty() ? pages_.erase(it) : std::next(it);
    }
    for (auto it = manifests_.begin(); it != manifests_.end();) {
      const auto& bad = found_.bad_manifests[*it];
      if (auto healed = manifest_from(peer, bad); !healed) {
        spdlog::info("store: {}@{} is not healed from {}: {}", bad.workload, bad.seq, node, healed.error().message());
        ++it;
        continue;
      }
      report_.mutable_manifests(static_cast<int>(*it))->set_healed_from(node);
      it = manifests_.erase(it);
    }
    return {};
  }

 private:
  // The pages of one domain; what was healed leaves `open`.
  Result<void> pages_from(transport::PageStreamConnection& peer, const std::string& node,
                          const std::string& workload, std::vector<std::size_t>& open) {
    BATON_ASSIGN(auto identity, store_.identity(workload));
    BATON_ASSIGN(auto hasher, store_.hasher(workload));
    std::vector<std::size_t> left;
    std::vector<std::byte> buffer(kHealBatchPages * dedup::kPageBytes);
    for (std::size_t at = 0; at < open.size(); at += kHealBatchPages) {
      const std::size_t count = std::min(kHealBatchPages, open.size() - at);
      std::vector<dedup::Digest> digests;
      for (std::size_t i = 0; i < count; ++i) digests.push_back(found_.bad[open[at + i]].page.digest);
      auto out = std::span(buffer).first(count * dedup::kPageBytes);
      auto lacking = peer.fetch_pages(workload, identity.domain.bytes, identity.kind, digests, out, kHealTimeout);
      if (!lacking) {
        // It does not hold this workload, or has gone: the next one may help.
        left.insert(left.end(), open.begin() + static_cast<std::ptrdiff_t>(at), open.end());
        open = std::move(left);
        if (lacking.error().code == Code::kUnreachable) return lacking.error();
        return {};
      }
      const storage::DigestSet missing(lacking->begin(), lacking->end());
      std::vector<storage::PagePut> puts;
      std::vector<std::size_t> healed;
      for (std::size_t i = 0; i < count; ++i) {
        const std::byte* page = out.data() + i * dedup::kPageBytes;
        if (missing.contains(digests[i]) ||
            hasher->page(dedup::PageView(page, dedup::kPageBytes)) != digests[i]) {
          left.push_back(open[at + i]);
          continue;
        }
        puts.push_back({digests[i], page});
        healed.push_back(open[at + i]);
      }
      BATON_TRY(store_.pages().put(identity.domain, puts));
      for (std::size_t i : healed) {
        report_.set_healed_pages(report_.healed_pages() + 1);
        if (static_cast<int>(i) < report_.damaged_size()) {
          report_.mutable_damaged(static_cast<int>(i))->set_healed_from(node);
        }
      }
    }
    open = std::move(left);
    return {};
  }

  Result<void> manifest_from(transport::PageStreamConnection& peer, const storage::BadManifest& bad) {
    BATON_ASSIGN(std::string bytes, peer.fetch_checkpoint(bad.workload, bad.seq, kHealTimeout));
    BATON_ASSIGN(auto record, storage::decode(bytes));
    return store_.heal_manifest(bad.workload, bad.seq, record.manifest);
  }

  storage::Store& store_;
  const storage::VerifyResult& found_;
  pb::StoreVerifyReport& report_;
  std::map<storage::DomainId, std::vector<std::size_t>> pages_;  // indices into found_.bad
  std::set<std::size_t> manifests_;
};

}  // namespace

void heal(storage::Store& store, const transport::TlsFiles& tls,
          const std::vector<pb::PeerAddress>& replicas, const storage::VerifyResult& found,
          pb::StoreVerifyReport& report) {
  const auto lease = store.lease();
  Healer healer(store, found, report);
  for (const auto& replica : replicas) {
    if (healer.done()) break;
    auto peer = transport::PageStreamConnection::connect(replica.stream(), tls, replica.node());
    if (!peer) {
      spdlog::warn("store: nothing is healed from {}: {}", replica.node(), peer.error().message());
      continue;
    }
    if (auto healed = healer.from(**peer, replica.node()); !healed) {
      spdlog::warn("store: healing from {}: {}", replica.node(), healed.error().message());
    }
  }
  if (auto synced = store.sync(storage::Durability::kSynced); !synced) {
    spdlog::warn("store: what was healed is not on disk yet: {}", synced.error().message());
  }
}

}  // namespace baton::node
