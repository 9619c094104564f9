// /proc/PID/fdinfo/FD (proc(5)).
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {

std::string FdInfo::field(const std::string& key) const {
  auto found = fields.find(key);
  return found == fields.end() ? std::string() : found->second;
}

Result<FdInfo> read_fdinfo(pid_t pid, int fd) {
  BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(pid) + "/fdinfo/" + std::to_string(fd)));
  FdInfo info;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("inotify ", 0) == 0) {
      info.fields.emplace("inotify", line.substr(8));
      continue;
    }
    auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::size_t from = line.find_first_not_of(" \t", colon + 1);
    std::string value = from == std::string::npos ? std::string() : line.substr(from);
    std::string key = line.substr(0, colon);
    if (key == "pos") info.position = std::strtoull(value.c_str(), nullptr, 10);
    else if (key == "flags") info.flags = static_cast<std::uint32_t>(std::strtoul(value.c_str(), nullptr, 8));
    else info.fields.emplace(std::move(key), std::move(value));
  }
  return info;
}

// "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF"
LockLine parse_lock(const std::string& text) {
  LockLine lock;
  std::istringstream words(text);
  std::string number, kind, advisory, access, pid, place, start, end;
  words >> number >> kind >> advisory >> access >> pid >> place >> start >> end;
  if (kind == "FLOCK") lock.kind = LockLine::kFlock;
  else if (kind == "POSIX") lock.kind = LockLine::kPosix;
  else if (kind == "OFDLCK") lock.kind = LockLine::kOfd;
  else if (kind == "LEASE" || kind == "DELEG") lock.kind = LockLine::kLease;
  lock.write = access == "WRITE";
  lock.settled = kind == "LEASE" && advisory == "ACTIVE";
  lock.pid = std::atoi(pid.c_str());
  lock.start = std::strtoull(start.c_str(), nullptr, 10);
  lock.bytes = end == "EOF" ? 0 : std::strtoull(end.c_str(), nullptr, 10) - lock.start + 1;
  return lock;
}

}  // namespace baton::linux_backend::state
