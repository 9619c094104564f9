// Files and terminals: positions, flags, locks, leases, names that are gone, pseudo-terminals;
// signals and timers.
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>

#include <memory>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

int make(const std::string& path, const std::string& content, int flags = O_RDWR) {
  int fd = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR, 0640);
  MUST(write(fd, content.data(), content.size()) == (ssize_t)content.size());
  close(fd);
  return open(path.c_str(), flags);
}

Animal position() {
  int fd = make(place("position"), "0123456789");
  auto at = std::make_shared<off_t>(4);
  lseek(fd, 4, SEEK_SET);
  int same = dup(fd);
  return {[=](Check& c) {
            c.same(lseek(fd, 0, SEEK_CUR), *at, "position");
            c.same(lseek(same, 0, SEEK_CUR), *at, "the duplicate's");
          },
          [=] { *at = lseek(fd, 1, SEEK_CUR); }};
}

Animal append() {
  std::string path = place("append");
  int fd = make(path, "begin", O_WRONLY | O_APPEND | O_NONBLOCK);
  return {[=](Check& c) {
            c.same(fcntl(fd, F_GETFL) & (O_APPEND | O_NONBLOCK | O_ACCMODE), O_APPEND | O_NONBLOCK | O_WRONLY, "flags");
            struct stat before {}, after {};
            fstat(fd, &before);
            c.same(write(fd, "x", 1), 1, "write");
            fstat(fd, &after);
            c.same(after.st_size, before.st_size + 1, "at the end");
          },
          {}};
}

Animal deleted() {
  std::string path = place("deleted");
  int fd = make(path, "content of a file without a name");
  lseek(fd, 8, SEEK_SET);
  unlink(path.c_str());
  auto turn = std::make_shared<int>(0);
  return {[=](Check& c) {
            char text[64] = {};
            c.same(pread(fd, text, sizeof text, 0) > 8, 1, "read");
            c.same(strncmp(text, "content ", 8), 0, "content");
            c.same(lseek(fd, 0, SEEK_CUR), 8, "position");
            struct stat st {};
            fstat(fd, &st);
            c.same(st.st_nlink, 0, "no name");
            c.same(st.st_mode & 0777, 0640, "mode");
            c.same(st.st_size, 32 + *turn, "size");
          },
          [=] { MUST(pwrite(fd, "!", 1, 32 + (*turn)++) == 1); }};
}

Animal temporary() {
  int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
  MUST(fd >= 0);
  MUST(write(fd, "temporary", 9) == 9);
  return {[=](Check& c) {
            char text[16] = {};
            c.same(pread(fd, text, sizeof text, 0), 9, "read");
            c.same(strcmp(text, "temporary"), 0, "content");
          },
          {}};
}

Animal renamed() {
  std::string path = place("before"), other = place("after");
  int fd = make(path, "renamed");
  rename(path.c_str(), other.c_str());
  return {[=](Check& c) {
            char text[16] = {};
            c.same(pread(fd, text, sizeof text, 0), 7, "read");
            struct stat mine {}, named {};
            fstat(fd, &mine);
            c.same(stat(other.c_str(), &named), 0, "its name");
            c.same((long long)mine.st_ino, (long long)named.st_ino, "the same file");
          },
          {}};
}

Animal replaced() {   // its name belongs to another file now
  std::string path = place("replaced");
  int fd = make(path, "the old one");
  int other = make(path + ".new", "the new one");
  rename((path + ".new").c_str(), path.c_str());
  return {[=](Check& c) {
            char text[16] = {};
            c.same(pread(fd, text, sizeof text, 0), 11, "read");
            c.same(strcmp(text, "the old one"), 0, "the old content");
            char fresh[16] = {};
            c.same(pread(other, fresh, sizeof fresh, 0), 11, "read");
            c.same(strcmp(fresh, "the new one"), 0, "the new content");
          },
          {}};
}

