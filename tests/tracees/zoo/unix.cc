// Unix sockets: pairs, names, queues, descriptors on their way, connections that wait.
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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

// The client has a name, and has ended its half.
Animal waiting_abstract() {
  std::string at("\0zoo-waiting", 12), mine("\0zoo-waits", 10);
  int listener = named(SOCK_SEQPACKET, at);
  MUST(listen(listener, 5) == 0);
  auto client = std::make_shared<int>(-1);
  auto connect_again = [=] {
    *client = named(SOCK_SEQPACKET, mine);
    sockaddr_un to;
    socklen_t bytes = name(to, at);
    MUST(connect(*client, (sockaddr*)&to, bytes) == 0);
    MUST(shutdown(*client, SHUT_WR) == 0);
  };
  connect_again();
  return {[=](Check& c) {
            int server = accept(listener, nullptr, nullptr);
            c.expect(server >= 0, "accept");
            c.same(peer_name(server).compare(mine), 0, "the client's name");
            char byte;
            c.same(recv(server, &byte, 1, MSG_DONTWAIT), 0, "its end");
            put(server, "answer");
            expect_text(c, *client, "answer", "back");
            close(server);
            close(*client);
            connect_again();
          },
          {}};
}

Animal waiting_gone() {
  std::string path = place("waiting-gone");
  int listener = named(SOCK_STREAM, path);
  MUST(listen(listener, 5) == 0);
  int client = dial(SOCK_STREAM, path);
  put(client, "farewell");
  close(client);
  return {[=](Check& c) {
            pollfd p{listener, POLLIN, 0};
            c.same(poll(&p, 1, 0), 1, "it waits");
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

// Two datagram sockets with names that are connected to each other.
Animal datagram_both_ways() {
  std::string here = place("here"), there = place("there");
  int one = named(SOCK_DGRAM, here), two = named(SOCK_DGRAM, there);
  sockaddr_un to;
  socklen_t bytes = name(to, there);
  MUST(connect(one, (sockaddr*)&to, bytes) == 0);
  bytes = name(to, here);
  MUST(connect(two, (sockaddr*)&to, bytes) == 0);
  put(one, "to two");
  return {[=](Check& c) {
            expect_text(c, two, "to two", "queue");
            put(one, "to two");
            c.same(own_name(one).compare(here), 0, "name");
            c.same(peer_name(one).compare(there), 0, "peer");
            c.same(peer_name(two).compare(here), 0, "the other's peer");
          },
          {}};
}

Animal datagram_peer_gone() {
  std::string at = place("gone-sink"), mine = place("speaker");
  auto speaker = std::make_shared<int>(-1);
  auto fill = [=] {
    int sink = named(SOCK_DGRAM, at);
    *speaker = named(SOCK_DGRAM, mine);
    sockaddr_un to;
    socklen_t bytes = name(to, at);
    MUST(connect(*speaker, (sockaddr*)&to, bytes) == 0);
    close(sink);
    unlink(at.c_str());
  };
  fill();
  return {[=](Check& c) {
            c.same(own_name(*speaker).compare(mine), 0, "name");
            c.same(send(*speaker, "x", 1, MSG_NOSIGNAL), -1, "nobody listens");
            c.same(errno, ECONNREFUSED, "error");
            close(*speaker);
            fill();
          },
          {}};
}

// As Postfix names its sockets.
Animal relative_name() {
  MUST(mkdir("private", 0700) == 0 || errno == EEXIST);
  int listener = named(SOCK_STREAM, "private/door");
  MUST(listen(listener, 5) == 0);
  auto client = std::make_shared<int>(dial(SOCK_STREAM, "private/door"));   // waits
  int datagrams = named(SOCK_DGRAM, "private/box"), speaker = dial(SOCK_DGRAM, "private/box");
  put(speaker, "posted");
  return {[=](Check& c) {
            c.same(own_name(listener).compare("private/door"), 0, "name");
            int server = accept(listener, nullptr, nullptr);
            put(*client, "knock");
            expect_text(c, server, "knock", "the one that waited");
            close(server);
            close(*client);
            *client = dial(SOCK_STREAM, "private/door");
            c.expect(*client >= 0, "connect by the file");
            expect_text(c, datagrams, "posted", "datagram");
            put(speaker, "posted");
          },
          {}};
}

// More than a usual send buffer holds.
Animal full_queue() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  int room = 4 << 20;
  MUST(setsockopt((*ends)[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
  auto fill = [=] {
    std::string text(1500000, 'q');
    for (size_t i = 0; i < text.size(); ++i) text[i] = (char)('a' + i * 7 % 23);
    put((*ends)[0], text);
  };
  fill();
  return {[=](Check& c) {
            int now = 0;
            socklen_t bytes = sizeof now;
            getsockopt((*ends)[0], SOL_SOCKET, SO_SNDBUF, &now, &bytes);
            c.same(now, 8 << 20, "SO_SNDBUF");
            size_t got = 0;
            bool good = true;
            char part[65536];
            for (ssize_t n; (n = recv((*ends)[1], part, sizeof part, MSG_DONTWAIT)) > 0;) {
              for (ssize_t i = 0; i < n; ++i, ++got) good = good && part[i] == (char)('a' + got * 7 % 23);
            }
            c.same((long long)got, 1500000, "bytes");
            c.expect(good, "content");
            fill();
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

// Bytes before, with and behind the descriptors, each of which must come with its own.
Animal in_flight_mixed() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  auto fill = [=] {
    put((*ends)[0], "before ");
    for (uint64_t value : {7u, 8u}) {
      int file = eventfd((unsigned)value, EFD_NONBLOCK);
      send_file((*ends)[0], file, value == 7 ? "first" : "second");
      close(file);
    }
    put((*ends)[0], " behind");
  };
  fill();
  return {[=](Check& c) {
            char before[7];
            c.same(recv((*ends)[1], before, sizeof before, MSG_DONTWAIT), 7, "what comes before");
            for (uint64_t value : {7u, 8u}) {
              std::string text;
              int got = receive_file((*ends)[1], text);
              c.expect(got >= 0, "a descriptor came");
              c.same(text.compare(value == 7 ? "first" : "second"), 0, "its text");
              uint64_t count = 0;
              c.same(read(got, &count, sizeof count), 8, "read it");
              c.same((long long)count, (long long)value, "count");
              close(got);
            }
            expect_text(c, (*ends)[1], " behind", "what comes behind");
            fill();
          },
          {}};
}

Animal in_flight_datagram() {
  std::string at = place("parcels"), from = place("sender");
  int receiver = named(SOCK_DGRAM, at), sender = named(SOCK_DGRAM, from);
  sockaddr_un to;
  socklen_t bytes = name(to, at);
  auto fill = [=] {
    sockaddr_un address = to;
    MUST(connect(sender, (const sockaddr*)&address, bytes) == 0);
    int ends[2];
    MUST(pipe(ends) == 0);
    MUST(write(ends[1], "inside", 6) == 6);
    send_file(sender, ends[0], "parcel");
    close(ends[0]);
    close(ends[1]);
  };
  fill();
  return {[=](Check& c) {
            std::string text;
            int got = receive_file(receiver, text);
            c.expect(got >= 0, "a descriptor came");
            c.same(text.compare("parcel"), 0, "text");
            char inside[8];
            c.same(read(got, inside, sizeof inside), 6, "the pipe's content");
            c.same(read(got, inside, sizeof inside), 0, "its end");
            close(got);
            fill();
          },
          {}};
}

// On its way and open: one description, before and after.
Animal in_flight_open() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends->data()) == 0);
  int file = open(place("shared").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  MUST(write(file, "0123456789", 10) == 10);
  auto fill = [=] {
    MUST(lseek(file, 4, SEEK_SET) == 4);
    send_file((*ends)[0], file, "also open");
  };
  fill();
  return {[=](Check& c) {
            std::string text;
            int got = receive_file((*ends)[1], text);
            c.expect(got >= 0, "a descriptor came");
            c.same(lseek(got, 0, SEEK_CUR), 4, "position");
            MUST(lseek(got, 9, SEEK_SET) == 9);
            c.same(lseek(file, 0, SEEK_CUR), 9, "of one description");
            close(got);
            fill();
          },
          {}};
}

// The sender has gone meanwhile.
Animal in_flight_last_words() {
  auto kept = std::make_shared<int>(-1);
  auto fill = [=] {
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    int file = eventfd(5, EFD_NONBLOCK);
    send_file(ends[0], file, "last");
    close(file);
    close(ends[0]);
    *kept = ends[1];
  };
  fill();
  return {[=](Check& c) {
            std::string text;
            int got = receive_file(*kept, text);
            c.expect(got >= 0, "a descriptor came");
            c.same(text.compare("last"), 0, "text");
            uint64_t count = 0;
            c.same(read(got, &count, sizeof count), 8, "read it");
            c.same((long long)count, 5, "count");
            char byte;
            c.same(recv(*kept, &byte, 1, MSG_DONTWAIT), 0, "then the end");
            close(got);
            close(*kept);
            fill();
          },
          {}};
}

// Content that is in no process's table.
Animal in_flight_memory() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  auto turn = std::make_shared<int>(0);
  auto fill = [=] {
    int file = memfd_create("parcel", MFD_CLOEXEC);
    std::string text(20000, (char)('a' + *turn));
    MUST(write(file, text.data(), text.size()) == (ssize_t)text.size());
    send_file((*ends)[0], file, "memory");
    close(file);
  };
  fill();
  return {[=](Check& c) {
            std::string text;
            int got = receive_file((*ends)[1], text);
            c.expect(got >= 0, "a descriptor came");
            char content[20001];
            c.same(pread(got, content, sizeof content, 0), 20000, "size");
            c.expect(std::string(content, 20000) == std::string(20000, (char)('a' + *turn)), "content");
            close(got);
            fill();
          },
          [=] {
            std::string text;
            int got = receive_file((*ends)[1], text);
            MUST(got >= 0);
            close(got);
            *turn = (*turn + 1) % 26;
            fill();
          }};
}

// An epoll descriptor that is on its way and open, and watches something.
Animal in_flight_epoll() {
  auto ends = std::make_shared<std::vector<int>>(2);
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends->data()) == 0);
  int poller = epoll_create1(0), file = eventfd(1, EFD_NONBLOCK);
  epoll_event watch{EPOLLIN, {.u64 = 99}};
  MUST(epoll_ctl(poller, EPOLL_CTL_ADD, file, &watch) == 0);
  send_file((*ends)[0], poller, "poller");
  return {[=](Check& c) {
            std::string text;
            int got = receive_file((*ends)[1], text);
            c.expect(got >= 0, "a descriptor came");
            epoll_event event{};
            c.same(epoll_wait(got, &event, 1, 0), 1, "it is ready");
            c.same((long long)event.data.u64, 99, "data");
            send_file((*ends)[0], got, "poller");
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
    {"unix-waiting", "unix socket", nullptr, waiting},
    {"unix-waiting-abstract", "unix socket", nullptr, waiting_abstract},
    {"unix-waiting-with-data", "unix socket", "data waits in a unix connection", waiting_with_data},
    {"unix-waiting-gone", "unix socket", "whose client has gone", waiting_gone},
    {"unix-datagram-names", "unix socket", nullptr, datagrams_from_names},
    {"unix-datagram-one-way", "unix socket", nullptr, datagram_one_way},
    {"unix-datagram-both-ways", "unix socket", nullptr, datagram_both_ways},
    {"unix-datagram-peer-gone", "unix socket", nullptr, datagram_peer_gone},
    {"unix-relative-name", "unix socket", nullptr, relative_name},
    {"unix-full-queue", "unix socket", nullptr, full_queue},
    {"unix-in-flight", "descriptors on their way", nullptr, in_flight},
    {"unix-in-flight-mixed", "descriptors on their way", nullptr, in_flight_mixed},
    {"unix-in-flight-datagram", "descriptors on their way", nullptr, in_flight_datagram},
    {"unix-in-flight-open", "descriptors on their way", nullptr, in_flight_open},
    {"unix-in-flight-last-words", "descriptors on their way", nullptr, in_flight_last_words},
    {"unix-in-flight-nested", "descriptors on their way", nullptr, in_flight_nested},
    {"unix-in-flight-memory", "descriptors on their way", nullptr, in_flight_memory},
    {"unix-in-flight-epoll", "descriptors on their way", nullptr, in_flight_epoll},
    {"unix-options", "unix socket", nullptr, pass_credentials},
    {"unix-unconnected", "unix socket", nullptr, unconnected},
};

}  // namespace

int main(int argc, char** argv) { return run(kCases, argc, argv); }
