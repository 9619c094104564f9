// Who gets in and what is written down of it: logins, guards, the audit log.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "coordinator/audit.h"
#include "coordinator/http/guard.h"
#include "coordinator/logins.h"

namespace baton::coordinator {
namespace {

using namespace std::chrono_literals;
using transport::Identity;
using transport::Role;

const Identity kOlga{"test", Role::kOperator, "olga"};
const Identity kVera{"test", Role::kViewer, "vera"};

TEST(Logins, Link_WorksOnce) {
  ManualClock clock;
  Logins logins(clock);
  const std::string token = logins.make_link(kOlga);
  EXPECT_EQ(token.size(), 43u);
  auto cookie = logins.redeem(token);
  ASSERT_TRUE(cookie);
  EXPECT_EQ(logins.find(*cookie)->who, kOlga);
  auto again = logins.redeem(token);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::kNotAllowed);
}

TEST(Logins, LinkAndSession_Expire) {
  ManualClock clock;
  Logins logins(clock);
  const std::string late = logins.make_link(kOlga);
  clock.advance(kLinkLife + 1s);
  EXPECT_FALSE(logins.redeem(late));
  auto cookie = logins.redeem(logins.make_link(kOlga));
  for (int i = 0; i < 9; ++i) {
    clock.advance(50min);
    EXPECT_TRUE(logins.find(*cookie)) << "in use";
  }
  clock.advance(50min);
  EXPECT_FALSE(logins.find(*cookie)) << "eight hours are over";
  cookie = logins.redeem(logins.make_link(kOlga));
  clock.advance(kSessionIdle + 1s);
  EXPECT_FALSE(logins.find(*cookie)) << "not used for an hour";
}

TEST(Logins, Guessing_IsStopped) {
  ManualClock clock;
  clock.advance(1h);
  Logins logins(clock);
  const std::string good = logins.make_link(kOlga);
  for (int i = 0; i < kMaxFailures; ++i) EXPECT_FALSE(logins.redeem("guess" + std::to_string(i)));
  EXPECT_FALSE(logins.redeem(good)) << "not even the right one, for a while";
  clock.advance(kFailureWindow + 1s);
  EXPECT_TRUE(logins.redeem(logins.make_link(kOlga)));
}

TEST(Logins, Numbers_AreBounded) {
  ManualClock clock;
  Logins logins(clock);
  const std::string oldest = logins.make_link(kOlga);
  for (std::size_t i = 0; i < kMaxLinks; ++i) {
    clock.advance(1ms);
    (void)logins.make_link(kVera);
  }
  EXPECT_FALSE(logins.redeem(oldest));
}

TEST(Logins, Logout_EndsTheSession) {
  ManualClock clock;
  Logins logins(clock);
  auto cookie = logins.redeem(logins.make_link(kVera));
  logins.end(*cookie);
  EXPECT_FALSE(logins.find(*cookie));
  EXPECT_FALSE(logins.find(""));
  EXPECT_FALSE(logins.find(std::string(1'000, 'x')));
}

http::Request browser_post() {
  http::Request request;
  request.method = "POST";
  request.headers = {{"host", "10.0.0.1:7443"},
                     {"origin", "https://10.0.0.1:7443"},
                     {"sec-fetch-site", "same-origin"},
                     {"content-type", "application/json"}};
  return request;
}

TEST(Guard, Host_MustBeOurs) {
  auto request = browser_post();
  EXPECT_TRUE(http::check_host(request, {"10.0.0.1"}));
  request.headers["host"] = "evil.example";
  EXPECT_FALSE(http::check_host(request, {"10.0.0.1"}));
  request.headers["host"] = "[::1]:7443";
  EXPECT_TRUE(http::check_host(request, {"::1"}));
  request.headers.erase("host");
  EXPECT_FALSE(http::check_host(request, {"10.0.0.1"}));
}

TEST(Guard, OtherSites_AreRefused) {
  EXPECT_TRUE(http::check_source(browser_post()));
  const std::pair<const char*, const char*> wrong[] = {
      {"origin", "https://evil.example"},       {"origin", "null"},
      {"origin", "http://10.0.0.1:7443"},       {"origin", "https://10.0.0.1:7443.evil.example"},
      {"sec-fetch-site", "cross-site"},         {"sec-fetch-site", "same-site"},
      {"content-type", "text/plain"},           {"content-type", "application/x-www-form-urlencoded"},
      {"content-type", "multipart/form-data"},  {"content-type", ""}};
  for (const auto& [name, value] : wrong) {
    auto request = browser_post();
    request.headers[name] = value;
    EXPECT_FALSE(http::check_source(request)) << name << ": " << value;
  }
}

TEST(Guard, Csrf_IsNeededFromEveryBrowser) {
  const http::Caller by_cookie{kOlga, "secret", false}, by_certificate{kOlga, "secret", true};
  auto request = browser_post();
  EXPECT_FALSE(http::check_csrf(request, by_cookie));
  EXPECT_FALSE(http::check_csrf(request, by_certificate)) << "a browser sends certificates by itself";
  request.headers["x-baton-csrf"] = "secreT";
  EXPECT_FALSE(http::check_csrf(request, by_cookie));
  request.headers["x-baton-csrf"] = "secret";
  EXPECT_TRUE(http::check_csrf(request, by_cookie));
  EXPECT_TRUE(http::check_csrf(request, by_certificate));
  http::Request tool;
  tool.headers = {{"host", "10.0.0.1:7443"}, {"content-type", "application/json"}};
  EXPECT_TRUE(http::check_csrf(tool, by_certificate)) << "a tool: nobody can make it send this";
  EXPECT_FALSE(http::check_csrf(tool, by_cookie));
}

TEST(Exchange, CookiesAndQueries_AreTakenApart) {
  http::Request request;
  request.headers["cookie"] = "a=1; __Host-baton=abc; b=__Host-baton=x";
  EXPECT_EQ(http::cookie(request, "__Host-baton"), "abc");
  EXPECT_EQ(http::cookie(request, "missing"), "");
  auto query = http::parse_query("a=1&b=%20x%2&c&=d");
  EXPECT_EQ(query["a"], "1");
  EXPECT_EQ(query["b"], " x%2");
  EXPECT_TRUE(query.contains("c"));
  EXPECT_EQ(query.size(), 3u);
}

class Audit : public testing::Test {
 protected:
  Audit() {
    char name[] = "/tmp/baton-audit-XXXXXX";
    dir_ = ::mkdtemp(name);
  }
  ~Audit() override { std::filesystem::remove_all(dir_); }
  std::unique_ptr<AuditLog> open(std::size_t max = kMaxAuditFileBytes) {
    auto log = AuditLog::open(dir_, clock_, max);
    EXPECT_TRUE(log) << log.error().message();
    return log ? std::move(*log) : nullptr;
  }
  static pb::AuditEntry entry(const std::string& who, const std::string& target) {
    pb::AuditEntry out;
    out.set_who(who);
    out.set_target(target);
    out.set_action("Migrate");
    return out;
  }
  static std::vector<pb::AuditEntry> read(AuditLog& log, const pb::AuditRequest& ask = {}) {
    std::vector<pb::AuditEntry> out;
    auto done = log.read(ask, [&](const pb::AuditEntry& one) {
      out.push_back(one);
      return true;
    });
    EXPECT_TRUE(done) << done.error().message();
    return out;
  }
  std::string text() {
    std::ifstream file(dir_ + "/audit.log");
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) { std::ofstream(dir_ + "/audit.log") << text; }

  ManualClock clock_;
  std::string dir_;
};

TEST_F(Audit, Entries_AreNumberedAndSurviveARestart) {
  auto log = open();
  EXPECT_EQ(*log->append(entry("operator olga", "redis")), 1u);
  log = open();
  EXPECT_EQ(*log->append(entry("operator olga", "web\n\"quoted\"")), 2u);
  EXPECT_EQ(*log->append(entry("viewer vera", "redis")), 3u);
  const auto all = read(*log);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[1].target(), "web\n\"quoted\"");
  pb::AuditRequest ask;
  ask.set_target("redis");
  EXPECT_EQ(read(*log, ask).size(), 2u);
  ask.set_after_id(1);
  EXPECT_EQ(read(*log, ask).size(), 1u);
  pb::AuditRequest newest;
  newest.set_newest(1);
  EXPECT_EQ(read(*log, newest).at(0).id(), 3u);
}

TEST_F(Audit, AnyChangedOrMissingLine_IsNoticed) {
  auto log = open();
  for (const char* target : {"a", "b", "c", "d"}) ASSERT_TRUE(log->append(entry("operator olga", target)));
  const std::string good = text();
  auto nobody = [](const pb::AuditEntry&) { return true; };
  ASSERT_TRUE(log->read({}, nobody));
  std::string changed = good;
  changed.replace(changed.find("olga"), 4, "vera");
  write(changed);
  EXPECT_EQ(log->read({}, nobody).error().code, Code::kCorrupt) << "another name";
  const std::size_t second = good.find('\n') + 1, third = good.find('\n', second) + 1;
  write(good.substr(0, second) + good.substr(third));
  EXPECT_EQ(log->read({}, nobody).error().code, Code::kCorrupt) << "a line is missing";
  write(good.substr(0, good.rfind('\n', good.size() - 2) + 1));
  EXPECT_EQ(log->read({}, nobody).error().code, Code::kCorrupt) << "the last line is missing";
  write(good + "x\n");
  EXPECT_EQ(log->read({}, nobody).error().code, Code::kCorrupt) << "a line too many";
  write(good);
  EXPECT_TRUE(log->read({}, nobody));
}

TEST_F(Audit, TornLastLine_IsCutOff) {
  auto log = open();
  ASSERT_TRUE(log->append(entry("operator olga", "a")));
  const std::string good = text();
  write(good + good.substr(0, good.size() / 2));
  log = open();
  EXPECT_EQ(*log->append(entry("operator olga", "b")), 2u);
  EXPECT_EQ(read(*log).size(), 2u);
}

TEST_F(Audit, FullFiles_RotateWithoutBreakingTheChain) {
  auto log = open(2'000);
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(log->append(entry("operator olga", "w" + std::to_string(i))));
  int files = 0;
  for ([[maybe_unused]] const auto& file : std::filesystem::directory_iterator(dir_)) ++files;
  EXPECT_EQ(files, kMaxAuditFiles);
  const auto kept = read(*log);
  EXPECT_EQ(kept.back().id(), 200u);
  EXPECT_GT(kept.front().id(), 1u) << "the oldest are gone";
  EXPECT_EQ(kept.size(), 200u - kept.front().id() + 1);
  log = open(2'000);
  EXPECT_EQ(*log->append(entry("operator olga", "next")), 201u);
}

TEST_F(Audit, Audited_WritesBeginAndOutcome_AndDoesNothingWhenItCannot) {
  auto log = open();
  auto good = audited(log.get(), entry("operator olga", "a"), []() -> Result<int> { return 7; });
  EXPECT_EQ(*good, 7);
  auto bad = audited(log.get(), entry("operator olga", "a"), []() -> Result<int> {
    return make_error(Code::kConflict, "migrate", "busy");
  });
  EXPECT_FALSE(bad);
  const auto all = read(*log);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].outcome(), "begun");
  EXPECT_EQ(all[1].outcome(), "done");
  EXPECT_EQ(all[1].begun_id(), 1u);
  EXPECT_EQ(all[3].outcome(), "failed");
  EXPECT_NE(all[3].problem().find("busy"), std::string::npos);
}

}  // namespace
}  // namespace baton::coordinator
