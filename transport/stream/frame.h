// Frames and messages of the page stream as bytes (docs/formats/page-stream.md). No
// sockets here, so that every bad case can be tested and fuzzed.
//
// A frame is a 32-byte header and up to kMaxPayloadBytes; both are checksummed. A message
// is one frame, or several (flag kMore) of one type, channel and request. Everything read
// here comes from outside: sizes are checked before anything is allocated, and each
// failure is kCorrupt and names the frame.
// Threads: values; an Assembler belongs to one thread.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "dedup/digest.h"
#include "transport/page_stream.h"

namespace baton::transport::stream {

inline constexpr std::size_t kHeaderBytes = 32;
inline constexpr std::size_t kMaxPayloadBytes = 1u << 20;
inline constexpr std::size_t kGreetingBytes = 32;
inline constexpr std::size_t kPagesPerBatch = 32;
inline constexpr std::size_t kMaxPagesPerBatch = 64;
inline constexpr std::size_t kMaxOpenedBytes = 64u << 20;
inline constexpr std::size_t kMaxContextBytes = 64u << 10;
inline constexpr std::size_t kMaxStreamNameBytes = 128;
inline constexpr std::size_t kMaxErrorFieldBytes = 4096;
inline constexpr std::size_t kMaxMissingInNack = 256 * 1024;
inline constexpr std::size_t kMaxPartialMessages = 64;  // being put together, per connection

// Frozen numbers.
enum class FrameType : std::uint8_t {
  kWelcome = 1,
  kRefused = 2,  // answers any request; on channel 0, request 0: the connection
  kPing = 3,
  kPong = 4,
  kOpen = 10,
  kOpened = 11,
  kCloseWorkload = 12,
  kNodeQuery = 20,
  kNodeReply = 21,
  kHaveQuery = 22,
  kHaveReply = 23,
  kPages = 30,
  kCheckpoint = 31,
  kAck = 32,
  kNack = 33,
  kFetchCheckpoint = 40,
  kFetchedCheckpoint = 41,
  kFetchPages = 42,
  kFetchedPages = 43,
};
std::string_view frame_name(FrameType type);
// The most bytes of a whole message of this type; 0: no such type.
std::size_t max_message_bytes(std::uint8_t type_untrusted);

struct FrameHeader {
  FrameType type{};
  bool more = false;  // the message goes on in the next frame of this type, channel, request
  std::uint32_t channel = 0;
  std::uint32_t request = 0;
  std::uint32_t payload_bytes = 0;
  std::uint64_t payload_sum = 0;
};

// A header with the sums of `payload`, followed by nothing.
std::array<std::byte, kHeaderBytes> encode_header(FrameType type, bool more, std::uint32_t channel,
                                                  std::uint32_t request,
                                                  std::span<const std::byte> payload);
// Fails: kCorrupt (checksum, type, flags, length, reserved bits).
Result<FrameHeader> decode_header(std::span<const std::byte, kHeaderBytes> bytes_untrusted);
// Fails: kCorrupt, naming the frame.
Result<void> check_payload(const FrameHeader& header, std::span<const std::byte> payload_untrusted);

// What both sides say first: "BTNSTRM\n", version, largest payload, checksum.
std::array<std::byte, kGreetingBytes> encode_greeting(std::uint16_t version = kPageStreamVersion);
// Fails: kCorrupt (not a page stream), kUnsupported (another version).
Result<void> check_greeting(std::span<const std::byte, kGreetingBytes> bytes_untrusted);

// One whole message.
struct Message {
  FrameType type{};
  std::uint32_t channel = 0;
  std::uint32_t request = 0;
  std::string payload;
  std::chrono::steady_clock::time_point arrived{};  // set by the session when whole
};

// Puts the frames of messages together. Fails: kCorrupt (too long for its type, another
// type in between on the same channel and request, too many at once).
class Assembler {
 public:
  // True: `out` holds a whole message.
  Result<bool> add(const FrameHeader& header, std::string payload_untrusted, Message& out);

 private:
  std::map<std::pair<std::uint32_t, std::uint32_t>, Message> partial_;
  std::size_t partial_bytes_ = 0;
};

class Writer {
 public:
  void u8(std::uint8_t v) { out_.push_back(static_cast<char>(v)); }
  void u16(std::uint16_t v) { number(v); }
  void u32(std::uint32_t v) { number(v); }
  void u64(std::uint64_t v) { number(v); }
  void raw(std::span<const std::byte> bytes) {
    out_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void raw(std::string_view bytes) { out_.append(bytes); }
  void text(std::string_view bytes) {  // length, bytes
    u32(static_cast<std::uint32_t>(bytes.size()));
    raw(bytes);
  }
  void digest(const dedup::Digest& digest, dedup::DigestKind kind) {
    raw(std::span(digest.bytes).first(dedup::digest_width(kind)));
  }
  std::string take() { return std::move(out_); }

 private:
  template <typename T>
  void number(T v) {
    for (std::size_t i = 0; i < sizeof(T); ++i) u8(static_cast<std::uint8_t>(v >> (8 * i)));
  }
  std::string out_;
};

// Reads what is there; after the first lack, everything reads as zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  std::uint8_t u8() { return static_cast<std::uint8_t>(number<std::uint8_t>()); }
  std::uint16_t u16() { return number<std::uint16_t>(); }
  std::uint32_t u32() { return number<std::uint32_t>(); }
  std::uint64_t u64() { return number<std::uint64_t>(); }
  std::string_view raw(std::size_t bytes) {
    if (!ok_ || rest_.size() < bytes) {
      ok_ = false;
      return {};
    }
    const std::string_view head = rest_.substr(0, bytes);
    rest_.remove_prefix(bytes);
    return head;
  }
  std::string_view text(std::size_t max_bytes) {
    const std::uint32_t bytes = u32();
    if (bytes > max_bytes) ok_ = false;
    return raw(bytes);
  }
  dedup::Digest digest(dedup::DigestKind kind) {
    const std::string_view bytes = raw(dedup::digest_width(kind));
    if (!ok_) return {};
    return dedup::Digest::from_bytes(std::as_bytes(std::span(bytes)));
  }
  std::size_t left() const { return rest_.size(); }
  std::string_view rest() const { return rest_; }
  bool ok() const { return ok_; }
  void fail() { ok_ = false; }
  bool done() const { return ok_ && rest_.empty(); }

 private:
  template <typename T>
  T number() {
    const std::string_view bytes = raw(sizeof(T));
    if (bytes.size() != sizeof(T)) return 0;
    T v = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i)
      v = static_cast<T>(v | (static_cast<T>(static_cast<unsigned char>(bytes[i])) << (8 * i)));
    return v;
  }
  std::string_view rest_;
  bool ok_ = true;
};

}  // namespace baton::transport::stream
