#include "transport/stream/client.h"

#include <algorithm>
#include <future>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace baton::transport::stream {
namespace {

using namespace std::chrono;

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kWorkOverheadBytes = 256;  // what an item costs beside its payload

Error budget_error(ByteBudget::Taken taken, const std::string& who) {
  if (taken == ByteBudget::Taken::kClosed)
    return make_error(Code::kUnreachable, "page stream", who + ": the connection is closed");
  return make_error(Code::kTimedOut, "page stream", who + ": the send queue stayed full",
                    "The link or the other node's disk is slower than what is sent.");
}

}  // namespace

Client::Client(TlsFiles tls, StreamOptions options)
    : tls_(std::move(tls)), options_(std::move(options)) {}

Client::~Client() { close(); }

// ------------------------------------------------------------ connecting

asio::awaitable<Result<std::shared_ptr<Session>>> Client::establish(HostPort where, std::string who,
                                                                    std::string expected_node) {
  auto context = make_context(tls_, false);
  if (!context) co_return std::move(context).error();
  tcp::resolver resolver(io_);
  auto [resolve_error, endpoints] = co_await resolver.async_resolve(where.host, where.port, kAwait);
  if (resolve_error)
    co_return make_error(Code::kUnreachable, "open page stream",
                         who + ": " + resolve_error.message());
  auto stream = std::make_unique<TlsStream>(io_, **context);

  // Whatever hangs below, closing the socket ends it.
  auto timed_out = std::make_shared<bool>(false);
  asio::steady_timer timer(io_, options_.connect_timeout);
  timer.async_wait([socket = &stream->next_layer(), timed_out](boost::system::error_code error) {
    if (error) return;
    *timed_out = true;
    boost::system::error_code ignored;
    socket->close(ignored);
  });
  auto fail = [&](Error error) {
    timer.cancel();
    if (*timed_out)
      return make_error(Code::kTimedOut, "open page stream",
                        who + ": no connection within " +
                            std::to_string(options_.connect_timeout.count()) + " ms",
                        "Is it switched off, or the link cut?");
    return error;
  };

  auto [connect_error, endpoint] =
      co_await asio::async_connect(stream->next_layer(), endpoints, kAwait);
  if (connect_error)
    co_return fail(make_error(Code::kUnreachable, "open page stream",
                              who + ": " + connect_error.message(),
                              "Is its agent running, and the address right?"));
  tune_socket(stream->next_layer());

  Result<Identity> identity = co_await handshake(*stream, false, tls_, who);
  if (!identity) co_return fail(std::move(identity).error());
  if (identity->role != Role::kNode)
    co_return fail(make_error(Code::kNotAllowed, "open page stream",
                              who + ": " + identity->to_string() + " is not a node"));
  if (!expected_node.empty() && identity->name != expected_node)
    co_return fail(make_error(Code::kNotAllowed, "open page stream",
                              who + ": expected node " + expected_node + ", but " +
                                  identity->to_string() + " answers there",
                              "Check the address."));

  std::array<std::byte, kGreetingBytes> greeting{};
  Result<void> step = co_await read_all(*stream, asio::buffer(greeting), who, tls_);
  if (step) step = check_greeting(greeting);
  if (!step) co_return fail(std::move(step).error());
  greeting = encode_greeting();
  step = co_await write_everything(*stream, asio::buffer(greeting), who, tls_);
  if (!step) co_return fail(std::move(step).error());

  std::array<std::byte, kHeaderBytes> head{};
  step = co_await read_all(*stream, asio::buffer(head), who, tls_);
  if (!step) co_return fail(std::move(step).error());
  Result<FrameHeader> header = decode_header(head);
  if (!header) co_return fail(std::move(header).error());
  std::string payload(header->payload_bytes, '\0');
  step = co_await read_all(*stream, asio::buffer(payload), who, tls_);
  if (step) step = check_payload(*header, std::as_bytes(std::span(payload)));
  if (!step) co_return fail(std::move(step).error());
  if (header->type == FrameType::kRefused) co_return fail(decode_error(payload));
  if (header->type != FrameType::kWelcome)
    co_return fail(make_error(Code::kCorrupt, "open page stream", who + ": no WELCOME"));

  timer.cancel();
  peer_ = std::move(*identity);
  who_ = peer_.to_string() + " (" + who + ")";
  co_return std::make_shared<Session>(
      std::move(stream), SessionConfig{tls_, who_, options_.ping_interval, options_.dead_after});
}

