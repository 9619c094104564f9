#include "coordinator/logins.h"

#include <algorithm>

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#include "coordinator/random.h"

namespace baton::coordinator {
namespace {

constexpr std::size_t kTokenBytes = 32;
constexpr std::size_t kMaxTokenText = 64;

std::string base64url(const std::string& bytes) {
  std::string out(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(bytes.data()),
                                     static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(size));
  std::replace(out.begin(), out.end(), '+', '-');
  std::replace(out.begin(), out.end(), '/', '_');
  out.erase(std::find(out.begin(), out.end(), '='), out.end());
  return out;
}

// A hash is looked up instead of the secret: how long the look-up takes tells nothing of it.
std::string hash_of(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  return std::string(reinterpret_cast<const char*>(digest), sizeof digest);
}

template <typename Map>
void drop_oldest(Map& map, std::size_t limit) {
  while (map.size() >= limit) {
    map.erase(std::min_element(map.begin(), map.end(), [](const auto& a, const auto& b) {
      return a.second.made < b.second.made;
    }));
  }
}

}  // namespace

Logins::Logins(const Clock& clock) : clock_(clock), secret_(random_bytes(kTokenBytes)) {}

void Logins::expire(std::chrono::nanoseconds now) {
  std::erase_if(links_, [&](const auto& item) { return now - item.second.made > kLinkLife; });
  std::erase_if(sessions_, [&](const auto& item) {
    return now - item.second.made > kSessionLife || now - item.second.used > kSessionIdle;
  });
}

std::string Logins::make_link(const transport::Identity& who) {
  const std::string token = base64url(random_bytes(kTokenBytes));
  const auto now = clock_.monotonic_now();
  std::lock_guard lock(mutex_);
  expire(now);
  drop_oldest(links_, kMaxLinks);
  links_[hash_of(token)] = {who, now};
  return token;
}

Result<std::string> Logins::redeem(const std::string& token_untrusted) {
  const auto now = clock_.monotonic_now();
  std::lock_guard lock(mutex_);
  expire(now);
  if (now - failures_since_ > kFailureWindow) {
    failures_since_ = now;
    failures_ = 0;
  }
  if (failures_ >= kMaxFailures) {
    return make_error(Code::kNoSpace, "log in", "too many wrong links", "Wait a minute.");
  }
  auto link = token_untrusted.size() > kMaxTokenText ? links_.end()
                                                     : links_.find(hash_of(token_untrusted));
  if (link == links_.end()) {
    ++failures_;
    return make_error(Code::kNotAllowed, "log in", "this link was used, has expired, or never was",
                      "Get a new one: baton dashboard.");
  }
  const transport::Identity who = link->second.who;
  links_.erase(link);
  drop_oldest(sessions_, kMaxSessions);
  const std::string cookie = base64url(random_bytes(kTokenBytes));
  sessions_[hash_of(cookie)] = {who, base64url(random_bytes(kTokenBytes)), now, now};
  return cookie;
}

std::optional<Login> Logins::find(const std::string& cookie_untrusted) {
  if (cookie_untrusted.empty() || cookie_untrusted.size() > kMaxTokenText) return std::nullopt;
  const auto now = clock_.monotonic_now();
  std::lock_guard lock(mutex_);
  expire(now);
  auto session = sessions_.find(hash_of(cookie_untrusted));
  if (session == sessions_.end()) return std::nullopt;
  session->second.used = now;
  return Login{session->second.who, session->second.csrf};
}

void Logins::end(const std::string& cookie_untrusted) {
  std::lock_guard lock(mutex_);
  sessions_.erase(hash_of(cookie_untrusted));
}

std::string Logins::csrf_of(const transport::Identity& who) const {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  const std::string uri = who.uri();
  ::HMAC(::EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
         reinterpret_cast<const unsigned char*>(uri.data()), uri.size(), digest, &size);
  return base64url(std::string(reinterpret_cast<const char*>(digest), size));
}

}  // namespace baton::coordinator
