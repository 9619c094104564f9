// The verbs of `baton`. Each function adds its verbs to the parser; a verb's callback
// does the work and leaves the exit code in Context.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "coordinator/cli/client.h"
#include "coordinator/cli/output.h"

namespace baton::cli {

struct Context {
  std::string coordinator;
  std::string tls_dir;
  std::string output = "table";
  std::vector<std::string> command;  // what stood after "--"
  bool has_command = false;
  int exit = kExitDone;

  bool json() const { return output == "json"; }
  bool wide() const { return output == "wide"; }
  bool names() const { return output == "name"; }
  Result<std::unique_ptr<Client>> connect() const {
    return Client::connect(coordinator, tls_dir);
  }
  // Runs `body(client)`, a Result<int> (the exit code), and reports its error.
  template <typename Body>
  void with_client(Body&& body) {
    auto client = connect();
    if (!client) {
      exit = print_error(client.error());
      return;
    }
    Result<int> code = body(**client);
    exit = code ? *code : print_error(code.error());
  }
};

// A verb that talks to the coordinator: with --coordinator, --tls-dir and --output; a listing
// of named things also knows --output wide and name.
CLI::App* add_verb(CLI::App& parent, Context& context, const std::string& name,
                   const std::string& help, bool listing = false);

void add_cluster_commands(CLI::App& app, Context& context);   // node, events, version, engines to come
void add_workload_commands(CLI::App& app, Context& context);  // run … logs, checkpoint(s)
void add_movement_commands(CLI::App& app, Context& context);  // migrate, failover, restore
void add_operator_commands(CLI::App& app, Context& context);  // dashboard, audit
void add_live_commands(CLI::App& app, Context& context);      // wait, top
void add_store_commands(CLI::App& app, Context& context);     // store, tag, pin, diff, analyze, export
void add_pki_commands(CLI::App& app, Context& context);
void add_completion_command(CLI::App& app, Context& context);

// The script for `shell`; empty: unknown shell.
std::string completion_script(const CLI::App& app, const std::string& shell);

}  // namespace baton::cli
