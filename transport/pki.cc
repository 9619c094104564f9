#include "transport/pki.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <ctime>

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include "base/fd.h"
#include "transport/x509/openssl.h"

namespace baton::transport {
namespace {

using namespace std::chrono;

constexpr std::string_view kCaKeyFile = "ca.key";
constexpr long kX509Version3 = 2;
constexpr std::size_t kMaxPemBytes = 256 * 1024;
constexpr std::size_t kMaxAddresses = 64;

struct Authority {
  x509::Certificate certificate;
  x509::Key key;
  std::string pem;
  std::string cluster;
};

std::string join(const std::string& folder, std::string_view file) {
  return folder + "/" + std::string(file);
}

Error openssl_error(std::string_view operation) {
  return make_error(Code::kFailed, operation, x509::take_error());
}

Result<void> make_folder(const std::string& folder) {
  for (std::size_t slash = folder.find('/', 1); slash != folder.npos;
       slash = folder.find('/', slash + 1))
    ::mkdir(folder.substr(0, slash).c_str(), 0755);  // what is missing shows below
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return errno_error("make folder", folder);
  return {};
}

Result<x509::Key> make_key() {
  x509::Key key(EVP_EC_gen("P-256"));
  if (!key) return openssl_error("make key");
  return key;
}

Result<void> set_serial(X509* certificate) {
  std::array<unsigned char, 16> bytes{};
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) return openssl_error("make serial");
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7F) | 0x01);  // positive, RFC 5280 4.1.2.2
  std::unique_ptr<BIGNUM, x509::FreeWith<BN_free>> number(
      BN_bin2bn(bytes.data(), bytes.size(), nullptr));
  if (!number || !BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)))
    return openssl_error("make serial");
  return {};
}

Result<void> add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  std::unique_ptr<X509_EXTENSION, x509::FreeWith<X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1)
    return openssl_error("add certificate extension " + value);
  return {};
}

Result<void> add_name(X509_NAME* name, const char* field, std::string_view value) {
  if (X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(value.data()),
                                 static_cast<int>(value.size()), -1, 0) != 1)
    return openssl_error("set certificate name");
  return {};
}

// Version, serial, subject, validity and public key.
Result<x509::Certificate> begin_certificate(EVP_PKEY* key, std::string_view cluster,
                                            std::string_view common_name, seconds not_before_offset,
                                            int days) {
  if (days < 1 || days > kMaxDays)
    return make_error(Code::kInvalid, "make certificate",
                      std::to_string(days) + " days of validity",
                      "1 to " + std::to_string(kMaxDays) + ".");
  x509::Certificate certificate(X509_new());
  if (!certificate) return openssl_error("make certificate");
  X509_set_version(certificate.get(), kX509Version3);
  BATON_TRY(set_serial(certificate.get()));
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  BATON_TRY(add_name(subject, "O", cluster));
  BATON_TRY(add_name(subject, "CN", common_name));
  std::time_t begin = std::time(nullptr) + not_before_offset.count();
  if (!ASN1_TIME_set(X509_getm_notBefore(certificate.get()), begin) ||
      !ASN1_TIME_adj(X509_getm_notAfter(certificate.get()), begin, days, 0) ||
      X509_set_pubkey(certificate.get(), key) != 1)
    return openssl_error("make certificate");
  return certificate;
}

Result<std::string> certificate_pem(X509* certificate) {
  x509::Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1)
    return openssl_error("write certificate");
  char* data = nullptr;
  const long bytes = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<std::size_t>(bytes));
}

Result<std::string> key_pem(EVP_PKEY* key) {
  x509::Bio bio(BIO_new(BIO_s_mem()));
  if (!bio ||
      PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return openssl_error("write key");
  char* data = nullptr;
  const long bytes = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<std::size_t>(bytes));
}

