// baton: what a person types. Parses, asks the coordinator, prints. docs/cli.md says what
// is stable: flags, JSON fields, exit codes.
#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "base/log.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/names.h"

namespace {

// What the first word that nobody knows was probably meant to be.
std::string hint_for(const CLI::App& app, const std::vector<std::string>& typed) {
  const CLI::App* at = &app;
  const auto all = [](const CLI::App*) { return true; };
  for (const std::string& word : typed) {
    std::vector<std::string> known;
    const CLI::App* next = nullptr;
    if (word.starts_with("--")) {
      for (const CLI::Option* option : at->get_options([](const CLI::Option*) { return true; })) {
        for (const auto& name : option->get_lnames()) known.push_back("--" + name);
      }
      const std::string flag = word.substr(0, word.find('='));
      if (std::find(known.begin(), known.end(), flag) != known.end()) continue;
      const std::string hint = baton::cli::did_you_mean(flag, known);
      if (!hint.empty()) return hint;
      continue;
    }
    for (const CLI::App* verb : at->get_subcommands(all)) {
      if (verb->get_name() == word) next = verb;
      if (!verb->get_name().starts_with("__")) known.push_back(verb->get_name());
    }
    if (next) {
      at = next;
    } else if (!known.empty()) {
      const std::string hint = baton::cli::did_you_mean(word, known);
      return hint.empty() ? "See baton --help." : hint;
    }
  }
  return "See baton " + (at == &app ? "" : at->get_name() + " ") + "--help.";
}

}  // namespace

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
  std::vector<std::string> typed;
  app.require_subcommand(1);
  add_workload_commands(app, context);
  add_movement_commands(app, context);
  add_cluster_commands(app, context);
  add_operator_commands(app, context);
  add_live_commands(app, context);
  add_store_commands(app, context);
  add_pki_commands(app, context);
  add_completion_command(app, context);
  try {
    typed = words;
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // help
    return print_error(baton::make_error(baton::Code::kInvalid, "read the command line",
                                         error.what(), hint_for(app, typed)));
  } catch (const std::exception& error) {
    return print_error(baton::make_error(baton::Code::kFailed, "run", error.what()));
  }
  return context.exit;
}
