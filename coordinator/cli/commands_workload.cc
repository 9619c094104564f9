// run, protect, apply, delete, ls, show, logs, checkpoint, checkpoints.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/names.h"
#include "coordinator/cli/render.h"
#include "coordinator/cli/spec_fields.h"
#include "coordinator/cli/spec_file.h"
#include "coordinator/cli/units.h"
#include "coordinator/cli/watch.h"

namespace baton::cli {
namespace {

// What was given for each field of the spec, as text, in the order of the table.
struct SpecFlags {
  std::vector<std::vector<std::string>> values = std::vector<std::vector<std::string>>(spec_fields().size());
  std::vector<char> switches = std::vector<char>(spec_fields().size(), 0);
};

std::shared_ptr<SpecFlags> add_spec_flags(CLI::App* verb, bool run) {
  auto flags = std::make_shared<SpecFlags>();
  const auto& fields = spec_fields();
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const auto& field = fields[i];
    if (field.only_run && !run) continue;
    if (field.kind == FieldKind::kSwitch) {
      verb->add_flag_callback(field.flag(), [flags, i] { flags->switches[i] = 1; }, field.help);
      continue;
    }
    auto* option = verb->add_option(field.flag(), flags->values[i], field.help)
                       ->type_name(field.form)
                       ->allow_extra_args(false);
    if (field.key == "standby" || field.key == "require_features") option->delimiter(',');
    if (field.kind == FieldKind::kText) option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::Throw);
  }
  return flags;
}

Result<void> apply_flags(const SpecFlags& flags, pb::WorkloadSpec& spec) {
  const auto& fields = spec_fields();
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (flags.switches[i]) BATON_TRY(fields[i].set(spec, "true"));
    for (const auto& value : flags.values[i]) BATON_TRY(fields[i].set(spec, value));
  }
  return {};
}

Result<int> report_started(Context& context, const pb::WorkloadInfo& info) {
  if (context.json()) {
    print_json(workload_json(info));
    return kExitDone;
  }
  std::string standbys;
  for (const auto& standby : info.spec().standbys()) standbys += (standbys.empty() ? "" : ", ") + standby;
  print(info.spec().name() + " runs on " + info.status().node() + ", pid " +
        std::to_string(info.status().pid()) +
        (standbys.empty() ? ", without a standby" : ", standby " + standbys) + "\n");
  for (const auto& verdict : info.verdicts()) {
    if (verdict.verdict() == "differs") {
      note("differs after a restore: " + verdict.resource() + " (" + verdict.kind() + "): " +
           verdict.detail());
    }
  }
  return kExitDone;
}

Result<int> start(Context& context, pb::WorkloadSpec spec, bool dry_run) {
  Result<int> code = kExitDone;
  context.with_client([&](Client& client) -> Result<int> {
    pb::RunWorkloadRequest request;
    *request.mutable_spec() = std::move(spec);
    request.set_dry_run(dry_run);
    BATON_ASSIGN(auto info, client.run(request));
    if (!dry_run) return report_started(context, info);
    const bool acceptable = info.status().state() != "refused";
    if (context.json()) {
      Json json = workload_json(info);
      json["acceptable"] = acceptable;
      if (!json.contains("verdicts")) json["verdicts"] = Json::array();
      print_json(json);
    } else {
      for (const auto& line : info.why()) print(line + "\n");
      print(verdicts_table(info.verdicts()));
    }
    if (acceptable) return kExitDone;
    note("baton: " + info.spec().name() + " cannot be protected as it is");
    return kExitFailed;
  });
  return code;
}

void add_run(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "run", "start a program and keep copies of it");
  auto name = std::make_shared<std::string>();
  auto dry_run = std::make_shared<bool>(false);
  auto command = std::make_shared<std::vector<std::string>>();
  verb->add_option("NAME", *name, "the workload's name")->required();
  verb->add_option("CMD", *command, "the command, after --");
  verb->add_flag("--dry-run", *dry_run, "only say where it would run");
  auto flags = add_spec_flags(verb, true);
  verb->callback([&context, name, dry_run, flags, command] {
    pb::WorkloadSpec spec = new_spec(pb::ORIGIN_RUN);
    spec.set_name(*name);
    if (auto done = apply_flags(*flags, spec); !done) {
      context.exit = print_error(done.error());
      return;
    }
    for (const auto& word : *command) spec.add_argv(word);
    for (const auto& word : context.command) spec.add_argv(word);
    if (spec.argv_size() == 0) {
      context.exit = print_error(make_error(Code::kInvalid, "run", "no command given",
                                            "baton run NAME [flags] -- CMD ARGS…"));
      return;
    }
    complete_environment(spec);
    (void)start(context, std::move(spec), *dry_run);
  });
}

