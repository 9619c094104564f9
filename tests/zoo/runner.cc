// baton-zoo: runs the zoo's cases (tests/tracees/zoo) through the linux backend, in private
// namespaces, without a bench.
//
//   baton-zoo run [--families DIR] [--sample N/OF] [--only TEXT] [--moves 10] [--table FILE]
//   baton-zoo exec [--moves N] [--checkpoints N] [--interval MS] [--policy close|reconnect] -- COMMAND…
//
// Each case lives one life: a capture made to fail half-way, after which it checks itself;
// checkpoints beside it, its state changing in between; then moves, each followed by a check.
// A case that is to be refused must be refused by name, by the inspection and by the capture,
// and check itself afterwards. `--table` writes what happened between the marks in FILE.
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <net/if.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <thread>

#include "base/fd.h"
#include "tests/zoo/life.h"

namespace baton::zoo {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

struct Case {
  std::string family, name, resource, refused;
};

constexpr const char* kLost = "lost";   // tests/tracees/zoo/zoo.h

// What happened to a case; empty: not tried. "ok", or what went wrong.
struct Outcome {
  std::string skipped, refusal, failed_capture, changing, once, many;
  bool good() const {
    for (const auto* part : {&refusal, &failed_capture, &changing, &once, &many}) {
      if (!part->empty() && *part != "ok") return false;
    }
    return true;
  }
  std::string trouble() const {
    for (const auto* part : {&refusal, &failed_capture, &changing, &once, &many}) {
      if (!part->empty() && *part != "ok") return *part;
    }
    return {};
  }
};

// Passed on the way through a capture (base/fault_point.h), each in turn.
constexpr const char* kFaults[] = {"capture.begin", "freeze.asked", "capture.frozen", "capture.copied", "capture.state_read",
                                   "inject.slot_filled", "inject.done", "inject.mask_back"};

class Zookeeper {
 public:
  Zookeeper(int moves, fs::path fault_file) : moves_(moves), fault_file_(std::move(fault_file)) {}

  Outcome run(const Case& animal, const fs::path& program, std::size_t number) {
    Outcome out;
    Life life(animal.name);
    pb::WorkloadSpec spec;
    spec.set_tcp(pb::TCP_CLOSE);
    auto started = life.start({program, animal.name}, spec);
    if (!started) return said(out, out.once, started.error().message());
    if (!life.said("ready")) {
      std::string log = life.log();
      auto at = log.find("SKIPPED: ");
      if (at != std::string::npos) out.skipped = log.substr(at + 9, log.find('\n', at) - at - 9);
      else out.once = "it did not get ready: " + log;
      return out;
    }
    if (animal.refused == kLost) {
      out.refusal = lost(life);
      return out;
    }
    if (!animal.refused.empty()) {
      out.refusal = refused(life, animal.refused);
      return out;
    }
    out.failed_capture = fail(life, kFaults[number % std::size(kFaults)]);
    out.changing = change(life);
    if (!out.good()) return out;
    out.once = move(life);
    if (!out.good()) return out;
    for (int i = 1; i < moves_ && out.good(); ++i) out.many = move(life);
    return out;
  }

 private:
  // A parent in vfork cannot stop: the next attempt finds it out of it.
  template <typename Attempt>
  static auto patiently(const Attempt& attempt) {
    auto outcome = attempt();
    for (int i = 0; i < 20 && !outcome && outcome.error().code == Code::kTimedOut; ++i) {
      std::this_thread::sleep_for(5ms);
      outcome = attempt();
    }
    return outcome;
  }

  static Outcome said(Outcome& out, std::string& where, std::string what) {
    where = std::move(what);
    return out;
  }

  static std::string check(Life& life, const char* when) {
    std::string line = life.ask(SIGUSR1);
    if (line == "ok") return "ok";
    return std::string(when) + ": " + (line.empty() ? "no answer" + std::string(life.alive() ? "" : ", it has ended") : line);
  }

  std::string refused(Life& life, const std::string& wanted) {
    auto inspection = life.inspect();
    if (!inspection) return "inspect: " + inspection.error().message();
    bool named = false;
    for (const auto& v : inspection->verdicts) {
      named = named || (v.verdict() == "refused" && (v.detail() + v.kind()).find(wanted) != std::string::npos);
    }
    if (!named || inspection->acceptable) return "the inspection does not refuse it by name";
    auto captured = life.checkpoint();
    if (captured) return "it was captured, but was to be refused: " + wanted;
    if (captured.error().message().find(wanted) == std::string::npos) return "refused otherwise: " + captured.error().message();
    return check(life, "after the refusal");
  }

  // A gap that is known: closed ones must not stay marked.
  std::string lost(Life& life) {
    if (change(life) != "ok") return "ok";
    return move(life) != "ok" ? "ok" : "it is not lost any more: take the mark (kLost) away";
  }

