#include "agent/backend/linux/restore/launch.h"

#include <grp.h>
#include <pwd.h>

#include <charconv>
#include <vector>

#include "agent/backend/linux/restore/keeper_client.h"

namespace baton::restore {
namespace {

constexpr pid_t kProgramPid = 2;

Result<std::uint32_t> number(std::string_view text, const std::string& user) {
  std::uint32_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return make_error(Code::kInvalid, "launch", "user " + user + ": no such user on this node");
  }
  return value;
}

// `user`: a name, or uid[:gid]. Groups of a name are the ones this node gives it.
Result<void> resolve_user(const std::string& user, LaunchStrings& out) {
  if (user.empty()) return {};
  std::vector<char> buffer(65536);
  passwd entry{}, *found = nullptr;
  if (::getpwnam_r(user.c_str(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
    out.uid = entry.pw_uid;
    out.gid = entry.pw_gid;
    gid_t groups[64];
    int count = 64;
    if (::getgrouplist(user.c_str(), entry.pw_gid, groups, &count) < 0) count = 64;
    out.groups.assign(groups, groups + count);
    return {};
  }
  auto colon = user.find(':');
  BATON_ASSIGN(out.uid, number(std::string_view(user).substr(0, colon), user));
  out.gid = out.uid;
  if (colon != std::string::npos) {
    BATON_ASSIGN(out.gid, number(std::string_view(user).substr(colon + 1), user));
  }
  out.groups = {out.gid};
  return {};
}

}  // namespace

Result<Launched> launch(const LaunchSpec& launch) {
  if (launch.spec.argv().empty()) return make_error(Code::kInvalid, "launch", "no command given");
  LaunchStrings strings;
  BATON_TRY(resolve_user(launch.spec.user(), strings));
  strings.cwd = launch.spec.cwd();
  strings.argv.assign(launch.spec.argv().begin(), launch.spec.argv().end());
  strings.env.assign(launch.spec.env().begin(), launch.spec.env().end());
  bool has_path = false;
  for (const auto& text : strings.env) has_path = has_path || text.rfind("PATH=", 0) == 0;
  if (!has_path) strings.env.push_back("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");

  KeeperSettings settings;
  settings.new_network = !launch.spec.addresses().empty();
  settings.log_path = launch.log_path;
  settings.exit_path = launch.exit_path;
  settings.cgroup = launch.cgroup;
  BATON_ASSIGN(KeeperClient keeper, KeeperClient::start(settings));
  if (settings.new_network && launch.equip) BATON_TRY(launch.equip(keeper.pid()));
  BATON_ASSIGN(pid_t root, keeper.launch(kProgramPid, strings));
  Launched launched{root, keeper.pid()};
  BATON_TRY(keeper.watch(kProgramPid));
  return launched;
}

}  // namespace baton::restore
