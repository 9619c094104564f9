// inspect: the same reading as for a capture, of programs that run on, with every answer kept.
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/backend/linux/state/internal.h"
#include "agent/backend/linux/state/ipc.h"

namespace baton::linux_backend::state {

void inspect(const std::vector<pid_t>& pids, pid_t keeper, const pb::WorkloadSpec& spec,
             std::vector<pb::Verdict>& verdicts, std::vector<pb::FileProof>& open_files) {
  Report report = [&](const Problem& p) {
    pb::Verdict v;
    v.set_pid(p.pid);
    v.set_resource(p.resource);
    v.set_kind(p.kind);
    v.set_verdict(p.verdict);
    v.set_detail(p.detail);
    verdicts.push_back(std::move(v));
  };
  std::vector<ProcessRef> processes;
  for (pid_t pid : pids) {
    if (pid == keeper) continue;
    auto status = read_task_status(pid);
    if (!status || status->state == 'X') continue;
    if (status->state == 'Z') {
      auto threads = list_threads(pid);
      if (threads && threads->size() > 1) report({pid, "process", "threads", "refused", "its first thread has ended while others run on"});
      continue;
    }
    if (status->tracer != 0) {
      report({pid, "process", "traced", "refused", "it is traced by process " + std::to_string(status->tracer)});
      continue;
    }
    check_process(pid, keeper, spec, report);
    if (status->kernel_thread) continue;
    report({pid, "process", "process", "captured", "threads, registers, signals, timers, credentials, limits, scheduling"});
    for (const auto& other : processes) {
      if (::syscall(SYS_kcmp, pid, other.pid, KCMP_VM, 0, 0) != 0) continue;
      report({pid, "process", "sharing", "refused", "it shares its memory with process " + std::to_string(other.pid)});
      break;
    }
    if (const std::string ipc = foreign_ipc(pid); !ipc.empty()) {
      report({pid, ipc, "system v ipc", "refused", "it is in the node's own IPC namespace; a program that baton run starts has one of its own"});
    }
    for (const auto& other : processes) {
      if (const std::string shared = shared_tables(pid, other.pid); !shared.empty()) report({pid, "process", "sharing", "refused", shared});
    }
    processes.push_back({pid, status->ns_tids.empty() ? pid : status->ns_tids.back()});
  }
  if (keeper == 0 && !processes.empty()) {
    report({processes.front().pid, "namespaces", "namespaces", "differs",
            "after a restore it has PID, mount, IPC and time namespaces of its own, and Baton's keeper as parent"});
  }
  pb::LinuxState scratch;
  std::vector<DescriptorObject> objects;
  DescriptorOptions options;
  options.spec = &spec;
  options.keeper = keeper;
  options.running = true;
  options.report = report;
  options.captured = report;
  options.proofs = &open_files;
  if (auto read = read_descriptors(processes, options, nullptr, scratch, objects); !read) {
    report({processes.empty() ? 0 : processes.front().pid, "descriptors", "descriptors", "refused", read.error().message()});
  }
}

bool acceptable(const std::vector<pb::Verdict>& verdicts) {
  for (const auto& v : verdicts) {
    if (v.verdict() == "refused") return false;
  }
  return true;
}

}  // namespace baton::linux_backend::state
