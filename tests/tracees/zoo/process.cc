// Processes and threads: trees, sessions, sharing, and what prctl, seccomp, the scheduler and
// the credentials make of them.
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

std::string read_all(const std::string& path) {
  std::ifstream in(path);
  std::stringstream all;
  all << in.rdbuf();
  return all.str();
}
std::string status(const char* key, pid_t pid = getpid()) {
  std::string text = "\n" + read_all("/proc/" + std::to_string(pid) + "/status");
  auto at = text.find(std::string("\n") + key + ":");
  if (at == std::string::npos) return {};
  at = text.find(':', at) + 1;
  std::string value = text.substr(at, text.find('\n', at) - at);
  value.erase(0, value.find_first_not_of(" \t"));
  return value;
}

int g_null = -1;

void* idle(void*) {
  for (;;) pause();
}

Animal tree_of_hundred() {
  auto children = std::make_shared<std::vector<pid_t>>();
  for (int i = 0; i < 100; ++i) children->push_back(child([] { wait_for_ever(); }));
  return {[=](Check& c) {
            for (pid_t pid : *children) c.same(kill(pid, 0), 0, "alive");
            c.same(waitpid(-1, nullptr, WNOHANG), 0, "none has ended");
          },
          [=] {   // one goes, one comes
            kill(children->front(), SIGKILL);
            MUST(waitpid(children->front(), nullptr, 0) == children->front());
            children->erase(children->begin());
            children->push_back(child([] { wait_for_ever(); }));
          }};
}

Animal deep_tree() {
  int ends[2];
  MUST(pipe(ends) == 0);
  std::function<void(int)> grow = [&](int left) {
    if (left == 0) {
      MUST(write(ends[1], "x", 1) == 1);
      wait_for_ever();
    }
    child([&] { grow(left - 1); });
    wait_for_ever();
  };
  pid_t first = child([&] { grow(30); });
  char byte;
  MUST(read(ends[0], &byte, 1) == 1);
  return {[=](Check& c) {
            int depth = 0;
            for (pid_t pid = first; pid > 0; ++depth) {
              std::string next = read_all("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children");
              pid = next.empty() ? 0 : atoi(next.c_str());
            }
            c.same(depth, 31, "generations");
          },
          {}};
}

Animal reparented() {
  auto* shared = static_cast<volatile pid_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t middle = child([=] {
    shared[0] = child([] { wait_for_ever(); });
    _exit(0);
  });
  MUST(waitpid(middle, nullptr, 0) == middle);
  return {[=](Check& c) {
            c.same(kill(shared[0], 0), 0, "alive");
            c.same(atoi(status("PPid", shared[0]).c_str()), 1, "the init's child");
          },
          {}};
}

Animal subreaper() {
  MUST(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
  auto* shared = static_cast<volatile pid_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t middle = child([=] {
    shared[0] = child([] { wait_for_ever(); });
    _exit(0);
  });
  MUST(waitpid(middle, nullptr, 0) == middle);
  return {[=](Check& c) {
            int value = 0;
            prctl(PR_GET_CHILD_SUBREAPER, &value);
            c.same(value, 1, "subreaper");
            c.same(atoi(status("PPid", shared[0]).c_str()), getpid(), "my child now");
          },
          {}};
}

Animal session_without_leader() {
  auto* shared = static_cast<volatile pid_t*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t leader = child([=] {
    shared[1] = setsid();
    shared[0] = child([] { wait_for_ever(); });
    _exit(0);
  });
  MUST(waitpid(leader, nullptr, 0) == leader);
  return {[=](Check& c) {
            c.same(getsid(shared[0]), shared[1], "session");
            c.same(getpgid(shared[0]), shared[1], "group");
          },
          {}};
}

Animal groups() {
  pid_t a = child([] { setpgid(0, 0); wait_for_ever(); });
  setpgid(a, a);
  pid_t b = child([] { wait_for_ever(); });
  setpgid(b, a);
  return {[=](Check& c) {
            c.same(getpgid(a), a, "leader");
            c.same(getpgid(b), a, "member");
            c.same(getpgid(0) != a, 1, "not me");
          },
          {}};
}

Animal zombie() {
  pid_t ended = child([] { _exit(42); });
  pid_t killed = child([] { wait_for_ever(); });
  kill(killed, SIGTERM);
  siginfo_t info{};
  MUST(waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT) == 0);
  MUST(waitid(P_PID, (id_t)killed, &info, WEXITED | WNOWAIT) == 0);
  return {[=](Check& c) {
            siginfo_t now{};
            c.same(waitid(P_PID, (id_t)ended, &now, WEXITED | WNOWAIT), 0, "waits");
            c.same(now.si_status, 42, "status");
            siginfo_t other{};
            c.same(waitid(P_PID, (id_t)killed, &other, WEXITED | WNOWAIT), 0, "waits, too");
            c.same(other.si_status, SIGTERM, "signal");
            c.same(other.si_code, CLD_KILLED, "killed");
          },
          {}};
}

