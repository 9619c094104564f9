// Any bytes, as a page stream after TLS: frames, assembly and every decoder. Nothing may
// crash; what is accepted is within its bounds. The first byte chooses: 0 the stream as it
// is; n the payload of the message type n, without the frame around it.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "transport/stream/messages.h"

namespace {

using namespace baton::transport;
using namespace baton::transport::stream;
using baton::dedup::DigestKind;

void decode(FrameType type, const std::string& payload) {
  static PageCodec codec;
  for (DigestKind kind : {DigestKind::kXxh3_128, DigestKind::kSha256}) switch (type) {
      case FrameType::kRefused: (void)decode_error(payload); break;
      case FrameType::kOpen:
        if (auto open = decode_open(payload)) CHECK(open->workload.size() <= kMaxStreamNameBytes);
        break;
      case FrameType::kOpened: (void)decode_opened(payload, kind); break;
      case FrameType::kNodeQuery:
        if (auto query = decode_node_query(payload)) CHECK(query->size() <= kMaxNodesPerQuery);
        break;
      case FrameType::kNodeReply: (void)decode_node_reply(payload, 3, kind); break;
      case FrameType::kHaveQuery:
        (void)decode_digests(payload, kMaxHavePerQuery, kind, FrameType::kHaveQuery);
        break;
      case FrameType::kHaveReply: (void)decode_bitmap(payload, 17); break;
      case FrameType::kPages:
        if (auto pages = codec.decode_pages(payload, kind)) {
          CHECK(pages->digests.size() <= kMaxPagesPerBatch);
          CHECK(pages->bytes.size() == pages->digests.size() * baton::dedup::kPageBytes);
        }
        break;
      case FrameType::kCheckpoint: (void)decode_checkpoint(payload); break;
      case FrameType::kAck: (void)decode_ack(payload); break;
      case FrameType::kNack: (void)decode_nack(payload, kind); break;
      case FrameType::kFetchCheckpoint: (void)decode_fetch_checkpoint(payload); break;
      case FrameType::kFetchPages: (void)decode_fetch_pages(payload); break;
      case FrameType::kFetchedPages: {
        std::vector<std::byte> out(9 * baton::dedup::kPageBytes);
        (void)codec.decode_fetched(payload, 9, out);
        break;
      }
      default: break;
    }
}

void read_stream(const char* data, std::size_t bytes) {
  Assembler assembler;
  while (bytes >= kHeaderBytes) {
    auto header = decode_header(std::span<const std::byte, kHeaderBytes>(
        reinterpret_cast<const std::byte*>(data), kHeaderBytes));
    if (!header) return;
    data += kHeaderBytes;
    bytes -= kHeaderBytes;
    CHECK(header->payload_bytes <= kMaxPayloadBytes);
    if (header->payload_bytes > bytes) return;
    const std::string payload(data, header->payload_bytes);
    if (!check_payload(*header, std::as_bytes(std::span(payload)))) return;
    Message message;
    auto whole = assembler.add(*header, payload, message);
    if (!whole) return;
    if (*whole) decode(message.type, message.payload);
    data += header->payload_bytes;
    bytes -= header->payload_bytes;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  if (bytes == 0) return 0;
  const char* text = reinterpret_cast<const char*>(data);
  if (data[0] == 0)
    read_stream(text + 1, bytes - 1);
  else
    decode(static_cast<FrameType>(data[0]), std::string(text + 1, bytes - 1));
  if (bytes > kGreetingBytes)
    (void)check_greeting(std::span<const std::byte, kGreetingBytes>(
        reinterpret_cast<const std::byte*>(data + 1), kGreetingBytes));
  return 0;
}
