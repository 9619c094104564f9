#include "coordinator/cli/watch.h"

#include <unistd.h>

#include <cstdio>
#include <thread>

#include "coordinator/cli/names.h"

namespace baton::cli {
namespace {

constexpr const char* kHomeAndClear = "\033[H\033[J";

// Each line's end clears what an older, longer line left behind.
std::string in_place(const std::string& text) {
  std::string out = "\033[H";
  for (char c : text) {
    if (c == '\n') out += "\033[K";
    out += c;
  }
  return out + "\033[J";
}

}  // namespace

// A script means what it says: with `redis` deleted, "redis" must not become "redis-copy".
Result<std::string> name_meant(const std::string& kind, const std::string& given,
                               const std::vector<std::string>& known) {
  auto found = match_name(kind, given, known);
  if (found && *found == given) return found;
  if (::isatty(STDOUT_FILENO) == 1) {
    if (found) note("baton: " + kind + " " + *found);
    return found;
  }
  if (!found && found.error().code == Code::kNotFound) return found;
  return make_error(Code::kNotFound, "find " + kind, "no " + kind + " named " + given,
                    found ? "Did you mean '" + *found + "'?" : found.error().subject);
}

void list_or_watch(Context& context, bool watch, const Listing& listing,
                   std::chrono::milliseconds interval) {
  if (!watch) {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(const std::string text, listing(client));
      print(text);
      return kExitDone;
    });
    return;
  }
  const bool terminal = ::isatty(STDOUT_FILENO) == 1 && !context.json();
  if (terminal) print(kHomeAndClear);
  std::unique_ptr<Client> client;
  std::string last;
  bool lost = false, first = true;
  while (std::ferror(stdout) == 0) {
    Result<std::string> text = std::string();
    if (!client) {
      auto connected = context.connect();
      if (connected) {
        client = std::move(*connected);
      } else {
        text = connected.error();
      }
    }
    if (client) text = listing(*client);
    if (!text) {
      // The first answer decides whether there is anything to watch; a later loss is waited out.
      const Code code = text.error().code;
      const bool passes = code == Code::kUnreachable || code == Code::kTimedOut ||
                          code == Code::kUnknownOutcome || code == Code::kCancelled;
      if (first || !passes) {
        context.exit = print_error(text.error());
        return;
      }
      if (!lost) note("baton: " + text.error().message() + " Asking again.");
      lost = true;
      client.reset();
    } else {
      if (lost) note("baton: the coordinator answers again");
      lost = false;
      first = false;
      if (terminal) {
        print(in_place(*text));
      } else if (*text != last) {
        print(*text);
        last = *text;
      }
    }
    std::this_thread::sleep_for(interval);
  }
}

Result<std::vector<std::string>> workload_names(Client& client) {
  BATON_ASSIGN(auto list, client.list_workloads());
  std::vector<std::string> out;
  for (const auto& info : list.workloads()) out.push_back(info.spec().name());
  return out;
}

Result<std::vector<std::string>> node_names(Client& client) {
  BATON_ASSIGN(auto list, client.list_nodes());
  std::vector<std::string> out;
  for (const auto& node : list.nodes()) out.push_back(node.name());
  return out;
}

Result<std::string> workload_named(Client& client, const std::string& given) {
  BATON_ASSIGN(auto names, workload_names(client));
  return name_meant("workload", given, names);
}

Result<std::string> node_named(Client& client, const std::string& given) {
  BATON_ASSIGN(auto names, node_names(client));
  return name_meant("node", given, names);
}

}  // namespace baton::cli