Animal stopped_child() {
  pid_t pid = child([] { wait_for_ever(); });
  kill(pid, SIGSTOP);
  siginfo_t info{};
  MUST(waitid(P_PID, (id_t)pid, &info, WSTOPPED) == 0);
  return {[=](Check& c) {
            for (int i = 0; i < 5000 && status("State", pid)[0] != 'T'; ++i) usleep(1000);
            c.same(status("State", pid)[0], 'T', "stopped");
            kill(pid, SIGCONT);
            for (int i = 0; i < 5000 && status("State", pid)[0] != 'S'; ++i) usleep(1000);
            c.same(status("State", pid)[0], 'S', "goes on");
            kill(pid, SIGSTOP);
            siginfo_t again{};
            waitid(P_PID, (id_t)pid, &again, WSTOPPED);
          },
          {}};
}

Animal thousand_threads() {
  auto count = std::make_shared<std::atomic<int>>(0);
  static std::atomic<int>* counter = count.get();
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 65536);
  for (int i = 0; i < 1000; ++i) {
    pthread_t thread;
    MUST(pthread_create(&thread, &attributes, [](void*) -> void* {
      ++*counter;
      return idle(nullptr);
    }, nullptr) == 0);
  }
  while (*count < 1000) usleep(1000);
  return {[=](Check& c) {
            c.same(atoi(status("Threads").c_str()), 1001, "threads");
            c.same(*count, 1000, "memory");
          },
          {}};
}

Animal thread_names() {
  auto* tid = new std::atomic<int>(0);
  pthread_t thread;
  MUST(pthread_create(&thread, nullptr, [](void* at) -> void* {
    prctl(PR_SET_NAME, "zoo thread");
    *static_cast<std::atomic<int>*>(at) = (int)syscall(SYS_gettid);
    return idle(nullptr);
  }, tid) == 0);
  while (*tid == 0) usleep(1000);
  prctl(PR_SET_NAME, "zoo main");
  return {[=](Check& c) {
            c.same(read_all("/proc/self/task/" + std::to_string(tid->load()) + "/comm").compare("zoo thread\n"), 0, "thread");
            char name[16] = {};
            prctl(PR_GET_NAME, name);
            c.same(strcmp(name, "zoo main"), 0, "main");
          },
          {}};
}

Animal leader_ended() {
  pid_t pid = fork();
  if (pid == 0) {
    pthread_t thread;
    pthread_create(&thread, nullptr, idle, nullptr);
    syscall(SYS_exit, 0);   // this thread only
  }
  while (status("State", pid)[0] != 'Z') usleep(1000);
  return {[=](Check& c) { c.same(kill(pid, 0), 0, "alive"); }, {}};
}

int share_body(void* argument) {
  (void)argument;
  for (;;) pause();
  return 0;
}

