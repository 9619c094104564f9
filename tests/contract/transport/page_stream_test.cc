// The page stream between two nodes, over loopback and TLS.
#include <gtest/gtest.h>

#include <future>
#include <random>

#include "tests/contract/transport/harness.h"

namespace baton::transport::testing {
namespace {

using dedup::Digest;
using dedup::DigestKind;
using dedup::kPageBytes;
using dedup::PageChange;
using dedup::PageHasher;
using dedup::PageTable;
using Answer = tl::expected<AckInfo, Nack>;

// Collects answers to checkpoints.
class Answers {
 public:
  PageStreamConnection::OnAck callback() {
    return [this](std::uint64_t seq, const Answer& answer) {
      std::lock_guard lock(mutex_);
      answers_.emplace(seq, answer);
      changed_.notify_all();
    };
  }
  Answer wait(std::uint64_t seq) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return answers_.contains(seq); }))
      return tl::unexpected(Nack{make_error(Code::kTimedOut, "test", "no answer"), {}});
    return answers_.at(seq);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Answer> answers_;
};

class PageStream : public ::testing::Test {
 protected:
  void SetUp() override { start_server(); }
  void start_server(StreamServerOptions options = {}) {
    auto server = PageStreamServer::start("127.0.0.1:0", certificates_.node("ecu2"), node_, options);
    ASSERT_TRUE(server) << server.error().message();
    server_ = std::move(*server);
  }
  std::unique_ptr<PageStreamConnection> connect(int port = 0, StreamOptions options = {}) {
    auto connection = PageStreamConnection::connect(at(port ? port : server_->port()),
                                                    certificates_.node("ecu1"), "ecu2", options);
    EXPECT_TRUE(connection) << connection.error().message();
    return connection ? std::move(*connection) : nullptr;
  }
  static OpenRequest request(const std::string& name, DigestKind kind = DigestKind::kXxh3_128) {
    OpenRequest open;
    open.workload = name;
    open.kind = kind;
    open.incarnation = 5;
    open.hash_key.fill(std::byte{static_cast<unsigned char>(name[0])});
    return open;
  }

  Certificates certificates_;
  MemoryNode node_;
  std::unique_ptr<PageStreamServer> server_;
};

// A primary's workload: a table with its pages.
struct Source {
  explicit Source(const OpenRequest& open) : hasher(open.kind, open.hash_key), table(open.kind) {}
  PageChange write(std::uint64_t page, std::uint64_t seed, bool compressible = true) {
    Page bytes = make_page(seed, compressible);
    const Digest digest = hasher.page(dedup::PageView(bytes.data(), kPageBytes));
    pages[digest] = std::move(bytes);
    table.set(page, digest);
    return {page, digest};
  }
  std::vector<PageRef> refs(const std::vector<PageChange>& changes) const {
    std::vector<PageRef> out;
    for (const PageChange& change : changes) out.push_back({change.digest, pages.at(change.digest).data()});
    return out;
  }
  PageHasher hasher;
  PageTable table;
  std::map<Digest, Page> pages;
};

class PageStreamKinds : public PageStream, public ::testing::WithParamInterface<DigestKind> {};

TEST_P(PageStreamKinds, Checkpoint_WithItsPages_IsCommittedThere) {
  auto connection = connect();
  const OpenRequest open = request("redis", GetParam());
  Source source(open);
  Answers answers;
  auto channel = connection->open(open, answers.callback(), kPatience);
  ASSERT_TRUE(channel) << channel.error().message();
  EXPECT_EQ((*channel)->opened().tip_seq, 0u);

  std::vector<PageChange> changes;
  for (std::uint64_t i = 0; i < 300; ++i) changes.push_back(source.write(i * 3, i, i % 2));
  ASSERT_TRUE((*channel)->send_pages(source.refs(changes), kPatience));
  ASSERT_TRUE((*channel)->send_checkpoint(1, encode_changes(changes), kPatience));
  const Answer answer = answers.wait(1);
  ASSERT_TRUE(answer) << answer.error().error.message();
  EXPECT_EQ(answer->durability, 2);
  EXPECT_GT(answer->round_trip.count(), 0);

  std::lock_guard lock(node_.mutex);
  auto& there = node_.workloads.at("redis");
  EXPECT_EQ(there.table.root(*there.hasher), source.table.root(source.hasher));
  EXPECT_EQ(there.pages, source.pages);
  EXPECT_EQ(connection->counters().pages_sent, 300u);
  EXPECT_EQ(connection->counters().checkpoints_acked, 1u);
}

