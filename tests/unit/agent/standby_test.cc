// A standby over a real store and a warden in memory: what it keeps ready, how it follows, what
// it falls back to; and how a node's memory is shared among standbys.
#include "agent/node/standby.h"

#include <future>
#include <random>

#include "agent/node/local_replica.h"
#include "agent/node/spec.h"
#include "tests/unit/agent/fakes.h"

namespace baton::node {
namespace {

using namespace testing;
using namespace std::chrono_literals;

// ------------------------------------------------------------------ sharing memory

StandbyClaim claim(const std::string& name, pb::Mode wanted, std::uint64_t mib, int priority = 0) {
  return {name, wanted, mib << 20, priority};
}

TEST(ShareMemory, Enough_EverybodyGetsWhatItWants) {
  auto grants = share_memory({claim("a", pb::MODE_HOT, 100), claim("b", pb::MODE_WARM, 100), claim("c", pb::MODE_COLD, 900)}, 300u << 20);
  EXPECT_EQ(grants["a"].mode, pb::MODE_HOT);
  EXPECT_EQ(grants["b"].mode, pb::MODE_WARM);
  EXPECT_EQ(grants["c"].mode, pb::MODE_COLD);
  for (auto& [name, grant] : grants) EXPECT_EQ(grant.problem, "") << name;
}

TEST(ShareMemory, NoRoomToRebuildBeside_HotBecomesWarm) {
  auto grants = share_memory({claim("a", pb::MODE_HOT, 100)}, 199u << 20);
  EXPECT_EQ(grants["a"].mode, pb::MODE_WARM);
  EXPECT_NE(grants["a"].problem.find("100 MiB"), std::string::npos) << grants["a"].problem;
  EXPECT_EQ(share_memory({claim("a", pb::MODE_HOT, 100)}, 200u << 20)["a"].mode, pb::MODE_HOT);
  EXPECT_EQ(share_memory({claim("a", pb::MODE_HOT, 100)}, 99u << 20)["a"].mode, pb::MODE_COLD);
}

TEST(ShareMemory, TooLittle_PriorityDecides) {
  auto grants = share_memory({claim("a", pb::MODE_HOT, 100), claim("b", pb::MODE_HOT, 100, 5)}, 200u << 20);
  EXPECT_EQ(grants["b"].mode, pb::MODE_HOT);
  EXPECT_EQ(grants["a"].mode, pb::MODE_COLD);
  EXPECT_NE(grants["a"].problem, "");
}

TEST(ShareMemory, AnyClaims_NeverExceedTheBudget) {
  std::mt19937_64 random(42);
  for (int round = 0; round < 2000; ++round) {
    std::vector<StandbyClaim> claims;
    for (int i = 0, n = static_cast<int>(random() % 12); i < n; ++i) {
      std::uint64_t bytes = random() % 20 == 0 ? ~0ull - random() % 4 : random() % (300u << 20);
      claims.push_back({"w" + std::to_string(i), static_cast<pb::Mode>(1 + random() % 3), bytes, static_cast<int>(random() % 3)});
    }
    const std::uint64_t budget = random() % (1u << 30);
    auto grants = share_memory(claims, budget);
    std::uint64_t used = 0, largest_hot = 0;
    for (const auto& one : claims) {
      const auto& grant = grants.at(one.name);
      EXPECT_LE(grant.mode, one.wanted);
      EXPECT_EQ(grant.problem.empty(), grant.mode == one.wanted);
      if (grant.mode == pb::MODE_COLD) continue;
      used += one.bytes;
      if (grant.mode == pb::MODE_HOT) largest_hot = std::max(largest_hot, one.bytes);
    }
    ASSERT_LE(used + largest_hot, budget) << "seed 42, round " << round;
  }
}

// ------------------------------------------------------------------ a standby

// Keeps what is built as memory, and whether an apply is under way.
class ShadowWarden final : public Warden {
 public:
  struct Built {
    Memory memory;
    std::uint64_t seq = 0;
    bool half = false;
  };
  std::atomic<std::uint64_t> epoch_now{1};
  std::atomic<int> builds{0}, applies{0};
  std::atomic<bool> refuses{false};                         // to follow, until another is built

