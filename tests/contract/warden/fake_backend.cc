// A backend for tests of the warden: real processes, stopped by ptrace as the real one does,
// with made-up memory whose content tells what it is: page P of object O at version V begins
// with the three numbers. What it does wrong is asked for in the spec's environment:
//
//   FAKE_PAGES=N      pages of object 1 (default 64)
//   FAKE_STATE=N      bytes of manifest state (default 100)
//   FAKE_RUNS=scatter every second page first, so that runs are many
//   FAKE_SLOW=1       a capture that goes on until the sink has no room
//   FAKE_REFUSE=1     inspect refuses "fd 7"
//   FAKE_FAIL=capture | build | activate
#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>

#include "agent/backend/registry.h"
#include "agent/warden/program.h"
#include "base/cgroup.h"
#include "base/fd.h"

namespace baton {
namespace {

std::string setting(const pb::WorkloadSpec& spec, const std::string& key, const std::string& otherwise) {
  for (const auto& one : spec.env()) {
    if (one.compare(0, key.size() + 1, key + "=") == 0) return one.substr(key.size() + 1);
  }
  return otherwise;
}

Result<void> interrupt(pid_t pid) {
  if (::ptrace(PTRACE_SEIZE, pid, 0, 0) != 0) return errno_error("PTRACE_SEIZE", std::to_string(pid));
  ::ptrace(PTRACE_INTERRUPT, pid, 0, 0);
  int status = 0;
  if (::waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) {
    return make_error(Code::kTraceeGone, "fake", "it died while being stopped");
  }
  return {};
}

class FakeAttachment final : public backend::Attachment {
 public:
  explicit FakeAttachment(const backend::AttachTarget& target) : target_(target) {
    pages_ = std::strtoull(setting(target.spec, "FAKE_PAGES", "64").c_str(), nullptr, 10);
    for (std::uint64_t page = 0; page < pages_; ++page) pending_[page] = true;
  }
  ~FakeAttachment() override {
    if (stopped_) (void)thaw().has_value();
  }
  std::string tracker_name() const override { return "fake-tracker"; }

  Result<backend::RoundStats> round(backend::PageSink& sink, std::span<const backend::PageRange> again) override {
    backend::RoundStats stats;
    for (const auto& range : again) {
      for (std::uint64_t i = 0; i < range.count; ++i) pending_[range.first_page + i] = true;
    }
    if (!first_) {
      ++version_;
      for (std::uint64_t page = 0; page < std::min<std::uint64_t>(4, pages_); ++page) pending_[page] = true;
    }
    first_ = false;
    stats.pages_written = pending_.size();
    bool scatter = setting(target_.spec, "FAKE_RUNS", "") == "scatter";
    for (int parity = 0; parity < (scatter ? 2 : 1); ++parity) {
      for (auto it = pending_.begin(); it != pending_.end();) {
        if (scatter && it->first % 2 != static_cast<std::uint64_t>(parity)) {
          ++it;
          continue;
        }
        auto room = sink.reserve(backend::kPageBytes);
        if (room.empty()) break;
        std::uint64_t words[3] = {1, it->first, version_};
        std::memset(room.data(), 0x5a, room.size());
        std::memcpy(room.data(), words, sizeof words);
        sink.emit(1, it->first, 1);
        ++stats.pages_copied;
        it = pending_.erase(it);
      }
    }
    stats.pages_pending = pending_.size();
    return stats;
  }

  Result<backend::CaptureStats> capture(const backend::CaptureOptions& options, backend::PageSink& sink,
                                        pb::Manifest& manifest) override {
    if (setting(target_.spec, "FAKE_FAIL", "") == "capture") {
      return make_error(Code::kUnsupported, "capture", "fd 7: io_uring is not supported");
    }
    auto begin = std::chrono::steady_clock::now();
    BATON_TRY(interrupt(target_.root));
    stopped_ = true;
    if (setting(target_.spec, "FAKE_SLOW", "") == "1") {
      while (!sink.reserve(backend::kPageBytes).empty()) ::usleep(1000);
      BATON_TRY(thaw());
      return make_error(Code::kNoSpace, "capture", "no room");
    }
    backend::CaptureStats stats;
    auto pages = round(sink, options.again);
    if (!pages || pages->pages_pending > 0) {
      BATON_TRY(thaw());
      return make_error(Code::kNoSpace, "capture", "the buffer is full");
    }
    sink.drop(1, pages_ + 10, 5);
    stats.pages = *pages;
    manifest.set_backend("fake");
    std::size_t bytes = std::strtoull(setting(target_.spec, "FAKE_STATE", "100").c_str(), nullptr, 10);
    manifest.set_state(std::string(bytes, 's'));
    if (!options.keep_frozen) BATON_TRY(thaw());
    stats.pause = std::chrono::steady_clock::now() - begin;
    return stats;
  }
  Result<void> thaw() override {
    stopped_ = false;
    if (::ptrace(PTRACE_DETACH, target_.root, 0, 0) != 0) return errno_error("PTRACE_DETACH", "");
    return {};
  }
  Result<void> destroy() override {
    stopped_ = false;
    ::kill(target_.root, SIGKILL);
    return {};
  }

