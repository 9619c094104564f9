#include "transport/x509/openssl.h"

#include <arpa/inet.h>

#include <ctime>

#include <openssl/err.h>
#include <openssl/pem.h>

#include "transport/pki.h"

namespace baton::transport::x509 {

std::string take_error() {
  std::string text = "unknown OpenSSL error";
  while (unsigned long code = ERR_get_error()) {
    char buffer[256];
    ERR_error_string_n(code, buffer, sizeof buffer);
    text = buffer;
  }
  return text;
}

namespace {

Bio read_bio(std::string_view bytes) {
  return Bio(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
}

int no_passphrase(char*, int, int, void*) { return -1; }

}  // namespace

Result<Certificate> parse_certificate(std::string_view pem_untrusted) {
  Bio bio = read_bio(pem_untrusted);
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, no_passphrase, nullptr));
  if (!certificate) return make_error(Code::kInvalid, "read certificate", take_error());
  return certificate;
}

Result<Key> parse_key(std::string_view pem_untrusted) {
  Bio bio = read_bio(pem_untrusted);
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr));
  if (!key) return make_error(Code::kInvalid, "read key", take_error());
  return key;
}

std::chrono::system_clock::time_point to_time(const ASN1_TIME* time) {
  std::tm parts{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &parts) != 1) return {};
  return std::chrono::system_clock::from_time_t(timegm(&parts));
}

AltNames alt_names(X509* certificate) {
  AltNames found;
  Names names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  if (!names) return found;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    auto text = [](const ASN1_STRING* s) {
      return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(s)),
                         static_cast<std::size_t>(ASN1_STRING_length(s)));
    };
    if (name->type == GEN_URI) found.uris.push_back(text(name->d.uniformResourceIdentifier));
    if (name->type == GEN_DNS) found.dns.push_back(text(name->d.dNSName));
    if (name->type == GEN_IPADD) {
      const std::string raw = text(name->d.iPAddress);
      char buffer[INET6_ADDRSTRLEN];
      const int family = raw.size() == 4 ? AF_INET : AF_INET6;
      if ((raw.size() == 4 || raw.size() == 16) &&
          inet_ntop(family, raw.data(), buffer, sizeof buffer) != nullptr)
        found.ips.emplace_back(buffer);
    }
  }
  return found;
}

Result<Identity> identity_of(X509* certificate) {
  const AltNames names = alt_names(certificate);
  if (names.uris.size() != 1)
    return make_error(Code::kNotAllowed, "read identity",
                      "the certificate names " + std::to_string(names.uris.size()) +
                          " identities, not one",
                      "Use a certificate made by `baton pki issue`.");
  auto identity = parse_identity(names.uris.front());
  if (!identity) {
    Error error = std::move(identity).error();
    error.code = Code::kNotAllowed;
    return error;
  }
  return identity;
}

std::string display_name(X509* certificate) {
  if (certificate == nullptr) return "the peer";
  if (auto identity = identity_of(certificate)) return identity->to_string();
  char buffer[256] = "";
  X509_NAME_oneline(X509_get_subject_name(certificate), buffer, sizeof buffer);
  return std::string("subject ") + buffer;
}

Error verify_error(int x509_error, X509* certificate, std::string_view operation) {
  const std::string who = display_name(certificate);
  const std::string renew = "Renew it with `baton pki renew`.";
  switch (x509_error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return make_error(
          Code::kNotAllowed, operation,
          "certificate of " + who + " expired on " +
              (certificate ? format_time(to_time(X509_get0_notAfter(certificate))) : "?"),
          renew);
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return make_error(
          Code::kNotAllowed, operation,
          "certificate of " + who + " is not valid before " +
              (certificate ? format_time(to_time(X509_get0_notBefore(certificate))) : "?"),
          "Check this machine's date, or renew the certificate.");
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return make_error(Code::kNotAllowed, operation,
                        "certificate of " + who + " is not signed by this cluster's CA",
                        "It belongs to another cluster, or the CA was made anew: issue it again.");
    default:
      return make_error(Code::kNotAllowed, operation,
                        "certificate of " + who + ": " + X509_verify_cert_error_string(x509_error));
  }
}

}  // namespace baton::transport::x509
