#include "agent/backend/linux/restore/keeper_client.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <memory>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/cgroup.h"

namespace baton::restore {
namespace {

constexpr int kAnswerTimeoutMs = 20'000;

const char* step_name(KeeperStep step) {
  switch (step) {
    case KeeperStep::kTimeNamespace: return "set up the time namespace";
    case KeeperStep::kNamespaces: return "make PID, mount and IPC namespaces";
    case KeeperStep::kNetwork: return "bring lo up";
    case KeeperStep::kMount: return "mount /proc";
    case KeeperStep::kLog: return "open the log";
    case KeeperStep::kPipes: return "make pipes";
    case KeeperStep::kFork: return "make the process";
    case KeeperStep::kIdentity: return "take on the user";
    case KeeperStep::kDirectory: return "enter the working directory";
    case KeeperStep::kExec: return "execute";
    case KeeperStep::kNone: break;
  }
  return "start";
}

struct Answer {
  KeeperOp op{};
  KeeperResult result;
  pid_t sender = 0;
};

Result<Answer> receive(int control) {
  pollfd polled{control, POLLIN, 0};
  int ready = ::poll(&polled, 1, kAnswerTimeoutMs);
  if (ready == 0) return make_error(Code::kTimedOut, "keeper", "no answer within 20 s");
  KeeperResult buffer{};
  iovec part{&buffer, sizeof buffer};
  alignas(cmsghdr) char ancillary[CMSG_SPACE(sizeof(ucred))] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = ancillary;
  header.msg_controllen = sizeof ancillary;
  ssize_t n = ::recvmsg(control, &header, MSG_CMSG_CLOEXEC);
  if (n < 0) return errno_error("keeper", "receive its answer");
  if (n < static_cast<ssize_t>(sizeof(KeeperOp))) return make_error(Code::kFailed, "keeper", "it ended unexpectedly");
  Answer answer;
  answer.op = buffer.op;
  if (n == static_cast<ssize_t>(sizeof buffer)) answer.result = buffer;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS) continue;
    ucred peer{};
    std::memcpy(&peer, CMSG_DATA(c), sizeof peer);
    answer.sender = peer.pid;
  }
  return answer;
}

// The next answer, which is `wanted`, or the error that the keeper reports instead.
Result<Answer> expect(int control, KeeperOp wanted, const std::string& subject) {
  BATON_ASSIGN(Answer answer, receive(control));
  if (answer.op == wanted && wanted != KeeperOp::kResult) return answer;
  if (answer.op != KeeperOp::kResult) return make_error(Code::kFailed, "keeper", "an answer out of order");
  if (answer.result.error != 0 || wanted != KeeperOp::kResult) {
    return errno_error(answer.result.error, step_name(answer.result.step), subject);
  }
  return answer;
}

Result<void> transmit(int control, const void* data, std::size_t bytes) {
  if (::send(control, data, bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) return errno_error("keeper", "send a request");
  return {};
}

void kill_and_reap(pid_t pid) {
  if (pid <= 0) return;
  ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, __WALL) < 0 && errno == EINTR) {}
}

}  // namespace

Result<std::string> keeper_path() {
  if (const char* named = ::secure_getenv("BATON_KEEPER"); named != nullptr && *named != 0) return std::string(named);
  char self[4096];
  ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return errno_error("readlink", "/proc/self/exe");
  std::string path(self, static_cast<std::size_t>(n));
  path.resize(path.rfind('/') + 1);
  path += "baton-keeper";
  if (::access(path.c_str(), X_OK) != 0) {
    Error error = errno_error("find baton-keeper", path);
    error.hint = "Install it beside this program, or name it in BATON_KEEPER.";
    return error;
  }
  return path;
}

