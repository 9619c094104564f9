// store_crash_writer FOLDER ROUNDS: opens the store, goes on from its tip for ROUNDS synced
// checkpoints with collections and compactions in between, and prints each one's number once
// its commit was acknowledged. store_crash_test kills it.
#include <unistd.h>

#include <cstdio>

#include "crash_history.h"

namespace baton::storage::testing_ground {
namespace {

int run(const std::string& folder, int rounds) {
  static SystemClock clock;
  auto store = Store::open(folder, crash_options(), clock);
  if (!store) {
    std::fprintf(stderr, "%s\n", store.error().message().c_str());
    return 1;
  }
  Workload w("w");
  if (auto added = (*store)->add_workload(w.identity()); !added) return 1;
  auto tip = (*store)->tip("w");
  const std::uint64_t start = *tip ? (*tip)->seq : 0;
  w = history(start);
  for (std::uint64_t seq = start + 1; seq <= start + static_cast<std::uint64_t>(rounds); ++seq) {
    write_round(w, seq);
    auto done = w.checkpoint(**store, Durability::kSynced);
    if (!done) {
      std::fprintf(stderr, "%s\n", done.error().message().c_str());
      return 1;
    }
    const std::string line = std::to_string(seq) + "\n";
    if (::write(1, line.data(), line.size()) < 0) return 1;
    if (seq % 2 == 0 && !(*store)->gc()) return 1;
    if (seq % 3 == 0 && !(*store)->maintain()) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace baton::storage::testing_ground

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  return baton::storage::testing_ground::run(argv[1], std::atoi(argv[2]));
}
