// GcEpochs: which pages a running garbage collection must not touch (page_store.h, leases).
//
// Every page remembers the epoch in which it was last put or asked for. A collection raises
// the epoch and may remove only pages last touched before the older of: the collection's own
// epoch, the epoch in which the oldest lease then held was taken.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>

#include "storage/page_store.h"

namespace baton::storage {

class GcEpochs {
 public:
  std::uint32_t now() const { return shared_->epoch.load(std::memory_order_acquire); }

  WriteLease lease() {
    std::lock_guard lock(shared_->mutex);
    auto it = shared_->held.insert(shared_->epoch.load(std::memory_order_relaxed));
    return WriteLease([shared = shared_, it] {
      std::lock_guard release_lock(shared->mutex);
      shared->held.erase(it);
    });
  }

  // The threshold: pages touched in this epoch or later stay.
  std::uint32_t begin() {
    std::lock_guard lock(shared_->mutex);
    std::uint32_t mine = shared_->epoch.fetch_add(1, std::memory_order_acq_rel) + 1;
    return shared_->held.empty() ? mine : std::min(mine, *shared_->held.begin());
  }

 private:
  struct Shared {
    std::atomic<std::uint32_t> epoch{1};
    std::mutex mutex;
    std::multiset<std::uint32_t> held;
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace baton::storage
