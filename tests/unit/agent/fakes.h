// A workload in memory, its warden, and nodes wired without a network, for the agent's tests.
//
// The fake program counts: step n writes n into page n % kPages and into the last page. An
// image is one instant of it exactly when page i holds the greatest k <= n with
// k % kPages == i, where n is what the last page says: verify_image checks that.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <stdlib.h>

#include "agent/node/node_env.h"
#include "agent/node/receiver.h"
#include "agent/node/replica.h"
#include "agent/node/warden.h"
#include "base/clock.h"
#include "storage/catalog.h"

namespace baton::node::testing {

inline constexpr std::uint64_t kPages = 64;       // counted pages; page kPages holds n
inline constexpr std::uint64_t kObject = 7;
using Page = std::array<std::byte, dedup::kPageBytes>;
using Memory = std::map<std::uint64_t, Page>;

inline void put_count(Page& page, std::uint64_t number, std::uint64_t value) {
  page.fill(static_cast<std::byte>(value * 31 + number));
  std::memcpy(page.data(), &value, sizeof value);
}
inline std::uint64_t get_count(const Page& page) {
  std::uint64_t value;
  std::memcpy(&value, page.data(), sizeof value);
  return value;
}

// The n of the instant that the image shows; fails the test when it is no instant.
inline std::uint64_t verify_image(const Memory& memory) {
  EXPECT_TRUE(memory.contains(kPages));
  if (!memory.contains(kPages)) return 0;
  const std::uint64_t n = get_count(memory.at(kPages));
  for (std::uint64_t i = 0; i < kPages; ++i) {
    const std::uint64_t want = n >= i ? n - (n - i) % kPages : 0;
    if (want == 0) continue;  // never written
    auto page = memory.find(i);
    EXPECT_TRUE(page != memory.end()) << "page " << i << " at n " << n;
    if (page == memory.end()) continue;
    Page expected;
    put_count(expected, i, want);
    EXPECT_EQ(get_count(page->second), want) << "page " << i << " at n " << n;
    EXPECT_EQ(page->second, expected) << "page " << i;
  }
  return n;
}

// How many instances of a workload run at this instant, over all fake wardens.
struct Runners {
  std::mutex mutex;
  std::map<std::string, int> running;
  std::atomic<bool> violated{false};
  void add(const std::string& name, int by) {
    std::lock_guard lock(mutex);
    if ((running[name] += by) > 1) violated = true;
  }
  int count(const std::string& name) {
    std::lock_guard lock(mutex);
    return running[name];
  }
};

class FakeBatch final : public CapturedBatch {
 public:
  std::vector<pb::PageRun> list;
  std::vector<std::byte> bytes;
  const std::vector<pb::PageRun>& runs() const override { return list; }
  const std::byte* data(const pb::PageRun& run) const override { return bytes.data() + run.offset(); }
};
class FakeFill final : public FillBuffer {
 public:
  explicit FakeFill(std::vector<std::byte>& store) : store_(store) {}
  std::span<std::byte> bytes() override { return store_; }
  std::uint64_t offset() const override { return 0; }

