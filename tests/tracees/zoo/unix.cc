// Unix sockets: pairs, names, queues, descriptors on their way, connections that wait.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <memory>
#include <string>

#include "zoo.h"

using namespace zoo;

namespace {

socklen_t name(sockaddr_un& address, const std::string& text) {
  address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, text.data(), text.size());
  return (socklen_t)(offsetof(sockaddr_un, sun_path) + text.size());
}

int named(int type, const std::string& text) {
  int fd = socket(AF_UNIX, type, 0);
  sockaddr_un address;
  socklen_t bytes = name(address, text);
  if (!text.empty() && text[0] != 0) unlink(text.c_str());
  MUST(bind(fd, (sockaddr*)&address, bytes) == 0);
  return fd;
}

int dial(int type, const std::string& text) {
  int fd = socket(AF_UNIX, type, 0);
  sockaddr_un address;
  socklen_t bytes = name(address, text);
  if (connect(fd, (sockaddr*)&address, bytes) == 0) return fd;
  close(fd);
  return -1;
}

std::string own_name(int fd) {
  sockaddr_un address{};
  socklen_t bytes = sizeof address;
  getsockname(fd, (sockaddr*)&address, &bytes);
  size_t length = bytes > offsetof(sockaddr_un, sun_path) ? bytes - offsetof(sockaddr_un, sun_path) : 0;
  while (length > 1 && address.sun_path[0] != 0 && address.sun_path[length - 1] == 0) --length;
  return std::string(address.sun_path, length);
}
std::string peer_name(int fd) {
  sockaddr_un address{};
  socklen_t bytes = sizeof address;
  if (getpeername(fd, (sockaddr*)&address, &bytes) != 0) return "?";
  size_t length = bytes > offsetof(sockaddr_un, sun_path) ? bytes - offsetof(sockaddr_un, sun_path) : 0;
  while (length > 1 && address.sun_path[0] != 0 && address.sun_path[length - 1] == 0) --length;
  return std::string(address.sun_path, length);
}

void expect_text(Check& c, int fd, const std::string& wanted, const char* what) {
  std::string got(wanted.size() + 100, 0);
  ssize_t n = recv(fd, got.data(), got.size(), MSG_DONTWAIT);
  c.same(n, (long long)wanted.size(), what);
  if (n == (ssize_t)wanted.size()) c.same(got.compare(0, (size_t)n, wanted), 0, what);
}
void put(int fd, const std::string& text) { MUST(send(fd, text.data(), text.size(), MSG_NOSIGNAL) == (ssize_t)text.size()); }

void send_file(int fd, int file, const char* text) {
  iovec part{const_cast<char*>(text), strlen(text)};
  char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(head), &file, sizeof file);
  MUST(sendmsg(fd, &message, 0) >= 0);
}
int receive_file(int fd, std::string& text) {
  char data[256];
  iovec part{data, sizeof data};
  char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT);
  if (n < 0) return -1;
  text.assign(data, (size_t)n);
  int file = -1;
  if (cmsghdr* head = CMSG_FIRSTHDR(&message)) memcpy(&file, CMSG_DATA(head), sizeof file);
  return file;
}

Animal pair(int type) {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, type, 0, ends->data()) == 0);
  auto sent = std::make_shared<std::string>("from the first");
  put((*ends)[0], *sent);
  put((*ends)[1], "from the second");
  return {[=](Check& c) {
            expect_text(c, (*ends)[1], *sent, "to the second");
            expect_text(c, (*ends)[0], "from the second", "to the first");
            put((*ends)[0], *sent);
            put((*ends)[1], "from the second");
          },
          [=] {
            char drop[1000];
            MUST(recv((*ends)[1], drop, sizeof drop, 0) > 0);
            *sent += "!";
            put((*ends)[0], *sent);
          }};
}
Animal pair_stream() { return pair(SOCK_STREAM); }
Animal pair_datagram() { return pair(SOCK_DGRAM); }
Animal pair_seqpacket() { return pair(SOCK_SEQPACKET); }

