// baton-coordinator: reads its settings, opens its state, serves until SIGTERM or SIGINT.
#include <csignal>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "base/fault_point.h"
#include "base/log.h"
#include "coordinator/agent_directory.h"
#include "coordinator/coordinator.h"
#include "coordinator/service.h"

namespace {

int fail(const baton::Error& error) {
  spdlog::error("{}", error.message());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace baton;
  std::string listen = "0.0.0.0:7400", tls_dir = "/etc/baton/tls",
              data_dir = "/var/lib/baton-coordinator";
  CLI::App app("The coordinator of a Baton cluster.", "baton-coordinator");
  app.add_option("--listen", listen, "IP:PORT to serve on")->capture_default_str();
  app.add_option("--tls-dir", tls_dir, "folder with ca.crt, tls.crt, tls.key")
      ->capture_default_str();
  app.add_option("--data-dir", data_dir, "folder for the state")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  init_logging("baton-coordinator");
  if (fault_points_armed()) spdlog::warn("fault points are armed");
  // Before any thread: all of them leave these signals to the wait below.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  auto tls = transport::load_tls(tls_dir);
  if (!tls) return fail(tls.error());
  if (tls->identity.role != transport::Role::kCoordinator) {
    return fail(make_error(Code::kNotAllowed, "start",
                           "the certificate in " + tls_dir + " is of " + tls->identity.to_string(),
                           "Issue one: baton pki issue --role coordinator."));
  }
  auto store = coordinator::open_sqlite_store(data_dir);
  if (!store) return fail(store.error());
  SystemClock clock;
  auto registry = coordinator::make_sole_decider(**store, clock);
  auto agents = coordinator::make_agent_directory(*tls);
  coordinator::Coordinator core(**store, *registry, *agents, clock, tls->identity.cluster);
  if (auto started = core.start(); !started) return fail(started.error());
  auto server = coordinator::CoordinatorServer::start(listen, *tls, core);
  if (!server) return fail(server.error());
  spdlog::info("serving cluster {} on {} (port {})", tls->identity.cluster, listen,
               (*server)->port());
  std::printf("listening on port %d\n", (*server)->port());
  std::fflush(stdout);
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("stopping on signal {}", signal);
  core.stop();
  (*server)->shutdown();
  return 0;
}
