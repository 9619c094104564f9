#include "base/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <sstream>

#include "base/fd.h"

namespace baton {
namespace {

struct Mount {
  std::string root;   // of the hierarchy, as mounted here
  std::string point;  // where
};

// mountinfo writes blanks and backslashes as \ooo (proc(5)).
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

Result<Mount> find_mount() {
  BATON_ASSIGN(std::string text, read_file("/proc/self/mountinfo"));
  std::istringstream lines(text);
  std::optional<Mount> found;
  for (std::string line; std::getline(lines, line);) {
    auto dash = line.find(" - ");
    if (dash == std::string::npos || line.compare(dash + 3, 8, "cgroup2 ") != 0) continue;
    std::istringstream fields(line);
    std::string id, parent, device, root, point;
    fields >> id >> parent >> device >> root >> point;
    found = Mount{unescape(root), unescape(point)};  // the last one covers earlier ones
  }
  if (!found) {
    return make_error(Code::kUnsupported, "cgroup", "no cgroup v2 hierarchy is mounted",
                      "Mount one: mount -t cgroup2 none /sys/fs/cgroup/unified.");
  }
  return *found;
}

Result<void> write_control(const std::string& path, std::string_view text) {
  BATON_ASSIGN(Fd fd, open_file(path, O_WRONLY));
  ssize_t n = ::write(fd.get(), text.data(), text.size());
  if (n < 0) return errno_error("write " + std::string(text) + " to", path);
  return {};
}

// The value of `key` in a flat keyed file such as cgroup.events.
Result<bool> read_flag(int fd, const std::string& path, std::string_view key) {
  char buffer[256];
  ssize_t n = ::pread(fd, buffer, sizeof buffer - 1, 0);
  if (n < 0) return errno_error("read", path);
  buffer[n] = 0;
  std::istringstream words(buffer);
  for (std::string name, value; words >> name >> value;) {
    if (name == key) return value == "1";
  }
  return make_error(Code::kUnsupported, "read", path + ": no field " + std::string(key));
}

Result<bool> read_event(const std::string& folder, std::string_view key) {
  std::string path = folder + "/cgroup.events";
  BATON_ASSIGN(Fd fd, open_file(path, O_RDONLY));
  return read_flag(fd.get(), path, key);
}

// Waits until cgroup.events says `key` = `value`; false: not in time.
Result<bool> wait_event(const std::string& folder, std::string_view key, bool value,
                        std::chrono::milliseconds timeout) {
  std::string path = folder + "/cgroup.events";
  BATON_ASSIGN(Fd fd, open_file(path, O_RDONLY));
  auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    BATON_ASSIGN(bool now_value, read_flag(fd.get(), path, key));
    if (now_value == value) return true;
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd entry{fd.get(), POLLPRI, 0};
    // Re-read at least every 50 ms: notifications are merged by the kernel.
    ::poll(&entry, 1, static_cast<int>(std::min<long long>(left.count(), 50)));
  }
}

Result<void> remove_tree(const std::string& path, int depth) {
  if (DIR* dir = ::opendir(path.c_str())) {
    std::vector<std::string> below;
    while (dirent* entry = ::readdir(dir)) {
      if (entry->d_type == DT_DIR && entry->d_name[0] != '.') below.emplace_back(entry->d_name);
    }
    ::closedir(dir);
    if (depth > 0) {
      for (const auto& name : below) BATON_TRY(remove_tree(path + "/" + name, depth - 1));
    }
  }
  // EBUSY lasts a moment after the last member died: its accounting is still being torn down.
  for (int attempt = 0;; ++attempt) {
    if (::rmdir(path.c_str()) == 0 || errno == ENOENT) return {};
    if (errno != EBUSY || attempt == 50) break;
    ::usleep(2000);
  }
  Error error = errno_error("rmdir", path);
  if (error.sys_errno == EBUSY) {
    error.code = Code::kConflict;
    error.subject += ": processes are still in it";
  }
  return error;
}

}  // namespace

