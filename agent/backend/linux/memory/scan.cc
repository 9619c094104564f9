// Tracker "scan": asks nothing of the kernel but /proc/PID/pagemap. Every present page is
// reported each time; who copies them compares their content. Slow, and always right.
#include "agent/backend/linux/memory/pagemap.h"
#include "agent/backend/linux/memory/tracker.h"

namespace baton::linux_backend {
namespace {

constexpr std::uint64_t kChunkPages = 32768;

class Scan final : public Tracker {
 public:
  explicit Scan(Pagemap pagemap) : pagemap_(std::move(pagemap)) {}
  std::string_view name() const override { return "scan"; }
  bool is_exact() const override { return false; }

  Result<void> collect(const MemoryMap& map, const PageSet& known, const Stillness&, Collected& out) override {
    for (const Vma& v : map.vmas()) {
      if (!v.is_private()) continue;
      bool file = v.kind == pb::MAPPING_FILE_PRIVATE;
      for (std::uint64_t at = v.start / 4096; at < v.end / 4096; at += kChunkPages) {
        std::uint64_t to = std::min(at + kChunkPages, v.end / 4096);
        entries_.resize(to - at);
        BATON_TRY(pagemap_.read(at, entries_));
        for (std::uint64_t page = at; page < to; ++page) {
          std::uint64_t entry = entries_[page - at];
          bool own = entry_has_page(entry) && !(file && (entry & abi::kPagemapFile));
          if (own) {
            if (!out.written.empty() && out.written.back().end() == page) ++out.written.back().count;
            else out.written.push_back({page, 1});
          } else {
            if (known.contains(page)) out.gone.push_back({page, 1});
            if (entry & abi::kPagemapGuard) out.guard(page);
          }
        }
      }
    }
    return {};
  }

 private:
  Pagemap pagemap_;
  std::vector<std::uint64_t> entries_;
};

const TrackerRegistrar registrar({"scan", 100, []() -> Result<void> { return {}; },
                                  [](pid_t pid, Tracee&) -> Result<std::unique_ptr<Tracker>> {
                                    BATON_ASSIGN(Pagemap pagemap, Pagemap::open(pid));
                                    return std::unique_ptr<Tracker>(std::make_unique<Scan>(std::move(pagemap)));
                                  }});

}  // namespace
}  // namespace baton::linux_backend
