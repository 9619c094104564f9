#include "agent/volume/file_tree.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif

namespace baton::volume {
namespace {

constexpr std::size_t kRecordMax = kPage - 4;
constexpr std::size_t kNameMax = 255;
constexpr std::uint64_t kMaxSize = std::uint64_t{512} * kSegmentBytes;   // 128 GiB: its record stays within a page

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

timespec as_timespec(std::int64_t ns) {
  std::int64_t seconds = ns / 1'000'000'000, rest = ns % 1'000'000'000;
  if (rest < 0) seconds -= 1, rest += 1'000'000'000;
  return {static_cast<time_t>(seconds), static_cast<long>(rest)};
}

std::uint64_t page_of(std::uint32_t segment, std::uint64_t at) {
  return (std::uint64_t{segment} << kSegmentBits) + at % kSegmentBytes / kPage;
}

bool is_name(const std::string& name) {
  return !name.empty() && name.size() <= kNameMax && name != "." && name != ".." && name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

Result<Fd> nameless_file(const std::string& folder) {
  auto fd = open_file(folder, O_TMPFILE | O_RDWR, 0600);
  if (fd || (fd.error().sys_errno != EOPNOTSUPP && fd.error().sys_errno != EISDIR && fd.error().sys_errno != EINVAL)) return fd;
  std::string name = folder + "/content.XXXXXX";
  Fd made = Fd::adopt(::mkostemp(name.data(), O_CLOEXEC));
  if (!made) return errno_error("make a file", folder);
  ::unlink(name.c_str());
  return made;
}

}  // namespace

Result<std::unique_ptr<FileTree>> FileTree::make(std::string folder) {
  BATON_TRY(nameless_file(folder));   // that it can be done
  std::unique_ptr<FileTree> tree(new FileTree(std::move(folder)));
  File& root = tree->files_[kRootFile];
  root.id = kRootFile;
  root.mode = S_IFDIR | 0755;
  root.atime_ns = root.mtime_ns = root.ctime_ns = now_ns();
  tree->record_changed(root);
  return tree;
}

const File* FileTree::find(std::uint64_t id) const {
  auto found = files_.find(id);
  return found == files_.end() ? nullptr : &found->second;
}

File* FileTree::folder_at(std::uint64_t id) {
  auto found = files_.find(id);
  return found == files_.end() || !found->second.is_folder() ? nullptr : &found->second;
}

std::uint64_t FileTree::child(std::uint64_t folder, std::string_view name) const {
  const File* in = find(folder);
  if (in == nullptr) return 0;
  auto found = in->children.find(name);
  return found == in->children.end() ? 0 : found->second;
}

struct stat FileTree::status(const File& file) const {
  struct stat st {};
  st.st_ino = file.id;
  st.st_mode = file.mode;
  st.st_uid = file.uid;
  st.st_gid = file.gid;
  st.st_rdev = file.device;
  st.st_size = static_cast<off_t>(file.is_folder() ? kPage : file.size);
  st.st_blksize = kPage;
  st.st_nlink = file.names.size();
  if (file.is_folder()) {
    st.st_nlink = 2 + file.folders;
  }
  std::uint64_t blocks = 0;
  for (std::uint32_t segment : file.segments) {
    auto found = segments_.find(segment);
    struct stat held {};
    if (found != segments_.end() && ::fstat(found->second.get(), &held) == 0) blocks += static_cast<std::uint64_t>(held.st_blocks);
  }
  st.st_blocks = static_cast<blkcnt_t>(blocks);
  st.st_atim = as_timespec(file.atime_ns);
  st.st_mtim = as_timespec(file.mtime_ns);
  st.st_ctim = as_timespec(file.ctime_ns);
  return st;
}

void FileTree::touch(File& file, bool content) {
  file.ctime_ns = now_ns();
  if (content) file.mtime_ns = file.ctime_ns;
  record_changed(file);
}

// --- names -----------------------------------------------------------------------

int FileTree::add_name(File& file, File& folder, std::string_view name) {
  if (name.size() > kNameMax) return -ENAMETOOLONG;
  const std::uint64_t order = folder.next_order++;
  file.names.push_back({folder.id, std::string(name), order});
  if (record_of(file).ByteSizeLong() > kRecordMax) {
    file.names.pop_back();
    return -EMLINK;
  }
  folder.children.emplace(name, file.id);
  folder.order.emplace(order, name);
  if (file.is_folder()) ++folder.folders;
  touch(file, false);
  touch(folder, true);
  return 0;
}

void FileTree::remove_name(File& file, File& folder, std::string_view name) {
  auto entry = std::find_if(file.names.begin(), file.names.end(), [&](const File::Name& n) { return n.folder == folder.id && n.name == name; });
  if (entry == file.names.end()) return;
  folder.order.erase(entry->order);
  folder.children.erase(folder.children.find(name));
  file.names.erase(entry);
  if (file.is_folder()) --folder.folders;
  touch(file, false);
  touch(folder, true);
}

int FileTree::make_file(std::uint64_t folder_id, std::string_view name, std::uint32_t mode, std::uint64_t device, std::uint32_t uid,
                        std::uint32_t gid, std::string_view target, std::uint64_t& id) {
  File* folder = folder_at(folder_id);
  if (folder == nullptr) return -ENOENT;
  if (folder->children.contains(name)) return -EEXIST;
  if (files_.size() >= kMaxFiles - 2) return -ENOSPC;
  while (files_.contains(next_file_)) next_file_ = next_file_ + 1 < kMaxFiles ? next_file_ + 1 : kRootFile + 1;
  id = next_file_;
  next_file_ = next_file_ + 1 < kMaxFiles ? next_file_ + 1 : kRootFile + 1;
  File& file = files_[id];
  file.id = id;
  file.mode = mode;
  file.device = device;
  file.uid = uid;
  // A folder with the set-group-ID bit hands its group down (inode_init_owner).
  file.gid = gid;
  if ((folder->mode & S_ISGID) != 0) {
    file.gid = folder->gid;
    if (S_ISDIR(mode)) file.mode |= S_ISGID;
  }
  file.target = target;
  file.size = target.size();
  file.atime_ns = file.mtime_ns = now_ns();
  if (int failed = add_name(file, *folder, name); failed != 0) {
    files_.erase(id);
    changed_.remove({id, 1});
    return failed;
  }
  return 0;
}

int FileTree::link(std::uint64_t id, std::uint64_t folder_id, std::string_view name) {
  File* folder = folder_at(folder_id);
  if (folder == nullptr || !files_.contains(id)) return -ENOENT;
  if (at(id).is_folder()) return -EPERM;
  if (folder->children.contains(name)) return -EEXIST;
  return add_name(at(id), *folder, name);
}

void FileTree::end_if_unused(File& file) {
  if (!file.names.empty() || file.lookups != 0 || file.id == kRootFile) return;
  for (std::uint32_t segment : file.segments) release_segment(segment);
  changed_.remove({file.id, 1});
  gone_.add({file.id, 1});
  files_.erase(file.id);
}

void FileTree::forget(std::uint64_t id, std::uint64_t lookups) {
  auto found = files_.find(id);
  if (found == files_.end()) return;
  found->second.lookups -= std::min(lookups, found->second.lookups);
  end_if_unused(found->second);
}

int FileTree::unlink(std::uint64_t folder_id, std::string_view name) {
  File* folder = folder_at(folder_id);
  const std::uint64_t id = child(folder_id, name);
  if (folder == nullptr || id == 0) return -ENOENT;
  if (at(id).is_folder()) return -EISDIR;
  remove_name(at(id), *folder, name);
  end_if_unused(at(id));
  return 0;
}

int FileTree::remove_folder(std::uint64_t folder_id, std::string_view name) {
  File* folder = folder_at(folder_id);
  const std::uint64_t id = child(folder_id, name);
  if (folder == nullptr || id == 0) return -ENOENT;
  if (!at(id).is_folder()) return -ENOTDIR;
  if (!at(id).children.empty()) return -ENOTEMPTY;
  remove_name(at(id), *folder, name);
  end_if_unused(at(id));
  return 0;
}

int FileTree::rename(std::uint64_t folder_id, std::string_view name, std::uint64_t to_folder_id, std::string_view to_name, unsigned flags) {
  File *folder = folder_at(folder_id), *to_folder = folder_at(to_folder_id);
  const std::uint64_t id = child(folder_id, name), there = child(to_folder_id, to_name);
  if (folder == nullptr || to_folder == nullptr || id == 0) return -ENOENT;
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0) return -EINVAL;
  if (to_name.size() > kNameMax) return -ENAMETOOLONG;
  if (there != 0 && (flags & RENAME_NOREPLACE) != 0) return -EEXIST;
  if (there == 0 && (flags & RENAME_EXCHANGE) != 0) return -ENOENT;
  if (there == id) return 0;   // two names of one file: nothing happens (rename(2))
  const std::string from(name), to(to_name);
  if ((flags & RENAME_EXCHANGE) != 0) {
    remove_name(at(id), *folder, from);
    remove_name(at(there), *to_folder, to);
    if (int failed = add_name(at(id), *to_folder, to); failed != 0) return failed;
    return add_name(at(there), *folder, from);
  }
  if (there != 0) {
    if (at(there).is_folder() && !at(id).is_folder()) return -EISDIR;
    if (!at(there).is_folder() && at(id).is_folder()) return -ENOTDIR;
    if (at(there).is_folder() && !at(there).children.empty()) return -ENOTEMPTY;
    remove_name(at(there), *to_folder, to);
    end_if_unused(at(there));
  }
  remove_name(at(id), *folder, from);
  if (int failed = add_name(at(id), *to_folder, to); failed != 0) {
    (void)add_name(at(id), *folder, from);
    return failed;
  }
  return 0;
}

// --- content ---------------------------------------------------------------------

Result<int> FileTree::open_segment(std::uint32_t segment) {
  auto found = segments_.find(segment);
  if (found != segments_.end()) return found->second.get();
  BATON_ASSIGN(Fd fd, nameless_file(folder_));
  return segments_.emplace(segment, std::move(fd)).first->second.get();
}

// The segment of a stretch of the file; one is taken when there is none.
int FileTree::segment_for(File& file, std::uint64_t index, std::uint32_t& segment) {
  if (index < file.segments.size() && file.segments[index] != 0) {
    segment = file.segments[index];
    auto opened = open_segment(segment);   // of a checkpoint that had nothing but holes in it
    return opened ? 0 : opened.error().sys_errno != 0 ? -opened.error().sys_errno : -EIO;
  }
  if (segments_.size() >= kMaxSegments - kFirstSegment) return -ENOSPC;
  while (segments_.contains(next_segment_)) next_segment_ = next_segment_ + 1 < kMaxSegments ? next_segment_ + 1 : kFirstSegment;
  segment = next_segment_;
  if (auto opened = open_segment(segment); !opened) return opened.error().sys_errno != 0 ? -opened.error().sys_errno : -EIO;
  next_segment_ = next_segment_ + 1 < kMaxSegments ? next_segment_ + 1 : kFirstSegment;
  if (file.segments.size() <= index) file.segments.resize(index + 1);
  file.segments[index] = segment;
  record_changed(file);
  return 0;
}

void FileTree::release_segment(std::uint32_t segment) {
  if (segment == 0) return;
  segments_.erase(segment);
  const PageRun all{std::uint64_t{segment} << kSegmentBits, kSegmentPages};
  changed_.remove(all);
  gone_.add(all);
}

std::int64_t FileTree::read(std::uint64_t id, std::span<std::byte> out, std::uint64_t from) const {
  const File* file = find(id);
  if (file == nullptr) return -ENOENT;
  if (from >= file->size) return 0;
  out = out.first(std::min<std::uint64_t>(out.size(), file->size - from));
  std::size_t done = 0;
  while (done < out.size()) {
    const std::uint64_t position = from + done, index = position / kSegmentBytes;
    const std::size_t want = std::min<std::uint64_t>(out.size() - done, kSegmentBytes - position % kSegmentBytes);
    auto held = index < file->segments.size() ? segments_.find(file->segments[index]) : segments_.end();
    std::size_t got = 0;
    while (held != segments_.end() && got < want) {
      ssize_t n = ::pread(held->second.get(), out.data() + done + got, want - got, static_cast<off_t>(position % kSegmentBytes + got));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return -errno;
      if (n == 0) break;
      got += static_cast<std::size_t>(n);
    }
    std::memset(out.data() + done + got, 0, want - got);
    done += want;
  }
  return static_cast<std::int64_t>(done);
}

std::int64_t FileTree::write(std::uint64_t id, std::span<const std::byte> in, std::uint64_t to) {
  auto found = files_.find(id);
  if (found == files_.end()) return -ENOENT;
  File& file = found->second;
  if (to > kMaxSize || in.size() > kMaxSize - to) return -EFBIG;
  std::size_t done = 0;
  int failed = 0;
  while (done < in.size() && failed == 0) {
    const std::uint64_t position = to + done;
    const std::size_t want = std::min<std::uint64_t>(in.size() - done, kSegmentBytes - position % kSegmentBytes);
    std::uint32_t segment = 0;
    failed = segment_for(file, position / kSegmentBytes, segment);
    if (failed != 0) break;
    ssize_t n = ::pwrite(segments_.at(segment).get(), in.data() + done, want, static_cast<off_t>(position % kSegmentBytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) failed = -errno;
    if (n <= 0) break;
    const std::uint64_t first = page_of(segment, position), last = page_of(segment, position + static_cast<std::uint64_t>(n) - 1);
    changed_.add({first, last - first + 1});
    done += static_cast<std::size_t>(n);
  }
  if (done == 0) return in.empty() ? 0 : failed != 0 ? failed : -EIO;
  file.size = std::max(file.size, to + done);
  // Whoever writes to it takes the right to become another away (file_remove_privs).
  file.mode &= ~static_cast<std::uint32_t>(S_ISUID);
  if ((file.mode & S_IXGRP) != 0) file.mode &= ~static_cast<std::uint32_t>(S_ISGID);
  touch(file, true);
  return static_cast<std::int64_t>(done);
}

// Zeros in [from, to): whole pages are gone, of pages at the ends the part.
int FileTree::punch(File& file, std::uint64_t from, std::uint64_t to) {
  for (std::uint64_t position = from; position < to;) {
    const std::uint64_t index = position / kSegmentBytes, end = std::min(to, (index + 1) * kSegmentBytes);
    if (index >= file.segments.size()) break;
    if (const std::uint32_t segment = file.segments[index]; segment != 0) {
      if (position == index * kSegmentBytes && end == (index + 1) * kSegmentBytes) {
        release_segment(segment);
        file.segments[index] = 0;
        record_changed(file);
      } else if (auto held = segments_.find(segment); held != segments_.end()) {
        if (::fallocate(held->second.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(position % kSegmentBytes),
                        static_cast<off_t>(end - position)) != 0) {
          return -errno;
        }
        const std::uint64_t base = std::uint64_t{segment} << kSegmentBits;
        const std::uint64_t whole_from = base + (position % kSegmentBytes + kPage - 1) / kPage;
        const std::uint64_t whole_to = base + (end - index * kSegmentBytes) / kPage;
        if (position % kPage != 0) changed_.add({page_of(segment, position), 1});
        if (end % kPage != 0) changed_.add({page_of(segment, end - 1), 1});
        if (whole_from < whole_to) {
          changed_.remove({whole_from, whole_to - whole_from});
          gone_.add({whole_from, whole_to - whole_from});
        }
      }
    }
    position = end;
  }
  return 0;
}

int FileTree::resize(File& file, std::uint64_t size) {
  if (!S_ISREG(file.mode)) return file.is_folder() ? -EISDIR : -EINVAL;
  if (size > kMaxSize) return -EFBIG;
  if (size < file.size) {
    // Beyond the end nothing is left, so that a file that grows again begins with zeros.
    const std::uint64_t end = (file.size + kSegmentBytes - 1) / kSegmentBytes * kSegmentBytes;
    if (int failed = punch(file, size, end); failed != 0) return failed;
    while (!file.segments.empty() && file.segments.back() == 0) file.segments.pop_back();
  }
  file.size = size;
  touch(file, true);
  return 0;
}

int FileTree::change(std::uint64_t id, const Changes& changes) {
  auto found = files_.find(id);
  if (found == files_.end()) return -ENOENT;
  File& file = found->second;
  if (changes.size != nullptr) {
    if (int failed = resize(file, *changes.size); failed != 0) return failed;
  }
  if (changes.mode != nullptr) file.mode = (file.mode & S_IFMT) | (*changes.mode & 07777);
  if (changes.uid != nullptr) file.uid = *changes.uid;
  if (changes.gid != nullptr) file.gid = *changes.gid;
  if (changes.atime_ns != nullptr) file.atime_ns = *changes.atime_ns;
  if (changes.mtime_ns != nullptr) file.mtime_ns = *changes.mtime_ns;
  file.ctime_ns = changes.ctime_ns != nullptr ? *changes.ctime_ns : now_ns();
  record_changed(file);
  return 0;
}

int FileTree::allocate(std::uint64_t id, int mode, std::uint64_t from, std::uint64_t bytes) {
  auto found = files_.find(id);
  if (found == files_.end()) return -ENOENT;
  File& file = found->second;
  if (!S_ISREG(file.mode)) return -ENODEV;
  if (bytes == 0) return -EINVAL;
  if (from > kMaxSize || bytes > kMaxSize - from) return -EFBIG;
  constexpr int kKnown = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
  if ((mode & ~kKnown) != 0) return -EOPNOTSUPP;
  if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
    if (int failed = punch(file, from, std::min(from + bytes, file.size)); failed != 0) return failed;
  }
  if ((mode & FALLOC_FL_PUNCH_HOLE) == 0) {
    // Room for what is to be written: kept on this node, holes in a checkpoint.
    for (std::uint64_t position = from; position < from + bytes;) {
      const std::uint64_t end = std::min(from + bytes, (position / kSegmentBytes + 1) * kSegmentBytes);
      std::uint32_t segment = 0;
      if (int failed = segment_for(file, position / kSegmentBytes, segment); failed != 0) return failed;
      if (::fallocate(segments_.at(segment).get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(position % kSegmentBytes), static_cast<off_t>(end - position)) != 0 &&
          errno != EOPNOTSUPP) {
        return -errno;
      }
      position = end;
    }
    if ((mode & FALLOC_FL_KEEP_SIZE) == 0) file.size = std::max(file.size, from + bytes);
  }
  touch(file, true);
  return 0;
}

std::int64_t FileTree::seek(std::uint64_t id, std::uint64_t from, int whence) const {
  const File* file = find(id);
  if (file == nullptr) return -ENOENT;
  if (from >= file->size) return -ENXIO;
  for (std::uint64_t position = from; position < file->size;) {
    const std::uint64_t index = position / kSegmentBytes, end = std::min(file->size, (index + 1) * kSegmentBytes);
    auto held = index < file->segments.size() ? segments_.find(file->segments[index]) : segments_.end();
    if (held == segments_.end()) {
      if (whence == SEEK_HOLE) return static_cast<std::int64_t>(position);
    } else {
      const off_t found = ::lseek(held->second.get(), static_cast<off_t>(position % kSegmentBytes), whence);
      if (found < 0 && errno != ENXIO) return -errno;
      // Past the end of what is held there is a hole.
      if (found < 0 && whence == SEEK_HOLE) return static_cast<std::int64_t>(position);
      const std::uint64_t there = found < 0 ? end : index * kSegmentBytes + static_cast<std::uint64_t>(found);
      if (there < end) return static_cast<std::int64_t>(there);
    }
    position = end;
  }
  return whence == SEEK_HOLE ? static_cast<std::int64_t>(file->size) : -ENXIO;
}

// --- as a memory object ------------------------------------------------------------

pb::VolumeFile FileTree::record_of(const File& file) const {
  pb::VolumeFile out;
  out.set_mode(file.mode);
  out.set_uid(file.uid);
  out.set_gid(file.gid);
  out.set_device(file.device);
  out.set_size(file.size);
  out.set_atime_ns(file.atime_ns);
  out.set_mtime_ns(file.mtime_ns);
  out.set_ctime_ns(file.ctime_ns);
  out.set_target(file.target);
  for (const auto& name : file.names) {
    auto& to = *out.add_names();
    to.set_folder(name.folder);
    to.set_name(name.name);
    to.set_order(name.order);
  }
  for (std::uint32_t segment : file.segments) out.add_segments(segment);
  return out;
}

void FileTree::change_all() {
  gone_.clear();
  for (const auto& [id, file] : files_) changed_.add({id, 1});
  for (const auto& [segment, fd] : segments_) {
    const std::uint64_t base = std::uint64_t{segment} << kSegmentBits;
    for (off_t at = 0;;) {
      const off_t data = ::lseek(fd.get(), at, SEEK_DATA);
      if (data < 0) break;
      const off_t hole = ::lseek(fd.get(), data, SEEK_HOLE);
      if (hole <= data) break;
      const std::uint64_t first = static_cast<std::uint64_t>(data) / kPage, end = (static_cast<std::uint64_t>(hole) + kPage - 1) / kPage;
      changed_.add({base + first, end - first});
      at = hole;
    }
  }
}

void FileTree::change_again(PageRun run) {
  const std::uint64_t records_end = std::min(run.end(), kMaxFiles);
  for (auto it = files_.lower_bound(run.first); it != files_.end() && it->first < records_end; ++it) changed_.add({it->first, 1});
  for (auto it = segments_.lower_bound(static_cast<std::uint32_t>(run.first >> kSegmentBits)); it != segments_.end(); ++it) {
    const std::uint64_t base = std::uint64_t{it->first} << kSegmentBits;
    const std::uint64_t from = std::max(base, run.first), to = std::min(base + kSegmentPages, run.end());
    if (from >= run.end()) break;
    if (from < to) changed_.add({from, to - from});
  }
}

Result<std::size_t> FileTree::collect(std::span<std::byte> pages, std::vector<std::uint64_t>& numbers, std::vector<PageRun>& gone) {
  numbers.clear();
  gone.clear();
  const std::size_t room = pages.size() / kPage;
  std::vector<PageRun> runs;
  std::size_t taken = 0;
  changed_.for_each_run([&](PageRun run) {
    run.count = std::min<std::uint64_t>(run.count, room - taken);
    if (run.count == 0) return false;
    runs.push_back(run);
    taken += run.count;
    return taken < room;
  });
  for (PageRun run : runs) {
    for (std::uint64_t page = run.first; page < run.end();) {
      std::span<std::byte> to = pages.subspan(numbers.size() * kPage);
      if (page < kMaxFiles) {
        to = to.first(kPage);
        std::memset(to.data(), 0, kPage);
        const pb::VolumeFile record = record_of(files_.at(page));
        const auto bytes = static_cast<std::uint32_t>(record.ByteSizeLong());
        if (bytes > kRecordMax) return make_error(Code::kUnsupported, "volume", "file " + std::to_string(page) + " has too many names or pieces");
        std::memcpy(to.data(), &bytes, sizeof bytes);
        if (!record.SerializeToArray(to.data() + sizeof bytes, static_cast<int>(bytes))) return make_error(Code::kFailed, "volume", "a record cannot be written");
        numbers.push_back(page++);
        continue;
      }
      const auto segment = static_cast<std::uint32_t>(page >> kSegmentBits);
      const std::uint64_t end = std::min(run.end(), (std::uint64_t{segment} + 1) << kSegmentBits);
      to = to.first((end - page) * kPage);
      const int fd = segments_.at(segment).get();
      for (std::size_t got = 0; got < to.size();) {
        const ssize_t n = ::pread(fd, to.data() + got, to.size() - got, static_cast<off_t>(page % kSegmentPages * kPage + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_error("read a volume's content", folder_);
        if (n == 0) {
          std::memset(to.data() + got, 0, to.size() - got);
          break;
        }
        got += static_cast<std::size_t>(n);
      }
      for (; page < end; ++page) numbers.push_back(page);
    }
  }
  for (PageRun run : runs) changed_.remove(run);
  gone_.for_each_run([&](PageRun run) {
    gone.push_back(run);
    return true;
  });
  gone_.clear();
  return numbers.size();
}

Result<void> FileTree::fill(std::uint64_t first_page, std::span<const std::byte> pages) {
  std::uint64_t page = first_page;
  for (; page < kMaxFiles && !pages.empty(); ++page, pages = pages.subspan(kPage)) BATON_TRY(take_record(page, pages.first(kPage)));
  while (!pages.empty()) {
    const auto segment = page >> kSegmentBits;
    if (segment >= kMaxSegments) return make_error(Code::kCorrupt, "fill a volume", "page " + std::to_string(page) + " is beyond its end");
    const std::uint64_t bytes = std::min<std::uint64_t>(pages.size(), (kSegmentPages - page % kSegmentPages) * kPage);
    BATON_ASSIGN(const int fd, open_segment(static_cast<std::uint32_t>(segment)));
    BATON_TRY(pwrite_all(fd, pages.first(bytes), static_cast<off_t>(page % kSegmentPages * kPage)));
    page += bytes / kPage;
    pages = pages.subspan(bytes);
  }
  return {};
}

Result<void> FileTree::take_record(std::uint64_t id, std::span<const std::byte> page_untrusted) {
  auto bad = [&](const char* why) { return make_error(Code::kCorrupt, "fill a volume", "the record of file " + std::to_string(id) + ": " + why); };
  std::uint32_t bytes = 0;
  std::memcpy(&bytes, page_untrusted.data(), sizeof bytes);
  if (bytes > kRecordMax) return bad("too long");
  auto record = std::make_unique<pb::VolumeFile>();
  if (!record->ParseFromArray(page_untrusted.data() + sizeof bytes, static_cast<int>(bytes))) return bad("it cannot be read");
  if (id == 0 || (record->mode() & S_IFMT) == 0) return bad("no file");
  if (record->size() > kMaxSize) return bad("its size is out of range");
  if (record->target().size() > kPage || record->target().find('\0') != std::string::npos) return bad("its target is none");
  for (std::uint32_t segment : record->segments()) {
    if (segment != 0 && (segment < kFirstSegment || segment >= kMaxSegments)) return bad("its content is out of range");
  }
  filled_[id] = std::move(record);
  return {};
}

Result<void> FileTree::drop(PageRun run) {
  for (std::uint64_t page = run.first; page < std::min(run.end(), kMaxFiles);) {
    // Few of the numbers in a long run are there.
    auto next = files_.lower_bound(page);
    auto waiting = filled_.lower_bound(page);
    const std::uint64_t first = std::min(next == files_.end() ? kMaxFiles : next->first, waiting == filled_.end() ? kMaxFiles : waiting->first);
    if (first >= std::min(run.end(), kMaxFiles)) break;
    filled_[first] = nullptr;
    page = first + 1;
  }
  for (auto it = segments_.lower_bound(static_cast<std::uint32_t>(std::max<std::uint64_t>(run.first >> kSegmentBits, kFirstSegment))); it != segments_.end();) {
    const std::uint64_t base = std::uint64_t{it->first} << kSegmentBits;
    const std::uint64_t from = std::max(base, run.first), to = std::min(base + kSegmentPages, run.end());
    if (base >= run.end()) break;
    if (from == base && to == base + kSegmentPages) {
      it = segments_.erase(it);
      continue;
    }
    if (from < to && ::fallocate(it->second.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>((from - base) * kPage),
                                 static_cast<off_t>((to - from) * kPage)) != 0) {
      return errno_error("drop a volume's content", folder_);
    }
    ++it;
  }
  return {};
}

Result<void> FileTree::settle() {
  // First all old names go: a name may have passed from one file to another.
  for (const auto& [id, record] : filled_) {
    auto found = files_.find(id);
    if (found == files_.end()) continue;
    for (const auto& name : found->second.names) {
      File* folder = folder_at(name.folder);
      if (folder == nullptr) continue;
      folder->order.erase(name.order);
      if (auto child = folder->children.find(name.name); child != folder->children.end() && child->second == id) {
        folder->children.erase(child);
        if (found->second.is_folder()) --folder->folders;
      }
    }
    found->second.names.clear();
    if (record == nullptr && id != kRootFile) files_.erase(found);
  }
  for (const auto& [id, record] : filled_) {
    if (record == nullptr) continue;
    File& file = files_[id];
    file.id = id;
    file.mode = record->mode();
    file.uid = record->uid();
    file.gid = record->gid();
    file.device = record->device();
    file.size = record->size();
    file.atime_ns = record->atime_ns();
    file.mtime_ns = record->mtime_ns();
    file.ctime_ns = record->ctime_ns();
    file.target = record->target();
    file.segments.assign(record->segments().begin(), record->segments().end());
    for (std::uint32_t segment : file.segments) next_segment_ = std::max(next_segment_, std::min(segment + 1, kMaxSegments - 1));
    next_file_ = std::max(next_file_, std::min(id + 1, kMaxFiles - 1));
  }
  for (const auto& [id, record] : filled_) {
    if (record == nullptr) continue;
    File& file = files_.at(id);
    // Else there were ways that lead round.
    if ((id == kRootFile && record->names_size() != 0) || (file.is_folder() && record->names_size() > 1)) {
      return make_error(Code::kCorrupt, "settle a volume", "file " + std::to_string(id) + ": a folder with more than one name");
    }
    for (const auto& name : record->names()) {
      File* folder = folder_at(name.folder());
      if (folder == nullptr || !is_name(name.name()) || folder->children.contains(name.name()) || folder->order.contains(name.order())) {
        return make_error(Code::kCorrupt, "settle a volume", "file " + std::to_string(id) + ": its name has no place");
      }
      file.names.push_back({name.folder(), name.name(), name.order()});
      folder->children.emplace(name.name(), id);
      folder->order.emplace(name.order(), name.name());
      folder->next_order = std::max(folder->next_order, name.order() + 1);
      if (file.is_folder()) ++folder->folders;
    }
  }
  filled_.clear();
  if (folder_at(kRootFile) == nullptr) return make_error(Code::kCorrupt, "settle a volume", "it has no root folder");
  return {};
}

void FileTree::forget_unused() {
  std::vector<std::uint64_t> unused;
  for (const auto& [id, file] : files_) {
    if (id != kRootFile && (S_ISSOCK(file.mode) || file.names.empty())) unused.push_back(id);
  }
  for (std::uint64_t id : unused) {
    File& file = at(id);
    for (const auto& name : std::vector<File::Name>(file.names)) {
      if (File* folder = folder_at(name.folder); folder != nullptr) {
        folder->order.erase(name.order);
        folder->children.erase(name.name);
        record_changed(*folder);
      }
    }
    file.names.clear();
    end_if_unused(file);
  }
}

}  // namespace baton::volume
