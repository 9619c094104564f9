#include "coordinator/cli/output.h"

#include <algorithm>
#include <cstdio>

namespace baton::cli {

int exit_code(Code code) {
  switch (code) {
    case Code::kInvalid: return kExitUsage;
    case Code::kNotFound: return kExitNotFound;
    case Code::kUnreachable: return kExitUnreachable;
    case Code::kNotAllowed: return kExitNotAllowed;
    case Code::kTimedOut: return kExitTimedOut;
    default: return kExitFailed;
  }
}

int print_error(const Error& error) {
  std::string text = error.message();
  if (error.sys_errno == 0 && !error.operation.empty() && !error.subject.empty()) {
    Error said = error;   // message() joins the hint
    said.subject = error.operation + ": " + error.subject;
    said.operation.clear();
    text = said.message();
  }
  std::fprintf(stderr, "baton: %s\n", printable(text).c_str());
  return exit_code(error.code);
}

void note(const std::string& text) { std::fprintf(stderr, "%s\n", printable(text).c_str()); }

std::string json_text(const Json& json, bool one_line) {
  return json.dump(one_line ? -1 : 2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void print_json(const Json& json) { print(json_text(json)); }

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  // Counts characters, not bytes: continuation bytes of UTF-8 take no column.
  auto columns = [](const std::string& cell) {
    return static_cast<std::size_t>(
        std::count_if(cell.begin(), cell.end(), [](char c) { return (c & 0xc0) != 0x80; }));
  };
  for (const auto& header : headers_) widths.push_back(columns(header));
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns(row[i]));
  }
  std::string out;
  auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const std::string cell = printable(cells[i]);
      out += cell;
      if (i + 1 < cells.size()) out.append(widths[i] - std::min(widths[i], columns(cell)) + 2, ' ');
    }
    out += '\n';
  };
  line(headers_);
  for (const auto& row : rows_) line(row);
  return out;
}

std::string join(const std::vector<std::string>& items, const std::string& separator) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : separator) + item;
  return out;
}

std::string printable(const std::string& text) {
  std::string out;
  for (unsigned char c : text) out += c == 0x7f || (c < 0x20 && c != '\t') ? '?' : static_cast<char>(c);
  return out;
}

}  // namespace baton::cli
