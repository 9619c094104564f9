// find_missing: two page tables compared across the stream, level by level from the root,
// one batch of questions per level.
#include <algorithm>

#include "transport/page_stream.h"

namespace baton::transport {
namespace {

using dedup::Digest;
using dedup::kFanOut;
using dedup::kFanOutBits;

// First page and number of pages beneath a node (level 0: 64 pages; a page: level -1).
constexpr unsigned shift_of(int level) { return kFanOutBits * static_cast<unsigned>(level + 1); }

class Walk {
 public:
  Walk(const dedup::PageTable& table, const dedup::PageHasher& hasher, std::uint64_t object)
      : table_(table), hasher_(hasher), object_(object) {}

  // One child of a node of `level + 1` (level -1: a page): what we have against what they have.
  void compare(int level, std::uint64_t index, const Digest& ours, const Digest& theirs) {
    if (ours == theirs) return;
    if (ours.is_absent()) {
      out.erased.push_back({index << shift_of(level), std::uint64_t{1} << shift_of(level)});
    } else if (level < 0) {
      out.changes.push_back({index, ours});
    } else if (theirs.is_absent()) {
      take_all(level, index);
    } else {
      next.push_back(NodeRef{object_, static_cast<unsigned>(level), index});
    }
  }

  TableDifference out;
  std::vector<NodeRef> next;

 private:
  void take_all(int level, std::uint64_t index) {
    const auto children = table_.node_children(static_cast<unsigned>(level), index, hasher_);
    for (std::size_t i = 0; i < kFanOut; ++i) {
      const std::uint64_t child = (index << kFanOutBits) + i;
      if (children[i].is_absent()) continue;
      if (level == 0)
        out.changes.push_back({child, children[i]});
      else
        take_all(level - 1, child);
    }
  }

  const dedup::PageTable& table_;
  const dedup::PageHasher& hasher_;
  const std::uint64_t object_;
};

}  // namespace

Result<TableDifference> find_missing(const dedup::PageTable& table, const dedup::PageHasher& hasher,
                                     std::uint64_t object, const Digest& peer_root,
                                     PageStreamChannel& channel, std::chrono::milliseconds timeout) {
  Walk walk(table, hasher, object);
  constexpr int kRootLevel = static_cast<int>(dedup::kTableLevels) - 1;
  walk.compare(kRootLevel, 0, table.root(hasher), peer_root);
  while (!walk.next.empty()) {
    const std::vector<NodeRef> asked = std::exchange(walk.next, {});
    BATON_ASSIGN(const auto theirs, channel.query_nodes(asked, timeout));
    walk.out.nodes_asked += asked.size();
    for (std::size_t n = 0; n < asked.size(); ++n) {
      const auto ours = table.node_children(asked[n].level, asked[n].index, hasher);
      for (std::size_t i = 0; i < kFanOut; ++i)
        walk.compare(static_cast<int>(asked[n].level) - 1, (asked[n].index << kFanOutBits) + i,
                     ours[i], theirs[n][i]);
    }
  }
  std::ranges::sort(walk.out.erased, {}, &dedup::PageRange::first);
  std::ranges::sort(walk.out.changes, {}, &dedup::PageChange::page);
  return std::move(walk.out);
}

}  // namespace baton::transport