template <int kFlags>
pid_t clone_sharing() {
  auto* stack = static_cast<char*>(mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  pid_t pid = clone(share_body, stack + 65536, kFlags | SIGCHLD, nullptr);
  MUST(pid > 0);
  return pid;
}

Animal shares_files() {
  pid_t pid = clone_sharing<CLONE_FILES>();
  g_null = open("/dev/null", O_RDWR);
  return {[=](Check& c) {
            c.same(syscall(SYS_kcmp, getpid(), pid, 2, 0, 0), 0, "one table");
            int fresh = dup(g_null);
            c.same(access(("/proc/" + std::to_string(pid) + "/fd/" + std::to_string(fresh)).c_str(), F_OK), 0, "it has what I opened");
            close(fresh);
          },
          {}};
}

Animal shares_folders() {
  pid_t pid = clone_sharing<CLONE_FS>();
  return {[=](Check& c) {
            c.same(syscall(SYS_kcmp, getpid(), pid, 3, 0, 0), 0, "one set");
            MUST(chdir("/tmp") == 0);
            char path[64] = {};
            c.expect(readlink(("/proc/" + std::to_string(pid) + "/cwd").c_str(), path, sizeof path) > 0, "its folder");
            c.same(strcmp(path, "/tmp"), 0, "follows mine");
          },
          {}};
}

Animal shares_memory() {
  pid_t pid = clone_sharing<CLONE_VM>();
  return {[=](Check& c) { c.same(kill(pid, 0), 0, "alive"); }, {}};
}

Animal traced_child() {
  pid_t pid = child([] {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    wait_for_ever();
  });
  int state = 0;
  MUST(waitpid(pid, &state, 0) == pid);
  return {[=](Check& c) { c.same(atoi(status("TracerPid", pid).c_str()), getpid(), "traced"); }, {}};
}

Animal seccomp_filter() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 77),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),   // nothing of ours may trip over it
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program{sizeof code / sizeof *code, code};
  pthread_t thread;
  MUST(pthread_create(&thread, nullptr, idle, nullptr) == 0);
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
  return {[=](Check& c) {
            errno = 0;
            c.same(syscall(SYS_getppid), -1, "filtered");
            c.same(errno, 77, "as the filter says");
            c.same(syscall(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), -1, "no mmap");
            c.same(atoi(status("Seccomp_filters").c_str()), 1, "filters");
          },
          {}};
}

Animal seccomp_two() {
  auto add = [](unsigned number, unsigned error) {
    sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    sock_fprog program{4, code};
    MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0);
  };
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  add(SYS_getppid, 71);
  add(SYS_getpgrp, 72);
  return {[=](Check& c) {
            errno = 0;
            syscall(SYS_getppid);
            c.same(errno, 71, "first");
            syscall(SYS_getpgrp);
            c.same(errno, 72, "second");
            c.same(atoi(status("Seccomp_filters").c_str()), 2, "filters");
          },
          {}};
}

Animal membarrier() {
  MUST(syscall(SYS_membarrier, 16 /* REGISTER_PRIVATE_EXPEDITED */, 0, 0) == 0);
  return {[=](Check& c) { c.same(syscall(SYS_membarrier, 8 /* PRIVATE_EXPEDITED */, 0, 0), 0, "registered"); }, {}};
}

Animal prctl_settings() {
  prctl(PR_SET_TIMERSLACK, 123456);
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  prctl(PR_SET_PDEATHSIG, SIGHUP);
  prctl(PR_SET_KEEPCAPS, 1);
  prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
  int io = prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  int merge = prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0);
  return {[=](Check& c) {
            c.same(prctl(PR_GET_TIMERSLACK), 123456, "timer slack");
            c.same(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1, "no huge pages");
            int signal = 0;
            prctl(PR_GET_PDEATHSIG, &signal);
            c.same(signal, SIGHUP, "parent-death signal");
            c.same(prctl(PR_GET_KEEPCAPS), 1, "keep capabilities");
            c.same(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY, "MCE kill");
            if (io == 0) c.same(prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0), 1, "I/O flusher");
            if (merge == 0) c.same(prctl(68, 0, 0, 0, 0), 1, "memory merge");
          },
          {}};
}

Animal write_execute_denied() {
  if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) != 0) {
    tracee::say("SKIPPED: PR_SET_MDWE (Linux 6.3)");
    _exit(77);
  }
  return {[=](Check& c) {
            c.same(prctl(66, 0, 0, 0, 0), 1, "set");
            c.same(mmap(nullptr, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED, 1, "denied");
          },
          {}};
}

Animal dumpable() {
  prctl(PR_SET_DUMPABLE, 0);
  return {[=](Check& c) { c.same(prctl(PR_GET_DUMPABLE), 0, "not dumpable"); }, {}};
}

Animal coredump_filter() {
  std::ofstream("/proc/self/coredump_filter") << "0x13";
  return {[=](Check& c) { c.same((long)std::stoul(read_all("/proc/self/coredump_filter"), nullptr, 16), 0x13, "filter"); }, {}};
}

Animal personality_flags() {
  MUST(personality(ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS) >= 0);
  return {[=](Check& c) { c.same(personality(0xffffffff), ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS, "personality"); }, {}};
}

