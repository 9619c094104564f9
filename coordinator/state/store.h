// StateStore: what the coordinator must not forget, in one place, behind one interface.
//
// Four tables of records (nodes, workloads, owner records, operations under way), each
// keyed by name and carrying a version, and a log of events with rising ids. The only
// way to change anything is a Transaction: all of its writes happen, durably, or none.
// Each write says which version it expects (0: the record must not exist), so that
// two writers cannot both win.
//
// Refuses: a write whose expected version is not the stored one (kConflict), a store
// written by a newer schema (kUnsupported), a damaged store (kCorrupt).
// Threads: every method may be called from any thread; all of them may block on disk.
// Implementations: SqliteStateStore (files), MemoryStateStore (tests). One contract suite
// runs over both: tests/contract/coordinator/state_store_test.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "proto/coordinator.pb.h"
#include "proto/coordinator_state.pb.h"

namespace baton::coordinator {

enum class Table : int { kNode = 0, kWorkload = 1, kOwner = 2, kOperation = 3 };
inline constexpr int kTables = 4;

// The log keeps the newest events only.
inline constexpr std::uint64_t kMaxEvents = 100'000;
inline constexpr std::size_t kMaxEventsPerRead = 1'000;

template <typename T>
struct Versioned {
  T value;
  std::uint64_t version = 0;  // 0: not stored
};

struct RawRecord {
  std::string key;
  std::uint64_t version = 0;
  std::string bytes;
};

template <typename T>
struct TableOf;
template <>
struct TableOf<pb::NodeRecord> {
  static constexpr Table kTable = Table::kNode;
};
template <>
struct TableOf<pb::WorkloadRecord> {
  static constexpr Table kTable = Table::kWorkload;
};
template <>
struct TableOf<pb::OwnerRecord> {
  static constexpr Table kTable = Table::kOwner;
};
template <>
struct TableOf<pb::OperationRecord> {
  static constexpr Table kTable = Table::kOperation;
};

class Transaction {
 public:
  struct Write {
    Table table;
    std::string key;
    std::uint64_t expected_version;
    std::optional<std::string> bytes;  // absent: erase
  };

  // The stored version becomes expected_version + 1.
  template <typename T>
  Transaction& put(const std::string& key, std::uint64_t expected_version, const T& value) {
    writes_.push_back({TableOf<T>::kTable, key, expected_version, value.SerializeAsString()});
    return *this;
  }
  // The record must exist.
  template <typename T>
  Transaction& erase(const std::string& key, std::uint64_t expected_version) {
    writes_.push_back({TableOf<T>::kTable, key, expected_version, std::nullopt});
    return *this;
  }
  // Its id is given at commit.
  Transaction& event(pb::Event event) {
    events_.push_back(std::move(event));
    return *this;
  }

  const std::vector<Write>& writes() const { return writes_; }
  const std::vector<pb::Event>& events() const { return events_; }

 private:
  std::vector<Write> writes_;
  std::vector<pb::Event> events_;
};

class StateStore {
 public:
  virtual ~StateStore() = default;

  // Absent: version 0 and an empty value. Fails: kCorrupt, kFailed (disk).
  template <typename T>
  Result<Versioned<T>> get(const std::string& key) {
    BATON_ASSIGN(auto raw, read(TableOf<T>::kTable, key));
    Versioned<T> out;
    if (!raw) return out;
    BATON_TRY(parse(*raw, out));
    return out;
  }

  // All records of the table, by key.
  template <typename T>
  Result<std::vector<Versioned<T>>> list() {
    BATON_ASSIGN(auto raws, read_all(TableOf<T>::kTable));
    std::vector<Versioned<T>> out(raws.size());
    for (std::size_t i = 0; i < raws.size(); ++i) BATON_TRY(parse(raws[i], out[i]));
    return out;
  }

  // All or nothing, durable before it returns.
  // Fails: kConflict (a version differs; nothing was changed), kNoSpace, kFailed.
  virtual Result<void> commit(const Transaction& transaction) = 0;

  // Events with id > after_id, oldest first, at most kMaxEventsPerRead;
  // of `workload` only, unless it is empty.
  virtual Result<std::vector<pb::Event>> events(std::uint64_t after_id,
                                                const std::string& workload) = 0;
  // 0 when there is none yet.
  virtual Result<std::uint64_t> last_event_id() = 0;

 protected:
  virtual Result<std::optional<RawRecord>> read(Table table, const std::string& key) = 0;
  virtual Result<std::vector<RawRecord>> read_all(Table table) = 0;

 private:
  template <typename T>
  static Result<void> parse(const RawRecord& raw, Versioned<T>& out) {
    if (!out.value.ParseFromString(raw.bytes)) {
      return make_error(Code::kCorrupt, "read state", "record '" + raw.key + "' does not parse",
                        "Restore the data folder from a backup.");
    }
    out.version = raw.version;
    return {};
  }
};

// Nothing outlives the object.
std::unique_ptr<StateStore> make_memory_store();

// One SQLite file, `dir`/state.db, made when absent; WAL, synchronous=FULL, mode 0600.
// Fails: kUnsupported (written by a newer Baton), kCorrupt, kNotAllowed, kNoSpace, kFailed.
Result<std::unique_ptr<StateStore>> open_sqlite_store(const std::string& dir);

}  // namespace baton::coordinator
