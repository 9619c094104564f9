// Logins: one-time links and the browser sessions made from them.
//
// A link's token is 32 random bytes, valid once and for kLinkLife; a session's cookie the same,
// valid for kSessionLife and while it is used at least every kSessionIdle. Only their SHA-256
// is kept, in memory: a restart ends all sessions, and a dump of the memory gives none away.
// A session has the identity of whoever asked for the link, never more.
// Refuses: more than kMaxLinks or kMaxSessions at once (the oldest go), unknown tokens
// (kNotAllowed), and after kMaxFailures wrong ones any attempt until kFailureWindow is over.
// Threads: any; one mutex, held for map look-ups only.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/error.h"
#include "transport/identity.h"

namespace baton::coordinator {

inline constexpr std::chrono::seconds kLinkLife{60};
inline constexpr std::chrono::hours kSessionLife{8};
inline constexpr std::chrono::minutes kSessionIdle{60};
inline constexpr std::size_t kMaxLinks = 64;
inline constexpr std::size_t kMaxSessions = 256;
inline constexpr int kMaxFailures = 20;
inline constexpr std::chrono::seconds kFailureWindow{60};

struct Login {
  transport::Identity who;
  std::string csrf;  // what a request that changes something must carry
};

class Logins {
 public:
  explicit Logins(const Clock& clock);

  // A token for a link, 43 characters of base64url.
  std::string make_link(const transport::Identity& who);
  // Ends the link, begins a session and answers its cookie.
  // Fails: kNotAllowed (unknown, used or expired), kNoSpace (too many wrong attempts).
  Result<std::string> redeem(const std::string& token_untrusted);
  std::optional<Login> find(const std::string& cookie_untrusted);
  void end(const std::string& cookie_untrusted);
  // The token that a browser with a client certificate must send back; one per identity.
  std::string csrf_of(const transport::Identity& who) const;

 private:
  struct Link {
    transport::Identity who;
    std::chrono::nanoseconds made{};
  };
  struct Session {
    transport::Identity who;
    std::string csrf;
    std::chrono::nanoseconds made{}, used{};
  };
  void expire(std::chrono::nanoseconds now);

  const Clock& clock_;
  const std::string secret_;
  std::mutex mutex_;
  std::map<std::string, Link> links_;        // by SHA-256 of the token
  std::map<std::string, Session> sessions_;  // by SHA-256 of the cookie
  int failures_ = 0;
  std::chrono::nanoseconds failures_since_{};
};

}  // namespace baton::coordinator
