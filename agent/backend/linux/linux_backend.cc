#include "agent/backend/linux/linux_backend.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <functional>

#include "agent/backend/linux/attachment.h"
#include "agent/backend/linux/remote/proc.h"
#include "agent/backend/linux/restore/build.h"
#include "agent/backend/linux/state/machine.h"
#include "agent/backend/registry.h"

namespace baton::linux_backend {
namespace {

const backend::Registrar registrar("linux", [] { return std::make_unique<LinuxBackend>(); });

Result<void> works(bool ok, const char* call) {
  if (ok) return {};
  return errno_error(call, "this node");
}

// A child of our own that waits, for probes that need another process.
class Sleeper {
 public:
  Sleeper() {
    pid_ = ::fork();
    if (pid_ == 0) {
      for (;;) ::pause();
    }
  }
  ~Sleeper() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

Result<void> probe_injection() {
  Sleeper child;
  Result<void> outcome = {};
  PtraceThread thread;
  thread.run([&] {
    outcome = [&]() -> Result<void> {
      BATON_ASSIGN(Tracee tracee, Tracee::seize(child.pid()));
      BATON_TRY(tracee.stop());
      BATON_TRY(tracee.checked("getpid in", SYS_getpid));
      return tracee.detach();
    }();
  });
  return outcome;
}

Result<void> probe_pidfd_getfd() {
  Fd pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  BATON_TRY(works(static_cast<bool>(pidfd), "pidfd_open"));
  Fd copy = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), pidfd.get(), 0)));
  return works(static_cast<bool>(copy), "pidfd_getfd");
}

Result<void> probe_process_vm() {
  Sleeper child;
  int mine = 0;
  iovec local{&mine, sizeof mine}, remote{&mine, sizeof mine};
  return works(::process_vm_readv(child.pid(), &local, 1, &remote, 1, 0) == sizeof mine, "process_vm_readv");
}

Result<void> probe_map_files() {
  void* area = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return errno_error("mmap", "this node");
  auto at = reinterpret_cast<unsigned long long>(area);
  // Neighbours of the same kind are not merged: each has an inode of its own.
  char link[96];
  std::snprintf(link, sizeof link, "/proc/self/map_files/%llx-%llx", at, at + 4096);
  Fd fd = Fd::adopt(::open(link, O_RDONLY | O_CLOEXEC));
  int saved = errno;
  ::munmap(area, 4096);
  errno = saved;
  return works(static_cast<bool>(fd), "open map_files");
}

Result<void> probe_suspend_seccomp() {
  Sleeper child;
  Result<void> outcome = {};
  PtraceThread thread;
  thread.run([&] {
    outcome = [&]() -> Result<void> {
      BATON_ASSIGN(Tracee tracee, Tracee::seize(child.pid()));
      BATON_TRY(tracee.stop());
      BATON_TRY(tracee.set_options(PTRACE_O_SUSPEND_SECCOMP));
      return tracee.detach();
    }();
  });
  return outcome;
}

Result<void> probe_rseq_configuration() {
  Sleeper child;
  Result<void> outcome = {};
  PtraceThread thread;
  thread.run([&] {
    outcome = [&]() -> Result<void> {
      BATON_ASSIGN(Tracee tracee, Tracee::seize(child.pid()));
      BATON_TRY(tracee.stop());
      std::uint64_t config[3];
      return works(::ptrace(static_cast<__ptrace_request>(PTRACE_GET_RSEQ_CONFIGURATION), child.pid(),
                            sizeof config, config) > 0, "PTRACE_GET_RSEQ_CONFIGURATION");
    }();
  });
  return outcome;
}

bool of_volume(const pb::WorkloadSpec& spec, std::string_view path) {
  return std::any_of(spec.volumes().begin(), spec.volumes().end(), [&](const std::string& folder) { return volume::lies_in(folder, path); });
}

// A file system of one's own, as baton-volume makes it.
Result<void> probe_fuse() {
  BATON_ASSIGN(Fd device, open_file("/dev/fuse", O_RDWR));
  Fd context = Fd::adopt(static_cast<int>(::syscall(SYS_fsopen, "fuse", 1 /* FSOPEN_CLOEXEC */)));
  return works(static_cast<bool>(context), "fsopen fuse");
}

struct Probe {
  const char* name;
  std::function<Result<void>()> run;
};

}  // namespace

std::vector<pb::Feature> LinuxBackend::probe() {
  std::vector<Probe> probes;
  for (const TrackerType& t : tracker_types()) probes.push_back({t.name.c_str(), t.probe});
  probes.push_back({"injection", probe_injection});
  probes.push_back({"pidfd-getfd", probe_pidfd_getfd});
  probes.push_back({"process-vm", probe_process_vm});
  probes.push_back({"map-files", probe_map_files});
  probes.push_back({"kcmp", [] {
                      return works(::syscall(SYS_kcmp, ::getpid(), ::getpid(), KCMP_VM, 0, 0) == 0, "kcmp");
                    }});
  probes.push_back({"suspend-seccomp", probe_suspend_seccomp});
  probes.push_back({"rseq-configuration", probe_rseq_configuration});
  probes.push_back({"syscall-watch", probe_syscall_watch});
  probes.push_back({"volumes", probe_fuse});
  std::vector<pb::Feature> features;
  for (const Probe& p : probes) {
    pb::Feature f;
    f.set_name(p.name);
    if (forced_off(p.name)) {
      f.set_detail("forced off");
    } else if (auto outcome = p.run(); outcome) {
      f.set_available(true);
    } else {
      f.set_detail(outcome.error().message());
    }
    features.push_back(std::move(f));
  }
  return features;
}

