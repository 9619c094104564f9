#include "agent/backend/linux/remote/proc.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/fd.h"

namespace baton::linux_backend {

Result<std::string> read_proc(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    int saved = errno;
    if (saved == ENOENT || saved == ESRCH) {
      return make_error(Code::kTraceeGone, "open", path + ": the process is gone");
    }
    return errno_error(saved, "open", path);
  }
  Fd owned = Fd::adopt(fd);
  std::string text;
  std::size_t used = 0;
  text.resize(4096);
  for (;;) {
    if (used == text.size()) text.resize(text.size() * 2);
    ssize_t n = ::read(fd, text.data() + used, text.size() - used);
    if (n < 0) {
      if (errno == EINTR) continue;
      int saved = errno;
      if (saved == ESRCH) {
        return make_error(Code::kTraceeGone, "read", path + ": the process is gone");
      }
      return errno_error(saved, "read", path);
    }
    if (n == 0) break;
    used += static_cast<std::size_t>(n);
  }
  text.resize(used);
  return text;
}

Result<TaskStatus> read_task_status(pid_t tid) {
  BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(tid) + "/status"));
  TaskStatus s;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    std::string_view line(text.data() + at, end - at);
    at = end + 1;
    auto colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    std::string_view key = line.substr(0, colon);
    const char* value = line.data() + colon + 1;
    while (*value == '\t' || *value == ' ') ++value;
    if (key == "State") s.state = *value;
    else if (key == "Tgid") s.tgid = static_cast<pid_t>(std::strtol(value, nullptr, 10));
    else if (key == "PPid") s.ppid = static_cast<pid_t>(std::strtol(value, nullptr, 10));
    else if (key == "TracerPid") s.tracer = static_cast<pid_t>(std::strtol(value, nullptr, 10));
    else if (key == "SigBlk") s.blocked = std::strtoull(value, nullptr, 16);
    else if (key == "SigIgn") s.ignored = std::strtoull(value, nullptr, 16);
    else if (key == "SigCgt") s.caught = std::strtoull(value, nullptr, 16);
    else if (key == "SigPnd" || key == "ShdPnd") s.pending |= std::strtoull(value, nullptr, 16);
    else if (key == "Seccomp") s.seccomp = std::atoi(value);
    else if (key == "Kthread") s.kernel_thread = *value == '1';
    else if (key == "VmSize") s.has_memory = true;
    else if (key == "NSpid") {
      const char* p = value;
      const char* stop = line.data() + line.size();
      while (p < stop) {
        char* next = nullptr;
        long v = std::strtol(p, &next, 10);
        if (next == p) break;
        s.ns_tids.push_back(static_cast<pid_t>(v));
        p = next;
        while (p < stop && (*p == '\t' || *p == ' ')) ++p;
      }
    }
  }
  return s;
}

Result<std::vector<pid_t>> list_threads(pid_t pid) {
  std::string path = "/proc/" + std::to_string(pid) + "/task";
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) {
    if (errno == ENOENT || errno == ESRCH) {
      return make_error(Code::kTraceeGone, "list threads", path + ": the process is gone");
    }
    return errno_error("list threads", path);
  }
  std::vector<pid_t> tids;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') tids.push_back(std::atoi(entry->d_name));
  }
  ::closedir(dir);
  std::sort(tids.begin(), tids.end());
  return tids;
}

Result<std::vector<std::string>> read_stat_fields(pid_t tid) {
  BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(tid) + "/stat"));
  std::vector<std::string> fields;
  auto close = text.rfind(')');  // the name before it may hold anything
  if (close == std::string::npos) {
    return make_error(Code::kFailed, "read stat", "/proc/" + std::to_string(tid) + "/stat: no name");
  }
  std::size_t at = close + 2;
  while (at < text.size()) {
    std::size_t end = text.find_first_of(" \n", at);
    if (end == std::string::npos) end = text.size();
    if (end > at) fields.emplace_back(text, at, end - at);
    at = end + 1;
  }
  return fields;
}

Result<void> check_native_program(pid_t pid) {
  std::string path = "/proc/" + std::to_string(pid) + "/exe";
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return {};  // unreadable: the registers will tell
  Fd owned = Fd::adopt(fd);
  unsigned char ident[EI_NIDENT + 4] = {};
  if (::pread(fd, ident, sizeof ident, 0) != static_cast<ssize_t>(sizeof ident)) return {};
  if (std::memcmp(ident, ELFMAG, SELFMAG) == 0 && ident[EI_CLASS] != ELFCLASS64) {
    return make_error(Code::kUnsupported, "inspect",
                      "process " + std::to_string(pid) + ": 32-bit programs are not supported");
  }
  return {};
}

bool is_named_memory(std::string_view path, const struct stat& info, const struct statfs& where) {
  constexpr long kTmpfsMagic = 0x01021994;
  return path.starts_with("/dev/shm/") && S_ISREG(info.st_mode) && static_cast<long>(where.f_type) == kTmpfsMagic;
}

}  // namespace baton::linux_backend
