// The paths of what inotify descriptors watch. The kernel tells device, inode and a file handle
// (fdinfo); a path is found with open_by_handle_at(2) on a mount of that device, or, where the
// file system gives handles that cannot be opened (overlayfs without nfs_export), among the
// paths that the workload has to do with anyway.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <climits>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

using FileId = std::pair<dev_t, ino_t>;

constexpr std::size_t kMaxKnownPaths = 1u << 16;
std::mutex known_mutex;
std::map<FileId, std::string> known_paths;   // proved by a stat before each use

struct WatchLine {
  int number = 0;
  FileId file;
  std::uint32_t mask = 0;
  int handle_type = 0;
  std::vector<unsigned char> handle;
};

// "wd:1 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e…"
std::optional<WatchLine> parse(const std::string& text) {
  WatchLine out;
  std::istringstream words(text);
  bool has_inode = false;
  for (std::string word; words >> word;) {
    const auto colon = word.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = word.substr(0, colon), value = word.substr(colon + 1);
    if (key == "wd") out.number = static_cast<int>(std::strtol(value.c_str(), nullptr, 16));
    if (key == "ino") {
      out.file.second = std::strtoull(value.c_str(), nullptr, 16);
      has_inode = true;
    }
    if (key == "sdev") {
      const auto device = std::strtoul(value.c_str(), nullptr, 16);   // the kernel's own form
      out.file.first = makedev(static_cast<unsigned>(device >> 20), static_cast<unsigned>(device & 0xfffff));
    }
    if (key == "mask") out.mask = static_cast<std::uint32_t>(std::strtoul(value.c_str(), nullptr, 16));
    if (key == "fhandle-type") out.handle_type = static_cast<int>(std::strtol(value.c_str(), nullptr, 16));
    if (key == "f_handle") {
      for (std::size_t i = 0; i + 1 < value.size(); i += 2)
        out.handle.push_back(static_cast<unsigned char>(std::strtoul(value.substr(i, 2).c_str(), nullptr, 16)));
    }
  }
  if (!has_inode || out.number <= 0) return std::nullopt;
  return out;
}

// Octal escapes of mountinfo: "\040" is a space.
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string root_of(pid_t pid) { return "/proc/" + std::to_string(pid) + "/root"; }

bool is_at(pid_t pid, const std::string& path, const FileId& file) {
  struct stat found {};
  return ::stat((root_of(pid) + path).c_str(), &found) == 0 && FileId{found.st_dev, found.st_ino} == file;
}

std::optional<std::string> by_handle(pid_t pid, const WatchLine& watch) {
  if (watch.handle.empty() || watch.handle.size() > MAX_HANDLE_SZ) return std::nullopt;
  alignas(file_handle) char room[sizeof(file_handle) + MAX_HANDLE_SZ];
  auto* handle = reinterpret_cast<file_handle*>(room);
  handle->handle_bytes = static_cast<unsigned>(watch.handle.size());
  handle->handle_type = watch.handle_type;
  std::memcpy(handle->f_handle, watch.handle.data(), watch.handle.size());
  auto mounts = read_file("/proc/" + std::to_string(pid) + "/mountinfo", 16u << 20);
  if (!mounts) return std::nullopt;
  std::istringstream lines(*mounts);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, point;
    fields >> id >> parent >> device >> root >> point;
    unsigned major_number = 0, minor_number = 0;
    if (std::sscanf(device.c_str(), "%u:%u", &major_number, &minor_number) != 2) continue;
    if (makedev(major_number, minor_number) != watch.file.first) continue;
    auto mount = open_file(root_of(pid) + unescaped(point), O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (!mount) continue;
    Fd file = Fd::adopt(::open_by_handle_at(mount->get(), handle, O_PATH | O_CLOEXEC));
    if (!file) continue;
    char link[PATH_MAX];
    const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(file.get())).c_str(), link, sizeof link);
    if (n <= 0) continue;
    std::string path(link, static_cast<std::size_t>(n));
    if (is_at(pid, path, watch.file)) return path;
  }
  return std::nullopt;
}

}  // namespace

Result<void> read_watches(pid_t pid, const FdInfo& info, const std::vector<std::string>& paths, pb::OpenFile& out,
                          std::string& refused) {
  auto range = info.fields.equal_range("inotify");
  std::map<int, pb::InotifyWatch> watches;   // the kernel tells them newest first
  for (auto it = range.first; it != range.second; ++it) {
    auto watch = parse(it->second);
    if (!watch) {
      refused = "an inotify watch that this kernel does not describe (CONFIG_EXPORTFS)";
      return {};
    }
    std::optional<std::string> path;
    {
      std::lock_guard lock(known_mutex);
      if (auto known = known_paths.find(watch->file); known != known_paths.end()) path = known->second;
    }
    if (path && !is_at(pid, *path, watch->file)) path.reset();
    if (!path) path = by_handle(pid, *watch);
    for (std::size_t i = 0; !path && i < paths.size(); ++i) {
      std::string candidate = paths[i];
      while (!path && candidate.size() > 1) {
        if (is_at(pid, candidate, watch->file)) path = candidate;
        candidate.erase(std::max<std::size_t>(candidate.rfind('/'), 1));
        if (candidate == "/" && is_at(pid, candidate, watch->file)) path = candidate;
      }
    }
    if (!path) {
      refused = "inotify watch " + std::to_string(watch->number) + ": inode " + std::to_string(watch->file.second) +
                " of device " + std::to_string(major(watch->file.first)) + ":" + std::to_string(minor(watch->file.first)) +
                " has no name that could be found";
      return {};
    }
    {
      std::lock_guard lock(known_mutex);
      if (known_paths.size() >= kMaxKnownPaths) known_paths.clear();
      known_paths[watch->file] = *path;
    }
    auto& entry = watches[watch->number];
    entry.set_number(watch->number);
    entry.set_mask(watch->mask);
    entry.set_path(*path);
  }
  for (auto& [number, watch] : watches) *out.add_inotify_watches() = std::move(watch);
  return {};
}

}  // namespace baton::linux_backend::state
