#include "coordinator/http/guard.h"

#include <openssl/crypto.h>

namespace baton::coordinator::http {
namespace {

// "10.0.0.1:7443", "[::1]:7443" without the port.
std::string host_only(const std::string& host) {
  if (host.starts_with('[')) {
    const std::size_t end = host.find(']');
    return end == std::string::npos ? host : host.substr(1, end - 1);
  }
  return host.substr(0, host.find(':'));
}

bool same_secret(const std::string& a, const std::string& b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

Error foreign(const std::string& why) {
  return make_error(Code::kNotAllowed, "accept the request", why,
                    "Requests that change something come from the dashboard's own pages, or "
                    "from a program with a client certificate.");
}

}  // namespace

Result<void> check_host(const Request& request, const std::set<std::string>& hosts) {
  const std::string host = host_only(request.header("host"));
  if (hosts.contains(host)) return {};
  return make_error(Code::kInvalid, "accept the request",
                    "'" + host.substr(0, 100) + "' is not a name of this coordinator",
                    "Use an address or name that its certificate holds.");
}

Result<Caller> find_caller(const Request& request, Logins& logins) {
  if (request.certificate) {
    return Caller{*request.certificate, logins.csrf_of(*request.certificate), true};
  }
  if (auto login = logins.find(cookie(request, kCookieName))) {
    return Caller{login->who, login->csrf, false};
  }
  return make_error(Code::kNotAllowed, "log in", "nobody is logged in",
                    "Open the link that `baton dashboard` prints, or use a client certificate.");
}

Result<void> check_role(const Caller& caller, const RpcRoles& entry) {
  if (may(caller.who.role, entry)) return {};
  return not_allowed(caller.who, entry.http, entry);
}

Result<void> check_source(const Request& request) {
  const std::string origin = request.header("origin");
  if (!origin.empty() && origin != "https://" + request.header("host")) {
    return foreign("it comes from " + origin.substr(0, 100));
  }
  const std::string site = request.header("sec-fetch-site");
  if (!site.empty() && site != "same-origin" && site != "none") {
    return foreign("the browser says that it comes from another site (" + site.substr(0, 40) + ")");
  }
  const std::string type = request.header("content-type");
  if (type != "application/json" && !type.starts_with("application/json;")) {
    return make_error(Code::kInvalid, "accept the request", "the body is not application/json",
                      "Send Content-Type: application/json.");
  }
  return {};
}

Result<void> check_csrf(const Request& request, const Caller& caller) {
  const bool browser = !caller.by_certificate || !request.header("origin").empty() ||
                       !request.header("sec-fetch-site").empty() ||
                       !request.header("cookie").empty();
  if (!browser || same_secret(request.header(kCsrfHeader), caller.csrf)) return {};
  return foreign("it does not carry the token of its session");
}

}  // namespace baton::coordinator::http
