// Routes: what the coordinator answers over HTTP. docs/api.md is its contract.
//
// Every path is in the roles table (coordinator/roles.h) or in kPublicRoutes; the table of
// handlers here must hold exactly the table's paths, which the constructor checks.
// Each request passes, in this order: host, method, login, source and CSRF (what changes
// something), role; then its handler, within the audit log where the table says so.
// Threads: any; answer() may block as the coordinator's own calls do.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/audit.h"
#include "coordinator/cli/output.h"
#include "coordinator/coordinator.h"
#include "coordinator/http/exchange.h"
#include "coordinator/http/guard.h"
#include "coordinator/http/metrics.h"
#include "coordinator/movements.h"
#include "coordinator/observe/observatory.h"

namespace baton::coordinator::http {

inline constexpr std::string_view kPublicRoutes[] = {
    "GET /livez", "GET /readyz", "POST /api/v1/login", "GET /assets/{name}", "GET /"};
inline constexpr std::chrono::seconds kReadyAge{5};
inline constexpr std::chrono::milliseconds kFirstWord{1'000};  // of a movement, before 202
inline constexpr std::uint64_t kMaxHistorySeconds = 24 * 3600;
inline constexpr std::size_t kMaxLogEntries = 500;

struct Parts {  // all outlive the routes
  Coordinator& coordinator;
  Observatory& observatory;
  Movements& movements;
  Logins& logins;
  AuditLog& audit;
  Metrics& metrics;
  std::set<std::string> hosts;  // what a request's Host may name
};

class Routes {
 public:
  explicit Routes(Parts parts);

  Response answer(const Request& request);
  // The pattern that the request falls under, for metrics: "GET /api/v1/nodes/{name}".
  static std::string pattern_of(const Request& request);

 private:
  using Handler = Response (Routes::*)(const Request&, const Caller&, const std::string& name);
  struct Entry {
    std::string_view http;
    Handler handler;
  };
  static const std::vector<Entry>& handlers();

  Response guarded(const Request& request, const RpcRoles& row, const std::string& name);
  Response login(const Request& request);
  Response page(const Request& request) const;
  Response ready() const;

  Response nodes(const Request&, const Caller&, const std::string&);
  Response node(const Request&, const Caller&, const std::string& name);
  Response workloads(const Request&, const Caller&, const std::string&);
  Response workload(const Request&, const Caller&, const std::string& name);
  Response checkpoints(const Request&, const Caller&, const std::string& name);
  Response history(const Request&, const Caller&, const std::string& name);
  Response log(const Request&, const Caller&, const std::string&);
  Response version(const Request&, const Caller&, const std::string&);
  Response overview(const Request&, const Caller&, const std::string&);
  Response stream(const Request&, const Caller&, const std::string&);
  Response session(const Request&, const Caller&, const std::string&);
  Response logout(const Request&, const Caller&, const std::string&);
  Response movements(const Request&, const Caller&, const std::string&);
  Response movement(const Request&, const Caller&, const std::string& id);
  Response audit(const Request&, const Caller&, const std::string&);
  Response metrics(const Request&, const Caller&, const std::string&);
  // actions.cc
  Response checkpoint_now(const Request&, const Caller&, const std::string& name);
  Response migrate(const Request&, const Caller&, const std::string& name);
  Response abort(const Request&, const Caller&, const std::string& name);
  Response failover(const Request&, const Caller&, const std::string& name);
  Response begin_movement(const pb::AuditEntry& entry, const std::string& kind,
                          const std::string& name, const std::string& to, const std::string& who,
                          std::function<Result<void>(std::uint64_t, const std::function<void()>&)> work);
  pb::AuditEntry audit_entry(const Request& request, const Caller& caller, const char* action) const;

  Parts parts_;
};

Response json_response(const cli::Json& json, int status = 200);
Response error_response(const Error& error);
int http_status(const Error& error);

}  // namespace baton::coordinator::http
