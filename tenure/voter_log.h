// VoterLog: what a voter never forgets, FOLDER/voter.log: a log of VoterFile entries, each synced
// before it is told done. Bytes: docs/formats/tenure.md.
//
// A disk that was put back from a backup makes a voter break its word. It is told by the birth
// time of the file, which is written in it: a copy has another. Then, and when entries in the
// middle are damaged, `doubtful` says so. Where the file system keeps no birth time, only the
// latter is told.
//
// After a failed write or sync nothing of the file is believed: all that is known is written to
// a new one, again and again; nothing is told done meanwhile.
//
// Threads: one of its own writes; `done` and `problem` are called there.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "proto/tenure.pb.h"

namespace baton::tenure {

inline constexpr std::size_t kMaxVoterLogBytes = 64u << 20;
inline constexpr std::size_t kCompactVoterLogBytes = 1u << 20;

class VoterLog {
 public:
  struct Callbacks {
    std::function<void(std::uint64_t token)> done;           // everything up to it is on disk
    std::function<void(const std::string& text)> problem;    // empty: over
  };
  // Reads or makes FOLDER/voter.log, raises `start` by one, and syncs that. Fails: kNotAllowed,
  // kNoSpace, kUnsupported (a newer version), kCorrupt (not one of ours), kFailed.
  static Result<std::unique_ptr<VoterLog>> open(const std::string& folder, Callbacks callbacks);
  ~VoterLog();   // what is queued is written first, unless the disk fails

  // As it was before this start.
  const pb::VoterFile& found() const { return found_; }
  bool doubtful() const { return doubtful_; }

  void append(std::uint64_t token, const pb::VoterState& state);
  void erase(std::uint64_t token, const std::string& workload);

 private:
  struct Entry {
    std::uint64_t token = 0;
    pb::VoterFile change;
  };
  VoterLog(std::string folder, Callbacks callbacks) : path_(folder + "/voter.log"), callbacks_(std::move(callbacks)) {}
  Result<void> load();
  Result<void> rewrite();
  Result<void> write(const std::vector<Entry>& entries);
  void queue(Entry entry);
  void run();

  const std::string path_;
  const Callbacks callbacks_;
  pb::VoterFile found_;
  bool doubtful_ = false;

  // The writer's:
  pb::VoterFile now_;
  Fd file_;
  std::size_t bytes_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Entry> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace baton::tenure
