#include "agent/node/standby_budget.h"

#include <algorithm>
#include <tuple>

namespace baton::node {

std::map<std::string, StandbyGrant> share_memory(std::vector<StandbyClaim> claims, std::uint64_t budget_bytes) {
  std::sort(claims.begin(), claims.end(), [](const StandbyClaim& a, const StandbyClaim& b) {
    return std::tuple(-std::int64_t{a.priority}, a.bytes, a.name) < std::tuple(-std::int64_t{b.priority}, b.bytes, b.name);
  });
  std::map<std::string, StandbyGrant> grants;
  std::uint64_t used = 0, largest_hot = 0;
  auto fits = [&](std::uint64_t bytes, std::uint64_t beside) {
    return bytes <= budget_bytes && used <= budget_bytes - bytes && beside <= budget_bytes - bytes - used;
  };
  for (const auto& claim : claims) {
    StandbyGrant grant;
    if (claim.wanted == pb::MODE_HOT && fits(claim.bytes, std::max(largest_hot, claim.bytes))) {
      grant.mode = pb::MODE_HOT;
      largest_hot = std::max(largest_hot, claim.bytes);
    } else if ((claim.wanted == pb::MODE_HOT || claim.wanted == pb::MODE_WARM) && fits(claim.bytes, largest_hot)) {
      grant.mode = pb::MODE_WARM;
    }
    if (grant.mode != pb::MODE_COLD) used += claim.bytes;
    if (grant.mode < claim.wanted) {
      grant.problem = "its " + std::to_string(claim.bytes >> 20) + " MiB do not fit as " +
                      (claim.wanted == pb::MODE_HOT ? "hot" : "warm") + " into this node's " +
                      std::to_string(budget_bytes >> 20) + " MiB for standbys";
    }
    grants.emplace(claim.name, std::move(grant));
  }
  return grants;
}

}  // namespace baton::node
