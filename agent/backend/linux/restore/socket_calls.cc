#include "agent/backend/linux/restore/socket_calls.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstring>

namespace baton::restore {

std::string describe_address(const std::string& address) {
  sockaddr_storage raw{};
  std::memcpy(&raw, address.data(), std::min(address.size(), sizeof raw));
  char text[INET6_ADDRSTRLEN] = {};
  if (raw.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(raw);
    ::inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(in.sin_port));
  }
  if (raw.ss_family == AF_INET6) {
    const auto& in = reinterpret_cast<const sockaddr_in6&>(raw);
    ::inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof text);
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(in.sin6_port));
  }
  if (raw.ss_family == AF_UNIX && address.size() > sizeof(sa_family_t)) {
    std::string path = address.substr(sizeof(sa_family_t));
    if (path[0] == 0) path[0] = '@';
    return path.c_str();
  }
  return "socket";
}

Result<int> SocketCalls::checked(const char* what, const std::string& subject, long number, std::initializer_list<std::uint64_t> args) {
  BATON_ASSIGN(std::uint64_t value, maker_.checked(what, subject, number, args));
  return static_cast<int>(value);
}

Result<void> SocketCalls::option(int fd, int level, int name, const void* value, std::size_t bytes) {
  BATON_ASSIGN(std::uint64_t at, maker_.put(std::span(static_cast<const std::byte*>(value), bytes)));
  BATON_TRY(maker_.call(SYS_setsockopt, {u(fd), u(level), u(name), at, bytes}));
  return {};
}

Result<void> SocketCalls::options(int fd) {
  for (const auto& o : socket_.options()) BATON_TRY(option(fd, o.level(), o.name(), o.value().data(), o.value().size()));
  return {};
}

int SocketCalls::saved_option(int level, int name) const {
  for (const auto& o : socket_.options()) {
    if (o.level() != level || o.name() != name || o.value().size() != sizeof(int)) continue;
    int value = 0;
    std::memcpy(&value, o.value().data(), sizeof value);
    return value;
  }
  return 0;
}

}  // namespace baton::restore
