// Starts and ends tests/unit/remote's victim programs.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

namespace baton::test {

class Victim {
 public:
  explicit Victim(std::vector<std::string> argv) {
    int in[2], out[2];
    if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) ::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      std::vector<char*> args;
      for (auto& a : argv) args.push_back(a.data());
      args.push_back(nullptr);
      ::execv(args[0], args.data());
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    out_ = out[0];
    ready_ = read_line().starts_with("ready");
  }
  Victim(const Victim&) = delete;
  ~Victim() {
    if (in_ >= 0) ::close(in_);
    ::close(out_);
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::kill(pid_, SIGCONT);
      ::waitpid(pid_, nullptr, 0);
    }
  }
  pid_t pid() const { return pid_; }
  bool ready() const { return ready_; }

  // The next line of its output, without the end of line; empty after `timeout`.
  std::string read_line(std::chrono::milliseconds timeout = std::chrono::seconds(20)) {
    auto until = std::chrono::steady_clock::now() + timeout;
    for (;;) {
      if (auto end = buffer_.find('\n'); end != std::string::npos) {
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
      }
      auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      if (left.count() <= 0) return {};
      pollfd p{out_, POLLIN, 0};
      if (::poll(&p, 1, static_cast<int>(left.count())) <= 0) continue;
      char chunk[4096];
      ssize_t n = ::read(out_, chunk, sizeof chunk);
      if (n <= 0) return std::exchange(buffer_, {});
      buffer_.append(chunk, static_cast<std::size_t>(n));
    }
  }
  void send(const std::string& text) { (void)!::write(in_, text.data(), text.size()); }

  // Asks it to finish; what it says last ("ok"), or how it died.
  std::string finish() {
    if (in_ >= 0) ::close(std::exchange(in_, -1));
    std::string line = read_line();
    int status = 0;
    for (int i = 0; i < 2000; ++i) {
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        if (WIFSIGNALED(status)) return line + " killed by " + ::strsignal(WTERMSIG(status));
        if (WEXITSTATUS(status) != 0) return line + " exit " + std::to_string(WEXITSTATUS(status));
        return line;
      }
      ::usleep(5000);
    }
    return line + " does not end";
  }

 private:
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
  bool ready_ = false;
  std::string buffer_;
};

}  // namespace baton::test
