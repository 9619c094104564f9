// Encryption at rest: nothing of a program is readable on disk, only with the node's key, and
// never again once a workload was dropped.
#include <gtest/gtest.h>

#include <fstream>

#include "base/fd.h"
#include "storage/seal.h"
#include "store_bench.h"

namespace baton::storage {
namespace {

namespace fs = std::filesystem;
using testing_ground::make_page;
using testing_ground::Page;
using testing_ground::StoreTest;
using testing_ground::Workload;

class EncryptionTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    options_.node_key = std::make_shared<const Sealer>(Sealer::make_key().value());
    options_.segment_bytes = 64u << 10;
  }
  // Whether these bytes stand in any file of the store.
  bool on_disk(std::string_view needle) {
    for (const auto& e : fs::recursive_directory_iterator(folder_ + "/store")) {
      if (!e.is_regular_file()) continue;
      auto bytes = read_file(e.path());
      if (bytes && bytes->find(needle) != std::string::npos) return true;
    }
    return false;
  }
  static std::string_view start_of(const Page& page) {
    return {reinterpret_cast<const char*>(page.data()), 16};
  }
  void write_pages(Workload& w, std::uint64_t round) {
    for (std::uint64_t i = 0; i < 40; ++i) w.write(1, i, round * 100 + i + 1);
  }
};

TEST(Sealer, WhatWasSealed_OpensOnlyWithItsKeyAndUnchanged) {
  const Sealer sealer(Sealer::make_key().value()), other(Sealer::make_key().value());
  const std::string plain = "a page of somebody's memory", bound = "head";
  auto bytes = [](std::string& text) { return std::as_writable_bytes(std::span(text.data(), text.size())); };
  auto view = [](const std::string& text) { return std::as_bytes(std::span(text.data(), text.size())); };
  std::string sealed, again;
  sealer.seal(view(plain), view(bound), sealed);
  sealer.seal(view(plain), view(bound), again);
  EXPECT_EQ(sealed.size(), plain.size() + kSealBytes);
  EXPECT_NE(sealed, again) << "a nonce was used twice";
  std::string out(plain.size(), '\0');
  ASSERT_TRUE(sealer.open(view(sealed), view(bound), bytes(out)));
  EXPECT_EQ(out, plain);
  EXPECT_FALSE(other.open(view(sealed), view(bound), bytes(out)));
  EXPECT_FALSE(sealer.open(view(sealed), view("Head"), bytes(out)));
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    std::string flipped = sealed;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    ASSERT_FALSE(sealer.open(view(flipped), view(bound), bytes(out))) << i;
  }
  std::string shorter(plain.size() - 1, '\0');
  EXPECT_FALSE(sealer.open(view(sealed).first(sealed.size() - 1), view(bound), bytes(shorter)));
  EXPECT_FALSE(sealer.open(view(sealed).first(5), view(bound), bytes(shorter)));
}

TEST(Sealer, KeyFiles_AreReadInBothForms_AndRefusedWhenOthersMayRead) {
  const std::string path = testing::TempDir() + "/baton-store-key";
  const std::string digits = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
  std::string raw;
  for (int i = 0; i < 32; ++i) raw.push_back(static_cast<char>(i));
  for (const std::string& content : {digits, digits + "\n", raw}) {
    ASSERT_TRUE(replace_file(path, content, 0600));
    auto key = Sealer::read_key(path);
    ASSERT_TRUE(key) << key.error().message();
    EXPECT_EQ(std::memcmp(key->data(), raw.data(), 32), 0);
  }
  for (const std::string& content : {digits.substr(2), digits + "00", std::string(64, 'g'), std::string()}) {
    ASSERT_TRUE(replace_file(path, content, 0600));
    EXPECT_EQ(Sealer::read_key(path).error().code, Code::kInvalid);
  }
  ASSERT_TRUE(replace_file(path, digits, 0640));
  EXPECT_EQ(Sealer::read_key(path).error().code, Code::kNotAllowed);
  fs::remove(path);
  EXPECT_EQ(Sealer::read_key(path).error().code, Code::kNotFound);
}

