// The bulk page stream: pages and checkpoint records from a primary to its standbys, and
// back on a restore, over TLS 1.3 with certificates on both sides. Wire format:
// docs/formats/page-stream.md. Checkpoint records are opaque bytes here.
//
//   primary                                       standby
//   PageStreamConnection::connect ------------->  PageStreamServer + StreamHandler
//     open(workload)  -> PageStreamChannel           on_open -> ReceiverChannel
//       find_missing(table, …)                         on_nodes
//       query_have(digests)                            on_have
//       send_pages(pages)                              on_pages
//       send_checkpoint(seq, record) -> on_ack         on_checkpoint
//     fetch_checkpoint, fetch_pages                  on_fetch_checkpoint, on_fetch_pages
//
// Refuses: a peer that is not a node of this cluster, another protocol version, any frame
// that is too long or fails its checksum (kCorrupt; the connection ends, the frame had no
// effect). Bounded: kMaxQueuedBytes wait for the link on the sender, kMaxInFlightBytes wait
// for the handler on the receiver; a slow disk there makes send_pages block here.
// After a lost connection: connect, open, find_missing, send again.
// Threads: see each class. TlsFiles are copied.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "dedup/digest.h"
#include "dedup/page_table.h"
#include "transport/identity.h"

namespace baton::transport {

inline constexpr std::uint16_t kPageStreamVersion = 1;
inline constexpr std::size_t kMaxQueuedBytes = 8u << 20;     // per connection, sender
inline constexpr std::size_t kMaxInFlightBytes = 8u << 20;   // per connection, receiver
inline constexpr std::size_t kMaxCheckpointBytes = 256u << 20;
inline constexpr std::size_t kMaxChannels = 1024;            // per connection
inline constexpr std::size_t kMaxUnackedCheckpoints = 1024;  // per channel
inline constexpr std::size_t kMaxStreamConnections = 64;     // per server
inline constexpr std::uint64_t kMinRateBytesPerS = 16 * 1024;
inline constexpr std::size_t kMaxNodesPerQuery = 256;        // longer queries are split
inline constexpr std::size_t kMaxHavePerQuery = 16 * 1024;   // longer queries are split
inline constexpr std::size_t kMaxPagesPerFetch = 1024;       // longer fetches are split

using DomainBytes = std::array<std::byte, 16>;

struct OpenRequest {
  std::string workload;
  DomainBytes domain{};
  dedup::DigestKind kind = dedup::DigestKind::kXxh3_128;
  dedup::HashKey hash_key{};
  std::uint64_t incarnation = 0;
  std::uint8_t durability = 0;  // wanted, as in pb::Durability; 0: the standby's default
  std::string context;          // opaque, up to 64 KiB: what else the two agents must share
};

// What the receiver holds of the workload: its newest commit. Nothing: tip_seq 0.
struct TipObject {
  std::uint64_t object = 0;
  dedup::Digest root;
  friend bool operator==(const TipObject&, const TipObject&) = default;
};
struct OpenReply {
  std::uint64_t tip_seq = 0;
  std::uint64_t tip_incarnation = 0;
  std::vector<TipObject> objects;
};

// One node of the receiver's tip table of `object`, as in dedup::PageTable::node_children.
struct NodeRef {
  std::uint64_t object = 0;
  unsigned level = 0;
  std::uint64_t index = 0;
  friend bool operator==(const NodeRef&, const NodeRef&) = default;
};
using NodeChildren = std::array<dedup::Digest, dedup::kFanOut>;

struct PageRef {
  dedup::Digest digest;
  const std::byte* page = nullptr;  // dedup::kPageBytes, readable during the call
};

struct AckInfo {
  std::uint8_t durability = 0;             // reached, as in pb::Durability
  std::chrono::nanoseconds queued{0};      // at the receiver: last byte in, until its handler began
  std::chrono::nanoseconds commit{0};      // at the receiver: in its handler
  std::chrono::nanoseconds round_trip{0};  // at the sender: send_checkpoint until this
};

// Why a checkpoint was not committed. `missing`: pages to send again before trying again.
struct Nack {
  Error error;
  std::vector<dedup::Digest> missing;
};

struct StreamCounters {
  std::uint64_t bytes_sent = 0;         // on the wire, compressed, with framing, without TLS
  std::uint64_t bytes_received = 0;
  std::uint64_t pages_sent = 0;
  std::uint64_t page_bytes_sent = 0;    // compressed payload of the pages
  std::uint64_t pages_known = 0;        // answers "known" to query_have
  std::uint64_t checkpoints_acked = 0;
  std::uint64_t checkpoints_nacked = 0;
  std::uint64_t queued_bytes = 0;       // now
};

struct StreamOptions {
  std::chrono::milliseconds connect_timeout{5000};  // TCP, TLS and greeting together
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds dead_after{4000};  // nothing received for so long: kUnreachable
  int zstd_level = 1;
  // Once, from the connection's event thread, after the last ack. Not after close().
  std::function<void(const Error&)> on_disconnect;
};

class PageStreamConnection;

// One workload on a connection. Every function may be called by any thread; what one
// thread sends arrives in that order. After the connection is lost all fail: kUnreachable.
// Outlives neither its connection's object nor a call to close.
class PageStreamChannel {
 public:
  ~PageStreamChannel();  // close()

