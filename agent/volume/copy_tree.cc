#include "agent/volume/copy_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

namespace baton::volume {
namespace {

constexpr const char* kNew = ".baton-new";
constexpr const char* kBefore = ".baton-before";
constexpr std::size_t kPiece = 1u << 20;

Error refused(int failed, const std::string& path) { return errno_error(-failed, "take into the volume", path); }

class Import {
 public:
  explicit Import(FileTree& tree) : tree_(tree) {}

  Result<void> folder(const std::string& path, std::uint64_t id) {
    struct Closed {
      void operator()(DIR* d) const { ::closedir(d); }
    };
    std::unique_ptr<DIR, Closed> entries(::opendir(path.c_str()));
    if (entries == nullptr) return errno_error("open", path);
    struct stat here {};
    if (::fstat(::dirfd(entries.get()), &here) != 0) return errno_error("stat", path);
    while (dirent* entry = ::readdir(entries.get())) {
      const std::string name = entry->d_name;
      if (name == "." || name == ".." || (id == kRootFile && (name == kNew || name == kBefore))) continue;
      BATON_TRY(one(path + "/" + name, name, id, here.st_dev));
    }
    return attributes(id, here, path);
  }

 private:
  Result<void> one(const std::string& path, const std::string& name, std::uint64_t in, dev_t device) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) return errno_error("stat", path);
    if (st.st_dev != device) return make_error(Code::kUnsupported, "take into the volume", path + ": another file system is mounted there");
    if (S_ISSOCK(st.st_mode)) return {};
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
      auto [known, fresh] = linked_.try_emplace(st.st_ino, 0);
      if (!fresh) {
        const int failed = tree_.link(known->second, in, name);
        return failed == 0 ? Result<void>() : Result<void>(refused(failed, path));
      }
    }
    std::string target;
    if (S_ISLNK(st.st_mode)) {
      target.resize(4096);
      const ssize_t n = ::readlink(path.c_str(), target.data(), target.size());
      if (n < 0) return errno_error("readlink", path);
      target.resize(static_cast<std::size_t>(n));
    }
    std::uint64_t id = 0;
    if (int failed = tree_.make_file(in, name, st.st_mode, st.st_rdev, st.st_uid, st.st_gid, target, id); failed != 0) return refused(failed, path);
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) linked_[st.st_ino] = id;
    if (S_ISDIR(st.st_mode)) return folder(path, id);
    if (S_ISREG(st.st_mode)) BATON_TRY(content(path, id, st));
    return attributes(id, st, path);
  }

  Result<void> content(const std::string& path, std::uint64_t id, const struct stat& st) {
    BATON_ASSIGN(Fd fd, open_file(path, O_RDONLY | O_NOFOLLOW));
    std::vector<std::byte> piece(kPiece);
    off_t at = 0;
    while ((at = ::lseek(fd.get(), at, SEEK_DATA)) >= 0) {
      off_t hole = ::lseek(fd.get(), at, SEEK_HOLE);
      if (hole < 0) hole = st.st_size;
      if (::lseek(fd.get(), at, SEEK_SET) < 0) return errno_error("seek", path);
      while (at < hole) {
        const ssize_t n = ::pread(fd.get(), piece.data(), std::min<std::size_t>(piece.size(), static_cast<std::size_t>(hole - at)), at);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_error("read", path);
        if (n == 0) break;
        for (ssize_t done = 0; done < n;) {
          const std::int64_t wrote = tree_.write(id, std::span(piece).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(n - done)), static_cast<std::uint64_t>(at + done));
          if (wrote <= 0) return refused(wrote < 0 ? static_cast<int>(wrote) : -EIO, path);
          done += wrote;
        }
        at += n;
      }
      if (at < hole) break;   // it has become shorter meanwhile
    }
    return {};
  }

  Result<void> attributes(std::uint64_t id, const struct stat& st, const std::string& path) {
    const std::uint32_t mode = st.st_mode, uid = st.st_uid, gid = st.st_gid;
    const auto size = static_cast<std::uint64_t>(st.st_size);
    const std::int64_t atime = as_ns(st.st_atim), mtime = as_ns(st.st_mtim), ctime = as_ns(st.st_ctim);
    Changes changes{&mode, &uid, &gid, S_ISREG(st.st_mode) ? &size : nullptr, &atime, &mtime, &ctime};
    const int failed = tree_.change(id, changes);
    return failed == 0 ? Result<void>() : Result<void>(refused(failed, path));
  }

  FileTree& tree_;
  std::map<ino_t, std::uint64_t> linked_;
};

class Export {
 public:
  explicit Export(const FileTree& tree) : tree_(tree) {}

  Result<void> folder(const File& from, const std::string& path) {
    for (const auto& [name, id] : from.children) {
      const File* file = tree_.find(id);
      const std::string to = path + "/" + name;
      if (file == nullptr || S_ISSOCK(file->mode)) continue;
      if (file->is_folder()) {
        if (::mkdir(to.c_str(), 0700) != 0) return errno_error("mkdir", to);
        BATON_TRY(folder(*file, to));
        continue;
      }
      if (auto known = made_.find(id); known != made_.end()) {
        if (::link(known->second.c_str(), to.c_str()) != 0) return errno_error("link", to);
        continue;
      }
      made_[id] = to;
      if (S_ISLNK(file->mode)) {
        if (::symlink(file->target.c_str(), to.c_str()) != 0) return errno_error("symlink", to);
      } else if (S_ISREG(file->mode)) {
        BATON_TRY(content(*file, to));
      } else if (::mknod(to.c_str(), file->mode, file->device) != 0) {
        return errno_error("mknod", to);
      }
      BATON_TRY(attributes(*file, to));
    }
    return attributes(from, path);
  }