 private:
  backend::AttachTarget target_;
  std::uint64_t pages_ = 0, version_ = 1;
  bool first_ = true, stopped_ = false;
  std::map<std::uint64_t, bool> pending_;
};

class FakeBuild final : public backend::Build {
 public:
  FakeBuild(const backend::BuildTarget& target, pid_t root) : target_(target), root_(root) {}
  ~FakeBuild() override {
    if (activated_) return;
    ::kill(root_, SIGKILL);
    ::waitpid(root_, nullptr, __WALL);
  }
  Result<void> fill(std::uint64_t object, std::uint64_t first_page, std::span<const std::byte> pages) override {
    for (std::size_t at = 0; at < pages.size(); at += backend::kPageBytes) {
      std::uint64_t words[3];
      std::memcpy(words, pages.data() + at, sizeof words);
      filled_ += "page " + std::to_string(object) + ":" + std::to_string(first_page + at / backend::kPageBytes) +
                 " holds " + std::to_string(words[1]) + "\n";
    }
    return {};
  }
  Result<void> activate(bool paused, std::chrono::nanoseconds) override {
    if (setting(target_.spec, "FAKE_FAIL", "") == "activate") return make_error(Code::kFailed, "activate", "as asked");
    BATON_ASSIGN(Fd log, open_file(target_.log_path, O_WRONLY | O_CREAT | O_APPEND, 0600));
    BATON_TRY(write_all(log.get(), std::as_bytes(std::span(filled_.data(), filled_.size()))));
    if (paused) BATON_TRY(Cgroup::at(target_.cgroup).freeze(std::chrono::seconds(2)));
    if (::ptrace(PTRACE_DETACH, root_, 0, SIGCONT) != 0) return errno_error("PTRACE_DETACH", "");
    activated_ = true;
    return {};
  }
  pid_t root() const override { return root_; }
  pid_t keeper() const override { return 0; }

 private:
  backend::BuildTarget target_;
  pid_t root_;
  std::string filled_;
  bool activated_ = false;
};

void exec_program(const pb::WorkloadSpec& spec) {
  std::vector<char*> argv;
  for (const auto& one : spec.argv()) argv.push_back(const_cast<char*>(one.c_str()));
  argv.push_back(nullptr);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

void enter(const std::string& cgroup, const std::string& log_path) {
  int procs = ::open((cgroup + "/cgroup.procs").c_str(), O_WRONLY);
  if (procs < 0 || ::write(procs, "0", 1) != 1) ::_exit(126);
  ::close(procs);
  int log = ::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::dup2(log, 1);
  ::dup2(log, 2);
  ::signal(SIGTERM, SIG_DFL);
  ::signal(SIGINT, SIG_DFL);
}

class FakeBackend final : public backend::Backend {
 public:
  std::string_view name() const override { return "fake"; }
  std::vector<pb::Feature> probe() override {
    pb::Feature feature;
    feature.set_name("fake-feature");
    feature.set_available(true);
    return {feature};
  }
  std::vector<std::string> trackers() override { return {"fake-tracker"}; }
  Result<backend::Inspection> inspect(const backend::AttachTarget& target) override {
    backend::Inspection out;
    pb::Verdict verdict;
    verdict.set_pid(target.root);
    verdict.set_resource("fd 7");
    verdict.set_kind("io_uring");
    out.acceptable = setting(target.spec, "FAKE_REFUSE", "") != "1";
    verdict.set_verdict(out.acceptable ? "captured" : "refused");
    out.verdicts.push_back(verdict);
    pb::FileProof file;
    file.set_path("/bin/true");
    out.files.push_back(file);
    out.machine.set_arch("fake");
    return out;
  }
  Result<std::unique_ptr<backend::Attachment>> attach(const backend::AttachTarget& target) override {
    return std::unique_ptr<backend::Attachment>(new FakeAttachment(target));
  }
  Result<std::unique_ptr<backend::Build>> build(const pb::Manifest&, const backend::BuildTarget& target) override {
    if (setting(target.spec, "FAKE_FAIL", "") == "build") return make_error(Code::kUnsupported, "build", "as asked");
    pid_t child = ::fork();
    if (child < 0) return errno_error("fork", "");
    if (child == 0) {
      enter(target.cgroup, target.log_path);
      ::raise(SIGSTOP);
      exec_program(target.spec);
    }
    int status = 0;
    if (::waitpid(child, &status, WUNTRACED) != child || !WIFSTOPPED(status) ||
        ::ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL) != 0) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, __WALL);
      return make_error(Code::kFailed, "build", "the child did not stop");
    }
    ::kill(child, SIGCONT);
    ::ptrace(PTRACE_INTERRUPT, child, 0, 0);
    ::waitpid(child, &status, __WALL);
    return std::unique_ptr<backend::Build>(new FakeBuild(target, child));
  }
};

const backend::Registrar registrar("fake", [] { return std::make_unique<FakeBackend>(); });

// A keeper that waits for the program and leaves its wait status.
Result<warden::LaunchedProgram> launch(const warden::LaunchTarget& target) {
  if (setting(target.spec, "FAKE_FAIL", "") == "launch") return make_error(Code::kNotFound, "launch", "as asked");
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error("pipe2", "");
  pid_t keeper = ::fork();
  if (keeper < 0) return errno_error("fork", "");
  if (keeper == 0) {
    ::setsid();
    enter(target.cgroup, target.log_path);
    pid_t root = ::fork();
    if (root == 0) exec_program(target.spec);
    if (::write(ends[1], &root, sizeof root) != static_cast<ssize_t>(sizeof root)) ::_exit(1);
    for (int fd = 3; fd < 256; ++fd) ::close(fd);
    int status = 0;
    while (::waitpid(root, &status, 0) < 0) {}
    auto saved = replace_file(target.exit_path, std::to_string(status));
    ::_exit(saved ? 0 : 1);
  }
  ::close(ends[1]);
  pid_t root = 0;
  ssize_t n = ::read(ends[0], &root, sizeof root);
  ::close(ends[0]);
  if (n != static_cast<ssize_t>(sizeof root)) return make_error(Code::kFailed, "launch", "the keeper said nothing");
  return warden::LaunchedProgram{root, keeper};
}

}  // namespace
}  // namespace baton

int main(int argc, char** argv) { return baton::warden::warden_main(argc, argv, "fake", baton::launch); }
