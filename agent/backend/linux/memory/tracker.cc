#include "agent/backend/linux/memory/tracker.h"

#include <algorithm>
#include <cstdlib>

#include "base/check.h"

namespace baton::linux_backend {
namespace {
std::vector<TrackerType>& types() {
  static auto* list = new std::vector<TrackerType>;
  return *list;
}
}  // namespace

TrackerRegistrar::TrackerRegistrar(TrackerType type) {
  CHECK(find_tracker(type.name) == nullptr);
  types().push_back(std::move(type));
  std::sort(types().begin(), types().end(),
            [](const TrackerType& a, const TrackerType& b) { return a.rank < b.rank; });
}

const std::vector<TrackerType>& tracker_types() { return types(); }

const TrackerType* find_tracker(std::string_view name) {
  for (const TrackerType& t : types()) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

bool forced_off(std::string_view feature) {
  const char* text = std::getenv("BATON_FORCE_OFF");
  if (text == nullptr) return false;
  std::string_view rest = text;
  while (!rest.empty()) {
    auto comma = rest.find(',');
    if (rest.substr(0, comma) == feature) return true;
    if (comma == std::string_view::npos) return false;
    rest.remove_prefix(comma + 1);
  }
  return false;
}

}  // namespace baton::linux_backend
