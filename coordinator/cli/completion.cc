// completion SHELL: scripts made from the parser itself, so that they never differ from it.
#include "coordinator/cli/commands.h"
#include "coordinator/cli/watch.h"

namespace baton::cli {
namespace {

struct Verb {
  std::string path;  // "node show"
  std::string help;
  std::vector<std::string> words;  // sub-verbs and flags
  std::string names;               // what its argument names: workloads, nodes, or nothing
};

// Flags whose value names a node.
constexpr const char* kNodeFlags = "--to|--node|--standby";

void walk(const CLI::App& app, const std::string& path, std::vector<Verb>& out) {
  Verb verb{path, app.get_description(), {}, {}};
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!sub->get_name().starts_with("__")) verb.words.push_back(sub->get_name());
  }
  for (const CLI::Option* option : app.get_options([](const CLI::Option*) { return true; })) {
    for (const auto& name : option->get_lnames()) verb.words.push_back("--" + name);
    if (!option->get_positional()) continue;
    // A new workload's name is nobody's yet.
    const std::string argument = option->get_name();
    if (argument == "NODE") verb.names = "nodes";
    if (argument.starts_with("NAME") && path != "run" && path != "protect") verb.names = "workloads";
  }
  out.push_back(verb);
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    walk(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), out);
  }
}

std::string bash(const std::vector<Verb>& verbs) {
  std::string out =
      "# bash completion of baton; load with: source <(baton completion bash)\n"
      "_baton() {\n"
      "  local word path=\"\" i words=\"\" names=\"\"\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    word=\"${COMP_WORDS[i]}\"\n"
      "    [ \"$word\" = -- ] && return\n"
      "    case \"$path $word\" in\n";
  for (const auto& verb : verbs) {
    if (!verb.path.empty() && !verb.path.starts_with("__")) {
      const auto space = verb.path.rfind(' ');
      const std::string parent = space == std::string::npos ? "" : verb.path.substr(0, space);
      const std::string last = space == std::string::npos ? verb.path : verb.path.substr(space + 1);
      out += "      \"" + parent + " " + last + "\") path=\"" + verb.path + "\" ;;\n";
    }
  }
  out += "    esac\n  done\n  case \"$path\" in\n";
  for (const auto& verb : verbs) {
    if (verb.path.starts_with("__")) continue;
    out += "    \"" + verb.path + "\") words=\"" + join(verb.words, " ") + "\"" +
           (verb.names.empty() ? "" : "; names=" + verb.names) + " ;;\n";
  }
  out +=
      "  esac\n"
      "  case \"${COMP_WORDS[COMP_CWORD-1]}\" in\n"
      "    " + std::string(kNodeFlags) + ") words=\"\"; names=nodes ;;\n"
      "  esac\n"
      "  # The names that there are now; quietly none when the coordinator does not answer.\n"
      "  case \"${COMP_WORDS[COMP_CWORD]}\" in\n"
      "    -*) ;;\n"
      "    *) [ -n \"$names\" ] && words=\"$words $(BATON_CONNECT_TIMEOUT=1s baton __names $names 2>/dev/null)\" ;;\n"
      "  esac\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
      "}\n"
      "complete -o default -F _baton baton\n";
  return out;
}

std::string fish(const std::vector<Verb>& verbs) {
  std::string out = "# fish completion of baton; load with: baton completion fish | source\n";
  auto quoted = [](std::string text) {
    for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) {
      text.insert(at, "\\");
    }
    return "'" + text + "'";
  };
  for (const auto& verb : verbs) {
    std::string condition = "__fish_use_subcommand";
    if (!verb.path.empty()) {
      condition.clear();
      std::string rest = verb.path;
      for (std::size_t at; !rest.empty(); rest = at == std::string::npos ? "" : rest.substr(at + 1)) {
        at = rest.find(' ');
        condition += std::string(condition.empty() ? "" : "; and ") +
                     "__fish_seen_subcommand_from " + rest.substr(0, at);
      }
    }
    if (!verb.names.empty()) {
      out += "complete -c baton -n " + quoted(condition) + " -f -a '(baton __names " + verb.names + " 2>/dev/null)'\n";
    }
    for (const auto& word : verb.words) {
      if (word.starts_with("__")) continue;
      out += "complete -c baton -n " + quoted(condition);
      out += word.starts_with("--") ? " -l " + word.substr(2) : " -f -a " + word;
      out += "\n";
    }
  }
  return out;
}

}  // namespace

std::string completion_script(const CLI::App& app, const std::string& shell) {
  std::vector<Verb> verbs;
  walk(app, "", verbs);
  if (shell == "bash") return bash(verbs);
  if (shell == "zsh") {
    return "#compdef baton\n"
           "# zsh completion of baton; load with: source <(baton completion zsh)\n"
           "autoload -U +X bashcompinit && bashcompinit\n" +
           bash(verbs);
  }
  if (shell == "fish") return fish(verbs);
  return {};
}

// __names workloads|nodes: one per line, for the scripts above.
void add_names_command(CLI::App& app, Context& context) {
  auto kind = std::make_shared<std::string>();
  CLI::App* verb = add_verb(app, context, "__names", "");
  verb->group("");  // not in the help
  verb->add_option("KIND", *kind, "workloads or nodes")
      ->required()
      ->check(CLI::IsMember({"workloads", "nodes"}));
  verb->callback([&context, kind] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto names, *kind == "nodes" ? node_names(client) : workload_names(client));
      for (const auto& name : names) print(printable(name) + "\n");
      return kExitDone;
    });
  });
}

void add_completion_command(CLI::App& app, Context& context) {
  add_names_command(app, context);
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = app.add_subcommand("completion", "a completion script for bash, zsh or fish");
  verb->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  verb->callback([&app, &context, shell] {
    print(completion_script(app, *shell));
    context.exit = kExitDone;
  });
}

}  // namespace baton::cli
