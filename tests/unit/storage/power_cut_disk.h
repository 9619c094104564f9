// PowerCutDisk: a disk in memory that remembers which of what was written is safe, and can say
// what a power cut at this instant might leave: of each file what was synced, and of what came
// after it any part: whole writes, none, or pieces of 512 bytes in any order; of names, those of
// the last sync of their folder, and then any first part of what was done since.
//
// After `cut_after` operations every further one fails, as for a program whose machine is gone.
// As pessimistic as POSIX allows in what a sync of a file says about its name: nothing.
#pragma once

#include <sys/stat.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "storage/memory_disk.h"

namespace baton::storage::testing_ground {

class PowerCutDisk final : public MemoryDisk {
 public:
  std::uint64_t operations = 0;
  std::uint64_t cut_after = UINT64_MAX;
  bool lying_sync = false;  // for the test of the test: syncs nothing

  Result<Fd> create(const std::string& path) override {
    BATON_TRY(tick("create", path));
    BATON_ASSIGN(Fd fd, MemoryDisk::create(path));
    std::lock_guard lock(names_mutex_);
    auto file = std::make_shared<File>();
    open_files_[inode(fd.get())] = file;
    names_.push_back({Name::kCreate, path, {}, file});
    return fd;
  }
  Result<void> write_at(int fd, std::span<const iovec> parts, std::uint64_t at) override {
    BATON_TRY(tick("write", "file"));
    BATON_TRY(Disk::write_at(fd, parts, at));
    std::string bytes;
    for (const iovec& p : parts) bytes.append(static_cast<const char*>(p.iov_base), p.iov_len);
    std::lock_guard lock(names_mutex_);
    if (auto file = file_of(fd)) file->pending.push_back({at, std::move(bytes), false});
    return {};
  }
  Result<void> truncate(int fd, std::uint64_t bytes) override {
    BATON_TRY(tick("truncate", "file"));
    BATON_TRY(Disk::truncate(fd, bytes));
    std::lock_guard lock(names_mutex_);
    if (auto file = file_of(fd)) file->pending.push_back({bytes, {}, true});
    return {};
  }
  Result<void> sync(int fd) override {
    BATON_TRY(tick("sync", "file"));
    if (lying_sync) return {};
    std::lock_guard lock(names_mutex_);
    if (auto file = file_of(fd)) {
      for (const Write& w : file->pending) apply(file->safe, w);
      file->pending.clear();
    }
    return {};
  }
  Result<void> make_folder(const std::string& path) override {
    BATON_TRY(tick("mkdir", path));
    BATON_TRY(MemoryDisk::make_folder(path));
    std::lock_guard lock(names_mutex_);
    names_.push_back({Name::kFolder, path, {}, nullptr});
    return {};
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    BATON_TRY(tick("rename", from));
    BATON_TRY(MemoryDisk::rename(from, to));
    std::lock_guard lock(names_mutex_);
    names_.push_back({Name::kRename, from, to, nullptr});
    return {};
  }
  Result<void> unlink(const std::string& path) override {
    BATON_TRY(tick("unlink", path));
    BATON_TRY(MemoryDisk::unlink(path));
    std::lock_guard lock(names_mutex_);
    names_.push_back({Name::kUnlink, path, {}, nullptr});
    return {};
  }
  void remove_tree(const std::string& path) override {
    if (!tick("remove", path) || !is_folder(path)) return;  // what was never there leaves no trace
    MemoryDisk::remove_tree(path);
    std::lock_guard lock(names_mutex_);
    names_.push_back({Name::kRemoveTree, path, {}, nullptr});
  }
  Result<void> sync_folder(const std::string& path) override {
    BATON_TRY(tick("sync folder", path));
    if (lying_sync) return {};
    std::lock_guard lock(names_mutex_);
    std::vector<Name> later;
    for (Name& name : names_) {
      if (parent(name.path) == path) {
        apply(safe_names_, name);
      } else {
        later.push_back(std::move(name));
      }
    }
    names_ = std::move(later);
    return {};
  }
  // As replace_file: a file beside it, synced, renamed, the folder synced. One operation here.
  Result<void> replace(const std::string& path, std::string_view content) override {
    BATON_TRY(tick("replace", path));
    BATON_TRY(MemoryDisk::replace(path, content));
    std::lock_guard lock(names_mutex_);
    auto file = std::make_shared<File>();
    file->safe = content;
    const Name name{Name::kCreate, path, {}, file};
    if (lying_sync) {
      names_.push_back(name);
    } else {
      apply(safe_names_, name);
    }
    return {};
  }