  std::string fail(Life& life, const std::string& point) {
    auto attached = patiently([&] { return life.attach(); });
    if (!attached) return "attach: " + attached.error().message();
    std::ofstream(fault_file_) << point << "=error\n";
    auto captured = life.checkpoint();
    std::ofstream(fault_file_, std::ios::trunc).flush();
    if (captured) return "the capture did not fail at " + point;
    return check(life, ("after a capture that failed at " + point).c_str());
  }

  std::string change(Life& life) {
    for (int i = 0; i < 3; ++i) {
      auto captured = patiently([&] { return life.checkpoint(); });
      if (!captured) return "checkpoint: " + captured.error().message();
      if (auto answer = check(life, "after a checkpoint"); answer != "ok") return answer;
      if (auto answer = life.ask(SIGUSR2); answer != "changed") return "change: " + answer;
    }
    return "ok";
  }

  std::string move(Life& life) {
    auto moved = patiently([&] { return life.move(); });
    if (!moved) return "move: " + moved.error().message();
    if (auto answer = check(life, "after the move"); answer != "ok") return answer;
    if (auto answer = life.ask(SIGUSR2); answer != "changed") return "change after the move: " + answer;
    return "ok";
  }

  int moves_;
  fs::path fault_file_;
};

std::vector<Case> list(const fs::path& folder) {
  std::vector<Case> cases;
  std::vector<fs::path> programs;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename().string().rfind("zoo_", 0) == 0) programs.push_back(entry.path());
  }
  std::sort(programs.begin(), programs.end());
  for (const auto& program : programs) {
    FILE* in = ::popen((program.string() + " --list").c_str(), "r");
    char line[512];
    while (in != nullptr && std::fgets(line, sizeof line, in) != nullptr) {
      std::istringstream words(line);
      Case c;
      c.family = program.filename();
      std::getline(words, c.name, '\t');
      std::getline(words, c.resource, '\t');
      std::getline(words, c.refused);
      cases.push_back(std::move(c));
    }
    if (in != nullptr) ::pclose(in);
  }
  return cases;
}

bool private_namespaces() {
  if (::unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0) return false;
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  Fd fd = Fd::adopt(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  return ::ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

constexpr const char* kBegin = "<!-- zoo: begin (written by baton-zoo run --table) -->";
constexpr const char* kEnd = "<!-- zoo: end -->";

void write_table(const std::string& path, const std::vector<std::pair<Case, Outcome>>& results) {
  std::ifstream in(path);
  std::stringstream all;
  all << in.rdbuf();
  std::string text = all.str();
  auto begin = text.find(kBegin), end = text.find(kEnd);
  if (begin == std::string::npos || end == std::string::npos) {
    std::cerr << "baton-zoo: " << path << " has no marks for the table\n";
    return;
  }
  std::vector<std::pair<Case, Outcome>> sorted = results;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first.resource < b.first.resource; });
  std::ostringstream table;
  table << kBegin << "\n| resource | case | moved once | ten times | changing | after a failed capture |\n| --- | --- | --- | --- | --- | --- |\n";
  auto cell = [](const std::string& part) { return part.empty() ? std::string("–") : part == "ok" ? part : "**fails**"; };
  for (const auto& [animal, out] : sorted) {
    table << "| " << animal.resource << " | " << animal.name << " | ";
    if (!out.skipped.empty()) table << "skipped here: " << out.skipped << " | – | – | – |\n";
    else if (animal.refused == kLost) table << "**not taken along yet** | – | – | – |\n";
    else if (!animal.refused.empty()) table << (out.good() ? "refused" : "**not refused**") << " | – | – | " << cell(out.refusal) << " |\n";
    else table << cell(out.once) << " | " << cell(out.many) << " | " << cell(out.changing) << " | " << cell(out.failed_capture) << " |\n";
  }
  std::ofstream(path) << text.substr(0, begin) << table.str() << text.substr(end);
}

struct Options {
  fs::path families;
  unsigned part = 0, of = 1;
  std::string only, table;
  int moves = 10, checkpoints = 3, interval_ms = 50;
  pb::ExternalUnix policy = pb::EXTERNAL_UNIX_REFUSE;
  std::vector<std::string> command;
};

