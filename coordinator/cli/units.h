// Durations, sizes and rates as a person writes them, and the way back. A number without
// a unit is refused: nobody should have to guess. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace baton::cli {

// "20ms", "1.5s", "500us", "2m", "1h" in microseconds. Fails: kInvalid.
Result<std::uint64_t> parse_duration_us(std::string_view text_untrusted);
// "100MB", "64MiB", "4096B", "1g" in bytes: KB, MB, GB, TB are powers of 1,000, KiB, MiB,
// GiB, TiB powers of 1,024. Fails: kInvalid.
Result<std::uint64_t> parse_size_bytes(std::string_view text_untrusted);
// "10mbit", "1gbit", "100MB", "100MB/s" in bytes per second. Fails: kInvalid.
Result<std::uint64_t> parse_rate(std::string_view text_untrusted);

std::string format_duration_us(std::uint64_t us);  // "1.25 ms"
std::string format_bytes(std::uint64_t bytes);     // "1.2 GiB"
std::string format_wall_ns(std::uint64_t ns);      // "2026-11-21T07:30:00.123Z"

// The entry of `known` that was probably meant; empty: none is near.
std::string suggest(std::string_view word, const std::vector<std::string>& known);

struct CheckpointName {
  std::string name;
  std::uint64_t seq = 0;  // 0: the newest
};
// "NAME@SEQ", "NAME" or "NAME@newest". Fails: kInvalid.
Result<CheckpointName> parse_checkpoint_name(std::string_view text_untrusted);

}  // namespace baton::cli