  const OpenReply& opened() const;

  // The children of nodes of the receiver's tip, in the order asked. Blocks.
  // Fails: kNotFound (no such object there), kTimedOut, kUnreachable.
  Result<std::vector<NodeChildren>> query_nodes(std::span<const NodeRef> nodes,
                                                std::chrono::milliseconds timeout);
  // Which of the digests the receiver's store holds. Blocks.
  Result<std::vector<bool>> query_have(std::span<const dedup::Digest> digests,
                                       std::chrono::milliseconds timeout);
  // Copies the pages into the send queue; blocks while that is full. On kTimedOut some of
  // the pages have been queued (sending a page twice does no harm). Zero pages and absent
  // digests are not sent: kInvalid.
  Result<void> send_pages(std::span<const PageRef> pages, std::chrono::milliseconds timeout);
  // Queues the record behind the pages. The answer comes to on_ack, once, unless this fails.
  // Fails: kNoSpace (over kMaxCheckpointBytes), kTimedOut (queue full, or
  // kMaxUnackedCheckpoints wait), kUnreachable.
  Result<void> send_checkpoint(std::uint64_t seq, std::string record,
                               std::chrono::milliseconds timeout);
  // Ends the workload here; checkpoints without answer get kCancelled. Idempotent.
  void close();