 private:
  std::vector<std::byte>& store_;
};

class FakeWarden final : public Warden {
 public:
  explicit FakeWarden(Runners& runners, std::string node = "n") : runners_(runners), node_(std::move(node)) {
    driver_ = std::jthread([this](std::stop_token stop) {
      while (!stop.stop_requested()) {
        step_all();
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
  }

  struct Program {
    Memory memory;
    std::set<std::uint64_t> dirty;
    bool copied = false;      // the first full copy has been taken
    bool running = true, frozen = false, held = false, built = false;
    std::uint64_t seen_epoch = 0;
    pb::WorkloadSpec spec;
    std::uint64_t incarnation = 0;
  };

  // Knobs for tests.
  std::function<Result<void>(const std::string& operation)> mishap;
  std::atomic<std::uint64_t> epoch_now{1};

  std::uint64_t epoch() const override { return epoch_now; }
  Result<pb::NodeFacts> probe() override {
    pb::NodeFacts facts;
    facts.set_arch("x86_64");
    facts.set_memory_free_bytes(1ull << 40);
    return facts;
  }
  Result<pb::InspectResponse> inspect(const pb::InspectRequest&) override {
    BATON_TRY(check("inspect"));
    pb::InspectResponse out;
    out.set_acceptable(true);
    return out;
  }
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec& spec) override {
    BATON_TRY(check("run"));
    std::lock_guard lock(mutex_);
    auto& p = programs_[spec.name()];
    p = Program();
    p.spec = spec;
    runners_.add(spec.name(), 1);
    return process(spec.name(), p);
  }
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec& spec) override { return run(spec); }
  Result<std::vector<pb::WorkloadProcess>> list() override {
    std::lock_guard lock(mutex_);
    std::vector<pb::WorkloadProcess> out;
    for (auto& [name, p] : programs_) out.push_back(process(name, p));
    return out;
  }
  Result<Round> round(const pb::RoundRequest& request) override {
    BATON_TRY(check("round"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(request.workload()));
    Round out;
    out.pages = copy(*p, request.again());
    out.info.set_pages_written(out.pages->runs().size());
    return out;
  }
  Result<Capture> capture(const pb::CaptureRequest& request) override {
    BATON_TRY(check("capture"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(request.workload()));
    if (p->frozen || p->held) return make_error(Code::kConflict, "capture", "frozen already");
    Capture out;
    out.pages = copy(*p, request.again());
    auto& manifest = *out.info.mutable_manifest();
    manifest.set_version(1);
    manifest.set_backend("fake");
    auto* object = manifest.add_objects();
    object->set_id(kObject);
    object->set_kind(pb::MEMORY_OBJECT_PRIVATE);
    out.info.set_pause_us(100);
    if (holds_output) out.info.set_output_epoch(++output_epoch_);
    if (request.keep_frozen()) set_frozen(request.workload(), *p, true);
    return out;
  }
  Result<void> release_output(const std::string& name, std::uint64_t epoch) override {
    std::lock_guard lock(mutex_);
    BATON_TRY(find(name));
    released_output_ = epoch;
    return {};
  }
  std::atomic<bool> holds_output{false};
  std::uint64_t released_output() {
    std::lock_guard lock(mutex_);
    return released_output_;
  }
  Result<void> thaw(const std::string& name) override {
    BATON_TRY(check("thaw"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(name));
    p->held = false;
    set_frozen(name, *p, false);
    return {};
  }
  Result<void> hold(const std::string& name) override {
    BATON_TRY(check("hold"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(name));
    set_frozen(name, *p, true);
    p->held = true;
    return {};
  }
  Result<void> stop(const std::string& name, std::uint64_t, bool) override {
    BATON_TRY(check("stop"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(name));
    if (p->running && !p->frozen && !p->built) runners_.add(name, -1);
    programs_.erase(name);
    return {};
  }
  Result<void> release(const std::string& name) override { return stop(name, 0, true); }
  Result<void> build(const pb::BuildRequest& request) override {
    BATON_TRY(check("build"));
    std::lock_guard lock(mutex_);
    if (programs_.contains(request.workload())) return make_error(Code::kConflict, "build", "name in use");
    auto& p = programs_[request.workload()];
    p.built = true;
    p.spec = request.spec();
    p.incarnation = request.incarnation();
    return {};
  }
  Result<std::unique_ptr<FillBuffer>> fill_space(std::size_t bytes) override {
    thread_local std::vector<std::byte> buffer;
    buffer.assign(bytes, std::byte{0});
    std::lock_guard lock(mutex_);
    fills_[std::this_thread::get_id()] = &buffer;
    return std::unique_ptr<FillBuffer>(std::make_unique<FakeFill>(buffer));
  }
  Result<void> fill(const pb::FillRequest& request) override {
    BATON_TRY(check("fill"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(request.workload()));
    const std::byte* buffer = fills_.at(std::this_thread::get_id())->data();
    for (const auto& run : request.runs()) {
      for (std::uint32_t i = 0; i < run.count(); ++i) {
        std::memcpy(p->memory[run.first_page() + i].data(), buffer + run.offset() + i * dedup::kPageBytes,
                    dedup::kPageBytes);
      }
    }
    return {};
  }
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request) override {
    BATON_TRY(check("activate"));
    std::lock_guard lock(mutex_);
    BATON_ASSIGN(Program * p, find(request.workload()));
    if (!p->built) return make_error(Code::kNotFound, "activate", "nothing is being built");
    verify_image(p->memory);
    p->built = false;
    runners_.add(request.workload(), 1);
    return process(request.workload(), *p);
  }
  Result<pb::LogsResponse> logs(const pb::LogsRequest&) override { return pb::LogsResponse(); }
  Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest& request) override {
    pb::ProveFilesResponse out;
    for (const auto& file : request.files()) {
      auto* verdict = out.add_files();
      verdict->set_path(file.path());
      verdict->set_same(!missing_files.contains(file.path()));
    }
    return out;
  }
  Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest&) override {
    return make_error(Code::kNotFound, "read", "no files here");
  }
  Result<void> write_file(const pb::WriteFileRequest&) override { return {}; }
  std::set<std::string> missing_files;

  // What a restarted agent or warden means for a build and for tracking.
  void agent_gone() {
    std::lock_guard lock(mutex_);
    ++epoch_now;
    for (auto it = programs_.begin(); it != programs_.end();) {
      auto& [name, p] = *it;
      if (p.built) {
        it = programs_.erase(it);
        continue;
      }
      p.copied = false;
      if (p.frozen && !p.held) set_frozen(name, p, false);
      ++it;
    }
  }
  std::uint64_t count_of(const std::string& name) {
    std::lock_guard lock(mutex_);
    auto it = programs_.find(name);
    if (it == programs_.end() || !it->second.memory.contains(kPages)) return 0;
    return get_count(it->second.memory.at(kPages));
  }
  bool has(const std::string& name) {
    std::lock_guard lock(mutex_);
    return programs_.contains(name);
  }
  bool frozen(const std::string& name) {
    std::lock_guard lock(mutex_);
    auto it = programs_.find(name);
    return it != programs_.end() && it->second.frozen;
  }

 private:
  Result<void> check(const std::string& operation) {
    if (mishap) return mishap(operation);
    return {};
  }
  Result<Program*> find(const std::string& name) {
    auto it = programs_.find(name);
    if (it == programs_.end()) return make_error(Code::kNotFound, "warden", "no workload " + name);
    return &it->second;
  }
  void set_frozen(const std::string& name, Program& p, bool frozen) {
    if (p.frozen == frozen || p.built) return;
    p.frozen = frozen;
    runners_.add(name, frozen ? -1 : 1);
  }
  pb::WorkloadProcess process(const std::string& name, const Program& p) const {
    pb::WorkloadProcess out;
    out.set_workload(name);
    out.set_pid(4711);
    out.set_state(p.built ? "building" : "running");
    out.set_frozen(p.frozen);
    out.set_spec(p.spec.SerializeAsString());
    out.set_incarnation(p.incarnation);
    return out;
  }
  std::unique_ptr<FakeBatch> copy(Program& p, const google::protobuf::RepeatedPtrField<pb::PageRange>& again) {
    std::set<std::uint64_t> pages = std::exchange(p.dirty, {});
    if (!std::exchange(p.copied, true)) {
      for (auto& [number, page] : p.memory) pages.insert(number);
    }
    for (const auto& range : again) {
      for (std::uint64_t i = 0; i < range.count(); ++i) {
        if (p.memory.contains(range.first_page() + i)) pages.insert(range.first_page() + i);
      }
    }
    auto batch = std::make_unique<FakeBatch>();
    for (std::uint64_t number : pages) {
      pb::PageRun run;
      run.set_object(kObject);
      run.set_first_page(number);
      run.set_count(1);
      run.set_offset(batch->bytes.size());
      batch->list.push_back(run);
      const Page& page = p.memory.at(number);
      batch->bytes.insert(batch->bytes.end(), page.begin(), page.end());
    }
    return batch;
  }
  void step_all() {
    std::lock_guard lock(mutex_);
    for (auto& [name, p] : programs_) {
      if (!p.running || p.frozen || p.built) continue;
      const std::uint64_t n = p.memory.contains(kPages) ? get_count(p.memory[kPages]) + 1 : 1;
      put_count(p.memory[n % kPages], n % kPages, n);
      std::memcpy(p.memory[kPages].data(), &n, sizeof n);
      p.dirty.insert(n % kPages);
      p.dirty.insert(kPages);
    }
  }

  Runners& runners_;
  const std::string node_;
  std::mutex mutex_;
  std::uint64_t output_epoch_ = 0, released_output_ = 0;
  std::map<std::string, Program> programs_;
  std::map<std::thread::id, std::vector<std::byte>*> fills_;
  std::jthread driver_;
};

// A store of its own in a folder that goes with it.
class TempStore {
 public:
  TempStore() {
    char path[] = "/tmp/baton-agent-test-XXXXXX";
    folder = ::mkdtemp(path);
    open();
  }
  ~TempStore() {
    store.reset();
    std::filesystem::remove_all(folder);
  }
  void open() {
    storage::StoreOptions options;
    options.retention.keep_last = 20;
    auto opened = storage::Store::open(folder + "/store", options, clock);
    EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message());
    if (opened) store = std::move(*opened);
  }
  SystemClock clock;
  std::string folder;
  std::unique_ptr<storage::Store> store;
};

// The page stream's receiver, called directly; can be cut.
class LoopbackReplica final : public Replica {
 public:
  struct Line {
    std::atomic<bool> cut{false};
    std::atomic<bool> stalled{false};
    std::function<Result<void>(const std::string& operation)> mishap;
    std::atomic<std::uint64_t> pages{0};
  };
  LoopbackReplica(std::string node, Receiver& receiver, storage::WorkloadIdentity identity, std::shared_ptr<Line> line)
      : node_(std::move(node)), receiver_(receiver), identity_(std::move(identity)), line_(std::move(line)) {}
  std::string name() const override { return "standby " + node_; }
  Result<std::optional<ReplicaTip>> open(std::uint64_t incarnation) override {
    BATON_TRY(up("open"));
    transport::OpenRequest request;
    request.workload = identity_.workload;
    request.domain = identity_.domain.bytes;
    request.kind = identity_.kind;
    request.hash_key = identity_.key;
    request.incarnation = incarnation;
    transport::StreamPeer peer;
    peer.identity.name = "peer";
    BATON_ASSIGN(auto opened, receiver_.on_open(peer, request));
    channel_ = std::move(opened.channel);
    if (opened.reply.tip_seq == 0) return std::optional<ReplicaTip>();
    return std::optional<ReplicaTip>(ReplicaTip{opened.reply.tip_seq, opened.reply.tip_incarnation});
  }
  void close() override { closed_ = true; }
  Result<std::vector<bool>> have(std::span<const dedup::Digest> digests) override {
    BATON_TRY(up("have"));
    return channel_->on_have(digests);
  }
  Result<std::uint64_t> put(std::span<const storage::PagePut> pages) override {
    BATON_TRY(up("put"));
    std::vector<transport::PageRef> refs;
    for (const auto& page : pages) refs.push_back({page.digest, page.page});
    BATON_TRY(channel_->on_pages(refs));
    line_->pages += pages.size();
    return std::uint64_t(pages.size() * dedup::kPageBytes);
  }
  Result<void> commit(const storage::CheckpointRecord& record, storage::Durability,
                      std::vector<dedup::Digest>* missing) override {
    BATON_TRY(up("commit"));
    BATON_ASSIGN(std::string bytes, storage::encode(record));
    auto answer = channel_->on_checkpoint(record.seq, std::move(bytes));
    if (answer) return {};
    *missing = answer.error().missing;
    return Error(answer.error().error);
  }

 private:
  Result<void> up(const std::string& operation) {
    closed_ = false;
    while (line_->stalled && !line_->cut && !closed_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (line_->cut || closed_) return make_error(Code::kUnreachable, "page stream", node_ + ": cut");
    if (line_->mishap) return line_->mishap(operation);
    return {};
  }
  const std::string node_;
  Receiver& receiver_;
  const storage::WorkloadIdentity identity_;
  const std::shared_ptr<Line> line_;
  std::unique_ptr<transport::ReceiverChannel> channel_;
  std::atomic<bool> closed_{false};
};

inline pb::WorkloadSpec test_spec(const std::string& name) {
  pb::WorkloadSpec spec;
  spec.set_name(name);
  spec.set_origin(pb::ORIGIN_RUN);
  spec.add_argv("/bin/fake");
  spec.set_interval_us(10'000);
  spec.set_domain(std::string(32, 'a'));
  spec.set_hash_key(std::string(32, 'k'));
  spec.set_durability(pb::DURABILITY_FLUSHED);
  return spec;
}

inline Memory load_memory(storage::Store& store, const std::string& name, std::uint64_t seq) {
  Memory memory;
  auto checkpoint = store.load(name, seq);
  EXPECT_TRUE(checkpoint.has_value()) << (checkpoint ? "" : checkpoint.error().message());
  if (!checkpoint) return memory;
  for (const auto& [object, table] : checkpoint->objects) {
    table.for_each([&](std::uint64_t page, const dedup::Digest& digest) {
      storage::PageGet get{digest, memory[page].data()};
      auto read = store.pages().get(checkpoint->domain, *checkpoint->hasher, std::span(&get, 1));
      EXPECT_TRUE(read.has_value()) << (read ? "" : read.error().message());
    });
  }
  return memory;
}

// Waits for a condition; polls, because the conditions are other programs' progress.
inline bool eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds timeout = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (std::chrono::steady_clock::now() < end) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return condition();
}

}  // namespace baton::node::testing
