// store stat, gc, verify; tag, pin; diff, analyze, export.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "base/fd.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/progress.h"
#include "coordinator/cli/render_store.h"
#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

constexpr std::uint32_t kShownPages = 16;  // of diff --hex, unless --pages says otherwise

// "3/30": the part and of how many.
Result<std::pair<std::uint32_t, std::uint32_t>> parse_share(const std::string& text) {
  unsigned part = 0, parts = 0;
  int used = 0;
  if (std::sscanf(text.c_str(), "%5u/%5u%n", &part, &parts, &used) != 2 ||
      used != static_cast<int>(text.size()) || part == 0 || parts == 0 || part > parts) {
    return make_error(Code::kInvalid, "--subset", "'" + text + "' is no share", "Like 1/30: the first of thirty parts.");
  }
  return std::make_pair(part, parts);
}

// A name with a number is needed: what a person tags or compares should be said.
Result<CheckpointName> parse_exact(const std::string& text) {
  BATON_ASSIGN(auto name, parse_checkpoint_name(text));
  if (text.find('@') == std::string::npos) {
    return make_error(Code::kInvalid, "read '" + text + "'", "no checkpoint given", "NAME@SEQ, or NAME@newest.");
  }
  return name;
}

int stat_exit(int nodes, int failed) { return failed != 0 && failed == nodes ? kExitFailed : kExitDone; }

void add_stat(CLI::App& store, Context& context) {
  CLI::App* verb = add_verb(store, context, "stat", "what the nodes' stores hold, and how they are");
  auto node = std::make_shared<std::string>();
  verb->add_option("--node", *node, "only this node")->type_name("NODE");
  verb->callback([&context, node] {
    context.with_client([&](Client& client) -> Result<int> {
      pb::StoreRequest request;
      request.set_node(*node);
      BATON_ASSIGN(auto response, client.store_stat(request));
      if (context.json()) {
        print_json(store_stat_json(response));
      } else {
        print(store_stat_text(response));
      }
      int failed = 0;
      for (const auto& one : response.nodes()) failed += !one.error().empty();
      return stat_exit(response.nodes_size(), failed);
    });
  });
}

void add_gc(CLI::App& store, Context& context) {
  CLI::App* verb = add_verb(store, context, "gc", "drop what retention lets go, and free its space, now");
  auto node = std::make_shared<std::string>();
  verb->add_option("--node", *node, "only this node")->type_name("NODE");
  verb->callback([&context, node] {
    context.with_client([&](Client& client) -> Result<int> {
      pb::StoreRequest request;
      request.set_node(*node);
      BATON_ASSIGN(auto response, client.store_gc(request));
      if (context.json()) {
        print_json(store_gc_json(response));
      } else {
        print(store_gc_text(response));
      }
      int failed = 0;
      for (const auto& one : response.nodes()) failed += !one.error().empty();
      return stat_exit(response.nodes_size(), failed);
    });
  });
}

bool in_order(const pb::StoreVerifyReport& report) {
  if (!report.error().empty() || report.damaged_pages() != report.healed_pages()) return false;
  for (const auto& manifest : report.manifests()) {
    if (manifest.healed_from().empty()) return false;
  }
  return true;
}

void add_verify(CLI::App& store, Context& context) {
  CLI::App* verb = add_verb(store, context, "verify",
                            "read everything that is stored, name what is damaged, and heal it from other nodes");
  auto node = std::make_shared<std::string>();
  auto subset = std::make_shared<std::string>();
  auto only = std::make_shared<bool>(false);
  verb->add_option("--node", *node, "only this node")->type_name("NODE");
  verb->add_option("--subset", *subset, "only a share, such as 1/30")->type_name("PART/PARTS");
  verb->add_flag("--no-heal", *only, "leave what is damaged as it is");
  verb->callback([&context, node, subset, only] {
    pb::StoreVerifyRequest request;
    request.set_node(*node);
    request.set_report_only(*only);
    if (!subset->empty()) {
      auto share = parse_share(*subset);
      if (!share) {
        context.exit = print_error(share.error());
        return;
      }
      request.set_part(share->first);
      request.set_parts(share->second);
    }
    context.with_client([&](Client& client) -> Result<int> {
      std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> pages;  // of each node: done, in all
      std::vector<pb::StoreVerifyReport> reports;
      Progress progress;
      BATON_TRY(client.store_verify(request, [&](const pb::StoreVerifyProgress& message) {
        if (message.has_report()) reports.push_back(message.report());
        pages[message.node()] = {message.pages_done(), message.pages_total()};
        ProgressState state;
        state.phase = "verify";
        for (const auto& [name, count] : pages) {
          state.bytes_done += count.first * 4096;
          state.bytes_total += count.second * 4096;
        }
        if (!context.json()) progress.show(state);
        return true;
      }));
      progress.end();
      if (context.json()) {
        print_json(store_verify_json(reports));
      } else {
        print(store_verify_text(reports));
      }
      const bool good = !reports.empty() && std::all_of(reports.begin(), reports.end(), in_order);
      return good ? kExitDone : kExitFailed;
    });
  });
}

