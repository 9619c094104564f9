// The zoo: small programs that each set one resource up, wait, and check everything about it
// that a program can observe. A source file holds a family of cases; `FAMILY NAME` runs one,
// `FAMILY --list` tells of all, one line each: name, resource, and what a capture must say when
// it is refused (empty: captured).
//
// The protocol is tracee.h's: "ready"; SIGUSR1 asks for a check ("ok" or "FAILED: …"); SIGUSR2
// asks for a change of the resource ("changed"), so that checkpoints differ from each other.
// A check may be asked for many times; whatever it takes out it puts back.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../tracee.h"

namespace zoo {

using tracee::Check;

// What a case leaves to be called. `turn` counts the changes so far.
struct Animal {
  std::function<void(Check&)> check;
  std::function<void()> change;        // may be empty
};

struct Case {
  const char* name;
  const char* resource;
  const char* refused;                 // a piece of the refusal; nullptr: captured
  Animal (*set_up)();
};

// In place of a refusal: a gap that is known. The case must fail, and the table says so; once it
// does not, the mark has to go.
inline constexpr const char* kLost = "lost";

inline volatile sig_atomic_t g_change = 0;

inline int run(const std::vector<Case>& cases, int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s NAME | --list\n", argv[0]);
    return 2;
  }
  if (!strcmp(argv[1], "--list")) {
    for (const auto& c : cases) printf("%s\t%s\t%s\n", c.name, c.resource, c.refused != nullptr ? c.refused : "");
    return 0;
  }
  for (const auto& c : cases) {
    if (strcmp(c.name, argv[1]) != 0) continue;
    sigset_t mine, waiting;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR1);
    sigaddset(&mine, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mine, nullptr);      // threads that a case makes leave them to us
    Animal animal = c.set_up();
    struct sigaction action {};
    action.sa_handler = [](int signal) { (signal == SIGUSR1 ? tracee::g_asked : g_change) = 1; };
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    sigaction(SIGUSR2, &action, nullptr);
    sigprocmask(SIG_BLOCK, nullptr, &waiting);    // what the case blocks stays blocked
    sigdelset(&waiting, SIGUSR1);
    sigdelset(&waiting, SIGUSR2);
    tracee::say("ready");
    for (;;) {
      sigsuspend(&waiting);
      if (g_change) {
        g_change = 0;
        if (animal.change) animal.change();
        tracee::say("changed");
      }
      if (tracee::asked()) {
        Check check;
        animal.check(check);
      }
    }
  }
  fprintf(stderr, "%s: no case %s\n", argv[0], argv[1]);
  return 2;
}

// A path of this case's own: in its working directory, which whoever started it removes.
inline std::string place(const char* what) {
  char folder[512];
  MUST(getcwd(folder, sizeof folder) != nullptr);
  return std::string(folder) + "/" + what;
}

// A child that lives as long as this process and does `work`; it never returns from it.
inline pid_t child(const std::function<void()>& work) {
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    work();
    _exit(0);
  }
  return pid;
}

[[noreturn]] inline void wait_for_ever() {
  for (;;) pause();
}

}  // namespace zoo