Animal pair_packets() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends->data()) == 0);
  for (const char* text : {"a", "bb", "ccc"}) put((*ends)[0], text);
  return {[=](Check& c) {
            for (const char* text : {"a", "bb", "ccc"}) expect_text(c, (*ends)[1], text, "packet");
            for (const char* text : {"a", "bb", "ccc"}) put((*ends)[0], text);
          },
          {}};
}

Animal pair_between_processes() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  child([=] {
    close((*ends)[0]);
    char byte;
    while (read((*ends)[1], &byte, 1) == 1) {
      ++byte;
      if (write((*ends)[1], &byte, 1) != 1) break;
    }
  });
  close((*ends)[1]);
  return {[=](Check& c) {
            put((*ends)[0], "x");
            pollfd p{(*ends)[0], POLLIN, 0};
            poll(&p, 1, 5000);
            expect_text(c, (*ends)[0], "y", "the child answers");
          },
          {}};
}

Animal half_open() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  MUST(shutdown((*ends)[0], SHUT_WR) == 0);
  return {[=](Check& c) {
            char byte;
            c.same(recv((*ends)[1], &byte, 1, MSG_DONTWAIT), 0, "the end");
            c.same(send((*ends)[0], "x", 1, MSG_NOSIGNAL), -1, "shut");
            put((*ends)[1], "other way");
            expect_text(c, (*ends)[0], "other way", "the other way");
          },
          {}};
}

Animal peer_gone() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  put((*ends)[0], "last words");
  close((*ends)[0]);
  auto first = std::make_shared<bool>(true);
  return {[=](Check& c) {
            if (*first) {
              char text[32] = {};
              c.same(recv((*ends)[1], text, sizeof text, MSG_PEEK | MSG_DONTWAIT), 10, "last words");
            }
            c.same(send((*ends)[1], "x", 1, MSG_NOSIGNAL), -1, "nobody there");
            c.same(errno, EPIPE, "error");
          },
          {}};
}

Animal listening_path() {
  std::string path = place("listen");
  int listener = named(SOCK_STREAM, path);
  MUST(listen(listener, 5) == 0);
  return {[=](Check& c) {
            int client = dial(SOCK_STREAM, path);
            c.expect(client >= 0, "connect");
            int server = accept(listener, nullptr, nullptr);
            c.expect(server >= 0, "accept");
            c.same(own_name(listener).compare(path), 0, "name");
            struct stat st {};
            c.same(stat(path.c_str(), &st), 0, "file");
            close(client);
            close(server);
          },
          {}};
}

Animal listening_abstract() {
  std::string abstract = std::string(1, 0) + "zoo-" + std::to_string(getpid());
  int listener = named(SOCK_SEQPACKET, abstract);
  MUST(listen(listener, 5) == 0);
  return {[=](Check& c) {
            int client = dial(SOCK_SEQPACKET, abstract);
            c.expect(client >= 0, "connect");
            int server = accept(listener, nullptr, nullptr);
            c.expect(server >= 0, "accept");
            close(client);
            close(server);
          },
          {}};
}

Animal accepted() {
  std::string path = place("accepted");
  int listener = named(SOCK_STREAM, path);
  MUST(listen(listener, 5) == 0);
  int client = dial(SOCK_STREAM, path), server = accept(listener, nullptr, nullptr);
  put(client, "asked");
  return {[=](Check& c) {
            c.same(own_name(server).compare(path), 0, "the accepted one's name");
            c.same(peer_name(client).compare(path), 0, "the client's peer");
            expect_text(c, server, "asked", "queue");
            put(client, "asked");
            c.same(fcntl(server, F_GETFL) & O_ACCMODE, O_RDWR, "mode");
          },
          {}};
}

