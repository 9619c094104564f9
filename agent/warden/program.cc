#include "agent/warden/program.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <CLI/CLI.hpp>

#include "agent/warden/lease_table.h"
#include "agent/warden/node_facts.h"
#include "agent/warden/server.h"
#include "base/fault_point.h"
#include "base/log.h"

namespace baton::warden {
namespace {

Server* running = nullptr;
pid_t own_pid = 0;

extern "C" void on_signal(int) {
  // A child between fork and exec has this handler and shares the server's descriptors.
  if (running && ::getpid() == own_pid) running->stop();
}

}  // namespace

int warden_main(int argc, char** argv, const std::string& backend, Launcher launch) {
  init_logging("baton-warden");
  // --guard-leases FILE --guarded PID --guard-wake FD: how a warden starts its guard.
  if (argc == 7 && std::string_view(argv[1]) == "--guard-leases") {
    return guard_leases(argv[2], static_cast<pid_t>(std::atol(argv[4])), std::atoi(argv[6]));
  }
  ServerOptions options;
  options.backend = backend;
  options.launch = std::move(launch);
  options.guard = true;
  std::int64_t freeze_limit_ms = options.freeze_limit.count();

  CLI::App app("The privileged half of a Baton node: captures and restores programs for its agent.");
  app.add_option("--socket", options.socket_path, "Where to listen for the agent")->required();
  app.add_option("--agent-uid", options.agent_uid, "The user that may connect, besides root")->required();
  app.add_option("--state-dir", options.state_dir, "Where workloads are remembered across restarts")->required();
  app.add_option("--capture-buffer", options.capture_bytes, "Bytes of memory for captured pages")
      ->check(CLI::Range(std::size_t{1} << 20, std::size_t{1} << 40))->transform(CLI::AsSizeValue(false));
  app.add_option("--fill-buffer", options.fill_bytes, "Bytes of memory for pages to restore")
      ->check(CLI::Range(std::size_t{1} << 20, std::size_t{1} << 40))->transform(CLI::AsSizeValue(false));
  app.add_option("--freeze-limit-ms", freeze_limit_ms, "A capture that takes longer is ended, and the program thawed")
      ->check(CLI::Range(10, 600'000));
  app.set_version_flag("--version", kVersion);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  options.freeze_limit = std::chrono::milliseconds(freeze_limit_ms);
  if (fault_points_armed()) spdlog::warn("fault points are armed: this warden may fail on purpose");

  auto server = Server::create(std::move(options));
  if (!server) {
    std::fprintf(stderr, "baton-warden: %s\n", server.error().message().c_str());
    return server.error().code == Code::kInvalid ? 2 : 1;
  }
  // Handlers, not a blocked mask: programs that this one starts inherit the mask.
  running = server->get();
  own_pid = ::getpid();
  struct sigaction action{};
  action.sa_handler = on_signal;
  ::sigaction(SIGTERM, &action, nullptr);
  ::sigaction(SIGINT, &action, nullptr);
  spdlog::info("ready");
  auto served = (*server)->serve();
  running = nullptr;
  if (!served) {
    std::fprintf(stderr, "baton-warden: %s\n", served.error().message().c_str());
    return 1;
  }
  spdlog::info("ending; the workloads run on");
  return 0;
}

}  // namespace baton::warden
