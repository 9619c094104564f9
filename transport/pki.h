// The cluster's own certificate authority: one ECDSA P-256 CA per cluster, and a leaf
// certificate for each node, operator, viewer and coordinator. What `baton pki` calls.
//
// A CA folder holds ca.crt and ca.key (mode 0600); an issued folder holds ca.crt, tls.crt
// and tls.key (0600), which is what load_tls reads. Existing keys are never overwritten.
// Threads: every function blocks on files and keeps no state; one writer per folder.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::transport {

inline constexpr int kDefaultCaDays = 3650;
inline constexpr int kDefaultLeafDays = 365;
inline constexpr int kMaxDays = 36500;

// Makes a CA for `cluster` in `folder` (made with mode 0700 when missing).
// Fails: kConflict (a CA is there already), kInvalid (name), kFailed.
Result<void> init_ca(const std::string& folder, std::string_view cluster, int days = kDefaultCaDays);

struct IssueRequest {
  Role role = Role::kNode;
  std::string name;
  std::vector<std::string> addresses;  // IP addresses or DNS names, in the SAN beside the identity
  int days = kDefaultLeafDays;
  // Shifts the beginning of the validity; tests make expired and future certificates with it.
  std::chrono::seconds not_before_offset{-300};
};

// Issues a certificate and key into `out_folder` (made with mode 0700 when missing).
// Fails: kNotFound (no CA in `ca_folder`), kConflict (out_folder holds a key already: renew),
// kInvalid (name, address, days).
Result<void> issue(const std::string& ca_folder, const IssueRequest& request,
                   const std::string& out_folder);

// A new key and certificate with the identity and addresses of the one in `out_folder`.
// Each file is replaced whole, the key before the certificate; programs that run keep the
// old pair until they restart. Works on an expired certificate too.
// Fails: kNotFound, kNotAllowed (of another cluster).
Result<void> renew(const std::string& ca_folder, const std::string& out_folder,
                   int days = kDefaultLeafDays);

struct CertificateInfo {
  Identity identity;  // of a CA: role coordinator, name "ca"
  bool is_ca = false;
  std::vector<std::string> addresses;
  std::chrono::system_clock::time_point not_before, not_after;
  std::string serial_hex;
};

// What a PEM certificate says of itself; proves nothing. Fails: kInvalid.
Result<CertificateInfo> inspect_pem(std::string_view pem_untrusted);
// The certificate file at `path`. Fails: kNotFound, kInvalid.
Result<CertificateInfo> inspect(const std::string& path);

// "2026-11-21 07:30 UTC", for messages.
std::string format_time(std::chrono::system_clock::time_point time);

}  // namespace baton::transport
