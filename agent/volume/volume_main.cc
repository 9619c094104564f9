// baton-volume: the files of one volume of one workload. Serves them to the program through FUSE,
// and to the warden's captures and builds as a memory object (file_tree.h).
//
//   baton-volume SOCKET FOLDER NAME
//
// SOCKET: where it is spoken to (volume_protocol.h); made here, and gone with it. FOLDER: where
// content is kept. NAME: what the table of mounts shows. Outlives the warden, as the program does;
// ends when it is mounted nowhere and nobody speaks to it.
//
// One thread: what a collect answers is one instant of all files.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "agent/volume/copy_tree.h"
#include "agent/volume/file_tree.h"
#include "agent/volume/fuse_session.h"
#include "agent/volume/volume_protocol.h"
#include "base/fd.h"
#include "base/unix_socket.h"

namespace baton::volume {
namespace {

constexpr int kFirstConnectionMs = 30'000;

struct Connection {
  UnixSocket socket;
  VolumeArea* area = nullptr;
  std::deque<PageRun> gone;           // what found no room in the area yet
  ~Connection() {
    if (area != nullptr) ::munmap(area, sizeof *area);
  }
};

class Server {
 public:
  Server(std::unique_ptr<FileTree> tree, std::string name) : tree_(std::move(tree)), name_(std::move(name)) {}

  int serve(UnixListener listening) {
    bool spoken_to = false;
    while (!quit_) {
      std::vector<pollfd> polled{{listening.fd(), POLLIN, 0}};
      if (session_ && !session_->ended()) polled.push_back({session_->fd(), POLLIN, 0});
      const std::size_t first = polled.size();
      for (const auto& connection : connections_) polled.push_back({connection->socket.fd(), POLLIN, 0});
      const int ready = ::poll(polled.data(), polled.size(), spoken_to ? -1 : kFirstConnectionMs);
      if (ready < 0 && errno != EINTR) break;
      if (ready == 0 && !spoken_to) break;
      if (first == 2 && polled[1].revents != 0) session_->serve();
      if (polled[0].revents != 0) spoken_to = take_connection(listening) || spoken_to;
      for (std::size_t i = first; i < polled.size(); ++i) {
        if (polled[i].revents != 0 && !answer(*connections_[i - first])) connections_[i - first].reset();
      }
      std::erase(connections_, nullptr);
      if (spoken_to && connections_.empty() && (!session_ || session_->ended())) break;
    }
    if (!mounted_at_.empty()) ::umount2(mounted_at_.c_str(), MNT_DETACH);
    return 0;
  }

 private:
  bool take_connection(UnixListener& listening) {
    auto socket = listening.accept();
    auto peer = socket ? socket->peer() : Result<PeerCredentials>(socket.error());
    if (!peer || peer->uid != ::geteuid()) return false;
    auto connection = std::make_unique<Connection>();
    connection->socket = std::move(*socket);
    connections_.push_back(std::move(connection));
    return true;
  }

  // False: the connection is over.
  bool answer(Connection& connection) {
    static VolumeRequest request;
    auto message = connection.socket.receive(sizeof request);   // poll says that there is one
    if (!message || !*message || (*message)->bytes.size() != sizeof request) return false;
    std::memcpy(&request, (*message)->bytes.data(), sizeof request);
    request.text[kTextMax - 1] = 0;
    VolumeAnswer out;
    if (request.op == VolumeOp::kHello) return say_hello(connection);
    auto done = act(connection, request, out);
    if (!done) {
      out.code = static_cast<std::uint32_t>(done.error().code);
      out.sys_errno = done.error().sys_errno;
      std::size_t used = 0;
      for (const std::string* part : {&done.error().operation, &done.error().subject, &done.error().hint}) {
        const std::size_t bytes = std::min(part->size(), (kTextMax - 8) / 3);
        std::memcpy(out.text + used, part->data(), bytes);
        used += bytes + 1;
      }
    }
    return connection.socket.send(std::as_bytes(std::span(&out, 1))).has_value();
  }

