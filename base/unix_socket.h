// Local sockets that keep message borders (SOCK_SEQPACKET) and carry descriptors.
// One message is one send; what does not fit the socket buffer (about 200 KiB) is
// refused with kNoSpace and has to travel in a memfd that is passed along.
//
// Threads: send and receive may be called from different threads at once; two
// senders (or two receivers) need a lock of their own.
// Source: unix(7), SCM_RIGHTS and SO_PEERCRED.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <sys/types.h>

#include "base/error.h"
#include "base/fd.h"

namespace baton {

inline constexpr std::size_t kMaxPassedFds = 8;

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};

struct SocketMessage {
  std::string bytes;
  std::vector<Fd> fds;
};

class UnixSocket {
 public:
  UnixSocket() noexcept = default;
  explicit UnixSocket(Fd fd) noexcept : fd_(std::move(fd)) {}

  // Fails: kNotFound (no such path), kUnreachable (nobody listens), kNotAllowed, kInvalid (path too long).
  static Result<UnixSocket> connect(const std::string& path);
  static Result<std::pair<UnixSocket, UnixSocket>> make_pair();

  int fd() const noexcept { return fd_.get(); }
  explicit operator bool() const noexcept { return static_cast<bool>(fd_); }
  void close() noexcept { fd_.reset(); }
  // Wakes a blocked receive on both ends with "closed"; the descriptor stays valid.
  void shutdown() noexcept;

  Result<PeerCredentials> peer() const;
  // A send that finds no room for so long fails with kTimedOut.
  Result<void> set_send_timeout(std::chrono::milliseconds timeout);
  // Asks for room for messages of `bytes`; beyond the system's limit only root gets it.
  void grow_buffers(std::size_t bytes);

  // Blocks while the peer's queue is full. Fails: kUnreachable (the peer has gone),
  // kNoSpace (EMSGSIZE: larger than the socket buffer), kTimedOut.
  Result<void> send(std::span<const std::byte> bytes, std::span<const int> fds = {});
  // Blocks for the next message; nothing: the peer has closed. A message larger than
  // `max_bytes` or with more than kMaxPassedFds descriptors fails with kCorrupt.
  Result<std::optional<SocketMessage>> receive(std::size_t max_bytes);

 private:
  Fd fd_;
};

class UnixListener {
 public:
  UnixListener() noexcept = default;
  // Binds and listens; a left-over socket file at `path` that nobody listens on is replaced.
  // The file gets `owner` and mode 0600, so that only that user (and root) can connect.
  // Fails: kConflict (somebody listens there), kNotAllowed, kInvalid (path too long).
  static Result<UnixListener> bind(const std::string& path, uid_t owner);
  UnixListener(UnixListener&&) noexcept = default;
  UnixListener& operator=(UnixListener&&) noexcept = default;
  ~UnixListener();  // removes the socket file

  int fd() const noexcept { return fd_.get(); }
  Result<UnixSocket> accept();

 private:
  Fd fd_;
  std::string path_;
};

}  // namespace baton
