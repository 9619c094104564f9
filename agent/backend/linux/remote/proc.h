// What /proc says about one thread, read without stopping it.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace baton::linux_backend {

struct TaskStatus {
  char state = '?';              // R, S, D, T, t, Z, X
  pid_t tgid = 0;
  pid_t ppid = 0;
  pid_t tracer = 0;
  std::vector<pid_t> ns_tids;    // outermost (ours) first
  std::uint64_t blocked = 0, ignored = 0, caught = 0, pending = 0;  // signals; pending: of thread and process
  int seccomp = 0;
  bool kernel_thread = false;
  bool has_memory = false;
};

// /proc/TID/status. Fails: kTraceeGone.
Result<TaskStatus> read_task_status(pid_t tid);

// Numbers named by the folder /proc/PID/task, ascending. Fails: kTraceeGone.
Result<std::vector<pid_t>> list_threads(pid_t pid);

// Fields of /proc/TID/stat from the third (state) on; index 0 is the state.
Result<std::vector<std::string>> read_stat_fields(pid_t tid);

// The program is a 64-bit one of this machine. Fails: kUnsupported, kTraceeGone.
Result<void> check_native_program(pid_t pid);

// Reads a /proc file of no known size; ESRCH and ENOENT become kTraceeGone.
Result<std::string> read_proc(const std::string& path);

// POSIX shared memory: a file of a tmpfs at /dev/shm. What it holds is memory, and travels with the program.
bool is_named_memory(std::string_view path, const struct stat& info, const struct statfs& where);

}  // namespace baton::linux_backend
