// Names as people type them: a whole name, or a beginning that only one has. Pure.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace baton::cli {

// The entry of `known` that `given` means: itself, or the only one that begins with it.
// Fails: kInvalid when several begin with it (all are listed), kNotFound otherwise, with the
// nearest name as a suggestion. `kind`: "workload", "node".
Result<std::string> match_name(const std::string& kind, const std::string& given_untrusted,
                               const std::vector<std::string>& known);

// "did you mean" for a word of the command line that is no verb or flag; empty: none is near.
std::string did_you_mean(const std::string& word_untrusted, const std::vector<std::string>& known);

}  // namespace baton::cli