Result<std::string> Cgroup::mount_point() {
  BATON_ASSIGN(Mount mount, find_mount());
  return mount.point;
}

Result<Cgroup> Cgroup::of(pid_t pid) {
  BATON_ASSIGN(Mount mount, find_mount());
  std::string path = "/proc/" + (pid == 0 ? std::string("self") : std::to_string(pid)) + "/cgroup";
  auto text = read_file(path);
  if (!text) {
    Error error = text.error();
    if (error.code == Code::kNotFound) error.code = Code::kTraceeGone;
    return error;
  }
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, 3, "0::") != 0) continue;
    std::string inside = line.substr(3);
    if (mount.root != "/" && inside.compare(0, mount.root.size(), mount.root) == 0) {
      inside = inside.substr(mount.root.size());
    }
    if (inside.compare(0, 3, "/..") == 0) {
      return make_error(Code::kNotFound, "cgroup of " + std::to_string(pid), inside + ": outside this namespace");
    }
    if (inside == "/") inside.clear();
    return Cgroup(mount.point + inside);
  }
  return make_error(Code::kUnsupported, "cgroup", path + ": no cgroup v2 line");
}

bool Cgroup::exists() const {
  struct stat info{};
  return ::stat(path_.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

Result<void> Cgroup::make() const {
  if (exists()) return {};
  if (::mkdir(path_.c_str(), 0755) == 0 || errno == EEXIST) return {};
  if (errno != ENOENT) return errno_error("mkdir", path_);
  auto slash = path_.rfind('/');
  if (slash == std::string::npos || slash == 0) return errno_error(ENOENT, "mkdir", path_);
  BATON_TRY(Cgroup(path_.substr(0, slash)).make());
  if (::mkdir(path_.c_str(), 0755) == 0 || errno == EEXIST) return {};
  return errno_error("mkdir", path_);
}

Result<void> Cgroup::add(pid_t pid) const {
  return write_control(path_ + "/cgroup.procs", std::to_string(pid));
}

Result<std::vector<pid_t>> Cgroup::members() const {
  BATON_ASSIGN(std::string text, read_file(path_ + "/cgroup.procs"));
  std::vector<pid_t> out;
  const char* at = text.data();
  const char* end = at + text.size();
  while (at < end) {
    pid_t pid = 0;
    auto [next, error] = std::from_chars(at, end, pid);
    if (error == std::errc{}) out.push_back(pid);
    at = std::find(next, end, '\n');
    if (at < end) ++at;
  }
  return out;
}

Result<bool> Cgroup::populated() const { return read_event(path_, "populated"); }
Result<bool> Cgroup::frozen() const { return read_event(path_, "frozen"); }

Result<bool> Cgroup::freeze_asked() const {
  BATON_ASSIGN(std::string text, read_file(path_ + "/cgroup.freeze"));
  return !text.empty() && text[0] == '1';
}

Result<void> Cgroup::freeze(std::chrono::milliseconds timeout) const {
  BATON_TRY(write_control(path_ + "/cgroup.freeze", "1"));
  auto done = wait_event(path_, "frozen", true, timeout);
  if (done && *done) return {};
  auto back = thaw();
  if (!done) return done.error();
  if (!back) return back.error();
  return make_error(Code::kTimedOut, "cgroup.freeze",
                    path_ + ": not every process stopped within " + std::to_string(timeout.count()) + " ms");
}

Result<void> Cgroup::thaw() const { return write_control(path_ + "/cgroup.freeze", "0"); }
Result<void> Cgroup::kill() const { return write_control(path_ + "/cgroup.kill", "1"); }

Result<bool> Cgroup::wait_empty(std::chrono::milliseconds timeout) const {
  if (!exists()) return true;
  return wait_event(path_, "populated", false, timeout);
}

Result<void> Cgroup::remove() const { return remove_tree(path_, 8); }

}  // namespace baton
