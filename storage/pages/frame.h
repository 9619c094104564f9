// Frames: up to 16 pages of one domain, the unit of compression and of checking in a
// segment file (docs/formats/store.md, "Frame").
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "storage/page_store.h"
#include "storage/seal.h"

namespace baton::storage {

inline constexpr std::size_t kFramePages = 16;
inline constexpr std::size_t kFrameHeadBytes = 32;
inline constexpr std::size_t kMaxFrameBytes =
    kFrameHeadBytes + kFramePages * 32 + kFramePages * dedup::kPageBytes + kSealBytes + 8;
inline constexpr std::uint32_t kFrameMagic = 0x4D415246;  // "FRAM"

enum class Codec : std::uint8_t { kRaw = 0, kZstd = 1 };

struct FrameHead {
  Codec codec = Codec::kRaw;
  bool sealed = false;  // the payload is encrypted; head and digests are bound to it
  std::uint8_t width = 16;
  std::uint16_t page_count = 0;
  std::uint32_t payload_bytes = 0;
  DomainId domain;

  std::size_t digests_at() const { return kFrameHeadBytes; }
  std::size_t payload_at() const { return kFrameHeadBytes + std::size_t{width} * page_count; }
  std::size_t frame_bytes() const { return payload_at() + payload_bytes + 8; }
};

// Appends one frame of 1 to 16 pages to `out`. Compresses at `zstd_level`; pages that do not
// shrink by a sixteenth are kept raw. With a sealer the payload is sealed.
FrameHead append_frame(std::string& out, const DomainId& domain, std::span<const PagePut> pages,
                       int zstd_level, const Sealer* sealer = nullptr);

// Parses and bounds the head of a frame; false when it is none.
bool parse_frame_head(std::span<const std::byte> bytes_untrusted, FrameHead& out);

// A whole frame: head, lengths and checksum agree.
bool check_frame(std::span<const std::byte> frame_untrusted, FrameHead& out);

Digest frame_digest(std::span<const std::byte> frame, const FrameHead& head, std::size_t slot);

// The pages' bytes into `out` (page_count * 4096 of them). Fails: kCorrupt; kNotAllowed (it is
// sealed, and there is no sealer).
Result<void> decode_frame(std::span<const std::byte> frame, const FrameHead& head,
                          std::span<std::byte> out, const Sealer* sealer = nullptr);

}  // namespace baton::storage
