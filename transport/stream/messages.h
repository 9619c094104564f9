// The payloads of the page stream's messages, to bytes and back. Decoders take bytes from
// outside and fail with kCorrupt, naming the message; what they return is within all bounds.
// Threads: values. A PageCodec belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "transport/page_stream.h"
#include "transport/stream/frame.h"

namespace baton::transport::stream {

std::string encode_open(const OpenRequest& request);
Result<OpenRequest> decode_open(std::string_view bytes_untrusted);

std::string encode_opened(const OpenReply& reply, dedup::DigestKind kind);
Result<OpenReply> decode_opened(std::string_view bytes_untrusted, dedup::DigestKind kind);

std::string encode_error(const Error& error);
// Never fails: what cannot be read becomes kFailed with a text saying so.
Error decode_error(std::string_view bytes_untrusted);

std::string encode_node_query(std::span<const NodeRef> nodes);
Result<std::vector<NodeRef>> decode_node_query(std::string_view bytes_untrusted);
std::string encode_node_reply(std::span<const NodeChildren> nodes, dedup::DigestKind kind);
Result<std::vector<NodeChildren>> decode_node_reply(std::string_view bytes_untrusted,
                                                    std::size_t asked, dedup::DigestKind kind);

std::string encode_digests(std::span<const dedup::Digest> digests, dedup::DigestKind kind);
Result<std::vector<dedup::Digest>> decode_digests(std::string_view bytes_untrusted,
                                                  std::size_t max_digests, dedup::DigestKind kind,
                                                  FrameType type);
std::string encode_bitmap(const std::vector<bool>& bits);
Result<std::vector<bool>> decode_bitmap(std::string_view bytes_untrusted, std::size_t asked);

std::string encode_checkpoint_head(std::uint64_t seq);  // followed by the record
struct CheckpointMessage {
  std::uint64_t seq = 0;
  std::string record;
};
Result<CheckpointMessage> decode_checkpoint(std::string bytes_untrusted);

std::string encode_ack(std::uint64_t seq, const AckInfo& info);
struct AckMessage {
  std::uint64_t seq = 0;
  AckInfo info;
};
Result<AckMessage> decode_ack(std::string_view bytes_untrusted);

std::string encode_nack(std::uint64_t seq, const Nack& nack, dedup::DigestKind kind);
struct NackMessage {
  std::uint64_t seq = 0;
  Nack nack;
};
Result<NackMessage> decode_nack(std::string_view bytes_untrusted, dedup::DigestKind kind);

struct FetchCheckpointMessage {
  std::string workload;
  std::uint64_t seq = 0;
};
std::string encode_fetch_checkpoint(const FetchCheckpointMessage& fetch);
Result<FetchCheckpointMessage> decode_fetch_checkpoint(std::string_view bytes_untrusted);

struct FetchPagesMessage {
  std::string workload;
  DomainBytes domain{};
  dedup::DigestKind kind = dedup::DigestKind::kXxh3_128;
  std::vector<dedup::Digest> digests;
};
std::string encode_fetch_pages(std::string_view workload, const DomainBytes& domain,
                               dedup::DigestKind kind, std::span<const dedup::Digest> digests);
Result<FetchPagesMessage> decode_fetch_pages(std::string_view bytes_untrusted);

// Pages compressed in batches. Content that does not shrink is sent as it is, and tried
// again only now and then.
class PageCodec {
 public:
  explicit PageCodec(int zstd_level = 1);
  ~PageCodec();
  PageCodec(const PageCodec&) = delete;
  PageCodec& operator=(const PageCodec&) = delete;

  // PAGES: up to kMaxPagesPerBatch digests and their pages, one after another in `pages`.
  std::string encode_pages(std::span<const dedup::Digest> digests, dedup::DigestKind kind,
                           std::span<const std::byte> pages);
  struct Pages {
    std::vector<dedup::Digest> digests;
    std::vector<std::byte> bytes;
  };
  Result<Pages> decode_pages(std::string_view bytes_untrusted, dedup::DigestKind kind);

  // FETCHED_PAGES: which of `present.size()` pages are there, and their bytes.
  std::string encode_fetched(const std::vector<bool>& present, std::span<const std::byte> pages);
  // Fills `out`; absent pages become zeros. Returns which are present.
  Result<std::vector<bool>> decode_fetched(std::string_view bytes_untrusted, std::size_t asked,
                                           std::span<std::byte> out);

 private:
  void append_packed(Writer& writer, std::span<const std::byte> raw);
  bool unpack(Reader& reader, std::span<std::byte> out);
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

}  // namespace baton::transport::stream
