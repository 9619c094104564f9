// pki init, issue, renew: work on files alone, without a coordinator.
#include "coordinator/cli/commands.h"
#include "transport/pki.h"

namespace baton::cli {

void add_pki_commands(CLI::App& app, Context& context) {
  struct Flags {
    std::string dir, cluster, role, name, out;
    std::vector<std::string> addresses;
    int days = 0;
  };
  CLI::App* pki = app.add_subcommand("pki", "the cluster's certificates");
  pki->require_subcommand(1);
  auto finish = [&context](const Result<void>& done, const std::string& text) {
    if (!done) {
      context.exit = print_error(done.error());
    } else {
      note(text);
    }
  };
  {
    auto flags = std::make_shared<Flags>();
    CLI::App* verb = pki->add_subcommand("init", "make a certificate authority");
    verb->add_option("--dir", flags->dir, "its folder")->required();
    verb->add_option("--cluster", flags->cluster, "the cluster's name")->required();
    verb->add_option("--days", flags->days, "how long it is valid")
        ->default_val(transport::kDefaultCaDays);
    verb->callback([flags, finish] {
      finish(transport::init_ca(flags->dir, flags->cluster, flags->days),
             "authority of cluster " + flags->cluster + " in " + flags->dir +
                 ": keep ca.key to yourself");
    });
  }
  {
    auto flags = std::make_shared<Flags>();
    CLI::App* verb = pki->add_subcommand("issue", "issue a certificate");
    verb->add_option("--dir", flags->dir, "the authority's folder")->required();
    verb->add_option("--role", flags->role, "node, operator, viewer or coordinator")->required();
    verb->add_option("--name", flags->name, "whose it is")->required();
    verb->add_option("--out", flags->out, "the folder for ca.crt, tls.crt, tls.key")->required();
    verb->add_option("--address", flags->addresses, "an address or DNS name of its machine")
        ->allow_extra_args(false)
        ->delimiter(',');
    verb->add_option("--days", flags->days, "how long it is valid")
        ->default_val(transport::kDefaultLeafDays);
    verb->callback([flags, finish] {
      auto issue = [&]() -> Result<void> {
        transport::IssueRequest request;
        BATON_ASSIGN(request.role, transport::parse_role(flags->role));
        request.name = flags->name;
        request.addresses = flags->addresses;
        request.days = flags->days;
        return transport::issue(flags->dir, request, flags->out);
      };
      finish(issue(), "certificate of " + flags->role + " " + flags->name + " in " + flags->out);
    });
  }
  {
    auto flags = std::make_shared<Flags>();
    CLI::App* verb = pki->add_subcommand("renew", "replace a certificate and its key");
    verb->add_option("--dir", flags->dir, "the authority's folder")->required();
    verb->add_option("--out", flags->out, "the folder of the certificate")->required();
    verb->add_option("--days", flags->days, "how long it is valid")
        ->default_val(transport::kDefaultLeafDays);
    verb->callback([flags, finish] {
      finish(transport::renew(flags->dir, flags->out, flags->days),
             "renewed the certificate in " + flags->out + ": restart its program");
    });
  }
}

}  // namespace baton::cli
