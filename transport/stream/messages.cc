#include "transport/stream/messages.h"

#include <algorithm>

#include <zstd.h>

namespace baton::transport::stream {
namespace {

using dedup::Digest;
using dedup::DigestKind;
using dedup::kPageBytes;

constexpr std::uint8_t kRaw = 0;
constexpr std::uint8_t kZstd = 1;
constexpr unsigned kRetryCompressionEvery = 16;
constexpr std::size_t kMaxObjectsInOpened = 1u << 20;

Error corrupt(FrameType type, std::string_view what) {
  return make_error(Code::kCorrupt, "read page stream",
                    std::string(frame_name(type)) + " message: " + std::string(what));
}

std::string clipped(const std::string& text) { return text.substr(0, kMaxErrorFieldBytes); }

void write_error(Writer& writer, const Error& error) {
  writer.u16(static_cast<std::uint16_t>(error.code));
  writer.u32(static_cast<std::uint32_t>(error.sys_errno));
  writer.text(clipped(error.operation));
  writer.text(clipped(error.subject));
  writer.text(clipped(error.hint));
}

Error read_error(Reader& reader) {
  Error error;
  const std::uint16_t code = reader.u16();
  error.sys_errno = static_cast<int>(reader.u32());
  error.operation = reader.text(kMaxErrorFieldBytes);
  error.subject = reader.text(kMaxErrorFieldBytes);
  error.hint = reader.text(kMaxErrorFieldBytes);
  if (!reader.ok() || code < static_cast<int>(Code::kFailed) ||
      code > static_cast<int>(Code::kCancelled))
    return make_error(Code::kFailed, "page stream", "the peer sent an error that cannot be read");
  error.code = static_cast<Code>(code);
  return error;
}

bool read_name(Reader& reader, std::string& out) {
  out = reader.text(kMaxStreamNameBytes);
  return reader.ok() && !out.empty();
}

std::uint64_t to_ns(std::chrono::nanoseconds duration) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, duration.count()));
}
std::chrono::nanoseconds from_ns(std::uint64_t ns) {
  return std::chrono::nanoseconds(
      static_cast<std::int64_t>(std::min<std::uint64_t>(ns, INT64_MAX)));
}

template <typename Bytes>
void read_bytes(Reader& reader, Bytes& out) {
  const std::string_view raw = reader.raw(out.size());
  if (raw.size() == out.size()) std::memcpy(out.data(), raw.data(), out.size());
}

}  // namespace

std::string encode_open(const OpenRequest& request) {
  Writer writer;
  writer.text(request.workload);
  writer.raw(request.domain);
  writer.u8(static_cast<std::uint8_t>(request.kind));
  writer.raw(request.hash_key);
  writer.u64(request.incarnation);
  writer.u8(request.durability);
  writer.text(request.context);
  return writer.take();
}

Result<OpenRequest> decode_open(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  OpenRequest request;
  if (!read_name(reader, request.workload)) return corrupt(FrameType::kOpen, "no workload name");
  read_bytes(reader, request.domain);
  const std::uint8_t kind = reader.u8();
  if (reader.ok() && !dedup::is_known_kind(kind))
    return corrupt(FrameType::kOpen, "unknown digest kind " + std::to_string(kind));
  request.kind = static_cast<DigestKind>(kind);
  read_bytes(reader, request.hash_key);
  request.incarnation = reader.u64();
  request.durability = reader.u8();
  request.context = reader.text(kMaxContextBytes);
  if (!reader.done()) return corrupt(FrameType::kOpen, "wrong length");
  return request;
}

std::string encode_opened(const OpenReply& reply, DigestKind kind) {
  Writer writer;
  writer.u64(reply.tip_seq);
  writer.u64(reply.tip_incarnation);
  writer.u32(static_cast<std::uint32_t>(reply.objects.size()));
  for (const TipObject& object : reply.objects) {
    writer.u64(object.object);
    writer.digest(object.root, kind);
  }
  return writer.take();
}

