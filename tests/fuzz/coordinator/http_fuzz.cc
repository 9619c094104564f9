// Any bytes as a stranger's HTTP request, behind the wire's own parser: the first line is
// "METHOD TARGET", then "Name: value" lines, an empty line, and the body. Nothing may crash,
// and nobody without a login gets more than what is public.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/check.h"
#include "coordinator/http/routes.h"
#include "coordinator/owner_registry.h"

namespace {

using namespace baton;
using namespace baton::coordinator;

class NoAgents final : public AgentDirectory {
 public:
  std::shared_ptr<AgentClient> agent(const std::string&, const std::string&) override { return nullptr; }
};

struct World {
  World() {
    char name[] = "/tmp/baton-fuzz-http-XXXXXX";
    dir = ::mkdtemp(name);
    auto opened = AuditLog::open(dir, clock, 1 << 16);
    CHECK(opened);
    audit = std::move(*opened);
    CHECK(observatory.look());
    routes = std::make_unique<http::Routes>(
        http::Parts{core, observatory, movements, logins, *audit, metrics, {"h"}});
  }
  SystemClock clock;
  std::string dir;
  std::unique_ptr<StateStore> store = make_memory_store();
  std::unique_ptr<OwnerRegistry> registry = make_sole_decider(*store, clock);
  NoAgents agents;
  Coordinator core{*store, *registry, agents, clock, "fuzz"};
  Movements movements{clock};
  Logins logins{clock};
  Observatory observatory{core, movements, clock};
  std::unique_ptr<AuditLog> audit;
  http::Metrics metrics{core.version()};
  std::unique_ptr<http::Routes> routes;
};

bool is_public(const http::Request& request) {
  return request.path == "/livez" || request.path == "/readyz" || request.path.starts_with("/assets/") ||
         (!request.path.starts_with("/api/") && request.path != "/metrics");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static World* world = new World();
  const std::string text(reinterpret_cast<const char*>(data), size);
  http::Request request;
  request.headers["host"] = "h";
  std::size_t at = text.find('\n');
  const std::string first = text.substr(0, at);
  const std::size_t space = first.find(' ');
  request.method = first.substr(0, space);
  const std::string target = space == std::string::npos ? "/" : first.substr(space + 1);
  const std::size_t question = target.find('?');
  request.path = http::percent_decoded(target.substr(0, question));
  if (question != std::string::npos) request.query = http::parse_query(target.substr(question + 1));
  while (at != std::string::npos) {
    const std::size_t end = text.find('\n', at + 1);
    const std::string line = text.substr(at + 1, end == std::string::npos ? end : end - at - 1);
    at = end;
    if (line.empty()) break;
    const std::size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    request.headers[name] = line.substr(colon + 2);
  }
  if (at != std::string::npos) request.body = text.substr(at + 1);
  CHECK(request.query.size() <= 32);
  const auto stranger = world->routes->answer(request);
  CHECK(stranger.status >= 400 || stranger.status == 304 || is_public(request));
  // The same from somebody who may do everything: answers, never an internal error.
  request.certificate = transport::Identity{"fuzz", transport::Role::kOperator, "olga"};
  const auto known = world->routes->answer(request);
  CHECK(known.status >= 200 && known.status < 600 && known.status != 500);
  return 0;
}
