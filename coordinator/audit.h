// AuditLog: who did what, when and from where, in an append-only file.
//
// DIR/audit.log holds one JSON object per line, synced before append() returns; a full one
// (kMaxAuditFileBytes) becomes audit.1.log, and so on up to kMaxAuditFiles, the oldest of which
// is dropped. Each line carries the SHA-256 of the line before it, also across files: a line
// that was changed, or one missing in the middle, shows when the log is read. (Whoever can
// write the files can also write the whole chain anew: copy the log elsewhere to be sure.)
//
// Refuses nothing but what the disk refuses; a last line torn by a crash is cut off at open.
// Threads: any; one mutex, held while writing and syncing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/log.h"
#include "proto/operator.pb.h"

namespace baton::coordinator {

inline constexpr std::size_t kMaxAuditFileBytes = 16u << 20;
inline constexpr int kMaxAuditFiles = 8;
inline constexpr std::size_t kMaxAuditFieldBytes = 1'024;

class AuditLog {
 public:
  // Fails: kCorrupt (the newest file does not parse), kNoSpace, kNotAllowed, kFailed.
  static Result<std::unique_ptr<AuditLog>> open(const std::string& dir, const Clock& clock,
                                                std::size_t max_file_bytes = kMaxAuditFileBytes);

  // Gives the entry its id and time, and answers the id; durable. Long fields are clipped.
  // Fails: kNoSpace, kFailed; then nothing was added.
  Result<std::uint64_t> append(pb::AuditEntry entry);

  // Entries that match, oldest first, until `sink` answers false.
  // Fails: kCorrupt, naming the entry whose chain is broken.
  Result<void> read(const pb::AuditRequest& request,
                    const std::function<bool(const pb::AuditEntry&)>& sink);

 private:
  AuditLog(std::string dir, const Clock& clock, std::size_t max_file_bytes)
      : dir_(std::move(dir)), clock_(clock), max_file_bytes_(max_file_bytes) {}
  std::string path(int age) const;  // 0: the newest
  Result<void> load();
  Result<void> rotate();

  const std::string dir_;
  const Clock& clock_;
  const std::size_t max_file_bytes_;
  std::mutex mutex_;
  Fd file_;
  std::size_t bytes_ = 0;
  std::uint64_t last_id_ = 0;
  std::string last_hash_;  // hex; of the newest line
};

// Runs `body`, a Result, between an entry that says it has begun and one with its outcome.
// When the first cannot be written, nothing is done: what cannot be audited does not happen.
// `log` absent: no entries.
template <typename Body>
auto audited(AuditLog* log, pb::AuditEntry entry, Body&& body) -> decltype(body()) {
  if (log == nullptr) return body();
  entry.set_outcome("begun");
  BATON_ASSIGN(const std::uint64_t id, log->append(entry));
  auto result = body();
  entry.set_begun_id(id);
  entry.set_outcome(result ? "done" : "failed");
  if (!result) entry.set_problem(result.error().message());
  if (auto done = log->append(entry); !done) {
    spdlog::error("the end of {} by {} was not audited: {}", entry.action(), entry.who(),
                  done.error().message());
  }
  return result;
}

}  // namespace baton::coordinator
