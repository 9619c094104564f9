// A TCP server and its verifying clients. Every record that a client sends is hashed into a
// chain of its connection, and the chain comes back: a byte that is lost, doubled or changed
// on the way, or a connection that is not the same any more, breaks it.
//
//   stream serve ADDRESS PORT             prints ready; checks itself on SIGUSR1
//   stream ask ADDRESS PORT COUNT STOP    COUNT connections until the file STOP exists; then
//                                         prints "ok RECORDS LONGEST_MS", or FAILED
//   stream ping ADDRESS PORT COUNT        one record after the other; prints "ok P50 P99 MAX" in us
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tracee.h"

namespace {

constexpr std::size_t kRecord = 256, kAnswer = 16, kAhead = 32;

std::uint64_t mix(std::uint64_t chain, const char* bytes, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) chain = (chain ^ static_cast<unsigned char>(bytes[i])) * 0x100000001b3ull;
  return chain ^ chain >> 29;
}

sockaddr_storage address_of(const char* host, const char* port, socklen_t& bytes, int& family) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE;
  if (getaddrinfo(host, port, &hints, &found) != 0) tracee::fail_now("not an address");
  sockaddr_storage out{};
  std::memcpy(&out, found->ai_addr, found->ai_addrlen);
  bytes = found->ai_addrlen;
  family = found->ai_family;
  freeaddrinfo(found);
  return out;
}

double now_ms() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) / 1e6;
}

struct Served { std::string in, out; std::uint64_t chain = 1469598103934665603ull, records = 0; };

int serve(const char* host, const char* port) {
  socklen_t bytes = 0;
  int family = 0;
  sockaddr_storage where = address_of(host, port, bytes, family);
  int listener = socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, reinterpret_cast<sockaddr*>(&where), bytes) != 0 || listen(listener, 128) != 0) tracee::fail_now("listen");
  int epoll = epoll_create1(0);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener;
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  std::map<int, Served> all;
  tracee::ready();
  for (;;) {
    epoll_event events[64];
    int count = epoll_wait(epoll, events, 64, 50);
    if (count < 0 && errno != EINTR) tracee::fail_now("epoll_wait");
    if (tracee::asked()) tracee::say("ok");
    for (int i = 0; i < count; ++i) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        for (int got; (got = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK)) >= 0;) {
          setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          event.events = EPOLLIN;
          event.data.fd = got;
          epoll_ctl(epoll, EPOLL_CTL_ADD, got, &event);
          all[got];
        }
        continue;
      }
      Served& c = all[fd];
      char buffer[16384];
      ssize_t n = (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 ? recv(fd, buffer, sizeof buffer, 0) : -2;
      if (n == 0) {
        close(fd);
        all.erase(fd);
        continue;
      }
      if (n == -1 && errno != EAGAIN) tracee::fail_now("a connection broke");
      if (n > 0) c.in.append(buffer, static_cast<std::size_t>(n));
      while (c.in.size() >= kRecord) {
        c.chain = mix(c.chain, c.in.data(), kRecord);
        c.in.erase(0, kRecord);
        ++c.records;
        c.out.append(reinterpret_cast<const char*>(&c.records), 8).append(reinterpret_cast<const char*>(&c.chain), 8);
      }
      while (!c.out.empty()) {
        ssize_t w = send(fd, c.out.data(), c.out.size(), MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) tracee::fail_now("a connection broke while answering");
        if (w <= 0) break;
        c.out.erase(0, static_cast<std::size_t>(w));
      }
      event.events = EPOLLIN | (c.out.empty() ? 0u : static_cast<unsigned>(EPOLLOUT));
      event.data.fd = fd;
      epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
    }
  }
}

struct Asking {
  int fd = -1;
  std::uint64_t chain = 1469598103934665603ull, sent = 0, answered = 0, random = 1;
  std::vector<std::uint64_t> expected;
  std::string out, in;
};

