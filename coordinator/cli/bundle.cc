#include "coordinator/cli/bundle.h"

#include <array>
#include <cstdio>
#include <cstring>

#include "base/check.h"

namespace baton::cli {
namespace {

constexpr std::size_t kBlock = 512;

void put(std::array<char, kBlock>& header, std::size_t at, std::size_t size, const std::string& text) {
  CHECK(text.size() < size);
  std::memcpy(header.data() + at, text.data(), text.size());
}

std::string octal(std::uint64_t value, int digits) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%0*llo", digits, static_cast<unsigned long long>(value));
  return buffer;
}

}  // namespace

Json without_secrets(Json workload) {
  if (workload.contains("command") && workload["command"].is_array() && workload["command"].size() > 1) {
    const std::size_t hidden = workload["command"].size() - 1;
    workload["command"] = Json::array({workload["command"][0], "(" + std::to_string(hidden) + " arguments)"});
  }
  return workload;
}

std::string tar_of(const std::string& folder, const std::vector<BundleFile>& files,
                   std::uint64_t mtime_s) {
  std::string out;
  for (const auto& file : files) {
    std::array<char, kBlock> header{};
    put(header, 0, 100, folder + "/" + file.name);
    put(header, 100, 8, octal(0600, 7));
    put(header, 108, 8, octal(0, 7));
    put(header, 116, 8, octal(0, 7));
    put(header, 124, 12, octal(file.content.size(), 11));
    put(header, 136, 12, octal(mtime_s, 11));
    std::memset(header.data() + 148, ' ', 8);  // the checksum counts itself as spaces
    header[156] = '0';
    std::memcpy(header.data() + 257, "ustar\00000", 8);
    unsigned sum = 0;
    for (char c : header) sum += static_cast<unsigned char>(c);
    std::memcpy(header.data() + 148, (octal(sum, 6) + '\0').data(), 7);
    out.append(header.data(), kBlock);
    out += file.content;
    out.append((kBlock - file.content.size() % kBlock) % kBlock, '\0');
  }
  return out + std::string(2 * kBlock, '\0');
}

}  // namespace baton::cli