TEST_P(PageStreamKinds, FindMissing_AfterDivergence_GivesExactlyTheDifference) {
  auto connection = connect();
  const OpenRequest open = request("redis", GetParam());
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  std::mt19937_64 random(7);
  std::vector<PageChange> changes;
  std::set<std::uint64_t> numbers;
  while (numbers.size() < 2000) numbers.insert(random() % 100000);
  numbers.insert(dedup::kMaxPages - 1);
  for (std::uint64_t page : numbers) changes.push_back(source.write(page, page));
  ASSERT_TRUE(channel->send_pages(source.refs(changes), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes(changes), kPatience));
  ASSERT_TRUE(answers.wait(1));

  // Here the program goes on: writes, and gives whole ranges back.
  std::vector<PageChange> written;
  for (std::uint64_t i = 0; i < 40; ++i) written.push_back(source.write(random() % 200000, i + 1000000));
  source.table.erase_range(64, 64 * 64);
  source.table.erase(dedup::kMaxPages - 1);
  PageTable there;
  Digest root;
  {
    std::lock_guard lock(node_.mutex);
    there = node_.workloads.at("redis").table;
    root = there.root(*node_.workloads.at("redis").hasher);
  }
  auto difference = find_missing(source.table, source.hasher, 1, root, *channel, kPatience);
  ASSERT_TRUE(difference) << difference.error().message();
  for (const auto& range : difference->erased) there.erase_range(range.first, range.count);
  there.apply(difference->changes);
  EXPECT_EQ(there.root(source.hasher), source.table.root(source.hasher));
  EXPECT_LE(difference->changes.size(), written.size());
  EXPECT_GT(difference->nodes_asked, 0u);

  // Against nothing: everything of ours; with the same: nothing, unasked.
  auto all = find_missing(source.table, source.hasher, 1, Digest::absent(), *channel, kPatience);
  EXPECT_EQ(all->changes.size(), source.table.count());
  EXPECT_EQ(all->nodes_asked, 0u);
  auto none = find_missing(source.table, source.hasher, 1, source.table.root(source.hasher), *channel, kPatience);
  EXPECT_TRUE(none->changes.empty() && none->erased.empty());
}

INSTANTIATE_TEST_SUITE_P(Both, PageStreamKinds,
                         ::testing::Values(DigestKind::kXxh3_128, DigestKind::kSha256));

TEST_F(PageStream, QueryHave_OfKnownAndUnknown_TellsThemApart) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  auto channel = *connection->open(open, nullptr, kPatience);
  const auto a = source.write(1, 1), b = source.write(2, 2);
  ASSERT_TRUE(channel->send_pages(source.refs({a}), kPatience));
  auto known = channel->query_have(std::vector<Digest>{a.digest, b.digest, a.digest}, kPatience);
  ASSERT_TRUE(known);
  EXPECT_EQ(*known, (std::vector<bool>{true, false, true}));
  EXPECT_EQ(connection->counters().pages_known, 2u);
  std::vector<Digest> many(40000, b.digest);  // several queries
  many.back() = a.digest;
  known = channel->query_have(many, kPatience);
  ASSERT_TRUE(known);
  EXPECT_EQ(std::count(known->begin(), known->end(), true), 1);
}

