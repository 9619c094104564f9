#include "agent/warden/exec.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "base/fd.h"

namespace baton::warden {
namespace {

struct Plan {
  int pidfd = -1, output = -1, status = -1;
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
  std::vector<char*> argv, env;
};

// "Uid:\t0\t0…": the numbers behind the label.
std::vector<unsigned> numbers_of(const std::string& status, const std::string& label) {
  const auto at = status.find("\n" + label + ":");
  if (at == std::string::npos) return {};
  std::istringstream line(status.substr(at + label.size() + 2, status.find('\n', at + 1) - at - label.size() - 2));
  std::vector<unsigned> out;
  for (unsigned value = 0; line >> value;) out.push_back(value);
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (auto& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// Between fork and exec of a program with threads: system calls only.
[[noreturn]] void run_command(const Plan& plan) {
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  (void)::setsid();
  const int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, 0);
  ::dup2(plan.output, 1);
  ::dup2(plan.output, 2);
  ::close_range(3, ~0u, 0);
  for (int signal = 1; signal < NSIG; ++signal) ::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::chdir("/") != 0 || ::setgroups(plan.groups.size(), plan.groups.data()) != 0 ||
      ::setresgid(plan.gid, plan.gid, plan.gid) != 0 || ::setresuid(plan.uid, plan.uid, plan.uid) != 0) {
    ::_exit(127);
  }
  // After the change of user, which clears it.
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::execvpe(plan.argv[0], plan.argv.data(), plan.env.data());
  ::_exit(127);
}

[[noreturn]] void enter_and_wait(const Plan& plan) {
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  constexpr int kAll = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
  int status = 127 << 8;
  if (::setns(plan.pidfd, kAll) == 0) {
    (void)::setns(plan.pidfd, CLONE_NEWTIME);   // where kernels have them
    const pid_t child = ::fork();
    if (child == 0) run_command(plan);
    if (child > 0) {
      while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
      }
    }
  }
  (void)!::write(plan.status, &status, sizeof status);
  ::_exit(0);
}

Result<std::pair<Fd, Fd>> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("pipe", "exec");
  return std::pair(Fd::adopt(ends[0]), Fd::adopt(ends[1]));
}

}  // namespace

Result<pb::ExecResponse> exec_inside(pid_t root, const std::vector<std::string>& argv, std::chrono::microseconds timeout) {
  if (argv.empty() || argv[0].empty()) return make_error(Code::kInvalid, "exec", "no command");
  const Fd pidfd = Fd::adopt(static_cast<int>(::syscall(SYS_pidfd_open, root, 0)));
  if (!pidfd) return errno_error("pidfd_open", std::to_string(root));
  const std::string proc = "/proc/" + std::to_string(root);
  BATON_ASSIGN(const std::string status, read_file(proc + "/status", 1u << 16));
  BATON_ASSIGN(const std::string environment, read_file(proc + "/environ", 1u << 20));
  BATON_ASSIGN(auto output, make_pipe());
  BATON_ASSIGN(auto result, make_pipe());

  std::vector<std::string> words = argv, variables;
  std::istringstream all(environment);
  for (std::string one; std::getline(all, one, '\0');) variables.push_back(one);
  Plan plan;
  plan.pidfd = pidfd.get();
  plan.output = output.second.get();
  plan.status = result.second.get();
  const auto uids = numbers_of(status, "Uid"), gids = numbers_of(status, "Gid");
  if (uids.size() < 2 || gids.size() < 2) return make_error(Code::kFailed, "exec", proc + "/status cannot be read");
  plan.uid = uids[1];
  plan.gid = gids[1];
  for (unsigned group : numbers_of(status, "Groups")) plan.groups.push_back(group);
  plan.argv = pointers(words);
  plan.env = pointers(variables);

  const pid_t middle = ::fork();
  if (middle < 0) return errno_error("fork", "exec");
  if (middle == 0) enter_and_wait(plan);
  output.second.reset();
  result.second.reset();

  pb::ExecResponse response;
  const auto until = std::chrono::steady_clock::now() + std::clamp<std::chrono::microseconds>(timeout, std::chrono::milliseconds(1), kExecTimeoutMax);
  int wait_status = -1;
  pollfd ends[2] = {{output.first.get(), POLLIN, 0}, {result.first.get(), POLLIN, 0}};
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now()).count();
    if (left <= 0) {
      response.set_timed_out(true);
      break;
    }
    if (::poll(ends, 2, static_cast<int>(left)) <= 0) continue;
    if (ends[0].revents != 0) {
      char bytes[1024];
      const ssize_t got = ::read(ends[0].fd, bytes, sizeof bytes);
      if (got > 0) {
        auto& kept = *response.mutable_output();
        kept.append(bytes, std::min<std::size_t>(static_cast<std::size_t>(got), kExecOutputBytes - std::min(kept.size(), kExecOutputBytes)));
        continue;
      }
      ends[0].fd = -1;   // what it left in the background may hold the pipe: its end is not waited for
    }
    if (ends[1].revents != 0) {
      if (::read(ends[1].fd, &wait_status, sizeof wait_status) != sizeof wait_status) wait_status = -1;
      break;
    }
  }
  (void)::kill(middle, SIGKILL);   // takes the command with it
  while (::waitpid(middle, nullptr, 0) < 0 && errno == EINTR) {
  }
  response.set_wait_status(wait_status);
  return response;
}

}  // namespace baton::warden
