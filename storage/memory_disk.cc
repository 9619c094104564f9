#include "storage/memory_disk.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

namespace baton::storage {
namespace {

Error missing(std::string_view operation, const std::string& path) {
  return errno_error(ENOENT, operation, path);
}

// Whether `path` lies in `folder`, at any depth.
bool is_below(const std::string& path, const std::string& folder) {
  return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
}

Result<Fd> make_file(const std::string& path) {
  const int fd = ::memfd_create("baton-store", MFD_CLOEXEC);
  if (fd < 0) return errno_error("memfd_create", path);
  return Fd::adopt(fd);
}

}  // namespace

Result<Fd> MemoryDisk::create(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (files_.contains(path)) return errno_error(EEXIST, "create", path);
  BATON_ASSIGN(Fd file, make_file(path));
  BATON_ASSIGN(Fd ours, file.duplicate());
  files_[path] = std::make_shared<Fd>(std::move(ours));
  return file;
}

Result<Fd> MemoryDisk::open(const std::string& path) {
  std::lock_guard lock(mutex_);
  auto it = files_.find(path);
  if (it == files_.end()) return missing("open", path);
  return it->second->duplicate();
}

Result<void> MemoryDisk::make_folder(const std::string& path) {
  std::lock_guard lock(mutex_);
  folders_.insert(path);
  return {};
}

Result<std::vector<std::string>> MemoryDisk::list(const std::string& folder) {
  std::lock_guard lock(mutex_);
  if (!folders_.contains(folder)) return missing("read folder", folder);
  std::vector<std::string> names;
  auto add = [&](const std::string& path) {
    if (is_below(path, folder) && path.find('/', folder.size() + 1) == std::string::npos) {
      names.push_back(path.substr(folder.size() + 1));
    }
  };
  for (const auto& [path, file] : files_) add(path);
  for (const auto& path : folders_) add(path);
  return names;
}

bool MemoryDisk::is_folder(const std::string& path) {
  std::lock_guard lock(mutex_);
  return folders_.contains(path);
}

Result<void> MemoryDisk::rename(const std::string& from, const std::string& to) {
  std::lock_guard lock(mutex_);
  if (auto it = files_.find(from); it != files_.end()) {
    auto file = it->second;
    files_.erase(it);
    files_[to] = std::move(file);
    return {};
  }
  if (folders_.erase(from) == 0) return missing("rename", from);
  folders_.insert(to);
  std::vector<std::pair<std::string, std::shared_ptr<Fd>>> moved;
  std::erase_if(files_, [&](const auto& entry) {
    if (!is_below(entry.first, from)) return false;
    moved.emplace_back(to + entry.first.substr(from.size()), entry.second);
    return true;
  });
  for (auto& [path, file] : moved) files_[path] = std::move(file);
  return {};
}

Result<void> MemoryDisk::unlink(const std::string& path) {
  std::lock_guard lock(mutex_);
  if (files_.erase(path) == 0) return missing("unlink", path);
  return {};
}

void MemoryDisk::remove_tree(const std::string& path) {
  std::lock_guard lock(mutex_);
  auto inside = [&](const std::string& one) { return one == path || is_below(one, path); };
  std::erase_if(files_, [&](const auto& entry) { return inside(entry.first); });
  std::erase_if(folders_, inside);
}

Result<std::string> MemoryDisk::read(const std::string& path, std::size_t max_bytes) {
  BATON_ASSIGN(Fd file, open(path));
  struct stat st {};
  if (::fstat(file.get(), &st) != 0) return errno_error("fstat", path);
  if (static_cast<std::uint64_t>(st.st_size) > max_bytes) {
    return make_error(Code::kNoSpace, "read", path + ": larger than " + std::to_string(max_bytes) + " bytes");
  }
  std::string out(static_cast<std::size_t>(st.st_size), '\0');
  BATON_TRY(pread_exact(file.get(), std::as_writable_bytes(std::span(out.data(), out.size())), 0));
  return out;
}

Result<void> MemoryDisk::replace(const std::string& path, std::string_view content) {
  BATON_ASSIGN(Fd file, make_file(path));
  BATON_TRY(pwrite_all(file.get(), std::as_bytes(std::span(content.data(), content.size())), 0));
  std::lock_guard lock(mutex_);
  files_[path] = std::make_shared<Fd>(std::move(file));
  return {};
}

}  // namespace baton::storage