TEST_F(PageStream, SeveralWorkloads_AtOnce_KeepTheirOwnPages) {
  auto connection = connect();
  constexpr int kWorkloads = 6, kCheckpoints = 20;
  std::vector<std::thread> threads;
  for (int w = 0; w < kWorkloads; ++w)
    threads.emplace_back([&, w] {
      const OpenRequest open = request(std::string(1, static_cast<char>('a' + w)));
      Source source(open);
      Answers answers;
      auto channel = connection->open(open, answers.callback(), kPatience);
      ASSERT_TRUE(channel);
      for (int seq = 1; seq <= kCheckpoints; ++seq) {
        std::vector<PageChange> changes;
        for (int i = 0; i < 50; ++i)
          changes.push_back(source.write(static_cast<std::uint64_t>(i * seq),
                                         static_cast<std::uint64_t>(seq * 1000 + i)));
        ASSERT_TRUE((*channel)->send_pages(source.refs(changes), kPatience));
        ASSERT_TRUE((*channel)->send_checkpoint(static_cast<std::uint64_t>(seq), encode_changes(changes), kPatience));
      }
      for (int seq = 1; seq <= kCheckpoints; ++seq)
        ASSERT_TRUE(answers.wait(static_cast<std::uint64_t>(seq)));
      std::lock_guard lock(node_.mutex);
      auto& there = node_.workloads.at(open.workload);
      EXPECT_EQ(there.table.root(*there.hasher), source.table.root(source.hasher));
    });
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(eventually([&] { return node_.open_channels == 0; }));
}

TEST_F(PageStream, Checkpoint_WithMissingPages_IsNackedWithTheirDigests) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  const auto a = source.write(1, 1), b = source.write(2, 2);
  ASSERT_TRUE(channel->send_pages(source.refs({a}), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes({a, b}), kPatience));
  const Answer refused = answers.wait(1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().missing, std::vector<Digest>{b.digest});
  ASSERT_TRUE(channel->send_pages(source.refs({b}), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(2, encode_changes({a, b}), kPatience));
  EXPECT_TRUE(answers.wait(2));
}

TEST_F(PageStream, Pages_WithTheWrongDigest_AreNotStoredAndNackTheCheckpoint) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  const auto a = source.write(1, 1);
  const Page other = make_page(99);
  ASSERT_TRUE(channel->send_pages(std::vector<PageRef>{{a.digest, other.data()}}, kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes({a}), kPatience));
  const Answer answer = answers.wait(1);
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().error.code, Code::kCorrupt);
  EXPECT_EQ(node_.pages_received, 0u);
  EXPECT_TRUE(connection->connected());
}

TEST_F(PageStream, FullDisk_Always_NacksTheNextCheckpointAndRecovers) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  const auto a = source.write(1, 1);
  node_.disk_full = true;
  ASSERT_TRUE(channel->send_pages(source.refs({a}), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes({a}), kPatience));
  const Answer full = answers.wait(1);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().error.code, Code::kNoSpace);
  node_.disk_full = false;
  ASSERT_TRUE(channel->send_pages(source.refs({a}), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes({a}), kPatience));
  EXPECT_TRUE(eventually([&] { return connection->counters().checkpoints_acked == 1; }));
}

TEST_F(PageStream, Open_Refused_CarriesTheReceiversOwnError) {
  node_.refused.insert("old");
  auto connection = connect();
  auto refused = connection->open(request("old"), nullptr, kPatience);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kConflict);
  EXPECT_EQ(refused.error().subject, "old: an older incarnation");
  EXPECT_EQ(refused.error().hint, "Ask the coordinator.");
  auto channel = connection->open(request("new"), nullptr, kPatience);
  ASSERT_TRUE(channel);
  EXPECT_EQ(connection->open(request("new"), nullptr, kPatience).error().code, Code::kConflict);
  channel->reset();
  EXPECT_TRUE(connection->open(request("new"), nullptr, kPatience));
}

