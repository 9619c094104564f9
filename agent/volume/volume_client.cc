#include "agent/volume/volume_client.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "agent/volume/volume_protocol.h"

namespace baton::volume {
namespace {

constexpr int kAnswerMs = 20'000;
constexpr int kCollectMs = 2'000;        // a program may stand still for it
constexpr int kLongMs = 3'600'000;       // importing and exporting take as long as there is to copy
constexpr std::size_t kPageBytes = backend::kPageBytes;

Result<std::string> server_path() {
  if (const char* named = ::secure_getenv("BATON_VOLUME"); named != nullptr && *named != 0) return std::string(named);
  char self[4096];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return errno_error("readlink", "/proc/self/exe");
  std::string path(self, static_cast<std::size_t>(n));
  path.resize(path.rfind('/') + 1);
  path += "baton-volume";
  if (::access(path.c_str(), X_OK) == 0) return path;
  Error error = errno_error("find baton-volume", path);
  error.code = Code::kUnsupported;
  error.hint = "Install it beside this program, or name it in BATON_VOLUME.";
  return error;
}

}  // namespace

VolumeClient::VolumeClient(UnixSocket socket) : socket_(std::move(socket)) {}

VolumeClient::~VolumeClient() {
  if (area_ != nullptr) ::munmap(area_, sizeof *area_);
}

Result<std::unique_ptr<VolumeClient>> VolumeClient::start(const std::string& socket, const std::string& folder, const std::string& name) {
  BATON_ASSIGN(const std::string path, server_path());
  int says[2];
  if (::pipe2(says, O_CLOEXEC) != 0) return errno_error("pipe", "volume");
  Fd out = Fd::adopt(says[0]), in = Fd::adopt(says[1]);
  char* const argv[] = {const_cast<char*>("baton-volume"), const_cast<char*>(socket.c_str()), const_cast<char*>(folder.c_str()),
                        const_cast<char*>(name.c_str()), nullptr};
  char* const envp[] = {nullptr};
  const pid_t middle = ::fork();   // only async-signal-safe calls until the exec
  if (middle < 0) return errno_error("fork", "volume");
  if (middle == 0) {
    const pid_t server = ::fork();   // nobody's child: it outlives the warden
    if (server != 0) ::_exit(server < 0 ? 111 : 0);
    ::setsid();
    const int none = ::open("/dev/null", O_RDWR);
    if (none < 0 || ::dup2(none, 0) < 0 || ::dup2(none, 1) < 0 || ::dup2(in.get(), 2) < 0) ::_exit(111);
    ::close_range(3, ~0u, 0);
    ::execve(path.c_str(), argv, envp);
    ::_exit(111);
  }
  in.reset();
  int status = 0;
  while (::waitpid(middle, &status, 0) < 0 && errno == EINTR) {}
  for (int i = 0; i < 500; ++i) {
    auto client = connect(socket);
    if (client || (client.error().code != Code::kNotFound && client.error().code != Code::kUnreachable)) return client;
    // It closes its end of the pipe only by ending.
    pollfd polled{out.get(), POLLIN, 0};
    if (::poll(&polled, 1, 10) <= 0) continue;
    std::string said(1024, 0);
    const ssize_t n = ::read(out.get(), said.data(), said.size());
    said.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
    while (!said.empty() && said.back() == '\n') said.pop_back();
    return make_error(Code::kFailed, "start a volume", said.empty() ? "baton-volume ended at once" : said);
  }
  return make_error(Code::kTimedOut, "start a volume", "baton-volume does not answer");
}

Result<std::unique_ptr<VolumeClient>> VolumeClient::connect(const std::string& path) {
  BATON_ASSIGN(UnixSocket socket, UnixSocket::connect(path));
  std::unique_ptr<VolumeClient> client(new VolumeClient(std::move(socket)));
  BATON_TRY(client->greet());
  return client;
}

Result<void> VolumeClient::greet() {
  VolumeRequest request;
  request.op = VolumeOp::kHello;
  BATON_ASSIGN(SocketMessage answer, exchange(request, kAnswerMs));
  if (answer.fds.size() != 1) return make_error(Code::kUnreachable, "volume", "its server (baton-volume) answers without its memory");
  void* area = ::mmap(nullptr, sizeof(VolumeArea), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, answer.fds.front().get(), 0);
  if (area == MAP_FAILED) return errno_error("mmap", "a volume's area");
  area_ = static_cast<VolumeArea*>(area);
  return {};
}

// After a failure the connection is over: an answer that comes late must not be taken for another's.
Result<SocketMessage> VolumeClient::exchange(const VolumeRequest& request, int timeout_ms) {
  auto gone = [&](Code code, const char* what) {
    socket_.close();
    return make_error(code, "volume", std::string("its server (baton-volume) ") + what);
  };
  if (!socket_ || !socket_.send(std::as_bytes(std::span(&request, 1)))) return gone(Code::kUnreachable, "has ended");
  pollfd polled{socket_.fd(), POLLIN, 0};
  int ready = 0;
  while ((ready = ::poll(&polled, 1, timeout_ms)) < 0 && errno == EINTR) {}
  if (ready <= 0) return gone(Code::kTimedOut, "does not answer");
  auto message = socket_.receive(sizeof(VolumeAnswer));
  if (!message || !*message || (*message)->bytes.size() != sizeof(VolumeAnswer)) return gone(Code::kUnreachable, "has ended");
  return std::move(**message);
}

Result<VolumeAnswer> VolumeClient::ask(const VolumeRequest& request, int timeout_ms) {
  BATON_ASSIGN(const SocketMessage message, exchange(request, timeout_ms));
  VolumeAnswer answer;
  std::memcpy(&answer, message.bytes.data(), sizeof answer);
  if (answer.code == 0) return answer;
  answer.text[kTextMax - 1] = 0;
  Error error;
  error.code = static_cast<Code>(answer.code);
  error.sys_errno = answer.sys_errno;
  std::size_t at = 0;
  for (std::string* part : {&error.operation, &error.subject, &error.hint}) {
    *part = std::string(answer.text + at);
    at = std::min(at + part->size() + 1, kTextMax - 1);
  }
  return error;
}

Result<VolumeAnswer> VolumeClient::ask(std::uint32_t op, std::uint64_t first, std::uint64_t count, const std::string& text, pid_t pid) {
  static thread_local VolumeRequest request;
  request.op = static_cast<VolumeOp>(op);
  request.first = first;
  request.count = count;
  request.pid = pid;
  if (text.size() >= kTextMax) return make_error(Code::kInvalid, "volume", "a path is too long");
  std::memcpy(request.text, text.c_str(), text.size() + 1);
  const bool copies = request.op == VolumeOp::kImport || request.op == VolumeOp::kExport;
  return ask(request, copies ? kLongMs : request.op == VolumeOp::kCollect ? kCollectMs : kAnswerMs);
}

#define BATON_ASK(...)                                          \
  do {                                                          \
    auto baton_answer_ = ask(__VA_ARGS__);                      \
    if (!baton_answer_) return std::move(baton_answer_).error(); \
  } while (0)

Result<void> VolumeClient::import_folder(const std::string& folder) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kImport), 0, 0, folder);
  return {};
}