void add_tag(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "tag", "name a checkpoint; it is kept for as long as it has a tag");
  auto name = std::make_shared<std::string>();
  auto tags = std::make_shared<std::vector<std::string>>();
  auto remove = std::make_shared<bool>(false);
  verb->add_option("NAME@SEQ", *name, "the checkpoint")->required();
  verb->add_option("TAG", *tags, "1 to 64 of A-Z a-z 0-9 . _ -")->required();
  verb->add_flag("--remove", *remove, "take these tags away");
  verb->callback([&context, name, tags, remove] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto checkpoint, parse_exact(*name));
      pb::TagCheckpointRequest request;
      request.set_name(checkpoint.name);
      request.set_seq(checkpoint.seq);
      for (const auto& tag : *tags) *(*remove ? request.add_remove() : request.add_add()) = tag;
      BATON_ASSIGN(auto info, client.tag(request));
      if (context.json()) {
        print_json(marks_json(info));
      } else {
        std::string list;
        for (const auto& tag : info.tags()) list += " " + tag;
        print(checkpoint.name + "@" + std::to_string(info.seq()) + (list.empty() ? " has no tag" : " is tagged" + list) + "\n");
      }
      return kExitDone;
    });
  });
}

void add_pin(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "pin", "keep a checkpoint, whatever retention says");
  auto name = std::make_shared<std::string>();
  auto remove = std::make_shared<bool>(false);
  verb->add_option("NAME@SEQ", *name, "the checkpoint")->required();
  verb->add_flag("--remove", *remove, "take the pin away");
  verb->callback([&context, name, remove] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto checkpoint, parse_exact(*name));
      pb::TagCheckpointRequest request;
      request.set_name(checkpoint.name);
      request.set_seq(checkpoint.seq);
      request.set_pin(!*remove);
      request.set_unpin(*remove);
      BATON_ASSIGN(auto info, client.tag(request));
      if (context.json()) {
        print_json(marks_json(info));
      } else {
        print(checkpoint.name + "@" + std::to_string(info.seq()) + (info.pinned() ? " is pinned\n" : " is not pinned\n"));
      }
      return kExitDone;
    });
  });
}

void add_diff(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "diff", "which mappings and pages differ between two checkpoints");
  auto a = std::make_shared<std::string>();
  auto b = std::make_shared<std::string>();
  auto node = std::make_shared<std::string>();
  auto hex = std::make_shared<bool>(false);
  auto pages = std::make_shared<std::uint32_t>(0);
  verb->add_option("A", *a, "the earlier one, NAME@SEQ")->required();
  verb->add_option("B", *b, "the later one, NAME@SEQ")->required();
  verb->add_option("--node", *node, "read them from this node's store")->type_name("NODE");
  verb->add_flag("--hex", *hex, "show the bytes that differ");
  verb->add_option("--pages", *pages, "how many pages are told one by one (with --hex 16)")
      ->type_name("N")
      ->check(CLI::Range(0, 65'536));
  verb->callback([&context, a, b, node, hex, pages] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto left, parse_exact(*a));
      BATON_ASSIGN(auto right, parse_exact(*b));
      pb::DiffRequest request;
      request.set_name_a(left.name);
      request.set_seq_a(left.seq);
      request.set_name_b(right.name);
      request.set_seq_b(right.seq);
      request.set_node(*node);
      request.set_content(*hex);
      request.set_max_pages(*pages == 0 && *hex ? kShownPages : *pages);
      Json mappings = Json::array(), told = Json::array(), summary;
      BATON_TRY(client.diff(request, [&](const pb::DiffPart& part) {
        if (!context.json()) {
          print(diff_part_text(part));
        } else if (part.has_summary()) {
          summary = diff_part_json(part);
        } else {
          (part.has_mapping() ? mappings : told).push_back(diff_part_json(part));
        }
        return std::ferror(stdout) == 0;
      }));
      if (context.json()) print_json({{"mappings", mappings}, {"pages", told}, {"summary", summary}});
      return kExitDone;
    });
  });
}

