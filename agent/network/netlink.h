// Netlink sockets and messages, over libmnl: requests that are acknowledged, batches of
// nf_tables, dumps. A socket belongs to the network namespace in which it was opened, whatever
// thread uses it later.
//
// Threads: one at a time per socket.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <libmnl/libmnl.h>

#include "base/error.h"
#include "base/fd.h"

namespace baton::network {

// The network namespace of a process. Fails: kTraceeGone.
Result<Fd> namespace_of(pid_t pid);

// Runs `work` on the calling thread inside `space`. Fails also when the thread cannot come
// back, which no caller survives sensibly: then the process ends.
Result<void> inside(int space, const std::function<Result<void>()>& work);

// One netlink message being written; it grows as needed.
class Message {
 public:
  Message(std::uint16_t type, std::uint16_t flags);
  template <typename Header>
  Header& extra() {                       // once, before any attribute; valid until the next put
    return *reinterpret_cast<Header*>(grow(sizeof(Header)));
  }
  Message& put(std::uint16_t type, std::span<const std::byte> data);
  Message& put(std::uint16_t type, std::string_view text);     // with its NUL
  Message& put_u32(std::uint16_t type, std::uint32_t value);
  Message& put_be32(std::uint16_t type, std::uint32_t value);  // as nf_tables counts
  Message& put_be64(std::uint16_t type, std::uint64_t value);
  Message& begin(std::uint16_t type);     // nested, until end()
  Message& end();

  std::span<std::byte> bytes() { return {bytes_.data(), bytes_.size()}; }
  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }

 private:
  std::byte* grow(std::size_t bytes);
  std::vector<std::byte> bytes_;
  std::vector<std::size_t> open_;         // offsets of nested attributes
};

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

class Netlink {
 public:
  Netlink() = default;
  static Result<Netlink> open(int protocol);                  // here
  static Result<Netlink> open_in(int space, int protocol);    // in that network namespace

  explicit operator bool() const { return static_cast<bool>(fd_); }
  // Sends, waits for the kernel's answer. `what` and `subject` name it in the error.
  Result<void> ask(Message& message, std::string_view what, const std::string& subject);
  // All of nf_tables' messages or none of them, at one instant.
  Result<void> commit(std::span<Message> messages, std::string_view what, const std::string& subject);
  Result<void> dump(Message& message, std::string_view what, const std::function<void(const nlmsghdr&)>& each);

 private:
  explicit Netlink(Fd fd) : fd_(std::move(fd)) {}
  Result<void> send(std::span<const std::byte> bytes, std::string_view what);
  Result<void> receive(std::uint32_t first, std::uint32_t last, std::size_t answers, std::string_view what,
                       const std::string& subject, const std::function<void(const nlmsghdr&)>& each);
  Fd fd_;
  std::uint32_t sequence_ = 1;
};

}  // namespace baton::network
