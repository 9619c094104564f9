// Identity: who a certificate speaks for. Its SAN holds exactly one URI
//   spiffe://CLUSTER/ROLE/NAME      ROLE: node, operator, viewer, coordinator
// TlsFiles: this program's certificate, key and the cluster's CA, read and checked once.
//
// Refuses anything that is not exactly of this form: no empty part, no other characters
// than [a-z0-9.-] in CLUSTER and NAME, no query, no trailing slash.
// Threads: values; load_tls blocks on files.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "base/error.h"

namespace baton::transport {

enum class Role { kNode = 1, kOperator, kViewer, kCoordinator };

std::string_view role_name(Role role);
// Fails: kInvalid.
Result<Role> parse_role(std::string_view text_untrusted);

// 1 to 63 of [a-z0-9.-], beginning and ending with a letter or digit.
bool is_valid_name(std::string_view text_untrusted);

struct Identity {
  std::string cluster;
  Role role = Role::kNode;
  std::string name;
  friend bool operator==(const Identity&, const Identity&) = default;

  std::string uri() const;       // spiffe://vecu/node/ecu1
  std::string to_string() const;  // "node ecu1"
};

// Fails: kInvalid, quoting the text.
Result<Identity> parse_identity(std::string_view uri_untrusted);

// The names of the files in a TLS folder; `baton pki issue` writes them.
inline constexpr std::string_view kCaFile = "ca.crt";
inline constexpr std::string_view kCertFile = "tls.crt";
inline constexpr std::string_view kKeyFile = "tls.key";

struct TlsFiles {
  Identity identity;
  std::string ca_pem;
  std::string cert_pem;
  std::string key_pem;
  std::chrono::system_clock::time_point not_after;
};

// Reads and checks the three files of `folder`: key belongs to certificate, certificate
// signed by the CA and valid now, its identity well-formed and (when `cluster` is given) of
// that cluster. Fails: kNotFound (a file is missing; the hint says how to issue one),
// kNotAllowed (expired, not yet valid, another cluster, another CA, unreadable or readable
// by others), kInvalid (not PEM, key does not match, no identity).
Result<TlsFiles> load_tls(const std::string& folder, std::string_view cluster = {});

}  // namespace baton::transport
