// What /proc tells of a process: its place in the tree, credentials, limits, folders.
#include <linux/kcmp.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <sstream>

#include "agent/backend/linux/state/internal.h"

namespace baton::linux_backend::state {
namespace {

Result<std::string> read_link(const std::string& path) {
  char target[PATH_MAX];
  ssize_t n = ::readlink(path.c_str(), target, sizeof target);
  if (n < 0) return errno_error("readlink", path);
  return std::string(target, static_cast<std::size_t>(n));
}

std::vector<std::uint64_t> numbers(const std::string& text, int base) {
  std::vector<std::uint64_t> out;
  const char* p = text.c_str();
  for (;;) {
    char* next = nullptr;
    std::uint64_t v = std::strtoull(p, &next, base);
    if (next == p) return out;
    out.push_back(v);
    p = next;
  }
}

// /proc/PID/limits: one line each in the order of RLIMIT_*, in fixed columns (fs/proc/base.c).
// prlimit(2) of another user's process needs CAP_SYS_RESOURCE, reading this does not.
Result<void> read_limits(pid_t pid, pb::ProcessState& out) {
  BATON_ASSIGN(std::string text, read_proc("/proc/" + std::to_string(pid) + "/limits"));
  constexpr std::size_t kNameColumns = 26;
  std::istringstream lines(text);
  std::string line;
  std::getline(lines, line);   // headings
  for (std::uint32_t resource = 0; resource < RLIM_NLIMITS; ++resource) {
    if (!std::getline(lines, line) || line.size() < kNameColumns) return make_error(Code::kFailed, "read limits", "process " + std::to_string(pid));
    std::istringstream words(line.substr(kNameColumns));
    std::string soft, hard;
    words >> soft >> hard;
    auto value = [](const std::string& word) { return word == "unlimited" ? ~0ull : std::strtoull(word.c_str(), nullptr, 10); };
    auto& saved = *out.add_limits();
    saved.set_resource(resource);
    saved.set_soft(value(soft));
    saved.set_hard(value(hard));
  }
  return {};
}

int last_number(const std::string& text) {
  auto all = numbers(text, 10);
  return all.empty() ? 0 : static_cast<int>(all.back());
}

}  // namespace

std::string read_status_field(const std::string& status, const std::string& key) {
  std::size_t at = status.rfind(key + ":", 0) == 0 ? 0 : status.find("\n" + key + ":");
  if (at == std::string::npos) return {};
  at = status.find(':', at) + 1;
  std::size_t end = status.find('\n', at);
  while (at < end && (status[at] == ' ' || status[at] == '\t')) ++at;
  return status.substr(at, end - at);
}

Result<void> read_credentials(pid_t tid, pb::Credentials& out, StatusFacts& facts) {
  BATON_ASSIGN(std::string status, read_proc("/proc/" + std::to_string(tid) + "/status"));
  for (auto id : numbers(read_status_field(status, "Uid"), 10)) out.add_uids(static_cast<std::uint32_t>(id));
  for (auto id : numbers(read_status_field(status, "Gid"), 10)) out.add_gids(static_cast<std::uint32_t>(id));
  for (auto id : numbers(read_status_field(status, "Groups"), 10)) out.add_groups(static_cast<std::uint32_t>(id));
  auto set = [&](const char* key) { return std::strtoull(read_status_field(status, key).c_str(), nullptr, 16); };
  out.set_cap_inheritable(set("CapInh"));
  out.set_cap_permitted(set("CapPrm"));
  out.set_cap_effective(set("CapEff"));
  out.set_cap_bounding(set("CapBnd"));
  out.set_cap_ambient(set("CapAmb"));
  facts.seccomp = std::atoi(read_status_field(status, "Seccomp").c_str());
  facts.locked_kib = std::strtoull(read_status_field(status, "VmLck").c_str(), nullptr, 10);
  out.set_no_new_privs(read_status_field(status, "NoNewPrivs") == "1");
  return {};
}

pb::ProcessState* find_or_add(pb::LinuxState& state, pid_t ns_pid) {
  for (auto& process : *state.mutable_processes()) {
    if (process.pid() == ns_pid) return &process;
  }
  auto* added = state.add_processes();
  added->set_pid(ns_pid);
  return added;
}

Result<void> read_changeable(pid_t pid, pb::ProcessState& out) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/";
  BATON_ASSIGN(*out.mutable_cwd(), read_link(folder + "cwd"));
  BATON_ASSIGN(*out.mutable_root(), read_link(folder + "root"));
  if (auto text = read_proc(folder + "oom_score_adj")) out.set_oom_score_adj(std::atoi(text->c_str()));
  if (auto text = read_proc(folder + "coredump_filter")) out.set_coredump_filter(static_cast<std::uint32_t>(std::strtoul(text->c_str(), nullptr, 16)));
  return read_limits(pid, out);
}