// The listener is gone, and the client has a name of its own.
Animal accepted_abstract() {
  std::string name("\0zoo-accepted", 13), mine("\0zoo-client", 11);
  int listener = named(SOCK_SEQPACKET, name);
  MUST(listen(listener, 5) == 0);
  int client = named(SOCK_SEQPACKET, mine);
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  memcpy(to.sun_path, name.data(), name.size());
  MUST(connect(client, reinterpret_cast<sockaddr*>(&to), (socklen_t)(sizeof to.sun_family + name.size())) == 0);
  int server = accept(listener, nullptr, nullptr);
  close(listener);
  return {[=](Check& c) {
            c.same(own_name(server).compare(name), 0, "the accepted one's name");
            c.same(peer_name(server).compare(mine), 0, "its peer's");
            c.same(own_name(client).compare(mine), 0, "the client's");
            put(client, "asked");
            expect_text(c, server, "asked", "through");
          },
          {}};
}

Animal waiting() {
  std::string path = place("waiting");
  int listener = named(SOCK_STREAM, path);
  MUST(listen(listener, 5) == 0);
  auto clients = std::make_shared<std::vector<int>>();
  for (int i = 0; i < 2; ++i) clients->push_back(dial(SOCK_STREAM, path));
  return {[=](Check& c) {
            for (int i = 0; i < 2; ++i) {
              pollfd p{listener, POLLIN, 0};
              c.same(poll(&p, 1, 0), 1, "one waits");
              int server = accept(listener, nullptr, nullptr);
              put((*clients)[(size_t)i], std::string("n") + (char)('0' + i));
              expect_text(c, server, std::string("n") + (char)('0' + i), "in order");
              close(server);
              close((*clients)[(size_t)i]);
              (*clients)[(size_t)i] = dial(SOCK_STREAM, path);
            }
          },
          {}};
}

Animal waiting_with_data() {
  std::string path = place("waiting-data");
  int listener = named(SOCK_STREAM, path);
  MUST(listen(listener, 5) == 0);
  int client = dial(SOCK_STREAM, path);
  put(client, "hurry");
  return {[=](Check& c) {
            pollfd p{listener, POLLIN, 0};
            c.same(poll(&p, 1, 0), 1, "it waits");
          },
          {}};
}

Animal datagrams_from_names() {
  std::string at = place("dgram"), from = place("from");
  int receiver = named(SOCK_DGRAM, at), sender = named(SOCK_DGRAM, from), nameless = socket(AF_UNIX, SOCK_DGRAM, 0);
  auto fill = [=] {
    sockaddr_un address;
    socklen_t bytes = name(address, at);
    MUST(sendto(sender, "named", 5, 0, (sockaddr*)&address, bytes) == 5);
    MUST(sendto(nameless, "nameless", 8, 0, (sockaddr*)&address, bytes) == 8);
  };
  fill();
  return {[=](Check& c) {
            char text[32];
            sockaddr_un address{};
            socklen_t bytes = sizeof address;
            c.same(recvfrom(receiver, text, sizeof text, MSG_DONTWAIT, (sockaddr*)&address, &bytes), 5, "first");
            c.same(strcmp(address.sun_path, from.c_str()), 0, "its sender");
            bytes = sizeof address;
            c.same(recvfrom(receiver, text, sizeof text, MSG_DONTWAIT, (sockaddr*)&address, &bytes), 8, "second");
            fill();
          },
          {}};
}

Animal datagram_one_way() {
  std::string at = place("sink");
  int receiver = named(SOCK_DGRAM, at), sender = dial(SOCK_DGRAM, at);
  put(sender, "logged");
  return {[=](Check& c) {
            expect_text(c, receiver, "logged", "queue");
            put(sender, "logged");
            c.same(peer_name(sender).compare(at), 0, "connected");
          },
          {}};
}