Result<void> Client::connect(const std::string& address, std::string_view expected_node) {
  BATON_ASSIGN(HostPort where, parse_address(address));
  who_ = address;
  io_guard_.emplace(io_.get_executor());
  io_thread_ = std::thread([this] { io_.run(); });
  std::promise<Result<void>> promise;
  auto done = promise.get_future();
  auto run = [](Client* self, HostPort to, std::string who, std::string expected,
                std::promise<Result<void>>* out) -> asio::awaitable<void> {
    Result<void> outcome;
    try {
      Result<std::shared_ptr<Session>> session =
          co_await self->establish(std::move(to), std::move(who), std::move(expected));
      if (session) {
        self->session_ = std::move(*session);
        self->session_->start(self->shared_from_this());
      } else {
        outcome = std::move(session).error();
      }
    } catch (const std::exception& e) {
      outcome = make_error(Code::kFailed, "open page stream", e.what());
    }
    out->set_value(std::move(outcome));
  };
  asio::co_spawn(io_, run(this, std::move(where), address, std::string(expected_node), &promise),
                 asio::detached);
  Result<void> outcome = done.get();
  if (!outcome) {
    close();
    return outcome;
  }
  pack_thread_ = std::thread([this] { pack_loop(); });
  event_thread_ = std::thread([this] { event_loop(); });
  return {};
}

void Client::close() {
  if (std::this_thread::get_id() == event_thread_.get_id()) {  // from a callback: only begin
    asio::post(io_, [session = session_] {
      session->close(make_error(Code::kCancelled, "page stream", "closed here"));
    });
    return;
  }
  std::lock_guard once(close_mutex_);
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  if (session_)
    asio::post(io_, [session = session_] {
      session->close(make_error(Code::kCancelled, "page stream", "closed here"));
    });
  io_guard_.reset();
  if (io_thread_.joinable()) io_thread_.join();
  {
    std::lock_guard lock(work_mutex_);
    work_stopped_ = true;
    work_ready_.notify_all();
  }
  if (pack_thread_.joinable()) pack_thread_.join();
  {
    std::lock_guard lock(event_mutex_);
    events_stopped_ = true;
    event_ready_.notify_all();
  }
  if (event_thread_.joinable()) event_thread_.join();
  std::lock_guard lock(mutex_);
  channels_.clear();
}

bool Client::connected() const {
  std::lock_guard lock(mutex_);
  return !lost_ && !closing_;
}

Error Client::lost_error() const {
  if (lost_) {
    Error error = *lost_;
    error.code = Code::kUnreachable;
    return error;
  }
  return make_error(Code::kUnreachable, "page stream", who_ + ": the connection is closed");
}

// ------------------------------------------------------------ sending

void Client::pack_loop() {
  PageCodec codec(options_.zstd_level);
  for (;;) {
    Work work;
    {
      std::unique_lock lock(work_mutex_);
      work_ready_.wait(lock, [&] { return work_stopped_ || !work_.empty(); });
      if (work_stopped_) return;
      work = std::move(work_.front());
      work_.pop_front();
    }
    if (work.type == FrameType::kPages) {
      work.payload = codec.encode_pages(work.digests, work.kind, std::as_bytes(std::span(work.payload)));
      pages_sent_ += work.digests.size();
      page_bytes_sent_ += work.payload.size();
    }
    session_->enqueue(work.type, work.channel, work.request, std::move(work.payload), work.cost);
  }
}

Result<void> Client::queue_work(Work work, std::size_t bytes, Deadline deadline) {
  work.cost = bytes + kWorkOverheadBytes;
  const auto taken = session_->budget().acquire(work.cost, deadline);
  if (taken == ByteBudget::Taken::kClosed) {
    std::lock_guard lock(mutex_);
    return lost_error();
  }
  if (taken != ByteBudget::Taken::kYes) return budget_error(taken, who_);
  std::lock_guard lock(work_mutex_);
  work_.push_back(std::move(work));
  work_ready_.notify_one();
  return {};
}

