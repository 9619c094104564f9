// wait, top.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <thread>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/names.h"
#include "coordinator/cli/render.h"
#include "coordinator/cli/top.h"
#include "coordinator/cli/units.h"
#include "coordinator/cli/watch.h"

namespace baton::cli {
namespace {

constexpr std::chrono::milliseconds kWaitPoll{100};
constexpr std::chrono::milliseconds kTopInterval{1'000};
const std::vector<std::string> kConditions = {"committed", "protected", "deleted", "starting",
                                              "running",   "migrating", "frozen",  "exited",
                                              "lost",      "failed",    "stopped"};

// Is it so? `info` absent: there is no such workload.
bool holds(const std::string& condition, std::uint64_t after, const pb::WorkloadInfo* info) {
  if (condition == "deleted") return info == nullptr;
  if (info == nullptr) return false;
  const auto& status = info->status();
  if (condition == "committed") return status.last_committed() > after;
  if (condition == "protected") {
    return !info->status_is_stale() && status.last_committed() > after &&
           status.standbys_size() > 0 &&
           std::all_of(status.standbys().begin(), status.standbys().end(), [](const auto& one) {
             return one.connected() && one.problem().empty() && one.last_committed() > 0;
           });
  }
  return status.state() == condition && !info->status_is_stale();
}

void add_wait(CLI::App& app, Context& context) {
  struct Flags {
    std::string name, condition = "committed", timeout = "60s";
    std::uint64_t after = 0;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, context, "wait", "wait until a workload is as you want it");
  verb->add_option("NAME", flags->name, "the workload")->required();
  verb->add_option("--for", flags->condition,
                   "committed (a checkpoint is), protected (every standby holds one), deleted, or a state")
      ->check(CLI::IsMember(kConditions))
      ->capture_default_str();
  verb->add_option("--after", flags->after, "of committed and protected: a checkpoint newer than this SEQ");
  verb->add_option("--timeout", flags->timeout, "give up after this")
      ->type_name("DURATION")
      ->capture_default_str();
  verb->callback([&context, flags] {
    auto us = parse_duration_us(flags->timeout);
    if (!us) {
      context.exit = print_error(us.error());
      return;
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(*us);
    std::unique_ptr<Client> client;
    std::string name, last = "no answer yet";
    while (true) {
      Result<void> asked;
      if (!client) {
        auto connected = context.connect();
        if (connected) {
          client = std::move(*connected);
        } else {
          asked = connected.error();
        }
      }
      if (client) {
        auto list = client->list_workloads();
        if (list) {
          std::vector<std::string> names;
          for (const auto& info : list->workloads()) names.push_back(info.spec().name());
          if (name.empty()) {
            auto found = name_meant("workload", flags->name, names);
            if (!found && flags->condition != "deleted") {
              context.exit = print_error(found.error());
              return;
            }
            name = found ? *found : flags->name;
          }
          const pb::WorkloadInfo* info = nullptr;
          for (const auto& one : list->workloads()) {
            if (one.spec().name() == name) info = &one;
          }
          if (holds(flags->condition, flags->after, info)) {
            if (context.json()) {
              print_json(info ? workload_json(*info) : Json{{"name", name}, {"deleted", true}});
            } else {
              print(name + ": " + flags->condition + "\n");
            }
            return;
          }
          if (!info) {
            context.exit = print_error(make_error(Code::kNotFound, "wait", name + " was deleted meanwhile"));
            return;
          }
          last = "it is " + info->status().state() + ", committed @" +
                 std::to_string(info->status().last_committed()) +
                 (info->status().problem().empty() ? "" : ": " + info->status().problem());
        } else {
          asked = list.error();
        }
      }
      if (!asked) {
        if (asked.error().code != Code::kUnreachable && asked.error().code != Code::kTimedOut &&
            asked.error().code != Code::kUnknownOutcome) {
          context.exit = print_error(asked.error());
          return;
        }
        client.reset();  // a coordinator that restarts is waited for
        last = asked.error().message();
      }
      if (std::chrono::steady_clock::now() >= end) {
        context.exit = print_error(make_error(
            Code::kTimedOut, "wait", flags->name + " is not " + flags->condition + " after " + flags->timeout + ": " + last));
        return;
      }
      std::this_thread::sleep_for(kWaitPoll);
    }
  });
}

void add_top(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "top", "live view of all workloads and nodes");
  auto once = std::make_shared<bool>(false);
  verb->add_flag("--once", *once, "two looks a second apart, one table, no live view");
  verb->callback([&context, once] {
    const bool terminal = ::isatty(STDOUT_FILENO) == 1 && !context.json();
    auto before = std::make_shared<std::optional<TopLook>>();
    const bool colour = terminal && ::getenv("NO_COLOR") == nullptr;
    const Listing listing = [&context, before, colour](Client& client) -> Result<std::string> {
      if (!*before) {
        BATON_ASSIGN(auto first, look(client));
        *before = std::move(first);
        std::this_thread::sleep_for(kTopInterval);
      }
      BATON_ASSIGN(auto now, look(client));
      const std::string text = context.json() ? top_json(**before, now).dump() + "\n"
                                              : top_text(**before, now, colour);
      *before = std::move(now);
      return text;
    };
    list_or_watch(context, terminal && !*once, listing, kTopInterval);
  });
}

}  // namespace

void add_live_commands(CLI::App& app, Context& context) {
  add_wait(app, context);
  add_top(app, context);
}

}  // namespace baton::cli
