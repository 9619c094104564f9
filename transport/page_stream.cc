#include "transport/page_stream.h"

#include <algorithm>
#include <map>

#include "transport/stream/client.h"
#include "transport/stream/server.h"

namespace baton::transport {

using stream::Client;
using stream::ClientChannel;
using stream::FrameType;
using std::chrono::milliseconds;

namespace {

stream::Deadline after(milliseconds timeout) { return std::chrono::steady_clock::now() + timeout; }

}  // namespace

// ------------------------------------------------------------ channel

struct PageStreamChannel::Impl {
  std::shared_ptr<ClientChannel> channel;
};

PageStreamChannel::PageStreamChannel(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
PageStreamChannel::~PageStreamChannel() { close(); }

const OpenReply& PageStreamChannel::opened() const { return impl_->channel->opened; }

Result<std::vector<NodeChildren>> PageStreamChannel::query_nodes(std::span<const NodeRef> nodes,
                                                                 milliseconds timeout) {
  const auto deadline = after(timeout);
  ClientChannel& channel = *impl_->channel;
  std::vector<NodeChildren> found;
  found.reserve(nodes.size());
  while (!nodes.empty()) {
    const auto batch = nodes.first(std::min(nodes.size(), kMaxNodesPerQuery));
    BATON_ASSIGN(const std::string reply,
                 channel.client->ask(FrameType::kNodeQuery, FrameType::kNodeReply, channel.id,
                                     stream::encode_node_query(batch), deadline));
    BATON_ASSIGN(auto children,
                 stream::decode_node_reply(reply, batch.size(), channel.request.kind));
    found.insert(found.end(), children.begin(), children.end());
    nodes = nodes.subspan(batch.size());
  }
  return found;
}

Result<std::vector<bool>> PageStreamChannel::query_have(std::span<const dedup::Digest> digests,
                                                        milliseconds timeout) {
  const auto deadline = after(timeout);
  ClientChannel& channel = *impl_->channel;
  std::vector<bool> known;
  known.reserve(digests.size());
  while (!digests.empty()) {
    const auto batch = digests.first(std::min(digests.size(), kMaxHavePerQuery));
    BATON_ASSIGN(const std::string reply,
                 channel.client->ask(FrameType::kHaveQuery, FrameType::kHaveReply, channel.id,
                                     stream::encode_digests(batch, channel.request.kind), deadline));
    BATON_ASSIGN(const auto bits, stream::decode_bitmap(reply, batch.size()));
    known.insert(known.end(), bits.begin(), bits.end());
    digests = digests.subspan(batch.size());
  }
  channel.client->count_known(static_cast<std::uint64_t>(std::ranges::count(known, true)));
  return known;
}

Result<void> PageStreamChannel::send_pages(std::span<const PageRef> pages, milliseconds timeout) {
  return impl_->channel->client->send_pages(*impl_->channel, pages, after(timeout));
}

Result<void> PageStreamChannel::send_checkpoint(std::uint64_t seq, std::string record,
                                                milliseconds timeout) {
  return impl_->channel->client->send_checkpoint(*impl_->channel, seq, std::move(record),
                                                 after(timeout));
}

void PageStreamChannel::close() { impl_->channel->client->close_channel(impl_->channel); }

// ------------------------------------------------------------ connection

struct PageStreamConnection::Impl {
  std::shared_ptr<Client> client;
};

PageStreamConnection::PageStreamConnection(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
PageStreamConnection::~PageStreamConnection() { close(); }

Result<std::unique_ptr<PageStreamConnection>> PageStreamConnection::connect(
    const std::string& address, const TlsFiles& tls, std::string_view expected_node,
    StreamOptions options) {
  auto impl = std::make_shared<Impl>();
  impl->client = std::make_shared<Client>(tls, std::move(options));
  BATON_TRY(impl->client->connect(address, expected_node));
  return std::unique_ptr<PageStreamConnection>(new PageStreamConnection(std::move(impl)));
}

const Identity& PageStreamConnection::peer() const { return impl_->client->peer(); }
bool PageStreamConnection::connected() const { return impl_->client->connected(); }
void PageStreamConnection::set_bandwidth_limit(std::uint64_t rate_bytes_per_s) {
  impl_->client->set_rate(rate_bytes_per_s);
}
StreamCounters PageStreamConnection::counters() const { return impl_->client->counters(); }
void PageStreamConnection::close() { impl_->client->close(); }

Result<std::unique_ptr<PageStreamChannel>> PageStreamConnection::open(const OpenRequest& request,
                                                                      OnAck on_ack,
                                                                      milliseconds timeout) {
  auto impl = std::make_shared<PageStreamChannel::Impl>();
  BATON_ASSIGN(impl->channel, impl_->client->open(request, std::move(on_ack), after(timeout)));
  return std::unique_ptr<PageStreamChannel>(new PageStreamChannel(std::move(impl)));
}

Result<std::string> PageStreamConnection::fetch_checkpoint(std::string_view workload,
                                                           std::uint64_t seq, milliseconds timeout) {
  return impl_->client->ask(FrameType::kFetchCheckpoint, FrameType::kFetchedCheckpoint, 0,
                            stream::encode_fetch_checkpoint({std::string(workload), seq}),
                            after(timeout));
}

Result<std::vector<dedup::Digest>> PageStreamConnection::fetch_pages(
    std::string_view workload, const DomainBytes& domain, dedup::DigestKind kind,
    std::span<const dedup::Digest> digests, std::span<std::byte> out, milliseconds timeout) {
  if (out.size() != digests.size() * dedup::kPageBytes)
    return make_error(Code::kInvalid, "fetch pages", "the buffer does not fit the digests");
  stream::PageCodec codec;
  std::vector<dedup::Digest> lacking;
  while (!digests.empty()) {
    const auto batch = digests.first(std::min(digests.size(), kMaxPagesPerFetch));
    BATON_ASSIGN(const std::string reply,
                 impl_->client->ask(FrameType::kFetchPages, FrameType::kFetchedPages, 0,
                                    stream::encode_fetch_pages(workload, domain, kind, batch),
                                    after(timeout)));
    const std::size_t bytes = batch.size() * dedup::kPageBytes;
    BATON_ASSIGN(const auto present, codec.decode_fetched(reply, batch.size(), out.first(bytes)));
    for (std::size_t i = 0; i < batch.size(); ++i)
      if (!present[i]) lacking.push_back(batch[i]);
    out = out.subspan(bytes);
    digests = digests.subspan(batch.size());
  }
  return lacking;
}

// ------------------------------------------------------------ server

struct PageStreamServer::Impl {
  std::shared_ptr<stream::Server> server;
};

PageStreamServer::PageStreamServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
PageStreamServer::~PageStreamServer() { stop(); }

Result<std::unique_ptr<PageStreamServer>> PageStreamServer::start(const std::string& address,
                                                                  const TlsFiles& tls,
                                                                  StreamHandler& handler,
                                                                  StreamServerOptions options) {
  auto impl = std::make_shared<Impl>();
  impl->server = std::make_shared<stream::Server>(tls, handler, options);
  BATON_TRY(impl->server->start(address));
  return std::unique_ptr<PageStreamServer>(new PageStreamServer(std::move(impl)));
}

int PageStreamServer::port() const { return impl_->server->port(); }
std::size_t PageStreamServer::connections() const { return impl_->server->connections(); }
void PageStreamServer::stop() { impl_->server->stop(); }

}  // namespace baton::transport