Result<Authority> load_authority(const std::string& folder) {
  auto read = [&](std::string_view file) -> Result<std::string> {
    auto text = read_file(join(folder, file), kMaxPemBytes);
    if (!text && text.error().code == Code::kNotFound)
      return make_error(Code::kNotFound, "open CA", join(folder, file),
                        "Make a CA first: `baton pki init --dir " + folder + "`.");
    return text;
  };
  Authority ca;
  BATON_ASSIGN(ca.pem, read(kCaFile));
  BATON_ASSIGN(std::string key_text, read(kCaKeyFile));
  BATON_ASSIGN(ca.certificate, x509::parse_certificate(ca.pem));
  BATON_ASSIGN(ca.key, x509::parse_key(key_text));
  OPENSSL_cleanse(key_text.data(), key_text.size());
  if (X509_check_private_key(ca.certificate.get(), ca.key.get()) != 1) {
    x509::take_error();
    return make_error(Code::kInvalid, "open CA", folder + ": ca.key does not match ca.crt");
  }
  const auto not_after = x509::to_time(X509_get0_notAfter(ca.certificate.get()));
  if (not_after < system_clock::now())
    return make_error(Code::kNotAllowed, "open CA",
                      folder + ": the CA expired on " + format_time(not_after),
                      "Make a new one with `baton pki init` and issue all certificates again.");
  BATON_ASSIGN(CertificateInfo info, inspect_pem(ca.pem));
  if (!info.is_ca) return make_error(Code::kInvalid, "open CA", folder + ": ca.crt is not of a CA");
  ca.cluster = info.identity.cluster;
  return ca;
}

Result<std::string> alternative_names(const Identity& identity,
                                      const std::vector<std::string>& addresses) {
  if (addresses.size() > kMaxAddresses)
    return make_error(Code::kInvalid, "issue certificate", "more than 64 addresses");
  std::string names = "URI:" + identity.uri();
  bool own_name = false;
  for (const std::string& address : addresses) {
    unsigned char raw[16];
    if (inet_pton(AF_INET, address.c_str(), raw) == 1 ||
        inet_pton(AF_INET6, address.c_str(), raw) == 1) {
      names += ",IP:" + address;
    } else if (is_valid_name(address)) {
      names += ",DNS:" + address;
      own_name = own_name || address == identity.name;
    } else {
      return make_error(Code::kInvalid, "issue certificate",
                        "'" + address + "' is neither an IP address nor a DNS name");
    }
  }
  if (!own_name) names += ",DNS:" + identity.name;
  return names;
}