TEST_F(EncryptionTest, Store_HoldsNothingReadable_AndGivesEverythingBack) {
  Workload w("w"), v("v", DigestKind::kSha256, 2);
  open_with(w);
  ASSERT_TRUE(store_->add_workload(v.identity()));
  for (std::uint64_t round = 1; round <= 5; ++round) {
    write_pages(w, round);
    write_pages(v, round);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
    ASSERT_TRUE(v.checkpoint(*store_, Durability::kFlushed));
  }
  EXPECT_TRUE(store_->stats().encrypted);
  for (int pass = 0; pass < 3; ++pass) {
    for (std::uint64_t seq = 1; seq <= 5; ++seq) {
      EXPECT_EQ(w.compare(*store_, seq), "");
      EXPECT_EQ(v.compare(*store_, seq), "");
    }
    EXPECT_TRUE(store_->verify()->bad.empty());
    EXPECT_TRUE(store_->verify()->bad_manifests.empty());
    EXPECT_FALSE(on_disk("manifest of"));
    for (std::uint64_t round = 1; round <= 5; ++round) {
      EXPECT_FALSE(on_disk(start_of(make_page(round * 100 + 1))));
    }
    EXPECT_FALSE(on_disk(std::string(32, '\1'))) << "w's hash key";
    if (pass == 0) open();
    if (pass == 1) {
      ASSERT_TRUE(store_->drop("w", 2));
      ASSERT_TRUE(store_->mark("w", 3, {{"kept"}, {}, {}}));
      ASSERT_TRUE(store_->gc());
      break;
    }
  }
  open();
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{1, 3, 4, 5}));
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
}

TEST_F(EncryptionTest, CollectionAndCompaction_KeepItEncrypted) {
  options_.retention.keep_last = 3;
  Workload w("w");
  open_with(w);
  for (std::uint64_t round = 1; round <= 400; ++round) {
    for (std::uint64_t i = 0; i < 10; ++i) w.write(1, (round * 3 + i * 7) % 60, round * 100 + i + 1);
    ASSERT_TRUE(w.checkpoint(*store_, Durability::kMemory));
    if (round % 40 == 0) {
      ASSERT_TRUE(store_->maintain());
      ASSERT_TRUE(store_->gc());
    }
  }
  EXPECT_GT(store_->stats().compactions, 0u);
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
  open();
  EXPECT_EQ(seqs(w), (std::vector<std::uint64_t>{398, 399, 400}));
  for (std::uint64_t seq : seqs(w)) EXPECT_EQ(w.compare(*store_, seq), "");
  EXPECT_FALSE(on_disk("manifest of"));
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_FALSE(on_disk(start_of(make_page(40'000 + i + 1))));
}

TEST_F(EncryptionTest, WithoutTheKeyOrWithAnother_TheStoreIsRefusedAndLeftAlone) {
  Workload w("w");
  open_with(w);
  write_pages(w, 1);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  store_.reset();
  StoreOptions without = options_;
  without.node_key = nullptr;
  auto opened = Store::open(folder_ + "/store", without, clock_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::kNotAllowed);
  without.node_key = std::make_shared<const Sealer>(Sealer::make_key().value());
  opened = Store::open(folder_ + "/store", without, clock_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::kNotAllowed);
  open();
  EXPECT_EQ(w.compare(*store_, 1), "");
}

TEST_F(EncryptionTest, DroppedWorkload_TakesItsKeyAlong) {
  Workload w("w");
  open_with(w);
  write_pages(w, 1);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  // What somebody copied of the page segments is worth nothing without the key.
  fs::copy(folder_ + "/store/pages", folder_ + "/copied", fs::copy_options::recursive);
  std::ifstream identity(folder_ + "/store/workloads/w/identity", std::ios::binary);  // still open after the unlink
  ASSERT_TRUE(store_->drop_workload("w"));
  const std::string left((std::istreambuf_iterator<char>(identity)), {});
  EXPECT_EQ(left, std::string(left.size(), '\0')) << "the key is still on disk";
  ASSERT_TRUE(store_->add_workload(w.identity()));  // the same name again: another key
  store_.reset();
  fs::remove_all(folder_ + "/store/pages");
  fs::rename(folder_ + "/copied", folder_ + "/store/pages");
  open();
  Page page;
  const PageGet get{w.digest(101), page.data()};
  EXPECT_FALSE(store_->pages().get(w.identity().domain, w.hasher(), std::span(&get, 1)));
}

TEST_F(EncryptionTest, StoreThatWasInTheClear_IsEncryptedFromThenOn) {
  const SealerPtr key = std::exchange(options_.node_key, nullptr);
  Workload w("w");
  open_with(w);
  write_pages(w, 1);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  EXPECT_TRUE(on_disk("manifest of"));
  options_.node_key = key;
  open();
  EXPECT_FALSE(on_disk("manifest of")) << "its log was written anew";
  write_pages(w, 2);
  ASSERT_TRUE(w.checkpoint(*store_, Durability::kSynced));
  EXPECT_FALSE(on_disk(start_of(make_page(201))));
  EXPECT_EQ(w.compare(*store_, 1), "");
  EXPECT_EQ(w.compare(*store_, 2), "");
  open();
  EXPECT_EQ(w.compare(*store_, 1), "");
  EXPECT_EQ(w.compare(*store_, 2), "");
}

}  // namespace
}  // namespace baton::storage