Result<OpenReply> decode_opened(std::string_view bytes_untrusted, DigestKind kind) {
  Reader reader(bytes_untrusted);
  OpenReply reply;
  reply.tip_seq = reader.u64();
  reply.tip_incarnation = reader.u64();
  const std::uint32_t count = reader.u32();
  if (!reader.ok() || count > kMaxObjectsInOpened ||
      reader.left() != count * (8 + dedup::digest_width(kind)))
    return corrupt(FrameType::kOpened, "wrong length");
  reply.objects.resize(count);
  for (TipObject& object : reply.objects) {
    object.object = reader.u64();
    object.root = reader.digest(kind);
  }
  return reply;
}

std::string encode_error(const Error& error) {
  Writer writer;
  write_error(writer, error);
  return writer.take();
}

Error decode_error(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  return read_error(reader);
}

std::string encode_node_query(std::span<const NodeRef> nodes) {
  Writer writer;
  writer.u32(static_cast<std::uint32_t>(nodes.size()));
  for (const NodeRef& node : nodes) {
    writer.u64(node.object);
    writer.u8(static_cast<std::uint8_t>(node.level));
    writer.u64(node.index);
  }
  return writer.take();
}

Result<std::vector<NodeRef>> decode_node_query(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  const std::uint32_t count = reader.u32();
  if (!reader.ok() || count > kMaxNodesPerQuery || reader.left() != count * 17u)
    return corrupt(FrameType::kNodeQuery, "wrong length");
  std::vector<NodeRef> nodes(count);
  for (NodeRef& node : nodes) {
    node.object = reader.u64();
    node.level = reader.u8();
    node.index = reader.u64();
    if (node.level >= dedup::kTableLevels || node.index >= dedup::nodes_at_level(node.level))
      return corrupt(FrameType::kNodeQuery, "no such node in a page table");
  }
  return nodes;
}

std::string encode_node_reply(std::span<const NodeChildren> nodes, DigestKind kind) {
  Writer writer;
  for (const NodeChildren& node : nodes)
    for (const Digest& digest : node) writer.digest(digest, kind);
  return writer.take();
}

Result<std::vector<NodeChildren>> decode_node_reply(std::string_view bytes_untrusted,
                                                    std::size_t asked, DigestKind kind) {
  if (bytes_untrusted.size() != asked * dedup::kFanOut * dedup::digest_width(kind))
    return corrupt(FrameType::kNodeReply, "wrong length");
  Reader reader(bytes_untrusted);
  std::vector<NodeChildren> nodes(asked);
  for (NodeChildren& node : nodes)
    for (Digest& digest : node) digest = reader.digest(kind);
  return nodes;
}

std::string encode_digests(std::span<const Digest> digests, DigestKind kind) {
  Writer writer;
  for (const Digest& digest : digests) writer.digest(digest, kind);
  return writer.take();
}

Result<std::vector<Digest>> decode_digests(std::string_view bytes_untrusted, std::size_t max_digests,
                                           DigestKind kind, FrameType type) {
  const std::size_t width = dedup::digest_width(kind);
  if (bytes_untrusted.size() % width != 0 || bytes_untrusted.size() / width > max_digests)
    return corrupt(type, "wrong length");
  Reader reader(bytes_untrusted);
  std::vector<Digest> digests(bytes_untrusted.size() / width);
  for (Digest& digest : digests) digest = reader.digest(kind);
  return digests;
}

std::string encode_bitmap(const std::vector<bool>& bits) {
  std::string out((bits.size() + 7) / 8, '\0');
  for (std::size_t i = 0; i < bits.size(); ++i)
    if (bits[i]) out[i / 8] = static_cast<char>(out[i / 8] | (1 << (i % 8)));
  return out;
}

Result<std::vector<bool>> decode_bitmap(std::string_view bytes_untrusted, std::size_t asked) {
  if (bytes_untrusted.size() != (asked + 7) / 8)
    return corrupt(FrameType::kHaveReply, "wrong length");
  std::vector<bool> bits(asked);
  for (std::size_t i = 0; i < asked; ++i)
    bits[i] = (static_cast<unsigned char>(bytes_untrusted[i / 8]) >> (i % 8)) & 1;
  return bits;
}

std::string encode_checkpoint_head(std::uint64_t seq) {
  Writer writer;
  writer.u64(seq);
  return writer.take();
}

Result<CheckpointMessage> decode_checkpoint(std::string bytes_untrusted) {
  CheckpointMessage message;
  Reader reader(bytes_untrusted);
  message.seq = reader.u64();
  if (!reader.ok()) return corrupt(FrameType::kCheckpoint, "wrong length");
  bytes_untrusted.erase(0, 8);
  message.record = std::move(bytes_untrusted);
  return message;
}

