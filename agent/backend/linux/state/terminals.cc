// Pseudo-terminals of which the workload has the master: settings, size, whose controlling terminal
// each is. What has been typed or printed and not been read yet cannot be read without taking it
// out; a checkpoint is refused for that moment.
#include <asm/termbits.h>   // struct termios2
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

constexpr unsigned kSlaveMajor = 136;   // Documentation/admin-guide/devices.txt

bool is_terminal_device(const struct stat& st) {
  if (!S_ISCHR(st.st_mode)) return false;
  const unsigned kind = major(st.st_rdev), number = minor(st.st_rdev);
  return kind == kSlaveMajor || (kind == 5 && (number == 0 || number == 2));   // /dev/tty, /dev/ptmx
}

// Of a process group, as the workload counts; 0: none of its processes is in it.
int group_inside(pid_t group, const std::vector<ProcessRef>& processes) {
  for (const auto& process : processes) {
    auto status = read_proc("/proc/" + std::to_string(process.pid) + "/status");
    if (!status) continue;
    const std::string numbers = read_status_field(*status, "NSpgid");   // outermost first
    if (std::atoi(numbers.c_str()) != group) continue;
    const std::size_t last = numbers.find_last_of(" \t");
    return std::atoi(numbers.c_str() + (last == std::string::npos ? 0 : last + 1));
  }
  return 0;
}

}  // namespace

std::optional<TerminalEnd> terminal_end(int fd, const struct stat& st) {
  unsigned device = 0;
  if (fd < 0 || !is_terminal_device(st) || ::ioctl(fd, TIOCGDEV, &device) != 0) return std::nullopt;
  if (major(device) != kSlaveMajor) return std::nullopt;   // a console, a serial line
  return TerminalEnd{minor(device), major(st.st_rdev) == 5 && minor(st.st_rdev) == 2};
}

std::uint32_t terminal_of(const std::vector<std::string>& stat_fields) {
  const unsigned device = stat_fields.size() > 4 ? static_cast<unsigned>(std::strtoul(stat_fields[4].c_str(), nullptr, 10)) : 0;   // field 7: tty_nr
  return major(device) == kSlaveMajor ? minor(device) + 1 : 0;
}

void read_terminal(int master, int slave, std::uint32_t number, const std::vector<ProcessRef>& processes, pb::Terminal& out, std::string& refused) {
  out.set_number(number);
  termios2 settings{};
  winsize size{};
  int locked = 0, packets = 0, session = 0, foreground = 0, exclusive = 0;
  if (::ioctl(master, TCGETS2, &settings) != 0 || ::ioctl(master, TIOCGWINSZ, &size) != 0) {
    refused = "its settings cannot be read";
    return;
  }
  out.set_settings(reinterpret_cast<const char*>(&settings), sizeof settings);
  out.set_rows(size.ws_row);
  out.set_columns(size.ws_col);
  out.set_width(size.ws_xpixel);
  out.set_height(size.ws_ypixel);
  if (::ioctl(master, TIOCGPTLCK, &locked) == 0) out.set_locked(locked != 0);
  if (::ioctl(master, TIOCGPKT, &packets) == 0) out.set_packet_mode(packets != 0);
  if (::ioctl(master, TIOCGEXCL, &exclusive) == 0 && exclusive != 0) refused = "it is for one only (TIOCEXCL)";
  struct stat st {};
  const std::string path = "/proc/" + std::to_string(processes.empty() ? 0 : processes.front().pid) + "/root/dev/pts/" + std::to_string(number);
  if (::stat(path.c_str(), &st) == 0) {
    out.set_uid(st.st_uid);
    out.set_gid(st.st_gid);
    out.set_mode(st.st_mode & 07777);
  }
  if (::ioctl(master, TIOCGSID, &session) == 0 && session > 0) {
    auto leader = std::find_if(processes.begin(), processes.end(), [&](const auto& p) { return p.pid == session; });
    if (leader == processes.end()) refused = "it is the controlling terminal of a session outside of the workload";
    else out.set_session(leader->ns_pid);
    if (::ioctl(master, TIOCGPGRP, &foreground) == 0 && foreground > 0) out.set_foreground(group_inside(foreground, processes));
  }
  int typed = 0, printed = 0;
  if (::ioctl(master, FIONREAD, &printed) == 0 && printed > 0) refused = "what was printed waits to be read from it; try again";
  if (slave >= 0 && ::ioctl(slave, FIONREAD, &typed) == 0 && typed > 0) refused = "what was typed waits to be read from it; try again";
}

}  // namespace baton::linux_backend::state
