// node, failovers, events, version.
#include "coordinator/cli/commands.h"
#include "coordinator/cli/render.h"
#include "coordinator/cli/units.h"
#include "coordinator/cli/watch.h"

namespace baton::cli {

CLI::App* add_verb(CLI::App& parent, Context& context, const std::string& name,
                   const std::string& help, bool listing) {
  CLI::App* verb = parent.add_subcommand(name, help);
  verb->add_option("--coordinator", context.coordinator, "IP:PORT of the coordinator")
      ->envname("BATON_COORDINATOR");
  verb->add_option("--tls-dir", context.tls_dir, "folder with ca.crt, tls.crt and tls.key")
      ->envname("BATON_TLS_DIR");
  const std::vector<std::string> formats =
      listing ? std::vector<std::string>{"table", "wide", "json", "name"}
              : std::vector<std::string>{"table", "json"};
  verb->add_option("-o,--output", context.output, listing ? "table, wide, json or name" : "table or json")
      ->check(CLI::IsMember(formats));
  return verb;
}

namespace {

void add_drain(CLI::App& node, Context& context) {
  struct Flags {
    std::string node, timeout;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(node, context, "drain", "move everything off a node, one workload after the other");
  verb->add_option("NODE", flags->node, "the node")->required();
  verb->add_option("--timeout", flags->timeout, "give up waiting after this; the drain goes on")->type_name("DURATION");
  verb->callback([&context, flags] {
    context.with_client([&](Client& client) -> Result<int> {
      std::chrono::nanoseconds timeout{};
      if (!flags->timeout.empty()) {
        BATON_ASSIGN(const auto us, parse_duration_us(flags->timeout));
        timeout = std::chrono::microseconds(us);
      }
      BATON_ASSIGN(const std::string whole, node_named(client, flags->node));
      Json moves = Json::array();
      pb::DrainProgress last;
      auto done = client.drain(whole, [&](const pb::DrainProgress& step) {
        const std::string place = std::to_string(step.done()) + "/" + std::to_string(step.total());
        if (!step.error().empty()) {
          note(place + "  " + step.workload() + " stays: " + step.error());
          moves.push_back({{"workload", step.workload()}, {"to", step.to()}, {"error", step.error()}});
        } else if (!step.workload().empty() && step.done() > last.done()) {
          note(place + "  " + step.workload() + " is on " + step.to());
          moves.push_back({{"workload", step.workload()}, {"to", step.to()}, {"error", ""}});
        } else if (!step.to().empty()) {
          note(place + "  " + step.workload() + " moves to " + step.to());
        }
        last = step;
        return true;
      }, timeout);
      if (context.json()) print_json({{"node", whole}, {"moved", last.done()}, {"total", last.total()}, {"workloads", moves}});
      BATON_TRY(std::move(done));
      if (!context.json()) print(whole + " is drained, " + std::to_string(last.done()) + " workloads moved\n");
      return kExitDone;
    });
  });
}

}  // namespace

void add_cluster_commands(CLI::App& app, Context& context) {
  CLI::App* node = app.add_subcommand("node", "nodes of the cluster");
  node->require_subcommand(1);
  {
    CLI::App* verb = add_verb(*node, context, "ls", "list the nodes", true);
    auto watch = std::make_shared<bool>(false);
    verb->add_flag("-w,--watch", *watch, "go on, until Ctrl-C");
    verb->callback([&context, watch] {
      list_or_watch(context, *watch, [&context, watch](Client& client) -> Result<std::string> {
        BATON_ASSIGN(auto nodes, client.list_nodes());
        if (context.json()) {
          Json list = Json::array();
          for (const auto& one : nodes.nodes()) list.push_back(node_json(one));
          return json_text(list, *watch);
        }
        if (!context.names()) return nodes_table(nodes, context.wide());
        std::string out;
        for (const auto& one : nodes.nodes()) out += printable(one.name()) + "\n";
        return out;
      });
    });
  }
  {
    CLI::App* verb = add_verb(*node, context, "show", "what a node is and can do");
    auto name = std::make_shared<std::string>();
    verb->add_option("NODE", *name, "the node")->required();
    verb->callback([&context, name] {
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(const std::string whole, node_named(client, *name));
        BATON_ASSIGN(auto info, client.show_node(whole));
        if (context.json()) {
          print_json(node_json(info));
        } else {
          print(node_text(info));
        }
        return kExitDone;
      });
    });
  }
  add_drain(*node, context);
  {
    CLI::App* verb = add_verb(*node, context, "resume", "let a drained node take workloads again");
    auto name = std::make_shared<std::string>();
    verb->add_option("NODE", *name, "the node")->required();
    verb->callback([&context, name] {
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(const std::string whole, node_named(client, *name));
        BATON_TRY(client.resume_node(whole));
        if (context.json()) {
          print_json({{"node", whole}, {"state", "ready"}});
        } else {
          print(whole + " takes workloads again\n");
        }
        return kExitDone;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "failovers", "what happened in each failover");
    auto name = std::make_shared<std::string>();
    verb->add_option("NAME", *name, "only of this workload");
    verb->callback([&context, name] {
      context.with_client([&](Client& client) -> Result<int> {
        if (!name->empty()) {
          BATON_ASSIGN(*name, workload_named(client, *name));
        }
        BATON_ASSIGN(auto reports, client.failovers(*name));
        if (context.json()) {
          Json list = Json::array();
          for (const auto& one : reports.failovers()) list.push_back(failover_json(one));
          print_json(list);
        } else {
          print(failovers_table(reports));
        }
        return kExitDone;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "events", "what happened");
    auto follow = std::make_shared<bool>(false);
    auto request = std::make_shared<pb::EventsRequest>();
    auto after = std::make_shared<std::uint64_t>(0);
    auto workload = std::make_shared<std::string>();
    verb->add_flag("-f,--follow", *follow, "go on with what happens from now on");
    verb->add_option("--after", *after, "only events with a larger id");
    verb->add_option("--workload", *workload, "only of this workload");
    verb->callback([&context, follow, after, workload] {
      context.with_client([&](Client& client) -> Result<int> {
        pb::EventsRequest ask;
        ask.set_follow(*follow);
        ask.set_after_id(*after);
        ask.set_workload(*workload);
        Json list = Json::array();
        BATON_TRY(client.events(ask, [&](const pb::Event& event) {
          if (!context.json()) {
            print(event_line(event));
          } else if (*follow) {
            print(event_json(event).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
          } else {
            list.push_back(event_json(event));
          }
          return true;
        }));
        if (context.json() && !*follow) print_json(list);
        return kExitDone;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "version", "this program's version, and the coordinator's");
    verb->callback([&context] {
      Json json = {{"version", BATON_VERSION}};
      std::string text = std::string("baton ") + BATON_VERSION + "\n";
      if (!context.coordinator.empty()) {
        auto client = context.connect();
        if (client) {
          const auto& version = (*client)->version();
          json["coordinator"] = {{"version", version.version()},
                                 {"commit", version.commit()},
                                 {"cluster", version.cluster()}};
          text += "coordinator " + version.version() + ", cluster " + version.cluster() + "\n";
        } else {
          context.exit = print_error(client.error());
        }
      }
      if (context.json()) {
        print_json(json);
      } else {
        print(text);
      }
    });
  }
}

}  // namespace baton::cli