Result<void> VolumeClient::export_folder(const std::string& folder) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kExport), 0, 0, folder);
  return {};
}

Result<void> VolumeClient::mount(const std::string& folder, pid_t pid) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kMount), 0, 0, folder, pid);
  return {};
}

Result<void> VolumeClient::unmount() {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kUnmount));
  return {};
}

Result<void> VolumeClient::quit() {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kQuit));
  return {};
}

Result<void> VolumeClient::settle(bool used) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kSettle), used ? 1 : 0);
  return {};
}

Result<void> VolumeClient::drop(std::uint64_t first_page, std::uint64_t count) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kDrop), first_page, count);
  return {};
}

Result<void> VolumeClient::change_again(std::uint64_t first_page, std::uint64_t count) {
  BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kAgain), first_page, count);
  return {};
}

Result<void> VolumeClient::fill(std::uint64_t first_page, std::span<const std::byte> pages) {
  while (!pages.empty()) {
    const std::size_t bytes = std::min(pages.size(), kBatchPages * kPageBytes);
    std::memcpy(area_->pages, pages.data(), bytes);
    BATON_ASK(static_cast<std::uint32_t>(VolumeOp::kFill), first_page, bytes / kPageBytes);
    first_page += bytes / kPageBytes;
    pages = pages.subspan(bytes);
  }
  return {};
}

Result<std::uint64_t> VolumeClient::collect(std::uint64_t object, backend::PageSink& sink) {
  std::uint64_t taken = 0;
  for (bool asked = false;;) {
    // What is in the area goes first, in runs.
    while (given_ < held_) {
      std::uint64_t count = 1;
      while (given_ + count < held_ && area_->numbers[given_ + count] == area_->numbers[given_] + count) ++count;
      auto room = sink.reserve(count * kPageBytes);
      count = std::min<std::uint64_t>(count, room.size() / kPageBytes);
      if (count == 0) return taken;
      std::memcpy(room.data(), area_->pages + given_ * kPageBytes, count * kPageBytes);
      sink.emit(object, area_->numbers[given_], static_cast<std::uint32_t>(count));
      given_ += count;
      taken += count;
    }
    held_ = given_ = 0;
    if (asked && left_ == 0) return taken;
    auto answer = ask(static_cast<std::uint32_t>(VolumeOp::kCollect), begun_ ? 0 : 1, kBatchPages);
    if (!answer) return std::move(answer).error();
    begun_ = asked = true;
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(answer->gone, kGoneMax); ++i) sink.drop(object, area_->gone[i].first, area_->gone[i].count);
    held_ = std::min<std::uint64_t>(answer->count, kBatchPages);
    left_ = answer->left;
  }
}

}  // namespace baton::volume
