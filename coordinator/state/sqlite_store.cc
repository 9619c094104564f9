// SqliteStateStore: one file in WAL mode with full sync. A commit that returned is on disk.
//
// Schema 1: nodes, workloads, owners, operations (name, version, value) and
// events (id, workload, value); PRAGMA user_version holds the schema's number.
// Threads: one connection behind one mutex; a call blocks for the disk.
#include <sqlite3.h>
#include <sys/stat.h>

#include <array>
#include <filesystem>
#include <functional>
#include <mutex>
#include <utility>

#include "coordinator/state/store.h"

namespace baton::coordinator {
namespace {

constexpr int kSchemaVersion = 1;
constexpr int kBusyTimeoutMs = 5'000;
constexpr std::uint64_t kPruneEvery = 256;  // events between two prunings of the log
constexpr std::array<const char*, kTables> kTableNames = {"nodes", "workloads", "owners",
                                                          "operations"};

Error sqlite_error(sqlite3* db, const std::string& operation, const std::string& path) {
  const int primary = sqlite3_errcode(db) & 0xff;
  Code code = Code::kFailed;
  std::string hint;
  if (primary == SQLITE_FULL) {
    code = Code::kNoSpace;
    hint = "Free some space on the disk of the data folder.";
  } else if (primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB) {
    code = Code::kCorrupt;
    hint = "Restore the data folder from a backup.";
  } else if (primary == SQLITE_CANTOPEN || primary == SQLITE_READONLY || primary == SQLITE_PERM) {
    code = Code::kNotAllowed;
    hint = "Check the folder's owner and mode.";
  } else if (primary == SQLITE_BUSY || primary == SQLITE_LOCKED) {
    hint = "Another coordinator uses this data folder: stop it.";
  }
  return make_error(code, operation, path + ": " + sqlite3_errmsg(db), hint);
}

class Statement {
 public:
  Statement(sqlite3* db, const std::string& sql) {
    sqlite3_prepare_v2(db, sql.c_str(), -1, &statement_, nullptr);
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  explicit operator bool() const { return statement_ != nullptr; }
  Statement& bind(int at, const std::string& text) {
    sqlite3_bind_text(statement_, at, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& bind_blob(int at, const std::string& bytes) {
    sqlite3_bind_blob64(statement_, at, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& bind(int at, std::uint64_t number) {
    sqlite3_bind_int64(statement_, at, static_cast<sqlite3_int64>(number));
    return *this;
  }
  int step() { return statement_ ? sqlite3_step(statement_) : SQLITE_ERROR; }
  std::uint64_t number(int column) {
    return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
  }
  std::string text(int column) {
    const void* data = sqlite3_column_blob(statement_, column);
    const int size = sqlite3_column_bytes(statement_, column);
    return data ? std::string(static_cast<const char*>(data), static_cast<std::size_t>(size))
                : std::string();
  }

 private:
  sqlite3_stmt* statement_ = nullptr;
};

class SqliteStateStore final : public StateStore {
 public:
  SqliteStateStore(sqlite3* db, std::string path) : db_(db), path_(std::move(path)) {}
  ~SqliteStateStore() override { sqlite3_close(db_); }

  Result<void> prepare() {
    sqlite3_busy_timeout(db_, kBusyTimeoutMs);
    BATON_ASSIGN(const std::uint64_t found, scalar("PRAGMA user_version"));
    if (found > static_cast<std::uint64_t>(kSchemaVersion)) {
      return make_error(Code::kUnsupported, "open state",
                        path_ + " was written by a newer Baton (schema " + std::to_string(found) +
                            ", this one knows " + std::to_string(kSchemaVersion) + ")",
                        "Install that version again, or restore an older backup.");
    }
    BATON_TRY(run("PRAGMA journal_mode=WAL"));
    BATON_TRY(run("PRAGMA synchronous=FULL"));
    if (found == 0) {
      BATON_TRY(run("BEGIN IMMEDIATE"));
      for (const char* name : kTableNames) {
        BATON_TRY(run(std::string("CREATE TABLE IF NOT EXISTS ") + name +
                      " (name TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL)"
                      " WITHOUT ROWID"));
      }
      BATON_TRY(run(
          "CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY AUTOINCREMENT,"
          " workload TEXT NOT NULL, value BLOB NOT NULL)"));
      BATON_TRY(run("CREATE INDEX IF NOT EXISTS events_by_workload ON events (workload, id)"));
      BATON_TRY(run("PRAGMA user_version=" + std::to_string(kSchemaVersion)));
      BATON_TRY(run("COMMIT"));
    }
    return {};
  }

  Result<void> commit(const Transaction& transaction) override {
    std::lock_guard lock(mutex_);
    BATON_TRY(run("BEGIN IMMEDIATE"));
    auto done = apply(transaction);
    if (done) done = run("COMMIT");
    if (!done) (void)run("ROLLBACK");  // refused when the engine rolled back by itself
    return done;
  }

  Result<std::vector<pb::Event>> events(std::uint64_t after_id,
                                        const std::string& workload) override {
    std::lock_guard lock(mutex_);
    Statement query(db_, workload.empty()
                             ? "SELECT id, value FROM events WHERE id > ?1 ORDER BY id LIMIT ?2"
                             : "SELECT id, value FROM events WHERE id > ?1 AND workload = ?3"
                               " ORDER BY id LIMIT ?2");
    query.bind(1, after_id).bind(2, std::uint64_t{kMaxEventsPerRead});
    if (!workload.empty()) query.bind(3, workload);
    std::vector<pb::Event> out;
    int rc;
    while ((rc = query.step()) == SQLITE_ROW) {
      pb::Event event;
      if (!event.ParseFromString(query.text(1))) {
        return make_error(Code::kCorrupt, "read state", path_ + ": an event does not parse");
      }
      event.set_id(query.number(0));
      out.push_back(std::move(event));
    }
    if (rc != SQLITE_DONE) return sqlite_error(db_, "read state", path_);
    return out;
  }

  Result<std::uint64_t> last_event_id() override {
    std::lock_guard lock(mutex_);
    return scalar("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name='events'), 0)");
  }

 protected:
  Result<std::optional<RawRecord>> read(Table table, const std::string& key) override {
    std::lock_guard lock(mutex_);
    Statement query(db_, std::string("SELECT version, value FROM ") +
                             kTableNames[static_cast<std::size_t>(table)] + " WHERE name = ?1");
    if (query) query.bind(1, key);
    const int rc = query.step();
    if (rc == SQLITE_DONE) return std::optional<RawRecord>{};
    if (rc != SQLITE_ROW) return sqlite_error(db_, "read state", path_);
    return std::optional<RawRecord>{RawRecord{key, query.number(0), query.text(1)}};
  }

  Result<std::vector<RawRecord>> read_all(Table table) override {
    std::lock_guard lock(mutex_);
    Statement query(db_, std::string("SELECT name, version, value FROM ") +
                             kTableNames[static_cast<std::size_t>(table)] + " ORDER BY name");
    std::vector<RawRecord> out;
    int rc;
    while ((rc = query.step()) == SQLITE_ROW) {
      out.push_back({query.text(0), query.number(1), query.text(2)});
    }
    if (rc != SQLITE_DONE) return sqlite_error(db_, "read state", path_);
    return out;
  }

 private:
  Result<void> apply(const Transaction& transaction) {
    for (const auto& write : transaction.writes()) {
      const std::string table = kTableNames[static_cast<std::size_t>(write.table)];
      std::string sql;
      if (!write.bytes) {
        sql = "DELETE FROM " + table + " WHERE name = ?1 AND version = ?2";
      } else if (write.expected_version == 0) {
        sql = "INSERT INTO " + table +
              " (name, version, value) VALUES (?1, ?2 + 1, ?3) ON CONFLICT (name) DO NOTHING";
      } else {
        sql = "UPDATE " + table +
              " SET version = version + 1, value = ?3 WHERE name = ?1 AND version = ?2";
      }
      Statement change(db_, sql);
      if (!change) return sqlite_error(db_, "change state", path_);
      change.bind(1, write.key).bind(2, write.expected_version);
      if (write.bytes) change.bind_blob(3, *write.bytes);
      if (change.step() != SQLITE_DONE) return sqlite_error(db_, "change state", path_);
      if (sqlite3_changes(db_) != 1) {
        return make_error(Code::kConflict, "change state",
                          "record '" + write.key + "' changed in the meantime", "Try again.");
      }
    }
    for (const auto& event : transaction.events()) {
      Statement insert(db_, "INSERT INTO events (workload, value) VALUES (?1, ?2)");
      if (!insert) return sqlite_error(db_, "change state", path_);
      insert.bind(1, event.workload()).bind_blob(2, event.SerializeAsString());
      if (insert.step() != SQLITE_DONE) return sqlite_error(db_, "change state", path_);
      const auto id = static_cast<std::uint64_t>(sqlite3_last_insert_rowid(db_));
      if (id % kPruneEvery == 0 && id > kMaxEvents) {
        BATON_TRY(run("DELETE FROM events WHERE id <= " + std::to_string(id - kMaxEvents)));
      }
    }
    return {};
  }

  Result<void> run(const std::string& sql) {
    if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
      return sqlite_error(db_, "change state", path_);
    }
    return {};
  }
  Result<std::uint64_t> scalar(const std::string& sql) {
    Statement query(db_, sql);
    if (query.step() != SQLITE_ROW) return sqlite_error(db_, "read state", path_);
    return query.number(0);
  }

  sqlite3* db_;
  const std::string path_;
  std::mutex mutex_;
};

}  // namespace

Result<std::unique_ptr<StateStore>> open_sqlite_store(const std::string& dir) {
  std::error_code failed;
  std::filesystem::create_directories(dir, failed);
  if (failed) return errno_error(failed.value(), "make data folder", dir);
  const std::string path = dir + "/state.db";
  const mode_t old_mask = ::umask(0077);  // the keys of the workloads' digests are in it
  sqlite3* db = nullptr;
  const int rc = sqlite3_open_v2(path.c_str(), &db,
                                 SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                                     SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_EXRESCODE,
                                 nullptr);
  if (rc != SQLITE_OK) {
    Error error = db ? sqlite_error(db, "open state", path)
                     : make_error(Code::kFailed, "open state", path + ": out of memory");
    sqlite3_close(db);
    ::umask(old_mask);
    return error;
  }
  auto store = std::make_unique<SqliteStateStore>(db, path);
  auto prepared = store->prepare();
  ::umask(old_mask);
  BATON_TRY(std::move(prepared));
  return std::unique_ptr<StateStore>(std::move(store));
}

}  // namespace baton::coordinator
