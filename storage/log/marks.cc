#include "storage/log/marks.h"

#include <algorithm>

#include "storage/bytes/byte_io.h"

namespace baton::storage {

bool is_valid_tag(std::string_view tag) {
  return !tag.empty() && tag.size() <= kMaxTagBytes && tag[0] != '-' && tag[0] != '.' &&
         std::all_of(tag.begin(), tag.end(), [](unsigned char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '.' || c == '_' || c == '-';
         });
}

std::string write_marks(const CheckpointInfo& info) {
  std::string out;
  put_int<std::uint8_t>(out, info.pinned ? 1 : 0);
  put_int<std::uint8_t>(out, static_cast<std::uint8_t>(info.tags.size()));
  for (const std::string& tag : info.tags) {
    put_int<std::uint8_t>(out, static_cast<std::uint8_t>(tag.size()));
    out += tag;
  }
  return out;
}

bool read_marks(std::span<const std::byte> payload, CheckpointInfo& info) {
  ByteReader in(payload);
  std::uint8_t pinned, count;
  if (!in.read_int(pinned) || pinned > 1 || !in.read_int(count) || count > kMaxTags) return false;
  std::vector<std::string> tags;
  for (unsigned i = 0; i < count; ++i) {
    std::uint8_t bytes;
    std::span<const std::byte> text;
    if (!in.read_int(bytes) || !in.read_view(bytes, text)) return false;
    tags.emplace_back(reinterpret_cast<const char*>(text.data()), text.size());
    if (!is_valid_tag(tags.back())) return false;
    if (i > 0 && tags[i - 1] >= tags[i]) return false;
  }
  if (in.left() != 0) return false;
  info.pinned = pinned != 0;
  info.tags = std::move(tags);
  return true;
}

std::string write_policy(const RetentionPolicy& policy) {
  std::string out;
  put_int(out, policy.keep_last);
  put_int(out, policy.byte_budget);
  put_int<std::uint16_t>(out, static_cast<std::uint16_t>(policy.steps.size()));
  for (const RetentionStep& step : policy.steps) {
    put_int(out, step.every_ns);
    put_int(out, step.for_ns);
  }
  return out;
}

bool read_policy(std::span<const std::byte> payload, RetentionPolicy& policy) {
  ByteReader in(payload);
  RetentionPolicy out;
  std::uint16_t count;
  if (!in.read_int(out.keep_last) || !in.read_int(out.byte_budget) || !in.read_int(count) ||
      count > kMaxRetentionSteps) {
    return false;
  }
  for (unsigned i = 0; i < count; ++i) {
    RetentionStep step;
    if (!in.read_int(step.every_ns) || !in.read_int(step.for_ns) || step.every_ns == 0) return false;
    out.steps.push_back(step);
  }
  if (in.left() != 0) return false;
  policy = std::move(out);
  return true;
}

}  // namespace baton::storage
