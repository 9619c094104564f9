#include "agent/node/stream_replica.h"

#include <utility>

namespace baton::node {
namespace {

using namespace std::chrono_literals;
constexpr auto kConnectTimeout = 2000ms;
constexpr auto kQueryTimeout = 10s;
constexpr auto kSendTimeout = 60s;  // a bandwidth limit makes a put wait; a dead peer ends it sooner

}  // namespace

StreamReplica::StreamReplica(pb::PeerAddress peer, storage::WorkloadIdentity identity,
                             std::string context, std::uint8_t durability,
                             const transport::TlsFiles& tls)
    : peer_(std::move(peer)),
      identity_(std::move(identity)),
      context_(std::move(context)),
      durability_(durability),
      tls_(tls) {}

StreamReplica::~StreamReplica() {
  close();
  channel_.reset();
  connection_.reset();
}

std::shared_ptr<transport::PageStreamChannel> StreamReplica::channel() const {
  std::lock_guard lock(mutex_);
  return closed_ ? nullptr : channel_;
}

Result<std::optional<ReplicaTip>> StreamReplica::open(std::uint64_t incarnation) {
  std::shared_ptr<transport::PageStreamConnection> old_connection;
  std::shared_ptr<transport::PageStreamChannel> old_channel;
  {
    std::lock_guard lock(mutex_);
    old_channel = std::move(channel_);
    old_connection = std::move(connection_);
    closed_ = false;
  }
  old_channel.reset();
  old_connection.reset();
  transport::StreamOptions options;
  options.connect_timeout = kConnectTimeout;
  options.on_disconnect = [](const Error&) {};
  BATON_ASSIGN(auto connected,
               transport::PageStreamConnection::connect(peer_.stream(), tls_, peer_.node(), options));
  std::shared_ptr<transport::PageStreamConnection> connection(std::move(connected));
  if (rate_ != 0) connection->set_bandwidth_limit(rate_);
  transport::OpenRequest request;
  request.workload = identity_.workload;
  request.domain = identity_.domain.bytes;
  request.kind = identity_.kind;
  request.hash_key = identity_.key;
  request.incarnation = incarnation;
  request.durability = durability_;
  request.context = context_;
  BATON_ASSIGN(auto opened, connection->open(
                                request,
                                [this](std::uint64_t seq, const Answer& answer) { answered(seq, answer); },
                                kQueryTimeout));
  counted_bytes_ = 0;
  const auto reply = opened->opened();
  std::lock_guard lock(mutex_);
  connection_ = std::move(connection);
  channel_ = std::move(opened);
  if (reply.tip_seq == 0) return std::optional<ReplicaTip>();
  return std::optional<ReplicaTip>(ReplicaTip{reply.tip_seq, reply.tip_incarnation});
}

void StreamReplica::close() {
  std::shared_ptr<transport::PageStreamChannel> open_channel;
  std::shared_ptr<transport::PageStreamConnection> open_connection;
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
    open_channel = channel_;
    open_connection = connection_;
    changed_.notify_all();
  }
  if (open_channel) open_channel->close();
  if (open_connection) open_connection->close();
}

void StreamReplica::answered(std::uint64_t seq, const Answer& answer) {
  std::lock_guard lock(mutex_);
  if (seq != awaited_seq_) return;
  answer_ = answer;
  changed_.notify_all();
}

void StreamReplica::limit_rate(std::uint64_t bytes_per_s) {
  if (bytes_per_s == rate_) return;
  rate_ = bytes_per_s;
  std::shared_ptr<transport::PageStreamConnection> connection;
  {
    std::lock_guard lock(mutex_);
    connection = connection_;
  }
  if (connection) connection->set_bandwidth_limit(bytes_per_s);
}

namespace {
Error not_connected(const std::string& node) {
  return make_error(Code::kUnreachable, "page stream", node + ": not connected");
}
}  // namespace

Result<std::vector<bool>> StreamReplica::have(std::span<const dedup::Digest> digests) {
  auto open_channel = channel();
  if (!open_channel) return not_connected(peer_.node());
  return open_channel->query_have(digests, kQueryTimeout);
}

Result<std::uint64_t> StreamReplica::put(std::span<const storage::PagePut> pages) {
  auto open_channel = channel();
  if (!open_channel) return not_connected(peer_.node());
  std::vector<transport::PageRef> refs;
  refs.reserve(pages.size());
  for (const auto& page : pages) refs.push_back({page.digest, page.page});
  BATON_TRY(open_channel->send_pages(refs, kSendTimeout));
  std::shared_ptr<transport::PageStreamConnection> connection;
  {
    std::lock_guard lock(mutex_);
    connection = connection_;
  }
  // What is still queued is counted with a later put; nothing is counted twice.
  const std::uint64_t sent = connection ? connection->counters().bytes_sent : counted_bytes_;
  return sent - std::exchange(counted_bytes_, sent);
}

Result<void> StreamReplica::commit(const storage::CheckpointRecord& record, storage::Durability,
                                   std::vector<dedup::Digest>* missing) {
  auto open_channel = channel();
  if (!open_channel) return not_connected(peer_.node());
  BATON_ASSIGN(std::string bytes, storage::encode(record));
  {
    std::lock_guard lock(mutex_);
    awaited_seq_ = record.seq;
    answer_.reset();
  }
  BATON_TRY(open_channel->send_checkpoint(record.seq, std::move(bytes), kSendTimeout));
  std::unique_lock lock(mutex_);
  // A dead peer is noticed by the stream, which then answers kUnknownOutcome.
  changed_.wait(lock, [&] { return answer_ || closed_; });
  if (!answer_) return make_error(Code::kCancelled, "commit", peer_.node() + ": stopped");
  if (*answer_) return {};
  if (missing) *missing = answer_->error().missing;
  return Error(answer_->error().error);
}

}  // namespace baton::node