std::string encode_ack(std::uint64_t seq, const AckInfo& info) {
  Writer writer;
  writer.u64(seq);
  writer.u8(info.durability);
  writer.u64(to_ns(info.queued));
  writer.u64(to_ns(info.commit));
  return writer.take();
}

Result<AckMessage> decode_ack(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  AckMessage message;
  message.seq = reader.u64();
  message.info.durability = reader.u8();
  message.info.queued = from_ns(reader.u64());
  message.info.commit = from_ns(reader.u64());
  if (!reader.done()) return corrupt(FrameType::kAck, "wrong length");
  return message;
}

std::string encode_nack(std::uint64_t seq, const Nack& nack, DigestKind kind) {
  Writer writer;
  writer.u64(seq);
  write_error(writer, nack.error);
  const std::size_t count = std::min(nack.missing.size(), kMaxMissingInNack);
  writer.raw(encode_digests(std::span(nack.missing).first(count), kind));
  return writer.take();
}

Result<NackMessage> decode_nack(std::string_view bytes_untrusted, DigestKind kind) {
  Reader reader(bytes_untrusted);
  NackMessage message;
  message.seq = reader.u64();
  message.nack.error = read_error(reader);
  if (!reader.ok()) return corrupt(FrameType::kNack, "wrong length");
  BATON_ASSIGN(message.nack.missing,
               decode_digests(reader.rest(), kMaxMissingInNack, kind, FrameType::kNack));
  return message;
}

std::string encode_fetch_checkpoint(const FetchCheckpointMessage& fetch) {
  Writer writer;
  writer.text(fetch.workload);
  writer.u64(fetch.seq);
  return writer.take();
}

Result<FetchCheckpointMessage> decode_fetch_checkpoint(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  FetchCheckpointMessage fetch;
  if (!read_name(reader, fetch.workload))
    return corrupt(FrameType::kFetchCheckpoint, "no workload name");
  fetch.seq = reader.u64();
  if (!reader.done()) return corrupt(FrameType::kFetchCheckpoint, "wrong length");
  return fetch;
}

std::string encode_fetch_pages(std::string_view workload, const DomainBytes& domain,
                               DigestKind kind, std::span<const Digest> digests) {
  Writer writer;
  writer.text(workload);
  writer.raw(domain);
  writer.u8(static_cast<std::uint8_t>(kind));
  for (const Digest& digest : digests) writer.digest(digest, kind);
  return writer.take();
}

Result<FetchPagesMessage> decode_fetch_pages(std::string_view bytes_untrusted) {
  Reader reader(bytes_untrusted);
  FetchPagesMessage fetch;
  if (!read_name(reader, fetch.workload)) return corrupt(FrameType::kFetchPages, "no workload name");
  read_bytes(reader, fetch.domain);
  const std::uint8_t kind = reader.u8();
  if (!reader.ok() || !dedup::is_known_kind(kind))
    return corrupt(FrameType::kFetchPages, "unknown digest kind or wrong length");
  fetch.kind = static_cast<DigestKind>(kind);
  BATON_ASSIGN(fetch.digests, decode_digests(reader.rest(), kMaxPagesPerFetch, fetch.kind,
                                             FrameType::kFetchPages));
  return fetch;
}

struct PageCodec::Contexts {
  ZSTD_CCtx* compress = ZSTD_createCCtx();
  ZSTD_DCtx* decompress = ZSTD_createDCtx();
  int level = 1;
  unsigned incompressible_run = 0;  // batches since the last attempt that did not shrink
  bool skip = false;
  std::vector<char> scratch;
  ~Contexts() {
    ZSTD_freeCCtx(compress);
    ZSTD_freeDCtx(decompress);
  }
};

PageCodec::PageCodec(int zstd_level) : contexts_(std::make_unique<Contexts>()) {
  contexts_->level = zstd_level;
}
PageCodec::~PageCodec() = default;