Result<std::string> Client::ask(FrameType type, FrameType expected, std::uint32_t channel,
                                std::string payload, Deadline deadline,
                                std::unique_lock<std::timed_mutex>* until_queued) {
  Pending pending;
  pending.expected = expected;
  std::uint32_t request = 0;
  {
    std::lock_guard lock(mutex_);
    if (lost_ || closing_) return lost_error();
    do request = next_request_++;
    while (request == 0 || pending_.contains(request));
    pending_[request] = &pending;
  }
  Work work;
  work.type = type;
  work.channel = channel;
  work.request = request;
  const std::size_t bytes = payload.size();
  work.payload = std::move(payload);
  Result<void> queued = queue_work(std::move(work), bytes, deadline);
  if (until_queued) until_queued->unlock();
  std::unique_lock lock(mutex_);
  if (queued) answered_.wait_until(lock, deadline, [&] { return pending.done; });
  pending_.erase(request);
  if (!queued) return std::move(queued).error();
  if (!pending.done)
    return make_error(Code::kTimedOut, std::string(frame_name(type)), who_ + ": no answer in time");
  return std::move(pending.answer);
}

Result<void> Client::send_pages(ClientChannel& channel, std::span<const PageRef> pages,
                                Deadline deadline) {
  const dedup::DigestKind kind = channel.request.kind;
  for (const PageRef& page : pages)
    if (page.digest.is_absent() || page.digest.is_zero_page() || !page.digest.fits(kind) ||
        page.page == nullptr)
      return make_error(Code::kInvalid, "send pages",
                        channel.request.workload + ": a page without content, or of another digest");
  {
    std::lock_guard lock(mutex_);
    if (lost_ || closing_) return lost_error();
    if (channel.closed)
      return make_error(Code::kCancelled, "send pages", channel.request.workload + " is closed here");
  }
  while (!pages.empty()) {
    const auto batch = pages.first(std::min(pages.size(), kPagesPerBatch));
    Work work;
    work.type = FrameType::kPages;
    work.channel = channel.id;
    work.kind = kind;
    work.digests.reserve(batch.size());
    work.payload.reserve(batch.size() * dedup::kPageBytes);
    for (const PageRef& page : batch) {
      work.digests.push_back(page.digest);
      work.payload.append(reinterpret_cast<const char*>(page.page), dedup::kPageBytes);
    }
    BATON_TRY(queue_work(std::move(work), batch.size() * dedup::kPageBytes, deadline));
    pages = pages.subspan(batch.size());
  }
  return {};
}

Result<void> Client::send_checkpoint(ClientChannel& channel, std::uint64_t seq, std::string record,
                                     Deadline deadline) {
  const std::string name = channel.request.workload + "@" + std::to_string(seq);
  if (record.size() > kMaxCheckpointBytes)
    return make_error(Code::kNoSpace, "send checkpoint",
                      name + ": " + std::to_string(record.size()) + " bytes are too many");
  {
    std::unique_lock lock(mutex_);
    auto ready = [&] {
      return lost_ || closing_ || channel.closed || channel.unanswered.size() < kMaxUnackedCheckpoints;
    };
    if (!answered_.wait_until(lock, deadline, ready))
      return make_error(Code::kTimedOut, "send checkpoint",
                        name + ": too many checkpoints wait for an answer");
    if (lost_ || closing_) return lost_error();
    if (channel.closed) return make_error(Code::kCancelled, "send checkpoint", name + ": closed here");
    if (!channel.unanswered.emplace(seq, steady_clock::now()).second)
      return make_error(Code::kConflict, "send checkpoint", name + " is on its way already");
  }
  Work work;
  work.type = FrameType::kCheckpoint;
  work.channel = channel.id;
  work.payload = encode_checkpoint_head(seq) + record;
  const std::size_t bytes = work.payload.size();
  Result<void> queued = queue_work(std::move(work), bytes, deadline);
  if (!queued) {
    std::lock_guard lock(mutex_);
    // Gone already: the loss of the connection has answered it.
    if (channel.unanswered.erase(seq) == 0) return {};
  }
  return queued;
}

