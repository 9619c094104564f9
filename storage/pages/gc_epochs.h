// GcEpochs: which pages a running garbage collection must not touch (page_store.h, leases).
//
// Every page remembers the epoch in which it was last put or asked for. A collection raises
// the epoch and may remove only pages last touched before the older of: the collection's own
// epoch, the epoch in which the oldest lease then held was taken.
//
// New epochs begin with leases too, every second or every 64 leases: otherwise a lease would
// hold back all that was put since the last collection, and a store that is full could free
// nothing for as long as anybody writes to it. 32 bits last for years at 1,000 leases a second.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
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
    const auto now = std::chrono::steady_clock::now();
    if (++shared_->leases >= kLeasesPerEpoch || now - shared_->began >= kEpochLength) {
      shared_->leases = 0;
      shared_->began = now;
      shared_->epoch.fetch_add(1, std::memory_order_acq_rel);
    }
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
  static constexpr std::uint32_t kLeasesPerEpoch = 64;
  static constexpr std::chrono::seconds kEpochLength{1};
  struct Shared {
    std::atomic<std::uint32_t> epoch{1};
    std::uint32_t leases = 0;  // since the epoch began
    std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
    std::mutex mutex;
    std::multiset<std::uint32_t> held;
  };
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace baton::storage
