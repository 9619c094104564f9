#include "coordinator/cli/names.h"

#include <algorithm>

#include "coordinator/cli/output.h"
#include "coordinator/cli/units.h"

namespace baton::cli {
namespace {

constexpr std::size_t kMaxListed = 10;

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = suggest(word, known);
  return near.empty() ? "" : "Did you mean '" + near + "'?";
}

Result<std::string> match_name(const std::string& kind, const std::string& given,
                               const std::vector<std::string>& known) {
  if (std::count(known.begin(), known.end(), given) > 0) return given;
  std::vector<std::string> fits;
  for (const auto& name : known) {
    if (!given.empty() && name.starts_with(given)) fits.push_back(name);
  }
  if (fits.size() == 1) return fits.front();
  if (fits.size() > 1) {
    std::sort(fits.begin(), fits.end());
    const std::size_t more = fits.size() > kMaxListed ? fits.size() - kMaxListed : 0;
    fits.resize(fits.size() - more);
    return make_error(Code::kInvalid, "find " + kind,
                      "several begin with '" + given + "': " + join(fits) +
                          (more ? " and " + std::to_string(more) + " more" : ""),
                      "Type more of the name.");
  }
  const std::string hint = did_you_mean(given, known);
  return make_error(Code::kNotFound, "find " + kind, "no " + kind + " named " + given,
                    hint.empty() ? (kind == "node" ? "See baton node ls." : "See baton ls.") : hint);
}

}  // namespace baton::cli