  std::uint64_t epoch() const override { return epoch_now; }
  void set_mishap(std::function<Result<void>(const std::string&)> mishap) {
    std::lock_guard lock(mutex_);
    mishap_ = std::move(mishap);
  }
  std::optional<Built> current() {
    std::lock_guard lock(mutex_);
    return built_;
  }
  std::optional<Memory> running() {
    std::lock_guard lock(mutex_);
    return running_;
  }
  void restart() {
    std::lock_guard lock(mutex_);
    built_.reset();
    beside_.reset();
    ++epoch_now;
  }

  Result<void> build(const pb::BuildRequest& request) override {
    BATON_TRY(check("build"));
    std::lock_guard lock(mutex_);
    auto& slot = request.beside() ? beside_ : built_;
    if (!request.beside() && slot) return make_error(Code::kConflict, "build", "in use");
    if (request.beside() && !built_) return make_error(Code::kNotFound, "build", "nothing to build beside");
    slot = Built{{}, request.seq(), false};
    refuses = false;
    ++builds;
    return {};
  }
  Result<std::unique_ptr<FillBuffer>> fill_space(std::size_t bytes) override {
    auto buffer = std::make_unique<Space>(*this, bytes);
    return std::unique_ptr<FillBuffer>(std::move(buffer));
  }
  Result<void> fill(const pb::FillRequest& request) override {
    BATON_TRY(check("fill"));
    std::lock_guard lock(mutex_);
    auto& slot = request.beside() ? beside_ : built_;
    if (!slot) return make_error(Code::kNotFound, "fill", "nothing is being built");
    put(slot->memory, request.runs());
    return {};
  }
  Result<pb::ShadowResponse> shadow(const pb::ShadowRequest& request) override {
    BATON_TRY(check("shadow"));
    std::lock_guard lock(mutex_);
    pb::ShadowResponse response;
    if (request.step() == pb::SHADOW_STEP_DROP) {
      beside_.reset();
      return response;
    }
    if (!built_) return make_error(Code::kNotFound, "shadow", "none");
    if (request.step() == pb::SHADOW_STEP_REPLACE) {
      if (!beside_) return make_error(Code::kNotFound, "shadow", "nothing beside");
      built_ = std::move(beside_);
      beside_.reset();
      return response;
    }
    if (request.has_manifest() == built_->half) return make_error(Code::kConflict, "shadow", "out of order");
    if (request.has_manifest() && refuses) {
      response.set_rebuild(true);
      response.set_reason("it has other processes");
      return response;
    }
    built_->half = true;
    for (const auto& range : request.dropped()) {
      for (std::uint64_t i = 0; i < range.count(); ++i) built_->memory.erase(range.first_page() + i);
    }
    put(built_->memory, request.runs());
    if (request.last()) {
      built_->half = false;
      built_->seq = request.seq();
      ++applies;
    }
    response.set_clock_ahead_ns(10'000'000);
    return response;
  }
  Result<pb::WorkloadProcess> activate(const pb::ActivateRequest& request) override {
    BATON_TRY(check("activate"));
    std::lock_guard lock(mutex_);
    if (!built_) return make_error(Code::kNotFound, "activate", "nothing");
    if (built_->half || (request.seq() != 0 && request.seq() != built_->seq)) return make_error(Code::kConflict, "activate", "elsewhere");
    running_ = std::move(built_->memory);
    built_.reset();
    pb::WorkloadProcess process;
    process.set_pid(4711);
    return process;
  }
  Result<void> stop(const std::string&, std::uint64_t, bool) override {
    std::lock_guard lock(mutex_);
    built_.reset();
    beside_.reset();
    return {};
  }

  Result<pb::NodeFacts> probe() override { return pb::NodeFacts(); }
  Result<pb::InspectResponse> inspect(const pb::InspectRequest&) override { return pb::InspectResponse(); }
  Result<pb::WorkloadProcess> run(const pb::WorkloadSpec&) override { return pb::WorkloadProcess(); }
  Result<pb::WorkloadProcess> protect(const pb::WorkloadSpec&) override { return pb::WorkloadProcess(); }
  Result<std::vector<pb::WorkloadProcess>> list() override { return std::vector<pb::WorkloadProcess>(); }
  Result<Round> round(const pb::RoundRequest&) override { return Round(); }
  Result<Capture> capture(const pb::CaptureRequest&) override { return Capture(); }
  Result<void> release_output(const std::string&, std::uint64_t) override { return {}; }
  Result<void> thaw(const std::string&) override { return {}; }
  Result<void> hold(const std::string&) override { return {}; }
  Result<void> release(const std::string&) override { return {}; }
  Result<pb::LogsResponse> logs(const pb::LogsRequest&) override { return pb::LogsResponse(); }
  Result<pb::ProveFilesResponse> prove_files(const pb::ProveFilesRequest&) override { return pb::ProveFilesResponse(); }
  Result<pb::ReadFileResponse> read_file(const pb::ReadFileRequest&) override { return pb::ReadFileResponse(); }
  Result<void> write_file(const pb::WriteFileRequest&) override { return {}; }

