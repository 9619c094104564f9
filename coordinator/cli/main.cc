// baton: what a person types. Parses, asks the coordinator, prints. docs/cli.md says what
// is stable: flags, JSON fields, exit codes.
#include <csignal>

#include "base/log.h"
#include "coordinator/cli/commands.h"

int main(int argc, char** argv) {
  using namespace baton::cli;
  baton::init_logging("baton");
  spdlog::set_level(spdlog::level::err);
  ::signal(SIGPIPE, SIG_DFL);  // a closed pipe ends us quietly, as it does other tools
  ::setenv("GRPC_VERBOSITY", "NONE", 0);

  // Everything after the first "--" is the workload's command, never looked at here.
  Context context;
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    if (!context.has_command && std::string_view(argv[i]) == "--") {
      context.has_command = true;
    } else {
      (context.has_command ? context.command : words).emplace_back(argv[i]);
    }
  }
  CLI::App app("Keeps ready copies of running programs on other machines, and hands them over.",
               "baton");
  app.require_subcommand(1);
  add_workload_commands(app, context);
  add_movement_commands(app, context);
  add_cluster_commands(app, context);
  add_pki_commands(app, context);
  add_completion_command(app, context);
  try {
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // help
    return print_error(baton::make_error(baton::Code::kInvalid, "read the command line",
                                         error.what(), "See baton --help."));
  } catch (const std::exception& error) {
    return print_error(baton::make_error(baton::Code::kFailed, "run", error.what()));
  }
  return context.exit;
}
