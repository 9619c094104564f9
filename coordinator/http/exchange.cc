#include "coordinator/http/exchange.h"

namespace baton::coordinator::http {
namespace {

constexpr std::size_t kMaxPairs = 32;

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

std::string percent_decoded(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 &&
        hex_digit(text[i + 2]) >= 0) {
      out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::map<std::string, std::string> parse_query(const std::string& text) {
  std::map<std::string, std::string> out;
  std::size_t at = 0;
  while (at < text.size() && out.size() < kMaxPairs) {
    std::size_t end = text.find('&', at);
    if (end == std::string::npos) end = text.size();
    const std::string pair = text.substr(at, end - at);
    at = end + 1;
    const std::size_t equals = pair.find('=');
    const std::string key = percent_decoded(pair.substr(0, equals));
    if (key.empty()) continue;
    out[key] = equals == std::string::npos ? "" : percent_decoded(pair.substr(equals + 1));
  }
  return out;
}

std::string cookie(const Request& request, const std::string& name) {
  const std::string text = request.header("cookie");
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = text.find(';', at);
    if (end == std::string::npos) end = text.size();
    std::size_t begin = at;
    while (begin < end && text[begin] == ' ') ++begin;
    at = end + 1;
    const std::size_t equals = text.find('=', begin);
    if (equals == std::string::npos || equals >= end) continue;
    if (text.compare(begin, equals - begin, name) == 0) return text.substr(equals + 1, end - equals - 1);
  }
  return {};
}

}  // namespace baton::coordinator::http