 private:
  // Pieces of one buffer: offsets must tell them apart.
  class Space final : public FillBuffer {
   public:
    Space(ShadowWarden& warden, std::size_t bytes) : warden_(warden), bytes_(bytes) {
      std::lock_guard lock(warden_.mutex_);
      offset_ = warden_.next_offset_;
      warden_.next_offset_ += bytes;
      warden_.spaces_[offset_] = this;
    }
    ~Space() override {
      std::lock_guard lock(warden_.mutex_);
      warden_.spaces_.erase(offset_);
    }
    std::span<std::byte> bytes() override { return bytes_; }
    std::uint64_t offset() const override { return offset_; }

   private:
    ShadowWarden& warden_;
    std::vector<std::byte> bytes_;
    std::uint64_t offset_ = 0;
  };
  template <typename Runs>
  void put(Memory& memory, const Runs& runs) {
    for (const auto& run : runs) {
      auto space = std::prev(spaces_.upper_bound(run.offset()));
      const std::byte* at = space->second->bytes().data() + (run.offset() - space->first);
      for (std::uint32_t i = 0; i < run.count(); ++i) std::memcpy(memory[run.first_page() + i].data(), at + i * dedup::kPageBytes, dedup::kPageBytes);
    }
  }
  Result<void> check(const std::string& operation) {
    std::function<Result<void>(const std::string&)> one;
    {
      std::lock_guard lock(mutex_);
      one = mishap_;
    }
    return one ? one(operation) : Result<void>();
  }

  std::mutex mutex_;
  std::function<Result<void>(const std::string&)> mishap_;
  std::optional<Built> built_, beside_;
  std::optional<Memory> running_;
  std::map<std::uint64_t, Space*> spaces_;
  std::uint64_t next_offset_ = 0;
};

class StandbyTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kBudget = 1u << 30;

  StandbyTest() {
    auto identity = identity_of(test_spec("w"));
    EXPECT_TRUE(identity);
    identity_ = *identity;
    EXPECT_TRUE(enter_workload(*store_.store, identity_, 1));
    hasher_ = *store_.store->hasher("w");
    std::filesystem::create_directories(folder());
    make(kBudget);
  }
  ~StandbyTest() override { standbys_.reset(); }

  std::string folder() const { return store_.folder + "/workloads"; }
  void make(std::uint64_t budget) {
    standbys_.reset();
    standbys_ = std::make_unique<Standbys>(StandbyEnv{&warden_, store_.store.get(), &store_.clock,
                                                      [this](const std::string&, const std::string&, const std::string& text) {
                                                        std::lock_guard lock(mutex_);
                                                        events_.push_back(text);
                                                      }},
                                           folder(), budget);
  }
  bool told(const std::string& what) {
    std::lock_guard lock(mutex_);
    for (const auto& text : events_) {
      if (text.find(what) != std::string::npos) return true;
    }
    return false;
  }
  pb::WorkloadSpec spec(pb::Mode mode) const {
    pb::WorkloadSpec spec = test_spec("w");
    spec.set_mode(mode);
    return spec;
  }

