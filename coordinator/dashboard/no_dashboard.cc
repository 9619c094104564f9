// Stands in for the bundled dashboard on a machine that could not make it.
#include "coordinator/http/assets.h"

namespace baton::coordinator::http {

const Asset* find_asset(std::string_view path) {
  static constexpr Asset kPage{
      "/", "text/plain; charset=utf-8", "\"none\"", "",
      "This coordinator was built without the dashboard (node, npm or its packages were "
      "missing).\nThe API is here: /api/v1, and /metrics. See docs/api.md.\n"};
  return path == "/" ? &kPage : nullptr;
}

bool has_dashboard() { return false; }

}  // namespace baton::coordinator::http
