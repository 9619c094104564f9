// Digests, the page table and the store, on one thread: digest rate, ingest of known and of
// new pages (half of each page incompressible), reading back, and the commit of 2,000 scattered
// pages of a 256 MiB image. Beside ingest, the naive way: write(2) all pages to one file.
// Each figure is the median of several passes, with the extremes. One JSON object a line.
//
//   bench_dedup [FOLDER]     where the store is made; default /tmp
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "dedup/digest.h"
#include "dedup/page_table.h"
#include "storage/catalog.h"

using namespace baton;
using dedup::kPageBytes;

namespace {

constexpr std::size_t kPages = 65536;  // 256 MiB
constexpr std::size_t kBatchPages = 1024;
constexpr const char* kConditions = "256 MiB, half of each page incompressible, one thread";

template <typename T>
T must(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "bench_dedup: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// What a piece of work took: by the clock, and of this thread's processor time, which is what
// counts per core when others use the machine too.
struct Took {
  double wall = 0, cpu = 0;  // seconds
};

Took took(const std::function<void()>& work) {
  const auto wall = read_clock(CLOCK_MONOTONIC), cpu = read_clock(CLOCK_THREAD_CPUTIME_ID);
  work();
  return {std::chrono::duration<double>(read_clock(CLOCK_MONOTONIC) - wall).count(),
          std::chrono::duration<double>(read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu).count()};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// `amount` / time when it is a rate, time * `amount` when it is a time.
void print(const std::string& name, const std::vector<Took>& passes, double amount, bool rate,
           const char* unit, const std::string& conditions) {
  std::vector<double> wall, cpu;
  for (const Took& t : passes) {
    wall.push_back(rate ? amount / t.wall : t.wall * amount);
    cpu.push_back(rate ? amount / t.cpu : t.cpu * amount);
  }
  const auto [low, high] = std::minmax_element(wall.begin(), wall.end());
  std::printf("{\"name\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"min\": %.4g, \"max\": %.4g, "
              "\"of_cpu_time\": %.4g, \"passes\": %zu, \"conditions\": \"%s\"}\n",
              name.c_str(), median(wall), unit, *low, *high, median(cpu), wall.size(),
              conditions.c_str());
  std::fflush(stdout);
}

struct Image {
  std::vector<std::byte> bytes = std::vector<std::byte>(kPages * kPageBytes);
  std::vector<dedup::Digest> digests = std::vector<dedup::Digest>(kPages);
  const std::byte* page(std::size_t i) const { return bytes.data() + i * kPageBytes; }

  void fill(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    for (std::size_t i = 0; i < kPages; ++i) {
      for (std::size_t at = 0; at < kPageBytes; at += 8) {
        const std::uint64_t word = at < kPageBytes / 2 ? random() : i;
        std::memcpy(bytes.data() + i * kPageBytes + at, &word, 8);
      }
    }
  }
  void digest(const dedup::PageHasher& hasher) {
    for (std::size_t i = 0; i < kPages; ++i) {
      digests[i] = hasher.page(dedup::PageView(page(i), kPageBytes));
    }
  }
};

// As an agent does it: digest, then put, batch by batch.
void ingest(storage::PageStore& store, const storage::DomainId& domain,
            const dedup::PageHasher& hasher, Image& image) {
  std::vector<storage::PagePut> puts(kBatchPages);
  for (std::size_t at = 0; at < kPages; at += kBatchPages) {
    for (std::size_t i = 0; i < kBatchPages; ++i) {
      const std::byte* page = image.page(at + i);
      puts[i] = {hasher.page(dedup::PageView(page, kPageBytes)), page};
    }
    must(store.put(domain, puts));
  }
}

storage::CheckpointRecord record_of(const Image& image, const dedup::PageTable& table,
                                    const dedup::PageHasher& hasher) {
  storage::CheckpointRecord r;
  r.workload = "bench";
  r.seq = 1;
  r.manifest.assign(20000, 'm');
  storage::ObjectDelta o;
  o.from_empty = true;
  o.root = table.root(hasher);
  for (std::size_t i = 0; i < kPages; ++i) o.changes.push_back({i, image.digests[i]});
  r.objects.push_back(std::move(o));
  return r;
}

}  // namespace

int main(int argc, char** argv) {
  const double bytes = static_cast<double>(kPages * kPageBytes);
  const std::string vector_unit(dedup::hash_vector_unit());
  Image image;
  image.fill(1);
  storage::WorkloadIdentity identity;
  identity.workload = "bench";
  identity.key = must(dedup::make_hash_key());
  const dedup::PageHasher hasher(dedup::DigestKind::kXxh3_128, identity.key);
  const dedup::PageHasher sha(dedup::DigestKind::kSha256, identity.key);

  std::vector<Took> passes;
  for (int i = 0; i < 7; ++i) passes.push_back(took([&] { image.digest(hasher); }));
  print("dedup.digest_xxh3", passes, bytes / 1e9, true, "GB/s", "256 MiB, " + vector_unit);
  passes.clear();
  for (int i = 0; i < 3; ++i) passes.push_back(took([&] { image.digest(sha); }));
  print("dedup.digest_sha256", passes, bytes / 1e9, true, "GB/s", "256 MiB");
  image.digest(hasher);

  std::string folder = std::string(argc > 1 ? argv[1] : "/tmp") + "/baton-bench-dedup-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) {
    must(Result<void>(errno_error("mkdtemp", folder)));
  }
  {
    SystemClock clock;
    storage::StoreOptions options;
    options.retention.keep_last = 4;
    auto store = must(storage::Store::open(folder + "/store", options, clock));
    must(store->add_workload(identity));
    const storage::WriteLease lease = store->lease();  // nothing is collected meanwhile

    passes.clear();
    for (std::uint64_t i = 2; i < 7; ++i) {
      image.fill(i);
      passes.push_back(took([&] { ingest(store->pages(), identity.domain, hasher, image); }));
      must(store->pages().sync(storage::Durability::kSynced));  // keeps write-back out of the next
    }
    print("store.ingest_new", passes, bytes / 1e6, true, "MB/s", std::string(kConditions) + ", zstd 1, with digest");

    std::vector<Took> naive;
    for (int i = 0; i < 5; ++i) {
      const std::string path = folder + "/naive";
      Fd fd = must(open_file(path, O_WRONLY | O_CREAT | O_TRUNC, 0600));
      naive.push_back(took([&] { must(write_all(fd.get(), image.bytes)); }));
      ::fdatasync(fd.get());
      ::unlink(path.c_str());
    }
    print("store.ingest_naive", naive, bytes / 1e6, true, "MB/s", "write(2) of the same pages, no digest, no index");

    passes.clear();
    for (int i = 0; i < 9; ++i) {
      passes.push_back(took([&] { ingest(store->pages(), identity.domain, hasher, image); }));
    }
    print("store.ingest_known", passes, bytes / 1e9, true, "GB/s", std::string(kConditions) + ", with digest");

    image.digest(hasher);
    dedup::PageTable table;
    for (std::size_t i = 0; i < kPages; ++i) table.set(i, image.digests[i]);
    storage::CheckpointRecord record = record_of(image, table, hasher);
    record.domain = identity.domain;
    must(store->commit(record, storage::Durability::kSynced));

    // 2,000 scattered pages that exchange their content: nothing new to store.
    std::mt19937_64 random(1);
    std::vector<Took> tables, commits, synced;
    for (std::uint64_t n = 0; n < 200; ++n) {
      std::vector<dedup::PageChange> changes;
      std::vector<std::size_t> pages;
      for (std::size_t i = 0; i < 2000; ++i) pages.push_back(i * 32 + random() % 32);
      for (std::size_t i = 0; i < 2000; ++i) {
        changes.push_back({pages[i], image.digests[random() % kPages]});
      }
      const dedup::PageTable before = table;  // shared, as with the store's older checkpoints
      storage::ObjectDelta o;
      tables.push_back(took([&] {
        table.apply(changes);
        o.root = table.root(hasher);
      }));
      o.changes = std::move(changes);
      record.parent_seq = record.seq++;
      record.objects.assign(1, std::move(o));
      const auto durability =
          n < 150 ? storage::Durability::kFlushed : storage::Durability::kSynced;
      (n < 150 ? commits : synced).push_back(took([&] { must(store->commit(record, durability)); }));
    }
    const char* small = "2,000 scattered pages of 65,536, manifest of 20 kB";
    print("dedup.table_change", tables, 1e6, false, "us", small);
    print("store.commit_flushed", commits, 1e6, false, "us", small);
    print("store.commit_synced", synced, 1e6, false, "us", small);

    passes.clear();
    std::vector<std::byte> out(kBatchPages * kPageBytes);
    for (int i = 0; i < 5; ++i) {
      passes.push_back(took([&] {
        std::vector<storage::PageGet> gets(kBatchPages);
        for (std::size_t at = 0; at < kPages; at += kBatchPages) {
          for (std::size_t k = 0; k < kBatchPages; ++k) {
            gets[k] = {image.digests[at + k], out.data() + k * kPageBytes};
          }
          must(store->pages().get(identity.domain, hasher, gets));
        }
      }));
    }
    print("store.read", passes, bytes / 1e6, true, "MB/s", std::string(kConditions) + ", warm page cache, checked");
  }
  std::filesystem::remove_all(folder);
  return 0;
}
