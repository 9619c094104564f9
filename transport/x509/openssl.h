// Owners for OpenSSL objects, and the few readings of a certificate that several files need.
// Threads: an object belongs to one thread at a time, as in OpenSSL.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "base/error.h"
#include "transport/identity.h"

namespace baton::transport::x509 {

template <auto Free>
struct FreeWith {
  template <typename T>
  void operator()(T* object) const noexcept {
    Free(object);
  }
};
using Certificate = std::unique_ptr<X509, FreeWith<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, FreeWith<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, FreeWith<BIO_free_all>>;
using Store = std::unique_ptr<X509_STORE, FreeWith<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, FreeWith<X509_STORE_CTX_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, FreeWith<GENERAL_NAMES_free>>;

// The newest error of OpenSSL's queue as text, which is emptied.
std::string take_error();

// Fails: kInvalid.
Result<Certificate> parse_certificate(std::string_view pem_untrusted);
Result<Key> parse_key(std::string_view pem_untrusted);

std::chrono::system_clock::time_point to_time(const ASN1_TIME* time);

struct AltNames {
  std::vector<std::string> uris, dns, ips;
};
AltNames alt_names(X509* certificate);

// The one identity in the SAN. Fails: kNotAllowed (none, several, malformed).
Result<Identity> identity_of(X509* certificate);
// "node ecu1", or the subject when there is no identity: for messages only.
std::string display_name(X509* certificate);

// What is wrong with `certificate`, for a person: X509_V_ERR_* to an Error.
Error verify_error(int x509_error, X509* certificate, std::string_view operation);

}  // namespace baton::transport::x509