Animal folder() {
  std::string path = place("folder");
  mkdir(path.c_str(), 0700);
  int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY), only = open(path.c_str(), O_PATH);
  return {[=](Check& c) {
            c.same(faccessat(fd, ".", R_OK, 0), 0, "folder");
            c.same(fcntl(only, F_GETFL) & O_PATH, O_PATH, "O_PATH");
            c.same(faccessat(only, ".", R_OK, 0), 0, "through O_PATH");
          },
          {}};
}

Animal proc_files() {
  int status = open("/proc/self/status", O_RDONLY), sys = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
  return {[=](Check& c) {
            char text[4096] = {};
            c.expect(pread(status, text, sizeof text - 1, 0) > 0, "read /proc/self/status");
            c.expect(strstr(text, "Name:") != nullptr, "its content");
            const char* pid = strstr(text, "\nPid:");
            c.same(pid != nullptr ? atoi(pid + 5) : 0, getpid(), "mine");
            if (sys >= 0) c.expect(pread(sys, text, sizeof text, 0) > 0, "read a file of /sys");
          },
          {}};
}

Animal flock_held() {
  std::string path = place("flock");
  int fd = make(path, "x");
  MUST(flock(fd, LOCK_EX) == 0);
  return {[=](Check& c) {
            int other = open(path.c_str(), O_RDWR);
            c.same(flock(other, LOCK_SH | LOCK_NB), -1, "held");
            c.same(errno, EWOULDBLOCK, "by somebody else");
            close(other);
            c.same(flock(fd, LOCK_EX | LOCK_NB), 0, "by me");
          },
          {}};
}

// What a process finds of my record locks.
int tested_by_child(const std::string& path, off_t start, int type) {
  pid_t pid = child([&] {
    int fd = open(path.c_str(), O_RDWR);
    struct flock test {};
    test.l_type = (short)type;
    test.l_start = start;
    test.l_len = 1;
    if (fcntl(fd, F_GETLK, &test) != 0) _exit(99);
    _exit(test.l_type == F_UNLCK ? 0 : test.l_type == F_RDLCK ? 1 : 2);
  });
  int state = 0;
  waitpid(pid, &state, 0);
  return WEXITSTATUS(state);
}

Animal record_locks() {
  std::string path = place("posix");
  int fd = make(path, std::string(100, 'l'));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = 10;
  lock.l_len = 5;
  MUST(fcntl(fd, F_SETLK, &lock) == 0);
  lock.l_type = F_RDLCK;
  lock.l_start = 50;
  lock.l_len = 0;
  MUST(fcntl(fd, F_SETLK, &lock) == 0);
  int second = open("/dev/null", O_RDONLY);
  (void)second;
  return {[=](Check& c) {
            c.same(tested_by_child(path, 12, F_RDLCK), 2, "write lock");
            c.same(tested_by_child(path, 20, F_WRLCK), 0, "free");
            c.same(tested_by_child(path, 1000, F_WRLCK), 1, "read lock to the end");
          },
          {}};
}

Animal description_locks() {
  std::string path = place("ofd");
  int fd = make(path, std::string(100, 'l'));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = 30;
  lock.l_len = 2;
  MUST(fcntl(fd, F_OFD_SETLK, &lock) == 0);
  return {[=](Check& c) {
            int other = open(path.c_str(), O_RDWR);
            struct flock test {};
            test.l_type = F_WRLCK;
            test.l_start = 31;
            test.l_len = 1;
            c.same(fcntl(other, F_OFD_GETLK, &test), 0, "ask");
            c.same(test.l_type, F_WRLCK, "held");
            c.same(test.l_pid, -1, "by a description");
            close(other);
          },
          {}};
}

Animal lease() {
  std::string path = place("lease");
  int fd = make(path, "leased", O_RDONLY);
  signal(SIGIO, SIG_IGN);
  MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 5) == 0);
  signal(SIGRTMIN + 5, SIG_IGN);
  MUST(fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
  return {[=](Check& c) {
            c.same(fcntl(fd, F_GETLEASE), F_RDLCK, "lease");
            c.same(fcntl(fd, F_GETSIG), SIGRTMIN + 5, "its signal");
          },
          {}};
}

