// Guard: decides whether a request may be answered: its host, its caller, its role, and for
// what changes something, that no other site made the browser send it.
//
// A caller is who his client certificate says, else who his session cookie says. Requests that
// change something need, from a browser: our own Origin, Sec-Fetch-Site same-origin, a JSON
// body, and the CSRF token of the session. Other programs with a certificate send neither
// Origin nor Sec-Fetch-Site nor a cookie: nobody can make them send a request.
// Pure, but for the look-up of the session.
#pragma once

#include <set>
#include <string>

#include "base/error.h"
#include "coordinator/http/exchange.h"
#include "coordinator/logins.h"
#include "coordinator/roles.h"

namespace baton::coordinator::http {

inline constexpr const char* kCookieName = "__Host-baton";
inline constexpr const char* kCsrfHeader = "x-baton-csrf";

struct Caller {
  transport::Identity who;
  std::string csrf;
  bool by_certificate = false;
};

// The host of the request is one of `hosts` (addresses and names of our certificate): a name
// that somebody pointed at our address is not. Fails: kInvalid.
Result<void> check_host(const Request& request, const std::set<std::string>& hosts);

// Fails: kNotAllowed with the operation "log in": nobody is logged in.
Result<Caller> find_caller(const Request& request, Logins& logins);

// Fails: kNotAllowed.
Result<void> check_role(const Caller& caller, const RpcRoles& entry);

// That a browser was not made to send it by another site. Fails: kNotAllowed, kInvalid.
Result<void> check_source(const Request& request);
Result<void> check_csrf(const Request& request, const Caller& caller);

}  // namespace baton::coordinator::http
