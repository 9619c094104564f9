// Files that programs map or have open: proving that this node holds the same ones,
// reading them out and writing missing ones.
//
// Paths are absolute, without "..", and are looked up as the program sees them when a
// process is named (its own root directory), else as the warden does. Only regular
// files; nothing here blocks on a FIFO or a device. An existing file with another
// content is never overwritten, unless it is the copy that the same workload left behind when
// it moved away, and nobody has written to it since: then it carries an extended attribute
// (trusted.baton.left) that says so. A file system without them: a conflict, as ever.
//
// Threads: any. Locks: one, around the digest cache; never held while reading.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include <sys/types.h>

#include "base/error.h"
#include "base/fd.h"
#include "proto/warden.pb.h"

namespace baton::warden {

inline constexpr std::size_t kFileChunkMax = 8u << 20;
inline constexpr std::size_t kProofCacheMax = 4096;

// Stores through a shared mapping show in no time of the file.
inline bool may_change_unseen(const pb::FileProof& file) { return file.mapped() && file.writable(); }

class FileRoom {
 public:
  // What this node holds under `path`: size, digest, mode, mtime. Digests are kept by
  // (device, inode, size, mtime, ctime), but for files that may be `changing`: stores through a
  // mapping show in none of these. `root_of`: a process whose root counts; 0: ours.
  // Fails: kNotFound, kInvalid, kUnsupported (not a regular file).
  Result<pb::FileProof> prove(const std::string& path_untrusted, pid_t root_of, bool changing);
  pb::ProveFilesResponse compare(const pb::ProveFilesRequest& request);

  static Result<pb::ReadFileResponse> read(const pb::ReadFileRequest& request, pid_t root_of);
  // Pieces in order; the file appears under its name with the last one, whole.
  // Fails: kConflict (another content is there; pieces out of order), kInvalid, kNoSpace.
  Result<void> write(const pb::WriteFileRequest& request);

 private:
  using Key = std::tuple<dev_t, ino_t, off_t, std::int64_t, std::int64_t>;
  Result<std::string> digest(int fd, bool changing);
  std::mutex mutex_;
  std::map<Key, std::string> digests_;
};

}  // namespace baton::warden
