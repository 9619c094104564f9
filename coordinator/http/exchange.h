// One HTTP request and its answer as values, so that routes and guards are tested without a
// network. What stands in a Request was sent by a stranger unless it says otherwise; its sizes
// were bounded by the server (server.h).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "transport/identity.h"

namespace baton::coordinator::http {

struct Request {
  std::string method;                        // GET, HEAD, POST
  std::string path;                          // before '?', decoded, begins with '/'
  std::map<std::string, std::string> query;  // decoded
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  std::string peer;                          // address of the caller; not from the caller
  std::optional<transport::Identity> certificate;  // verified by TLS

  std::string header(const std::string& name) const {
    auto found = headers.find(name);
    return found == headers.end() ? std::string() : found->second;
  }
  std::string asked(const std::string& key) const {
    auto found = query.find(key);
    return found == query.end() ? std::string() : found->second;
  }
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  bool stream = false;  // the connection becomes an event stream
};

// "a=b&c=%20" decoded, at most 32 pairs. A broken escape is kept as it stands.
std::map<std::string, std::string> parse_query(const std::string& text_untrusted);
std::string percent_decoded(const std::string& text_untrusted);
// The cookie of that name; empty: none.
std::string cookie(const Request& request, const std::string& name);

}  // namespace baton::coordinator::http
