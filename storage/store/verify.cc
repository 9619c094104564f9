// DiskStore: reading everything, or a share of it, and naming what is damaged.
#include <algorithm>
#include <cstring>
#include <iterator>

#include <boost/unordered/unordered_flat_map.hpp>

#include "storage/store/disk_store.h"

namespace baton::storage {
namespace {

// Between two calls to progress; read in the order in which they lie on disk.
constexpr std::size_t kVerifyBatch = 65'536;

bool chosen(const Digest& digest, const VerifyOptions& options) {
  std::uint64_t word;
  std::memcpy(&word, digest.bytes.data(), sizeof word);
  return word % options.parts == options.part - 1;
}

}  // namespace

Result<VerifyResult> DiskStore::verify(const VerifyOptions& options) {
  if (options.parts == 0 || options.part == 0 || options.part > options.parts) {
    return make_error(Code::kInvalid, "verify",
                      "part " + std::to_string(options.part) + " of " + std::to_string(options.parts));
  }
  VerifyResult result;
  struct Domain {
    std::shared_ptr<const PageHasher> hasher;
    DigestSet pages;
    std::vector<HeldCheckpoint> held;
  };
  std::map<DomainId, Domain> domains;
  auto hold = lease();
  for (const auto& catalog : all()) {
    Domain& domain = domains[catalog->identity().domain];
    domain.hasher = catalog->hasher();
    auto held = catalog->held();
    mark_pages(held, domain.pages);
    boost::unordered::erase_if(domain.pages, [&](const Digest& d) { return !chosen(d, options); });
    for (HeldCheckpoint& h : held) {
      if (h.info.seq % options.parts == options.part - 1) {
        ++result.checkpoints_checked;
        if (auto loaded = catalog->load(h.info.seq, true);
            !loaded && loaded.error().code != Code::kNotFound) {
          result.bad_manifests.push_back({h.info.workload, h.info.seq, loaded.error().message()});
        }
      }
      domain.held.push_back(std::move(h));
    }
  }
  std::uint64_t total = 0;
  for (const auto& [id, domain] : domains) total += domain.pages.size();
  for (auto& [id, domain] : domains) {
    const std::vector<Digest> pages(domain.pages.begin(), domain.pages.end());
    (void)pages_->contains(id, pages);  // under the lease, so that none is collected meanwhile
    std::vector<BadPage> bad;
    for (std::size_t at = 0; at < pages.size(); at += kVerifyBatch) {
      const auto batch = std::span(pages).subspan(at, std::min(kVerifyBatch, pages.size() - at));
      BATON_ASSIGN(auto found, pages_->verify(id, *domain.hasher, batch));
      std::move(found.begin(), found.end(), std::back_inserter(bad));
      result.pages_checked += batch.size();
      if (options.progress) options.progress(result.pages_checked, total);
    }
    if (bad.empty()) continue;
    boost::unordered_flat_map<Digest, std::size_t, dedup::DigestHash> index;
    for (BadPage& page : bad) {
      index.emplace(page.digest, result.bad.size());
      result.bad.push_back({std::move(page), {}});
    }
    for (const HeldCheckpoint& h : domain.held) {
      const std::string name = h.info.workload + "@" + std::to_string(h.info.seq);
      if (!load_tables(h.info.workload, h.info.seq)) continue;  // dropped meanwhile
      for (const auto& [object, table] : *h.objects) {
        table.for_each([&](std::uint64_t, const Digest& d) {
          auto it = index.find(d);
          if (it == index.end()) return;
          auto& names = result.bad[it->second].checkpoints;
          if (names.empty() || names.back() != name) names.push_back(name);
        });
      }
    }
  }
  std::erase_if(result.bad, [](const BadPageReport& b) { return b.checkpoints.empty(); });
  return result;
}

}  // namespace baton::storage