  bool say_hello(Connection& connection) {
    Fd memory = Fd::adopt(::memfd_create("baton-volume", MFD_CLOEXEC));
    if (!memory || ::ftruncate(memory.get(), sizeof(VolumeArea)) != 0) return false;
    void* area = ::mmap(nullptr, sizeof(VolumeArea), PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
    if (area == MAP_FAILED) return false;
    connection.area = static_cast<VolumeArea*>(area);
    const VolumeAnswer out;
    const int fds[] = {memory.get()};
    return connection.socket.send(std::as_bytes(std::span(&out, 1)), fds).has_value();
  }

  Result<void> act(Connection& connection, const VolumeRequest& request, VolumeAnswer& out) {
    if (connection.area == nullptr) return make_error(Code::kInvalid, "volume", "a request before the greeting");
    switch (request.op) {
      case VolumeOp::kImport: return import_folder(*tree_, request.text);
      case VolumeOp::kExport: return export_folder(*tree_, request.text);
      case VolumeOp::kMount: return mount(request.text, request.pid);
      case VolumeOp::kUnmount:
        if (!mounted_at_.empty() && ::umount2(mounted_at_.c_str(), MNT_DETACH) != 0) return errno_error("unmount", mounted_at_);
        mounted_at_.clear();
        return {};
      case VolumeOp::kCollect: return collect(connection, request, out);
      case VolumeOp::kAgain: tree_->change_again({request.first, request.count}); return {};
      case VolumeOp::kFill:
        if (request.count > kBatchPages) return make_error(Code::kInvalid, "volume", "more pages than the area holds");
        return tree_->fill(request.first, std::span(connection.area->pages, request.count * kPage));
      case VolumeOp::kDrop: return tree_->drop({request.first, request.count});
      case VolumeOp::kSettle:
        BATON_TRY(tree_->settle());
        if (request.first != 0) tree_->forget_unused();
        return {};
      case VolumeOp::kQuit:
        if (!mounted_at_.empty()) ::umount2(mounted_at_.c_str(), MNT_DETACH);
        mounted_at_.clear();
        quit_ = true;
        return {};
      default: return make_error(Code::kInvalid, "volume", "an unknown request");
    }
  }

  Result<void> collect(Connection& connection, const VolumeRequest& request, VolumeAnswer& out) {
    if (request.first != 0) {
      connection.gone.clear();
      tree_->change_all();
    }
    VolumeArea& area = *connection.area;
    std::vector<std::uint64_t> numbers;
    std::vector<PageRun> gone;
    const std::size_t most = std::min<std::uint64_t>(request.count, kBatchPages);
    // What has gone before comes before what is there now.
    if (connection.gone.empty()) {
      BATON_ASSIGN(out.count, tree_->collect(std::span(area.pages, most * kPage), numbers, gone));
      std::copy(numbers.begin(), numbers.end(), area.numbers);
      connection.gone.assign(gone.begin(), gone.end());
      if (gone.size() > kGoneMax) {   // these pages come once all that has gone is told
        for (std::uint64_t page : numbers) tree_->change_again({page, 1});
        out.count = 0;
      }
    }
    for (; out.gone < kGoneMax && !connection.gone.empty(); ++out.gone, connection.gone.pop_front()) {
      area.gone[out.gone] = {connection.gone.front().first, connection.gone.front().count};
    }
    out.left = tree_->pages_changed() + connection.gone.size();
    return {};
  }

  // In the mount namespace of `pid`, long before anything there looks at it: the kernel keeps nothing
  // of what is still being filled. Or here, where this node's own programs see it.
  Result<void> mount(const std::string& folder, pid_t pid) {
    if (!session_) {
      BATON_ASSIGN(session_, FuseSession::start(*tree_, name_));
    }
    if (!session_->mount()) return make_error(Code::kConflict, "mount a volume", folder + ": it is mounted already");
    if (pid != 0) {
      Fd second = Fd::adopt(static_cast<int>(::syscall(SYS_open_tree, session_->mount().get(), "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)));
      if (!second) return errno_error("open_tree", folder);
      return mount_in(pid, second, folder);
    }
    const int moved = ::move_mount(session_->mount().get(), "", AT_FDCWD, folder.c_str(), MOVE_MOUNT_F_EMPTY_PATH);
    const int failed = errno;
    session_->let_mount_go();
    if (moved != 0) return errno_error(failed, "mount", folder);
    mounted_at_ = folder;
    return {};
  }

  static Result<void> mount_in(pid_t pid, const Fd& mount, const std::string& folder) {
    const std::string path = "/proc/" + std::to_string(pid) + "/ns/mnt";
    BATON_ASSIGN(Fd space, open_file(path, O_RDONLY));
    const pid_t child = ::fork();
    if (child < 0) return errno_error("fork", folder);
    if (child == 0) {
      // A process of its own: the namespace would else be this one's, too.
      if (::setns(space.get(), CLONE_NEWNS) != 0) ::_exit(errno & 0x7f);
      if (::move_mount(mount.get(), "", AT_FDCWD, folder.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) ::_exit(errno & 0x7f);
      ::_exit(0);
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
    return errno_error(WIFEXITED(status) ? WEXITSTATUS(status) : EIO, "mount in the workload's namespace", folder);
  }

  std::unique_ptr<FileTree> tree_;
  const std::string name_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::unique_ptr<FuseSession> session_;
  std::string mounted_at_;
  bool quit_ = false;
};

int volume_main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: baton-volume SOCKET FOLDER NAME\n");
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::umask(0);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    // One for each file that has content.
    files.rlim_cur = files.rlim_max = std::max<rlim_t>(files.rlim_max, 1u << 20);
    if (::setrlimit(RLIMIT_NOFILE, &files) != 0) {
      ::getrlimit(RLIMIT_NOFILE, &files);
      files.rlim_cur = files.rlim_max;
      ::setrlimit(RLIMIT_NOFILE, &files);
    }
  }
  // Now, and not when it is to be mounted, which is when a program waits for it.
  if (auto device = open_file("/dev/fuse", O_RDWR); !device) {
    std::fprintf(stderr, "%s. Volumes need FUSE (CONFIG_FUSE_FS, module fuse).\n", device.error().message().c_str());
    return 1;
  }
  auto tree = FileTree::make(argv[2]);
  auto listening = tree ? UnixListener::bind(argv[1], ::geteuid()) : Result<UnixListener>(tree.error());
  if (!listening) {
    std::fprintf(stderr, "baton-volume: %s\n", listening.error().message().c_str());
    return 1;
  }
  return Server(std::move(*tree), argv[3]).serve(std::move(*listening));
}

}  // namespace
}  // namespace baton::volume

int main(int argc, char** argv) { return baton::volume::volume_main(argc, argv); }