TEST_F(PageStream, Fetch_OfCheckpointAndPages_GivesBackTheirBytes) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  std::vector<PageChange> changes;
  for (std::uint64_t i = 0; i < 3000; ++i) changes.push_back(source.write(i, i, i % 2));
  ASSERT_TRUE(channel->send_pages(source.refs(changes), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(4, encode_changes(changes), kPatience));
  ASSERT_TRUE(answers.wait(4));

  auto other = connect();
  for (std::uint64_t seq : {0u, 4u}) {
    auto record = other->fetch_checkpoint("w", seq, kPatience);
    ASSERT_TRUE(record);
    EXPECT_EQ(*record, encode_changes(changes));
  }
  EXPECT_EQ(other->fetch_checkpoint("w", 5, kPatience).error().code, Code::kNotFound);
  std::vector<Digest> digests;
  for (const auto& change : changes) digests.push_back(change.digest);
  Digest unknown;
  unknown.bytes[0] = std::byte{1};
  digests.insert(digests.begin() + 1500, unknown);
  std::vector<std::byte> out(digests.size() * kPageBytes, std::byte{0xEE});
  auto missing = other->fetch_pages("w", open.domain, open.kind, digests, out, kPatience);
  ASSERT_TRUE(missing) << missing.error().message();
  EXPECT_EQ(*missing, std::vector<Digest>{unknown});
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const Page page(out.begin() + static_cast<std::ptrdiff_t>(i * kPageBytes),
                    out.begin() + static_cast<std::ptrdiff_t>((i + 1) * kPageBytes));
    ASSERT_EQ(page, i == 1500 ? Page(kPageBytes) : source.pages.at(digests[i])) << i;
  }
}

TEST_F(PageStream, LargeRecord_InManyFrames_ArrivesWhole) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  const auto a = source.write(0, 1);
  ASSERT_TRUE(channel->send_pages(source.refs({a}), kPatience));
  std::vector<PageChange> changes(500'000);  // 20 MB
  for (std::size_t i = 0; i < changes.size(); ++i) changes[i] = {i, a.digest};
  const std::string record = encode_changes(changes);
  ASSERT_TRUE(channel->send_checkpoint(1, record, kPatience));
  ASSERT_TRUE(answers.wait(1));
  auto back = connection->fetch_checkpoint("w", 1, kPatience);
  ASSERT_TRUE(back);
  EXPECT_TRUE(*back == record);
  EXPECT_EQ(channel->send_checkpoint(2, std::string(kMaxCheckpointBytes + 1, 'x'), kPatience).error().code,
            Code::kNoSpace);
}

TEST_F(PageStream, SlowReceiver_Always_BlocksTheSenderWithinBounds) {
  StreamServerOptions server_options;
  server_options.ping_interval = 100ms;
  start_server(server_options);
  StreamOptions options;
  options.ping_interval = 100ms;
  options.dead_after = 1000ms;
  auto connection = connect(0, options);
  const OpenRequest open = request("w");
  Source source(open);
  auto channel = *connection->open(open, nullptr, kPatience);
  node_.close_gate();
  std::vector<PageChange> changes;
  for (std::uint64_t i = 0; i < 256; ++i) changes.push_back(source.write(i, i, false));
  const auto refs = source.refs(changes);
  std::uint64_t sent = 0;
  Result<void> result;
  const auto began = std::chrono::steady_clock::now();
  while ((result = channel->send_pages(refs, 2500ms))) {
    sent += refs.size() * kPageBytes;
    ASSERT_LT(sent, 256u << 20) << "nothing holds the sender back";
  }
  EXPECT_EQ(result.error().code, Code::kTimedOut) << result.error().message();
  EXPECT_GT(std::chrono::steady_clock::now() - began, 1s);
  EXPECT_LE(connection->counters().queued_bytes, kMaxQueuedBytes);
  // 2.5 s of a stopped disk, more than dead_after: the connection lives on its pings.
  EXPECT_TRUE(connection->connected());
  node_.open_gate();
  EXPECT_TRUE(channel->send_pages(refs, kPatience));
  EXPECT_TRUE(channel->query_have(std::vector<Digest>{changes[0].digest}, kPatience));
}

TEST_F(PageStream, BandwidthLimit_Always_IsKeptWithin15Percent) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  auto channel = *connection->open(open, nullptr, kPatience);
  std::vector<PageChange> changes;
  for (std::uint64_t i = 0; i < 1024; ++i) changes.push_back(source.write(i, i, false));
  const auto refs = source.refs(changes);
  constexpr double kRate = 8e6;
  connection->set_bandwidth_limit(static_cast<std::uint64_t>(kRate));
  std::atomic<bool> stop{false};
  std::thread sender([&] {
    while (!stop) (void)channel->send_pages(refs, 100ms);
  });
  std::this_thread::sleep_for(200ms);
  const auto before = connection->counters().bytes_sent;
  const auto began = std::chrono::steady_clock::now();
  std::this_thread::sleep_for(2s);
  const auto bytes = connection->counters().bytes_sent - before;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  stop = true;
  connection->set_bandwidth_limit(0);
  sender.join();
  EXPECT_NEAR(static_cast<double>(bytes) / seconds, kRate, kRate * 0.15);
}

