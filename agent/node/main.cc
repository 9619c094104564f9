// baton-agent: the unprivileged half of a node: network, store, replication. Runs until
// SIGTERM or SIGINT; the workloads run on without it, in the warden's care.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>

#include "agent/node/node.h"
#include "agent/node/node_tenure.h"
#include "agent/node/receiver.h"
#include "agent/node/rpc_clients.h"
#include "agent/node/service.h"
#include "agent/node/session.h"
#include "agent/node/spec.h"
#include "agent/node/store_service.h"
#include "agent/node/stream_replica.h"
#include "agent/node/warden_link.h"
#include "base/fault_point.h"
#include "base/log.h"
#include "storage/catalog.h"
#include "transport/page_stream.h"
#include "transport/rpc.h"

namespace baton::node {
namespace {

// Kept free on the store's disk, for the tidying that makes room again when it is full.
constexpr std::uint64_t kStoreReserveBytes = 8u << 20;

struct Arguments {
  std::string name, listen, stream_listen, coordinator, tls_dir, data_dir, warden;
  std::string advertise, stream_advertise, store_key;
  std::vector<std::string> keep;
  std::uint64_t store_budget = 0, memory_store = 0, store_upkeep = 64u << 20;
  std::uint64_t standby_budget = 0;
};

// Half of this machine's memory: the other half is for what runs.
std::uint64_t default_standby_budget() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), page_bytes = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page_bytes > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_bytes) / 2 : 0;
}

int fail(const Error& error) {
  spdlog::error("{}", error.message());
  return error.code == Code::kInvalid ? 2 : 1;
}

// Before the first checkpoint nothing depends on them; afterwards their order does:
// the session and the servers end first, then the workloads' loops, then the warden's link.
int run(const Arguments& arguments) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  auto tls = transport::load_tls(arguments.tls_dir);
  if (!tls) return fail(tls.error());
  if (tls->identity.role != transport::Role::kNode || tls->identity.name != arguments.name) {
    return fail(make_error(Code::kInvalid, "certificate", arguments.tls_dir + " is of " + tls->identity.to_string() +
                                                              ", not of node " + arguments.name));
  }
  SystemClock clock;
  std::error_code ignored;
  std::filesystem::create_directories(arguments.data_dir, ignored);
  storage::StoreOptions store_options;
  store_options.retention.keep_last = kDefaultKeepLast;
  store_options.retention.byte_budget = arguments.store_budget;
  store_options.upkeep_bytes_per_s = arguments.store_upkeep;
  for (const auto& text : arguments.keep) {
    auto step = parse_retention_step(text);
    if (!step) return fail(step.error());
    store_options.retention.steps.push_back(*step);
  }
  std::atomic<Node*> node_ready{nullptr};
  store_options.alarm = [&](const std::string& problem) {
    if (problem.empty()) {
      spdlog::info("store: in order again");
    } else {
      spdlog::error("store: {}", problem);
    }
    if (Node* node = node_ready) node->add_event("store", "", problem.empty() ? "in order again" : problem);
  };
  if (!arguments.store_key.empty()) {
    auto key = storage::Sealer::read_key(arguments.store_key);
    if (!key) return fail(key.error());
    store_options.node_key = std::make_shared<const storage::Sealer>(*key);
    // Keys and pages of programs are in this process: they must not end in a core file.
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_CORE, &none) != 0) return fail(errno_error("setrlimit", "RLIMIT_CORE"));
  }
  const bool in_memory = arguments.memory_store != 0;
  if (in_memory) {
    store_options.retention.byte_budget = arguments.memory_store;
  } else {
    store_options.reserve_bytes = kStoreReserveBytes;
  }
  auto store = in_memory ? storage::Store::open_in_memory(store_options, clock)
                         : storage::Store::open(arguments.data_dir + "/store", store_options, clock);
  if (!store) return fail(store.error());

  auto owners = make_owner_records(arguments.coordinator, *tls);
  WardenLink warden(
      arguments.warden,
      [&](const pb::WardenEvent& event) {
        if (Node* node = node_ready) node->on_warden_event(event);
      },
      [&] {
        if (Node* node = node_ready) node->on_warden_connected();
      });

  NodeTenure::Options voting;
  voting.node = arguments.name;
  pb::PeerAddress own;
  own.set_stream(arguments.stream_listen);
  voting.listen = tenure::tenure_address(own);
  voting.folder = arguments.data_dir + "/tenure";
  voting.coordinator = arguments.coordinator;
  auto registry = make_tenure_registry(arguments.coordinator, *tls);
  auto tenure = NodeTenure::start(voting, *tls, warden, *owners, *registry);
  if (!tenure) return fail(tenure.error());

  Node::Options options;
  options.name = arguments.name;
  options.data_dir = arguments.data_dir;
  options.self.set_node(arguments.name);
  options.self.set_rpc(arguments.advertise.empty() ? arguments.listen : arguments.advertise);
  options.self.set_stream(arguments.stream_advertise.empty() ? arguments.stream_listen : arguments.stream_advertise);
  options.tls = &*tls;
  options.standby_budget_bytes = arguments.standby_budget;
  NodeEnv env;
  env.warden = &warden;
  env.store = store->get();
  env.clock = &clock;
  env.owners = tenure->get();
  env.tenure = tenure->get();
  env.connect_target = [&](const pb::PeerAddress& peer) { return make_target_agent(peer, *tls); };
  env.make_replica = [&](const pb::PeerAddress& peer, const pb::WorkloadSpec& spec,
                         const storage::WorkloadIdentity& identity) {
    return std::unique_ptr<Replica>(std::make_unique<StreamReplica>(
        peer, identity, public_spec(spec), static_cast<std::uint8_t>(durability_of(spec)), *tls));
  };
  Node node(options, std::move(env));
  node_ready = &node;
  warden.start();

  Receiver receiver(**store, [&](const std::string& name) { return node.runs_here(name); }, &node.standbys());
  receiver.on_committed([&](const std::string& name, std::uint64_t incarnation, std::uint64_t seq) {
    (*tenure)->note_tip(name, incarnation, seq, false);
  });
  receiver.on_fence([&](const std::string& name, std::uint64_t incarnation, const std::string& peer) {
    auto known = (*tenure)->known(name);
    if (known && known->record.incarnation() > incarnation && known->record.owner() != peer) return true;
    return (*tenure)->voted_for_another(name, peer);
  });
  auto stream_server = transport::PageStreamServer::start(arguments.stream_listen, *tls, receiver);
  if (!stream_server) return fail(stream_server.error());
  auto service = make_agent_service(node);
  auto tenure_service = make_tenure_service(node);
  transport::RpcServerOptions rpc_options;
  StoreServiceOptions about_store;
  about_store.node = arguments.name;
  about_store.store = store->get();
  about_store.tls = &*tls;
  about_store.budget_bytes = store_options.retention.byte_budget;
  auto store_service = make_store_service(about_store);
  auto rpc_server = transport::RpcServer::start(arguments.listen, *tls, {service.get(), tenure_service.get(), store_service.get()}, rpc_options);
  if (!rpc_server) return fail(rpc_server.error());
  auto session = std::make_unique<Session>(node, arguments.coordinator, *tls);
  spdlog::info("node {} serves at {}, page stream at {}", arguments.name, arguments.listen, arguments.stream_listen);

  int number = 0;
  sigwait(&signals, &number);
  spdlog::info("signal {}: stopping; the workloads run on", number);
  session.reset();
  node.halt();
  (*rpc_server)->shutdown(std::chrono::milliseconds(500));
  (*stream_server)->stop();
  node_ready = nullptr;
  return 0;
}

}  // namespace
}  // namespace baton::node