// method u8, packed bytes u32, packed
void PageCodec::append_packed(Writer& writer, std::span<const std::byte> raw) {
  Contexts& c = *contexts_;
  if (c.skip && ++c.incompressible_run % kRetryCompressionEvery != 0) {
    writer.u8(kRaw);
    writer.u32(static_cast<std::uint32_t>(raw.size()));
    writer.raw(raw);
    return;
  }
  c.scratch.resize(ZSTD_compressBound(raw.size()));
  const std::size_t packed = ZSTD_compressCCtx(c.compress, c.scratch.data(), c.scratch.size(),
                                               raw.data(), raw.size(), c.level);
  const bool shrunk = !ZSTD_isError(packed) && packed < raw.size() - raw.size() / 16;
  c.skip = !shrunk;
  writer.u8(shrunk ? kZstd : kRaw);
  if (shrunk)
    writer.text(std::string_view(c.scratch.data(), packed));
  else
    writer.text(std::string_view(reinterpret_cast<const char*>(raw.data()), raw.size()));
}

bool PageCodec::unpack(Reader& reader, std::span<std::byte> out) {
  const std::uint8_t method = reader.u8();
  const std::string_view packed = reader.text(out.size());
  if (!reader.ok()) return false;
  if (method == kRaw) {
    if (packed.size() != out.size()) return false;
    if (!out.empty()) std::memcpy(out.data(), packed.data(), out.size());
    return true;
  }
  if (method != kZstd) return false;
  const std::size_t size = ZSTD_decompressDCtx(contexts_->decompress, out.data(), out.size(),
                                               packed.data(), packed.size());
  return !ZSTD_isError(size) && size == out.size();
}

std::string PageCodec::encode_pages(std::span<const Digest> digests, DigestKind kind,
                                    std::span<const std::byte> pages) {
  Writer writer;
  writer.u16(static_cast<std::uint16_t>(digests.size()));
  for (const Digest& digest : digests) writer.digest(digest, kind);
  append_packed(writer, pages);
  return writer.take();
}

Result<PageCodec::Pages> PageCodec::decode_pages(std::string_view bytes_untrusted, DigestKind kind) {
  Reader reader(bytes_untrusted);
  const std::size_t count = reader.u16();
  if (!reader.ok() || count == 0 || count > kMaxPagesPerBatch)
    return corrupt(FrameType::kPages, "wrong number of pages");
  Pages pages;
  pages.digests.resize(count);
  for (Digest& digest : pages.digests) {
    digest = reader.digest(kind);
    if (reader.ok() && (digest.is_absent() || digest.is_zero_page()))
      return corrupt(FrameType::kPages, "a page without content");
  }
  pages.bytes.resize(count * kPageBytes);
  if (!reader.ok() || !unpack(reader, pages.bytes) || !reader.done())
    return corrupt(FrameType::kPages, "the pages cannot be unpacked");
  return pages;
}

std::string PageCodec::encode_fetched(const std::vector<bool>& present,
                                      std::span<const std::byte> pages) {
  std::vector<std::byte> dense;
  dense.reserve(pages.size());
  for (std::size_t i = 0; i < present.size(); ++i)
    if (present[i]) {
      const auto page = pages.subspan(i * kPageBytes, kPageBytes);
      dense.insert(dense.end(), page.begin(), page.end());
    }
  Writer writer;
  writer.raw(encode_bitmap(present));
  append_packed(writer, dense);
  return writer.take();
}

Result<std::vector<bool>> PageCodec::decode_fetched(std::string_view bytes_untrusted,
                                                    std::size_t asked, std::span<std::byte> out) {
  Reader reader(bytes_untrusted);
  BATON_ASSIGN(std::vector<bool> present, decode_bitmap(reader.raw((asked + 7) / 8), asked));
  const auto count = static_cast<std::size_t>(std::ranges::count(present, true));
  std::vector<std::byte> dense(count * kPageBytes);
  if (!unpack(reader, dense) || !reader.done())
    return corrupt(FrameType::kFetchedPages, "the pages cannot be unpacked");
  const std::byte* next = dense.data();
  for (std::size_t i = 0; i < asked; ++i) {
    if (present[i]) {
      std::memcpy(out.data() + i * kPageBytes, next, kPageBytes);
      next += kPageBytes;
    } else {
      std::memset(out.data() + i * kPageBytes, 0, kPageBytes);
    }
  }
  return present;
}

}  // namespace baton::transport::stream