// Told by its signal when somebody else opens the file.
Animal lease_broken() {
  std::string path = place("lease-write");
  int fd = make(path, "leased");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 6);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 6) == 0);
  MUST(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
  return {[=](Check& c) {
            c.same(fcntl(fd, F_GETLEASE), F_WRLCK, "lease");
            c.same(open(path.c_str(), O_RDONLY | O_NONBLOCK), -1, "others wait");
            c.same(errno, EWOULDBLOCK, "so they are told");
            timespec limit{2, 0};
            siginfo_t info{};
            c.same(sigtimedwait(&set, &info, &limit), SIGRTMIN + 6, "told");
            c.same(info.si_fd, fd, "by which number");
            MUST(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);   // takes the signal's number along
            MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 6) == 0);
            MUST(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
          },
          {}};
}

Animal owner() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(pipe(ends->data()) == 0);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  MUST(fcntl((*ends)[0], F_SETOWN, getpid()) == 0);
  MUST(fcntl((*ends)[0], F_SETSIG, SIGRTMIN + 4) == 0);
  MUST(fcntl((*ends)[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
  return {[=](Check& c) {
            c.same(fcntl((*ends)[0], F_GETOWN), getpid(), "owner");
            MUST(write((*ends)[1], "x", 1) == 1);
            timespec limit{2, 0};
            siginfo_t info{};
            c.same(sigtimedwait(&set, &info, &limit), SIGRTMIN + 4, "its signal");
            c.same(info.si_fd, (*ends)[0], "descriptor");
            char byte;
            c.same(read((*ends)[0], &byte, 1), 1, "read");
            timespec none{};
            while (sigtimedwait(&set, &info, &none) > 0) {}
          },
          {}};
}

Animal shared_description() {
  int fd = make(place("together"), "0123456789");
  auto* at = static_cast<volatile int*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  child([=] {
    for (;;) {
      if (at[0] == 1) {
        lseek(fd, 6, SEEK_SET);
        at[0] = 2;
      }
      usleep(1000);
    }
  });
  return {[=](Check& c) {
            lseek(fd, 0, SEEK_SET);
            at[0] = 1;
            for (int i = 0; i < 5000 && at[0] != 2; ++i) usleep(1000);
            c.same(lseek(fd, 0, SEEK_CUR), 6, "the child moved it");
          },
          {}};
}

Animal high_numbers() {
  int fd = make(place("high"), "high");
  MUST(dup3(fd, 1000, O_CLOEXEC) == 1000);
  close(fd);
  return {[=](Check& c) {
            char text[8] = {};
            c.same(pread(1000, text, 8, 0), 4, "read");
            c.same(fcntl(1000, F_GETFD), FD_CLOEXEC, "close-on-exec");
            c.same(fcntl(fd, F_GETFD), -1, "the low one is closed");
          },
          {}};
}

Animal devices() {
  int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), full = open("/dev/full", O_WRONLY), random = open("/dev/urandom", O_RDONLY);
  return {[=](Check& c) {
            char byte = 1;
            c.same(write(null, "x", 1), 1, "/dev/null");
            c.same(read(zero, &byte, 1), 1, "/dev/zero");
            c.same(byte, 0, "zero");
            c.same(write(full, "x", 1), -1, "/dev/full");
            c.same(read(random, &byte, 1), 1, "/dev/urandom");
          },
          {}};
}

Animal terminal() {
  int master = -1, slave = -1;
  termios settings{};
  winsize size{33, 101, 5, 7};
  MUST(openpty(&master, &slave, nullptr, nullptr, &size) == 0);
  tcgetattr(slave, &settings);
  cfmakeraw(&settings);
  settings.c_cc[VMIN] = 3;
  tcsetattr(slave, TCSANOW, &settings);
  std::string name = ttyname(slave);
  return {[=](Check& c) {
            termios now{};
            c.same(tcgetattr(slave, &now), 0, "settings");
            c.same(now.c_lflag, settings.c_lflag, "raw");
            c.same(now.c_cc[VMIN], 3, "VMIN");
            winsize seen{};
            ioctl(slave, TIOCGWINSZ, &seen);
            c.same(seen.ws_row * 1000 + seen.ws_col, 33101, "size");
            c.expect(ttyname(slave) != nullptr && name == ttyname(slave), "name");
            c.same(write(master, "abc", 3), 3, "type");
            char text[8] = {};
            c.same(read(slave, text, 8), 3, "typed");
            c.same(write(slave, "out", 3), 3, "print");
            c.same(read(master, text, 8), 3, "printed");
          },
          [=] {
            winsize other{33, 101, 5, 7};
            ioctl(master, TIOCSWINSZ, &other);
          }};
}

Animal controlling_terminal() {
  int master = -1;
  auto* seen = static_cast<volatile int*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t leader = forkpty(&master, nullptr, nullptr, nullptr);
  MUST(leader >= 0);
  if (leader == 0) {
    signal(SIGTTOU, SIG_IGN);
    pid_t inner = child([] { setpgid(0, 0); wait_for_ever(); });
    setpgid(inner, inner);
    tcsetpgrp(0, inner);
    for (;;) {
      seen[1] = tcgetpgrp(0) == inner ? 1 : -1;
      seen[2] = tcgetsid(0) == getpid() ? 1 : -1;
      int fd = open("/dev/tty", O_RDWR);
      seen[3] = fd >= 0 ? 1 : -1;
      if (fd >= 0) close(fd);
      seen[0] = 1;
      usleep(2000);
    }
  }
  return {[=](Check& c) {
            seen[0] = 0;
            for (int i = 0; i < 5000 && seen[0] == 0; ++i) usleep(1000);
            c.same(seen[1], 1, "foreground group");
            c.same(seen[2], 1, "session");
            c.same(seen[3], 1, "/dev/tty");
          },
          {}};
}

// A shell's way: ^C typed at the master ends up as a signal for the foreground group, and the
// child's terminal is known by /dev/tty.
Animal terminal_interrupts() {
  int master = -1;
  auto* seen = static_cast<volatile int*>(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  pid_t leader = forkpty(&master, nullptr, nullptr, nullptr);
  MUST(leader >= 0);
  if (leader == 0) {
    static volatile int* told = seen;
    signal(SIGTTOU, SIG_IGN);
    pid_t inner = child([=] {
      setpgid(0, 0);
      signal(SIGINT, [](int) { told[0] = told[0] + 1; });
      signal(SIGWINCH, [](int) { told[1] = told[1] + 1; });
      int by_name = open("/dev/tty", O_RDWR);
      for (;;) {
        if (told[2] == 1) {
          told[3] = write(by_name, "x", 1) == 1 ? 1 : -1;
          told[2] = 0;
        }
        usleep(2000);
      }
    });
    setpgid(inner, inner);
    tcsetpgrp(0, inner);
    wait_for_ever();
  }
  usleep(50000);
  auto turn = std::make_shared<int>(0);
  return {[=](Check& c) {
            const int before = seen[0];
            c.same(write(master, "\x03", 1), 1, "type ^C");
            for (int i = 0; i < 3000 && seen[0] == before; ++i) usleep(1000);
            c.same(seen[0], before + 1, "SIGINT");
            char text[64];
            while (true) {   // the echo
              pollfd p{master, POLLIN, 0};
              if (poll(&p, 1, 20) <= 0) break;
              if (read(master, text, sizeof text) <= 0) break;
            }
            seen[2] = 1;
            for (int i = 0; i < 3000 && seen[2] != 0; ++i) usleep(1000);
            c.same(seen[3], 1, "write to /dev/tty");
            c.same(read(master, text, sizeof text), 1, "comes here");
            const int resized = seen[1];
            winsize size{(unsigned short)(20 + ++*turn), 80, 0, 0};
            c.same(ioctl(master, TIOCSWINSZ, &size), 0, "resize");
            for (int i = 0; i < 3000 && seen[1] == resized; ++i) usleep(1000);
            c.same(seen[1], resized + 1, "SIGWINCH");
          },
          [=] {
            termios settings{};
            tcgetattr(master, &settings);
            settings.c_lflag ^= ECHO;
            tcsetattr(master, TCSANOW, &settings);
          }};
}

Animal terminal_left() {
  int master = -1, slave = -1;
  MUST(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  close(slave);
  return {[=](Check& c) {
            char byte;
            c.same(read(master, &byte, 1), -1, "nobody writes");
            c.same(errno, EIO, "as the kernel says");
            pollfd p{master, POLLIN, 0};
            c.same(poll(&p, 1, 0), 1, "hung up");
            c.same(p.revents & POLLHUP, POLLHUP, "POLLHUP");
          },
          {}};
}

Animal terminal_packets() {
  int master = -1, slave = -1, on = 1;
  MUST(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  MUST(ioctl(master, TIOCPKT, &on) == 0);
  MUST(fchmod(slave, 0640) == 0);
  return {[=](Check& c) {
            c.same(write(slave, "a", 1), 1, "print");
            char text[8] = {};
            c.same(read(master, text, sizeof text), 2, "a packet");
            c.same(text[0], TIOCPKT_DATA, "of data");
            struct stat st{};
            c.same(fstat(slave, &st), 0, "stat");
            c.same(st.st_mode & 0777, 0640, "mode");
          },
          {}};
}

Animal terminal_with_input() {
  int master = -1, slave = -1;
  MUST(openpty(&master, &slave, nullptr, nullptr, nullptr) == 0);
  MUST(write(master, "typed\n", 6) == 6);
  usleep(10000);
  return {[=](Check& c) {
            int waits = 0;
            ioctl(slave, FIONREAD, &waits);
            c.same(waits, 6, "it waits");
          },
          {}};
}

Animal posix_timers() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 6);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  timer_t dropped, slow, cpu;
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 6;
  event.sigev_value.sival_int = 66;
  MUST(timer_create(CLOCK_MONOTONIC, &event, &dropped) == 0);
  MUST(timer_create(CLOCK_MONOTONIC, &event, &slow) == 0);
  MUST(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &cpu) == 0);
  timer_delete(dropped);
  itimerspec far{{100, 0}, {5000, 0}}, work{{0, 0}, {1000, 0}};
  timer_settime(slow, 0, &far, nullptr);
  timer_settime(cpu, 0, &work, nullptr);
  return {[=](Check& c) {
            itimerspec now{};
            c.same(timer_gettime(slow, &now), 0, "by its number");
            c.expect(now.it_value.tv_sec > 4500 && now.it_value.tv_sec < 5000, "left", now.it_value.tv_sec, 4999);
            c.same(now.it_interval.tv_sec, 100, "interval");
            c.same(timer_gettime(cpu, &now), 0, "CPU timer");
            c.expect(now.it_value.tv_sec > 990 && now.it_value.tv_sec <= 1000, "its time", now.it_value.tv_sec, 999);
            itimerspec soon{{0, 0}, {0, 1000000}};
            timer_settime(slow, 0, &soon, nullptr);
            siginfo_t info{};
            timespec limit{5, 0};
            c.same(sigtimedwait(&set, &info, &limit), SIGRTMIN + 6, "it goes off");
            c.same(info.si_value.sival_int, 66, "value");
            timer_settime(slow, 0, &far, nullptr);
          },
          {}};
}

Animal interval_timer() {
  static volatile sig_atomic_t ticks;
  signal(SIGALRM, [](int) { ticks = ticks + 1; });
  itimerval every{{0, 10000}, {0, 10000}};
  setitimer(ITIMER_REAL, &every, nullptr);
  return {[=](Check& c) {
            int before = ticks;
            for (int i = 0; i < 5000 && ticks == before; ++i) usleep(1000);
            c.expect(ticks > before, "it goes on");
            itimerval now{};
            getitimer(ITIMER_REAL, &now);
            c.same(now.it_interval.tv_usec, 10000, "interval");
          },
          {}};
}

Animal pending_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGHUP, SIGRTMIN, SIGRTMIN + 1}) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  auto raise_all = [] {
    kill(getpid(), SIGHUP);
    for (int i = 0; i < 3; ++i) {
      sigval value{};
      value.sival_int = 10 + i;
      sigqueue(getpid(), SIGRTMIN + 1, value);
      sigqueue(getpid(), SIGRTMIN, value);
    }
  };
  raise_all();
  return {[=](Check& c) {
            timespec none{};
            siginfo_t info{};
            c.same(sigtimedwait(&set, &info, &none), SIGHUP, "the lowest first");
            for (int signal : {SIGRTMIN, SIGRTMIN + 1}) {
              for (int i = 0; i < 3; ++i) {
                c.same(sigtimedwait(&set, &info, &none), signal, "signal");
                c.same(info.si_value.sival_int, 10 + i, "in order");
                c.same(info.si_pid, getpid(), "sender");
              }
            }
            c.same(sigtimedwait(&set, &info, &none), -1, "no more");
            raise_all();
          },
          {}};
}

