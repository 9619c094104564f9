// The history that store_crash_writer writes and store_crash_test checks: checkpoint N of
// workload "w" follows from N alone.
#pragma once

#include "store_bench.h"

namespace baton::storage::testing_ground {

inline void write_round(Workload& w, std::uint64_t round) {
  for (std::uint64_t k = 0; k < 10; ++k) w.write(1, (round * 3 + k) % 25, round * 100 + k);
  if (round % 4 == 0) w.unmap(1, round % 25);
}

// The workload as it was after checkpoint `seq`.
inline Workload history(std::uint64_t seq) {
  Workload::manifest_padding = 200'000;  // so that the log is compacted now and then
  Workload w("w");
  for (std::uint64_t round = 1; round <= seq; ++round) {
    write_round(w, round);
    (void)w.take();
  }
  return w;
}

inline StoreOptions crash_options() {
  StoreOptions options;
  options.maintenance_thread = false;
  options.segment_bytes = 64u << 10;
  options.retention.keep_last = 3;
  return options;
}

}  // namespace baton::storage::testing_ground