int main(int argc, char** argv) {
  baton::init_logging("baton-agent");
  baton::node::Arguments arguments;
  CLI::App app("The unprivileged half of a Baton node");
  app.add_option("--name", arguments.name, "This node's name, as in its certificate")->required();
  app.add_option("--listen", arguments.listen, "IP:PORT for the coordinator and other agents")->required();
  app.add_option("--stream-listen", arguments.stream_listen, "IP:PORT for the page stream")->required();
  app.add_option("--advertise", arguments.advertise, "IP:PORT that others reach --listen at, when it differs");
  app.add_option("--stream-advertise", arguments.stream_advertise, "The same for --stream-listen");
  app.add_option("--coordinator", arguments.coordinator, "IP:PORT of the coordinator")->required();
  app.add_option("--tls-dir", arguments.tls_dir, "Folder with ca.crt, tls.crt and tls.key")->required();
  app.add_option("--data-dir", arguments.data_dir, "Folder for the store and this node's state")->required();
  app.add_option("--warden", arguments.warden, "Socket of this node's warden")->required();
  app.add_option("--store-budget", arguments.store_budget, "Bytes the store may use; 0: no limit")
      ->transform(CLI::AsSizeValue(false));
  arguments.standby_budget = baton::node::default_standby_budget();
  app.add_option("--standby-budget", arguments.standby_budget,
                 "Bytes of memory for warm and hot standbys together (default: half of this machine's)")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--memory-store", arguments.memory_store,
                 "Keep checkpoints in this much memory instead of on disk; they end with this program")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--keep", arguments.keep,
                 "EVERY/FOR: besides the newest checkpoints of each workload, one per EVERY as far back as FOR: 1s/1m 1m/1h")
      ->expected(1, static_cast<int>(baton::storage::kMaxRetentionSteps));
  app.add_option("--store-key", arguments.store_key,
                 "File with this node's key (32 bytes or 64 hexadecimal digits, mode 0600): the store is encrypted");
  app.add_option("--store-upkeep", arguments.store_upkeep,
                 "Bytes per second that tidying the store may read and write; 0: no limit")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (baton::fault_points_armed()) spdlog::warn("fault points are armed");
  return baton::node::run(arguments);
}