Animal handlers() {
  struct sigaction action {};
  action.sa_sigaction = [](int, siginfo_t*, void*) {};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaddset(&action.sa_mask, SIGTERM);
  sigaction(SIGUSR2 + 3, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  static char stack[32768];
  stack_t alternate{stack, 0, sizeof stack};
  sigaltstack(&alternate, nullptr);
  auto handler = action.sa_sigaction;
  return {[=](Check& c) {
            struct sigaction now {};
            sigaction(SIGUSR2 + 3, nullptr, &now);
            c.same(now.sa_sigaction == handler, 1, "handler");
            c.same(now.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_NODEFER), SA_SIGINFO | SA_ONSTACK | SA_NODEFER, "flags");
            c.same(sigismember(&now.sa_mask, SIGTERM), 1, "mask");
            sigaction(SIGPIPE, nullptr, &now);
            c.same(now.sa_handler == SIG_IGN, 1, "ignored");
            stack_t seen{};
            sigaltstack(nullptr, &seen);
            c.same(seen.ss_sp == stack, 1, "alternate stack");
          },
          {}};
}

const std::vector<Case> kCases = {
    {"file-position", "file", nullptr, position},
    {"file-append", "file", nullptr, append},
    {"file-deleted", "file", nullptr, deleted},
    {"file-temporary", "file", nullptr, temporary},
    {"file-renamed", "file", nullptr, renamed},
    {"file-replaced", "file", nullptr, replaced},
    {"file-shared-description", "file", nullptr, shared_description},
    {"file-high-number", "file", nullptr, high_numbers},
    {"folder", "file", nullptr, folder},
    {"proc-files", "file of /proc or /sys", nullptr, proc_files},
    {"devices", "device", nullptr, devices},
    {"lock-flock", "file lock", nullptr, flock_held},
    {"lock-record", "file lock", nullptr, record_locks},
    {"lock-description", "file lock", nullptr, description_locks},
    {"lock-lease", "file lock", nullptr, lease},
    {"lock-lease-broken", "file lock", nullptr, lease_broken},
    {"file-owner", "descriptor owner", nullptr, owner},
    {"terminal", "terminal", nullptr, terminal},
    {"terminal-controlling", "terminal", nullptr, controlling_terminal},
    {"terminal-interrupts", "terminal", nullptr, terminal_interrupts},
    {"terminal-left", "terminal", nullptr, terminal_left},
    {"terminal-packets", "terminal", nullptr, terminal_packets},
    {"terminal-input", "terminal", "what was typed waits", terminal_with_input},
    {"timers-posix", "timer", nullptr, posix_timers},
    {"timer-interval", "timer", nullptr, interval_timer},
    {"signals-pending", "signals", nullptr, pending_signals},
    {"signals-handlers", "signals", nullptr, handlers},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
