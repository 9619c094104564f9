#include "base/fault_point.h"

#include <csignal>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unistd.h>

#include "base/fd.h"

namespace baton {
namespace {

struct Settings {
  std::string inline_spec;
  std::string file;
  bool armed = false;
  std::mutex mutex;
  std::map<std::string, int, std::less<>> passages;

  Settings() {
    if (const char* text = std::getenv("BATON_FAULT")) inline_spec = text;
    if (const char* path = std::getenv("BATON_FAULT_FILE")) file = path;
    armed = !inline_spec.empty() || !file.empty();
  }
};

Settings& settings() {
  static Settings* instance = new Settings;
  return *instance;
}

// The action that `spec` gives for `name`, or an empty string.
std::string find_action(std::string_view spec, std::string_view name) {
  while (!spec.empty()) {
    auto end = spec.find_first_of(",\n");
    std::string_view item = spec.substr(0, end);
    spec = end == std::string_view::npos ? std::string_view{} : spec.substr(end + 1);
    auto equals = item.find('=');
    if (equals != std::string_view::npos && item.substr(0, equals) == name) {
      return std::string(item.substr(equals + 1));
    }
  }
  return {};
}

}  // namespace

bool fault_points_armed() { return settings().armed; }

Result<void> fault_point(std::string_view name) {
  Settings& s = settings();
  if (!s.armed) [[likely]] return {};
  std::string action = find_action(s.inline_spec, name);
  if (action.empty() && !s.file.empty()) {
    if (auto text = read_file(s.file, 1 << 16)) action = find_action(*text, name);
  }
  if (action.empty()) return {};
  int wanted = 0;
  if (auto at = action.find('@'); at != std::string::npos) {
    wanted = std::atoi(action.c_str() + at + 1);
    action.resize(at);
  }
  {
    std::lock_guard lock(s.mutex);
    auto it = s.passages.try_emplace(std::string(name), 0).first;
    ++it->second;
    if (wanted != 0 && it->second != wanted) return {};
  }
  if (action == "kill") {
    ::kill(::getpid(), SIGKILL);
    ::pause();
  }
  if (action == "stop") {
    ::kill(::getpid(), SIGSTOP);
    return {};
  }
  return make_error(Code::kFailed, "fault point", std::string(name));
}

}  // namespace baton