  // One checkpoint more: pages written and given back, as a primary would send them.
  void commit(const std::map<std::uint64_t, std::uint8_t>& written, const std::vector<std::uint64_t>& gone = {}) {
    auto now = std::make_shared<Snapshot>(last_ ? *last_ : Snapshot());
    now->seq = last_ ? last_->seq + 1 : 1;
    now->incarnation = 1;
    auto& table = now->tables.try_emplace(kObject, identity_.kind).first->second;
    for (const auto& [page, value] : written) {
      Page bytes;
      bytes.fill(static_cast<std::byte>(value));
      dedup::Digest digest = hasher_->page(dedup::PageView(bytes.data(), dedup::kPageBytes));
      table.set(page, digest);
      wanted_[page] = bytes;
      storage::PagePut put{digest, bytes.data()};
      ASSERT_TRUE(store_.store->pages().put(identity_.domain, std::span(&put, 1)));
    }
    for (std::uint64_t page : gone) {
      table.erase(page);
      wanted_.erase(page);
    }
    pb::Manifest manifest;
    manifest.set_version(1);
    manifest.set_backend("fake");
    manifest.add_objects()->set_id(kObject);
    now->manifest = manifest.SerializeAsString();
    now->roots[kObject] = table.root(*hasher_);
    auto record = make_record(identity_, last_.get(), *now, *hasher_, store_.clock.boot_now());
    auto done = store_.store->commit(record, storage::Durability::kMemory);
    ASSERT_TRUE(done) << done.error().message();
    last_ = now;
    if (standby_) standby_->committed(table.count());
  }
  void open(pb::Mode mode) { standby_ = standbys_->open("w", spec(mode)); }
  bool ready(pb::Mode mode) {
    return eventually([&] {
      auto view = standby_->view();
      return view.mode == mode && view.ready_seq == last_->seq;
    });
  }
  void expect_shadow_as_committed() {
    auto built = warden_.current();
    ASSERT_TRUE(built);
    EXPECT_FALSE(built->half);
    EXPECT_EQ(built->seq, last_->seq);
    EXPECT_TRUE(built->memory == wanted_);
  }
  Result<std::optional<Activated>> activate(std::uint64_t seq = 0) {
    ActivationOrder order;
    order.seq = seq;
    order.incarnation = 2;
    order.spec = spec(pb::MODE_HOT);
    return standby_->activate(order);
  }

  TempStore store_;
  ShadowWarden warden_;
  storage::WorkloadIdentity identity_;
  std::shared_ptr<const dedup::PageHasher> hasher_;
  std::mutex mutex_;
  std::vector<std::string> events_;
  std::unique_ptr<Standbys> standbys_;
  std::shared_ptr<Standby> standby_;
  std::shared_ptr<Snapshot> last_;
  Memory wanted_;
};

TEST_F(StandbyTest, Hot_Commits_AreAppliedToTheShadow) {
  commit({{1, 11}, {2, 12}, {3, 13}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
  commit({{2, 22}, {9, 29}}, {3});
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
  EXPECT_EQ(warden_.builds, 1);
  auto activated = activate();
  ASSERT_TRUE(activated && *activated);
  EXPECT_EQ((*activated)->mode, pb::MODE_HOT);
  EXPECT_EQ((*activated)->seq, 2u);
  EXPECT_TRUE(*warden_.running() == wanted_);
}

TEST_F(StandbyTest, Hot_MorePagesThanOneRequest_AreAllApplied) {
  commit({{0, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  std::map<std::uint64_t, std::uint8_t> many;
  for (std::uint64_t i = 0; i < 2500; ++i) many[i * 3] = static_cast<std::uint8_t>(1 + i % 250);
  commit(many);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
  EXPECT_EQ(warden_.builds, 1);
}

TEST_F(StandbyTest, Hot_ActivationBeforeTheApply_GoesTheWayToItsEnd) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  auto quiet = std::move(standby_);   // it is not told of this one
  commit({{1, 2}, {5, 5}});
  standby_ = std::move(quiet);
  auto activated = activate();
  ASSERT_TRUE(activated && *activated);
  EXPECT_EQ((*activated)->mode, pb::MODE_HOT);
  EXPECT_TRUE(*warden_.running() == wanted_);
}

TEST_F(StandbyTest, Hot_FarBehind_TheNextCommitWaitsUntilItHasCaughtUp) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  std::promise<void> begun, go_on;
  std::atomic<bool> first{true};
  warden_.set_mishap([&, may = go_on.get_future().share()](const std::string& operation) -> Result<void> {
    if (operation == "shadow" && first.exchange(false)) {
      begun.set_value();
      may.wait();
    }
    return {};
  });
  commit({{1, 2}});                       // @2: its apply takes long
  begun.get_future().wait();
  standby_->let_catch_up(3, 10s);         // not far
  commit({{1, 3}});
  standby_->let_catch_up(4, 10s);
  commit({{1, 4}});
  auto waited = std::async(std::launch::async, [&] { standby_->let_catch_up(5, 10s); });
  EXPECT_EQ(waited.wait_for(50ms), std::future_status::timeout) << "@1 is four behind @5";
  const auto begin = std::chrono::steady_clock::now();
  standby_->let_catch_up(5, 20ms);        // not for ever
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
  go_on.set_value();
  EXPECT_EQ(waited.wait_for(5s), std::future_status::ready);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
}

TEST_F(StandbyTest, Hot_CannotFollow_AnotherIsBuiltBeside) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  warden_.refuses = true;
  commit({{1, 2}});
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
  EXPECT_EQ(warden_.builds, 2);
}

TEST_F(StandbyTest, Hot_ApplyFailsHalfWay_IsDiscardedAndBuiltAgain) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  std::atomic<int> fail{1};
  auto failing = [&](const std::string& operation) -> Result<void> {
    if (operation == "shadow" && fail-- > 0) {
      (void)warden_.stop("w", 0, true);
      return make_error(Code::kFailed, "apply", "the second page cannot be written");
    }
    return {};
  };
  warden_.set_mishap(failing);
  commit({{1, 3}});
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
  EXPECT_EQ(warden_.builds, 2);
  EXPECT_TRUE(told("cannot be written"));
}

TEST_F(StandbyTest, Hot_WardenRestarted_IsBuiltAgain) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  warden_.restart();
  standbys_->wake_all();
  ASSERT_TRUE(eventually([&] { return warden_.current().has_value() && warden_.builds == 2; }));
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
}

TEST_F(StandbyTest, Hot_AgentRestarted_IsBuiltAgainFromItsFile) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  standby_.reset();
  make(kBudget);
  standbys_->load({});
  standby_ = standbys_->find("w");
  ASSERT_TRUE(standby_);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  expect_shadow_as_committed();
}

