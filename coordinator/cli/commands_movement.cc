// migrate, failover, restore.
#include <optional>

#include "coordinator/cli/commands.h"
#include "coordinator/cli/progress.h"
#include "coordinator/cli/render.h"
#include "coordinator/cli/units.h"
#include "coordinator/cli/watch.h"

namespace baton::cli {
namespace {

Result<std::chrono::nanoseconds> timeout_of(const std::string& text) {
  if (text.empty()) return std::chrono::nanoseconds(0);
  BATON_ASSIGN(const auto us, parse_duration_us(text));
  return std::chrono::nanoseconds(std::chrono::microseconds(us));
}

Result<int> dry_run(Context& context, Client& client, const std::string& name,
                    const std::string& to) {
  pb::InspectWorkloadRequest request;
  request.set_name(name);
  request.set_to(to);
  BATON_ASSIGN(auto response, client.inspect(request));
  if (context.json()) {
    Json verdicts = Json::array();
    for (const auto& verdict : response.verdicts()) verdicts.push_back(verdict_json(verdict));
    Json files = Json::array();
    for (const auto& file : response.files()) files.push_back(file.path());
    print_json({{"name", name},
                {"to", to},
                {"acceptable", response.acceptable()},
                {"verdicts", verdicts},
                {"files", files}});
  } else {
    print(verdicts_table(response.verdicts()));
    print(name + (response.acceptable() ? " can move to " : " cannot move to ") + to + "\n");
  }
  return response.acceptable() ? kExitDone : kExitFailed;
}

void add_migrate(CLI::App& app, Context& context) {
  struct Flags {
    std::string name, to, strategy, max_pause, bandwidth, timeout;
    bool dry_run = false, abort = false, with_files = false, detach = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, context, "migrate", "move a running workload to another node");
  verb->add_option("NAME", flags->name, "the workload")->required();
  verb->add_option("--to", flags->to, "the node to move to")->type_name("NODE");
  verb->add_option("--strategy", flags->strategy, "precopy (default), postcopy or stopcopy")
      ->check(CLI::IsMember({"precopy", "postcopy", "stopcopy"}));
  verb->add_option("--max-pause", flags->max_pause, "the longest pause that is accepted")
      ->type_name("DURATION");
  verb->add_option("--bandwidth", flags->bandwidth, "the most it may take of the link")
      ->type_name("RATE");
  verb->add_option("--timeout", flags->timeout, "give up waiting after this")->type_name("DURATION");
  verb->add_flag("--with-files", flags->with_files, "send files that the target lacks");
  verb->add_flag("--dry-run", flags->dry_run, "only say what would stop it");
  verb->add_flag("--abort", flags->abort, "end the migration that is under way");
  verb->add_flag("--detach", flags->detach, "do not wait for its end");
  verb->callback([&context, flags] {
    pb::MigrateWorkloadRequest request;
    auto prepare = [&]() -> Result<std::chrono::nanoseconds> {
      request.set_name(flags->name);
      request.set_to(flags->to);
      request.set_strategy(flags->strategy);
      request.set_with_files(flags->with_files);
      request.set_detach(flags->detach);
      if (!flags->max_pause.empty()) {
        BATON_ASSIGN(const auto us, parse_duration_us(flags->max_pause));
        request.set_max_pause_us(us);
      }
      if (!flags->bandwidth.empty()) {
        BATON_ASSIGN(const auto rate, parse_rate(flags->bandwidth));
        request.set_bandwidth_bytes_per_s(rate);
      }
      if (flags->to.empty() && !flags->abort) {
        return make_error(Code::kInvalid, "migrate", "no target given", "Give --to NODE.");
      }
      return timeout_of(flags->timeout);
    };
    auto timeout = prepare();
    if (!timeout) {
      context.exit = print_error(timeout.error());
      return;
    }
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(flags->name, workload_named(client, flags->name));
      request.set_name(flags->name);
      if (!flags->to.empty()) {
        BATON_ASSIGN(flags->to, node_named(client, flags->to));
        request.set_to(flags->to);
      }
      if (flags->abort) {
        BATON_TRY(client.abort_migration(flags->name));
        note("the migration of " + flags->name + " is being ended");
        return kExitDone;
      }
      if (flags->dry_run) return dry_run(context, client, flags->name, flags->to);
      Progress progress;
      std::optional<pb::MigrateReport> report;
      auto moved = client.migrate(
          request,
          [&](const pb::MigrateProgress& step) {
            if (step.has_report()) report = step.report();
            ProgressState state;
            state.phase = step.phase();
            state.round = step.round();
            state.bytes_done = step.bytes_sent();
            state.bytes_total = step.bytes_left() ? step.bytes_sent() + step.bytes_left() : 0;
            state.rate_bytes_per_s = step.rate_bytes_per_s();
            state.eta_us = step.eta_us();
            progress.show(state);
            return true;
          },
          *timeout);
      progress.end();
      BATON_TRY(std::move(moved));
      if (!report && flags->detach) {
        note("the migration of " + flags->name + " goes on; see baton show " + flags->name);
        return kExitDone;
      }
      if (!report) {
        return make_error(Code::kUnknownOutcome, "migrate", flags->name + ": no report came",
                          "See baton show " + flags->name + ".");
      }
      if (context.json()) {
        print_json(handover_json(*report));
      } else {
        print(handover_text(flags->name, *report));
      }
      return kExitDone;
    });
  });
}