int run(const Options& options, const fs::path& fault_file) {
  auto cases = list(options.families);
  Zookeeper keeper(options.moves, fault_file);
  std::vector<std::pair<Case, Outcome>> results;
  int failed = 0, skipped = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& c = cases[i];
    if (i % options.of != options.part || c.name.find(options.only) == std::string::npos) continue;
    auto begun = std::chrono::steady_clock::now();
    Outcome out = keeper.run(c, options.families / c.family, i);
    auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begun).count();
    if (!out.skipped.empty()) {
      ++skipped;
      std::cout << "SKIPPED: " << c.family << " " << c.name << ": " << out.skipped << std::endl;
    } else {
      std::cout << (out.good() ? "ok      " : "FAILED  ") << c.family << " " << c.name << " (" << ms << " ms)" << (out.good() ? "" : ": " + out.trouble()) << std::endl;
      failed += out.good() ? 0 : 1;
    }
    results.emplace_back(c, std::move(out));
  }
  std::cout << results.size() << " cases, " << failed << " failed, " << skipped << " skipped; again: baton-zoo run --moves " << options.moves << " --only NAME\n";
  if (!options.table.empty()) write_table(options.table, results);
  return failed != 0 || results.empty() ? 1 : 0;
}

// For a person, and for whole programs: moves COMMAND again and again while somebody uses it.
int exec(const Options& options) {
  Life life("exec");
  pb::WorkloadSpec spec;
  spec.set_tcp(pb::TCP_CLOSE);
  spec.set_external_unix(options.policy);
  for (char** e = environ; *e != nullptr; ++e) spec.add_env(*e);
  if (auto started = life.start(options.command, spec); !started) {
    std::cerr << started.error().message() << "\n";
    return 1;
  }
  std::cout << "started " << life.root() << std::endl;
  std::string line;
  auto await_go = [&] { return static_cast<bool>(std::getline(std::cin, line)) && line != "end"; };   // one line, one move
  for (int i = 0; i < options.moves && await_go(); ++i) {
    for (int n = 0; n < options.checkpoints; ++n) {
      auto captured = life.checkpoint();
      for (int tries = 0; !captured && captured.error().code == Code::kTimedOut && tries < 20; ++tries) captured = life.checkpoint();
      if (!captured) {
        std::cout << "checkpoint failed: " << captured.error().message() << std::endl << life.log();
        return 1;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(options.interval_ms));
    }
    auto moved = life.move();
    for (int tries = 0; !moved && moved.error().code == Code::kTimedOut && tries < 20; ++tries) moved = life.move();   // a parent in vfork
    if (!moved) {
      std::cout << "move failed: " << moved.error().message() << std::endl << life.log();
      return 1;
    }
    std::cout << "moved " << life.root() << " longest pause " << life.longest_pause().count() / 1000 << " us" << std::endl;
  }
  while (await_go()) {}
  bool alive = life.alive();
  std::cout << (alive ? "alive" : "ended") << std::endl;
  if (!alive || std::getenv("ZOO_LOG") != nullptr) std::cout << life.log();
  return alive ? 0 : 1;
}

int main_of(int argc, char** argv) {
  Options options;
  options.families = fs::read_symlink("/proc/self/exe").parent_path() / "tracees";
  std::string verb = argc > 1 ? argv[1] : "";
  for (int i = 2; i < argc; ++i) {
    std::string word = argv[i];
    auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    if (word == "--families") options.families = value();
    else if (word == "--only") options.only = value();
    else if (word == "--table") options.table = value();
    else if (word == "--moves") options.moves = std::atoi(value().c_str());
    else if (word == "--checkpoints") options.checkpoints = std::atoi(value().c_str());
    else if (word == "--interval") options.interval_ms = std::atoi(value().c_str());
    else if (word == "--policy") options.policy = value() == "close" ? pb::EXTERNAL_UNIX_CLOSE : pb::EXTERNAL_UNIX_RECONNECT;
    else if (word == "--sample") std::sscanf(value().c_str(), "%u/%u", &options.part, &options.of);
    else if (word == "--") {
      options.command.assign(argv + i + 1, argv + argc);
      break;
    } else {
      verb.clear();
    }
  }
  if ((verb != "run" && verb != "exec") || options.of == 0 || (verb == "exec" && options.command.empty())) {
    std::cerr << "usage: baton-zoo run [--only TEXT] [--sample N/OF] [--moves N] [--table FILE] | exec [--moves N] -- COMMAND\n";
    return 2;
  }
  if (::geteuid() != 0 || !Cgroup::mount_point()) {
    std::cout << "SKIPPED: needs root and a cgroup v2 hierarchy\n";
    return 77;
  }
  std::string fault_file = "/tmp/zoo-faults-" + std::to_string(::getpid());
  ::setenv("BATON_FAULT_FILE", fault_file.c_str(), 1);
  if (verb == "run" && !private_namespaces()) {
    std::cout << "SKIPPED: needs namespaces of its own\n";
    return 77;
  }
  int result = verb == "run" ? run(options, fault_file) : exec(options);
  ::unlink(fault_file.c_str());
  return result;
}

}  // namespace
}  // namespace baton::zoo

int main(int argc, char** argv) { return baton::zoo::main_of(argc, argv); }
