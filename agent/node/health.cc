#include "agent/node/health.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/fd.h"

namespace baton::node {
namespace {

using namespace std::chrono;
constexpr microseconds kUsualInterval{1'000'000}, kUsualGrace{10'000'000};
constexpr std::uint32_t kUsualFailures = 3;

milliseconds left(steady_clock::time_point until) {
  return std::max(milliseconds(0), duration_cast<milliseconds>(until - steady_clock::now()));
}

Result<void> wait_for(int fd, short events, steady_clock::time_point until, const std::string& what) {
  pollfd one{fd, events, 0};
  const int ready = ::poll(&one, 1, static_cast<int>(left(until).count()));
  if (ready > 0) return {};
  if (ready < 0) return errno_error("poll", what);
  return make_error(Code::kTimedOut, "check health", what + ": no answer in time");
}

Result<Fd> connect_to(const std::string& address, steady_clock::time_point until) {
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return make_error(Code::kInvalid, "check health", address + " is not ADDRESS:PORT");
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  if (::getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found) != 0) {
    return make_error(Code::kInvalid, "check health", address + " is no numeric address");
  }
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> keep(found, &::freeaddrinfo);
  Fd fd = Fd::adopt(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno_error("socket", address);
  if (::connect(fd.get(), found->ai_addr, found->ai_addrlen) == 0) return fd;
  if (errno != EINPROGRESS) return errno_error("connect", address);
  BATON_TRY(wait_for(fd.get(), POLLOUT, until, address));
  int problem = 0;
  socklen_t bytes = sizeof problem;
  ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &problem, &bytes);
  if (problem != 0) return errno_error(problem, "connect", address);
  return fd;
}

}  // namespace

Result<void> ask_tcp(const std::string& address, milliseconds timeout) {
  BATON_ASSIGN(Fd fd, connect_to(address, steady_clock::now() + timeout));
  return {};
}

Result<void> ask_http(const std::string& url, milliseconds timeout) {
  const auto until = steady_clock::now() + timeout;
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) return make_error(Code::kInvalid, "check health", url + " is not http://ADDRESS:PORT/PATH");
  const std::string rest = url.substr(kScheme.size());
  const auto slash = rest.find('/');
  std::string address = rest.substr(0, slash);
  const std::string path = slash == std::string::npos ? "/" : rest.substr(slash);
  if (address.rfind(':') == std::string::npos || address.back() == ']') address += ":80";
  BATON_ASSIGN(Fd fd, connect_to(address, until));
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\nUser-Agent: baton-health\r\nConnection: close\r\n\r\n";
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
    return errno_error("send", url);
  }
  std::string answer;
  while (answer.find("\r\n") == std::string::npos && answer.size() < 256) {
    BATON_TRY(wait_for(fd.get(), POLLIN, until, url));
    char bytes[256];
    const ssize_t got = ::recv(fd.get(), bytes, sizeof bytes, 0);
    if (got <= 0) return make_error(Code::kFailed, "check health", url + ": it closed the connection");
    answer.append(bytes, static_cast<std::size_t>(got));
  }
  // "HTTP/1.1 200 OK"
  const auto space = answer.find(' ');
  const int status = space == std::string::npos ? 0 : std::atoi(answer.c_str() + space + 1);
  if (status >= 200 && status < 400) return {};
  return make_error(Code::kFailed, "check health", url + " answers " + answer.substr(0, answer.find('\r')));
}

HealthCheck::HealthCheck(Warden& warden, std::string workload, pb::HealthCheck check, std::function<void(const std::string&)> unhealthy)
    : warden_(warden), workload_(std::move(workload)), check_(std::move(check)), unhealthy_(std::move(unhealthy)),
      thread_([this] { loop(); }) {}

HealthCheck::~HealthCheck() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

std::string HealthCheck::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

Result<void> HealthCheck::ask() {
  const auto interval = check_.interval_us() == 0 ? kUsualInterval : microseconds(check_.interval_us());
  const auto timeout = check_.timeout_us() == 0 ? std::max<microseconds>(interval, milliseconds(100)) : microseconds(check_.timeout_us());
  if (!check_.tcp().empty()) return ask_tcp(check_.tcp(), duration_cast<milliseconds>(timeout));
  if (!check_.http().empty()) return ask_http(check_.http(), duration_cast<milliseconds>(timeout));
  pb::ExecRequest request;
  request.set_workload(workload_);
  *request.mutable_argv() = check_.exec();
  request.set_timeout_us(static_cast<std::uint64_t>(timeout.count()));
  BATON_ASSIGN(auto answer, warden_.exec(request));
  if (answer.timed_out()) return make_error(Code::kTimedOut, "check health", "the command does not end in time");
  if (WIFEXITED(answer.wait_status()) && WEXITSTATUS(answer.wait_status()) == 0) return {};
  std::string said = answer.output().substr(0, answer.output().find('\n'));
  return make_error(Code::kFailed, "check health", "the command ends with status " + std::to_string(WEXITSTATUS(answer.wait_status())) +
                                                       (said.empty() ? "" : ": " + said.substr(0, 200)));
}

void HealthCheck::loop() {
  const auto interval = check_.interval_us() == 0 ? kUsualInterval : microseconds(check_.interval_us());
  const std::uint32_t most = check_.failures() == 0 ? kUsualFailures : check_.failures();
  std::uint32_t failed = 0;
  std::unique_lock lock(mutex_);
  auto due = steady_clock::now() + (check_.grace_us() == 0 ? kUsualGrace : microseconds(check_.grace_us()));
  while (!changed_.wait_until(lock, due, [&] { return stopping_; })) {
    due = steady_clock::now() + interval;
    lock.unlock();
    auto healthy = ask();
    lock.lock();
    if (healthy) {
      failed = 0;
      state_ = "healthy";
      continue;
    }
    // A warden or an agent that is not there tells nothing of the program.
    if (healthy.error().code == Code::kUnreachable && check_.exec_size() > 0) continue;
    state_ = "failing: " + healthy.error().message();
    if (++failed < most) continue;
    const std::string why = healthy.error().message();
    lock.unlock();
    return unhealthy_(why);
  }
}

}  // namespace baton::node
