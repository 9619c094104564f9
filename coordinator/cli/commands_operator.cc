// dashboard, audit, support-bundle.
#include <fcntl.h>

#include <chrono>
#include <span>

#include "base/fd.h"
#include "coordinator/cli/bundle.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/render.h"

namespace baton::cli {
namespace {

constexpr std::size_t kBundleEvents = 2'000;
constexpr std::uint32_t kBundleAudit = 1'000;

// Everything that can be had; what cannot is told in errors.json instead.
std::vector<BundleFile> gather(Client& client) {
  std::vector<BundleFile> files;
  Json errors = Json::array();
  auto add = [&](const std::string& name, const Result<Json>& json) {
    if (json) {
      files.push_back({name, json_text(*json)});
    } else {
      errors.push_back({{"file", name}, {"error", json.error().message()}});
    }
  };
  const auto& version = client.version();
  add("version.json", Json{{"baton", BATON_VERSION},
                           {"coordinator", version.version()},
                           {"commit", version.commit()},
                           {"cluster", version.cluster()}});
  add("nodes.json", [&]() -> Result<Json> {
    BATON_ASSIGN(auto nodes, client.list_nodes());
    Json list = Json::array();
    for (const auto& one : nodes.nodes()) list.push_back(node_json(one));
    return list;
  }());
  auto workloads = client.list_workloads();
  add("workloads.json", [&]() -> Result<Json> {
    if (!workloads) return workloads.error();
    Json list = Json::array();
    for (const auto& one : workloads->workloads()) list.push_back(without_secrets(workload_json(one)));
    return list;
  }());
  if (workloads) {
    for (const auto& one : workloads->workloads()) {
      add("checkpoints-" + one.spec().name() + ".json", [&]() -> Result<Json> {
        BATON_ASSIGN(auto held, client.list_checkpoints(one.spec().name()));
        Json list = Json::array();
        for (const auto& info : held.checkpoints()) list.push_back(checkpoint_json(info));
        return list;
      }());
    }
  }
  add("events.json", [&]() -> Result<Json> {
    Json list = Json::array();
    BATON_TRY(client.events({}, [&](const pb::Event& event) {
      list.push_back(event_json(event));
      if (list.size() > kBundleEvents) list.erase(list.begin());
      return true;
    }));
    return list;
  }());
  add("audit.json", [&]() -> Result<Json> {
    Json list = Json::array();
    pb::AuditRequest ask;
    ask.set_newest(kBundleAudit);
    BATON_TRY(client.audit(ask, [&](const pb::AuditEntry& entry) {
      list.push_back(audit_json(entry));
      return true;
    }));
    return list;
  }());
  add("errors.json", errors);
  return files;
}

void add_support_bundle(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "support-bundle",
                            "what the coordinator knows, as one file for whoever helps; no secrets");
  auto out = std::make_shared<std::string>();
  verb->add_option("--out", *out, "the tar file to write; it must not exist")->required();
  verb->callback([&context, out] {
    context.with_client([&](Client& client) -> Result<int> {
      const auto files = gather(client);
      const auto now = std::chrono::duration_cast<std::chrono::seconds>(
          std::chrono::system_clock::now().time_since_epoch());
      const std::string tar = tar_of("baton-support", files, static_cast<std::uint64_t>(now.count()));
      BATON_ASSIGN(Fd fd, open_file(*out, O_WRONLY | O_CREAT | O_EXCL, 0600));
      BATON_TRY(write_all(fd.get(), std::as_bytes(std::span(tar))));
      if (context.json()) {
        Json names = Json::array();
        for (const auto& file : files) names.push_back(file.name);
        print_json({{"file", *out}, {"bytes", tar.size()}, {"files", names}});
      } else {
        print(*out + ": " + std::to_string(files.size()) + " files, " + std::to_string(tar.size()) + " bytes\n");
        note("Read it before you send it: it names your nodes, addresses, workloads and operators.");
      }
      return kExitDone;
    });
  });
}

}  // namespace

void add_operator_commands(CLI::App& app, Context& context) {
  {
    CLI::App* verb = add_verb(app, context, "dashboard",
                              "print a link to the dashboard; it works once, with your role");
    verb->callback([&context] {
      context.with_client([&](Client& client) -> Result<int> {
        BATON_ASSIGN(auto link, client.dashboard_link());
        const std::string url = link.url() + "/#login=" + link.token();
        if (context.json()) {
          print_json({{"url", url}, {"valid_s", link.valid_s()}});
        } else {
          print(url + "\n");
          note("It works once, within " + std::to_string(link.valid_s()) +
               " s. The browser will ask about the certificate unless it knows the cluster's ca.crt.");
        }
        return kExitDone;
      });
    });
  }
  add_support_bundle(app, context);
  {
    CLI::App* verb = add_verb(app, context, "audit", "who did what, when, and from where");
    struct Flags {
      std::uint64_t after = 0;
      std::uint32_t newest = 0;
      std::string who, on;
    };
    auto flags = std::make_shared<Flags>();
    verb->add_option("--after", flags->after, "only entries with a larger id");
    verb->add_option("--newest", flags->newest, "only among the newest N entries");
    verb->add_option("--who", flags->who, "only of this caller: \"operator olga\"");
    verb->add_option("--on", flags->on, "only on this workload or node");
    verb->callback([&context, flags] {
      context.with_client([&](Client& client) -> Result<int> {
        pb::AuditRequest ask;
        ask.set_after_id(flags->after);
        ask.set_newest(flags->newest);
        ask.set_who(flags->who);
        ask.set_target(flags->on);
        std::vector<pb::AuditEntry> entries;
        BATON_TRY(client.audit(ask, [&](const pb::AuditEntry& entry) {
          entries.push_back(entry);
          return true;
        }));
        if (context.json()) {
          Json list = Json::array();
          for (const auto& entry : entries) list.push_back(audit_json(entry));
          print_json(list);
        } else {
          print(audit_table(entries));
        }
        return kExitDone;
      });
    });
  }
}

}  // namespace baton::cli