TEST_F(PageStream, Throughput_OverLoopback_IsPrinted) {
  auto connection = connect();
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  for (bool compressible : {true, false}) {
    std::vector<PageChange> changes;
    for (std::uint64_t i = 0; i < 4096; ++i) changes.push_back(source.write(i, i + compressible * 9999, compressible));
    const auto refs = source.refs(changes);
    const auto began = std::chrono::steady_clock::now();
    constexpr int kRounds = 16;
    for (int i = 0; i < kRounds; ++i) ASSERT_TRUE(channel->send_pages(refs, kPatience));
    ASSERT_TRUE(channel->send_checkpoint(compressible ? 1 : 2, encode_changes(changes), kPatience));
    ASSERT_TRUE(answers.wait(compressible ? 1 : 2));
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    const double megabytes = kRounds * 4096.0 * kPageBytes / 1e6;
    std::printf("{\"stream_mb_per_s\": %.0f, \"compressible\": %s}\n", megabytes / seconds,
                compressible ? "true" : "false");
    RecordProperty(compressible ? "compressible_mb_per_s" : "random_mb_per_s",
                   static_cast<int>(megabytes / seconds));
  }
}

TEST_F(PageStream, Resume_AfterACutConnection_SendsOnlyWhatIsMissing) {
  auto proxy = std::make_unique<Proxy>(server_->port());
  std::promise<Error> lost;
  StreamOptions options;
  options.on_disconnect = [&](const Error& error) { lost.set_value(error); };
  auto connection = connect(proxy->port(), options);
  const OpenRequest open = request("w");
  Source source(open);
  Answers answers;
  auto channel = *connection->open(open, answers.callback(), kPatience);
  std::vector<PageChange> changes;
  for (std::uint64_t i = 0; i < 500; ++i) changes.push_back(source.write(i, i));
  ASSERT_TRUE(channel->send_pages(source.refs(changes), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(1, encode_changes(changes), kPatience));
  ASSERT_TRUE(answers.wait(1));

  node_.close_gate();  // checkpoint 2 stays unanswered
  const auto late = source.write(1000, 1000);
  ASSERT_TRUE(channel->send_pages(source.refs({late}), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(2, encode_changes({late}), kPatience));
  proxy->cut();
  const Answer unknown = answers.wait(2);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().error.code, Code::kUnknownOutcome);
  EXPECT_EQ(lost.get_future().get().code, Code::kUnreachable);
  EXPECT_FALSE(connection->connected());
  EXPECT_EQ(channel->send_pages(source.refs({late}), kPatience).error().code, Code::kUnreachable);
  EXPECT_EQ(connection->open(request("x"), nullptr, kPatience).error().code, Code::kUnreachable);
  node_.open_gate();
  channel.reset();
  connection.reset();
  EXPECT_TRUE(eventually([&] { return node_.open_channels == 0 && server_->connections() == 0; }));

  connection = connect();
  channel = *connection->open(open, answers.callback(), kPatience);
  ASSERT_GE(channel->opened().tip_seq, 1u);
  ASSERT_EQ(channel->opened().objects.size(), 1u);
  source.write(1001, 1001);
  auto difference = find_missing(source.table, source.hasher, 1, channel->opened().objects[0].root,
                                 *channel, kPatience);
  ASSERT_TRUE(difference);
  EXPECT_LE(difference->changes.size(), 2u);
  EXPECT_GE(difference->changes.size(), 1u);
  ASSERT_TRUE(channel->send_pages(source.refs(difference->changes), kPatience));
  ASSERT_TRUE(channel->send_checkpoint(3, encode_changes(difference->changes), kPatience));
  ASSERT_TRUE(answers.wait(3));
  std::lock_guard lock(node_.mutex);
  auto& there = node_.workloads.at("w");
  EXPECT_EQ(there.table.root(*there.hasher), source.table.root(source.hasher));
}

}  // namespace
}  // namespace baton::transport::testing
