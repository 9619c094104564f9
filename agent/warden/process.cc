#include "agent/warden/process.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <map>
#include <sstream>

namespace baton::warden {
namespace {

constexpr std::uint64_t kKernelThread = 0x00200000;   // PF_KTHREAD, include/linux/sched.h

// pidfd_info and PIDFD_GET_INFO: Linux 6.13; the exit code in it: 6.15. include/uapi/linux/pidfd.h.
struct PidfdInfo {
  std::uint64_t mask, cgroupid;
  std::uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
  std::int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr std::uint64_t kPidfdInfoExit = 1u << 3;
constexpr unsigned long kPidfdGetInfo = _IOWR(0xFF, 11, PidfdInfo);

Error gone(pid_t pid) {
  return make_error(Code::kNotFound, "process", "no process has PID " + std::to_string(pid));
}

std::string proc_path(pid_t pid, const char* name) { return "/proc/" + std::to_string(pid) + "/" + name; }

std::optional<long> status_field(const std::string& text, std::string_view key) {
  auto at = text.find("\n" + std::string(key) + ":");
  if (at == std::string::npos) return std::nullopt;
  return std::strtol(text.c_str() + at + key.size() + 2, nullptr, 10);
}

}  // namespace

Result<ProcessStat> read_process(pid_t pid) {
  if (pid <= 0) return gone(pid);
  auto text = read_file(proc_path(pid, "stat"), 1 << 16);
  if (!text) return gone(pid);
  auto close = text->rfind(')');   // the name may hold anything, parentheses too
  if (close == std::string::npos) return gone(pid);
  std::istringstream fields(text->substr(close + 1));
  std::vector<std::string> value;
  for (std::string word; fields >> word;) value.push_back(std::move(word));
  // value[0] is field 3 of proc(5).
  if (value.size() < 20) return gone(pid);
  ProcessStat out;
  out.state = value[0][0];
  out.parent = static_cast<pid_t>(std::strtol(value[1].c_str(), nullptr, 10));
  out.flags = std::strtoull(value[6].c_str(), nullptr, 10);
  out.start = std::strtoull(value[19].c_str(), nullptr, 10);
  if (value.size() >= 50) out.exit_code = static_cast<int>(std::strtol(value[49].c_str(), nullptr, 10));
  return out;
}

Result<void> check_protectable(pid_t pid) {
  BATON_ASSIGN(ProcessStat stat, read_process(pid));
  auto status = read_file(proc_path(pid, "status"), 1 << 16);
  if (!status) return gone(pid);
  std::string subject = "PID " + std::to_string(pid);
  if (stat.flags & kKernelThread) {
    return make_error(Code::kInvalid, "protect", subject + " is a kernel thread", "Name a program's PID.");
  }
  if (stat.state == 'Z' || stat.state == 'X') {
    return make_error(Code::kNotFound, "protect", subject + " has already ended");
  }
  if (long tgid = status_field(*status, "Tgid").value_or(pid); tgid != pid) {
    return make_error(Code::kInvalid, "protect", subject + " is a thread of process " + std::to_string(tgid),
                      "Name the process.");
  }
  for (pid_t above = ::getpid(); above > 0;) {
    if (above == pid) {
      return make_error(Code::kInvalid, "protect", subject + " is the warden itself or a parent of it",
                        "Name the program that is to be protected.");
    }
    auto next = read_process(above);
    above = next ? next->parent : 0;
  }
  for (pid_t member : process_tree(pid)) {
    auto text = read_file(proc_path(member, "status"), 1 << 16);
    if (!text) continue;
    if (long tracer = status_field(*text, "TracerPid").value_or(0); tracer != 0) {
      return make_error(Code::kConflict, "protect",
                        "PID " + std::to_string(member) + " is being traced by PID " + std::to_string(tracer),
                        "End the debugger or tracer first.");
    }
    unsigned char ident[EI_NIDENT] = {};
    auto exe = open_file(proc_path(member, "exe"), O_RDONLY);
    if (exe && ::read(exe->get(), ident, sizeof ident) == static_cast<ssize_t>(sizeof ident) &&
        std::memcmp(ident, ELFMAG, SELFMAG) == 0 && ident[EI_CLASS] == ELFCLASS32) {
      return make_error(Code::kUnsupported, "protect",
                        "PID " + std::to_string(member) + " is a 32-bit program",
                        "Baton handles 64-bit programs only.");
    }
  }
  return {};
}

std::vector<pid_t> process_tree(pid_t root) {
  std::multimap<pid_t, pid_t> children;
  if (DIR* dir = ::opendir("/proc")) {
    while (dirent* entry = ::readdir(dir)) {
      pid_t pid = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
      if (pid <= 0) continue;
      if (auto stat = read_process(pid)) children.emplace(stat->parent, pid);
    }
    ::closedir(dir);
  }
  std::vector<pid_t> out{root};
  for (std::size_t i = 0; i < out.size(); ++i) {
    auto [begin, end] = children.equal_range(out[i]);
    for (auto it = begin; it != end; ++it) out.push_back(it->second);
  }
  return out;
}

Result<HeldProcess> HeldProcess::open(pid_t pid, std::uint64_t start) {
  HeldProcess out;
  int fd = pid > 0 ? static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)) : -1;
  if (fd < 0) return gone(pid);
  out.fd_ = Fd::adopt(fd);
  // Read after the pidfd exists: from here on the PID cannot be reused unnoticed.
  BATON_ASSIGN(ProcessStat stat, read_process(pid));
  if (start != 0 && stat.start != start) return gone(pid);
  out.pid_ = pid;
  out.start_ = stat.start;
  return out;
}

bool HeldProcess::ended() const {
  pollfd entry{fd_.get(), POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

Result<void> HeldProcess::signal(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, fd_.get(), signal, nullptr, 0) != 0) {
    return errno_error("pidfd_send_signal", "PID " + std::to_string(pid_));
  }
  return {};
}

std::optional<int> HeldProcess::wait_status() const {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(fd_.get()), &info, WEXITED | WNOHANG) == 0 && info.si_pid != 0) {
    if (info.si_code == CLD_EXITED) return (info.si_status & 0xff) << 8;
    return (info.si_status & 0x7f) | (info.si_code == CLD_DUMPED ? 0x80 : 0);
  }
  auto stat = read_process(pid_);
  if (stat && stat->start == start_ && stat->state == 'Z') return stat->exit_code;
  PidfdInfo more{};
  more.mask = kPidfdInfoExit;
  if (::ioctl(fd_.get(), kPidfdGetInfo, &more) == 0 && (more.mask & kPidfdInfoExit)) return more.exit_code;
  return std::nullopt;
}

}  // namespace baton::warden
