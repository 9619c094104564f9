// baton-coordinator: reads its settings, opens its state, serves until SIGTERM or SIGINT.
#include <csignal>
#include <cstdio>
#include <set>

#include <CLI/CLI.hpp>

#include "base/fault_point.h"
#include "base/log.h"
#include "base/service_notify.h"
#include "coordinator/agent_directory.h"
#include "coordinator/audit.h"
#include "coordinator/coordinator.h"
#include "coordinator/http/assets.h"
#include "coordinator/http/server.h"
#include "coordinator/service.h"
#include "coordinator/voter.h"
#include "transport/pki.h"

namespace {

constexpr int kDefaultWebPort = 7443;
// A coordinator that has not read its own state for so long hangs: its service is restarted.
constexpr std::chrono::seconds kWatchdogAge{15};

int fail(const baton::Error& error) {
  spdlog::error("{}", error.message());
  return 1;
}

// SIGHUP: new connections of people get the renewed certificate. What cannot be used is refused
// as a whole, and the old one stays.
void reload(const std::string& tls_dir, const baton::transport::Identity& own,
            baton::coordinator::http::WebServer* web) {
  auto fresh = baton::transport::load_tls(tls_dir, own.cluster);
  baton::Result<void> done;
  if (!fresh) {
    done = fresh.error();
  } else if (fresh->identity != own) {
    done = baton::make_error(baton::Code::kNotAllowed, "reload",
                             tls_dir + " is now of " + fresh->identity.to_string());
  } else if (web) {
    done = web->reload(*fresh);
  }
  if (done) {
    spdlog::info("certificate reloaded, valid until {}", baton::transport::format_time(fresh->not_after));
  } else {
    spdlog::error("the old certificate stays: {}", done.error().message());
  }
}

// The host part of IP:PORT.
std::string host_of(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  return host;
}

std::string host_port(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

// What a browser may call us: what our certificate says, and where we listen.
std::set<std::string> our_hosts(const baton::transport::TlsFiles& tls, const std::string& web,
                                const std::vector<std::string>& more) {
  std::set<std::string> out(more.begin(), more.end());
  out.insert(host_of(web));
  if (auto info = baton::transport::inspect_pem(tls.cert_pem)) {
    out.insert(info->addresses.begin(), info->addresses.end());
  }
  return out;
}

// How a person reaches the dashboard: never by 0.0.0.0.
std::string web_url(const baton::transport::TlsFiles& tls, const std::string& web, int port) {
  std::string host = host_of(web);
  if (host == "0.0.0.0" || host == "::") {
    auto info = baton::transport::inspect_pem(tls.cert_pem);
    host = info && !info->addresses.empty() ? info->addresses.front() : "127.0.0.1";
  }
  return "https://" + host_port(host, port);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace baton;
  std::string listen = "0.0.0.0:7400", tls_dir = "/etc/baton/tls",
              data_dir = "/var/lib/baton-coordinator";
  std::string web;
  std::vector<std::string> web_names;
  CLI::App app("The coordinator of a Baton cluster.", "baton-coordinator");
  app.add_option("--listen", listen, "IP:PORT to serve on")->capture_default_str();
  app.add_option("--tls-dir", tls_dir, "folder with ca.crt, tls.crt, tls.key")
      ->capture_default_str();
  app.add_option("--data-dir", data_dir, "folder for the state")->capture_default_str();
  app.add_option("--web", web, "IP:PORT of the dashboard, API and metrics over HTTPS, or off; "
                               "default: the address of --listen, port 7443");
  app.add_option("--web-name", web_names, "a further name by which browsers reach it (a proxy's)");
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
  sigaddset(&signals, SIGHUP);
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
  auto voter = coordinator::Voter::start(listen, data_dir, *tls, core);
  // Nodes can do without its vote; workloads matter more.
  if (!voter) spdlog::warn("this coordinator does not vote: {}", voter.error().message());
  auto audit = coordinator::AuditLog::open(data_dir, clock);
  if (!audit) return fail(audit.error());
  coordinator::Logins logins(clock);
  coordinator::Movements movements(clock);
  coordinator::Observatory observatory(core, movements, clock);
  coordinator::http::Metrics metrics(core.version());
  const bool asked = !web.empty();
  if (!asked) web = host_port(host_of(listen), kDefaultWebPort);
  coordinator::http::Routes routes({core, observatory, movements, logins, **audit, metrics,
                                    our_hosts(*tls, web, web_names)});
  std::unique_ptr<coordinator::http::WebServer> web_server;
  coordinator::OperatorSide side{audit->get(), &movements, &logins, ""};
  if (web != "off") {
    auto started = coordinator::http::WebServer::start(web, *tls, routes, metrics, movements);
    if (!started && asked) return fail(started.error());
    if (started) {
      web_server = std::move(*started);
    } else {  // nobody asked for this port; workloads matter more
      spdlog::warn("no dashboard: {}", started.error().message());
    }
  }
  if (web_server) {
    side.dashboard_url = web_url(*tls, web, web_server->port());
    spdlog::info("dashboard{} on {}", coordinator::http::has_dashboard() ? "" : " (API and metrics only)",
                 side.dashboard_url);
  }
  auto server = coordinator::CoordinatorServer::start(listen, *tls, core, side);
  if (!server) return fail(server.error());
  observatory.start([&](std::shared_ptr<const coordinator::Picture> picture) {
    if (web_server) web_server->publish(std::move(picture));
  });
  spdlog::info("serving cluster {} on {} (port {})", tls->identity.cluster, listen,
               (*server)->port());
  std::printf("listening on port %d\n", (*server)->port());
  std::fflush(stdout);
  const std::string serving = "serving cluster " + tls->identity.cluster + " on " + listen;
  ServiceNotify notify([&] { return observatory.age() < kWatchdogAge; });
  notify.ready(serving);
  int signal = SIGHUP;
  while (signal == SIGHUP) {
    sigwait(&signals, &signal);
    if (signal != SIGHUP) break;
    notify.reloading();
    reload(tls_dir, tls->identity, web_server.get());
    notify.ready(serving);
  }
  spdlog::info("stopping on signal {}; a second one ends it at once", signal);
  notify.stopping();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  core.stop();
  observatory.stop();
  (*server)->shutdown();
  movements.finish();
  if (web_server) web_server->stop();
  return 0;
}
