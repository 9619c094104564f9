// A tree of processes: groups, sessions, a zombie, a stopped child, pipes between
// them, a nice value, limits, and children that answer for themselves.
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstdint>

#include "tracee.h"

namespace {
struct Child {
  pid_t pid;
  int ask, answer;
};

struct Facts {
  pid_t pid, parent, group, session;
  int nice;
  char name[16];
  std::uint64_t asked;
};

Child start(bool own_session, bool own_group, int nice_value, const char* name) {
  int ask[2], answer[2];
  MUST(pipe(ask) == 0 && pipe(answer) == 0);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    close(ask[1]);
    close(answer[0]);
    if (own_session) MUST(setsid() > 0);
    if (own_group) MUST(setpgid(0, 0) == 0);
    MUST(setpriority(PRIO_PROCESS, 0, nice_value) == 0);
    prctl(PR_SET_NAME, name);
    std::uint64_t times = 0;
    char byte;
    for (;;) {
      ssize_t n = read(ask[0], &byte, 1);
      if (n == 0) _exit(0);
      if (n < 0) _exit(errno == EINTR ? 4 : 5);   // no EINTR may ever be seen: no handler is installed
      Facts facts{getpid(), getppid(), getpgrp(), getsid(0), getpriority(PRIO_PROCESS, 0), {}, ++times};
      prctl(PR_GET_NAME, facts.name);
      MUST(write(answer[1], &facts, sizeof facts) == sizeof facts);
    }
  }
  close(ask[0]);
  close(answer[1]);
  return {pid, ask[1], answer[0]};
}
}  // namespace

int main() {
  Child plain = start(false, false, 0, "plain");
  Child group = start(false, true, 5, "grouped");
  Child session = start(true, false, 10, "leader");
  pid_t zombie = fork();
  if (zombie == 0) _exit(42);
  pid_t stopped = fork();
  if (stopped == 0) {
    raise(SIGSTOP);
    _exit(17);
  }
  siginfo_t info{};
  MUST(waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT) == 0);
  MUST(waitid(P_PID, static_cast<id_t>(stopped), &info, WSTOPPED | WNOWAIT) == 0);
  rlimit files{512, 1024};
  MUST(setrlimit(RLIMIT_NOFILE, &files) == 0);
  const pid_t self = getpid(), own_group = getpgrp(), own_session = getsid(0);
  tracee::ready();
  std::uint64_t asked = 0;
  for (;;) {
    tracee::wait_until_asked();
    tracee::Check c;
    ++asked;
    struct {
      Child& child;
      pid_t group, session;
      int nice;
      const char* name;
    } wanted[] = {{plain, own_group, own_session, 0, "plain"},
                  {group, group.pid, own_session, 5, "grouped"},
                  {session, session.pid, session.pid, 10, "leader"}};
    c.same(getpid(), self, "own PID");
    for (auto& w : wanted) {
      Facts facts{};
      char byte = 'x';
      c.same(write(w.child.ask, &byte, 1), 1, "asking a child");
      c.same(read(w.child.answer, &facts, sizeof facts), sizeof facts, "a child's answer");
      c.same(facts.pid, w.child.pid, "PID of a child");
      c.same(facts.parent, self, "parent of a child");
      c.same(facts.group, w.group, "process group");
      c.same(facts.session, w.session, "session");
      c.same(facts.nice, w.nice, "nice value");
      c.expect(strcmp(facts.name, w.name) == 0, "name");
      c.same(static_cast<long long>(facts.asked), static_cast<long long>(asked), "a child's own counter");
    }
    siginfo_t again{};
    c.same(waitid(P_PID, static_cast<id_t>(zombie), &again, WEXITED | WNOWAIT), 0, "the zombie");
    c.same(again.si_status, 42, "status of the zombie");
    char path[64], text[512] = {};
    snprintf(path, sizeof path, "/proc/%d/stat", stopped);
    if (FILE* stat = fopen(path, "r")) {
      if (fgets(text, sizeof text, stat) == nullptr) text[0] = 0;
      fclose(stat);
    }
    const char* after = strrchr(text, ')');
    c.expect(after != nullptr && after[2] == 'T', "the stopped child is stopped", after ? after[2] : 0, 'T');
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    c.same(static_cast<long long>(limit.rlim_cur), 512, "soft limit");
    c.same(static_cast<long long>(limit.rlim_max), 1024, "hard limit");
  }
}
