// FileTree: the files of one volume as one memory object. A FUSE session serves it to the program
// (fuse_session.h), captures collect the pages in which it has changed, builds fill it.
//
// Pages of the object: page N below 2^20 is the record of file N (proto/volume.proto, after its
// length in four bytes); from there on, segment S is the 2^16 pages from S * 2^16, the content of
// one file's stretch of 256 MiB. A file's record lists its segments. What is not there is a hole.
// Numbers of files and segments are not used again before all others have been.
//
// Operations answer 0 or a negative errno, as the kernel wants them. Content is kept in files
// without a name in `folder`: it is a working copy, what is durable are checkpoints.
//
// Threads: one at a time.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/backend/linux/memory/page_set.h"
#include "base/error.h"
#include "base/fd.h"
#include "proto/volume.pb.h"

namespace baton::volume {

using linux_backend::PageRun;
using linux_backend::PageSet;

inline constexpr std::size_t kPage = 4096;
inline constexpr std::uint64_t kRootFile = 1;
inline constexpr std::uint64_t kMaxFiles = 1u << 20;
inline constexpr unsigned kSegmentBits = 16;
inline constexpr std::uint64_t kSegmentPages = std::uint64_t{1} << kSegmentBits;
inline constexpr std::uint64_t kSegmentBytes = kSegmentPages * kPage;
inline constexpr std::uint32_t kFirstSegment = kMaxFiles >> kSegmentBits;
inline constexpr std::uint32_t kMaxSegments = 1u << 20;

inline std::int64_t as_ns(const timespec& t) { return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec; }

struct File {
  std::uint64_t id = 0;
  std::uint32_t mode = 0, uid = 0, gid = 0;
  std::uint64_t device = 0, size = 0;
  std::int64_t atime_ns = 0, mtime_ns = 0, ctime_ns = 0;
  std::string target;
  struct Name {
    std::uint64_t folder = 0;
    std::string name;
    std::uint64_t order = 0;
  };
  std::vector<Name> names;
  std::vector<std::uint32_t> segments;
  // A folder's: by name and by order.
  std::map<std::string, std::uint64_t, std::less<>> children;
  std::map<std::uint64_t, std::string> order;
  std::uint64_t next_order = 1, folders = 0;
  std::uint64_t lookups = 0;      // the kernel's references
  bool is_folder() const { return S_ISDIR(mode); }
};

struct Changes {                  // utimens, chmod, chown, truncate; what is not set stays
  const std::uint32_t* mode = nullptr;
  const std::uint32_t* uid = nullptr;
  const std::uint32_t* gid = nullptr;
  const std::uint64_t* size = nullptr;
  const std::int64_t* atime_ns = nullptr;
  const std::int64_t* mtime_ns = nullptr;
  const std::int64_t* ctime_ns = nullptr;
};

class FileTree {
 public:
  // With an empty root. `folder`: on a file system with room for the content.
  static Result<std::unique_ptr<FileTree>> make(std::string folder);

  const File* find(std::uint64_t id) const;
  std::uint64_t child(std::uint64_t folder, std::string_view name) const;   // 0: none
  std::size_t files() const { return files_.size(); }
  const std::string& content_folder() const { return folder_; }
  bool imported() const { return imported_; }      // it began as a folder of this node (copy_tree.h)
  void set_imported() { imported_ = true; }
  struct stat status(const File& file) const;

  int make_file(std::uint64_t folder, std::string_view name, std::uint32_t mode, std::uint64_t device, std::uint32_t uid,
                std::uint32_t gid, std::string_view target, std::uint64_t& id);
  int link(std::uint64_t id, std::uint64_t folder, std::string_view name);
  int unlink(std::uint64_t folder, std::string_view name);
  int remove_folder(std::uint64_t folder, std::string_view name);
  // `flags` as renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE.
  int rename(std::uint64_t folder, std::string_view name, std::uint64_t to_folder, std::string_view to_name, unsigned flags);
  int change(std::uint64_t id, const Changes& changes);
  // Bytes read, which end at the file's end; or a negative errno.
  std::int64_t read(std::uint64_t id, std::span<std::byte> out, std::uint64_t at) const;
  std::int64_t write(std::uint64_t id, std::span<const std::byte> in, std::uint64_t at);
  int allocate(std::uint64_t id, int mode, std::uint64_t at, std::uint64_t bytes);   // fallocate(2)
  // The next data (or hole) at or after `at`, as lseek(2); or a negative errno.
  std::int64_t seek(std::uint64_t id, std::uint64_t at, int whence) const;

  // The kernel's references: an unlinked file lives as long as there are some.
  void look_up(std::uint64_t id) { at(id).lookups += 1; }
  void forget(std::uint64_t id, std::uint64_t lookups);

  // --- as a memory object

  // Everything counts as changed.
  void change_all();
  void change_again(PageRun run);
  std::uint64_t pages_changed() const { return changed_.size(); }
  // The oldest changes are taken: what has gone since the last call, and as many pages as fit;
  // numbers[i] is that of the i-th. Fails: content cannot be read (then nothing is taken).
  Result<std::size_t> collect(std::span<std::byte> pages, std::vector<std::uint64_t>& numbers, std::vector<PageRun>& gone);
  Result<void> fill(std::uint64_t first_page, std::span<const std::byte> pages);
  Result<void> drop(PageRun run);
  // After the fills and drops that lead to a checkpoint: names are where its records say.
  // Fails: kCorrupt.
  Result<void> settle();
  // Settled, before a program uses it: files without a name and sockets, whose owner binds them
  // again, are no longer there.
  void forget_unused();

 private:
  explicit FileTree(std::string folder) : folder_(std::move(folder)) {}
  File& at(std::uint64_t id) { return files_.at(id); }
  File* folder_at(std::uint64_t id);
  void record_changed(const File& file) { changed_.add({file.id, 1}); }
  void touch(File& file, bool content);
  int add_name(File& file, File& folder, std::string_view name);
  void remove_name(File& file, File& folder, std::string_view name);
  void end_if_unused(File& file);
  void release_segment(std::uint32_t segment);
  int segment_for(File& file, std::uint64_t index, std::uint32_t& segment);
  Result<int> open_segment(std::uint32_t segment);
  int punch(File& file, std::uint64_t from, std::uint64_t to);
  int resize(File& file, std::uint64_t size);
  pb::VolumeFile record_of(const File& file) const;
  Result<void> take_record(std::uint64_t id, std::span<const std::byte> page);

  std::string folder_;
  std::map<std::uint64_t, File> files_;
  std::map<std::uint32_t, Fd> segments_;
  std::uint64_t next_file_ = kRootFile + 1;
  std::uint32_t next_segment_ = kFirstSegment;
  bool imported_ = false;
  PageSet changed_, gone_;
  std::map<std::uint64_t, std::unique_ptr<pb::VolumeFile>> filled_;   // null: dropped
};

}  // namespace baton::volume
