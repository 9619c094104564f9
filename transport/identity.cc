#include "transport/identity.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/fd.h"
#include "transport/x509/openssl.h"

namespace baton::transport {
namespace {

constexpr std::string_view kScheme = "spiffe://";
constexpr std::size_t kMaxNameBytes = 63;
constexpr std::size_t kMaxPemBytes = 256 * 1024;

Error missing(Error error, std::string_view file) {
  if (error.code == Code::kNotFound)
    error.hint = "Make it with `baton pki issue` (" + std::string(file) + " is missing).";
  return error;
}

Result<std::string> read_pem(const std::string& folder, std::string_view file) {
  auto text = read_file(folder + "/" + std::string(file), kMaxPemBytes);
  if (!text) return missing(std::move(text).error(), file);
  return text;
}

Result<void> check_key_mode(const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0) return errno_error("stat", path);
  if ((st.st_mode & 07) != 0)
    return make_error(Code::kNotAllowed, "load certificate", path + " is open to every user",
                      "chmod 600 it.");
  return {};
}

Result<void> check_chain(X509* ca, X509* leaf) {
  x509::Store store(X509_STORE_new());
  x509::StoreContext context(X509_STORE_CTX_new());
  X509_STORE_add_cert(store.get(), ca);
  if (X509_STORE_CTX_init(context.get(), store.get(), leaf, nullptr) != 1)
    return make_error(Code::kFailed, "load certificate", x509::take_error());
  if (X509_verify_cert(context.get()) != 1)
    return x509::verify_error(X509_STORE_CTX_get_error(context.get()),
                              X509_STORE_CTX_get_current_cert(context.get()), "load certificate");
  return {};
}

}  // namespace

std::string_view role_name(Role role) {
  switch (role) {
    case Role::kNode: return "node";
    case Role::kOperator: return "operator";
    case Role::kViewer: return "viewer";
    case Role::kCoordinator: return "coordinator";
  }
  return "unknown";
}

Result<Role> parse_role(std::string_view text_untrusted) {
  for (Role role : {Role::kNode, Role::kOperator, Role::kViewer, Role::kCoordinator})
    if (text_untrusted == role_name(role)) return role;
  return make_error(Code::kInvalid, "parse role",
                    "'" + std::string(text_untrusted.substr(0, kMaxNameBytes)) + "'",
                    "Roles are node, operator, viewer, coordinator.");
}

bool is_valid_name(std::string_view text_untrusted) {
  auto alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !text_untrusted.empty() && text_untrusted.size() <= kMaxNameBytes &&
         alnum(text_untrusted.front()) && alnum(text_untrusted.back()) &&
         std::ranges::all_of(text_untrusted, [&](char c) { return alnum(c) || c == '-' || c == '.'; });
}

std::string Identity::uri() const {
  return std::string(kScheme) + cluster + "/" + std::string(role_name(role)) + "/" + name;
}

std::string Identity::to_string() const { return std::string(role_name(role)) + " " + name; }

Result<Identity> parse_identity(std::string_view uri_untrusted) {
  auto refuse = [&](std::string why) -> Error {
    return make_error(Code::kInvalid, "parse identity",
                      "'" + std::string(uri_untrusted.substr(0, 256)) + "': " + why,
                      "An identity is spiffe://CLUSTER/ROLE/NAME.");
  };
  if (!uri_untrusted.starts_with(kScheme)) return refuse("does not begin with spiffe://");
  const std::string_view rest = uri_untrusted.substr(kScheme.size());
  const std::size_t first = rest.find('/');
  const std::size_t second = first == rest.npos ? rest.npos : rest.find('/', first + 1);
  if (second == rest.npos) return refuse("does not have three parts");
  const std::string_view cluster = rest.substr(0, first);
  const std::string_view name = rest.substr(second + 1);
  if (!is_valid_name(cluster)) return refuse("not a valid cluster name");
  if (!is_valid_name(name)) return refuse("not a valid name");
  auto role = parse_role(rest.substr(first + 1, second - first - 1));
  if (!role) return refuse("unknown role");
  return Identity{std::string(cluster), *role, std::string(name)};
}

Result<TlsFiles> load_tls(const std::string& folder, std::string_view cluster) {
  TlsFiles tls;
  BATON_ASSIGN(tls.ca_pem, read_pem(folder, kCaFile));
  BATON_ASSIGN(tls.cert_pem, read_pem(folder, kCertFile));
  BATON_ASSIGN(tls.key_pem, read_pem(folder, kKeyFile));
  const std::string key_path = folder + "/" + std::string(kKeyFile);
  BATON_TRY(check_key_mode(key_path));

  auto in_file = [&](std::string_view file, Error error) {
    error.operation = "load certificate";
    error.subject = folder + "/" + std::string(file) + ": " + error.subject;
    return error;
  };
  auto ca = x509::parse_certificate(tls.ca_pem);
  if (!ca) return in_file(kCaFile, std::move(ca).error());
  auto leaf = x509::parse_certificate(tls.cert_pem);
  if (!leaf) return in_file(kCertFile, std::move(leaf).error());
  auto key = x509::parse_key(tls.key_pem);
  if (!key) return in_file(kKeyFile, std::move(key).error());
  if (X509_check_private_key(leaf->get(), key->get()) != 1) {
    x509::take_error();
    return make_error(Code::kInvalid, "load certificate",
                      key_path + " does not match the certificate of " +
                          x509::display_name(leaf->get()),
                      "Issue or renew the pair together.");
  }
  auto identity = x509::identity_of(leaf->get());
  if (!identity) return in_file(kCertFile, std::move(identity).error());
  tls.identity = std::move(*identity);
  if (!cluster.empty() && tls.identity.cluster != cluster)
    return make_error(Code::kNotAllowed, "load certificate",
                      folder + ": certificate of " + tls.identity.to_string() +
                          " is of the cluster " + tls.identity.cluster + ", not " +
                          std::string(cluster));
  BATON_TRY(check_chain(ca->get(), leaf->get()));
  tls.not_after = x509::to_time(X509_get0_notAfter(leaf->get()));
  return tls;
}

}  // namespace baton::transport