void add_protect(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "protect", "keep copies of a program that runs already");
  auto name = std::make_shared<std::string>();
  auto pid = std::make_shared<std::int64_t>(0);
  auto dry_run = std::make_shared<bool>(false);
  verb->add_option("NAME", *name, "the workload's name")->required();
  verb->add_option("--pid", *pid, "its root process, as seen on the node")->required();
  verb->add_flag("--dry-run", *dry_run, "only say what would stop it and what will differ");
  auto flags = add_spec_flags(verb, false);
  verb->callback([&context, name, pid, dry_run, flags] {
    pb::WorkloadSpec spec = new_spec(pb::ORIGIN_PROTECT);
    spec.set_name(*name);
    spec.set_pid(*pid);
    auto done = apply_flags(*flags, spec);
    if (done && spec.node().empty()) {
      done = make_error(Code::kInvalid, "protect", "no node given", "Give --node NODE.");
    }
    if (!done) {
      context.exit = print_error(done.error());
      return;
    }
    (void)start(context, std::move(spec), *dry_run);
  });
}

void add_apply(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "apply", "make workloads be as a file says");
  auto file = std::make_shared<std::string>();
  auto dry_run = std::make_shared<bool>(false);
  verb->add_option("-f,--file", *file, "a TOML file with [[workload]] entries")->required();
  verb->add_flag("--dry-run", *dry_run, "only say what would change");
  verb->callback([&context, file, dry_run] {
    auto specs = read_spec_file(*file);
    if (!specs) {
      context.exit = print_error(specs.error());
      return;
    }
    context.with_client([&](Client& client) -> Result<int> {
      pb::ApplyRequest request;
      request.set_dry_run(*dry_run);
      for (auto& spec : *specs) *request.add_specs() = std::move(spec);
      BATON_ASSIGN(auto response, client.apply(request));
      int refused = 0;
      Json list = Json::array();
      Table table({"NAME", "ACTION", "DETAIL"});
      for (const auto& change : response.changes()) {
        if (change.action() == "refuse") ++refused;
        list.push_back({{"name", change.name()},
                        {"action", change.action()},
                        {"detail", change.detail()}});
        table.row({change.name(), change.action(), change.detail()});
      }
      if (context.json()) {
        print_json(list);
      } else {
        print(table.text());
      }
      if (refused == 0) return kExitDone;
      note("baton: " + std::to_string(refused) + " of " +
           std::to_string(response.changes_size()) + " refused");
      return kExitFailed;
    });
  });
}

Result<bool> confirm(const std::string& question) {
  if (::isatty(STDIN_FILENO) != 1) {
    return make_error(Code::kInvalid, "delete", question + " nobody can answer here",
                      "Say so with --yes.");
  }
  std::fprintf(stderr, "%s [y/N] ", question.c_str());
  char answer[16] = {};
  if (!std::fgets(answer, sizeof answer, stdin)) return false;
  return answer[0] == 'y' || answer[0] == 'Y';
}

void add_delete(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "delete",
                            "end protection: a run program is stopped, a protected one runs on");
  auto name = std::make_shared<std::string>();
  auto yes = std::make_shared<bool>(false);
  auto stop = std::make_shared<bool>(false);
  verb->add_option("NAME", *name, "the workload")->required();
  verb->add_flag("-y,--yes", *yes, "do not ask");
  verb->add_flag("--stop", *stop, "stop the program even if it was only protected");
  verb->callback([&context, name, yes, stop] {
    context.with_client([&](Client& client) -> Result<int> {
      // What destroys takes no abbreviation; a near name is suggested.
      BATON_ASSIGN(auto known, workload_names(client));
      if (std::find(known.begin(), known.end(), *name) == known.end()) {
        const std::string hint = did_you_mean(*name, known);
        return make_error(Code::kNotFound, "delete", "no workload named " + *name,
                          hint.empty() ? "See baton ls." : hint);
      }
      BATON_ASSIGN(auto info, client.show_workload(*name));
      const bool stops = info.spec().origin() != pb::ORIGIN_PROTECT || *stop;
      if (stops && !*yes) {
        BATON_ASSIGN(const bool agreed,
                     confirm("Deleting " + *name + " stops its program and drops its checkpoints:"));
        if (!agreed) {
          note("baton: nothing was deleted");
          return kExitFailed;
        }
      }
      pb::DeleteRequest request;
      request.set_name(*name);
      request.set_stop_program(stops);
      BATON_TRY(client.remove(request));
      if (context.json()) {
        print_json({{"name", *name}, {"stopped", stops}});
      } else {
        print(*name + (stops ? " was stopped and deleted\n" : " is no longer protected and runs on\n"));
      }
      return kExitDone;
    });
  });
}

}  // namespace

