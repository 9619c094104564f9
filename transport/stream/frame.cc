#include "transport/stream/frame.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace baton::transport::stream {
namespace {

constexpr std::string_view kGreetingMagic = "BTNSTRM\n";
constexpr std::uint8_t kFlagMore = 1;
constexpr std::size_t kHeaderSumAt = 24;
constexpr std::size_t kGreetingSumAt = 24;

std::uint64_t sum(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }

template <typename T>
void put(std::byte* at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) at[i] = static_cast<std::byte>(value >> (8 * i));
}
template <typename T>
T get(const std::byte* at) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | (static_cast<T>(at[i]) << (8 * i)));
  return value;
}

Error corrupt(std::string what) {
  return make_error(Code::kCorrupt, "read page stream", std::move(what));
}

std::string describe(const FrameHeader& header) {
  return std::string(frame_name(header.type)) + " frame of channel " +
         std::to_string(header.channel) + " (" + std::to_string(header.payload_bytes) + " bytes)";
}

}  // namespace

std::string_view frame_name(FrameType type) {
  switch (type) {
    case FrameType::kWelcome: return "WELCOME";
    case FrameType::kRefused: return "REFUSED";
    case FrameType::kPing: return "PING";
    case FrameType::kPong: return "PONG";
    case FrameType::kOpen: return "OPEN_WORKLOAD";
    case FrameType::kOpened: return "OPENED";
    case FrameType::kCloseWorkload: return "CLOSE_WORKLOAD";
    case FrameType::kNodeQuery: return "NODE_QUERY";
    case FrameType::kNodeReply: return "NODE_REPLY";
    case FrameType::kHaveQuery: return "HAVE_QUERY";
    case FrameType::kHaveReply: return "HAVE_REPLY";
    case FrameType::kPages: return "PAGES";
    case FrameType::kCheckpoint: return "CHECKPOINT";
    case FrameType::kAck: return "ACK";
    case FrameType::kNack: return "NACK";
    case FrameType::kFetchCheckpoint: return "FETCH_CHECKPOINT";
    case FrameType::kFetchedCheckpoint: return "FETCHED_CHECKPOINT";
    case FrameType::kFetchPages: return "FETCH_PAGES";
    case FrameType::kFetchedPages: return "FETCHED_PAGES";
  }
  return "unknown";
}

std::size_t max_message_bytes(std::uint8_t type_untrusted) {
  switch (static_cast<FrameType>(type_untrusted)) {
    case FrameType::kWelcome:
    case FrameType::kPing:
    case FrameType::kPong:
    case FrameType::kCloseWorkload: return 64;
    case FrameType::kRefused: return 64u << 10;
    case FrameType::kOpen: return 128u << 10;
    case FrameType::kOpened: return kMaxOpenedBytes;
    case FrameType::kNodeQuery:
    case FrameType::kNodeReply:
    case FrameType::kHaveQuery:
    case FrameType::kHaveReply:
    case FrameType::kPages:
    case FrameType::kFetchCheckpoint:
    case FrameType::kFetchPages: return kMaxPayloadBytes;
    case FrameType::kAck: return 64;
    case FrameType::kNack: return 16u << 20;
    case FrameType::kCheckpoint:
    case FrameType::kFetchedCheckpoint: return kMaxCheckpointBytes + 64;
    case FrameType::kFetchedPages: return kMaxPagesPerFetch * dedup::kPageBytes + (64u << 10);
  }
  return 0;
}

std::array<std::byte, kHeaderBytes> encode_header(FrameType type, bool more, std::uint32_t channel,
                                                  std::uint32_t request,
                                                  std::span<const std::byte> payload) {
  std::array<std::byte, kHeaderBytes> out{};
  put(out.data(), static_cast<std::uint32_t>(payload.size()));
  out[4] = static_cast<std::byte>(type);
  out[5] = static_cast<std::byte>(more ? kFlagMore : 0);
  put(out.data() + 8, channel);
  put(out.data() + 12, request);
  put(out.data() + 16, sum(payload.data(), payload.size()));
  put(out.data() + kHeaderSumAt, sum(out.data(), kHeaderSumAt));
  return out;
}