Animal real_time() {
  sched_param fifo{7};
  if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo) != 0) {
    tracee::say("SKIPPED: SCHED_FIFO");
    _exit(77);
  }
  return {[=](Check& c) {
            sched_param now{};
            c.same(sched_getscheduler(0), SCHED_FIFO | SCHED_RESET_ON_FORK, "policy");
            sched_getparam(0, &now);
            c.same(now.sched_priority, 7, "priority");
          },
          {}};
}

Animal deadline() {
  struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } attributes{48, 6, 1, 0, 0, 1000000, 20000000, 40000000};
  auto* set = new std::atomic<int>(0);
  static decltype(attributes) wanted = attributes;
  pthread_t thread;
  pthread_create(&thread, nullptr, [](void* at) -> void* {
    int ok = syscall(SYS_sched_setattr, 0, &wanted, 0) == 0 ? (int)syscall(SYS_gettid) : -1;
    *static_cast<std::atomic<int>*>(at) = ok;
    return idle(nullptr);
  }, set);
  while (*set == 0) usleep(1000);
  if (*set < 0) {
    tracee::say("SKIPPED: SCHED_DEADLINE");
    _exit(77);
  }
  return {[=](Check& c) {
            decltype(attributes) now{};
            now.size = sizeof now;
            c.same(syscall(SYS_sched_getattr, set->load(), &now, sizeof now, 0), 0, "attributes");
            c.same(now.policy, 6, "policy");
            c.same((long long)now.runtime, 1000000, "runtime");
            c.same((long long)now.deadline, 20000000, "deadline");
            c.same((long long)now.period, 40000000, "period");
          },
          {}};
}

Animal niceness() {
  setpriority(PRIO_PROCESS, 0, 7);
  syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 6);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  sched_setaffinity(0, sizeof one, &one);
  std::ofstream("/proc/self/oom_score_adj") << 300;
  return {[=](Check& c) {
            c.same(getpriority(PRIO_PROCESS, 0), 7, "nice");
            c.same(syscall(SYS_ioprio_get, 1, 0), (2 << 13) | 6, "I/O priority");
            cpu_set_t now;
            sched_getaffinity(0, sizeof now, &now);
            c.same(CPU_COUNT(&now), 1, "affinity");
            c.same(atoi(read_all("/proc/self/oom_score_adj").c_str()), 300, "OOM score");
          },
          {}};
}

Animal limits() {
  rlimit files{300, 400}, core{0, 1 << 20};
  setrlimit(RLIMIT_NOFILE, &files);
  setrlimit(RLIMIT_CORE, &core);
  return {[=](Check& c) {
            rlimit now{};
            getrlimit(RLIMIT_NOFILE, &now);
            c.same((long long)now.rlim_cur, 300, "soft");
            c.same((long long)now.rlim_max, 400, "hard");
            getrlimit(RLIMIT_CORE, &now);
            c.same((long long)now.rlim_max, 1 << 20, "core");
          },
          {}};
}

Animal credentials() {
  gid_t groups[] = {5, 44, 1000};
  MUST(setgroups(3, groups) == 0);
  MUST(setresgid(1001, 1002, 1003) == 0);
  MUST(prctl(PR_SET_KEEPCAPS, 1) == 0);
  MUST(setresuid(1001, 1002, 1003) == 0);
  return {[=](Check& c) {
            uid_t a, b, d;
            getresuid(&a, &b, &d);
            c.same(a * 1000000ll + b * 1000 + d, 1001 * 1000000ll + 1002 * 1000 + 1003, "users");
            gid_t e, f, g;
            getresgid(&e, &f, &g);
            c.same(e * 1000000ll + f * 1000 + g, 1001 * 1000000ll + 1002 * 1000 + 1003, "groups");
            gid_t now[8];
            c.same(getgroups(8, now), 3, "supplementary groups");
            c.same(status("CapEff").compare("0000000000000000"), 0, "no effective capability");
            c.expect(status("CapPrm").compare("0000000000000000") != 0, "but permitted ones");
          },
          {}};
}

Animal securebits() {
  MUST(prctl(PR_SET_SECUREBITS, 0x2f) == 0);
  MUST(prctl(PR_CAPBSET_DROP, 23 /* CAP_SYS_NICE */) == 0);
  return {[=](Check& c) {
            c.same(prctl(PR_GET_SECUREBITS), 0x2f, "securebits");
            c.same(prctl(PR_CAPBSET_READ, 23), 0, "bounding set");
          },
          {}};
}