// Shows a restore's progress, and keeps its last message.
Sink<pb::RestoreProgress> restore_sink(Progress& progress,
                                       std::optional<pb::RestoreProgress>& last) {
  return [&](const pb::RestoreProgress& step) {
    if (step.has_report()) last = step;
    ProgressState state;
    state.phase = step.phase();
    state.bytes_done = step.bytes_done();
    state.bytes_total = step.bytes_total();
    progress.show(state);
    return true;
  };
}

void add_failover(CLI::App& app, Context& context) {
  struct Flags {
    std::string name, to, timeout;
    bool allow_loss = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, context, "failover", "let a standby take over");
  verb->add_option("NAME", flags->name, "the workload")->required();
  verb->add_option("--to", flags->to, "the node that takes over")->type_name("NODE");
  verb->add_option("--timeout", flags->timeout, "give up waiting after this")->type_name("DURATION");
  verb->add_flag("--allow-loss", flags->allow_loss, "take an older checkpoint than the newest committed");
  verb->callback([&context, flags] {
    auto timeout = timeout_of(flags->timeout);
    if (!timeout) {
      context.exit = print_error(timeout.error());
      return;
    }
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(flags->name, workload_named(client, flags->name));
      if (!flags->to.empty()) {
        BATON_ASSIGN(flags->to, node_named(client, flags->to));
      }
      pb::FailoverRequest request;
      request.set_name(flags->name);
      request.set_to(flags->to);
      request.set_allow_loss(flags->allow_loss);
      Progress progress;
      std::optional<pb::RestoreProgress> last;
      auto done = client.failover(request, restore_sink(progress, last), *timeout);
      progress.end();
      BATON_TRY(std::move(done));
      if (!last) {
        return make_error(Code::kUnknownOutcome, "failover", flags->name + ": no report came",
                          "See baton show " + flags->name + ".");
      }
      if (context.json()) {
        Json json = handover_json(last->handover());
        json["lost_us"] = last->report().lost_us();
        print_json(json);
      } else {
        print(handover_text(flags->name, last->handover()));
      }
      return kExitDone;
    });
  });
}

void add_restore(CLI::App& app, Context& context) {
  struct Flags {
    std::string checkpoint, to, as, timeout;
    bool paused = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, context, "restore", "continue from a checkpoint");
  verb->add_option("NAME@SEQ", flags->checkpoint, "the checkpoint; NAME alone: the newest")->required();
  verb->add_option("--to", flags->to, "the node; chosen among its holders when not given")->type_name("NODE");
  verb->add_option("--as", flags->as, "run beside NAME, under this name")->type_name("NEW");
  verb->add_option("--timeout", flags->timeout, "give up waiting after this")->type_name("DURATION");
  verb->add_flag("--paused", flags->paused, "leave it frozen");
  verb->callback([&context, flags] {
    auto checkpoint = parse_checkpoint_name(flags->checkpoint);
    auto timeout = timeout_of(flags->timeout);
    if (!checkpoint || !timeout) {
      context.exit = print_error(!checkpoint ? checkpoint.error() : timeout.error());
      return;
    }
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(checkpoint->name, workload_named(client, checkpoint->name));
      if (!flags->to.empty()) {
        BATON_ASSIGN(flags->to, node_named(client, flags->to));
      }
      pb::RestoreWorkloadRequest request;
      request.set_name(checkpoint->name);
      request.set_seq(checkpoint->seq);
      request.set_to(flags->to);
      request.set_as(flags->as);
      request.set_paused(flags->paused);
      Progress progress;
      std::optional<pb::RestoreProgress> last;
      auto done = client.restore(request, restore_sink(progress, last), *timeout);
      progress.end();
      BATON_TRY(std::move(done));
      if (!last) {
        return make_error(Code::kUnknownOutcome, "restore", flags->checkpoint + ": no report came",
                          "See baton ls.");
      }
      const std::string name = flags->as.empty() ? checkpoint->name : flags->as;
      BATON_ASSIGN(auto info, client.show_workload(name));
      const auto& report = last->report();
      if (context.json()) {
        print_json({{"name", name},
                    {"from", checkpoint->name + "@" + std::to_string(report.seq())},
                    {"seq", report.seq()},
                    {"node", info.status().node()},
                    {"to", info.status().node()},
                    {"pid", report.pid()},
                    {"incarnation", info.ownership().incarnation()},
                    {"total_ms", report.total_ms()},
                    {"pages", report.pages()},
                    {"lost_us", report.lost_us()},
                    {"paused", flags->paused}});
      } else {
        char total[32];
        std::snprintf(total, sizeof total, "%.1f", report.total_ms());
        print(checkpoint->name + "@" + std::to_string(report.seq()) +
              (flags->paused ? " stands on " : " runs on ") + info.status().node() +
              (flags->as.empty() ? "" : " as " + name) + ", pid " + std::to_string(report.pid()) +
              ", restored in " + total + " ms\n");
      }
      return kExitDone;
    });
  });
}

}  // namespace

void add_movement_commands(CLI::App& app, Context& context) {
  add_migrate(app, context);
  add_failover(app, context);
  add_restore(app, context);
}

}  // namespace baton::cli
