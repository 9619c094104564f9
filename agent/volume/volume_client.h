// VolumeClient: a connection to one volume's server (volume_main.cc).
// Threads: one at a time. Destroyed: the connection ends, and with the last one a server whose
// volume is mounted nowhere.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "agent/backend/backend.h"
#include "base/error.h"
#include "base/unix_socket.h"

namespace baton::volume {

// Whether `path` is `folder` or in it.
inline bool lies_in(std::string_view folder, std::string_view path) {
  return path.starts_with(folder) && (path.size() == folder.size() || path[folder.size()] == '/');
}

struct VolumeArea;
struct VolumeRequest;
struct VolumeAnswer;

class VolumeClient {
 public:
  // Starts a server. `socket`: a name of its own, of at most 107 bytes; `folder`: where content is kept.
  // Fails: kUnsupported (no baton-volume), kFailed, kTimedOut.
  static Result<std::unique_ptr<VolumeClient>> start(const std::string& socket, const std::string& folder, const std::string& name);
  // To one that is there. Fails: kNotFound, kUnreachable (it has ended).
  static Result<std::unique_ptr<VolumeClient>> connect(const std::string& socket);
  ~VolumeClient();

  Result<void> import_folder(const std::string& folder);
  Result<void> export_folder(const std::string& folder);
  // In the mount namespace of `pid`, where nobody uses it before settle(true); 0: on this node, last.
  Result<void> mount(const std::string& folder, pid_t pid);
  Result<void> unmount();                  // on this node
  Result<void> quit();

  // Hands `sink` what has changed since the last call, as pages of `object`, while there is room.
  // Answers pages taken. The first call hands out everything.
  Result<std::uint64_t> collect(std::uint64_t object, backend::PageSink& sink);
  std::uint64_t pages_pending() const { return left_ + (held_ - given_); }
  Result<void> change_again(std::uint64_t first_page, std::uint64_t count);

  Result<void> fill(std::uint64_t first_page, std::span<const std::byte> pages);
  Result<void> drop(std::uint64_t first_page, std::uint64_t count);
  // What was filled is a whole checkpoint. `used`: a program is about to find it.
  Result<void> settle(bool used = false);

 private:
  explicit VolumeClient(UnixSocket socket);
  Result<void> greet();
  Result<SocketMessage> exchange(const VolumeRequest& request, int timeout_ms);
  Result<VolumeAnswer> ask(const VolumeRequest& request, int timeout_ms);
  Result<VolumeAnswer> ask(std::uint32_t op, std::uint64_t first = 0, std::uint64_t count = 0, const std::string& text = {}, pid_t pid = 0);

  UnixSocket socket_;
  VolumeArea* area_ = nullptr;
  bool begun_ = false;
  std::uint64_t left_ = 0;                 // still with the server
  std::uint64_t held_ = 0, given_ = 0;     // pages in the area, and how many of them the sink has
};

}  // namespace baton::volume
