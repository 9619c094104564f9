// What making any socket in the template process takes: calls with errors that name it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "agent/backend/linux/restore/construction.h"

namespace baton::restore {

// For an error: "10.0.0.1:80", a path, "@abstract".
std::string describe_address(const std::string& address);

inline std::uint64_t as_argument(int value) { return static_cast<std::uint64_t>(static_cast<std::int64_t>(value)); }

class SocketCalls {
 public:
  SocketCalls(Construction& c, const pb::Socket& socket) : c_(c), maker_(c.maker()), socket_(socket) {}

 protected:
  static std::uint64_t u(int value) { return as_argument(value); }
  Result<int> checked(const char* what, const std::string& subject, long number, std::initializer_list<std::uint64_t> args);
  // One that this kernel lacks is left out.
  Result<void> option(int fd, int level, int name, const void* value, std::size_t bytes);
  Result<void> option(int fd, int level, int name, int value) { return option(fd, level, name, &value, sizeof value); }
  Result<void> options(int fd);                       // those of `socket_`
  int saved_option(int level, int name) const;        // of an integer; 0: it has its usual value

  Construction& c_;
  Puppet& maker_;
  const pb::Socket& socket_;
};

}  // namespace baton::restore