Animal in_flight() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  int file = eventfd(41, EFD_NONBLOCK);
  send_file((*ends)[0], file, "here");
  close(file);   // nobody else has it
  return {[=](Check& c) {
            std::string text;
            int got = receive_file((*ends)[1], text);
            c.expect(got >= 0, "a descriptor came");
            c.same(text.compare("here"), 0, "text");
            uint64_t value = 0;
            c.same(read(got, &value, sizeof value), 8, "read it");
            c.same((long long)value, 41, "count");
            MUST(write(got, &value, sizeof value) == 8);
            send_file((*ends)[0], got, "here");
            close(got);
          },
          {}};
}

// A socket that is nowhere but on its way, with something in its own queue.
Animal in_flight_nested() {
  auto ends = std::make_shared<std::vector<int>>(2);
  int inner[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends->data()) == 0);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner) == 0);
  put(inner[0], "deep");
  send_file((*ends)[0], inner[1], "outer");
  close(inner[1]);
  int kept = inner[0];
  return {[=](Check& c) {
            std::string text;
            int got = receive_file((*ends)[1], text);
            c.expect(got >= 0, "a socket came");
            expect_text(c, got, "deep", "its queue");
            put(kept, "deep");
            send_file((*ends)[0], got, "outer");
            close(got);
          },
          {}};
}

Animal pass_credentials() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  int on = 1;
  setsockopt((*ends)[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  timeval limit{3, 500000};
  setsockopt((*ends)[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return {[=](Check& c) {
            int value = 0;
            socklen_t bytes = sizeof value;
            getsockopt((*ends)[1], SOL_SOCKET, SO_PASSCRED, &value, &bytes);
            c.same(value, 1, "SO_PASSCRED");
            timeval now{};
            bytes = sizeof now;
            getsockopt((*ends)[1], SOL_SOCKET, SO_RCVTIMEO, &now, &bytes);
            c.same(now.tv_sec * 1000000 + now.tv_usec, 3500000, "SO_RCVTIMEO");
          },
          {}};
}

// The other end is a process that is in no cgroup of the workload's: Baton's keeper has none, so
// this case connects to itself only; outside peers are tests/zoo's exec and the system tests.
Animal unconnected() {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  return {[=](Check& c) {
            char byte;
            c.same(recv(fd, &byte, 1, 0), -1, "not connected");
            c.same(errno, EINVAL, "error");
          },
          {}};
}

const std::vector<Case> kCases = {
    {"unix-pair-stream", "unix socket", nullptr, pair_stream},
    {"unix-pair-datagram", "unix socket", nullptr, pair_datagram},
    {"unix-pair-seqpacket", "unix socket", nullptr, pair_seqpacket},
    {"unix-pair-packets", "unix socket", nullptr, pair_packets},
    {"unix-pair-processes", "unix socket", nullptr, pair_between_processes},
    {"unix-half-open", "unix socket", nullptr, half_open},
    {"unix-peer-gone", "unix socket", nullptr, peer_gone},
    {"unix-listening-path", "unix socket", nullptr, listening_path},
    {"unix-listening-abstract", "unix socket", nullptr, listening_abstract},
    {"unix-accepted", "unix socket", nullptr, accepted},
    {"unix-accepted-abstract", "unix socket", nullptr, accepted_abstract},
    {"unix-waiting", "unix socket", "connections wait to be accepted", waiting},
    {"unix-waiting-with-data", "unix socket", "connections wait to be accepted", waiting_with_data},
    {"unix-datagram-names", "unix socket", "datagrams from outside wait", datagrams_from_names},
    {"unix-datagram-one-way", "unix socket", "unix", datagram_one_way},
    {"unix-in-flight", "unix socket", "descriptors are on their way", in_flight},
    {"unix-in-flight-nested", "unix socket", "descriptors are on their way", in_flight_nested},
    {"unix-options", "unix socket", nullptr, pass_credentials},
    {"unix-unconnected", "unix socket", nullptr, unconnected},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
