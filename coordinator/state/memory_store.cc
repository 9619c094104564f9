// MemoryStateStore: the state store for tests of everything above it.
#include <map>
#include <mutex>

#include "coordinator/state/store.h"

namespace baton::coordinator {
namespace {

class MemoryStateStore final : public StateStore {
 public:
  Result<void> commit(const Transaction& transaction) override {
    std::lock_guard lock(mutex_);
    // In the order of the writes, as a database would: a later write sees an earlier one.
    auto staged = tables_;
    for (const auto& write : transaction.writes()) {
      auto& table = staged[static_cast<int>(write.table)];
      auto found = table.find(write.key);
      const std::uint64_t stored = found == table.end() ? 0 : found->second.version;
      if (stored != write.expected_version || (!write.bytes && stored == 0)) {
        return make_error(Code::kConflict, "change state",
                          "record '" + write.key + "' changed in the meantime", "Try again.");
      }
      if (write.bytes) {
        table[write.key] = {write.key, stored + 1, *write.bytes};
      } else if (found != table.end()) {
        table.erase(found);
      }
    }
    tables_ = std::move(staged);
    for (pb::Event event : transaction.events()) {
      event.set_id(++last_id_);
      events_[last_id_] = std::move(event);
      if (events_.size() > kMaxEvents) events_.erase(events_.begin());
    }
    return {};
  }

  Result<std::vector<pb::Event>> events(std::uint64_t after_id,
                                        const std::string& workload) override {
    std::lock_guard lock(mutex_);
    std::vector<pb::Event> out;
    for (auto it = events_.upper_bound(after_id);
         it != events_.end() && out.size() < kMaxEventsPerRead; ++it) {
      if (workload.empty() || it->second.workload() == workload) out.push_back(it->second);
    }
    return out;
  }

  Result<std::uint64_t> last_event_id() override {
    std::lock_guard lock(mutex_);
    return last_id_;
  }

 protected:
  Result<std::optional<RawRecord>> read(Table table, const std::string& key) override {
    std::lock_guard lock(mutex_);
    const auto& records = tables_[static_cast<int>(table)];
    auto found = records.find(key);
    if (found == records.end()) return std::optional<RawRecord>{};
    return std::optional<RawRecord>{found->second};
  }
  Result<std::vector<RawRecord>> read_all(Table table) override {
    std::lock_guard lock(mutex_);
    std::vector<RawRecord> out;
    for (const auto& [key, record] : tables_[static_cast<int>(table)]) out.push_back(record);
    return out;
  }

 private:
  std::mutex mutex_;
  std::map<int, std::map<std::string, RawRecord>> tables_;
  std::map<std::uint64_t, pb::Event> events_;
  std::uint64_t last_id_ = 0;
};

}  // namespace

std::unique_ptr<StateStore> make_memory_store() { return std::make_unique<MemoryStateStore>(); }

}  // namespace baton::coordinator