Animal chrooted() {
  std::string folder = place("root");
  mkdir(folder.c_str(), 0755);
  mkdir((folder + "/inner").c_str(), 0755);
  MUST(chroot(folder.c_str()) == 0 && chdir("/inner") == 0);
  umask(0137);
  return {[=](Check& c) {
            char path[256] = {};
            c.expect(getcwd(path, sizeof path) != nullptr, "getcwd");
            c.same(strcmp(path, "/inner"), 0, "folder");
            c.same(access("/proc", F_OK), -1, "root");
            c.same(umask(0137), 0137, "umask");
          },
          {}};
}

Animal removed_folder() {
  std::string folder = place("removed");
  mkdir(folder.c_str(), 0755);
  MUST(chdir(folder.c_str()) == 0 && rmdir(folder.c_str()) == 0);
  return {[=](Check& c) {
            char path[256];
            c.same(getcwd(path, sizeof path) == nullptr, 1, "removed");
          },
          {}};
}

template <int kFlag>
Animal own_namespace() {
  pid_t pid = child([] {
    MUST(unshare(kFlag) == 0);
    wait_for_ever();
  });
  usleep(20000);
  return {[=](Check& c) { c.same(kill(pid, 0), 0, "alive"); }, {}};
}
Animal namespace_uts() { return own_namespace<CLONE_NEWUTS>(); }
Animal namespace_mount() { return own_namespace<CLONE_NEWNS>(); }
Animal namespace_network() { return own_namespace<CLONE_NEWNET>(); }

Animal environment() {
  for (int i = 0; i < 200; ++i) setenv(("ZOO" + std::to_string(i)).c_str(), std::string(500, 'e').c_str(), 1);
  return {[=](Check& c) {
            const char* value = getenv("ZOO199");
            c.expect(value != nullptr && strlen(value) == 500, "environment");
            c.expect(read_all("/proc/self/cmdline").find("environment") != std::string::npos, "arguments");
            c.expect(read_all("/proc/self/auxv").size() > 100, "auxiliary vector");
          },
          {}};
}

const std::vector<Case> kCases = {
    {"tree-hundred", "process tree", nullptr, tree_of_hundred},
    {"tree-deep", "process tree", nullptr, deep_tree},
    {"tree-reparented", "process tree", nullptr, reparented},
    {"tree-subreaper", "process tree", nullptr, subreaper},
    {"session-without-leader", "process tree", nullptr, session_without_leader},
    {"process-groups", "process tree", nullptr, groups},
    {"zombies", "process tree", nullptr, zombie},
    {"stopped-child", "process tree", nullptr, stopped_child},
    {"threads-thousand", "threads", nullptr, thousand_threads},
    {"threads-names", "threads", nullptr, thread_names},
    {"threads-leader-ended", "threads", "its first thread has ended", leader_ended},
    {"shares-files", "sharing", "shares its descriptor table", shares_files},
    {"shares-folders", "sharing", "shares its working directory", shares_folders},
    {"shares-memory", "sharing", "shares its memory", shares_memory},
    {"traced-child", "ptrace", "traced", traced_child},
    {"seccomp-filter", "seccomp", nullptr, seccomp_filter},
    {"seccomp-two-filters", "seccomp", nullptr, seccomp_two},
    {"membarrier", "process settings", nullptr, membarrier},
    {"prctl", "process settings", nullptr, prctl_settings},
    {"write-execute-denied", "process settings", nullptr, write_execute_denied},
    {"dumpable", "process settings", nullptr, dumpable},
    {"coredump-filter", "process settings", nullptr, coredump_filter},
    {"personality", "process settings", nullptr, personality_flags},
    {"limits", "process settings", nullptr, limits},
    {"scheduling-fifo", "scheduling", nullptr, real_time},
    {"scheduling-deadline", "scheduling", nullptr, deadline},
    {"scheduling-nice", "scheduling", nullptr, niceness},
    {"credentials", "credentials", nullptr, credentials},
    {"securebits", "credentials", nullptr, securebits},
    {"chroot", "folders", nullptr, chrooted},
    {"removed-folder", "folders", "working directory has been removed", removed_folder},
    {"namespace-uts", "namespaces", "uts namespace", namespace_uts},
    {"namespace-mount", "namespaces", "mnt namespace", namespace_mount},
    {"namespace-network", "namespaces", "net namespace", namespace_network},
    {"environment", "process settings", nullptr, environment},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