// NAME, NAME@A or NAME@A..B.
Result<pb::AnalyzeRequest> parse_range(const std::string& text) {
  pb::AnalyzeRequest request;
  const auto dots = text.find("..");
  if (text.find('@') == std::string::npos) {
    request.set_name(text);
    return request;
  }
  BATON_ASSIGN(auto first, parse_checkpoint_name(text.substr(0, dots)));
  request.set_name(first.name);
  request.set_first_seq(first.seq);
  request.set_last_seq(first.seq);
  if (dots == std::string::npos) return request;
  const std::string end = text.substr(dots + 2);
  BATON_ASSIGN(auto last, parse_checkpoint_name(first.name + "@" + (end.empty() ? "newest" : end)));
  request.set_last_seq(last.seq);
  return request;
}

void add_analyze(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "analyze",
                            "how much of what checkpoints write is zero, repeated or new, and where it is");
  auto range = std::make_shared<std::string>();
  auto node = std::make_shared<std::string>();
  auto plot = std::make_shared<std::string>();
  auto sample = std::make_shared<std::uint64_t>(0);
  verb->add_option("NAME[@A..B]", *range, "the workload, and which of its checkpoints")->required();
  verb->add_option("--node", *node, "read this node's store")->type_name("NODE");
  verb->add_option("--plot", *plot, "also draw it, as SVG")->type_name("FILE");
  verb->add_option("--sample", *sample, "new pages compressed to measure sizes (default 65536)")->type_name("N");
  verb->callback([&context, range, node, plot, sample] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto request, parse_range(*range));
      request.set_node(*node);
      request.set_sample_pages(*sample);
      BATON_ASSIGN(auto response, client.analyze(request));
      if (!plot->empty()) BATON_TRY(replace_file(*plot, analysis_svg(response), 0644));
      if (context.json()) {
        print_json(analysis_json(response));
      } else {
        print(analysis_text(response));
      }
      return kExitDone;
    });
  });
}

void add_export(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "export", "write a process of a checkpoint as a core file for gdb");
  auto name = std::make_shared<std::string>();
  auto core = std::make_shared<std::string>();
  auto pid = std::make_shared<std::int32_t>(0);
  auto node = std::make_shared<std::string>();
  verb->add_option("NAME@SEQ", *name, "the checkpoint")->required();
  verb->add_option("--core", *core, "the file to write")->type_name("FILE")->required();
  verb->add_option("--pid", *pid, "which process, as the program sees it (default: its root)")->type_name("PID");
  verb->add_option("--node", *node, "read it from this node's store")->type_name("NODE");
  verb->callback([&context, name, core, pid, node] {
    context.with_client([&](Client& client) -> Result<int> {
      BATON_ASSIGN(auto checkpoint, parse_exact(*name));
      pb::ExportRequest request;
      request.set_name(checkpoint.name);
      request.set_seq(checkpoint.seq);
      request.set_pid(*pid);
      request.set_node(*node);
      // Beside the file and renamed at the end: a core file is whole or not there.
      const std::string part = *core + ".part";
      (void)::unlink(part.c_str());
      BATON_ASSIGN(Fd file, open_file(part, O_WRONLY | O_CREAT | O_EXCL, 0600));
      std::string summary;
      std::uint64_t file_bytes = 0;
      Result<void> written;
      auto done = client.export_core(request, [&](const pb::ExportChunk& chunk) {
        if (!chunk.note().empty()) {
          summary = chunk.note();
          file_bytes = chunk.file_bytes();
        }
        const auto& data = chunk.data();
        written = pwrite_all(file.get(), std::as_bytes(std::span(data.data(), data.size())),
                             static_cast<off_t>(chunk.offset()));
        return written.has_value();
      });
      if (done) done = written;
      if (done && summary.empty()) done = make_error(Code::kFailed, "export", "the answer was cut short", "Try again.");
      if (done && ::ftruncate(file.get(), static_cast<off_t>(file_bytes)) != 0) done = errno_error("ftruncate", part);
      if (done && ::rename(part.c_str(), core->c_str()) != 0) done = errno_error("rename", *core);
      if (!done) {
        (void)::unlink(part.c_str());
        return done.error();
      }
      if (context.json()) {
        print_json({{"file", *core}, {"bytes", file_bytes}, {"summary", summary}});
      } else {
        print(*core + ": " + printable(summary) + "\n");
      }
      return kExitDone;
    });
  });
}

}  // namespace

void add_store_commands(CLI::App& app, Context& context) {
  CLI::App* store = app.add_subcommand("store", "the nodes' stores of checkpoints");
  store->require_subcommand(1);
  add_stat(*store, context);
  add_gc(*store, context);
  add_verify(*store, context);
  add_tag(app, context);
  add_pin(app, context);
  add_diff(app, context);
  add_analyze(app, context);
  add_export(app, context);
}

}  // namespace baton::cli