void add_workload_commands(CLI::App& app, Context& context) {
  add_run(app, context);
  add_protect(app, context);
  add_apply(app, context);
  add_delete(app, context);
  {
    CLI::App* verb = add_verb(app, context, "ls", "list the workloads", true);
    auto watch = std::make_shared<bool>(false);
    verb->add_flag("-w,--watch", *watch, "go on, until Ctrl-C");
    verb->callback([&context, watch] {
      list_or_watch(context, *watch, [&context, watch](Client& client) -> Result<std::string> {
        BATON_ASSIGN(auto workloads, client.list_workloads());
        if (context.json()) {
          Json list = Json::array();
          for (const auto& info : workloads.workloads()) list.push_back(workload_json(info));
          return json_text(list, *watch);
        }
        if (!context.names()) return workloads_table(workloads, context.wide());
        std::string out;
        for (const auto& info : workloads.workloads()) out += printable(info.spec().name()) + "\n";
        return out;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "show", "everything about a workload");
    auto name = std::make_shared<std::string>();
    auto why = std::make_shared<bool>(false);
    verb->add_option("NAME", *name, "the workload")->required();
    verb->add_flag("--why", *why, "also why it runs where it does");
    auto watch = std::make_shared<bool>(false);
    verb->add_flag("-w,--watch", *watch, "go on, until Ctrl-C");
    verb->callback([&context, name, why, watch] {
      list_or_watch(context, *watch, [&context, name, why, watch](Client& client) -> Result<std::string> {
        BATON_ASSIGN(const std::string whole, workload_named(client, *name));
        BATON_ASSIGN(auto info, client.show_workload(whole));
        return context.json() ? json_text(workload_json(info), *watch) : workload_text(info, *why);
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "logs", "what a workload wrote to stdout and stderr");
    auto name = std::make_shared<std::string>();
    auto follow = std::make_shared<bool>(false);
    verb->add_option("NAME", *name, "the workload")->required();
    verb->add_flag("-f,--follow", *follow, "go on with what it writes from now on");
    verb->callback([&context, name, follow] {
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(const std::string whole, workload_named(client, *name));
        pb::AgentLogsRequest request;
        request.set_name(whole);
        request.set_follow(*follow);
        BATON_TRY(client.logs(request, [](const pb::LogChunk& chunk) {
          print(chunk.data());
          return std::ferror(stdout) == 0;
        }));
        return kExitDone;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "checkpoint", "take a checkpoint now and wait for its commit");
    auto name = std::make_shared<std::string>();
    auto timeout = std::make_shared<std::string>("60s");
    verb->add_option("NAME", *name, "the workload")->required();
    verb->add_option("--timeout", *timeout, "how long to wait")->type_name("DURATION");
    verb->callback([&context, name, timeout] {
      auto us = parse_duration_us(*timeout);
      if (!us) {
        context.exit = print_error(us.error());
        return;
      }
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(const std::string whole, workload_named(client, *name));
        pb::CheckpointNowRequest request;
        request.set_name(whole);
        request.set_timeout_us(*us);
        BATON_ASSIGN(auto info, client.checkpoint(request));
        if (context.json()) {
          print_json(checkpoint_json(info));
        } else {
          print(whole + "@" + std::to_string(info.seq()) + ", pause " +
                format_duration_us(info.pause_us()) + ", " +
                std::to_string(info.pages_changed()) + " of " +
                std::to_string(info.pages_total()) + " pages changed\n");
        }
        return kExitDone;
      });
    });
  }
  {
    CLI::App* verb = add_verb(app, context, "checkpoints", "list a workload's checkpoints");
    auto name = std::make_shared<std::string>();
    auto tag = std::make_shared<std::string>();
    verb->add_option("NAME", *name, "the workload")->required();
    verb->add_option("--tag", *tag, "only those with this tag")->type_name("TAG");
    verb->callback([&context, name, tag] {
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(const std::string whole, workload_named(client, *name));
        BATON_ASSIGN(auto list, client.list_checkpoints(whole));
        BATON_ASSIGN(auto marked, client.list_marks(whole));
        std::map<std::pair<std::uint64_t, std::uint64_t>, pb::CheckpointMarks> marks;
        for (const auto& one : marked.marks()) marks[{one.seq(), one.incarnation()}] = one;
        pb::ListCheckpointsResponse shown;
        Json json = Json::array();
        MarkWords words;
        for (const auto& info : list.checkpoints()) {
          const pb::CheckpointMarks& of = marks[{info.seq(), info.incarnation()}];
          const std::vector<std::string> tags(of.tags().begin(), of.tags().end());
          if (!tag->empty() && std::find(tags.begin(), tags.end(), *tag) == tags.end()) continue;
          *shown.add_checkpoints() = info;
          Json one = checkpoint_json(info);
          one["tags"] = tags;
          one["pinned"] = of.pinned();
          json.push_back(std::move(one));
          std::string text = join(tags);
          if (of.pinned()) text += text.empty() ? "pinned" : ", pinned";
          if (!text.empty()) words[{info.seq(), info.incarnation()}] = text;
        }
        if (context.json()) {
          print_json(json);
        } else {
          print(checkpoints_table(shown, words));
        }
        return kExitDone;
      });
    });
  }
}

}  // namespace baton::cli
