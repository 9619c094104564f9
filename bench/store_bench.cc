// The store over page sets that programs really wrote, and its index at ten million pages.
//
//   bench_store sets FOLDER STORE [LEVEL]
//       FOLDER/000, 001, …: one folder per checkpoint, in each a file per memory region (its name
//       is the region's, its content whole pages). Each becomes a checkpoint, compared with the
//       one before as an agent does; then the store is tidied and read back.
//   bench_store index PAGES STORE
//       Enters that many pages, opens the store again, and tells what the index takes.
//   bench_store rocksdb FOLDER DB
//       The same pages as keys (digest) and values (page) of RocksDB with blob files and zstd.
//
// One JSON object a line. CPU times are of the whole process.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "dedup/digest.h"
#include "dedup/page_table.h"
#include "storage/catalog.h"
#include "storage/segment_store.h"

#ifdef BATON_HAVE_ROCKSDB
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#endif

using namespace baton;
using dedup::kPageBytes;
namespace fs = std::filesystem;

namespace {

template <typename T>
T must(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "bench_store: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

class Watch {
 public:
  double wall() const { return seconds(CLOCK_MONOTONIC) - wall_; }
  double cpu() const { return seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_; }

 private:
  static double seconds(clockid_t id) { return std::chrono::duration<double>(read_clock(id)).count(); }
  double wall_ = seconds(CLOCK_MONOTONIC), cpu_ = seconds(CLOCK_PROCESS_CPUTIME_ID);
};

void print(const char* name, double value, const char* unit, const std::string& conditions, double of_cpu = 0) {
  std::printf("{\"name\": \"%s\", \"value\": %.5g, \"unit\": \"%s\", ", name, value, unit);
  if (of_cpu > 0) std::printf("\"of_cpu_time\": %.5g, ", of_cpu);
  std::printf("\"conditions\": \"%s\"}\n", conditions.c_str());
  std::fflush(stdout);
}

std::uint64_t bytes_below(const std::string& folder) {
  std::uint64_t sum = 0;
  for (const auto& e : fs::recursive_directory_iterator(folder)) {
    if (e.is_regular_file() && e.path().filename() != "reserve") sum += e.file_size();
  }
  return sum;
}

using Regions = std::map<std::string, std::string>;  // by name: whole pages

Regions read_set(const fs::path& folder) {
  Regions out;
  for (const auto& e : fs::directory_iterator(folder)) {
    std::string bytes = must(read_file(e.path(), std::size_t{4} << 30));
    bytes.resize(bytes.size() / kPageBytes * kPageBytes);
    out[e.path().filename()] = std::move(bytes);
  }
  return out;
}

std::vector<fs::path> sets_in(const std::string& folder) {
  std::vector<fs::path> out;
  for (const auto& e : fs::directory_iterator(folder)) {
    if (e.is_directory()) out.push_back(e.path());
  }
  std::sort(out.begin(), out.end());
  return out;
}

dedup::PageView page_of(const std::string& bytes, std::size_t i) {
  return dedup::PageView(reinterpret_cast<const std::byte*>(bytes.data()) + i * kPageBytes, kPageBytes);
}

void run_sets(const std::string& folder, const std::string& place, int level) {
  SystemClock clock;
  storage::StoreOptions options;
  options.retention.keep_last = 1000;
  options.maintenance_thread = false;
  options.zstd_level = level;
  auto store = must(storage::Store::open(place, options, clock));
  storage::WorkloadIdentity identity;
  identity.workload = "bench";
  identity.key = must(dedup::make_hash_key());
  must(store->add_workload(identity));
  const dedup::PageHasher hasher(identity.kind, identity.key);
  std::map<std::string, std::uint64_t> objects;
  std::map<std::uint64_t, dedup::PageTable> tables;
  std::uint64_t seq = 0, raw = 0, written = 0, zero = 0, fresh = 0;
  double wall = 0, cpu = 0;
  for (const auto& path : sets_in(folder)) {
    const Regions regions = read_set(path);
    const Watch watch;
    storage::CheckpointRecord record;
    record.workload = identity.workload;
    record.domain = identity.domain;
    record.parent_seq = seq;
    record.seq = ++seq;
    record.manifest = "bench";
    const auto lease = store->lease();
    std::map<std::uint64_t, dedup::PageTable> next;
    for (const auto& [name, bytes] : regions) {
      const std::uint64_t id = objects.try_emplace(name, objects.size() + 1).first->second;
      storage::ObjectDelta delta;
      delta.object_id = id;
      auto old = tables.find(id);
      delta.from_empty = old == tables.end();
      dedup::PageTable table = delta.from_empty ? dedup::PageTable(identity.kind) : old->second;
      const std::size_t pages = bytes.size() / kPageBytes;
      std::vector<storage::PagePut> puts;
      for (std::size_t i = 0; i < pages; ++i) {
        const auto digest = hasher.page(page_of(bytes, i));
        if (!delta.from_empty && table.get(i) == digest) continue;
        delta.changes.push_back({i, digest});
        zero += digest.is_zero_page();
        puts.push_back({digest, page_of(bytes, i).data()});
      }
      if (!puts.empty()) fresh += must(store->pages().put(identity.domain, puts)).new_pages;
      written += delta.changes.size();
      table.apply(delta.changes);
      delta.root = table.root(hasher);
      next.emplace(id, std::move(table));
      record.objects.push_back(std::move(delta));
      raw += bytes.size();
    }
    std::sort(record.objects.begin(), record.objects.end(),
              [](const auto& a, const auto& b) { return a.object_id < b.object_id; });
    if (seq == 1) {
      for (auto& object : record.objects) object.from_empty = true;
    }
    must(store->commit(record, storage::Durability::kSynced));
    tables = std::move(next);
    wall += watch.wall();
    cpu += watch.cpu();
  }
  const std::string conditions = std::to_string(seq) + " checkpoints of " + fs::path(folder).filename().string() + ", " +
                                 std::to_string(raw >> 20) + " MiB, zstd " + std::to_string(level) + ", each synced";
  print("baton.ingest", static_cast<double>(raw) / 1e6 / wall, "MB/s", conditions, static_cast<double>(raw) / 1e6 / cpu);
  print("baton.written_pages", static_cast<double>(written), "pages", conditions + "; differ from the checkpoint before");
  print("baton.zero_pages", static_cast<double>(zero), "pages", "of the written");
  print("baton.new_pages", static_cast<double>(fresh), "pages", "of the written; stored");
  const Watch tidy;
  must(store->maintain());
  must(store->gc());
  print("baton.tidy", tidy.wall(), "s", "retention, compaction, collection", 0);
  print("baton.size", static_cast<double>(bytes_below(place)), "bytes", conditions);
  {
    const Watch watch;
    const auto checkpoint = must(store->load(identity.workload, seq));
    std::uint64_t pages = 0;
    std::vector<std::byte> out(1024 * kPageBytes);
    for (const auto& [id, table] : checkpoint.objects) {
      std::vector<storage::PageGet> gets;
      auto flush = [&] {
        must(store->pages().get(identity.domain, hasher, gets));
        gets.clear();
      };
      table.for_each([&](std::uint64_t, const dedup::Digest& digest) {
        gets.push_back({digest, out.data() + gets.size() * kPageBytes});
        ++pages;
        if (gets.size() == 1024) flush();
      });
      flush();
    }
    print("baton.restore", static_cast<double>(pages * kPageBytes) / 1e6 / watch.wall(), "MB/s",
          "the newest checkpoint, warm page cache, every page checked",
          static_cast<double>(pages * kPageBytes) / 1e6 / watch.cpu());
  }
}

void run_index(std::uint64_t pages, const std::string& place) {
  constexpr std::size_t kBatch = 4096;
  storage::DomainId domain;
  std::mt19937_64 random(1);
  std::vector<std::byte> page(kPageBytes);
  {
    auto store = must(storage::open_segment_store(place));
    const auto lease = store->lease();
    std::vector<storage::PagePut> puts(kBatch);
    const Watch watch;
    for (std::uint64_t done = 0; done < pages; done += kBatch) {
      for (auto& put : puts) {
        std::uint64_t words[2] = {random(), random()};
        std::memcpy(put.digest.bytes.data(), words, sizeof words);
        put.page = page.data();
      }
      must(store->put(domain, puts));
    }
    const auto stats = store->stats();
    print("store.index_bytes_per_page", static_cast<double>(stats.index_bytes) / static_cast<double>(stats.pages), "bytes",
          std::to_string(stats.pages) + " pages in frames of 16, the places of the frames included");
    print("store.index_fill", static_cast<double>(pages) / watch.wall(), "pages/s", "small pages, zstd 1 included",
          static_cast<double>(pages) / watch.cpu());
    must(store->sync(storage::Durability::kSynced));
  }
  const Watch watch;
  auto store = must(storage::open_segment_store(place));
  print("store.start_up", watch.wall(), "s", std::to_string(store->stats().pages) + " pages, from footers, warm page cache");
  print("store.start_up_cpu", watch.cpu(), "s", "the same, processor time");
}

#ifdef BATON_HAVE_ROCKSDB
void run_rocksdb(const std::string& folder, const std::string& place) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.enable_blob_files = true;
  options.min_blob_size = 0;
  options.blob_compression_type = rocksdb::kZSTD;
  options.compression = rocksdb::kZSTD;
  options.enable_blob_garbage_collection = true;
  rocksdb::DB* db = nullptr;
  auto good = [](const rocksdb::Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "bench_store: rocksdb: %s\n", status.ToString().c_str());
    std::exit(1);
  };
  good(rocksdb::DB::Open(options, place, &db));
  dedup::HashKey key{};
  const dedup::PageHasher hasher(dedup::DigestKind::kXxh3_128, key);
  std::uint64_t raw = 0, checkpoints = 0;
  double wall = 0, cpu = 0;
  std::map<std::string, std::vector<dedup::Digest>> before;
  rocksdb::WriteOptions synced;
  synced.sync = true;
  for (const auto& path : sets_in(folder)) {
    const Regions regions = read_set(path);
    const Watch watch;
    rocksdb::WriteBatch batch;
    std::string list;  // the checkpoint itself: its changed pages' digests
    for (const auto& [name, bytes] : regions) {
      auto& known = before[name];
      const std::size_t pages = bytes.size() / kPageBytes;
      known.resize(pages);
      for (std::size_t i = 0; i < pages; ++i) {
        const auto digest = hasher.page(page_of(bytes, i));
        if (known[i] == digest) continue;
        known[i] = digest;
        list.append(reinterpret_cast<const char*>(digest.bytes.data()), 16);
        if (digest.is_zero_page()) continue;
        const rocksdb::Slice page_key(reinterpret_cast<const char*>(digest.bytes.data()), 16);
        std::string ignored;
        if (db->KeyMayExist(rocksdb::ReadOptions(), page_key, &ignored) &&
            db->Get(rocksdb::ReadOptions(), page_key, &ignored).ok()) {
          continue;
        }
        good(batch.Put(page_key, rocksdb::Slice(reinterpret_cast<const char*>(page_of(bytes, i).data()), kPageBytes)));
        if (batch.GetDataSize() > 8u << 20) {
          good(db->Write(rocksdb::WriteOptions(), &batch));
          batch.Clear();
        }
      }
      raw += bytes.size();
    }
    good(batch.Put("checkpoint " + path.filename().string(), list));
    good(db->Write(synced, &batch));
    ++checkpoints;
    wall += watch.wall();
    cpu += watch.cpu();
  }
  const Watch tidy;
  good(db->Flush(rocksdb::FlushOptions()));
  good(db->CompactRange(rocksdb::CompactRangeOptions(), nullptr, nullptr));
  const double tidied = tidy.wall();
  good(db->Close());
  delete db;
  const std::string conditions = std::to_string(checkpoints) + " checkpoints of " + fs::path(folder).filename().string() +
                                 ", blob files, zstd, each synced";
  print("rocksdb.ingest", static_cast<double>(raw) / 1e6 / wall, "MB/s", conditions, static_cast<double>(raw) / 1e6 / cpu);
  print("rocksdb.tidy", tidied, "s", "flush and full compaction");
  print("rocksdb.size", static_cast<double>(bytes_below(place)), "bytes", conditions);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "sets" && argc >= 4) {
    run_sets(argv[2], argv[3], argc > 4 ? std::atoi(argv[4]) : 1);
  } else if (what == "index" && argc == 4) {
    run_index(std::strtoull(argv[2], nullptr, 10), argv[3]);
#ifdef BATON_HAVE_ROCKSDB
  } else if (what == "rocksdb" && argc == 4) {
    run_rocksdb(argv[2], argv[3]);
#endif
  } else {
    std::fprintf(stderr, "usage: bench_store sets FOLDER STORE [LEVEL] | index PAGES STORE | rocksdb FOLDER DB\n");
    return 2;
  }
  return 0;
}
