#include "coordinator/http/routes.h"

#include <algorithm>
#include <charconv>
#include <deque>

#include "base/check.h"
#include "coordinator/cli/render.h"
#include "coordinator/http/assets.h"
#include "coordinator/http/json.h"

namespace baton::coordinator::http {
namespace {

// Does `path` fall under `pattern`? Fills `name` with what stands for {name}.
bool matches(std::string_view pattern, std::string_view path, std::string& name) {
  const std::size_t open = pattern.find('{');
  if (open == std::string_view::npos) return pattern == path;
  const std::string_view before = pattern.substr(0, open);
  const std::string_view after = pattern.substr(pattern.find('}') + 1);
  if (!path.starts_with(before) || !path.ends_with(after) ||
      path.size() <= before.size() + after.size()) {
    return false;
  }
  const std::string_view found =
      path.substr(before.size(), path.size() - before.size() - after.size());
  if (found.find('/') != std::string_view::npos) return false;
  name = found;
  return true;
}

std::pair<std::string_view, std::string_view> split(std::string_view http) {
  const std::size_t space = http.find(' ');
  return {http.substr(0, space), http.substr(space + 1)};
}

std::string_view method_of(const Request& request) {
  return request.method == "HEAD" ? std::string_view("GET") : std::string_view(request.method);
}

bool is_page(const Request& request) {
  return method_of(request) == "GET" && !request.path.starts_with("/api/") &&
         !request.path.starts_with("/assets/") && request.path != "/metrics";
}

std::uint64_t number(const std::string& text_untrusted, std::uint64_t otherwise,
                     std::uint64_t limit) {
  std::uint64_t out = 0;
  const auto [end, failed] =
      std::from_chars(text_untrusted.data(), text_untrusted.data() + text_untrusted.size(), out);
  if (failed != std::errc() || end != text_untrusted.data() + text_untrusted.size()) return otherwise;
  return std::min(out, limit);
}

Response text_response(const std::string& text, int status = 200) {
  Response out;
  out.status = status;
  out.content_type = "text/plain; charset=utf-8";
  out.body = text + "\n";
  return out;
}

}  // namespace

int http_status(const Error& error) {
  switch (error.code) {
    case Code::kInvalid: return 400;
    case Code::kNotAllowed: return error.operation == "log in" ? 401 : 403;
    case Code::kNotFound: return 404;
    case Code::kConflict: return 409;
    case Code::kUnsupported: return 422;
    case Code::kUnreachable: return 502;
    case Code::kNoSpace: return 503;
    case Code::kTimedOut: return 504;
    default: return 500;
  }
}

Response json_response(const Json& json, int status) {
  Response out;
  out.status = status;
  out.body = dumped(json);
  out.headers.emplace_back("Cache-Control", "no-store");
  return out;
}

Response error_response(const Error& error) {
  return json_response(error_json(error), http_status(error));
}

const std::vector<Routes::Entry>& Routes::handlers() {
  static const std::vector<Entry> kHandlers = {
      {"GET /api/v1/nodes", &Routes::nodes},
      {"GET /api/v1/nodes/{name}", &Routes::node},
      {"GET /api/v1/workloads", &Routes::workloads},
      {"GET /api/v1/workloads/{name}", &Routes::workload},
      {"GET /api/v1/workloads/{name}/checkpoints", &Routes::checkpoints},
      {"GET /api/v1/workloads/{name}/history", &Routes::history},
      {"GET /api/v1/log", &Routes::log},
      {"GET /api/v1/version", &Routes::version},
      {"GET /api/v1/overview", &Routes::overview},
      {"GET /api/v1/events", &Routes::stream},
      {"GET /api/v1/session", &Routes::session},
      {"POST /api/v1/logout", &Routes::logout},
      {"GET /api/v1/movements", &Routes::movements},
      {"GET /api/v1/movements/{name}", &Routes::movement},
      {"GET /api/v1/audit", &Routes::audit},
      {"GET /metrics", &Routes::metrics},
      {"POST /api/v1/workloads/{name}/checkpoint", &Routes::checkpoint_now},
      {"POST /api/v1/workloads/{name}/migrate", &Routes::migrate},
      {"POST /api/v1/workloads/{name}/abort", &Routes::abort},
      {"POST /api/v1/workloads/{name}/failover", &Routes::failover},
  };
  return kHandlers;
}

Routes::Routes(Parts parts) : parts_(std::move(parts)) {
  std::set<std::string_view> table, ours;
  for (const auto& row : kRpcRoles) {
    if (!row.http.empty()) CHECK(table.insert(row.http).second);
  }
  for (const auto& entry : handlers()) CHECK(ours.insert(entry.http).second);
  CHECK(table == ours);
}

std::string Routes::pattern_of(const Request& request) {
  std::string name;
  for (const auto& entry : handlers()) {
    const auto [method, pattern] = split(entry.http);
    if (method == method_of(request) && matches(pattern, request.path, name)) {
      return std::string(entry.http);
    }
  }
  for (std::string_view http : kPublicRoutes) {
    const auto [method, pattern] = split(http);
    if (method == method_of(request) && matches(pattern, request.path, name)) return std::string(http);
  }
  return is_page(request) ? "GET /" : "other";
}

Response Routes::answer(const Request& request) {
  if (request.path == "/livez") return text_response("ok");
  if (request.path == "/readyz") return ready();
  if (auto good = check_host(request, parts_.hosts); !good) return error_response(good.error());
  bool other_method = false;
  std::string name;
  for (const auto& row : kRpcRoles) {
    if (row.http.empty()) continue;
    const auto [method, pattern] = split(row.http);
    if (!matches(pattern, request.path, name)) continue;
    if (method == method_of(request)) return guarded(request, row, name);
    other_method = true;
  }
  if (request.path == "/api/v1/login") {
    if (request.method == "POST") return login(request);
    other_method = true;
  }
  if (other_method || (request.method != "GET" && request.method != "HEAD")) {
    Response out = error_response(make_error(Code::kInvalid, request.method,
                                             "not a method of " + request.path));
    out.status = 405;
    return out;
  }
  return page(request);
}

Response Routes::guarded(const Request& request, const RpcRoles& row, const std::string& name) {
  auto caller = find_caller(request, parts_.logins);
  if (!caller) return error_response(caller.error());
  if (row.changes()) {
    if (auto good = check_source(request); !good) return error_response(good.error());
    if (auto good = check_csrf(request, *caller); !good) return error_response(good.error());
  }
  if (auto good = check_role(*caller, row); !good) {
    if (row.audited) {
      auto entry = audit_entry(request, *caller, std::string(row.rpc).c_str());
      entry.set_target(name);
      entry.set_outcome("refused");
      entry.set_problem(good.error().message());
      if (auto done = parts_.audit.append(std::move(entry)); !done) return error_response(done.error());
    }
    return error_response(good.error());
  }
  for (const auto& entry : handlers()) {
    if (entry.http == row.http) return (this->*entry.handler)(request, *caller, name);
  }
  CHECK(false);
  return {};
}

pb::AuditEntry Routes::audit_entry(const Request& request, const Caller& caller,
                                   const char* action) const {
  pb::AuditEntry out;
  out.set_who(caller.who.to_string());
  out.set_from(request.peer);
  out.set_via("http");
  out.set_action(action);
  return out;
}

// --- without a login ------------------------------------------------------------------------

Response Routes::ready() const {
  const auto age = parts_.observatory.age();
  if (parts_.observatory.picture()->number > 0 && age < kReadyAge) return text_response("ready");
  return text_response("not ready: the state has not been read for " +
                           std::to_string(age.count() / 1'000'000'000) + " s",
                       503);
}

Response Routes::page(const Request& request) const {
  const Asset* asset = find_asset(is_page(request) ? "/" : request.path);
  if (!asset) {
    return error_response(make_error(Code::kNotFound, request.method, "no such path: " +
                                         request.path.substr(0, 200), "See docs/api.md."));
  }
  Response out;
  out.content_type = asset->content_type;
  out.headers.emplace_back("ETag", std::string(asset->etag));
  out.headers.emplace_back("Cache-Control",
                           asset->forever ? "public, max-age=31536000, immutable" : "no-cache");
  out.headers.emplace_back("Vary", "Accept-Encoding");
  if (request.header("if-none-match") == asset->etag) {
    out.status = 304;
    return out;
  }
  if (!asset->gzip.empty() && request.header("accept-encoding").find("gzip") != std::string::npos) {
    out.headers.emplace_back("Content-Encoding", "gzip");
    out.body = asset->gzip;
  } else {
    out.body = asset->plain;
  }
  return out;
}

Response Routes::login(const Request& request) {
  if (auto good = check_source(request); !good) return error_response(good.error());
  const Json body = Json::parse(request.body, nullptr, false);
  if (!body.is_object() || !body.contains("token") || !body["token"].is_string()) {
    return error_response(make_error(Code::kInvalid, "read the request", "it holds no token"));
  }
  auto cookie = parts_.logins.redeem(body["token"].get<std::string>());
  // Not audited: strangers could push what matters out of the log.
  if (!cookie && cookie.error().code == Code::kNoSpace) return error_response(cookie.error());
  pb::AuditEntry entry;
  entry.set_from(request.peer);
  entry.set_via("http");
  entry.set_action("Login");
  if (!cookie) {
    entry.set_who("unknown");
    entry.set_outcome("refused");
    entry.set_problem(cookie.error().message());
  } else {
    if (auto login = parts_.logins.find(*cookie)) entry.set_who(login->who.to_string());
    entry.set_outcome("done");
  }
  if (auto done = parts_.audit.append(std::move(entry)); !done) {
    if (cookie) parts_.logins.end(*cookie);
    return error_response(done.error());
  }
  if (!cookie) return error_response(cookie.error());
  Response out = json_response(Json::object());
  out.headers.emplace_back("Set-Cookie", std::string(kCookieName) + "=" + *cookie +
                                             "; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=" +
                                             std::to_string(std::chrono::seconds(kSessionLife).count()));
  return out;
}

// --- what people read -----------------------------------------------------------------------

Response Routes::nodes(const Request&, const Caller&, const std::string&) {
  auto nodes = parts_.coordinator.list_nodes();
  if (!nodes) return error_response(nodes.error());
  Json list = Json::array();
  for (const auto& node : nodes->nodes()) list.push_back(cli::node_json(node));
  return json_response(list);
}

Response Routes::node(const Request&, const Caller&, const std::string& name) {
  auto node = parts_.coordinator.show_node(name);
  return node ? json_response(cli::node_json(*node)) : error_response(node.error());
}

Response Routes::workloads(const Request&, const Caller&, const std::string&) {
  auto list = parts_.coordinator.list_workloads();
  if (!list) return error_response(list.error());
  Json out = Json::array();
  for (const auto& info : list->workloads()) out.push_back(cli::workload_json(info));
  return json_response(out);
}

Response Routes::workload(const Request&, const Caller&, const std::string& name) {
  auto info = parts_.coordinator.show_workload(name);
  if (!info) return error_response(info.error());
  Json out = cli::workload_json(*info);
  out["status"] = message_json(info->status());  // whatever else its node reports
  const auto picture = parts_.observatory.picture();
  for (const auto& row : picture->rows) {
    if (row.info.spec().name() != name) continue;
    const Json light = row_json(row);
    for (const char* key : {"risk", "rates", "known_share", "lag_target_us", "last_handover"}) {
      out[key] = light.at(key);
    }
  }
  return json_response(out);
}

Response Routes::checkpoints(const Request&, const Caller&, const std::string& name) {
  auto list = parts_.coordinator.list_checkpoints(name);
  if (!list) return error_response(list.error());
  Json out = Json::array();
  for (const auto& info : list->checkpoints()) out.push_back(cli::checkpoint_json(info));
  return json_response(out);
}

Response Routes::history(const Request& request, const Caller&, const std::string& name) {
  const std::uint64_t seconds = number(request.asked("seconds"), 300, kMaxHistorySeconds);
  const std::uint64_t now_ms = parts_.observatory.picture()->wall_ns / 1'000'000;
  auto samples =
      parts_.observatory.history(name, now_ms > seconds * 1'000 ? now_ms - seconds * 1'000 : 0);
  return samples ? json_response(samples_json(*samples)) : error_response(samples.error());
}

Response Routes::log(const Request& request, const Caller&, const std::string&) {
  pb::EventsRequest ask;
  ask.set_after_id(number(request.asked("after"), 0, UINT64_MAX));
  ask.set_workload(request.asked("workload").substr(0, 64));
  const std::size_t newest = number(request.asked("newest"), kMaxLogEntries, kMaxLogEntries);
  std::deque<pb::Event> kept;
  auto done = parts_.coordinator.events(
      ask,
      [&](const pb::Event& event) {
        kept.push_back(event);
        if (kept.size() > newest) kept.pop_front();
        return true;
      },
      [] { return true; });
  if (!done) return error_response(done.error());
  Json out = Json::array();
  for (const auto& event : kept) out.push_back(cli::event_json(event));
  return json_response(out);
}

Response Routes::version(const Request&, const Caller&, const std::string&) {
  const auto version = parts_.coordinator.version();
  return json_response({{"version", version.version()},
                        {"commit", version.commit()},
                        {"cluster", version.cluster()},
                        {"api", "v1"}});
}

Response Routes::overview(const Request&, const Caller&, const std::string&) {
  const auto picture = parts_.observatory.picture();
  Json out = overview_json(*picture);
  for (auto& row : out["workloads"]) {
    Json spark = Json::array();
    for (const auto& sample : parts_.observatory.spark(row["name"].get<std::string>())) {
      spark.push_back(static_cast<std::uint64_t>(sample.lag_max_us));
    }
    row["spark"] = std::move(spark);
  }
  return json_response(out);
}

Response Routes::stream(const Request&, const Caller&, const std::string&) {
  Response out;
  out.content_type = "text/event-stream";
  out.headers.emplace_back("Cache-Control", "no-store");
  out.stream = true;
  return out;
}

Response Routes::session(const Request&, const Caller& caller, const std::string&) {
  const auto version = parts_.coordinator.version();
  Json may_do = Json::array();
  for (const auto& row : kRpcRoles) {
    if (!row.http.empty() && may(caller.who.role, row)) may_do.push_back(row.http);
  }
  return json_response({{"who", caller.who.to_string()},
                        {"role", transport::role_name(caller.who.role)},
                        {"name", caller.who.name},
                        {"by_certificate", caller.by_certificate},
                        {"csrf", caller.csrf},
                        {"may", may_do},
                        {"cluster", version.cluster()},
                        {"version", version.version()}});
}

Response Routes::logout(const Request& request, const Caller&, const std::string&) {
  parts_.logins.end(cookie(request, kCookieName));
  Response out = json_response(Json::object());
  out.headers.emplace_back("Set-Cookie", std::string(kCookieName) +
                                             "=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0");
  return out;
}

Response Routes::movements(const Request&, const Caller&, const std::string&) {
  Json out = Json::array();
  for (const auto& one : parts_.movements.list()) out.push_back(movement_json(one));
  return json_response(out);
}

Response Routes::movement(const Request&, const Caller&, const std::string& id) {
  const auto found = parts_.movements.find(number(id, 0, UINT64_MAX));
  if (found) return json_response(movement_json(*found));
  return error_response(make_error(Code::kNotFound, "movement", "no movement " + id.substr(0, 40),
                                   "The newest are kept, until the coordinator restarts."));
}

Response Routes::audit(const Request& request, const Caller&, const std::string&) {
  pb::AuditRequest ask;
  ask.set_after_id(number(request.asked("after"), 0, UINT64_MAX));
  ask.set_newest(static_cast<std::uint32_t>(number(request.asked("newest"), 200, 1'000)));
  ask.set_target(request.asked("target").substr(0, 64));
  Json out = Json::array();
  auto done = parts_.audit.read(ask, [&](const pb::AuditEntry& entry) {
    out.push_back(cli::audit_json(entry));
    return out.size() < 1'000;
  });
  return done ? json_response(out) : error_response(done.error());
}

Response Routes::metrics(const Request&, const Caller&, const std::string&) {
  Response out;
  out.content_type = "text/plain; version=0.0.4; charset=utf-8";
  out.headers.emplace_back("Cache-Control", "no-store");
  out.body = parts_.metrics.text(*parts_.observatory.picture(),
                                 static_cast<double>(parts_.observatory.age().count()) * 1e-9);
  return out;
}

}  // namespace baton::coordinator::http
