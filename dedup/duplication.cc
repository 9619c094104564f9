#include "dedup/duplication.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace baton::dedup {

void OriginCounts::count(PageOrigin origin) {
  switch (origin) {
    case PageOrigin::kZero: ++zero; return;
    case PageOrigin::kIntra: ++intra; return;
    case PageOrigin::kInter: ++inter; return;
    case PageOrigin::kFresh: ++fresh; return;
  }
}

OriginCounts& OriginCounts::operator+=(const OriginCounts& other) {
  zero += other.zero;
  intra += other.intra;
  inter += other.inter;
  fresh += other.fresh;
  return *this;
}

void DuplicationCounter::add_before(const Digest& digest, std::uint64_t wall_ns) {
  CHECK(checkpoint_ == 0);
  if (digest.is_zero_page() || digest.is_absent()) return;
  seen_.try_emplace(digest, Seen{0, 0, wall_ns});
}

void DuplicationCounter::next_checkpoint(std::uint64_t wall_ns) {
  ++checkpoint_;
  wall_ns_ = wall_ns;
}

PageOrigin DuplicationCounter::add(const Digest& digest) {
  CHECK(checkpoint_ > 0 && !digest.is_absent());
  PageOrigin origin = PageOrigin::kZero;
  if (!digest.is_zero_page()) {
    auto [it, fresh] = seen_.try_emplace(digest);
    Seen& seen = it->second;
    if (fresh) {
      origin = PageOrigin::kFresh;
    } else if (seen.checkpoint == checkpoint_) {
      origin = PageOrigin::kIntra;
    } else {
      origin = PageOrigin::kInter;
      ++ages_[bucket_of(checkpoint_ - seen.checkpoint)];
      ++ages_ms_[bucket_of((wall_ns_ - std::min(wall_ns_, seen.wall_ns)) / 1'000'000)];
    }
    ++seen.times;
    seen.checkpoint = checkpoint_;
    seen.wall_ns = wall_ns_;
  }
  sum_.count(origin);
  return origin;
}

// 0, 1, 2, 3-4, 5-8, 9-16, …
unsigned DuplicationCounter::bucket_of(std::uint64_t value) {
  return value == 0 ? 0 : 1 + static_cast<unsigned>(std::bit_width(value - 1));
}

std::vector<Bucket> DuplicationCounter::buckets(const Histogram& histogram) {
  std::vector<Bucket> out;
  for (const auto& [number, pages] : histogram) {
    Bucket b;
    if (number != 0) {
      b.to = std::uint64_t{1} << (number - 1);
      b.from = number == 1 ? 1 : b.to / 2 + 1;
    }
    b.pages = pages;
    out.push_back(b);
  }
  return out;
}

std::vector<Bucket> DuplicationCounter::recurrence() const {
  Histogram contents, pages;
  for (const auto& [digest, seen] : seen_) {
    if (seen.times == 0) continue;
    ++contents[bucket_of(seen.times)];
    pages[bucket_of(seen.times)] += seen.times;
  }
  std::vector<Bucket> out = buckets(pages);
  auto it = contents.begin();
  for (Bucket& b : out) b.contents = (it++)->second;
  return out;
}

}  // namespace baton::dedup