 private:
  Result<void> content(const File& file, const std::string& path) {
    BATON_ASSIGN(Fd fd, open_file(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
    std::vector<std::byte> piece(kPiece);
    std::int64_t at = 0;
    while ((at = tree_.seek(file.id, static_cast<std::uint64_t>(at), SEEK_DATA)) >= 0) {
      const std::int64_t hole = tree_.seek(file.id, static_cast<std::uint64_t>(at), SEEK_HOLE);
      while (at < hole) {
        const std::int64_t n = tree_.read(file.id, std::span(piece).first(std::min<std::size_t>(kPiece, static_cast<std::size_t>(hole - at))), static_cast<std::uint64_t>(at));
        if (n <= 0) return make_error(Code::kFailed, "write back", path + ": the volume's content cannot be read");
        BATON_TRY(pwrite_all(fd.get(), std::span(piece).first(static_cast<std::size_t>(n)), at));
        at += n;
      }
    }
    if (::ftruncate(fd.get(), static_cast<off_t>(file.size)) != 0) return errno_error("truncate", path);
    return {};
  }

  static Result<void> attributes(const File& file, const std::string& path) {
    if (::lchown(path.c_str(), file.uid, file.gid) != 0) return errno_error("chown", path);
    if (!S_ISLNK(file.mode) && ::chmod(path.c_str(), file.mode & 07777) != 0) return errno_error("chmod", path);
    auto time = [](std::int64_t ns) { return timespec{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)}; };
    const timespec times[2] = {time(file.atime_ns), time(file.mtime_ns)};
    if (::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) return errno_error("utimensat", path);
    return {};
  }

  const FileTree& tree_;
  std::map<std::uint64_t, std::string> made_;
};

Result<void> removed(const std::filesystem::path& path) {
  std::error_code failed;
  std::filesystem::remove_all(path, failed);
  if (!failed) return {};
  return errno_error(failed.value(), "remove", path.string());
}

}  // namespace

Result<void> import_folder(FileTree& tree, const std::string& folder) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) return errno_error(failed.value(), "make the volume's folder", folder);
  tree.set_imported();
  return Import(tree).folder(folder, kRootFile);
}

// What is mounted below is not ours to remove.
static Result<void> check_nothing_mounted(const std::string& folder) {
  BATON_ASSIGN(const std::string mounts, read_file("/proc/self/mountinfo"));
  std::istringstream lines(mounts);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string skipped, point;
    fields >> skipped >> skipped >> skipped >> skipped >> point;
    if (point.starts_with(folder + "/")) return make_error(Code::kConflict, "write back", folder + ": another file system is mounted at " + point);
  }
  return {};
}

Result<void> export_folder(const FileTree& tree, const std::string& folder) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed) return errno_error(failed.value(), "make the volume's folder", folder);
  BATON_TRY(check_nothing_mounted(folder));
  const std::filesystem::path fresh = std::filesystem::path(folder) / kNew;
  BATON_TRY(removed(fresh));
  if (::mkdir(fresh.c_str(), 0700) != 0) return errno_error("mkdir", fresh.string());
  Export out(tree);
  if (auto written = out.folder(*tree.find(kRootFile), fresh.string()); !written) {
    (void)removed(fresh);
    return written;
  }
  std::vector<std::filesystem::path> old, made;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failed)) {
    if (entry.path() != fresh) old.push_back(entry.path());
  }
  for (const auto& entry : std::filesystem::directory_iterator(fresh, failed)) made.push_back(entry.path());
  if (failed) return errno_error(failed.value(), "list", folder);
  // Once: what is there next time, this has written.
  const std::filesystem::path before = std::filesystem::path(folder) / kBefore;
  std::erase(old, before);
  const bool keep = !tree.imported() && !old.empty() && !std::filesystem::exists(before, failed);
  if (keep && ::mkdir(before.c_str(), 0700) != 0) return errno_error("mkdir", before.string());
  for (const auto& path : old) {
    if (!keep) {
      BATON_TRY(removed(path));
    } else if (const auto to = before / path.filename(); ::rename(path.c_str(), to.c_str()) != 0) {
      return errno_error("rename", to.string());
    }
  }
  for (const auto& path : made) {
    const auto to = std::filesystem::path(folder) / path.filename();
    if (::rename(path.c_str(), to.c_str()) != 0) return errno_error("rename", to.string());
  }
  struct stat st {};
  if (::stat(fresh.c_str(), &st) == 0) {   // what the root is like; its times are not worth it
    (void)!::chown(folder.c_str(), st.st_uid, st.st_gid);
    (void)!::chmod(folder.c_str(), st.st_mode & 07777);
  }
  return removed(fresh);
}

}  // namespace baton::volume