Result<void> issue_into(const Authority& ca, const IssueRequest& request,
                        const std::string& out_folder) {
  if (!is_valid_name(request.name))
    return make_error(Code::kInvalid, "issue certificate", "name '" + request.name + "'",
                      "1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit.");
  const Identity identity{ca.cluster, request.role, request.name};
  BATON_ASSIGN(const std::string names, alternative_names(identity, request.addresses));
  BATON_ASSIGN(x509::Key key, make_key());
  BATON_ASSIGN(x509::Certificate leaf,
               begin_certificate(key.get(), ca.cluster, identity.to_string(),
                                 request.not_before_offset, request.days));
  X509_set_issuer_name(leaf.get(), X509_get_subject_name(ca.certificate.get()));
  X509* issuer = ca.certificate.get();
  BATON_TRY(add_extension(leaf.get(), issuer, NID_basic_constraints, "critical,CA:FALSE"));
  BATON_TRY(add_extension(leaf.get(), issuer, NID_key_usage, "critical,digitalSignature"));
  BATON_TRY(add_extension(leaf.get(), issuer, NID_ext_key_usage, "serverAuth,clientAuth"));
  BATON_TRY(add_extension(leaf.get(), issuer, NID_subject_key_identifier, "hash"));
  BATON_TRY(add_extension(leaf.get(), issuer, NID_authority_key_identifier, "keyid:always"));
  BATON_TRY(add_extension(leaf.get(), issuer, NID_subject_alt_name, names));
  if (X509_sign(leaf.get(), ca.key.get(), EVP_sha256()) == 0) return openssl_error("sign certificate");

  BATON_ASSIGN(std::string key_text, key_pem(key.get()));
  BATON_ASSIGN(const std::string cert_text, certificate_pem(leaf.get()));
  BATON_TRY(replace_file(join(out_folder, kCaFile), ca.pem, 0644));
  BATON_TRY(replace_file(join(out_folder, kKeyFile), key_text, 0600));
  OPENSSL_cleanse(key_text.data(), key_text.size());
  return replace_file(join(out_folder, kCertFile), cert_text, 0644);
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace

std::string format_time(system_clock::time_point time) {
  const std::time_t seconds_since = system_clock::to_time_t(time);
  std::tm parts{};
  gmtime_r(&seconds_since, &parts);
  char buffer[64];
  std::strftime(buffer, sizeof buffer, "%Y-%m-%d %H:%M UTC", &parts);
  return buffer;
}

Result<void> init_ca(const std::string& folder, std::string_view cluster, int days) {
  if (!is_valid_name(cluster))
    return make_error(Code::kInvalid, "make CA", "cluster name '" + std::string(cluster) + "'",
                      "1 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit.");
  BATON_TRY(make_folder(folder));
  if (exists(join(folder, kCaKeyFile)) || exists(join(folder, kCaFile)))
    return make_error(Code::kConflict, "make CA", folder + " holds a CA already",
                      "Choose another folder; a CA that certificates hang on is never overwritten.");
  BATON_ASSIGN(x509::Key key, make_key());
  BATON_ASSIGN(x509::Certificate ca,
               begin_certificate(key.get(), cluster, "ca", seconds(-300), days));
  X509_set_issuer_name(ca.get(), X509_get_subject_name(ca.get()));
  BATON_TRY(add_extension(ca.get(), ca.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  BATON_TRY(add_extension(ca.get(), ca.get(), NID_key_usage, "critical,keyCertSign,cRLSign"));
  BATON_TRY(add_extension(ca.get(), ca.get(), NID_subject_key_identifier, "hash"));
  if (X509_sign(ca.get(), key.get(), EVP_sha256()) == 0) return openssl_error("sign CA");
  BATON_ASSIGN(std::string key_text, key_pem(key.get()));
  BATON_ASSIGN(const std::string cert_text, certificate_pem(ca.get()));
  BATON_TRY(replace_file(join(folder, kCaKeyFile), key_text, 0600));
  OPENSSL_cleanse(key_text.data(), key_text.size());
  return replace_file(join(folder, kCaFile), cert_text, 0644);
}

Result<void> issue(const std::string& ca_folder, const IssueRequest& request,
                   const std::string& out_folder) {
  BATON_ASSIGN(const Authority ca, load_authority(ca_folder));
  BATON_TRY(make_folder(out_folder));
  if (exists(join(out_folder, kKeyFile)))
    return make_error(Code::kConflict, "issue certificate", out_folder + " holds a key already",
                      "Renew it with `baton pki renew`, or choose another folder.");
  return issue_into(ca, request, out_folder);
}

Result<void> renew(const std::string& ca_folder, const std::string& out_folder, int days) {
  BATON_ASSIGN(const Authority ca, load_authority(ca_folder));
  BATON_ASSIGN(const CertificateInfo old, inspect(join(out_folder, kCertFile)));
  if (old.identity.cluster != ca.cluster)
    return make_error(Code::kNotAllowed, "renew certificate",
                      out_folder + " is of the cluster " + old.identity.cluster +
                          ", the CA of " + ca.cluster);
  IssueRequest request;
  request.role = old.identity.role;
  request.name = old.identity.name;
  request.addresses = old.addresses;
  request.days = days;
  return issue_into(ca, request, out_folder);
}

Result<CertificateInfo> inspect_pem(std::string_view pem_untrusted) {
  BATON_ASSIGN(x509::Certificate certificate, x509::parse_certificate(pem_untrusted));
  CertificateInfo info;
  info.is_ca = X509_check_ca(certificate.get()) == 1;
  if (info.is_ca) {
    char organisation[256] = "";
    X509_NAME_get_text_by_NID(X509_get_subject_name(certificate.get()), NID_organizationName,
                              organisation, sizeof organisation);
    if (!is_valid_name(organisation))
      return make_error(Code::kInvalid, "read certificate", "the CA names no cluster");
    info.identity = Identity{organisation, Role::kCoordinator, "ca"};
  } else {
    auto identity = x509::identity_of(certificate.get());
    if (!identity) {
      Error error = std::move(identity).error();
      error.code = Code::kInvalid;
      return error;
    }
    info.identity = std::move(*identity);
  }
  x509::AltNames names = x509::alt_names(certificate.get());
  info.addresses = std::move(names.ips);
  info.addresses.insert(info.addresses.end(), names.dns.begin(), names.dns.end());
  info.not_before = x509::to_time(X509_get0_notBefore(certificate.get()));
  info.not_after = x509::to_time(X509_get0_notAfter(certificate.get()));
  std::unique_ptr<BIGNUM, x509::FreeWith<BN_free>> serial(
      ASN1_INTEGER_to_BN(X509_get0_serialNumber(certificate.get()), nullptr));
  if (serial) {
    char* hex = BN_bn2hex(serial.get());
    info.serial_hex = hex;
    OPENSSL_free(hex);
  }
  return info;
}

Result<CertificateInfo> inspect(const std::string& path) {
  BATON_ASSIGN(const std::string pem, read_file(path, kMaxPemBytes));
  auto info = inspect_pem(pem);
  if (!info) {
    Error error = std::move(info).error();
    error.subject = path + ": " + error.subject;
    return error;
  }
  return info;
}

}  // namespace baton::transport