  // What might be found when the power is back, chosen by `seed`.
  std::unique_ptr<MemoryDisk> after_power_cut(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::lock_guard lock(names_mutex_);
    // Of each folder's changes any first part: what a journal that writes in order may hold.
    Names names = safe_names_;
    std::map<std::string, std::vector<const Name*>> by_folder;
    for (const Name& name : names_) by_folder[parent(name.path)].push_back(&name);
    for (const auto& [folder, changes] : by_folder) {
      const std::size_t count = random() % (changes.size() + 1);
      for (std::size_t i = 0; i < count; ++i) apply(names, *changes[i]);
    }
    auto disk = std::make_unique<MemoryDisk>();
    for (const auto& folder : names.folders) (void)disk->make_folder(folder);
    for (const auto& [path, file] : names.files) {
      std::string bytes = file->safe;
      for (const Write& w : file->pending) tear(bytes, w, random);
      auto fd = disk->create(path);
      if (fd && !bytes.empty()) (void)pwrite_all(fd->get(), std::as_bytes(std::span(bytes.data(), bytes.size())), 0);
    }
    return disk;
  }

 private:
  struct Write {
    std::uint64_t at = 0;
    std::string bytes;
    bool truncates = false;
  };
  struct File {
    std::string safe;
    std::vector<Write> pending;
  };
  struct Name {
    enum What { kCreate, kFolder, kRename, kUnlink, kRemoveTree } what;
    std::string path, to;
    std::shared_ptr<File> file;
  };
  struct Names {
    std::map<std::string, std::shared_ptr<File>> files;
    std::set<std::string> folders;
  };

  Result<void> tick(std::string_view operation, const std::string& subject) {
    std::lock_guard lock(names_mutex_);
    if (operations >= cut_after) return errno_error(EIO, operation, subject + ": the power is gone");
    ++operations;
    return {};
  }
  static std::string parent(const std::string& path) { return path.substr(0, path.rfind('/')); }
  static bool below(const std::string& path, const std::string& folder) {
    return path == folder || (path.starts_with(folder) && path[folder.size()] == '/');
  }
  static std::uint64_t inode(int fd) {
    struct stat st {};
    ::fstat(fd, &st);
    return st.st_ino;
  }
  std::shared_ptr<File> file_of(int fd) {
    auto it = open_files_.find(inode(fd));
    return it == open_files_.end() ? nullptr : it->second;
  }
  static void apply(std::string& bytes, const Write& w) {
    if (w.truncates) {
      bytes.resize(w.at);
      return;
    }
    if (bytes.size() < w.at + w.bytes.size()) bytes.resize(w.at + w.bytes.size());
    bytes.replace(w.at, w.bytes.size(), w.bytes);
  }
  static void tear(std::string& bytes, const Write& w, std::mt19937_64& random) {
    constexpr std::size_t kSector = 512;
    const auto fate = random() % 4;
    if (fate == 0) return;  // nothing of it
    if (w.truncates || fate == 1) return apply(bytes, w);
    if (fate == 2) {  // the length, with holes of zeros and sectors that made it
      for (std::size_t at = 0; at < w.bytes.size(); at += kSector) {
        if (random() % 2) apply(bytes, {w.at + at, w.bytes.substr(at, kSector), false});
      }
      return;
    }
    apply(bytes, {w.at, w.bytes.substr(0, random() % (w.bytes.size() + 1)), false});  // a first part
  }
  static void apply(Names& names, const Name& name) {
    switch (name.what) {
      case Name::kCreate:
        names.files[name.path] = name.file;
        return;
      case Name::kFolder:
        names.folders.insert(name.path);
        return;
      case Name::kUnlink:
        names.files.erase(name.path);
        return;
      case Name::kRemoveTree:
        std::erase_if(names.files, [&](const auto& e) { return below(e.first, name.path); });
        std::erase_if(names.folders, [&](const auto& e) { return below(e, name.path); });
        return;
      case Name::kRename: {
        Names moved;
        std::erase_if(names.files, [&](const auto& e) {
          if (!below(e.first, name.path)) return false;
          moved.files[name.to + e.first.substr(name.path.size())] = e.second;
          return true;
        });
        std::erase_if(names.folders, [&](const auto& e) {
          if (!below(e, name.path)) return false;
          moved.folders.insert(name.to + e.substr(name.path.size()));
          return true;
        });
        for (auto& [path, file] : moved.files) names.files[path] = file;
        names.folders.merge(moved.folders);
        return;
      }
    }
  }

  std::mutex names_mutex_;
  std::map<std::uint64_t, std::shared_ptr<File>> open_files_;
  std::vector<Name> names_;  // not safe yet, in order
  Names safe_names_;
};

}  // namespace baton::storage::testing_ground
