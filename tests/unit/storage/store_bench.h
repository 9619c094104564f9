// A small make-believe workload for the store's tests: memory objects whose pages change,
// the checkpoint records that follow from it, and a check that what the store gives back is
// what the memory was. Deterministic.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "storage/catalog.h"

namespace baton::storage::testing_ground {

using dedup::kPageBytes;
using Page = std::array<std::byte, kPageBytes>;

inline Page make_page(std::uint64_t seed) {
  Page page{};
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i < 64; ++i) {
    std::uint64_t word = random();
    std::memcpy(page.data() + i * 8, &word, 8);
  }
  return page;
}

class Workload {
 public:
  explicit Workload(std::string name, DigestKind kind = DigestKind::kXxh3_128,
                    std::uint8_t domain = 1) {
    identity_.workload = std::move(name);
    identity_.kind = kind;
    identity_.domain.bytes.fill(std::byte{domain});
    identity_.key.fill(std::byte{domain});
    hasher_ = std::make_shared<PageHasher>(kind, identity_.key);
  }
  // 0 as content means a page of zeros; other numbers seed its bytes.
  using Image = std::map<std::uint64_t, std::map<std::uint64_t, std::uint64_t>>;

  void write(std::uint64_t object, std::uint64_t page, std::uint64_t content) {
    image_[object][page] = content;
  }
  void unmap(std::uint64_t object, std::uint64_t page) { image_[object].erase(page); }
  void remove(std::uint64_t object) { image_.erase(object); }
  Image& image() { return image_; }
  const WorkloadIdentity& identity() const { return identity_; }
  const PageHasher& hasher() const { return *hasher_; }

  Digest digest(std::uint64_t content) const {
    if (content == 0) return Digest::zero_page();
    auto it = digests_.find(content);
    if (it == digests_.end()) it = digests_.emplace(content, hasher_->page(make_page(content))).first;
    return it->second;
  }
  static inline std::size_t manifest_padding = 1000;
  static std::string manifest_of(std::uint64_t seq) {
    return "manifest of " + std::to_string(seq) + std::string(seq % 5 * manifest_padding, 'm');
  }

  // The next checkpoint: against the last one taken, or full.
  CheckpointRecord take(bool full = false) {
    CheckpointRecord r;
    r.workload = identity_.workload;
    r.domain = identity_.domain;
    r.kind = identity_.kind;
    r.incarnation = incarnation;
    r.seq = ++seq;
    r.parent_seq = full || taken_.empty() ? 0 : parent_;
    r.freeze_wall_ns = 1000 + r.seq;
    r.freeze_age_ns = 5;
    r.pause_ns = 250;
    r.manifest = manifest_of(r.seq);
    const Image before = r.parent_seq == 0 ? Image{} : taken_.at(r.parent_seq);
    for (const auto& [id, pages] : image_) {
      ObjectDelta o;
      o.object_id = id;
      auto old = before.find(id);
      o.from_empty = old == before.end();
      dedup::PageTable table(identity_.kind);
      for (const auto& [page, content] : pages) {
        table.set(page, digest(content));
        if (o.from_empty || !old->second.contains(page) || old->second.at(page) != content) {
          o.changes.push_back({page, digest(content)});
        }
      }
      if (!o.from_empty) {
        for (const auto& [page, content] : old->second) {
          if (!pages.contains(page)) o.erased.push_back({page, 1});
        }
      }
      o.root = table.root(*hasher_);
      r.objects.push_back(std::move(o));
    }
    taken_[r.seq] = image_;
    parent_ = r.seq;
    return r;
  }
  const std::map<std::uint64_t, Image>& taken() const { return taken_; }

  Result<PutResult> put_pages(PageStore& pages) const {
    std::vector<Page> bytes;
    std::vector<Digest> digests;
    for (const auto& [id, object] : image_) {
      for (const auto& [page, content] : object) {
        if (content == 0) continue;
        bytes.push_back(make_page(content));
        digests.push_back(digest(content));
      }
    }
    std::vector<PagePut> puts;
    for (std::size_t i = 0; i < bytes.size(); ++i) puts.push_back({digests[i], bytes[i].data()});
    return pages.put(identity_.domain, puts);
  }
  // Pages, then the record. The whole way of one checkpoint.
  Result<void> checkpoint(Store& store, Durability durability = Durability::kFlushed,
                          bool full = false) {
    auto lease = store.lease();
    BATON_TRY(put_pages(store.pages()));
    return store.commit(take(full), durability);
  }
  void restart_from(std::uint64_t held_seq, std::uint64_t next_seq) {
    parent_ = held_seq;
    image_ = taken_.at(held_seq);
    seq = next_seq - 1;
  }

  // "" or what differs between NAME@seq in the store and what was taken.
  std::string compare(Store& store, std::uint64_t at) const {
    auto loaded = store.load(identity_.workload, at);
    if (!loaded) return loaded.error().message();
    if (loaded->manifest != manifest_of(at)) return "manifest differs";
    const Image& expected = taken_.at(at);
    if (loaded->objects.size() != expected.size()) return "count of objects differs";
    for (const auto& [id, pages] : expected) {
      auto it = loaded->objects.find(id);
      if (it == loaded->objects.end()) return "object " + std::to_string(id) + " is not there";
      if (it->second.count() != pages.size()) return "count of pages differs";
      std::vector<Page> bytes(pages.size());
      std::vector<PageGet> gets;
      for (const auto& [page, content] : pages) {
        if (it->second.get(page) != digest(content)) return "page " + std::to_string(page);
        gets.push_back({digest(content), bytes[gets.size()].data()});
      }
      if (auto got = store.pages().get(identity_.domain, *hasher_, gets); !got) {
        return got.error().message();
      }
      std::size_t i = 0;
      for (const auto& [page, content] : pages) {
        if (!(bytes[i++] == (content == 0 ? Page{} : make_page(content)))) return "page bytes";
      }
    }
    return "";
  }

  std::uint64_t seq = 0;
  std::uint64_t incarnation = 1;

 private:
  WorkloadIdentity identity_;
  std::shared_ptr<PageHasher> hasher_;
  Image image_;
  std::map<std::uint64_t, Image> taken_;
  std::uint64_t parent_ = 0;
  mutable std::map<std::uint64_t, Digest> digests_;
};

class StoreTest : public testing::Test {
 protected:
  void SetUp() override {
    // In memory where possible: these tests open a store thousands of times.
    std::string name = std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp";
    name += "/baton-store-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    options_.maintenance_thread = false;
    options_.segment_bytes = 1u << 20;
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }
  void open() {
    store_.reset();
    auto opened = Store::open(folder_ + "/store", options_, clock_);
    ASSERT_TRUE(opened) << opened.error().message();
    store_ = std::move(*opened);
  }
  void open_with(const Workload& w) {
    open();
    ASSERT_TRUE(store_->add_workload(w.identity()));
  }
  std::vector<CheckpointInfo> infos(const Workload& w) {
    auto list = store_->list(w.identity().workload);
    return list ? *list : std::vector<CheckpointInfo>{};
  }
  std::vector<std::uint64_t> seqs(const Workload& w) {
    std::vector<std::uint64_t> out;
    for (const auto& info : infos(w)) out.push_back(info.seq);
    return out;
  }
  std::uint64_t tip(const Workload& w) {
    auto t = store_->tip(w.identity().workload);
    return t && *t ? (*t)->seq : 0;
  }

  std::string folder_;
  StoreOptions options_;
  ManualClock clock_;
  std::unique_ptr<Store> store_;
};

}  // namespace baton::storage::testing_ground
