#include "storage/pages/frame.h"

#include <zstd.h>

#include <cstring>
#include <memory>

#include "base/check.h"
#include "storage/bytes/byte_io.h"
#include "storage/bytes/checksum.h"

namespace baton::storage {
namespace {

using dedup::kPageBytes;

constexpr std::uint8_t kSealed = 0x80;  // bit of the codec byte

struct FreeCompressor {
  void operator()(ZSTD_CCtx* c) const { ZSTD_freeCCtx(c); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* c) const { ZSTD_freeDCtx(c); }
};

ZSTD_CCtx* compressor() {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeCompressor> context(ZSTD_createCCtx());
  CHECK(context != nullptr);
  return context.get();
}

ZSTD_DCtx* decompressor() {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeDecompressor> context(ZSTD_createDCtx());
  CHECK(context != nullptr);
  return context.get();
}

// The pages as one piece of memory: theirs when they already lie in a row.
const std::byte* gather(std::span<const PagePut> pages, std::byte* buffer) {
  bool in_a_row = true;
  for (std::size_t i = 1; i < pages.size(); ++i) {
    in_a_row = in_a_row && pages[i].page == pages[i - 1].page + kPageBytes;
  }
  if (in_a_row) return pages[0].page;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    std::memcpy(buffer + i * kPageBytes, pages[i].page, kPageBytes);
  }
  return buffer;
}

}  // namespace

FrameHead append_frame(std::string& out, const DomainId& domain, std::span<const PagePut> pages,
                       int zstd_level, const Sealer* sealer) {
  CHECK(!pages.empty() && pages.size() <= kFramePages);
  thread_local std::unique_ptr<std::byte[]> buffer(new std::byte[kFramePages * kPageBytes]);
  const std::byte* raw = gather(pages, buffer.get());
  const std::size_t raw_bytes = pages.size() * kPageBytes;

  FrameHead head;
  head.domain = domain;
  head.page_count = static_cast<std::uint16_t>(pages.size());
  for (const PagePut& p : pages) {
    if (!p.digest.is_narrow()) head.width = 32;
  }
  // A buffer no larger than what is worth keeping: the compressor stops where it would not pay.
  const std::size_t worth = raw_bytes - raw_bytes / 16;
  thread_local std::unique_ptr<std::byte[]> packed(new std::byte[kFramePages * kPageBytes]);
  const std::size_t packed_bytes =
      ZSTD_compressCCtx(compressor(), packed.get(), worth, raw, raw_bytes, zstd_level);
  const bool shrinks = !ZSTD_isError(packed_bytes);
  head.codec = shrinks ? Codec::kZstd : Codec::kRaw;
  const std::size_t plain_bytes = shrinks ? packed_bytes : raw_bytes;
  head.sealed = sealer != nullptr;
  head.payload_bytes = static_cast<std::uint32_t>(plain_bytes + (sealer ? kSealBytes : 0));

  const std::size_t start = out.size();
  put_int(out, kFrameMagic);
  put_int(out, static_cast<std::uint8_t>(static_cast<std::uint8_t>(head.codec) | (sealer ? kSealed : 0)));
  put_int(out, head.width);
  put_int(out, head.page_count);
  put_int(out, head.payload_bytes);
  put_int<std::uint32_t>(out, 0);
  put_raw(out, domain.bytes);
  for (const PagePut& p : pages) put_raw(out, std::span(p.digest.bytes.data(), head.width));
  CHECK(out.size() == start + head.payload_at());
  const std::span<const std::byte> plain(shrinks ? packed.get() : raw, plain_bytes);
  if (sealer) {
    const std::string bound = out.substr(start);
    sealer->seal(plain, as_bytes_of(bound), out);
  } else {
    put_raw(out, plain);
  }
  put_int<std::uint64_t>(out, checksum(std::string_view(out).substr(start)));
  return head;
}

bool parse_frame_head(std::span<const std::byte> bytes, FrameHead& out) {
  ByteReader in(bytes);
  std::uint32_t magic, reserved;
  std::uint8_t codec;
  if (!in.read_int(magic) || magic != kFrameMagic || !in.read_int(codec) ||
      !in.read_int(out.width) || !in.read_int(out.page_count) || !in.read_int(out.payload_bytes) ||
      !in.read_int(reserved) || !in.read_raw(out.domain.bytes)) {
    return false;
  }
  out.sealed = codec & kSealed;
  codec &= static_cast<std::uint8_t>(~kSealed);
  if (codec > 1 || (out.width != 16 && out.width != 32) || out.page_count == 0 ||
      out.page_count > kFramePages || reserved != 0) {
    return false;
  }
  out.codec = static_cast<Codec>(codec);
  const std::size_t raw_bytes = out.page_count * kPageBytes;
  const std::size_t seal_bytes = out.sealed ? kSealBytes : 0;
  return out.codec == Codec::kRaw
             ? out.payload_bytes == raw_bytes + seal_bytes
             : out.payload_bytes > seal_bytes && out.payload_bytes < raw_bytes + seal_bytes;
}

bool check_frame(std::span<const std::byte> frame, FrameHead& out) {
  if (!parse_frame_head(frame, out) || frame.size() != out.frame_bytes()) return false;
  std::uint64_t sum;
  std::memcpy(&sum, frame.data() + frame.size() - 8, 8);
  return checksum(frame.first(frame.size() - 8)) == sum;
}

Digest frame_digest(std::span<const std::byte> frame, const FrameHead& head, std::size_t slot) {
  CHECK(slot < head.page_count);
  return Digest::from_bytes(frame.subspan(head.digests_at() + slot * head.width, head.width));
}

Result<void> decode_frame(std::span<const std::byte> frame, const FrameHead& head,
                          std::span<std::byte> out, const Sealer* sealer) {
  CHECK(out.size() == head.page_count * kPageBytes && frame.size() == head.frame_bytes());
  const std::byte* payload = frame.data() + head.payload_at();
  std::size_t payload_bytes = head.payload_bytes;
  thread_local std::unique_ptr<std::byte[]> opened(new std::byte[kFramePages * kPageBytes]);
  if (head.sealed) {
    if (!sealer) {
      return make_error(Code::kNotAllowed, "read frame", "its pages are encrypted, and their key is not here");
    }
    payload_bytes -= kSealBytes;
    BATON_TRY(sealer->open(frame.subspan(head.payload_at(), head.payload_bytes), frame.first(head.payload_at()),
                           std::span(opened.get(), payload_bytes)));
    payload = opened.get();
  }
  if (head.codec == Codec::kRaw) {
    std::memcpy(out.data(), payload, out.size());
    return {};
  }
  std::size_t n =
      ZSTD_decompressDCtx(decompressor(), out.data(), out.size(), payload, payload_bytes);
  if (ZSTD_isError(n) || n != out.size()) {
    return make_error(Code::kCorrupt, "decompress frame",
                      ZSTD_isError(n) ? ZSTD_getErrorName(n) : "wrong length");
  }
  return {};
}

}  // namespace baton::storage
