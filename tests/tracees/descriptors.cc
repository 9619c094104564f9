// Descriptors of many kinds, each with state that a restore must bring back.
// Usage: descriptors FOLDER
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#include <cstdint>
#include <string>
#include <utility>

#include "tracee.h"

int main(int argc, char** argv) {
  std::string folder = argc > 1 ? argv[1] : "/tmp";
  std::string regular = folder + "/descriptors.dat", deleted = folder + "/descriptors.deleted";

  int file = open(regular.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0640);
  MUST(file >= 0 && write(file, "0123456789", 10) == 10 && lseek(file, 4, SEEK_SET) == 4);
  int append = open(regular.c_str(), O_WRONLY | O_APPEND);
  MUST(append >= 0);
  int shared_offset = dup(file);
  int gone = open(deleted.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  MUST(gone >= 0 && write(gone, "deleted content", 15) == 15 && unlink(deleted.c_str()) == 0);
  int directory = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  MUST(directory >= 0);

  int pipes[2];
  MUST(pipe2(pipes, O_NONBLOCK) == 0 && write(pipes[1], "in the pipe", 11) == 11);
  int event = eventfd(7, EFD_NONBLOCK);
  int semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  itimerspec far_away{{0, 0}, {100000, 0}};
  MUST(timerfd_settime(timer, 0, &far_away, nullptr) == 0);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 3);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  int signals = signalfd(-1, &set, SFD_NONBLOCK);
  MUST(signals >= 0);
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (auto [fd, data] : {std::pair{event, 101ull}, std::pair{pipes[0], 0xABCDEF0123456789ull}, std::pair{timer, 103ull}}) {
    epoll_event entry{EPOLLIN, {}};
    entry.data.u64 = data;
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &entry) == 0);
  }
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  int one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  MUST(bind(listener, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0 && listen(listener, 16) == 0);
  socklen_t length = sizeof any;
  MUST(getsockname(listener, reinterpret_cast<sockaddr*>(&any), &length) == 0);
  const in_port_t tcp_port = any.sin_port;
  int udp = socket(AF_INET, SOCK_DGRAM, 0);
  any.sin_port = 0;
  MUST(bind(udp, reinterpret_cast<sockaddr*>(&any), sizeof any) == 0);
  MUST(getsockname(udp, reinterpret_cast<sockaddr*>(&any), &length) == 0);
  const in_port_t udp_port = any.sin_port;
  int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), random = open("/dev/urandom", O_RDONLY);
  int high = fcntl(event, F_DUPFD_CLOEXEC, 700);
  MUST(null >= 0 && zero >= 0 && random >= 0 && high >= 700);
  umask(027);
  MUST(chdir(folder.c_str()) == 0);

  tracee::ready();
  int appended = 0;
  for (;;) {
    tracee::wait_until_asked();
    tracee::Check c;
    c.same(lseek(file, 0, SEEK_CUR), 4, "file offset");
    c.same(lseek(shared_offset, 5, SEEK_SET), 5, "seek on a duplicate");
    c.same(lseek(file, 0, SEEK_CUR), 5, "offset shared with the duplicate");
    lseek(file, 4, SEEK_SET);
    c.expect((fcntl(append, F_GETFL) & O_APPEND) != 0, "O_APPEND kept");
    c.same(write(append, "x", 1), 1, "append");
    ++appended;
    struct stat st {};
    fstat(file, &st);
    c.same(st.st_size, 10 + appended, "size after appending");
    char buffer[64] = {};
    c.same(pread(gone, buffer, sizeof buffer, 0), 15, "deleted file's size");
    c.expect(memcmp(buffer, "deleted content", 15) == 0, "deleted file's content");
    fstat(gone, &st);
    c.same(st.st_nlink, 0, "links of the deleted file");
    c.expect((fcntl(directory, F_GETFD) & FD_CLOEXEC) != 0, "close-on-exec kept");
    c.same(read(pipes[0], buffer, sizeof buffer), 11, "bytes in the pipe");
    c.expect(memcmp(buffer, "in the pipe", 11) == 0, "pipe content");
    c.same(write(pipes[1], "in the pipe", 11), 11, "pipe refilled");
    std::uint64_t value = 0;
    c.same(read(event, &value, 8), 8, "eventfd readable");
    c.same(static_cast<long long>(value), 7, "eventfd value");
    value = 7;
    c.same(write(event, &value, 8), 8, "eventfd refilled");
    c.same(read(semaphore, &value, 8), 8, "semaphore readable");
    c.same(static_cast<long long>(value), 1, "semaphore gives one");
    value = 1;
    c.same(write(semaphore, &value, 8), 8, "semaphore refilled");
    itimerspec left{};
    timerfd_gettime(timer, &left);
    c.expect(left.it_value.tv_sec > 90000 && left.it_value.tv_sec <= 100000, "timerfd remaining", left.it_value.tv_sec, 100000);
    sigval payload{};
    payload.sival_int = 4711;
    sigqueue(getpid(), SIGRTMIN + 3, payload);
    signalfd_siginfo info{};
    c.same(read(signals, &info, sizeof info), sizeof info, "signalfd readable");
    c.same(info.ssi_int, 4711, "signalfd payload");
    epoll_event ready[4];
    int n = epoll_wait(epoll, ready, 4, 0);
    c.same(n, 2, "epoll: ready descriptors");
    std::uint64_t seen = 0;
    for (int i = 0; i < n; ++i) seen ^= ready[i].data.u64;
    c.expect(seen == (101ull ^ 0xABCDEF0123456789ull), "epoll: data of the entries");
    struct Bound {
      int fd;
      in_port_t port;
      const char* kind;
    };
    for (auto [fd, port, kind] : {Bound{listener, tcp_port, "TCP port"}, Bound{udp, udp_port, "UDP port"}}) {
      sockaddr_in now{};
      socklen_t size = sizeof now;
      getsockname(fd, reinterpret_cast<sockaddr*>(&now), &size);
      c.same(ntohs(now.sin_port), ntohs(port), kind);
    }
    int client = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in self{};
    self.sin_family = AF_INET;
    self.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    self.sin_port = tcp_port;
    c.same(connect(client, reinterpret_cast<sockaddr*>(&self), sizeof self), 0, "connect to the own listener");
    int accepted = accept(listener, nullptr, nullptr);
    c.expect(accepted >= 0, "accept");
    close(accepted);
    close(client);
    c.same(write(null, "x", 1), 1, "/dev/null");
    c.same(read(zero, buffer, 1), 1, "/dev/zero");
    c.same(buffer[0], 0, "/dev/zero gives zero");
    c.same(read(random, buffer, 8), 8, "/dev/urandom");
    value = 1;
    c.same(write(high, &value, 8), 8, "high descriptor is the eventfd");
    c.same(read(event, &value, 8), 8, "eventfd through its duplicate");
    c.same(static_cast<long long>(value), 8, "eventfd sum");
    value = 7;
    c.same(write(event, &value, 8), 8, "eventfd restored");
    mode_t mask = umask(027);
    c.same(mask, 027, "umask");
    char here[4096];
    c.expect(getcwd(here, sizeof here) != nullptr && folder == here, "working directory");
  }
}