 private:
  friend class PageStreamConnection;
  struct Impl;
  explicit PageStreamChannel(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

// A client connection with threads of its own: io, compression, events (callbacks).
// Every function may be called by any thread, except the destructor.
class PageStreamConnection {
 public:
  // From the event thread, in the order of the receiver's answers; may call channel
  // functions that do not wait for answers. On a lost connection all unanswered
  // checkpoints get kUnknownOutcome.
  using OnAck = std::function<void(std::uint64_t seq, const tl::expected<AckInfo, Nack>& answer)>;

  // To HOST:PORT, whose certificate must be of node `expected_node` of our cluster (any
  // node when empty). Blocks. Fails: kUnreachable, kTimedOut, kNotAllowed (certificates,
  // roles, names), kUnsupported (version), kCorrupt.
  static Result<std::unique_ptr<PageStreamConnection>> connect(const std::string& address,
                                                               const TlsFiles& tls,
                                                               std::string_view expected_node,
                                                               StreamOptions options = {});
  ~PageStreamConnection();  // close()

  const Identity& peer() const;
  bool connected() const;

  // Fails with the receiver's own error, or kConflict (the workload is open here already).
  Result<std::unique_ptr<PageStreamChannel>> open(const OpenRequest& request, OnAck on_ack,
                                                  std::chrono::milliseconds timeout);

  // From the peer's store. seq 0: its newest. The encoded full record. Blocks.
  Result<std::string> fetch_checkpoint(std::string_view workload, std::uint64_t seq,
                                       std::chrono::milliseconds timeout);
  // Fills `out` (kPageBytes per digest) and returns the digests that the peer lacks, whose
  // pages in `out` are zeroed. The bytes are not checked against the digests here: the
  // caller has the key. `timeout` is for each kMaxPagesPerFetch pages.
  Result<std::vector<dedup::Digest>> fetch_pages(std::string_view workload,
                                                 const DomainBytes& domain, dedup::DigestKind kind,
                                                 std::span<const dedup::Digest> digests,
                                                 std::span<std::byte> out,
                                                 std::chrono::milliseconds timeout);

  // All channels together, sent bytes on the wire; 0: unlimited. Raised to kMinRateBytesPerS.
  void set_bandwidth_limit(std::uint64_t rate_bytes_per_s);
  StreamCounters counters() const;
  void close();

 private:
  friend class PageStreamChannel;
  struct Impl;
  explicit PageStreamConnection(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

// How `table` differs from what the receiver holds of `object`: exactly a checkpoint
// record's change from the receiver's tip. `peer_root` from OpenReply (absent: no such
// object there). Walks only where digests differ. Blocks.
struct TableDifference {
  std::vector<dedup::PageRange> erased;    // sorted, disjoint; apply first
  std::vector<dedup::PageChange> changes;  // sorted; none absent
  std::uint64_t nodes_asked = 0;
};
Result<TableDifference> find_missing(const dedup::PageTable& table, const dedup::PageHasher& hasher,
                                     std::uint64_t object, const dedup::Digest& peer_root,
                                     PageStreamChannel& channel, std::chrono::milliseconds timeout);

// ---------------------------------------------------------------- receiver

// One open workload of one connection, made by StreamHandler::on_open. Its functions are
// called one at a time, in the order sent, by worker threads; destroyed after the last
// (CLOSE_WORKLOAD, a lost connection, the server's stop).
class ReceiverChannel {
 public:
  virtual ~ReceiverChannel() = default;
  virtual Result<std::vector<NodeChildren>> on_nodes(std::span<const NodeRef> nodes) = 0;
  virtual Result<std::vector<bool>> on_have(std::span<const dedup::Digest> digests) = 0;
  // Each page has been checked against its digest. An error is kept and answers the next
  // checkpoint.
  virtual Result<void> on_pages(std::span<const PageRef> pages) = 0;
  // Commits. The answer's queued and round_trip are filled in by the stream, commit too
  // unless set.
  virtual tl::expected<AckInfo, Nack> on_checkpoint(std::uint64_t seq, std::string record) = 0;
};

struct StreamPeer {
  Identity identity;
  std::string address;  // for the log
};

struct Opened {
  OpenReply reply;
  std::unique_ptr<ReceiverChannel> channel;
};

// Called by worker threads, several at once.
class StreamHandler {
 public:
  virtual ~StreamHandler() = default;
  virtual Result<Opened> on_open(const StreamPeer& peer, const OpenRequest& request) = 0;
  // seq 0: the newest. Fails: kNotFound.
  virtual Result<std::string> on_fetch_checkpoint(const StreamPeer& peer, std::string_view workload,
                                                  std::uint64_t seq) = 0;
  // Fills out[i * kPageBytes …] and sets present[i] for each page that is here.
  virtual Result<void> on_fetch_pages(const StreamPeer& peer, std::string_view workload,
                                      const DomainBytes& domain, dedup::DigestKind kind,
                                      std::span<const dedup::Digest> digests,
                                      std::span<std::byte> out, std::vector<bool>& present) = 0;
  // Somebody was refused, or a connection ended with an error (from the io thread: be brief).
  virtual void on_stream_error(const Error& error) { (void)error; }
};

struct StreamServerOptions {
  int worker_threads = 2;
  std::chrono::milliseconds handshake_timeout{5000};
  std::chrono::milliseconds ping_interval{1000};
  std::chrono::milliseconds dead_after{4000};
};

// Listens with one io thread and `worker_threads` workers. The handler outlives it.
class PageStreamServer {
 public:
  // HOST:PORT; port 0 asks for a free one. Fails: kConflict (in use), kInvalid, kFailed.
  static Result<std::unique_ptr<PageStreamServer>> start(const std::string& address,
                                                         const TlsFiles& tls, StreamHandler& handler,
                                                         StreamServerOptions options = {});
  ~PageStreamServer();  // stop()
  int port() const;
  std::size_t connections() const;
  // Ends all connections; blocks until the last handler call has returned.
  void stop();

 private:
  struct Impl;
  explicit PageStreamServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace baton::transport