int ask(const char* host, const char* port, int count, const char* stop) {
  socklen_t bytes = 0;
  int family = 0;
  sockaddr_storage where = address_of(host, port, bytes, family);
  std::vector<Asking> all(static_cast<std::size_t>(count));
  std::vector<pollfd> polled(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    Asking& a = all[i];
    a.fd = socket(family, SOCK_STREAM, 0);
    int one = 1;
    setsockopt(a.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(a.fd, reinterpret_cast<sockaddr*>(&where), bytes) != 0) tracee::fail_now("connect");
    fcntl(a.fd, F_SETFL, O_NONBLOCK);
    a.random = 88172645463325252ull + i;
    a.expected.resize(kAhead);
    polled[i].fd = a.fd;
  }
  tracee::say("connected");
  double last = now_ms(), longest = 0;
  bool stopping = false;
  for (;;) {
    stopping = stopping || access(stop, F_OK) == 0;
    std::uint64_t open = 0, records = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      Asking& a = all[i];
      while (!stopping && a.sent - a.answered < kAhead) {
        char record[kRecord];
        for (std::size_t at = 0; at < kRecord; at += 8) {
          a.random ^= a.random << 13;
          a.random ^= a.random >> 7;
          a.random ^= a.random << 17;
          std::memcpy(record + at, &a.random, 8);
        }
        a.chain = mix(a.chain, record, kRecord);
        a.expected[a.sent++ % kAhead] = a.chain;
        a.out.append(record, kRecord);
      }
      open += a.sent - a.answered;
      records += a.answered;
      polled[i].events = static_cast<short>(POLLIN | (a.out.empty() ? 0 : POLLOUT));
    }
    if (stopping && open == 0) {
      tracee::say("ok %llu %.1f", static_cast<unsigned long long>(records), longest);
      return 0;
    }
    int ready = poll(polled.data(), polled.size(), 100);
    if (ready < 0 && errno != EINTR) tracee::fail_now("poll");
    for (std::size_t i = 0; i < all.size(); ++i) {
      Asking& a = all[i];
      if ((polled[i].revents & POLLOUT) != 0 && !a.out.empty()) {
        ssize_t w = send(a.fd, a.out.data(), a.out.size(), MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) tracee::fail_now("send: the connection broke");
        if (w > 0) a.out.erase(0, static_cast<std::size_t>(w));
      }
      if ((polled[i].revents & (POLLIN | POLLHUP | POLLERR)) == 0) continue;
      char buffer[4096];
      ssize_t n = recv(a.fd, buffer, sizeof buffer, 0);
      if (n == 0) tracee::fail_now("the server closed the connection");
      if (n < 0 && errno != EAGAIN) tracee::fail_now("recv: the connection broke");
      if (n > 0) a.in.append(buffer, static_cast<std::size_t>(n));
      for (; a.in.size() >= kAnswer; a.in.erase(0, kAnswer)) {
        std::uint64_t number = 0, chain = 0;
        std::memcpy(&number, a.in.data(), 8);
        std::memcpy(&chain, a.in.data() + 8, 8);
        if (number != a.answered + 1) tracee::fail_now("an answer out of order");
        if (chain != a.expected[a.answered % kAhead]) tracee::fail_now("a wrong chain: bytes were lost or changed");
        ++a.answered;
        double now = now_ms();
        longest = longest > now - last ? longest : now - last;
        last = now;
      }
    }
  }
}

int ping(const char* host, const char* port, int count) {
  socklen_t bytes = 0;
  int family = 0, one = 1;
  sockaddr_storage where = address_of(host, port, bytes, family);
  int fd = socket(family, SOCK_STREAM, 0);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connect(fd, reinterpret_cast<sockaddr*>(&where), bytes) != 0) tracee::fail_now("connect");
  std::vector<double> times;
  char record[kRecord] = {}, answer[kAnswer];
  for (int i = 0; i < count; ++i) {
    double begin = now_ms();
    if (send(fd, record, sizeof record, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof record)) tracee::fail_now("send");
    if (recv(fd, answer, sizeof answer, MSG_WAITALL) != static_cast<ssize_t>(sizeof answer)) tracee::fail_now("recv");
    times.push_back((now_ms() - begin) * 1000);
    timespec nap{0, 1'000'000 + i % 7 * 700'000};   // at every phase of the checkpoints
    nanosleep(&nap, nullptr);
  }
  std::sort(times.begin(), times.end());
  tracee::say("ok %.0f %.0f %.0f", times[times.size() / 2], times[times.size() * 99 / 100], times.back());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "serve") == 0) return serve(argv[2], argv[3]);
  if (argc == 6 && std::strcmp(argv[1], "ask") == 0) return ask(argv[2], argv[3], std::atoi(argv[4]), argv[5]);
  if (argc == 5 && std::strcmp(argv[1], "ping") == 0) return ping(argv[2], argv[3], std::atoi(argv[4]));
  std::fputs("usage: stream serve ADDRESS PORT | stream ask ADDRESS PORT COUNT STOP\n", stderr);
  return 2;
}