// ------------------------------------------------------------ channels

Result<std::shared_ptr<ClientChannel>> Client::open(const OpenRequest& request,
                                                    PageStreamConnection::OnAck on_ack,
                                                    Deadline deadline) {
  if (request.workload.empty() || request.workload.size() > kMaxStreamNameBytes ||
      request.context.size() > kMaxContextBytes)
    return make_error(Code::kInvalid, "open workload", "'" + request.workload + "': name or context too long");
  auto channel = std::make_shared<ClientChannel>();
  channel->client = shared_from_this();
  channel->request = request;
  channel->on_ack = std::move(on_ack);
  std::unique_lock in_order(open_mutex_, deadline);
  if (!in_order)
    return make_error(Code::kTimedOut, "open workload", who_ + ": others are being opened");
  {
    std::lock_guard lock(mutex_);
    if (lost_ || closing_) return lost_error();
    if (channels_.size() >= kMaxChannels)
      return make_error(Code::kNoSpace, "open workload", who_ + ": too many workloads at once");
    for (const auto& [id, other] : channels_)
      if (other->request.workload == request.workload)
        return make_error(Code::kConflict, "open workload",
                          request.workload + " is open on this connection already");
    do channel->id = next_channel_++;
    while (channel->id == 0 || channels_.contains(channel->id));
    channels_[channel->id] = channel;
  }
  auto answer = ask(FrameType::kOpen, FrameType::kOpened, channel->id, encode_open(request), deadline,
                    &in_order);
  Result<OpenReply> reply{Error{}};
  if (answer)
    reply = decode_opened(*answer, request.kind);
  else
    reply = answer.error();
  if (!reply) {
    if (!answer && answer.error().code == Code::kTimedOut) {
      Work work;  // should the other side open it yet, it closes it again
      work.type = FrameType::kCloseWorkload;
      work.channel = channel->id;
      (void)queue_work(std::move(work), 0, steady_clock::now() + milliseconds(10));
    }
    std::lock_guard lock(mutex_);
    channels_.erase(channel->id);
    return std::move(reply).error();
  }
  channel->opened = std::move(*reply);
  return channel;
}

void Client::close_channel(const std::shared_ptr<ClientChannel>& channel) {
  std::map<std::uint64_t, Deadline> unanswered;
  bool send = false;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(channel->closed, true)) return;
    unanswered.swap(channel->unanswered);
    channels_.erase(channel->id);
    send = !lost_ && !closing_;
    answered_.notify_all();
  }
  if (send) {
    Work work;
    work.type = FrameType::kCloseWorkload;
    work.channel = channel->id;
    std::lock_guard lock(work_mutex_);  // costs nothing: never refused by a full queue
    work_.push_back(std::move(work));
    work_ready_.notify_one();
  }
  for (const auto& [seq, sent] : unanswered)
    answer_checkpoint(channel, seq,
                      tl::unexpected(Nack{make_error(Code::kCancelled, "send checkpoint",
                                                     channel->request.workload + " was closed here"),
                                          {}}));
  // After this, no callback of the channel runs any more.
  if (std::this_thread::get_id() == event_thread_.get_id()) return;
  auto barrier = std::make_shared<std::promise<void>>();
  auto passed = barrier->get_future();
  post_event([barrier] { barrier->set_value(); });
  barrier.reset();
  passed.wait();  // also when the event is dropped: a broken promise
}

// ------------------------------------------------------------ answers

void Client::post_event(std::function<void()> event) {
  std::lock_guard lock(event_mutex_);
  if (events_stopped_) return;
  events_.push_back(std::move(event));
  event_ready_.notify_one();
}

void Client::event_loop() {
  std::unique_lock lock(event_mutex_);
  for (;;) {
    event_ready_.wait(lock, [&] { return events_stopped_ || !events_.empty(); });
    if (events_.empty()) return;
    auto event = std::move(events_.front());
    events_.pop_front();
    lock.unlock();
    event();
    event = nullptr;
    lock.lock();
  }
}