Result<FrameHeader> decode_header(std::span<const std::byte, kHeaderBytes> bytes_untrusted) {
  const std::byte* at = bytes_untrusted.data();
  if (get<std::uint64_t>(at + kHeaderSumAt) != sum(at, kHeaderSumAt))
    return corrupt("a frame header fails its checksum");
  const auto type = static_cast<std::uint8_t>(at[4]);
  const auto flags = static_cast<std::uint8_t>(at[5]);
  if (max_message_bytes(type) == 0)
    return corrupt("a frame of the unknown type " + std::to_string(type));
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.more = (flags & kFlagMore) != 0;
  header.payload_bytes = get<std::uint32_t>(at);
  header.channel = get<std::uint32_t>(at + 8);
  header.request = get<std::uint32_t>(at + 12);
  header.payload_sum = get<std::uint64_t>(at + 16);
  if ((flags & ~kFlagMore) != 0 || get<std::uint16_t>(at + 6) != 0)
    return corrupt(describe(header) + ": reserved bits are set");
  if (header.payload_bytes > kMaxPayloadBytes || header.payload_bytes > max_message_bytes(type))
    return corrupt(describe(header) + ": longer than allowed");
  if (header.more && header.payload_bytes == 0)
    return corrupt(describe(header) + ": an empty part of a message");
  return header;
}

Result<void> check_payload(const FrameHeader& header, std::span<const std::byte> payload_untrusted) {
  if (payload_untrusted.size() != header.payload_bytes)
    return corrupt(describe(header) + ": truncated");
  if (sum(payload_untrusted.data(), payload_untrusted.size()) != header.payload_sum)
    return corrupt(describe(header) + " fails its checksum");
  return {};
}

std::array<std::byte, kGreetingBytes> encode_greeting(std::uint16_t version) {
  std::array<std::byte, kGreetingBytes> out{};
  std::memcpy(out.data(), kGreetingMagic.data(), kGreetingMagic.size());
  put(out.data() + 8, version);
  put(out.data() + 12, static_cast<std::uint32_t>(kMaxPayloadBytes));
  put(out.data() + kGreetingSumAt, sum(out.data(), kGreetingSumAt));
  return out;
}

Result<void> check_greeting(std::span<const std::byte, kGreetingBytes> bytes_untrusted) {
  const std::byte* at = bytes_untrusted.data();
  if (std::memcmp(at, kGreetingMagic.data(), kGreetingMagic.size()) != 0)
    return corrupt("the peer does not speak the page stream's protocol");
  if (get<std::uint64_t>(at + kGreetingSumAt) != sum(at, kGreetingSumAt))
    return corrupt("the greeting fails its checksum");
  const auto version = get<std::uint16_t>(at + 8);
  if (version != kPageStreamVersion)
    return make_error(Code::kUnsupported, "open page stream",
                      "the peer speaks version " + std::to_string(version) +
                          " of the page stream, this node version " +
                          std::to_string(kPageStreamVersion),
                      "Run the same version of Baton on both nodes.");
  return {};
}

Result<bool> Assembler::add(const FrameHeader& header, std::string payload_untrusted, Message& out) {
  const auto key = std::pair(header.channel, header.request);
  auto at = partial_.find(key);
  if (at == partial_.end()) {
    Message message{header.type, header.channel, header.request, std::move(payload_untrusted), {}};
    if (!header.more) {
      out = std::move(message);
      return true;
    }
    if (partial_.size() >= kMaxPartialMessages)
      return corrupt(describe(header) + ": too many unfinished messages");
    partial_bytes_ += message.payload.size();
    if (partial_bytes_ > kMaxCheckpointBytes + kMaxPayloadBytes)
      return corrupt(describe(header) + ": too many bytes in unfinished messages");
    partial_.emplace(key, std::move(message));
    return false;
  }
  Message& message = at->second;
  if (message.type != header.type)
    return corrupt(describe(header) + " in the middle of a " +
                   std::string(frame_name(message.type)));
  if (message.payload.size() + payload_untrusted.size() >
      max_message_bytes(static_cast<std::uint8_t>(header.type)))
    return corrupt(describe(header) + ": the message is longer than allowed");
  partial_bytes_ += payload_untrusted.size();
  if (partial_bytes_ > kMaxCheckpointBytes + kMaxPayloadBytes)
    return corrupt(describe(header) + ": too many bytes in unfinished messages");
  message.payload += payload_untrusted;
  if (header.more) return false;
  partial_bytes_ -= message.payload.size();
  out = std::move(message);
  partial_.erase(at);
  return true;
}

}  // namespace baton::transport::stream