std::vector<std::string> LinuxBackend::trackers() {
  std::vector<std::string> names;
  for (const TrackerType& t : tracker_types()) {
    if (!forced_off(t.name) && t.probe()) names.push_back(t.name);
  }
  return names;
}

Result<void> LinuxBackend::check_spec(const pb::WorkloadSpec& spec) {
  BATON_ASSIGN(CopierChoice choice, parse_copier(spec.copier()));
  BATON_TRY(make_copier(choice));
  return {};
}

Result<backend::Inspection> LinuxBackend::inspect(const backend::AttachTarget& target) {
  auto root = read_task_status(target.root);
  if (!root) {
    return make_error(Code::kNotFound, "inspect",
                      "process " + std::to_string(target.root) + ": there is no such process");
  }
  if (root->kernel_thread) {
    return make_error(Code::kUnsupported, "inspect",
                      "process " + std::to_string(target.root) + ": it is a kernel thread");
  }
  Members members{target.cgroup, target.root, target.keeper};
  BATON_ASSIGN(auto pids, members.list());
  backend::Inspection out;
  auto verdict = [&](pid_t pid, std::string resource, std::string kind, const char* what, std::string detail) {
    pb::Verdict v;
    v.set_pid(pid);
    v.set_resource(std::move(resource));
    v.set_kind(std::move(kind));
    v.set_verdict(what);
    v.set_detail(std::move(detail));
    out.verdicts.push_back(std::move(v));
  };
  std::map<std::string, pb::FileProof> mapped;
  for (pid_t pid : pids) {
    std::string subject = "process " + std::to_string(pid);
    if (auto native = check_native_program(pid); !native) {
      verdict(pid, subject, "32-bit program", "refused", native.error().subject);
      continue;
    }
    if (auto tids = list_threads(pid)) {
      for (pid_t tid : *tids) {
        auto status = read_task_status(tid);
        if (status && status->tracer != 0) {
          verdict(pid, "thread " + std::to_string(tid), "traced", "refused",
                  "already traced by process " + std::to_string(status->tracer));
        }
      }
    }
    auto map = MemoryMap::open(pid);
    if (!map) continue;   // it has ended meanwhile
    if (!map->problem().empty()) verdict(pid, subject, "mapping", "refused", map->problem());
    std::uint64_t captured = 0;
    for (const Vma& v : map->vmas()) {
      ++captured;
      if (v.file != nullptr && v.file->kind == FileKind::kSysv &&
          (v.offset != 0 || v.end - v.start != (v.file->size_bytes + 4095) / 4096 * 4096)) {
        verdict(pid, subject, "system v ipc", "refused", "part of the System V segment " + std::to_string(v.inode) + " is mapped");
      }
      if ((v.kind != pb::MAPPING_FILE_PRIVATE && v.kind != pb::MAPPING_FILE_SHARED) || v.is_nameless()) continue;
      pb::Mapping m;
      fill_mapping(*map, v, m);
      if (of_volume(target.spec, m.path())) {
        if (v.kind == pb::MAPPING_FILE_PRIVATE) verdict(pid, m.path(), "mapping", "refused", "a private mapping of a file of its volume");
        continue;
      }
      pb::FileProof& proof = mapped[m.path()];
      proof.set_path(m.path());
      proof.set_size_bytes(v.file->size_bytes);
      proof.set_mode(v.file->mode);
      proof.set_mtime_ns(v.file->mtime_ns);
      proof.set_mapped(true);
      if (v.shared && (m.prot() & PROT_WRITE) != 0) proof.set_writable(true);
    }
    if (auto pagemap = Pagemap::open(pid)) {
      if (auto at = shared_guard(*map, *pagemap); !at.empty()) {
        verdict(pid, "address " + at, "mapping", "refused", "a guard region in shared memory is not supported");
      }
    }
    verdict(pid, subject, "memory", "captured", std::to_string(captured) + " mappings");
  }
  std::vector<pb::FileProof> open_files;
  state::inspect(pids, target.keeper, target.spec, out.verdicts, open_files);
  for (auto& f : open_files) {
    if (of_volume(target.spec, f.path())) continue;   // it goes along
    pb::FileProof& proof = mapped[f.path()];
    bool was_mapped = proof.mapped();
    proof.MergeFrom(f);
    proof.set_mapped(was_mapped || f.mapped());
  }
  for (auto& [path, proof] : mapped) out.files.push_back(std::move(proof));
  out.machine = state::machine_state();
  out.acceptable = state::acceptable(out.verdicts);
  return out;
}

Result<std::unique_ptr<backend::Attachment>> LinuxBackend::attach(const backend::AttachTarget& target) {
  auto root = read_task_status(target.root);
  if (!root) {
    return make_error(Code::kNotFound, "attach",
                      "process " + std::to_string(target.root) + ": there is no such process");
  }
  if (root->kernel_thread) {
    return make_error(Code::kUnsupported, "attach",
                      "process " + std::to_string(target.root) + ": it is a kernel thread");
  }
  BATON_ASSIGN(auto attachment, LinuxAttachment::attach(target));
  return std::unique_ptr<backend::Attachment>(std::move(attachment));
}

Result<std::unique_ptr<backend::Build>> LinuxBackend::build(const pb::Manifest& manifest,
                                                            const backend::BuildTarget& target) {
  return restore::build(manifest, target);
}

}  // namespace baton::linux_backend
