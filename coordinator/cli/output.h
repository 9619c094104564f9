// What the CLI prints: JSON or tables to stdout, errors and notes to stderr, exit codes.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace baton::cli {

using Json = nlohmann::ordered_json;

enum class Format { kTable, kJson };

// The stable exit codes (docs/cli.md).
inline constexpr int kExitDone = 0, kExitFailed = 1, kExitUsage = 2, kExitNotFound = 3,
                     kExitUnreachable = 4, kExitNotAllowed = 5, kExitTimedOut = 6;
int exit_code(Code code);

// "baton: WHAT: WHY. WHAT TO DO", to stderr; answers the exit code.
int print_error(const Error& error);
void note(const std::string& text);  // to stderr

void print_json(const Json& json);  // to stdout, one document and a newline
// The document and a newline; `one_line`: for streams of documents.
std::string json_text(const Json& json, bool one_line = false);

// Columns as wide as their content; without headers when there are no rows but a note.
class Table {
 public:
  explicit Table(std::vector<std::string> headers) : headers_(std::move(headers)) {}
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text() const;

 private:
  std::vector<std::string> headers_;
  std::vector<std::vector<std::string>> rows_;
};
void print(const std::string& text);  // to stdout

std::string join(const std::vector<std::string>& items, const std::string& separator = ", ");
// Control characters made harmless: what comes from elsewhere must not drive the terminal.
std::string printable(const std::string& text_untrusted);

}  // namespace baton::cli