Result<KeeperClient> KeeperClient::start(const KeeperSettings& settings) {
  BATON_ASSIGN(std::string path, keeper_path());
  if (settings.log_path.size() >= kMaxPath || settings.exit_path.size() >= kMaxPath) {
    return make_error(Code::kInvalid, "start keeper", "a path is too long");
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return errno_error("socketpair", "keeper");
  Fd ours = Fd::adopt(pair[0]), theirs = Fd::adopt(pair[1]);
  int one = 1, buffer = static_cast<int>(kMaxKeeperMessage) + 65536;
  ::setsockopt(ours.get(), SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
  if (::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer) != 0) {
    ::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
  }

  char* const argv[] = {const_cast<char*>("baton-keeper"), nullptr};
  char* const envp[] = {nullptr};
  pid_t middle = ::fork();  // only async-signal-safe calls until the exec
  if (middle < 0) return errno_error("fork", "keeper");
  if (middle == 0) {
    int at = ::fcntl(theirs.get(), F_DUPFD, 20);
    if (at < 0 || ::dup2(at, kKeeperControl) < 0) ::_exit(111);
    ::close_range(kKeeperControl + 1, ~0u, 0);
    ::execve(path.c_str(), argv, envp);
    ::_exit(111);
  }
  theirs.reset();

  auto config = std::make_unique<KeeperConfig>();
  config->new_network = settings.new_network ? 1 : 0;
  config->new_time = settings.new_time ? 1 : 0;
  config->monotonic_offset_ns = settings.monotonic_offset_ns;
  config->boottime_offset_ns = settings.boottime_offset_ns;
  std::memcpy(config->log_path, settings.log_path.c_str(), settings.log_path.size());
  std::memcpy(config->exit_path, settings.exit_path.c_str(), settings.exit_path.size());
  auto sent = transmit(ours.get(), config.get(), sizeof *config);
  Result<Answer> ready = sent ? expect(ours.get(), KeeperOp::kReady, settings.log_path) : Result<Answer>(sent.error());
  int status = 0;
  while (::waitpid(middle, &status, 0) < 0 && errno == EINTR) {}
  if (!ready) return std::move(ready).error();
  KeeperClient client(ready->sender, std::move(ours));
  if (!settings.cgroup.empty()) BATON_TRY(Cgroup::at(settings.cgroup).add(client.pid_));
  return client;
}

KeeperClient::KeeperClient(KeeperClient&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)), control_(std::move(other.control_)) {}

KeeperClient::~KeeperClient() {
  if (control_) kill_and_reap(pid_);
}

Result<pid_t> KeeperClient::spawn(pid_t inside, std::uint64_t area, std::uint64_t area_bytes) {
  KeeperSpawn spawn;
  spawn.pid = inside;
  spawn.area = area;
  spawn.area_bytes = area_bytes;
  BATON_TRY(transmit(control_.get(), &spawn, sizeof spawn));
  BATON_ASSIGN(Answer answer, expect(control_.get(), KeeperOp::kBlank, "PID " + std::to_string(inside)));
  return answer.sender;
}

Result<pid_t> KeeperClient::launch(pid_t inside, const LaunchStrings& strings) {
  KeeperLaunch launch;
  launch.pid = inside;
  launch.uid = strings.uid;
  launch.gid = strings.gid;
  launch.argc = static_cast<std::uint32_t>(strings.argv.size());
  launch.envc = static_cast<std::uint32_t>(strings.env.size());
  launch.group_count = static_cast<std::uint32_t>(std::min<std::size_t>(strings.groups.size(), 64));
  std::copy_n(strings.groups.begin(), launch.group_count, launch.groups);
  std::string bytes(reinterpret_cast<const char*>(&launch), sizeof launch);
  auto add = [&bytes](const std::string& text) { bytes.append(text.c_str()).push_back('\0'); };
  add(strings.cwd);
  for (const auto& text : strings.argv) add(text);
  for (const auto& text : strings.env) add(text);
  if (bytes.size() >= kMaxKeeperMessage) return make_error(Code::kInvalid, "launch", "arguments and environment exceed 1 MiB");
  BATON_TRY(transmit(control_.get(), bytes.data(), bytes.size()));
  const std::string& subject = strings.argv.empty() ? strings.cwd : strings.argv[0];
  BATON_ASSIGN(Answer hello, expect(control_.get(), KeeperOp::kHello, subject));
  auto done = expect(control_.get(), KeeperOp::kResult, subject);
  if (!done) {
    Error error = std::move(done).error();
    if (error.operation == "enter the working directory") error.subject = strings.cwd;
    return error;
  }
  return hello.sender;
}

Result<void> KeeperClient::watch(pid_t root_inside) {
  KeeperWatch watch;
  watch.pid = root_inside;
  BATON_TRY(transmit(control_.get(), &watch, sizeof watch));
  BATON_TRY(expect(control_.get(), KeeperOp::kResult, "watch"));
  control_.reset();
  return {};
}

}  // namespace baton::restore
