// CatalogLog: one append-only file of checksummed entries, the history of one workload
// (docs/formats/store.md, "Catalog log").
//
// Threads: append, sync and the rest of writing: one caller at a time. read: any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/fd.h"
#include "storage/disk.h"

namespace baton::storage {

enum class EntryType : std::uint8_t {
  kCheckpoint = 1,   // payload: a checkpoint record, a change against its parent_seq
  kDrop = 2,         // `value` is a seq that is gone
  kIncarnation = 3,  // `value` is the lowest incarnation still accepted
  kKeepFrom = 4,     // checkpoints below `value` are gone, marked ones apart
  kMarks = 5,        // payload: the tags and the pin of checkpoint `value`
  kPolicy = 6,       // payload: the workload's retention policy
};

struct LogEntry {
  EntryType type = EntryType::kCheckpoint;
  bool sealed = false;        // the payload is encrypted with the workload's key
  bool pages_synced = false;  // all pages were on disk before this entry was written
  std::uint64_t value = 0;    // of a checkpoint: the lowest seq kept
  std::uint64_t commit_wall_ns = 0;
  std::uint64_t changed_pages = 0;
  std::uint64_t parent_seq = 0;  // the parent when it was committed; the payload's is its base
};

class CatalogLog {
 public:
  // One call per good entry, in order; `payload_at` is the payload's place in the file.
  using Visit = std::function<void(const LogEntry&, std::span<const std::byte> payload,
                                   std::uint64_t payload_at)>;

  // Makes the file, which must not exist. Fails: kNoSpace, kFailed.
  static Result<std::shared_ptr<CatalogLog>> create(const std::string& path, Disk& disk);
  // Reads all entries and cuts off a torn end. Entries that are damaged while later ones are
  // whole are skipped and counted. Fails: kCorrupt (the head), kUnsupported (a newer format),
  // kFailed (EIO).
  static Result<std::shared_ptr<CatalogLog>> open(const std::string& path, Disk& disk,
                                                  const Visit& visit, std::uint64_t& damaged);

  // Returns where the payload lies. On failure nothing was appended, or broken() is true.
  Result<std::uint64_t> append(const LogEntry& entry, std::string_view payload);
  // Appends whole entries copied from another log; returns where they start.
  Result<std::uint64_t> append_raw(std::string_view entries, std::uint64_t count);
  Result<void> sync();
  // All of it from the file. Fails: kCorrupt (past the end), kFailed.
  Result<std::string> read(std::uint64_t at, std::uint64_t bytes) const;

  std::uint64_t bytes() const { return end_.load(); }
  std::uint64_t entries() const { return entries_.load(); }
  bool dirty() const { return dirty_.load(); }
  // A write or sync failed in a way that leaves the end of the file unknown.
  bool broken() const { return broken_.load(); }
  // Written in an older format: to be rewritten before anything is appended.
  bool outdated() const { return outdated_; }
  void mark_broken() { broken_ = true; }
  const std::string& path() const { return path_; }
  void set_path(std::string path) { path_ = std::move(path); }

 private:
  CatalogLog(std::string path, Fd fd, Disk& disk)
      : path_(std::move(path)), fd_(std::move(fd)), disk_(disk) {}
  Result<std::uint64_t> write(std::span<const std::string_view> parts);

  std::string path_;
  const Fd fd_;
  Disk& disk_;
  std::atomic<std::uint64_t> end_{0};
  std::atomic<std::uint64_t> entries_{0};
  std::atomic<bool> dirty_{false}, broken_{false};
  bool outdated_ = false;
};

}  // namespace baton::storage