TEST_F(StandbyTest, Warm_Activated_RunsOutOfMemory) {
  commit({{1, 1}, {2, 2}});
  open(pb::MODE_WARM);
  ASSERT_TRUE(ready(pb::MODE_WARM));
  commit({{2, 3}, {4, 4}}, {1});
  ASSERT_TRUE(ready(pb::MODE_WARM));
  EXPECT_FALSE(warden_.current()) << "nothing is built before the activation";
  auto activated = activate();
  ASSERT_TRUE(activated && *activated);
  EXPECT_EQ((*activated)->mode, pb::MODE_WARM);
  EXPECT_TRUE(*warden_.running() == wanted_);
}

TEST_F(StandbyTest, Activation_OfAnOlderCheckpoint_LeavesItToTheStore) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  commit({{1, 2}});
  ASSERT_TRUE(ready(pb::MODE_HOT));
  auto activated = activate(1);
  ASSERT_TRUE(activated);
  EXPECT_FALSE(*activated);
  EXPECT_FALSE(warden_.current()) << "the name must be free for what is built from the store";
  EXPECT_FALSE(warden_.running());
}

TEST_F(StandbyTest, BudgetTooSmall_IsDemotedVisibly) {
  make(2 * dedup::kPageBytes);
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  commit({{1, 1}, {2, 2}});   // fits, but not beside itself
  ASSERT_TRUE(ready(pb::MODE_WARM));
  EXPECT_TRUE(told("warm"));
  EXPECT_NE(standby_->view().problem, "");
  EXPECT_TRUE(eventually([&] { return !warden_.current(); })) << "the shadow's memory is given back";
  commit({{3, 3}, {4, 4}});
  EXPECT_TRUE(eventually([&] { return standby_->view().mode == pb::MODE_COLD && standby_->view().bytes == 0; }));
  EXPECT_TRUE(told("do not fit"));
}

TEST_F(StandbyTest, Removed_NothingIsLeft) {
  commit({{1, 1}});
  open(pb::MODE_HOT);
  ASSERT_TRUE(ready(pb::MODE_HOT));
  standbys_->remove("w", true);
  EXPECT_FALSE(warden_.current());
  EXPECT_FALSE(std::filesystem::exists(folder() + "/w.standby"));
  EXPECT_FALSE(standbys_->open("w", spec(pb::MODE_HOT))) << "while it is barred";
  standbys_->allow("w");
  EXPECT_TRUE(standbys_->open("w", spec(pb::MODE_HOT)));
}

}  // namespace
}  // namespace baton::node