Result<void> read_process(pid_t pid, const Places& places, pb::ProcessState& out) {
  const std::string folder = "/proc/" + std::to_string(pid) + "/";
  BATON_ASSIGN(std::string status, read_proc(folder + "status"));
  int parent = std::atoi(read_status_field(status, "PPid").c_str());
  auto found = places.inside.find(parent);
  out.set_ppid(found == places.inside.end() ? 1 : found->second);
  out.set_pgid(last_number(read_status_field(status, "NSpgid")));
  out.set_sid(last_number(read_status_field(status, "NSsid")));
  BATON_ASSIGN(std::string comm, read_proc(folder + "comm"));
  if (!comm.empty() && comm.back() == '\n') comm.pop_back();
  out.set_comm(comm);
  if (out.zombie()) return {};
  out.set_umask(static_cast<std::uint32_t>(std::strtoul(read_status_field(status, "Umask").c_str(), nullptr, 8)));
  BATON_TRY(read_changeable(pid, out));
  if (out.cwd().size() > 10 && out.cwd().compare(out.cwd().size() - 10, 10, " (deleted)") == 0) {
    return make_error(Code::kUnsupported, "capture", "process " + std::to_string(pid) + ": its working directory has been removed: " + out.cwd());
  }
  BATON_ASSIGN(auto fields, read_stat_fields(pid));
  out.set_terminal(terminal_of(fields));
  if (auto text = read_proc(folder + "personality")) out.set_personality(std::strtoull(text->c_str(), nullptr, 16));
  return {};
}

// Zombies hang on their parents only: no cgroup lists them.
Result<void> add_zombies(const StoppedTree& tree, const Places& places, pb::LinuxState& out) {
  for (const auto& process : tree.processes) {
    for (const auto& thread : process.threads) {
      auto text = read_proc("/proc/" + std::to_string(process.pid) + "/task/" + std::to_string(thread.tid) + "/children");
      if (!text) continue;   // CONFIG_PROC_CHILDREN
      for (std::uint64_t child : numbers(*text, 10)) {
        auto pid = static_cast<pid_t>(child);
        if (places.inside.count(pid) != 0 || pid == tree.keeper) continue;
        auto status = read_task_status(pid);
        if (!status || status->state != 'Z' || status->ns_tids.empty()) continue;
        auto& zombie = *find_or_add(out, status->ns_tids.back());
        zombie.set_zombie(true);
        BATON_TRY(read_process(pid, places, zombie));
        BATON_ASSIGN(auto fields, read_stat_fields(pid));
        if (fields.size() > 49) zombie.set_exit_status(std::atoi(fields[49].c_str()));   // field 52: exit_code
      }
    }
  }
  return {};
}

namespace {
bool shares(pid_t a, pid_t b, int what) { return ::syscall(SYS_kcmp, a, b, what, 0, 0) == 0; }
}  // namespace

// A thread that has just ended compares as an error, not as another.
bool share_tables(pid_t process, pid_t thread) {
  return ::syscall(SYS_kcmp, process, thread, KCMP_FILES, 0, 0) <= 0 && ::syscall(SYS_kcmp, process, thread, KCMP_FS, 0, 0) <= 0;
}

std::string shared_tables(pid_t a, pid_t b) {
  if (shares(a, b, KCMP_FILES)) return "it shares its descriptor table with process " + std::to_string(b);
  if (shares(a, b, KCMP_FS)) return "it shares its working directory with process " + std::to_string(b);
  return {};
}

void check_process(pid_t pid, pid_t keeper, const pb::WorkloadSpec& spec, const Report& report) {
  auto refuse = [&](std::string resource, std::string kind, std::string detail) {
    report({pid, std::move(resource), std::move(kind), "refused", std::move(detail)});
  };
  auto status = read_task_status(pid);
  if (!status) return;
  if (status->kernel_thread) refuse("process", "kernel thread", "it is a kernel thread");
  static const bool has_shadow_stacks = [] {
    auto info = read_proc("/proc/cpuinfo");
    return info && info->find("user_shstk") != std::string::npos;
  }();
  if (has_shadow_stacks) {
    auto text = read_proc("/proc/" + std::to_string(pid) + "/status");   // x86_Thread_features, Linux 6.6
    if (text && text->find("shstk") != std::string::npos) refuse("process", "shadow stack", "shadow stacks are not supported");
  }
  if (auto native = check_native_program(pid); !native) refuse("process", "32-bit program", "32-bit programs are not supported");
  if (auto cwd = read_link("/proc/" + std::to_string(pid) + "/cwd"); cwd && cwd->size() > 10 && cwd->compare(cwd->size() - 10, 10, " (deleted)") == 0) {
    refuse("process", "folder", "its working directory has been removed: " + *cwd);
  }
  if (auto threads = list_threads(pid)) {
    for (pid_t tid : *threads) {
      if (tid != pid && !share_tables(pid, tid)) {
        refuse("thread " + std::to_string(tid), "sharing", "it has descriptors or a working directory of its own, apart from its process");
      }
    }
  }
  // Namespaces: the workload's own (the keeper's) or this node's.
  const std::string own = "/proc/self/ns/", theirs = "/proc/" + std::to_string(pid) + "/ns/", home = "/proc/" + std::to_string(keeper) + "/ns/";
  for (const char* kind : {"mnt", "net", "ipc", "uts", "user", "cgroup", "pid"}) {
    auto name = read_link(theirs + kind), ours = read_link(own + kind);
    if (!name || !ours || *name == *ours) continue;
    if (keeper != 0) {
      auto kept = read_link(home + kind);
      if (kept && *kept == *name) continue;
    }
    refuse(std::string("namespace ") + kind, "namespace", std::string("it has a ") + kind + " namespace of its own, which is not supported");
  }
  (void)spec;
}

}  // namespace baton::linux_backend::state
