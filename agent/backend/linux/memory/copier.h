// Copier: takes pages out of another process's memory. Implementations enter themselves by name
// (CopierRegistrar), as trackers do.
//
// A copier is asked for as NAME or NAME:KEY=VALUE,…
//   granularity=N   1 to 128: pages are copied in aligned groups of N (fewer, larger pieces)
//   threads=N       parallel only; 0: as many as there are processors, at most 8
//   cpus=0-1,3      parallel only: where its threads may run (with '+' for ',': cpus=0-1+3)
//
// Threads: a Copier belongs to one thread at a time.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "agent/backend/linux/memory/page_set.h"
#include "base/error.h"

namespace baton::linux_backend {

struct CopierOptions {
  std::uint32_t granularity = 1;
  std::uint32_t threads = 0;
  std::vector<int> cpus;
};

class Copier {
 public:
  static constexpr std::size_t kMaxPages = 256;   // of one call: 1 MiB
  static constexpr std::uint32_t kMaxGranularity = 128;

  virtual ~Copier() = default;
  virtual std::string_view name() const = 0;
  // Copies the pages of `runs` one behind the other into `to`. Answers how many came before the
  // first that cannot be read (not mapped, or not readable even for a tracer by this way).
  // Fails: kTraceeGone, kFailed.
  virtual Result<std::uint64_t> copy(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to) = 0;
};

struct CopierType {
  std::string name;
  int rank = 0;                                 // "auto" begins with the lowest
  std::function<Result<std::unique_ptr<Copier>>(const CopierOptions&)> make;
};

class CopierRegistrar {
 public:
  explicit CopierRegistrar(CopierType type);
};

const std::vector<CopierType>& copier_types();  // by rank

struct CopierChoice {
  std::string name;                             // "auto", or one of copier_types()
  CopierOptions options;
};
// Fails: kInvalid, naming what is wrong.
Result<CopierChoice> parse_copier(const std::string& text_untrusted);
// "auto" measures: it uses each copier that works here for some time and goes on with the fastest.
Result<std::unique_ptr<Copier>> make_copier(const CopierChoice& choice);

// One process_vm_readv(2); what Copier::copy says.
Result<std::uint64_t> read_remote(pid_t pid, std::span<const PageRun> runs, std::span<std::byte> to);

}  // namespace baton::linux_backend