void Client::answer_checkpoint(const std::shared_ptr<ClientChannel>& channel, std::uint64_t seq,
                               tl::expected<AckInfo, Nack> answer) {
  answer ? ++acked_ : ++nacked_;
  if (!channel->on_ack) return;
  post_event([channel, seq, answer = std::move(answer)] { channel->on_ack(seq, answer); });
}

Result<void> Client::on_message(Message message) {
  if (message.type == FrameType::kAck || message.type == FrameType::kNack) return on_ack(message);
  return on_answer(message);
}

Result<void> Client::on_answer(Message& message) {
  std::lock_guard lock(mutex_);
  auto at = pending_.find(message.request);
  if (at == pending_.end()) return {};  // the asker has given up
  Pending& pending = *at->second;
  if (message.type == FrameType::kRefused)
    pending.answer = decode_error(message.payload);
  else if (message.type == pending.expected)
    pending.answer = std::move(message.payload);
  else
    return make_error(Code::kCorrupt, "read page stream",
                      who_ + ": " + std::string(frame_name(message.type)) +
                          " answers the wrong question");
  pending.done = true;
  answered_.notify_all();
  return {};
}

Result<void> Client::on_ack(Message& message) {
  std::shared_ptr<ClientChannel> channel;
  {
    std::lock_guard lock(mutex_);
    auto at = channels_.find(message.channel);
    if (at == channels_.end()) return {};  // closed in the meantime
    channel = at->second;
  }
  std::uint64_t seq = 0;
  tl::expected<AckInfo, Nack> answer;
  if (message.type == FrameType::kAck) {
    BATON_ASSIGN(AckMessage ack, decode_ack(message.payload));
    seq = ack.seq;
    answer = ack.info;
  } else {
    BATON_ASSIGN(NackMessage nack, decode_nack(message.payload, channel->request.kind));
    seq = nack.seq;
    answer = tl::unexpected(std::move(nack.nack));
  }
  {
    std::lock_guard lock(mutex_);
    auto at = channel->unanswered.find(seq);
    if (at == channel->unanswered.end()) {
      if (channel->closed) return {};
      return make_error(Code::kCorrupt, "read page stream",
                        who_ + ": an answer to a checkpoint that was not sent");
    }
    if (answer) answer->round_trip = steady_clock::now() - at->second;
    channel->unanswered.erase(at);
    answered_.notify_all();
  }
  answer_checkpoint(channel, seq, std::move(answer));
  return {};
}

void Client::on_closed(const Error& error) {
  std::vector<std::pair<std::shared_ptr<ClientChannel>, std::uint64_t>> unanswered;
  bool tell = false;
  {
    std::lock_guard lock(mutex_);
    lost_ = error;
    tell = !closing_;
    for (auto& [request, pending] : pending_) {
      if (pending->done) continue;
      pending->answer = error.code == Code::kCancelled ? lost_error() : error;
      pending->done = true;
    }
    for (auto& [id, channel] : channels_) {
      for (const auto& [seq, sent] : channel->unanswered) unanswered.emplace_back(channel, seq);
      channel->unanswered.clear();
    }
    answered_.notify_all();
  }
  Error unknown = error;
  unknown.code = Code::kUnknownOutcome;
  for (auto& [channel, seq] : unanswered)
    answer_checkpoint(channel, seq, tl::unexpected(Nack{unknown, {}}));
  if (tell && options_.on_disconnect)
    post_event([call = options_.on_disconnect, error] { call(error); });
}

void Client::set_rate(std::uint64_t rate_bytes_per_s) { session_->set_rate(rate_bytes_per_s); }

StreamCounters Client::counters() const {
  StreamCounters c;
  c.bytes_sent = session_->bytes_sent();
  c.bytes_received = session_->bytes_received();
  c.pages_sent = pages_sent_;
  c.page_bytes_sent = page_bytes_sent_;
  c.pages_known = pages_known_;
  c.checkpoints_acked = acked_;
  c.checkpoints_nacked = nacked_;
  c.queued_bytes = session_->budget().used();
  return c;
}

}  // namespace baton::transport::stream
